//! Who is where in one revision: computed once, so that compiling for one agent looks at its neighbours only.

mod join;

use super::prefix;
use crate::resource::{
    Agent, Binding, Connection, ExpressRouteCircuit, LocalNetworkGateway, NetworkInterface, Peering, PrivatePeering,
    Subnet, VirtualNetwork, VirtualNetworkGateway,
};
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::{CircuitLink, GatewayKind, Owner, Transport};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::GatewayHop;

/// The VNets of a topology with what belongs to each. Positions refer to [`Index::vnets`].
#[derive(Debug)]
pub(super) struct Index<'t> {
    pub(super) topology: &'t Topology,
    /// Ordered by id.
    pub(super) vnets: Vec<Vnet<'t>>,
    /// Circuits with a private peering, ordered by id.
    pub(super) circuits: Vec<Circuit<'t>>,
    subnets: BTreeMap<&'t ResourceId, (usize, usize)>,
    agents: BTreeMap<&'t AgentId, Place>,
}

/// Where an agent stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// `vnets[vnet].machines[machine]`.
    Machine { vnet: usize, machine: usize },
    /// `vnets[vnet].instances[instance]`.
    Gateway { vnet: usize, instance: usize },
    /// `vnets[vnet].er_instances[instance]`.
    CircuitGateway { vnet: usize, instance: usize },
    /// `circuits[circuit].edges[link]`.
    Edge { circuit: usize, link: CircuitLink },
}

/// A VNet and what belongs to it. Revoked agents do not exist here.
#[derive(Debug)]
pub(super) struct Vnet<'t> {
    pub(super) position: usize,
    pub(super) resource: &'t VirtualNetwork,
    /// VM agents, ordered by id.
    pub(super) machines: Vec<Machine<'t>>,
    /// Addresses of `machines`, ordered, each once.
    pub(super) owners: Vec<Owner>,
    /// `Connected` peerings, in order of creation.
    pub(super) peers: Vec<Peer<'t>>,
    /// The own VPN gateway (X7: at most one).
    pub(super) gateway: Option<&'t VirtualNetworkGateway>,
    /// Agents of the own gateway, in order of its `ipConfigurations`: the first is preferred.
    pub(super) instances: Vec<Instance<'t>>,
    /// The own ExpressRoute gateway (X7: at most one), and its agents.
    pub(super) er_gateway: Option<&'t VirtualNetworkGateway>,
    pub(super) er_instances: Vec<Instance<'t>>,
    /// Its connections to circuits, ordered by id: positions in [`Index::circuits`] and in [`Circuit::links`].
    pub(super) circuits: Vec<(usize, usize)>,
    /// Connections of the own VPN gateway that exist on both sides, ordered by id.
    pub(super) tunnels: Vec<Tunnel<'t>>,
    /// Its connections to sites, ordered by id.
    pub(super) sites: Vec<Site<'t>>,
    /// VNets that use the own gateways as remote gateways.
    pub(super) clients: Vec<Client<'t>>,
    /// The VNet whose gateways this one uses: itself, or a peer (P23). None: no gateway.
    pub(super) hub: Option<usize>,
}

/// The agent of a VM.
#[derive(Debug)]
pub(super) struct Machine<'t> {
    pub(super) agent: &'t Agent,
    /// The primary one first. Never empty.
    pub(super) nics: Vec<&'t NetworkInterface>,
    /// Subnets whose other machines sit behind it (D8).
    pub(super) served: Vec<&'t Subnet>,
    /// The sources that it may always use: its addresses, and what it serves except what others have there (D10).
    /// Ordered.
    pub(super) speaks_for: Vec<IpNet>,
}

/// A circuit and what hangs on it (E1).
#[derive(Debug)]
pub(super) struct Circuit<'t> {
    pub(super) resource: &'t ExpressRouteCircuit,
    pub(super) peering: &'t PrivatePeering,
    /// The agents of its primary and its secondary edge.
    pub(super) edges: [Option<&'t Agent>; 2],
    /// Connections to it, ordered by id.
    pub(super) links: Vec<CircuitConnection<'t>>,
}

/// The connection of an ExpressRoute gateway to a circuit.
#[derive(Debug)]
pub(super) struct CircuitConnection<'t> {
    pub(super) connection: &'t Connection,
    pub(super) vnet: usize,
}

