//! Appliances with several NICs (D37): IP forwarding and user-defined routes apply to the NIC at which a packet arrives
//! or leaves. Rules: R12, R20, N4, D25.

use crate::explain::stopped;
use crate::world::{World, agent, hub_and_spokes, id, nets};
use tombolo_proto::config::{Arrival, HOST_ROUTES_TAG, Role};
use tombolo_proto::fabric::ExplainRequest;
use tombolo_topology::explain::{Explanation, explain};

/// The spokes reach each other through the appliance `nva`, whose NICs are `outside` (10.1.1.4, the first) and `inside`
/// (10.1.2.4), each in a subnet of its own: spoke-a sends to `inside`, spoke-b to `outside`. The appliance's kernel
/// sends packets for spoke-a by `inside`.
fn two_armed(outside: bool, inside: bool) -> World {
    let mut w = hub_and_spokes();
    w.vnet(
        "hub",
        "10.1.0.0/16",
        "workload=10.1.0.0/24 outside=10.1.1.0/24 inside=10.1.2.0/24 GatewaySubnet=10.1.255.0/27",
    );
    w.peer("hub", "at", "spoke-a", "ar").peer("hub", "at", "spoke-b", "ar");
    for spoke in ["spoke-a", "spoke-b"] {
        w.half_mut(spoke, "hub").allow_forwarded_traffic = true;
    }
    w.half_mut("hub", "spoke-a").allow_forwarded_traffic = true;
    w.nic("outside", "hub/outside=10.1.1.4", outside)
        .nic("inside", "hub/inside=10.1.2.4", inside)
        .bind("nva", World::vm_binding("nva", &["outside", "inside"], &[]));
    w.nic_mut("inside")
        .envelope
        .tags
        .insert(HOST_ROUTES_TAG.into(), "10.2.0.0/16".into());
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.2.4")
        .routes("spoke-b/workload", "10.2.0.0/16>10.1.1.4");
    w
}

fn ask(w: &World) -> Explanation {
    let question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": "a-vm", "to": "b-vm"})).unwrap();
    explain(&w.topology, &Default::default(), &question).unwrap()
}

#[test]
fn d37_links_say_at_which_nic_packets_arrive() {
    let w = two_armed(true, true);
    let arrival = |source: &str, destination: &str, nic| Arrival {
        source: nets(source)[0],
        destination: nets(destination)[0],
        nic,
    };
    let of = |peer: &str| w.link("nva", peer).unwrap().arrivals;
    assert_eq!(of("a-vm"), [arrival("10.2.0.4/32", "10.3.0.0/16", 1)]);
    assert_eq!(of("b-vm"), [arrival("10.3.0.4/32", "10.2.0.0/16", 0)]);
    assert_eq!(of("hub-vm"), [], "no route of its subnet leads to the appliance");
    assert_eq!(w.link("a-vm", "nva").unwrap().arrivals, [], "one NIC needs none");
    let Role::Vm { nics, .. } = w.config("nva").role else {
        panic!("a VM")
    };
    assert_eq!(nics[1].host_routes, nets("10.2.0.0/16"));
    // A gateway sends by the routes of GatewaySubnet, and another appliance forwards packets of any source.
    let mut w = two_armed(true, true);
    w.routes("hub/GatewaySubnet", "10.2.0.0/16>10.1.1.4")
        .routes("hub/workload", "10.9.0.0/16>10.1.2.4");
    let of = |peer: &str| w.link("nva", peer).unwrap().arrivals;
    assert_eq!(of("hub-gw"), [arrival("0.0.0.0/0", "10.2.0.0/16", 0)]);
    assert_eq!(
        of("hub-nva"),
        [
            arrival("0.0.0.0/0", "10.9.0.0/16", 1),
            arrival("10.1.0.5/32", "10.9.0.0/16", 1)
        ]
    );
}

