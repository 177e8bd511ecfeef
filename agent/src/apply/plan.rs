//! The kernel state that a configuration needs, as data: addresses, routes, policy rules and the packet filter. The
//! module also computes the steps from one plan to another. It is pure.
//!
//! ```text
//! policy rules, in the order of their priorities (`ip rule`)
//!   from <own address>    → own table     packets with an overlay source already; with several NICs, the NIC's table
//!   not fwmark            → own table     other packets, except the links' datagrams; VM agents before gateway agents of a host
//!   from <own address>    → source table  packets without a route in any agent's table: into the device, or unreachable
//!   from TUN              → source table  the same packets, if the host forwards them (exit table on an Internet exit)
//!   from the host itself  → skip the next rule                     only if subnets are served
//!   from <served subnet>  → source table  packets of served machines that the host forwards
//!   not fwmark            → main without its default route         only with a default route of the agent
//!   not fwmark            → default table                          only with a default route of the agent
//!   from TUN              → default table                          at a circuit edge, instead of the two rules above, if the
//!                                                                  host does not allow the customer's default route
//!   from TUN or the line  → blackhole     at a circuit edge: the host's own routes forward no overlay packets (T8)
//! ```

pub mod confine;
mod steps;

use super::learned::pieces_of_default;
use crate::filter::Filter;
use confine::{RouteKey, Table};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
pub use steps::{Forwarding, Step};
use tombolo_engine::host_routes::{default_subnets, egress_nic, host_routes};
use tombolo_engine::routing::{RoutingState, accept_routes, effective};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::{AgentConfig, CircuitNetwork, MAX_VM_NICS, Role, Speaker, TransitRoute};
use tombolo_proto::route::{NextHop, RouteSource, RouteState};

/// The numbers by which an agent recognises its own routes, rules and packets on a host. They are stored on disk, so
/// that the agent's next run can find and remove the kernel state of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelIds {
    /// The agent's routing table.
    pub table: u32,
    /// The default table, which holds the agent's default routes (IPv4 and IPv6) and no other routes.
    pub default_table: u32,
    /// Added to the base priority of every rule; from 0 to 499. The offset keeps the rules of several agents on one
    /// host apart.
    pub offset: u32,
    /// The firewall mark that the sockets of the links set. Datagrams with this mark are not routed into the overlay.
    pub fwmark: u32,
}

impl KernelIds {
    /// Distance between the base priorities of the first bands ([`Band`]). Offsets are below this number, so that these
    /// bands do not overlap.
    const BAND_WIDTH: u32 = 500;

    /// Derives the IDs from the name of the device, which is case-sensitive. Nothing is checked. `table` replaces the
    /// derived table number, and with it the numbers of the other tables. It does not change the rule priorities. Two
    /// devices get the same derived table with a probability of 1 in 65,536; an operator must then set `table` for one
    /// of them. An upgrade must not change the derivation, because the new version finds the old version's rules by
    /// these IDs in order to remove them.
    #[must_use]
    pub fn of(interface: &str, table: Option<u32>, fwmark: u32) -> Self {
        let hash = blake3::hash(interface.as_bytes());
        let [a, b, ..] = *hash.as_bytes();
        let hash = u32::from(u16::from_be_bytes([a, b]));
        // The ASCII codes of "tm" and the hash. The number is recognisable in `ip rule`, and far from the table numbers
        // that people choose.
        let table = table.unwrap_or(0x746d_0000 | hash);
        Self {
            table,
            default_table: table ^ 0x0100_0000,
            offset: hash % Self::BAND_WIDTH,
            fwmark,
        }
    }

    /// The number of the source table, for packets with an overlay source (see [`confine`]).
    #[must_use]
    pub const fn source_table(&self) -> u32 {
        self.table ^ 0x0200_0000
    }

    /// The number of the exit table, for packets that an Internet exit forwards (see [`confine`]).
    #[must_use]
    pub const fn exit_table(&self) -> u32 {
        self.table ^ 0x0300_0000
    }

