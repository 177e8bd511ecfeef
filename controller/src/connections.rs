//! The connections of the port, as they are: the [`Admission`] machine, and the tasks that it may end.

use crate::admission::{Address, Admission, Counts, Id, Limits};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tombolo_proto::id::AgentId;

/// Time between two log lines about connections that were given up: an attacker must not fill the disk.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// All connections of the port.
#[derive(Debug)]
pub struct Connections {
    state: Mutex<State>,
    /// An earlier deadline than before may be there.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    admission: Admission,
    tasks: HashMap<Id, AbortHandle>,
    log: Log,
}

/// When what was logged.
#[derive(Debug, Default)]
struct Log {
    at: Option<Instant>,
    given_up: u64,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                admission: Admission::new(limits),
                tasks: HashMap::new(),
                log: Log::default(),
            }),
            sooner: Notify::new(),
        }
    }

    /// Notes that an agent may come from an address (see [`Admission::know`]).
    pub fn know(&self, agent: &AgentId, ip: IpAddr) {
        self.lock().admission.know(agent, ip.into());
    }

    /// Takes a connection that was accepted, or drops it. `spawn` starts the task that owns the socket; the task ends when
    /// the connection is given up.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, spawn: impl FnOnce(Connection) -> AbortHandle) {
        self.with(|state, now| {
            let admitted = state.admission.accept(ip, now);
            for evicted in admitted.evicted {
                state.end(Some(evicted));
            }
            if let Some(id) = admitted.id {
                let reserved = state.admission.is_known(ip);
                let connections = self.clone();
                // Under the lock: the task cannot be given up before its handle is known.
                let task = spawn(Connection {
                    connections,
                    id,
                    reserved,
                });
                state.tasks.insert(id, task);
            }
        });
    }

    /// Gives up connections whose time is over, for ever.
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
                        state.end(Some(id));
                    }
                }
                () = self.sooner.notified() => {}
            }
        }
    }

    /// Numbers for operators.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().admission.counts()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes [`Self::expire`] if that has something to do earlier than before.
    fn with(&self, change: impl FnOnce(&mut State, Instant)) {
        let mut state = self.lock();
        let before = state.admission.next_deadline();
        change(&mut state, Instant::now());
        let after = state.admission.next_deadline();
        drop(state);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.sooner.notify_one();
        }
    }

    /// Reports something to the machine, and ends the connections that it gives up for it.
    fn report<I: IntoIterator<Item = Id>>(&self, report: impl FnOnce(&mut Admission, Instant) -> I) {
        self.with(|state, now| {
            for evicted in report(&mut state.admission, now) {
                state.end(Some(evicted));
            }
        });
    }
}

impl State {
    /// Ends the task of a connection that was given up, and with it the connection, whatever it is doing.
    fn end(&mut self, id: Option<Id>) {
        let Some(task) = id.and_then(|id| self.tasks.remove(&id)) else {
            return;
        };
        task.abort();
        self.log.given_up += 1;
        let now = Instant::now();
        let due = self.log.at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
        if due {
            let (address, most) = self
                .admission
                .largest()
                .map_or((None, 0), |(address, n)| (Some(address), n));
            let address = address.map(|a: Address| a.to_string()).unwrap_or_default();
            let given_up = std::mem::take(&mut self.log.given_up);
            self.log.at = Some(now);
            tracing::info!(
                given_up,
                largest_address = address,
                its_connections = most,
                "connections were closed by limits of number or time; see tombolo_connections_closed_total in the metrics"
            );
        }
    }
}

/// One connection, owned by its task: dropping it says that the socket is closed.
#[derive(Debug)]
pub struct Connection {
    connections: Arc<Connections>,
    id: Id,
    /// It comes from an address at which an agent is known.
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
    /// The ClientHello is whole.
    pub fn greeted(&self) {
        self.connections.report(|admission, _| admission.greeted(self.id));
    }

