//! The addresses between which reachability is computed, and the classes of those that are treated alike.

use crate::compile::Compiler;
use crate::learned_routes::LearnedReports;
use crate::resource::{Agent, Binding, NetworkInterface, UserNextHop};
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_engine::tables::lpm::Lpm;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};

/// An address that sends packets, receives packets, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The network interface, the front end, or the local network gateway of the site that has the address. For the
    /// other machines of a served subnet: the subnet.
    pub id: ResourceId,
    /// The address. For a site, and for the other machines of a served subnet: an address that stands for all of them.
    pub address: IpAddr,
    /// The subnet of the address. `None`: the address is in a site.
    pub subnet: Option<ResourceId>,
    /// The prefix for whose addresses this one stands. `None`: only for itself.
    pub prefix: Option<IpNet>,
    /// Where packets from the address begin.
    pub(super) start: Start,
}

impl End {
    /// The agent of the host that has the address. `None`: a front end, or an address in a site.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        match &self.start {
            Start::Host(agent) => Some(agent),
            Start::Site(_) | Start::Nowhere => None,
        }
    }

    /// Whether a packet that was delivered to this agent's host is at the end. Another network may have the same address.
    pub(super) fn is_at(&self, host: &AgentId) -> bool {
        match &self.start {
            Start::Host(agent) => agent == host,
            Start::Site(_) => false,
            // The back ends have the packets of a front end.
            Start::Nowhere => true,
        }
    }

    /// Whether a packet that has left the agents' network is at the end. `None`: it has left over the line of a circuit, whose
    /// networks are not known.
    pub(super) fn is_behind(&self, device: Option<&AgentId>) -> bool {
        match &self.start {
            Start::Site(doors) => device.is_none_or(|device| doors.iter().any(|door| door.device == *device)),
            Start::Host(_) | Start::Nowhere => false,
        }
    }

    /// Whether the end sends packets of its own: a front end does not.
    #[must_use]
    pub fn sends(&self) -> bool {
        self.start != Start::Nowhere
    }
}

/// Where packets from an address begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// At the host of this agent.
    Host(AgentId),
    /// At the devices of a site, one for each of its connections. The site may use any of them.
    Site(Vec<Door>),
    /// Nowhere: a front end only receives packets.
    Nowhere,
}

/// Where packets of a site arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Door {
    /// The agent of the gateway.
    pub(super) gateway: AgentId,
    /// The device of the site, over whose link they arrive.
    pub(super) device: AgentId,
}

/// Positions of ends that have the same paths to and from every other end. Security rules may treat them differently.
pub(super) type Class = Vec<usize>;

/// Positions of classes between whose ends and every other end the same routes apply.
pub(super) type Block = Vec<usize>;

/// The ends of a topology.
pub(super) struct Ends {
    pub(super) ends: Vec<End>,
    pub(super) classes: Vec<Class>,
    /// Each class is in one block.
    pub(super) blocks: Vec<Block>,
}

/// All that decides about the paths to and from an address, apart from the address itself.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PathKey<'t> {
    subnet: Option<&'t ResourceId>,
    is_v4: bool,
    /// The longest of all prefixes by which a route or an address space tells addresses apart.
    within: Option<usize>,
    forwards: bool,
    /// Whether the interface has a security group can decide about access (D28). Which group it is decides which rules
    /// the agent of the class has.
    group: Option<&'t ResourceId>,
    /// For an end whose agent has other interfaces or serves subnets, a next hop of a route, and a back end: the agent
    /// and the address. Such an end is alone in its class.
    own: Option<(&'t AgentId, IpAddr)>,
}

