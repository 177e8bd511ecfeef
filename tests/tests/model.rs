//! Compares the product with the reference model on random topologies, operations and packets, and proves that the
//! comparison notices defects.

#[path = "model/balancing.rs"]
mod balancing;

use std::collections::BTreeMap;
use tombolo_engine::routing::{RoutingState, accept_routes};
use tombolo_proto::config::{
    Access, AccessOff, AddressMatch, AgentConfig, Direction, ForeignSources, Nic, Relation, Role, SecuredNic, Security,
    SecurityRule, SpaceKind, Subnet,
};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{Route, RouteSource, RouteState};
use tombolo_tests::differential::{Script, Tally, check_explain, play, report, run_model};
use tombolo_tests::model::{Fate, Why, overlap};
use tombolo_tests::product::SITE_ASN;
use tombolo_tests::world::Mutation;

/// The seeds that every run plays. It also plays random ones.
const FIXED: std::ops::Range<u64> = 0..400;

/// Seeds that have found a defect once.
const FOUND: [u64; 4] = [
    4_368_438_580_772_291_624,
    7_635_290_848_955_474_116,
    8_917_484_921_939_957_518,
    8_944_993_824_167_955_831,
];

/// The first of a run's further seeds: `TOMBOLO_SEED`, or a random number. It is printed, so that a failure can be repeated.
fn first_seed() -> u64 {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={seed}");
    seed
}

#[test]
fn product_equals_model() {
    let first = first_seed();
    let mut total = Tally::default();
    for seed in FIXED.chain(FOUND).chain((0..50).map(|n| first.wrapping_add(n))) {
        let script = Script::draw(seed);
        match play(&script, None) {
            Ok(tally) => total.add(&tally),
            Err(_) => panic!("{}", report(&script, None)),
        }
    }
    println!("{total:?}");
    assert!(
        total.compared > 100_000 && total.accepted > 1000 && total.refused > 200,
        "{total:?}"
    );
    assert!(
        total.denied > 4000
            && total.replies > 10_000
            && total.continued > 40_000
            && total.saved > 1000
            && total.late > 5000
            && total.ended > 10
            && total.balanced > 10_000,
        "{total:?}"
    );
}

/// `explain` and sent packets agree about the agents on the path, the end of the packet and the reason of a loss.
#[test]
fn explain_is_honest() {
    let first = first_seed();
    let mut asked = 0;
    for seed in (0..60).chain(FOUND).chain((0..20).map(|n| first.wrapping_add(n))) {
        asked += check_explain(&Script::draw(seed)).unwrap_or_else(|difference| panic!("{difference}"));
    }
    println!("{asked} packets explained");
    assert!(asked > 2000, "{asked}");
}

/// The number of seeds within which the model must catch a defect.
const MAX_SEEDS: u64 = 400;

fn must_be_caught(what: &str, mutation: Mutation) {
    let caught = (0..MAX_SEEDS).find(|seed| {
        let script = Script::draw(*seed);
        play(&script, Some(mutation)).is_err() && play(&script, None).is_ok()
    });
    let Some(seed) = caught else {
        panic!("{what}: {MAX_SEEDS} seeds did not catch it");
    };
    println!("{what}: caught by seed {seed}");
}

/// P18: the defect treats `allowForwardedTraffic` as on everywhere.
#[test]
fn switching_off_p18_is_caught() {
    must_be_caught(
        "P18",
        Mutation::Config(|config: &mut AgentConfig| {
            for link in &mut config.links {
                let crosses = matches!(link.relation, Relation::Peering { .. } | Relation::GatewayClient {});
                if crosses && link.foreign == ForeignSources::None {
                    link.foreign = ForeignSources::OutsideOwnSpace;
                }
            }
        }),
    );
}

