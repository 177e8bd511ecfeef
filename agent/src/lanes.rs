//! All lanes of an agent (D15). The kernel spreads flows over the queues of the TUN device, and each queue belongs to
//! one lane. Each lane has sessions of its own, with the lane of the same number in other agents. A flow therefore
//! stays in one lane from end to end, and no lane waits for another.
//!
//! Lane 0 also carries the packets for peers with which another lane has no session. Such a peer has fewer lanes, or
//! its session with that lane is not established yet. The other lane redirects the packets to lane 0.

use crate::capture::tap::Tap;
use crate::config::Config;
use crate::identity::LinkKeys;
use crate::lane::builder::{self, BuildQueue};
use crate::lane::{Inspection, Lane, LaneReport, LaneSetup, Prepared, RedirectQueue};
use crate::meter::Traffic;
use crate::netlink::Tun;
use crate::tun::{Device, device_name};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc, watch};
use tombolo_engine::health::ControllerHealth;
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::routing::RoutingState;
use tombolo_engine::security::{DEFAULT_FLOWS, Flows};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;
use tombolo_proto::status::{LinkStatus, Totals};

/// Capacity of the queue of redirected packets. Lane 0 handles 144 redirected packets per turn, so a longer queue would
/// add delay and not throughput. Packets that do not fit into the queue are dropped.
const REDIRECT_QUEUE: usize = 512;

/// Handle of all lanes of the agent. Dropping the handle ends the lanes, as [`stop`](Self::stop) does.
pub struct Lanes {
    /// Never empty; the index is the lane's number.
    lanes: Vec<Lane>,
    routing_state: watch::Receiver<RoutingState>,
    flows: Arc<Flows>,
    traffic: Traffic,
    /// Number of the last configuration that was prepared.
    generation: AtomicU64,
    /// The TUN devices, one for each NIC; never empty.
    devices: Mutex<Vec<Arc<Device>>>,
    /// The name of the first device.
    interface: String,
    /// Whether devices should use GSO packets.
    offload: bool,
}

impl Lanes {
    /// Creates the TUN device, binds the UDP ports and starts the threads of the lanes and of the table builder. The
    /// lanes forward nothing before the first [`install`](Self::install). They notify `status_changed` when a link
    /// changes. Each lane that ends, also without an error, sends the reason to the returned receiver. Blocks until all
    /// threads have started. They work in the network namespace of the calling thread. CAP_NET_ADMIN is needed.
    /// `config` must satisfy [`Config::check`].
    ///
    /// # Errors
    /// The device's name or a port is in use, or the kernel refuses the device, a socket or a thread. The lanes that
    /// were started end in the background, and the kernel then removes the device.
    pub fn start(
        config: &Config,
        keys: LinkKeys,
        status_changed: &Arc<Notify>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let count = config.lane_count();
        let device = Arc::new(Device::create(&config.interface, config.offload)?);
        let (ended, first_end) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::channel(REDIRECT_QUEUE);
        let (routing_state, shared_state) = watch::channel(RoutingState::default());
        let keys = Arc::new(keys);
        let flows = Arc::new(Flows::new(DEFAULT_FLOWS, rand::random()));
        let traffic = Traffic::default();
        let (build_queue, build_receiver) = builder::queue();
        let start =
            |number: u16, redirected: RedirectQueue, other_lanes: Vec<Lane>, build_queue: Option<BuildQueue>| {
                Lane::start(LaneSetup {
                    number,
                    config: config.clone(),
                    keys: keys.clone(),
                    status_changed: status_changed.clone(),
                    routing_state: routing_state.clone(),
                    device: device.clone(),
                    redirected,
                    other_lanes,
                    build_queue,
                    flows: flows.clone(),
                    traffic: traffic.clone(),
                    ended: ended.clone(),
                })
                .with_context(|| format!("lane {number}"))
            };
        let mut lanes = Vec::new();
        for number in 1..count {
            lanes.push(start(number, RedirectQueue::Sender(sender.clone()), Vec::new(), None)?);
        }
        let other_lanes = lanes.clone();
        lanes.insert(
            0,
            start(0, RedirectQueue::Receiver(receiver), other_lanes, Some(build_queue))?,
        );
        builder::start(build_receiver, &lanes, flows.clone())?;
        device.close_primer();
        let lanes = Self {
            lanes,
            routing_state: shared_state,
            flows,
            traffic,
            generation: AtomicU64::new(0),
            devices: Mutex::new(vec![device]),
            interface: config.interface.clone(),
            offload: config.offload,
        };
        Ok((lanes, first_end))
    }

    fn lane0(&self) -> &Lane {
        &self.lanes[0]
    }

