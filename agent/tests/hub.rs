//! A hub with an appliance and a gateway on one host, two spokes, and a branch that is joined to the hub by a VPN
//! connection. The tests show that the kernel and the engine work together. The configurations are written by hand, and
//! there is no controller.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, eventually};
use ipnet::IpNet;
use tombolo_proto::config::{
    AgentConfig, DEFAULT_MTU, ForeignSources, Link, Nic, Owner, Probes, Relation, Role, Space, SpaceKind, Subnet,
    TransitRoute,
};
use tombolo_proto::id::{AgentId, PresharedKey, ResourceId};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
fn id(text: &str) -> ResourceId {
    ResourceId::new(format!("/{text}"))
}
fn agent(text: &str) -> AgentId {
    AgentId::new(text).unwrap()
}

fn route(source: RouteSource, prefix: &str, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    }
}
fn local(prefix: &str) -> EffectiveRoute {
    route(RouteSource::Default, prefix, NextHop::VnetLocal {})
}
fn peering(prefix: &str, name: &str) -> EffectiveRoute {
    route(RouteSource::Default, prefix, NextHop::VnetPeering { peering: id(name) })
}
fn appliance(prefix: &str, address: &str) -> EffectiveRoute {
    route(
        RouteSource::User,
        prefix,
        NextHop::VirtualAppliance {
            address: address.parse().unwrap(),
        },
    )
}
fn gateway(prefix: &str, name: &str, address: &str) -> EffectiveRoute {
    let gateways = vec![GatewayHop {
        agent: agent(name),
        address: address.parse().unwrap(),
    }];
    route(
        RouteSource::VirtualNetworkGateway,
        prefix,
        NextHop::VirtualNetworkGateway {
            gateways,
            spread: false,
        },
    )
}

fn space(kind: SpaceKind, vnet: &str, prefix: &str, owners: &[(&str, &str)]) -> Space {
    let owner = |(a, who): &(&str, &str)| Owner {
        prefix: net(a),
        agent: agent(who),
        ip_forwarding: false,
    };
    Space {
        vnet: id(vnet),
        kind,
        prefixes: vec![net(prefix)],
        owners: owners.iter().map(owner).collect(),
    }
}
fn peered(name: &str) -> SpaceKind {
    SpaceKind::Peered {
        peering: id(name),
        allow_access: true,
        allow_forwarded: true,
    }
}

fn vm(address: &str, forwarding: bool) -> Role {
    let nic = Nic {
        id: id("nic"),
        addresses: vec![net(address)],
        subnet: id("subnet"),
        ip_forwarding: forwarding,
        host_routes: Vec::new(),
    };
    Role::Vm {
        nics: vec![nic],
        served: vec![],
        gateways: Vec::new(),
    }
}
fn vpn(address: &str, local_prefixes: &[&str], transit: &[(&str, &str)]) -> Role {
    Role::VpnGateway {
        gateway: id("gateway"),
        addresses: vec![address.parse().unwrap()],
        local_prefixes: local_prefixes.iter().map(|p| net(p)).collect(),
        transit: transit
            .iter()
            .map(|(p, via)| TransitRoute {
                prefix: net(p),
                connection: id("connection"),
                via: vec![agent(via)],
            })
            .collect(),
        asn: 65_515,
        connections: Vec::new(),
        bgp: None,
        site_ttl: tombolo_proto::config::SiteTtl::SilentHop,
    }
}

/// The agents: name, number of the host (from 0; the host's underlay address is `192.0.2.{host + 1}`), and UDP port.
const AGENTS: [(&str, usize, u16); 6] = [
    ("appliance", 0, 51820),
    ("hub-gw", 0, 51821),
    ("spoke-a", 1, 51820),
    ("spoke-b", 2, 51820),
    ("branch-gw", 3, 51821),
    ("branch-vm", 3, 51820),
];

struct Hosts(Vec<Host>);

impl Hosts {
    fn link(&self, peer: &str, relation: Relation, sources: &[&str], foreign: ForeignSources) -> Link {
        let at = AGENTS.iter().position(|a| a.0 == peer).unwrap();
        let connection = matches!(relation, Relation::Connection { .. });
        Link {
            peer: agent(peer),
            public_key: self.0[at].key,
            preshared_key: connection.then_some(PresharedKey([9; 32])),
            endpoint: Some(
                format!("192.0.2.{}:{}", AGENTS[at].1 + 1, AGENTS[at].2)
                    .parse()
                    .unwrap(),
            ),
            quic_endpoint: None,
            peer_lanes: 1,
            many_routes: false,
            quic: None,
            transport: tombolo_proto::config::Transport::WireGuard,
            always_on: connection,
            initiator: connection && peer == "branch-gw",
            relation,
            sources: sources.iter().map(|p| net(p)).collect(),
            foreign,
            arrivals: Vec::new(),
            monitored: false,
            third_party: false,
            dpd_timeout: None,
        }
    }

