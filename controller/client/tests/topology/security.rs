//! Network security groups.

use crate::world::{World, change_and_revert, expanded};

const SECURITY: &str = include_str!("../security.yaml");

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
