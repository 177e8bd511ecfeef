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
use crate::capture::writer::StreamData;
use crate::config::Config;
use crate::identity::{Certificate, TlsKey};
use crate::state::{StateDir, file};
use crate::{probe, tls};
use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use rand::Rng;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_engine::health::ControllerHealth;
use tombolo_proto::config::{Feature, digest};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::control_client::ControlClient;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{
    self, AgentMessage, Applied, CaptureData, CaptureReport, Config as ConfigMessage, Hello, Probe, ProbeResult,
    Rejected, RenewRequest, Status, piece,
};
use tombolo_proto::delta::{self, Piece};
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::probe::ProbeRequest;
use tombolo_proto::status::HealthVersion;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

/// First and longest wait between two connection attempts; the wait doubles with each attempt. With these times agents
/// are connected again within seconds after a restart of the controller. A random factor of 0.5 to 1 shortens each
/// wait, so that the agents do not all connect at the same moment.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Timeout for opening a TCP connection, for all addresses of the controller together. Within these 5 s the kernel
/// repeats a lost SYN twice (after 1 s and 3 s). The TCP connection and the handshakes of TLS and HTTP/2 together have
/// 10 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 keepalive. The agent pings the controller on a connection that was silent for this time. If no answer comes
/// within the same time, the agent closes the connection. So it notices a dead controller within ten seconds.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Largest message from the controller in bytes: enough for a configuration with some 50,000 links.
const MAX_MESSAGE: usize = 32 << 20;

/// First and longest wait between two attempts to renew the certificate. When renewal is due, a third of the
/// certificate's lifetime is left, so a delay of minutes does no harm.
const RENEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Longest time that the agent sleeps while it waits for the renewal of its certificate. It then reads the wall clock
/// again, which may have jumped during the sleep.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// Longest time that the agent waits for one address of the controller while it has other addresses to try.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest number of probes at a time. Each probe has a raw socket and sends a bounded number of packets. Further
/// probes wait.
const MAX_PROBES: usize = 16;