    /// The numbers of all routing tables of the agent. They differ from each other for any `table`: one is
    /// `table` itself, and each of the others is `table` with a different set of bits inverted.
    #[must_use]
    pub fn tables(&self) -> [u32; TABLES] {
        std::array::from_fn(|n| match n {
            0 => self.table,
            1 => self.default_table,
            2 => self.source_table(),
            3 => self.exit_table(),
            n => self.nic_table(NicIndex((n - OTHER_TABLES) as u8)),
        })
    }

    /// The number of the table of a NIC, for packets with an address of this NIC as source. A machine with one NIC has
    /// no such table.
    #[must_use]
    pub const fn nic_table(&self, nic: NicIndex) -> u32 {
        self.table ^ ((OTHER_TABLES as u32 + nic.0 as u32) << 24)
    }
}

/// Number of tables that do not belong to a single NIC.
const OTHER_TABLES: usize = 4;

/// Number of routing tables of one agent: the four that every agent uses, and one for each of several NICs.
pub const TABLES: usize = OTHER_TABLES + MAX_VM_NICS;

/// The action of a policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lookup {
    /// Looks up the agent's own table.
    Own,
    /// Looks up the table of one of several NICs.
    Nic(NicIndex),
    /// Looks up the table for packets with an overlay source.
    Source,
    /// Looks up the table for packets that an Internet exit forwards.
    Exit,
    /// Continues with the rule of this priority.
    Goto(u32),
    /// Does nothing: the target of a `Goto`.
    Nop,
    /// Looks up the host's main table without its default route (`suppress_prefixlength 0`).
    MainButDefault,
    /// Looks up the table with the agent's default route.
    Default,
    /// Drops the packet without an ICMP error.
    Blackhole,
}

/// The device on which a packet arrived (`iif`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingress {
    /// The packet arrived from the TUN device of a NIC.
    Tun(NicIndex),
    /// The packet arrived by the line to the customer edge.
    Line,
    /// The host itself sent the packet. The kernel routes such packets with the loopback device as `iif`.
    Local,
}

/// A policy rule. With neither `source` nor `ingress` the rule matches all packets that lack the agent's firewall mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Rules with lower numbers are tried first.
    pub priority: u32,
    /// True: an IPv6 rule; false: an IPv4 rule.
    pub v6: bool,
    /// Matches packets with a source in this prefix, whether they have the mark or not.
    pub source: Option<IpNet>,
    /// Matches packets that arrived from this device, whether they have the mark or not.
    pub ingress: Option<Ingress>,
    /// The action for packets that match.
    pub lookup: Lookup,
}

/// The action of a kernel route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Sends packets into the TUN device of a NIC. The kernel selects the given source address for sockets that are not
    /// bound to an address.
    Device(NicIndex, Option<IpAddr>),
    /// Ends the lookup in this table. The kernel continues with the next rule, which leads towards the host's own
    /// tables.
    Throw,
    /// Sends packets over the line to the customer edge, with this next hop.
    Line(IpAddr),
    /// Drops the packet and answers with an ICMP error.
    Unreachable,
}

impl Route {
    /// Whether setting `new` with the same key makes the kernel replace this route. The kernel does so only if both
    /// routes have the same type: for IPv6 it keeps routes of different types side by side. Otherwise the caller must
    /// delete this route first.
    fn is_replaced_by(&self, new: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(new)
    }
}

