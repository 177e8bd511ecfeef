//! Compiles a topology into the configuration of each agent, and into the effective routes of each subnet.
//!
//! Compilation is a pure function: equal topologies result in equal bytes. The configuration of a VM's agent depends
//! only on the settings, the agent's own VNet, the VNets with a `Connected` peering, the gateways in use, and the
//! networks that these gateways join. A change of anything else does not alter the configuration, so the controller
//! sends nothing to the agent.
//!
//! * `balancing`: which front ends of load balancers an agent can reach (L10).
//! * `circuit`: ExpressRoute gateways and the edges of circuits (E5, E6, T4).
//! * `flow_logs`: the flow logs that a machine's agent writes (N14).
//! * `front_ends`: the front ends of load balancers with their rules and back ends (L1 to L9).
//! * `index`: agents, gateways and joined networks of one revision, computed once for all agents.
//! * `routes`: a subnet's effective routes (R1 to R9, R14, R15).
//! * `limits`: the limits of bandwidth and flows (P32, G5, X16).
//! * `links`: which agents may have a link, and which sources each end may use (D9, D10, D14).
//! * `logs_by_target`: which flow log covers a NIC (N14).
//! * `prefix`: set arithmetic on prefixes.
//! * `security`: the security groups that a machine's agent enforces (D25).
//! * `spaces`: the address spaces and subnets of a configuration.
//! * `speaker`: the BGP speakers of VPN gateways.

mod arrivals;
mod balancing;
mod circuit;
mod flow_logs;
mod front_ends;
mod index;
mod limits;
mod links;
mod logs_by_target;
mod prefix;
mod routes;
mod security;
mod spaces;
mod speaker;

use crate::topology::Topology;
use index::{Index, Instance, Machine, Place, Vnet};
use ipnet::IpNet;
use std::collections::BTreeMap;
use tombolo_proto::config::{
    AgentConfig, ApplicationGroup, DEFAULT_ASN, GatewayConnection, GatewayKind, MAX_NICS, Nic, Role, SecurityGroup,
    Space, SpaceKind, TransitRoute, UsedGateway,
};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, GatewayHop};

/// The complete configuration of one agent, compiled from the topology alone: routes that agents learn are not part of
/// it. `None`: the agent is unknown, revoked, or bound to a deleted resource.
///
/// For many agents of one revision, create one [`Compiler`] and use it for all of them.
#[must_use]
pub fn compile(topology: &Topology, agent: &AgentId) -> Option<AgentConfig> {
    Compiler::new(topology).compile(agent)
}

/// The configured effective routes of a subnet, the same in the API and in configurations (R1 to R22). Learned routes
/// are not among them; see [`crate::learned_routes::effective_routes`]. They are in the API's order: system, gateway
/// and user routes. `None`: the subnet is unknown.
///
/// For many subnets of one revision, create one [`Compiler`] and use it for all of them.
#[must_use]
pub fn effective_routes(topology: &Topology, subnet: &ResourceId) -> Option<Vec<EffectiveRoute>> {
    Compiler::new(topology).effective_routes(subnet)
}

/// Compiles the configurations of one revision. It borrows the topology, and its methods can be called for any number
/// of agents and subnets.
#[derive(Debug)]
pub struct Compiler<'t> {
    index: Index<'t>,
    /// Whether configurations have the rules of security groups.
    has_rules: bool,
}

impl<'t> Compiler<'t> {
    /// Indexes the topology. The time grows with the size of the whole topology, so use one compiler for many agents.
    #[must_use]
    pub fn new(topology: &'t Topology) -> Self {
        Self {
            index: Index::new(topology),
            has_rules: true,
        }
    }

    /// A compiler whose configurations have security groups without their rules. The tables for them are built with
    /// [`security_groups`](Self::security_groups), which have the rules once for all agents.
    #[must_use]
    pub(crate) fn without_rules(topology: &'t Topology) -> Self {
        Self {
            has_rules: false,
            ..Self::new(topology)
        }
    }

    /// All security groups of the topology with their rules, and the application security groups that rules name.
    pub(crate) fn security_groups(&self) -> (Vec<SecurityGroup>, Vec<ApplicationGroup>) {
        security::all(&self.index)
    }

    /// The configuration of one agent; see [`compile`]. Each call compiles it again. `None`: the agent is unknown,
    /// revoked, or bound to a deleted resource.
    #[must_use]
    pub fn compile(&self, agent: &AgentId) -> Option<AgentConfig> {
        let index = &self.index;
        match index.place(agent)? {
            Place::Machine { vnet, machine } => {
                let vnet = &index.vnets[vnet];
                Some(self.machine(vnet, &vnet.machines[machine]))
            }
            Place::Gateway { vnet, instance } => {
                let vnet = &index.vnets[vnet];
                self.gateway(vnet, instance)
            }
            Place::CircuitGateway { vnet, instance } => {
                let vnet = &index.vnets[vnet];
                circuit::gateway(index, vnet, &vnet.er_instances[instance])
            }
            Place::Edge { circuit, link } => circuit::edge(index, &index.circuits[circuit], link),
        }
    }