impl<'t> Circuit<'t> {
    /// Edges that have an agent, with their ends of a connection's tunnels (T4), the primary one first.
    pub(super) fn ends(&self, connection: &Connection) -> impl Iterator<Item = (&'t Agent, GatewayHop)> {
        let addresses = connection.tunnel_addresses.clone();
        self.edges.iter().zip(addresses).filter_map(|(agent, address)| {
            let agent = (*agent)?;
            let hop = GatewayHop {
                agent: agent.id.clone(),
                address,
            };
            Some((agent, hop))
        })
    }
}

/// A connection to a site (G7).
#[derive(Debug)]
pub(super) struct Site<'t> {
    pub(super) connection: &'t Connection,
    pub(super) local: &'t LocalNetworkGateway,
    /// BGP is on at both ends, and their ASNs differ (G4).
    pub(super) exchange: bool,
    /// What lies behind it as configured, without what overlaps the own VNet (G7), ordered.
    pub(super) prefixes: Vec<IpNet>,
}

impl Site<'_> {
    /// The device's address inside the tunnel, for the session alone: no route to it is made known. None: no session.
    pub(super) fn bgp_address(&self) -> Option<IpNet> {
        let bgp = self.local.bgp.filter(|_| self.exchange)?;
        Some(IpNet::from(bgp.address))
    }

    /// The name under which links know the device; none while its key or the shared key is missing: a tunnel without
    /// these would stand on less than was asked for (G11).
    pub(super) fn device(&self) -> Option<AgentId> {
        self.local.public_key?;
        self.connection.shared_key.as_ref()?;
        Some(AgentId::of_site(&self.connection.envelope.id))
    }
}

/// A `Connected` peering.
#[derive(Debug)]
pub(super) struct Peer<'t> {
    /// The own half.
    pub(super) half: &'t Peering,
    /// The other half.
    pub(super) counterpart: &'t Peering,
    pub(super) remote: usize,
    /// The regions differ (P30).
    pub(super) global: bool,
}

impl Peer<'_> {
    /// What may carry links across it: the half that wants something decides (D6).
    pub(super) fn transport(&self) -> Transport {
        match self.half.transport {
            Transport::Automatic => self.counterpart.transport,
            wanted => wanted,
        }
    }
}

/// The agent of a gateway's `ipConfiguration`.
#[derive(Debug)]
pub(super) struct Instance<'t> {
    pub(super) agent: &'t Agent,
    pub(super) address: IpAddr,
    pub(super) subnet: &'t ResourceId,
}

/// A connection that exists on both sides (G10).
#[derive(Debug)]
pub(super) struct Tunnel<'t> {
    /// The own object.
    pub(super) connection: &'t Connection,
    /// The other gateway's VNet.
    pub(super) remote: usize,
    /// BGP is on at both ends, and their ASNs differ (G4).
    pub(super) exchange: bool,
    /// What lies behind it (G9, P21b), ordered: never what the other gateway learned elsewhere (D9), nothing that
    /// overlaps the own VNet (G20).
    pub(super) prefixes: Vec<IpNet>,
}

/// A VNet that uses a gateway of this one (P21).
#[derive(Debug)]
pub(super) struct Client<'t> {
    pub(super) vnet: usize,
    /// The gateway's side's half: its `remoteAddressSpace` is what the gateway knows of the client (P27).
    pub(super) half: &'t Peering,
}

impl Vnet<'_> {
    /// What may carry links to the machines and gateways of another VNet, or of this one.
    pub(super) fn transport_to(&self, other: usize) -> Transport {
        let peer = self.peers.iter().find(|p| p.remote == other);
        peer.map_or(Transport::Automatic, Peer::transport)
    }
}

impl<'t> Index<'t> {
    pub(super) fn new(topology: &'t Topology) -> Self {
        let mut index = Self {
            topology,
            vnets: Vec::with_capacity(topology.vnets.len()),
            circuits: Vec::new(),
            subnets: BTreeMap::new(),
            agents: BTreeMap::new(),
        };
        let mut positions = BTreeMap::new();
        for (position, vnet) in topology.vnets.values().enumerate() {
            positions.insert(&vnet.envelope.id, position);
            for (number, subnet) in vnet.subnets.iter().enumerate() {
                index.subnets.insert(&subnet.id, (position, number));
            }
            index.vnets.push(Vnet {
                position,
                resource: vnet,
                machines: Vec::new(),
                owners: Vec::new(),
                peers: Vec::new(),
                gateway: None,
                instances: Vec::new(),
                er_gateway: None,
                er_instances: Vec::new(),
                circuits: Vec::new(),
                tunnels: Vec::new(),
                sites: Vec::new(),
                clients: Vec::new(),
                hub: None,
            });
        }
        index.place_gateways();
        index.place_agents();
        index.join_peers(&positions);
        index.join_tunnels();
        index.join_sites();
        index.join_circuits();
        index
    }

