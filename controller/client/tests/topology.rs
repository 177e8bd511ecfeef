//! Tests plans with the controller's rules, but without a controller: creates topologies from manifests, applies the
//! manifests again, and changes, repairs and prunes the topologies. A plan is right if the rules accept every step and
//! a second plan is empty.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use serde_json::{Value, json};
use tombolo_client::manifest::{Action, DesiredResource, Kind, Manifest, Plan, Server};
use tombolo_client::path::{DEFAULT_SUBSCRIPTION, Group};
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::path::ArmPath;
use tombolo_topology::topology::{AgentStatuses, Topology};
use uuid::Uuid;

const HUB_SPOKE: &str = include_str!("hub-spoke.yaml");
const INTEROP: &str = include_str!("interop.yaml");
const SECURITY: &str = include_str!("security.yaml");
const BALANCERS: &str = include_str!("balancers.yaml");

/// The state of a controller, which changes only as the controller's rules allow.
#[derive(Default)]
struct World {
    now: Topology,
    guids: u128,
}

fn group() -> Group {
    Group::new(DEFAULT_SUBSCRIPTION, "unused")
}

fn expanded(text: &str) -> Vec<DesiredResource> {
    let mut manifest = Manifest::default();
    manifest.parse("test.yaml", text).unwrap();
    manifest.expand(&group()).unwrap()
}

impl World {
    fn change(&mut self, change: &Change) -> Result<(), Rejection> {
        let guids = &mut self.guids;
        let mut new_guid = || {
            *guids += 1;
            Uuid::from_u128(*guids)
        };
        self.now = self.now.apply(change, &mut new_guid)?.topology;
        Ok(())
    }

    /// Returns the value that `Server::read` would read from a controller with this state.
    fn read(&self, desired: &[DesiredResource]) -> Server {
        let live = AgentStatuses::default();
        let mut server = Server::default();
        let groups: std::collections::BTreeSet<_> = desired.iter().map(|e| &e.group).collect();
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
        let desired = expanded(text);
        Plan::make(&desired, &self.read(&desired), prune).unwrap()
    }

