//! Recorded answers of the fabric API to the requests `explain`, `check` and `device-config`.

use super::{documents, id, ip, net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_golden::{all_of, every_variant, golden};
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::fabric::{DeviceBgp, DeviceConfig, DeviceTunnel, Protocol};
use tombolo_proto::id::{AgentId, PresharedKey, PublicKey};
use tombolo_proto::route::RouteSource;
use tombolo_topology::connectivity::{
    ConnectionStatus, Connectivity, ConnectivityHop, ConnectivityInformation, ContextEntry, Difference, HopKind,
    HopLink, HopLinkProperties, Issue, IssueKind, Origin, Severity,
};
use tombolo_topology::device;
use tombolo_topology::explain::{
    BandwidthLimit, DecidingRule, Explanation, GroupCheck, Hop, Ingress, MatchedAddresses, MatchedRoute, OtherRule,
    RuleField, SecurityCheck, Stop, TraceHop, Walk,
};

fn agent(name: &str) -> AgentId {
    name.parse().unwrap()
}

#[test]
fn protocols() {
    golden!().document("protocol", &all_of!(Protocol { Icmp, Tcp, Udp }));
}

fn hops() -> Vec<Hop> {
    let ingresses = [Ingress::Device {}, Ingress::Link { from: agent("vm-a") }];
    every_variant!(Ingress { Device, Link }, &ingresses);
    let [device, link] = ingresses;
    let route = |name: Option<String>| MatchedRoute {
        name,
        source: RouteSource::User,
        address_prefix: net("10.0.0.0/8"),
        next_hop_type: "VirtualAppliance".into(),
        next_hop_ip_address: vec![ip("10.1.0.9")],
    };
    golden!().cases(
        "matched_route",
        &[("full", route(Some("r".into()))), ("minimal", route(None))],
    );
    vec![
        Hop {
            agent: agent("vm-a"),
            vnet: id("virtualNetworks/Hub"),
            ingress: device,
            ttl: 64,
            subnet: Some(id("virtualNetworks/Hub/subnets/default")),
            route: Some(route(Some("r".into()))),
            security: None,
            bandwidth: Some(BandwidthLimit {
                resource: id("networkInterfaces/vm-a"),
                mbps: 50,
            }),
            verdict: "sends it on".into(),
            next: Some(agent("vm-b")),
            relation: Some("peering".into()),
        },
        Hop {
            agent: agent("vm-b"),
            vnet: id("virtualNetworks/Spoke1"),
            ingress: link,
            ttl: 64,
            subnet: None,
            route: None,
            security: None,
            bandwidth: None,
            verdict: "delivers it".into(),
            next: None,
            relation: None,
        },
    ]
}

#[test]
fn explanations() {
    let stop = |resource, rule: Option<&str>| Stop {
        agent: agent("vm-b"),
        reason: "access_denied".into(),
        resource,
        rule: rule.map(Into::into),
        text: "text".into(),
        cause: "cause".into(),
        remedy: "remedy".into(),
    };
    let explanation = |request, reply, trace| Explanation {
        source: ip("10.1.0.4"),
        destination: ip("10.3.0.4"),
        protocol: Protocol::Udp,
        reachable: true,
        summary: "summary".into(),
        request,
        reply,
        trace,
    };
    let full = explanation(
        Walk {
            delivered: true,
            hops: hops(),
            stop: None,
        },
        Some(Walk {
            delivered: false,
            hops: vec![],
            stop: Some(stop(
                Some(id("virtualNetworks/Hub/virtualNetworkPeerings/to-1")),
                Some("P17"),
            )),
        }),
        vec![
            TraceHop {
                ttl: 1,
                agent: agent("vm-b"),
                address: Some(ip("10.3.0.4")),
            },
            TraceHop {
                ttl: 2,
                agent: agent("vm-b"),
                address: None,
            },
        ],
    );
    let minimal = explanation(
        Walk {
            delivered: false,
            hops: vec![],
            stop: Some(stop(None, None)),
        },
        None,
        vec![],
    );
    golden!().cases("explanation", &[("full", full), ("minimal", minimal)]);
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConnectivityWords {
    status: Vec<ConnectionStatus>,
    hop_kind: Vec<HopKind>,
    origin: Vec<Origin>,
    severity: Vec<Severity>,
    issue_kind: Vec<IssueKind>,
}

#[test]
fn words_of_connectivity_checks() {
    let words = ConnectivityWords {
        status: all_of!(ConnectionStatus {
            Reachable,
            Unreachable,
            Unknown
        }),
        hop_kind: all_of!(HopKind {
            Source,
            VirtualAppliance,
            VnetLocal,
            VirtualNetworkGateway,
            ExpressRouteCircuit,
            Internet,
            Destination
        }),
        origin: all_of!(Origin {
            Local,
            Inbound,
            Outbound
        }),
        severity: all_of!(Severity { Error, Warning }),
        issue_kind: all_of!(IssueKind {
            NetworkSecurityRule,
            UserDefinedRoute,
            GuestFirewall,
            AgentStopped,
            SocketBind,
            Platform,
            Unknown
        }),
    };
    golden!().document("connectivity_words", &words);
}

#[test]
fn connectivity_checks() {
    let issue = Issue {
        origin: Origin::Inbound,
        severity: Severity::Error,
        kind: IssueKind::NetworkSecurityRule,
        context: vec![ContextEntry {
            key: "RuleName".into(),
            value: "UserRule_web".into(),
        }],
    };
    let link = |properties| HopLink {
        next_hop_id: "hop-1".into(),
        link_type: Some("VNetPeering".into()),
        issues: vec![],
        context: BTreeMap::new(),
        resource_id: Some(id("networkInterfaces/N/ipConfigurations/one")),
        properties,
    };
    let measured = HopLinkProperties {
        round_trip_time_min: Some(1),
        round_trip_time_avg: Some(2),
        round_trip_time_max: Some(3),
    };
    let hop = |links, issues| ConnectivityHop {
        kind: HopKind::VnetLocal,
        id: "hop-0".into(),
        address: Some(ip("10.1.0.4")),
        resource_id: Some(id("networkInterfaces/N/ipConfigurations/one")),
        next_hop_ids: vec!["hop-1".into()],
        previous_hop_ids: vec![],
        links,
        previous_links: vec![],
        issues,
    };
    let full = Connectivity {
        source: ip("10.1.0.4"),
        destination: ip("10.3.0.4"),
        protocol: Protocol::Tcp,
        port: Some(443),
        explained: true,
        summary: "summary".into(),
        difference: Some(Difference {
            ttl: 1,
            expected: Some(ip("10.3.0.4")),
            observed: None,
        }),
        information: ConnectivityInformation {
            connection_status: ConnectionStatus::Reachable,
            avg_latency_in_ms: Some(2),
            min_latency_in_ms: Some(1),
            max_latency_in_ms: Some(3),
            probes_sent: 10,
            probes_failed: 1,
            hops: vec![hop(vec![link(measured)], vec![issue])],
        },
    };
    let minimal = Connectivity {
        protocol: Protocol::Icmp,
        port: None,
        difference: None,
        information: ConnectivityInformation {
            connection_status: ConnectionStatus::Unreachable,
            avg_latency_in_ms: None,
            min_latency_in_ms: None,
            max_latency_in_ms: None,
            probes_sent: 10,
            probes_failed: 10,
            hops: vec![ConnectivityHop {
                address: None,
                resource_id: None,
                next_hop_ids: vec![],
                ..hop(
                    vec![HopLink {
                        link_type: None,
                        resource_id: None,
                        ..link(HopLinkProperties::default())
                    }],
                    vec![],
                )
            }],
        },
        ..full.clone()
    };
    golden!().cases("connectivity", &[("full", full), ("minimal", minimal)]);
}

#[test]
fn security_checks() {
    let fields = vec![
        RuleField::Protocol,
        RuleField::Source,
        RuleField::SourcePort,
        RuleField::Destination,
        RuleField::DestinationPort,
    ];
    every_variant!(
        RuleField {
            Protocol,
            Source,
            SourcePort,
            Destination,
            DestinationPort
        },
        &fields
    );
    let addresses = |name: &str, member: Option<&str>| MatchedAddresses {
        name: name.into(),
        member: member.map(net),
    };
    let decided = GroupCheck {
        group: id("networkSecurityGroups/Web"),
        attached_to: id("virtualNetworks/Hub/subnets/default"),
        access: Access::Deny,
        rule: Some(DecidingRule {
            name: "securityRules/deny-web".into(),
            priority: 200,
            source: addresses("VirtualNetwork", Some("10.1.0.0/16")),
            destination: addresses("*", None),
        }),
        not_matched: vec![OtherRule {
            name: "securityRules/allow-ssh".into(),
            priority: 100,
            access: Access::Allow,
            differs: fields,
        }],
        not_matched_earlier: 3,
    };
    let without_rule = GroupCheck {
        rule: None,
        not_matched: vec![],
        not_matched_earlier: 0,
        ..decided.clone()
    };
    let check = |known_flow, groups| SecurityCheck {
        at: id("networkInterfaces/Vm"),
        direction: Direction::Inbound,
        known_flow,
        groups,
    };
    golden!().cases(
        "security_check",
        &[
            ("full", check(false, vec![decided, without_rule])),
            ("minimal", check(true, vec![])),
        ],
    );
}

#[test]
fn configurations_of_devices() {
    let tunnel = |endpoint: Option<&str>| DeviceTunnel {
        agent: agent("hub-gw0"),
        public_key: PublicKey([1; 32]),
        endpoint: endpoint.map(|e| e.parse().unwrap()),
    };
    let config = |public_key, instances, bgp| DeviceConfig {
        connection: id("connections/site"),
        gateway: id("virtualNetworkGateways/Vpn"),
        site: id("localNetworkGateways/Site"),
        port: 51_821,
        public_key,
        mtu: 1420,
        preshared_key: PresharedKey([2; 32]),
        instances,
        prefixes: vec![net("10.1.0.0/16")],
        site_prefixes: vec![net("10.9.0.0/16")],
        bgp,
    };
    let bgp = DeviceBgp {
        address: ip("172.16.0.1"),
        asn: 65_021,
        gateway_address: ip("10.1.255.254"),
        gateway_asn: 65_515,
    };
    let full = config(
        Some(PublicKey([7; 32])),
        vec![tunnel(Some("192.0.2.7:51820")), tunnel(None)],
        Some(bgp),
    );
    golden!().written(
        "device_config",
        &[("full", full), ("minimal", config(None, vec![], None))],
    );
    // The preshared key is derived from the connection's shared key at both ends. The ends can run different versions,
    // so every version must derive the same key.
    let derived = device::config(&documents::topology(), &id("connections/site")).unwrap();
    golden!().written("derived_device_config", &[("site", derived)]);
}
