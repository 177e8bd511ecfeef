//! Tests of security groups at an agent with one lane and with four lanes. The kernel may pass each packet of a flow to
//! another lane: replies often come in another lane than requests, and the packets of one flow may come over two edges
//! of a circuit. So each test tries every combination of lanes (N6, P13, D33, D34).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::lanes::{LaneLinks, Queue};
use common::{agent, id, ip, link, nets, route, space, udp, vm};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::Collected;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::PlainLinks;
use tombolo_engine::security::{BootTime, Flows};
use tombolo_engine::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{Access, AgentConfig, Direction, Relation, Security, SecurityRule, SpaceKind};
use tombolo_proto::route::{GatewayHop, NextHop};

/// The address of the machine, and those of machines behind its peers.
const OWN: &str = "10.0.0.1";
const PEER: &str = "172.16.0.1";
const SITE: &str = "192.168.0.1";

/// A machine whose agent has one or several lanes.
struct Machine {
    lanes: Vec<Engine<LaneLinks, Option<Queue>>>,
    queue: Queue,
    flows: Arc<Flows>,
    now: Instant,
}

/// Names of the peers, in the order of their links: two edges of a circuit that lead to [`SITE`], a gateway with one
/// lane that leads there too, and a VM of a peered VNet with the address [`PEER`].
const PEERS: [&str; 4] = ["edge1", "edge2", "gateway", "peer"];

/// The configuration of the machine. `through`: the peers that lead to [`SITE`] share the flows to it. `connected`:
/// whether the peering is `Connected` on both sides (P13).
fn config(through: &[&str], connected: bool, security: Security) -> AgentConfig {
    let edge = || Relation::Edge { connection: id("c") };
    let peering = Relation::Peering { peering: id("to-peer") };
    let site = ["192.168.0.0/16"];
    let mut links = vec![
        link("edge1", edge(), &site),
        link("edge2", edge(), &site),
        link("gateway", Relation::Gateway {}, &site),
    ];
    if connected {
        links.push(link("peer", peering, &["172.16.0.1/32"]));
    }
    for link in &mut links {
        link.endpoint = Some("192.0.2.1:1".parse().unwrap());
    }
    let mut config = vm("vm", &["10.0.0.1/24"], links, &[("10.0.0.1/32", "vm")]);
    let gateways = through.iter().map(|name| GatewayHop {
        agent: agent(name),
        address: ip("10.255.0.4"),
    });
    let to_site = NextHop::VirtualNetworkGateway {
        gateways: gateways.collect(),
        spread: true,
    };
    config.subnets[0].routes.push(route("192.168.0.0/16", to_site));
    if connected {
        let to_peer = NextHop::VnetPeering { peering: id("to-peer") };
        config.subnets[0].routes.push(route("172.16.0.0/16", to_peer));
        let kind = SpaceKind::Peered {
            peering: id("to-peer"),
            allow_access: true,
            allow_forwarded: false,
        };
        let owners = [("172.16.0.1/32", "peer")];
        config.spaces.push(space("peer", kind, &["172.16.0.0/16"], &owners));
    }
    config.security = Some(security);
    config
}

/// The group of the machine's NIC.
fn with_rules(rules: Vec<SecurityRule>) -> Security {
    security(&["10.0.0.1/32"], None, Some(group("web", rules)))
}

fn usual(security: Security) -> AgentConfig {
    config(&["edge1", "edge2"], true, security)
}

impl Machine {
    fn new(lanes: usize, config: &AgentConfig) -> Self {
        let mut machine = Self::without_configuration(lanes);
        machine.install(config);
        machine
    }

    fn without_configuration(lanes: usize) -> Self {
        let (queue, flows) = (Queue::default(), Arc::new(Flows::new(4096, 5)));
        let lane = |number: usize| {
            let links = LaneLinks {
                links: PlainLinks::new(agent("vm")),
                without_session: Vec::new(),
                health_returned: Vec::new(),
            };
            let redirect = (number > 0).then(|| queue.clone());
            let mut engine = Engine::with_redirect(links, number as u64, redirect);
            engine.share_flows(flows.clone());
            engine
        };
        Self {
            lanes: (0..lanes).map(lane).collect(),
            queue: queue.clone(),
            flows: flows.clone(),
            now: Instant::now(),
        }
    }

