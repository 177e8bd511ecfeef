//! The manifest against Azure's rules as the controller has them, without a controller: whole topologies from nothing,
//! again, changed, broken and mended, pruned. A plan is right if every step is accepted and nothing is left to do.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use serde_json::{Value, json};
use tombolo_client::manifest::{Action, Expanded, Kind, Manifest, Plan, Server};
use tombolo_client::path::{DEFAULT_SUBSCRIPTION, Group};
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::path::ArmPath;
use tombolo_topology::topology::{AgentStatuses, Topology};
use uuid::Uuid;

const HUB_SPOKE: &str = include_str!("hub-spoke.yaml");
const INTEROP: &str = include_str!("interop.yaml");

/// The rules and what they allowed so far.
#[derive(Default)]
struct World {
    now: Topology,
    guids: u128,
}

fn group() -> Group {
    Group::new(DEFAULT_SUBSCRIPTION, "unused")
}

fn expanded(text: &str) -> Vec<Expanded> {
    let mut manifest = Manifest::default();
    manifest.parse("test.yaml", text).unwrap();
    manifest.expand(&group()).unwrap()
}

impl World {
    fn change(&mut self, change: &Change) -> Result<(), Rejection> {
        let guids = &mut self.guids;
        let mut fresh = || {
            *guids += 1;
            Uuid::from_u128(*guids)
        };
        self.now = self.now.apply(change, &mut fresh)?.topology;
        Ok(())
    }

    /// What `Server::read` reads over the network.
    fn read(&self, wanted: &[Expanded]) -> Server {
        let live = AgentStatuses::default();
        let mut server = Server::default();
        let groups: std::collections::BTreeSet<_> = wanted.iter().map(|e| &e.group).collect();
        for group in groups {
            let Some(found) = self.now.view(&ArmPath::parse(&group.path()).unwrap(), &live) else {
                continue;
            };
            server.insert(Kind::ResourceGroup, &group.path(), found);
            for kind in Kind::TOP {
                for mut item in self.now.list(&group.collection(kind.collection()), &live).unwrap() {
                    let path = item["id"].as_str().unwrap().to_owned();
                    if kind == Kind::Connection {
                        let id = tombolo_proto::id::ResourceId::new(&path);
                        item["properties"]["sharedKey"] = json!(self.now.connections[&id].shared_key);
                    }
                    if kind == Kind::Circuit && item.pointer("/properties/peerings/0").is_some() {
                        let id = tombolo_proto::id::ResourceId::new(&path);
                        let peering = self.now.circuits[&id].private_peering.as_ref().unwrap();
                        item["properties"]["peerings"][0]["properties"]["sharedKey"] = json!(peering.shared_key);
                    }
                    server.insert(kind, &path, item);
                }
            }
        }
        server
    }

    fn plan(&self, text: &str, prune: bool) -> Plan {
        let wanted = expanded(text);
        Plan::make(&wanted, &self.read(&wanted), prune).unwrap()
    }

    /// Applies, and checks that nothing is left to do. Returns what was changed.
    fn apply(&mut self, text: &str, prune: bool) -> Vec<String> {
        let plan = self.plan(text, prune);
        let mut changed = Vec::new();
        for step in plan.changes() {
            let path = ArmPath::parse(&step.path).unwrap();
            let change = match step.action {
                Action::Delete => Change::Delete { path, if_match: None },
                _ => Change::Put {
                    path,
                    body: step.body.clone(),
                    if_match: None,
                    sync_remote_address_space: step.sync,
                },
            };
            if let Err(e) = self.change(&change) {
                panic!("{} {}: {:?}\n{}", step.kind, step.name, e.problems, step.body);
            }
            changed.push(step.name.clone());
        }
        let again = self.plan(text, prune);
        let left: Vec<_> = again
            .changes()
            .map(|s| format!("{} {}: {} → {}", s.kind, s.name, s.before, s.after))
            .collect();
        assert!(left.is_empty(), "applying again would change: {left:#?}");
        changed
    }

    fn peering(&self, vnet: &str, name: &str) -> Value {
        let path = Group::new(DEFAULT_SUBSCRIPTION, "lab").item("virtualNetworks", vnet);
        let path = format!("{path}/virtualNetworkPeerings/{name}");
        self.now
            .view(&ArmPath::parse(&path).unwrap(), &AgentStatuses::default())
            .unwrap()
    }

    fn delete(&mut self, tail: &str) {
        let path = format!(
            "{}/providers/Microsoft.Network/{tail}",
            Group::new(DEFAULT_SUBSCRIPTION, "lab").path()
        );
        self.change(&Change::Delete {
            path: ArmPath::parse(&path).unwrap(),
            if_match: None,
        })
        .unwrap();
    }
}

