//! The kernel's side of an agent: its device, its routing table, its rules. Touches nothing that is not its own: the
//! device by index, the rest by table number and protocol number.

use crate::apply::plan::confine::{FALLBACK_METRIC, Place, Surroundings, Table};
use crate::apply::plan::{
    Connected, Forwarding, KernelPlan, Lookup, Numbers, Port, Route, Rule, Step, is_without_table,
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

/// Protocol number of our routes and rules: not one that `rtnetlink.h` or a routing daemon uses.
const PROTOCOL: u8 = 116;

/// Transmit queue of the device, packets. The kernel drops what does not fit, so it holds the window of a TCP stream.
const QUEUE_LENGTH: u32 = 5000;

/// Alias of every agent's device, by which agents of one host know each other's.
const ALIAS: &str = "tombolo";

/// Starting a container makes half a dozen changes to devices and addresses within tens of milliseconds. Waiting this long after
/// the first one handles them together.
const HOST_DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(200);

/// A netlink connection that knows which things are the agent's.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    numbers: Numbers,
    /// The interface that faces the customer edge of a circuit.
    line: Option<String>,
    driver: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Opens the connection, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open(numbers: Numbers, line: Option<String>) -> Result<Self> {
        let (connection, handle, _) = new_connection().context("opening a netlink socket")?;
        let driver = tokio::spawn(connection).abort_handle();
        Ok(Self {
            handle,
            numbers,
            line,
            driver,
        })
    }

    /// Prepares a new device: alias, queue length, no addresses of its own making.
    ///
    /// # Errors
    /// The device is missing, or the kernel refuses.
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

    /// Brings the device up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn up(&self, index: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(link)
            .execute()
            .await
            .context("bringing the device up")
    }

    /// Carries out one step of a plan.
    ///
    /// # Errors
    /// The kernel refuses; nothing of the step was done.
    pub async fn execute(&self, name: &str, index: u32, step: &Step) -> Result<()> {
        let done = match step {
            Step::Mtu(mtu) => {
                let link = LinkUnspec::new_with_index(index).mtu(u32::from(*mtu)).build();
                self.handle.link().set(link).execute().await
            }
            Step::Forwarding(forwarding) => {
                let mut switches = Switches::here();
                match forwarding {
                    Forwarding::Usual => switches.forward_as_usual(name),
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
                // No duplicate detection: the address is usable at once, nobody else can have it.
                request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
                request.execute().await
            }
            Step::DeleteAddress(address) => {
                let mut message = AddressMessage::default();
                message.header.index = index;
                message.header.family = family(address.is_ipv6());
                message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(AddressAttribute::Local(*address));
                absent_is_fine(self.handle.address().del(message).execute().await)
            }
            Step::SetRoute(prefix, route) => self.set_route(self.route(*prefix, *route, index)?).await,
            Step::DeleteRoute(prefix, route) => self.delete_route(self.route(*prefix, *route, index)?).await,
            Step::SetConfining(place, route) => self.set_route(self.confining(*place, *route, index)?).await,
            Step::DeleteConfining(place, route) => self.delete_route(self.confining(*place, *route, index)?).await,
            Step::AddRule(rule) => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = self.rule(name, *rule)?;
                match request.execute().await {
                    Err(e) if is(&e, libc::EEXIST) => Ok(()),
                    other => other,
                }
            }
            Step::DeleteRule(rule) => absent_is_fine(self.handle.rule().del(self.rule(name, *rule)?).execute().await),
        };
        done.with_context(|| format!("kernel: {step:?}"))
    }

    /// The interface that faces the customer edge: its name and index.
    fn customer(&self) -> Result<(&str, u32)> {
        let name = self.line.as_deref();
        let name =
            name.context("customer_interface: agent.toml does not say which interface faces the customer edge")?;
        let index = if_nametoindex(name).with_context(|| format!("customer_interface: {name}"))?;
        Ok((name, index))
    }

    /// The line has this address and no other of our making; its kernel side routes.
    async fn line_address(&self, address: IpNet) -> Result<()> {
        let (name, index) = self.customer()?;
        let mut switches = Switches::here();
        switches.prepare_line(name);
        switches.finish()?;
        self.up(index).await?;
        let request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let mut request = request.replace();
        request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
        request
            .execute()
            .await
            .with_context(|| format!("giving {name} the address {address}"))
    }

    /// The script that loads a filter into the agent's table.
    #[must_use]
    pub fn filter_script(&self, filter: &Filter) -> String {
        filter.script(&table_name(self.numbers.table), self.line.as_deref())
    }

    async fn set_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        self.handle.route().add(route).replace().execute().await
    }

    async fn delete_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        absent_is_fine(self.handle.route().del(route).execute().await)
    }

    fn route(&self, prefix: IpNet, route: Route, index: u32) -> Result<RouteMessage> {
        let table = if prefix.prefix_len() == 0 {
            self.numbers.default_table
        } else {
            self.numbers.table
        };
        self.route_in(table, prefix, route, index)
    }

    fn confining(&self, place: Place, route: Route, index: u32) -> Result<RouteMessage> {
        let mut message = self.route_in(self.number(place.table), place.prefix, route, index)?;
        if place.fallback {
            message.attributes.push(RouteAttribute::Priority(FALLBACK_METRIC));
        }
        Ok(message)
    }

    const fn number(&self, table: Table) -> u32 {
        match table {
            Table::Own => self.numbers.table,
            Table::Source => self.numbers.source_table(),
            Table::Exit => self.numbers.exit_table(),
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

    fn rule(&self, device: &str, rule: Rule) -> Result<RuleMessage> {
        let mut message = RuleMessage::default();
        message.header.family = family(rule.v6);
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::Priority(rule.priority));
        message
            .attributes
            .push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        // "not" inverts the whole selector, so a rule by source or device cannot also be by mark. It need not be: underlay
        // packets have no overlay source, and come from the host itself.
        if rule.port.is_some() || rule.source.is_some() {
            message.header.flags = RuleFlags::empty();
        } else {
            message.attributes.push(RuleAttribute::FwMark(self.numbers.fwmark));
        }
        if let Some(port) = rule.port {
            let name = match port {
                Port::Tun => device,
                Port::Line => self.customer()?.0,
                Port::Host => "lo",
            };
            message.attributes.push(RuleAttribute::Iifname(name.to_owned()));
        }
        if let Some(source) = rule.source {
            message.header.src_len = source.prefix_len();
            message.attributes.push(RuleAttribute::Source(source.network()));
        }
        match rule.lookup {
            Lookup::Own => message.attributes.push(RuleAttribute::Table(self.numbers.table)),
            Lookup::Source => message
                .attributes
                .push(RuleAttribute::Table(self.numbers.source_table())),
            Lookup::Exit => message.attributes.push(RuleAttribute::Table(self.numbers.exit_table())),
            Lookup::Goto(priority) => {
                message.header.action = RuleAction::Goto;
                message.attributes.push(RuleAttribute::Goto(priority));
            }
            Lookup::Default => message
                .attributes
                .push(RuleAttribute::Table(self.numbers.default_table)),
            Lookup::Continue => message.header.action = RuleAction::Nop,
            Lookup::MainButDefault => {
                message.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
                message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
            }
            Lookup::Nowhere => message.header.action = RuleAction::Blackhole,
        }
        Ok(message)
    }

    /// The networks that the host is connected to; not loopback, not link-local, not the devices of agents.
    ///
    /// # Errors
    /// The kernel refuses to list.
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
            // On a point-to-point device the network is the other end's.
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

    /// What the agent must know of its host.
    ///
    /// # Errors
    /// The kernel refuses to list.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        Ok(Surroundings {
            connected: self.connected().await?,
            inner_bridges: self.inner_bridges().await?,
        })
    }

    /// The bridges whose ports are all virtual: they lead to containers and guests of this host.
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

    /// Removes the rules and routes that are the agent's by its numbers and that `plan` does not have: those of an earlier run.
    /// Returns how many there were.
    ///
    /// # Errors
    /// The kernel refuses to list or to delete.
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

    /// Removes every rule and route that is the agent's by its numbers. Returns how many there were.
    ///
    /// # Errors
    /// The kernel refuses to list or to delete.
    pub async fn sweep(&self) -> Result<usize> {
        self.sweep_where(|_| true, |_| true).await
    }

    async fn sweep_where(
        &self,
        of_rules: impl Fn(&RuleMessage) -> bool,
        of_routes: impl Fn(&RouteMessage) -> bool,
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
            for rule in rules.into_iter().filter(|r| self.owns_rule(r) && of_rules(r)) {
                absent_is_fine(self.handle.rule().del(rule).execute().await).context("deleting a rule")?;
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
            for route in routes.into_iter().filter(|r| self.owns_route(r) && of_routes(r)) {
                absent_is_fine(self.handle.route().del(route).execute().await).context("deleting a route")?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// By table where the rule names ours; the one that looks in the main table by the protocol and our priority.
    fn owns_rule(&self, rule: &RuleMessage) -> bool {
        let is_ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
        let looks = |a: &RuleAttribute| match a {
            RuleAttribute::Table(t) => self.numbers.tables().contains(t),
            RuleAttribute::Priority(p) => is_without_table(*p, self.numbers.offset),
            _ => false,
        };
        rule.attributes.iter().any(is_ours) && rule.attributes.iter().any(looks)
    }

    /// By table and protocol: what somebody else put into the table stays.
    fn owns_route(&self, route: &RouteMessage) -> bool {
        if u8::from(route.header.protocol) != PROTOCOL {
            return false;
        }
        self.numbers.tables().contains(&table_of(route))
    }
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(t) => Some(*t),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// What tells one of our routes from another: table, destination, kind, metric where it is that of a fallback, and device.
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

/// What tells one of our rules from another. The kernel fills in attributes that we leave out, so only ours count.
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

/// Reports that devices or addresses of the host have changed, after the fact and without saying how.
///
/// # Errors
/// The kernel refuses the socket.
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

/// A watch on the host's devices and addresses; it ends when dropped.
pub struct HostWatch {
    driver: AbortHandle,
    changed: std::pin::Pin<Box<dyn futures::Stream<Item = ()> + Send>>,
    /// A change was noticed and not reported yet.
    is_due: bool,
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HostWatch {
    /// Returns when something has changed, [`HOST_DEBOUNCE`] after it was noticed. Never returns once the kernel reports no more.
    /// Nothing is lost if the future is dropped.
    pub async fn changed(&mut self) {
        if !self.is_due {
            if self.changed.next().await.is_none() {
                std::future::pending::<()>().await;
            }
            self.is_due = true;
        }
        tokio::time::sleep(HOST_DEBOUNCE).await;
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

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -errno)
}

fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(e)
            if [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV]
                .iter()
                .any(|n| is(&e, *n)) =>
        {
            Ok(())
        }
        other => other,
    }
}