/// All ends of a topology in which all agents have joined, with their classes and blocks.
pub(super) fn of(topology: &Topology, reports: &LearnedReports) -> Ends {
    let told_apart = told_apart(topology, reports);
    let special = next_hops_and_back_ends(topology);
    let within = |address: IpAddr| told_apart.get(address).copied();
    let agents = AgentsOfNics::of(topology);
    let mut ends = Vec::new();
    let mut classes: BTreeMap<PathKey<'_>, Class> = BTreeMap::new();
    let mut single: Vec<Class> = Vec::new();
    for nic in topology.nics.values() {
        let Some(agent) = agents.of_nic(nic) else { continue };
        let is_plain =
            matches!(&agent.binding, Binding::Vm { nics, served, .. } if nics.len() == 1 && served.is_empty());
        for configuration in &nic.ip_configurations {
            let key = PathKey {
                subnet: Some(&configuration.subnet),
                is_v4: configuration.address.is_ipv4(),
                within: within(configuration.address),
                forwards: nic.enable_ip_forwarding,
                group: nic.network_security_group.as_ref(),
                own: (!is_plain || special.contains(&configuration.address))
                    .then_some((&agent.id, configuration.address)),
            };
            classes.entry(key).or_default().push(ends.len());
            ends.push(End {
                id: nic.envelope.id.clone(),
                address: configuration.address,
                subnet: Some(configuration.subnet.clone()),
                prefix: None,
                start: Start::Host(agent.id.clone()),
            });
        }
    }
    let used: BTreeSet<IpAddr> = ends.iter().map(|end| end.address).collect();
    for end in others_in_served_subnets(topology, &used)
        .into_iter()
        .chain(front_ends(topology))
        .chain(sites(topology))
    {
        single.push(vec![ends.len()]);
        ends.push(end);
    }
    let mut all: Vec<Class> = Vec::with_capacity(classes.len() + single.len());
    let mut blocks: BTreeMap<_, Block> = BTreeMap::new();
    for (key, class) in classes {
        // Routes are those of a subnet, and what a block's ends do with security groups does not matter to them.
        let block = (key.subnet, key.is_v4, key.within, key.own);
        blocks.entry(block).or_default().push(all.len());
        all.push(class);
    }
    let mut blocks: Vec<Block> = blocks.into_values().collect();
    for class in single {
        blocks.push(vec![all.len()]);
        all.push(class);
    }
    Ends {
        ends,
        classes: all,
        blocks,
    }
}

/// The prefixes by which routes and address spaces tell addresses apart, each with its number.
fn told_apart(topology: &Topology, reports: &LearnedReports) -> Lpm<usize> {
    let mut all: BTreeSet<IpNet> = BTreeSet::new();
    for vnet in topology.vnets.values() {
        all.extend(&vnet.address_space);
        all.extend(vnet.peerings.iter().flat_map(|peering| &peering.remote_address_space));
    }
    for table in topology.route_tables.values() {
        all.extend(table.routes.iter().map(|route| route.prefix));
    }
    for site in topology.local_gateways.values() {
        all.extend(&site.address_space);
    }
    for routes in reports.learned.values().flat_map(|by| by.values()) {
        all.extend(routes.iter().map(|route| route.prefix));
    }
    let mut lpm = Lpm::default();
    for (number, prefix) in all.into_iter().enumerate() {
        lpm.insert(prefix, number);
    }
    lpm
}

/// The addresses that are next hops of user-defined routes, or back ends of load balancers: packets to others may pass
/// them.
fn next_hops_and_back_ends(topology: &Topology) -> BTreeSet<IpAddr> {
    let mut all = BTreeSet::new();
    for route in topology.route_tables.values().flat_map(|table| &table.routes) {
        if let UserNextHop::VirtualAppliance { address } = &route.next_hop {
            all.insert(*address);
        }
    }
    for configuration in topology.nics.values().flat_map(|nic| &nic.ip_configurations) {
        if !configuration.load_balancer_pools.is_empty() || !configuration.inbound_nat_rules.is_empty() {
            all.insert(configuration.address);
        }
    }
    let pools = topology.load_balancers.values().flat_map(|balancer| &balancer.pools);
    all.extend(pools.flat_map(|pool| &pool.addresses).map(|member| member.address));
    all
}

/// The agent of each network interface.
struct AgentsOfNics<'t> {
    by_nic: BTreeMap<&'t ResourceId, &'t Agent>,
    by_subnet: BTreeMap<&'t ResourceId, &'t Agent>,
}

