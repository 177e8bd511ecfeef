//! Keeps packets with overlay addresses off the host's other networks (D22). The module computes the routes, the rules
//! and the packet filter that do this. It is pure: it makes no system calls.
//!
//! ```text
//! own table       an unreachable fallback for each prefix that leads into a device
//! table of a NIC  default → the NIC's device; served subnets and bridges inside the host → the next rules
//! source table    default → device; served subnets and bridges inside the host → the host's own tables
//! both            front ends of load balancers in served subnets → device
//! exit table      the routes of the source table, except: public destinations → the host's own tables
//! packet filter   after source translation: drops packets with an overlay source that leave by another device
//! ```
//!
//! A fallback is an `unreachable` route with a worse metric than the route into the device. The kernel removes routes
//! of a device together with the device. A fallback names no device, so it stays when the agent ends, even after `kill
//! -9`.

use super::{Band, Connected, Ingress, KernelIds, KernelPlan, Lookup, Route, Rule, served_priorities};
use crate::filter::Filter;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_engine::tables::NicIndex;

/// Metric of a fallback. It is larger than the metrics that administrators and routing daemons set, so the kernel
/// prefers any other route to the same prefix. It is below the largest value of the field, 2^32 - 1.
pub const FALLBACK_METRIC: u32 = 2_000_000_000;

/// IPv4 blocks that are not public (RFC 1918, 6598, 3927, 2544). An Internet exit forwards no IPv4 packets to these
/// blocks, and forwards IPv6 packets only to [`PUBLIC_V6`].
const PRIVATE_V4: [&str; 6] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
];

/// The block from which IANA assigns global unicast addresses (RFC 4291).
const PUBLIC_V6: &str = "2000::/3";

/// A routing table of the agent that has confining routes, which keep overlay packets off the host's other networks.
/// [`KernelIds`] has the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The agent's own table, in which every route into the device gets a fallback.
    Own,
    /// The table of one of several NICs, for packets with an address of this NIC as source.
    Nic(NicIndex),
    /// The table for packets that have an overlay source, or that arrived from the TUN device. The rules lead to this
    /// table only if no agent of the host has a route to the destination.
    Source,
    /// If the host is an Internet exit: the table that is used instead of [`Source`](Self::Source) for packets that the
    /// host forwards.
    Exit,
}

/// The key of a confining route. The kernel keeps routes with different keys side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The routing table that the route is in.
    pub table: Table,
    /// The destination of the route.
    pub prefix: IpNet,
    /// Whether the route is a fallback, with [`FALLBACK_METRIC`]. Otherwise it has the kernel's default metric.
    pub fallback: bool,
}

/// The host's networks that decide how packets are confined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The networks that the host is directly connected to.
    pub connected: Vec<Connected>,
    /// Names of bridges whose ports are all virtual. Such a bridge leads only to containers and guests of this host.
    pub inner_bridges: BTreeSet<String>,
}

impl KernelPlan {
    /// Adds the routes, rules and packet filter that keep packets with overlay addresses from leaving the host in clear
    /// text. To be called once on a plan of [`of`](Self::of). `internet_exit` lets forwarded packets leave to public
    /// destinations by the host's own routes, except at a circuit edge. The packet filter still drops such a packet if
    /// its source was not translated. `ids` must be those of the call of `of`.
    #[must_use]
    pub fn confine(mut self, host: &Surroundings, ids: KernelIds, internet_exit: bool) -> Self {
        let local = self.local_networks(host);
        // A circuit edge needs no rules for forwarded packets here: its blackhole rules drop packets without a route
        // (T8).
        let forwards = self.forwarding && self.line.is_none();
        let exit = forwards && internet_exit;
        let confining = self.confining_routes(&local, exit);
        self.table_routes.extend(confining);
        self.forwarding_rules(forwards, if exit { Lookup::Exit } else { Lookup::Source }, ids);
        self.filter = self.packet_filter(local, forwards, ids);
        self
    }

    /// The networks outside of the overlay that packets with overlay addresses may enter, each with its interfaces.
    /// These networks are the served subnets, and the networks of bridges that lead only to containers and guests of
    /// this host.
    fn local_networks(&self, host: &Surroundings) -> BTreeMap<IpNet, BTreeSet<String>> {
        let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let mut local = BTreeMap::<IpNet, BTreeSet<String>>::new();
        for served in &self.served {
            let near = host.connected.iter().filter(|c| overlaps(&c.network, served));
            local
                .entry(served.trunc())
                .or_default()
                .extend(near.map(|c| c.interface.clone()));
        }
        for c in &host.connected {
            if host.inner_bridges.contains(&c.interface) {
                local.entry(c.network).or_default().insert(c.interface.clone());
            }
        }
        local
    }

    /// Whether the plan has an address or a route of this family.
    pub(super) fn has_family(&self, v6: bool) -> bool {
        self.addresses.keys().any(|a| a.is_ipv6() == v6) || self.routes.keys().any(|p| p.addr().is_ipv6() == v6)
    }

