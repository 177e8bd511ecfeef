//! Appliances behind the front end of a load balancer (R11, L9): at which NIC packets arrive, and which appliance `explain`
//! names for both directions of a flow.

use crate::balancing::{add_balancer, ask, use_ha_ports};
use crate::explain::stopped;
use crate::world::{World, agent, id, nets};
use std::collections::BTreeSet;
use tombolo_proto::config::{Arrival, HOST_ROUTES_TAG};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::AgentId;
use tombolo_topology::explain::{Explanation, Hop};
use tombolo_topology::learned_routes::LearnedReports;

/// The front ends of the appliances in the subnets `outside` and `inside` of the hub.
const OUTSIDE: &str = "10.1.1.36";
const INSIDE: &str = "10.1.2.36";

/// The spokes reach each other through the appliances `one` and `two`, which have a NIC in each of the subnets `outside`
/// (the first) and `inside`. The NICs of a subnet are behind a front end with HA ports: spoke-a sends to that of `inside`,
/// spoke-b to that of `outside`. The kernels send packets for spoke-a by `inside`. `outside` and `inside`: whether
/// these NICs have IP forwarding.
fn two_armed(names: &[&str], outside: bool, inside: bool) -> World {
    let mut w = World::default();
    w.vnet(
        "hub",
        "10.1.0.0/16",
        "workload=10.1.0.0/24 outside=10.1.1.0/24 inside=10.1.2.0/24",
    )
    .vnet("spoke-a", "10.2.0.0/16", "workload=10.2.0.0/24")
    .vnet("spoke-b", "10.3.0.0/16", "workload=10.3.0.0/24")
    .vm("hub-vm", "hub/workload=10.1.0.4")
    .vm("a-vm", "spoke-a/workload=10.2.0.4")
    .vm("b-vm", "spoke-b/workload=10.3.0.4")
    .peer("hub", "af", "spoke-a", "af")
    .peer("hub", "af", "spoke-b", "af");
    let mut pools = [Vec::new(), Vec::new()];
    for (name, n) in names.iter().zip(4..) {
        let [first, second] = ["outside", "inside"].map(|side| format!("{name}-{side}"));
        w.nic(&first, &format!("hub/outside=10.1.1.{n}"), outside)
            .nic(&second, &format!("hub/inside=10.1.2.{n}"), inside)
            .bind(name, World::vm_binding(name, &[&first, &second], &[]));
        let tags = &mut w.nic_mut(&second).envelope.tags;
        tags.insert(HOST_ROUTES_TAG.into(), "10.2.0.0/16".into());
        pools[0].push(first);
        pools[1].push(second);
    }
    for (side, front, pool) in [("outside", OUTSIDE, &pools[0]), ("inside", INSIDE, &pools[1])] {
        let pool: Vec<&str> = pool.iter().map(String::as_str).collect();
        add_balancer(&mut w, side, (&format!("hub/{side}"), front), &pool);
        use_ha_ports(&mut w, side);
    }
    w.routes("spoke-a/workload", &format!("10.3.0.0/16>{INSIDE}"))
        .routes("spoke-b/workload", &format!("10.2.0.0/16>{OUTSIDE}"));
    w
}

fn arrival(source: &str, destination: &str, nic: u8) -> Arrival {
    Arrival {
        source: nets(source)[0],
        destination: nets(destination)[0],
        nic,
    }
}

/// R11, D37: a route to a front end leads to the NIC that is in the pool, as a route to the address of this NIC does.
#[test]
fn r11_d37_packets_arrive_at_the_nic_that_is_in_the_pool() {
    let mut w = two_armed(&["one", "two"], true, true);
    for name in ["one", "two"] {
        let of = |peer: &str| w.link(name, peer).unwrap().arrivals;
        assert_eq!(of("a-vm"), [arrival("10.2.0.4/32", "10.3.0.0/16", 1)], "{name}");
        assert_eq!(of("b-vm"), [arrival("10.3.0.4/32", "10.2.0.0/16", 0)], "{name}");
        assert_eq!(
            of("hub-vm"),
            [],
            "{name}: no route of its subnet leads to the appliances"
        );
    }
    // The route contains the addresses of the appliance, but a longer one leads to them directly.
    w.routes("spoke-a/workload", &format!("10.0.0.0/8>{INSIDE}"));
    let found = w.link("one", "a-vm").unwrap().arrivals;
    let expected = [("10.0.0.0/8", 1), ("10.1.1.4/32", 0), ("10.1.2.4/32", 1)];
    assert_eq!(found, expected.map(|(prefix, nic)| arrival("10.2.0.4/32", prefix, nic)));
    // A machine that is in no pool of the front end gets none of its packets.
    let mut other = two_armed(&["one"], true, true);
    other
        .nic("two-outside", "hub/outside=10.1.1.5", true)
        .nic("two-inside", "hub/inside=10.1.2.5", true)
        .bind("two", World::vm_binding("two", &["two-outside", "two-inside"], &[]));
    assert_eq!(other.link("two", "a-vm").unwrap().arrivals, []);
}

