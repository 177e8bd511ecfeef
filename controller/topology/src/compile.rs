//! `(Topology, agent) → AgentConfig`; effective routes.
//!
//! A pure function: the same topology gives the same bytes, and what an agent gets depends only on its own VNet, the
//! VNets with a `Connected` peering, the gateway in use and what that gateway joins. A change elsewhere leaves its
//! configuration as it is.
//!
//! * `index`: who is where in one revision, computed once for all agents.
//! * `routes`: a subnet's effective routes (R1 to R9, R14, R15).
//! * `links`: which agents may talk, and what each may speak for (D9, D10, D14).
//! * `prefix`: arithmetic on sets of prefixes.

mod index;
mod links;
mod prefix;
mod routes;

use crate::topology::Topology;
use index::{Index, Instance, Machine, Place, Vnet};
use ipnet::IpNet;
use std::collections::BTreeMap;
use tombolo_proto::config::{AgentConfig, Nic, Owner, Role, Space, SpaceKind, Subnet, TransitRoute};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;

/// The policy of one agent: a pure function of the stored state. None: unknown, revoked, or bound to something that is
/// gone.
///
/// To compile for many agents of one revision, make one [`Compiler`].
#[must_use]
pub fn compile(topology: &Topology, agent: &AgentId) -> Option<AgentConfig> {
    Compiler::new(topology).compile(agent)
}

/// The effective routes of a subnet, as they are shown and as they are sent (R1 to R22). None: unknown subnet.
#[must_use]
pub fn effective_routes(topology: &Topology, subnet: &ResourceId) -> Option<Vec<EffectiveRoute>> {
    Compiler::new(topology).effective_routes(subnet)
}

/// Compiles for the agents of one revision.
#[derive(Debug)]
pub struct Compiler<'t> {
    index: Index<'t>,
}

impl<'t> Compiler<'t> {
    /// Looks through the topology once; time in proportion to its size.
    #[must_use]
    pub fn new(topology: &'t Topology) -> Self {
        Self {
            index: Index::new(topology),
        }
    }

    /// The policy of one agent. None: unknown, revoked, or bound to something that is gone.
    #[must_use]
    pub fn compile(&self, agent: &AgentId) -> Option<AgentConfig> {
        let (place, vnet) = self.index.place(agent)?;
        Some(match place {
            Place::Machine { machine, .. } => self.machine(vnet, &vnet.machines[machine]),
            Place::Gateway { instance, .. } => self.gateway(vnet, &vnet.instances[instance])?,
        })
    }

