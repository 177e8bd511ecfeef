//! The spaces, owners and links of configurations: P18, P21, P27, D8, D9, D10, D14, G9, G10, G11, R12.

use crate::world::{World, agent, hub_and_spokes, id, ip, nets, peering_id, subnet_id, vnet_id};
use ipnet::IpNet;
use tombolo_proto::config::{AgentConfig, ForeignSources, Relation, Role, Space, SpaceKind, Transport};
use tombolo_topology::compile::compile;

/// The space of a VNet in a configuration.
fn space<'c>(config: &'c AgentConfig, vnet: &str) -> Option<&'c Space> {
    config.spaces.iter().find(|s| s.vnet == vnet_id(vnet))
}

/// The owners of a VNet's addresses in a configuration, as lines `prefix agent`.
fn owners(config: &AgentConfig, vnet: &str) -> Vec<String> {
    let space = space(config, vnet).unwrap();
    let line = |o: &tombolo_proto::config::Owner| format!("{} {}", o.prefix, o.agent);
    space.owners.iter().map(line).collect()
}

/// The agents with which a configuration has links.
fn peers(config: &AgentConfig) -> Vec<&str> {
    config.links.iter().map(|l| l.peer.as_str()).collect()
}

fn covers(sources: &[IpNet], address: &str) -> bool {
    sources.iter().any(|p| p.contains(&ip(address)))
}

#[test]
fn a_vm_knows_its_vnet_its_peers_and_its_gateway() {
    let w = hub_and_spokes();
    let hub = w.config("hub-vm");
    assert_eq!(hub.vnet, vnet_id("hub"));
    assert_eq!(peers(&hub), ["a-vm", "b-vm", "hub-gw", "hub-nva"]);
    assert_eq!(
        owners(&hub, "hub"),
        ["10.1.0.4/32 hub-vm", "10.1.0.5/32 hub-nva", "10.1.255.4/32 hub-gw"]
    );
    assert_eq!(owners(&hub, "spoke-a"), ["10.2.0.4/32 a-vm"]);
    assert!(matches!(&space(&hub, "spoke-a").unwrap().kind,
        SpaceKind::Peered { peering, allow_access: true, allow_forwarded: false } if *peering == peering_id("hub", "spoke-a")));
    let Role::Vm { nics, served, .. } = &hub.role else {
        panic!("a VM")
    };
    assert_eq!(
        (nics.len(), nics[0].addresses.clone(), served.len()),
        (1, nets("10.1.0.4/24"), 0)
    );
    assert_eq!(hub.subnets.len(), 1);
    assert_eq!(
        hub.subnets[0].routes,
        w.effective("hub/workload"),
        "shown is what is sent"
    );

    let spoke = w.config("a-vm");
    assert_eq!(peers(&spoke), ["hub-gw", "hub-nva", "hub-vm"]);
    assert_eq!(spoke.links[0].relation, Relation::Gateway {});
    assert_eq!(
        owners(&spoke, "hub"),
        ["10.1.0.4/32 hub-vm", "10.1.0.5/32 hub-nva"],
        "no gateway address over a peering"
    );
    assert!(space(&spoke, "spoke-b").is_none(), "P24");
}

/// D6: if one half of a peering has an explicit transport, agents of both VNets use it for their links across the
/// peering, also for links to a gateway that the VNet uses. Links that must use WireGuard, such as those of VPN
/// connections, have no QUIC key in the configuration.
#[test]
fn d6_transport_of_links() {
    let mut w = hub_and_spokes();
    let link = |w: &World, of: &str, to: &str| w.link(of, to).map(|l| (l.transport, l.quic.is_some()));
    assert_eq!(link(&w, "a-vm", "hub-vm"), Some((Transport::Automatic, true)));
    w.half_mut("hub", "spoke-a").transport = Transport::Quic;
    for (of, to) in [
        ("a-vm", "hub-vm"),
        ("hub-vm", "a-vm"),
        ("a-vm", "hub-gw"),
        ("hub-gw", "a-vm"),
    ] {
        assert_eq!(link(&w, of, to), Some((Transport::Quic, true)), "{of} to {to}");
    }
    assert_eq!(link(&w, "b-vm", "hub-vm"), Some((Transport::Automatic, true)));
    w.half_mut("spoke-b", "hub").transport = Transport::WireGuard;
    assert_eq!(link(&w, "hub-vm", "b-vm"), Some((Transport::WireGuard, false)));
    assert_eq!(
        link(&w, "hub-vm", "hub-nva"),
        Some((Transport::Automatic, true)),
        "inside a VNet"
    );
    assert_eq!(link(&w, "hub-gw", "branch-gw"), Some((Transport::WireGuard, false)));
}

