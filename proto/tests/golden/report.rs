//! Records the reports of agents: status, installed tables, probes, routes.

use super::{agent, at, id, ip, net};
use std::collections::BTreeMap;
use tombolo_golden::{every_variant, golden};
use tombolo_proto::config::{Direction, ForeignSources};
use tombolo_proto::id::Revision;
use tombolo_proto::installed::{
    Installed, InstalledHop, InstalledKernel, InstalledLink, InstalledRoute, InstalledSubnet, InstalledTables,
    InstalledTransit, KernelRoute,
};
use tombolo_proto::probe::{Hop, ProbeKind, ProbeReport, ProbeRequest};
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_proto::status::{
    AgentStatus, BackEndHealth, BgpPeerState, BgpPeerStatus, Carrier, HealthVersion, LinkMeter, LinkState, LinkStatus,
    Meters, NeighbourRoutes, ProbeFailure, RefusedRoutes, RuleHits, Totals, TunnelUse, Volume,
};

fn route() -> Route {
    Route {
        prefix: net("10.9.0.0/16"),
        via: Some(agent("edge-primary")),
        as_path: vec![12_076, 65_021],
        weight: 10,
        origin: RouteOrigin::Site,
    }
}

#[test]
fn routes_that_agents_advertise() {
    let direct = Route {
        prefix: net("fd00:9::/48"),
        via: None,
        as_path: vec![],
        weight: 0,
        origin: RouteOrigin::Vnet,
    };
    golden!().cases("route", &[("full", route()), ("minimal", direct)]);
}

fn links() -> Vec<LinkStatus> {
    vec![
        LinkStatus {
            peer: agent("spoke-vm"),
            state: LinkState::Unreachable,
            reason: Some("no answer".into()),
            endpoint: Some(at("192.0.2.7:51820")),
            transport: Carrier::Quic,
            rtt_ms: Some(1.5),
            mtu: Some(1420),
            loss: Some(0.25),
            handshake_age: Some(12.5),
            rx_bytes: 1,
            tx_bytes: 2,
            rx_packets: 3,
            tx_packets: 4,
        },
        LinkStatus::new(agent("spoke-vm2")),
    ]
}

fn bgp() -> Vec<BgpPeerStatus> {
    let peer = |last_error| BgpPeerStatus {
        neighbour: id("connections/to-site"),
        address: ip("172.16.0.1"),
        local_address: ip("10.1.255.4"),
        asn: 65_021,
        state: BgpPeerState::Connected,
        since: 60.5,
        received: 5,
        sent: 6,
        last_error,
    };
    vec![peer(Some("hold timer expired".into())), peer(None)]
}

fn refused() -> Vec<RefusedRoutes> {
    let refused = |sender, detail| RefusedRoutes {
        sender,
        reason: "martian".into(),
        count: 7,
        example: net("127.0.0.0/8"),
        detail,
    };
    vec![
        refused(Some("site-gw".into()), Some("127.0.0.0/8 is a martian".into())),
        refused(None, None),
    ]
}

#[test]
fn agent_statuses() {
    let full = AgentStatus {
        applied: Revision(7),
        digest: "ab".into(),
        links: links(),
        drops: BTreeMap::from([("no_route".into(), 3)]),
        totals: Totals {
            tun_in: 1,
            tun_out: 2,
            link_in: 3,
            link_out: 4,
            replied: 5,
            dropped: 6,
        },
        down: vec![agent("branch-gw0")],
        learned: vec![NeighbourRoutes {
            neighbour: id("connections/to-site"),
            routes: vec![route()],
        }],
        bgp: bgp(),
        refused_routes: refused(),
        rule_hits: vec![RuleHits {
            nic: id("networkInterfaces/vm"),
            group: id("networkSecurityGroups/web"),
            direction: Direction::Inbound,
            rule: "securityRules/https".into(),
            packets: 3,
        }],
        health: health(),
        health_version: Some(HealthVersion { start: 1000, change: 3 }),
        tunnels: Some(TunnelUse {
            last_minute_bytes: 1_000_000,
        }),
        meters: Some(Meters {
            epoch: 1_700_000_000_000,
            links: vec![LinkMeter {
                peer: agent("hub-gw0"),
                volume: Volume {
                    rx_bytes: 1,
                    tx_bytes: 2,
                    rx_packets: 3,
                    tx_packets: 4,
                },
            }],
        }),
    };
    golden!().cases("agent_status", &[("full", full), ("minimal", AgentStatus::default())]);
}

