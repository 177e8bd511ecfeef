//! The sources that packets from a link may have (D10): configured sources, and prefixes of routes learned from that
//! peer. A learned route never grants a source that the configuration assigns to another link.

use super::lpm::Lpm;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, Link, Relation, Role};
use tombolo_proto::route::{Route, RouteOrigin};

/// The sources that one link may use.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The longest matching prefix decides: true if the link may use it, false if it belongs to others.
    prefixes: Lpm<bool>,
}

impl Sources {
    /// The sources of a link without learned routes.
    pub(crate) fn configured(prefixes: &[IpNet]) -> Self {
        let mut table = Lpm::default();
        for prefix in prefixes {
            table.insert(*prefix, true);
        }
        Self { prefixes: table }
    }

    /// Whether packets from this link may have this source.
    pub(crate) fn contains(&self, source: IpAddr) -> bool {
        self.prefixes.get(source).copied().unwrap_or_default()
    }

    /// The prefixes with this value, in the order of addresses.
    pub(crate) fn listed(&self, allowed: bool) -> Vec<IpNet> {
        let found = self.prefixes.iter().filter(|(_, answer)| **answer == allowed);
        found.map(|(prefix, _)| prefix).collect()
    }
}

/// The owners of prefixes according to the configuration of one agent.
pub(crate) struct Assigned<'a> {
    /// Prefixes that no learned route may claim: the agent's own addresses, VNets that it delivers into, and martians.
    spaces: Lpm<()>,
    /// The configured sources of all links that lie outside of `spaces`.
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
            local_prefixes,
            addresses,
            ..
        }
        | Role::ExpressRouteGateway {
            local_prefixes,
            addresses,
            ..
        } = &config.role
        {
            add(local_prefixes);
            // The gateway's BGP address may lie outside of its VNet.
            add(&addresses.iter().copied().map(IpNet::from).collect::<Vec<_>>());
        }
        let sources = |link: &'a Link| link.sources.iter().map(move |prefix| (link, *prefix));
        let others = config.links.iter().flat_map(sources);
        let others = others.filter(|(_, prefix)| !spaces.covers(*prefix)).collect();
        Self { spaces, others }
    }

    /// The sources of a link: all configured ones, and the prefixes of `learned` routes that belong to nobody else.
    ///
    /// Two links of one [kind](Kind) may lead to the same place: the gateways of a VNet replace each other (E9, E11),
    /// and a VNet behind one connection may send through another (G19). A learned route may therefore claim a
    /// configured source of a link of the same kind, or a part of it, but not by a route for a larger prefix. Routes of
    /// a site may claim none of them.
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
        // A configured prefix of this link has precedence over exceptions inside of it.
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

/// Links of one kind may lead to the same place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To a gateway that the own VNet uses.
    Gateway,
    /// At a VPN gateway: to the remote end of a connection.
    Connection,
}

#[cfg(test)]
mod tests;
