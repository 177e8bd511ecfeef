//! A host serves a subnet that contains the host's own underlay address. Packets of the served machines that are for
//! the overlay, or that have no route in it, never leave the host in clear text. The host's own packets are routed as
//! they would be without an agent (D22).
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, eventually, sh};
use ipnet::IpNet;
use nix::sys::signal::Signal;
use tombolo_proto::config::{
    AgentConfig, DEFAULT_MTU, ForeignSources, Link, Nic, Owner, Probes, Relation, Role, Space, SpaceKind, Subnet,
};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteSource, RouteState};

/// The address spaces: the VNet `/office` has 10.1.0.0/16 and 192.0.2.0/24, which is the LAN of its machines; the VNet
/// `/other` has 10.2.0.0/16.
const OFFICE: [&str; 2] = ["10.1.0.0/16", "192.0.2.0/24"];
const OTHER: [&str; 1] = ["10.2.0.0/16"];

/// The hosts: the agent of the gate serves the LAN (a subnet of `/office`), the peer is a VM of `/other`, and the desk
/// is a machine in the LAN without an agent.
const GATE: usize = 0;
const PEER: usize = 1;
const DESK: usize = 2;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn space(kind: SpaceKind, vnet: &str, prefixes: &[&str], owners: &[(&str, &Host)]) -> Space {
    let owner = |(prefix, host): &(&str, &Host)| Owner {
        prefix: net(prefix),
        agent: host.config.agent.clone(),
        ip_forwarding: false,
    };
    Space {
        vnet: ResourceId::new(vnet),
        kind,
        prefixes: prefixes.iter().map(|p| net(p)).collect(),
        owners: owners.iter().map(owner).collect(),
    }
}

/// The configuration for the agent of the gate (`of_gate`) or of the peer. With `peered` their VNets have a peering.
fn config(gate: &Host, peer: &Host, of_gate: bool, peered: bool) -> AgentConfig {
    let peering = ResourceId::new("/peering");
    let (gate_owns, peer_owns) = ([("10.1.0.4/32", gate), ("192.0.2.0/24", gate)], [("10.2.0.4/32", peer)]);
    let spaces_of = |of_gate: bool, kind: SpaceKind| {
        if of_gate {
            space(kind, "/office", &OFFICE, &gate_owns)
        } else {
            space(kind, "/other", &OTHER, &peer_owns)
        }
    };
    let route = |prefix: &str, next_hop: NextHop| EffectiveRoute {
        name: None,
        source: RouteSource::Default,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    };
    let (own, remote): (&[&str], &[&str]) = if of_gate { (&OFFICE, &OTHER) } else { (&OTHER, &OFFICE) };
    let mut routes: Vec<_> = own.iter().map(|p| route(p, NextHop::VnetLocal {})).collect();
    let mut spaces = vec![spaces_of(of_gate, SpaceKind::Local {})];
    let mut links = Vec::new();
    if peered {
        let hop = || NextHop::VnetPeering {
            peering: peering.clone(),
        };
        routes.extend(remote.iter().map(|p| route(p, hop())));
        let kind = SpaceKind::Peered {
            peering: peering.clone(),
            allow_access: true,
            allow_forwarded: false,
        };
        spaces.push(spaces_of(!of_gate, kind));
        let (other, endpoint, sources): (&Host, _, &[&str]) = if of_gate {
            (peer, "198.51.100.2:51820", &["10.2.0.4/32"])
        } else {
            (gate, "192.0.2.1:51820", &["10.1.0.4/32", "192.0.2.0/24"])
        };
        links.push(Link {
            peer: other.config.agent.clone(),
            public_key: other.key,
            preshared_key: None,
            endpoint: Some(endpoint.parse().unwrap()),
            quic_endpoint: None,
            peer_lanes: 1,
            many_routes: false,
            quic: None,
            transport: tombolo_proto::config::Transport::WireGuard,
            always_on: false,
            initiator: of_gate,
            relation: Relation::Peering { peering },
            sources: sources.iter().map(|p| net(p)).collect(),
            foreign: ForeignSources::None,
            arrivals: Vec::new(),
            monitored: false,
            third_party: false,
            dpd_timeout: None,
        });
    }
    let subnet = ResourceId::new("/subnet");
    AgentConfig {
        agent: if of_gate { gate } else { peer }.config.agent.clone(),
        vnet: spaces[0].vnet.clone(),
        address_space: own.iter().map(|p| net(p)).collect(),
        mtu: DEFAULT_MTU,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: ResourceId::new("/nic"),
                addresses: vec![net(if of_gate { "10.1.0.4/24" } else { "10.2.0.4/24" })],
                subnet: subnet.clone(),
                ip_forwarding: false,
                host_routes: Vec::new(),
            }],
            served: if of_gate { vec![net("192.0.2.0/24")] } else { vec![] },
            gateways: Vec::new(),
        },
        subnets: vec![Subnet {
            id: subnet,
            prefixes: own.iter().map(|p| net(p)).collect(),
            routes,
            isolated: false,
        }],
        spaces,
        links,
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

