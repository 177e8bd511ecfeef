//! The connection to the controller: TCP, TLS with the agent's certificate, HTTP/2. The certificate is renewed over the
//! same connection. `control` and `site_probe` exchange the messages of their roles over it.

use crate::identity::{Certificate, TlsKey};
use crate::state::{StateDir, file};
use crate::tls;
use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rand::Rng;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tombolo_proto::control_stream::RenewRequest;
use tombolo_proto::control_stream::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint};

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
pub(crate) const MAX_MESSAGE: usize = 32 << 20;

/// First and longest wait between two attempts to renew the certificate. When renewal is due, a third of the
/// certificate's lifetime is left, so a delay of minutes does no harm.
const RENEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Longest time that the agent sleeps while it waits for the renewal of its certificate. It then reads the wall clock
/// again, which may have jumped during the sleep.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// Longest time that the agent waits for one address of the controller while it has other addresses to try.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Called with the address of the controller when a TCP connection is open.
type OnReached = Arc<dyn Fn(IpAddr) + Send + Sync>;

/// The agent's identity towards the controller, and the way there.
pub(crate) struct Uplink {
    /// `https://host:port`.
    controller: String,
    /// The firewall mark of the connection's packets. `None`: none, which needs no CAP_NET_ADMIN.
    mark: Option<u32>,
    state: StateDir,
    key: TlsKey,
    certificate: Certificate,
    on_reached: OnReached,
    /// The time of the next check of the certificate.
    renew_at: Instant,
    /// The wait after a renewal that fails.
    again: Duration,
}

impl Uplink {
    /// Loads the key and the certificates, which [`join`](crate::join::join) wrote, from the state directory. Opens no
    /// connection yet.
    ///
    /// # Errors
    /// A file is missing or malformed, or the key does not fit the certificate.
    ///
    /// # Panics
    /// If rustls cannot choose a cryptography provider: the program must have installed one before with
    /// `CryptoProvider::install_default`.
    pub(crate) fn load(
        state: StateDir,
        controller: String,
        mark: Option<u32>,
        on_reached: impl Fn(IpAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        let (key, certificate) = (TlsKey::load(&state)?, Certificate::load(&state)?);
        // A key that does not fit the certificate is an error at the start. Without this check the agent would try to
        // connect for ever.
        tls::mutual(&certificate, &key)?;
        Ok(Self {
            controller,
            mark,
            state,
            key,
            certificate,
            on_reached: Arc::new(on_reached),
            renew_at: Instant::now(),
            again: RENEW_BACKOFF.0,
        })
    }

    /// Connects, and renews the certificate first if that is due.
    ///
    /// # Errors
    /// The controller is not reached, or TLS fails.
    pub(crate) async fn open(&mut self) -> Result<ControlClient<Channel>> {
        let mut client = self.client().await?;
        self.again = RENEW_BACKOFF.0;
        if self.renewal_due() && self.renew_or_warn(&mut client).await {
            // The first connection was authenticated with the old certificate, so the stream gets a new connection.
            client = self.client().await?;
        }
        self.renew_at = self.next_renewal();
        Ok(client)
    }

    /// The time at which [`renew_if_due`](Self::renew_if_due) should be called. It does not move with each message, because
    /// a timer that restarts with each message would never fire on a busy stream.
    pub(crate) const fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// Renews the certificate if that is due, and sets the time of the next call.
    pub(crate) async fn renew_if_due(&mut self, client: &mut ControlClient<Channel>) {
        if self.renewal_due() {
            let done = self.renew_or_warn(client).await;
            self.again = if done {
                RENEW_BACKOFF.0
            } else {
                (self.again * 2).min(RENEW_BACKOFF.1)
            };
        }
        self.renew_at = self.next_renewal();
    }

    /// The time of the next check of the certificate: when renewal is due, or `again` from now if renewal is due
    /// already. At most [`MAX_SLEEP`] from now.
    fn next_renewal(&self) -> Instant {
        let due = self.certificate.renew_at().duration_since(SystemTime::now());
        let wait = due.ok().filter(|d| !d.is_zero()).unwrap_or(self.again);
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
        let (url, mark, on_reached) = (self.controller.clone(), self.mark, self.on_reached.clone());
        let connector = tower::service_fn(move |_| {
            let (tls, url, on_reached) = (tls.clone(), url.clone(), on_reached.clone());
            async move {
                let (host, stream) = dial(&url, mark).await?;
                on_reached(stream.peer_addr()?.ip());
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

/// The waits between connection attempts.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self(BACKOFF.0)
    }

    /// Waits before the next attempt. `lasted`: how long the last connection, or the attempt, lasted.
    pub(crate) async fn pause(&mut self, lasted: Duration) {
        if lasted > CONNECT_TIMEOUT * 2 {
            self.0 = BACKOFF.0;
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        sleep(self.0.mul_f64(jitter)).await;
        self.0 = (self.0 * 2).min(BACKOFF.1);
    }
}

/// Converts tonic's error and keeps the cause that it wraps, because tonic's own message is only "transport error".
fn chain(e: tonic::transport::Error) -> anyhow::Error {
    anyhow::Error::new(e).context("connecting to the controller")
}

/// Opens a TCP connection to the first address that answers, in the order of the resolver. Returns the host's name and
/// the connection. With a mark, the connection carries it, so that a default route of the overlay does not capture its
/// packets.
async fn dial(url: &str, mark: Option<u32>) -> Result<(String, TcpStream)> {
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

async fn dial_one(address: SocketAddr, mark: Option<u32>) -> Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
