//! The UDP sockets of a lane. Every lane has a port of its own, and lane 0 may have a second one, for QUIC only (D6).
//!
//! A heavily used path gets a connected socket on the same port. The kernel caches the route of a connected socket, in
//! both directions. For an unconnected socket the kernel evaluates the host's routing rules for each packet, which is
//! most of the cost of a single packet. Packets that a connected socket cannot send go through the unconnected socket
//! of the port, which all other paths share.

mod connected;
mod heavy_hitters;

use crate::config::Config;
use crate::outbox::Datagrams;
use crate::udp::{Sent, Udp, WouldBlock};
use anyhow::Result;
use connected::{ConnectedSockets, Outcome};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::task::Poll;
use std::time::Instant;
use tombolo_engine::buffer::{Outer, Port};

/// Identifies one socket of [`LaneSockets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketId {
    /// The unconnected socket of a port, which sends to any address and receives from any address.
    Shared(Port),
    /// The connected socket of a path, by index. Only [`LaneSockets::maintain`] changes indexes.
    Connected(usize),
}

/// The shared and connected UDP sockets of one lane.
pub struct LaneSockets {
    lane: Udp,
    quic: Option<Udp>,
    connected: ConnectedSockets,
    /// The socket that refused the last batch because its send buffer was full. None: the last batch was accepted.
    backpressured: Option<SocketId>,
}

impl LaneSockets {
    /// Binds the port of lane `number` (`listen_port` + `number`), and for lane 0 also `quic_port`. There are no
    /// connected sockets yet. If `config` sets no `receive_buffer`, the size for a VM is used, until
    /// [`set_receive_buffer`](Self::set_receive_buffer).
    ///
    /// # Errors
    /// A port is in use, or the process lacks CAP_NET_ADMIN, which it needs for the mark (`SO_MARK`) and for the sizes
    /// of the buffers.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
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
            connected: ConnectedSockets::new(fwmark, receive_buffer),
            backpressured: None,
        }
    }

    /// Sets the receive buffer of every socket to `bytes`, also of sockets that are opened later. The host's limit
    /// `rmem_max` does not apply.
    ///
    /// # Errors
    /// The process lacks CAP_NET_ADMIN. Some sockets may have the new size then.
    pub fn set_receive_buffer(&mut self, bytes: usize) -> io::Result<()> {
        self.connected.receive_buffer = bytes;
        self.all().try_for_each(|id| self.at(id).set_receive_buffer(bytes))
    }

    /// All sockets: first the shared socket of the lane's port, then the shared socket of the QUIC port if there is
    /// one, then the connected sockets. The indexes are valid until the next call of [`maintain`](Self::maintain).
    pub fn all(&self) -> impl Iterator<Item = SocketId> + use<> {
        let quic = self.quic.as_ref().map(|_| SocketId::Shared(Port::Quic));
        std::iter::once(SocketId::Shared(Port::Lane))
            .chain(quic)
            .chain((0..self.connected.len()).map(SocketId::Connected))
    }

    fn at(&self, id: SocketId) -> &Udp {
        match id {
            SocketId::Shared(Port::Lane) => &self.lane,
            SocketId::Shared(Port::Quic) => self.quic.as_ref().unwrap_or(&self.lane),
            SocketId::Connected(number) => self.connected.get(number).unwrap_or(&self.lane),
        }
    }

    /// The socket `id`. If there is no such socket, the shared socket of the lane's port.
    pub fn get(&mut self, id: SocketId) -> &mut Udp {
        match id {
            SocketId::Shared(Port::Lane) => &mut self.lane,
            SocketId::Shared(Port::Quic) => self.quic.as_mut().unwrap_or(&mut self.lane),
            SocketId::Connected(number) => self.connected.get_mut(number).unwrap_or(&mut self.lane),
        }
    }

    /// Waits until at least one of the sockets may be readable. Cancel safe. A read may still find nothing.
    ///
    /// # Errors
    /// Polling a socket failed.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut ready = self.all().map(|id| self.at(id).poll_readable(context));
            ready.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Waits until the socket that refused the last batch may accept it. If the last batch was accepted, waits for the
    /// shared socket of the lane's port. Cancel safe.
    ///
    /// # Errors
    /// Polling the socket failed.
    pub async fn writable(&self) -> io::Result<()> {
        self.at(self.backpressured.unwrap_or(SocketId::Shared(Port::Lane)))
            .writable()
            .await
    }

    /// Sends a batch through the connected socket of its path. If the path has no connected socket, or this socket
    /// refuses the batch, the batch goes through the shared socket of the path's port. A path without a connected
    /// socket is counted, so that [`maintain`](Self::maintain) can open one for it. Does not wait. The result says how
    /// many datagrams the kernel refused; these are lost.
    ///
    /// # Errors
    /// [`WouldBlock`]: the send buffer of the socket is full, and nothing was sent. The caller sends the batch again
    /// after [`writable`](Self::writable).
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<Sent, WouldBlock> {
        let path = datagrams.transmit.path;
        self.backpressured = None;
        // A connected socket sends only batches of the lane's port without ECN bits that may be fragmented. All others
        // use a shared socket. ECN bits need a control message, and the kernel looks up a route for each packet that
        // has one, even on a connected socket.
        let needs_no_cmsg = datagrams.transmit.outer == Outer::default() && path.port == Port::Lane;
        if needs_no_cmsg && path.local.is_some_and(needs_no_scope) {
            match self.connected.send(path, datagrams) {
                Outcome::Sent => return Ok(Sent::default()),
                Outcome::WouldBlock(number) => {
                    self.backpressured = Some(SocketId::Connected(number));
                    return Err(WouldBlock);
                }
                Outcome::NotSent => {}
            }
        }
        let id = SocketId::Shared(path.port);
        let sent = self.get(id).send(datagrams);
        if sent.is_err() {
            self.backpressured = Some(id);
        }
        sent
    }

    /// Does the periodic work; to be called at every wake-up of the lane. Closes idle and broken connected sockets, and
    /// opens at most one for a heavily used path. Also retries GSO and source addresses that the kernel refused a
    /// minute ago. Indexes of connected sockets may change. While a refused batch waits for
    /// [`writable`](Self::writable), connected sockets stay as they are.
    pub fn maintain(&mut self, now: Instant) {
        self.lane.maintain(now);
        if let Some(quic) = &mut self.quic {
            quic.maintain(now);
        }
        // `backpressured` has the index of the socket for which `writable` waits. `maintain` of the connected sockets
        // could change this index, so it is not called.
        if self.backpressured.is_some() {
            return;
        }
        self.connected.maintain(&self.lane, now);
    }

    /// Datagrams that the kernel has dropped because a receive buffer was full, since the start, of all sockets
    /// together.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.connected.closed_overflow + self.all().map(|id| self.at(id).overflow()).sum::<u64>()
    }

    /// Datagrams that the kernel has refused to send, since the start. A datagram that only a connected socket refused
    /// does not count, because the shared socket sends it.
    #[must_use]
    pub fn send_errors(&self) -> u64 {
        self.lane.send_errors + self.quic.as_ref().map_or(0, |quic| quic.send_errors)
    }
}

