//! The effective routes of subnets: rules R1 to R9, R14, R15, R22, P21, P24, P25, P27.

use crate::world::{World, hub_and_spokes};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::RouteState;
use tombolo_topology::compile::effective_routes;
use tombolo_topology::resource::PeeringState;

/// The routes of the private blocks that are dropped by default (R1), as text.
const NONE_BLOCKS: [&str; 4] = [
    "Default 10.0.0.0/8 None",
    "Default 100.64.0.0/10 None",
    "Default 172.16.0.0/12 None",
    "Default 192.168.0.0/16 None",
];

/// The lines `first`, followed by the lines of [`NONE_BLOCKS`].
fn with_none_blocks(first: &[&str]) -> Vec<String> {
    first.iter().chain(&NONE_BLOCKS).map(|s| (*s).to_owned()).collect()
}

/// R1: every subnet has one route for each address range of its VNet, the default route, and the four private blocks.
/// All subnets of a VNet have the same system routes: a subnet's own prefix gets no route.
#[test]
fn r1_default_routes_of_every_subnet() {
    let mut w = World::default();
    w.vnet("v", "10.1.0.0/16 172.20.0.0/16", "one=10.1.0.0/24 two=172.20.0.0/24");
    let expected = with_none_blocks(&[
        "Default 10.1.0.0/16 VnetLocal",
        "Default 172.20.0.0/16 VnetLocal",
        "Default 0.0.0.0/0 Internet",
    ]);
    assert_eq!(w.shown("v/one"), expected);
    assert_eq!(w.shown("v/two"), expected);
    assert!(effective_routes(&w.topology, &ResourceId::new("/nowhere")).is_none());
}

/// R1: in a dual-stack VNet, subnets have the routes 0.0.0.0/0 and ::/0, and the routes that drop the IPv4 private
/// blocks. In a VNet without IPv4, they have neither 0.0.0.0/0 nor these blocks.
#[test]
fn r1_both_families() {
    let mut w = World::default();
    w.vnet("v", "10.1.0.0/16 fd00:1::/48", "s=10.1.0.0/24,fd00:1::/64");
    w.vnet("peer", "10.2.0.0/16 fd00:2::/48", "s=10.2.0.0/24,fd00:2::/64");
    w.peer("v", "a", "peer", "a");
    assert_eq!(
        w.shown("v/s"),
        with_none_blocks(&[
            "Default 10.1.0.0/16 VnetLocal",
            "Default fd00:1::/48 VnetLocal",
            "Default 10.2.0.0/16 VNetPeering",
            "Default fd00:2::/48 VNetPeering",
            "Default 0.0.0.0/0 Internet",
            "Default ::/0 Internet",
        ])
    );
    let mut only_six = World::default();
    only_six.vnet("v", "fd00:1::/48", "s=fd00:1::/64");
    assert_eq!(
        only_six.shown("v/s"),
        ["Default fd00:1::/48 VnetLocal", "Default ::/0 Internet"]
    );
}

/// R2: if a VNet's address range equals a private block, packets to the block are delivered in the VNet (`VnetLocal`),
/// and no route drops them. If a range is only a part of a block, the route that drops the block stays.
#[test]
fn r2_reserved_blocks() {
    let mut w = World::default();
    w.vnet("v", "10.0.0.0/8 192.168.7.0/24", "s=10.0.0.0/24");
    assert_eq!(
        w.shown("v/s"),
        [
            "Default 10.0.0.0/8 VnetLocal",
            "Default 192.168.7.0/24 VnetLocal",
            "Default 0.0.0.0/0 Internet",
            "Default 100.64.0.0/10 None",
            "Default 172.16.0.0/12 None",
            "Default 192.168.0.0/16 None",
        ]
    );
}

