//! The sources that packets from a link may have (D10): those in the link's configuration, and the prefixes of routes
//! learned from the peer. A learned route never permits a source that the configuration assigns to another link.

use super::lpm::Lpm;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, Link, Relation, Role};
use tombolo_proto::route::{Route, RouteOrigin};

/// The sources that one link may use.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The value of the longest prefix that contains a source decides. True: the link may use the source. False, or no
    /// such prefix: the link may not use the source. A false value stands for a prefix that belongs to another link or
    /// VNet.
    prefixes: Lpm<bool>,
}

impl Sources {
    /// The sources of a link without learned routes: the configured `prefixes` alone.
    pub(crate) fn configured(prefixes: &[IpNet]) -> Self {
        let mut table = Lpm::default();
        for prefix in prefixes {
            table.insert(*prefix, true);
        }
        Self { prefixes: table }
    }

    /// Whether packets from this link may have `source` as their source.
    pub(crate) fn contains(&self, source: IpAddr) -> bool {
        self.prefixes.get(source).copied().unwrap_or_default()
    }

    /// With `allowed`, the permitted prefixes; without it, the exceptions within them. Both are in the order of
    /// addresses, IPv4 before IPv6.
    pub(crate) fn listed(&self, allowed: bool) -> Vec<IpNet> {
        let found = self.prefixes.iter().filter(|(_, answer)| **answer == allowed);
        found.map(|(prefix, _)| prefix).collect()
    }
}

/// The prefixes that the configuration of one agent assigns to links and VNets.
pub(crate) struct Assigned<'a> {
    /// Prefixes that no learned route may permit as sources: the agent's own addresses, VNets that it delivers into,
    /// and martians.
    spaces: Lpm<()>,
    /// The configured sources of links that lie outside of `spaces`, each with its link.
    others: Vec<(&'a Link, IpNet)>,
}

impl<'a> Assigned<'a> {
    /// Collects the assigned prefixes of a configuration.
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

    /// The sources that `link` may use: all of its configured sources, and those parts of the prefixes of `learned`
    /// routes that the configuration gives to no other link or VNet.
    ///
    /// Two links of the same [kind](Kind) may lead to the same networks: the gateways of a VNet replace each other (E9,
    /// E11), and a VNet that is reached over one connection may send through another connection (G19). So a route that
    /// is learned over `link` may permit `link` to use a prefix that the configuration gives to another link of the
    /// same kind, if the route is for exactly this prefix or for a part of it. A route for a larger prefix does not
    /// permit `link` to use that prefix. On a link of a connection, a route that comes from a site never permits it.
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
        // Exceptions are made only within learned prefixes. A prefix that is configured for this link is permitted as a
        // whole.
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

/// The kinds of links that may lead to the same networks as other links of the same kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The peer is a gateway that the own VNet uses.
    Gateway,
    /// This agent is a VPN gateway, and the peer is the remote end of a connection.
    Connection,
}

#[cfg(test)]
mod tests;
