//! The one port: TLS, then REST and gRPC by path.

use crate::app::App;
use crate::ca::Authority;
use crate::grpc::ControlService;
use crate::tls::{self, Resolver};
use anyhow::Context;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tombolo_proto::wire::control_server::ControlServer;
use tower::ServiceExt;

/// Where a request comes from: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// The client certificate of the connection, verified but for its end date: an extension of its requests.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub CertificateDer<'static>);

/// Largest configuration that travels, bytes.
const MAX_CONFIG: usize = 64 << 20;

/// Largest message of an agent, bytes. It is decoded before anybody looks who sent it.
const MAX_FROM_AGENT: usize = 1 << 20;

/// Connections whose TLS handshake is under way; further ones wait to be accepted.
const MAX_HANDSHAKES: usize = 256;

/// Connections without a client certificate; further ones are closed. Agents do not count, so nobody locks them out.
const MAX_STRANGERS: usize = 4096;

/// Requests of one connection at a time.
const MAX_STREAMS: u32 = 32;

/// For a TLS handshake, and for a request's headers.
const PATIENCE: Duration = Duration::from_secs(10);

/// For connections to end by themselves at shutdown.
const FAREWELL: Duration = Duration::from_millis(500);

/// The names and addresses that the server certificate is for.
#[must_use]
pub fn names(listen: SocketAddr, public: &[String]) -> Vec<String> {
    let mut names: Vec<String> = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        names.push(host.trim().to_owned());
    }
    if listen.ip().is_unspecified() {
        names.extend(own_addresses().iter().map(IpAddr::to_string));
    }
    names.extend(public.iter().cloned());
    names.sort();
    names.dedup();
    names.retain(|n| !n.is_empty());
    names
}

/// Addresses of this host, as far as the kernel's IPv4 table and IPv6 interface list tell.
fn own_addresses() -> Vec<IpAddr> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut found = Vec::new();
    let mut last = None;
    for line in v4.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<IpAddr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.take());
        }
    }
    for line in std::fs::read_to_string("/proc/net/if_inet6")
        .unwrap_or_default()
        .lines()
    {
        let text = line.split_whitespace().next().unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(text, 16) {
            found.push(IpAddr::V6(bits.into()));
        }
    }
    found
}

/// Everything that the port serves.
pub fn router(app: &Arc<App>, rest: Router) -> Router {
    let control = ControlServer::new(ControlService::new(app.clone()))
        .max_decoding_message_size(MAX_FROM_AGENT)
        .max_encoding_message_size(MAX_CONFIG);
    rest.route_service("/tombolo.v1.Control/{*method}", control)
}

/// A bound port.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    acceptor_config: Arc<rustls::ServerConfig>,
    resolver: Arc<Resolver>,
    names: Vec<String>,
}

impl Server {
    /// Binds the port and makes the server's certificate.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn bind(listen: SocketAddr, public_names: &[String], authority: &Authority) -> anyhow::Result<Self> {
        let names = names(listen, public_names);
        let resolver = Arc::new(Resolver::new(authority.server(&names)?));
        let acceptor_config = Arc::new(tls::server(authority, resolver.clone())?);
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        Ok(Self {
            listener,
            acceptor_config,
            resolver,
            names,
        })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends; then connections get a moment to end.
    pub async fn serve(self, app: Arc<App>, router: Router, stop: impl Future<Output = ()>) {
        let acceptor = TlsAcceptor::from(self.acceptor_config);
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        let mut renewal = tokio::time::interval(Authority::server_renewal());
        renewal.tick().await;
        let mut connections = tokio::task::JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = renewal.tick() => match app.authority.server(&self.names) {
                    Ok(next) => self.resolver.replace(next),
                    Err(error) => tracing::error!(%error, "the server certificate was not renewed"),
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                (handshake, accepted) = accept(&self.listener, &handshakes) => match accepted {
                    Ok((stream, peer)) => {
                        let acceptor = acceptor.clone();
                        let (strangers, router) = (strangers.clone(), router.clone());
                        connections.spawn(async move {
                            let secured = secure(&acceptor, stream, peer).await;
                            drop(handshake);
                            if let Some(stream) = secured {
                                connection(stream, peer, &strangers, router).await;
                            }
                        });
                    }
                    // Out of file descriptors, most likely: it passes, and must not turn into a busy loop.
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(self.listener);
        let _ = tokio::time::timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
    }
}

/// Takes the next connection when there is room for its handshake.
async fn accept(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, std::io::Result<(TcpStream, SocketAddr)>) {
    // It is never closed, so there is always a permit in the end.
    let permit = handshakes.clone().acquire_owned().await.ok();
    (permit, listener.accept().await)
}

/// The TLS handshake.
async fn secure(acceptor: &TlsAcceptor, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
    None
}

async fn connection(stream: TlsStream<TcpStream>, peer: SocketAddr, strangers: &Arc<Semaphore>, router: Router) {
    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.map(|c| PeerCertificate(c.clone().into_owned()));
    let _place = match &certificate {
        Some(_) => None,
        None => match strangers.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => return tracing::warn!(%peer, "too many connections: this one is closed"),
        },
    };
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(PeerAddr(peer));
        if let Some(certificate) = &certificate {
            parts.extensions.insert(certificate.clone());
        }
        router
            .clone()
            .oneshot(hyper::Request::from_parts(parts, axum::body::Body::new(body)))
    });
    // By what TLS agreed on, and not by the first bytes: those may never come.
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if two {
        builder = builder.http2_only();
    } else {
        builder = builder.http1_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20));
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
