//! Netlink requests for the agent's device, routes and policy rules (`rtnetlink(7)`). Changes only the agent's own objects: the
//! device by its index, routes and rules by their table and protocol numbers.

use crate::apply::plan::confine::{FALLBACK_METRIC, RouteKey, Surroundings, Table};
use crate::apply::plan::{
    Connected, Forwarding, Ingress, KernelIds, KernelPlan, Lookup, Route, Rule, Step, is_without_table,
};
use crate::filter::{DEVICE_GROUP, Filter, table_name};
use crate::switches::Switches;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tokio::task::AbortHandle;

/// Protocol number of the agent's routes and rules (`rtm_protocol` and `FRA_PROTOCOL`). Neither `linux/rtnetlink.h` nor a routing daemon uses it, so it
/// tells the agent's objects from others.
const PROTOCOL: u8 = 116;

/// Length of the device's transmit queue in packets. The kernel drops packets that do not fit, so the queue must hold the window of
/// a TCP stream.
const QUEUE_LENGTH: u32 = 5000;

/// Interface alias of every agent's device. Agents of one host recognise each other's devices by it.
const ALIAS: &str = "tombolo";

/// Wait after the first change of the host's devices and addresses. The start of a container makes half a dozen changes within tens
/// of milliseconds, which are handled together.
const HOST_DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(200);