    /// The number of lanes, from 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Creates TUN devices for NICs that were added, until there are `count` devices, and gives each lane a queue of
    /// each device. Returns all devices. New devices are down and have no addresses. Devices beyond `count` stay: see
    /// [`remove_devices`](Self::remove_devices). Calls must not overlap.
    ///
    /// # Errors
    /// A device of that name exists, or the kernel refuses a device or a queue. No device is added then.
    pub async fn add_devices(&self, count: usize) -> Result<Vec<Tun>> {
        let mut devices = lock(&self.devices).clone();
        let known = devices.len();
        for number in known..count {
            let device = Device::create(&device_name(&self.interface, number), self.offload)?;
            devices.push(Arc::new(device));
        }
        if let Err(e) = self.spread_devices(&devices).await {
            // The kernel removes the new devices with their last queue, so that a configuration without them is
            // possible.
            devices.truncate(known);
            self.spread_devices(&devices).await?;
            return Err(e);
        }
        lock(&self.devices).clone_from(&devices);
        devices.iter().map(|device| device.identity()).collect()
    }

    /// Removes the devices beyond the first `count`, of NICs that were removed. Calls must not overlap. The first
    /// device is never removed.
    ///
    /// # Errors
    /// A lane has ended.
    pub async fn remove_devices(&self, count: usize) -> Result<()> {
        let mut devices = lock(&self.devices).clone();
        if devices.len() <= count.max(1) {
            return Ok(());
        }
        devices.truncate(count.max(1));
        self.spread_devices(&devices).await?;
        *lock(&self.devices) = devices;
        Ok(())
    }

    async fn spread_devices(&self, devices: &[Arc<Device>]) -> Result<()> {
        let devices: Arc<[Arc<Device>]> = devices.into();
        for lane in &self.lanes {
            lane.set_devices(devices.clone()).await?;
        }
        devices.iter().for_each(|device| device.close_primer());
        Ok(())
    }

    /// The flows that security groups have allowed, which all lanes share.
    #[must_use]
    pub fn flows(&self) -> &Arc<Flows> {
        &self.flows
    }

    /// What has passed the links of all lanes. Each lane adds to it with each [`report`](Self::report), when a configuration
    /// removes links, and when the lane ends.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The interface index of the first TUN device.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.lane0().device_index()
    }

    /// Builds the lookup tables of a configuration for [`install`](Self::install), on the calling thread. Lanes forward
    /// meanwhile. The build may take long, and blocks the runtime's thread meanwhile. Calls may overlap. Each call
    /// takes the next configuration number, also if it fails or its future is dropped.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub async fn prepare(&self, config: Arc<AgentConfig>) -> Result<Prepared> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let prepared = self.lane0().prepare(config, generation).await?;
        prepared.name_rules(&self.flows);
        Ok(prepared)
    }

    /// Installs a configuration in one lane after the other. Returns when every lane forwards by it (D2).
    ///
    /// Calls must not overlap: otherwise some lanes could end up with the one configuration and some with the other.
    /// The same holds if the future is dropped: lanes that have received the command switch, and the others keep their
    /// configuration until the next call. While lanes have different configurations, packets that one lane redirects to
    /// another are dropped. `prepared` must come from [`prepare`](Self::prepare) of this value.
    ///
    /// # Errors
    /// A lane has ended. Lanes with smaller numbers have switched nevertheless, and those with larger ones keep their
    /// configuration.
    pub async fn install(&self, prepared: Prepared) -> Result<()> {
        for lane in &self.lanes {
            lane.install(prepared.clone()).await?;
        }
        Ok(())
    }

    /// The tables and the routing state of lane 0. Waits for the lane's answer. The result has no tables if the lane
    /// has ended or has no configuration. Dropping the future changes nothing.
    pub async fn inspect(&self) -> Inspection {
        self.lane0().inspect().await
    }

    /// Watches the routing state that the tables of lane 0 were built from. The channel closes when all lanes have
    /// ended.
    #[must_use]
    pub fn routing_state(&self) -> watch::Receiver<RoutingState> {
        self.routing_state.clone()
    }

    /// Replaces the routes learned from all BGP neighbours, by neighbour. Returns at once. If the routes have changed,
    /// the tables of all lanes are built again later. Neighbours that the installed configuration does not have are
    /// dropped.
    ///
    /// # Errors
    /// Lane 0 has ended.
    pub fn set_bgp_routes(&self, routes: BTreeMap<ResourceId, Arc<Vec<Route>>>) -> Result<()> {
        self.lane0().set_bgp_routes(routes)
    }

    /// Passes what the controller says about the health of back ends to lane 0 (L6). Returns at once. If other back ends are
    /// down than before, the tables of all lanes are built again later.
    ///
    /// # Errors
    /// Lane 0 has ended.
    pub fn set_reported_health(&self, reported: ControllerHealth) -> Result<()> {
        self.lane0().set_reported_health(reported)
    }

    /// Begins a capture: each lane gets one of `taps`, of which there must be as many as lanes. Returns at once.
    ///
    /// # Errors
    /// A lane has ended.
    pub fn capture(&self, taps: Vec<Tap>) -> Result<()> {
        self.lanes
            .iter()
            .zip(taps)
            .try_for_each(|(lane, tap)| lane.capture(tap))
    }

    /// Passes the endpoints that peers had before a restart to every lane, and returns at once. `endpoints` has the
    /// endpoints of the peers' lane 0. Must be called before the first [`install`](Self::install).
    ///
    /// # Errors
    /// A lane has ended. Lanes with smaller numbers have the endpoints nevertheless.
    pub fn remember_endpoints(&self, endpoints: &BTreeMap<AgentId, SocketAddr>) -> Result<()> {
        let remember = |lane: &Lane| lane.remember_endpoints(endpoints.clone());
        self.lanes.iter().try_for_each(remember)
    }

    /// Status and counters of all lanes together. Waits for each lane in turn. A lane that has ended contributes
    /// nothing; in [`LaneReport::lanes`] its place is then taken by the next lane.
    pub async fn report(&self) -> LaneReport {
        let mut all = self.lane0().report().await;
        for lane in &self.lanes[1..] {
            merge(&mut all, lane.report().await);
        }
        all
    }

    /// Tells lane 0 to announce on all links that the agent is about to stop, and returns at once. Lane 0 suffices,
    /// because no other lane has a session with a peer before lane 0 has one. If lane 0 has ended, the call does
    /// nothing.
    pub fn announce_drain(&self) {
        self.lane0().announce_drain();
    }

    /// Tells all lanes to end, and returns at once; a lane that has ended is skipped. The kernel removes the TUN device
    /// when the last lane has closed its queue. A second call does nothing.
    pub fn stop(&self) {
        self.lanes.iter().for_each(Lane::stop);
    }
}

