//! Tests of flows to a back end whose replies pass appliances behind HA ports (L5, L9, R11): the route of the client's
//! subnet to the front end and the route of the back end's subnet to the client name the front end of the appliances.
//! With one lane and with four lanes, over IPv4 and IPv6.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::errors::{assert_error, too_big};
use common::groups::{Flags, group, security, tcp};
use common::lanes::{Fate, Lanes};
use common::{id, ip, link, route, vm};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use tombolo_engine::tables::LinkIndex;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, BalancedProtocol, BalancingRule, Distribution, FrontEnd, Relation};
use tombolo_proto::route::NextHop;

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    client: &'static str,
    back: &'static str,
    /// The front end of the back end, and that of the appliances.
    front: &'static str,
    of_appliances: &'static str,
    appliances: [&'static str; 3],
    /// The prefixes of the client, of the back end with its front end, and of the appliances.
    prefixes: [&'static str; 3],
    len: u8,
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "10.9.0.1",
        back: "10.8.0.6",
        front: "10.8.0.36",
        of_appliances: "10.7.0.36",
        appliances: ["10.7.0.4", "10.7.0.5", "10.7.0.6"],
        prefixes: ["10.9.0.0/16", "10.8.0.0/16", "10.7.0.0/16"],
        len: 32,
    },
    Family {
        client: "fd09::1",
        back: "fd08::6",
        front: "fd08::36",
        of_appliances: "fd07::36",
        appliances: ["fd07::4", "fd07::5", "fd07::6"],
        prefixes: ["fd09::/32", "fd08::/32", "fd07::/32"],
        len: 128,
    },
];

/// The agents of the appliances.
const APPLIANCES: [&str; 3] = ["nva1", "nva2", "nva3"];
const PORTS: std::ops::Range<u16> = 40_000..40_040;

fn balancing_rule(name: &str, ports: Option<(u16, u16)>, members: &[&str]) -> BalancingRule {
    let (port, back_end_port) = ports.unwrap_or_default();
    BalancingRule {
        id: id(name),
        protocol: ports.map_or(BalancedProtocol::All, |_| BalancedProtocol::Tcp),
        port,
        back_end_port,
        distribution: Distribution::Default,
        floating_ip: false,
        idle_timeout_minutes: 4,
        tcp_reset: false,
        back_ends: members.iter().map(|address| ip(address)).collect(),
        probe: None,
        decided: BTreeMap::new(),
        ends_flows: false,
    }
}

/// The agent `own`, which has this address. Its route to the prefix `through` names the front end of `count` appliances.
/// `ports`: those of the front end and of the back end; `None`: the front end has a rule for all ports.
fn machine(
    family: &Family,
    (name, own): (&str, &str),
    through: &str,
    (count, ports): (usize, Option<(u16, u16)>),
) -> AgentConfig {
    let mut names = vec![("client", family.client), ("back", family.back)];
    names.extend(APPLIANCES.into_iter().zip(family.appliances));
    let with_len = |address: &str| format!("{address}/{}", family.len);
    let owners: Vec<(String, &str)> = names.iter().map(|(name, address)| (with_len(address), *name)).collect();
    let owners: Vec<(&str, &str)> = owners.iter().map(|(prefix, name)| (prefix.as_str(), *name)).collect();
    let links = names.iter().filter(|(peer, _)| *peer != name);
    let links = links.map(|(peer, _)| link(peer, Relation::VnetLocal {}, &family.prefixes));
    let front_end = |name: &str, address, rule| FrontEnd {
        id: id(name),
        vnet: id("vnet"),
        address: ip(address),
        rules: vec![rule],
    };
    let mut config = vm(name, &[&with_len(own)], links.collect(), &owners);
    config.front_ends = vec![
        front_end(
            "appliances",
            family.of_appliances,
            balancing_rule("all", None, &family.appliances[..count]),
        ),
        front_end("front", family.front, balancing_rule("web", ports, &[family.back])),
    ];
    let address = ip(family.of_appliances);
    config.subnets[0]
        .routes
        .push(route(through, NextHop::VirtualAppliance { address }));
    config
}

/// The agents of the client and of the back end.
struct Agents {
    client: Lanes,
    back: Lanes,
    family: Family,
    /// The front end's port, and the back end's.
    ports: (u16, u16),
    rule: Option<(u16, u16)>,
    /// The number of packets so far. It selects the lane of each.
    sent: usize,
}

impl Agents {
    fn new(lanes: usize, family: &Family, rule: Option<(u16, u16)>) -> Self {
        let (client, back) = configs(family, 2, rule);
        let now = Instant::now();
        Self {
            client: Lanes::new(lanes, &client, now),
            back: Lanes::new(lanes, &back, now),
            family: *family,
            ports: rule.unwrap_or((80, 80)),
            rule,
            sent: 0,
        }
    }

