//! Sites and circuits.

use crate::world::{World, change_and_revert, expanded};

const INTEROP: &str = include_str!("../interop.yaml");

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
