//! Builders that put resources into a topology directly. They send no requests, so the rules that requests must satisfy
//! are not checked.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tombolo_proto::config::{Access, AgentConfig, Direction, GatewayKind, Link, RuleProtocol, Transport, digest};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::{EffectiveRoute, RouteState};
use tombolo_topology::compile::Compiler;
use tombolo_topology::resource::{
    Agent, Binding, Connection, ConnectionType, Envelope, GatewayIpConfiguration, LoadBalancer, NetworkInterface,
    NetworkSecurityGroup, NicIpConfiguration, Peering, PeeringState, Reach, Route, RouteTable, RuleAddresses,
    RulePorts, RuleSide, SecurityRule, Subnet, UserNextHop, VirtualNetwork, VirtualNetworkGateway,
};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab";

/// The id of a resource of the group `lab`. `kind`: its type, e.g. `virtualNetworks`.
pub(crate) fn id(kind: &str, name: &str) -> ResourceId {
    ResourceId::new(format!("{GROUP}/providers/Microsoft.Network/{kind}/{name}"))
}

pub(crate) fn vnet_id(name: &str) -> ResourceId {
    id("virtualNetworks", name)
}

/// The id of the subnet `vnet/subnet`.
pub(crate) fn subnet_id(path: &str) -> ResourceId {
    let (vnet, subnet) = path.split_once('/').unwrap();
    ResourceId::new(format!("{}/subnets/{subnet}", vnet_id(vnet)))
}

/// The id of the peering half `to-{remote}` of a VNet.
pub(crate) fn peering_id(vnet: &str, remote: &str) -> ResourceId {
    ResourceId::new(format!("{}/virtualNetworkPeerings/to-{remote}", vnet_id(vnet)))
}

pub(crate) fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

/// Prefixes that are separated by spaces.
pub(crate) fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The flags of a peering half that are on, one letter for each: `a` = allowVirtualNetworkAccess, `f` =
/// allowForwardedTraffic, `t` = allowGatewayTransit, `r` = useRemoteGateways.
pub(crate) type Flags<'f> = &'f str;

/// A topology under construction. Each agent gets an endpoint and keys of its own.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) topology: Topology,
    endpoints: u16,
}

impl World {
    /// An envelope without tags, and with nil GUIDs.
    pub(crate) fn envelope(id: ResourceId, location: &str) -> Envelope {
        Envelope {
            id,
            location: location.into(),
            tags: BTreeMap::new(),
            etag: Uuid::nil(),
            resource_guid: Uuid::nil(),
            echoed: serde_json::Map::new(),
        }
    }

    /// Adds a VNet in `region1`. `ranges`: its prefixes; `subnets`: `name=prefix,prefix …`.
    pub(crate) fn vnet(&mut self, name: &str, ranges: &str, subnets: &str) -> &mut Self {
        self.vnet_in(name, "region1", ranges, subnets)
    }

    /// Adds a VNet in a region.
    pub(crate) fn vnet_in(&mut self, name: &str, region: &str, ranges: &str, subnets: &str) -> &mut Self {
        let subnets = subnets.split_whitespace().map(|s| {
            let (subnet, prefixes) = s.split_once('=').unwrap();
            Subnet {
                id: subnet_id(&format!("{name}/{subnet}")),
                etag: Uuid::nil(),
                prefixes: prefixes.split(',').map(|p| p.parse().unwrap()).collect(),
                lists_prefixes: false,
                route_table: None,
                network_security_group: None,
                echoed: serde_json::Map::new(),
            }
        });
        let vnet = VirtualNetwork {
            envelope: Self::envelope(vnet_id(name), region),
            address_space: nets(ranges),
            subnets: subnets.collect(),
            peerings: Vec::new(),
        };
        self.topology.vnets.insert(vnet_id(name), Arc::new(vnet));
        self
    }

    pub(crate) fn vnet_mut(&mut self, name: &str) -> &mut VirtualNetwork {
        Arc::make_mut(self.topology.vnets.get_mut(&vnet_id(name)).unwrap())
    }