/// A netlink connection of one agent. Dropping it closes the socket.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    ids: KernelIds,
    /// The name of the interface to the customer edge of a circuit, from `agent.toml`.
    line: Option<String>,
    /// The task that reads and writes the socket.
    driver: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Opens the connection in the network namespace of the calling thread. Must run inside a Tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(ids: KernelIds, line: Option<String>) -> Result<Self> {
        let (connection, handle, _) = new_connection().context("opening a netlink socket")?;
        let driver = tokio::spawn(connection).abort_handle();
        Ok(Self {
            handle,
            ids,
            line,
            driver,
        })
    }

    /// Prepares a new device: sysctls, alias, device group and queue length. To be called before the device is
    /// [up](Self::up): then the kernel would generate an IPv6 link-local address.
    ///
    /// # Errors
    /// A sysctl has a wrong value, the device does not exist, or the request fails.
    pub async fn prepare_device(&self, name: &str, index: u32) -> Result<()> {
        let mut switches = Switches::here();
        switches.prepare(name);
        switches.finish()?;
        let link = LinkUnspec::new_with_index(index)
            .alias(ALIAS)
            .link_group(DEVICE_GROUP)
            .txqueuelen(QUEUE_LENGTH)
            .build();
        self.handle
            .link()
            .set(link)
            .execute()
            .await
            .with_context(|| format!("preparing device {name}"))
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// The request fails.
    pub async fn up(&self, index: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(link)
            .execute()
            .await
            .context("bringing the device up")
    }

    /// Executes one step of a plan. Adding an object that exists, or deleting one that does not, is no error: another program may
    /// have changed it, and the result is as requested.
    ///
    /// # Errors
    /// The kernel refuses the change. Steps of a single netlink request then had no effect.
    pub async fn execute(&self, name: &str, index: u32, step: &Step) -> Result<()> {
        let done = match step {
            Step::Mtu(mtu) => {
                let link = LinkUnspec::new_with_index(index).mtu(u32::from(*mtu)).build();
                self.handle.link().set(link).execute().await
            }
            Step::Forwarding(forwarding) => {
                let mut switches = Switches::here();
                match forwarding {
                    Forwarding::HostDefault => switches.forward_as_host(name),
                    Forwarding::On { v6 } => switches.forward(name, *v6),
                }
                switches.finish()?;
                Ok(())
            }
            Step::Line(address) => {
                self.line_address(*address).await?;
                Ok(())
            }
            Step::AddAddress(address) => {
                if address.is_ipv6() {
                    let mut switches = Switches::here();
                    switches.ipv6(name);
                    switches.finish()?;
                }
                let length = if address.is_ipv4() { 32 } else { 128 };
                let mut request = self.handle.address().add(index, *address, length).replace();
                // Without duplicate address detection (RFC 4862) the address is usable at once. The controller assigns
                // addresses, so there are no duplicates.
                request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
                request.execute().await
            }
            Step::DeleteAddress(address) => {
                let mut message = AddressMessage::default();
                message.header.index = index;
                message.header.family = family(address.is_ipv6());
                message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(AddressAttribute::Local(*address));
                tolerate_absent(self.handle.address().del(message).execute().await)
            }
            Step::SetRoute(prefix, route) => self.set_route(self.route(*prefix, *route, index)?).await,
            Step::DeleteRoute(prefix, route) => self.delete_route(self.route(*prefix, *route, index)?).await,
            Step::SetConfining(place, route) => self.set_route(self.confining(*place, *route, index)?).await,
            Step::DeleteConfining(place, route) => self.delete_route(self.confining(*place, *route, index)?).await,
            Step::AddRule(rule) => {
                // The request has NLM_F_EXCL. Without it the kernel would add an equal rule a second time.
                let mut request = self.handle.rule().add();
                *request.message_mut() = self.rule(name, *rule)?;
                match request.execute().await {
                    Err(e) if is_errno(&e, libc::EEXIST) => Ok(()),
                    other => other,
                }
            }
            Step::DeleteRule(rule) => tolerate_absent(self.handle.rule().del(self.rule(name, *rule)?).execute().await),
        };
        done.with_context(|| format!("kernel: {step:?}"))
    }

    /// The name and the index of the interface to the customer edge.
    ///
    /// # Errors
    /// `agent.toml` names none, or it does not exist.
    fn customer(&self) -> Result<(&str, u32)> {
        let name = self.line.as_deref();
        let name =
            name.context("customer_interface: set it in agent.toml to the interface that faces the customer edge")?;
        let index = if_nametoindex(name).with_context(|| format!("customer_interface: {name}"))?;
        Ok((name, index))
    }

    /// Prepares the line: sysctls for forwarding, device up, and this address. Earlier addresses of the interface stay.
    async fn line_address(&self, address: IpNet) -> Result<()> {
        let (name, index) = self.customer()?;
        let mut switches = Switches::here();
        switches.prepare_line(name);
        switches.finish()?;
        self.up(index).await?;
        let request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let mut request = request.replace();
        // Without duplicate address detection BIRD can use the address at once.
        request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
        request
            .execute()
            .await
            .with_context(|| format!("giving {name} the address {address}"))
    }

    /// The `nft` script that loads a filter into the agent's nftables table.
    #[must_use]
    pub fn filter_script(&self, filter: &Filter) -> String {
        filter.script(&table_name(self.ids.table), self.line.as_deref())
    }

    /// Adds a route, or replaces the one with the same table, destination and metric (NLM_F_REPLACE). IPv6 replaces only a route of
    /// the same type; [`KernelPlan::steps`] deletes the old one first if the type differs.
    async fn set_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        self.handle.route().add(route).replace().execute().await
    }

    async fn delete_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        tolerate_absent(self.handle.route().del(route).execute().await)
    }

    /// A route of the own table, or of the default table if it is a default route.
    fn route(&self, prefix: IpNet, route: Route, index: u32) -> Result<RouteMessage> {
        let table = if prefix.prefix_len() == 0 {
            self.ids.default_table
        } else {
            self.ids.table
        };
        self.route_in(table, prefix, route, index)
    }

    /// A route that confines packets.
    fn confining(&self, key: RouteKey, route: Route, index: u32) -> Result<RouteMessage> {
        let mut message = self.route_in(self.table_number(key.table), key.prefix, route, index)?;
        if key.fallback {
            message.attributes.push(RouteAttribute::Priority(FALLBACK_METRIC));
        }
        Ok(message)
    }

    const fn table_number(&self, table: Table) -> u32 {
        match table {
            Table::Own => self.ids.table,
            Table::Source => self.ids.source_table(),
            Table::Exit => self.ids.exit_table(),
        }
    }

    fn route_in(&self, table: u32, prefix: IpNet, route: Route, index: u32) -> Result<RouteMessage> {
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
            Route::Device(source) => {
                // The TUN device has no neighbours, so the route has no gateway: scope link.
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::Oif(index));
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

    /// The message for a policy rule.
    fn rule(&self, device: &str, rule: Rule) -> Result<RuleMessage> {
        let mut message = RuleMessage::default();
        message.header.family = family(rule.v6);
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::Priority(rule.priority));
        message
            .attributes
            .push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        // The flag `Invert` ("not") inverts the whole selector, so a rule cannot combine "not fwmark" with a source or a device. It
        // need not: the links' marked datagrams have no overlay source, and the host itself sends them.
        if rule.ingress.is_some() || rule.source.is_some() {
            message.header.flags = RuleFlags::empty();
        } else {
            message.attributes.push(RuleAttribute::FwMark(self.ids.fwmark));
        }
        if let Some(ingress) = rule.ingress {
            let name = match ingress {
                Ingress::Tun => device,
                Ingress::Line => self.customer()?.0,
                // The kernel looks up routes of locally generated packets with the loopback device as input interface.
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
            Lookup::Source => message.attributes.push(RuleAttribute::Table(self.ids.source_table())),
            Lookup::Exit => message.attributes.push(RuleAttribute::Table(self.ids.exit_table())),
            Lookup::Goto(priority) => {
                message.header.action = RuleAction::Goto;
                message.attributes.push(RuleAttribute::Goto(priority));
            }
            Lookup::Default => message.attributes.push(RuleAttribute::Table(self.ids.default_table)),
            Lookup::Nop => message.header.action = RuleAction::Nop,
            Lookup::MainButDefault => {
                message.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
                // Ignores a result whose prefix length is 0, so the kernel continues with the next rule.
                message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
            }
            Lookup::Blackhole => message.header.action = RuleAction::Blackhole,
        }
        Ok(message)
    }

    /// The networks of the host's addresses, except loopback devices, link-local addresses and the devices of agents.
    ///
    /// # Errors
    /// A request fails.
    pub async fn connected(&self) -> Result<Vec<Connected>> {
        let mut names = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.context("listing devices")? {
            let alias = link
                .attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfAlias(x) if x == ALIAS));
            let loopback = link
                .header
                .flags
                .contains(netlink_packet_route::link::LinkFlags::Loopback);
            let name = link.attributes.iter().find_map(|a| match a {
                LinkAttribute::IfName(n) => Some(n.clone()),
                _ => None,
            });
            if let (false, false, Some(name)) = (alias, loopback, name) {
                names.insert(link.header.index, name);
            }
        }
        let mut out = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.context("listing addresses")? {
            let Some(name) = names.get(&message.header.index) else {
                continue;
            };
            if message.header.scope == AddressScope::Link {
                continue;
            }
            // On a point-to-point device IFA_ADDRESS is the peer's address, which determines the network. Otherwise it equals
            // IFA_LOCAL (`linux/if_addr.h`).
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(a) => Some(*a),
                _ => None,
            });
            if let Some(network) = address.and_then(|a| IpNet::new(a, message.header.prefix_len).ok()) {
                out.push(Connected {
                    interface: name.clone(),
                    network: network.trunc(),
                });
            }
        }
        Ok(out)
    }

    /// The host's connected networks, and its bridges to containers and guests.
    ///
    /// # Errors
    /// A request fails.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        Ok(Surroundings {
            connected: self.connected().await?,
            inner_bridges: self.inner_bridges().await?,
        })
    }

    /// The names of the bridges whose ports are all virtual (veth, TUN or dummy devices). They lead only to containers and guests of
    /// this host.
    async fn inner_bridges(&self) -> Result<BTreeSet<String>> {
        let (mut bridges, mut outward) = (BTreeMap::new(), BTreeSet::new());
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.context("listing devices")? {
            let (mut name, mut kind, mut bridge) = (None, None, None);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(n) => name = Some(n),
                    LinkAttribute::Controller(index) => bridge = Some(index),
                    LinkAttribute::LinkInfo(all) => {
                        kind = all.into_iter().find_map(|i| match i {
                            LinkInfo::Kind(kind) => Some(kind),
                            _ => None,
                        });
                    }
                    _ => {}
                }
            }
            if let (Some(InfoKind::Bridge), Some(name)) = (&kind, name) {
                bridges.insert(link.header.index, name);
            }
            let is_virtual = matches!(kind, Some(InfoKind::Veth | InfoKind::Tun | InfoKind::Dummy));
            if let (Some(bridge), false) = (bridge, is_virtual) {
                outward.insert(bridge);
            }
        }
        bridges.retain(|index, _| !outward.contains(index));
        Ok(bridges.into_values().collect())
    }

    /// Removes the agent's rules and routes that `plan` does not have: those of earlier runs. Returns how many were removed.
    ///
    /// # Errors
    /// A request fails; some objects may be removed already.
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

    /// Removes all rules and routes of the agent. Returns how many were removed.
    ///
    /// # Errors
    /// A request fails; some objects may be removed already.
    pub async fn sweep(&self) -> Result<usize> {
        self.sweep_where(|_| true, |_| true).await
    }

    /// Removes those of the agent's rules and routes that satisfy the predicates.
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

    /// Whether a rule is the agent's: it has the protocol number, and names a table of the agent or has a priority that the agent uses
    /// for rules without such a table.
    fn owns_rule(&self, rule: &RuleMessage) -> bool {
        let has_protocol = |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
        let has_id = |a: &RuleAttribute| match a {
            RuleAttribute::Table(t) => self.ids.tables().contains(t),
            RuleAttribute::Priority(p) => is_without_table(*p, self.ids.offset),
            _ => false,
        };
        rule.attributes.iter().any(has_protocol) && rule.attributes.iter().any(has_id)
    }

    /// Whether a route is the agent's, by table and protocol number. Routes that others put into the table stay.
    fn owns_route(&self, route: &RouteMessage) -> bool {
        if u8::from(route.header.protocol) != PROTOCOL {
            return false;
        }
        self.ids.tables().contains(&table_of(route))
    }
}