/// The complete kernel state of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelPlan {
    /// Number of TUN devices: one for each NIC (D37).
    pub devices: u8,
    /// MTU of the TUN devices in bytes.
    pub mtu: u16,
    /// The addresses, each with the NIC whose device has it. They are set as /32 or /128.
    pub addresses: BTreeMap<IpAddr, NicIndex>,
    /// Routes of the agent's own table, by prefix. Routes with prefix length 0 go into the default table instead.
    pub routes: BTreeMap<IpNet, Route>,
    /// The policy rules of both families.
    pub rules: BTreeSet<Rule>,
    /// Whether the kernel forwards packets that arrive from a TUN device.
    pub forwarding: bool,
    /// The agent's address on the line to a customer edge, with the line's prefix length. None: this agent is not a
    /// circuit edge.
    pub line: Option<IpNet>,
    /// Prefixes of the served subnets, whose machines run no agents: this host forwards their packets. The host is
    /// connected to these networks by an interface of its own (D8).
    pub served: Vec<IpNet>,
    /// The front ends of load balancers whose addresses are in served subnets, as prefixes of one address. No machine has
    /// these addresses: packets to them go into the device.
    pub front_ends: Vec<IpNet>,
    /// Routes that keep packets with overlay addresses from leaving by the host's own routes (see [`confine`]), and the
    /// routes of the tables of further NICs.
    pub table_routes: BTreeMap<RouteKey, Route>,
    /// The packet filter for packets that routes cannot confine. None: no filter is needed, because the agent has no
    /// overlay address and no served subnet.
    pub filter: Option<Filter>,
    /// The prefixes of the agent's own VNet, and of each VNet that the agent delivers into directly
    /// (`AgentConfig::spaces`): for a VM's agent the peered VNets, for a gateway the VNets that use it. At an edge
    /// there are none.
    pub spaces: Vec<IpNet>,
    /// Default routes that were left out because `allow_default_route` is off (D22). The list includes user-defined
    /// routes that together cover the address space like a default route.
    pub refused_defaults: Vec<IpNet>,
}

/// A network that the host is directly connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The name of the interface.
    pub interface: String,
    /// The network of one of the interface's addresses.
    pub network: IpNet,
}

/// A prefix that overlaps a connected network of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("prefix {prefix} overlaps {network}, to which this host is connected on {interface} (D22)")]
pub struct Overlap {
    /// The prefix of the configuration.
    pub prefix: IpNet,
    /// The network of the host.
    pub network: IpNet,
    /// The interface by which the host is connected to that network.
    pub interface: String,
}

/// The parts of a plan that follow from the agent's role alone.
struct RoleParts {
    /// The overlay addresses of the host with their NICs, the preferred one of each family and NIC first.
    addresses: Vec<(IpAddr, NicIndex)>,
    devices: u8,
    /// `band` plus the agent's offset is the priority of the rule by which packets whose source is none of `addresses`,
    /// and that lack the agent's firewall mark, look up the agent's own table.
    band: Band,
    forwarding: bool,
    served: Vec<IpNet>,
}

impl RoleParts {
    fn of(role: &Role) -> Self {
        match role {
            Role::Vm { nics, served, .. } => Self {
                addresses: nics
                    .iter()
                    .zip((0..).map(NicIndex))
                    .flat_map(|(nic, index)| nic.addresses.iter().map(move |a| (a.addr(), index)))
                    .collect(),
                devices: u8::try_from(nics.len()).unwrap_or(u8::MAX),
                band: Band::Vm,
                forwarding: nics.iter().any(|n| n.ip_forwarding) || !served.is_empty(),
                served: served.clone(),
            },
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => Self {
                addresses: addresses.iter().map(|a| (*a, NicIndex::FIRST)).collect(),
                devices: 1,
                band: Band::Gateway,
                forwarding: false,
                served: Vec::new(),
            },
            Role::CircuitEdge { networks, .. } => Self {
                addresses: networks.iter().map(|n| (n.address, NicIndex::FIRST)).collect(),
                devices: 1,
                band: Band::Gateway,
                forwarding: true,
                served: Vec::new(),
            },
        }
    }

    /// A route to this prefix into the device of a NIC. Its source address is the NIC's first address of the same
    /// family; if there is none, the route has no source address.
    fn to_device(&self, nic: NicIndex, prefix: &IpNet) -> Route {
        let fits = |(address, of): &&(IpAddr, NicIndex)| *of == nic && address.is_ipv6() == prefix.addr().is_ipv6();
        Route::Device(nic, self.addresses.iter().find(fits).map(|(address, _)| *address))
    }
}