    /// The effective routes of a subnet. None: unknown subnet.
    #[must_use]
    pub fn effective_routes(&self, subnet: &ResourceId) -> Option<Vec<EffectiveRoute>> {
        let (vnet, subnet) = self.index.subnet(subnet)?;
        Some(routes::effective(&self.index, vnet, subnet))
    }

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
            });
        }
        // Packets of machines behind this host leave through their own subnet (R20, D8).
        subnets.extend(machine.served.iter().map(|subnet| (&subnet.id, *subnet)));

        let mut spaces = vec![local_space(vnet)];
        for peer in &vnet.peers {
            spaces.push(Space {
                vnet: self.index.vnets[peer.remote].resource.envelope.id.clone(),
                kind: SpaceKind::Peered {
                    peering: peer.half.id.clone(),
                    allow_access: peer.half.allow_virtual_network_access,
                    allow_forwarded: peer.half.allow_forwarded_traffic,
                },
                prefixes: prefix::sorted(&peer.half.remote_address_space),
                owners: owners_within(&self.index.vnets[peer.remote], &peer.half.remote_address_space),
            });
        }
        spaces[1..].sort_by(|a, b| a.vnet.cmp(&b.vnet));

        AgentConfig {
            agent: machine.agent.id.clone(),
            vnet: vnet.resource.envelope.id.clone(),
            address_space: prefix::sorted(&vnet.resource.address_space),
            mtu: self.index.topology.settings.mtu,
            role: Role::Vm {
                nics,
                served: prefix::sorted(&machine.served_prefixes()),
                gateways: Vec::new(),
            },
            subnets: self.subnets(vnet, subnets.into_values()),
            spaces,
            links: links::of_machine(&self.index, vnet, machine),
        }
    }

    fn gateway(&self, vnet: &Vnet<'t>, instance: &Instance<'t>) -> Option<AgentConfig> {
        let gateway = vnet.gateway?;
        let (_, subnet) = self.index.subnet(instance.subnet)?;
        let mut spaces = vec![local_space(vnet)];
        let mut own_side = vnet.resource.address_space.clone();
        for client in &vnet.clients {
            let spoke = &self.index.vnets[client.vnet];
            own_side.extend(&client.half.remote_address_space);
            spaces.push(Space {
                vnet: spoke.resource.envelope.id.clone(),
                kind: SpaceKind::GatewayClient {},
                prefixes: prefix::sorted(&client.half.remote_address_space),
                owners: owners_within(spoke, &client.half.remote_address_space),
            });
        }
        spaces[1..].sort_by(|a, b| a.vnet.cmp(&b.vnet));

        let mut transit: BTreeMap<IpNet, TransitRoute> = BTreeMap::new();
        for tunnel in &vnet.tunnels {
            for prefix in &tunnel.prefixes {
                // Two connections that lead to one prefix break G16; the first by id stays, whatever the order of creation.
                transit.entry(*prefix).or_insert_with(|| TransitRoute {
                    prefix: *prefix,
                    connection: tunnel.connection.envelope.id.clone(),
                    via: links::tunnel_ends(&self.index, tunnel)
                        .map(|end| end.agent.id.clone())
                        .collect(),
                });
            }
        }

        Some(AgentConfig {
            agent: instance.agent.id.clone(),
            vnet: vnet.resource.envelope.id.clone(),
            address_space: prefix::sorted(&vnet.resource.address_space),
            mtu: self.index.topology.settings.mtu,
            role: Role::VpnGateway {
                gateway: gateway.envelope.id.clone(),
                addresses: vec![instance.address],
                own_side: prefix::sorted(&own_side),
                asn: gateway.asn,
                connections: Vec::new(),
                bgp: None,
                site_ttl: self.index.topology.settings.vpn_ttl_for_site_traffic,
                transit: transit.into_values().collect(),
            },
            subnets: self.subnets(vnet, std::iter::once(subnet)),
            spaces,
            links: links::of_gateway(&self.index, vnet, instance),
        })
    }

    fn subnets<'s>(&self, vnet: &Vnet<'t>, subnets: impl Iterator<Item = &'s crate::resource::Subnet>) -> Vec<Subnet> {
        subnets
            .map(|subnet| Subnet {
                id: subnet.id.clone(),
                prefixes: prefix::sorted(&subnet.prefixes),
                routes: routes::effective(&self.index, vnet, subnet),
                isolated: false,
            })
            .collect()
    }
}

/// The own VNet's space: its machines, and the instances of its gateway.
fn local_space(vnet: &Vnet<'_>) -> Space {
    let mut owners = vnet.owners.clone();
    owners.extend(vnet.instances.iter().map(|instance| Owner {
        prefix: IpNet::from(instance.address),
        agent: instance.agent.id.clone(),
        ip_forwarding: false,
    }));
    index::order_owners(&mut owners);
    Space {
        vnet: vnet.resource.envelope.id.clone(),
        kind: SpaceKind::Local {},
        prefixes: prefix::sorted(&vnet.resource.address_space),
        owners,
    }
}

/// The owners of another VNet as far as its addresses are known here: what was not synced yet does not exist (P27).
fn owners_within(vnet: &Vnet<'_>, prefixes: &[IpNet]) -> Vec<Owner> {
    let known = |owner: &&Owner| prefix::covered(&owner.prefix, prefixes);
    vnet.owners.iter().filter(known).cloned().collect()
}
