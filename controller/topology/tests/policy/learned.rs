//! Even if a site announces prefixes that contain other networks, it may not send from the addresses of these networks
//! (D10, G22, G24). Every agent that learns the routes drops such packets: the gateways, and the VMs of the hub, of its
//! spokes and of another VNet.

use crate::circuits::{fate, lab, reports};
use crate::world::{agent, id, nets};
use std::sync::Arc;
use tombolo_proto::id::AgentId;
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_topology::learned_routes::LearnedReports;

/// What the agents of [`lab`] report as learned from sites if `prefixes` are announced in addition, by the VPN device
/// of location 1 and by the customer of circuit 1.
fn announcing(prefixes: &str) -> LearnedReports {
    let mut reports = reports(false);
    let doors = [
        ("hub-vpn", id("connections", "hub-loc1")),
        ("er1-1", id("expressRouteCircuits", "er1")),
    ];
    for (at, door) in doors {
        let routes = reports.learned.entry(agent(at)).or_default().entry(door).or_default();
        Arc::make_mut(routes).extend(nets(prefixes).into_iter().map(|prefix| Route {
            prefix,
            via: None,
            as_path: vec![65_021],
            weight: 0,
            origin: RouteOrigin::Site,
        }));
    }
    reports
}

/// Packets from a site are dropped if their source is in the receiver's own VNet, in a VNet that is peered with it, or
/// in the branch, to which another connection of the hub leads.
#[test]
fn super_prefixes_of_a_site_speak_for_nobody_else() {
    let w = lab();
    let site = AgentId::of_site(&id("connections", "hub-loc1"));
    let [vpn, er, edge, remote] = ["hub-vpn", "hub-er", "er1-1", "remote-er"].map(agent);
    for prefixes in [
        "10.0.0.0/8",
        "0.0.0.0/0",
        "0.0.0.0/1 128.0.0.0/1",
        "10.8.0.0/13 10.10.0.0/15 0.0.0.0/0",
    ] {
        let reports = announcing(prefixes);
        let spoofed = [
            ("hub-vpn", &site, "10.10.30.5", "10.10.30.4"),
            ("hub-vpn", &site, "10.11.30.4", "10.10.30.4"),
            ("hub-vpn", &site, "10.11.30.68", "10.10.30.4"),
            ("hub-er", &edge, "10.10.30.5", "10.10.30.4"),
            ("hub-er", &edge, "10.11.30.5", "10.11.30.4"),
            ("hub-vm", &er, "10.10.30.5", "10.10.30.4"),
            ("hub-vm", &vpn, "10.10.30.5", "10.10.30.4"),
            // 10.11.30.4 is in the spoke, which is peered with the hub; 10.11.30.68 is in the branch, to which the VPN
            // gateway leads.
            ("hub-vm", &er, "10.11.30.4", "10.10.30.4"),
            ("hub-vm", &er, "10.11.30.68", "10.10.30.4"),
            ("spoke-vm", &er, "10.11.30.5", "10.11.30.4"),
            ("spoke-vm", &vpn, "10.11.30.5", "10.11.30.4"),
            ("spoke-vm", &er, "10.10.30.4", "10.11.30.4"),
            ("spoke-vm", &er, "10.11.30.68", "10.11.30.4"),
            ("remote-vm", &remote, "10.17.30.5", "10.17.30.4"),
        ];
        for (at, from, source, to) in spoofed {
            let fate = fate(&w, &reports, at, Some(from), source, to, 60);
            assert_eq!(fate, "spoofed_source", "{prefixes}: {source} by {from} at {at}");
        }
        // Packets whose source is in no configured network, but in an announced prefix, are accepted from both gateways
        // (G24). Packets from a configured network are accepted from the gateway that leads to this network.
        for (at, from, source, to, expected) in [
            ("hub-vpn", &site, "10.9.0.1", "10.10.30.4", "hub-vm"),
            ("hub-er", &edge, "10.9.0.1", "10.10.30.4", "hub-vm -1"),
            ("hub-vm", &vpn, "10.9.0.1", "10.10.30.4", "deliver"),
            ("hub-vm", &er, "10.9.0.1", "10.10.30.4", "deliver"),
            ("spoke-vm", &er, "10.9.0.1", "10.11.30.4", "deliver"),
            ("hub-vm", &er, "10.2.30.10", "10.10.30.4", "deliver"),
            ("hub-vm", &vpn, "10.11.30.68", "10.10.30.4", "deliver"),
        ] {
            let fate = fate(&w, &reports, at, Some(from), source, to, 60);
            assert_eq!(fate, expected, "{prefixes}: {source} by {from} at {at}");
        }
    }
}
