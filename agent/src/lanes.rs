//! All lanes of an agent, as one (D15): the kernel spreads flows over the queues of the device, a queue belongs to a lane,
//! and a lane talks with the same lane of other agents, over sessions of its own. So a flow stays in one lane from end to
//! end, and no lane waits for another.
//!
//! The first lane is the agent for those that have only one, and for what another lane has no session for (yet): such
//! packets are handed over to it.

use crate::config::Config;
use crate::identity::LinkKeys;
use crate::lane::builder::{self, Requests};
use crate::lane::{Inbox, Inspection, Lane, LaneReport, Parts, Prepared};
use crate::tun::Device;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc, watch};
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;
use tombolo_proto::status::{LinkStatus, Totals};

/// Packets that wait for the first lane: what exceeds this it could not take either.
const HANDED: usize = 512;

/// All lanes.
pub struct Lanes {
    /// The first one first; never empty.
    lanes: Vec<Lane>,
    moving: watch::Receiver<RoutingState>,
    /// Configurations that were prepared so far.
    generation: AtomicU64,
}

impl Lanes {
    /// Creates the device, binds the ports and starts the threads. The receiver hears why the first of them that ends
    /// ended.
    ///
    /// # Errors
    /// The host refuses the device or a port.
    pub fn start(
        config: &Config,
        keys: LinkKeys,
        news: &Arc<Notify>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let count = config.lane_count();
        let device = Arc::new(Device::create(&config.interface, config.offload)?);
        let (end, ended) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::channel(HANDED);
        let (moving, moves) = watch::channel(RoutingState::default());
        let keys = Arc::new(keys);
        let (requests, inbox) = builder::requests();
        let start = |number: u16, handed: Inbox, others: Vec<Lane>, requests: Option<Requests>| {
            Lane::start(Parts {
                number,
                config: config.clone(),
                keys: keys.clone(),
                news: news.clone(),
                moving: moving.clone(),
                device: device.clone(),
                handed,
                others,
                requests,
                end: end.clone(),
            })
            .with_context(|| format!("lane {number}"))
        };
        let mut lanes = Vec::new();
        for number in 1..count {
            lanes.push(start(number, Inbox::Other(sender.clone()), Vec::new(), None)?);
        }
        let others = lanes.iter().map(Lane::another).collect();
        lanes.insert(0, start(0, Inbox::First(receiver), others, Some(requests))?);
        builder::start(inbox, &lanes)?;
        let lanes = Self {
            lanes,
            moving: moves,
            generation: AtomicU64::new(0),
        };
        Ok((lanes, ended))
    }

    fn first(&self) -> &Lane {
        &self.lanes[0]
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// The device's index.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.first().device_index()
    }

    /// Builds the tables of a configuration, beside the data path.
    ///
    /// # Errors
    /// None can be built from it.
    pub async fn prepare(&self, config: Arc<AgentConfig>) -> Result<Prepared> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.first().prepare(config, generation).await
    }

    /// Puts a configuration in force; returns when every lane has switched.
    ///
    /// # Errors
    /// A lane is gone.
    pub async fn install(&self, prepared: Prepared) -> Result<()> {
        for lane in &self.lanes {
            lane.install(prepared.clone()).await?;
        }
        Ok(())
    }

    /// What the first lane decides by; nothing if it is gone.
    pub async fn inspect(&self) -> Inspection {
        self.first().inspect().await
    }

    /// What the lanes have learned, as it changes.
    #[must_use]
    pub fn moving(&self) -> watch::Receiver<RoutingState> {
        self.moving.clone()
    }

    /// Tells what BGP neighbours announce, all of it.
    ///
    /// # Errors
    /// The first lane is gone.
    pub fn learned(&self, routes: BTreeMap<ResourceId, Arc<Vec<Route>>>) -> Result<()> {
        self.first().learned(routes)
    }

    /// Tells where peers were before a restart.
    ///
    /// # Errors
    /// A lane is gone.
    pub fn remember_endpoints(&self, endpoints: &BTreeMap<AgentId, SocketAddr>) -> Result<()> {
        let tell = |lane: &Lane| lane.remember_endpoints(endpoints.clone());
        self.lanes.iter().try_for_each(tell)
    }

    /// What the lanes say together.
    pub async fn report(&self) -> LaneReport {
        let mut all = self.first().report().await;
        for lane in &self.lanes[1..] {
            merge(&mut all, lane.report().await);
        }
        all
    }

    /// Says on all links that the agent is about to stop.
    pub fn leave(&self) {
        self.first().leave();
    }

    /// Ends all; the device vanishes with them.
    pub fn stop(&self) {
        self.lanes.iter().for_each(Lane::stop);
    }
}

/// Adds what another lane says. A link is what the first lane says of it; its counters are those of all.
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
    all.rebuilds += other.rebuilds;
    let AdvertisementStats {
        received,
        applied,
        superseded,
        refused,
        malformed,
    } = other.advertisements;
    let advertisements = &mut all.advertisements;
    advertisements.received += received;
    advertisements.applied += applied;
    advertisements.superseded += superseded;
    advertisements.refused += refused;
    advertisements.malformed += malformed;
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
