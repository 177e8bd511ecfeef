//! Golden files: recorded files of an earlier version. A later version must accept the topologies that people have
//! written, and must be able to take down a lab by its recorded state.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use tombolo_client::manifest::{Document, Named};
use tombolo_golden::{all_of, golden};
use tombolo_lab::host::Runtime;
use tombolo_lab::process::Process;
use tombolo_lab::state::State;
use tombolo_lab::topology::expected::{Action, Hop, Verb};
use tombolo_lab::topology::site::{BgpPolicy, CustomerEdge, Lan, LanRoutes, Line, LinkName, NeighbourPolicy, Tunnel};
use tombolo_lab::topology::{
    Controller, Delay, Edge, Event, Gateway, Host, Learned, Row, Segment, Site, Topology, Underlay, Vm,
};
use tombolo_proto::config::CircuitLink;

fn named<T>(items: impl IntoIterator<Item = (&'static str, T)>) -> Named<T> {
    items.into_iter().map(|(name, item)| (name.to_owned(), item)).collect()
}

fn host(address: &str) -> Host {
    Host {
        address: address.parse().unwrap(),
        listen_port: None,
        vm: None,
        gateway: None,
        edge: None,
    }
}

fn hosts() -> BTreeMap<String, Host> {
    let vm = Host {
        address: "198.51.100.10".parse().unwrap(),
        listen_port: Some(51_821),
        vm: Some(Vm {
            nics: vec!["vm".into()],
            serves: vec!["hub/served".into()],
            kernel_forwarding: true,
        }),
        gateway: None,
        edge: None,
    };
    let gateway = |ip_configuration| Host {
        gateway: Some(Gateway {
            name: "hub-gw".into(),
            ip_configuration,
        }),
        ..host("198.51.100.11")
    };
    let edge = Host {
        edge: Some(Edge {
            circuit: "er1".into(),
            link: CircuitLink::Secondary,
        }),
        ..host("198.51.100.12")
    };
    BTreeMap::from([
        ("vm".into(), vm),
        ("gw0".into(), gateway(Some("one".into()))),
        ("gw1".into(), gateway(None)),
        ("edge".into(), edge),
        ("plain".into(), host("198.51.100.13")),
    ])
}

fn underlay() -> Underlay {
    let segment = |prefix: &str| Segment {
        prefix: prefix.parse().unwrap(),
    };
    Underlay {
        mtu: 9000,
        segments: BTreeMap::from([
            ("one".into(), segment("198.51.100.0/24")),
            ("two".into(), segment("2001:db8::/64")),
        ]),
        controller: Controller {
            address: "198.51.100.2".parse().unwrap(),
            port: 8443,
        },
        delays: vec![Delay {
            between: ["one".into(), "two".into()],
            one_way_ms: 12.5,
            loss: 0.25,
        }],
    }
}

fn site(routes: LanRoutes) -> Site {
    let neighbours = |export| NeighbourPolicy {
        local_preference: 200,
        export,
    };
    let full = CustomerEdge {
        lan: Some("10.9.255.1/30".parse().unwrap()),
        address: Some("198.51.100.20".parse().unwrap()),
        lines: [true, false]
            .map(|enabled| Line {
                circuit: "er1".into(),
                link: CircuitLink::Primary,
                enabled,
            })
            .into(),
        tunnels: vec![Tunnel {
            connection: "to-site".into(),
            address: "172.16.0.1".parse().unwrap(),
            listen_port: 51_822,
        }],
    };
    let empty = CustomerEdge {
        lan: None,
        address: None,
        lines: vec![],
        tunnels: vec![],
    };
    Site {
        asn: 65_021,
        prefixes: vec!["10.9.0.0/16".parse().unwrap()],
        lan: Lan {
            router: "10.9.0.1/24".parse().unwrap(),
            hosts: named([("pc", "10.9.0.10".parse().unwrap())]),
            probes: named([("pc", "198.51.100.52".parse().unwrap())]),
            routes,
            ecmp: true,
        },
        customer_edges: named([("ce1", full), ("ce2", empty)]),
        bgp: BgpPolicy {
            circuit: neighbours(Some(vec!["10.9.0.0/16".parse().unwrap()])),
            vpn: neighbours(None),
            ecmp: true,
            hold_time: 30,
        },
    }
}

fn rows() -> Vec<Row> {
    let hops = || vec![Hop(Some("10.1.255.4".parse().unwrap())), Hop(None)];
    let full = Row {
        from: "vm".into(),
        to: "pc".into(),
        reachable: true,
        hops: hops(),
        alternatives: vec![hops()],
        note: Some("by the circuit".into()),
    };
    let minimal = Row {
        from: "vm".into(),
        to: "plain".into(),
        reachable: false,
        hops: vec![],
        alternatives: vec![],
        note: None,
    };
    vec![full, minimal]
}

fn line() -> LinkName {
    LinkName {
        circuit: "er1".into(),
        link: CircuitLink::Secondary,
    }
}

fn learned(full: bool) -> Learned {
    Learned {
        site: "dc".into(),
        router: "ce1".into(),
        line: full.then(line),
        tunnel: full.then(|| "to-site".into()),
        prefixes: vec!["10.1.0.0/16".parse().unwrap()],
    }
}

fn events() -> Named<Event> {
    let action = |action| Action {
        site: Some("dc".into()),
        router: Some("ce1".into()),
        line: Some(line()),
        tunnel: Some("to-site".into()),
        host: Some("vm".into()),
        action,
    };
    let bare = Action {
        site: None,
        router: None,
        line: None,
        tunnel: None,
        host: None,
        action: Verb::Cut,
    };
    let mut actions: Vec<Action> = all_of!(Verb { Down, Up, Cut }).into_iter().map(action).collect();
    actions.push(bare);
    let full = Event {
        actions,
        expected: rows(),
        learned: vec![learned(true)],
    };
    let minimal = Event {
        actions: vec![],
        expected: vec![],
        learned: vec![],
    };
    named([("full", full), ("minimal", minimal)])
}

/// The resources are a manifest. The golden files of the crate `tombolo-client` record manifests; this one has a subnet
/// and a network interface with a security group, and a load balancer with this network interface as a back end.
fn resources() -> Document {
    let text = "
applicationSecurityGroups: {web: {}}
networkSecurityGroups:
  front:
    rules:
      https:
        priority: 100
        direction: Inbound
        access: Allow
        protocol: Tcp
        destinationApplicationSecurityGroups: [web]
        destinationPortRanges: [443, 8000-8080]
virtualNetworks:
  hub: {addressSpace: [10.1.0.0/16], subnets: {one: {addressPrefix: 10.1.0.0/24, networkSecurityGroup: front}}}
networkInterfaces:
  vm: {subnet: hub/one, networkSecurityGroup: front, applicationSecurityGroups: [web], loadBalancerPools: [balancer/servers]}
loadBalancers:
  balancer:
    frontEnds: {front: {subnet: hub/one, privateIPAddress: 10.1.0.36}}
    pools: {servers: {}}
    rules: {https: {protocol: Tcp, frontEndPort: 443}}
";
    serde_norway::from_str(text).unwrap()
}

fn topology() -> Topology {
    let routes = all_of!(LanRoutes { Default, Learned });
    let sites = ["dc", "branch"]
        .map(str::to_owned)
        .into_iter()
        .zip(routes.into_iter().map(site));
    Topology {
        name: "golden".into(),
        settings: BTreeMap::from([("mtu".into(), 1400.into())]),
        underlay: underlay(),
        hosts: hosts(),
        sites: sites.collect(),
        resources: resources(),
        expected: rows(),
        learned: vec![learned(true), learned(false)],
        events: events(),
    }
}

#[test]
fn topology_files() {
    let minimal = Topology {
        name: "golden".into(),
        settings: BTreeMap::new(),
        underlay: underlay(),
        hosts: BTreeMap::new(),
        sites: BTreeMap::new(),
        resources: Document::default(),
        expected: vec![],
        learned: vec![],
        events: Named::default(),
    };
    golden!().cases("topology", &[("full", topology()), ("minimal", minimal)]);
}

#[test]
fn states_of_labs() {
    let process = Process {
        pid: 7,
        started: 1234,
        log: "/run/tombolo-lab/golden/logs/controller.log".into(),
    };
    let state = |runtime| State {
        id: "0123".into(),
        topology: topology(),
        runtime,
        hosts: vec!["vm".into()],
        processes: BTreeMap::from([("controller".into(), process.clone())]),
        moved: BTreeMap::from([("vm".into(), "198.51.100.30".parse().unwrap())]),
        addresses: BTreeMap::from([("vm".into(), vec!["10.1.0.4".parse().unwrap()])]),
        complete: true,
    };
    let runtimes = all_of!(Runtime { Netns, Docker, Vm });
    let states: Vec<_> = ["netns", "docker"]
        .into_iter()
        .zip(runtimes.into_iter().map(state))
        .collect();
    golden!().cases("state", &states);
}