    pub(crate) fn half_mut(&mut self, vnet: &str, remote: &str) -> &mut Peering {
        let remote = vnet_id(remote);
        let halves = &mut self.vnet_mut(vnet).peerings;
        halves.iter_mut().find(|p| p.remote_vnet == remote).unwrap()
    }

    pub(crate) fn balancer_mut(&mut self, name: &str) -> &mut LoadBalancer {
        let balancers = &mut self.topology.load_balancers;
        Arc::make_mut(balancers.get_mut(&id("loadBalancers", name)).unwrap())
    }

    fn half(&mut self, vnet: &str, remote: &str, flags: Flags<'_>, state: PeeringState) {
        let remote_address_space = self.vnet_mut(remote).address_space.clone();
        let vnet_resource = self.vnet_mut(vnet);
        vnet_resource.peerings.push(Peering {
            id: peering_id(vnet, remote),
            etag: Uuid::nil(),
            resource_guid: Uuid::nil(),
            remote_vnet: vnet_id(remote),
            allow_virtual_network_access: flags.contains('a'),
            allow_forwarded_traffic: flags.contains('f'),
            allow_gateway_transit: flags.contains('t'),
            use_remote_gateways: flags.contains('r'),
            do_not_verify_remote_gateways: false,
            transport: Transport::Automatic,
            state,
            remote_address_space,
            local_address_space: vnet_resource.address_space.clone(),
        });
    }

    /// Adds a peering with both halves `Connected`, each with its flags.
    pub(crate) fn peer(&mut self, a: &str, flags_a: Flags<'_>, b: &str, flags_b: Flags<'_>) -> &mut Self {
        self.half(a, b, flags_a, PeeringState::Connected);
        self.half(b, a, flags_b, PeeringState::Connected);
        self
    }

    /// Adds only one half of a peering: that of `a` towards `b`, in the state `Initiated`.
    pub(crate) fn initiated(&mut self, a: &str, b: &str) -> &mut Self {
        self.half(a, b, "a", PeeringState::Initiated);
        self
    }

    /// Adds a NIC with addresses (`vnet/subnet=address …`). `forwarding`: `enableIPForwarding`.
    pub(crate) fn nic(&mut self, name: &str, addresses: &str, forwarding: bool) -> &mut Self {
        let configurations = addresses.split_whitespace().enumerate().map(|(n, text)| {
            let (subnet, address) = text.split_once('=').unwrap();
            NicIpConfiguration {
                name: format!("ipconfig{n}"),
                subnet: subnet_id(subnet),
                address: ip(address),
                is_static: true,
                public_ip_address: None,
                application_security_groups: Vec::new(),
                load_balancer_pools: Vec::new(),
                inbound_nat_rules: Vec::new(),
            }
        });
        let nic = NetworkInterface {
            envelope: Self::envelope(id("networkInterfaces", name), "region1"),
            ip_configurations: configurations.collect(),
            enable_ip_forwarding: forwarding,
            network_security_group: None,
        };
        self.topology.nics.insert(nic.envelope.id.clone(), Arc::new(nic));
        self
    }

    /// Adds the agent `name` with a binding.
    pub(crate) fn bind(&mut self, name: &str, binding: Binding) -> &mut Self {
        self.endpoints += 1;
        let mut key = [0; 32];
        key[..2].copy_from_slice(&self.endpoints.to_be_bytes());
        let joined = Agent {
            id: agent(name),
            binding,
            public_key: PublicKey(key),
            certificate_key: format!("{:064x}", self.endpoints),
            reach: Reach::at(vec![SocketAddr::new(ip("192.0.2.1"), 50_000 + self.endpoints)]),
            revoked: false,
        };
        self.topology.agents.insert(agent(name), Arc::new(joined));
        self
    }

    pub(crate) fn agent_mut(&mut self, name: &str) -> &mut Agent {
        Arc::make_mut(self.topology.agents.get_mut(&agent(name)).unwrap())
    }

    /// Adds a VM with one NIC, `{name}-nic`, and its agent.
    pub(crate) fn vm(&mut self, name: &str, addresses: &str) -> &mut Self {
        self.machine(name, addresses, false)
    }

