//! The single changes of the kernel's state, and those that lead from one plan to another. Pure.

use super::confine::RouteKey;
use super::{KernelPlan, Route, Rule};
use ipnet::IpNet;
use std::net::IpAddr;

impl KernelPlan {
    /// How the kernel treats packets that arrive from the device and are not for this host.
    fn forwarding(&self) -> Forwarding {
        let served = self.served.iter().map(IpNet::addr);
        let v6 = self.addresses.iter().copied().chain(served).any(|a| a.is_ipv6());
        match self.forwarding {
            true => Forwarding::On { v6 },
            false => Forwarding::HostDefault,
        }
    }

    /// The steps from this plan to `to`: first all additions and changes, then all removals. State that both plans have stays in
    /// force throughout.
    #[must_use]
    pub fn steps(&self, to: &Self) -> (Vec<Step>, Vec<Step>) {
        let (mut additions, mut removals) = (Vec::new(), Vec::new());
        // The empty plan has MTU 0. A rollback to it leaves the device's MTU, since no device can have MTU 0.
        if self.mtu != to.mtu && to.mtu != 0 {
            additions.push(Step::Mtu(to.mtu));
        }
        // Confining routes and rules are set before the first overlay address, and removed after the last one.
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

    /// Updates this plan by a step that was executed.
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

/// How the kernel treats packets that arrive from the device and are not for this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// As the host's sysctls prescribe for new devices.
    HostDefault,
    /// The kernel forwards IPv4, and IPv6 if `v6` is set.
    On {
        /// Whether IPv6 must be forwarded.
        v6: bool,
    },
}

/// One change of the kernel's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sets the device's MTU.
    Mtu(u16),
    /// Sets the sysctls for forwarding packets that arrive from the device.
    Forwarding(Forwarding),
    /// Sets the address of the line to the customer edge, and lets the kernel forward packets that arrive there.
    Line(IpNet),
    /// Adds an address to the device.
    AddAddress(IpAddr),
    /// Removes an address from the device.
    DeleteAddress(IpAddr),
    /// Adds or replaces a route in the agent's own or default table.
    SetRoute(IpNet, Route),
    /// Removes a route from the agent's own or default table.
    DeleteRoute(IpNet, Route),
    /// Adds or replaces a route that confines packets.
    SetConfining(RouteKey, Route),
    /// Removes a route that confines packets.
    DeleteConfining(RouteKey, Route),
    /// Adds a policy rule.
    AddRule(Rule),
    /// Removes a policy rule.
    DeleteRule(Rule),
}
