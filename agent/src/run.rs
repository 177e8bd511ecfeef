//! Lifecycle of the agent: the order in which its parts start and stop, and the tasks that run in between.

use crate::agent::Agent;
use crate::apply::Kernel;
use crate::apply::plan::KernelIds;
use crate::bgp::{Bgp, Bird, BirdService};
use crate::claim::take_host;
use crate::config::Config;
use crate::control::Control;
use crate::first_join::{FirstJoin, join_when_possible};
use crate::identity::LinkKeys;
use crate::lanes::Lanes;
use crate::netlink::Tun;
use crate::state::{StateDir, file};
use crate::{admin, flow_file, host, site_probe};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tombolo_engine::security::Flows;

/// Delay after the start until the agent releases the memory of code that only the start uses. By then the first
/// configuration is usually in force.
const RELEASE_TEXT_DELAY: Duration = Duration::from_secs(2);

/// Longest time for which a stopping agent waits for its lanes. A lane ends after its present turn, within
/// milliseconds.
const LANE_END_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the agent until SIGTERM, SIGINT or SIGHUP, or until a lane ends. Starts with the last good configuration, and
/// connects to the controller in the background. After a signal a gateway or a circuit edge first drains: it announces
/// that it will stop, and forwards until its peers have switched to other paths. A second SIGTERM or SIGINT cuts the
/// drain short. Holds the lock of the state directory meanwhile. `runtime` is the directory for data that the next
/// start needs and that a boot may remove: the flows of security groups (D34). It may be the state directory. BIRD is a
/// child process of the agent, unless `bird` names a service. A site probe only answers requests for probes. Must run in a Tokio runtime with I/O and time, needs
/// CAP_NET_ADMIN and works in the network namespace of the calling thread. The future must not be dropped before it
/// returns, because its tasks would run on.
///
/// # Errors
/// The directory has no identity or is in use, the settings are invalid, another agent has the device or a routing
/// table, the kernel refuses the device or a port, BIRD's directories cannot be created, or the local socket or
/// `metrics_listen` cannot be bound. After the start: a lane has ended, the agent has no usable certificate and no
/// configuration, the last configuration cannot be written, or the local socket's file cannot be removed.
///
/// # Panics
/// If the program has not installed a cryptography provider of rustls before, with `CryptoProvider::install_default`.
pub async fn run(state: &StateDir, runtime: &StateDir, bird: Option<BirdService>) -> Result<()> {
    let config = Config::load(state)?;
    if config.site_probe {
        return site_probe::run(state, config).await;
    }
    let _lock = state.lock()?;
    // The keys are read first, because a start from an incomplete directory must not change the host.
    let keys = LinkKeys::load(state)?;
    let (_claim, netlink, inherited) = take_host(state, &config)?;
    host::restore_or_warn(&config.interface);
    let mut signals = Signals::new()?;

    let status_changed = Arc::new(Notify::new());
    let (lanes, mut ended) = Lanes::start(&config, keys, &status_changed)?;
    let (flows, lane_count) = (lanes.flows().clone(), lanes.count());
    load_flows(runtime, &flows);
    let device = Tun {
        name: config.interface.clone(),
        index: lanes.device_index(),
    };
    let kernel = Kernel::new(netlink, device, inherited).await?;
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let bird = bird.map_or_else(|| Bird::Child(state.path(file::BGP)), Bird::Service);
    let bgp = Bgp::start(&bird).await?;
    let agent = Agent::new(
        config.clone(),
        state.clone(),
        numbers,
        lanes,
        kernel,
        bgp,
        status_changed,
    );
    let agent = Arc::new(agent);
    // The sockets are bound before the agent forwards anything, so that a failed bind ends the agent before that.
    let socket = admin::bind(state)?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(admin::bind_metrics(address).await?),
        None => None,
    };
    let last_good_writer = tokio::spawn({
        let last_good = agent.last_good().clone();
        async move { last_good.run().await }
    });
    let forwards = resume(&agent).await;
    let tasks = Tasks::start(&agent, last_good_writer, socket, metrics_listener);
    let control = start_control(&agent, state, &config, forwards);
    let outcome = match &control {
        Err(_) => Ok(()),
        Ok(_) => {
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "running");
            wait_for_end(&mut signals, &mut ended).await
        }
    };
    // From now on the lanes get no changes of BGP neighbours' routes, so that the routes in use stay when the sessions
    // end. Packets still arrive during the drain.
    tasks.bgp_routes.abort();
    if outcome.is_ok() {
        tokio::select! {
            () = agent.drain() => {}
            () = signals.cancel_drain() => {}
        }
    }
    if let Ok(Some(control)) = &control {
        control.abort();
    }
    tasks.abort();
    agent.shut_down();
    if outcome.is_ok() && control.is_ok() {
        lanes_ended(&mut ended, lane_count).await;
        // The next start needs the flows (D34), and the last records may take longer than the service manager waits.
        save_flows(runtime, &flows);
        agent.finish_flow_logs();
    }
    agent.captures().finish();
    agent.save_meters();
    // Each of the following steps is tried, even if an earlier step has failed.
    let saved = agent.last_good().flush().context("the last good configuration");
    let removed = state.remove(file::ADMIN_SOCKET);
    tracing::info!("stopped");
    control.map(drop).and(outcome).and(saved).and(removed)
}

/// Waits until a signal arrives, which is no error, or until a lane has ended.
///
/// # Errors
/// A lane has ended. The error has the reason.
async fn wait_for_end(signals: &mut Signals, ended: &mut UnboundedReceiver<String>) -> Result<()> {
    tokio::select! {
        () = signals.stop() => Ok(()),
        reason = ended.recv() => {
            let reason = reason.unwrap_or_else(|| "panic".to_owned());
            Err(anyhow::anyhow!("the data path ended: {reason}"))
        }
    }
}

