//! The agent's end of the loopback iBGP session over which BIRD passes on the routes of one neighbour. Each neighbour
//! has a session of its own, so that a neighbour whose routes break its session does not affect other neighbours.

use super::conf::Loopback;
use super::message::{self, Family, Message};
use super::table::Table;
use super::{GRACE, Learned};
use crate::sys;
use socket2::SockRef;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tombolo_engine::routing::Pace;
use tombolo_proto::id::ResourceId;

/// Free space in the read buffer before each read, in bytes: room for four messages of the greatest length.
const READ_SIZE: usize = 16 << 10;
/// TCP port of BGP (RFC 4271).
const BGP_PORT: u16 = 179;
/// Timeout of a connection attempt together with the exchange of OPEN and KEEPALIVE. Both ends are on this host, so
/// BIRD answers late only while it reads its configuration, which takes 0.2 s for 40,000 routes.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait between two attempts to connect. BIRD accepts connections shortly after its start, so the
/// first waits are short.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(20);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(1);
/// Shortest time between two publications of the neighbour's table. A burst of UPDATEs in this time is published as one
/// table.
const MIN_PUBLISH_INTERVAL: Duration = Duration::from_millis(10);
/// Number of changes that are published without delay after a quiet period. A long table arrives in several UPDATEs,
/// and each of them is one change. [`Pace`] delays further changes more and more, until the neighbour is quiet again.
const FREE_CHANGES: u32 = 8;
/// How long stale routes stay after BIRD has sent End-of-RIB (RFC 4724). BIRD cannot know when a neighbour without
/// graceful restart has sent its whole table, so routes may still arrive after End-of-RIB.
const STALE_DELAY: Duration = Duration::from_secs(3);

/// The session with BIRD for one neighbour.
#[derive(Debug)]
pub(super) struct Feed {
    pub neighbour: ResourceId,
    /// The speaker's ASN, which both ends of this iBGP session have.
    pub asn: u32,
    pub loopback: Loopback,
    /// The last octet of the agent's loopback address.
    pub slot: u8,
    /// The map of all neighbours' routes, in which this feed sets the entry of its neighbour.
    pub learned: watch::Sender<Learned>,
    /// Notified when BIRD has started or has loaded a new configuration. The feed then connects again without waiting
    /// for its backoff.
    pub reconnect: Arc<Notify>,
}

