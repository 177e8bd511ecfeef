//! The UDP ports of a lane as one: its own, and in the first lane perhaps a second one, where QUIC alone is taken (D6).
//!
//! A path that is much used gets a socket of its own beside the lane's, bound to the same port and connected. Of those the kernel
//! keeps the route, of what goes and of what comes; otherwise it looks for one each time, by each of the host's routing
//! rules, which is most of what a lone packet costs. What a connected socket cannot send, the lane's can.

mod busy;

use crate::config::Config;
use crate::outbox::Datagrams;
use crate::udp::{NoRoom, Sent, Udp};
use anyhow::Result;
use busy::Busy;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::task::Poll;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::{Outer, Path, Port};

/// Most paths with a socket of their own. Each may hold a receive buffer of its own.
const MOST: usize = 8;

/// A socket that was not used for so long is closed.
const UNUSED: Duration = Duration::from_secs(30);

/// One that was not used for so long gives way to another path.
const GIVES_WAY: Duration = Duration::from_secs(1);

/// Busy is what sends enough within this.
const COUNTING: Duration = Duration::from_secs(5);

/// Where a path could not have a socket, none is tried for so long.
const REST: Duration = Duration::from_secs(60);

/// One socket among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// A port's, which takes what comes from anywhere.
    Of(Port),
    /// A path's, by number; numbers change in [`Ports::look_again`] only.
    Own(usize),
}

/// A path with a socket of its own.
struct Own {
    path: Path,
    udp: Udp,
    /// When it was used last, as far as [`Ports::look_again`] knows.
    last: Instant,
    /// It refused to send.
    broken: bool,
}

/// All of them.
pub struct Ports {
    lane: Udp,
    quic: Option<Udp>,
    own: Vec<Own>,
    busy: Busy,
    counting: Instant,
    rest: Option<Instant>,
    fwmark: u32,
    receive_buffer: usize,
    /// The one that had no room for a batch.
    full: Option<Which>,
    /// What sockets counted that are closed now: datagrams that found no room.
    overflow: u64,
}

impl Ports {
    /// Binds the ports of the lane with this number.
    ///
    /// # Errors
    /// A port is taken, or the process may not mark packets.
    pub fn bind(config: &Config, number: u16) -> Result<Self> {
        let receive_buffer = config.receive_buffer(None);
        let bind = |of, port| Udp::bind(of, port, config.fwmark, receive_buffer);
        let second = config.quic_port.filter(|_| number == 0);
        let lane = bind(Port::Lane, config.listen_port.saturating_add(number))?;
        let quic = second.map(|port| bind(Port::Quic, port)).transpose()?;
        Ok(Self::new(lane, quic, config.fwmark, receive_buffer))
    }

    fn new(lane: Udp, quic: Option<Udp>, fwmark: u32, receive_buffer: usize) -> Self {
        Self {
            lane,
            quic,
            own: Vec::with_capacity(MOST),
            busy: Busy::default(),
            counting: Instant::now(),
            rest: None,
            fwmark,
            receive_buffer,
            full: None,
            overflow: 0,
        }
    }

