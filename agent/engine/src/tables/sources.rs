//! Which sources may come out of a link (D10): those that the configuration gives to it, and those of routes that were
//! learned there. A learned route never gives a link what the configuration gives to somebody else.

use super::lpm::Lpm;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, Link, Relation, Role};
use tombolo_proto::route::{Route, RouteOrigin};

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

    /// The sources of a link: the configured ones, all of them; and of those of `learned` routes what is nobody else's.
    ///
    /// Two links of one kind may lead to the same place: the gateways of a VNet stand in for each other (E9, E11), and a
    /// VNet behind one connection may send by way of another (G19). So what the configuration gives to a link of the same
    /// kind is open to routes for just that, or for a part of it, but never to a route for everything around it; and not at
    /// all to what a site announces to a VPN gateway.
    pub(crate) fn sources<'r>(&self, link: &Link, learned: impl Iterator<Item = &'r Route> + Clone) -> Sources {
        let kind = |link: &Link| match link.relation {
            Relation::Gateway {} => Some(Kind::Gateway),
            Relation::Connection { .. } | Relation::Site { .. } => Some(Kind::Connection),
            _ => None,
        };
        let own_kind = kind(link);
        let others = || self.others.iter().filter(|(other, _)| other.peer != link.peer);
        let is_same = |other: &Link| own_kind.is_some() && kind(other) == own_kind;
        let mut closed = self.spaces.clone();
        for (_, prefix) in others().filter(|(other, _)| !is_same(other)) {
            closed.insert(*prefix, ());
        }
        let mut same_kind = Lpm::default();
        for (_, prefix) in others().filter(|(other, _)| is_same(other)) {
            same_kind.insert(*prefix, ());
        }

        let configured = super::set(&link.sources);
        let Sources { mut prefixes } = Sources::configured(&link.sources);
        let mut all_learned = Lpm::default();
        for route in learned {
            all_learned.insert(route.prefix, ());
            let is_sites = own_kind == Some(Kind::Connection) && route.origin == RouteOrigin::Site;
            let belongs_to_others = closed.covers(route.prefix) || is_sites && same_kind.covers(route.prefix);
            if !belongs_to_others {
                prefixes.insert(route.prefix, true);
            }
        }
        // A shorter configured prefix of this link stays whole, so nothing is cut out of it.
        let cut = |prefix: IpNet| all_learned.covers(prefix) && !configured.covers(prefix);
        for (prefix, ()) in closed.iter().filter(|(p, ())| cut(*p)) {
            prefixes.insert(prefix, false);
        }
        for (prefix, ()) in same_kind.iter().filter(|(p, ())| cut(*p)) {
            if prefixes.exact(prefix).is_none() {
                prefixes.insert(prefix, false);
            }
        }
        Sources { prefixes }
    }
}

/// Links that may lead to the same place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To a gateway that the own VNet uses.
    Gateway,
    /// At a VPN gateway: to what lies behind one of its connections.
    Connection,
}

#[cfg(test)]
mod tests;