    fn remember(
        &self,
        who: &str,
        space: &str,
        role: Role,
        routes: Vec<EffectiveRoute>,
        spaces: Vec<Space>,
        mut links: Vec<Link>,
    ) {
        links.sort_by(|a, b| a.peer.cmp(&b.peer));
        let at = AGENTS.iter().position(|a| a.0 == who).unwrap();
        self.0[at].remember(AgentConfig {
            agent: agent(who),
            vnet: spaces[0].vnet.clone(),
            address_space: vec![net(space)],
            mtu: DEFAULT_MTU,
            probes: Probes::default(),
            role,
            subnets: vec![Subnet {
                id: id("subnet"),
                prefixes: vec![],
                routes,
                isolated: false,
            }],
            spaces,
            links,
            security: None,
            front_ends: Vec::new(),
            limits: None,
        });
    }
}

const HUB: [(&str, &str); 2] = [("10.1.0.5/32", "appliance"), ("10.1.255.4/32", "hub-gw")];
const A: [(&str, &str); 1] = [("10.2.0.4/32", "spoke-a")];
const B: [(&str, &str); 1] = [("10.3.0.4/32", "spoke-b")];
const BRANCH: [(&str, &str); 2] = [("10.4.0.4/32", "branch-vm"), ("10.4.255.4/32", "branch-gw")];

fn configure(h: &Hosts) {
    use ForeignSources::{Any, None, OutsideOwnSpace};
    use SpaceKind::{GatewayClient, Local};
    let peer = |name: &str| Relation::Peering { peering: id(name) };
    let connection = || Relation::Connection {
        connection: id("connection"),
    };

    for (me, space_, owner, other) in [
        ("spoke-a", "10.2.0.0/16", A, "10.3.0.0/16"),
        ("spoke-b", "10.3.0.0/16", B, "10.2.0.0/16"),
    ] {
        let address = owner[0].0.replace("/32", "/24");
        let mut routes = vec![
            local(space_),
            peering("10.1.0.0/16", "to-hub"),
            appliance(other, "10.1.0.5"),
        ];
        let mut links = vec![h.link("appliance", peer("to-hub"), &["10.1.0.5/32"], OutsideOwnSpace)];
        if me == "spoke-a" {
            routes.push(gateway("10.4.0.0/16", "hub-gw", "10.1.255.4"));
            links.push(h.link("hub-gw", Relation::Gateway {}, &["10.4.0.0/16", "10.1.255.4/32"], None));
        }
        let spaces = vec![
            space(Local {}, me, space_, &owner),
            space(peered("to-hub"), "hub", "10.1.0.0/16", &HUB),
        ];
        h.remember(me, space_, vm(&address, false), routes, spaces, links);
    }
    h.remember(
        "appliance",
        "10.1.0.0/16",
        vm("10.1.0.5/24", true),
        vec![
            local("10.1.0.0/16"),
            peering("10.2.0.0/16", "to-a"),
            peering("10.3.0.0/16", "to-b"),
            gateway("10.4.0.0/16", "hub-gw", "10.1.255.4"),
        ],
        vec![
            space(Local {}, "hub", "10.1.0.0/16", &HUB),
            space(peered("to-a"), "a", "10.2.0.0/16", &A),
            space(peered("to-b"), "b", "10.3.0.0/16", &B),
        ],
        vec![
            h.link("spoke-a", peer("to-a"), &["10.2.0.4/32"], None),
            h.link("spoke-b", peer("to-b"), &["10.3.0.4/32"], None),
            h.link("hub-gw", Relation::Gateway {}, &["10.4.0.0/16", "10.1.255.4/32"], None),
        ],
    );
    h.remember(
        "hub-gw",
        "10.1.0.0/16",
        vpn(
            "10.1.255.4",
            &["10.1.0.0/16", "10.2.0.0/16"],
            &[("10.4.0.0/16", "branch-gw")],
        ),
        vec![local("10.1.0.0/16"), peering("10.2.0.0/16", "to-a")],
        vec![
            space(Local {}, "hub", "10.1.0.0/16", &HUB),
            space(GatewayClient {}, "a", "10.2.0.0/16", &A),
        ],
        vec![
            h.link("appliance", Relation::GatewayClient {}, &["10.1.0.5/32"], Any),
            h.link("spoke-a", Relation::GatewayClient {}, &["10.2.0.4/32"], None),
            h.link("branch-gw", connection(), &["10.4.0.0/16"], None),
        ],
    );
    h.remember(
        "branch-gw",
        "10.4.0.0/16",
        vpn(
            "10.4.255.4",
            &["10.4.0.0/16"],
            &[("10.1.0.0/16", "hub-gw"), ("10.2.0.0/16", "hub-gw")],
        ),
        vec![local("10.4.0.0/16")],
        vec![space(Local {}, "branch", "10.4.0.0/16", &BRANCH)],
        vec![
            h.link("branch-vm", Relation::GatewayClient {}, &["10.4.0.4/32"], None),
            h.link("hub-gw", connection(), &["10.1.0.0/16", "10.2.0.0/16"], None),
        ],
    );
    h.remember(
        "branch-vm",
        "10.4.0.0/16",
        vm("10.4.0.4/24", false),
        vec![
            local("10.4.0.0/16"),
            gateway("10.1.0.0/16", "branch-gw", "10.4.255.4"),
            gateway("10.2.0.0/16", "branch-gw", "10.4.255.4"),
        ],
        vec![space(Local {}, "branch", "10.4.0.0/16", &BRANCH)],
        vec![h.link(
            "branch-gw",
            Relation::Gateway {},
            &["10.1.0.0/16", "10.2.0.0/16", "10.4.255.4/32"],
            None,
        )],
    );
}

