//! Import policy: which received routes are accepted. Received routes come from BGP neighbours and other agents, and
//! are untrusted input.
//!
//! | [`Refusal`] | A route is refused if | Rule |
//! |---|---|---|
//! | `own_space` | it lies within an own address space; a larger prefix is accepted | G22, G24 |
//! | `loop` | its AS path contains the receiver's ASN | G22 |
//! | `first_as` | its AS path does not start with the sender's ASN | RFC 4271, 6.3 |
//! | `path_length` | its AS path has more than [`MAX_AS_PATH`] ASNs | |
//! | `martian` | it lies within one of [`MARTIANS`]; the default route does not | RFC 6890 |
//! | `next_hop` | its next hop is an agent that the sender may not name | T4 |
//! | `count` | its sender exceeds the limit of routes | G23, E13 |
//!
//! A larger prefix that contains an address space of the receiver, or a martian block, is accepted, so that aggregates
//! such as 0.0.0.0/1 can be learned. Nevertheless, no packet from the sender may have a source within that address
//! space or block (see `tables::sources`).

use super::RoutingState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use tombolo_proto::config::{AgentConfig, EDGE_ASN, GatewayConnection, GatewayKind, MAX_PREFIXES, Relation, Role};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;

/// Largest number of ASNs in an accepted AS path: one path segment holds as many (RFC 4271, 4.3). Real paths stay below
/// 100.
pub const MAX_AS_PATH: usize = 255;

/// Largest number of routes of one address family that are accepted from a gateway that the VNet uses, or from an edge:
/// those of ten BGP neighbours (G15), each of which announces the largest permitted number of routes.
pub const MAX_ROUTES_FROM_GATEWAY: usize = 10 * MAX_PREFIXES as usize;

/// The martian blocks (RFC 6890). A route that lies within one of them is refused. No learned route permits packets
/// from a link to have a source in one of these blocks. The blocks are "this network" (0.0.0.0/8), loopback,
/// link-local, protocol assignments, multicast, reserved and broadcast, and IPv4-mapped IPv6 addresses. The blocks for
/// private, shared (100.64.0.0/10), benchmarking and documentation addresses are not in the list, because sites and
/// labs use these addresses.
pub const MARTIANS: [IpNet; 10] = [
    v4(0, 0, 0, 8),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(192, 0, 0, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
    v6(0, 127),
    v6(0xffff << 32, 96),
    v6(0xfe80 << 112, 10),
    v6(0xff00 << 112, 8),
];

const fn v4(a: u8, b: u8, c: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length))
}

const fn v6(bits: u128, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length))
}

/// The reason why the import policy refuses a route. If several reasons apply to a route, the first one in this order
/// is reported: `own_space`, `martian`, `path_length`, `loop`, `first_as`, `next_hop`, `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The prefix lies within an own address space (G22).
    OwnSpace,
    /// The AS path contains the receiver's ASN (G22).
    Loop,
    /// The AS path does not start with the sender's ASN (RFC 4271, 6.3).
    FirstAs,
    /// The AS path has more than [`MAX_AS_PATH`] ASNs.
    PathLength,
    /// The prefix lies within one of [`MARTIANS`].
    Martian,
    /// The next hop is an agent that the sender may not name (T4).
    NextHop,
    /// The sender exceeds its largest number of routes (G23, E13).
    Count,
}

