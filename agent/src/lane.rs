//! The handle of a lane for the rest of the agent. A lane is one thread with a queue of the TUN device, UDP sockets and
//! an engine. The code of the thread is in `worker`.

pub mod builder;
mod health_checks;
mod worker;

use crate::capture::tap::Tap;
use crate::config::Config;
use crate::identity::LinkKeys;
use crate::meter::Traffic;
use crate::outbox::RedirectedPacket;
use crate::tun::Device;
use anyhow::{Context, Result};
use builder::{BuildQueue, BuildRequest, Built};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tombolo_engine::health::ControllerHealth;
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::security::{Flows, RuleName};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;
use tombolo_proto::status::{BackEndHealth, HealthVersion, LinkStatus, Totals};
use worker::Worker;

/// Status and counters of one lane, or the sums of all lanes. Counters count from the start of the process.
#[derive(Debug, Default)]
pub struct LaneReport {
    /// The links that were used, and those that are kept up even without traffic, ordered by peer.
    pub links: Vec<LinkStatus>,
    /// For each peer, the endpoint from which its last authentic WireGuard datagram came.
    pub endpoints: BTreeMap<AgentId, SocketAddr>,
    /// Dropped packets, by the name of the drop reason.
    pub drops: BTreeMap<String, u64>,
    /// How often each security rule decided.
    pub rule_hits: BTreeMap<RuleName, u64>,
    /// TCP connections in progress that security groups have adopted (D34).
    pub adopted: u64,
    /// Packets by outcome, over all links.
    pub totals: Totals,
    /// The `totals` of each lane; the index is the lane's number.
    pub lanes: Vec<Totals>,
    /// Whether the TUN device uses GSO packets.
    pub offload: bool,
    /// Packets that the kernel refused when the agent wrote them to the TUN device.
    pub tun_errors: u64,
    /// Datagrams that the kernel refused when the agent sent them.
    pub udp_errors: u64,
    /// Datagrams that the kernel dropped because the receive buffer of a socket was full.
    pub udp_overflow: u64,
    /// Route advertisements of other agents, by outcome.
    pub advertisements: AdvertisementStats,
    /// How often the lane got new tables without a new configuration, because links or routes had changed.
    pub rebuilds: u64,
    /// Statements of other agents about the health of their back ends, by outcome.
    pub health_statements: AdvertisementStats,
    /// Entries in these statements that do not count, because they are about no back end of the sender in the configuration.
    pub health_ignored: u64,
    /// The health of the back ends that this agent owns. Only lane 0 probes them.
    pub health: Vec<BackEndHealth>,
    /// The version of `health`.
    pub health_version: Option<HealthVersion>,
}

/// A lane's tables and routing state.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The tables in use. None: the lane has no configuration yet.
    pub tables: Option<Arc<Tables>>,
    /// Learned routes, and the peers that are down (D11).
    pub dynamic: RoutingState,
}

/// A configuration with its tables, ready to be installed in every lane.
#[derive(Clone)]
pub struct Prepared {
    config: Arc<AgentConfig>,
    built: Built,
}

impl Prepared {
    /// Gives the rules their numbers in flow logs.
    pub fn name_rules(&self, flows: &Flows) {
        flows.name_rules(&self.built.tables, Instant::now());
    }
}

enum Command {
    Install(Prepared, oneshot::Sender<()>),
    SetDevices(Arc<[Arc<Device>]>, oneshot::Sender<Result<()>>),
    Refresh(Box<Built>),
    BuilderReady,
    Inspect(oneshot::Sender<Inspection>),
    RememberEndpoints(BTreeMap<AgentId, SocketAddr>),
    EndpointChanged(AgentId, SocketAddr),
    PrepareSession(AgentId),
    SetBgpRoutes(BTreeMap<ResourceId, Arc<Vec<Route>>>),
    SetReportedHealth(ControllerHealth),
    Report(oneshot::Sender<LaneReport>),
    AnnounceDrain,
    Capture(Box<Tap>),
    Stop,
}

/// Handle of a lane's thread. Clones control the same lane. The lane ends when all handles are dropped, or at
/// [`stop`](Self::stop).
#[derive(Clone)]
pub struct Lane {
    commands: mpsc::UnboundedSender<Command>,
    index: u32,
}