/// R4: peering routes exist only while both halves are Connected. Every subnet has one peering route for each prefix of
/// the remote VNet.
#[test]
fn r4_peering_routes_follow_state() {
    let mut w = World::default();
    w.vnet("a", "10.1.0.0/16", "one=10.1.0.0/24 two=10.1.1.0/24");
    w.vnet("b", "10.2.0.0/16 10.3.0.0/16", "s=10.2.0.0/24");
    let has = |w: &World, subnet: &str| w.shown(subnet).iter().filter(|l| l.contains("VNetPeering")).count();
    w.initiated("a", "b");
    assert_eq!((has(&w, "a/one"), has(&w, "b/s")), (0, 0), "Initiated");
    w.vnet_mut("a").peerings.clear();
    w.peer("a", "a", "b", "a");
    assert_eq!(
        (has(&w, "a/one"), has(&w, "a/two"), has(&w, "b/s")),
        (2, 2, 1),
        "Connected"
    );
    w.vnet_mut("a").peerings.clear();
    w.half_mut("b", "a").state = PeeringState::Disconnected;
    assert_eq!((has(&w, "a/one"), has(&w, "b/s")), (0, 0), "Disconnected");
}

/// P27: of two peered VNets one gets a new prefix. Until the other VNet's half of the peering is synced, the subnets of
/// this other VNet have peering routes only for the prefixes that the half has synced before.
#[test]
fn p27_old_prefixes_until_sync() {
    let mut w = World::default();
    w.vnet("a", "10.1.0.0/16", "s=10.1.0.0/24")
        .vnet("b", "10.2.0.0/16", "s=10.2.0.0/24");
    w.peer("a", "a", "b", "a");
    let before = w.shown("b/s");
    w.vnet_mut("a").address_space.push("10.9.0.0/16".parse().unwrap());
    assert_eq!(w.shown("b/s"), before);
    assert!(w.shown("a/s").contains(&"Default 10.9.0.0/16 VnetLocal".to_owned()));
    w.half_mut("b", "a")
        .remote_address_space
        .push("10.9.0.0/16".parse().unwrap());
    assert!(w.shown("b/s").contains(&"Default 10.9.0.0/16 VNetPeering".to_owned()));
}

/// P30: the routes of a peering between two regions have another next-hop type than those of a peering inside a region.
/// Names of regions are compared without regard to case and spaces, as ARM does.
#[test]
fn p30_global_peering_has_its_own_next_hop_type() {
    let mut w = World::default();
    w.vnet_in("a", "westeurope", "10.1.0.0/16", "s=10.1.0.0/24");
    w.vnet_in("b", "West Europe", "10.2.0.0/16", "s=10.2.0.0/24");
    w.vnet_in("c", "eastus", "10.3.0.0/16", "s=10.3.0.0/24");
    w.peer("a", "a", "b", "a").peer("a", "a", "c", "a");
    let shown = w.shown("a/s");
    assert!(
        shown.contains(&"Default 10.2.0.0/16 VNetPeering".to_owned()),
        "{shown:?}"
    );
    assert!(
        shown.contains(&"Default 10.3.0.0/16 VNetGlobalPeering".to_owned()),
        "{shown:?}"
    );
}

/// P24: VNet a is peered with VNet b, and b with VNet c. Subnets of a have no route to c, and subnets of c have no
/// route to a.
#[test]
fn p24_not_transitive() {
    let mut w = World::default();
    w.vnet("a", "10.1.0.0/16", "s=10.1.0.0/24");
    w.vnet("b", "10.2.0.0/16", "s=10.2.0.0/24");
    w.vnet("c", "10.3.0.0/16", "s=10.3.0.0/24");
    w.peer("a", "af", "b", "af").peer("b", "af", "c", "af");
    assert!(!w.shown("a/s").iter().any(|l| l.contains("10.3.")));
    assert!(!w.shown("c/s").iter().any(|l| l.contains("10.1.")));
}

