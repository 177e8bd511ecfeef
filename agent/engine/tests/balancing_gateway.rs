//! Tests of a gateway that chooses back ends for flows of sites (L4, L7, D35), with one lane and with four lanes, over
//! IPv4 and IPv6. The packets of one flow come over both edges of a circuit and in all lanes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::errors::too_big;
use common::groups::{Flags, tcp};
use common::lanes::{Fate, Lanes};
use common::{agent, id, ip, link, nets, route, space, udp, vm};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_engine::routing::RoutingState;
use tombolo_engine::tables::LinkIndex;
use tombolo_proto::config::{
    AgentConfig, BalancedProtocol, BalancingRule, Distribution, FrontEnd, HealthProbe, ProbeProtocol, Relation, Role,
    SpaceKind, Subnet,
};
use tombolo_proto::route::NextHop;

/// Addresses of one family: a front end, and the first parts of the addresses of sites and back ends.
struct Family {
    front: &'static str,
    site: &'static str,
    back: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        front: "10.0.255.36",
        site: "192.168.0.",
        back: "10.0.0.",
    },
    Family {
        front: "fd00::ff:36",
        site: "fc00::",
        back: "fd00::",
    },
];

/// Names of the agents of back ends, in the order of the links. That of number N has the address that ends in N.
const BACK_ENDS: [&str; 4] = ["vm1", "vm2", "vm3", "vm4"];
const FLOWS: u16 = 300;
/// Longer than an agent needs to learn the health of back ends after its start.
const SETTLED: Duration = Duration::from_secs(31);

fn balancing_rule(family: &Family, protocol: BalancedProtocol, members: &[u8]) -> BalancingRule {
    BalancingRule {
        id: id(&format!("{protocol:?}")),
        protocol,
        port: if protocol == BalancedProtocol::Udp { 2000 } else { 80 },
        back_end_port: 8080,
        distribution: Distribution::Default,
        floating_ip: false,
        tcp_reset: false,
        idle_timeout_minutes: 4,
        back_ends: members.iter().map(|n| ip(&format!("{}{n}", family.back))).collect(),
        probe: Some(HealthProbe {
            id: id("probe"),
            protocol: ProbeProtocol::Tcp,
            port: 8080,
            path: String::new(),
            interval: 5,
            threshold: 1,
            all_up_when_all_down: false,
        }),
        decided: BTreeMap::new(),
        ends_flows: false,
    }
}

/// An instance of an `ExpressRoute` gateway with two edges, whose front ends have the back ends `members`.
fn config(members: &[u8]) -> AgentConfig {
    let edge = || Relation::Edge { connection: id("c") };
    let sites = ["192.168.0.0/16", "fc00::/16"];
    let mut links = vec![link("edge1", edge(), &sites), link("edge2", edge(), &sites)];
    let mut owners = vec![("10.0.254.4/32".to_owned(), "gw")];
    for (name, n) in BACK_ENDS.iter().zip(1..) {
        let own = FAMILIES.iter().map(|family| {
            let len = if family.back.contains(':') { 128 } else { 32 };
            format!("{}{n}/{len}", family.back)
        });
        let own: Vec<String> = own.collect();
        let sources: Vec<&str> = own.iter().map(String::as_str).collect();
        links.push(link(name, Relation::GatewayClient {}, &sources));
        owners.extend(own.into_iter().map(|prefix| (prefix, *name)));
    }
    let owners: Vec<(&str, &str)> = owners.iter().map(|(prefix, name)| (prefix.as_str(), *name)).collect();
    let space_prefixes = ["10.0.0.0/8", "fd00::/8"];
    let front_ends = FAMILIES.iter().map(|family| FrontEnd {
        id: id(family.front),
        vnet: id("vnet"),
        address: ip(family.front),
        rules: [BalancedProtocol::Tcp, BalancedProtocol::Udp]
            .into_iter()
            .map(|protocol| {
                let rule = balancing_rule(family, protocol, members);
                BalancingRule {
                    id: id(&format!("{}{}", family.front, rule.id)),
                    ..rule
                }
            })
            .collect(),
    });
    AgentConfig {
        role: Role::ExpressRouteGateway {
            gateway: id("gw"),
            addresses: vec![ip("10.0.254.4")],
            local_prefixes: nets(&space_prefixes),
            circuits: Vec::new(),
        },
        subnets: vec![Subnet {
            id: id("GatewaySubnet"),
            prefixes: nets(&["10.0.254.0/24"]),
            routes: space_prefixes.iter().map(|p| route(p, NextHop::VnetLocal {})).collect(),
            isolated: false,
        }],
        spaces: vec![space("vnet", SpaceKind::Local {}, &space_prefixes, &owners)],
        front_ends: front_ends.collect(),
        ..vm("gw", &["10.0.254.4/24"], links, &[])
    }
}

