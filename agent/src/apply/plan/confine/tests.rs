//! Tests the confining routes, rules and packet filters of plans, without a kernel.

use super::*;
use crate::apply::plan::Step;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::{AgentConfig, Nic, Probes, Role, Space, SpaceKind, Subnet};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteSource, RouteState};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ids() -> KernelIds {
    KernelIds::of("tl-a", None, 1)
}

fn route(source: RouteSource, prefix: &str, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    }
}

/// A VM of a dual-stack VNet that is peered with the VNet 10.2.0.0/16. A user-defined route leads to the Internet.
fn config(ip_forwarding: bool, served: &[&str]) -> AgentConfig {
    let (vnet, subnet) = (ResourceId::new("/vnet"), ResourceId::new("/vnet/subnets/a"));
    let peering = NextHop::VnetPeering {
        peering: ResourceId::new("/p"),
    };
    AgentConfig {
        agent: AgentId::new("a").unwrap(),
        vnet: vnet.clone(),
        address_space: vec![net("10.1.0.0/16"), net("fd00:1::/48")],
        mtu: 1420,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: ResourceId::new("/nic"),
                addresses: vec![net("10.1.0.4/24"), net("fd00:1::4/64")],
                subnet: subnet.clone(),
                ip_forwarding,
                host_routes: Vec::new(),
            }],
            served: served.iter().map(|s| net(s)).collect(),
            gateways: Vec::new(),
        },
        subnets: vec![Subnet {
            id: subnet,
            prefixes: vec![net("10.1.0.0/24")],
            routes: vec![
                route(RouteSource::Default, "10.1.0.0/16", NextHop::VnetLocal {}),
                route(RouteSource::Default, "fd00:1::/48", NextHop::VnetLocal {}),
                route(RouteSource::Default, "10.2.0.0/16", peering),
                route(RouteSource::User, "198.51.100.0/24", NextHop::Internet {}),
            ],
            isolated: false,
        }],
        spaces: vec![Space {
            vnet,
            kind: SpaceKind::Local {},
            prefixes: vec![net("10.1.0.0/16")],
            owners: vec![],
        }],
        links: vec![],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

fn plan(config: &AgentConfig, host: &Surroundings, internet_exit: bool) -> KernelPlan {
    KernelPlan::of(config, &RoutingState::default(), ids(), false).confine(host, ids(), internet_exit)
}

fn connected(interface: &str, network: &str) -> Connected {
    Connected {
        interface: interface.into(),
        network: net(network),
    }
}

/// The routes of a table: first those that are not fallbacks, second the fallbacks.
fn table(plan: &KernelPlan, table: Table) -> [BTreeMap<IpNet, Route>; 2] {
    [false, true].map(|fallback| {
        let here = plan
            .table_routes
            .iter()
            .filter(|(p, _)| p.table == table && p.fallback == fallback);
        here.map(|(p, r)| (p.prefix, *r)).collect()
    })
}

/// D22: without the device, fallbacks make the prefixes of the overlay unreachable. Without the device,
/// packets from an address of the agent reach no destination at all.
#[test]
fn own_sources_and_overlay_destinations_stay_without_the_device() {
    let plan = plan(&config(false, &[]), &Surroundings::default(), false);
    let unreachable = |prefixes: &[&str]| prefixes.iter().map(|p| (net(p), Route::Unreachable)).collect();
    let [own, own_fallbacks] = table(&plan, Table::Own);
    assert_eq!(own, BTreeMap::new());
    assert_eq!(
        own_fallbacks,
        unreachable(&["10.1.0.0/16", "10.2.0.0/16", "fd00:1::/48"])
    );
    let [source, source_fallbacks] = table(&plan, Table::Source);
    let device = Route::Device(NicIndex::FIRST, None);
    assert_eq!(source, [(net("0.0.0.0/0"), device), (net("::/0"), device)].into());
    assert_eq!(source_fallbacks, unreachable(&["0.0.0.0/0", "::/0"]));
    let sourced = plan.rules.iter().filter(|r| r.lookup == Lookup::Source);
    let sources: Vec<_> = sourced.map(|r| (r.source, r.ingress)).collect();
    assert_eq!(
        sources,
        [(Some(net("10.1.0.4/32")), None), (Some(net("fd00:1::4/128")), None)]
    );
    // The rule for the own table comes before the rule for the source table.
    let own = |r: &&Rule| r.source == Some(net("10.1.0.4/32"));
    let lookups: Vec<_> = plan.rules.iter().filter(own).map(|r| r.lookup).collect();
    assert_eq!(lookups, [Lookup::Own, Lookup::Source]);
}