/// R5, P21a: the spoke gets the routes of the hub's gateway, with that gateway as next hop. P21b: the branch gets
/// routes to the prefixes of the hub's spokes. P21d: spokes do not learn each other's prefixes. Without
/// allowGatewayTransit or without useRemoteGateways, these routes of the spoke and of the branch are withdrawn.
#[test]
fn p21_gateway_transit() {
    let w = hub_and_spokes();
    assert_eq!(
        w.shown("spoke-a/workload"),
        with_none_blocks(&[
            "Default 10.2.0.0/16 VnetLocal",
            "Default 10.1.0.0/16 VNetPeering",
            "Default 0.0.0.0/0 Internet",
        ])
        .into_iter()
        .chain(["VirtualNetworkGateway 10.4.0.0/16 VirtualNetworkGateway 10.1.255.4".to_owned()])
        .collect::<Vec<_>>()
    );
    let gateway_routes = |w: &World, subnet: &str| {
        let mut lines = w.shown(subnet);
        lines.retain(|l| l.contains("VirtualNetworkGateway "));
        lines
    };
    assert_eq!(
        gateway_routes(&w, "branch/workload"),
        ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]
            .map(|p| format!("VirtualNetworkGateway {p} VirtualNetworkGateway 10.4.255.4"))
    );
    for (vnet, remote) in [("hub", "spoke-a"), ("spoke-a", "hub")] {
        let mut off = w.clone();
        let half = off.half_mut(vnet, remote);
        (half.allow_gateway_transit, half.use_remote_gateways) = (false, false);
        assert_eq!(gateway_routes(&off, "spoke-a/workload"), Vec::<String>::new());
        assert_eq!(
            gateway_routes(&off, "branch/workload").len(),
            2,
            "10.2.0.0/16 is withdrawn"
        );
    }
}

/// R5: a gateway does not advertise the prefixes of VNets that are peered with its VNet but do not use it. D9: if its
/// connections exchange no routes, a gateway does not advertise over one connection the prefixes to which another one
/// leads.
#[test]
fn d9_a_gateway_contributes_only_the_far_vnet_and_its_clients() {
    let mut w = hub_and_spokes();
    w.vnet("other", "10.5.0.0/16", "s=10.5.0.0/24")
        .peer("branch", "a", "other", "a");
    w.vnet("third", "10.6.0.0/16", "GatewaySubnet=10.6.255.0/27")
        .gateway("third", "10.6.255.4");
    w.connect("branch", "third");
    let shown = w.shown("spoke-a/workload");
    assert!(
        !shown.iter().any(|l| l.contains("10.5.") || l.contains("10.6.")),
        "{shown:?}"
    );
}

/// G10: if only one of the two connection objects exists, neither VNet has gateway routes.
#[test]
fn g10_one_connection_object_gives_no_routes() {
    let mut w = hub_and_spokes();
    w.topology.connections.retain(|id, _| id.name() != "branch-to-hub");
    for subnet in ["hub/workload", "spoke-a/workload", "branch/workload"] {
        assert!(!w.shown(subnet).iter().any(|l| l.contains("Gateway")), "{subnet}");
    }
}

/// P25, R7 step 1: hub and branch are joined by VPN and also peered. In each of the two VNets, the peering makes the
/// gateway routes to the other VNet's address space invalid. Other gateway routes stay active.
#[test]
fn p25_peering_beats_tunnels() {
    let mut w = hub_and_spokes();
    w.peer("hub", "a", "branch", "a");
    let hub = w.shown("hub/workload");
    assert!(hub.contains(&"Default 10.4.0.0/16 VNetPeering".to_owned()), "{hub:?}");
    assert!(
        hub.contains(&"!VirtualNetworkGateway 10.4.0.0/16 VirtualNetworkGateway 10.1.255.4".to_owned()),
        "{hub:?}"
    );
    let branch = w.shown("branch/workload");
    assert!(branch.contains(&"!VirtualNetworkGateway 10.1.0.0/16 VirtualNetworkGateway 10.4.255.4".to_owned()));
    assert!(
        branch.contains(&"VirtualNetworkGateway 10.2.0.0/16 VirtualNetworkGateway 10.4.255.4".to_owned()),
        "D9: spoke-a stays on the VPN: {branch:?}"
    );
    assert!(
        w.shown("spoke-a/workload")
            .contains(&"VirtualNetworkGateway 10.4.0.0/16 VirtualNetworkGateway 10.1.255.4".to_owned())
    );
}