/// R7, step 1: the defect prefers gateway routes to VNet and peering routes, so that only user-defined routes are
/// preferred to gateway routes.
#[test]
fn switching_off_the_first_step_of_r7_is_caught() {
    must_be_caught(
        "R7, step 1",
        Mutation::Config(|config: &mut AgentConfig| {
            for subnet in &mut config.subnets {
                let routes = subnet.routes.clone();
                let rival = |prefix, source| routes.iter().any(|r| r.prefix == prefix && r.source == source);
                for route in &mut subnet.routes {
                    let (gateway, user) = (RouteSource::VirtualNetworkGateway, RouteSource::User);
                    match route.source {
                        RouteSource::VirtualNetworkGateway if !rival(route.prefix, user) => {
                            route.state = RouteState::Active;
                        }
                        RouteSource::Default if rival(route.prefix, gateway) => route.state = RouteState::Invalid,
                        _ => {}
                    }
                }
            }
        }),
    );
}

/// R7, step 3: the defect activates the less preferred of two routes to the same prefix.
#[test]
fn switching_off_r7_is_caught() {
    must_be_caught(
        "R7",
        Mutation::Config(|config: &mut AgentConfig| {
            for subnet in &mut config.subnets {
                let routes = subnet.routes.clone();
                for route in &mut subnet.routes {
                    let rivals = routes.iter().filter(|r| r.prefix == route.prefix).count();
                    if rivals == 2 {
                        route.state = match route.state {
                            RouteState::Active => RouteState::Invalid,
                            RouteState::Invalid => RouteState::Active,
                        };
                    }
                }
            }
        }),
    );
}

/// D9: the defect makes a gateway relay for every peer of its VNet, even for peers that do not use the gateway.
#[test]
fn switching_off_d9_is_caught() {
    must_be_caught(
        "D9",
        Mutation::Topology(|topology| {
            let owners: Vec<_> = topology
                .gateways
                .values()
                .filter_map(|g| {
                    Some(
                        g.ip_configurations
                            .first()?
                            .subnet
                            .as_str()
                            .rsplit_once("/subnets/")?
                            .0
                            .to_lowercase(),
                    )
                })
                .collect();
            for (id, vnet) in &mut topology.vnets {
                let mut changed = (**vnet).clone();
                let has_gateway = owners.contains(&id.key());
                for half in &mut changed.peerings {
                    half.allow_gateway_transit = has_gateway;
                    half.use_remote_gateways = !has_gateway && owners.contains(&half.remote_vnet.key());
                }
                *vnet = changed.into();
            }
        }),
    );
}

/// D10: the defect permits every source on every link.
#[test]
fn switching_off_d10_is_caught() {
    must_be_caught(
        "D10",
        Mutation::Config(|config: &mut AgentConfig| {
            for link in &mut config.links {
                link.sources = ["0.0.0.0/0", "::/0"].map(|p| p.parse().expect("prefix")).to_vec();
            }
        }),
    );
}

/// Finding 1 of docs/security.md: the defect permits every source that a learned route covers, also addresses that the
/// configuration assigns to another agent.
#[test]
fn switching_off_the_subtraction_from_learned_sources_is_caught() {
    must_be_caught(
        "D10, learned sources",
        Mutation::Learned(|config: &mut AgentConfig, dynamic: &RoutingState| {
            let learned: Vec<_> = accept_routes(config, dynamic)
                .iter()
                .map(|t| (t.from.clone(), t.route.prefix))
                .collect();
            for link in &mut config.links {
                let all = matches!(link.relation, Relation::Gateway {});
                let of_link = learned
                    .iter()
                    .filter(|(from, _)| all || from.as_ref() == Some(&link.peer));
                let prefixes: Vec<_> = of_link.map(|(_, prefix)| *prefix).collect();
                link.sources.extend(prefixes);
            }
        }),
    );
}

/// RFC 4271, section 6.3: the defect hides that an AS path begins with a wrong ASN.
#[test]
fn switching_off_the_first_as_is_caught() {
    must_be_caught(
        "first AS",
        Mutation::Announced(|routes: &mut Vec<Route>| {
            for route in routes {
                route.as_path = vec![SITE_ASN];
            }
        }),
    );
}

/// G23: the defect hides that a site announces too many prefixes.
#[test]
fn switching_off_the_limit_of_prefixes_is_caught() {
    must_be_caught(
        "G23",
        Mutation::Announced(|routes: &mut Vec<Route>| {
            if routes.len() > 4000 {
                routes.retain(|r| !(r.prefix.prefix_len() == 32 && r.prefix.to_string().starts_with("100.")));
            }
        }),
    );
}