impl<'t> AgentsOfNics<'t> {
    fn of(topology: &'t Topology) -> Self {
        let mut all = Self {
            by_nic: BTreeMap::new(),
            by_subnet: BTreeMap::new(),
        };
        for agent in topology.agents.values().filter(|agent| !agent.revoked) {
            if let Binding::Vm { nics, served, .. } = &agent.binding {
                all.by_nic.extend(nics.iter().map(|nic| (nic, &**agent)));
                all.by_subnet.extend(served.iter().map(|subnet| (subnet, &**agent)));
            }
        }
        all
    }

    fn of_nic(&self, nic: &NetworkInterface) -> Option<&'t Agent> {
        let subnet = || nic.ip_configurations.first().map(|c| &c.subnet);
        let own = self.by_nic.get(&nic.envelope.id);
        own.or_else(|| self.by_subnet.get(subnet()?)).copied()
    }
}

/// For each served subnet and address family, an end that stands for the machines without a network interface.
fn others_in_served_subnets(topology: &Topology, used: &BTreeSet<IpAddr>) -> Vec<End> {
    let mut found = Vec::new();
    for agent in topology.agents.values().filter(|agent| !agent.revoked) {
        let Binding::Vm { served, .. } = &agent.binding else {
            continue;
        };
        for vnet in topology.vnets.values() {
            for subnet in vnet.subnets.iter().filter(|subnet| served.contains(&subnet.id)) {
                for prefix in &subnet.prefixes {
                    // Azure reserves the first four addresses of a subnet and the last one.
                    let free = prefix.hosts().skip(3).take(usize::from(u16::MAX));
                    let Some(address) = free.into_iter().find(|address| !used.contains(address)) else {
                        continue;
                    };
                    found.push(End {
                        id: subnet.id.clone(),
                        address,
                        subnet: Some(subnet.id.clone()),
                        prefix: Some(*prefix),
                        start: Start::Host(agent.id.clone()),
                    });
                }
            }
        }
    }
    found
}

fn front_ends(topology: &Topology) -> Vec<End> {
    let all = topology
        .load_balancers
        .values()
        .flat_map(|balancer| &balancer.front_ends);
    let each = all.map(|front_end| End {
        id: front_end.id.clone(),
        address: front_end.address,
        subnet: Some(front_end.subnet.clone()),
        prefix: None,
        start: Start::Nowhere,
    });
    each.collect()
}

/// For each prefix of a site that connections join, an end that stands for the prefix.
fn sites(topology: &Topology) -> Vec<End> {
    let compiler = Compiler::new(topology);
    let mut doors: BTreeMap<&ResourceId, Vec<Door>> = BTreeMap::new();
    for connection in topology.connections.values() {
        if !topology.local_gateways.contains_key(&connection.gateway2) {
            continue;
        }
        let device = AgentId::of_site(&connection.envelope.id);
        let instance = topology.agents.values().find(|agent| {
            let stands_for = |gateway: &ResourceId| *gateway == connection.gateway1;
            !agent.revoked && matches!(&agent.binding, Binding::Gateway { gateway, .. } if stands_for(gateway))
        });
        let has_link = |config: &AgentConfig| config.links.iter().any(|link| link.peer == device);
        let Some(gateway) = instance.filter(|agent| compiler.compile(&agent.id).is_some_and(|c| has_link(&c))) else {
            continue;
        };
        let gateway = gateway.id.clone();
        let of_site = doors.entry(&connection.gateway2).or_default();
        of_site.push(Door { gateway, device });
    }
    let mut found = Vec::new();
    for (site, doors) in doors {
        let Some(site) = topology.local_gateways.get(site) else {
            continue;
        };
        for prefix in &site.address_space {
            found.push(End {
                id: site.envelope.id.clone(),
                address: prefix.hosts().next().unwrap_or(prefix.addr()),
                subnet: None,
                prefix: Some(*prefix),
                start: Start::Site(doors.clone()),
            });
        }
    }
    found
}