    /// Whether an agent is a gateway or an edge; both forward packets and may learn routes by BGP. False also for an
    /// agent that is unknown, revoked, or bound to a deleted resource.
    #[must_use]
    pub fn relays(&self, agent: &AgentId) -> bool {
        !matches!(self.index.place(agent), None | Some(Place::Machine { .. }))
    }

    /// The configured effective routes of a subnet; see [`effective_routes`]. `None`: the subnet is unknown.
    #[must_use]
    pub fn effective_routes(&self, subnet: &ResourceId) -> Option<Vec<EffectiveRoute>> {
        let (vnet, subnet) = self.index.subnet(subnet)?;
        Some(routes::effective(&self.index, vnet, subnet))
    }

    /// The configuration of a VM's agent. NICs without addresses and addresses in deleted subnets are left out.
    fn machine(&self, vnet: &Vnet<'t>, machine: &Machine<'t>) -> AgentConfig {
        let mut subnets = BTreeMap::new();
        let mut nics = Vec::with_capacity(machine.nics.len());
        for nic in &machine.nics {
            let mut addresses = Vec::with_capacity(nic.ip_configurations.len());
            for configuration in &nic.ip_configurations {
                let Some((_, subnet)) = self.index.subnet(&configuration.subnet) else {
                    continue;
                };
                addresses.push(prefix::within(configuration.address, &subnet.prefixes));
                subnets.insert(&subnet.id, subnet);
            }
            let Some(first) = nic.ip_configurations.first() else {
                continue;
            };
            nics.push(Nic {
                id: nic.envelope.id.clone(),
                addresses,
                subnet: first.subnet.clone(),
                ip_forwarding: nic.enable_ip_forwarding,
                host_routes: nic.host_routes(),
            });
        }
        // This host carries the packets of the machines in its served subnets. These packets use the routes of the
        // served subnets (R20, D8).
        subnets.extend(machine.served.iter().map(|subnet| (&subnet.id, *subnet)));

        let mut spaces = vec![spaces::local_space(vnet)];
        for peer in &vnet.peers {
            spaces.push(Space {
                vnet: self.index.vnets[peer.remote].resource.envelope.id.clone(),
                kind: SpaceKind::Peered {
                    peering: peer.half.id.clone(),
                    allow_access: peer.half.allow_virtual_network_access,
                    allow_forwarded: peer.half.allow_forwarded_traffic,
                },
                prefixes: prefix::sorted(&peer.half.remote_address_space),
                owners: spaces::owners_within(&self.index.vnets[peer.remote], &peer.half.remote_address_space),
            });
        }
        // The space of the agent's own VNet stays first. The others are sorted, because their order must not depend on
        // the order in which VNets or peerings were created.
        spaces[1..].sort_by(|a, b| a.vnet.cmp(&b.vnet));

        let security = security::of_machine(&self.index, vnet, machine, &nics, self.has_rules);
        let too_many = security.as_ref().is_some_and(|security| security.nics.len() > MAX_NICS);
        let mut links = links::of_machine(&self.index, vnet, machine);
        arrivals::add(&self.index, machine, &mut links);
        let config = AgentConfig {
            agent: machine.agent.id.clone(),
            vnet: vnet.resource.envelope.id.clone(),
            address_space: prefix::sorted(&vnet.resource.address_space),
            mtu: self.index.topology.settings.mtu,
            probes: self.index.topology.settings.probes(),
            role: Role::Vm {
                nics,
                served: prefix::sorted(&machine.served_prefixes()),
                gateways: self.used_gateways(vnet),
            },
            subnets: spaces::subnets(&self.index, vnet, subnets.into_values()),
            spaces,
            links,
            security,
            front_ends: balancing::of_machine(&self.index, vnet),
            limits: limits::of_machine(&self.index, machine),
        };
        // An agent cannot enforce the groups of so many NICs. Without links no packet passes that a group might deny.
        if too_many { config.isolated() } else { config }
    }