    /// Gives the pool of appliances this many members.
    fn set_appliances(&mut self, count: usize) {
        let (client, back) = configs(&self.family, count, self.rule);
        self.client.install(&client);
        self.back.install(&back);
    }

    fn lane(&mut self) -> usize {
        self.sent += 1;
        // Every second packet comes to each lane too.
        (self.sent + self.sent / 2) % self.back.engines.len()
    }

    /// Sends a segment of the client from `port` through an appliance to the back end. Returns the appliance's agent.
    fn request(&mut self, port: u16, flags: Flags) -> String {
        let Family {
            client, front, back, ..
        } = self.family;
        let lane = self.lane();
        let request = tcp((client, port), (front, self.ports.0), flags);
        let (appliance, packet) = self.client.leaves(lane, 0, &request).sent();
        assert_eq!(packet, request);
        let lane = self.lane();
        let (_, packet) = self.back.comes(lane, &appliance, &packet).delivered();
        assert_eq!(packet, tcp((client, port), (back, self.ports.1), flags));
        appliance
    }

    /// Sends a segment of the back end, and returns the appliance's agent to which it goes. The client gets it from the
    /// front end.
    fn reply(&mut self, port: u16, flags: Flags) -> String {
        let Family {
            client, front, back, ..
        } = self.family;
        let lane = self.lane();
        let reply = tcp((back, self.ports.1), (client, port), flags);
        let (appliance, packet) = self.back.leaves(lane, 0, &reply).sent();
        assert_eq!(packet, tcp((front, self.ports.0), (client, port), flags), "{appliance}");
        let lane = self.lane();
        let from = if appliance == "client" { "back" } else { &appliance };
        assert_eq!(self.client.comes(lane, from, &packet).delivered().1, packet);
        appliance
    }

    /// Opens a connection from each of [`PORTS`]. Returns the appliance of each.
    fn open(&mut self) -> Vec<(u16, String)> {
        let mut all = Vec::new();
        for port in PORTS {
            let appliance = self.request(port, Flags::Syn);
            for flags in [Flags::SynAck, Flags::Ack] {
                assert_eq!(self.reply(port, flags), appliance, "both directions pass one appliance");
                assert_eq!(self.request(port, Flags::Ack), appliance);
            }
            all.push((port, appliance));
        }
        all
    }
}

fn configs(family: &Family, count: usize, rule: Option<(u16, u16)>) -> (AgentConfig, AgentConfig) {
    let [of_client, of_back, _] = family.prefixes;
    (
        machine(family, ("client", family.client), of_back, (count, rule)),
        machine(family, ("back", family.back), of_client, (count, rule)),
    )
}

fn each(test: impl Fn(usize, &Family)) {
    for lanes in [1, 4] {
        for family in &FAMILIES {
            test(lanes, family);
        }
    }
}

fn used(flows: &[(u16, String)]) -> usize {
    flows
        .iter()
        .map(|(_, appliance)| appliance)
        .collect::<BTreeSet<_>>()
        .len()
}

/// L5, R11: the client gets the replies from the front end, and they pass the appliance of the requests, also if the rule of
/// the front end is for all ports.
#[test]
fn l5_r11_translated_replies_pass_the_appliance_of_the_requests() {
    each(|lanes, family| {
        for rule in [Some((80, 8080)), None] {
            let mut agents = Agents::new(lanes, family, rule);
            assert_eq!(used(&agents.open()), 2);
        }
    });
}

/// The same with security groups at the back end.
#[test]
fn l5_r11_translated_replies_pass_security_groups() {
    each(|lanes, family| {
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        let own = format!("{}/{}", family.back, family.len);
        let back = AgentConfig {
            security: Some(security(&[&own], None, Some(group("empty", vec![])))),
            ..agents.back.config.clone()
        };
        agents.back.install(&back);
        assert_eq!(used(&agents.open()), 2);
    });
}

/// L4, R11: established flows stay with their appliance in both directions when the pool of appliances grows. An appliance
/// that leaves moves its flows, in both directions to the same other one.
#[test]
fn l4_r11_translated_replies_stay_with_their_appliance_when_the_pool_changes() {
    each(|lanes, family| {
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        let flows = agents.open();
        agents.set_appliances(3);
        for (port, appliance) in &flows {
            assert_eq!(
                agents.reply(*port, Flags::Ack),
                *appliance,
                "{lanes} lanes, port {port}"
            );
            assert_eq!(
                agents.request(*port, Flags::Ack),
                *appliance,
                "{lanes} lanes, port {port}"
            );
        }
        let new: BTreeSet<String> = (50_000..50_040)
            .map(|port| {
                let appliance = agents.request(port, Flags::Syn);
                assert_eq!(agents.reply(port, Flags::SynAck), appliance);
                appliance
            })
            .collect();
        assert_eq!(new.len(), 3, "new flows use the new appliance");
        agents.set_appliances(1);
        for (port, _) in &flows {
            assert_eq!(agents.reply(*port, Flags::Ack), APPLIANCES[0]);
            assert_eq!(agents.request(*port, Flags::Ack), APPLIANCES[0]);
        }
    });
}