impl Refusal {
    /// The name in metrics and reports, which does not change between versions.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OwnSpace => "own_space",
            Self::Loop => "loop",
            Self::FirstAs => "first_as",
            Self::PathLength => "path_length",
            Self::Martian => "martian",
            Self::NextHop => "next_hop",
            Self::Count => "count",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The refused routes of one sender that have the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRoutes {
    /// The name of the agent, or the [`id`](tombolo_proto::config::Neighbour::id) of the BGP neighbour.
    pub sender: String,
    /// The reason why the routes are refused.
    pub reason: Refusal,
    /// Number of this sender's routes that are refused for this reason; at least 1.
    pub count: usize,
    /// The prefix of the first of these routes, in the order of the sender's table.
    pub example: IpNet,
}

/// Applies the import policy to all routes in `state`, and returns the refused ones: agents before BGP neighbours, each
/// ordered by name, then by reason in the order of the variants of [`Refusal`]. Senders whose routes are ignored as a
/// whole ([`accepts_routes_from`](super::accepts_routes_from)) are left out. [`accept_routes`](super::accept_routes)
/// returns the accepted routes.
#[must_use]
pub fn refused(config: &AgentConfig, state: &RoutingState) -> Vec<RefusedRoutes> {
    let agents = state
        .received
        .iter()
        .filter_map(|(sender, routes)| Some((sender.to_string(), ImportPolicy::of(config, sender)?, routes)));
    let neighbours = state.learned.iter().filter_map(|(sender, routes)| {
        Some((
            sender.to_string(),
            ImportPolicy::of_neighbour(config, sender)?.0,
            routes,
        ))
    });
    let mut all = Vec::new();
    for (sender, policy, routes) in agents.chain(neighbours) {
        let mut found: BTreeMap<Refusal, (usize, IpNet)> = BTreeMap::new();
        for (route, verdict) in policy.evaluate(config, routes) {
            if let Err(reason) = verdict {
                found.entry(reason).or_insert((0, route.prefix)).0 += 1;
            }
        }
        all.extend(found.into_iter().map(|(reason, (count, example))| RefusedRoutes {
            sender: sender.clone(),
            reason,
            count,
            example,
        }));
    }
    all
}

/// The rules of import for the routes of one sender.
pub(super) struct ImportPolicy<'a> {
    pub(super) kind: GatewayKind,
    pub(super) connection: Option<&'a GatewayConnection>,
    /// The receiver's ASN. A route whose AS path contains it is refused as a loop (G22).
    own_asn: Option<u32>,
    /// The receiver's address spaces; no route within them is accepted (G22).
    own: &'a [IpNet],
    /// The ASN that AS paths must start with. `None`: the first ASN is not checked. This is so for a gateway of the own
    /// VNet or one that the own VNet uses, because it does not add its ASN, and at an edge whose BGP speaker does not
    /// have the circuit as a neighbour.
    first_as: Option<u32>,
    /// Largest number of routes of one address family.
    max_routes: usize,
    /// Whether all routes of an address family are refused if there are more than `max_routes`. Otherwise, the first
    /// ones are accepted.
    all_or_nothing: bool,
    /// Agents that routes may name as next hop, besides the sender.
    next_hops: Vec<&'a AgentId>,
}

