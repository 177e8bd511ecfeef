//! What is accepted of the routes that others send: from BGP neighbours and from agents. All of it is hostile input.
//!
//! | [`Refusal`] | A route is refused if | Rule |
//! |---|---|---|
//! | `own_space` | it lies in an address space of the own side; more than that is fine | G22, G24 |
//! | `loop` | its AS path has the own ASN | G22 |
//! | `first_as` | its AS path does not begin with the ASN of the neighbour | RFC 4271, 6.3 |
//! | `path_length` | its AS path has more than 255 ASNs | |
//! | `martian` | all of it lies in a block of [`MARTIANS`]; the default route does not | RFC 6890 |
//! | `next_hop` | it leads to an agent that the sender has no say over | T4 |
//! | `count` | its sender sends more routes than it may | G23, E13 |
//!
//! A prefix that only contains such a block is accepted: aggregates like 0.0.0.0/1 do. Sources in the block are not
//! (see `tables::sources`).

use super::Dynamic;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use tombolo_proto::config::{AgentConfig, EDGE_ASN, GatewayConnection, GatewayKind, MAX_PREFIXES, Relation, Role};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;

/// Longest AS path that is accepted, ASNs. Real ones stay below a hundred.
pub const LONGEST_PATH: usize = 255;

/// Most routes of one family that a gateway of the own VNet may pass on: ten neighbours (G15) at their limit.
pub const MOST_FROM_GATEWAY: usize = 10 * MAX_PREFIXES as usize;

/// Blocks that no route leads to and no packet comes from (RFC 6890): this network, loopback, link-local, protocol
/// assignments, multicast, reserved and broadcast; IPv6 also mapped IPv4. Private, shared (100.64.0.0/10), benchmarking
/// and documentation blocks are not among them: sites and labs use these.
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

/// Why a route is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It lies in an address space of the own side (G22).
    OwnSpace,
    /// Its AS path has the own ASN (G22).
    Loop,
    /// Its AS path does not begin with the neighbour's ASN (RFC 4271, 6.3).
    FirstAs,
    /// Its AS path is longer than [`LONGEST_PATH`].
    PathLength,
    /// It lies in one of [`MARTIANS`].
    Martian,
    /// It leads to an agent that the sender has no say over (T4).
    NextHop,
    /// The sender sends more routes than it may (G23, E13).
    Count,
}

impl Refusal {
    /// The stable name, as counters and reports have it.
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

/// The routes of one sender that are refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRoutes {
    /// An agent, or the [`id`](tombolo_proto::config::Neighbour::id) of a BGP neighbour.
    pub sender: String,
    /// Why.
    pub reason: Refusal,
    /// How many.
    pub count: usize,
    /// The first of them.
    pub example: IpNet,
}

