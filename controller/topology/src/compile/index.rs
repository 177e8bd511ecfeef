//! The agents, gateways and joined networks of one revision. The index is computed once for all agents. With it, the
//! compilation for one agent visits only the VNets and circuits next to the agent, not the whole topology.

mod join;

use super::front_ends::{self, BalancedFrontEnd};
use super::logs_by_target::ByTarget;
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

/// The VNets and circuits of a topology with their agents and connections. A position in another type is an index into
/// [`Index::vnets`] or [`Index::circuits`].
#[derive(Debug)]
pub(super) struct Index<'t> {
    pub(super) topology: &'t Topology,
    /// The VNets, ordered by id.
    pub(super) vnets: Vec<Vnet<'t>>,
    /// The circuits with a private peering, ordered by id.
    pub(super) circuits: Vec<Circuit<'t>>,
    /// The position of each subnet: in [`Index::vnets`], and in the VNet's list of subnets.
    subnets: BTreeMap<&'t ResourceId, (usize, usize)>,
    /// The position of each agent that has a configuration.
    agents: BTreeMap<&'t AgentId, Place>,
    /// The flow logs that are enabled.
    pub(super) flow_logs: ByTarget<'t>,
}

/// The position of an agent in the index.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// The agent of a VM: `vnets[vnet].machines[machine]`.
    Machine { vnet: usize, machine: usize },
    /// An instance of a VPN gateway: `vnets[vnet].instances[instance]`.
    Gateway { vnet: usize, instance: usize },
    /// An instance of an ExpressRoute gateway: `vnets[vnet].er_instances[instance]`.
    CircuitGateway { vnet: usize, instance: usize },
    /// The edge of a circuit: `circuits[circuit].edges[link]`.
    Edge { circuit: usize, link: CircuitLink },
}

/// A VNet with its agents, peers and connections. The index leaves out revoked agents.
#[derive(Debug)]
pub(super) struct Vnet<'t> {
    /// The position in [`Index::vnets`].
    pub(super) position: usize,
    /// The VNet itself.
    pub(super) resource: &'t VirtualNetwork,
    /// The agents of VMs, ordered by id.
    pub(super) machines: Vec<Machine<'t>>,
    /// Which agent of `machines` gets the packets for which prefix; ordered by prefix, with one agent for each.
    pub(super) owners: Vec<Owner>,
    /// The front ends of load balancers in this VNet, ordered by address.
    pub(super) front_ends: Vec<BalancedFrontEnd>,
    /// The `Connected` peerings, in order of creation.
    pub(super) peers: Vec<Peer<'t>>,
    /// The VNet's VPN gateway (X7: at most one).
    pub(super) gateway: Option<&'t VirtualNetworkGateway>,
    /// The agents of the VPN gateway, in order of its `ipConfigurations`: the first one is preferred.
    pub(super) instances: Vec<Instance<'t>>,
    /// The VNet's ExpressRoute gateway (X7: at most one).
    pub(super) er_gateway: Option<&'t VirtualNetworkGateway>,
    /// The agents of the ExpressRoute gateway, in order of its `ipConfigurations`.
    pub(super) er_instances: Vec<Instance<'t>>,
    /// The connections of the ExpressRoute gateway to circuits, ordered by id. Each item has the circuit's position in
    /// [`Index::circuits`] and the connection's position in [`Circuit::links`] of this circuit.
    pub(super) circuits: Vec<(usize, usize)>,
    /// The connections of the VPN gateway that exist on both sides, ordered by id.
    pub(super) tunnels: Vec<Tunnel<'t>>,
    /// The connections of the VPN gateway to sites, ordered by id.
    pub(super) sites: Vec<Site<'t>>,
    /// The VNets that use this VNet's gateways (`useRemoteGateways`).
    pub(super) clients: Vec<Client<'t>>,
    /// The position of the VNet whose gateways this VNet uses: its own position, or that of a peered VNet. `None`: it
    /// uses no gateway (P23).
    pub(super) hub: Option<usize>,
}

/// The agent of a VM.
#[derive(Debug)]
pub(super) struct Machine<'t> {
    pub(super) agent: &'t Agent,
    /// The NICs, the primary one first. Never empty.
    pub(super) nics: Vec<&'t NetworkInterface>,
    /// The subnets whose machines have no agent and reach the network through this host (D8).
    pub(super) served: Vec<&'t Subnet>,
    /// The source addresses that the machine may use without IP forwarding: its own addresses, those addresses of its
    /// served subnets that no other agent owns, and the front ends of which it has a back end (L5). Ordered (D10).
    pub(super) sources: Vec<IpNet>,
}