impl KernelPlan {
    /// Computes the plan of a configuration with learned routes (`dynamic`). `allow_default` is the host's setting
    /// `allow_default_route`. Clashes with the host's networks are not checked: see
    /// [`check_overlap`](Self::check_overlap). The result confines no packets yet: see [`confine`](Self::confine).
    /// `config` is not checked: it must satisfy [`AgentConfig::check`].
    #[must_use]
    pub fn of(config: &AgentConfig, dynamic: &RoutingState, ids: KernelIds, allow_default: bool) -> Self {
        let role = RoleParts::of(&config.role);
        let spaces = config.spaces.iter().flat_map(|s| &s.prefixes);
        let mut plan = Self {
            devices: role.devices,
            mtu: config.mtu,
            addresses: role.addresses.iter().copied().collect(),
            forwarding: role.forwarding,
            served: role.served.clone(),
            spaces: config.address_space.iter().chain(spaces).map(IpNet::trunc).collect(),
            ..Self::default()
        };
        plan.add_effective_routes(config, dynamic, &role, allow_default);
        plan.add_nic_routes(config, dynamic);
        match &config.role {
            Role::VpnGateway { transit, .. } => plan.add_transit_routes(transit, &role),
            Role::CircuitEdge {
                networks, line, bgp, ..
            } => {
                plan.line = Some(*line);
                plan.add_circuit_routes(networks);
                let learned = accept_routes(config, dynamic)
                    .into_iter()
                    .map(|taken| taken.route.prefix);
                plan.add_customer_routes(learned, bgp);
            }
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => {}
        }
        for served in &plan.served {
            plan.routes.insert(served.trunc(), Route::Throw);
        }
        plan.add_front_ends(config, &role);
        plan.rules = rules(&plan, role.band, ids.offset, allow_default);
        plan
    }

    /// Adds the effective routes of the subnets of the first NIC and of served machines. If several subnets have a
    /// route to the same prefix, the route of the first such subnet is used. Each route leads to the NIC that
    /// [`host_routes`] selects, because the kernel of an Azure VM does not know the routes of its subnets.
    fn add_effective_routes(
        &mut self,
        config: &AgentConfig,
        dynamic: &RoutingState,
        role: &RoleParts,
        allow_default: bool,
    ) {
        let steered = host_routes(config);
        let pieces = match allow_default {
            true => BTreeSet::new(),
            false => pieces_of_default(user_routes(config).chain(steered.keys().copied())),
        };
        for (prefix, nic) in &steered {
            if pieces.contains(prefix) {
                self.refused_defaults.push(*prefix);
            } else {
                self.routes.insert(*prefix, role.to_device(*nic, prefix));
            }
        }
        let routes = default_subnets(config).flat_map(|s| effective(config, s, dynamic));
        for route in routes.filter(|r| r.state == RouteState::Active) {
            let nic = egress_nic(&steered, &route.prefix);
            let to_device = role.to_device(nic, &route.prefix);
            let action = match (&route.next_hop, route.source) {
                (NextHop::Internet {}, RouteSource::User) => Route::Throw,
                // The engine drops and counts packets of user-defined routes to None, so these routes lead into the
                // device. System routes to None and to Internet add nothing: the host's own routes decide (D22).
                (NextHop::None {}, RouteSource::User) => to_device,
                (NextHop::Internet {} | NextHop::None {}, _) => continue,
                (
                    NextHop::VnetLocal {}
                    | NextHop::VnetPeering { .. }
                    | NextHop::VnetGlobalPeering { .. }
                    | NextHop::VirtualNetworkGateway { .. }
                    | NextHop::VirtualAppliance { .. },
                    _,
                ) => to_device,
            };
            // A throw route with prefix length 0 is left out, because it would change nothing: a lookup that finds no
            // route in the agent's tables continues in the host's tables anyway.
            if route.prefix.prefix_len() == 0 && action == Route::Throw {
                continue;
            }
            let is_default = route.prefix.prefix_len() == 0 || pieces.contains(&route.prefix.trunc());
            if is_default && !allow_default {
                self.refused_defaults.push(route.prefix);
                continue;
            }
            self.routes.entry(route.prefix.trunc()).or_insert(action);
        }
    }

