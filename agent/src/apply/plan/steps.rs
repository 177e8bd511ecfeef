//! The single changes of the kernel's state ([`Step`]), and the computation of the changes that lead from one plan to
//! another. The module is pure.

use super::confine::RouteKey;
use super::{KernelPlan, Route, Rule};
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_engine::tables::NicIndex;

impl KernelPlan {
    /// How the kernel must treat packets that arrive from the device and are not for this host. A kernel that must
    /// forward always forwards IPv4. It forwards IPv6 too if the plan has an IPv6 address or a served IPv6 subnet.
    fn forwarding(&self) -> Forwarding {
        let served = self.served.iter().map(IpNet::addr);
        let v6 = self.addresses.keys().copied().chain(served).any(|a| a.is_ipv6());
        match self.forwarding {
            true => Forwarding::On { v6 },
            false => Forwarding::HostDefault,
        }
    }

    /// The steps from this plan to `to`: first all additions and changes, second all removals. Each list must be
    /// executed in its order. State that both plans have stays in force throughout. The exception is a route whose type
    /// changes: the old route is deleted just before the new one is set. No step loads the packet filter, or removes an
    /// earlier address from the line.
    #[must_use]
    pub fn steps(&self, to: &Self) -> (Vec<Step>, Vec<Step>) {
        let (mut additions, mut removals) = (Vec::new(), Vec::new());
        // The empty plan has MTU 0. A rollback to that plan leaves the devices' MTU as it is, because no device can
        // have MTU 0.
        let added = |nic: &NicIndex| nic.0 >= self.devices;
        let devices = || (0..to.devices).map(NicIndex);
        if to.mtu != 0 {
            let changed = devices().filter(|nic| self.mtu != to.mtu || added(nic));
            additions.extend(changed.map(|nic| Step::Mtu(nic, to.mtu)));
        }
        // The routes of the other tables and rules are set before the first overlay address, and removed after the last
        // one. So no packet has an overlay source while nothing confines it.
        for (key, route) in &to.table_routes {
            match self.table_routes.get(key) {
                Some(old) if old == route => {}
                Some(old) if !old.is_replaced_by(route) => {
                    additions.push(Step::DeleteTableRoute(*key, *old));
                    additions.push(Step::SetTableRoute(*key, *route));
                }
                _ => additions.push(Step::SetTableRoute(*key, *route)),
            }
        }
        additions.extend(to.rules.difference(&self.rules).map(|r| Step::AddRule(*r)));
        let forwards_anew = self.forwarding() != to.forwarding();
        let changed = devices().filter(|nic| forwards_anew || added(nic));
        additions.extend(changed.map(|nic| Step::Forwarding(nic, to.forwarding())));
        if self.line != to.line {
            additions.extend(to.line.map(Step::Line));
        }
        let moved = |(address, nic): &(&IpAddr, &NicIndex)| self.addresses.get(address) != Some(nic);
        additions.extend(
            to.addresses
                .iter()
                .filter(moved)
                .map(|(a, nic)| Step::AddAddress(*a, *nic)),
        );
        for (prefix, route) in &to.routes {
            match self.routes.get(prefix) {
                Some(old) if old == route => {}
                Some(old) if !old.is_replaced_by(route) => {
                    additions.push(Step::DeleteRoute(*prefix, *old));
                    additions.push(Step::SetRoute(*prefix, *route));
                }
                _ => additions.push(Step::SetRoute(*prefix, *route)),
            }
        }
        let gone = self.routes.iter().filter(|(p, _)| !to.routes.contains_key(*p));
        removals.extend(gone.map(|(p, r)| Step::DeleteRoute(*p, *r)));
        let moved = |(address, nic): &(&IpAddr, &NicIndex)| to.addresses.get(address) != Some(nic);
        let gone = self.addresses.iter().filter(moved);
        removals.extend(gone.map(|(a, nic)| Step::DeleteAddress(*a, *nic)));
        removals.extend(self.rules.difference(&to.rules).map(|r| Step::DeleteRule(*r)));
        let gone = self
            .table_routes
            .iter()
            .filter(|(p, _)| !to.table_routes.contains_key(*p));
        removals.extend(gone.map(|(p, r)| Step::DeleteTableRoute(*p, *r)));
        (additions, removals)
    }

    /// Updates this plan by a step that the kernel has carried out, so that the plan describes the kernel's state
    /// again. The fields that no step sets stay as they are: `served`, `front_ends`, `filter`, `spaces` and
    /// `refused_defaults`.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::Mtu(nic, m) => {
                self.mtu = *m;
                self.devices = self.devices.max(nic.0 + 1);
            }
            Step::Forwarding(_, forwarding) => self.forwarding = *forwarding != Forwarding::HostDefault,
            Step::Line(address) => self.line = Some(*address),
            Step::AddAddress(a, nic) => drop(self.addresses.insert(*a, *nic)),
            Step::DeleteAddress(a, nic) => {
                // The address may be on the device of another NIC already.
                if self.addresses.get(a) == Some(nic) {
                    self.addresses.remove(a);
                }
            }
            Step::SetRoute(p, r) => drop(self.routes.insert(*p, *r)),
            Step::DeleteRoute(p, _) => drop(self.routes.remove(p)),
            Step::SetTableRoute(p, r) => drop(self.table_routes.insert(*p, *r)),
            Step::DeleteTableRoute(p, _) => drop(self.table_routes.remove(p)),
            Step::AddRule(r) => drop(self.rules.insert(*r)),
            Step::DeleteRule(r) => drop(self.rules.remove(r)),
        }
    }
}

/// How the kernel treats packets that arrive from the TUN device and are not for this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// The kernel forwards these packets if the host's sysctls for new devices say so.
    HostDefault,
    /// The kernel forwards IPv4 packets, and IPv6 packets if `v6` is set.
    On {
        /// Whether IPv6 must be forwarded.
        v6: bool,
    },
}

/// One change of the kernel's state. [`Netlink::execute`](crate::netlink::Netlink::execute) carries it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sets the MTU of the TUN device of a NIC, in bytes.
    Mtu(NicIndex, u16),
    /// Sets the sysctls for forwarding packets that arrive from the device of a NIC.
    Forwarding(NicIndex, Forwarding),
    /// Sets the agent's address on the line to the customer edge, and lets the kernel forward packets that arrive by
    /// the line.
    Line(IpNet),
    /// Adds an address to the device of a NIC.
    AddAddress(IpAddr, NicIndex),
    /// Removes an address from the device of a NIC.
    DeleteAddress(IpAddr, NicIndex),
    /// Adds a route to the agent's own table, or replaces the route of the same prefix and type. A default route goes
    /// into the default table.
    SetRoute(IpNet, Route),
    /// Removes a route from the agent's own table. A default route is removed from the default table.
    DeleteRoute(IpNet, Route),
    /// Adds a route to another table, or a fallback, or replaces the route of the same key and type.
    SetTableRoute(RouteKey, Route),
    /// Removes a route from another table, or a fallback.
    DeleteTableRoute(RouteKey, Route),
    /// Adds a policy rule.
    AddRule(Rule),
    /// Removes a policy rule.
    DeleteRule(Rule),
}