/// D37: if several NICs of a machine are members for one front end, packets arrive at the first of those with a rule for all
/// ports.
#[test]
fn r11_d37_of_several_nics_in_the_pool_the_first_is_used() {
    let mut w = two_armed(&["one"], true, true);
    let pool = w.nic_mut("one-inside").ip_configurations[0].load_balancer_pools.clone();
    w.nic_mut("one-outside").ip_configurations[0]
        .load_balancer_pools
        .extend(pool);
    assert_eq!(
        w.link("one", "a-vm").unwrap().arrivals,
        [arrival("10.2.0.4/32", "10.3.0.0/16", 0)]
    );
}

fn from_a_to_b(w: &World) -> Explanation {
    ask(
        w,
        &LearnedReports::default(),
        "a-vm",
        "10.3.0.4",
        Protocol::Tcp,
        Some(443),
    )
}

/// R12, D37: the NIC in the pool must have IP forwarding, and so must the NIC by which the packet leaves.
#[test]
fn r11_r12_the_nic_in_the_pool_must_forward() {
    let answer = from_a_to_b(&two_armed(&["one"], true, true));
    assert!(answer.reachable, "{answer:#?}");
    let inside = from_a_to_b(&two_armed(&["one"], true, false));
    stopped(&inside, "one", "not_forwarding", "R12", &["enableIPForwarding"]);
    let outside = from_a_to_b(&two_armed(&["one"], false, true));
    stopped(&outside, "one", "spoofed_source", "R12", &["enableIPForwarding"]);
}

/// D25, D37: the groups of the NIC in the pool apply to packets that arrive.
#[test]
fn r11_d25_the_groups_of_the_nic_in_the_pool_apply() {
    for (nic, is_denied) in [("one-inside", true), ("one-outside", false)] {
        let mut w = two_armed(&["one"], true, true);
        w.group("g", &["no 100 in deny * 10.2.0.0/16 * *"]).secure_nic(nic, "g");
        let answer = from_a_to_b(&w);
        match is_denied {
            true => stopped(&answer, "one", "security_rule", "N3", &["Inbound", nic]),
            false => assert!(answer.reachable, "{answer:#?}"),
        }
    }
}

/// L5, R11: the requests to a front end in a spoke and the replies of its back end pass the same one of two appliances. The
/// client gets the replies from the front end.
#[test]
fn l5_r11_explain_follows_translated_replies_through_the_appliance_of_the_request() {
    const FRONT: &str = "10.3.0.36";
    const APPLIANCES: &str = "10.1.0.36";
    let mut w = World::default();
    w.vnet("hub", "10.1.0.0/16", "workload=10.1.0.0/24")
        .vnet("spoke-a", "10.2.0.0/16", "workload=10.2.0.0/24")
        .vnet("spoke-b", "10.3.0.0/16", "workload=10.3.0.0/24")
        .appliance("one", "hub/workload=10.1.0.4")
        .appliance("two", "hub/workload=10.1.0.5")
        .vm("web", "spoke-b/workload=10.3.0.4")
        .peer("hub", "af", "spoke-a", "af")
        .peer("hub", "af", "spoke-b", "af");
    let clients: Vec<String> = (0..12).map(|n| format!("client{n}")).collect();
    for (name, n) in clients.iter().zip(4..) {
        w.vm(name, &format!("spoke-a/workload=10.2.0.{n}"));
    }
    add_balancer(&mut w, "nva", ("hub/workload", APPLIANCES), &["one-nic", "two-nic"]);
    use_ha_ports(&mut w, "nva");
    add_balancer(&mut w, "web", ("spoke-b/workload", FRONT), &["web-nic"]);
    w.routes("spoke-a/workload", &format!("10.3.0.0/16>{APPLIANCES}"))
        .routes("spoke-b/workload", &format!("10.2.0.0/16>{APPLIANCES}"));
    let appliance = |hops: &[Hop]| -> AgentId {
        let mut all = hops.iter().map(|hop| &hop.agent);
        all.find(|at| **at == agent("one") || **at == agent("two"))
            .unwrap()
            .clone()
    };
    let mut used = BTreeSet::new();
    for client in &clients {
        let answer = ask(&w, &LearnedReports::default(), client, FRONT, Protocol::Tcp, Some(80));
        assert!(answer.reachable, "{answer:#?}");
        let there = appliance(&answer.request.hops);
        assert_eq!(there, appliance(&answer.reply.unwrap().hops), "{client}");
        used.insert(there);
    }
    assert_eq!(used.len(), 2);
    assert_eq!(w.balancer_mut("web").envelope.id, id("loadBalancers", "web"));
}
