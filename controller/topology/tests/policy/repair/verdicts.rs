//! The verdicts of `explain`: each has a repair, or the answer says what a person must do, and why (D40).

use super::{answer, balanced, question, texts, to_front_end};
use crate::circuits::{connection_mut, lab, reports};
use crate::outside::plain_site;
use crate::world::{World, hub_and_spokes, id, ip, nets};
use std::sync::Arc;
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::resource::Binding;

/// A verdict of explain for which there is no repair: the world, the question, the reason of the stop, and words of the answer:
/// what to do, and why no change does it.
struct Verdict {
    world: World,
    asked: ExplainRequest,
    reason: &'static str,
    text: &'static str,
    why: &'static str,
}

fn verdicts() -> Vec<Verdict> {
    let mut all = Vec::new();
    let mut add = |world: &World, asked: ExplainRequest, [reason, text, why]: [&'static str; 3]| {
        all.push(Verdict {
            world: world.clone(),
            asked,
            reason,
            text,
            why,
        });
    };
    let icmp = |from: &str, to: &str| question(from, to, Protocol::Icmp, None);
    let hub = hub_and_spokes();
    let no_one = ["no_owner", "create a network interface", "only you know which machine"];
    add(&hub, icmp("a-vm", "10.1.0.77"), no_one);
    let gateway = [
        "no_owner",
        "test it from a machine in hub",
        "answers its own virtual network only",
    ];
    let mut plain = hub.clone();
    plain
        .vnet("plain", "10.5.0.0/16", "s=10.5.0.0/24")
        .vm("plain-vm", "plain/s=10.5.0.4")
        .peer("hub", "a", "plain", "a");
    add(&plain, icmp("plain-vm", "10.1.255.4"), gateway);
    let nowhere = [
        "route_internet",
        "check the address",
        "no network is known to have the address",
    ];
    add(&hub, icmp("a-vm", "203.0.113.9"), nowhere);
    let pings = ["balancer_protocol", "test it with a TCP connection", "TCP and UDP"];
    add(&balanced(&["six"]), icmp("client", "10.1.0.36"), pings);
    let asked = question("six", "10.1.0.36", Protocol::Tcp, Some(80));
    let itself = ["back_end_itself", "connect to itself directly", "never reaches itself"];
    add(&balanced(&["six"]), asked, itself);
    let empty = [
        "no_back_end",
        "add the network interfaces",
        "only you know which machines",
    ];
    add(&balanced(&[]), to_front_end(80), empty);
    let mut same = World::default();
    same.vnet("x", "10.1.0.0/16", "s=10.1.0.0/24")
        .vnet("y", "10.1.0.0/16 10.2.0.0/16", "s=10.2.0.0/24")
        .vm("x-vm", "x/s=10.1.0.4")
        .vm("y-vm", "y/s=10.2.0.4");
    let overlap = [
        "route_none",
        "create a peering",
        "address spaces of the two networks overlap",
    ];
    add(&same, icmp("x-vm", "y-vm"), overlap);
    let mut office = hub.clone();
    plain_site(&mut office, "office", "hub-gw", "192.168.7.0/24");
    connection_mut(&mut office, "to-office").shared_key = None;
    let key = [
        "no_gateway",
        "set it here and on the site's device",
        "only the site knows it",
    ];
    add(&office, icmp("hub-vm", "192.168.7.10"), key);
    office.topology.connections.remove(&id("connections", "to-office"));
    let join = [
        "route_none",
        "create a connection of type IPsec",
        "only the site knows it",
    ];
    add(&office, icmp("hub-vm", "192.168.7.10"), join);
    let mut route = World::default();
    route
        .vnet("x", "10.1.0.0/16", "s=10.1.0.0/24")
        .vm("x-vm", "x/s=10.1.0.4");
    route.routes("x/s", "10.99.0.0/16>gateway");
    let none = ["no_gateway", "create one", "only you can choose"];
    add(&route, icmp("x-vm", "10.99.0.1"), none);
    let mut far = balanced(&["six"]);
    far.vnet_in("abroad", "region2", "10.4.0.0/16", "w=10.4.0.0/24")
        .vm("foreigner", "abroad/w=10.4.0.4")
        .peer("near", "a", "abroad", "a");
    Arc::make_mut(&mut far.topology.settings).global_load_balancing = false;
    let asked = question("foreigner", "10.1.0.36", Protocol::Tcp, Some(80));
    let setting = ["no_owner", "globalLoadBalancing=true", "for all networks at once"];
    add(&far, asked, setting);
    let site = |w: &mut World, name: &str, address: &str| {
        let attachments = vec![id("expressRouteCircuits", "er1")];
        let address = ip(address);
        w.bind(name, Binding::Site { attachments, address });
    };
    let mut circuits = lab();
    site(&mut circuits, "stray", "10.99.30.10");
    let stray = [
        "spoofed_source",
        "let the customer's router announce",
        "its router must change that",
    ];
    add(&circuits, icmp("stray", "hub-vm"), stray);
    let e8 = ["route_none", "ExpressRoute gateway", "never relay to each other"];
    add(&circuits, icmp("branch-vm", "10.1.31.10"), e8);
    all
}