/// RFC 6890: the defect accepts a martian. In place of the martian 169.254.0.0/16 the product gets 169.254.0.0/15,
/// which it accepts because this prefix only contains a martian.
#[test]
fn switching_off_martians_is_caught() {
    must_be_caught(
        "martians",
        Mutation::Announced(|routes: &mut Vec<Route>| {
            for route in routes {
                if route.prefix.to_string() == "169.254.0.0/16" {
                    route.prefix = "169.254.0.0/15".parse().expect("prefix");
                }
            }
        }),
    );
}

fn security_must_be_caught(what: &str, mutation: fn(&mut AgentConfig)) {
    must_be_caught(what, Mutation::Config(mutation));
}

fn for_each_rule(config: &mut AgentConfig, change: impl Fn(&mut SecurityRule)) {
    let groups = config.security.iter_mut().flat_map(|s| &mut s.groups);
    groups.flat_map(|group| &mut group.rules).for_each(change);
}

/// N2: the defect lacks the default rules, so that a packet which no other rule matches is denied.
#[test]
fn switching_off_n2_is_caught() {
    security_must_be_caught("N2", |config| {
        for group in config.security.iter_mut().flat_map(|s| &mut s.groups) {
            group.rules.retain(|rule| rule.priority <= 4096);
        }
    });
}

/// N3: the defect asks the rules of users in descending priority.
#[test]
fn switching_off_n3_is_caught() {
    security_must_be_caught("N3", |config| {
        for_each_rule(config, |rule| {
            if rule.priority <= 4096 {
                rule.priority = 4096 - rule.priority;
            }
        });
    });
}

/// N4: the defect asks the groups in the opposite order. The ends of packets are the same, but other rules decide.
#[test]
fn switching_off_the_order_of_groups_is_caught() {
    security_must_be_caught("N4, order", |config| {
        for nic in config.security.iter_mut().flat_map(|s| &mut s.nics) {
            std::mem::swap(&mut nic.subnet_group, &mut nic.nic_group);
        }
    });
}

/// N4: the defect does not ask the subnet's group if the NIC has one too.
#[test]
fn switching_off_the_second_group_is_caught() {
    security_must_be_caught("N4, both groups", |config| {
        for nic in config.security.iter_mut().flat_map(|s| &mut s.nics) {
            if nic.nic_group.is_some() {
                nic.subnet_group = None;
            }
        }
    });
}

/// N6: the defect forgets the flows that rules have allowed.
#[test]
fn switching_off_n6_is_caught() {
    must_be_caught("N6", Mutation::Forgetful);
}

/// N6: the defect applies changed rules to flows that rules have allowed before.
#[test]
fn flows_that_end_with_their_rule_are_caught() {
    must_be_caught("N6, changed rules", Mutation::ForgetfulUpdates);
}

/// D34: the defect ignores the setting `reevaluate`, so that changed rules never apply to established flows.
#[test]
fn ignoring_reevaluate_is_caught() {
    security_must_be_caught("D34, reevaluate on", |config| set_reevaluate(config, false));
}

/// D34: the defect applies changed rules to established flows although the setting `reevaluate` is off.
#[test]
fn reevaluation_without_the_setting_is_caught() {
    security_must_be_caught("D34, reevaluate off", |config| set_reevaluate(config, true));
}

fn set_reevaluate(config: &mut AgentConfig, on: bool) {
    if let Some(security) = &mut config.security {
        security.reevaluate = on;
    }
}

fn set_flow_timeout(config: &mut AgentConfig, minutes: u8) {
    if let Some(security) = &mut config.security {
        security.flow_timeout_minutes = minutes;
    }
}

/// N6: with the defect, flows end after four minutes in every VNet.
#[test]
fn a_flow_timeout_that_nobody_can_set_is_caught() {
    security_must_be_caught("N6, flowTimeoutInMinutes", |config| set_flow_timeout(config, 4));
}

/// N6: with the defect, flows end one minute later than they should.
#[test]
fn flows_that_live_too_long_are_caught() {
    security_must_be_caught("N6, idle timeout", |config| {
        let minutes = config.security.as_ref().map_or(4, |s| s.flow_timeout_minutes);
        // 30 minutes are the most.
        set_flow_timeout(config, (minutes + 1).min(30));
    });
}

