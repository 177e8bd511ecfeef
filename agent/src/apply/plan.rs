//! What a configuration asks of the host's kernel, as data: addresses, routes and rules; and the way from one plan to
//! another. Pure.
//!
//! ```text
//! rules, in the order the kernel tries them
//!   from <own address>    → own table     packets that already have an overlay source
//!   not fwmark            → own table     VM agents before gateway agents of the same host
//!   from <own address>    → source table  what no agent of the host has a route for: into the device, or nowhere
//!   from TUN              → source table  likewise, where the kernel forwards (exit table: where the host is an Internet exit)
//!   from the host itself  → skip the next                          only where subnets are served
//!   from <served subnet>  → source table  (likewise: packets that the host forwards)
//!   not fwmark            → main, but not its default route        only with a default route of our own
//!   not fwmark            → default table                          (likewise)
//!   from TUN              → default table                          at the edge of a circuit, instead of both: where its
//!                                                                   host does not allow the customer's default route
//!   from TUN or the line  → nowhere       at the edge of a circuit: its host's own routes are nobody's way (T8)
//! ```

pub mod confine;

use super::learned::pieces_of_default;
use crate::filter::Filter;
use confine::Place;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_engine::routing::{RoutingState, accept_routes, effective};
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::route::{NextHop, RouteSource, RouteState};

/// Numbers by which an agent tells its own things on the host from others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Numbers {
    /// The agent's routing table.
    pub table: u32,
    /// Its second table, which holds a default route and nothing else.
    pub default_table: u32,
    /// Added to the base of every rule's priority, below 500.
    pub offset: u32,
    /// Mark of underlay packets.
    pub fwmark: u32,
}

impl Numbers {
    /// Width of each band of rule priorities.
    const SPREAD: u32 = 500;

    /// Numbers that two agents with different devices do not share (but for one chance in 65,536; then `table` is to
    /// be set by hand).
    #[must_use]
    pub fn of(interface: &str, table: Option<u32>, fwmark: u32) -> Self {
        let hash = blake3::hash(interface.as_bytes());
        let [a, b, ..] = *hash.as_bytes();
        let hash = u32::from(u16::from_be_bytes([a, b]));
        // "tm", then the hash: recognisable in `ip rule`, far from numbers that people choose.
        let table = table.unwrap_or(0x746d_0000 | hash);
        Self {
            table,
            default_table: table ^ 0x0100_0000,
            offset: hash % Self::SPREAD,
            fwmark,
        }
    }

    /// Number of the source table.
    #[must_use]
    pub const fn source_table(&self) -> u32 {
        self.table ^ 0x0200_0000
    }

    /// Number of the exit table.
    #[must_use]
    pub const fn exit_table(&self) -> u32 {
        self.table ^ 0x0300_0000
    }

    /// Numbers of all routing tables of the agent.
    #[must_use]
    pub const fn tables(&self) -> [u32; 4] {
        [self.table, self.default_table, self.source_table(), self.exit_table()]
    }
}

/// Where a rule sends a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lookup {
    /// The agent's table.
    Own,
    /// The table for packets with an overlay source.
    Source,
    /// The table for packets that an Internet exit forwards.
    Exit,
    /// On with the rule of this priority.
    Goto(u32),
    /// On with the next rule.
    Continue,
    /// The host's main table without its default route.
    MainButDefault,
    /// The table with the agent's default route.
    Default,
    /// Silently dropped.
    Nowhere,
}

/// A device that packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// The TUN device.
    Tun,
    /// The line to the customer edge.
    Line,
    /// None: packets of the host itself.
    Host,
}

/// A policy rule: packets without the mark, or those from some sources, or those that came in at some device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Lower ones are tried first.
    pub priority: u32,
    /// IPv6, else IPv4.
    pub v6: bool,
    /// Only packets with a source in here, with or without the mark.
    pub source: Option<IpNet>,
    /// Only packets that came in there, with or without the mark.
    pub port: Option<Port>,
    /// Where to look.
    pub lookup: Lookup,
}

/// What a kernel route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Into the TUN device, with this source unless the packet has one.
    Device(Option<IpAddr>),
    /// Back to the host's own tables.
    Throw,
    /// Down the line, to this neighbour.
    Line(IpAddr),
    /// Nowhere; the sender gets an error.
    Unreachable,
}

impl Route {
    /// Whether setting `new` at the same place replaces this one. IPv6 would keep both: there, another kind is no replacement.
    fn is_replaced_by(&self, new: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(new)
    }
}