/// Builds the underlay. The gate and the peer are in different networks, and the bridge is the router between these
/// networks. The desk uses the gate as its default gateway.
fn build(wire: &Wire) {
    let at = |side: usize| format!("ip -n {}", wire.ns[side]);
    let router = "ip address add 192.0.2.254/24 dev br0; ip address add 198.51.100.254/24 dev br0; \
                  sysctl -qw net.ipv4.ip_forward=1; ip route add blackhole default";
    let (ok, text) = wire.at_bridge(&format!("sh -c '{router}'"));
    assert!(ok, "{text}");
    sh(&format!(
        "{0} route add default via 192.0.2.254; {1} address flush dev wire0; \
         {1} address add 198.51.100.2/24 dev wire0; {1} route add default via 198.51.100.254; \
         {2} route add default via 192.0.2.1",
        at(GATE),
        at(PEER),
        at(DESK)
    ));
    assert!(wire.exec(GATE, "sysctl -qw net.ipv4.ip_forward=1").0);
    // A packet has leaked if it reaches the router (the bridge) and has an address in 10.0.0.0/8, or comes from the
    // desk.
    let seen = "add table bridge seen; add chain bridge seen c { type filter hook input priority 0; }; \
                add set bridge seen leaks { type ipv4_addr . ipv4_addr; size 1024; flags dynamic; }; \
                add rule bridge seen c ip saddr { 10.0.0.0/8, 192.0.2.3 } update @leaks { ip saddr . ip daddr counter }; \
                add rule bridge seen c ip daddr 10.0.0.0/8 update @leaks { ip saddr . ip daddr counter }";
    let (ok, text) = wire.at_bridge(&format!("nft '{seen}'"));
    assert!(ok, "{text}");
}

/// The leaked packets: pairs of source and destination address, each with a count.
fn leaks(wire: &Wire) -> Vec<String> {
    let (ok, text) = wire.at_bridge("nft list set bridge seen leaks");
    assert!(ok, "{text}");
    let pairs = text.lines().filter(|l| l.contains("packets"));
    pairs.map(|l| l.trim().to_owned()).collect()
}

fn pings(wire: &Wire, side: usize, to: &str) -> bool {
    wire.exec(side, &format!("ping -n -c 1 -W 1 {to}")).0
}

/// Sends packets that must not leave the gate in clear text, from the desk and from the gate itself, and checks that
/// none has leaked. Also checks that the gate's own traffic works.
fn nothing_leaks(wire: &Wire, when: &str, peered: bool) {
    let mut attempts = vec![
        (DESK, "10.2.0.4"),
        (DESK, "10.77.0.1"),
        (DESK, "203.0.113.9"),
        (GATE, "-I 10.1.0.4 10.2.0.4"),
        (GATE, "-I 10.1.0.4 203.0.113.9"),
    ];
    // Without a peering there is no overlay route to the peer. Packets from the host's own underlay address then follow
    // the host's routes (D22), which is right, but this test would count them as leaks.
    attempts.extend(peered.then_some((GATE, "10.2.0.4")));
    for (side, to) in attempts {
        // Whether a reply arrives does not matter here. The test is whether a packet leaks.
        let _ = wire.exec(side, &format!("ping -n -c 3 -i 0.05 -W 0.2 {to}"));
        assert_eq!(leaks(wire), [""; 0], "{when}: host {side} to {to}");
    }
    for underlay in ["192.0.2.254", "198.51.100.254", "192.0.2.3"] {
        assert!(
            pings(wire, GATE, underlay),
            "{when}: the host's own packets to {underlay}"
        );
    }
    assert!(pings(wire, DESK, "192.0.2.1"), "{when}: the LAN and the host");
}

#[test]
fn a_served_subnet_with_the_hosts_own_underlay_address() {
    let wire = Wire::with_hosts("served", 3);
    build(&wire);
    let (mut gate, mut peer) = (Host::new(&wire.ns[GATE], "gate"), Host::new(&wire.ns[PEER], "peer"));
    let configure = |gate: &Host, peer: &Host, peered| {
        gate.remember(config(gate, peer, true, peered));
        peer.remember(config(gate, peer, false, peered));
    };
    configure(&gate, &peer, true);
    gate.start();
    peer.start();
    let served = |when: &str| {
        for (side, to) in [
            (DESK, "10.2.0.4"),
            (PEER, "192.0.2.3"),
            // The peer reaches the gate's own address in the served subnet, and the gate reaches the desk from the
            // address of its NIC.
            (PEER, "192.0.2.1"),
            (GATE, "-I 10.1.0.4 192.0.2.3"),
            (GATE, "-I 10.1.0.4 10.2.0.4"),
        ] {
            eventually(&format!("{when}: host {side} to {to}"), || pings(&wire, side, to));
        }
    };
    served("peered");
    nothing_leaks(&wire, "peered", true);

    gate.stop(Signal::SIGKILL);
    nothing_leaks(&wire, "after a crash", true);
    gate.start();
    served("after a restart");
    nothing_leaks(&wire, "after a restart", true);

    gate.stop(Signal::SIGKILL);
    configure(&gate, &peer, false);
    gate.start();
    nothing_leaks(&wire, "when the peering was deleted", false);
    assert!(gate.stop(Signal::SIGTERM), "{}", gate.log());
    nothing_leaks(&wire, "after a stop", false);

    let program = env!("CARGO_BIN_EXE_tombolo-agent");
    let (ok, text) = wire.exec(GATE, &format!("{program} clean --state-dir {}", gate.path().display()));
    assert!(ok, "{text}");
    let rules = wire.exec(GATE, "ip rule").1;
    assert_eq!(rules.lines().count(), 3, "{rules}");
    // After `clean` packets do leak. This proves that the counters work.
    pings(&wire, DESK, "10.77.0.1");
    assert!(!leaks(&wire).is_empty());
}