/// The task that keeps the control stream connected.
pub struct Control {
    agent: Arc<Agent>,
    state: StateDir,
    config: Config,
    key: TlsKey,
    certificate: Certificate,
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
        let (key, certificate) = (TlsKey::load(&state)?, Certificate::load(&state)?);
        // A key that does not fit the certificate is an error at the start. Without this check the agent would try to
        // connect for ever.
        tls::mutual(&certificate, &key)?;
        Ok(Self {
            agent,
            state,
            config,
            key,
            certificate,
            takes_changes: true,
        })
    }

    /// Connects to the controller, exchanges messages, and reconnects after any failure. Applies the configurations
    /// that arrive, and replaces the certificate on disk when it is renewed. Runs until its task is cancelled;
    /// forwarding does not depend on it. If its task is cancelled while a configuration is being applied, that
    /// configuration may be applied in part (see [`Agent::apply`]).
    pub async fn run(mut self) {
        let mut wait = BACKOFF.0;
        loop {
            let begun = Instant::now();
            let Err(e) = self.session().await;
            self.agent.captures().stop_streams();
            if self.agent.set_connected(false) {
                tracing::warn!(error = %format!("{e:#}"), "connection to the controller lost; forwarding continues");
            } else {
                tracing::debug!(error = %format!("{e:#}"), "controller not reached");
            }
            if begun.elapsed() > CONNECT_TIMEOUT * 2 {
                wait = BACKOFF.0;
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn session(&mut self) -> Result<std::convert::Infallible> {
        let mut client = self.client().await?;
        let mut again = RENEW_BACKOFF.0;
        if self.renewal_due() && self.renew_or_warn(&mut client).await {
            // The first connection was authenticated with the old certificate, so the stream gets a new connection.
            client = self.client().await?;
        }
        // The time of the renewal is computed before the loop. A timer that restarts with each message would never fire
        // on a busy stream.
        let mut renew_at = self.next_renewal(again);

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
        let probes = Arc::new(tokio::sync::Semaphore::new(MAX_PROBES));
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
                    Some(FromController::Probe(p)) => self.probe(p, &probes, &outbox),
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
                () = sleep_until(renew_at) => {
                    if self.renewal_due() {
                        let done = self.renew_or_warn(&mut client).await;
                        again = if done { RENEW_BACKOFF.0 } else { (again * 2).min(RENEW_BACKOFF.1) };
                    }
                    renew_at = self.next_renewal(again);
                }
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

    /// Runs a probe in a task of its own, and returns at once. The task sends the report on `outbox`.
    fn probe(&self, p: Probe, probes: &Arc<tokio::sync::Semaphore>, outbox: &mpsc::Sender<AgentMessage>) {
        let (probes, outbox, agent) = (probes.clone(), outbox.clone(), self.agent.clone());
        tokio::spawn(async move {
            let _permit = probes.acquire().await;
            let report = match serde_json::from_slice::<ProbeRequest>(&p.request) {
                Ok(request) => {
                    let device = agent.sending_device(request.source, request.destination);
                    probe::run(&request, &device).await
                }
                Err(e) => {
                    let error = Some(format!("malformed probe: {e}"));
                    tombolo_proto::probe::ProbeReport {
                        error,
                        ..Default::default()
                    }
                }
            };
            // Serialization cannot fail, because a report consists of numbers and strings. The send fails only if the
            // stream has ended; the controller then no longer waits for the report.
            let report = serde_json::to_vec(&report).unwrap_or_default();
            let _ = outbox
                .send(message(FromAgent::ProbeResult(ProbeResult { id: p.id, report })))
                .await;
        });
    }

    /// The time of the next check of the certificate: when renewal is due, or `again` from now if renewal is due
    /// already. At most [`MAX_SLEEP`] from now.
    fn next_renewal(&self, again: Duration) -> Instant {
        let due = self.certificate.renew_at().duration_since(SystemTime::now());
        let wait = due.ok().filter(|d| !d.is_zero()).unwrap_or(again);
        Instant::now() + wait.min(MAX_SLEEP)
    }

    fn renewal_due(&self) -> bool {
        SystemTime::now() >= self.certificate.renew_at()
    }

    /// Renews the certificate. Returns whether that worked. A failure is logged and is no error, because the stream can
    /// continue with the old certificate until this certificate expires.
    async fn renew_or_warn(&mut self, client: &mut ControlClient<Channel>) -> bool {
        match self.renew(client).await {
            Ok(()) => {
                tracing::info!("certificate renewed");
                true
            }
            Err(e) => {
                tracing::warn!(error = %format!("{e:#}"), "certificate not renewed; will retry");
                false
            }
        }
    }

    async fn renew(&mut self, client: &mut ControlClient<Channel>) -> Result<()> {
        let request = RenewRequest {
            csr: self.key.request()?,
        };
        let reply = timeout(CONNECT_TIMEOUT, client.renew(request)).await??.into_inner();
        let renewed = self.certificate.renewed(reply.certificate.as_bytes())?;
        // The check comes before the new certificate replaces the old one on disk. With a certificate that does not fit
        // its key the agent could not connect any more.
        tls::mutual(&renewed, &self.key).context("the renewed certificate")?;
        self.state.write(file::CERTIFICATE, reply.certificate.as_bytes())?;
        self.certificate = renewed;
        Ok(())
    }

    async fn client(&self) -> Result<ControlClient<Channel>> {
        let client = ControlClient::new(self.connect().await?);
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    async fn connect(&self) -> Result<Channel> {
        let tls = TlsConnector::from(Arc::new(tls::mutual(&self.certificate, &self.key)?));
        let (url, mark, agent) = (self.config.controller.clone(), self.config.fwmark, self.agent.clone());
        let connector = tower::service_fn(move |_| {
            let (tls, url, agent) = (tls.clone(), url.clone(), agent.clone());
            async move {
                let (host, stream) = dial(&url, mark).await?;
                agent.controller_is_at(stream.peer_addr()?.ip());
                let name = ServerName::try_from(host).context("controller: not a host name")?;
                let stream = tls.connect(name, stream).await.context("TLS with the controller")?;
                Ok::<_, anyhow::Error>(TokioIo::new(stream))
            }
        });
        // The connector establishes TLS itself, so the URL for tonic has the scheme without TLS.
        let endpoint = Endpoint::from_static("http://tombolo-controller")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_INTERVAL)
            .keep_alive_while_idle(true);
        timeout(CONNECT_TIMEOUT * 2, endpoint.connect_with_connector(connector))
            .await
            .context("connecting")?
            .map_err(chain)
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

/// Converts tonic's error and keeps the cause that it wraps, because tonic's own message is only "transport error".
fn chain(e: tonic::transport::Error) -> anyhow::Error {
    anyhow::Error::new(e).context("connecting to the controller")
}

fn message(m: FromAgent) -> AgentMessage {
    AgentMessage { message: Some(m) }
}

/// Opens a TCP connection to the first address that answers, in the order of the resolver. Returns the host's name and
/// the connection. The connection carries the underlay's mark, so that a default route of the overlay does not capture
/// its packets.
async fn dial(url: &str, mark: u32) -> Result<(String, TcpStream)> {
    let uri: http::Uri = url.parse().context("controller: not a URL")?;
    let host = uri
        .host()
        .context("controller: the URL has no host")?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let addresses = tokio::net::lookup_host((host.as_str(), port)).await;
    let addresses: Vec<_> = addresses.with_context(|| format!("resolving {host}"))?.collect();
    let mut last = anyhow::anyhow!("{host} has no address");
    let end = Instant::now() + CONNECT_TIMEOUT;
    for (tried, address) in addresses.iter().enumerate() {
        let limit = address_timeout(end.saturating_duration_since(Instant::now()), addresses.len() - tried);
        match timeout(limit, dial_one(*address, mark)).await {
            Ok(Ok(stream)) => return Ok((host, stream)),
            Ok(Err(e)) => last = e.context(format!("connecting to {address}")),
            Err(_) => last = anyhow::anyhow!("connecting to {address}: no answer within {limit:?}"),
        }
    }
    Err(last)
}

/// Timeout for the next address. `addresses`: how many addresses are left to try, this one included; `rest`: the time
/// that is left for all of them. An unreachable address must not use up the time of the addresses after it.
fn address_timeout(rest: Duration, addresses: usize) -> Duration {
    match u32::try_from(addresses) {
        Ok(0 | 1) => rest,
        Ok(n) => (rest / n).min(ADDRESS_TIMEOUT),
        Err(_) => ADDRESS_TIMEOUT,
    }
}

async fn dial_one(address: SocketAddr, mark: u32) -> Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    SockRef::from(&socket).set_mark(mark)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
