//! A change of the topology alters only the configurations of agents that it concerns. Equal topologies result in equal
//! bytes of configurations.

use crate::world::{World, hub_and_spokes, nets};

/// The topology of the demo (hub, spokes and branch), and three VNets x, y and z that are not connected with it. y and
/// z are peered.
fn world() -> World {
    let mut w = hub_and_spokes();
    w.vnet("x", "10.11.0.0/16", "s=10.11.0.0/24")
        .vm("x-vm", "x/s=10.11.0.4");
    w.vnet("y", "10.12.0.0/16", "s=10.12.0.0/24")
        .vm("y-vm", "y/s=10.12.0.4");
    w.vnet("z", "10.13.0.0/16", "s=10.13.0.0/24")
        .vm("z-vm", "z/s=10.13.0.4");
    w.peer("y", "a", "z", "a");
    w
}

#[test]
fn a_peering_concerns_its_two_vnets_alone() {
    let before = world();
    let mut w = before.clone();
    w.peer("x", "a", "y", "a");
    assert_eq!(
        w.changed_since(&before),
        ["x-vm", "y-vm"],
        "z is y's peer and does not notice"
    );
    let mut hub = before.clone();
    hub.peer("hub", "a", "x", "a");
    assert_eq!(
        hub.changed_since(&before),
        ["hub-gw", "hub-nva", "hub-vm", "x-vm"],
        "GatewaySubnet has the route too"
    );
}

#[test]
fn a_half_that_is_not_connected_concerns_nobody() {
    let before = world();
    let mut w = before.clone();
    w.initiated("x", "y");
    assert_eq!(w.changed_since(&before), Vec::<String>::new());
}

#[test]
fn a_route_table_concerns_its_subnets_alone() {
    let before = world();
    let mut w = before.clone();
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    assert_eq!(w.changed_since(&before), ["a-vm"]);
}

#[test]
fn a_flag_of_a_half_concerns_its_own_vnet() {
    let before = world();
    let mut w = before.clone();
    w.half_mut("y", "z").allow_forwarded_traffic = true;
    assert_eq!(w.changed_since(&before), ["y-vm"]);
}

#[test]
fn an_endpoint_concerns_those_with_a_link() {
    let before = world();
    let mut w = before.clone();
    w.agent_mut("y-vm").reach.endpoints = vec!["198.51.100.7:51820".parse().unwrap()];
    assert_eq!(w.changed_since(&before), ["z-vm"], "and not y-vm itself");
}

#[test]
fn a_shared_key_concerns_its_own_gateway() {
    let before = world();
    let mut w = before.clone();
    w.connection("hub", "branch", Some("other"));
    assert_eq!(w.changed_since(&before), ["hub-gw"]);
}

#[test]
fn a_new_spoke_of_the_gateway_concerns_the_hub_the_spokes_and_the_branch() {
    let before = world();
    let mut w = before.clone();
    w.peer("hub", "at", "x", "ar");
    assert_eq!(
        w.changed_since(&before),
        [
            "a-vm",
            "b-vm",
            "branch-gw",
            "branch-vm",
            "hub-gw",
            "hub-nva",
            "hub-vm",
            "x-vm"
        ]
    );
}

/// The bytes of a configuration do not depend on the order in which peerings were created, or in which address ranges
/// are listed.
#[test]
fn order_of_creation_does_not_show() {
    let build = |order: [usize; 3]| {
        let mut w = World::default();
        w.vnet("a", "10.1.0.0/16 10.9.0.0/16", "s=10.1.0.0/24");
        let peers = [("b", "10.2.0.0/16"), ("c", "10.3.0.0/16"), ("d", "10.4.0.0/16")];
        for (name, range) in peers {
            w.vnet(name, range, "");
        }
        for n in order {
            w.peer("a", "a", peers[n].0, "a");
        }
        w.vm("vm", "a/s=10.1.0.4");
        w
    };
    let (one, other) = (build([0, 1, 2]), build([2, 0, 1]));
    assert_eq!(one.config("vm").to_bytes(), other.config("vm").to_bytes());
    let mut swapped = one.clone();
    swapped.vnet_mut("a").address_space = nets("10.9.0.0/16 10.1.0.0/16");
    assert_eq!(one.config("vm").to_bytes(), swapped.config("vm").to_bytes());
}