#[test]
fn a_whole_hub_and_spoke_comes_from_nothing_and_stays() {
    let mut world = World::default();
    let changed = world.apply(HUB_SPOKE, false);
    assert_eq!(changed.len(), expanded(HUB_SPOKE).len());
    for (vnet, peering) in [
        ("hub", "to-spoke-a"),
        ("spoke-a", "to-hub"),
        ("hub", "to-spoke-b"),
        ("spoke-b", "to-hub"),
    ] {
        assert_eq!(
            world.peering(vnet, peering)["properties"]["peeringState"],
            "Connected",
            "{vnet}/{peering}"
        );
    }
    assert!(world.apply(HUB_SPOKE, true).is_empty());
}

#[test]
fn a_lost_half_is_mended_p14() {
    for (vnet, lost) in [("hub", "to-spoke-a"), ("spoke-a", "to-hub")] {
        let mut world = World::default();
        world.apply(HUB_SPOKE, false);
        world.delete(&format!("virtualNetworks/{vnet}/virtualNetworkPeerings/{lost}"));
        assert_eq!(world.apply(HUB_SPOKE, false).len(), 2, "both halves are written");
        assert_eq!(
            world.peering("hub", "to-spoke-a")["properties"]["peeringState"],
            "Connected"
        );
        assert_eq!(
            world.peering("spoke-a", "to-hub")["properties"]["peeringState"],
            "Connected"
        );
    }
}

#[test]
fn a_lost_vnet_is_mended() {
    let mut world = World::default();
    world.apply(HUB_SPOKE, false);
    world.delete("networkInterfaces/spoke-a-nic");
    world.delete("virtualNetworks/spoke-a");
    world.apply(HUB_SPOKE, false);
    assert_eq!(
        world.peering("spoke-a", "to-hub")["properties"]["peeringState"],
        "Connected"
    );
}

#[test]
fn a_grown_address_space_is_taken_over_by_all_peers_p27() {
    let mut world = World::default();
    world.apply(HUB_SPOKE, false);
    let grown = HUB_SPOKE.replace(
        "addressSpace: [10.1.0.0/16]",
        "addressSpace: [10.1.0.0/16, 10.11.0.0/16]",
    );
    world.apply(&grown, false);
    for (vnet, peering) in [("hub", "to-spoke-a"), ("spoke-a", "to-hub"), ("spoke-b", "to-hub")] {
        let half = world.peering(vnet, peering);
        assert_eq!(
            half["properties"]["peeringSyncLevel"], "FullyInSync",
            "{vnet}/{peering}"
        );
    }
    let synced = &world.peering("spoke-b", "to-hub")["properties"]["remoteAddressSpace"]["addressPrefixes"];
    assert_eq!(synced, &json!(["10.1.0.0/16", "10.11.0.0/16"]));
    world.apply(HUB_SPOKE, false);
}

#[test]
fn the_gateway_moves_from_the_hub_to_a_spoke_and_back_p23() {
    let mut world = World::default();
    world.apply(HUB_SPOKE, false);
    let own = HUB_SPOKE
        .replace(
            "to-hub: {remoteVirtualNetwork: hub, allowForwardedTraffic: true, useRemoteGateways: true}",
            "to-hub: {remoteVirtualNetwork: hub}",
        )
        .replace(
            "virtualNetworkGateways:\n",
            "virtualNetworkGateways:\n  a-gw: {virtualNetwork: spoke-a}\n",
        )
        .replace(
            "      a-workload:",
            "      GatewaySubnet: {addressPrefix: 10.2.255.0/27}\n      a-workload:",
        );
    assert_ne!(own, HUB_SPOKE);
    world.apply(&own, false);
    world.apply(HUB_SPOKE, true);
    assert_eq!(
        world.peering("spoke-a", "to-hub")["properties"]["useRemoteGateways"],
        true
    );
}

#[test]
fn what_the_file_no_longer_has_is_pruned() {
    let mut world = World::default();
    world.apply(HUB_SPOKE, false);
    let small = "resourceGroup: lab\nvirtualNetworks: {hub: {addressSpace: [10.1.0.0/16], subnets: {workload: {addressPrefix: 10.1.0.0/24}}}}\n";
    assert_eq!(world.plan(small, false).count(Action::Delete), 0);
    world.apply(small, true);
    assert!(world.now.nics.is_empty() && world.now.gateways.is_empty() && world.now.connections.is_empty());
    assert!(world.now.route_tables.is_empty() && world.now.public_ips.is_empty());
    let (_, hub) = world.now.vnets.iter().next().unwrap();
    assert_eq!(
        (world.now.vnets.len(), hub.subnets.len(), hub.peerings.len()),
        (1, 1, 0)
    );
    world.apply(HUB_SPOKE, true);
}