    /// The gateways that the VNet uses, its own or those of its hub; the ExpressRoute gateway first (P23). If the
    /// gateways learn no routes at run time, the VPN gateway is left out: all its routes are then in the configured
    /// routes of the subnets.
    fn used_gateways(&self, vnet: &Vnet<'t>) -> Vec<UsedGateway> {
        let Some(hub) = vnet.hub.map(|hub| &self.index.vnets[hub]) else {
            return Vec::new();
        };
        let hop = |instance: &Instance<'_>| GatewayHop {
            agent: instance.agent.id.clone(),
            address: instance.address,
        };
        let mut used = Vec::new();
        if let Some(gateway) = hub.er_gateway {
            let edges = self.index.circuits_of(hub);
            used.push(UsedGateway {
                gateway: gateway.envelope.id.clone(),
                kind: GatewayKind::ExpressRoute,
                spread: gateway.active_active,
                instances: hub.er_instances.iter().map(hop).collect(),
                edges: edges
                    .flat_map(|(circuit, c)| circuit.ends(c))
                    .map(|(_, hop)| hop)
                    .collect(),
            });
        }
        if let Some(gateway) = hub.gateway.filter(|_| hub.learns_routes()) {
            used.push(UsedGateway {
                gateway: gateway.envelope.id.clone(),
                kind: GatewayKind::Vpn,
                spread: gateway.active_active,
                instances: hub.instances.iter().map(hop).collect(),
                edges: Vec::new(),
            });
        }
        used
    }

    /// The configuration of instance `number` of a VPN gateway. `None`: the gateway or its subnet does not exist.
    fn gateway(&self, vnet: &Vnet<'t>, number: usize) -> Option<AgentConfig> {
        let instance = &vnet.instances[number];
        let gateway = vnet.gateway?;
        let (_, subnet) = self.index.subnet(instance.subnet)?;
        let (spaces, local_prefixes) = spaces::local_prefixes(&self.index, vnet);

        let mut transit: BTreeMap<IpNet, TransitRoute> = BTreeMap::new();
        for tunnel in &vnet.tunnels {
            for prefix in &tunnel.prefixes {
                // Two connections that lead to the same prefix would violate G16. If they exist anyway, the connection
                // with the smaller id is used, so that the result does not depend on the order of creation.
                transit.entry(*prefix).or_insert_with(|| TransitRoute {
                    prefix: *prefix,
                    connection: tunnel.connection.envelope.id.clone(),
                    via: links::tunnel_ends(&self.index, tunnel)
                        .map(|end| end.agent.id.clone())
                        .collect(),
                });
            }
        }

        for site in &vnet.sites {
            let prefixes = site.prefixes.iter().copied().chain(site.bgp_address());
            for prefix in prefixes {
                transit.entry(prefix).or_insert_with(|| TransitRoute {
                    prefix,
                    connection: site.connection.envelope.id.clone(),
                    via: site.device().into_iter().collect(),
                });
            }
        }
        let bgp_address = gateway.peering_address(number);
        let mut addresses = vec![instance.address];
        // BGP sessions with sites run from the gateway's BGP address. So the instance's host needs this address too, if
        // it differs from the instance's address.
        if vnet.sites.iter().any(|s| s.exchange) && bgp_address != instance.address {
            addresses.push(bgp_address);
        }

        Some(AgentConfig {
            agent: instance.agent.id.clone(),
            vnet: vnet.resource.envelope.id.clone(),
            address_space: prefix::sorted(&vnet.resource.address_space),
            mtu: self.index.topology.settings.mtu,
            probes: self.index.topology.settings.probes(),
            role: Role::VpnGateway {
                gateway: gateway.envelope.id.clone(),
                addresses,
                local_prefixes,
                asn: gateway.asn,
                connections: self.connections(vnet),
                bgp: speaker::speaker(
                    vnet,
                    gateway.asn,
                    bgp_address,
                    self.index.topology.settings.bgp_hold_time,
                ),
                site_ttl: self.index.topology.settings.vpn_ttl_for_site_traffic,
                transit: transit.into_values().collect(),
            },
            subnets: spaces::subnets(&self.index, vnet, std::iter::once(subnet)),
            spaces,
            links: links::of_gateway(&self.index, vnet, instance),
            security: None,
            front_ends: balancing::of_gateway(&self.index, vnet),
            limits: limits::of_gateway(&self.index, vnet, gateway),
        })
    }

    /// The connections of a VPN gateway to other gateways and to sites, ordered by id.
    fn connections(&self, vnet: &Vnet<'t>) -> Vec<GatewayConnection> {
        let tunnels = vnet.tunnels.iter().map(|tunnel| GatewayConnection {
            connection: tunnel.connection.envelope.id.clone(),
            ends: links::tunnel_ends(&self.index, tunnel)
                .map(|end| end.agent.id.clone())
                .collect(),
            exchange: tunnel.exchange,
            asn: self.index.vnets[tunnel.remote].gateway.map_or(DEFAULT_ASN, |g| g.asn),
            site: false,
            weight: tunnel.connection.routing_weight,
        });
        let sites = vnet.sites.iter().map(|site| GatewayConnection {
            connection: site.connection.envelope.id.clone(),
            ends: site.device().into_iter().collect(),
            exchange: site.exchange,
            asn: site.local.bgp.map_or(0, |b| b.asn),
            site: true,
            weight: site.connection.routing_weight,
        });
        let mut all: Vec<_> = tunnels.chain(sites).collect();
        all.sort_by(|a, b| a.connection.cmp(&b.connection));
        all
    }
}