/// The state in which these back ends are down.
fn down(members: &[u8]) -> RoutingState {
    let addresses = FAMILIES
        .iter()
        .flat_map(|family| members.iter().map(move |n| ip(&format!("{}{n}", family.back))));
    RoutingState {
        unhealthy: addresses.map(|address| (id("probe"), address)).collect(),
        ..RoutingState::default()
    }
}

struct Sites<'f> {
    gateway: Lanes,
    family: &'f Family,
    /// Counts packets, so that each comes over another edge and in another lane.
    sent: usize,
}

impl<'f> Sites<'f> {
    /// A gateway that has just started.
    fn new(lanes: usize, family: &'f Family, members: &[u8]) -> Self {
        let mut gateway = Lanes::new(lanes, &config(members), Instant::now());
        // Lane 3 has no session with the fourth back end, so lane 0 sends its packets (D15).
        for engine in gateway.engines.iter_mut().skip(3) {
            engine.links_mut().without_session = vec![LinkIndex(5)];
        }
        Self {
            gateway,
            family,
            sent: 0,
        }
    }

    fn packet(&mut self, packet: &[u8]) -> Fate {
        self.sent += 1;
        let lane = (self.sent / 2) % self.gateway.engines.len();
        let edge = ["edge1", "edge2"][self.sent % 2];
        self.gateway.comes(lane, edge, packet)
    }

    /// The back end to which a segment from this port goes. `None`: the gateway drops it.
    fn tcp(&mut self, port: u16, flags: Flags) -> Option<String> {
        let from = format!("{}9", self.family.site);
        let fate = self.packet(&tcp((&from, port), (self.family.front, 80), flags));
        (fate != Fate::Dropped).then(|| fate.sent().0)
    }

    /// The back end to which a UDP datagram of this site goes.
    fn udp(&mut self, site: u16) -> Option<String> {
        let from = format!("{}{}", self.family.site, site % 250 + 1);
        let fate = self.packet(&udp(&from, self.family.front, 64, 20));
        (fate != Fate::Dropped).then(|| fate.sent().0)
    }

    /// Establishes flows, and returns the back end of each port.
    fn establish(&mut self, ports: std::ops::Range<u16>) -> BTreeMap<u16, String> {
        let mut all = BTreeMap::new();
        for port in ports {
            let chosen = self.tcp(port, Flags::Syn).unwrap();
            assert_eq!(self.tcp(port, Flags::Ack).as_ref(), Some(&chosen));
            all.insert(port, chosen);
        }
        all
    }

    /// How many of the flows go to another back end than before.
    fn moved(&mut self, flows: &BTreeMap<u16, String>) -> usize {
        let moved = flows
            .iter()
            .filter(|(port, chosen)| self.tcp(**port, Flags::Ack).as_ref() != Some(*chosen));
        moved.count()
    }

    fn change(&mut self, members: &[u8], state: &RoutingState) {
        self.gateway.install_with(&config(members), state);
    }

    fn pass(&mut self, time: Duration) {
        self.gateway.now += time;
    }
}

fn each(test: impl Fn(usize, &Family)) {
    for lanes in [1, 4] {
        for family in &FAMILIES {
            test(lanes, family);
        }
    }
}