/// A circuit with its edges and connections (E1).
#[derive(Debug)]
pub(super) struct Circuit<'t> {
    pub(super) resource: &'t ExpressRouteCircuit,
    pub(super) peering: &'t PrivatePeering,
    /// The agents of the primary and of the secondary edge. `None`: no agent is bound to that line.
    pub(super) edges: [Option<&'t Agent>; 2],
    /// The connections to the circuit, ordered by id.
    pub(super) links: Vec<CircuitConnection<'t>>,
}

/// The connection of an ExpressRoute gateway to a circuit.
#[derive(Debug)]
pub(super) struct CircuitConnection<'t> {
    pub(super) connection: &'t Connection,
    /// The position of the gateway's VNet in [`Index::vnets`].
    pub(super) vnet: usize,
}

impl<'t> Circuit<'t> {
    /// The edges of the circuit that have an agent, the primary one first. Each is returned with its tunnel address,
    /// which is in `connection` (T4).
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
    /// The connection object of this VNet's gateway.
    pub(super) connection: &'t Connection,
    /// The description of the site at the far end.
    pub(super) local: &'t LocalNetworkGateway,
    /// Whether the ends exchange routes: both have BGP enabled, and their ASNs differ (G4).
    pub(super) exchange: bool,
    /// The site's configured prefixes, ordered (G7). Prefixes that overlap the gateway's VNet are left out, because
    /// packets to them follow the VNet's own routes.
    pub(super) prefixes: Vec<IpNet>,
}

impl Site<'_> {
    /// The device's BGP address inside the tunnel, as a prefix of one address. Packets from and to this address must be
    /// permitted separately, because no BGP route advertises it. `None`: there is no BGP session.
    pub(super) fn bgp_address(&self) -> Option<IpNet> {
        let bgp = self.local.bgp.filter(|_| self.exchange)?;
        Some(IpNet::from(bgp.address))
    }

    /// The name under which the device is the peer of a link. `None`: the device's public key or the connection's
    /// shared key is missing. Without both keys there is no link, because a tunnel without the shared key would be less
    /// secure than the operator requested (G11).
    pub(super) fn device(&self) -> Option<AgentId> {
        self.local.public_key?;
        self.connection.shared_key.as_ref()?;
        Some(AgentId::of_site(&self.connection.envelope.id))
    }
}

/// A peering whose halves are both `Connected`.
#[derive(Debug)]
pub(super) struct Peer<'t> {
    /// The half of this VNet.
    pub(super) half: &'t Peering,
    /// The half of the other VNet.
    pub(super) counterpart: &'t Peering,
    /// The position of the other VNet in [`Index::vnets`].
    pub(super) remote: usize,
    /// Whether the two regions differ (P30).
    pub(super) global: bool,
}

impl Peer<'_> {
    /// The transport of links across the peering. If one half has `Automatic`, the other half decides (D6).
    pub(super) fn transport(&self) -> Transport {
        match self.half.transport {
            Transport::Automatic => self.counterpart.transport,
            wanted => wanted,
        }
    }
}

/// An instance of a gateway that has an agent.
#[derive(Debug)]
pub(super) struct Instance<'t> {
    /// The agent that is bound to the ip configuration.
    pub(super) agent: &'t Agent,
    /// The address of the ip configuration.
    pub(super) address: IpAddr,
    /// The id of the `GatewaySubnet`.
    pub(super) subnet: &'t ResourceId,
}

/// A connection between two gateways that exists on both sides (G10).
#[derive(Debug)]
pub(super) struct Tunnel<'t> {
    /// The connection object of this VNet's gateway.
    pub(super) connection: &'t Connection,
    /// The position of the other gateway's VNet.
    pub(super) remote: usize,
    /// Whether the ends exchange routes: both have BGP enabled, and their ASNs differ (G4).
    pub(super) exchange: bool,
    /// The configured prefixes reachable through the tunnel (G9, P21b), ordered: those of the other gateway's VNet and
    /// of the VNets that use that gateway. Not included are prefixes that the other gateway learns over its other
    /// connections (D9), and prefixes that overlap this VNet (G20).
    pub(super) prefixes: Vec<IpNet>,
}

