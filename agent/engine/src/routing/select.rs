//! The effective routes of a subnet: those that are configured, and those that were taken, by one precedence (R7, R8).

use super::{Dynamic, Taken, taken};
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use tombolo_proto::config::{AgentConfig, GatewayKind, Role, Subnet, UsedGateway};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

/// All effective routes of a subnet, ordered as they are shown. With nothing learned: those that are configured.
#[must_use]
pub fn effective(config: &AgentConfig, subnet: &Subnet, dynamic: &Dynamic) -> Vec<EffectiveRoute> {
    let gateways = match &config.role {
        Role::Vm { gateways, .. } if !subnet.isolated => gateways.as_slice(),
        _ => &[],
    };
    let learned = match gateways {
        [] => Vec::new(),
        gateways => learned(gateways, &taken(config, dynamic)),
    };
    if learned.is_empty() {
        return subnet.routes.clone();
    }
    let answers = |hop: &GatewayHop| !dynamic.down.contains(&hop.agent);
    let configured = subnet.routes.iter().map(|route| {
        let up = match &route.next_hop {
            NextHop::VirtualNetworkGateway { gateways, .. } => gateways.iter().any(answers),
            _ => true,
        };
        Offer::configured(route.clone(), up)
    });
    let mut offers: Vec<Offer> = configured.collect();
    // Behind a VPN gateway it is the gateway's choice which way packets go on: there is one route to it.
    let known = |offer: &Offer| {
        let same =
            |o: &Offer| o.route.prefix == offer.route.prefix && o.route.source == RouteSource::VirtualNetworkGateway;
        offer.worth.kind == GatewayKind::Vpn && offers.iter().any(same)
    };
    let new: Vec<Offer> = learned.into_iter().filter(|offer| !known(offer)).collect();
    offers.extend(new);
    settle(offers)
}

/// A route before precedence.
#[derive(Debug, Clone)]
pub struct Offer {
    route: EffectiveRoute,
    worth: Worth,
}

impl Offer {
    /// A route that is configured; `up`: somebody is there to send to.
    #[must_use]
    pub const fn configured(route: EffectiveRoute, up: bool) -> Self {
        let worth = Worth {
            down: !up,
            kind: GatewayKind::Vpn,
            weight: Reverse(0),
            hops: 0,
        };
        Self { route, worth }
    }
}

/// R7, fourth step, for gateway routes of one prefix: what answers before what does not, ExpressRoute before VPN (E9),
/// the higher weight, the shorter AS path (E12). What is equal shares the flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Worth {
    down: bool,
    kind: GatewayKind,
    weight: Reverse<u32>,
    hops: usize,
}

impl Worth {
    fn of(taken: &Taken<'_>) -> Self {
        Self {
            down: taken.down,
            kind: taken.kind,
            weight: Reverse(taken.route.weight),
            hops: taken.route.as_path.len(),
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

/// What was taken, as routes of a subnet: those of one prefix and worth together.
fn learned(gateways: &[UsedGateway], taken: &[Taken<'_>]) -> Vec<Offer> {
    let mut sorted: Vec<(&Taken<'_>, Worth)> = taken.iter().map(|t| (t, Worth::of(t))).collect();
    sorted.sort_by_key(|(t, worth)| (t.route.prefix, worth.key()));
    let mut offers = Vec::new();
    for group in sorted.chunk_by(|(a, x), (b, y)| a.route.prefix == b.route.prefix && x == y) {
        let (first, worth) = &group[0];
        // In the order of the configuration, which is that of preference.
        let among = |hop: &&GatewayHop| group.iter().any(|(t, _)| t.via == hop.agent);
        let (hops, spread): (Vec<GatewayHop>, bool) = match worth.kind {
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
        offers.push(Offer {
            route: EffectiveRoute {
                name: None,
                source: RouteSource::VirtualNetworkGateway,
                state: RouteState::Active,
                prefix: first.route.prefix,
                next_hop: NextHop::VirtualNetworkGateway { gateways: hops, spread },
            },
            worth: *worth,
        });
    }
    offers
}

/// Azure's precedence. R7: gateway routes that a VNet or peering route covers are discarded, however long; of equal
/// prefixes one stays, user before gateway before system. R8: the others stay visible, as `Invalid`. Then all are
/// ordered as they are shown: system, gateway, user routes; each by kind and prefix.
#[must_use]
pub fn settle(mut offers: Vec<Offer>) -> Vec<EffectiveRoute> {
    let covering: Vec<IpNet> = offers
        .iter()
        .map(|o| &o.route)
        .filter(|r| r.source == RouteSource::Default && kind(&r.next_hop) <= PEERING)
        .map(|r| r.prefix)
        .collect();
    for offer in &mut offers {
        let route = &mut offer.route;
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
    // Stable sorts: among equals the order of creation decides.
    offers.sort_by_key(|o| {
        let route = &o.route;
        (
            route.prefix,
            precedence(route.source),
            kind(&route.next_hop),
            o.worth.key(),
        )
    });
    let mut won = BTreeSet::new();
    for offer in &mut offers {
        if offer.route.state == RouteState::Active && !won.insert(offer.route.prefix) {
            offer.route.state = RouteState::Invalid;
        }
    }
    let shown = |source| match source {
        RouteSource::Default => 0,
        RouteSource::VirtualNetworkGateway => 1,
        RouteSource::User => 2,
    };
    let mut routes: Vec<EffectiveRoute> = offers.into_iter().map(|o| o.route).collect();
    routes.sort_by(|a, b| {
        let key = |r: &EffectiveRoute| (shown(r.source), kind(&r.next_hop), r.prefix);
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    routes
}

const PEERING: u8 = 1;

/// Rank of a next hop among system routes of one prefix, and in the order of showing.
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