/// The table of a route. Numbers above 255 do not fit the header and are in an attribute.
fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(t) => Some(*t),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// A key that distinguishes the agent's routes: table, destination, type, output device, and the metric if it is a fallback's. The
/// kernel fills in other attributes, such as the default metric of IPv6, so they must not count.
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

/// A key that distinguishes the agent's rules, made of the attributes that [`Netlink::rule`] sets. The kernel adds others.
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

/// Subscribes to changes of the host's devices and addresses (netlink multicast groups). Must run inside a Tokio runtime.
///
/// # Errors
/// The socket cannot be opened.
pub fn watch_host() -> Result<HostWatch> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _, messages) = new_multicast_connection(&groups).context("opening a netlink socket")?;
    Ok(HostWatch {
        driver: tokio::spawn(connection).abort_handle(),
        changed: Box::pin(messages.map(drop)),
        is_due: false,
    })
}

/// A subscription to changes of the host's devices and addresses. Dropping it ends the subscription.
pub struct HostWatch {
    driver: AbortHandle,
    changed: std::pin::Pin<Box<dyn futures::Stream<Item = ()> + Send>>,
    /// A change was received that [`changed`](Self::changed) has not reported yet.
    is_due: bool,
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HostWatch {
    /// Waits for a change, and returns [`HOST_DEBOUNCE`] after the first one, without its content. Never returns once the socket has
    /// failed. Cancel safe.
    pub async fn changed(&mut self) {
        if !self.is_due {
            if self.changed.next().await.is_none() {
                std::future::pending::<()>().await;
            }
            self.is_due = true;
        }
        tokio::time::sleep(HOST_DEBOUNCE).await;
        // All changes until now belong to this report.
        while let Some(Some(())) = futures::FutureExt::now_or_never(self.changed.next()) {}
        self.is_due = false;
    }
}

const fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn address(a: IpAddr) -> RouteAddress {
    match a {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

/// Whether the kernel answered with this error.
fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -errno)
}

/// Treats the errors for objects that do not exist as success. The kernel answers ENOENT for a missing rule, ESRCH for a missing
/// route, EADDRNOTAVAIL for a missing address and ENODEV for a missing device.
fn tolerate_absent(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(e)
            if [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV]
                .iter()
                .any(|n| is_errno(&e, *n)) =>
        {
            Ok(())
        }
        other => other,
    }
}
