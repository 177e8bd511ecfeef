//! What keeps packets with overlay addresses off the host's other networks, as data (D22). Pure.
//!
//! ```text
//! the agent's table      a fallback for each prefix that leads into the device
//! the source table       default → device; served and local networks → the host's own tables
//! the exit table         as the source table, but public destinations → the host's own tables
//! the packet filter      after source translation: what carries an overlay source leaves by the device or not at all
//! ```
//!
//! A fallback is an `unreachable` route with a worse metric. It names no device, so it stays when the agent ends, however it
//! ends, and the routes into the device vanish with the device.

use super::{Band, Connected, KernelPlan, Lookup, Numbers, Port, Route, Rule, served_priorities};
use crate::filter::Filter;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Metric of a fallback: worse than what people and routing daemons use, better than "never" (2^32 - 1).
pub const FALLBACK_METRIC: u32 = 2_000_000_000;

/// Private address blocks (RFC 1918, 6598, 3927, 2544): an Internet exit lets nothing out to them. Of IPv6 it lets out
/// [`PUBLIC_V6`] alone.
const PRIVATE_V4: [&str; 6] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
];

/// Global unicast addresses (RFC 4291).
const PUBLIC_V6: &str = "2000::/3";

/// One of the agent's routing tables that confine packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The agent's table; only fallbacks are placed there from here.
    Own,
    /// For packets that have an overlay source, or that the kernel forwards out of the device, and that find no route in the table
    /// of any agent of the host.
    Source,
    /// For forwarded packets where the host is an Internet exit.
    Exit,
}

/// Where a confining route stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The table.
    pub table: Table,
    /// The destination.
    pub prefix: IpNet,
    /// Whether it has the metric of a fallback.
    pub fallback: bool,
}

/// What an agent knows of its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The networks that the host is connected to.
    pub connected: Vec<Connected>,
    /// Bridges that lead to containers and guests of this host alone: all their ports are virtual.
    pub inner_bridges: BTreeSet<String>,
}

impl KernelPlan {
    /// Adds what keeps packets with overlay addresses from leaving the host in clear text: fallback routes, the source table,
    /// rules for forwarded packets and the packet filter. With `internet_exit`, forwarded packets may leave to public
    /// destinations by the host's own routes; a source that is still an overlay address then is dropped.
    #[must_use]
    pub fn confine(mut self, host: &Surroundings, numbers: Numbers, internet_exit: bool) -> Self {
        let local = self.local_networks(host);
        // At an edge, rules of its own end what arrives from the device or the line and has no route (T8).
        let forwards = self.forwarding && self.line.is_none();
        let exit = forwards && internet_exit;
        self.confining = self.confining_routes(&local, exit);
        self.forwarding_rules(forwards, if exit { Lookup::Exit } else { Lookup::Source }, numbers);
        self.filter = self.packet_filter(local, forwards, numbers);
        self
    }

    /// The networks that packets with overlay addresses may enter besides the device, with the interfaces that lead there:
    /// served subnets, and bridges inside the host.
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
        self.addresses.iter().any(|a| a.is_ipv6() == v6) || self.routes.keys().any(|p| p.addr().is_ipv6() == v6)
    }

    fn confining_routes(&self, local: &BTreeMap<IpNet, BTreeSet<String>>, exit: bool) -> BTreeMap<Place, Route> {
        let mut all = BTreeMap::new();
        let to_device = |r: &Route| matches!(r, Route::Device(_));
        for (prefix, _) in self.routes.iter().filter(|(p, r)| p.prefix_len() > 0 && to_device(r)) {
            all.insert(place(Table::Own, *prefix, true), Route::Unreachable);
        }
        // Routes into the device are found in the agent's table, which comes first.
        let tables = [Some(Table::Source), exit.then_some(Table::Exit)];
        for table in tables.into_iter().flatten() {
            for default in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
                if self.has_family(default.addr().is_ipv6()) {
                    confine_to_device(&mut all, table, default);
                }
            }
            all.extend(local.keys().map(|p| (place(table, *p, false), Route::Throw)));
        }
        if exit {
            self.open_exit(&mut all);
        }
        all
    }

    /// Lets public destinations go from the exit table to the host's own tables.
    fn open_exit(&self, all: &mut BTreeMap<Place, Route>) {
        if self.has_family(false) {
            for block in private_blocks() {
                confine_to_device(all, Table::Exit, block);
            }
            let default = IpNet::V4(Ipv4Net::default());
            all.insert(place(Table::Exit, default, false), Route::Throw);
            all.remove(&place(Table::Exit, default, true));
        }
        if self.has_family(true)
            && let Ok(public) = PUBLIC_V6.parse()
        {
            all.insert(place(Table::Exit, public, false), Route::Throw);
        }
    }

    /// Rules for packets that the kernel forwards: out of the device, and from the machines of served subnets. Packets of the
    /// host itself never meet the latter, whatever their source: a served subnet may contain the host's own address.
    fn forwarding_rules(&mut self, forwards: bool, lookup: Lookup, numbers: Numbers) {
        for v6 in [false, true] {
            if !forwards || !self.has_family(v6) {
                continue;
            }
            let rule = |priority, source, port, lookup| Rule {
                priority,
                v6,
                source,
                port,
                lookup,
            };
            let from_device = Band::Confined as u32 + numbers.offset;
            self.rules.insert(rule(from_device, None, Some(Port::Tun), lookup));
            let [skip, skipped, to] = served_priorities(numbers.offset);
            let served = self.served.iter().filter(|s| s.addr().is_ipv6() == v6);
            let served: Vec<_> = served.map(|s| rule(skipped, Some(s.trunc()), None, lookup)).collect();
            if !served.is_empty() {
                self.rules.insert(rule(to, None, Some(Port::Host), Lookup::Continue));
                self.rules.insert(rule(skip, None, Some(Port::Host), Lookup::Goto(to)));
                self.rules.extend(served);
            }
        }
    }

    fn packet_filter(
        &self,
        local: BTreeMap<IpNet, BTreeSet<String>>,
        forwards: bool,
        numbers: Numbers,
    ) -> Option<Filter> {
        let own: BTreeSet<IpAddr> = self.addresses.clone();
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
            fwmark: numbers.fwmark,
            own,
            served: self.served.iter().map(IpNet::trunc).collect(),
            forwarded: IpNet::aggregate(&forwarded.into_iter().collect()),
            local,
            line: self.line.is_some(),
        })
    }
}

fn private_blocks() -> impl Iterator<Item = IpNet> {
    PRIVATE_V4.iter().filter_map(|b| b.parse().ok())
}

/// Into the device while there is one, otherwise nowhere. A served subnet that is the same prefix stays with the host.
fn confine_to_device(all: &mut BTreeMap<Place, Route>, table: Table, prefix: IpNet) {
    all.entry(place(table, prefix, false)).or_insert(Route::Device(None));
    all.insert(place(table, prefix, true), Route::Unreachable);
}

fn place(table: Table, prefix: IpNet, fallback: bool) -> Place {
    Place {
        table,
        prefix,
        fallback,
    }
}

#[cfg(test)]
mod tests;