impl Feed {
    /// Connects, publishes the neighbour's routes and reconnects, until the task is aborted. When a session has ended,
    /// its routes stay for [`GRACE`], or for [`STALE_DELAY`] after the next session has sent its whole table, whichever
    /// ends first.
    pub(super) async fn run(self) {
        let mut table = Table::default();
        let mut pace = Pace::with_free(FREE_CHANGES);
        // The time at which stale routes are removed. None: there are no stale routes.
        let mut stale_until = None;
        let mut backoff = MIN_RETRY_BACKOFF;
        loop {
            // This future is created before the attempt, so that a notification that comes during the attempt is not
            // lost.
            let reconnect = self.reconnect.notified();
            let outcome = match timeout(HANDSHAKE_TIMEOUT, self.establish()).await {
                Ok(Ok(session)) => {
                    let established = Instant::now();
                    let reason = self.receive(session, &mut table, &mut pace, &mut stale_until).await;
                    if established.elapsed() > MAX_RETRY_BACKOFF {
                        backoff = MIN_RETRY_BACKOFF;
                    }
                    table.end_session();
                    self.publish(&table);
                    stale_until = Some(Instant::now() + GRACE);
                    reason
                }
                Ok(Err(e)) => e,
                Err(_) => format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()),
            };
            tracing::debug!(neighbour = %self.neighbour, reason = %outcome, "no session with bird");
            let retry_at = Instant::now() + backoff;
            tokio::select! {
                () = sleep_until(retry_at) => backoff = (backoff * 2).min(MAX_RETRY_BACKOFF),
                () = reconnect => backoff = MIN_RETRY_BACKOFF,
                () = at(stale_until) => {
                    table.remove_stale();
                    stale_until = None;
                    self.publish(&table);
                }
            }
        }
    }

    /// Connects and establishes the BGP session. Returns the stream, and the bytes that arrived after the messages of
    /// the handshake.
    async fn establish(&self) -> Result<(TcpStream, Vec<u8>), String> {
        let mut stream = self.connect().await.map_err(|e| e.to_string())?;
        let mut received = Vec::new();
        self.send(&mut stream, &message::open(self.asn, self.local_address()))
            .await?;
        match next_message(&mut stream, &mut received).await? {
            Message::Open(open) if open.asn != self.asn => {
                return Err(format!("OPEN has AS{} instead of AS{}", open.asn, self.asn));
            }
            Message::Open(open) if !open.four_octets || !Family::ALL.iter().all(|f| open.sends_paths.contains(f)) => {
                return Err("OPEN lacks ADD-PATH or 4-octet ASNs".into());
            }
            Message::Open(_) => {}
            other => return Err(format!("{other:?} instead of OPEN")),
        }
        self.send(&mut stream, &message::keepalive()).await?;
        match next_message(&mut stream, &mut received).await? {
            Message::Keepalive => {}
            other => return Err(format!("{other:?} instead of KEEPALIVE")),
        }
        self.send(&mut stream, &message::end_of_rib()).await?;
        Ok((stream, received))
    }

    fn local_address(&self) -> Ipv4Addr {
        self.loopback.agent(self.slot)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(password) = &self.loopback.password {
            sys::sign(&socket, self.loopback.bird, password.as_bytes())?;
        }
        socket.bind(SocketAddr::from((self.local_address(), 0)))?;
        let stream = socket.connect((self.loopback.bird, BGP_PORT).into()).await?;
        // Nagle's algorithm would hold back the short messages of the handshake until BIRD acknowledges the previous
        // ones.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn send(&self, stream: &mut TcpStream, bytes: &[u8]) -> Result<(), String> {
        stream.write_all(bytes).await.map_err(|e| e.to_string())
    }

    /// Receives UPDATEs and publishes the table, until the session ends. Returns why it ended.
    async fn receive(
        &self,
        session: (TcpStream, Vec<u8>),
        table: &mut Table,
        pace: &mut Pace,
        stale_until: &mut Option<Instant>,
    ) -> String {
        let (mut stream, mut received) = session;
        // `dirty`: the table has changed since it was published. `due`: the earliest time at which the table may be
        // published again.
        let (mut dirty, mut due) = (false, Instant::now());
        loop {
            loop {
                match message::parse_next(&mut received) {
                    Ok(Some(Message::Update(update))) => {
                        if table.apply(update) {
                            pace.changed(now());
                            dirty = true;
                        }
                    }
                    Ok(Some(Message::Notification(code, subcode))) => {
                        return format!("NOTIFICATION {code}/{subcode}");
                    }
                    Ok(Some(Message::Keepalive | Message::Refresh)) => {}
                    Ok(Some(Message::Open(_))) => return "second OPEN".into(),
                    Ok(None) => break,
                    Err(e) => return e.to_string(),
                }
            }
            if dirty && table.is_complete() && table.has_stale() {
                let remove_at = Instant::now() + STALE_DELAY;
                *stale_until = Some(stale_until.map_or(remove_at, |at| at.min(remove_at)));
            }
            if dirty && Instant::now() >= due {
                self.publish(table);
                pace.used(now());
                (dirty, due) = (false, Instant::now() + pace.wait(now()).max(MIN_PUBLISH_INTERVAL));
            }
            // BIRD's socket uses Nagle's algorithm, so a delayed acknowledgement delays BIRD's next UPDATE. The kernel
            // resets the option TCP_QUICKACK by itself, so the option is set before each read. If that fails, BIRD's
            // UPDATEs only come later.
            let _ = SockRef::from(&stream).set_tcp_quickack(true);
            received.reserve(READ_SIZE);
            tokio::select! {
                read = stream.read_buf(&mut received) => match read {
                    Ok(0) => return "connection closed".into(),
                    Ok(_) => {}
                    Err(e) => return e.to_string(),
                },
                () = sleep_until(due), if dirty => {}
                () = at(*stale_until) => {
                    table.remove_stale();
                    (*stale_until, dirty) = (None, true);
                }
            }
        }
    }

    /// Publishes the routes of the table if they differ from those that are published.
    fn publish(&self, table: &Table) {
        let routes = table.routes();
        self.learned.send_if_modified(|learned| {
            if learned.get(&self.neighbour).is_some_and(|old| **old == routes) {
                return false;
            }
            learned.insert(self.neighbour.clone(), Arc::new(routes));
            true
        });
    }
}

/// Receives the next message of the handshake. Bytes that follow the message stay in `received`.
async fn next_message(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<Message, String> {
    loop {
        if let Some(message) = message::parse_next(received).map_err(|e| e.to_string())? {
            return Ok(message);
        }
        received.reserve(READ_SIZE);
        match stream.read_buf(received).await {
            Ok(0) => return Err("connection closed".into()),
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits until a time. Without a time, never returns.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
