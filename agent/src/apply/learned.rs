//! Learned routes and the host's own networks (D22). Others announce what they like: what would take from the host what
//! it must reach by its own routes is left out of the kernel, each prefix for itself. The configuration is in force
//! all the same, and the engine uses these routes for packets of the overlay. Pure.

use super::plan::{Connected, KernelPlan, Numbers};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::route::Route;

/// What a host reaches by its own routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The networks that it is connected to.
    pub connected: Vec<Connected>,
    /// What else it must reach.
    pub needed: Vec<(IpNet, Need)>,
}

/// Why a host must reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The controller is there.
    Controller,
    /// A name server of `/etc/resolv.conf`.
    NameServer,
    /// The other end of a link is there.
    Endpoint,
    /// `protected_networks` of `agent.toml`.
    Protected,
}

/// Why a learned route is left out of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clash {
    /// It overlaps a network that the host is connected to, on this interface.
    Connected(IpNet, String),
    /// It overlaps something that the host must reach.
    Needed(IpNet, Need),
    /// It is a default route, or one of several that together are one, and `allow_default_route` is off.
    Default,
}

impl Clash {
    /// The stable name, as counters and reports have it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connected(..) => "host_connected",
            Self::Needed(_, Need::Controller) => "host_controller",
            Self::Needed(_, Need::NameServer) => "host_name_server",
            Self::Needed(_, Need::Endpoint) => "host_endpoint",
            Self::Needed(_, Need::Protected) => "host_protected",
            Self::Default => "host_default",
        }
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(network, interface) => {
                write!(
                    f,
                    "it overlaps {network}, to which this host is connected on {interface} (D22)"
                )
            }
            Self::Needed(network, need) => {
                let what = match need {
                    Need::Controller => "where the controller is",
                    Need::NameServer => "a name server of this host",
                    Need::Endpoint => "where another agent is",
                    Need::Protected => "which protected_networks in agent.toml names",
                };
                write!(f, "it overlaps {network}, {what} (D22)")
            }
            Self::Default => f.write_str("allow_default_route is off here (D22)"),
        }
    }
}

/// The plan of a configuration with what was learned, and the learned prefixes that are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filtered {
    /// The plan.
    pub plan: KernelPlan,
    /// The plan of the configuration alone: what must not overlap the host's networks.
    pub configured: KernelPlan,
    /// What is left out, and why.
    pub left_out: BTreeMap<IpNet, Clash>,
}

/// Plans for a configuration and what was learned, and leaves out of the latter what clashes with the host.
#[must_use]
pub fn filter(
    config: &AgentConfig,
    dynamic: &RoutingState,
    host: &Host,
    numbers: Numbers,
    allow_default: bool,
) -> Filtered {
    let configured = KernelPlan::of(config, &RoutingState::default(), numbers, allow_default);
    let plan = KernelPlan::of(config, dynamic, numbers, allow_default);
    let learned: BTreeSet<IpNet> = plan
        .routes
        .iter()
        .filter(|(prefix, route)| configured.routes.get(*prefix) != Some(*route))
        .map(|(prefix, _)| *prefix)
        .collect();
    let mut left_out: BTreeMap<IpNet, Clash> = BTreeMap::new();
    if !allow_default {
        // The engine's tables have it, the kernel's do not.
        let whole = plan.refused_defaults.iter();
        let whole = whole.filter(|p| !configured.refused_defaults.contains(*p));
        left_out.extend(whole.map(|p| (*p, Clash::Default)));
        let pieces = pieces_of_default(plan.routes.keys().copied());
        left_out.extend(pieces.intersection(&learned).map(|p| (*p, Clash::Default)));
    }
    let line = match &config.role {
        Role::CircuitEdge { line, .. } => Some(line.trunc()),
        Role::Vm { .. } | Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } => None,
    };
    for prefix in learned {
        // A default route is looked up after the host's networks.
        if prefix.prefix_len() == 0 || left_out.contains_key(&prefix) {
            continue;
        }
        if let Some(clash) = host.clash(&prefix, &plan, line) {
            left_out.insert(prefix, clash);
        }
    }
    let plan = if left_out.is_empty() {
        plan
    } else {
        KernelPlan::of(config, &without(dynamic, &left_out), numbers, allow_default)
    };
    Filtered {
        plan,
        configured,
        left_out,
    }
}

