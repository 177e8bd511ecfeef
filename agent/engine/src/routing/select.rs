//! The effective routes of a subnet: the configured routes and the accepted learned routes, each with the state
//! (`Active` or `Invalid`) that Azure's precedence gives it (R7, R8).

use super::{AcceptedRoute, RoutingState, accept_routes};
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use tombolo_proto::config::{AgentConfig, GatewayKind, Role, Subnet, UsedGateway};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

/// All effective routes of a subnet, `Invalid` ones included, in the order of display (see [`select_best`]). `subnet`
/// must be one of `config`. Learned routes that the import policy accepts are added only at VMs, and only to subnets to
/// which gateway routes are propagated. If no route is added, the result is the configured routes unchanged.
#[must_use]
pub fn effective(config: &AgentConfig, subnet: &Subnet, state: &RoutingState) -> Vec<EffectiveRoute> {
    let gateways = match &config.role {
        Role::Vm { gateways, .. } if !subnet.isolated => gateways.as_slice(),
        _ => &[],
    };
    let learned = match gateways {
        [] => Vec::new(),
        gateways => learned_candidates(gateways, &accept_routes(config, state)),
    };
    if learned.is_empty() {
        return subnet.routes.clone();
    }
    let is_up = |hop: &GatewayHop| !state.down.contains(&hop.agent);
    let configured = subnet.routes.iter().map(|route| {
        let up = match &route.next_hop {
            NextHop::VirtualNetworkGateway { gateways, .. } => gateways.iter().any(is_up),
            _ => true,
        };
        Candidate::configured(route.clone(), up)
    });
    let mut candidates: Vec<Candidate> = configured.collect();
    // If the configuration already has a route to the gateway for a prefix, a learned VPN route for this prefix is left
    // out: the VM needs only one, because the gateway itself chooses the connection.
    let known = |candidate: &Candidate| {
        let same = |o: &Candidate| {
            o.route.prefix == candidate.route.prefix && o.route.source == RouteSource::VirtualNetworkGateway
        };
        candidate.preference.kind == GatewayKind::Vpn && candidates.iter().any(same)
    };
    let new: Vec<Candidate> = learned.into_iter().filter(|candidate| !known(candidate)).collect();
    candidates.extend(new);
    select_best(candidates)
}

/// A route that takes part in the selection of the effective routes.
#[derive(Debug, Clone)]
pub struct Candidate {
    route: EffectiveRoute,
    preference: Preference,
}

impl Candidate {
    /// A candidate from the configuration. `up` tells whether its next hop can be reached. The `state` of the route
    /// does not matter. Of gateway routes with one prefix, [`select_best`] prefers those whose next hop can be reached.
    #[must_use]
    pub const fn configured(route: EffectiveRoute, up: bool) -> Self {
        let preference = Preference {
            down: !up,
            kind: GatewayKind::Vpn,
            weight: Reverse(0),
            hops: 0,
        };
        Self { route, preference }
    }
}

/// The fourth step of R7, between gateway routes of one prefix: routes whose next hop can be reached come first, then
/// ExpressRoute before VPN (E9), then the higher weight, then the shorter AS path (E12). Routes of equal preference
/// share the flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Preference {
    down: bool,
    kind: GatewayKind,
    weight: Reverse<u32>,
    hops: usize,
}

impl Preference {
    fn of(accepted: &AcceptedRoute<'_>) -> Self {
        Self {
            down: accepted.down,
            kind: accepted.kind,
            weight: Reverse(accepted.route.weight),
            hops: accepted.route.as_path.len(),
        }
    }

    fn key(self) -> (bool, bool, Reverse<u32>, usize) {
        (
            self.down,
            self.kind != GatewayKind::ExpressRoute,
            self.weight,
            self.hops,
        )
    }
}

