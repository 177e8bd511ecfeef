//! The connections of the port: the state machine [`Admission`] with a clock, and the tasks of the connections, which
//! are aborted when [`Admission`] evicts the connections.

use crate::admission::{Address, Admission, Counts, Id, Limits};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tombolo_proto::id::AgentId;

/// Least time between two log lines about evicted connections, so that an attacker cannot fill the disk with the log.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// All connections of the port. Each method locks the state for a short time. A method that is not `async` returns at
/// once.
#[derive(Debug)]
pub struct Connections {
    state: Mutex<State>,
    /// Notified when the next deadline may have become earlier.
    earlier_deadline: Notify,
}

#[derive(Debug)]
struct State {
    admission: Admission,
    tasks: HashMap<Id, AbortHandle>,
    log: Log,
}

/// The state of the rate-limited log line.
#[derive(Debug, Default)]
struct Log {
    /// When the last line was written.
    at: Option<Instant>,
    /// Connections that were evicted since the last line.
    evicted: u64,
}

impl Connections {
    /// A port without connections. [`Self::expire`] must run as long as connections are admitted.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                admission: Admission::new(limits),
                tasks: HashMap::new(),
                log: Log::default(),
            }),
            earlier_deadline: Notify::new(),
        }
    }

    /// Notes that an agent may connect from an address (see [`Admission::add_agent_address`]). An IPv6 address stands
    /// for its whole /64.
    pub fn add_agent_address(&self, agent: &AgentId, ip: IpAddr) {
        self.lock().admission.add_agent_address(agent, ip.into());
    }

    /// Admits a connection that `accept(2)` has returned, or refuses it. `ip` is the address of the client. Other
    /// connections may be evicted, i.e. their tasks are aborted, even if this connection is refused.
    ///
    /// An admitted connection is passed to `spawn`, which starts the task that owns the socket and the [`Connection`],
    /// and returns the handle that aborts this task. The task is aborted when the connection is evicted. `spawn` owns
    /// the socket: if the connection is refused, `spawn` is dropped without a call, which closes the socket.
    ///
    /// `spawn` is called while the state is locked. So it must not call methods of this value, and must neither drop
    /// its [`Connection`] nor panic: dropping a [`Connection`] locks the state too, so the thread would block forever.
    /// The new task may drop it at any time.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, spawn: impl FnOnce(Connection) -> AbortHandle) {
        self.with(|state, now| {
            let admitted = state.admission.accept(ip, now);
            for evicted in admitted.evicted {
                state.abort(evicted);
            }
            if let Some(id) = admitted.id {
                let reserved = state.admission.is_reserved(ip);
                let connections = self.clone();
                // The task is spawned while the state is locked, so that the connection cannot be evicted before the
                // task's abort handle is stored.
                let task = spawn(Connection {
                    connections,
                    id,
                    reserved,
                });
                state.tasks.insert(id, task);
            }
        });
    }

    /// Aborts connections at their deadlines. Never returns. Only one call may run at a time, because an earlier
    /// deadline wakes only one of the callers. The future can be dropped at any time; another call then continues its
    /// work.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn expire(&self) {
        loop {
            let next = self.lock().admission.next_deadline();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let mut state = self.lock();
                    for id in state.admission.expire(Instant::now()) {
                        state.abort(id);
                    }
                }
                () = self.earlier_deadline.notified() => {}
            }
        }
    }

    /// The present numbers of connections and the counters since the start, for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().admission.counts()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes [`Self::expire`] if the next deadline is earlier than before.
    fn with(&self, change: impl FnOnce(&mut State, Instant)) {
        let mut state = self.lock();
        let before = state.admission.next_deadline();
        change(&mut state, Instant::now());
        let after = state.admission.next_deadline();
        drop(state);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.earlier_deadline.notify_one();
        }
    }

    /// Reports an event to [`Admission`], and aborts the connections that [`Admission`] evicts because of the event.
    fn report<I: IntoIterator<Item = Id>>(&self, report: impl FnOnce(&mut Admission, Instant) -> I) {
        self.with(|state, now| {
            for evicted in report(&mut state.admission, now) {
                state.abort(evicted);
            }
        });
    }
}