/// Everything that a lane's thread needs at its start.
pub struct LaneSetup {
    /// Number of the lane, from 0. Its UDP port is `listen_port` plus this number.
    pub number: u16,
    /// The settings in `agent.toml`. The lane uses the ports, the buffer size and the firewall mark.
    pub config: Config,
    /// The keys of the agent's links.
    pub keys: Arc<LinkKeys>,
    /// Notified when a link of the lane changes, so that the agent reports its status.
    pub status_changed: Arc<Notify>,
    /// The channel in which lane 0 publishes the routing state that its tables were built from.
    pub routing_state: watch::Sender<RoutingState>,
    /// The first TUN device, to which the lane adds a queue of its own.
    pub device: Arc<Device>,
    /// The lane's end of the queue of redirected packets, which other lanes pass to lane 0.
    pub redirected: RedirectQueue,
    /// In lane 0: the other lanes, which lane 0 informs of endpoints and sessions. Empty in other lanes.
    pub other_lanes: Vec<Lane>,
    /// In lane 0: the queue to the table builder. None in other lanes.
    pub build_queue: Option<BuildQueue>,
    /// The flows that security groups have allowed, shared by all lanes (D33).
    pub flows: Arc<Flows>,
    /// Takes what has passed the lane's links.
    pub traffic: Traffic,
    /// When the lane ends, receives the reason, also if the lane was told to stop.
    pub ended: mpsc::UnboundedSender<String>,
}

/// A lane's end of a queue to lane 0. If a lane has no session with a peer, it redirects packets for that peer to lane
/// 0 by this queue.
pub enum RedirectQueue {
    /// The end of lane 0, which receives redirected packets.
    Receiver(mpsc::Receiver<RedirectedPacket>),
    /// The end of another lane, which sends packets to lane 0.
    Sender(mpsc::Sender<RedirectedPacket>),
}

/// Holds the reason why a lane's thread ends, and sends it when this value is dropped. So the reason is sent even if
/// the thread panics.
struct EndReporter(mpsc::UnboundedSender<String>, String);

impl EndReporter {
    fn set_reason(&mut self, reason: String) {
        self.1 = reason;
    }
}

impl Drop for EndReporter {
    fn drop(&mut self) {
        // The send fails only if the agent is stopping already and has dropped the receiver.
        let _ = self.0.send(std::mem::take(&mut self.1));
    }
}