/// A VNet that uses the gateways of another VNet, its hub (P21).
#[derive(Debug)]
pub(super) struct Client<'t> {
    /// The position in [`Index::vnets`] of the VNet that uses the gateways.
    pub(super) vnet: usize,
    /// The hub's half of their peering. The half's `remoteAddressSpace` is the part of this VNet that the hub has
    /// synced (P27).
    pub(super) half: &'t Peering,
}

impl Vnet<'_> {
    /// The transport of links to the machines and gateways of the VNet at position `other`. It is `Automatic` if that
    /// is this VNet itself or a VNet without a peering.
    pub(super) fn transport_to(&self, other: usize) -> Transport {
        let peer = self.peers.iter().find(|p| p.remote == other);
        peer.map_or(Transport::Automatic, Peer::transport)
    }
}

impl<'t> Index<'t> {
    /// Indexes a topology. The VNets' gateways and agents are found first, because the search for peerings, tunnels,
    /// sites and circuits reads them.
    pub(super) fn new(topology: &'t Topology) -> Self {
        let mut index = Self {
            topology,
            vnets: Vec::with_capacity(topology.vnets.len()),
            circuits: Vec::new(),
            subnets: BTreeMap::new(),
            agents: BTreeMap::new(),
            flow_logs: ByTarget::new(topology.flow_logs.values().map(|log| &**log)),
        };
        let mut positions = BTreeMap::new();
        let mut front_ends = front_ends::of_vnets(topology);
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
                front_ends: front_ends.remove(&vnet.envelope.id).unwrap_or_default(),
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

    /// The subnet with an id, and its VNet. `None`: it does not exist.
    pub(super) fn subnet(&self, id: &ResourceId) -> Option<(&Vnet<'t>, &'t Subnet)> {
        let (vnet, subnet) = *self.subnets.get(id)?;
        let vnet = &self.vnets[vnet];
        Some((vnet, &vnet.resource.subnets[subnet]))
    }

    /// The position of an agent. `None`: the agent is unknown, revoked, or bound to a deleted resource.
    pub(super) fn place(&self, agent: &AgentId) -> Option<Place> {
        self.agents.get(agent).copied()
    }

    /// Finds the gateways of each VNet.
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

    /// Finds the VNet or circuit of each agent, then which agent owns which addresses, and which source addresses each
    /// machine may use.
    fn place_agents(&mut self) {
        for agent in self.topology.agents.values().filter(|agent| !agent.revoked) {
            match &agent.binding {
                Binding::Vm { nics, served, .. } => self.place_machine(agent, nics, served),
                Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => {}
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
            let front_ends = front_ends::addresses(&vnet.front_ends);
            vnet.owners = vnet
                .machines
                .iter()
                .flat_map(|machine| machine.owners(&front_ends))
                .collect();
            order_owners(&mut vnet.owners);
            vnet.assign_sources();
        }
    }

    /// Adds the agent of a VM to the VNet of its primary NIC. NICs that do not exist, and served subnets that are in
    /// another VNet, are left out.
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
            sources: Vec::new(),
        });
    }

    /// The circuits that a VNet's ExpressRoute gateway is connected to, each with its connection; ordered by the
    /// connection's id.
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