    /// Changes the receive buffers, bytes.
    ///
    /// # Errors
    /// The process may not.
    pub fn set_receive_buffer(&mut self, bytes: usize) -> io::Result<()> {
        self.receive_buffer = bytes;
        self.all()
            .try_for_each(|which| self.at(which).set_receive_buffer(bytes))
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = Which> + use<> {
        let quic = self.quic.as_ref().map(|_| Which::Of(Port::Quic));
        std::iter::once(Which::Of(Port::Lane))
            .chain(quic)
            .chain((0..self.own.len()).map(Which::Own))
    }

    fn at(&self, which: Which) -> &Udp {
        match which {
            Which::Of(Port::Lane) => &self.lane,
            Which::Of(Port::Quic) => self.quic.as_ref().unwrap_or(&self.lane),
            Which::Own(number) => self.own.get(number).map_or(&self.lane, |own| &own.udp),
        }
    }

    /// One of them; the lane's where there is no such.
    pub fn get(&mut self, which: Which) -> &mut Udp {
        match which {
            Which::Of(Port::Lane) => &mut self.lane,
            Which::Of(Port::Quic) => self.quic.as_mut().unwrap_or(&mut self.lane),
            Which::Own(number) => self.own.get_mut(number).map_or(&mut self.lane, |own| &mut own.udp),
        }
    }

    /// Waits until something may be read.
    ///
    /// # Errors
    /// A socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut ready = self.all().map(|which| self.at(which).poll_readable(context));
            ready.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Waits until there may be room for the batch that found none.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn writable(&self) -> io::Result<()> {
        self.at(self.full.unwrap_or(Which::Of(Port::Lane))).writable().await
    }

    /// Sends a batch by its path's socket or its port's, or says that there is no room now.
    ///
    /// # Errors
    /// The send buffer is full.
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<Sent, NoRoom> {
        let path = datagrams.transmit.path;
        self.full = None;
        // With anything else to say to the kernel, a connected socket looks for its route as well.
        let plain = datagrams.transmit.outer == Outer::default() && path.port == Port::Lane;
        if plain && path.local.is_some_and(has_no_scope) {
            if let Some((number, own)) = self.own.iter_mut().enumerate().find(|(_, own)| own.path == path) {
                match own.udp.send_connected(datagrams.bytes, datagrams.segment) {
                    Ok(()) => return Ok(Sent::default()),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        self.full = Some(Which::Own(number));
                        return Err(NoRoom);
                    }
                    // What another host said of an earlier datagram: this one was not sent.
                    Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) => {
                        tracing::debug!(?path, %error, "a path's own socket refused to send");
                        own.broken = true;
                    }
                }
            } else {
                self.busy.sent(path);
            }
        }
        let which = Which::Of(path.port);
        let sent = self.get(which).send(datagrams);
        if sent.is_err() {
            self.full = Some(which);
        }
        sent
    }

    /// Tries again what was given up a while ago; opens sockets of busy paths, closes those of others.
    pub fn look_again(&mut self, now: Instant) {
        self.lane.look_again(now);
        if let Some(quic) = &mut self.quic {
            quic.look_again(now);
        }
        // Somebody waits for one of them.
        if self.full.is_some() {
            return;
        }
        for own in &mut self.own {
            if own.udp.take_used() {
                own.last = now;
            }
        }
        self.close(now, |own, unused| own.broken || unused >= UNUSED);
        if now.saturating_duration_since(self.counting) >= COUNTING {
            self.busy.begin_again();
            self.counting = now;
        }
        if self.rest.is_some_and(|until| now < until) {
            return;
        }
        if let Some(path) = self.busy.take() {
            self.open(path, now);
        }
    }

    fn open(&mut self, path: Path, now: Instant) {
        if self.own.len() >= MOST {
            let longest = self.own.iter().map(|own| own.last).min();
            self.close(now, |own, unused| Some(own.last) == longest && unused >= GIVES_WAY);
        }
        if self.own.len() >= MOST {
            return;
        }
        match Udp::connect(path, &self.lane, self.fwmark, self.receive_buffer) {
            Ok(udp) => {
                tracing::debug!(?path, "a path gets a socket of its own");
                self.own.push(Own {
                    path,
                    udp,
                    last: now,
                    broken: false,
                });
            }
            Err(error) => {
                tracing::debug!(?path, %error, "no socket of its own");
                self.rest = Some(now + REST);
            }
        }
    }

    fn close(&mut self, now: Instant, which: impl Fn(&Own, Duration) -> bool) {
        self.own.retain(|own| {
            let goes = which(own, now.saturating_duration_since(own.last));
            if goes {
                tracing::debug!(path = ?own.path, broken = own.broken, "a path's own socket is closed");
                self.overflow += own.udp.overflow();
                if own.broken {
                    self.rest = Some(now + REST);
                }
            }
            !goes
        });
    }

    /// Datagrams that the kernel dropped because a receive buffer was full.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow + self.all().map(|which| self.at(which).overflow()).sum::<u64>()
    }

    /// Datagrams that could not be sent. Those of a path's own socket are sent by the lane's.
    #[must_use]
    pub fn send_errors(&self) -> u64 {
        self.lane.send_errors + self.quic.as_ref().map_or(0, |quic| quic.send_errors)
    }
}