/// A back end that is up, and one that is down for each reason.
fn health() -> Vec<BackEndHealth> {
    let failures = [
        ProbeFailure::NotProbed,
        ProbeFailure::Unaddressable,
        ProbeFailure::Timeout,
        ProbeFailure::Refused,
        ProbeFailure::Closed,
        ProbeFailure::Tls,
        ProbeFailure::Malformed,
        ProbeFailure::TooLong,
        ProbeFailure::Status(503),
        ProbeFailure::Other,
    ];
    every_variant!(
        ProbeFailure {
            NotProbed,
            Unaddressable,
            Timeout,
            Refused,
            Closed,
            Tls,
            Malformed,
            TooLong,
            Status,
            Other
        },
        &failures
    );
    let reasons = [None].into_iter().chain(failures.map(Some));
    let back_ends = reasons.map(|reason| BackEndHealth {
        probe: id("loadBalancers/lb/probes/probe"),
        address: "10.1.0.4".parse().unwrap(),
        up: reason.is_none(),
        reason,
    });
    back_ends.collect()
}

fn hops() -> Vec<InstalledHop> {
    let hops = vec![
        InstalledHop::Local {},
        InstalledHop::Peering {
            vnet: Some(id("virtualNetworks/spoke")),
        },
        InstalledHop::Peering { vnet: None },
        InstalledHop::Gateway {
            link: Some(agent("hub-gw0")),
            also: vec![agent("hub-gw1")],
        },
        InstalledHop::Gateway {
            link: None,
            also: vec![],
        },
        InstalledHop::Appliance {
            address: ip("10.1.0.9"),
            vnet: Some(id("virtualNetworks/hub")),
        },
        InstalledHop::Appliance {
            address: ip("10.1.0.9"),
            vnet: None,
        },
        InstalledHop::Internet {},
        InstalledHop::None {},
    ];
    every_variant!(
        InstalledHop {
            Local,
            Peering,
            Gateway,
            Appliance,
            Internet,
            None
        },
        &hops
    );
    hops
}

#[test]
fn installed_tables() {
    let routes = hops().into_iter().map(|hop| InstalledRoute {
        prefix: net("10.0.0.0/8"),
        hop,
    });
    let link = |except| InstalledLink {
        peer: agent("spoke-vm"),
        sources: vec![net("10.3.0.0/16")],
        except,
        foreign: ForeignSources::Any,
    };
    let transit = |link| InstalledTransit {
        prefix: net("10.2.0.0/16"),
        connection: id("connections/to-branch"),
        link,
    };
    let kernel = || InstalledKernel {
        device: "tl-hub-vm".into(),
        table: 0x746d_0001,
        default_table: 0x746e_0001,
        further_devices: BTreeMap::from([(net("10.0.0.0/8"), "tl-a-1".to_owned())]),
        routes: BTreeMap::from([
            (net("10.0.0.0/8"), KernelRoute::Device),
            (net("10.9.0.0/16"), KernelRoute::Throw),
            (net("172.16.0.0/30"), KernelRoute::Line),
        ]),
    };
    let full = Installed {
        revision: Revision(7),
        digest: "ab".into(),
        tables: Some(InstalledTables {
            subnets: vec![InstalledSubnet {
                id: id("virtualNetworks/hub/subnets/default"),
                routes: routes.collect(),
            }],
            transit: vec![transit(Some(agent("branch-gw0"))), transit(None)],
            denied: vec![net("10.4.0.0/16")],
            links: vec![link(vec![net("10.3.1.0/24")]), link(vec![])],
        }),
        kernel: kernel(),
    };
    let minimal = Installed {
        revision: Revision(0),
        digest: String::new(),
        tables: None,
        kernel: kernel(),
    };
    golden!().cases("installed", &[("full", full), ("minimal", minimal)]);
}

#[test]
fn probes() {
    let request = ProbeRequest {
        source: ip("10.1.0.4"),
        destination: ip("10.3.0.4"),
        kind: ProbeKind::Trace,
        count: 3,
        interval_ms: 1000,
        timeout_ms: 500,
        max_ttl: 30,
        port: None,
    };
    golden!().document("probe_request", &request);
    let connect = ProbeRequest {
        kind: ProbeKind::Connect,
        port: Some(443),
        ..request
    };
    golden!().document("connect_request", &connect);
    let full = ProbeReport {
        sent: 3,
        received: 2,
        rtts_ms: vec![1.5, 2.25],
        hops: vec![
            Hop {
                address: Some(ip("10.1.255.4")),
                rtts_ms: vec![0.5],
            },
            Hop {
                address: None,
                rtts_ms: vec![],
            },
        ],
        refused: 4,
        unreachable: 5,
        error: Some("no permission".into()),
    };
    let minimal = ProbeReport {
        sent: 0,
        received: 0,
        rtts_ms: vec![],
        hops: vec![],
        refused: 0,
        unreachable: 0,
        error: None,
    };
    golden!().cases("probe_report", &[("full", full), ("minimal", minimal)]);
}
