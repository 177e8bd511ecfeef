//! Which sources may come out of a link (D10): those that the configuration gives to it, and those of routes that were
//! learned there. A learned route never gives a link what the configuration gives to somebody else.

use super::lpm::Lpm;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, Link, Relation, Role};

/// The sources that one link may use. One lookup decides.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The longest prefix decides: true for one that the link may use, false for one that belongs to others.
    prefixes: Lpm<bool>,
}

impl Sources {
    /// Those of a link where nothing was learned.
    pub(crate) fn configured(prefixes: &[IpNet]) -> Self {
        let mut table = Lpm::default();
        for prefix in prefixes {
            table.insert(*prefix, true);
        }
        Self { prefixes: table }
    }

    /// Whether a packet from `source` may come out of the link.
    pub(crate) fn contains(&self, source: IpAddr) -> bool {
        self.prefixes.get(source).copied().unwrap_or_default()
    }

    /// The prefixes with this answer, in the order of addresses.
    pub(crate) fn listed(&self, allowed: bool) -> Vec<IpNet> {
        let found = self.prefixes.iter().filter(|(_, answer)| **answer == allowed);
        found.map(|(prefix, _)| prefix).collect()
    }
}

/// What the configuration of one agent gives to whom.
pub(crate) struct Assigned<'a> {
    /// The own addresses, the VNets that packets are delivered into directly, and what is no host's address.
    spaces: Lpm<()>,
    /// Configured sources of links that lie in none of these.
    others: Vec<(&'a Link, IpNet)>,
}

impl<'a> Assigned<'a> {
    pub(crate) fn of(config: &'a AgentConfig) -> Self {
        let mut spaces = Lpm::default();
        let mut add = |prefixes: &[IpNet]| {
            for prefix in prefixes {
                spaces.insert(*prefix, ());
            }
        };
        add(&crate::routing::MARTIANS);
        add(&config.address_space);
        for space in &config.spaces {
            add(&space.prefixes);
        }
        if let Role::VpnGateway {
            own_side, addresses, ..
        }
        | Role::ExpressRouteGateway {
            own_side, addresses, ..
        } = &config.role
        {
            add(own_side);
            // The address for BGP may lie outside the VNet.
            add(&addresses.iter().copied().map(IpNet::from).collect::<Vec<_>>());
        }
        let sources = |link: &'a Link| link.sources.iter().map(move |prefix| (link, *prefix));
        let others = config.links.iter().flat_map(sources);
        let others = others.filter(|(_, prefix)| !spaces.covers(*prefix)).collect();
        Self { spaces, others }
    }

    /// The sources of a link: the configured ones, all of them; and of `learned` what is nobody else's.
    pub(crate) fn sources(&self, link: &Link, learned: &[IpNet]) -> Sources {
        let configured = super::set(&link.sources);
        let Sources { mut prefixes } = Sources::configured(&link.sources);
        let is_gateway = |link: &Link| matches!(link.relation, Relation::Gateway {});
        // A VNet's gateways stand in for each other (E9, E11). What one is configured for, another may bring if it knows a
        // route to just that or to a part of it, but not by a route to everything around.
        let (shared, foreign): (Vec<(&Link, IpNet)>, Vec<_>) = self
            .others
            .iter()
            .copied()
            .filter(|(other, _)| other.peer != link.peer)
            .partition(|(other, _)| is_gateway(link) && is_gateway(other));
        let mut taken = self.spaces.clone();
        for (_, prefix) in foreign {
            taken.insert(prefix, ());
        }
        let all_learned = super::set(learned);
        for prefix in learned.iter().filter(|p| !taken.covers(**p)) {
            prefixes.insert(*prefix, true);
        }
        // A shorter configured prefix of this link stays whole, so nothing is cut out of it.
        let cut = |prefix: IpNet| all_learned.covers(prefix) && !configured.covers(prefix);
        for (prefix, ()) in taken.iter().filter(|(p, ())| cut(*p)) {
            prefixes.insert(prefix, false);
        }
        for (_, prefix) in shared.into_iter().filter(|(_, p)| cut(*p)) {
            if prefixes.exact(prefix).is_none() {
                prefixes.insert(prefix, false);
            }
        }
        Sources { prefixes }
    }
}

#[cfg(test)]
mod tests;