    /// Adds a VM whose NIC has `enableIPForwarding`, and its agent.
    pub(crate) fn appliance(&mut self, name: &str, addresses: &str) -> &mut Self {
        self.machine(name, addresses, true)
    }

    fn machine(&mut self, name: &str, addresses: &str, forwarding: bool) -> &mut Self {
        let nic = format!("{name}-nic");
        self.nic(&nic, addresses, forwarding);
        let binding = Self::vm_binding(name, &[&nic], &[]);
        self.bind(name, binding)
    }

    /// The binding of a VM with NICs and served subnets, by name.
    pub(crate) fn vm_binding(name: &str, nics: &[&str], served: &[&str]) -> Binding {
        Binding::Vm {
            vm: ResourceId::new(format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}")),
            nics: nics.iter().map(|nic| id("networkInterfaces", nic)).collect(),
            served: served.iter().map(|subnet| subnet_id(subnet)).collect(),
        }
    }

    /// Adds a VPN gateway, `{vnet}-gw`, with one instance for each address. Each has an agent: `{vnet}-gw`,
    /// `{vnet}-gw-2`.
    pub(crate) fn gateway(&mut self, vnet: &str, addresses: &str) -> &mut Self {
        let name = format!("{vnet}-gw");
        let gateway_id = id("virtualNetworkGateways", &name);
        let addresses: Vec<IpAddr> = addresses.split_whitespace().map(ip).collect();
        let configurations = addresses.iter().enumerate().map(|(n, address)| GatewayIpConfiguration {
            name: format!("instance{n}"),
            subnet: subnet_id(&format!("{vnet}/GatewaySubnet")),
            address: *address,
            is_static: true,
            public_ip_address: None,
        });
        let gateway = VirtualNetworkGateway {
            envelope: Self::envelope(gateway_id.clone(), "region1"),
            ip_configurations: configurations.collect(),
            gateway_type: GatewayKind::Vpn,
            vpn_type: "RouteBased".into(),
            active_active: addresses.len() > 1,
            enable_bgp: false,
            asn: 65515,
            bgp_peering_address: addresses[0],
            sku: "VpnGw1".into(),
        };
        self.topology.gateways.insert(gateway_id.clone(), Arc::new(gateway));
        for n in 0..addresses.len() {
            let suffix = if n == 0 { String::new() } else { format!("-{}", n + 1) };
            self.bind(
                &format!("{name}{suffix}"),
                Binding::Gateway {
                    gateway: gateway_id.clone(),
                    ip_configuration: format!("instance{n}"),
                },
            );
        }
        self
    }

    /// Adds one connection object, `{a}-to-{b}`, without BGP. `key`: its shared key.
    pub(crate) fn connection(&mut self, a: &str, b: &str, key: Option<&str>) -> &mut Self {
        let connection = Connection {
            envelope: Self::envelope(id("connections", &format!("{a}-to-{b}")), "region1"),
            connection_type: ConnectionType::Vnet2Vnet,
            tunnel_addresses: Vec::new(),
            gateway1: id("virtualNetworkGateways", &format!("{a}-gw")),
            gateway2: id("virtualNetworkGateways", &format!("{b}-gw")),
            shared_key: key.map(Into::into),
            routing_weight: 10,
            enable_bgp: false,
            dpd_timeout: None,
            authorization: None,
        };
        let id = connection.envelope.id.clone();
        self.topology.connections.insert(id, Arc::new(connection));
        self
    }

    /// Adds both connection objects between two gateways, with equal shared keys.
    pub(crate) fn connect(&mut self, a: &str, b: &str) -> &mut Self {
        self.connection(a, b, Some("abc")).connection(b, a, Some("abc"))
    }