/// A route to the appliance contains the appliance's own addresses, but a longer route leads to one of them directly.
#[test]
fn d37_packets_to_the_appliance_itself_arrive_directly_if_their_route_is_longer() {
    let mut w = two_armed(true, true);
    w.routes("spoke-a/workload", "10.0.0.0/8>10.1.2.4");
    let arrivals = w.link("nva", "a-vm").unwrap().arrivals;
    let found: Vec<_> = arrivals.iter().map(|a| (a.destination.to_string(), a.nic)).collect();
    let expected = [("10.0.0.0/8", 1), ("10.1.1.4/32", 0), ("10.1.2.4/32", 1)];
    assert_eq!(found, expected.map(|(prefix, nic)| (prefix.to_owned(), nic)));
}

/// The kernel of an appliance sends a part of a route's prefix by another NIC than the rest. So packets of this part
/// arrive where the route of that NIC's subnet says.
#[test]
fn d37_a_host_route_within_a_route_decides_where_packets_arrive() {
    let mut w = two_armed(true, true);
    w.vnet("spoke-a", "10.2.0.0/16", "workload=10.2.0.0/24 second=10.2.1.0/24");
    w.peer("hub", "at", "spoke-a", "ar");
    w.nic("first", "spoke-a/workload=10.2.0.9", true)
        .nic("second", "spoke-a/second=10.2.1.9", true)
        .bind("a-nva", World::vm_binding("a-nva", &["first", "second"], &[]));
    w.nic_mut("second")
        .envelope
        .tags
        .insert(HOST_ROUTES_TAG.into(), "10.9.0.0/16".into());
    w.routes("spoke-a/workload", "0.0.0.0/0>10.1.1.4")
        .routes("spoke-a/second", "0.0.0.0/0>10.1.2.4");
    let arrivals = w.link("nva", "a-nva").unwrap().arrivals;
    let of_others: Vec<_> = arrivals
        .iter()
        .filter(|a| a.source.prefix_len() == 0)
        .map(|a| (a.destination.to_string(), a.nic))
        .collect();
    let expected = [("0.0.0.0/0", 0), ("10.2.1.0/24", 1), ("10.9.0.0/16", 1)];
    for (prefix, nic) in expected {
        assert!(of_others.contains(&(prefix.to_owned(), nic)), "{prefix}: {of_others:?}");
    }
}

#[test]
fn r12_the_nic_at_which_a_packet_arrives_or_leaves_must_forward() {
    let answer = ask(&two_armed(true, true));
    assert!(answer.reachable, "{answer:#?}");
    // The request arrives at `inside` and leaves by `outside`, which is the kernel's default.
    stopped(
        &ask(&two_armed(true, false)),
        "nva",
        "not_forwarding",
        "R12",
        &["enableIPForwarding"],
    );
    stopped(
        &ask(&two_armed(false, true)),
        "nva",
        "spoofed_source",
        "R12",
        &["enableIPForwarding"],
    );
}

#[test]
fn r20_the_subnet_of_the_nic_by_which_a_packet_leaves_has_the_routes() {
    let mut w = two_armed(true, true);
    w.routes("hub/inside", "10.3.0.0/16>none");
    assert!(ask(&w).reachable, "packets for spoke-b do not leave by `inside`");
    w.routes("hub/outside", "10.3.0.0/16>none");
    let answer = ask(&w);
    assert!(!answer.reachable);
    let stop = answer.request.stop.unwrap();
    assert_eq!((stop.agent, stop.reason.as_str()), (agent("nva"), "route_none"));
}

/// D25: the NIC at which the packet arrives judges it inbound, and the NIC by which it leaves judges it outbound.
#[test]
fn d25_each_nic_of_an_appliance_has_its_own_groups() {
    for (nic, rule, direction) in [
        ("inside", "no 100 in deny * * * *", "Inbound"),
        ("outside", "no 100 out deny * * * *", "Outbound"),
    ] {
        let mut w = two_armed(true, true);
        w.group("g", &[rule]).secure_nic(nic, "g");
        stopped(&ask(&w), "nva", "security_rule", "N3", &[direction, nic]);
    }
    let mut w = two_armed(true, true);
    w.group("g", &["no 100 out deny * 10.2.0.0/16 * *"])
        .secure_nic("inside", "g");
    assert!(ask(&w).reachable, "the request does not leave by `inside`");
    assert_eq!(w.nic_mut("inside").envelope.id, id("networkInterfaces", "inside"));
}