/// D6, D15: an agent's number of lanes is in the configurations of its peers. Its QUIC endpoint is there too, if the
/// link may use QUIC.
#[test]
fn d6_d15_second_ports_and_lanes_of_links() {
    let mut w = hub_and_spokes();
    for name in ["hub-vm", "hub-gw"] {
        let reach = &mut w.agent_mut(name).reach;
        (reach.quic_endpoint, reach.lanes) = (Some("192.0.2.1:443".parse().unwrap()), 4);
    }
    let link = |w: &World, of: &str, to: &str| {
        w.link(of, to)
            .map(|l| (l.quic_endpoint.map(|e| e.port()), l.peer_lanes))
    };
    assert_eq!(link(&w, "a-vm", "hub-vm"), Some((Some(443), 4)));
    assert_eq!(link(&w, "hub-vm", "a-vm"), Some((None, 1)));
    assert_eq!(link(&w, "branch-gw", "hub-gw"), Some((None, 4)), "a VPN connection");
    w.half_mut("hub", "spoke-a").transport = Transport::WireGuard;
    assert_eq!(link(&w, "a-vm", "hub-vm"), Some((None, 4)));
}

/// D8: one host's agent carries the packets of a whole subnet, whose machines need no agents (a served subnet), so this
/// agent owns the subnet's prefix. If a NIC in the subnet nevertheless belongs to an agent of its own, that agent owns
/// the NIC's address. The host's configuration has the served subnet's routes (R20).
#[test]
fn d8_served_subnets() {
    let mut w = World::default();
    w.vnet("v", "10.1.0.0/16", "s=10.1.0.0/24 behind=10.1.1.0/24");
    w.vm("one", "v/s=10.1.0.4")
        .nic("host-nic", "v/s=10.1.0.5", true)
        .vm("in-between", "v/behind=10.1.1.9");
    w.bind("host", World::vm_binding("host", &["host-nic"], &["v/behind"]));
    let one = w.config("one");
    assert_eq!(
        owners(&one, "v"),
        [
            "10.1.0.4/32 one",
            "10.1.0.5/32 host",
            "10.1.1.0/24 host",
            "10.1.1.9/32 in-between"
        ]
    );
    // D10: a machine in a served subnet that has an agent of its own does not send through the host. So the host may
    // not use this machine's address as a source.
    assert_eq!(
        w.link("one", "host").unwrap().sources,
        nets(
            "10.1.0.5/32 10.1.1.0/29 10.1.1.8/32 10.1.1.10/31 10.1.1.12/30 10.1.1.16/28 10.1.1.32/27 10.1.1.64/26 \
             10.1.1.128/25"
        )
    );
    let host = w.config("host");
    let subnets: Vec<_> = host.subnets.iter().map(|s| s.id.name().to_owned()).collect();
    assert_eq!(subnets, ["behind", "s"]);
    assert!(matches!(&host.role, Role::Vm { served, .. } if *served == nets("10.1.1.0/24")));
}

/// D10, P18: to machines of its own VNet, an appliance may forward packets with any source. To a peered VNet, it may
/// forward packets whose source is outside of its own VNet only if the receiving VNet's half of the peering has
/// allowForwardedTraffic.
#[test]
fn p18_d10_foreign_sources() {
    let mut w = hub_and_spokes();
    assert_eq!(w.link("hub-vm", "hub-nva").unwrap().foreign, ForeignSources::Any);
    assert_eq!(w.link("hub-gw", "hub-nva").unwrap().foreign, ForeignSources::Any);
    assert_eq!(w.link("hub-nva", "hub-vm").unwrap().foreign, ForeignSources::None);
    assert_eq!(w.link("a-vm", "hub-nva").unwrap().foreign, ForeignSources::None);
    // allowForwardedTraffic on the other half of the peering, that of the appliance's own VNet, does not permit this.
    w.half_mut("hub", "spoke-a").allow_forwarded_traffic = true;
    assert_eq!(w.link("a-vm", "hub-nva").unwrap().foreign, ForeignSources::None);
    w.half_mut("spoke-a", "hub").allow_forwarded_traffic = true;
    assert_eq!(
        w.link("a-vm", "hub-nva").unwrap().foreign,
        ForeignSources::OutsideOwnSpace
    );
    assert_eq!(
        w.link("a-vm", "hub-vm").unwrap().foreign,
        ForeignSources::None,
        "not an appliance (R12)"
    );
    assert_eq!(
        w.link("b-vm", "hub-nva").unwrap().foreign,
        ForeignSources::None,
        "the other spoke's half is off"
    );
}

