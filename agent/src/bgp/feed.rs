//! The session on loopback by which BIRD tells what one neighbour announces. One for each neighbour: what one of them
//! does to it costs the others nothing.

use super::conf::Loopback;
use super::table::Table;
use super::message::{self, Family, Message};
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

/// Room for what is read at once, bytes.
const READ: usize = 16 << 10;
/// BGP's port.
const PORT: u16 = 179;
/// How long connecting and the first words may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Waits between tries: the first, and the longest.
const FIRST_TRY: Duration = Duration::from_millis(20);
const LAST_TRY: Duration = Duration::from_secs(1);
/// Shortest time between two tables: while more keeps coming it is one table, not one for each UPDATE.
const TOGETHER: Duration = Duration::from_millis(10);
/// After a quiet time, so many changes are acted on at once: a long table comes in several UPDATEs. Further ones are acted on ever
/// more rarely ([`Pace`]), until the neighbour is quiet again.
const FREE: u32 = 8;
/// After BIRD said that it has told all: for neighbours without graceful restart it does not know that, and their routes are
/// still coming.
const SETTLE: Duration = Duration::from_secs(3);

/// One neighbour's session.
#[derive(Debug)]
pub(super) struct Feed {
    pub neighbour: ResourceId,
    pub asn: u32,
    pub loopback: Loopback,
    /// The own end's last octet.
    pub slot: u8,
    pub learned: watch::Sender<Learned>,
    /// BIRD was started or told of something new.
    pub poke: Arc<Notify>,
}

impl Feed {
    /// Runs until aborted.
    pub(super) async fn run(self) {
        let mut table = Table::default();
        let mut pace = Pace::with_free(FREE);
        // When stale routes go.
        let mut forget = None;
        let mut wait = FIRST_TRY;
        loop {
            let poked = self.poke.notified();
            let outcome = match timeout(HANDSHAKE, self.meet()).await {
                Ok(Ok(met)) => {
                    let begun = Instant::now();
                    let ended = self.listen(met, &mut table, &mut pace, &mut forget).await;
                    if begun.elapsed() > LAST_TRY {
                        wait = FIRST_TRY;
                    }
                    table.end_session();
                    self.publish(&table);
                    forget = Some(Instant::now() + GRACE);
                    ended
                }
                Ok(Err(e)) => e,
                Err(_) => "no answer".into(),
            };
            tracing::debug!(neighbour = %self.neighbour, reason = %outcome, "no session with bird");
            let again = Instant::now() + wait;
            tokio::select! {
                () = sleep_until(again) => wait = (wait * 2).min(LAST_TRY),
                () = poked => wait = FIRST_TRY,
                () = at(forget) => {
                    table.forget_stale();
                    forget = None;
                    self.publish(&table);
                }
            }
        }
    }

    /// Connects and agrees. Returns the stream and what came on it already.
    async fn meet(&self) -> Result<(TcpStream, Vec<u8>), String> {
        let mut stream = self.connect().await.map_err(|e| e.to_string())?;
        let mut received = Vec::new();
        self.send(&mut stream, &message::open(self.asn, self.own())).await?;
        match next(&mut stream, &mut received).await? {
            Message::Open(open) if open.asn != self.asn => return Err(format!("AS{} answers", open.asn)),
            Message::Open(open) if !open.four_octets || !Family::ALL.iter().all(|f| open.sends_paths.contains(f)) => {
                return Err("ADD-PATH or 4-octet ASNs missing".into());
            }
            Message::Open(_) => {}
            other => return Err(format!("{other:?} instead of OPEN")),
        }
        self.send(&mut stream, &message::keepalive()).await?;
        match next(&mut stream, &mut received).await? {
            Message::Keepalive => {}
            other => return Err(format!("{other:?} instead of KEEPALIVE")),
        }
        self.send(&mut stream, &message::nothing_to_tell()).await?;
        Ok((stream, received))
    }

    fn own(&self) -> Ipv4Addr {
        self.loopback.agent(self.slot)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(password) = &self.loopback.password {
            sys::sign(&socket, self.loopback.bird, password.as_bytes())?;
        }
        socket.bind(SocketAddr::from((self.own(), 0)))?;
        let stream = socket.connect((self.loopback.bird, PORT).into()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn send(&self, stream: &mut TcpStream, bytes: &[u8]) -> Result<(), String> {
        stream.write_all(bytes).await.map_err(|e| e.to_string())
    }

    /// Takes in what BIRD tells, until the session ends: why.
    async fn listen(
        &self,
        met: (TcpStream, Vec<u8>),
        table: &mut Table,
        pace: &mut Pace,
        forget: &mut Option<Instant>,
    ) -> String {
        let (mut stream, mut received) = met;
        // Whether there is something to publish, and from when on.
        let (mut dirty, mut due) = (false, Instant::now());
        loop {
            loop {
                match message::take(&mut received) {
                    Ok(Some(Message::Update(update))) => {
                        if table.apply(update) {
                            pace.changed(now());
                            dirty = true;
                        }
                    }
                    Ok(Some(Message::Notification(code, subcode))) => return format!("notification {code}/{subcode}"),
                    Ok(Some(Message::Keepalive | Message::Refresh)) => {}
                    Ok(Some(Message::Open(_))) => return "a second OPEN".into(),
                    Ok(None) => break,
                    Err(e) => return e.to_string(),
                }
            }
            if dirty && table.is_complete() && table.has_stale() {
                let settled = Instant::now() + SETTLE;
                *forget = Some(forget.map_or(settled, |f| f.min(settled)));
            }
            if dirty && Instant::now() >= due {
                self.publish(table);
                pace.used(now());
                (dirty, due) = (false, Instant::now() + pace.wait(now()).max(TOGETHER));
            }
            // Acknowledged at once, what BIRD has to say next does not wait for that (Nagle).
            let _ = SockRef::from(&stream).set_tcp_quickack(true);
            received.reserve(READ);
            tokio::select! {
                read = stream.read_buf(&mut received) => match read {
                    Ok(0) => return "closed".into(),
                    Ok(_) => {}
                    Err(e) => return e.to_string(),
                },
                () = sleep_until(due), if dirty => {}
                () = at(*forget) => {
                    table.forget_stale();
                    (*forget, dirty) = (None, true);
                }
            }
        }
    }

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

/// The next message of the handshake.
async fn next(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<Message, String> {
    loop {
        if let Some(message) = message::take(received).map_err(|e| e.to_string())? {
            return Ok(message);
        }
        received.reserve(READ);
        match stream.read_buf(received).await {
            Ok(0) => return Err("closed".into()),
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