/// R7 step 1: a gateway route for a part of a peered VNet's range is invalid, even though its prefix is longer. A
/// user-defined route with a longer prefix stays active.
#[test]
fn r7_a_covered_gateway_prefix_is_discarded_however_long() {
    let mut w = World::default();
    w.vnet("hub", "10.1.0.0/16", "s=10.1.0.0/24 GatewaySubnet=10.1.255.0/27");
    w.vnet("peer", "10.4.0.0/14", "s=10.4.0.0/24");
    w.vnet("far", "10.4.7.0/24 10.8.0.0/16", "GatewaySubnet=10.8.255.0/27");
    w.gateway("hub", "10.1.255.4")
        .gateway("far", "10.8.255.4")
        .connect("hub", "far");
    w.peer("hub", "a", "peer", "a");
    w.routes("hub/s", "10.4.8.0/24>10.1.0.5 10.4.0.0/14>none");
    let shown = w.shown("hub/s");
    let has = |line: &str| assert!(shown.iter().any(|l| l == line), "{line} in {shown:#?}");
    has("!VirtualNetworkGateway 10.4.7.0/24 VirtualNetworkGateway 10.1.255.4");
    has("VirtualNetworkGateway 10.8.0.0/16 VirtualNetworkGateway 10.1.255.4");
    has("User 10.4.8.0/24 VirtualAppliance 10.1.0.5");
    has("User 10.4.0.0/14 None");
    has("!Default 10.4.0.0/14 VNetPeering");
}

/// R7 step 3: of several routes for the same prefix, the user-defined one is active; without one the gateway route;
/// otherwise the system route. No prefix has two active routes.
#[test]
fn r7_equal_prefixes() {
    let mut w = World::default();
    w.vnet(
        "hub",
        "10.1.0.0/16",
        "s=10.1.0.0/24 t=10.1.1.0/24 GatewaySubnet=10.1.255.0/27",
    );
    w.vnet("far", "192.168.0.0/16", "GatewaySubnet=192.168.255.0/27");
    w.gateway("hub", "10.1.255.4")
        .gateway("far", "192.168.255.4")
        .connect("hub", "far");
    w.routes("hub/t", "192.168.0.0/16>internet");
    let has = |subnet: &str, line: &str| assert!(w.shown(subnet).iter().any(|l| l == line), "{line}");
    has(
        "hub/s",
        "VirtualNetworkGateway 192.168.0.0/16 VirtualNetworkGateway 10.1.255.4",
    );
    has("hub/s", "!Default 192.168.0.0/16 None");
    has("hub/t", "User 192.168.0.0/16 Internet");
    has(
        "hub/t",
        "!VirtualNetworkGateway 192.168.0.0/16 VirtualNetworkGateway 10.1.255.4",
    );
    for subnet in ["hub/s", "hub/t"] {
        let mut active: Vec<_> = w
            .effective(subnet)
            .into_iter()
            .filter(|r| r.state == RouteState::Active)
            .collect();
        let all = active.len();
        active.sort_by_key(|r| r.prefix);
        active.dedup_by_key(|r| r.prefix);
        assert_eq!(active.len(), all, "{subnet}");
    }
}

/// R9: in a subnet with a user-defined route for 0.0.0.0/0, this route replaces the Internet route, and there are no
/// routes that drop the private blocks. Other subnets of the VNet keep their routes.
#[test]
fn r9_user_default_removes_the_none_blocks() {
    let mut w = World::default();
    w.vnet("v", "10.1.0.0/16 fd00::/48", "s=10.1.0.0/24 t=10.1.1.0/24");
    w.routes("v/s", "0.0.0.0/0>10.1.0.5");
    assert_eq!(
        w.shown("v/s"),
        [
            "Default 10.1.0.0/16 VnetLocal",
            "Default fd00::/48 VnetLocal",
            "!Default 0.0.0.0/0 Internet",
            "Default ::/0 Internet",
            "User 0.0.0.0/0 VirtualAppliance 10.1.0.5",
        ]
    );
    assert_eq!(w.shown("v/t").iter().filter(|l| l.ends_with(" None")).count(), 4);
}

/// R14: a user-defined route to VirtualNetworkGateway leads to the VPN gateway of the VNet or of its hub. If the VNet
/// uses no VPN gateway, the list of next-hop addresses is empty.
#[test]
fn r14_user_route_to_the_gateway() {
    let mut w = hub_and_spokes();
    w.vnet("alone", "10.9.0.0/16", "s=10.9.0.0/24");
    for (subnet, line) in [
        ("hub/workload", "User 10.3.0.0/16 VirtualNetworkGateway 10.1.255.4"),
        ("spoke-a/workload", "User 10.3.0.0/16 VirtualNetworkGateway 10.1.255.4"),
        ("alone/s", "User 10.3.0.0/16 VirtualNetworkGateway"),
    ] {
        w.routes(subnet, "10.3.0.0/16>gateway");
        assert!(
            w.shown(subnet).iter().any(|l| l == line),
            "{subnet}: {:?}",
            w.shown(subnet)
        );
    }
}

