//! The view from a site (M10): where its packets enter the agents' network, what a trace from there shows, and what stops
//! them. A probe changes no configuration.

use crate::circuits::{connection_mut, lab, reports};
use crate::explain::stopped;
use crate::outside::plain_site;
use crate::world::{World, agent, hub_and_spokes, id, ip};
use serde_json::json;
use std::sync::Arc;
use tombolo_proto::fabric::{CheckRequest, Protocol};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::probe::{Hop, ProbeReport};
use tombolo_proto::route::Route;
use tombolo_topology::compile::Compiler;
use tombolo_topology::connectivity::{Connectivity, Expected, HopKind, IssueKind, Observed};
use tombolo_topology::explain::{Explanation, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::resource::{Binding, SiteBgp};
use tombolo_topology::topology::AgentStatuses;

fn circuit(name: &str) -> ResourceId {
    id("expressRouteCircuits", name)
}

fn local_gateway(name: &str) -> ResourceId {
    id("localNetworkGateways", name)
}

fn probe(w: &mut World, name: &str, attachments: Vec<ResourceId>, address: &str) {
    let address = ip(address);
    w.bind(name, Binding::Site { attachments, address });
}

/// The published lab with a probe in each of its two locations. Location 1 prefers its circuit.
fn published() -> World {
    let mut w = lab();
    probe(
        &mut w,
        "loc1-vm",
        vec![circuit("er1"), local_gateway("loc1")],
        "10.2.30.10",
    );
    probe(&mut w, "loc2-vm", vec![circuit("er2")], "10.1.31.10");
    w
}

/// The demo with a site without BGP at the hub's gateway, and a probe in it.
fn office() -> World {
    let mut w = hub_and_spokes();
    plain_site(&mut w, "office", "hub-gw", "192.168.7.0/24");
    probe(&mut w, "office-probe", vec![local_gateway("office")], "192.168.7.10");
    w
}

fn ask(w: &World, reports: &LearnedReports, from: &str, to: &str) -> Explanation {
    let question = serde_json::from_value(json!({"from": from, "to": to})).unwrap();
    let answer = explain(&w.topology, reports, &question).unwrap();
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(
        serde_json::from_str::<Explanation>(&text).unwrap(),
        answer,
        "survives JSON"
    );
    answer
}

/// The output of traceroute behind the site's own routers: the address of each hop, `*` for silent hops; `no answer` if the
/// destination is not reachable.
fn seen(w: &World, reports: &LearnedReports, from: &str, to: &str) -> String {
    let answer = ask(w, reports, from, to);
    if !answer.reachable {
        return "no answer".to_owned();
    }
    let hops: Vec<String> = answer
        .trace
        .iter()
        .map(|hop| hop.address.map_or("*".to_owned(), |a| a.to_string()))
        .collect();
    hops.join(" ")
}

/// M10: the rows of the published table from both locations, as far as agents are on the path; in the steady state, and after
/// location 1 has lost its circuit. The edge answers the customer from its address on the line, and consumes a TTL in its
/// kernel (D23); VPN gateways consume none of a site's packets with the lab's setting (T6).
#[test]
fn m10_the_published_table_from_the_sites() {
    let w = published();
    let steady = [
        ("loc1-vm", "hub-vm", "192.168.30.18 * 10.10.30.4"),
        ("loc1-vm", "spoke-vm", "192.168.30.18 * 10.11.30.4"),
        ("loc1-vm", "branch-vm", "10.11.30.68"),
        ("loc1-vm", "loc2-vm", "no answer"),
        ("loc1-vm", "remote-vm", "192.168.30.18 * 10.17.30.4"),
        ("loc2-vm", "hub-vm", "192.168.31.18 * 10.10.30.4"),
        ("loc2-vm", "spoke-vm", "192.168.31.18 * 10.11.30.4"),
        ("loc2-vm", "branch-vm", "no answer"),
        ("loc2-vm", "loc1-vm", "no answer"),
        ("loc2-vm", "remote-vm", "no answer"),
    ];
    let after = [
        ("loc1-vm", "hub-vm", "10.10.30.4"),
        ("loc1-vm", "spoke-vm", "10.11.30.4"),
        ("loc1-vm", "branch-vm", "10.11.30.68"),
        ("loc1-vm", "remote-vm", "no answer"),
        ("loc1-vm", "loc2-vm", "no answer"),
    ];
    for (cut, rows) in [(false, &steady[..]), (true, &after)] {
        for (from, to, expected) in rows {
            assert_eq!(
                seen(&w, &reports(cut), from, to),
                *expected,
                "{from} → {to}, cut: {cut}"
            );
        }
    }
    // Without the lab's setting, the VPN gateway is a silent hop for packets of the site.
    let mut silent = published();
    silent.topology.settings = Default::default();
    assert_eq!(seen(&silent, &reports(true), "loc1-vm", "hub-vm"), "* 10.10.30.4");
}

/// M10: the walk begins in the site, and the site's preference decides between equal prefixes.
#[test]
fn m10_the_preferred_attachment_carries_the_packet() {
    let mut w = published();
    let way = |w: &World| -> Vec<String> {
        let answer = ask(w, &reports(false), "loc1-vm", "hub-vm");
        answer.request.hops.iter().map(|hop| hop.agent.to_string()).collect()
    };
    assert_eq!(way(&w), ["loc1-vm", "er1-1", "hub-er", "hub-vm"]);
    let answer = ask(&w, &reports(false), "loc1-vm", "hub-vm");
    let first = &answer.request.hops[0];
    assert_eq!(
        (&first.vnet, first.relation.as_deref()),
        (&circuit("er1"), Some("edge"))
    );
    assert_eq!(
        first.route.as_ref().unwrap().address_prefix.to_string(),
        "10.10.30.0/24"
    );
    w.agent_mut("loc1-vm").binding = Binding::Site {
        attachments: vec![local_gateway("loc1"), circuit("er1")],
        address: ip("10.2.30.10"),
    };
    assert_eq!(way(&w), ["loc1-vm", "hub-vpn", "hub-vm"]);
}

/// M10: the probe has the names of its agent, of its address, and of what attaches its site; as a destination too.
#[test]
fn m10_a_site_is_found_by_its_names() {
    let w = office();
    let reports = LearnedReports::default();
    let whole = local_gateway("office").to_string();
    for name in ["office-probe", "office", "192.168.7.10", &whole] {
        let there = ask(&w, &reports, name, "a-vm");
        assert!(
            there.reachable && there.source == ip("192.168.7.10"),
            "{name}: {there:#?}"
        );
    }
    for name in ["office-probe", "office", &whole] {
        let back = ask(&w, &reports, "a-vm", name);
        assert!(
            back.reachable && back.destination == ip("192.168.7.10"),
            "{name}: {back:#?}"
        );
    }
    // A revoked probe sends nothing.
    let mut w = office();
    w.agent_mut("office-probe").revoked = true;
    let answer = ask(&w, &reports, "office-probe", "a-vm");
    stopped(&answer, "office-probe", "no_configuration", "D7", &["revoked"]);
}

/// M10: what keeps a site from a network is named, with what to change.
#[test]
fn m10_what_the_site_lacks_is_named() {
    let none = LearnedReports::default();
    let at = "office-probe";
    // P20: the spoke may not use the hub's gateway.
    let mut w = office();
    w.half_mut("spoke-a", "hub").use_remote_gateways = false;
    let words = [
        "the gateway of hub leads to the site office",
        "useRemoteGateways on to-hub of spoke-a",
    ];
    stopped(&ask(&w, &none, at, "a-vm"), at, "no_route", "P20", &words);
    // The other spoke is not affected.
    assert_eq!(seen(&w, &none, at, "b-vm"), "* 10.3.0.4");
    // A VNet that no gateway of the site leads to, an address nowhere, and one in the site itself.
    let mut w = office();
    w.vnet("lone", "10.77.0.0/16", "s=10.77.0.0/24")
        .vm("lone-vm", "lone/s=10.77.0.4");
    let words = [
        "10.77.0.4 is in lone",
        "nothing that attaches the site office advertises a route",
    ];
    stopped(&ask(&w, &none, at, "lone-vm"), at, "no_route", "M10", &words);
    stopped(
        &ask(&w, &none, at, "10.99.0.1"),
        at,
        "no_route",
        "M10",
        &["no virtual network has 10.99.0.1"],
    );
    stopped(
        &ask(&w, &none, at, "192.168.7.1"),
        at,
        "no_route",
        "M10",
        &["inside the site office itself"],
    );
    // G9, G11, D7, R6: the attachment itself is missing, incomplete or down.
    let mut w = office();
    connection_mut(&mut w, "to-office").shared_key = None;
    stopped(
        &ask(&w, &none, at, "hub-vm"),
        at,
        "no_route",
        "G11",
        &["to-office has no shared key"],
    );
    w.topology.connections.remove(&id("connections", "to-office"));
    stopped(
        &ask(&w, &none, at, "hub-vm"),
        at,
        "no_route",
        "G9",
        &["no connection joins the site office"],
    );
    let mut w = office();
    w.agent_mut("hub-gw").revoked = true;
    stopped(
        &ask(&w, &none, at, "hub-vm"),
        at,
        "no_route",
        "D7",
        &["hub-gw", "revoked"],
    );
    let w = office();
    let mut down = LearnedReports::default();
    let device = AgentId::of_site(&id("connections", "to-office"));
    down.down.entry(agent("hub-gw")).or_default().insert(device);
    stopped(
        &ask(&w, &down, at, "hub-vm"),
        at,
        "no_route",
        "R6",
        &["does not answer over the connection to-office"],
    );
    // R6: the sessions with location 2 are down, so nothing is advertised to it.
    let mut quiet = reports(false);
    quiet.learned.retain(|edge, _| !edge.as_str().starts_with("er2"));
    let words = ["announces nothing over the circuit er2"];
    stopped(
        &ask(&published(), &quiet, "loc2-vm", "hub-vm"),
        "loc2-vm",
        "no_route",
        "R6",
        &words,
    );
}

/// M10, D16: the gateway accepts only the site's prefixes, and the finding names them.
#[test]
fn m10_an_address_outside_of_the_prefixes_is_refused_at_the_gateway() {
    let mut w = office();
    probe(&mut w, "stray", vec![local_gateway("office")], "192.168.8.10");
    let words = [
        "accepts from the site of to-office only its prefixes",
        "192.168.8.10",
        "announce the prefix",
    ];
    stopped(
        &ask(&w, &LearnedReports::default(), "stray", "hub-vm"),
        "hub-gw",
        "spoofed_source",
        "D16",
        &words,
    );
    let mut w = published();
    probe(&mut w, "stray", vec![circuit("er1")], "10.99.30.10");
    let answer = ask(&w, &reports(false), "stray", "hub-vm");
    stopped(
        &answer,
        "er1-1",
        "spoofed_source",
        "D10",
        &["prefixes that the customer's router announces"],
    );
}

/// M10: a probe gets no configuration, and no configuration of another agent changes with it.
#[test]
fn m10_a_probe_is_in_no_configuration() {
    let without = lab();
    let with = published();
    assert_eq!(with.changed_since(&without), Vec::<String>::new());
    let compiler = Compiler::new(&with.topology);
    for probe in ["loc1-vm", "loc2-vm"] {
        assert!(compiler.compile(&agent(probe)).is_none() && !compiler.relays(&agent(probe)));
    }
    // What a probe's host could report counts for nothing, because the controller takes no report of it.
    assert_eq!(
        seen(&with, &reports(false), "hub-vm", "spoke-vm"),
        seen(&without, &reports(false), "hub-vm", "spoke-vm")
    );
}

/// A check with ICMP from location 1 to the hub, in which the probe has seen these hops.
fn judged(w: &World, to: &str, arrived: bool, hops: &[Option<&str>]) -> Connectivity {
    judge(w, &reports(false), to, arrived, hops)
}

fn judge(w: &World, reports: &LearnedReports, to: &str, arrived: bool, hops: &[Option<&str>]) -> Connectivity {
    let question = CheckRequest {
        from: "loc1-vm".into(),
        to: to.into(),
        protocol: Protocol::Icmp,
        port: None,
    };
    let expected = Expected::of(&w.topology, reports, &question).unwrap();
    let hop = |address: &Option<&str>| Hop {
        address: address.map(ip),
        rtts_ms: address.iter().map(|_| 2.0).collect(),
    };
    let probe = ProbeReport {
        sent: 10,
        received: if arrived { 10 } else { 0 },
        rtts_ms: if arrived { vec![2.0] } else { Vec::new() },
        ..ProbeReport::default()
    };
    let trace = ProbeReport {
        hops: hops.iter().map(hop).collect(),
        ..ProbeReport::default()
    };
    let observed = Observed {
        probe: &probe,
        trace: Some(&trace),
    };
    let statuses = AgentStatuses {
        connected: w.topology.agents.keys().cloned().collect(),
        ..AgentStatuses::default()
    };
    expected.judge(&w.topology, &statuses, observed)
}

fn kinds(judged: &Connectivity) -> Vec<HopKind> {
    judged.information.hops.iter().map(|hop| hop.kind).collect()
}

fn issues(judged: &Connectivity) -> Vec<(usize, IssueKind)> {
    let hops = judged.information.hops.iter().enumerate();
    hops.flat_map(|(n, hop)| hop.issues.iter().map(move |issue| (n, issue.kind)))
        .collect()
}

/// M10, M5: the routers of the site come first and have no resource; what follows is compared with `explain`. Either line of
/// a circuit may carry a probe.
#[test]
fn m10_hops_behind_the_sites_routers_are_compared() {
    let w = published();
    let (lan, ce) = (Some("10.2.30.3"), Some("192.168.30.0"));
    let good = [lan, ce, Some("192.168.30.18"), None, Some("10.10.30.4")];
    let working = judged(&w, "hub-vm", true, &good);
    use HopKind::{ExpressRouteCircuit, Internet, Source, VirtualNetworkGateway, VnetLocal};
    let path = [
        Source,
        Internet,
        Internet,
        ExpressRouteCircuit,
        VirtualNetworkGateway,
        VnetLocal,
    ];
    assert_eq!(kinds(&working), path, "{working:#?}");
    assert_eq!((working.difference, issues(&working)), (None, vec![]), "{working:#?}");
    let hops = &working.information.hops;
    assert_eq!(hops[0].resource_id.as_ref(), Some(&circuit("er1")));
    assert_eq!((&hops[1].resource_id, &hops[2].resource_id), (&None, &None));
    assert_eq!(hops[3].resource_id.as_ref(), Some(&circuit("er1")));
    // A silent router of the site moves nothing.
    let silent = judged(
        &w,
        "hub-vm",
        true,
        &[None, ce, Some("192.168.30.18"), None, Some("10.10.30.4")],
    );
    assert_eq!((silent.difference, issues(&silent)), (None, vec![]), "{silent:#?}");
    // The other line of the circuit is no difference.
    let other = judged(
        &w,
        "hub-vm",
        true,
        &[lan, ce, Some("192.168.30.22"), None, Some("10.10.30.4")],
    );
    assert_eq!(other.difference, None, "{other:#?}");
    // A stranger where the edge should answer is one, with its TTL as the trace counts.
    let stranger = judged(
        &w,
        "hub-vm",
        true,
        &[lan, ce, Some("203.0.113.9"), None, Some("10.10.30.4")],
    );
    let difference = stranger.difference.unwrap();
    assert_eq!(
        (difference.ttl, difference.observed),
        (3, Some(ip("203.0.113.9"))),
        "{stranger:#?}"
    );
    assert_eq!(issues(&stranger), [(3, IssueKind::Platform)]);
    // The packets end behind the edge: the machine is silent although explain expects its answer.
    let lost = judged(&w, "hub-vm", false, &[lan, ce, Some("192.168.30.18"), None, None, None]);
    assert_eq!(lost.difference.map(|d| d.ttl), Some(5), "{lost:#?}");
    assert_eq!(issues(&lost), [(5, IssueKind::GuestFirewall)]);
    // The packets end in the site: nothing of the agents' network answers.
    let inside = judged(&w, "hub-vm", false, &[lan, None, None, None]);
    let difference = inside.difference.unwrap();
    assert_eq!(
        (difference.ttl, difference.expected),
        (2, Some(ip("192.168.30.18"))),
        "{inside:#?}"
    );
}

/// M10: on the way from one site to another, the routers at both ends are not known, and the gateway between them is.
#[test]
fn m10_a_path_between_two_sites_has_unknown_ends() {
    let mut w = published();
    // With this setting the VPN gateway is a hop for packets of a site, and silent (T6).
    w.topology.settings = Default::default();
    plain_site(&mut w, "loc3", "hub-vpn", "");
    let site = w.topology.local_gateways.get_mut(&local_gateway("loc3")).unwrap();
    Arc::make_mut(site).bgp = Some(SiteBgp {
        asn: 65_033,
        address: ip("10.3.30.125"),
    });
    connection_mut(&mut w, "to-loc3").enable_bgp = true;
    probe(&mut w, "loc3-vm", vec![local_gateway("loc3")], "10.3.30.10");
    let mut reports = reports(false);
    let announced = reports.learned[&agent("hub-vpn")][&id("connections", "hub-loc1")][0].clone();
    let route = Route {
        prefix: "10.3.30.0/25".parse().unwrap(),
        as_path: vec![65_033],
        ..announced
    };
    let learned = reports.learned.get_mut(&agent("hub-vpn")).unwrap();
    learned.insert(id("connections", "to-loc3"), Arc::new(vec![route]));
    let answer = ask(&w, &reports, "loc1-vm", "loc3-vm");
    assert!(answer.reachable, "{answer:#?}");
    let way: Vec<&str> = answer.request.hops.iter().map(|hop| hop.agent.as_str()).collect();
    assert_eq!(way, ["loc1-vm", "hub-vpn"]);
    let hops = [
        Some("10.2.30.3"),
        Some("192.168.30.0"),
        None,
        Some("10.3.30.125"),
        None,
        Some("10.3.30.10"),
    ];
    let judged = judge(&w, &reports, "loc3-vm", true, &hops);
    use HopKind::{Destination, Internet, Source, VirtualNetworkGateway};
    let path = [Source, Internet, Internet, VirtualNetworkGateway, Internet, Destination];
    assert_eq!(kinds(&judged), path, "{judged:#?}");
    assert_eq!((judged.difference, issues(&judged)), (None, vec![]), "{judged:#?}");
}

/// M10, M5: where the site has no route, or a rule denies the packet, the issue says so, and the site's own answers are no
/// difference.
#[test]
fn m10_issues_of_a_site_are_named() {
    let w = published();
    let lost = judged(
        &w,
        "loc2-vm",
        false,
        &[Some("10.2.30.3"), Some("192.168.30.0"), None, None],
    );
    assert_eq!(
        (lost.difference, issues(&lost)),
        (None, vec![(0, IssueKind::UserDefinedRoute)]),
        "{lost:#?}"
    );
    let mut w = published();
    w.group("web", &["no-site 200 in deny * 10.2.30.0/25 * *"])
        .secure_nic("hub-vm-nic", "web");
    let hops = [
        Some("10.2.30.3"),
        Some("192.168.30.0"),
        Some("192.168.30.18"),
        None,
        None,
    ];
    let denied = judged(&w, "hub-vm", false, &hops);
    let last = denied.information.hops.len() - 1;
    assert_eq!(issues(&denied), [(last, IssueKind::NetworkSecurityRule)], "{denied:#?}");
    assert_eq!(denied.difference, None, "{denied:#?}");
}