/// D15: a lane without a session redirects the reply to lane 0, which sends it to the same appliance.
#[test]
fn d15_r11_redirected_replies_pass_the_appliance_of_the_requests() {
    for family in &FAMILIES {
        let mut agents = Agents::new(4, family, Some((80, 8080)));
        let flows = agents.open();
        agents.set_appliances(3);
        let links = u32::try_from(agents.back.config.links.len()).unwrap();
        for engine in &mut agents.back.engines[1..] {
            engine.links_mut().without_session = (0..links).map(LinkIndex).collect();
        }
        for (port, appliance) in &flows {
            for _ in agents.back.lanes() {
                assert_eq!(agents.reply(*port, Flags::Ack), *appliance, "port {port}");
            }
        }
        let redirected = agents.back.engines[0].stats().redirected_in;
        assert_eq!(redirected, 3 * u64::from(PORTS.end - PORTS.start));
    }
}

/// L5: an ICMP error of the back end about a request, also about the first one, passes the appliance of the flow, and quotes
/// the request as the client knows it.
#[test]
fn l5_r11_errors_of_a_back_end_pass_the_appliance_of_the_flow() {
    each(|lanes, family| {
        let Family {
            client, front, back, ..
        } = *family;
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        for port in PORTS {
            let appliance = agents.request(port, Flags::Syn);
            let error = too_big(back, client, &tcp((client, port), (back, 8080), Flags::Syn));
            let lane = agents.lane();
            let (passed, error) = agents.back.leaves(lane, 0, &error).sent();
            assert_eq!(passed, appliance);
            assert_error(&error, (front, client), &tcp((client, port), (front, 80), Flags::Syn));
        }
    });
}

/// R11: a host whose route to the other end names the front end of appliances reports errors about a flow through them,
/// although it has not answered yet.
#[test]
fn r11_errors_about_flows_without_a_load_balancer_pass_an_appliance() {
    each(|lanes, family| {
        let Family { client, back, .. } = *family;
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        let request = tcp((client, 40_000), (back, 22), Flags::Syn);
        let (appliance, request) = agents.client.leaves(0, 0, &request).sent();
        assert_eq!(
            agents.back.comes(0, &appliance, &request),
            Fate::Delivered(0, request.clone())
        );
        let (passed, _) = agents
            .back
            .leaves(lanes - 1, 0, &too_big(back, client, &request))
            .sent();
        assert_eq!(passed, appliance);
        assert_eq!(agents.back.drops(DropReason::BalancerProtocol), 0);
    });
}

/// L5: a client may use the ports of a connection through the front end for a direct one, and the other way round. The
/// replies have the address to which the client has sent, and pass the appliance of the requests.
#[test]
fn l5_r11_direct_connections_with_the_same_ports_pass_their_own_appliance() {
    each(|lanes, family| {
        let Family { client, back, .. } = *family;
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        let mut differs = false;
        for port in PORTS {
            for _ in 0..2 {
                let appliance = agents.request(port, Flags::Syn);
                assert_eq!(agents.reply(port, Flags::SynAck), appliance);
                let request = tcp((client, port), (back, 8080), Flags::Syn);
                let lane = agents.lane();
                let (direct, request) = agents.client.leaves(lane, 0, &request).sent();
                let lane = agents.lane();
                agents.back.comes(lane, &direct, &request).delivered();
                for lane in agents.back.lanes() {
                    let reply = tcp((back, 8080), (client, port), Flags::SynAck);
                    assert_eq!(agents.back.leaves(lane, 0, &reply).sent(), (direct.clone(), reply));
                }
                differs |= direct != appliance;
            }
        }
        assert!(differs);
    });
}

/// When the route to the appliances is gone, replies go their own way, and still come from the front end.
#[test]
fn l5_replies_are_translated_after_their_route_has_changed() {
    each(|lanes, family| {
        let mut agents = Agents::new(lanes, family, Some((80, 8080)));
        agents.open();
        let mut back = agents.back.config.clone();
        back.subnets[0].routes.pop();
        agents.back.install(&back);
        for port in PORTS {
            assert_eq!(agents.reply(port, Flags::Ack), "client");
        }
        agents.set_appliances(2);
        for port in PORTS {
            let appliance = agents.request(port, Flags::Ack);
            assert_eq!(agents.reply(port, Flags::Ack), appliance);
        }
    });
}
