//! Virtual networks with peerings, gateways and route tables.

use crate::world::{World, change_and_revert, expanded};
use serde_json::json;
use tombolo_client::manifest::Action;

const HUB_SPOKE: &str = include_str!("../hub-spoke.yaml");

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