/// P18: an appliance needs no flag to forward for machines of its own VNet. allowForwardedTraffic concerns only sources
/// outside of that VNet.
#[test]
fn p18_an_appliance_may_forward_for_its_own_vnet() {
    let w = hub_and_spokes();
    let nva = w.link("a-vm", "hub-nva").unwrap();
    assert_eq!((nva.sources, nva.foreign), (nets("10.1.0.0/16"), ForeignSources::None));
    assert_eq!(
        w.link("a-vm", "hub-vm").unwrap().sources,
        nets("10.1.0.4/32"),
        "not an appliance"
    );
}

/// P21c: a spoke's machine has a link with the hub's gateway. P21a: over this link the gateway may relay packets from
/// the branch.
#[test]
fn p21_gateway_links() {
    let w = hub_and_spokes();
    let down = w.link("a-vm", "hub-gw").unwrap();
    assert_eq!(down.relation, Relation::Gateway {});
    assert_eq!(down.foreign, ForeignSources::None);
    // The gateway may relay packets from the branch, from the hub and from the other spoke (P21d: by a user-defined
    // route to the gateway), and may send from its own address.
    for relayed in ["10.4.0.4", "10.1.0.4", "10.3.0.4", "10.1.255.4"] {
        assert!(covers(&down.sources, relayed), "{relayed}");
    }
    assert!(
        !covers(&down.sources, "10.2.0.4"),
        "D10: nothing of the receiver's own space"
    );
    assert!(!covers(&down.sources, "10.9.0.4"));
    let up = w.link("hub-gw", "a-vm").unwrap();
    assert_eq!(up.relation, Relation::GatewayClient {});
    assert_eq!(up.sources, nets("10.2.0.4/32"));
    let own = w.link("hub-vm", "hub-gw").unwrap();
    assert!(covers(&own.sources, "10.1.255.4") && !covers(&own.sources, "10.1.0.9"));

    let Role::VpnGateway {
        addresses,
        local_prefixes,
        transit,
        ..
    } = w.config("hub-gw").role
    else {
        panic!("a gateway")
    };
    assert_eq!(addresses, [ip("10.1.255.4")]);
    assert_eq!(local_prefixes, nets("10.1.0.0/16 10.2.0.0/16 10.3.0.0/16"));
    assert_eq!(transit.len(), 1);
    assert_eq!(transit[0].prefix, nets("10.4.0.0/16")[0]);
    assert_eq!(transit[0].via, [agent("branch-gw")]);
    let config = w.config("hub-gw");
    assert_eq!(space(&config, "spoke-a").unwrap().kind, SpaceKind::GatewayClient {});
    assert_eq!(config.subnets[0].id, subnet_id("hub/GatewaySubnet"));
    assert_eq!(peers(&config), ["a-vm", "b-vm", "branch-gw", "hub-nva", "hub-vm"]);
}

/// D9: the configuration of the hub's gateway has no space and no link for a peered VNet that does not use the gateway.
/// The hub is also peered with the branch here; packets between a spoke and the branch may still go through the two
/// gateways.
#[test]
fn d9_no_relay_between_gateway_and_plain_peerings() {
    let mut w = hub_and_spokes();
    w.vnet("plain", "10.5.0.0/16", "s=10.5.0.0/24")
        .vm("plain-vm", "plain/s=10.5.0.4");
    w.peer("hub", "at", "plain", "a").peer("hub", "a", "branch", "a");
    let gateway = w.config("hub-gw");
    assert!(space(&gateway, "plain").is_none() && space(&gateway, "branch").is_none());
    assert_eq!(peers(&gateway), ["a-vm", "b-vm", "branch-gw", "hub-nva", "hub-vm"]);
    assert!(w.link("plain-vm", "hub-gw").is_none());
    assert!(covers(&w.link("branch-vm", "branch-gw").unwrap().sources, "10.2.0.4"));
    assert!(covers(&w.link("a-vm", "hub-gw").unwrap().sources, "10.4.0.4"));
    assert!(!covers(&w.link("branch-gw", "hub-gw").unwrap().sources, "10.5.0.4"));
}

