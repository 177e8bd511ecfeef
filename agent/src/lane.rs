//! A lane as the rest of the agent sees it: one thread with a TUN queue, UDP sockets and an engine. The thread itself
//! is in `worker`.

pub mod builder;
mod worker;

use crate::config::Config;
use crate::identity::LinkKeys;
use crate::outbox::RedirectedPacket;
use crate::tun::Device;
use anyhow::{Context, Result};
use builder::{BuildQueue, BuildRequest, Built};
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

/// Status and counters of one lane, or of all lanes added up.
#[derive(Debug, Default)]
pub struct LaneReport {
    /// Links that were used or are always on, ordered by peer.
    pub links: Vec<LinkStatus>,
    /// Endpoints of peers, as last authenticated.
    pub endpoints: BTreeMap<AgentId, SocketAddr>,
    /// Dropped packets by the name of the drop reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets by outcome.
    pub totals: Totals,
    /// `totals` of each lane, lane 0 first.
    pub lanes: Vec<Totals>,
    /// Whether the TUN device uses GSO packets.
    pub offload: bool,
    /// Writes to the TUN device that the kernel refused.
    pub tun_errors: u64,
    /// Datagrams that the kernel refused to send.
    pub udp_errors: u64,
    /// Datagrams dropped because a receive buffer was full.
    pub udp_overflow: u64,
    /// Route advertisements by outcome.
    pub advertisements: AdvertisementStats,
    /// Table builds without a new configuration, because routes or links changed.
    pub rebuilds: u64,
}

/// A lane's tables and routing state.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The tables in use; none before the first configuration.
    pub tables: Option<Arc<Tables>>,
    /// Learned routes and unreachable agents (D11).
    pub dynamic: RoutingState,
}

/// A configuration with its tables, ready to be installed.
#[derive(Clone)]
pub struct Prepared {
    config: Arc<AgentConfig>,
    built: Built,
}

enum Command {
    Install(Prepared, oneshot::Sender<()>),
    Refresh(Box<Built>),
    BuilderReady,
    Inspect(oneshot::Sender<Inspection>),
    RememberEndpoints(BTreeMap<AgentId, SocketAddr>),
    EndpointChanged(AgentId, SocketAddr),
    PrepareSession(AgentId),
    SetBgpRoutes(BTreeMap<ResourceId, Arc<Vec<Route>>>),
    Report(oneshot::Sender<LaneReport>),
    AnnounceDrain,
    Stop,
}

/// Handle of a lane's thread. Clones command the same lane.
#[derive(Clone)]
pub struct Lane {
    commands: mpsc::UnboundedSender<Command>,
    index: u32,
}

/// Everything that a lane's thread is started with.
pub struct LaneSetup {
    /// Number of the lane, from 0.
    pub number: u16,
    /// The agent's settings.
    pub config: Config,
    /// The keys of the agent's links.
    pub keys: Arc<LinkKeys>,
    /// Notified when a link changes, so that the status is reported.
    pub status_changed: Arc<Notify>,
    /// Where lane 0 publishes the routing state in use.
    pub routing_state: watch::Sender<RoutingState>,
    /// The TUN device, to which the lane adds a queue.
    pub device: Arc<Device>,
    /// The lane's end of the queue of redirected packets.
    pub redirected: RedirectQueue,
    /// In lane 0: the other lanes, which lane 0 informs of endpoints and sessions. Empty elsewhere.
    pub other_lanes: Vec<Lane>,
    /// In lane 0: the queue to the table builder.
    pub build_queue: Option<BuildQueue>,
    /// Receives the reason when the lane ends.
    pub ended: mpsc::UnboundedSender<String>,
}

/// A lane's end of the queue of packets that lanes without a session redirect to lane 0.
pub enum RedirectQueue {
    /// Lane 0: receives redirected packets.
    Receiver(mpsc::Receiver<RedirectedPacket>),
    /// Other lanes: send them to lane 0.
    Sender(mpsc::Sender<RedirectedPacket>),
}

/// Sends the reason when a lane's thread ends, including by a panic.
struct EndReporter(mpsc::UnboundedSender<String>, String);

