//! Finds the agent's rules and routes in the kernel by their IDs, and removes them.

use super::{Netlink, PROTOCOL, Tun, family, tolerate_absent};
use crate::apply::plan::confine::FALLBACK_METRIC;
use crate::apply::plan::{KernelIds, KernelPlan, is_without_table};
use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::IpVersion;
use std::collections::BTreeSet;

impl Netlink {
    /// Removes the agent's rules and routes that `plan` does not have. Such objects come from earlier runs. `devices`
    /// are the agent's TUN devices, in the order of NICs. Returns how many were removed. Routes of other programs in
    /// the agent's tables stay. Needs CAP_NET_ADMIN. The caller must have claimed the tables, so that no other agent
    /// uses them.
    ///
    /// # Errors
    /// A request fails, or `plan` needs an interface to a customer edge and there is none. Some objects may have been
    /// removed before.
    pub async fn sweep_except(&self, devices: &[Tun], plan: &KernelPlan) -> Result<usize> {
        let rules = plan.rules.iter().map(|r| Ok(rule_key(&self.rule(devices, *r)?)));
        let rules: BTreeSet<String> = rules.collect::<Result<_>>()?;
        let routes = plan.routes.iter().map(|(p, r)| self.route(*p, *r, devices));
        let others = plan.table_routes.iter().map(|(p, r)| self.table_route(*p, *r, devices));
        let routes = routes.chain(others).map(|r| Ok(route_key(&r?)));
        let routes: BTreeSet<String> = routes.collect::<Result<_>>()?;
        self.sweep_where(|r| !rules.contains(&rule_key(r)), |r| !routes.contains(&route_key(r)))
            .await
    }

    /// Removes all rules and routes with the agent's IDs, whichever run has set them. Returns how many were removed; 0
    /// at a second call. Routes of other programs in the agent's tables stay. Needs CAP_NET_ADMIN. The caller must have
    /// claimed the tables, so that no other agent uses them.
    ///
    /// # Errors
    /// A request fails. Some objects may have been removed before.
    pub async fn sweep(&self) -> Result<usize> {
        self.sweep_where(|_| true, |_| true).await
    }

    /// Removes those rules and routes of the agent for which the predicates return true. Returns how many were removed.
    async fn sweep_where(
        &self,
        remove_rule: impl Fn(&RuleMessage) -> bool,
        remove_route: impl Fn(&RouteMessage) -> bool,
    ) -> Result<usize> {
        let mut count = 0;
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<_> = self
                .handle
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await
                .context("listing rules")?;
            for rule in rules.into_iter().filter(|r| self.owns_rule(r) && remove_rule(r)) {
                tolerate_absent(self.handle.rule().del(rule).execute().await).context("deleting a rule")?;
                count += 1;
            }
        }
        for v6 in [false, true] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family(v6);
            let routes: Vec<_> = self
                .handle
                .route()
                .get(filter)
                .execute()
                .try_collect()
                .await
                .context("listing routes")?;
            for route in routes.into_iter().filter(|r| self.owns_route(r) && remove_route(r)) {
                tolerate_absent(self.handle.route().del(route).execute().await).context("deleting a route")?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn owns_rule(&self, rule: &RuleMessage) -> bool {
        owns_rule(rule, &self.ids)
    }

    /// Whether a route is the agent's, by its table and protocol number. Routes that other programs put into the table
    /// stay.
    fn owns_route(&self, route: &RouteMessage) -> bool {
        if u8::from(route.header.protocol) != PROTOCOL {
            return false;
        }
        self.ids.tables().contains(&table_of(route))
    }
}

/// Whether a rule belongs to the agent with these IDs. Such a rule has the protocol number. It either names a table of the
/// agent; or it names the main table or none, and has a priority that the agent uses for such rules. The priority alone
/// would not do: the rule for the default table of another agent on the host may have the same one.
fn owns_rule(rule: &RuleMessage, ids: &KernelIds) -> bool {
    /// The kernel's numbers of the main table, and of a rule that names no table.
    const MAIN_OR_NONE: [u32; 2] = [254, 0];
    let (mut table, mut priority, mut ours) = (u32::from(rule.header.table), 0, false);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Priority(p) => priority = *p,
            RuleAttribute::Protocol(p) => ours = u8::from(*p) == PROTOCOL,
            _ => {}
        }
    }
    let is_without_table = MAIN_OR_NONE.contains(&table) && is_without_table(priority, ids.offset);
    ours && (ids.tables().contains(&table) || is_without_table)
}

/// The table of a route. A number above 255 does not fit into the header, and is in an attribute.
fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(t) => Some(*t),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// A key that distinguishes the agent's routes: table, destination, type, output device, and the metric of a fallback.
/// Other attributes must not count, because the kernel fills some in, such as the default metric of IPv6.
fn route_key(route: &RouteMessage) -> String {
    let (mut destination, mut metric, mut device) = (None, 0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(d) => destination = Some(d.clone()),
            RouteAttribute::Priority(m) if *m == FALLBACK_METRIC => metric = *m,
            RouteAttribute::Oif(index) if route.header.kind == RouteType::Unicast => device = Some(*index),
            _ => {}
        }
    }
    let header = &route.header;
    format!(
        "{:?} {} {destination:?}/{} {:?} {metric} {device:?}",
        header.address_family,
        table_of(route),
        header.destination_prefix_length,
        header.kind
    )
}

/// A key that distinguishes the agent's rules. The key consists of the attributes that [`Netlink::rule`] sets. Other
/// attributes do not count, because the kernel adds them.
fn rule_key(rule: &RuleMessage) -> String {
    let (mut mark, mut table) = (None, u32::from(rule.header.table));
    let mut rest = BTreeSet::new();
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(m) => mark = Some(*m),
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Priority(_)
            | RuleAttribute::Source(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::Goto(_) => {
                rest.insert(format!("{attribute:?}"));
            }
            _ => {}
        }
    }
    let header = &rule.header;
    let inverted = header.flags.contains(RuleFlags::Invert);
    format!(
        "{:?} {:?} {inverted} {mark:?} {table} /{} {rest:?}",
        header.family, header.action, header.src_len
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(table: u32, priority: u32) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.attributes = vec![
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(PROTOCOL.into()),
        ];
        rule
    }

    #[test]
    fn a_rule_of_another_agent_with_the_same_priority_is_not_the_agents() {
        let ids = |offset| KernelIds {
            offset,
            ..KernelIds::of(&format!("device-{offset}"), None, 1)
        };
        let (here, there) = (ids(50), ids(300));
        // The priority of the first agent's rule without a table, and of the second agent's rule for its default table.
        let shared = 32_300;
        assert!(is_without_table(shared, here.offset));
        assert!(owns_rule(&rule(0, shared), &here));
        assert!(owns_rule(&rule(there.default_table, shared), &there));
        assert!(!owns_rule(&rule(there.default_table, shared), &here));
        assert!(owns_rule(&rule(here.table, 1), &here), "a table of its own is enough");
        let mut foreign = rule(here.table, shared);
        foreign.attributes.pop();
        assert!(
            !owns_rule(&foreign, &here),
            "without the protocol number it is another program's"
        );
    }
}