/// Locks a mutex, and ignores poisoning: the release profile aborts on a panic, so no other thread sees a poisoned
/// mutex.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the report of another lane to that of lane 0. If lane 0 reports a link, the state of the link is that of lane
/// 0. Counters are sums over all lanes.
fn merge(all: &mut LaneReport, other: LaneReport) {
    for link in other.links {
        match all.links.binary_search_by(|l| l.peer.cmp(&link.peer)) {
            Ok(at) => add(&mut all.links[at], &link),
            Err(at) => all.links.insert(at, link),
        }
    }
    for (reason, count) in other.drops {
        *all.drops.entry(reason).or_default() += count;
    }
    for (rule, count) in other.rule_hits {
        *all.rule_hits.entry(rule).or_default() += count;
    }
    let Totals {
        tun_in,
        link_in,
        tun_out,
        link_out,
        replied,
        dropped,
    } = other.totals;
    let totals = &mut all.totals;
    totals.tun_in += tun_in;
    totals.link_in += link_in;
    totals.tun_out += tun_out;
    totals.link_out += link_out;
    totals.replied += replied;
    totals.dropped += dropped;
    all.lanes.extend(other.lanes);
    all.tun_errors += other.tun_errors;
    all.udp_errors += other.udp_errors;
    all.udp_overflow += other.udp_overflow;
    all.adopted += other.adopted;
    all.rebuilds += other.rebuilds;
    add_stats(&mut all.advertisements, other.advertisements);
    add_stats(&mut all.health_statements, other.health_statements);
}

fn add_stats(all: &mut AdvertisementStats, other: AdvertisementStats) {
    let AdvertisementStats {
        received,
        applied,
        superseded,
        refused,
        malformed,
    } = other;
    all.received += received;
    all.applied += applied;
    all.superseded += superseded;
    all.refused += refused;
    all.malformed += malformed;
}

fn add(link: &mut LinkStatus, other: &LinkStatus) {
    link.rx_bytes += other.rx_bytes;
    link.tx_bytes += other.tx_bytes;
    link.rx_packets += other.rx_packets;
    link.tx_packets += other.tx_packets;
    link.mtu = link.mtu.into_iter().chain(other.mtu).min();
    link.rtt_ms = link.rtt_ms.or(other.rtt_ms);
    link.loss = link.loss.or(other.loss);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_lanes_add_up() {
        let link = |peer: &str, packets| LinkStatus {
            rx_packets: packets,
            ..LinkStatus::new(AgentId::new(peer).unwrap())
        };
        let report = |links: Vec<LinkStatus>, tun_in| LaneReport {
            links,
            drops: [("no_route".to_owned(), tun_in)].into(),
            totals: Totals {
                tun_in,
                ..Totals::default()
            },
            ..LaneReport::default()
        };
        let mut all = report(vec![link("a", 1), link("c", 2)], 3);
        merge(&mut all, report(vec![link("b", 10), link("c", 20)], 30));
        let seen: Vec<_> = all.links.iter().map(|l| (l.peer.as_str(), l.rx_packets)).collect();
        assert_eq!(seen, [("a", 1), ("b", 10), ("c", 22)]);
        assert_eq!((all.totals.tun_in, all.drops["no_route"]), (33, 33));
    }
}
