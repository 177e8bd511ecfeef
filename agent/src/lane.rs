//! One lane: a TUN queue, a UDP socket, an engine and the thread that runs them to completion, as the rest of the agent
//! sees it. What the thread does stands in `worker`.

pub mod builder;
mod worker;

use crate::config::Config;
use crate::identity::LinkKeys;
use crate::outbox::Handed;
use crate::tun::Device;
use anyhow::{Context, Result};
use builder::{Built, Request, Requests};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;
use tombolo_proto::status::{LinkStatus, Totals};
use worker::Worker;

/// What a lane says of itself.
#[derive(Debug, Default)]
pub struct LaneReport {
    /// Links that were used or are always on.
    pub links: Vec<LinkStatus>,
    /// Where peers were heard from.
    pub endpoints: BTreeMap<AgentId, SocketAddr>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets by fate.
    pub totals: Totals,
    /// The same of each lane.
    pub lanes: Vec<Totals>,
    /// Whether super-packets are in use.
    pub offload: bool,
    /// Writes to the device that the kernel refused.
    pub tun_errors: u64,
    /// Datagrams that the kernel refused to send.
    pub udp_errors: u64,
    /// Datagrams that found the receive buffer full.
    pub udp_overflow: u64,
    /// What became of route advertisements.
    pub advertisements: AdvertisementStats,
    /// Tables that were built because something was learned.
    pub rebuilds: u64,
}

/// What a lane decides by.
#[derive(Debug, Default)]
pub struct Inspection {
    /// None: no configuration yet.
    pub tables: Option<Arc<Tables>>,
    /// What it has learned (D11).
    pub dynamic: RoutingState,
}

/// A configuration with its tables, ready to be installed.
#[derive(Clone)]
pub struct Prepared {
    config: Arc<AgentConfig>,
    built: Built,
}

enum Order {
    Install(Prepared, oneshot::Sender<()>),
    Refresh(Box<Built>),
    Ready,
    Inspect(oneshot::Sender<Inspection>),
    Remember(BTreeMap<AgentId, SocketAddr>),
    Moved(AgentId, SocketAddr),
    Expect(AgentId),
    Learned(BTreeMap<ResourceId, Arc<Vec<Route>>>),
    Report(oneshot::Sender<LaneReport>),
    Leave,
    Stop,
}

/// The rest of the agent's side of a lane.
pub struct Lane {
    orders: mpsc::UnboundedSender<Order>,
    index: u32,
}

/// What a lane is made of.
pub struct Parts {
    /// Which it is, from 0.
    pub number: u16,
    /// The agent's settings.
    pub config: Config,
    /// The keys of its links.
    pub keys: Arc<LinkKeys>,
    /// What it wakes when a link changes.
    pub news: Arc<Notify>,
    /// Where the first lane shows what it has learned.
    pub moving: watch::Sender<RoutingState>,
    /// The device that it adds a queue to.
    pub device: Arc<Device>,
    /// The first lane's inbox for packets that others are not ready for: its two ends.
    pub handed: Inbox,
    /// The other lanes, which hear from the first where peers are.
    pub others: Vec<Lane>,
    /// Where the first lane has tables built.
    pub requests: Option<Requests>,
    /// Hears why the lane ended.
    pub end: mpsc::UnboundedSender<String>,
}

/// Packets for the first lane.
pub enum Inbox {
    /// It takes them,
    First(mpsc::Receiver<Handed>),
    /// and others give them.
    Other(mpsc::Sender<Handed>),
}

/// Says why a lane ended, also where that was a panic.
struct Farewell(mpsc::UnboundedSender<String>, String);

impl Farewell {
    fn because(&mut self, reason: String) {
        self.1 = reason;
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

impl Lane {
    /// Adds a queue, binds the port and starts the thread.
    ///
    /// # Errors
    /// The host refuses the queue or the port.
    pub fn start(parts: Parts) -> Result<Self> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (ready, started) = std::sync::mpsc::channel();
        let name = format!("lane-{}", parts.number);
        let mut farewell = Farewell(parts.end.clone(), format!("{name}: panic"));
        let thread_name = name.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.context("starting the lane's runtime") {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(e))),
            };
            let outcome = runtime.block_on(async {
                let worker = match Worker::new(parts, inbox) {
                    Ok(worker) => worker,
                    Err(e) => {
                        let _ = ready.send(Err(e));
                        return Ok(());
                    }
                };
                let _ = ready.send(Ok(worker.tun.index()));
                worker.run().await
            });
            farewell.because(
                outcome
                    .err()
                    .map_or_else(|| format!("{name}: stopped"), |e| format!("{name}: {e:#}")),
            );
        };
        std::thread::Builder::new()
            .name(thread_name)
            .spawn(body)
            .context("starting the lane")?;
        let index = started.recv().context("the lane ended before it started")??;
        Ok(Self { orders, index })
    }

    /// The same lane once more.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            orders: self.orders.clone(),
            index: self.index,
        }
    }

    /// The device's index.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.index
    }

    /// Builds the tables of a configuration, beside the data path. `generation`: a number that no configuration had before.
    ///
    /// # Errors
    /// None can be built from it.
    pub async fn prepare(&self, config: Arc<AgentConfig>, generation: u64) -> Result<Prepared> {
        let mut dynamic = self.inspect().await.dynamic;
        dynamic.keep(&config);
        let built = Built::of(Request {
            generation,
            config: config.clone(),
            dynamic,
        })?;
        Ok(Prepared { config, built })
    }

    /// Puts a configuration in force; returns when the lane has switched.
    ///
    /// # Errors
    /// The lane is gone.
    pub async fn install(&self, prepared: Prepared) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Install(prepared, done))?;
        answer.await.context("the lane ended")
    }

    /// What the lane decides by; nothing if it is gone.
    pub async fn inspect(&self) -> Inspection {
        let (sender, answer) = oneshot::channel();
        if self.order(Order::Inspect(sender)).is_err() {
            return Inspection::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Tells where peers were before a restart.
    ///
    /// # Errors
    /// The lane is gone.
    pub fn remember_endpoints(&self, endpoints: BTreeMap<AgentId, SocketAddr>) -> Result<()> {
        self.order(Order::Remember(endpoints))
    }

    /// Tells that the first lane reaches a peer now: flows of this lane will follow, and those that begin before it has a session
    /// stay in the first lane, where the kernel sees their answers.
    fn expect(&self, peer: &AgentId) {
        let _ = self.order(Order::Expect(peer.clone()));
    }

    /// Tells where the first lane heard a peer.
    fn moved(&self, peer: &AgentId, to: SocketAddr) {
        let _ = self.order(Order::Moved(peer.clone(), to));
    }

    /// Tells what BGP neighbours announce, all of it.
    ///
    /// # Errors
    /// The lane is gone.
    pub fn learned(&self, routes: BTreeMap<ResourceId, Arc<Vec<Route>>>) -> Result<()> {
        self.order(Order::Learned(routes))
    }

    /// What the lane says of itself; nothing if it is gone.
    pub async fn report(&self) -> LaneReport {
        let (sender, answer) = oneshot::channel();
        if self.order(Order::Report(sender)).is_err() {
            return LaneReport::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Says on all links that the agent is about to stop.
    pub fn leave(&self) {
        let _ = self.order(Order::Leave);
    }

    /// Ends the lane; the device vanishes with it.
    pub fn stop(&self) {
        let _ = self.order(Order::Stop);
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).ok().context("the lane is gone")
    }
}
