//! Compares answers of the local socket, status and metrics, with recorded ones.

use std::collections::BTreeMap;
use tombolo_agent::agent::AgentView;
use tombolo_agent::apply::learned::{Clash, Need};
use tombolo_agent::flow_log::FlowLogStats;
use tombolo_agent::site_probe::SiteProbeView;
use tombolo_agent::{metrics, status_text};
use tombolo_engine::link::AdvertisementStats;
use tombolo_golden::{every_variant, golden, metrics_of};
use tombolo_proto::config::Direction;
use tombolo_proto::id::{ResourceId, Revision};
use tombolo_proto::status::{
    AgentStatus, BackEndHealth, BgpPeerState, BgpPeerStatus, Carrier, HealthVersion, LinkState, LinkStatus,
    ProbeFailure, RefusedRoutes, RuleHits, Totals,
};

fn totals() -> Totals {
    Totals {
        tun_in: 1,
        tun_out: 2,
        link_in: 3,
        link_out: 4,
        replied: 5,
        dropped: 6,
    }
}

/// A status in which every metric has a sample: each list has an entry, and each option that a metric shows has a
/// value.
fn status() -> AgentStatus {
    AgentStatus {
        applied: Revision(7),
        digest: "ab".into(),
        links: vec![LinkStatus {
            peer: "spoke-vm".parse().unwrap(),
            state: LinkState::Up,
            reason: None,
            endpoint: None,
            transport: Carrier::Quic,
            rtt_ms: Some(1.5),
            mtu: Some(1420),
            loss: Some(0.25),
            handshake_age: Some(12.5),
            rx_bytes: 1,
            tx_bytes: 2,
            rx_packets: 3,
            tx_packets: 4,
        }],
        drops: BTreeMap::from([("no_route".into(), 3)]),
        totals: totals(),
        down: vec![],
        learned: vec![],
        health: [None, Some(ProbeFailure::Status(503))]
            .map(|reason| BackEndHealth {
                probe: ResourceId::new("/lb/probes/web"),
                address: "10.1.0.4".parse().unwrap(),
                up: reason.is_none(),
                reason,
            })
            .into(),
        health_version: Some(HealthVersion { start: 1000, change: 3 }),
        meters: None,
        tunnels: None,
        bgp: vec![BgpPeerStatus {
            neighbour: ResourceId::new("/connections/to-site"),
            address: "172.16.0.1".parse().unwrap(),
            local_address: "10.1.255.4".parse().unwrap(),
            asn: 65_021,
            state: BgpPeerState::Connected,
            since: 60.5,
            received: 5,
            sent: 6,
            last_error: None,
        }],
        refused_routes: vec![RefusedRoutes {
            sender: Some("site-gw".into()),
            reason: "martian".into(),
            count: 7,
            example: "127.0.0.0/8".parse().unwrap(),
            detail: None,
        }],
        rule_hits: vec![RuleHits {
            nic: ResourceId::new("/nic"),
            group: ResourceId::new("/web"),
            direction: Direction::Inbound,
            rule: "securityRules/https".into(),
            packets: 3,
        }],
    }
}

fn full() -> AgentView {
    AgentView {
        agent: "hub-vm".parse().unwrap(),
        controller: "https://192.0.2.1:8443".into(),
        connected: true,
        interface: "tl-hub-vm".into(),
        offload: true,
        last_apply_seconds: 0.5,
        configurations_received: 3,
        rejected: Some("mtu".into()),
        filter_problem: Some("no nft".into()),
        certificate_expiry: Some(1_800_000_000),
        tun_errors: 1,
        udp_errors: 2,
        adopted_connections: 4,
        replaced_choices: 6,
        udp_overflow: 3,
        flow_log: FlowLogStats {
            tuples: 12,
            lost: 13,
            not_written: 14,
            bytes: 15,
        },
        lanes: vec![totals()],
        route_advertisements: AdvertisementStats {
            received: 1,
            applied: 2,
            superseded: 3,
            refused: 4,
            malformed: 5,
        },
        health_statements: AdvertisementStats {
            received: 6,
            applied: 7,
            superseded: 8,
            refused: 9,
            malformed: 10,
        },
        health_entries_ignored: 11,
        table_rebuilds: 9,
        status: status(),
    }
}

#[test]
fn status_of_the_agent() {
    let minimal = AgentView {
        agent: "hub-vm".parse().unwrap(),
        controller: "https://192.0.2.1:8443".into(),
        connected: false,
        interface: "tl-hub-vm".into(),
        offload: false,
        last_apply_seconds: 0.0,
        configurations_received: 0,
        rejected: None,
        filter_problem: None,
        certificate_expiry: None,
        tun_errors: 0,
        udp_errors: 0,
        adopted_connections: 0,
        replaced_choices: 0,
        udp_overflow: 0,
        flow_log: FlowLogStats::default(),
        lanes: vec![],
        route_advertisements: AdvertisementStats::default(),
        health_statements: AdvertisementStats::default(),
        health_entries_ignored: 0,
        table_rebuilds: 0,
        status: AgentStatus::default(),
    };
    golden!().cases("agent_view", &[("full", full()), ("minimal", minimal)]);
}

#[test]
fn status_of_a_site_probe() {
    let view = SiteProbeView {
        agent: "office-probe".parse().unwrap(),
        controller: "https://192.0.2.1:8443".into(),
        connected: true,
        requests: 7,
    };
    golden!().cases("site_probe_view", &[("full", view.clone())]);
    assert_eq!(
        view.health().unwrap(),
        "connected; 7 requests for probes since the start"
    );
    assert!(
        view.describe().contains("office-probe (site probe)"),
        "{}",
        view.describe()
    );
    let away = SiteProbeView {
        connected: false,
        ..view
    };
    assert!(away.health().unwrap_err().to_string().contains("is not reached"));
}

#[test]
fn text_of_the_status_names_back_ends_and_why_they_are_down() {
    let text = status_text::describe(&full());
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let of_back_ends: Vec<String> = lines
        .iter()
        .filter(|words| words.starts_with(&["back", "end"]))
        .map(|words| words.join(" "))
        .collect();
    assert_eq!(
        of_back_ends,
        [
            "back end 10.1.0.4 up probe web",
            "back end 10.1.0.4 down probe web (the HTTP status of the response is 503, not 200)",
        ]
    );
}

#[test]
fn metrics_of_the_agent() {
    golden!().text("metrics.txt", &metrics_of(&metrics::text(&full())));
}

/// The label `reason` of the metric `tombolo_routes_refused` has these values for routes that are refused because of
/// this host, not because of their sender.
#[test]
fn reasons_of_the_host() {
    let network = || "192.0.2.0/24".parse().unwrap();
    let needs = [Need::Controller, Need::NameServer, Need::Endpoint, Need::Protected];
    every_variant!(
        Need {
            Controller,
            NameServer,
            Endpoint,
            Protected
        },
        &needs
    );
    let mut clashes = vec![Clash::Connected(network(), "eth0".into()), Clash::Default];
    clashes.extend(needs.map(|need| Clash::Needed(network(), need)));
    every_variant!(
        Clash {
            Connected,
            Needed,
            Default
        },
        &clashes
    );
    let names: Vec<&str> = clashes.iter().map(Clash::name).collect();
    golden!().written("host_reasons", &[("names", names)]);
}
