//! The one port: TLS, then REST and gRPC by path.

mod connection;
mod names;
mod turns;

use crate::app::App;
use crate::ca::Authority;
use crate::grpc;
use crate::tls::{self, Resolver};
use anyhow::Context;
use axum::Router;
use connection::Service;
use futures::FutureExt;
use names::certificate_names;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use turns::Turns;

/// Connections that the kernel has established and that wait to be accepted. Each costs the kernel little, and all are accepted
/// at once; the kernel itself limits this to `net.core.somaxconn`, usually 4,096.
const BACKLOG: u32 = 4096;

/// Connections that are accepted in a row, and the pause after them: in a flood, accepting, displacing and closing many at a time
/// costs half of what it costs one by one.
const AT_ONCE: usize = 128;
const PAUSE: Duration = Duration::from_millis(5);

/// How often it is looked whether the server's certificate has to be renewed: a suspended machine and a clock that was set do not
/// wait for a timer.
const RENEWAL_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// For connections to end by themselves at shutdown.
const FAREWELL: Duration = Duration::from_millis(500);

/// Everything that the port serves.
pub fn router(app: &Arc<App>, rest: Router) -> Router {
    rest.merge(grpc::router(app))
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
        let names = certificate_names(listen, public_names);
        let resolver = Arc::new(Resolver::new(authority.server(&names)?));
        let acceptor_config = Arc::new(tls::server(authority, resolver.clone())?);
        let listener = listener(listen).with_context(|| format!("cannot listen on {listen}"))?;
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
        know_agents(&app);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let service = Arc::new(Service {
            app: app.clone(),
            router,
            tls: self.acceptor_config,
            computing: Turns::new((cores / 2).max(1)),
        });
        let mut renewed = SystemTime::now();
        let mut look = tokio::time::interval(RENEWAL_CHECK_INTERVAL);
        let tasks = TaskTracker::new();
        let mut next = Instant::now();
        let expiring = app.connections.expire();
        tokio::pin!(stop, expiring);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = &mut expiring => {}
                _ = look.tick() => if is_renewal_due(renewed, SystemTime::now()) {
                    match app.authority.server(&self.names) {
                        Ok(next) => {
                            self.resolver.replace(next);
                            renewed = SystemTime::now();
                        }
                        Err(error) => tracing::error!(%error, "the server certificate was not renewed"),
                    }
                },
                accepted = accept(&self.listener, next) => {
                    let mut accepted = Some(accepted);
                    for n in 1.. {
                        match accepted {
                            Some(Ok((stream, peer))) => app.connections.admit(peer.ip(), |connection| {
                                tasks.spawn(service.clone().serve(stream, peer, connection)).abort_handle()
                            }),
                            // Out of file descriptors, most likely: it passes, and must not turn into a busy loop.
                            Some(Err(error)) => {
                                tracing::warn!(%error, "a connection was not accepted");
                                tokio::time::sleep(Duration::from_millis(50)).await;
                                break;
                            }
                            None => break,
                        }
                        accepted = (n < AT_ONCE).then(|| self.listener.accept().now_or_never()).flatten();
                    }
                    next = Instant::now() + PAUSE;
                }
            }
        }
        drop(self.listener);
        tasks.close();
        let _ = tokio::time::timeout(FAREWELL, tasks.wait()).await;
    }
}

/// The next connection, not before its time.
async fn accept(listener: &TcpListener, not_before: Instant) -> std::io::Result<(TcpStream, SocketAddr)> {
    tokio::time::sleep_until(not_before).await;
    listener.accept().await
}

/// Whether the server's certificate is old by the wall clock, or from a time that has not come.
fn is_renewal_due(renewed: SystemTime, now: SystemTime) -> bool {
    now.duration_since(renewed)
        .map_or(true, |age| age >= Authority::server_renewal())
}

fn listener(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// After a restart all agents come back at once: room is reserved at the addresses that they had.
fn know_agents(app: &App) {
    for agent in app.writer.current().topology.agents.values().filter(|a| !a.revoked) {
        for endpoint in agent.reach.endpoints.iter().chain(&agent.reach.quic_endpoint) {
            app.connections.know(&agent.id, endpoint.ip());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_certificate_is_renewed_by_the_wall_clock() {
        let renewed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let life = Authority::server_renewal();
        assert!(!is_renewal_due(renewed, renewed));
        assert!(!is_renewal_due(renewed, renewed + life / 2));
        assert!(is_renewal_due(renewed, renewed + life));
        // The clock was set back: the certificate is not valid yet.
        assert!(is_renewal_due(renewed, renewed - Duration::from_secs(60)));
    }
}
