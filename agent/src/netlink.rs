//! Netlink requests for the agent's device, routes and policy rules (`rtnetlink(7)`). The requests change only the
//! agent's own objects: the device by its index, routes and rules by their table and protocol numbers. The one
//! exception is the interface to a customer edge, which `agent.toml` names.

mod host;
mod routes;
mod sweep;

use crate::apply::plan::{Forwarding, KernelIds, Step};
use crate::filter::{DEVICE_GROUP, Filter, table_name};
use crate::switches::Switches;
use anyhow::{Context, Result};
pub use host::{HostWatch, watch_host};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkUnspec, new_connection};
use tokio::task::AbortHandle;
use tombolo_engine::tables::NicIndex;

/// Protocol number of the agent's routes and rules (`rtm_protocol` and `FRA_PROTOCOL`). Neither `linux/rtnetlink.h` nor
/// a routing daemon uses this number, so it marks routes and rules as an agent's.
const PROTOCOL: u8 = 116;

/// Length of the device's transmit queue in packets. The kernel drops packets that do not fit, so the queue must have
/// room for the window of a TCP stream.
const QUEUE_LENGTH: u32 = 5000;

/// Interface alias of every agent's device. Agents on one host recognise each other's devices by this alias.
const ALIAS: &str = "tombolo";

/// The TUN device of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tun {
    /// The name of the device.
    pub name: String,
    /// The interface index of the device.
    pub index: u32,
}

/// The device of a NIC. Fails if there is none.
fn device(devices: &[Tun], nic: NicIndex) -> Result<&Tun> {
    devices
        .get(nic.get())
        .with_context(|| format!("NIC {} has no device", nic.0))
}

/// A netlink connection of one agent. Dropping the value closes the socket, and changes no device, route or rule.
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
    /// Opens the connection in the network namespace of the calling thread. Spawns a task that reads and writes the
    /// socket. `line`: the interface to the customer edge, for a circuit edge only; whether it exists is not checked.
    /// `ids` are the numbers by which later calls recognise the agent's own objects.
    ///
    /// # Errors
    /// The socket cannot be opened.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
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

    /// Prepares a new device: sets its sysctls, alias, device group and queue length. The device must still be down,
    /// because the kernel generates an IPv6 link-local address when a device goes [up](Self::up). `name` and `index`
    /// must be of the same device, in the namespace of the calling thread, which must be the one in which the
    /// connection was opened. Needs CAP_NET_ADMIN. A second call changes nothing.
    ///
    /// # Errors
    /// The device does not exist, or the kernel refuses a sysctl or an attribute. Some of the settings may have been
    /// made then.
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

    /// Brings the device with this interface index up. If the device is up already, nothing changes.
    ///
    /// # Errors
    /// The device does not exist, or CAP_NET_ADMIN is missing.
    pub async fn up(&self, index: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(link)
            .execute()
            .await
            .context("bringing the device up")
    }

    /// Executes one step of a plan on `devices`, which are in the order of NICs. Adding an object that exists,
    /// or deleting one that does not exist, is no error: another program may have made the same change before, and the
    /// result is as requested. This function keeps no record of the step. The calling thread must be in the namespace
    /// in which the connection was opened, because sysctls belong to the thread's namespace. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The kernel refuses the change, or the step needs a device or the interface to a customer edge and there is none.
    /// After an error, a step that consists of one netlink request has had no effect, and a step that sets sysctls may
    /// be done in part.
    pub async fn execute(&self, devices: &[Tun], step: &Step) -> Result<()> {
        let done = match step {
            Step::Mtu(nic, mtu) => {
                let link = LinkUnspec::new_with_index(device(devices, *nic)?.index)
                    .mtu(u32::from(*mtu))
                    .build();
                self.handle.link().set(link).execute().await
            }
            Step::Forwarding(nic, forwarding) => {
                let name = &device(devices, *nic)?.name;
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
            Step::AddAddress(address, nic) => {
                let Tun { name, index } = device(devices, *nic)?;
                if address.is_ipv6() {
                    let mut switches = Switches::here();
                    switches.ipv6(name);
                    switches.finish()?;
                }
                let length = if address.is_ipv4() { 32 } else { 128 };
                let mut request = self.handle.address().add(*index, *address, length).replace();
                // Without duplicate address detection (RFC 4862) the address is usable at once. The detection has no
                // purpose here, because the controller assigns each address once.
                request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
                request.execute().await
            }
            Step::DeleteAddress(address, nic) => {
                let mut message = AddressMessage::default();
                message.header.index = device(devices, *nic)?.index;
                message.header.family = family(address.is_ipv6());
                message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(AddressAttribute::Local(*address));
                tolerate_absent(self.handle.address().del(message).execute().await)
            }
            Step::SetRoute(prefix, route) => self.set_route(self.route(*prefix, *route, devices)?).await,
            Step::DeleteRoute(prefix, route) => self.delete_route(self.route(*prefix, *route, devices)?).await,
            Step::SetTableRoute(key, route) => self.set_route(self.table_route(*key, *route, devices)?).await,
            Step::DeleteTableRoute(key, route) => self.delete_route(self.table_route(*key, *route, devices)?).await,
            Step::AddRule(rule) => {
                // The request has the flag NLM_F_EXCL, so the kernel answers EEXIST for a rule that exists. Without the
                // flag the kernel would add the same rule a second time.
                let mut request = self.handle.rule().add();
                *request.message_mut() = self.rule(devices, *rule)?;
                match request.execute().await {
                    Err(e) if is_errno(&e, libc::EEXIST) => Ok(()),
                    other => other,
                }
            }
            Step::DeleteRule(rule) => {
                tolerate_absent(self.handle.rule().del(self.rule(devices, *rule)?).execute().await)
            }
        };
        done.with_context(|| format!("kernel: {step:?}"))
    }

    /// The name and the interface index of the interface to the customer edge.
    ///
    /// # Errors
    /// `agent.toml` does not name the interface, or no interface has that name.
    fn customer(&self) -> Result<(&str, u32)> {
        let name = self.line.as_deref();
        let name =
            name.context("customer_interface: set it in agent.toml to the interface that faces the customer edge")?;
        let index = if_nametoindex(name).with_context(|| format!("customer_interface: {name}"))?;
        Ok((name, index))
    }

    /// Prepares the line to the customer edge: sets the sysctls for forwarding, brings the interface up, and adds this
    /// address. Earlier addresses of the interface stay.
    async fn line_address(&self, address: IpNet) -> Result<()> {
        let (name, index) = self.customer()?;
        let mut switches = Switches::here();
        switches.prepare_line(name);
        switches.finish()?;
        self.up(index).await?;
        let request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let mut request = request.replace();
        // Without duplicate address detection (RFC 4862) the address is usable at once, and BIRD can listen at it.
        request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
        request
            .execute()
            .await
            .with_context(|| format!("giving {name} the address {address}"))
    }

    /// The `nft` script that loads `filter` into the agent's nftables table. The script replaces the table's earlier
    /// contents. Runs nothing: see [`filter::load`](crate::filter::load).
    #[must_use]
    pub fn filter_script(&self, filter: &Filter) -> String {
        filter.script(&table_name(self.ids.table), self.line.as_deref())
    }
}

const fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// Whether the error is the kernel's answer with this error number.
fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -errno)
}

/// Treats the kernel's errors for objects that do not exist as success. These are ENOENT for a rule, ESRCH for a route,
/// EADDRNOTAVAIL for an address and ENODEV for a device.
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
