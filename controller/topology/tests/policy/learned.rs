//! A site's announcements do not permit it to send from other networks' addresses (D10, G22, G24). This holds wherever
//! its routes are learned: at the gateway, at VMs of the hub and its spokes, behind another gateway.

use crate::circuits::{fate, lab, reports};
use crate::world::{agent, id, nets};
use std::sync::Arc;
use tombolo_proto::id::AgentId;
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_topology::learned_routes::LearnedReports;

/// Location 1 and the customer of circuit 1 announce these prefixes too.
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

/// The spoofed sources: of the receiver's own VNet, of a peered one, and behind another connection.
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
            // The spoke is peered; the branch is behind the VPN gateway.
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
        // Sources of no other network are accepted (G24) from either gateway, and so are configured ones.
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
