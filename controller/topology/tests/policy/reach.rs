//! Reachability to and from sites (D41).

use crate::circuits::{connection, connection_mut};
use crate::outside::plain_site;
use crate::world::{World, hub_and_spokes, id};
use std::collections::BTreeSet;
use tombolo_proto::fabric::{AssertedTraffic, Assertion, ReachRequest};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::reach::{ChangedTraffic, Reach, check_assertions, difference, in_order};
use tombolo_topology::resource::ConnectionType;

fn reach(w: &World) -> Reach {
    Reach::of(&w.topology, &LearnedReports::default(), &in_order)
}

/// The pairs of an entry of a difference.
fn pairs(changed: &[ChangedTraffic]) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for entry in changed {
        for from in &entry.from {
            let to = entry.to.iter().map(|to| to.address.to_string());
            all.extend(to.map(|to| (from.address.to_string(), to)));
        }
    }
    all
}

/// A site without BGP, connected to the gateways of hub and branch.
fn office_with_two_connections() -> World {
    let mut w = hub_and_spokes();
    plain_site(&mut w, "office", "hub-gw", "192.168.7.0/24");
    let office = id("localNetworkGateways", "office");
    connection(&mut w, "branch-office", ConnectionType::IPsec, "branch-gw", office, "");
    connection_mut(&mut w, "branch-office").enable_bgp = false;
    w
}

/// D41: a site that two connections join is one end, which reaches and is reached over any of them. Without one of them, the
/// difference is what only this one has carried.
#[test]
fn d41_a_site_with_two_connections_is_one_end() {
    let both = office_with_two_connections();
    let mut one = both.clone();
    one.topology.connections.remove(&id("connections", "branch-office"));
    let [with_both, with_one] = [&both, &one].map(reach);
    let sites = with_both.ends().iter().filter(|end| end.subnet.is_none());
    assert_eq!(sites.count(), 1);
    let change = difference(&with_both, &with_one);
    assert!(change.connects.is_empty(), "{:?}", change.connects);
    let between = |a: &str, b: &str| [(a.to_owned(), b.to_owned()), (b.to_owned(), a.to_owned())];
    assert_eq!(pairs(&change.cuts), BTreeSet::from(between("192.168.7.1", "10.4.0.4")));
    assert_eq!(pairs(&difference(&with_one, &with_both).connects), pairs(&change.cuts));
    let answer = with_both.answer(
        &both.topology,
        &ReachRequest {
            from: vec!["office".into()],
            to: vec!["hub".into(), "branch".into()],
        },
    );
    let names: Vec<String> = answer.unwrap().groups.into_iter().map(|group| group.name).collect();
    assert_eq!(
        names.iter().filter(|name| *name == "site office").count(),
        1,
        "{names:?}"
    );
}

/// D41: that a site always reaches networks holds if each of them is behind one of its connections.
#[test]
fn d41_an_assertion_holds_over_any_connection_of_a_site() {
    let both = office_with_two_connections();
    let asserted = |to: &str| AssertedTraffic {
        from: "office".into(),
        to: to.into(),
        protocol: None,
        ports: Vec::new(),
    };
    let assertions = ["hub", "branch"].map(|to| Assertion::Always(asserted(to)));
    let violations = check_assertions(&reach(&both), &both.topology, &assertions).unwrap();
    assert!(violations.is_empty(), "{violations:?}");
}

/// D41: networks that nothing joins may have the same addresses. Packets to an address of one do not reach that of another.
#[test]
fn d41_an_address_of_another_network_is_not_reached() {
    let mut w = hub_and_spokes();
    plain_site(&mut w, "office", "hub-gw", "192.168.7.0/24");
    w.vnet("far", "10.9.0.0/16", "workload=10.9.0.0/24 GatewaySubnet=10.9.255.0/27")
        .vm("far-vm", "far/workload=10.9.0.4")
        .gateway("far", "10.9.255.4")
        .vnet("lab", "192.168.7.0/24", "workload=192.168.7.0/24")
        .vm("lab-vm", "lab/workload=192.168.7.4")
        .vm("lab-first", "lab/workload=192.168.7.1");
    plain_site(&mut w, "far-office", "far-gw", "192.168.7.0/24");
    let reach = reach(&w);
    let position = |name: &str| {
        let is = |id: &str| {
            id.rsplit('/')
                .next()
                .is_some_and(|last| last.trim_end_matches("-nic") == name)
        };
        let found = reach.ends().iter().position(|end| is(end.id.as_str()));
        found.unwrap_or_else(|| panic!("{name}: {:?}", reach.ends()))
    };
    for (from, to, arrives) in [
        ("hub-vm", "office", true),
        ("far-vm", "far-office", true),
        ("lab-vm", "lab-first", true),
        ("hub-vm", "far-office", false),
        ("hub-vm", "lab-first", false),
        ("far-vm", "office", false),
        ("far-vm", "lab-first", false),
        ("lab-vm", "office", false),
        ("lab-vm", "far-office", false),
        ("office", "hub-vm", true),
        ("office", "far-vm", false),
        ("far-office", "hub-vm", false),
    ] {
        let found = reach.between(position(from), position(to)).is_some();
        assert_eq!(found, arrives, "{from} → {to}");
    }
}
