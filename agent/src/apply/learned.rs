//! Checks learned routes against the host's own networks (D22). Sites and other agents may announce any prefix. A
//! learned prefix stays out of the kernel if it overlaps an address that the host must reach by its own routes. The
//! other learned prefixes and the configured ones are installed nevertheless. The engine still uses the routes that are
//! kept out of the kernel, for packets that it receives from other agents. The module is pure.

use super::plan::{Connected, KernelIds, KernelPlan};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::route::Route;

/// The networks and addresses that a host must reach by its own routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The networks that the host is directly connected to.
    pub connected: Vec<Connected>,
    /// Other destinations that the host must reach, each with the reason.
    pub needed: Vec<(IpNet, Need)>,
}

/// Why a host must reach an address by its own routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The address is the controller's.
    Controller,
    /// The address belongs to a name server in `/etc/resolv.conf`.
    NameServer,
    /// The address is the endpoint of another agent.
    Endpoint,
    /// The network is listed in `protected_networks` of `agent.toml`.
    Protected,
}

/// Why a learned route is left out of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clash {
    /// The prefix overlaps this network, to which the host is connected on the named interface.
    Connected(IpNet, String),
    /// The prefix overlaps this destination. The host must reach the destination by its own routes, for the reason
    /// given.
    Needed(IpNet, Need),
    /// The prefix is a default route, or one of several prefixes that together cover as much as one, and
    /// `allow_default_route` is off.
    Default,
}

impl Clash {
    /// The name of the reason in counters and reports. Names do not change between versions.
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

/// The plan of a configuration with learned routes, and the learned prefixes that were left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filtered {
    /// The plan to apply. It has the configured routes, and the learned routes that were not left out.
    pub plan: KernelPlan,
    /// The plan of the configuration alone. A prefix of this plan that overlaps a network of the host is an error of
    /// the configuration, not of a learned route.
    pub configured: KernelPlan,
    /// The learned prefixes that were left out of `plan`, each with the reason.
    pub left_out: BTreeMap<IpNet, Clash>,
}

/// Computes the kernel plan of a configuration with learned routes (`dynamic`), but leaves out learned routes that
/// clash with `host`. `allow_default` is the setting `allow_default_route`. The result confines no packets yet: see
/// [`KernelPlan::confine`]. `host` has the networks and addresses to keep free, and `ids` the numbers of this agent. No
/// argument is checked.
#[must_use]
pub fn filter(
    config: &AgentConfig,
    dynamic: &RoutingState,
    host: &Host,
    ids: KernelIds,
    allow_default: bool,
) -> Filtered {
    let configured = KernelPlan::of(config, &RoutingState::default(), ids, allow_default);
    let plan = KernelPlan::of(config, dynamic, ids, allow_default);
    let learned: BTreeSet<IpNet> = plan
        .routes
        .iter()
        .filter(|(prefix, route)| configured.routes.get(*prefix) != Some(*route))
        .map(|(prefix, _)| *prefix)
        .collect();
    let mut left_out: BTreeMap<IpNet, Clash> = BTreeMap::new();
    if !allow_default {
        // `KernelPlan::of` has already left out learned default routes that are not allowed. Here they are only listed
        // with the reason, for the report.
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
        // A default route is not checked for clashes: the policy rules look up the host's main table before the table
        // with the agent's default route, so the host's networks keep their own routes.
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
        KernelPlan::of(config, &without(dynamic, &left_out), ids, allow_default)
    };
    Filtered {
        plan,
        configured,
        left_out,
    }
}

impl Host {
    /// The first clash of a prefix with the host. None: the prefix may be installed. `line` is the network between a
    /// circuit edge and the customer's router. A prefix may overlap this network, because the customer may announce
    /// such a prefix.
    fn clash(&self, prefix: &IpNet, plan: &KernelPlan, line: Option<IpNet>) -> Option<Clash> {
        let overlaps = |network: &IpNet| prefix.contains(network) || network.contains(prefix);
        let may_overlap = |network: &IpNet| plan.served.iter().any(|s| s.contains(network)) || line == Some(*network);
        let connected = self
            .connected
            .iter()
            .find(|c| overlaps(&c.network) && !may_overlap(&c.network));
        if let Some(c) = connected {
            return Some(Clash::Connected(c.network, c.interface.clone()));
        }
        let needed = self.needed.iter().find(|(network, _)| overlaps(network));
        needed.map(|(network, need)| Clash::Needed(*network, *need))
    }
}

/// The learned routes without the routes to the given prefixes.
fn without(dynamic: &RoutingState, left_out: &BTreeMap<IpNet, Clash>) -> RoutingState {
    let keep = |routes: &Arc<Vec<Route>>| {
        let kept = routes.iter().filter(|r| !left_out.contains_key(&r.prefix.trunc()));
        Arc::new(kept.cloned().collect::<Vec<_>>())
    };
    RoutingState {
        down: dynamic.down.clone(),
        unhealthy: dynamic.unhealthy.clone(),
        gone: dynamic.gone.clone(),
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

/// Returns those prefixes that together act as a default route; IPv4 and IPv6 are judged separately. If the prefixes of
/// a family cover less than three quarters of its addresses, none is returned. Otherwise prefixes are returned one
/// length after the other, the shortest length first with all its prefixes, until the prefixes that are left cover less
/// than an eighth of the addresses. For IPv6, only addresses in 2000::/3 count, and the shares are shares of this
/// block, which has the global unicast addresses (RFC 4291). Prefixes of length 0 are ignored.
#[must_use]
pub fn pieces_of_default(prefixes: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = prefixes
        .into_iter()
        .filter(|p| p.prefix_len() > 0)
        .partition(|p| p.addr().is_ipv4());
    let mut pieces = BTreeSet::new();
    for mut rest in [v4, v6] {
        rest.sort_unstable_by_key(IpNet::prefix_len);
        if covered_eighths(&rest) < 6 {
            continue;
        }
        while covered_eighths(&rest) >= 1 {
            let Some(shortest) = rest.first().map(IpNet::prefix_len) else {
                break;
            };
            let longer = rest.partition_point(|p| p.prefix_len() == shortest);
            pieces.extend(rest.drain(..longer));
        }
    }
    pieces
}

/// The share of a family's addresses that the prefixes cover together, in eighths, rounded down. Addresses in several
/// prefixes count once. All prefixes must be of one family.
fn covered_eighths(prefixes: &[IpNet]) -> u128 {
    let mut spans: Vec<(u128, u128)> = prefixes.iter().filter_map(span).collect();
    spans.sort_unstable();
    let (mut covered, mut next) = (0, 0);
    for (first, last) in spans {
        if last >= next {
            covered += last - first.max(next) + 1;
            next = last + 1;
        }
    }
    // An eighth of the 2^32 IPv4 addresses, or of the 2^125 IPv6 addresses in 2000::/3.
    let eighth = match prefixes.first() {
        Some(IpNet::V6(_)) => 1 << 122,
        _ => 1 << 29,
    };
    covered / eighth
}

/// The first and the last address of a prefix as numbers. For IPv6 the numbers count from the start of 2000::/3. None:
/// the prefix is outside of 2000::/3.
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

/// Parses the name servers of a `resolv.conf` (`resolv.conf(5)`), in the order of the file. Skips loopback addresses,
/// which no route can capture, lines that are not valid, and addresses with a scope ID (`fe80::1%eth0`).
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
