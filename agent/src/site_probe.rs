//! The agent of a site probe (M10): answers requests for probes from the host's own address in a site. It has no TUN
//! device and no links, changes nothing on the host, gets no configuration, and needs no capability but CAP_NET_RAW, for
//! pings and traces.
//!
//! * `echo`: the TCP listeners that the host's own settings ask for.

mod echo;

use crate::admin;
use crate::config::Config;
use crate::probe::answer::{MAX_PROBES, Probes};
use crate::run::Signals;
use crate::state::{StateDir, file};
use crate::uplink::{Backoff, Uplink};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{AgentMessage, Hello};
use tombolo_proto::id::AgentId;

/// The status of a site probe on the local socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteProbeView {
    /// Name of the agent.
    pub agent: AgentId,
    /// URL of the controller.
    pub controller: String,
    /// Whether the control stream is up.
    pub connected: bool,
    /// Requests for probes since the start.
    pub requests: u64,
}

impl SiteProbeView {
    /// One line for health checks. A probe is healthy while the controller can ask it for probes.
    ///
    /// # Errors
    /// The controller is not reached.
    pub fn health(&self) -> Result<String> {
        if !self.connected {
            bail!("{} is not reached", self.controller);
        }
        Ok(format!(
            "connected; {} requests for probes since the start",
            self.requests
        ))
    }

    /// The status as lines of text for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let connected = if self.connected { "connected" } else { "not connected" };
        format!(
            "agent       {} (site probe)\ncontroller  {} ({connected})\nrequests    {} since the start\n",
            self.agent, self.controller, self.requests
        )
    }
}

/// What the tasks of the probe share.
struct Shared {
    config: Config,
    connected: AtomicBool,
    requests: AtomicU64,
}

impl Shared {
    fn view(&self) -> SiteProbeView {
        SiteProbeView {
            agent: self.config.agent.clone(),
            controller: self.config.controller.clone(),
            connected: self.connected.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }
}

/// Runs the probe until SIGTERM, SIGINT or SIGHUP. Holds the lock of the state directory meanwhile. Works in the network
/// namespace of the calling thread.
///
/// # Errors
/// The directory has no identity or is in use, the key does not fit the certificate, or a listener or the local socket
/// cannot be bound.
pub(crate) async fn run(state: &StateDir, config: Config) -> Result<()> {
    let _lock = state.lock()?;
    let mut signals = Signals::new()?;
    let listeners = echo::bind(&config.tcp_echo).await?;
    let socket = admin::bind(state)?;
    // No mark: no device of this host captures the packets to the controller, and a mark needs CAP_NET_ADMIN.
    let uplink = Uplink::load(state.clone(), config.controller.clone(), None, |_| {})?;
    let shared = Arc::new(Shared {
        config,
        connected: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    });
    let status = shared.clone();
    let mut tasks = vec![
        tokio::spawn(control(shared.clone(), uplink)),
        tokio::spawn(admin::serve_status(socket, move || {
            serde_json::to_string(&status.view()).context("the status")
        })),
    ];
    tasks.extend(
        listeners
            .into_iter()
            .map(|listener| tokio::spawn(echo::serve(listener))),
    );
    tracing::info!(agent = %shared.config.agent, "site probe running");
    signals.stop().await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    tracing::info!("stopped");
    state.remove(file::ADMIN_SOCKET)
}

/// Keeps the control stream connected.
async fn control(shared: Arc<Shared>, mut uplink: Uplink) {
    let mut backoff = Backoff::new();
    loop {
        let begun = Instant::now();
        let Err(e) = session(&shared, &mut uplink).await;
        if shared.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!(error = %format!("{e:#}"), "connection to the controller lost");
        } else {
            tracing::debug!(error = %format!("{e:#}"), "controller not reached");
        }
        backoff.pause(begun.elapsed()).await;
    }
}

async fn session(shared: &Shared, uplink: &mut Uplink) -> Result<std::convert::Infallible> {
    let mut client = uplink.open().await?;
    let (outbox, messages) = mpsc::channel(MAX_PROBES * 2);
    let hello = Hello {
        agent: shared.config.agent.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: vec![Feature::ConnectProbe.name().to_owned()],
        ..Hello::default()
    };
    let hello = AgentMessage {
        message: Some(FromAgent::Hello(hello)),
    };
    outbox.send(hello).await?;
    let stream = client.sync(ReceiverStream::new(messages)).await;
    let mut inbox = stream.context("opening the stream")?.into_inner();
    shared.connected.store(true, Ordering::Relaxed);
    tracing::info!(controller = shared.config.controller, "connected to the controller");
    let probes = Probes::new();
    loop {
        tokio::select! {
            received = inbox.message() => match received?.and_then(|m| m.message) {
                Some(FromController::Probe(probe)) => {
                    shared.requests.fetch_add(1, Ordering::Relaxed);
                    // The packets take the way of every packet of this host.
                    probes.answer(probe, &outbox, |_| None);
                }
                // The controller sends nothing else to a probe. Whatever a later version sends has no meaning here.
                Some(
                    FromController::Config(_)
                    | FromController::UpToDate(_)
                    | FromController::Health(_)
                    | FromController::Captures(_)
                    | FromController::CaptureRead(_),
                ) => {}
                None => bail!("the controller closed the stream"),
            },
            () = sleep_until(uplink.renew_at()) => uplink.renew_if_due(&mut client).await,
        }
    }
}
