//! Finds the agent's rules and routes in the kernel by their IDs, and removes them.

use super::{Netlink, PROTOCOL, family, tolerate_absent};
use crate::apply::plan::confine::FALLBACK_METRIC;
use crate::apply::plan::{KernelPlan, is_without_table};
use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::IpVersion;
use std::collections::BTreeSet;

impl Netlink {
    /// Removes the agent's rules and routes that `plan` does not have. Such objects come from earlier runs. `device`
    /// and `index` name the agent's TUN device. Returns how many were removed. Routes of other programs in the agent's
    /// tables stay. Needs CAP_NET_ADMIN. The caller must have claimed the tables, so that no other agent uses them.
    ///
    /// # Errors
    /// A request fails, or `plan` needs an interface to a customer edge and there is none. Some objects may have been
    /// removed before.
    pub async fn sweep_except(&self, device: &str, index: u32, plan: &KernelPlan) -> Result<usize> {
        let rules = plan.rules.iter().map(|r| Ok(rule_key(&self.rule(device, *r)?)));
        let rules: BTreeSet<String> = rules.collect::<Result<_>>()?;
        let routes = plan.routes.iter().map(|(p, r)| self.route(*p, *r, index));
        let confining = plan.confining.iter().map(|(p, r)| self.confining(*p, *r, index));
        let routes = routes.chain(confining).map(|r| Ok(route_key(&r?)));
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

    /// Whether a rule is the agent's. Such a rule has the protocol number, and either names a table of the agent or has
    /// a priority that the agent uses for rules without a table.
    fn owns_rule(&self, rule: &RuleMessage) -> bool {
        let has_protocol = |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
        let has_id = |a: &RuleAttribute| match a {
            RuleAttribute::Table(t) => self.ids.tables().contains(t),
            RuleAttribute::Priority(p) => is_without_table(*p, self.ids.offset),
            _ => false,
        };
        rule.attributes.iter().any(has_protocol) && rule.attributes.iter().any(has_id)
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