    /// Adds the tables of several NICs: the effective routes of each NIC's subnet. With several NICs, the first NIC too
    /// has a table of its own, because the agent's table also has routes by the other NICs.
    fn add_nic_routes(&mut self, config: &AgentConfig, dynamic: &RoutingState) {
        let Role::Vm { nics, .. } = &config.role else { return };
        if nics.len() < 2 {
            return;
        }
        for (nic, index) in nics.iter().zip((0..).map(NicIndex)) {
            let subnet = config.subnets.iter().find(|s| s.id == nic.subnet);
            let routes = subnet.into_iter().flat_map(|s| effective(config, s, dynamic));
            let active = routes.filter(|r| r.state == RouteState::Active && r.prefix.prefix_len() > 0);
            for route in active {
                let key = RouteKey {
                    table: Table::Nic(index),
                    prefix: route.prefix.trunc(),
                    fallback: false,
                };
                // All routes of this table lead into the device, also those that let the engine drop the packet. A
                // packet with an overlay source has no other way out (D22). They need no source address, because the
                // packets have one already.
                self.table_routes.insert(key, Route::Device(index, None));
            }
        }
    }

    /// Adds routes into the device to the front ends in served subnets (L1): the routes of the served subnets lead to the
    /// networks that the host is connected to.
    fn add_front_ends(&mut self, config: &AgentConfig, role: &RoleParts) {
        let addresses = config.front_ends.iter().map(|f| IpNet::from(f.address));
        let is_served = |front_end: &IpNet| self.served.iter().any(|served| served.contains(front_end));
        self.front_ends = addresses.filter(is_served).collect();
        let steered = host_routes(config);
        for front_end in &self.front_ends {
            let nic = egress_nic(&steered, front_end);
            self.routes.insert(*front_end, role.to_device(nic, front_end));
        }
    }

    /// Adds the configured routes to the networks that a VPN gateway reaches by its connections, except default routes.
    fn add_transit_routes(&mut self, transit: &[TransitRoute], role: &RoleParts) {
        for route in transit.iter().filter(|t| t.prefix.prefix_len() > 0) {
            let to_device = role.to_device(NicIndex::FIRST, &route.prefix);
            self.routes.entry(route.prefix.trunc()).or_insert(to_device);
        }
    }

    /// Adds the routes of a circuit edge to the VNets that are linked to the circuit. The source address of each route
    /// is the address that the edge has for that VNet.
    fn add_circuit_routes(&mut self, networks: &[CircuitNetwork]) {
        for network in networks {
            for prefix in &network.prefixes {
                self.routes
                    .insert(prefix.trunc(), Route::Device(NicIndex::FIRST, Some(network.address)));
            }
        }
    }

    /// Adds the routes that the customer of a circuit announced. The next hop is the first BGP neighbour of the
    /// prefix's family; a prefix of a family without a neighbour is skipped.
    fn add_customer_routes(&mut self, learned: impl Iterator<Item = IpNet>, bgp: &Speaker) {
        for prefix in learned {
            let mut next_hops = bgp.neighbours.iter().map(|n| n.address);
            if let Some(next_hop) = next_hops.find(|a| a.is_ipv6() == prefix.addr().is_ipv6()) {
                self.routes.entry(prefix.trunc()).or_insert(Route::Line(next_hop));
            }
        }
    }