/// G9: over a tunnel, a gateway accepts packets whose source is in the far VNet or in a spoke that uses the far
/// gateway, but not in one of its own networks.
#[test]
fn g9_sources_of_a_connection() {
    let mut w = hub_and_spokes();
    let link = w.link("branch-gw", "hub-gw").unwrap();
    assert_eq!(link.sources, nets("10.1.0.0/16 10.2.0.0/16 10.3.0.0/16"));
    assert_eq!(
        link.relation,
        Relation::Connection {
            connection: id("connections", "branch-to-hub")
        }
    );
    assert!(link.always_on && link.initiator, "'branch-gw' comes before 'hub-gw'");
    assert!(!w.link("hub-gw", "branch-gw").unwrap().initiator);
    // If the far VNet's range contains the hub's spokes, packets over the tunnel may come only from the part of the
    // range that is outside of these spokes.
    w.vnet_mut("branch").address_space = nets("10.2.0.0/15 10.4.0.0/16");
    let sources = w.link("hub-gw", "branch-gw").unwrap().sources;
    assert!(!covers(&sources, "10.2.0.4") && !covers(&sources, "10.3.0.4") && covers(&sources, "10.4.0.4"));
}

/// G10: there is a tunnel only if both connection objects exist. G11: a gateway whose connection object has no shared
/// key has no link for it.
#[test]
fn g10_g11_what_a_tunnel_needs() {
    let mut w = hub_and_spokes();
    w.topology.connections.retain(|id, _| id.name() != "branch-to-hub");
    assert!(w.link("hub-gw", "branch-gw").is_none() && w.link("branch-gw", "hub-gw").is_none());
    w.connection("branch", "hub", None);
    assert!(w.link("branch-gw", "hub-gw").is_none(), "the own object has no key");
    let role = w.config("branch-gw").role;
    assert!(matches!(&role, Role::VpnGateway { transit, .. } if transit.iter().all(|t| t.via.is_empty())));
    assert!(
        w.link("hub-gw", "branch-gw").is_some(),
        "this side has one: the handshake finds out"
    );
}

/// D14: if the two connection objects have equal shared keys, both ends derive the same preshared key; if the shared
/// keys differ, the preshared keys differ too. The preshared key depends on the pair of gateways and never equals the
/// shared key. Links that belong to no VPN connection have no preshared key.
#[test]
fn d14_preshared_keys() {
    let mut w = hub_and_spokes();
    let key = |w: &World, of: &str, to: &str| w.link(of, to).unwrap().preshared_key.unwrap();
    let right = key(&w, "hub-gw", "branch-gw");
    assert_eq!(right, key(&w, "branch-gw", "hub-gw"));
    w.connection("branch", "hub", Some("abd"));
    assert_eq!(right, key(&w, "hub-gw", "branch-gw"), "the own object's key alone");
    assert_ne!(
        right,
        key(&w, "branch-gw", "hub-gw"),
        "a wrong key fails in the handshake"
    );
    w.vnet("third", "10.6.0.0/16", "GatewaySubnet=10.6.255.0/27")
        .gateway("third", "10.6.255.4");
    w.connect("hub", "third");
    assert_ne!(
        right,
        key(&w, "hub-gw", "third-gw"),
        "the same text between other gateways"
    );
    for link in w.config("hub-gw").links {
        assert_eq!(
            link.preshared_key.is_some(),
            matches!(link.relation, Relation::Connection { .. })
        );
    }
    let text = String::from_utf8(w.config("hub-gw").to_bytes()).unwrap();
    assert!(!text.contains("\"abc\""));
}