/// D31: with the defect, half-open TCP flows do not end after 60 s, because the agents' clock advances only 47 s in a
/// time of one to four minutes.
#[test]
fn half_open_flows_that_do_not_end_are_caught() {
    must_be_caught(
        "D31, half-open flows",
        Mutation::Clock(|seconds| if (60..240).contains(&seconds) { 47 } else { seconds }),
    );
}

/// D31: with the defect, closed TCP flows do not end after 10 s, because the agents' clock advances only 7 s in a time
/// of 10 to 59 s.
#[test]
fn closed_flows_that_do_not_end_are_caught() {
    must_be_caught(
        "D31, closed flows",
        Mutation::Clock(|seconds| if (10..60).contains(&seconds) { 7 } else { seconds }),
    );
}

/// The ranges of the peers whose `allowVirtualNetworkAccess` is on or off.
fn peers(config: &AgentConfig, access: bool) -> Vec<ipnet::IpNet> {
    let of_peer = |kind: &SpaceKind| matches!(kind, SpaceKind::Peered { allow_access, .. } if *allow_access == access);
    let spaces = config.spaces.iter().filter(|space| of_peer(&space.kind));
    spaces.flat_map(|space| space.prefixes.clone()).collect()
}

/// Adds rules directly before the default rules: for packets that these peers send and receive.
fn before_default_rules(config: &mut AgentConfig, prefixes: &[ipnet::IpNet], access: Access) {
    for group in config.security.iter_mut().flat_map(|s| &mut s.groups) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let default = group
                .rules
                .iter()
                .find(|r| r.priority == 65_000 && r.direction == direction);
            let mut rule = default.expect("a default rule").clone();
            rule.priority = 64_999;
            rule.access = access;
            let side = match direction {
                Direction::Inbound => &mut rule.source,
                Direction::Outbound => &mut rule.destination,
            };
            *side = AddressMatch::Prefixes(prefixes.to_vec());
            group.rules.push(rule);
        }
    }
}

/// N8: for default rules, the tag `VirtualNetwork` of the defect does not have the peers.
#[test]
fn a_tag_without_peers_is_caught() {
    security_must_be_caught("N8, peers", |config| {
        let peers = peers(config, true);
        before_default_rules(config, &peers, Access::Deny);
    });
}

/// N8, P17: for default rules, the tag `VirtualNetwork` of the defect has peers without access.
#[test]
fn a_tag_with_a_peer_without_access_is_caught() {
    security_must_be_caught("N8, access", |config| {
        let peers = peers(config, false);
        before_default_rules(config, &peers, Access::Allow);
    });
}

/// The prefixes of routes with this source that are in the tag `VirtualNetwork` for no other reason.
fn only_by_routes(config: &AgentConfig, source: RouteSource) -> Vec<ipnet::IpNet> {
    let routes = || config.subnets.iter().flat_map(|subnet| &subnet.routes);
    let mut others = config.address_space.clone();
    others.extend(peers(config, true));
    others.extend(
        routes()
            .filter(|r| r.source != source && r.source != RouteSource::Default)
            .map(|r| r.prefix),
    );
    let mut prefixes: Vec<_> = routes().filter(|r| r.source == source).map(|r| r.prefix).collect();
    prefixes.retain(|p| !overlap(&[*p], &others));
    prefixes
}

/// N8: for default rules, the tag `VirtualNetwork` of the defect does not have the prefixes of user-defined routes.
#[test]
fn a_tag_without_user_defined_routes_is_caught() {
    security_must_be_caught("N8, user-defined routes", |config| {
        let prefixes = only_by_routes(config, RouteSource::User);
        before_default_rules(config, &prefixes, Access::Deny);
    });
}

/// N8: for default rules, the tag `VirtualNetwork` of the defect does not have the networks behind a gateway's connections.
#[test]
fn a_tag_without_gateway_routes_is_caught() {
    security_must_be_caught("N8, gateway routes", |config| {
        let prefixes = only_by_routes(config, RouteSource::VirtualNetworkGateway);
        before_default_rules(config, &prefixes, Access::Deny);
    });
}

