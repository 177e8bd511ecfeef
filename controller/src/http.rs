//! The controller's only port: TLS, then REST and gRPC, distinguished by path.

mod connection;
mod lifo_semaphore;
mod names;

use crate::app::App;
use crate::ca::Authority;
use crate::grpc;
use crate::tls::{self, Resolver};
use anyhow::Context;
use axum::Router;
use connection::Service;
use futures::FutureExt;
use lifo_semaphore::LifoSemaphore;
use names::certificate_names;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// The backlog of `listen(2)`: the maximum number of established connections that wait for `accept`. The kernel reduces
/// it to `net.core.somaxconn`, whose default is 4,096 since Linux 5.4.
const BACKLOG: u32 = 4096;

/// Maximum number of connections that are accepted in one batch. In a flood, it costs half as much time to accept,
/// displace and close connections in batches as to do so one by one.
const MAX_ACCEPT_BATCH: usize = 128;

/// Time between two batches, and so the longest time that a new connection waits for `accept` while the batches are not
/// full.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(5);

/// Time between two checks of the certificate's age by the wall clock. A single timer for the whole lifetime would be
/// wrong after the machine was suspended or its clock was changed.
const RENEWAL_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Pause after `accept` failed. The usual reason is that the process has no free file descriptor, which changes when
/// connections close. Without a pause the loop would use a whole core until then.
const ACCEPT_ERROR_BACKOFF: Duration = Duration::from_millis(50);

/// Time that open connections get at shutdown to complete their responses. Most responses take milliseconds.
/// Connections of agents stay open until this time is over.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// The routes of the port: those of `rest`, and the control service of the agents. `rest` is the result of
/// [`crate::rest::router::router`] for the same `app`.
///
/// # Panics
/// `rest` has a route that the control service has too.
pub fn router(app: &Arc<App>, rest: Router) -> Router {
    rest.merge(grpc::router(app))
}

/// A bound port with its TLS configuration.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    resolver: Arc<Resolver>,
    names: Vec<String>,
}

impl Server {
    /// Binds the port and issues the server's certificate, for `public_names` (DNS names and IP addresses; may be
    /// empty) and for the names and addresses of this host. From this call on, the kernel establishes connections, and
    /// [`Self::serve`] accepts them later. Port 0 lets the kernel choose a port. The call does not wait for anything.
    ///
    /// # Errors
    /// The address is in use or does not belong to this host, the process may not bind the port (a port below 1024
    /// without `CAP_NET_BIND_SERVICE`), a public name is not valid in a certificate, or `authority` cannot issue the
    /// certificate.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn bind(listen: SocketAddr, public_names: &[String], authority: &Authority) -> anyhow::Result<Self> {
        let names = certificate_names(listen, public_names);
        let resolver = Arc::new(Resolver::new(authority.server(&names)?));
        let tls = Arc::new(tls::server(authority, resolver.clone())?);
        let listener = listener(listen).with_context(|| format!("cannot listen on {listen}"))?;
        Ok(Self {
            listener,
            tls,
            resolver,
            names,
        })
    }

    /// The address that the server listens on. If it was bound to port 0, the port is the one that the kernel chose.
    ///
    /// # Errors
    /// The kernel does not return it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves connections until `stop` completes, and replaces the server's certificate when it gets old. Then closes
    /// the port, and gives open connections [`SHUTDOWN_GRACE`] to end. Connections that are still open after that time
    /// end when the runtime ends.
    ///
    /// `app` must have the authority that was passed to [`Self::bind`], and `router` is the result of [`router`] for
    /// `app`. Only one call may run for one `app`, because each call runs [`crate::connections::Connections::expire`].
    /// If the future is dropped, the port is closed at once, and open connections last until they or the runtime end;
    /// their deadlines are then no longer kept.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn serve(self, app: Arc<App>, router: Router, stop: impl Future<Output = ()>) {
        add_agent_addresses(&app);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let service = Arc::new(Service {
            app: app.clone(),
            router,
            tls: self.tls,
            key_exchanges: LifoSemaphore::new((cores / 2).max(1)),
        });
        let mut renewed = SystemTime::now();
        let mut certificate_check = tokio::time::interval(RENEWAL_CHECK_INTERVAL);
        let tasks = TaskTracker::new();
        let mut next = Instant::now();
        let expiring = app.connections.expire();
        tokio::pin!(stop, expiring);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = &mut expiring => {}
                _ = certificate_check.tick() => if is_renewal_due(renewed, SystemTime::now()) {
                    match app.authority.server(&self.names) {
                        Ok(next) => {
                            self.resolver.replace(next);
                            renewed = SystemTime::now();
                        }
                        Err(error) => tracing::error!(%error, "the server certificate was not renewed; trying again in a minute"),
                    }
                },
                accepted = accept(&self.listener, next) => {
                    let mut accepted = Some(accepted);
                    for n in 1.. {
                        match accepted {
                            Some(Ok((stream, peer))) => app.connections.admit(peer.ip(), |connection| {
                                tasks.spawn(service.clone().serve(stream, peer, connection)).abort_handle()
                            }),
                            Some(Err(error)) => {
                                tracing::warn!(%error, "accepting a connection failed");
                                tokio::time::sleep(ACCEPT_ERROR_BACKOFF).await;
                                break;
                            }
                            None => break,
                        }
                        accepted = (n < MAX_ACCEPT_BATCH).then(|| self.listener.accept().now_or_never()).flatten();
                    }
                    next = Instant::now() + ACCEPT_INTERVAL;
                }
            }
        }
        drop(self.listener);
        tasks.close();
        // Connections that do not end in time are aborted when the runtime ends, so it does not matter whether this
        // wait times out.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await;
    }
}

/// Accepts the next connection, not before `not_before`.
async fn accept(listener: &TcpListener, not_before: Instant) -> std::io::Result<(TcpStream, SocketAddr)> {
    tokio::time::sleep_until(not_before).await;
    listener.accept().await
}

/// Whether the server's certificate must be replaced. That is so if it is old, or if the clock was set back to a time
/// before it was issued.
fn is_renewal_due(renewed: SystemTime, now: SystemTime) -> bool {
    now.duration_since(renewed)
        .map_or(true, |age| age >= Authority::server_renewal())
}

fn listener(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of an earlier process may still be in TIME_WAIT. A restarted controller must be able to bind the port
    // nevertheless.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// Tells [`crate::admission`] the addresses at which the agents that are not revoked are reached. After a restart all
/// agents reconnect at once, and addresses of known agents have separate, higher limits.
fn add_agent_addresses(app: &App) {
    for agent in app.writer.current().topology.agents.values().filter(|a| !a.revoked) {
        for endpoint in agent.reach.endpoints.iter().chain(&agent.reach.quic_endpoint) {
            app.connections.add_agent_address(&agent.id, endpoint.ip());
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
