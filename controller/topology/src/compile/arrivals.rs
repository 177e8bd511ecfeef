//! The NICs at which packets arrive at a machine with several NICs (D37): those that the user-defined routes of the
//! sender's subnets name as virtual appliances, by their own address or by a front end whose pool they are in (R11).

use super::index::{Index, Machine, Place};
use super::routes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_engine::host_routes::{RoutedNic, egress_nic, routes_of};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::{Arrival, BalancedProtocol, Link};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteState};

/// Adds to each link of a machine the NICs at which the peer's packets arrive. Machines with one NIC need none.
pub(super) fn add(index: &Index<'_>, own: &Machine<'_>, links: &mut [Link]) {
    if own.nics.len() < 2 {
        return;
    }
    let mut routes = RoutesToMachine::new(index, own);
    for link in links {
        let arrivals: BTreeSet<Arrival> = routes.of_peer(&link.peer);
        link.arrivals = arrivals.into_iter().collect();
    }
}

/// A prefix, and the NIC of the machine to which packets for the prefix go.
type Target = (IpNet, u8);

/// The routes that lead to the NICs of one machine, by the subnet that has them.
struct RoutesToMachine<'i, 't> {
    index: &'i Index<'t>,
    /// The machine's addresses, each with the position of its NIC.
    own: BTreeMap<IpAddr, u8>,
    /// The front ends of which a NIC of the machine is a back end, each with the position of this NIC.
    front_ends: BTreeMap<IpAddr, u8>,
    by_subnet: BTreeMap<&'i ResourceId, Vec<Target>>,
}

impl<'i, 't> RoutesToMachine<'i, 't> {
    fn new(index: &'i Index<'t>, own: &Machine<'_>) -> Self {
        let numbered = own.nics.iter().zip(0u8..);
        let addresses = numbered.flat_map(|(nic, n)| nic.ip_configurations.iter().map(move |c| (c.address, n)));
        let addresses: BTreeMap<IpAddr, u8> = addresses.collect();
        Self {
            index,
            front_ends: front_ends(index, own, &addresses),
            own: addresses,
            by_subnet: BTreeMap::new(),
        }
    }

    /// The arrivals of packets from one agent: by the routes of the subnets of its NICs and of its served machines, or
    /// by those of its `GatewaySubnet`.
    fn of_peer(&mut self, peer: &AgentId) -> BTreeSet<Arrival> {
        let index = self.index;
        match index.place(peer) {
            Some(Place::Machine { vnet, machine }) => self.of_machine(&index.vnets[vnet].machines[machine]),
            Some(Place::Gateway { vnet, instance }) => self.of_gateway(index.vnets[vnet].instances[instance].subnet),
            Some(Place::CircuitGateway { vnet, instance }) => {
                self.of_gateway(index.vnets[vnet].er_instances[instance].subnet)
            }
            // An edge sends to a machine only through the gateway.
            Some(Place::Edge { .. }) | None => BTreeSet::new(),
        }
    }

    fn of_machine(&mut self, peer: &Machine<'_>) -> BTreeSet<Arrival> {
        let index = self.index;
        let mut arrivals = BTreeSet::new();
        for nic in &peer.nics {
            for configuration in &nic.ip_configurations {
                let targets = self.of_subnet(&configuration.subnet);
                arrivals.extend(targets.iter().map(|t| arrival(IpNet::from(configuration.address), *t)));
            }
        }
        for subnet in &peer.served {
            let targets = self.of_subnet(&subnet.id);
            arrivals.extend(
                targets
                    .iter()
                    .flat_map(|t| subnet.prefixes.iter().map(|source| arrival(*source, *t))),
            );
        }
        if !peer.forwards() {
            return arrivals;
        }
        // The kernel of the peer selects the NIC by which it forwards a packet, and the routes of this NIC's subnet
        // decide.
        let subnet_of = |nic: &crate::resource::NetworkInterface| {
            let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
            subnet.and_then(|id| index.subnet(id)).map(|(_, subnet)| subnet)
        };
        let host_routes: Vec<_> = peer.nics.iter().map(|nic| nic.host_routes()).collect();
        let routed = peer.nics.iter().zip(&host_routes).filter_map(|(nic, host_routes)| {
            let subnet = subnet_of(nic)?;
            Some(RoutedNic {
                subnet: &subnet.id,
                prefixes: &subnet.prefixes,
                host_routes,
            })
        });
        let steered = routes_of(&routed.collect::<Vec<_>>());
        for (nic, number) in peer.nics.iter().zip(0u8..).filter(|(nic, _)| nic.enable_ip_forwarding) {
            let Some(subnet) = subnet_of(nic) else { continue };
            let targets = self.of_subnet(&subnet.id);
            let leaves_here = targets
                .iter()
                .filter(|(prefix, _)| egress_nic(&steered, prefix) == NicIndex(number));
            arrivals.extend(leaves_here.map(|t| arrival(any_like(t.0), *t)));
            // The kernel may send a part of a route's prefix by this NIC, and the rest by another one.
            for (part, _) in steered.iter().filter(|(_, nic)| **nic == NicIndex(number)) {
                let around = targets.iter().filter(|(prefix, _)| prefix.contains(part));
                let longest = around.max_by_key(|(prefix, _)| prefix.prefix_len());
                arrivals.extend(longest.map(|(_, nic)| arrival(any_like(*part), (*part, *nic))));
            }
        }
        // The subnet of an address of the peer may have no such route. Then the peer sends from this address to the
        // machine's addresses directly, so the entries for all sources must not apply.
        let with_routes: BTreeSet<IpNet> = arrivals.iter().map(|a| a.source).collect();
        let own = peer.nics.iter().flat_map(|nic| &nic.ip_configurations);
        let sources = own.map(|c| IpNet::from(c.address)).chain(peer.served_prefixes());
        for source in sources.filter(|source| !with_routes.contains(source)) {
            let like = self
                .own
                .iter()
                .filter(|(address, _)| address.is_ipv4() == source.addr().is_ipv4());
            arrivals.extend(like.map(|(address, nic)| arrival(source, (IpNet::from(*address), *nic))));
        }
        arrivals
    }