impl State {
    /// Aborts the task of an evicted connection, which closes its socket.
    fn abort(&mut self, id: Id) {
        let Some(task) = self.tasks.remove(&id) else {
            return;
        };
        task.abort();
        self.log.evicted += 1;
        let now = Instant::now();
        let due = self.log.at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
        if due {
            let (address, most) = self
                .admission
                .largest()
                .map_or((None, 0), |(address, n)| (Some(address), n));
            let address = address.map(|a: Address| a.to_string()).unwrap_or_default();
            let evicted = std::mem::take(&mut self.log.evicted);
            self.log.at = Some(now);
            tracing::info!(
                evicted,
                largest_address = address,
                its_connections = most,
                "connections were closed by limits of the port; the metric tombolo_connections_closed_total has the reasons"
            );
        }
    }
}

/// An admitted connection, owned by its task. Dropping this value reports that the socket is closed, so the value must
/// be dropped after the socket.
#[derive(Debug)]
pub struct Connection {
    connections: Arc<Connections>,
    id: Id,
    /// Whether an agent was known at the connection's address when the connection was accepted, or the connection comes
    /// from this host.
    pub reserved: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        state.tasks.remove(&self.id);
        state.admission.closed(self.id);
    }
}

impl Connection {
    /// Reports that the ClientHello is complete: the connection enters the stage `handshake`. This may evict another
    /// connection in that stage. Ignored if this connection was evicted. Call it once, before
    /// [`Self::wait_for_key_exchange`].
    pub fn client_hello_received(&self) {
        self.connections
            .report(|admission, _| admission.client_hello_received(self.id));
    }

    /// Waits until the rate limit of the client's address allows a key exchange, but at most 1 s. Connections from this
    /// host have no such limit. Call it once, before the key exchange is computed. The key exchange counts against the
    /// rate limit from the first poll on, even if the future is dropped.
    ///
    /// # Errors
    /// The address has begun too many key exchanges, or the connection was evicted. The caller must close the socket
    /// and drop the connection; its task is not aborted because of this error.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn wait_for_key_exchange(&self) -> std::io::Result<()> {
        let wait = self
            .connections
            .lock()
            .admission
            .begin_key_exchange(self.id, Instant::now());
        let wait =
            wait.ok_or_else(|| std::io::Error::other("the address of the client exceeds its rate of TLS handshakes"))?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// Reports that the TLS handshake is complete. `agent`: the agent whose certificate the client has shown; the
    /// caller has verified the certificate and that the agent is not revoked. `None`: the client has shown no such
    /// certificate. The connection enters the stage `agent` or `stranger`, which may evict another connection in that
    /// stage. The address of the connection is noted as an address of `agent`. Ignored if this connection was evicted.
    /// Call it once, before [`Self::request`].
    pub fn handshake_completed(&self, agent: Option<&AgentId>) {
        self.connections
            .report(|admission, now| admission.handshake_completed(self.id, agent, now));
    }

    /// Reports that a request has begun. The request counts as in progress until the last clone of the returned value
    /// is dropped. A connection may have several requests in progress. If its last valid token came more than 60 s ago
    /// and no request with a token is in progress, the connection returns from the stage `bearer` to `stranger`, which
    /// may evict another connection.
    #[must_use]
    pub fn request(&self) -> Request {
        self.connections
            .report(|admission, now| admission.request_started(self.id, now));
        Request(Arc::new(InFlight {
            connections: self.connections.clone(),
            id: self.id,
            authorized: AtomicBool::new(false),
            downloading: AtomicBool::new(false),
            held: AtomicUsize::new(0),
        }))
    }
}

/// A request whose response is not complete. It is an extension of the HTTP request. When its last clone is dropped,
/// the end of the request is reported.
#[derive(Debug, Clone)]
pub struct Request(Arc<InFlight>);

#[derive(Debug)]
struct InFlight {
    connections: Arc<Connections>,
    id: Id,
    authorized: AtomicBool,
    /// Whether the response to the request is a package.
    downloading: AtomicBool,
    /// Number of bytes of the request's body that count towards the limit for strangers' bodies.
    held: AtomicUsize,
}