/// R15: a route table with disableBgpRoutePropagation removes all gateway routes of its subnet. The subnet's
/// user-defined routes stay, and so do the gateway routes of other spokes.
#[test]
fn r15_propagation_off() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.4.7.0/24>gateway");
    w.table_mut("spoke-a/workload").disable_bgp_route_propagation = true;
    let shown = w.shown("spoke-a/workload");
    assert!(!shown.iter().any(|l| l.contains("10.4.0.0/16")), "{shown:?}");
    assert!(shown.contains(&"User 10.4.7.0/24 VirtualNetworkGateway 10.1.255.4".to_owned()));
    assert!(w.shown("spoke-b/workload").iter().any(|l| l.contains("10.4.0.0/16")));
}

/// R22: the worked example of Azure's documentation, with its names and prefixes.
#[test]
fn r22_worked_example() {
    let mut w = World::default();
    w.vnet(
        "vnet1",
        "10.0.0.0/16",
        "Subnet1=10.0.0.0/24 Subnet2=10.0.1.0/24 nva=10.0.100.0/24 GatewaySubnet=10.0.255.0/27",
    );
    w.vnet("vnet2", "10.1.0.0/16 10.2.0.0/16", "s=10.1.0.0/24");
    w.vnet("premises", "10.10.0.0/16", "GatewaySubnet=10.10.255.0/27");
    w.peer("vnet1", "a", "vnet2", "a");
    w.gateway("vnet1", "10.0.255.4")
        .gateway("premises", "10.10.255.4")
        .connect("vnet1", "premises");
    w.routes(
        "vnet1/Subnet1",
        "10.0.0.0/16>10.0.100.4 10.0.0.0/24>local 10.1.0.0/16>none 10.2.0.0/16>none 10.10.0.0/16>10.0.100.4 \
         0.0.0.0/0>10.0.100.4",
    );
    assert_eq!(
        w.shown("vnet1/Subnet1"),
        [
            "!Default 10.0.0.0/16 VnetLocal",
            "!Default 10.1.0.0/16 VNetPeering",
            "!Default 10.2.0.0/16 VNetPeering",
            "!Default 0.0.0.0/0 Internet",
            "!VirtualNetworkGateway 10.10.0.0/16 VirtualNetworkGateway 10.0.255.4",
            "User 10.0.0.0/24 VnetLocal",
            "User 0.0.0.0/0 VirtualAppliance 10.0.100.4",
            "User 10.0.0.0/16 VirtualAppliance 10.0.100.4",
            "User 10.10.0.0/16 VirtualAppliance 10.0.100.4",
            "User 10.1.0.0/16 None",
            "User 10.2.0.0/16 None",
        ]
    );
    assert_eq!(
        w.shown("vnet1/Subnet2"),
        [
            "Default 10.0.0.0/16 VnetLocal",
            "Default 10.1.0.0/16 VNetPeering",
            "Default 10.2.0.0/16 VNetPeering",
            "Default 0.0.0.0/0 Internet",
            NONE_BLOCKS[0],
            NONE_BLOCKS[1],
            NONE_BLOCKS[2],
            NONE_BLOCKS[3],
            "VirtualNetworkGateway 10.10.0.0/16 VirtualNetworkGateway 10.0.255.4",
        ]
    );
}

/// R6: if the only agent of a VPN gateway is revoked, the subnets keep the gateway routes, but these have no next-hop
/// address. After the gateway is deleted, the routes are gone.
#[test]
fn a_gateway_without_agents_serves_nothing() {
    let mut w = hub_and_spokes();
    w.agent_mut("hub-gw").revoked = true;
    assert!(
        w.shown("spoke-a/workload")
            .contains(&"VirtualNetworkGateway 10.4.0.0/16 VirtualNetworkGateway".to_owned())
    );
    w.topology.gateways = w
        .topology
        .gateways
        .iter()
        .filter(|(id, _)| id.name() != "hub-gw")
        .map(|(id, gateway)| (id.clone(), Arc::clone(gateway)))
        .collect();
    assert!(
        !w.shown("spoke-a/workload").iter().any(|l| l.contains("Gateway")),
        "P20: the routes go"
    );
}
