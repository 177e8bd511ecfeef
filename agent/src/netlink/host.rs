//! Reads the host's devices and addresses, and reports their changes.

use super::{ALIAS, Netlink};
use crate::apply::plan::Connected;
use crate::apply::plan::confine::Surroundings;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::AbortHandle;

/// Wait between a change of the host's devices and addresses and the report of it. The start of a container makes half
/// a dozen changes within tens of milliseconds, and because of the wait one report is enough for all of them.
const HOST_DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(200);

impl Netlink {
    /// The networks of the host's addresses, in the kernel's order. A network appears once for each address in it.
    /// Loopback devices, addresses of link scope and the devices of all agents are left out. For an address with a peer (a
    /// point-to-point device) the network is that of the peer's address, and the host's own address is left out. Devices
    /// that are down count too.
    ///
    /// # Errors
    /// A netlink request fails.
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
            // On a point-to-point device IFA_ADDRESS is the peer's address, which determines the network. Otherwise
            // IFA_ADDRESS equals IFA_LOCAL (`linux/if_addr.h`).
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

    /// The host's connected networks (see [`connected`](Self::connected)), and the bridges that lead only to containers
    /// and guests of this host. Both are read from the kernel at each call.
    ///
    /// # Errors
    /// A netlink request fails.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        Ok(Surroundings {
            connected: self.connected().await?,
            inner_bridges: self.inner_bridges().await?,
        })
    }

    /// The names of the bridges whose ports are all virtual (veth, TUN or dummy devices), and of bridges without ports.
    /// Such a bridge leads only to containers and guests of this host.
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
}

/// Subscribes to changes of the host's devices and addresses, by netlink multicast groups, in the network namespace of
/// the calling thread. Spawns a task that reads the socket. Needs no privileges.
///
/// # Errors
/// The socket cannot be opened.
///
/// # Panics
/// Outside of a Tokio runtime.
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
    /// Whether a change has arrived that [`changed`](Self::changed) has not reported yet.
    is_due: bool,
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HostWatch {
    /// Waits for a change, and returns 200 ms after the first one. The caller does not learn what changed. Changes
    /// between two calls are not lost. If the netlink socket has failed, the call never returns. Cancel safe.
    pub async fn changed(&mut self) {
        if !self.is_due {
            if self.changed.next().await.is_none() {
                std::future::pending::<()>().await;
            }
            self.is_due = true;
        }
        tokio::time::sleep(HOST_DEBOUNCE).await;
        // The caller reads the host's state after this function returns, so it sees all changes that have arrived until
        // now.
        while let Some(Some(())) = futures::FutureExt::now_or_never(self.changed.next()) {}
        self.is_due = false;
    }
}