/// A change of the pool moves no established flow, and new flows use the new pool. It is the same after several changes,
/// and after a change back.
#[test]
fn l4_d35_a_gateway_moves_no_flow_when_the_pool_changes() {
    each(|lanes, family| {
        let mut sites = Sites::new(lanes, family, &[1, 2]);
        sites.pass(SETTLED);
        let old = sites.establish(1000..1000 + FLOWS);
        sites.change(&[1, 2, 3, 4], &RoutingState::default());
        let new = sites.establish(2000..2000 + FLOWS);
        for name in BACK_ENDS {
            assert!(new.values().any(|chosen| chosen == name), "{name} gets new flows");
        }
        assert_eq!(sites.moved(&old), 0);
        for members in [&[1, 2, 3][..], &[1, 2, 4], &[1, 2, 3, 4]] {
            sites.pass(Duration::from_secs(100));
            sites.change(members, &RoutingState::default());
            assert_eq!(sites.moved(&old), 0, "{lanes} lanes, {members:?}");
        }
        sites.pass(Duration::from_secs(239));
        assert_eq!(sites.moved(&old), 0);
        assert_eq!(sites.gateway.flows.replaced_choices(), 0);
    });
}

/// A gateway that restarts moves at most 1 % of the flows, if the pool has not changed since they began.
#[test]
fn l4_d35_a_gateway_that_restarts_moves_at_most_one_flow_in_a_hundred() {
    each(|lanes, family| {
        let mut sites = Sites::new(lanes, family, &[1, 2, 3]);
        let flows = sites.establish(1000..1000 + FLOWS);
        let mut restarted = Sites::new(lanes, family, &[1, 2, 3]);
        let moved = restarted.moved(&flows);
        assert!(moved * 100 <= usize::from(FLOWS), "{moved} of {FLOWS} flows moved");
    });
}

/// A gateway that does not know a flow, for instance because another instance of the gateway has carried it, sends it to
/// the back end of before the last change, for as long as flows last without packets. SYNs go by the present pool.
#[test]
fn l7_d35_unknown_flows_go_by_the_pool_of_before_the_last_change() {
    each(|lanes, family| {
        let other = Sites::new(lanes, family, &[1, 2]).establish(1000..1000 + FLOWS);
        let mut sites = Sites::new(lanes, family, &[1, 2]);
        sites.pass(SETTLED);
        sites.change(&[1, 2, 3], &RoutingState::default());
        // Tables that are built for another reason keep the previous pool.
        sites.change(&[1, 2, 3], &RoutingState::default());
        sites.pass(Duration::from_secs(240));
        assert_eq!(sites.moved(&other), 0, "{lanes} lanes");
        sites.pass(Duration::from_secs(1));
        let new = sites.establish(1000..1000 + FLOWS);
        assert!(new.values().any(|chosen| chosen == BACK_ENDS[2]));

        // Later, the packets of unknown flows go by the present pool, as those of the new connections did.
        let mut late = Sites::new(lanes, family, &[1, 2]);
        late.pass(SETTLED);
        late.change(&[1, 2, 3], &RoutingState::default());
        late.pass(Duration::from_secs(241));
        assert_eq!(late.moved(&new), 0, "{lanes} lanes");
    });
}

/// An agent that has just started takes all back ends for up. When it learns their health, unknown flows go by it.
#[test]
fn l7_d35_health_that_is_learned_after_the_start_is_no_change() {
    each(|lanes, family| {
        let mut before = Sites::new(lanes, family, &[1, 2, 3]);
        before.change(&[1, 2, 3], &down(&[2]));
        let flows = before.establish(1000..1000 + FLOWS);
        let mut restarted = Sites::new(lanes, family, &[1, 2, 3]);
        restarted.pass(Duration::from_secs(3));
        restarted.change(&[1, 2, 3], &down(&[2]));
        assert_eq!(restarted.moved(&flows), 0, "{lanes} lanes");
    });
}