impl Lane {
    /// Starts the lane's thread. Blocks until the thread has added its TUN queue and bound its ports, or failed. The
    /// lane forwards nothing before the first [`install`](Self::install). The thread works in the network namespace of
    /// the calling thread. CAP_NET_ADMIN is needed.
    ///
    /// # Errors
    /// The kernel refuses the thread, the queue or a port; another program may use the port. `setup.ended` then gets a
    /// reason too.
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
                        // `start` waits for this answer, so its receiver still exists.
                        let _ = ready.send(Err(e));
                        return Ok(());
                    }
                };
                let _ = ready.send(Ok(worker.tun.first_index()));
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

    /// The interface index of the first TUN device.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.index
    }

    /// Builds the tables of a configuration for [`install`](Self::install), on the calling thread, while the lane
    /// forwards. The tables contain the routes that this lane has learned. `generation` must not be 0, and must not
    /// have been used before. The build may take long, and blocks the runtime's thread meanwhile. If the lane has
    /// ended, the tables contain no learned routes. Dropping the future changes nothing.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub async fn prepare(&self, config: Arc<AgentConfig>, generation: u64) -> Result<Prepared> {
        let Inspection { tables, mut dynamic } = self.inspect().await;
        dynamic.keep(&config);
        let built = Built::of(BuildRequest {
            generation,
            config: config.clone(),
            dynamic,
            before: tables,
        })?;
        Ok(Prepared { config, built })
    }

    /// Installs a configuration that [`prepare`](Self::prepare) has built. Returns when the lane forwards by it. If the
    /// future is dropped, the configuration is installed nevertheless. `prepared` must come from a lane of the same
    /// agent. The configuration takes the place of the earlier one, also if its number is smaller.
    ///
    /// # Errors
    /// The lane has ended.
    pub async fn install(&self, prepared: Prepared) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send_command(Command::Install(prepared, done))?;
        answer.await.context("the lane ended")
    }

    /// Adds a queue to each of `devices` that the lane has no queue of yet, and closes the lane's other queues. The
    /// first device is that of [`LaneSetup`]. If the future is dropped, the lane does so nevertheless.
    ///
    /// # Errors
    /// The kernel refuses a queue, or the lane has ended.
    pub async fn set_devices(&self, devices: Arc<[Arc<Device>]>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send_command(Command::SetDevices(devices, done))?;
        answer.await.context("the lane ended")?
    }

    /// The lane's tables and routing state. Waits for the lane's answer. The result is empty if the lane has ended.
    /// Dropping the future changes nothing.
    pub async fn inspect(&self) -> Inspection {
        let (sender, answer) = oneshot::channel();
        if self.send_command(Command::Inspect(sender)).is_err() {
            return Inspection::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Passes the endpoints that peers had before a restart to the lane, and returns at once. The links use them until
    /// they learn better ones. `endpoints` has the endpoints of the peers' lane 0. Must be called before the first
    /// [`install`](Self::install), because the lane takes these endpoints only for links that it does not have yet.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn remember_endpoints(&self, endpoints: BTreeMap<AgentId, SocketAddr>) -> Result<()> {
        self.send_command(Command::RememberEndpoints(endpoints))
    }

    /// Makes the lane start a session with `peer`. To be called when lane 0 has established its session with this peer.
    /// A flow that begins before this lane's session is up stays in lane 0 until it ends, because the kernel puts a
    /// flow's packets into the queue that carried the other direction.
    fn prepare_session(&self, peer: &AgentId) {
        // Sending fails only if this lane has ended. The agent then ends too, and reports the lane's reason.
        let _ = self.send_command(Command::PrepareSession(peer.clone()));
    }

    /// Passes to this lane the endpoint of `peer` that lane 0 has learned from received datagrams.
    fn endpoint_changed(&self, peer: &AgentId, to: SocketAddr) {
        // Sending fails only if this lane has ended. The agent then ends too, and reports the lane's reason.
        let _ = self.send_command(Command::EndpointChanged(peer.clone(), to));
    }

    /// Replaces the routes learned from all BGP neighbours, and returns at once. Only lane 0 builds tables from them.
    /// The keys are the [`id`](tombolo_proto::config::Neighbour::id)s of neighbours; neighbours that the installed
    /// configuration does not have are dropped.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn set_bgp_routes(&self, routes: BTreeMap<ResourceId, Arc<Vec<Route>>>) -> Result<()> {
        self.send_command(Command::SetBgpRoutes(routes))
    }

    /// Passes on what the controller says about the health of back ends (L6), and returns at once. Only lane 0 builds tables
    /// from it.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn set_reported_health(&self, reported: ControllerHealth) -> Result<()> {
        self.send_command(Command::SetReportedHealth(reported))
    }

    /// Begins a capture in the lane, and returns at once. It ends when the other end of its ring is dropped.
    ///
    /// # Errors
    /// The lane has ended.
    pub fn capture(&self, tap: Tap) -> Result<()> {
        self.send_command(Command::Capture(Box::new(tap)))
    }

    /// Status and counters of the lane. Waits for the lane's answer. The report is empty if the lane has ended.
    pub async fn report(&self) -> LaneReport {
        let (sender, answer) = oneshot::channel();
        if self.send_command(Command::Report(sender)).is_err() {
            return LaneReport::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Tells the lane to announce on all links that the agent is about to stop, and returns at once. If the lane has
    /// ended, the call does nothing.
    pub fn announce_drain(&self) {
        // Sending fails only if the lane has ended. Such a lane has no links on which it could announce the stop.
        let _ = self.send_command(Command::AnnounceDrain);
    }

    /// Tells the lane to end, and returns at once. The kernel removes the TUN device when its last queue is closed. A
    /// second call does nothing. Packets that wait in the lane are lost. The reason arrives at [`LaneSetup::ended`]
    /// when the lane has ended.
    pub fn stop(&self) {
        // A lane that has ended needs no command to stop.
        let _ = self.send_command(Command::Stop);
    }

    fn send_command(&self, command: Command) -> Result<()> {
        self.commands.send(command).ok().context("the lane has ended")
    }
}