    /// When the answer to the ClientHello may be computed.
    ///
    /// # Errors
    /// Its address has asked for too many; the connection is to be dropped.
    pub async fn exchange(&self) -> std::io::Result<()> {
        let wait = self.connections.lock().admission.exchanging(self.id, Instant::now());
        let wait = wait.ok_or_else(|| std::io::Error::other("too many key exchanges with this address"))?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// TLS is up; with the certificate of this agent, which is not revoked.
    pub fn secured(&self, agent: Option<&AgentId>) {
        self.connections
            .report(|admission, now| admission.secured(self.id, agent, now));
    }

    /// A request begins.
    #[must_use]
    pub fn request(&self) -> Request {
        self.connections
            .report(|admission, now| admission.request_begins(self.id, now));
        Request(Arc::new(InFlight {
            connections: self.connections.clone(),
            id: self.id,
            authorized: AtomicBool::new(false),
            downloading: AtomicBool::new(false),
            held: AtomicUsize::new(0),
        }))
    }
}

/// A request whose answer is not complete: an extension of the request. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Request(Arc<InFlight>);

#[derive(Debug)]
struct InFlight {
    connections: Arc<Connections>,
    id: Id,
    authorized: AtomicBool,
    /// Its answer is a package.
    downloading: AtomicBool,
    /// Bytes of its body.
    held: AtomicUsize,
}

impl Request {
    /// It carries a valid token: its connection is no stranger's any more, and its body is not limited as a stranger's.
    pub fn authorized(&self) {
        if !self.0.authorized.swap(true, Ordering::Relaxed) {
            let (id, held) = (self.0.id, self.0.held.swap(0, Ordering::Relaxed));
            self.0.connections.report(|admission, now| {
                admission.released(id, held);
                admission.authorized(id, now)
            });
        }
    }

    /// Its answer is a package, which takes longer to send than other answers to strangers.
    pub fn downloading(&self) {
        if !self.0.downloading.swap(true, Ordering::Relaxed) {
            let id = self.0.id;
            self.0.connections.report(|admission, now| {
                admission.download_begins(id, now);
                None::<Id>
            });
        }
    }

    /// So many bytes of its body came.
    pub fn received(&self, bytes: usize) {
        if !self.0.authorized.load(Ordering::Relaxed) {
            self.0.held.fetch_add(bytes, Ordering::Relaxed);
            let id = self.0.id;
            self.0.connections.report(|admission, _| admission.held(id, bytes));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let (id, authorized) = (self.id, *self.authorized.get_mut());
        let held = *self.held.get_mut();
        let downloading = *self.downloading.get_mut();
        self.connections.report(|admission, now| {
            admission.released(id, held);
            if downloading {
                admission.download_ends(id);
            }
            admission.request_ends(id, authorized, now);
            None::<Id>
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Stage;
    use std::net::Ipv4Addr;

    /// A task that was given up ends though it waits for ever, and its socket counts until then.
    #[tokio::test]
    async fn a_connection_that_is_given_up_ends() {
        let limits = Limits::for_descriptors(0);
        let each = limits.open.silent.each;
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
        connection.greeted();
        connection.secured(None);
        let stage = || connections.lock().admission.stage(connection.id).cloned();
        assert_eq!(stage(), Some(Stage::Stranger));
        let request = connection.request();
        request.received(100);
        assert_eq!(connections.counts().body_bytes, 100);
        drop(request.clone());
        assert_eq!(connections.counts().body_bytes, 100);
        drop(request);
        assert_eq!(connections.counts().body_bytes, 0);
        let request = connection.request();
        request.received(100);
        request.authorized();
        assert_eq!(connections.counts().body_bytes, 0);
        assert_eq!(stage(), Some(Stage::Bearer));
        request.received(100);
        drop(request);
        assert_eq!(connections.counts().body_bytes, 0);
        drop(connection);
        assert_eq!(connections.counts().open, [0; 5]);
    }
}