/// While a back end is down, its TCP flows stay, and its UDP flows move, known or not. New connections go elsewhere, and
/// so does a SYN that is repeated. When it is up again, the flows that have begun elsewhere stay there.
#[test]
fn l7_l8_a_gateway_heeds_the_health_of_back_ends() {
    each(|lanes, family| {
        let mut sites = Sites::new(lanes, family, &[1, 2, 3]);
        sites.pass(SETTLED);
        let known = sites.establish(1000..1000 + FLOWS);
        let asked: Vec<u16> = (5000..5000 + FLOWS)
            .filter(|port| sites.tcp(*port, Flags::Syn).unwrap() == "vm2")
            .collect();
        let datagrams: Vec<_> = (0..200).map(|site| sites.udp(site).unwrap()).collect();
        let unknown = Sites::new(lanes, family, &[1, 2, 3]).establish(3000..3000 + FLOWS);
        sites.change(&[1, 2, 3], &down(&[2]));
        assert_eq!(sites.moved(&known), 0);
        assert_eq!(sites.moved(&unknown), 0);
        assert!(!asked.is_empty());
        for port in asked {
            assert_ne!(sites.tcp(port, Flags::Syn).as_deref(), Some("vm2"), "a repeated SYN");
        }
        for (site, before) in (0..).zip(&datagrams) {
            let now = sites.udp(site).unwrap();
            assert!(now != "vm2" && (before == "vm2" || *before == now), "{before}, {now}");
        }
        let new = sites.establish(4000..4000 + FLOWS);
        assert!(new.values().all(|chosen| chosen != "vm2"));
        sites.pass(SETTLED);
        sites.change(&[1, 2, 3], &RoutingState::default());
        assert_eq!(sites.moved(&new), 0, "the back end is up again");
        // All are down: established TCP flows continue, and nothing else does.
        sites.change(&[1, 2, 3], &down(&[1, 2, 3]));
        assert_eq!(sites.moved(&known) + sites.moved(&new), 0);
        assert_eq!(sites.tcp(6000, Flags::Syn), None);
        assert_eq!(sites.udp(1), None);
    });
}

/// L5: an ICMP error of a site about a packet of a front end goes to the back end of the flow, unchanged, also after a
/// change of the pool. The agent of the back end knows whether there is such a flow.
#[test]
fn l5_a_gateway_sends_errors_to_the_back_end_of_the_flow() {
    each(|lanes, family| {
        let mut sites = Sites::new(lanes, family, &[1, 2]);
        sites.pass(SETTLED);
        let flows = sites.establish(1000..1000 + FLOWS);
        sites.change(&[1, 2, 3, 4], &RoutingState::default());
        let site = format!("{}9", family.site);
        for (port, chosen) in &flows {
            let quote = tcp((family.front, 80), (&site, *port), Flags::Ack);
            let error = too_big(&site, family.front, &quote);
            let (to, got) = sites.packet(&error).sent();
            assert_eq!(to, *chosen, "{lanes} lanes, port {port}");
            assert!(got.ends_with(&quote), "only the owner translates");
        }
        assert_eq!(sites.moved(&flows), 0, "errors change no choice");
    });
}

/// A new connection with the addresses and ports of an earlier one goes by the present pool, also if the lane has just
/// decided about a packet of the earlier one.
#[test]
fn l4_a_new_connection_goes_by_the_present_pool() {
    each(|lanes, family| {
        let mut sites = Sites::new(lanes, family, &[1, 2]);
        sites.pass(SETTLED);
        let old = sites.establish(1000..1000 + FLOWS);
        sites.change(&[3, 4], &RoutingState::default());
        let other = sites.establish(1000..1000 + FLOWS);
        assert!(other.values().all(|chosen| chosen == "vm3" || chosen == "vm4"));
        sites.change(&[1, 2, 3, 4], &RoutingState::default());
        for lane in sites.gateway.lanes() {
            assert_eq!(
                sites.moved(&other),
                0,
                "lane {lane} has decided about some of the flows"
            );
        }
        sites.pass(Duration::from_secs(1));
        let new = sites.establish(1000..1000 + FLOWS);
        let as_first = new.iter().filter(|(port, chosen)| old[*port] == **chosen).count();
        assert!(as_first > 50, "{as_first} flows go to the first two back ends again");
    });
}

/// The link of the fourth back end, with which lane 3 has no session.
#[test]
fn the_fourth_back_end_has_the_sixth_link() {
    assert_eq!(config(&[1]).links[5].peer, agent("vm4"));
}
