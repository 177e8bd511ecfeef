//! The texts of `explain` if a packet does not arrive because something is missing at a gateway, site or circuit. Each
//! text names what is missing, the rule and the remedy.

use crate::circuits::{connection_mut, gateway, lab, reports};
use crate::explain::stopped;
use crate::world::{World, agent, hub_and_spokes, id, ip, nets};
use std::sync::Arc;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::fabric::ExplainRequest;
use tombolo_proto::id::{AgentId, PublicKey};
use tombolo_topology::explain::{Explanation, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::resource::{ConnectionType, LocalNetworkGateway};

fn ask(w: &World, reports: &LearnedReports, from: &str, to: &str) -> Explanation {
    let question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap();
    explain(&w.topology, reports, &question).unwrap()
}

/// Adds a site without BGP that is connected to a gateway: its local network gateway `name`, and the connection
/// `to-{name}`.
pub(crate) fn plain_site(w: &mut World, name: &str, gateway: &str, prefix: &str) {
    let local = id("localNetworkGateways", name);
    let site = LocalNetworkGateway {
        envelope: World::envelope(local.clone(), "region1"),
        address: None,
        port: 51_820,
        public_key: Some(PublicKey([8; 32])),
        address_space: nets(prefix),
        bgp: None,
    };
    w.topology.local_gateways.insert(local.clone(), Arc::new(site));
    let connection = format!("to-{name}");
    crate::circuits::connection(w, &connection, ConnectionType::IPsec, gateway, local, "");
    connection_mut(w, &connection).enable_bgp = false;
}

/// G10: in a hub with gateways of both types, one of the two connection objects between hub and branch is deleted. The
/// answer of explain is about the VPN gateway, and names the connection object that is left.
#[test]
fn g10_in_a_hub_with_both_kinds_of_gateways() {
    let (mut w, reports) = (lab(), reports(false));
    w.topology.connections.remove(&id("connections", "branch-hub"));
    for (from, to) in [
        ("hub-vm", "branch-vm"),
        ("branch-vm", "hub-vm"),
        ("spoke-vm", "branch-vm"),
    ] {
        let words = [
            "hub-branch",
            "no counterpart",
            "create one from gateway branch-vpn to hub-vpn",
        ];
        stopped(&ask(&w, &reports, from, to), from, "route_none", "G10", &words);
    }
    // D7: if the only agent of the VPN gateway is revoked, explain's answer names this gateway, not the ExpressRoute
    // gateway.
    let mut w = lab();
    w.agent_mut("hub-vpn").revoked = true;
    let answer = ask(&w, &reports, "spoke-vm", "branch-vm");
    stopped(&answer, "spoke-vm", "no_gateway", "D7", &["hub-vpn", "revoked"]);
}

/// R14, E2: a user-defined route to `VirtualNetworkGateway` needs a VPN gateway. An ExpressRoute gateway is not enough.
/// The remedy for a VNet that has only an ExpressRoute gateway differs from the remedy for a VNet without any gateway.
#[test]
fn r14_a_user_route_needs_a_vpn_gateway() {
    let mut w = lab();
    w.routes("remote/workload", "10.99.0.0/16>gateway");
    let answer = ask(&w, &reports(false), "remote-vm", "10.99.0.1");
    let words = ["remote-er", "ExpressRoute", "E2", "delete the route"];
    stopped(&answer, "remote-vm", "no_gateway", "R14", &words);
    let mut w = World::default();
    w.vnet("x", "10.1.0.0/16", "s=10.1.0.0/24").vm("x-vm", "x/s=10.1.0.4");
    w.routes("x/s", "10.99.0.0/16>gateway");
    let answer = ask(&w, &LearnedReports::default(), "x-vm", "10.99.0.1");
    stopped(
        &answer,
        "x-vm",
        "no_gateway",
        "R14",
        &["x has none", "useRemoteGateways"],
    );
}

/// R6: a site's routes are withdrawn while its circuit and its tunnel are down. Then the site of an address is not
/// known, and explain's answer names the sites and circuits in which it could be.
#[test]
fn r6_a_site_whose_circuit_and_tunnel_are_down() {
    let (w, mut reports) = (lab(), reports(true));
    for learned in reports.learned.values_mut() {
        for (neighbour, routes) in learned {
            if neighbour.name() != "er2" {
                *routes = Arc::new(Vec::new());
            }
        }
    }
    let device = AgentId::of_site(&id("connections", "hub-loc1"));
    reports.down.entry(agent("hub-vpn")).or_default().insert(device);
    for from in ["hub-vm", "spoke-vm"] {
        let answer = ask(&w, &reports, from, "10.2.30.10");
        let words = [
            "the site loc1 (connection hub-loc1): its device does not answer",
            "the customer of the circuit er1: announces nothing",
            "the customer of the circuit er2: announces other networks",
            "bring its tunnel or line up",
        ];
        stopped(&answer, from, "route_none", "R6", &words);
        assert!(!answer.summary.contains("Tombolo"), "{}", answer.summary);
    }
    // If no gateway of the VNet is connected to a site or circuit, explain's answer names no site.
    let answer = ask(&hub_and_spokes(), &LearnedReports::default(), "a-vm", "192.168.9.9");
    let words = [
        "no virtual network and no site has 192.168.9.9",
        "local network gateway",
    ];
    stopped(&answer, "a-vm", "route_none", "R1", &words);
}

/// E7, E8: explain's answer names the circuit that leads to the address, and the change that would connect the sender's
/// VNet to this circuit.
#[test]
fn e7_e8_sites_behind_other_circuits() {
    let (mut w, reports) = (lab(), reports(false));
    let e7 = [
        "er2",
        "remote-er is not connected to",
        "create a connection of type ExpressRoute from remote-er to er2",
    ];
    stopped(
        &ask(&w, &reports, "remote-vm", "10.1.31.10"),
        "remote-vm",
        "route_none",
        "E7",
        &e7,
    );
    let e8 = ["er2", "branch is attached by VPN", "ExpressRoute gateway"];
    stopped(
        &ask(&w, &reports, "branch-vm", "10.1.31.10"),
        "branch-vm",
        "route_none",
        "E8",
        &e8,
    );
    for (from, to) in [("branch-vm", "remote-vm"), ("remote-vm", "branch-vm")] {
        let meet = [
            "meet in hub only",
            "one is attached by VPN and the other by a circuit",
            "create a peering",
        ];
        stopped(&ask(&w, &reports, from, to), from, "route_none", "E8", &meet);
    }
    Arc::make_mut(&mut w.topology.settings).circuit_vnet_to_vnet = false;
    let e6 = [
        "circuit er1",
        "does not join virtual networks",
        "circuitVnetToVnet=true",
    ];
    stopped(
        &ask(&w, &reports, "remote-vm", "hub-vm"),
        "remote-vm",
        "route_none",
        "E6",
        &e6,
    );
    // P20: if the spoke's peering resource lacks useRemoteGateways, explain's answer names this flag and the resource.
    w.half_mut("spoke", "hub").use_remote_gateways = false;
    let answer = ask(&w, &reports, "spoke-vm", "10.1.31.10");
    stopped(
        &answer,
        "spoke-vm",
        "route_none",
        "P20",
        &["useRemoteGateways on to-hub of spoke"],
    );
}

/// G19: the source's VNet and the target (a VNet or a site) are joined by a chain of gateways, but some connections of
/// the chain do not use BGP. The answer of explain names the connection objects that lack it.
#[test]
fn g19_the_connections_without_bgp_are_named() {
    let (mut w, reports) = (lab(), reports(false));
    w.vnet("far", "10.12.0.0/16", "s=10.12.0.0/24 GatewaySubnet=10.12.255.0/27")
        .vm("far-vm", "far/s=10.12.0.4");
    gateway(
        &mut w,
        "far-vpn",
        "far",
        GatewayKind::Vpn,
        65_020,
        "10.12.255.4",
        "10.12.255.30",
    );
    let gw = |name: &str| id("virtualNetworkGateways", name);
    for (name, from, to) in [
        ("far-branch", "far-vpn", "branch-vpn"),
        ("branch-far", "branch-vpn", "far-vpn"),
    ] {
        crate::circuits::connection(&mut w, name, ConnectionType::Vnet2Vnet, from, gw(to), "");
    }
    plain_site(&mut w, "loc3", "hub-vpn", "10.3.30.0/24");
    for to in ["hub-vm", "10.2.30.10", "10.3.30.10"] {
        assert!(ask(&w, &reports, "far-vm", to).reachable, "{to}");
    }
    connection_mut(&mut w, "hub-branch").enable_bgp = false;
    let answer = ask(&w, &reports, "far-vm", "hub-vm");
    stopped(
        &answer,
        "far-vm",
        "route_none",
        "G19",
        &["use BGP at both ends", "set enableBgp on hub-branch"],
    );
    for (from, to) in [("far-vm", "10.2.30.10"), ("branch-vm", "10.3.30.10")] {
        let site = if to == "10.3.30.10" {
            "the site loc3"
        } else {
            "the site loc1"
        };
        stopped(
            &ask(&w, &reports, from, to),
            from,
            "route_none",
            "G19",
            &[site, "set enableBgp on hub-branch"],
        );
    }
    // G4: if the gateways at both ends of a connection have the same ASN, explain's answer says so.
    connection_mut(&mut w, "hub-branch").enable_bgp = true;
    let branch = w.topology.gateways.get_mut(&gw("branch-vpn")).unwrap();
    Arc::make_mut(branch).asn = 65_515;
    for to in ["hub-vm", "10.2.30.10"] {
        let words = ["both have ASN 65515", "another ASN"];
        stopped(
            &ask(&w, &reports, "branch-vm", to),
            "branch-vm",
            "route_none",
            "G4",
            &words,
        );
    }
}

/// G9, R3, G11, D16: explain's answer says so if the destination is in a site that has no connection, that has no
/// connection to a gateway of the sender's VNet, or whose connection lacks a key.
#[test]
fn g9_sites_that_are_not_joined() {
    let (mut w, reports) = (lab(), reports(false));
    plain_site(&mut w, "loc3", "branch-vpn", "10.3.30.0/24");
    let answer = ask(&w, &reports, "remote-vm", "10.3.30.10");
    stopped(
        &answer,
        "remote-vm",
        "route_none",
        "R3",
        &["the site loc3", "uses no VPN gateway", "branch-vpn"],
    );
    let site = w
        .topology
        .local_gateways
        .get_mut(&id("localNetworkGateways", "loc3"))
        .unwrap();
    Arc::make_mut(site).public_key = None;
    let answer = ask(&w, &reports, "branch-vm", "10.3.30.10");
    stopped(
        &answer,
        "branch-vpn",
        "no_gateway",
        "D16",
        &["wireGuardPublicKey", "--public-key"],
    );
    connection_mut(&mut w, "to-loc3").shared_key = None;
    let answer = ask(&w, &reports, "branch-vm", "10.3.30.10");
    stopped(
        &answer,
        "branch-vpn",
        "no_gateway",
        "G11",
        &["no shared key", "the site's device"],
    );
    w.topology.connections.remove(&id("connections", "to-loc3"));
    let answer = ask(&w, &reports, "branch-vm", "10.3.30.10");
    stopped(
        &answer,
        "branch-vm",
        "route_none",
        "G9",
        &["loc3", "no connection joins", "of type IPsec"],
    );
    // R15: if the gateway has the route, but the sender's subnet does not accept gateway routes, explain's answer says
    // so.
    w.routes("hub/workload", "10.77.0.0/16>none");
    w.table_mut("hub/workload").disable_bgp_route_propagation = true;
    let answer = ask(&w, &reports, "hub-vm", "10.2.30.10");
    stopped(
        &answer,
        "hub-vm",
        "route_none",
        "R15",
        &["disableBgpRoutePropagation of the route table"],
    );
}

/// D9: a spoke routes packets for a VNet that is only peered with the hub to the hub's gateway, which drops them. The
/// answer of explain names the flags that would let the destination's VNet use the gateway.
#[test]
fn d9_the_flags_that_a_gateways_relay_needs_are_named() {
    let mut w = hub_and_spokes();
    w.vnet("plain", "10.5.0.0/16", "s=10.5.0.0/24")
        .vm("plain-vm", "plain/s=10.5.0.4");
    w.peer("hub", "a", "plain", "a");
    w.routes("spoke-a/workload", "10.5.0.0/16>gateway");
    let answer = ask(&w, &LearnedReports::default(), "a-vm", "plain-vm");
    let words = [
        "never a plain peering",
        "allowGatewayTransit on to-plain of hub, then useRemoteGateways on to-hub of plain",
    ];
    stopped(&answer, "hub-gw", "transit_not_allowed", "D9", &words);
    assert_eq!(answer.destination, ip("10.5.0.4"));
}