    /// The confining routes: fallbacks in the own table, the source table, and the exit table if `exit`.
    fn confining_routes(&self, local: &BTreeMap<IpNet, BTreeSet<String>>, exit: bool) -> BTreeMap<RouteKey, Route> {
        let mut all = BTreeMap::new();
        let to_device = |r: &Route| matches!(r, Route::Device(..));
        for (prefix, _) in self.routes.iter().filter(|(p, r)| p.prefix_len() > 0 && to_device(r)) {
            all.insert(key(Table::Own, *prefix, true), Route::Unreachable);
        }
        // The rules look up the agent's own table before these tables. So a default route into the device suffices in
        // these tables, and the routes of the own table are not repeated.
        let tables = [Some(Table::Source), exit.then_some(Table::Exit)];
        for table in tables.into_iter().flatten() {
            for default in [default_of(false), default_of(true)] {
                if self.has_family(default.addr().is_ipv6()) {
                    confine_to_device(&mut all, table, NicIndex::FIRST, default);
                }
            }
            all.extend(local.keys().map(|p| (key(table, *p, false), Route::Throw)));
            for front_end in &self.front_ends {
                confine_to_device(&mut all, table, NicIndex::FIRST, *front_end);
            }
        }
        if exit {
            self.open_exit(&mut all);
        }
        let several = if self.devices > 1 { self.devices } else { 0 };
        for nic in (0..several).map(NicIndex) {
            let table = Table::Nic(nic);
            let prefixes = self.table_routes.keys().filter(|key| key.table == table);
            all.extend(prefixes.map(|k| (key(table, k.prefix, true), Route::Unreachable)));
            for (address, _) in self.addresses.iter().filter(|(_, of)| **of == nic) {
                confine_to_device(&mut all, table, nic, default_of(address.is_ipv6()));
            }
            // A served subnet is reached by the host's own interface, also if the overlay has a route to its prefix.
            let is_served = |p: &IpNet| self.served.iter().any(|s| s.trunc() == *p);
            let local = local
                .keys()
                .filter(|p| is_served(p) || !self.table_routes.contains_key(&key(table, **p, false)));
            all.extend(local.map(|p| (key(table, *p, false), Route::Throw)));
            for front_end in &self.front_ends {
                confine_to_device(&mut all, table, nic, *front_end);
            }
        }
        all
    }

    /// Adds `throw` routes to the exit table, so that the host's own tables route packets to public destinations.
    fn open_exit(&self, all: &mut BTreeMap<RouteKey, Route>) {
        if self.has_family(false) {
            for block in private_blocks() {
                confine_to_device(all, Table::Exit, NicIndex::FIRST, block);
            }
            let default = IpNet::V4(Ipv4Net::default());
            all.insert(key(Table::Exit, default, false), Route::Throw);
            all.remove(&key(Table::Exit, default, true));
        }
        if self.has_family(true)
            && let Ok(public) = PUBLIC_V6.parse()
        {
            all.insert(key(Table::Exit, public, false), Route::Throw);
        }
    }

    /// Adds rules for packets that the kernel forwards: packets from the TUN device, and packets of machines in served
    /// subnets. A served subnet may contain the host's own address, so the host's own packets skip the rules that match
    /// by source.
    fn forwarding_rules(&mut self, forwards: bool, lookup: Lookup, ids: KernelIds) {
        for v6 in [false, true] {
            if !forwards || !self.has_family(v6) {
                continue;
            }
            let rule = |priority, source, ingress, lookup| Rule {
                priority,
                v6,
                source,
                ingress,
                lookup,
            };
            let from_device = Band::Confined as u32 + ids.offset;
            for nic in (0..self.devices).map(NicIndex) {
                self.rules
                    .insert(rule(from_device, None, Some(Ingress::Tun(nic)), lookup));
            }
            let [skip, skipped, to] = served_priorities(ids.offset);
            let served = self.served.iter().filter(|s| s.addr().is_ipv6() == v6);
            let served: Vec<_> = served.map(|s| rule(skipped, Some(s.trunc()), None, lookup)).collect();
            if !served.is_empty() {
                self.rules.insert(rule(to, None, Some(Ingress::Local), Lookup::Nop));
                self.rules
                    .insert(rule(skip, None, Some(Ingress::Local), Lookup::Goto(to)));
                self.rules.extend(served);
            }
        }
    }

    /// The packet filter of the plan. None: the agent needs no filter, because it has no overlay address and no served
    /// subnet.
    fn packet_filter(
        &self,
        local: BTreeMap<IpNet, BTreeSet<String>>,
        forwards: bool,
        ids: KernelIds,
    ) -> Option<Filter> {
        let own: BTreeSet<IpAddr> = self.addresses.keys().copied().collect();
        if own.is_empty() && self.served.is_empty() {
            return None;
        }
        let mut forwarded = BTreeSet::new();
        if forwards {
            forwarded.extend(private_blocks());
            forwarded.extend("fc00::/7".parse::<IpNet>().ok());
            forwarded.extend(&self.spaces);
        }
        Some(Filter {
            fwmark: ids.fwmark,
            own,
            served: self.served.iter().map(IpNet::trunc).collect(),
            forwarded: IpNet::aggregate(&forwarded.into_iter().collect()),
            local,
            line: self.line.is_some(),
        })
    }
}

/// The prefixes of [`PRIVATE_V4`].
fn private_blocks() -> impl Iterator<Item = IpNet> {
    PRIVATE_V4.iter().filter_map(|b| b.parse().ok())
}

/// The prefix that contains all addresses of a family.
fn default_of(v6: bool) -> IpNet {
    match v6 {
        false => IpNet::V4(Ipv4Net::default()),
        true => IpNet::V6(Ipv6Net::default()),
    }
}

/// Adds a route into the device with an unreachable fallback. If the table already has a route to the prefix, such as
/// the `throw` route of a served subnet, that route stays, and only the fallback is added.
fn confine_to_device(all: &mut BTreeMap<RouteKey, Route>, table: Table, nic: NicIndex, prefix: IpNet) {
    all.entry(key(table, prefix, false)).or_insert(Route::Device(nic, None));
    all.insert(key(table, prefix, true), Route::Unreachable);
}

fn key(table: Table, prefix: IpNet, fallback: bool) -> RouteKey {
    RouteKey {
        table,
        prefix,
        fallback,
    }
}

#[cfg(test)]
mod tests;