/// N8, D27: for default rules, the tag `VirtualNetwork` of the defect does not have learned prefixes.
#[test]
fn a_tag_without_learned_routes_is_caught() {
    must_be_caught(
        "N8, learned routes",
        Mutation::Learned(|config: &mut AgentConfig, dynamic: &RoutingState| {
            let mut others = config.address_space.clone();
            others.extend(peers(config, true));
            let routes = config.subnets.iter().flat_map(|subnet| &subnet.routes);
            others.extend(routes.filter(|r| r.source != RouteSource::Default).map(|r| r.prefix));
            let learned = accept_routes(config, dynamic);
            let mut prefixes: Vec<_> = learned.iter().map(|taken| taken.route.prefix).collect();
            prefixes.retain(|p| !overlap(&[*p], &others));
            before_default_rules(config, &prefixes, Access::Deny);
        }),
    );
}

/// N9: the tag `AzureLoadBalancer` of the defect has no address.
#[test]
fn switching_off_the_tag_of_load_balancers_is_caught() {
    security_must_be_caught("N9, AzureLoadBalancer", |config| {
        for_each_rule(config, |rule| {
            for side in [&mut rule.source, &mut rule.destination] {
                if *side == AddressMatch::Sets(vec!["AzureLoadBalancer".into()]) {
                    *side = AddressMatch::Prefixes(vec![]);
                }
            }
        });
    });
}

/// N9: the tag `Internet` of the defect has all addresses.
#[test]
fn switching_off_the_complement_of_virtual_network_is_caught() {
    security_must_be_caught("N9, Internet", |config| {
        for_each_rule(config, |rule| {
            for side in [&mut rule.source, &mut rule.destination] {
                if *side == AddressMatch::Sets(vec!["Internet".into()]) {
                    *side = AddressMatch::Any;
                }
            }
        });
    });
}

/// N9: the application security groups of the defect are empty.
#[test]
fn empty_application_security_groups_are_caught() {
    security_must_be_caught("N9, application security groups", |config| {
        for group in config.security.iter_mut().flat_map(|s| &mut s.application_groups) {
            group.addresses.clear();
        }
    });
}

/// P17, D28: the defect lets rules decide about peers without access, although the setting is `block`.
#[test]
fn rules_in_place_of_block_are_caught() {
    security_must_be_caught("P17, block", |config| set_access_off(config, AccessOff::TagOnly));
}

/// P17, D28: the defect drops packets of peers without access, although the setting lets rules decide.
#[test]
fn block_in_place_of_rules_is_caught() {
    security_must_be_caught("P17, tagOnly", |config| set_access_off(config, AccessOff::Block));
}

fn set_access_off(config: &mut AgentConfig, access_off: AccessOff) {
    if let Some(security) = &mut config.security {
        security.access_off = access_off;
    }
}

/// R12: the defect lets all NICs forward.
#[test]
fn switching_off_r12_is_caught() {
    security_must_be_caught("R12", |config| {
        if let Role::Vm { nics, .. } = &mut config.role {
            for nic in nics {
                nic.ip_forwarding = true;
            }
        }
    });
}

/// D37: the defect ignores the tag `tombolo-host-routes` of NICs.
#[test]
fn ignoring_host_routes_is_caught() {
    security_must_be_caught("D37, host routes", |config| {
        if let Role::Vm { nics, .. } = &mut config.role {
            nics.iter_mut().for_each(|nic| nic.host_routes.clear());
        }
    });
}

/// Adds a NIC with IP forwarding before the NICs of an appliance. Forwarded packets pass this NIC, and all others the NICs
/// that they passed before. Returns the NIC through which forwarded packets passed before. None: the agent is no appliance.
fn insert_forwarding_nic(config: &mut AgentConfig, subnet: impl FnOnce(&Nic) -> ResourceId) -> Option<usize> {
    // Without arrivals, packets for other hosts arrive at the first NIC that forwards.
    config.links.iter_mut().for_each(|link| link.arrivals.clear());
    let Role::Vm { nics, .. } = &mut config.role else {
        return None;
    };
    let position = nics.iter().position(|nic| nic.ip_forwarding)?;
    let mut nic = nics[position].clone();
    nic.subnet = subnet(&nic);
    nic.addresses = vec!["192.0.2.77/32".parse().expect("prefix")];
    nic.id = ResourceId::new(format!("{}-2", nic.id));
    nics.insert(0, nic);
    Some(position)
}