    /// Installs a configuration in one lane after the other.
    fn install(&mut self, config: &AgentConfig) {
        let tables = Arc::new(Tables::build(config, &RoutingState::default()).unwrap());
        for engine in &mut self.lanes {
            engine.install(tables.clone(), &config.links, self.now);
        }
    }

    /// Checks all flows after a change, as the lanes do between two batches.
    fn recheck(&mut self) {
        for engine in &mut self.lanes {
            while engine.recheck_flows() {}
        }
    }

    /// Lanes that a test tries for each packet.
    fn lanes(&self) -> Range<usize> {
        0..self.lanes.len()
    }

    /// Passes a packet of the host to a lane. Returns whether it was sent into a link.
    fn leaves(&mut self, lane: usize, packet: &[u8]) -> bool {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let mut packet = packet.to_vec();
        self.lanes[lane].handle_tun(NicIndex::FIRST, &mut packet, self.now, &mut tx, &mut rx);
        for (ingress, mut packet) in self.queue.0.take() {
            self.lanes[0].handle_redirected(ingress, &mut packet, self.now, &mut tx, &mut rx);
        }
        assert!(rx.packets.is_empty(), "N7: no answer");
        assert!(self.lanes.iter().all(|engine| engine.stats().conserved()));
        !tx.datagrams.is_empty()
    }

    /// Passes a packet of a peer to a lane. Returns whether it was delivered to the host.
    fn comes(&mut self, lane: usize, peer: &str, packet: &[u8]) -> bool {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let datagram = [&[u8::try_from(peer.len()).unwrap()][..], peer.as_bytes(), packet].concat();
        let from = "192.0.2.1:1".parse().unwrap();
        self.lanes[lane].handle_udp(&datagram, from, self.now, &mut tx, &mut rx);
        self.lanes[lane].drained(self.now);
        assert!(tx.datagrams.is_empty(), "N7: no answer");
        assert!(self.lanes.iter().all(|engine| engine.stats().conserved()));
        !rx.packets.is_empty()
    }

    /// How often each rule has decided, in all lanes together, without rules that never did.
    fn hits(&self) -> Vec<(String, u64)> {
        let mut sums = std::collections::BTreeMap::new();
        for (name, count) in self.lanes.iter().flat_map(|engine| engine.rule_hits()) {
            let short = name.rule.rsplit_once('/').unwrap().1.to_owned();
            *sums.entry(short).or_default() += count;
        }
        sums.into_iter().collect()
    }

    fn denied(&self) -> u64 {
        let drops = self
            .lanes
            .iter()
            .map(|engine| engine.stats().drops(DropReason::SecurityRule));
        drops.sum()
    }

    /// Opens a connection from `peer`, whose address is `from`, to port 443 of the machine. The segments come and leave
    /// in these lanes.
    fn connect(&mut self, peer: &str, from: (&str, u16), lanes: [usize; 3]) {
        let to = (OWN, 443);
        assert!(self.comes(lanes[0], peer, &tcp(from, to, Flags::Syn)), "{lanes:?}");
        assert!(self.leaves(lanes[1], &tcp(to, from, Flags::SynAck)), "{lanes:?}");
        assert!(self.comes(lanes[2], peer, &tcp(from, to, Flags::Ack)), "{lanes:?}");
    }

    /// Whether segments of that connection pass in each lane, in both directions. `None`: some do, and some do not.
    fn is_connected(&mut self, peer: &str, from: (&str, u16)) -> Option<bool> {
        let to = (OWN, 443);
        let mut passed = Vec::new();
        for lane in self.lanes() {
            passed.push(self.comes(lane, peer, &tcp(from, to, Flags::Ack)));
            passed.push(self.leaves(lane, &tcp(to, from, Flags::Ack)));
        }
        let all = passed.iter().all(|p| *p);
        (all || passed.iter().all(|p| !p)).then_some(all)
    }
}

/// Rules that allow inbound packets of the peer to port 443 only, and no outbound packets.
fn https_in() -> Vec<SecurityRule> {
    vec![
        to_port(443, rule("https", 100, Direction::Inbound, Access::Allow)),
        rule("nothing-in", 200, Direction::Inbound, Access::Deny),
        rule("nothing-out", 200, Direction::Outbound, Access::Deny),
    ]
}