/// D40: where no change helps, the answer says what to do, and why the controller proposes no change.
#[test]
fn d40_every_verdict_without_a_repair_says_what_to_do_and_why() {
    let mut wrong = Vec::new();
    for verdict in verdicts() {
        let (world, asked) = (&verdict.world, &verdict.asked);
        let reports = match world.topology.circuits.is_empty() {
            true => LearnedReports::default(),
            false => reports(false),
        };
        let explained = explain(&world.topology, &reports, asked).unwrap();
        let reason = explained.request.stop.as_ref().map(|stop| stop.reason.as_str());
        let found = answer(world, &reports, asked);
        let says = found
            .by_hand
            .first()
            .is_some_and(|entry| entry.text.contains(verdict.text) && entry.why.contains(verdict.why));
        if reason != Some(verdict.reason) || !found.repairs.is_empty() || !says {
            wrong.push(format!(
                "{} {}: {reason:?}: {:?} {:#?}",
                verdict.reason,
                verdict.text,
                texts(&found),
                found.by_hand
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A verdict of explain for which there is a repair: the world, the ends of the packet, the reason of the stop, and the changes
/// of one of the smallest repairs.
struct Mended {
    world: World,
    ends: (&'static str, &'static str),
    reason: &'static str,
    changes: &'static [&'static str],
}

/// The two spokes with routes over the appliance of the hub, which may forward.
fn chained() -> World {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5")
        .routes("spoke-b/workload", "10.2.0.0/16>10.1.0.5");
    for spoke in ["spoke-a", "spoke-b"] {
        w.half_mut(spoke, "hub").allow_forwarded_traffic = true;
    }
    w
}

fn mended() -> Vec<Mended> {
    let mut all = Vec::new();
    let mut add = |ends, reason, changes, change: &dyn Fn(&mut World)| {
        let mut world = chained();
        change(&mut world);
        all.push(Mended {
            world,
            ends,
            reason,
            changes,
        });
    };
    let to_hub = ("a-vm", "hub-vm");
    let to_b = ("a-vm", "b-vm");
    let to_branch = ("a-vm", "branch-vm");
    let access = &["set allowVirtualNetworkAccess of the peering to-hub of spoke-a"][..];
    add(to_hub, "access_denied", access, &|w| {
        w.half_mut("spoke-a", "hub").allow_virtual_network_access = false;
    });
    let forwards = &["set enableIPForwarding of the network interface hub-nva-nic"][..];
    add(to_b, "not_forwarding", forwards, &|w| {
        w.nic_mut("hub-nva-nic").enable_ip_forwarding = false;
    });
    let forwarded = &["set allowForwardedTraffic of the peering to-hub of spoke-b"][..];
    add(to_b, "spoofed_source", forwarded, &|w| {
        w.half_mut("spoke-b", "hub").allow_forwarded_traffic = false;
    });
    let route = &["delete the route r0 (10.1.0.0/16) of the table rt-spoke-a-workload"][..];
    add(to_hub, "route_none", route, &|w| {
        w.routes("spoke-a/workload", "10.1.0.0/16>none");
    });
    add(to_hub, "appliance_unreachable", route, &|w| {
        w.routes("spoke-a/workload", "10.1.0.0/16>10.3.0.4");
    });
    let back = &["delete the route r0 (10.3.0.0/16) of the table rt-hub-workload"][..];
    add(("hub-vm", "b-vm"), "hairpin", back, &|w| {
        w.routes("hub/workload", "10.3.0.0/16>10.1.0.5");
    });
    let sync = &["sync the peering to-spoke-a of hub"][..];
    add(("hub-vm", "a-vm"), "route_none", sync, &|w| {
        w.vnet_mut("spoke-a").address_space.push(nets("10.9.0.0/16")[0]);
        w.vnet_mut("spoke-a").subnets[0].prefixes = nets("10.9.0.0/24");
        w.nic_mut("a-vm-nic").ip_configurations[0].address = ip("10.9.0.4");
    });
    let bgp = &["turn off enableBgp of the connection branch-to-hub"][..];
    add(to_branch, "route_none", bgp, &|w| {
        for name in ["hub-to-branch", "branch-to-hub"] {
            connection_mut(w, name).enable_bgp = true;
        }
    });
    let deny = &["delete the rule all of the security group closed"][..];
    add(to_hub, "security_rule", deny, &|w| {
        w.group("closed", &["all 100 in deny * * * *"])
            .secure_nic("hub-vm-nic", "closed");
    });
    let propagates =
        &["let the table rt-spoke-a-workload have the routes of gateways (disableBgpRoutePropagation false)"][..];
    add(to_branch, "route_none", propagates, &|w| {
        w.table_mut("spoke-a/workload").disable_bgp_route_propagation = true;
    });
    let through = &[
        "create the peering to-alone of hub with alone, with allowGatewayTransit",
        "create the peering to-hub of alone with hub, with useRemoteGateways",
    ][..];
    add(("alone-vm", "192.168.7.10"), "route_none", through, &|w| {
        plain_site(w, "office", "hub-gw", "192.168.7.0/24");
        w.vnet("alone", "10.8.0.0/16", "s=10.8.0.0/24")
            .vm("alone-vm", "alone/s=10.8.0.4");
    });
    let uses = &[
        "set allowGatewayTransit of the peering to-plain of hub",
        "set useRemoteGateways of the peering to-hub of plain",
    ][..];
    add(("a-vm", "plain-vm"), "transit_not_allowed", uses, &|w| {
        w.vnet("plain", "10.5.0.0/16", "s=10.5.0.0/24")
            .vm("plain-vm", "plain/s=10.5.0.4");
        w.peer("hub", "a", "plain", "a");
        w.routes("spoke-a/workload", "10.5.0.0/16>gateway")
            .routes("plain/s", "10.2.0.0/16>gateway");
    });
    let over_gateway =
        &["add the route to-10.3.0.0-16 to the table rt-spoke-a-workload: 10.3.0.0/16 over the VPN gateway"][..];
    add(to_b, "route_none", over_gateway, &|w| {
        w.nic_mut("hub-nva-nic").enable_ip_forwarding = false;
        w.routes("spoke-a/workload", "10.99.0.0/16>none")
            .routes("spoke-b/workload", "10.2.0.0/16>gateway");
    });
    let gateway = &["delete the route r0 (10.6.0.0/16) of the table rt-five-s"][..];
    add(("five-vm", "six-vm"), "no_gateway", gateway, &|w| {
        w.vnet("five", "10.5.0.0/16", "s=10.5.0.0/24")
            .vnet("six", "10.6.0.0/16", "s=10.6.0.0/24")
            .vm("five-vm", "five/s=10.5.0.4")
            .vm("six-vm", "six/s=10.6.0.4")
            .peer("five", "a", "six", "a")
            .routes("five/s", "10.6.0.0/16>gateway");
    });
    all
}

/// D40: the verdicts of explain that changes of the configuration can mend, other than those of the tests above, have a repair.
#[test]
fn d40_every_other_verdict_has_a_repair() {
    let mut wrong = Vec::new();
    for case in mended() {
        let asked = question(case.ends.0, case.ends.1, Protocol::Icmp, None);
        let explained = explain(&case.world.topology, &LearnedReports::default(), &asked).unwrap();
        let walks = [Some(&explained.request), explained.reply.as_ref()];
        let stop = walks.into_iter().flatten().find_map(|walk| walk.stop.as_ref());
        let reason = stop.map(|stop| stop.reason.as_str());
        let found = answer(&case.world, &LearnedReports::default(), &asked);
        if reason != Some(case.reason) || !texts(&found).contains(&case.changes.to_vec()) {
            wrong.push(format!(
                "{} {:?}: {stop:?}: {:#?} {:#?}",
                case.reason,
                case.ends,
                texts(&found),
                found.by_hand
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
