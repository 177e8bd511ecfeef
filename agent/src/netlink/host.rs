//! The host's devices and addresses: reads them, and reports changes.

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

/// Wait after the first change of the host's devices and addresses. The start of a container makes half a dozen changes within tens
/// of milliseconds, which are handled together.
const HOST_DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(200);

impl Netlink {
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