impl<'a> ImportPolicy<'a> {
    /// The policy for the peer of a link. `None`: no route of this peer is accepted, or there is no such link.
    pub(super) fn of(config: &'a AgentConfig, sender: &AgentId) -> Option<Self> {
        let link = config.links.binary_search_by(|l| l.peer.cmp(sender)).ok();
        let link = &config.links[link?];
        let from = |kind, own_asn, own: &'a [IpNet]| Self {
            kind,
            connection: None,
            own_asn,
            own,
            first_as: None,
            max_routes: MAX_ROUTES_FROM_GATEWAY,
            all_or_nothing: false,
            next_hops: Vec::new(),
        };
        match (&config.role, &link.relation) {
            (Role::Vm { gateways, .. }, Relation::Gateway {}) => {
                let used = gateways
                    .iter()
                    .find(|g| g.instances.iter().any(|i| i.agent == *sender))?;
                Some(Self {
                    next_hops: used.edges.iter().map(|e| &e.agent).collect(),
                    ..from(used.kind, None, &config.address_space)
                })
            }
            (
                Role::VpnGateway {
                    connections,
                    asn,
                    local_prefixes,
                    ..
                },
                Relation::Connection { connection },
            ) => {
                let connection = connections.iter().find(|c| c.exchange && c.connection == *connection)?;
                Some(Self {
                    connection: Some(connection),
                    first_as: Some(connection.asn),
                    max_routes: MAX_PREFIXES as usize,
                    all_or_nothing: true,
                    ..from(GatewayKind::Vpn, Some(*asn), local_prefixes)
                })
            }
            // A VPN gateway does not use circuits (G20, G21). It accepts the routes of its VNet's ExpressRoute gateway
            // only to display them.
            (Role::VpnGateway { local_prefixes, .. }, Relation::OtherGateway {}) => Some(Self {
                next_hops: Vec::new(),
                ..from(GatewayKind::ExpressRoute, None, local_prefixes)
            }),
            // E6: the edge adds its own ASN to all routes that it advertises: those of the customer, and those of other
            // VNets of the circuit.
            (Role::ExpressRouteGateway { local_prefixes, .. }, Relation::Edge { .. }) => Some(Self {
                first_as: Some(EDGE_ASN),
                ..from(GatewayKind::ExpressRoute, None, local_prefixes)
            }),
            _ => None,
        }
    }

    /// The policy for a BGP neighbour, and the next hop of its routes: the device of the site or, at an edge, the edge
    /// itself. `None`: the configuration has no such neighbour, or no routes are exchanged with it.
    pub(super) fn of_neighbour(config: &'a AgentConfig, neighbour: &ResourceId) -> Option<(Self, AgentId)> {
        match &config.role {
            Role::VpnGateway {
                connections,
                asn,
                local_prefixes,
                ..
            } => {
                let connection = connections
                    .iter()
                    .find(|c| c.site && c.exchange && c.connection == *neighbour)?;
                let policy = Self {
                    kind: GatewayKind::Vpn,
                    connection: Some(connection),
                    own_asn: Some(*asn),
                    own: local_prefixes,
                    first_as: Some(connection.asn),
                    max_routes: MAX_PREFIXES as usize,
                    all_or_nothing: true,
                    next_hops: Vec::new(),
                };
                Some((policy, AgentId::of_site(neighbour)))
            }
            Role::CircuitEdge { circuit, bgp, .. } if circuit == neighbour => {
                let customer = bgp.neighbours.iter().find(|n| n.id == *neighbour);
                let policy = Self {
                    kind: GatewayKind::ExpressRoute,
                    connection: None,
                    own_asn: Some(bgp.asn),
                    own: &[],
                    first_as: customer.map(|n| n.asn),
                    max_routes: customer.map_or(MAX_PREFIXES, |n| n.max_prefixes) as usize,
                    all_or_nothing: true,
                    next_hops: Vec::new(),
                };
                Some((policy, config.agent.clone()))
            }
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => None,
        }
    }

    /// The routes in `routes` that the policy accepts, in the given order.
    pub(super) fn accepted<'r>(&self, config: &AgentConfig, routes: &'r [Route]) -> impl Iterator<Item = &'r Route> {
        let evaluated = self.evaluate(config, routes);
        evaluated.filter_map(|(route, verdict)| verdict.ok().map(|()| route))
    }

    /// Checks every route, in the given order. If a BGP neighbour or remote gateway exceeds its limit, all of its
    /// routes of this address family are refused, as if its BGP session were closed (G23). This limit applies to the
    /// number of prefixes: adjacent routes for one prefix count once. A gateway of the own VNet, or an edge, passes on
    /// routes of several neighbours, so as many of its routes are accepted as the limit allows.
    fn evaluate<'r>(
        &self,
        config: &AgentConfig,
        routes: &'r [Route],
    ) -> impl Iterator<Item = (&'r Route, Result<(), Refusal>)> {
        let family = |r: &Route| usize::from(r.prefix.addr().is_ipv6());
        // Prefixes are counted instead of routes, because there are two routes for a prefix while a new route replaces
        // the old one.
        let mut sent = [0; 2];
        for same in routes.chunk_by(|a, b| a.prefix == b.prefix) {
            sent[family(&same[0])] += 1;
        }
        let mut accepted = [0; 2];
        routes.iter().map(move |route| {
            let counted = &mut accepted[family(route)];
            let exceeds = if self.all_or_nothing {
                sent[family(route)] > self.max_routes
            } else {
                *counted >= self.max_routes
            };
            let verdict = match self.check(config, route) {
                Ok(()) if exceeds => Err(Refusal::Count),
                other => other,
            };
            *counted += usize::from(verdict.is_ok());
            (route, verdict)
        })
    }

    fn check(&self, config: &AgentConfig, route: &Route) -> Result<(), Refusal> {
        let networks = match &config.role {
            Role::CircuitEdge { networks, .. } => networks.as_slice(),
            Role::Vm { .. } | Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } => &[],
        };
        let mut own = self.own.iter().chain(networks.iter().flat_map(|n| &n.prefixes));
        // A VPN gateway sends no packets to circuits (G20, G21) and only displays their routes. So the next hops of
        // these routes need not be agents that the VPN gateway knows.
        let is_display_only = self.kind == GatewayKind::ExpressRoute && matches!(config.role, Role::VpnGateway { .. });
        let has_next_hop = is_display_only || route.via.as_ref().is_none_or(|via| self.next_hops.contains(&via));
        // G22: a prefix that equals an address space of the receiver, or is a part of it, is refused. A larger prefix
        // is accepted.
        if own.any(|own| own.contains(&route.prefix)) {
            Err(Refusal::OwnSpace)
        } else if MARTIANS.iter().any(|m| m.contains(&route.prefix)) {
            Err(Refusal::Martian)
        } else if route.as_path.len() > MAX_AS_PATH {
            Err(Refusal::PathLength)
        } else if self.own_asn.is_some_and(|asn| route.as_path.contains(&asn)) {
            Err(Refusal::Loop)
        } else if self.first_as.is_some_and(|asn| route.as_path.first() != Some(&asn)) {
            Err(Refusal::FirstAs)
        } else if !has_next_hop {
            Err(Refusal::NextHop)
        } else {
            Ok(())
        }
    }
}