    /// Plans a manifest and carries out the plan, then checks that a second plan is empty. Returns the names of the
    /// changed resources. Panics if a step is refused.
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
fn a_hub_and_spoke_is_created_and_applied_again() {
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
fn a_lost_vnet_is_repaired() {
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
fn resources_that_the_file_no_longer_contains_are_pruned() {
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

/// For each change, applies the changed file and then the unchanged one again. Panics if one of these two applications
/// changes nothing.
fn change_and_revert(file: &str, changes: &[(&str, &str)]) {
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
    change_and_revert(HUB_SPOKE, &changes);
}

#[test]
fn sites_and_circuits_are_created_kept_and_pruned() {
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
    change_and_revert(INTEROP, &changes);
    // G4: one plan first stops BGP on the connection, and then removes the site's BGP settings.
    let mut world = World::default();
    world.apply(INTEROP, false);
    let without = INTEROP
        .replace(site, "")
        .replace(used, "    localNetworkGateway2: loc1\n");
    world.apply(&without, true);
    world.apply(INTEROP, true);
}

#[test]
fn security_groups_are_created_kept_and_pruned() {
    let mut world = World::default();
    let changed = world.apply(SECURITY, false);
    assert_eq!(changed.len(), expanded(SECURITY).len());
    assert!(world.apply(SECURITY, true).is_empty());
    let data = world
        .now
        .nics
        .values()
        .find(|n| n.envelope.id.name() == "data-nic")
        .unwrap();
    let groups = |c: &tombolo_topology::resource::NicIpConfiguration| c.application_security_groups.len();
    assert_eq!(data.ip_configurations.iter().map(groups).collect::<Vec<_>>(), [1, 1]);

    // Without pruning, rules and groups that the file omits stay.
    let fewer = "resourceGroup: lab\nnetworkSecurityGroups: {front: {rules: {extra:
        {priority: 300, direction: Inbound, access: Deny, destinationPortRange: 22}}}}\n";
    assert_eq!(world.apply(fewer, false), ["front"]);
    let rules = |world: &World| -> Vec<usize> {
        let groups = world.now.network_security_groups.values();
        groups.map(|g| g.security_rules.len()).collect()
    };
    assert_eq!(rules(&world), [1, 4]);
    // With pruning, groups are deleted after the subnets, NICs and rules that refer to them.
    world.apply(SECURITY, true);
    assert_eq!(rules(&world), [1, 3]);
    let without = SECURITY
        .replace(", networkSecurityGroup: front", "")
        .replace(
            "    networkSecurityGroup: back\n    applicationSecurityGroups: [databases]\n",
            "",
        )
        .replace(", applicationSecurityGroups: [web-servers]", "");
    let (_, rest) = without.split_once("virtualNetworks:").unwrap();
    world.apply(&format!("resourceGroup: lab\nvirtualNetworks:{rest}"), true);
    assert_eq!(rules(&world), [0; 0]);
    assert!(world.now.application_security_groups.is_empty() && world.now.nics.len() == 3);
    world.apply(SECURITY, true);
    world.apply("resourceGroup: lab\n", true);
    assert!(world.now.network_security_groups.is_empty() && world.now.vnets.is_empty());
}

#[test]
fn security_groups_can_change_and_change_back() {
    let changes = [
        ("description: The site's own port", "description: Another text"),
        ("        description: The site's own port\n", ""),
        ("priority: 4096", "priority: 4000"),
        (
            "priority: 100\n        direction: Outbound",
            "priority: 101\n        direction: Inbound",
        ),
        ("access: Deny", "access: Allow"),
        (
            "protocol: Tcp\n        sourceAddressPrefix: VirtualNetwork",
            "sourceAddressPrefix: Internet",
        ),
        (
            "sourceAddressPrefix: VirtualNetwork",
            "sourceAddressPrefixes: [10.0.0.0/8, 10.9.0.1]",
        ),
        (
            "sourceAddressPrefix: VirtualNetwork",
            "sourceApplicationSecurityGroups: [databases]",
        ),
        ("        destinationApplicationSecurityGroups: [web-servers]\n", ""),
        (
            "destinationApplicationSecurityGroups: [web-servers]",
            "destinationAddressPrefix: 10.1.0.4",
        ),
        ("destinationPortRange: 443", "destinationPortRanges: [443, 8443]"),
        ("destinationPortRanges: [5432, 6000-6010]", "destinationPortRange: 5432"),
        ("sourcePortRanges: [1024-65535]", "sourcePortRange: 1024-65535"),
        (", networkSecurityGroup: front", ", networkSecurityGroup: back"),
        (", networkSecurityGroup: front", ""),
        ("    networkSecurityGroup: back\n", ""),
        (
            "applicationSecurityGroups: [databases]\n    ip",
            "applicationSecurityGroups: [databases, web-servers]\n    ip",
        ),
        (", applicationSecurityGroups: [web-servers]", ""),
    ];
    change_and_revert(SECURITY, &changes);
}

/// The names of the network interfaces that refer to a child of the load balancer `web`, in alphabetical order.
fn users_of(world: &World, child: &str) -> Vec<String> {
    let id = Group::new(DEFAULT_SUBSCRIPTION, "lab").item("loadBalancers", &format!("web/{child}"));
    let id = tombolo_proto::id::ResourceId::new(id);
    let uses = |c: &tombolo_topology::resource::NicIpConfiguration| {
        c.load_balancer_pools.contains(&id) || c.inbound_nat_rules.contains(&id)
    };
    let nics = world.now.nics.values();
    let users = nics.filter(|n| n.ip_configurations.iter().any(uses));
    users.map(|n| n.envelope.id.name().to_owned()).collect()
}

#[test]
fn load_balancers_are_created_kept_and_pruned() {
    let mut world = World::default();
    let changed = world.apply(BALANCERS, false);
    assert_eq!(changed.len(), expanded(BALANCERS).len());
    assert!(world.apply(BALANCERS, true).is_empty());
    assert_eq!(users_of(&world, "backendAddressPools/servers"), ["one-nic", "two-nic"]);
    assert_eq!(users_of(&world, "inboundNatRules/ssh"), ["one-nic"]);
    assert_eq!(users_of(&world, "inboundNatRules/ssh-two"), ["two-nic"]);

    // Without pruning, children that the file omits stay, and those of the file are added.
    let fewer =
        "resourceGroup: lab\nlocation: region2\nloadBalancers: {web: {probes: {more: {protocol: Tcp, port: 1}}}}\n";
    assert_eq!(world.apply(fewer, false), ["web"]);
    let counts = |world: &World| -> Vec<[usize; 5]> {
        let all = world.now.load_balancers.values();
        all.map(|b| {
            let rules = b.rules.len();
            [
                b.front_ends.len(),
                b.pools.len(),
                b.probes.len(),
                rules,
                b.nat_rules.len(),
            ]
        })
        .collect()
    };
    assert_eq!(counts(&world), [[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [2, 2, 3, 2, 2]]);
    world.apply(BALANCERS, true);
    assert_eq!(counts(&world), [[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [2, 2, 2, 2, 2]]);

    // With pruning, network interfaces leave the pools and rules before the load balancers are deleted.
    let without = BALANCERS
        .replace(", loadBalancerPools: [web/servers], inboundNatRules: [web/ssh]", "")
        .replace(", loadBalancerPools: [web/servers], inboundNatRules: [web/ssh-two]", "")
        .replace(", loadBalancerPools: [old/legacy]", "")
        .replace(", loadBalancerPools: [appliances/all]", "");
    let (head, rest) = without.split_once("loadBalancers:").unwrap();
    let (_, nics) = rest.split_once("networkInterfaces:").unwrap();
    let changed = world.apply(&format!("{head}networkInterfaces:{nics}"), true);
    assert_eq!(changed, ["one-nic", "two-nic", "nva-nic", "appliances", "old", "web"]);
    assert_eq!(world.now.nics.len(), 3);
    world.apply(BALANCERS, true);
    world.apply("resourceGroup: lab\n", true);
    assert!(world.now.load_balancers.is_empty() && world.now.vnets.is_empty());
}

#[test]
fn load_balancers_can_change_and_change_back() {
    let changes = [
        (
            "front: {subnet: hub/workload, privateIPAddress: 10.1.0.36}",
            "front: {subnet: hub/workload}",
        ),
        ("privateIPAddress: 10.1.0.36", "privateIPAddress: 10.1.0.40"),
        ("other: {subnet: hub/outside}", "other: {subnet: hub/workload}"),
        ("{one: 10.1.1.9, two: 10.1.1.10}", "{one: 10.1.1.11}"),
        (", drainPeriodInSeconds: 60", ""),
        (
            "protocol: Http, port: 80, requestPath: /health",
            "protocol: Tcp, port: 80",
        ),
        (
            "requestPath: /health, intervalInSeconds: 5, probeThreshold: 2",
            "requestPath: /",
        ),
        (", noHealthyBackendsBehavior: AllProbedUp", ""),
        ("frontEndPort: 80\n        backEndPort: 8080", "frontEndPort: 81"),
        ("pool: servers", "pool: outside"),
        ("        probe: http\n", ""),
        ("probe: http", "probe: tcp"),
        ("loadDistribution: SourceIP", "loadDistribution: SourceIPProtocol"),
        ("        idleTimeoutInMinutes: 10\n        enableTcpReset: true\n", ""),
        (", enableFloatingIP: true", ", backEndPort: 5353"),
        ("protocol: Udp, frontEnd: other", "protocol: Tcp, frontEnd: other"),
        ("backEndPort: 22}\n      ssh-two", "backEndPort: 23}\n      ssh-two"),
        ("role: firewall", "role: router"),
        ("{all: {protocol: All}}", "{all: {protocol: Tcp, frontEndPort: 22}}"),
        (
            "loadBalancerPools: [web/servers], inboundNatRules: [web/ssh]",
            "inboundNatRules: [web/ssh]",
        ),
        (", inboundNatRules: [web/ssh]", ""),
        (
            "loadBalancerPools: [old/legacy]",
            "loadBalancerPools: [old/legacy, web/servers]",
        ),
    ];
    change_and_revert(BALANCERS, &changes);
}

/// A network interface leaves a pool or rule before this is removed, and before another one gets it.
#[test]
fn l2_network_interfaces_leave_what_the_file_removes() {
    let changes: [&[(&str, &str)]; 6] = [
        // A renamed pool, with its rule.
        &[
            ("      servers: {}", "      machines: {}"),
            ("pool: servers", "pool: machines"),
            ("web/servers", "web/machines"),
        ],
        // A renamed inbound NAT rule keeps its port.
        &[("      ssh: ", "      shell: "), ("[web/ssh]", "[web/shell]")],
        // A removed rule.
        &[
            (
                "      ssh: {protocol: Tcp, frontEnd: front, frontEndPort: 2222, backEndPort: 22}\n",
                "",
            ),
            (", inboundNatRules: [web/ssh]", ""),
        ],
        // Two network interfaces exchange their inbound NAT rules.
        &[
            ("[web/ssh-two]", "[web/three]"),
            ("[web/ssh]", "[web/ssh-two]"),
            ("[web/three]", "[web/ssh]"),
        ],
        // A pool gets addresses instead of network interfaces.
        &[
            ("all: {}", "all: {addresses: {one: 10.1.1.5}}"),
            (", loadBalancerPools: [appliances/all]", ""),
        ],
        // A load balancer gets another name, and keeps its address.
        &[("  old:\n", "  new:\n"), ("[old/legacy]", "[new/legacy]")],
    ];
    let mut world = World::default();
    world.apply(BALANCERS, false);
    for change in changes {
        let mut file = BALANCERS.to_owned();
        for (from, to) in change {
            assert!(file.contains(from), "{from} is not in the file");
            file = file.replace(from, to);
        }
        assert!(!world.apply(&file, true).is_empty(), "{change:?}");
        assert!(!world.apply(BALANCERS, true).is_empty(), "back: {change:?}");
    }
}

#[test]
fn l1_a_subnet_is_deleted_after_its_front_end_has_moved() {
    let mut world = World::default();
    let file = |subnet: &str, range: &str| {
        format!(
            "resourceGroup: lab\nvirtualNetworks: {{hub: {{addressSpace: [10.1.0.0/16], subnets: {{{subnet}: \
             {{addressPrefix: {range}}}}}}}}}\nloadBalancers: {{lb: {{frontEnds: {{f: {{subnet: hub/{subnet}}}}}}}}}\n"
        )
    };
    world.apply(&file("a", "10.1.0.0/24"), false);
    let changed = world.apply(&file("b", "10.1.1.0/24"), true);
    assert_eq!(changed, ["hub", "lb", "hub/a"]);
}