/// Whether an address is valid without a scope ID. A link-local IPv6 address is not: it needs the ID of its interface,
/// which [`Path`](tombolo_engine::buffer::Path) does not have.
fn needs_no_scope(address: IpAddr) -> bool {
    !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::connected::{EVICTION_IDLE, IDLE_TIMEOUT, MAX_CONNECTED};
    use super::*;
    use crate::udp::BUFFER;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tombolo_engine::buffer::Path;

    const MARK: u32 = 0x746d;
    const LOCAL: [u8; 4] = [127, 0, 0, 1];

    /// The sockets of a lane on a free port of loopback, and their address. Needs root to mark packets.
    fn bound() -> (LaneSockets, SocketAddr) {
        let lane = Udp::bind(Port::Lane, 0, MARK, 100_000).unwrap();
        let at = SocketAddr::from((LOCAL, lane.port().unwrap()));
        (LaneSockets::new(lane, None, MARK, 100_000), at)
    }

    fn to(remote: SocketAddr) -> Path {
        Path {
            local: Some(LOCAL.into()),
            ..Path::from(remote)
        }
    }

    /// Sends a batch of two datagrams with this number in each.
    async fn send(sockets: &mut LaneSockets, path: Path, number: u16) {
        let mut bytes = [0; 150];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        bytes[100..102].copy_from_slice(&number.to_be_bytes());
        let datagrams = Datagrams {
            transmit: path.into(),
            bytes: &bytes,
            segment: 100,
        };
        while sockets.send(&datagrams).is_err() {
            sockets.writable().await.unwrap();
        }
    }

    /// Receives `count` datagrams. Returns the number in each, its sender and the socket that received it.
    async fn take(sockets: &mut LaneSockets, count: usize) -> Vec<(u16, SocketAddr, SocketId)> {
        let mut buffer: Box<[u8; BUFFER]> = vec![0; BUFFER].try_into().unwrap();
        let mut taken = vec![];
        while taken.len() < count {
            let patience = Duration::from_secs(5);
            let ready = tokio::time::timeout(patience, sockets.readable()).await;
            ready.unwrap_or_else(|_| panic!("{taken:?}")).unwrap();
            for id in sockets.all() {
                let Ok(batches) = sockets.get(id).try_recv(&mut buffer, 64) else {
                    continue;
                };
                for batch in 0..batches {
                    let (received, bytes) = sockets.get(id).received(batch, &buffer);
                    for datagram in bytes.chunks(received.stride) {
                        let number = u16::from_be_bytes([datagram[0], datagram[1]]);
                        taken.push((number, received.from.remote, id));
                    }
                }
            }
        }
        taken
    }

    #[tokio::test]
    async fn a_heavy_path_gets_a_connected_socket_and_others_use_the_shared_one() {
        let ((mut a, at_a), (mut b, at_b), (mut c, at_c)) = (bound(), bound(), bound());
        let now = Instant::now();
        for number in 0..200 {
            send(&mut a, to(at_b), number).await;
            a.maintain(now);
            let taken = take(&mut b, 2).await;
            assert!(
                taken.iter().all(|(n, from, _)| (*n, *from) == (number, at_a)),
                "{taken:?}"
            );
            send(&mut b, to(at_a), number).await;
            b.maintain(now);
            let taken = take(&mut a, 2).await;
            assert!(
                taken.iter().all(|(n, from, _)| (*n, *from) == (number, at_b)),
                "{taken:?}"
            );
            if number == 150 {
                assert!(taken.iter().all(|(.., id)| *id == SocketId::Connected(0)), "{taken:?}");
                // The third peer's packet arrives at the shared socket, and the answer leaves from there.
                send(&mut c, to(at_a), 7).await;
                assert_eq!(take(&mut a, 2).await, [(7, at_c, SocketId::Shared(Port::Lane)); 2]);
                send(&mut a, to(at_c), 8).await;
                assert_eq!(take(&mut c, 2).await[0].1, at_a);
            }
        }
        assert_eq!((a.connected.len(), b.connected.len(), c.connected.len()), (1, 1, 0));
        // The first call takes note of the traffic above. The idle time starts with that call.
        a.maintain(now);
        a.maintain(now + IDLE_TIMEOUT);
        assert_eq!(a.connected.len(), 0);
        send(&mut b, to(at_a), 9).await;
        assert_eq!(take(&mut a, 2).await, [(9, at_b, SocketId::Shared(Port::Lane)); 2]);
    }

    /// A second agent that binds the same port must get EADDRINUSE, although connected sockets set SO_REUSEPORT.
    #[tokio::test]
    async fn a_port_with_connected_sockets_is_taken() {
        let ((mut a, at_a), (_b, at_b)) = (bound(), bound());
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.maintain(Instant::now());
        }
        assert_eq!(a.connected.len(), 1);
        let error = Udp::bind(Port::Lane, at_a.port(), MARK, 100_000).err().unwrap();
        assert!(error.to_string().contains("is taken"), "{error:#}");
    }

    /// While the peer's port is closed, ICMP errors arrive. Only the datagrams that are sent during that time may be
    /// lost.
    #[tokio::test]
    async fn a_peer_is_reached_again_after_icmp_errors() {
        let ((mut a, at_a), (b, at_b)) = (bound(), bound());
        let now = Instant::now();
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.maintain(now);
        }
        drop(b);
        for number in 0..100 {
            send(&mut a, to(at_b), number).await;
            a.maintain(now);
        }
        let lane = Udp::bind(Port::Lane, at_b.port(), MARK, 100_000).unwrap();
        let mut b = LaneSockets::new(lane, None, MARK, 100_000);
        let mut arrived = vec![];
        for number in 0..3 {
            send(&mut a, to(at_b), number).await;
            arrived.extend(take(&mut b, 2).await);
        }
        assert!(arrived.iter().all(|(_, from, _)| *from == at_a), "{arrived:?}");
        assert_eq!((a.connected.len(), a.send_errors()), (1, 0));
    }

    /// A link-local address without a scope cannot be bound. A failed attempt would also delay the connected sockets of
    /// other paths, so a link-local path never gets one.
    #[tokio::test]
    async fn a_link_local_path_uses_the_shared_socket() {
        let (mut a, _) = bound();
        let path = Path {
            local: Some("fe80::1".parse().unwrap()),
            ..Path::from("[fe80::2]:4789".parse::<SocketAddr>().unwrap())
        };
        for number in 0..40 {
            send(&mut a, path, number).await;
        }
        assert!(a.connected.heavy_hitters.take_heavy().is_none());
    }

    #[tokio::test]
    async fn paths_beyond_the_maximum_use_the_shared_socket() {
        let (mut a, _) = bound();
        let (mut others, begun) = (vec![], Instant::now());
        for _ in 0..MAX_CONNECTED + 2 {
            others.push(bound());
        }
        let heavy_hitters = |sockets: &mut LaneSockets, at: SocketAddr, now| {
            let path = to(at);
            for _ in 0..20 {
                sockets.connected.heavy_hitters.record(path);
            }
            sockets.maintain(now);
        };
        for (_, at) in &others {
            heavy_hitters(&mut a, *at, begun);
        }
        assert_eq!(a.connected.len(), MAX_CONNECTED);
        assert!(
            !a.connected
                .sockets
                .iter()
                .any(|connected| connected.path.remote == others[MAX_CONNECTED].1)
        );
        // The idle path with number 3 loses its socket to the new path.
        for (n, (_, at)) in others.iter().take(MAX_CONNECTED).enumerate() {
            if n != 3 {
                send(&mut a, to(*at), 1).await;
            }
        }
        heavy_hitters(&mut a, others[MAX_CONNECTED].1, begun + EVICTION_IDLE);
        let has = |at: SocketAddr| a.connected.sockets.iter().any(|connected| connected.path.remote == at);
        assert_eq!(
            (a.connected.len(), has(others[3].1), has(others[MAX_CONNECTED].1)),
            (MAX_CONNECTED, false, true)
        );
    }
}