    /// Gives a subnet a new route table in place of the present one. `routes`: `prefix>hop …`, where a hop is an
    /// address, `gateway`, `local`, `internet` or `none`.
    pub(crate) fn routes(&mut self, subnet: &str, routes: &str) -> &mut Self {
        let table = id("routeTables", &format!("rt-{}", subnet.replace('/', "-")));
        let routes = routes.split_whitespace().enumerate().map(|(n, text)| {
            let (prefix, hop) = text.split_once('>').unwrap();
            Route {
                id: ResourceId::new(format!("{table}/routes/r{n}")),
                etag: Uuid::nil(),
                prefix: prefix.parse().unwrap(),
                next_hop: match hop {
                    "gateway" => UserNextHop::VirtualNetworkGateway,
                    "local" => UserNextHop::VnetLocal,
                    "internet" => UserNextHop::Internet,
                    "none" => UserNextHop::None,
                    address => UserNextHop::VirtualAppliance { address: ip(address) },
                },
            }
        });
        let resource = RouteTable {
            envelope: Self::envelope(table.clone(), "region1"),
            disable_bgp_route_propagation: false,
            routes: routes.collect(),
        };
        self.topology.route_tables.insert(table.clone(), Arc::new(resource));
        let (vnet, _) = subnet.split_once('/').unwrap();
        let subnets = &mut self.vnet_mut(vnet).subnets;
        let subnet = subnets.iter_mut().find(|s| s.id == subnet_id(subnet)).unwrap();
        subnet.route_table = Some(table);
        self
    }

    pub(crate) fn table_mut(&mut self, subnet: &str) -> &mut RouteTable {
        let table = id("routeTables", &format!("rt-{}", subnet.replace('/', "-")));
        Arc::make_mut(self.topology.route_tables.get_mut(&table).unwrap())
    }

    /// Adds a security group, in place of the present one of this name. Each rule is a text: `name priority direction
    /// access protocol source destination port`, such as `web 200 in deny tcp 10.0.0.0/8 * 443`. An address may be
    /// `asg:` and the name of an application security group. The source port is `*`, unless the text ends with another
    /// one.
    pub(crate) fn group(&mut self, name: &str, rules: &[&str]) -> &mut Self {
        let group = id("networkSecurityGroups", name);
        let rules = rules.iter().map(|text| {
            let words: Vec<&str> = text.split_whitespace().collect();
            let [
                name,
                priority,
                direction,
                access,
                protocol,
                source,
                destination,
                port,
                ..,
            ] = words[..]
            else {
                panic!("{text}: a rule has eight words or more");
            };
            let side = |address: &str, port: &str| RuleSide {
                addresses: match address.strip_prefix("asg:") {
                    Some(asg) => RuleAddresses::Groups(vec![id("applicationSecurityGroups", asg)]),
                    None => RuleAddresses::Prefix(address.into()),
                },
                ports: RulePorts::Range(port.into()),
            };
            SecurityRule {
                id: ResourceId::new(format!("{group}/securityRules/{name}")),
                etag: Uuid::nil(),
                description: None,
                priority: priority.parse().unwrap(),
                direction: match direction {
                    "in" => Direction::Inbound,
                    "out" => Direction::Outbound,
                    other => panic!("{other}: no direction"),
                },
                access: match access {
                    "allow" => Access::Allow,
                    "deny" => Access::Deny,
                    other => panic!("{other}: no access"),
                },
                protocol: match protocol {
                    "*" => RuleProtocol::Any,
                    "tcp" => RuleProtocol::Tcp,
                    "udp" => RuleProtocol::Udp,
                    "icmp" => RuleProtocol::Icmp,
                    other => panic!("{other}: no protocol"),
                },
                source: side(source, words.get(8).copied().unwrap_or("*")),
                destination: side(destination, port),
            }
        });
        let resource = NetworkSecurityGroup {
            envelope: Self::envelope(group.clone(), "region1"),
            security_rules: rules.collect(),
        };
        self.topology.network_security_groups.insert(group, Arc::new(resource));
        self
    }

    /// Attaches a security group to a subnet, in place of the present one.
    pub(crate) fn secure_subnet(&mut self, subnet: &str, group: &str) -> &mut Self {
        let (vnet, _) = subnet.split_once('/').unwrap();
        let subnets = &mut self.vnet_mut(vnet).subnets;
        let subnet = subnets.iter_mut().find(|s| s.id == subnet_id(subnet)).unwrap();
        subnet.network_security_group = Some(id("networkSecurityGroups", group));
        self
    }