/// What is refused of all that agents and BGP neighbours send now, by sender and reason. What is accepted is
/// [`taken`](super::taken).
#[must_use]
pub fn refused(config: &AgentConfig, dynamic: &Dynamic) -> Vec<RefusedRoutes> {
    let agents = dynamic
        .told
        .iter()
        .filter_map(|(sender, routes)| Some((sender.to_string(), Acceptance::of(config, sender)?, routes)));
    let neighbours = dynamic
        .learned
        .iter()
        .filter_map(|(sender, routes)| Some((sender.to_string(), Acceptance::of_neighbour(config, sender)?.0, routes)));
    let mut all = Vec::new();
    for (sender, how, routes) in agents.chain(neighbours) {
        let mut found: BTreeMap<Refusal, (usize, IpNet)> = BTreeMap::new();
        for (route, verdict) in how.judged(config, routes) {
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

/// What is accepted of one sender.
pub(super) struct Acceptance<'a> {
    pub(super) kind: GatewayKind,
    pub(super) connection: Option<&'a GatewayConnection>,
    /// A path that has this ASN has been here before (G22).
    own_asn: Option<u32>,
    /// Nothing inside these (G22): they are nobody else's to speak for.
    own: &'a [IpNet],
    /// The ASN that paths begin with. None inside a VNet, whose gateways do not add their own.
    first_as: Option<u32>,
    /// Most routes of one family.
    most: usize,
    /// Where routes may lead besides the sender itself.
    vias: Vec<&'a AgentId>,
}

impl<'a> Acceptance<'a> {
    pub(super) fn of(config: &'a AgentConfig, sender: &AgentId) -> Option<Self> {
        let link = config.links.binary_search_by(|l| l.peer.cmp(sender)).ok();
        let link = &config.links[link?];
        let from = |kind, own_asn, own: &'a [IpNet]| Self {
            kind,
            connection: None,
            own_asn,
            own,
            first_as: None,
            most: MOST_FROM_GATEWAY,
            vias: Vec::new(),
        };
        match (&config.role, &link.relation) {
            (Role::Vm { gateways, .. }, Relation::Gateway {}) => {
                let used = gateways
                    .iter()
                    .find(|g| g.instances.iter().any(|i| i.agent == *sender))?;
                Some(Self {
                    vias: used.edges.iter().map(|e| &e.agent).collect(),
                    ..from(used.kind, None, &config.address_space)
                })
            }
            (
                Role::VpnGateway {
                    connections,
                    asn,
                    own_side,
                    ..
                },
                Relation::Connection { connection },
            ) => {
                let connection = connections.iter().find(|c| c.exchange && c.connection == *connection)?;
                Some(Self {
                    connection: Some(connection),
                    first_as: Some(connection.asn),
                    most: MAX_PREFIXES as usize,
                    ..from(GatewayKind::Vpn, Some(*asn), own_side)
                })
            }
            // Seen, and used for nothing (G20, G21).
            (Role::VpnGateway { own_side, .. }, Relation::OtherGateway {}) => Some(Self {
                vias: Vec::new(),
                ..from(GatewayKind::ExpressRoute, None, own_side)
            }),
            // The edge adds its own ASN (E6), and what the other VNets of the circuit have to what the customer announced.
            (Role::ExpressRouteGateway { own_side, .. }, Relation::Edge { .. }) => Some(Self {
                first_as: Some(EDGE_ASN),
                ..from(GatewayKind::ExpressRoute, None, own_side)
            }),
            _ => None,
        }
    }

    /// And where packets go: to the device of a site, or, at an edge, down its line.
    pub(super) fn of_neighbour(config: &'a AgentConfig, neighbour: &ResourceId) -> Option<(Self, AgentId)> {
        match &config.role {
            Role::VpnGateway {
                connections,
                asn,
                own_side,
                ..
            } => {
                let connection = connections
                    .iter()
                    .find(|c| c.site && c.exchange && c.connection == *neighbour)?;
                let how = Self {
                    kind: GatewayKind::Vpn,
                    connection: Some(connection),
                    own_asn: Some(*asn),
                    own: own_side,
                    first_as: Some(connection.asn),
                    most: MAX_PREFIXES as usize,
                    vias: Vec::new(),
                };
                Some((how, AgentId::of_site(neighbour)))
            }
            Role::CircuitEdge { circuit, bgp, .. } if circuit == neighbour => {
                let how = Self {
                    kind: GatewayKind::ExpressRoute,
                    connection: None,
                    own_asn: Some(bgp.asn),
                    own: &[],
                    first_as: bgp.neighbours.iter().find(|n| n.id == *neighbour).map(|n| n.asn),
                    most: MAX_PREFIXES as usize,
                    vias: Vec::new(),
                };
                Some((how, config.agent.clone()))
            }
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => None,
        }
    }

    /// The routes that are accepted, in order.
    pub(super) fn accepted<'r>(&self, config: &AgentConfig, routes: &'r [Route]) -> impl Iterator<Item = &'r Route> {
        let judged = self.judged(config, routes);
        judged.filter_map(|(route, verdict)| verdict.ok().map(|()| route))
    }

    /// Every route with what is said to it. A BGP neighbour or a far gateway that sends too many loses all, as its session
    /// would end (G23); of the own VNet's gateway, whose other neighbours are not to blame, the first are accepted.
    fn judged<'r>(
        &self,
        config: &AgentConfig,
        routes: &'r [Route],
    ) -> impl Iterator<Item = (&'r Route, Result<(), Refusal>)> {
        let family = |r: &Route| usize::from(r.prefix.addr().is_ipv6());
        // Prefixes, not routes: a prefix may have two for a moment, while one replaces the other.
        let mut sent = [0; 2];
        for same in routes.chunk_by(|a, b| a.prefix == b.prefix) {
            sent[family(&same[0])] += 1;
        }
        let ends = self.most <= MAX_PREFIXES as usize;
        let mut accepted = [0; 2];
        routes.iter().map(move |route| {
            let counted = &mut accepted[family(route)];
            let exceeds = if ends {
                sent[family(route)] > self.most
            } else {
                *counted >= self.most
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
        let mut taken = self.own.iter().chain(networks.iter().flat_map(|n| &n.prefixes));
        let leads = route.via.as_ref().is_none_or(|via| self.vias.contains(&via));
        // At the VPN gateway an edge is no next hop, and the routes over it are for show.
        let leads = leads || (self.kind == GatewayKind::ExpressRoute && matches!(config.role, Role::VpnGateway { .. }));
        // G22: neither a VNet's range nor a part of it; more than it is fine.
        if taken.any(|own| own.contains(&route.prefix)) {
            Err(Refusal::OwnSpace)
        } else if MARTIANS.iter().any(|m| m.contains(&route.prefix)) {
            Err(Refusal::Martian)
        } else if route.as_path.len() > LONGEST_PATH {
            Err(Refusal::PathLength)
        } else if self.own_asn.is_some_and(|asn| route.as_path.contains(&asn)) {
            Err(Refusal::Loop)
        } else if self.first_as.is_some_and(|asn| route.as_path.first() != Some(&asn)) {
            Err(Refusal::FirstAs)
        } else if !leads {
            Err(Refusal::NextHop)
        } else {
            Ok(())
        }
    }
}