    fn of_gateway(&mut self, subnet: &ResourceId) -> BTreeSet<Arrival> {
        let targets = self.of_subnet(subnet);
        targets.iter().map(|t| arrival(any_like(t.0), *t)).collect()
    }

    /// The routes of a subnet that lead to the machine.
    fn of_subnet(&mut self, id: &ResourceId) -> &[Target] {
        let Some((vnet, subnet)) = self.index.subnet(id) else {
            return &[];
        };
        let (index, own, front_ends) = (self.index, &self.own, &self.front_ends);
        self.by_subnet
            .entry(&subnet.id)
            .or_insert_with(|| targets(&routes::effective(index, vnet, subnet), own, front_ends))
    }
}

/// The front ends of which a NIC of the machine is a back end, each with the NIC at which the machine gets the packets of
/// routes that name the front end. A packet does not say which back end its sender has chosen. So if several NICs are back
/// ends of one front end, those of a rule for all ports come first (L9), and of several the first NIC.
fn front_ends(index: &Index<'_>, machine: &Machine<'_>, own: &BTreeMap<IpAddr, u8>) -> BTreeMap<IpAddr, u8> {
    let Some(Place::Machine { vnet, .. }) = index.place(&machine.agent.id) else {
        return BTreeMap::new();
    };
    let front_ends = index.vnets[vnet].front_ends.iter().map(|front_end| &front_end.config);
    let nic = front_ends.filter_map(|front_end| {
        let back_ends = front_end.rules.iter().flat_map(|rule| {
            let nics = rule.back_ends.iter().filter_map(|address| own.get(address));
            nics.map(|nic| (rule.protocol != BalancedProtocol::All, *nic))
        });
        let (_, nic) = back_ends.min()?;
        Some((front_end.address, nic))
    });
    nic.collect()
}

/// The routes to virtual appliances that are NICs of the machine, or front ends of these; and the machine's own addresses
/// to which a longer route leads directly, although such a route contains them.
fn targets(routes: &[EffectiveRoute], own: &BTreeMap<IpAddr, u8>, front_ends: &BTreeMap<IpAddr, u8>) -> Vec<Target> {
    let nic_of = |route: &EffectiveRoute| match &route.next_hop {
        NextHop::VirtualAppliance { address } => own.get(address).or_else(|| front_ends.get(address)).copied(),
        _ => None,
    };
    let active = || routes.iter().filter(|r| r.state == RouteState::Active);
    let mut targets: Vec<Target> = active().filter_map(|r| Some((r.prefix.trunc(), nic_of(r)?))).collect();
    let direct = own.iter().filter(|(address, _)| {
        let around = || active().filter(|r| r.prefix.contains(*address));
        let selected = around().max_by_key(|r| r.prefix.prefix_len());
        around().any(|r| nic_of(r).is_some()) && selected.is_some_and(|r| nic_of(r).is_none())
    });
    let direct: Vec<Target> = direct.map(|(address, nic)| (IpNet::from(*address), *nic)).collect();
    targets.extend(direct);
    targets
}

fn arrival(source: IpNet, (destination, nic): Target) -> Arrival {
    Arrival {
        source,
        destination,
        nic,
    }
}

/// The prefix of all addresses of the same family.
fn any_like(prefix: IpNet) -> IpNet {
    match prefix {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}