    /// Attaches a security group to a NIC, in place of the present one.
    pub(crate) fn secure_nic(&mut self, nic: &str, group: &str) -> &mut Self {
        self.nic_mut(nic).network_security_group = Some(id("networkSecurityGroups", group));
        self
    }

    pub(crate) fn nic_mut(&mut self, name: &str) -> &mut NetworkInterface {
        Arc::make_mut(self.topology.nics.get_mut(&id("networkInterfaces", name)).unwrap())
    }

    /// The configuration of an agent. Asserts that the configuration is valid, and that it is the same after it is
    /// encoded and read back.
    pub(crate) fn config(&self, name: &str) -> AgentConfig {
        let config = Compiler::new(&self.topology).compile(&agent(name)).unwrap();
        config.check().unwrap();
        assert_eq!(
            AgentConfig::from_bytes(&config.to_bytes()).unwrap(),
            config,
            "survives the wire"
        );
        config
    }

    /// The link of the agent `of` with the agent `to`.
    pub(crate) fn link(&self, of: &str, to: &str) -> Option<Link> {
        self.config(of).links.into_iter().find(|l| l.peer == agent(to))
    }

    /// The effective routes of a subnet.
    pub(crate) fn effective(&self, subnet: &str) -> Vec<EffectiveRoute> {
        Compiler::new(&self.topology)
            .effective_routes(&subnet_id(subnet))
            .unwrap()
    }

    /// The effective routes of a subnet as lines `source prefix nextHopType [addresses]`, with `!` in front of invalid
    /// ones.
    pub(crate) fn shown(&self, subnet: &str) -> Vec<String> {
        let line = |r: &EffectiveRoute| {
            let invalid = if r.state == RouteState::Invalid { "!" } else { "" };
            let mut line = format!("{invalid}{:?} {} {}", r.source, r.prefix, r.next_hop.type_name());
            for address in r.next_hop.addresses() {
                line.push_str(&format!(" {address}"));
            }
            line
        };
        self.effective(subnet).iter().map(line).collect()
    }

    /// The digests of all agents' configurations, by agent.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let compiler = Compiler::new(&self.topology);
        let all = self.topology.agents.keys();
        all.filter_map(|a| Some((a.to_string(), digest(&compiler.compile(a)?.to_bytes()))))
            .collect()
    }

    /// The names of the agents whose configurations differ between the two worlds, ordered.
    pub(crate) fn changed_since(&self, before: &Self) -> Vec<String> {
        let (old, new) = (before.digests(), self.digests());
        let mut names: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
        names.sort();
        names.dedup();
        names.retain(|name| old.get(name) != new.get(name));
        names
    }
}

/// The topology of the demo: a hub with a VM, an appliance and a VPN gateway; two spokes that use the gateway; and a
/// branch whose gateway is connected to the hub's gateway.
pub(crate) fn hub_and_spokes() -> World {
    let mut w = World::default();
    w.vnet("hub", "10.1.0.0/16", "workload=10.1.0.0/24 GatewaySubnet=10.1.255.0/27")
        .vnet("spoke-a", "10.2.0.0/16", "workload=10.2.0.0/24")
        .vnet("spoke-b", "10.3.0.0/16", "workload=10.3.0.0/24")
        .vnet(
            "branch",
            "10.4.0.0/16",
            "workload=10.4.0.0/24 GatewaySubnet=10.4.255.0/27",
        )
        .vm("hub-vm", "hub/workload=10.1.0.4")
        .appliance("hub-nva", "hub/workload=10.1.0.5")
        .vm("a-vm", "spoke-a/workload=10.2.0.4")
        .vm("b-vm", "spoke-b/workload=10.3.0.4")
        .vm("branch-vm", "branch/workload=10.4.0.4")
        .gateway("hub", "10.1.255.4")
        .gateway("branch", "10.4.255.4")
        .connect("hub", "branch")
        .peer("hub", "at", "spoke-a", "ar")
        .peer("hub", "at", "spoke-b", "ar");
    w
}