/// Loads the flows that the previous run has saved (D34). Without them, TCP connections are adopted as after a crash.
fn load_flows(runtime: &StateDir, flows: &Flows) {
    match flow_file::load(runtime, flows) {
        Ok(Some(count)) => tracing::info!(count, "flows of the previous run loaded"),
        Ok(None) => {}
        Err(e) => tracing::warn!(
            error = %format!("{e:#}"),
            "flows of the previous run not used: security rules decide about all flows anew, except for TCP connections in \
             progress (D34)"
        ),
    }
}

/// Saves the flows for the next start (D34).
fn save_flows(runtime: &StateDir, flows: &Flows) {
    let begun = Instant::now();
    match flow_file::save(runtime, flows) {
        Ok(bytes) => tracing::debug!(bytes, took = ?begun.elapsed(), "flows saved"),
        Err(e) => tracing::warn!(
            error = %format!("{e:#}"),
            "flows not saved: after the next start security rules decide about all flows anew, except for TCP connections \
             in progress (D34)"
        ),
    }
}

/// Waits until all lanes have ended, so that they change no flows any more, but not longer than [`LANE_END_TIMEOUT`].
async fn lanes_ended(ended: &mut UnboundedReceiver<String>, count: usize) {
    let all = async {
        for _ in 0..count {
            ended.recv().await;
        }
    };
    // After the timeout the flows are saved all the same. Those that a lane changes meanwhile may be missing.
    let _ = tokio::time::timeout(LANE_END_TIMEOUT, all).await;
}

/// The signals that stop the agent.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the first of the three signals.
    pub(crate) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Waits for SIGTERM or SIGINT, which cut the drain short. SIGHUP does not.
    async fn cancel_drain(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Puts the last good configuration in force, if it is usable. Returns whether the agent forwards packets by it.
async fn resume(agent: &Agent) -> bool {
    match agent.resume().await {
        Ok(true) => {
            tracing::info!("forwarding from the last good configuration");
            true
        }
        Ok(false) => {
            tracing::info!("no configuration yet: waiting for the controller");
            false
        }
        Err(e) => {
            tracing::warn!(error = %format!("{e:#}"), "last good configuration not usable: waiting for the controller");
            false
        }
    }
}

/// Starts the task that connects to the controller. Returns none if a key or certificate is unusable, so that no
/// connection is possible, but the agent forwards packets.
///
/// # Errors
/// A key or a certificate is unusable, and the agent has no configuration by which it could forward.
fn start_control(
    agent: &Arc<Agent>,
    state: &StateDir,
    config: &Config,
    forwards: bool,
) -> Result<Option<JoinHandle<()>>> {
    match Control::new(agent.clone(), state.clone(), config.clone()) {
        Ok(control) => Ok(Some(tokio::spawn(control.run()))),
        // D21: an agent that forwards packets goes on without a controller.
        Err(e) if forwards => {
            tracing::error!(
                error = %format!("{e:#}"),
                "no connection to the controller possible; forwarding continues from the last good configuration"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The tasks that run until the agent stops.
struct Tasks {
    /// The task that passes the routes of BGP neighbours to the lanes.
    bgp_routes: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

impl Tasks {
    fn start(
        agent: &Arc<Agent>,
        last_good_writer: JoinHandle<()>,
        socket: UnixListener,
        metrics_listener: Option<TcpListener>,
    ) -> Self {
        let reporter = tokio::spawn({
            let agent = agent.clone();
            async move { agent.run_reporter().await }
        });
        let kernel_sync = tokio::spawn({
            let agent = agent.clone();
            async move { agent.sync_kernel().await }
        });
        let bgp_routes = tokio::spawn({
            let agent = agent.clone();
            async move { agent.forward_bgp_routes().await }
        });
        let admin_server = tokio::spawn(admin::serve(socket, agent.clone()));
        if let Some(listener) = metrics_listener {
            tokio::spawn(admin::serve_metrics(listener, agent.clone()));
        }
        tokio::spawn(async {
            tokio::time::sleep(RELEASE_TEXT_DELAY).await;
            if let Err(e) = crate::sys::release_text() {
                tracing::debug!(error = %e, "code pages of the start not released");
            }
        });
        Self {
            bgp_routes,
            others: vec![admin_server, reporter, kernel_sync, last_good_writer],
        }
    }

    /// Aborts all tasks except `bgp_routes`, which ends before the drain.
    fn abort(&self) {
        self.others.iter().for_each(JoinHandle::abort);
    }
}

/// Joins before the first run. Waits for the token file and the controller, as [`join_when_possible`] does, and holds
/// the lock of the state directory meanwhile. Returns true if the agent has joined, and false if SIGTERM or SIGINT
/// ended the wait. From the first call on, both signals have no other effect in this process, because Tokio keeps its
/// handlers. An attempt that the signal ends may have written keys and used up the token.
///
/// # Errors
/// Another process has locked the state directory, a signal handler cannot be installed, the timeout has passed, or
/// joining failed for a reason that waiting cannot cure.
///
/// # Panics
/// As [`join_when_possible`].
pub async fn join(state: &StateDir, first: &FirstJoin) -> Result<bool> {
    let _lock = state.lock()?;
    // In a container the agent may be PID 1, for which signals have no default action. Without these handlers SIGTERM
    // would not end the wait.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        joined = join_when_possible(state, first) => {
            let config = joined?;
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "joined");
            Ok(true)
        }
        _ = terminate.recv() => Ok(false),
        _ = interrupt.recv() => Ok(false),
    }
}