/// The agents of a gateway, in order of its `ipConfigurations`. Instances without an agent are left out.
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
    /// Whether the VNet has a gateway of its own, of either type.
    pub(super) fn has_gateway(&self) -> bool {
        self.gateway.is_some() || self.er_gateway.is_some()
    }

    /// Whether the VNet's gateways learn routes at run time, by BGP or from other agents. Such gateways advertise the
    /// learned routes to the machines (D11).
    pub(super) fn learns_routes(&self) -> bool {
        !self.circuits.is_empty() || self.tunnels.iter().any(|t| t.exchange) || self.sites.iter().any(|s| s.exchange)
    }

    /// Computes the permitted source addresses of each machine. A machine with an agent of its own does not send
    /// through the host that serves its subnet. So the host must not use the machine's address as a source (D8, D10).
    /// No machine has the address of a front end, and only machines with a back end of it may use it as a source (L5).
    fn assign_sources(&mut self) {
        let machines = self.machines.iter().flat_map(|machine| {
            let own = machine.addresses();
            own.map(|address| (IpNet::from(address), &machine.agent.id))
        });
        let instances = self.instances.iter().chain(&self.er_instances);
        let instances = instances.map(|i| (IpNet::from(i.address), &i.agent.id));
        let taken: Vec<(IpNet, &AgentId)> = machines.chain(instances).collect();
        let front_ends = front_ends::addresses(&self.front_ends);
        let sources = self.machines.iter().map(|machine| {
            let served = machine.served_prefixes();
            let others = taken.iter().filter(|(_, agent)| **agent != machine.agent.id);
            let others = others.map(|(address, _)| *address);
            let others = others.chain(front_ends.iter().copied());
            let others: Vec<IpNet> = others.filter(|a| prefix::covered(a, &served)).collect();
            let mut sources: Vec<IpNet> = machine.addresses().map(IpNet::from).collect();
            sources.extend(prefix::subtract(&served, &others));
            sources.extend(front_ends::sources(&self.front_ends, &sources));
            prefix::sorted(&sources)
        });
        let sources: Vec<Vec<IpNet>> = sources.collect();
        for (machine, sources) in self.machines.iter_mut().zip(sources) {
            machine.sources = sources;
        }
    }

    /// The prefixes that the VNet's gateways advertise as their own: the VNet's, and the synced prefixes of the VNets
    /// that use the gateways (P21b, E5). Learned prefixes are not among them (D9). Ordered.
    pub(super) fn advertised(&self) -> Vec<IpNet> {
        let mut prefixes = self.resource.address_space.clone();
        prefixes.extend(self.clients.iter().flat_map(|client| &client.half.remote_address_space));
        prefix::sorted(&prefixes)
    }

    /// The configured prefixes that the VNet's VPN gateway reaches through its connections to other gateways and to
    /// sites; ordered.
    pub(super) fn connection_prefixes(&self) -> Vec<IpNet> {
        let tunnels = self.tunnels.iter().flat_map(|t| &t.prefixes);
        let sites = self.sites.iter().flat_map(|s| &s.prefixes);
        let prefixes: Vec<IpNet> = tunnels.chain(sites).copied().collect();
        prefix::sorted(&prefixes)
    }
}

impl Machine<'_> {
    /// The prefixes of the subnets that this host serves, in the order of the binding.
    pub(super) fn served_prefixes(&self) -> Vec<IpNet> {
        self.served
            .iter()
            .flat_map(|subnet| &subnet.prefixes)
            .copied()
            .collect()
    }

    /// The addresses of all NICs, those of the primary NIC first.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nics
            .iter()
            .flat_map(|nic| &nic.ip_configurations)
            .map(|c| c.address)
    }

    /// Whether the machine is an appliance: one of its NICs has `enableIPForwarding` (R12).
    pub(super) fn forwards(&self) -> bool {
        self.nics.iter().any(|nic| nic.enable_ip_forwarding)
    }

    /// The addresses and served prefixes of the machine, each with the machine's agent as owner. `ip_forwarding` is
    /// always false for a served prefix. The addresses of `front_ends` have no owner: whoever does not reach a front end
    /// sends nothing to the host that serves its subnet (L10, P30).
    fn owners(&self, front_ends: &[IpNet]) -> Vec<Owner> {
        let mut owners = Vec::new();
        for nic in &self.nics {
            owners.extend(nic.ip_configurations.iter().map(|configuration| Owner {
                prefix: IpNet::from(configuration.address),
                agent: self.agent.id.clone(),
                ip_forwarding: nic.enable_ip_forwarding,
            }));
        }
        let served = prefix::subtract(&self.served_prefixes(), front_ends);
        owners.extend(served.into_iter().map(|prefix| Owner {
            prefix,
            agent: self.agent.id.clone(),
            ip_forwarding: false,
        }));
        owners
    }
}

/// Orders owners by prefix and drops duplicates. If two agents own the same prefix, only the owner with the smaller id
/// is kept.
pub(super) fn order_owners(owners: &mut Vec<Owner>) {
    owners.sort_by(|a, b| (a.prefix, &a.agent).cmp(&(b.prefix, &b.agent)));
    owners.dedup_by(|later, earlier| later.prefix == earlier.prefix);
}

/// A region's name in the form that ARM compares: `West US` is `westus`.
fn region(location: &str) -> String {
    location
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_ascii_lowercase())
        .collect()
}
