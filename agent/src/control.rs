//! The control stream. Over this gRPC stream the agent reports its status, receives configurations, and answers probes.
//! The agent also renews its certificate over the same connection.
//!
//! ```text
//! connect ──▶ certificate past 2/3 of its life? renew ──▶ Hello ──▶ Config → apply → Applied | Rejected
//!    ▲                                                               UpToDate, Probe, Status …
//!    └──────────── wait 0.1 s … 2 s, jittered ◀── anything breaks ───────┘
//! ```
//!
//! Forwarding never depends on the control stream (D21).

use crate::agent::Agent;
use crate::config::Config;
use crate::live::StreamData;
use crate::probe::answer::{MAX_PROBES, Probes};
use crate::state::StateDir;
use crate::uplink::{Backoff, MAX_MESSAGE, Uplink};
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tombolo_engine::health::ControllerHealth;
use tombolo_proto::config::{Feature, digest};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{
    self, AgentMessage, Applied, CaptureData, CaptureReport, Config as ConfigMessage, Hello, Rejected, Status, piece,
};
use tombolo_proto::delta::{self, Piece};
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::probe::ProbeRequest;
use tombolo_proto::status::HealthVersion;
use uuid::Uuid;

/// The task that keeps the control stream connected.
pub struct Control {
    agent: Arc<Agent>,
    config: Config,
    uplink: Uplink,
    /// Whether the controller may send a configuration as a change of the one in force. False after a change that did
    /// not fit.
    takes_changes: bool,
}

impl Control {
    /// Loads the key and the certificates, which [`join`](crate::join::join) wrote, from the state directory. Opens no
    /// connection yet: see [`run`](Self::run). `config` and `state` must be those of `agent`.
    ///
    /// # Errors
    /// A file is missing or malformed, or the key does not fit the certificate.
    ///
    /// # Panics
    /// If rustls cannot choose a cryptography provider: the program must have installed one before with
    /// `CryptoProvider::install_default`.
    pub fn new(agent: Arc<Agent>, state: StateDir, config: Config) -> Result<Self> {
        let seen = agent.clone();
        let reached = move |address| seen.controller_is_at(address);
        let uplink = Uplink::load(state, config.controller.clone(), Some(config.fwmark), reached)?;
        Ok(Self {
            agent,
            config,
            uplink,
            takes_changes: true,
        })
    }