/// Whether an address says by itself where it is: a link-local one says so with its interface only, which a path does not know.
fn has_no_scope(address: IpAddr) -> bool {
    !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::BUFFER;
    use std::net::SocketAddr;

    const MARK: u32 = 0x746d;
    const LOCAL: [u8; 4] = [127, 0, 0, 1];

    /// A lane's port, and where it is. Marking packets needs root.
    fn bound() -> (Ports, SocketAddr) {
        let lane = Udp::bind(Port::Lane, 0, MARK, 100_000).unwrap();
        let at = SocketAddr::from((LOCAL, lane.port().unwrap()));
        (Ports::new(lane, None, MARK, 100_000), at)
    }

    fn to(remote: SocketAddr) -> Path {
        Path {
            local: Some(LOCAL.into()),
            ..Path::from(remote)
        }
    }

    /// Sends a batch of two datagrams with this number in each.
    async fn send(ports: &mut Ports, path: Path, number: u16) {
        let mut bytes = [0; 150];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        bytes[100..102].copy_from_slice(&number.to_be_bytes());
        let datagrams = Datagrams {
            transmit: path.into(),
            bytes: &bytes,
            segment: 100,
        };
        while ports.send(&datagrams).is_err() {
            ports.writable().await.unwrap();
        }
    }

    /// Takes so many datagrams: what number each has, who sent it, and which socket had it.
    async fn take(ports: &mut Ports, count: usize) -> Vec<(u16, SocketAddr, Which)> {
        let mut buffer: Box<[u8; BUFFER]> = vec![0; BUFFER].try_into().unwrap();
        let mut taken = vec![];
        while taken.len() < count {
            let patience = Duration::from_secs(5);
            let ready = tokio::time::timeout(patience, ports.readable()).await;
            ready.unwrap_or_else(|_| panic!("{taken:?}")).unwrap();
            for which in ports.all() {
                let Ok(batches) = ports.get(which).try_recv(&mut buffer, 64) else {
                    continue;
                };
                for batch in 0..batches {
                    let (received, bytes) = ports.get(which).received(batch, &buffer);
                    for datagram in bytes.chunks(received.stride) {
                        let number = u16::from_be_bytes([datagram[0], datagram[1]]);
                        taken.push((number, received.from.remote, which));
                    }
                }
            }
        }
        taken
    }

    #[tokio::test]
    async fn a_busy_path_gets_a_socket_and_everybody_else_is_heard_as_before() {
        let ((mut a, at_a), (mut b, at_b), (mut c, at_c)) = (bound(), bound(), bound());
        let now = Instant::now();
        for number in 0..200 {
            send(&mut a, to(at_b), number).await;
            a.look_again(now);
            let taken = take(&mut b, 2).await;
            assert!(
                taken.iter().all(|(n, from, _)| (*n, *from) == (number, at_a)),
                "{taken:?}"
            );
            send(&mut b, to(at_a), number).await;
            b.look_again(now);
            let taken = take(&mut a, 2).await;
            assert!(
                taken.iter().all(|(n, from, _)| (*n, *from) == (number, at_b)),
                "{taken:?}"
            );
            if number == 150 {
                assert!(taken.iter().all(|(.., which)| *which == Which::Own(0)), "{taken:?}");
                // Another one comes by the port, and is answered from it.
                send(&mut c, to(at_a), 7).await;
                assert_eq!(take(&mut a, 2).await, [(7, at_c, Which::Of(Port::Lane)); 2]);
                send(&mut a, to(at_c), 8).await;
                assert_eq!(take(&mut c, 2).await[0].1, at_a);
            }
        }
        assert_eq!((a.own.len(), b.own.len(), c.own.len()), (1, 1, 0));
        // Out of use it is closed, and nothing changes.
        a.look_again(now);
        a.look_again(now + UNUSED);
        assert!(a.own.is_empty());
        send(&mut b, to(at_a), 9).await;
        assert_eq!(take(&mut a, 2).await, [(9, at_b, Which::Of(Port::Lane)); 2]);
    }

    /// What one more of the same program must hear.
    #[tokio::test]
    async fn a_port_with_connected_sockets_is_taken() {
        let ((mut a, at_a), (_b, at_b)) = (bound(), bound());
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.look_again(Instant::now());
        }
        assert_eq!(a.own.len(), 1);
        let error = Udp::bind(Port::Lane, at_a.port(), MARK, 100_000).err().unwrap();
        assert!(error.to_string().contains("is taken"), "{error:#}");
    }

    /// The other end's port is closed for a while, and what it says of that costs the datagrams sent meanwhile alone.
    #[tokio::test]
    async fn an_end_that_was_away_is_reached_again() {
        let ((mut a, at_a), (b, at_b)) = (bound(), bound());
        let now = Instant::now();
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.look_again(now);
        }
        drop(b);
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.look_again(now);
        }
        let lane = Udp::bind(Port::Lane, at_b.port(), MARK, 100_000).unwrap();
        let mut b = Ports::new(lane, None, MARK, 100_000);
        let mut arrived = vec![];
        for number in 0..3 {
            send(&mut a, to(at_b), number).await;
            arrived.extend(take(&mut b, 2).await);
        }
        assert!(arrived.iter().all(|(_, from, _)| *from == at_a), "{arrived:?}");
        assert_eq!((a.own.len(), a.send_errors()), (1, 0));
    }

    /// It could not be bound without its interface, and others would wait for the next try.
    #[tokio::test]
    async fn a_path_from_a_link_local_address_stays_with_the_port() {
        let (mut a, _) = bound();
        let path = Path {
            local: Some("fe80::1".parse().unwrap()),
            ..Path::from("[fe80::2]:4789".parse::<SocketAddr>().unwrap())
        };
        for number in 0..40 {
            send(&mut a, path, number).await;
        }
        assert!(a.busy.take().is_none());
    }

    #[tokio::test]
    async fn paths_beyond_the_most_share_the_port() {
        let (mut a, _) = bound();
        let (mut others, begun) = (vec![], Instant::now());
        for _ in 0..MOST + 2 {
            others.push(bound());
        }
        let busy = |ports: &mut Ports, at: SocketAddr, now| {
            let path = to(at);
            for _ in 0..20 {
                ports.busy.sent(path);
            }
            ports.look_again(now);
        };
        for (_, at) in &others {
            busy(&mut a, *at, begun);
        }
        assert_eq!(a.own.len(), MOST);
        assert!(!a.own.iter().any(|own| own.path.remote == others[MOST].1));
        // One that is used no more gives way.
        for (n, (_, at)) in others.iter().take(MOST).enumerate() {
            if n != 3 {
                send(&mut a, to(*at), 1).await;
            }
        }
        busy(&mut a, others[MOST].1, begun + GIVES_WAY);
        let has = |at: SocketAddr| a.own.iter().any(|own| own.path.remote == at);
        assert_eq!(
            (a.own.len(), has(others[3].1), has(others[MOST].1)),
            (MOST, false, true)
        );
    }
}