/// Adds the entry of a NIC that [`insert_forwarding_nic`] added.
fn secure_forwarding_nic(config: &mut AgentConfig, change: impl FnOnce(&Security) -> SecuredNic) {
    let Role::Vm { nics, .. } = &config.role else { return };
    let added = nics[0].id.clone();
    if let Some(security) = &mut config.security {
        let secured = change(security);
        security.nics.insert(0, SecuredNic { id: added, ..secured });
    }
}

/// D25: the defect does not apply the groups of an appliance's NIC to packets that the appliance forwards.
#[test]
fn appliances_without_rules_are_caught() {
    security_must_be_caught("D25", |config| {
        let Some(position) = insert_forwarding_nic(config, |nic| nic.subnet.clone()) else {
            return;
        };
        secure_forwarding_nic(config, |security| SecuredNic {
            subnet_group: None,
            nic_group: None,
            prefixes: vec![],
            ..security.nics[position].clone()
        });
    });
}

/// R20: the defect forwards an appliance's packets without the user-defined routes of the appliance's subnet. They still
/// apply to packets that the appliance itself sends.
#[test]
fn switching_off_r20_is_caught() {
    security_must_be_caught("R20", |config| {
        let other = |subnet: &ResourceId| ResourceId::new(format!("{subnet}-2"));
        let Some(position) = insert_forwarding_nic(config, |nic| other(&nic.subnet)) else {
            return;
        };
        let Role::Vm { nics, .. } = &config.role else { return };
        let copied = nics[position + 1].subnet.clone();
        let subnet = config.subnets.iter().find(|s| s.id == copied).expect("its subnet");
        let mut subnet = Subnet {
            id: other(&copied),
            ..subnet.clone()
        };
        subnet.routes.retain(|route| route.source != RouteSource::User);
        for route in &mut subnet.routes {
            route.state = RouteState::Active;
        }
        config.subnets.push(subnet);
        secure_forwarding_nic(config, |security| SecuredNic {
            prefixes: vec![],
            ..security.nics[position].clone()
        });
    });
}

/// Every fate and every reason of a loss must occur often in the random runs, because a comparison proves nothing about
/// cases that never occur.
#[test]
fn the_generator_reaches_every_fate() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut total = 0_u32;
    for seed in 0..200 {
        for fate in run_model(&Script::draw(seed)) {
            total += 1;
            let name = match fate {
                Fate::Delivered { path } if path.len() > 4 => "delivered by more than 4 agents".into(),
                Fate::Delivered { path } if path.len() == 4 => "delivered by 4 agents".into(),
                Fate::Delivered { path } if path.len() == 3 => "delivered by 3 agents".into(),
                Fate::Delivered { .. } => "delivered directly".into(),
                Fate::Lost { why, .. } => format!("{:?}", why[0]),
                Fate::Unspecified(what) => format!("unspecified: {what}"),
            };
            *seen.entry(name).or_default() += 1;
        }
    }
    println!("{total} packets: {seen:#?}");
    for name in [
        "delivered directly",
        "delivered by 3 agents",
        "delivered by 4 agents",
        "delivered by more than 4 agents",
    ] {
        assert!(seen.get(name).is_some_and(|n| *n > 15), "{name}");
    }
    let every = [
        Why::Spoofed,
        Why::Unrouted,
        Why::NoOwner,
        Why::AccessOff,
        Why::Source,
        Why::NotForwarding,
        Why::NoGateway,
        Why::Appliance,
        Why::Security,
        Why::NoTunnel,
        Why::NoBalancingRule,
        Why::BalancerProtocol,
        Why::NoBackEnd,
        Why::BackEndItself,
        Why::Loop,
    ];
    for why in every {
        assert!(seen.get(&format!("{why:?}")).is_some_and(|n| *n > 50), "{why:?}");
    }
}
