//! The NIC of a machine with several NICs that a packet passes (D37).

use super::{Agent, Model, Nic, UserHop, within};
use crate::operation::{GATEWAY_SUBNET, Packet};

impl Model {
    /// The NIC by which the kernel of a machine sends a packet. It is the NIC that has the packet's source. Otherwise
    /// the destination decides: a NIC other than the first is used for its subnet, unless an earlier NIC is in the same
    /// subnet, and for the prefixes of its tag. Of several such prefixes the longest decides. Otherwise it is the first
    /// NIC. None: the agent has no NIC.
    #[must_use]
    pub fn sending_nic(&self, agent: &Agent, packet: &Packet) -> Option<&Nic> {
        let nics = self.nics_of(agent);
        if let Some(own) = nics.iter().find(|n| n.addresses.contains(&packet.source)) {
            return Some(own);
        }
        // The prefixes that contain the destination, each with its length. If a subnet and a tag have the same prefix, the
        // tag decides.
        let mut found: Vec<(u8, bool, &Nic)> = Vec::new();
        for (position, nic) in nics.iter().enumerate().skip(1) {
            let is_first_there = nics[..position]
                .iter()
                .all(|n| (&n.vnet, &n.subnet) != (&nic.vnet, &nic.subnet));
            let subnets = self.vnet(&nic.vnet).map(|v| v.subnets.as_slice()).unwrap_or_default();
            let subnet = subnets.iter().find(|s| s.name == nic.subnet);
            let of_subnet = subnet.map(|s| s.prefixes.clone()).unwrap_or_default();
            let length = Self::longest(&of_subnet, packet.destination).filter(|_| is_first_there);
            found.extend(length.map(|length| (length, false, *nic)));
            let length = Self::longest(&nic.host_routes, packet.destination);
            found.extend(length.map(|length| (length, true, *nic)));
        }
        let best = found.iter().max_by_key(|(length, of_tag, _)| (*length, *of_tag));
        best.map(|(_, _, nic)| *nic).or(nics.first().copied())
    }

    /// The NIC of `to` at which a packet from `from` arrives: the one that a user-defined route of the sender names as
    /// virtual appliance (R11), or a back end of the front end that is the destination or the virtual appliance, or the one
    /// with the destination, or the first that forwards. None: the agent has no
    /// NIC.
    #[must_use]
    pub fn arrival_nic(&self, to: &Agent, from: &Agent, packet: &Packet) -> Option<&Nic> {
        let nics = self.nics_of(to);
        if let Some(nic) = nics.iter().find(|n| self.is_behind(n, packet.destination)) {
            return Some(*nic);
        }
        let owner = nics.iter().find(|n| n.addresses.contains(&packet.destination));
        let usual = match owner {
            Some(owner) => Some(*owner),
            None if self.serves(to, packet.destination) => nics.first().copied(),
            None => nics.iter().find(|n| n.forwarding).or(nics.first()).copied(),
        };
        if nics.len() < 2 {
            return usual;
        }
        let Some(subnet) = self.sending_subnet(from, packet) else {
            return usual;
        };
        let named = |hop: &UserHop| match hop {
            UserHop::Appliance(address) => {
                let is_named = |n: &&&Nic| n.addresses.contains(address) || self.is_behind(n, *address);
                nics.iter().find(is_named).copied()
            }
            _ => None,
        };
        let home = self.vnet(&from.vnet);
        let subnets = home.map(|v| v.subnets.as_slice()).unwrap_or_default();
        let table = subnets.iter().find(|s| s.name == subnet).and_then(|s| s.table.as_ref());
        let routes = self
            .tables
            .iter()
            .filter(|t| Some(&t.name) == table)
            .flat_map(|t| &t.routes);
        let around: Vec<_> = routes.filter(|(p, _)| p.contains(&packet.destination)).collect();
        // A route that is longer than those to the appliance leads to the appliance's own address directly.
        if owner.is_some() {
            let selected = around.iter().max_by_key(|(p, _)| p.prefix_len());
            let system = home.into_iter().flat_map(|v| {
                let peered = v.peerings.iter().filter(|p| p.state == super::State::Connected);
                v.space.iter().chain(peered.flat_map(|p| &p.remote_space))
            });
            let system = system
                .filter(|p| p.contains(&packet.destination))
                .map(|p| p.prefix_len())
                .max();
            let is_direct =
                selected.is_none_or(|(p, hop)| named(hop).is_none() || system.is_some_and(|s| s > p.prefix_len()));
            if is_direct {
                return usual;
            }
        }
        let leading = around.iter().filter_map(|(p, hop)| Some((p.prefix_len(), named(hop)?)));
        leading.max_by_key(|(length, _)| *length).map(|(_, nic)| nic).or(usual)
    }

    /// The subnet whose routes apply when an agent sends a packet. None: the agent may not send it.
    fn sending_subnet(&self, from: &Agent, packet: &Packet) -> Option<String> {
        if from.gateway {
            return Some(GATEWAY_SUBNET.to_owned());
        }
        let nics = self.nics_of(from);
        if let Some(own) = nics.iter().find(|n| n.addresses.contains(&packet.source)) {
            return Some(own.subnet.clone());
        }
        let subnets = self.vnet(&from.vnet).map(|v| v.subnets.as_slice()).unwrap_or_default();
        let mut served = subnets.iter().filter(|s| from.served.contains(&s.name));
        if let Some(subnet) = served.find(|s| within(&s.prefixes, packet.source)) {
            return Some(subnet.name.clone());
        }
        let nic = self.sending_nic(from, packet)?;
        nic.forwarding.then(|| nic.subnet.clone())
    }
}