/// Converts accepted routes to candidates. Routes of the same prefix and preference become one candidate with several
/// next hops.
fn learned_candidates(gateways: &[UsedGateway], accepted: &[AcceptedRoute<'_>]) -> Vec<Candidate> {
    let mut sorted: Vec<(&AcceptedRoute<'_>, Preference)> = accepted.iter().map(|t| (t, Preference::of(t))).collect();
    sorted.sort_by_key(|(t, preference)| (t.route.prefix, preference.key()));
    let mut candidates = Vec::new();
    for group in sorted.chunk_by(|(a, x), (b, y)| a.route.prefix == b.route.prefix && x == y) {
        let (first, preference) = &group[0];
        // The next hops are in the order in which the configuration lists them, which is their order of preference.
        let among = |hop: &&GatewayHop| group.iter().any(|(t, _)| t.via == hop.agent);
        let (hops, spread): (Vec<GatewayHop>, bool) = match preference.kind {
            GatewayKind::ExpressRoute => {
                let edges = gateways.iter().flat_map(|g| &g.edges);
                (edges.filter(among).cloned().collect(), true)
            }
            GatewayKind::Vpn => {
                let instances = gateways.iter().flat_map(|g| &g.instances);
                let spread = gateways.iter().any(|g| g.kind == GatewayKind::Vpn && g.spread);
                (instances.filter(among).cloned().collect(), spread)
            }
        };
        candidates.push(Candidate {
            route: EffectiveRoute {
                name: None,
                source: RouteSource::VirtualNetworkGateway,
                state: RouteState::Active,
                prefix: first.route.prefix,
                next_hop: NextHop::VirtualNetworkGateway { gateways: hops, spread },
            },
            preference: *preference,
        });
    }
    candidates
}

/// Selects the best route of each prefix by Azure's precedence.
///
/// R7: gateway routes within the prefix of a VNet or peering route are discarded, even if they are longer. Of the
/// routes with equal prefixes one is selected: user routes are preferred to gateway routes, and gateway routes to
/// system routes. Between routes of one source, the type of next hop decides first (VNet, peering, gateway, appliance,
/// Internet, none); then a route whose next hop can be reached is preferred; then the first one in `candidates` is. R8:
/// the routes that are discarded or not selected stay in the result as `Invalid`. The result is in the order of
/// display: system, gateway and user routes, each ordered by type of next hop, prefix and name.
#[must_use]
pub fn select_best(mut candidates: Vec<Candidate>) -> Vec<EffectiveRoute> {
    let covering: Vec<IpNet> = candidates
        .iter()
        .map(|o| &o.route)
        .filter(|r| r.source == RouteSource::Default && kind(&r.next_hop) <= PEERING)
        .map(|r| r.prefix)
        .collect();
    for candidate in &mut candidates {
        let route = &mut candidate.route;
        let covered = || covering.iter().any(|c| c.contains(&route.prefix));
        let discarded = route.source == RouteSource::VirtualNetworkGateway && covered();
        route.state = if discarded {
            RouteState::Invalid
        } else {
            RouteState::Active
        };
    }
    let precedence = |source| match source {
        RouteSource::User => 0,
        RouteSource::VirtualNetworkGateway => 1,
        RouteSource::Default => 2,
    };
    // The sort is stable, so among equal routes the first one in `candidates` is selected.
    candidates.sort_by_key(|o| {
        let route = &o.route;
        (
            route.prefix,
            precedence(route.source),
            kind(&route.next_hop),
            o.preference.key(),
        )
    });
    let mut won = BTreeSet::new();
    for candidate in &mut candidates {
        if candidate.route.state == RouteState::Active && !won.insert(candidate.route.prefix) {
            candidate.route.state = RouteState::Invalid;
        }
    }
    let shown = |source| match source {
        RouteSource::Default => 0,
        RouteSource::VirtualNetworkGateway => 1,
        RouteSource::User => 2,
    };
    let mut routes: Vec<EffectiveRoute> = candidates.into_iter().map(|o| o.route).collect();
    routes.sort_by(|a, b| {
        let key = |r: &EffectiveRoute| (shown(r.source), kind(&r.next_hop), r.prefix);
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    routes
}

const PEERING: u8 = 1;

/// Rank of a type of next hop. Of several system routes for one prefix, the route with the lowest rank is preferred.
/// The display is ordered by rank too, the lowest first.
const fn kind(hop: &NextHop) -> u8 {
    match hop {
        NextHop::VnetLocal {} => 0,
        NextHop::VnetPeering { .. } | NextHop::VnetGlobalPeering { .. } => PEERING,
        NextHop::VirtualNetworkGateway { .. } => 2,
        NextHop::VirtualAppliance { .. } => 3,
        NextHop::Internet {} => 4,
        NextHop::None {} => 5,
    }
}