/// Rules that allow no inbound packets, and all outbound packets.
fn closed() -> Vec<SecurityRule> {
    vec![
        rule("closed", 100, Direction::Inbound, Access::Deny),
        rule("all-out", 100, Direction::Outbound, Access::Allow),
    ]
}

#[test]
fn n6_d33_a_flow_is_one_flow_in_whichever_lanes_its_packets_come() {
    for lanes in [1, 4] {
        let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
        machine.now += Duration::from_secs(61);
        let mut port = 40_000;
        for first in machine.lanes() {
            for second in machine.lanes() {
                for third in machine.lanes() {
                    port += 1;
                    assert!(
                        !machine.leaves(second, &tcp((OWN, 443), (PEER, port), Flags::SynAck)),
                        "nobody asked"
                    );
                    machine.connect("peer", (PEER, port), [first, second, third]);
                }
            }
        }
        let flows = u64::from(port - 40_000);
        let expected = [("https".to_owned(), flows), ("nothing-out".to_owned(), flows)];
        assert_eq!(
            machine.hits(),
            expected,
            "{lanes} lanes: each flow and each refused packet is counted once"
        );
        assert_eq!(machine.denied(), flows);
        assert_eq!(machine.flows.table().unwrap().len() as u64, flows);
    }
}

#[test]
fn n6_a_change_of_rules_leaves_established_flows_alone_in_all_lanes() {
    for lanes in [1, 4] {
        let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
        for lane in machine.lanes() {
            machine.connect("peer", (PEER, 40_000 + lane as u16), [lane; 3]);
        }
        machine.install(&usual(with_rules(closed())));
        for passed in 0..5 {
            for lane in machine.lanes() {
                let from = (PEER, 40_000 + lane as u16);
                assert_eq!(machine.is_connected("peer", from), Some(true), "after {passed} s");
                assert!(
                    !machine.comes(lane, "peer", &tcp(from, (OWN, 443), Flags::Syn)),
                    "a new connection"
                );
            }
            machine.recheck();
            machine.now += Duration::from_secs(1);
        }
    }
}

/// With `reevaluate`, the next packet of a flow that the rules deny is dropped, whichever end sends it and in whichever
/// lane it comes. Flows that the rules allow go on, and no flow is counted again.
#[test]
fn d34_with_reevaluate_changed_rules_apply_to_established_flows() {
    let reevaluate = |rules| Security {
        reevaluate: true,
        ..with_rules(rules)
    };
    for lanes in [1, 4] {
        for recheck_first in [false, true] {
            let mut machine = Machine::new(lanes, &usual(reevaluate(https_in())));
            machine.now += Duration::from_secs(61);
            let ports = 40_000..40_100;
            for port in ports.clone() {
                machine.connect("peer", (PEER, port), [port as usize % lanes; 3]);
            }
            // Another rule changes, and these flows stay allowed.
            let mut rules = https_in();
            rules.push(to_port(22, rule("ssh", 110, Direction::Inbound, Access::Allow)));
            machine.install(&usual(reevaluate(rules)));
            for port in ports.clone() {
                assert_eq!(machine.is_connected("peer", (PEER, port)), Some(true));
            }
            assert_eq!(machine.hits(), [("https".to_owned(), 100)], "N6: once for each flow");

            machine.now += Duration::from_secs(5);
            machine.install(&usual(reevaluate(closed())));
            if recheck_first {
                // All flows are checked before their next packet, and the packet comes much later.
                machine.recheck();
                machine.now += Duration::from_secs(100);
            }
            for port in ports.clone() {
                assert_eq!(
                    machine.is_connected("peer", (PEER, port)),
                    Some(false),
                    "{lanes} lanes, port {port}"
                );
            }
            machine.recheck();
            machine.now += Duration::from_secs(100);
            for port in ports.clone() {
                assert_eq!(
                    machine.is_connected("peer", (PEER, port)),
                    Some(false),
                    "no end begins it anew"
                );
            }
            assert_eq!(machine.denied(), 2 * 100 * 2 * lanes as u64);
            assert_eq!(machine.hits(), [("closed".to_owned(), machine.denied())]);
        }
    }
}