/// Everything that an agent sets in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelPlan {
    /// MTU of the device, bytes.
    pub mtu: u16,
    /// Addresses of the device, as /32 or /128.
    pub addresses: BTreeSet<IpAddr>,
    /// Routes of the agent's table; a prefix of length 0 goes to the second table.
    pub routes: BTreeMap<IpNet, Route>,
    /// The rules.
    pub rules: BTreeSet<Rule>,
    /// Whether the kernel forwards what arrives from the device.
    pub forwarding: bool,
    /// The own address on the line to a customer edge.
    pub line: Option<IpNet>,
    /// Prefixes that the host itself may be connected to.
    pub served: Vec<IpNet>,
    /// What keeps packets with overlay addresses from leaving by the host's own routes.
    pub confining: BTreeMap<Place, Route>,
    /// What drops those that would leave nevertheless; none: there is no overlay address yet.
    pub filter: Option<Filter>,
    /// The address spaces of the configuration: the own VNet's and those it is peered with.
    pub spaces: Vec<IpNet>,
    /// Default routes, and user-defined ones that together are one, that were left out because the host's configuration
    /// does not allow them (D22).
    pub refused_defaults: Vec<IpNet>,
}

/// One network that the host is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The interface.
    pub interface: String,
    /// Its network.
    pub network: IpNet,
}

/// A prefix that overlaps a connected network of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("prefix {prefix} overlaps {network}, to which this host is connected on {interface} (D22)")]
pub struct Overlap {
    /// The configuration's.
    pub prefix: IpNet,
    /// The host's.
    pub network: IpNet,
    /// Where.
    pub interface: String,
}

impl KernelPlan {
    /// What `config` asks for on this host.
    #[must_use]
    pub fn of(config: &AgentConfig, dynamic: &RoutingState, numbers: Numbers, allow_default: bool) -> Self {
        let (ordered, base, forwarding, served) = match &config.role {
            Role::Vm { nics, served, .. } => {
                let addresses = nics
                    .iter()
                    .flat_map(|n| &n.addresses)
                    .map(IpNet::addr)
                    .collect::<Vec<_>>();
                let forwards = nics.iter().any(|n| n.ip_forwarding) || !served.is_empty();
                (addresses, Band::Vm, forwards, served.clone())
            }
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => {
                (addresses.clone(), Band::Gateway, false, Vec::new())
            }
            Role::CircuitEdge { networks, .. } => {
                let addresses = networks.iter().map(|n| n.address).collect();
                (addresses, Band::Gateway, true, Vec::new())
            }
        };
        let source = |p: &IpNet| ordered.iter().find(|a| a.is_ipv6() == p.addr().is_ipv6()).copied();
        let mut plan = Self {
            mtu: config.mtu,
            addresses: ordered.iter().copied().collect(),
            forwarding,
            served,
            spaces: config.address_space.iter().map(IpNet::trunc).collect(),
            ..Self::default()
        };
        let spaces = config.spaces.iter().flat_map(|s| &s.prefixes);
        plan.spaces.extend(spaces.map(IpNet::trunc));
        let pieces = match allow_default {
            true => BTreeSet::new(),
            false => pieces_of_default(user_routes(config)),
        };
        let routes = config.subnets.iter().flat_map(|s| effective(config, s, dynamic));
        for route in routes.filter(|r| r.state == RouteState::Active) {
            let action = match (&route.next_hop, route.source) {
                (NextHop::Internet {}, RouteSource::User) => Route::Throw,
                (NextHop::None {}, RouteSource::User) => Route::Device(source(&route.prefix)),
                (NextHop::Internet {} | NextHop::None {}, _) => continue,
                (
                    NextHop::VnetLocal {}
                    | NextHop::VnetPeering { .. }
                    | NextHop::VnetGlobalPeering { .. }
                    | NextHop::VirtualNetworkGateway { .. }
                    | NextHop::VirtualAppliance { .. },
                    _,
                ) => Route::Device(source(&route.prefix)),
            };
            if route.prefix.prefix_len() == 0 && action == Route::Throw {
                continue;
            }
            let is_default = route.prefix.prefix_len() == 0 || pieces.contains(&route.prefix.trunc());
            if is_default && !allow_default {
                plan.refused_defaults.push(route.prefix);
                continue;
            }
            plan.routes.entry(route.prefix.trunc()).or_insert(action);
        }
        if let Role::VpnGateway { transit, .. } = &config.role {
            for t in transit.iter().filter(|t| t.prefix.prefix_len() > 0) {
                plan.routes
                    .entry(t.prefix.trunc())
                    .or_insert_with(|| Route::Device(source(&t.prefix)));
            }
        }
        if let Role::CircuitEdge {
            networks, line, bgp, ..
        } = &config.role
        {
            plan.line = Some(*line);
            for network in networks {
                for prefix in &network.prefixes {
                    plan.routes.insert(prefix.trunc(), Route::Device(Some(network.address)));
                }
            }
            for taken in accept_routes(config, dynamic) {
                let prefix = taken.route.prefix;
                let next = bgp.neighbours.iter().map(|n| n.address);
                if let Some(next) = next.into_iter().find(|a| a.is_ipv6() == prefix.addr().is_ipv6()) {
                    plan.routes.entry(prefix.trunc()).or_insert(Route::Line(next));
                }
            }
        }
        for served in &plan.served {
            plan.routes.insert(served.trunc(), Route::Throw);
        }
        plan.rules = rules(&plan, base, numbers.offset, allow_default);
        plan
    }

