//! An attacker of the controller's port, without credentials, for tests and benchmarks. The program holds many
//! connections in one state, from many addresses, and reports how much CPU time the attack costs it.
//!
//! ```text
//! stranger --to 203.0.113.10:8443 --connections 10000 --addresses 198.18.0.0/21 --state tls --seconds 20
//! ```
//!
//! Once a second, and at its end, it prints one line of JSON with the held connections, the attempts, the connections that the
//! controller closed, the refused requests, and its own CPU seconds. The addresses must be local to the host:
//! `ip route add local 198.18.0.0/21 dev lo`.

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use ipnet::Ipv4Net;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The timeout of connections, handshakes and HTTP/2 preludes. It is long, because the attacked controller is busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// With `--state body`, each connection sends a request that announces a body of this many bytes, just under the controller's
/// limit of 64 KiB for requests without a token. It sends the first [`FIRST_PART`] bytes at once, and then a byte a second.
const BODY_LENGTH: usize = 65_000;
const FIRST_PART: usize = 32_000;

/// With `--state grpc`: the length in bytes that each stream announces for its message, and the number of streams of
/// one connection. The controller permits fewer streams.
const MESSAGE_LENGTH: u32 = 1 << 20;
const STREAMS_PER_CONNECTION: usize = 32;

#[derive(Debug, Parser)]
struct Arguments {
    /// The controller's address and port.
    #[arg(long)]
    to: SocketAddr,
    /// Connections to hold at a time. Closed ones are reopened.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// The source addresses, in turns. None: the kernel chooses.
    #[arg(long)]
    addresses: Option<Ipv4Net>,
    /// The state in which the stranger holds each connection.
    #[arg(long)]
    state: State,
    /// The duration of the attack in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The most connections to open in a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// A TCP connection on which the stranger sends nothing.
    Tcp,
    /// A TLS handshake that ends after the ClientHello.
    Tls,
    /// An HTTP/2 connection without a request.
    H2,
    /// A request to an open route whose body never ends.
    Body,
    /// Streams of the agents' service (gRPC), each with a large message that never ends.
    Grpc,
}

#[derive(Debug, Default)]
struct Counts {
    held: AtomicU64,
    attempts: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
}

struct Stranger {
    arguments: Arguments,
    tls: TlsConnector,
    /// The bytes of a TLS record with a ClientHello. All connections in state `tls` send the same ones.
    hello: Vec<u8>,
    counts: Counts,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<()> {
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    if matches!(arguments.state, State::H2 | State::Grpc) {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let config = Arc::new(config);
    let mut hello = Vec::new();
    ClientConnection::new(config.clone(), name())?.write_tls(&mut hello)?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut pace = interval(Duration::from_secs(1) / arguments.rate.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut report = interval(Duration::from_secs(1));
    let stranger = Arc::new(Stranger {
        tls: TlsConnector::from(config),
        hello,
        counts: Counts::default(),
        arguments,
    });
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => break,
            _ = report.tick() => stranger.report()?,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            _ = pace.tick(), if tasks.len() < stranger.arguments.connections => {
                let number = stranger.counts.attempts.fetch_add(1, Ordering::Relaxed);
                let stranger = stranger.clone();
                tasks.spawn(async move { stranger.hold(number).await });
            }
        }
    }
    stranger.report()
}

fn name() -> ServerName<'static> {
    ServerName::from(IpAddr::from([127, 0, 0, 1]))
}

impl Stranger {
    /// Opens a connection, and holds it until the controller closes it.
    async fn hold(&self, number: u64) -> Result<()> {
        let stream = timeout(ANSWER_TIMEOUT, self.connect(number)).await??;
        match self.arguments.state {
            State::Tcp => self.count(silence(stream)).await,
            State::Tls => self.half_done(stream).await,
            State::H2 => self.http2(stream).await,
            State::Body => self.slow_body(stream).await,
            State::Grpc => self.streams(stream).await,
        }
    }