    pub(super) fn subnet(&self, id: &ResourceId) -> Option<(&Vnet<'t>, &'t Subnet)> {
        let (vnet, subnet) = *self.subnets.get(id)?;
        let vnet = &self.vnets[vnet];
        Some((vnet, &vnet.resource.subnets[subnet]))
    }

    pub(super) fn place(&self, agent: &AgentId) -> Option<Place> {
        self.agents.get(agent).copied()
    }

    fn place_gateways(&mut self) {
        for gateway in self.topology.gateways.values() {
            let subnet = gateway.ip_configurations.first().map(|c| &c.subnet);
            if let Some((vnet, _)) = subnet.and_then(|subnet| self.subnets.get(subnet)) {
                let slot = match gateway.gateway_type {
                    GatewayKind::Vpn => &mut self.vnets[*vnet].gateway,
                    GatewayKind::ExpressRoute => &mut self.vnets[*vnet].er_gateway,
                };
                slot.get_or_insert(gateway);
            }
        }
    }

    fn place_agents(&mut self) {
        for agent in self.topology.agents.values().filter(|agent| !agent.revoked) {
            match &agent.binding {
                Binding::Vm { nics, served, .. } => self.place_machine(agent, nics, served),
                Binding::Gateway { .. } | Binding::Edge { .. } => {}
            }
        }
        for vnet in &mut self.vnets {
            let position = vnet.position;
            for (instance, found) in instances_of(self.topology, vnet.gateway).into_iter().enumerate() {
                let place = Place::Gateway {
                    vnet: position,
                    instance,
                };
                self.agents.insert(&found.agent.id, place);
                vnet.instances.push(found);
            }
            for (instance, found) in instances_of(self.topology, vnet.er_gateway).into_iter().enumerate() {
                let place = Place::CircuitGateway {
                    vnet: position,
                    instance,
                };
                self.agents.insert(&found.agent.id, place);
                vnet.er_instances.push(found);
            }
        }
        for vnet in &mut self.vnets {
            vnet.owners = vnet.machines.iter().flat_map(Machine::owners).collect();
            order_owners(&mut vnet.owners);
            vnet.settle_sources();
        }
    }

    fn place_machine(&mut self, agent: &'t Agent, nics: &'t [ResourceId], served: &'t [ResourceId]) {
        let nics: Vec<&NetworkInterface> = nics
            .iter()
            .filter_map(|id| self.topology.nics.get(id))
            .map(|nic| &**nic)
            .filter(|nic| !nic.ip_configurations.is_empty())
            .collect();
        let subnet = nics.first().and_then(|nic| nic.ip_configurations.first());
        let Some((vnet, _)) = subnet.and_then(|c| self.subnets.get(&c.subnet)).copied() else {
            return;
        };
        let served = served.iter().filter_map(|id| self.subnet(id));
        let served = served
            .filter(|(of, _)| of.position == vnet)
            .map(|(_, subnet)| subnet)
            .collect();
        let machine = self.vnets[vnet].machines.len();
        self.agents.insert(&agent.id, Place::Machine { vnet, machine });
        self.vnets[vnet].machines.push(Machine {
            agent,
            nics,
            served,
            speaks_for: Vec::new(),
        });
    }

    /// The connections of a VNet's gateway to circuits, with these.
    pub(super) fn circuits_of<'i>(
        &'i self,
        vnet: &'i Vnet<'t>,
    ) -> impl Iterator<Item = (&'i Circuit<'t>, &'t Connection)> + use<'i, 't> {
        let of = |(circuit, link): &(usize, usize)| {
            let circuit = &self.circuits[*circuit];
            (circuit, circuit.links[*link].connection)
        };
        vnet.circuits.iter().map(of)
    }
}

/// The agents of a gateway, in order of its `ipConfigurations`: the first is preferred.
fn instances_of<'t>(topology: &'t Topology, gateway: Option<&'t VirtualNetworkGateway>) -> Vec<Instance<'t>> {
    let Some(gateway) = gateway else { return Vec::new() };
    let mut instances = Vec::new();
    for configuration in &gateway.ip_configurations {
        let stands_for = |agent: &&std::sync::Arc<Agent>| {
            matches!(&agent.binding, Binding::Gateway { gateway: id, ip_configuration }
                if *id == gateway.envelope.id && ip_configuration.eq_ignore_ascii_case(&configuration.name))
        };
        let mut agents = topology.agents.values().filter(|agent| !agent.revoked);
        if let Some(agent) = agents.find(stands_for) {
            instances.push(Instance {
                agent,
                address: configuration.address,
                subnet: &configuration.subnet,
            });
        }
    }
    instances
}