/// P13: without `Connected` no packet of an established flow passes, from the next packet on. The flow has ended: when
/// the peering is back, the rules decide about it again, in the direction in which it began.
#[test]
fn p13_a_flow_ends_at_once_when_its_peering_is_not_connected_any_more() {
    for lanes in [1, 4] {
        for allowed_again in [true, false] {
            let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
            let from = (PEER, 40_000);
            machine.connect("peer", from, [0; 3]);
            machine.connect("edge1", (SITE, 40_000), [0; 3]);
            machine.install(&config(&["edge1", "edge2"], false, with_rules(https_in())));
            assert_eq!(machine.is_connected("peer", from), Some(false), "at once");
            assert_eq!(
                machine.is_connected("edge1", (SITE, 40_000)),
                Some(true),
                "another route"
            );
            machine.recheck();

            let rules = if allowed_again { https_in() } else { closed() };
            machine.install(&usual(with_rules(rules)));
            machine.recheck();
            assert_eq!(machine.is_connected("peer", from), Some(allowed_again), "{lanes} lanes");
            assert_eq!(machine.is_connected("edge1", (SITE, 40_000)), Some(true), "N6");
        }
    }
}

/// P13: as above, for a route to a site. The change comes before the flows have been checked after an earlier one.
#[test]
fn p13_a_flow_ends_at_once_when_it_loses_its_route() {
    for lanes in [1, 4] {
        let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
        let from = (SITE, 40_000);
        machine.connect("edge2", from, [0; 3]);
        let without_route = |rules| {
            let mut config = usual(with_rules(rules));
            config.subnets[0]
                .routes
                .retain(|r| r.prefix != nets(&["192.168.0.0/16"])[0]);
            config
        };
        machine.install(&without_route(https_in()));
        for lane in machine.lanes() {
            assert!(!machine.leaves(lane, &tcp((OWN, 443), from, Flags::Ack)), "no route");
        }
        machine.install(&without_route(closed()));
        machine.recheck();
        machine.install(&usual(with_rules(closed())));
        machine.recheck();
        assert_eq!(machine.is_connected("edge2", from), Some(false), "{lanes} lanes");
    }
}

/// P13: as above. More changes come before the flows have been checked than tables are kept, and the flow had its route in one
/// of them only.
#[test]
fn p13_a_flow_ends_although_many_changes_come_during_one_check() {
    for lanes in [1, 4] {
        let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
        machine.connect("edge1", (SITE, 40_000), [0; 3]);
        machine.recheck();
        let from = (PEER, 40_000);
        let without = config(&["edge1", "edge2"], false, with_rules(https_in()));
        for _ in 0..3 {
            machine.install(&without);
        }
        machine.install(&usual(with_rules(https_in())));
        machine.connect("peer", from, [0; 3]);
        for _ in 0..3 {
            machine.install(&without);
        }
        machine.recheck();
        machine.install(&usual(with_rules(closed())));
        machine.recheck();
        assert_eq!(machine.is_connected("peer", from), Some(false), "{lanes} lanes");
        assert_eq!(machine.is_connected("edge1", (SITE, 40_000)), Some(true), "N6");
    }
}

/// D15, D33: the gateway has one lane. So lanes 1 to 3 have no session with it, and lane 0 sends their packets. Each
/// packet is judged and counted once, by the lane in which it arrived.
#[test]
fn d33_a_redirected_packet_is_judged_and_counted_once() {
    for lanes in [1, 4] {
        let rules = vec![
            to_port(80, rule("http-out", 100, Direction::Outbound, Access::Allow)),
            rule("nothing-out", 200, Direction::Outbound, Access::Deny),
            rule("nothing-in", 200, Direction::Inbound, Access::Deny),
        ];
        let mut machine = Machine::new(lanes, &config(&["gateway"], true, with_rules(rules)));
        machine.now += Duration::from_secs(61);
        let gateway = PEERS.iter().position(|name| *name == "gateway").unwrap();
        for engine in machine.lanes.iter_mut().skip(1) {
            engine.links_mut().without_session = vec![LinkIndex(u32::try_from(gateway).unwrap())];
        }
        for lane in machine.lanes() {
            let from = (OWN, 50_000 + lane as u16);
            assert!(machine.leaves(lane, &tcp(from, (SITE, 80), Flags::Syn)));
            // The gateway sends everything to lane 0.
            assert!(machine.comes(0, "gateway", &tcp((SITE, 80), from, Flags::SynAck)));
            assert!(machine.leaves(lane, &tcp(from, (SITE, 80), Flags::Ack)));
            assert!(!machine.leaves(lane, &tcp(from, (SITE, 81), Flags::Syn)));
            assert!(!machine.comes(0, "gateway", &tcp((SITE, 81), from, Flags::Syn)));
        }
        let each = lanes as u64;
        let expected = ["http-out", "nothing-in", "nothing-out"].map(|name| (name.to_owned(), each));
        assert_eq!(machine.hits(), expected, "{lanes} lanes");
        assert_eq!(machine.denied(), 2 * each);
        let redirected: u64 = machine.lanes.iter().map(|engine| engine.stats().redirected_out).sum();
        assert_eq!(redirected, 2 * (each - 1), "a denied packet is not passed on");
        assert_eq!(machine.flows.table().unwrap().len() as u64, each);
    }
}