impl EndReporter {
    fn set_reason(&mut self, reason: String) {
        self.1 = reason;
    }
}

impl Drop for EndReporter {
    fn drop(&mut self) {
        // The receiver is gone if the agent is stopping already.
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

impl Lane {
    /// Starts the lane's thread. Returns when it has added its TUN queue and bound its ports.
    ///
    /// # Errors
    /// The kernel refuses the queue, a port or the thread.
    pub fn start(setup: LaneSetup) -> Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, started) = std::sync::mpsc::channel();
        let name = format!("lane-{}", setup.number);
        let mut end_reporter = EndReporter(setup.ended.clone(), format!("{name}: panic"));
        let thread_name = name.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.context("starting the lane's runtime") {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(e))),
            };
            let outcome = runtime.block_on(async {
                let worker = match Worker::new(setup, inbox) {
                    Ok(worker) => worker,
                    Err(e) => {
                        // `start` waits for this answer; its receiver cannot be gone.
                        let _ = ready.send(Err(e));
                        return Ok(());
                    }
                };
                let _ = ready.send(Ok(worker.tun.index()));
                worker.run().await
            });
            end_reporter.set_reason(
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
        Ok(Self { commands, index })
    }

    /// The interface index of the TUN device.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.index
    }

    /// Builds the tables of a configuration on the calling thread, beside the data path. `generation` must not have
    /// been used before.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub async fn prepare(&self, config: Arc<AgentConfig>, generation: u64) -> Result<Prepared> {
        let mut dynamic = self.inspect().await.dynamic;
        dynamic.keep(&config);
        let built = Built::of(BuildRequest {
            generation,
            config: config.clone(),
            dynamic,
        })?;
        Ok(Prepared { config, built })
    }

    /// Installs a configuration. Returns when the lane forwards by it.
    ///
    /// # Errors
    /// The lane has ended.
    pub async fn install(&self, prepared: Prepared) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send_command(Command::Install(prepared, done))?;
        answer.await.context("the lane ended")
    }

    /// The lane's tables and routing state; empty if the lane has ended.
    pub async fn inspect(&self) -> Inspection {
        let (sender, answer) = oneshot::channel();
        if self.send_command(Command::Inspect(sender)).is_err() {
            return Inspection::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Passes the endpoints that peers had before a restart.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn remember_endpoints(&self, endpoints: BTreeMap<AgentId, SocketAddr>) -> Result<()> {
        self.send_command(Command::RememberEndpoints(endpoints))
    }

    /// Has the lane start a session with `peer`, which lane 0 reaches now. Flows that begin before the session is up
    /// stay in lane 0: the kernel queues a flow's packets where it saw the other direction.
    fn prepare_session(&self, peer: &AgentId) {
        // A lane that has ended ends the agent, which reports it.
        let _ = self.send_command(Command::PrepareSession(peer.clone()));
    }

    /// Passes the endpoint at which lane 0 last heard `peer`.
    fn endpoint_changed(&self, peer: &AgentId, to: SocketAddr) {
        // As in `prepare_session`.
        let _ = self.send_command(Command::EndpointChanged(peer.clone(), to));
    }

    /// Replaces the routes learned from BGP neighbours.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn set_bgp_routes(&self, routes: BTreeMap<ResourceId, Arc<Vec<Route>>>) -> Result<()> {
        self.send_command(Command::SetBgpRoutes(routes))
    }

    /// Status and counters of the lane; empty if the lane has ended.
    pub async fn report(&self) -> LaneReport {
        let (sender, answer) = oneshot::channel();
        if self.send_command(Command::Report(sender)).is_err() {
            return LaneReport::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Announces on all links that the agent is about to stop.
    pub fn announce_drain(&self) {
        // A lane that has ended has no links left to announce it on.
        let _ = self.send_command(Command::AnnounceDrain);
    }

    /// Ends the lane. The kernel removes the TUN device with its last queue.
    pub fn stop(&self) {
        // A lane that has ended is stopped already.
        let _ = self.send_command(Command::Stop);
    }

    fn send_command(&self, command: Command) -> Result<()> {
        self.commands.send(command).ok().context("the lane has ended")
    }
}