    /// Refuses a plan whose prefixes overlap what the host is connected to: the host would lose its own network.
    /// A default route does not count, and neither does what the agent serves.
    ///
    /// # Errors
    /// The first overlap.
    pub fn check_overlap(&self, connected: &[Connected]) -> Result<(), Overlap> {
        let routed = self
            .routes
            .iter()
            .filter(|(p, r)| p.prefix_len() > 0 && matches!(r, Route::Device(_)));
        let own = self.addresses.iter().map(|a| IpNet::from(*a));
        for prefix in routed.map(|(p, _)| *p).chain(own) {
            for c in connected {
                let overlaps = prefix.contains(&c.network) || c.network.contains(&prefix);
                if overlaps && !self.served.iter().any(|s| s.contains(&c.network)) {
                    return Err(Overlap {
                        prefix,
                        network: c.network,
                        interface: c.interface.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// What the kernel does with what arrives from the device for others.
    fn forwarding(&self) -> Forwarding {
        let served = self.served.iter().map(IpNet::addr);
        let v6 = self.addresses.iter().copied().chain(served).any(|a| a.is_ipv6());
        match self.forwarding {
            true => Forwarding::On { v6 },
            false => Forwarding::Usual,
        }
    }

    /// The steps from this plan to `to`: first everything that is added or changed, then everything that goes, so
    /// that what both have never stops.
    #[must_use]
    pub fn steps(&self, to: &Self) -> (Vec<Step>, Vec<Step>) {
        let (mut first, mut then) = (Vec::new(), Vec::new());
        // 0: no plan yet. Going back to that, the device keeps what it has.
        if self.mtu != to.mtu && to.mtu != 0 {
            first.push(Step::Mtu(to.mtu));
        }
        // What confines packets comes before any address that they could have, and goes after it.
        for (place, route) in &to.confining {
            match self.confining.get(place) {
                Some(old) if old == route => {}
                Some(old) if !old.is_replaced_by(route) => {
                    first.push(Step::DeleteConfining(*place, *old));
                    first.push(Step::SetConfining(*place, *route));
                }
                _ => first.push(Step::SetConfining(*place, *route)),
            }
        }
        first.extend(to.rules.difference(&self.rules).map(|r| Step::AddRule(*r)));
        if self.forwarding() != to.forwarding() || self.mtu == 0 {
            first.push(Step::Forwarding(to.forwarding()));
        }
        if self.line != to.line {
            first.extend(to.line.map(Step::Line));
        }
        first.extend(to.addresses.difference(&self.addresses).map(|a| Step::AddAddress(*a)));
        for (prefix, route) in &to.routes {
            match self.routes.get(prefix) {
                Some(old) if old == route => {}
                Some(old) if !old.is_replaced_by(route) => {
                    first.push(Step::DeleteRoute(*prefix, *old));
                    first.push(Step::SetRoute(*prefix, *route));
                }
                _ => first.push(Step::SetRoute(*prefix, *route)),
            }
        }
        let gone = self.routes.iter().filter(|(p, _)| !to.routes.contains_key(*p));
        then.extend(gone.map(|(p, r)| Step::DeleteRoute(*p, *r)));
        then.extend(
            self.addresses
                .difference(&to.addresses)
                .map(|a| Step::DeleteAddress(*a)),
        );
        then.extend(self.rules.difference(&to.rules).map(|r| Step::DeleteRule(*r)));
        let gone = self.confining.iter().filter(|(p, _)| !to.confining.contains_key(*p));
        then.extend(gone.map(|(p, r)| Step::DeleteConfining(*p, *r)));
        (first, then)
    }

    /// Records that a step was carried out.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::Mtu(m) => self.mtu = *m,
            Step::Forwarding(forwarding) => self.forwarding = *forwarding != Forwarding::Usual,
            Step::Line(address) => self.line = Some(*address),
            Step::AddAddress(a) => drop(self.addresses.insert(*a)),
            Step::DeleteAddress(a) => drop(self.addresses.remove(a)),
            Step::SetRoute(p, r) => drop(self.routes.insert(*p, *r)),
            Step::DeleteRoute(p, _) => drop(self.routes.remove(p)),
            Step::SetConfining(p, r) => drop(self.confining.insert(*p, *r)),
            Step::DeleteConfining(p, _) => drop(self.confining.remove(p)),
            Step::AddRule(r) => drop(self.rules.insert(*r)),
            Step::DeleteRule(r) => drop(self.rules.remove(r)),
        }
    }
}

/// What the kernel does with what arrives from the device for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// As the host has it for new devices.
    Usual,
    /// It forwards IPv4, and perhaps IPv6.
    On {
        /// Whether also IPv6.
        v6: bool,
    },
}

/// One change of the kernel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sets the device's MTU.
    Mtu(u16),
    /// Says what the kernel does with what arrives from the device for others.
    Forwarding(Forwarding),
    /// Gives the line to the customer edge this address and no other, and lets the kernel forward what arrives there.
    Line(IpNet),
    /// Gives the device an address.
    AddAddress(IpAddr),
    /// Takes an address from the device.
    DeleteAddress(IpAddr),
    /// Adds or replaces a route.
    SetRoute(IpNet, Route),
    /// Removes a route.
    DeleteRoute(IpNet, Route),
    /// Adds or replaces a route that confines packets.
    SetConfining(Place, Route),
    /// Removes one.
    DeleteConfining(Place, Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    DeleteRule(Rule),
}

/// Bands of rule priorities; all before the host's main table (32766).
#[derive(Debug, Clone, Copy)]
enum Band {
    Source = 28_000,
    Vm = 28_500,
    Gateway = 29_000,
    Confined = 29_500,
    MainButDefault = 31_500,
    Default = 32_000,
    Nowhere = 32_250,
}

/// Priorities of the rules about served subnets, between [`Band::Confined`] and [`Band::MainButDefault`]: the one that skips,
/// those that it skips, and the one that it skips to. No other agent's rule is between them, which it would skip as well.
const fn served_priorities(offset: u32) -> [u32; 3] {
    let first = 30_000 + 3 * offset;
    [first, first + 1, first + 2]
}

/// Whether a priority is that of an agent's rules that name no table of ours.
#[must_use]
pub fn is_without_table(priority: u32, offset: u32) -> bool {
    served_priorities(offset).contains(&priority)
        || priority == Band::MainButDefault as u32 + offset
        || priority == Band::Nowhere as u32 + offset
}

/// The prefixes of user-defined routes into the device.
fn user_routes(config: &AgentConfig) -> impl Iterator<Item = IpNet> {
    let routes = config.subnets.iter().flat_map(|s| &s.routes);
    let users = routes.filter(|r| r.state == RouteState::Active && r.source == RouteSource::User);
    users
        .filter(|r| !matches!(r.next_hop, NextHop::Internet {}))
        .map(|r| r.prefix.trunc())
}

fn rules(plan: &KernelPlan, base: Band, offset: u32, allow_default: bool) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for v6 in [false, true] {
        let family = |p: &&IpNet| p.addr().is_ipv6() == v6;
        if !plan.has_family(v6) {
            continue;
        }
        let mut add = |band: Band, source, lookup| {
            rules.insert(Rule {
                priority: band as u32 + offset,
                v6,
                source,
                port: None,
                lookup,
            });
        };
        for address in plan.addresses.iter().filter(|a| a.is_ipv6() == v6) {
            add(Band::Source, Some(IpNet::from(*address)), Lookup::Own);
            add(Band::Confined, Some(IpNet::from(*address)), Lookup::Source);
        }
        add(base, None, Lookup::Own);
        let default = plan.routes.keys().filter(family).any(|p| p.prefix_len() == 0);
        if default && (allow_default || plan.line.is_none()) {
            add(Band::MainButDefault, None, Lookup::MainButDefault);
            add(Band::Default, None, Lookup::Default);
        }
        if default && !allow_default && plan.line.is_some() {
            // The customer's default route is the way of packets from VNets, and not the edge's own (D22).
            rules.insert(Rule {
                priority: Band::Default as u32 + offset,
                v6,
                source: None,
                port: Some(Port::Tun),
                lookup: Lookup::Default,
            });
        }
        if plan.line.is_some() {
            for port in [Port::Tun, Port::Line] {
                rules.insert(Rule {
                    priority: Band::Nowhere as u32 + offset,
                    v6,
                    source: None,
                    port: Some(port),
                    lookup: Lookup::Nowhere,
                });
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests;