    /// Connects to the controller, exchanges messages, and reconnects after any failure. Applies the configurations
    /// that arrive, and replaces the certificate on disk when it is renewed. Runs until its task is cancelled;
    /// forwarding does not depend on it. If its task is cancelled while a configuration is being applied, that
    /// configuration may be applied in part (see [`Agent::apply`]).
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let begun = Instant::now();
            let Err(e) = self.session().await;
            self.agent.captures().stop_streams();
            if self.agent.set_connected(false) {
                tracing::warn!(error = %format!("{e:#}"), "connection to the controller lost; forwarding continues");
            } else {
                tracing::debug!(error = %format!("{e:#}"), "controller not reached");
            }
            backoff.pause(begun.elapsed()).await;
        }
    }

    async fn session(&mut self) -> Result<std::convert::Infallible> {
        let mut client = self.uplink.open().await?;
        let (outbox, messages) = mpsc::channel(MAX_PROBES * 2);
        let running = self.agent.running();
        let hello = Hello {
            agent: self.config.agent.to_string(),
            revision: running.revision.0,
            digest: running.digest,
            endpoints: self.config.advertised(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            quic_endpoint: self.config.quic_endpoint().unwrap_or_default(),
            lanes: self.config.lane_count().into(),
            features: Feature::ALL
                .iter()
                .filter(|f| self.takes_changes || **f != Feature::ConfigDelta)
                .map(|f| f.name().to_owned())
                .collect(),
        };
        outbox.send(message(FromAgent::Hello(hello))).await?;
        let mut inbox = client
            .sync(ReceiverStream::new(messages))
            .await
            .context("opening the stream")?
            .into_inner();
        self.agent.set_connected(true);
        tracing::info!(controller = self.config.controller, "connected to the controller");

        let mut status = self.agent.watch_status();
        self.agent.publish().await;
        let probes = Probes::new();
        let agent = self.agent.clone();
        let captures = agent.captures();
        captures.renew_reports();
        loop {
            tokio::select! {
                received = inbox.message() => match received?.and_then(|m| m.message) {
                    Some(FromController::Config(c)) => {
                        let bytes = self.whole(&c);
                        self.takes_changes &= bytes.is_ok();
                        let answer = self.apply(c.revision, c.digest, bytes?).await;
                        outbox.send(message(answer)).await?;
                    }
                    Some(FromController::UpToDate(u)) => self.agent.up_to_date(Revision(u.revision)),
                    Some(FromController::Probe(p)) => {
                        let agent = self.agent.clone();
                        let device = move |r: &ProbeRequest| Some(agent.sending_device(r.source, r.destination));
                        probes.answer(p, &outbox, device);
                    }
                    Some(FromController::Health(health)) => self.agent.set_reported_health(reported(health))?,
                    Some(FromController::Captures(wanted)) => self.agent.set_captures(&wanted),
                    Some(FromController::CaptureRead(read)) => {
                        if let Ok(id) = Uuid::try_parse(&read.id) {
                            captures.read(id, read.bytes);
                        }
                    }
                    None => bail!("the controller closed the stream"),
                },
                changed = status.changed() => {
                    changed?;
                    let bytes = serde_json::to_vec(&*status.borrow_and_update())?;
                    let status = Status { status: bytes, endpoints: self.config.advertised() };
                    outbox.send(message(FromAgent::Status(status))).await?;
                }
                () = captures.changed() => {
                    for (id, report) in captures.take_reports() {
                        let report = CaptureReport { id: id.to_string(), report: serde_json::to_vec(&report)? };
                        outbox.send(message(FromAgent::CaptureReport(report))).await?;
                    }
                }
                Some(StreamData { id, data, end }) = captures.next_data() => {
                    let data = CaptureData { id: id.to_string(), data, end };
                    outbox.send(message(FromAgent::CaptureData(data))).await?;
                }
                () = sleep_until(self.uplink.renew_at()) => self.uplink.renew_if_due(&mut client).await,
            }
        }
    }

    /// Returns the whole bytes of a configuration. The message has either these bytes, or the difference to the
    /// configuration in force.
    ///
    /// # Errors
    /// The configuration in force is not the one that the message changes, or the pieces do not make the announced one.
    fn whole<'m>(&self, message: &'m ConfigMessage) -> Result<Vec<u8>> {
        if message.base.is_empty() {
            return Ok(message.config.clone());
        }
        let running = self.agent.running();
        let base = running.config.map(|config| config.to_bytes()).unwrap_or_default();
        if digest(&base) != message.base {
            bail!(
                "base: the configuration is sent as a change of {}, the one in force is {}",
                message.base,
                running.digest
            );
        }
        let piece = |piece: &'m control_stream::Piece| match &piece.content {
            Some(piece::Content::Data(data)) => Ok(Piece::Data(data)),
            Some(piece::Content::Part(part)) => {
                let (start, len) = (usize::try_from(part.offset)?, usize::try_from(part.len)?);
                Ok(Piece::Base(start..start.saturating_add(len)))
            }
            None => bail!("pieces: a piece of a kind that this version does not know"),
        };
        let pieces: Vec<Piece<'m>> = message.pieces.iter().map(piece).collect::<Result<_>>()?;
        let whole = delta::decode(&base, pieces, MAX_MESSAGE).context("pieces")?;
        if digest(&whole) != message.digest {
            bail!("pieces: put together they are not the configuration {}", message.digest);
        }
        Ok(whole)
    }

    /// Applies a configuration that the controller has sent. Returns the message `Applied` or `Rejected`, which the
    /// caller sends to the controller.
    async fn apply(&self, revision: u64, announced: String, bytes: Vec<u8>) -> FromAgent {
        self.agent.configuration_received();
        let actual = digest(&bytes);
        let outcome = if actual == announced {
            self.agent.apply(Revision(revision), &actual, &bytes).await
        } else {
            Err(anyhow::anyhow!(
                "digest: the controller announced {announced}, but the configuration's digest is {actual}"
            ))
        };
        match outcome {
            Ok(()) => FromAgent::Applied(Applied {
                revision,
                digest: announced,
            }),
            Err(e) => {
                let reason = format!("{e:#}");
                tracing::warn!(
                    revision,
                    reason,
                    "configuration rejected; the previous one stays in force"
                );
                FromAgent::Rejected(Rejected {
                    revision,
                    digest: announced,
                    reason,
                })
            }
        }
    }
}

/// The health of back ends in a message. Malformed addresses and names are left out.
fn reported(health: control_stream::Health) -> ControllerHealth {
    let down = health.down.into_iter();
    let down = down.filter_map(|down| Some((ResourceId::new(down.probe), down.address.parse().ok()?)));
    let versions = health.owners.into_iter().filter_map(|owner| {
        let control_stream::Owner { agent, start, change } = owner;
        Some((AgentId::new(agent).ok()?, HealthVersion { start, change }))
    });
    ControllerHealth {
        down: down.collect(),
        versions: health.has_owners.then(|| versions.collect()),
    }
}

fn message(m: FromAgent) -> AgentMessage {
    AgentMessage { message: Some(m) }
}
