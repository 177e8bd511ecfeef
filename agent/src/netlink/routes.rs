//! Requests for the agent's routes, and netlink messages for its policy rules.

use super::{Netlink, PROTOCOL, Tun, device, family, tolerate_absent};
use crate::apply::plan::confine::{FALLBACK_METRIC, RouteKey, Table};
use crate::apply::plan::{Ingress, Lookup, Route, Rule};
use anyhow::Result;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::RouteMessageBuilder;
use std::net::IpAddr;

impl Netlink {
    /// Adds a route, or replaces the route with the same table, destination and metric (NLM_F_REPLACE). For IPv6 the
    /// kernel replaces only a route of the same type. [`steps`](crate::apply::plan::KernelPlan::steps) therefore
    /// deletes the old route first if its type differs.
    pub(super) async fn set_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        self.handle.route().add(route).replace().execute().await
    }

    /// Deletes a route. A route that does not exist is no error.
    pub(super) async fn delete_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        tolerate_absent(self.handle.route().del(route).execute().await)
    }

    /// The message for a route of the agent's own table, or of its default table if `prefix` has length 0. Fails only
    /// if the route leads over the line and the interface to the customer edge does not exist.
    pub(super) fn route(&self, prefix: IpNet, route: Route, devices: &[Tun]) -> Result<RouteMessage> {
        let table = if prefix.prefix_len() == 0 {
            self.ids.default_table
        } else {
            self.ids.table
        };
        self.route_in(table, prefix, route, devices)
    }

    /// The message for a route of another table, or for a fallback. With `key.fallback` it has the metric of fallbacks.
    pub(super) fn table_route(&self, key: RouteKey, route: Route, devices: &[Tun]) -> Result<RouteMessage> {
        let mut message = self.route_in(self.table_number(key.table), key.prefix, route, devices)?;
        if key.fallback {
            message.attributes.push(RouteAttribute::Priority(FALLBACK_METRIC));
        }
        Ok(message)
    }

    const fn table_number(&self, table: Table) -> u32 {
        match table {
            Table::Own => self.ids.table,
            Table::Nic(nic) => self.ids.nic_table(nic),
            Table::Source => self.ids.source_table(),
            Table::Exit => self.ids.exit_table(),
        }
    }

    fn route_in(&self, table: u32, prefix: IpNet, route: Route, devices: &[Tun]) -> Result<RouteMessage> {
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .table_id(table)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build();
        message.header.address_family = family(prefix.addr().is_ipv6());
        message.header.destination_prefix_length = prefix.prefix_len();
        if prefix.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(address(prefix.network())));
        }
        match route {
            Route::Device(nic, source) => {
                // The TUN device has no link-layer neighbours. So the route needs no gateway, and its scope is `link`.
                message.header.scope = RouteScope::Link;
                message
                    .attributes
                    .push(RouteAttribute::Oif(device(devices, nic)?.index));
                if let Some(source) = source {
                    message.attributes.push(RouteAttribute::PrefSource(address(source)));
                }
            }
            Route::Throw => message.header.kind = RouteType::Throw,
            Route::Unreachable => message.header.kind = RouteType::Unreachable,
            Route::Line(next) => {
                message.attributes.push(RouteAttribute::Oif(self.customer()?.1));
                message.attributes.push(RouteAttribute::Gateway(address(next)));
            }
        }
        Ok(message)
    }

    /// The message that adds or deletes a policy rule. Fails only if the rule has an ingress that is missing: a device,
    /// or the interface to the customer edge.
    pub(super) fn rule(&self, devices: &[Tun], rule: Rule) -> Result<RuleMessage> {
        let mut message = RuleMessage::default();
        message.header.family = family(rule.v6);
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::Priority(rule.priority));
        message
            .attributes
            .push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        // The flag `Invert` ("not") inverts the whole selector, so a rule cannot combine "not fwmark" with a source or
        // a device. Such a rule does not need "not fwmark": the links' marked datagrams have no overlay source, and
        // come from the host itself.
        if rule.ingress.is_some() || rule.source.is_some() {
            message.header.flags = RuleFlags::empty();
        } else {
            message.attributes.push(RuleAttribute::FwMark(self.ids.fwmark));
        }
        if let Some(ingress) = rule.ingress {
            let name = match ingress {
                Ingress::Tun(nic) => &device(devices, nic)?.name,
                Ingress::Line => self.customer()?.0,
                // The kernel routes packets of the host itself with the loopback device as input interface.
                Ingress::Local => "lo",
            };
            message.attributes.push(RuleAttribute::Iifname(name.to_owned()));
        }
        if let Some(source) = rule.source {
            message.header.src_len = source.prefix_len();
            message.attributes.push(RuleAttribute::Source(source.network()));
        }
        match rule.lookup {
            Lookup::Own => message.attributes.push(RuleAttribute::Table(self.ids.table)),
            Lookup::Nic(nic) => message.attributes.push(RuleAttribute::Table(self.ids.nic_table(nic))),
            Lookup::Source => message.attributes.push(RuleAttribute::Table(self.ids.source_table())),
            Lookup::Exit => message.attributes.push(RuleAttribute::Table(self.ids.exit_table())),
            Lookup::Goto(priority) => {
                message.header.action = RuleAction::Goto;
                message.attributes.push(RuleAttribute::Goto(priority));
            }
            Lookup::Default => message.attributes.push(RuleAttribute::Table(self.ids.default_table)),
            Lookup::Nop => message.header.action = RuleAction::Nop,
            Lookup::MainButDefault => {
                message.header.table = RouteHeader::RT_TABLE_MAIN;
                // With this attribute the lookup in the main table ignores a route with prefix length 0, and the kernel
                // continues with the next rule.
                message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
            }
            Lookup::Blackhole => message.header.action = RuleAction::Blackhole,
        }
        Ok(message)
    }
}

fn address(a: IpAddr) -> RouteAddress {
    match a {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}
