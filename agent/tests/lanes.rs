//! Agents with several lanes (D15). Flows spread over the lanes. Packets arrive even if the peer has fewer lanes, or
//! the network blocks the ports of some lanes.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Server, Wire, config, eventually};

/// Two hosts whose agents have these numbers of lanes. Both agents run.
fn pair(wire: &Wire, lanes: [u16; 2]) -> [Host; 2] {
    let mut hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for (host, lanes) in hosts.iter_mut().zip(lanes) {
        host.config.lanes = lanes;
        host.config.save(&host.state).unwrap();
    }
    for i in 0..2 {
        hosts[i].remember(config(i, [&hosts[0], &hosts[1]]));
    }
    hosts.iter_mut().for_each(Host::start);
    hosts
}

/// The number of packets that each lane of a host has sent into links; the index is the lane's number.
fn sent(host: &Host) -> Vec<u64> {
    let status = host.status().unwrap();
    let lanes = status["lanes"].as_array().unwrap();
    lanes.iter().map(|l| l["linkOut"].as_u64().unwrap()).collect()
}

/// Sends 16 parallel streams from the first host to the second. Pings run at the same time, and none of them may be
/// lost.
fn streams(wire: &Wire, hosts: &[Host; 2], what: &str) {
    let server = Server::start(wire, 1);
    let pings = std::thread::spawn({
        let ns = wire.ns[0].clone();
        move || common::try_sh(&format!("ip netns exec {ns} ping -i 0.01 -c 150 -W 2 10.1.0.5")).1
    });
    let (ok, text) = wire.exec(0, "timeout 30 iperf3 -c 10.1.0.5 -P 16 -t 2 -b 3M -l 8K -f m");
    drop(server);
    assert!(ok, "{what}: {text}");
    let pings = pings.join().unwrap();
    let drops = |h: &Host| h.status().unwrap()["status"]["drops"].to_string();
    let drops = [drops(&hosts[0]), drops(&hosts[1])];
    assert!(pings.contains("150 received"), "{what}: {pings} {drops:?}");
}

#[test]
fn flows_spread_over_lanes() {
    let wire = Wire::new("lanes");
    let hosts = pair(&wire, [3, 3]);
    // A flow that begins before a lane has its session stays in lane 0. So only the second run shows that flows spread
    // over all lanes.
    streams(&wire, &hosts, "three and three, at the start");
    streams(&wire, &hosts, "three and three");
    for host in &hosts {
        let sent = sent(host);
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|n| *n > 20), "{sent:?}");
        let status = host.status().unwrap();
        let links = status["status"]["links"].as_array().unwrap();
        assert_eq!((links.len(), &links[0]["state"]), (1, &"up".into()), "{status}");
    }
}

/// As soon as one lane has a session with a peer, all other lanes establish their sessions with the peer. If they did
/// not, a flow that begins in lane 0 would stay there, because its replies arrive there.
#[test]
fn a_link_that_comes_up_does_so_in_all_lanes() {
    let wire = Wire::new("allup");
    let hosts = pair(&wire, [3, 3]);
    eventually("the link is up", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    // The test waits for a fixed time, because the agent's status does not show the sessions of single lanes.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let counts = || {
        let status = hosts[0].status().unwrap();
        let lanes = status["lanes"].as_array().unwrap().iter();
        lanes
            .map(|lane| ["tunIn", "linkOut"].map(|word| lane[word].as_u64().unwrap()))
            .collect::<Vec<[u64; 2]>>()
    };
    let before = counts();
    let flows = "for i in $(seq 40); do echo x >/dev/udp/10.1.0.5/$((7000 + i)); done";
    wire.run(0, &format!("bash -c '{flows}'"));
    let more = || -> Vec<[u64; 2]> {
        let after = counts();
        let pairs = std::iter::zip(&after, &before);
        pairs.map(|(a, b)| [a[0] - b[0], a[1] - b[1]]).collect()
    };
    let all = |of: usize| more().iter().map(|lane| lane[of]).sum::<u64>();
    eventually("the lanes have read and sent all packets", || {
        all(0) >= 40 && all(1) >= 40
    });
    let more = more();
    assert!(more.iter().all(|[read, _]| *read > 2), "{more:?}");
    // Each lane itself sent the packets that it had read: none of them was redirected.
    assert!(more.iter().all(|[read, sent]| sent <= read), "{more:?}");
}

#[test]
fn an_agent_with_fewer_lanes_is_served_by_the_first() {
    let wire = Wire::new("fewer");
    let hosts = pair(&wire, [3, 1]);
    streams(&wire, &hosts, "three and one");
    let sent = sent(&hosts[0]);
    assert!(sent[0] > 500 && sent[1..] == [0, 0], "{sent:?}");
}

#[test]
fn ports_that_a_firewall_closes_are_not_missed() {
    let wire = Wire::new("ports");
    let rules = |set: &str| {
        format!(
            "nft 'add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; flush chain inet t c; {set}'"
        )
    };
    let close = "add rule inet t c udp dport 51821-51822 counter drop";
    common::sh(&format!("ip netns exec {} {}", wire.ns[1], rules(close)));
    let hosts = pair(&wire, [3, 3]);
    streams(&wire, &hosts, "closed from the start");
    let before = sent(&hosts[0]);
    assert_eq!(before[1..], [0, 0], "{before:?}");
    // When a firewall opens or closes the port of a lane, flows move to or from this lane within one or two seconds.
    common::sh(&format!("ip netns exec {} {}", wire.ns[1], rules("")));
    eventually("lanes are used once their ports are open", || {
        streams(&wire, &hosts, "open");
        sent(&hosts[0])[1..].iter().all(|n| *n > 0)
    });
    common::sh(&format!("ip netns exec {} {}", wire.ns[1], rules(close)));
    eventually("flows go over to the first lane", || {
        let before = sent(&hosts[0]);
        streams_alive(&wire) && sent(&hosts[0])[1..] == before[1..]
    });
}

/// Whether twelve single pings and a series of 100 pings are all answered.
fn streams_alive(wire: &Wire) -> bool {
    (0..12).all(|_| wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0)
        && wire
            .exec(0, "timeout 3 ping -i 0.01 -c 100 -q 10.1.0.5")
            .1
            .contains("100 received")
}