/// Changes each part of a file, and changes it back.
fn there_and_back(file: &str, changes: &[(&str, &str)]) {
    let mut world = World::default();
    world.apply(file, false);
    for (from, to) in changes {
        let changed = file.replace(from, to);
        assert_ne!(changed, file, "{from} is not in the file");
        assert!(!world.apply(&changed, true).is_empty(), "{from} → {to}");
        assert!(!world.apply(file, true).is_empty(), "{to} → {from}");
    }
}

#[test]
fn every_property_can_change_and_change_back() {
    let changes = [
        ("routeTable: rt-a", ""),
        ("nextHopIpAddress: 10.1.0.5", "nextHopIpAddress: 10.1.0.6"),
        (
            "nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.0.5",
            "nextHopType: None",
        ),
        ("enableIPForwarding: true", "enableIPForwarding: false"),
        ("privateIPAddress: 10.2.0.4", "privateIPAddress: 10.2.0.9"),
        (
            "allowGatewayTransit: true, allowForwardedTraffic: true",
            "allowGatewayTransit: true",
        ),
        (
            "remoteVirtualNetwork: spoke-b",
            "allowVirtualNetworkAccess: false, remoteVirtualNetwork: spoke-b",
        ),
        ("sharedKey: abc123", "sharedKey: another1"),
        ("disableBgpRoutePropagation: false", "disableBgpRoutePropagation: true"),
        ("asn: 65515", "asn: 65010"),
    ];
    there_and_back(HUB_SPOKE, &changes);
}

#[test]
fn sites_and_circuits_come_from_nothing_stay_and_go() {
    let mut world = World::default();
    let changed = world.apply(INTEROP, false);
    assert_eq!(changed.len(), expanded(INTEROP).len());
    assert!(world.apply(INTEROP, true).is_empty());
    let allocated = world
        .now
        .connections
        .values()
        .find(|c| c.envelope.id.name() == "remote-er1");
    let allocated: Vec<String> = allocated
        .unwrap()
        .tunnel_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(allocated, ["10.17.30.36", "10.17.30.37"]);
    world.apply("resourceGroup: lab\n", true);
    assert!(world.now.circuits.is_empty() && world.now.local_gateways.is_empty() && world.now.vnets.is_empty());
}

#[test]
fn sites_and_circuits_can_change_and_change_back() {
    let site = "    asn: 65021\n    bgpPeeringAddress: 10.2.30.125\n";
    let used = "    localNetworkGateway2: loc1\n    enableBgp: true\n";
    let changes = [
        ("bgpPeeringAddress: 10.10.30.254", "bgpPeeringAddress: 10.10.30.253"),
        ("    gatewayIpAddress: 198.51.100.1\n", ""),
        ("[10.2.30.125/32]", "[10.2.30.125/32, 10.2.30.0/26]"),
        ("asn: 65021", "asn: 65022"),
        (used, "    localNetworkGateway2: loc1\n"),
        (
            "    wireGuardPublicKey: CAcGBQQDAgEIBwYFBAMCAQgHBgUEAwIBCAcGBQQDAgE=\n",
            "",
        ),
        ("wireGuardPort: 51820", "wireGuardPort: 4500"),
        ("skuTier: Standard", "skuTier: Premium"),
        ("bandwidthInMbps: 50", "bandwidthInMbps: 100"),
        ("peerAsn: 65020", "peerAsn: 65019"),
        ("primary: 192.168.31.16/30", "primary: 192.168.31.24/30"),
        ("vlanId: 300", "vlanId: 301"),
        ("sharedKey: circuitkey", "sharedKey: anotherkey"),
        ("[10.10.30.132, 10.10.30.133]", "[10.10.30.133, 10.10.30.132]"),
        ("sharedKey: sitekey", "sharedKey: anotherkey"),
    ];
    there_and_back(INTEROP, &changes);
    // G4: a site loses its BGP settings only after its connection has stopped using them, in one go.
    let mut world = World::default();
    world.apply(INTEROP, false);
    let without = INTEROP
        .replace(site, "")
        .replace(used, "    localNetworkGateway2: loc1\n");
    world.apply(&without, true);
    world.apply(INTEROP, true);
}