impl Host {
    /// `line`: the network between an edge and its customer, which the customer may announce.
    fn clash(&self, prefix: &IpNet, plan: &KernelPlan, line: Option<IpNet>) -> Option<Clash> {
        let overlaps = |network: &IpNet| prefix.contains(network) || network.contains(prefix);
        let kept = |network: &IpNet| plan.served.iter().any(|s| s.contains(network)) || line == Some(*network);
        let connected = self
            .connected
            .iter()
            .find(|c| overlaps(&c.network) && !kept(&c.network));
        if let Some(c) = connected {
            return Some(Clash::Connected(c.network, c.interface.clone()));
        }
        let needed = self.needed.iter().find(|(network, _)| overlaps(network));
        needed.map(|(network, need)| Clash::Needed(*network, *need))
    }
}

/// What was learned, less the routes to these prefixes.
fn without(dynamic: &RoutingState, left_out: &BTreeMap<IpNet, Clash>) -> RoutingState {
    let keep = |routes: &Arc<Vec<Route>>| {
        let kept = routes.iter().filter(|r| !left_out.contains_key(&r.prefix.trunc()));
        Arc::new(kept.cloned().collect::<Vec<_>>())
    };
    RoutingState {
        down: dynamic.down.clone(),
        received: dynamic
            .received
            .iter()
            .map(|(k, routes)| (k.clone(), keep(routes)))
            .collect(),
        learned: dynamic
            .learned
            .iter()
            .map(|(k, routes)| (k.clone(), keep(routes)))
            .collect(),
    }
}

/// Of these prefixes those that together are as good as a default route: where three quarters of a family's addresses
/// are covered, the shortest ones, until what the rest covers is less than an eighth. Of IPv6 only 2000::/3 counts,
/// which all global addresses are in (RFC 4291). A prefix of length 0 is no piece.
#[must_use]
pub fn pieces_of_default(prefixes: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = prefixes
        .into_iter()
        .filter(|p| p.prefix_len() > 0)
        .partition(|p| p.addr().is_ipv4());
    let mut pieces = BTreeSet::new();
    for mut rest in [v4, v6] {
        rest.sort_unstable_by_key(IpNet::prefix_len);
        if share(&rest) < 6 {
            continue;
        }
        while share(&rest) >= 1 {
            let Some(shortest) = rest.first().map(IpNet::prefix_len) else {
                break;
            };
            let longer = rest.partition_point(|p| p.prefix_len() == shortest);
            pieces.extend(rest.drain(..longer));
        }
    }
    pieces
}

/// How many eighths of their family's addresses the prefixes cover together, rounded down.
fn share(prefixes: &[IpNet]) -> u128 {
    let mut spans: Vec<(u128, u128)> = prefixes.iter().filter_map(span).collect();
    spans.sort_unstable();
    let (mut covered, mut next) = (0, 0);
    for (first, last) in spans {
        if last >= next {
            covered += last - first.max(next) + 1;
            next = last + 1;
        }
    }
    let eighth = match prefixes.first() {
        Some(IpNet::V6(_)) => 1 << 122,
        _ => 1 << 29,
    };
    covered / eighth
}

/// The first and the last address of a prefix, of IPv6 counted from the begin of 2000::/3.
fn span(prefix: &IpNet) -> Option<(u128, u128)> {
    match prefix {
        IpNet::V4(p) => Some((u32::from(p.network()).into(), u32::from(p.broadcast()).into())),
        IpNet::V6(p) => {
            const GLOBAL: (u128, u128) = (1 << 125, (1 << 126) - 1);
            let first = u128::from(p.network()).max(GLOBAL.0);
            let last = u128::from(p.broadcast()).min(GLOBAL.1);
            (first <= last).then(|| (first - GLOBAL.0, last - GLOBAL.0))
        }
    }
}

/// The name servers in the text of `resolv.conf`; none that is on this host.
#[must_use]
pub fn name_servers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver")
            .then(|| words.next()?.parse().ok())
            .flatten()
    });
    servers.filter(|a: &IpAddr| !a.is_loopback()).collect()
}

#[cfg(test)]
mod tests;