/// E4: both edges of a circuit carry packets of one flow, and each edge may reach another lane.
#[test]
fn e4_d33_packets_of_one_flow_come_over_two_edges_in_different_lanes() {
    for lanes in [1, 4] {
        let mut machine = Machine::new(lanes, &usual(with_rules(https_in())));
        machine.now += Duration::from_secs(61);
        let mut port = 40_000;
        for first in machine.lanes() {
            for second in machine.lanes() {
                port += 1;
                let (from, to) = ((SITE, port), (OWN, 443));
                assert!(machine.comes(first, "edge1", &tcp(from, to, Flags::Syn)));
                assert!(machine.leaves(second, &tcp(to, from, Flags::SynAck)));
                assert!(machine.comes(second, "edge2", &tcp(from, to, Flags::Ack)));
                assert!(machine.comes(first, "edge2", &tcp(from, to, Flags::Ack)));
                assert!(machine.leaves(first, &tcp(to, from, Flags::Ack)));
            }
        }
        let flows = (lanes * lanes) as u64;
        assert_eq!(machine.hits(), [("https".to_owned(), flows)], "{lanes} lanes");
    }
}

/// D34: a planned restart keeps flows, also those that the present rules would not allow. Nothing else passes: no new
/// flow, and no TCP segment of an unknown connection, because none is adopted.
#[test]
fn d34_flows_survive_a_planned_restart() {
    let at = |seconds| BootTime {
        boot: [7; 16],
        since_boot: Duration::from_secs(seconds),
    };
    let datagram = udp(PEER, OWN, 64, 40);
    for (before, after) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
        let mut machine = Machine::new(before, &usual(with_rules(vec![])));
        machine.connect("peer", (PEER, 40_000), [0; 3]);
        assert!(machine.comes(0, "peer", &datagram));
        // The rules now deny what began these flows.
        machine.install(&usual(with_rules(closed())));
        let saved = machine.flows.save(&at(1000), machine.now).unwrap();

        let mut next = Machine::without_configuration(after);
        assert_eq!(next.flows.load(&saved, &at(1003), next.now), Ok(2));
        next.install(&usual(with_rules(closed())));
        next.recheck();
        assert_eq!(
            next.is_connected("peer", (PEER, 40_000)),
            Some(true),
            "{before} and {after} lanes"
        );
        for lane in next.lanes() {
            assert!(next.comes(lane, "peer", &datagram));
            assert!(
                !next.comes(lane, "peer", &tcp((PEER, 40_000), (OWN, 443), Flags::Syn)),
                "a SYN never"
            );
            assert!(
                !next.comes(lane, "peer", &tcp((PEER, 40_001), (OWN, 443), Flags::Ack)),
                "nothing is adopted"
            );
        }

        // With `reevaluate`, the present rules decide about loaded flows too.
        let mut strict = Machine::without_configuration(after);
        assert_eq!(strict.flows.load(&saved, &at(1003), strict.now), Ok(2));
        let security = Security {
            reevaluate: true,
            ..with_rules(closed())
        };
        strict.install(&usual(security));
        strict.recheck();
        assert_eq!(strict.is_connected("peer", (PEER, 40_000)), Some(false));

        // After a crash there are no saved flows: TCP is adopted where the rules allow a direction, and UDP is not.
        let mut crashed = Machine::new(after, &usual(with_rules(closed())));
        assert!(!crashed.comes(0, "peer", &datagram));
        assert_eq!(crashed.is_connected("peer", (PEER, 40_000)), Some(true));
    }
}