impl Vnet<'_> {
    /// It has a gateway of its own, of either kind.
    pub(super) fn has_gateway(&self) -> bool {
        self.gateway.is_some() || self.er_gateway.is_some()
    }

    /// Routes come to its gateways that no configuration holds, so machines are told of routes (D11).
    pub(super) fn hears(&self) -> bool {
        !self.circuits.is_empty() || self.tunnels.iter().any(|t| t.exchange) || self.sites.iter().any(|s| s.exchange)
    }

    /// D8, D10: a machine with a NIC of its own does not sit behind the host that serves its subnet, so that host does
    /// not speak for it.
    fn settle_sources(&mut self) {
        let machines = self.machines.iter().flat_map(|machine| {
            let own = machine.addresses();
            own.map(|address| (IpNet::from(address), &machine.agent.id))
        });
        let instances = self.instances.iter().chain(&self.er_instances);
        let instances = instances.map(|i| (IpNet::from(i.address), &i.agent.id));
        let taken: Vec<(IpNet, &AgentId)> = machines.chain(instances).collect();
        let sources = self.machines.iter().map(|machine| {
            let served = machine.served_prefixes();
            let others = taken.iter().filter(|(_, agent)| **agent != machine.agent.id);
            let others = others.map(|(address, _)| *address);
            let others: Vec<IpNet> = others.filter(|a| prefix::covered(a, &served)).collect();
            let mut sources: Vec<IpNet> = machine.addresses().map(IpNet::from).collect();
            sources.extend(prefix::subtract(&served, &others));
            prefix::sorted(&sources)
        });
        let sources: Vec<Vec<IpNet>> = sources.collect();
        for (machine, sources) in self.machines.iter_mut().zip(sources) {
            machine.speaks_for = sources;
        }
    }

    /// What the own gateways tell the other ends of their connections: the own space, and that of its clients as if it
    /// were its own (P21b, E5). Nothing learned elsewhere (D9). Ordered.
    pub(super) fn advertised(&self) -> Vec<IpNet> {
        let mut prefixes = self.resource.address_space.clone();
        prefixes.extend(self.clients.iter().flat_map(|client| &client.half.remote_address_space));
        prefix::sorted(&prefixes)
    }

    /// What lies behind the connections of the own gateway, ordered.
    pub(super) fn contributed(&self) -> Vec<IpNet> {
        let tunnels = self.tunnels.iter().flat_map(|t| &t.prefixes);
        let sites = self.sites.iter().flat_map(|s| &s.prefixes);
        let prefixes: Vec<IpNet> = tunnels.chain(sites).copied().collect();
        prefix::sorted(&prefixes)
    }
}

impl Machine<'_> {
    /// Prefixes of the machines behind this host.
    pub(super) fn served_prefixes(&self) -> Vec<IpNet> {
        self.served
            .iter()
            .flat_map(|subnet| &subnet.prefixes)
            .copied()
            .collect()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nics
            .iter()
            .flat_map(|nic| &nic.ip_configurations)
            .map(|c| c.address)
    }

    /// It is an appliance: one of its NICs has `enableIPForwarding` (R12).
    pub(super) fn forwards(&self) -> bool {
        self.nics.iter().any(|nic| nic.enable_ip_forwarding)
    }

    fn owners(&self) -> Vec<Owner> {
        let mut owners = Vec::new();
        for nic in &self.nics {
            owners.extend(nic.ip_configurations.iter().map(|configuration| Owner {
                prefix: IpNet::from(configuration.address),
                agent: self.agent.id.clone(),
                ip_forwarding: nic.enable_ip_forwarding,
            }));
        }
        owners.extend(self.served_prefixes().into_iter().map(|prefix| Owner {
            prefix,
            agent: self.agent.id.clone(),
            ip_forwarding: false,
        }));
        owners
    }
}

/// Orders owners by prefix; of two for one prefix, the first by id stays.
pub(super) fn order_owners(owners: &mut Vec<Owner>) {
    owners.sort_by(|a, b| (a.prefix, &a.agent).cmp(&(b.prefix, &b.agent)));
    owners.dedup_by(|later, earlier| later.prefix == earlier.prefix);
}

/// A region's name as ARM compares it: `West US` is `westus`.
fn region(location: &str) -> String {
    location
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_ascii_lowercase())
        .collect()
}
