//! The single changes of the kernel's state ([`Step`]), and the computation of the changes that lead from one plan to
//! another. The module is pure.

use super::confine::RouteKey;
use super::{KernelPlan, Route, Rule};
use ipnet::IpNet;
use std::net::IpAddr;

impl KernelPlan {
    /// How the kernel must treat packets that arrive from the device and are not for this host. A kernel that must
    /// forward always forwards IPv4. It forwards IPv6 too if the plan has an IPv6 address or a served IPv6 subnet.
    fn forwarding(&self) -> Forwarding {
        let served = self.served.iter().map(IpNet::addr);
        let v6 = self.addresses.iter().copied().chain(served).any(|a| a.is_ipv6());
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
        // The empty plan has MTU 0. A rollback to that plan leaves the device's MTU as it is, because no device can
        // have MTU 0.
        if self.mtu != to.mtu && to.mtu != 0 {
            additions.push(Step::Mtu(to.mtu));
        }
        // Confining routes and rules are set before the first overlay address, and removed after the last one. So no
        // packet has an overlay source while nothing confines it.
        for (key, route) in &to.confining {
            match self.confining.get(key) {
                Some(old) if old == route => {}
                Some(old) if !old.is_replaced_by(route) => {
                    additions.push(Step::DeleteConfining(*key, *old));
                    additions.push(Step::SetConfining(*key, *route));
                }
                _ => additions.push(Step::SetConfining(*key, *route)),
            }
        }
        additions.extend(to.rules.difference(&self.rules).map(|r| Step::AddRule(*r)));
        if self.forwarding() != to.forwarding() || self.mtu == 0 {
            additions.push(Step::Forwarding(to.forwarding()));
        }
        if self.line != to.line {
            additions.extend(to.line.map(Step::Line));
        }
        additions.extend(to.addresses.difference(&self.addresses).map(|a| Step::AddAddress(*a)));
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
        removals.extend(
            self.addresses
                .difference(&to.addresses)
                .map(|a| Step::DeleteAddress(*a)),
        );
        removals.extend(self.rules.difference(&to.rules).map(|r| Step::DeleteRule(*r)));
        let gone = self.confining.iter().filter(|(p, _)| !to.confining.contains_key(*p));
        removals.extend(gone.map(|(p, r)| Step::DeleteConfining(*p, *r)));
        (additions, removals)
    }

    /// Updates this plan by a step that the kernel has carried out, so that the plan describes the kernel's state
    /// again. The fields that no step sets stay as they are: `served`, `filter`, `spaces` and `refused_defaults`.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::Mtu(m) => self.mtu = *m,
            Step::Forwarding(forwarding) => self.forwarding = *forwarding != Forwarding::HostDefault,
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
    /// Sets the MTU of the TUN device, in bytes.
    Mtu(u16),
    /// Sets the sysctls for forwarding packets that arrive from the device.
    Forwarding(Forwarding),
    /// Sets the agent's address on the line to the customer edge, and lets the kernel forward packets that arrive by
    /// the line.
    Line(IpNet),
    /// Adds an address to the device.
    AddAddress(IpAddr),
    /// Removes an address from the device.
    DeleteAddress(IpAddr),
    /// Adds a route to the agent's own table, or replaces the route of the same prefix and type. A default route goes
    /// into the default table.
    SetRoute(IpNet, Route),
    /// Removes a route from the agent's own table. A default route is removed from the default table.
    DeleteRoute(IpNet, Route),
    /// Adds a route that confines packets, or replaces the route of the same key and type.
    SetConfining(RouteKey, Route),
    /// Removes a route that confines packets.
    DeleteConfining(RouteKey, Route),
    /// Adds a policy rule.
    AddRule(Rule),
    /// Removes a policy rule.
    DeleteRule(Rule),
}