    /// Checks that no route into the device and no own address overlaps a network that the host is connected to. With
    /// an overlap the host would lose that network. Default routes may overlap, because the rules look up the host's
    /// main table before the agent's default table. A network inside of a served subnet may overlap too.
    ///
    /// # Errors
    /// The first overlap that is found; own addresses are checked after routes.
    pub fn check_overlap(&self, connected: &[Connected]) -> Result<(), Overlap> {
        let routed = self
            .routes
            .iter()
            .filter(|(p, r)| p.prefix_len() > 0 && matches!(r, Route::Device(..)));
        let own = self.addresses.keys().map(|a| IpNet::from(*a));
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
}

/// Base priorities of the rules, to which [`KernelIds::offset`] is added. All are smaller than 32766, the priority of
/// the kernel's rule for the main table (`ip-rule(8)`). So the kernel tries the agent's rules first.
#[derive(Debug, Clone, Copy)]
enum Band {
    Source = 28_000,
    Vm = 28_500,
    Gateway = 29_000,
    Confined = 29_500,
    MainButDefault = 31_500,
    Default = 32_000,
    Blackhole = 32_250,
}

/// The three priorities of the rules for served subnets, between [`Band::Confined`] and [`Band::MainButDefault`]: of
/// the `Goto` rule, of the rules that the `Goto` skips, and of the rule to which the `Goto` leads. The three numbers of
/// an agent are consecutive, so that its `Goto` skips no rule of another agent.
const fn served_priorities(offset: u32) -> [u32; 3] {
    let first = 30_000 + 3 * offset;
    [first, first + 1, first + 2]
}

/// Whether the agent with this offset uses `priority` for rules that name none of the agent's tables. Only the numbers are
/// compared: another agent of the host may have a rule for its own table with the same priority.
#[must_use]
pub fn is_without_table(priority: u32, offset: u32) -> bool {
    served_priorities(offset).contains(&priority)
        || priority == Band::MainButDefault as u32 + offset
        || priority == Band::Blackhole as u32 + offset
}

/// The prefixes of active user-defined routes. Routes with next hop Internet are left out, because they lead to the
/// host's own routing tables.
fn user_routes(config: &AgentConfig) -> impl Iterator<Item = IpNet> {
    let routes = config.subnets.iter().flat_map(|s| &s.routes);
    let users = routes.filter(|r| r.state == RouteState::Active && r.source == RouteSource::User);
    users
        .filter(|r| !matches!(r.next_hop, NextHop::Internet {}))
        .map(|r| r.prefix.trunc())
}

/// The policy rules of a plan that do not depend on the host's networks. `base` is the base priority of the rule for
/// packets without an overlay source.
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
                ingress: None,
                lookup,
            });
        };
        for (address, nic) in plan.addresses.iter().filter(|(a, _)| a.is_ipv6() == v6) {
            let table = match plan.devices {
                0 | 1 => Lookup::Own,
                _ => Lookup::Nic(*nic),
            };
            add(Band::Source, Some(IpNet::from(*address)), table);
            add(Band::Confined, Some(IpNet::from(*address)), Lookup::Source);
        }
        add(base, None, Lookup::Own);
        let default = plan.routes.keys().filter(family).any(|p| p.prefix_len() == 0);
        if default && (allow_default || plan.line.is_none()) {
            add(Band::MainButDefault, None, Lookup::MainButDefault);
            add(Band::Default, None, Lookup::Default);
        }
        if default && !allow_default && plan.line.is_some() {
            // The customer's default route applies only to packets from VNets (from the TUN device). The edge's own
            // packets keep the host's default route (D22).
            rules.insert(Rule {
                priority: Band::Default as u32 + offset,
                v6,
                source: None,
                ingress: Some(Ingress::Tun(NicIndex::FIRST)),
                lookup: Lookup::Default,
            });
        }
        if plan.line.is_some() {
            for ingress in [Ingress::Tun(NicIndex::FIRST), Ingress::Line] {
                rules.insert(Rule {
                    priority: Band::Blackhole as u32 + offset,
                    v6,
                    source: None,
                    ingress: Some(ingress),
                    lookup: Lookup::Blackhole,
                });
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests;