/// The address from which a ping with this TTL is answered, by a reply or by an ICMP error. None: no answer arrives.
fn hop(wire: &Wire, side: usize, to: &str, ttl: u8) -> Option<String> {
    let (_, text) = wire.exec(side, &format!("ping -n -c 1 -W 1 -t {ttl} {to}"));
    let answer = text.lines().find(|l| l.contains("From ") || l.contains("bytes from"))?;
    let address = answer.split_whitespace().find(|w| w.starts_with("10."))?;
    Some(address.trim_end_matches(':').to_owned())
}

#[test]
fn appliance_and_gateways_on_shared_hosts() {
    let wire = Wire::with_hosts("hub", 4);
    let make = |(name, host, port): (&str, usize, u16)| {
        let mut h = Host::new(&wire.ns[host], name);
        h.config.listen_port = port;
        h.config.save(&h.state).unwrap();
        h
    };
    let mut hosts = Hosts(AGENTS.map(make).into());
    configure(&hosts);
    hosts.0.iter_mut().for_each(Host::start);

    // Packets between the spokes go through the appliance. The appliance's kernel forwards them, answers traceroute
    // with the address of the appliance's NIC, and sends no ICMP redirects.
    eventually("spoke-a to spoke-b", || wire.exec(1, "ping -c 1 -W 1 10.3.0.4").0);
    let (ok, text) = wire.exec(1, "ping -n -c 20 -i 0.02 10.3.0.4");
    assert!(
        ok && text.contains("20 received") && !text.contains("Redirect"),
        "{text}"
    );
    let hops: Vec<_> = (1..=2).map(|ttl| hop(&wire, 1, "10.3.0.4", ttl)).collect();
    assert_eq!(hops, [Some("10.1.0.5".to_owned()), Some("10.3.0.4".to_owned())]);

    // Packets to the branch go through two gateways. The first gateway answers traceroute with its address in the
    // GatewaySubnet, and the second gateway is silent (T5).
    eventually("spoke-a to branch", || wire.exec(1, "ping -c 1 -W 1 10.4.0.4").0);
    let hops: Vec<_> = (1..=3).map(|ttl| hop(&wire, 1, "10.4.0.4", ttl)).collect();
    assert_eq!(hops, [Some("10.1.255.4".to_owned()), None, Some("10.4.0.4".to_owned())]);

    // The branch's host has a VM and a gateway. A socket that is not bound to an address uses the VM's address as
    // source, not the gateway's.
    eventually("branch to spoke-a", || wire.exec(3, "ping -c 1 -W 1 10.2.0.4").0);
    let (ok, text) = wire.exec(3, "ping -n -c 1 -W 1 10.1.0.5");
    assert!(ok, "{text}");
    let silent = &hosts.0[4].status().unwrap()["status"]["drops"]["ttl_exceeded_silent"];
    assert!(
        silent.as_u64().is_some_and(|n| n >= 1),
        "a silent step is counted (D23): {silent}"
    );

    // While the appliance's agent runs, the sysctl `send_redirects` of its host is 0. When the agents have ended, it
    // has its earlier value again.
    assert_eq!(
        wire.run(0, "cat /proc/sys/net/ipv4/conf/all/send_redirects").trim(),
        "0"
    );
    for host in &mut hosts.0 {
        assert!(host.stop(nix::sys::signal::Signal::SIGTERM), "{}", host.log());
    }
    assert_eq!(
        wire.run(0, "cat /proc/sys/net/ipv4/conf/all/send_redirects").trim(),
        "1"
    );
    for host in &hosts.0 {
        let program = env!("CARGO_BIN_EXE_tombolo-agent");
        let side = AGENTS.iter().find(|a| a.0 == host.config.agent.as_str()).unwrap().1;
        wire.run(side, &format!("{program} clean --state-dir {}", host.path().display()));
    }
    assert!(!wire.run(0, "ip rule").contains("fwmark"));
    assert_eq!(wire.run(0, "nft list tables"), "");
}