    async fn connect(&self, number: u64) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(net) = self.arguments.addresses {
            let size = 1_u64 << (32 - net.prefix_len());
            let offset = u32::try_from(number % size)?;
            let from = net.network().to_bits() + offset;
            socket.bind(SocketAddr::new(std::net::Ipv4Addr::from_bits(from).into(), 0))?;
        }
        Ok(socket.connect(self.arguments.to).await?)
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        Ok(timeout(ANSWER_TIMEOUT, self.tls.connect(name(), stream)).await??)
    }

    /// Counts a connection as held until it ends.
    async fn count<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.counts.held.fetch_add(1, Ordering::Relaxed);
        let result = work.await;
        self.counts.held.fetch_sub(1, Ordering::Relaxed);
        self.counts.closed.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn half_done(&self, mut stream: TcpStream) -> Result<()> {
        stream.write_all(&self.hello).await?;
        self.count(silence(stream)).await
    }

    async fn http2(&self, stream: TcpStream) -> Result<()> {
        let stream = self.secure(stream).await?;
        let (_requests, connection) = timeout(ANSWER_TIMEOUT, h2::client::handshake(stream)).await??;
        self.count(async { Ok(connection.await?) }).await
    }

    async fn slow_body(&self, stream: TcpStream) -> Result<()> {
        let mut stream = self.secure(stream).await?;
        let head = format!(
            "POST /fabric/v1/join HTTP/1.1\r\nhost: controller\r\ncontent-length: {BODY_LENGTH}\r\n\r\n{}",
            " ".repeat(FIRST_PART)
        );
        stream.write_all(head.as_bytes()).await?;
        let (read, mut write) = tokio::io::split(stream);
        let trickle = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                write.write_all(b" ").await?;
                write.flush().await?;
            }
        };
        self.count(async {
            tokio::select! {
                ended = silence(read) => ended,
                ended = trickle => ended,
            }
        })
        .await
    }

    async fn streams(&self, stream: TcpStream) -> Result<()> {
        let stream = self.secure(stream).await?;
        let (requests, connection) = timeout(ANSWER_TIMEOUT, h2::client::handshake(stream)).await??;
        let streams = (0..STREAMS_PER_CONNECTION).map(|_| async {
            // `ready` waits while the connection has as many streams as the controller permits.
            let mut requests = requests.clone().ready().await?;
            let request = http::Request::post("https://controller/tombolo.v1.Control/Renew")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())?;
            let (answer, mut body) = requests.send_request(request, false)?;
            let mut answer = std::pin::pin!(answer);
            let fill = async {
                let mut first = vec![0];
                first.extend_from_slice(&MESSAGE_LENGTH.to_be_bytes());
                send(&mut body, first.into()).await?;
                // All but the last byte, so that the message never ends.
                let mut rest = MESSAGE_LENGTH as usize - 1;
                while rest > 0 {
                    let part = rest.min(16_000);
                    send(&mut body, vec![b' '; part].into()).await?;
                    rest -= part;
                }
                anyhow::Ok(())
            };
            let fill = async {
                // If the controller closes the stream, sending fails, but the controller's answer gives the reason. So
                // an error of sending is ignored, and the answer is awaited.
                let _ = fill.await;
                std::future::pending::<()>().await;
            };
            let refused = tokio::select! {
                answer = &mut answer => answer.is_ok_and(|a| a.headers().get("grpc-status").is_some_and(|s| s == "16")),
                () = fill => false,
            };
            self.counts.refused.fetch_add(u64::from(refused), Ordering::Relaxed);
            anyhow::Ok(())
        });
        let streams = futures::future::join_all(streams);
        self.count(async {
            tokio::select! {
                ended = connection => Ok(ended?),
                _ = streams => Ok(()),
            }
        })
        .await
    }

    fn report(&self) -> Result<()> {
        let usage = getrusage(UsageWho::RUSAGE_SELF).context("own CPU time")?;
        let cpu = usage.user_time() + usage.system_time();
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        println!(
            "{}",
            serde_json::json!({
                "held": read(&self.counts.held),
                "attempts": read(&self.counts.attempts),
                "closed": read(&self.counts.closed),
                "refused": read(&self.counts.refused),
                "cpuSeconds": Duration::from_micros(cpu.num_microseconds().unsigned_abs()).as_secs_f64(),
            })
        );
        Ok(())
    }
}

/// Reads until the peer closes the connection.
async fn silence(mut stream: impl tokio::io::AsyncRead + Unpin) -> Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Sends a part of a body when HTTP/2's flow control permits it.
async fn send(body: &mut h2::SendStream<Bytes>, part: Bytes) -> Result<()> {
    body.reserve_capacity(part.len());
    while body.capacity() < part.len() {
        let more = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
        more.context("the stream is closed")??;
    }
    Ok(body.send_data(part, false)?)
}

/// Accepts every certificate: the attacker does not authenticate the controller.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