/// G6: between two gateways with two instances each there are four tunnels. The routes of subnets and of gateways have
/// both instances as next hops, the first instance first.
#[test]
fn g6_active_active() {
    let mut w = World::default();
    w.vnet("a", "10.1.0.0/16", "s=10.1.0.0/24 GatewaySubnet=10.1.255.0/27");
    w.vnet("b", "10.2.0.0/16", "s=10.2.0.0/24 GatewaySubnet=10.2.255.0/27");
    w.gateway("a", "10.1.255.5 10.1.255.4")
        .gateway("b", "10.2.255.4 10.2.255.5")
        .connect("a", "b");
    w.vm("a-vm", "a/s=10.1.0.4");
    for of in ["a-gw", "a-gw-2"] {
        for to in ["b-gw", "b-gw-2"] {
            assert!(w.link(of, to).is_some() && w.link(to, of).is_some());
        }
        assert!(w.link("a-vm", of).is_some());
    }
    let routes = w.effective("a/s");
    let route = routes.iter().find(|r| r.prefix == nets("10.2.0.0/16")[0]).unwrap();
    assert_eq!(
        route.next_hop.addresses(),
        [ip("10.1.255.5"), ip("10.1.255.4")],
        "in order of the ipConfigurations"
    );
    w.agent_mut("b-gw").revoked = true;
    let Role::VpnGateway { transit, .. } = w.config("a-gw").role else {
        panic!("a gateway")
    };
    assert_eq!(transit[0].via, [agent("b-gw-2")]);
}

/// P27: while a half has not synced an address range of the remote VNet, agents of its VNet have no link with machines
/// in this range, and no agent owns addresses in it.
#[test]
fn p27_unsynced_addresses_have_no_owner() {
    let mut w = hub_and_spokes();
    w.vnet_mut("spoke-a").address_space.push("10.9.0.0/16".parse().unwrap());
    let mut subnet = w.vnet_mut("spoke-a").subnets[0].clone();
    (subnet.id, subnet.prefixes) = (subnet_id("spoke-a/new"), nets("10.9.0.0/24"));
    w.vnet_mut("spoke-a").subnets.push(subnet);
    w.vm("new-vm", "spoke-a/new=10.9.0.4");
    assert!(w.link("hub-vm", "new-vm").is_none() && w.link("hub-gw", "new-vm").is_none());
    assert_eq!(owners(&w.config("hub-vm"), "spoke-a"), ["10.2.0.4/32 a-vm"]);
    assert_eq!(w.link("a-vm", "new-vm").unwrap().relation, Relation::VnetLocal {});
    w.half_mut("hub", "spoke-a")
        .remote_address_space
        .push("10.9.0.0/16".parse().unwrap());
    assert_eq!(w.link("hub-vm", "new-vm").unwrap().sources, nets("10.9.0.4/32"));
}

/// A revoked agent has no configuration, and the configurations of other agents do not mention it.
#[test]
fn revoked_agents_are_nowhere() {
    let mut w = hub_and_spokes();
    for name in ["hub-nva", "hub-gw", "branch-gw"] {
        w.agent_mut(name).revoked = true;
        assert!(compile(&w.topology, &agent(name)).is_none());
        for other in ["hub-vm", "a-vm", "b-vm", "branch-vm"] {
            let text = String::from_utf8(w.config(other).to_bytes()).unwrap();
            assert!(!text.contains(&format!("\"{name}\"")), "{name} in {other}");
        }
    }
    assert!(compile(&w.topology, &agent("nobody")).is_none());
}

/// In a dual-stack VNet, owners, permitted sources and NICs have the addresses of both families.
#[test]
fn both_families() {
    let mut w = World::default();
    w.vnet("a", "10.1.0.0/16 fd00:1::/48", "s=10.1.0.0/24,fd00:1::/64");
    w.vnet("b", "10.2.0.0/16 fd00:2::/48", "s=10.2.0.0/24,fd00:2::/64");
    w.peer("a", "a", "b", "a")
        .vm("a-vm", "a/s=10.1.0.4 a/s=fd00:1::4")
        .vm("b-vm", "b/s=10.2.0.4 b/s=fd00:2::4");
    assert_eq!(
        owners(&w.config("a-vm"), "b"),
        ["10.2.0.4/32 b-vm", "fd00:2::4/128 b-vm"]
    );
    assert_eq!(
        w.link("a-vm", "b-vm").unwrap().sources,
        nets("10.2.0.4/32 fd00:2::4/128")
    );
    assert!(
        matches!(&w.config("a-vm").role, Role::Vm { nics, .. } if nics[0].addresses == nets("10.1.0.4/24 fd00:1::4/64"))
    );
}