/// D22: before the rules for served subnets there is a `Goto` rule with which the host's own packets skip those rules.
/// So the rules for served subnets apply only to packets that the host forwards.
#[test]
fn served_subnets_concern_forwarded_packets_alone() {
    let host = Surroundings {
        connected: vec![connected("eth1", "10.1.5.0/24"), connected("eth0", "192.0.2.0/24")],
        ..Surroundings::default()
    };
    let plan = plan(&config(false, &["10.1.5.0/24"]), &host, false);
    let v4: Vec<_> = plan.rules.iter().filter(|r| !r.v6).collect();
    let at = |what: &dyn Fn(&Rule) -> bool| v4.iter().find(|r| what(r)).unwrap().priority;
    let past = at(&|r| matches!(r.lookup, Lookup::Goto(_)));
    let served = at(&|r| r.source == Some(net("10.1.5.0/24")));
    let on = at(&|r| r.lookup == Lookup::Nop);
    let main = at(&|r| r.lookup == Lookup::Own && r.source.is_none());
    assert!(main < past && past < served && served < on);
    assert_eq!((served - past, on - past), (1, 2), "no other agent's rule is skipped");
    assert!(v4.iter().any(|r| r.lookup == Lookup::Goto(on)));
    assert_eq!(table(&plan, Table::Source)[0][&net("10.1.5.0/24")], Route::Throw);
    let filter = plan.filter.unwrap();
    assert_eq!(filter.served, [net("10.1.5.0/24")].into());
    assert_eq!(filter.local, [(net("10.1.5.0/24"), ["eth1".to_owned()].into())].into());
    assert!(
        plan.rules.iter().all(|r| !r.v6 || !matches!(r.lookup, Lookup::Goto(_))),
        "no IPv6 is served"
    );
}

/// D22: packets that an appliance's kernel forwards go back into the TUN device. If the host is an Internet exit,
/// packets to public destinations leave by the host's own routes instead.
#[test]
fn an_appliance_forwards_into_the_device_alone_unless_it_is_an_exit() {
    let forwarded = |plan: &KernelPlan| -> Vec<_> {
        let rules = plan
            .rules
            .iter()
            .filter(|r| r.ingress == Some(Ingress::Tun(NicIndex::FIRST)));
        rules.map(|r| r.lookup).collect()
    };
    let inside = plan(&config(true, &[]), &Surroundings::default(), false);
    assert_eq!(forwarded(&inside), [Lookup::Source; 2]);
    assert_eq!(table(&inside, Table::Exit), [BTreeMap::new(), BTreeMap::new()]);

    let exit = plan(&config(true, &[]), &Surroundings::default(), true);
    assert_eq!(forwarded(&exit), [Lookup::Exit; 2]);
    let [routes, fallbacks] = table(&exit, Table::Exit);
    for (public, route) in [("0.0.0.0/0", Route::Throw), ("2000::/3", Route::Throw)] {
        assert_eq!(routes[&net(public)], route);
    }
    for overlay in ["10.0.0.0/8", "192.168.0.0/16", "::/0"] {
        assert_eq!(routes[&net(overlay)], Route::Device(NicIndex::FIRST, None), "{overlay}");
        assert_eq!(fallbacks[&net(overlay)], Route::Unreachable, "{overlay}");
    }
    assert!(!fallbacks.contains_key(&net("0.0.0.0/0")));
    // Packets of the host itself that have an overlay source do not use the exit table.
    let own = net("10.1.0.4/32");
    let own = exit.rules.iter().filter(|r| r.source == Some(own));
    assert!(own.clone().count() == 2 && own.clone().all(|r| r.lookup != Lookup::Exit));

    let no_appliance = plan(&config(false, &[]), &Surroundings::default(), true);
    assert_eq!(forwarded(&no_appliance), []);
}

/// A bridge that leads only to containers and guests is inside the host. A bridge with a physical port leads to another
/// network.
#[test]
fn bridges_inside_the_host_stay_in_reach() {
    let host = Surroundings {
        connected: vec![
            connected("docker0", "172.17.0.0/16"),
            connected("br0", "192.168.7.0/24"),
        ],
        inner_bridges: ["docker0".to_owned()].into(),
    };
    let plan = plan(&config(true, &[]), &host, true);
    for t in [Table::Source, Table::Exit] {
        let [routes, _] = table(&plan, t);
        assert_eq!(routes[&net("172.17.0.0/16")], Route::Throw);
        assert!(!routes.contains_key(&net("192.168.7.0/24")));
    }
    let local = plan.filter.unwrap().local;
    assert_eq!(local, [(net("172.17.0.0/16"), ["docker0".to_owned()].into())].into());
}

/// Confining routes and rules are set before all other kernel state except the MTU, and removed after all of it.
#[test]
fn nothing_is_reachable_before_it_is_confined() {
    let plan = plan(&config(true, &["10.1.5.0/24"]), &Surroundings::default(), false);
    let confines = |s: &Step| matches!(s, Step::SetTableRoute(..) | Step::AddRule(_) | Step::Mtu(..));
    let (first, then) = KernelPlan::default().steps(&plan);
    assert!(then.is_empty());
    let at = first.iter().position(|s| !confines(s)).unwrap();
    assert!(!first[at..].iter().any(confines), "{first:?}");
    let (_, then) = plan.steps(&KernelPlan::default());
    let gone = |s: &Step| matches!(s, Step::DeleteTableRoute(..) | Step::DeleteRule(_));
    let at = then.iter().position(gone).unwrap();
    assert!(then[at..].iter().all(gone), "{then:?}");

    let mut state = KernelPlan::default();
    first.iter().for_each(|s| state.record(s));
    assert_eq!((&state.table_routes, &state.rules), (&plan.table_routes, &plan.rules));
}