impl Request {
    /// Reports that the request carries a valid token. The connection enters the stage `bearer`, which may evict
    /// another connection in that stage; the connection of an agent keeps its stage. The body no longer counts towards
    /// the limit for strangers' bodies. Further calls for the same request do nothing.
    pub fn authorized(&self) {
        if !self.0.authorized.swap(true, Ordering::Relaxed) {
            let (id, held) = (self.0.id, self.0.held.swap(0, Ordering::Relaxed));
            self.0.connections.report(|admission, now| {
                admission.body_released(id, held);
                admission.authorized(id, now)
            });
        }
    }

    /// Reports that the response is a package. A stranger has 5 minutes from now to receive a package, which is more
    /// than for other responses. Further calls do nothing.
    pub fn download_started(&self) {
        if !self.0.downloading.swap(true, Ordering::Relaxed) {
            let id = self.0.id;
            self.0.connections.report(|admission, now| {
                admission.download_started(id, now);
                None::<Id>
            });
        }
    }

    /// Reports that further `bytes` of the request's body have arrived. They count until [`Self::authorized`] is called
    /// or the last clone of this value is dropped. Not to be called for requests of agents. Ignored after
    /// [`Self::authorized`]. If the bodies of all strangers together exceed their limit, connections are aborted. This
    /// connection may be one of them.
    pub fn body_received(&self, bytes: usize) {
        if !self.0.authorized.load(Ordering::Relaxed) {
            self.0.held.fetch_add(bytes, Ordering::Relaxed);
            let id = self.0.id;
            self.0
                .connections
                .report(|admission, _| admission.body_received(id, bytes));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let (id, authorized) = (self.id, *self.authorized.get_mut());
        let held = *self.held.get_mut();
        let downloading = *self.downloading.get_mut();
        self.connections.report(|admission, now| {
            admission.body_released(id, held);
            if downloading {
                admission.download_ended(id);
            }
            admission.request_ended(id, authorized, now);
            None::<Id>
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Stage;
    use std::net::Ipv4Addr;

    /// The task of an evicted connection is aborted even if it waits for ever. The connection counts as closing until
    /// the task has ended.
    #[tokio::test]
    async fn a_connection_that_is_given_up_ends() {
        let limits = Limits::for_descriptors(0);
        let each = limits.open.silent.per_holder;
        let connections = Arc::new(Connections::new(limits));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..=each {
            connections.admit(Ipv4Addr::new(192, 0, 2, 1).into(), |connection| {
                tasks.spawn(async move {
                    let _connection = connection;
                    std::future::pending::<()>().await;
                })
            });
        }
        assert_eq!(connections.counts().closing, 1);
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        let counts = connections.counts();
        assert_eq!((counts.closing, counts.open[0]), (0, each));
        tasks.shutdown().await;
        assert_eq!(connections.counts().open[0], 0);
        assert!(connections.lock().tasks.is_empty());
    }

    #[tokio::test]
    async fn requests_and_their_bytes_are_given_back() {
        let connections = Arc::new(Connections::new(Limits::for_descriptors(0)));
        let (give, take) = std::sync::mpsc::channel();
        let mut tasks = tokio::task::JoinSet::new();
        connections.admit(Ipv4Addr::new(192, 0, 2, 1).into(), |connection| {
            give.send(connection).unwrap();
            tasks.spawn(std::future::pending::<()>())
        });
        let connection = take.recv().unwrap();
        connection.client_hello_received();
        connection.handshake_completed(None);
        let stage = || connections.lock().admission.stage(connection.id).cloned();
        assert_eq!(stage(), Some(Stage::Stranger));
        let request = connection.request();
        request.body_received(100);
        assert_eq!(connections.counts().body_bytes, 100);
        drop(request.clone());
        assert_eq!(connections.counts().body_bytes, 100);
        drop(request);
        assert_eq!(connections.counts().body_bytes, 0);
        let request = connection.request();
        request.body_received(100);
        request.authorized();
        assert_eq!(connections.counts().body_bytes, 0);
        assert_eq!(stage(), Some(Stage::Bearer));
        request.body_received(100);
        drop(request);
        assert_eq!(connections.counts().body_bytes, 0);
        drop(connection);
        assert_eq!(connections.counts().open, [0; 5]);
    }
}
