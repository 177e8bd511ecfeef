//! Links over QUIC: inner packets as datagrams (RFC 9221) of connections between agents that pin each other's keys.
//!
//! `quinn-proto` is driven here by hand: what arrives goes in, what is to be sent is taken at the end of each batch
//! ([`Quic::flush`]), timers are ours. Either end may open a connection. Where two exist with one peer, each end sends on
//! the one that was established last, and the end with the smaller key closes the others.

mod connection;
mod peers;
mod settings;
mod tls;

use super::Sealed;
use crate::buffer::{Path, Port, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use bytes::{Bytes, BytesMut};
use connection::{Connection, Heard};
use peers::Peer;
use quinn_proto::{ConnectionHandle, DatagramEvent, Endpoint, Incoming, Transmit, TransportConfig};
use rustls::pki_types::PrivateKeyDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tls::{Identity, Pins};
use tombolo_proto::id::KeyPin;

/// Chunk from which inner packets are cut, bytes: one allocation for hundreds of them.
const CHUNK: usize = 256 << 10;

/// Packets that wait for a connection. A flow that starts sends few before its first answer.
const MAX_WAITING: usize = 64;

/// Handshakes under way beyond which strangers must show that they own their address.
const BUSY: usize = 64;

/// Handshakes under way beyond which new ones are not answered.
const FULL: usize = 1024;

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// A connection is up.
    Up(LinkIndex),
    /// The last connection is gone, and why.
    Down(LinkIndex, String),
    /// The peer is heard from elsewhere.
    Moved(LinkIndex, SocketAddr),
}

/// What a datagram held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something of a connection; packets in it wait for [`Quic::next_packet`].
    Known,
    /// Nothing that may be used.
    Refused,
}

/// All QUIC links of one engine.
pub(super) struct Quic {
    endpoint: Endpoint,
    identity: Identity,
    pins: Arc<Pins>,
    transport: Arc<TransportConfig>,
    peers: Vec<Peer>,
    by_pin: BTreeMap<KeyPin, LinkIndex>,
    connections: Vec<Option<Connection>>,
    /// How many of them are not established.
    handshaking: usize,
    timers: BTreeSet<(Instant, usize)>,
    /// When connections to second ports are tried, and of which links.
    seconds: BTreeSet<(Instant, usize)>,
    /// The own port that these leave by.
    own_second: Port,
    /// Which of the agent's lanes this is.
    lane: u16,
    /// Connections that may have something to send.
    dirty: Vec<ConnectionHandle>,
    packets: VecDeque<(LinkIndex, Bytes)>,
    pub(super) news: VecDeque<News>,
    /// Packets that waited in vain, not told yet.
    lost: u64,
    incoming: BytesMut,
    outgoing: BytesMut,
    buffer: Vec<u8>,
}

impl Quic {
    /// The links of the agent with this private key (PKCS #8); none yet. `seed` is any secret number.
    ///
    /// # Errors
    /// The key is of no kind that TLS 1.3 knows.
    pub(super) fn new(key: PrivateKeyDer<'static>, seed: [u8; 32]) -> Result<Self, rustls::Error> {
        let pins = Arc::new(Pins::default());
        let reset = settings::reset_key(&key);
        let identity = Identity::new(key)?;
        let transport = Arc::new(settings::transport());
        let server = settings::server(identity.server(pins.clone())?, transport.clone());
        let endpoint = Endpoint::new(
            Arc::new(settings::endpoint(reset)),
            Some(Arc::new(server)),
            true,
            Some(seed),
        );
        Ok(Self {
            endpoint,
            identity,
            pins,
            transport,
            peers: Vec::new(),
            by_pin: BTreeMap::new(),
            connections: Vec::new(),
            handshaking: 0,
            timers: BTreeSet::new(),
            seconds: BTreeSet::new(),
            own_second: Port::Lane,
            lane: 0,
            dirty: Vec::new(),
            packets: VecDeque::new(),
            news: VecDeque::new(),
            lost: 0,
            incoming: BytesMut::with_capacity(CHUNK),
            outgoing: BytesMut::with_capacity(CHUNK),
            buffer: Vec::new(),
        })
    }

    /// This is another lane than the first: second ports are the first lanes'.
    pub(super) fn set_lane(&mut self, lane: u16) {
        self.lane = lane;
    }

    /// The agent has a second port itself: whoever lets it through one way lets it through the other.
    pub(super) fn set_second_port(&mut self) {
        self.own_second = Port::Quic;
    }

    /// What others must pin.
    pub(super) fn pin(&self) -> KeyPin {
        self.identity.pin()
    }

    /// Notes that there may be something to send.
    fn touch(&mut self, handle: ConnectionHandle) {
        if let Some(connection) = &mut self.connections[handle.0]
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(handle);
        }
    }

    /// Takes a packet; it leaves with the next [`flush`](Self::flush), or when congestion allows.
    pub(super) fn seal(&mut self, link: LinkIndex, packet: &[u8]) -> Sealed {
        let Some(peer) = self.peers.get_mut(link.get()) else {
            return Sealed::Dropped(DropReason::NoLink);
        };
        if self.outgoing.capacity() < packet.len() {
            self.outgoing.reserve(CHUNK);
        }
        self.outgoing.extend_from_slice(packet);
        let packet = self.outgoing.split().freeze();
        let active = peer.active;
        let Some((handle, connection)) = active.and_then(|h| Some((h, self.connections[h.0].as_mut()?))) else {
            if !peer.is_asking() || peer.waiting.len() >= MAX_WAITING {
                return Sealed::Dropped(DropReason::LinkDown);
            }
            peer.waiting.push(packet);
            return Sealed::Sent;
        };
        let sealed = connection.send(packet);
        self.touch(handle);
        sealed
    }

    /// Packets that [`seal`](Self::seal) took and that were dropped since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Takes a datagram.
    pub(super) fn open(&mut self, datagram: &[u8], from: Path, now: Instant, tx: &mut impl TransmitSink) -> Taken {
        if self.incoming.capacity() < datagram.len() {
            self.incoming.reserve(CHUNK);
        }
        self.incoming.extend_from_slice(datagram);
        let datagram = self.incoming.split();
        self.buffer.clear();
        let event = self
            .endpoint
            .handle(now, from.remote, None, None, datagram, &mut self.buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
                    return Taken::Refused;
                };
                connection.handle(event, from);
                if let Some(link) = connection.link {
                    while let Some(packet) = connection.inner.datagrams().recv() {
                        self.packets.push_back((link, packet));
                    }
                }
                self.touch(handle);
                self.listen(handle, now);
                Taken::Known
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accept(incoming, from, now, tx);
                Taken::Known
            }
            Some(DatagramEvent::Response(transmit)) => {
                put(&transmit, &self.buffer, from, tx);
                Taken::Refused
            }
            None => Taken::Refused,
        }
    }

    /// The next packet that arrived.
    pub(super) fn next_packet(&mut self) -> Option<(LinkIndex, Bytes)> {
        self.packets.pop_front()
    }

    fn accept(&mut self, incoming: Incoming, from: Path, now: Instant, tx: &mut impl TransmitSink) {
        self.buffer.clear();
        if self.handshaking >= FULL {
            self.endpoint.ignore(incoming);
        } else if self.handshaking >= BUSY && incoming.may_retry() {
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.buffer) {
                put(&transmit, &self.buffer, from, tx);
            }
        } else {
            match self.endpoint.accept(incoming, now, &mut self.buffer, None) {
                Ok((handle, inner)) => {
                    self.keep(handle, Connection::new(inner, from, None, None));
                    self.listen(handle, now);
                }
                Err(error) => {
                    if let Some(transmit) = error.response {
                        put(&transmit, &self.buffer, from, tx);
                    }
                }
            }
        }
    }

    /// Takes what a connection has to say.
    fn listen(&mut self, handle: ConnectionHandle, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
                return;
            };
            match connection.hear(now) {
                Heard::Nothing => break,
                Heard::Established(pin) => {
                    self.handshaking = self.handshaking.saturating_sub(1);
                    self.established(handle, pin, now);
                }
                Heard::Lost(was_established, reason) => {
                    if !was_established {
                        self.handshaking = self.handshaking.saturating_sub(1);
                    }
                    self.lost(handle, reason);
                }
                Heard::Moved(to) => {
                    // What comes to the second port comes from one perhaps: it says nothing of the lanes' ports.
                    if let Some(link) = connection.link.filter(|_| to.port == Port::Lane) {
                        self.news.push_back(News::Moved(link, to.remote));
                    }
                }
            }
        }
    }

    /// Sends what connections have to send; call at the end of each batch.
    pub(super) fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        // Connections that become dirty on the way wait for the next batch.
        for handle in std::mem::take(&mut self.dirty) {
            self.serve(handle, now, tx);
        }
    }

    fn serve(&mut self, handle: ConnectionHandle, now: Instant, tx: &mut impl TransmitSink) {
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) {
            connection.dirty = false;
        }
        let mut drained = false;
        while let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) {
            let mut quiet = true;
            while let Some(event) = connection.inner.poll_endpoint_events() {
                drained |= event.is_drained();
                quiet = false;
                if let Some(answer) = self.endpoint.handle_event(handle, event) {
                    connection.inner.handle_event(answer);
                }
            }
            if drained {
                self.forget(handle);
                return;
            }
            while !tx.is_full() {
                self.buffer.clear();
                let Some(transmit) = connection
                    .inner
                    .poll_transmit(now, settings::MAX_SEGMENTS, &mut self.buffer)
                else {
                    break;
                };
                quiet = false;
                put(&transmit, &self.buffer, connection.path, tx);
            }
            if quiet {
                break;
            }
        }
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) {
            connection.measure();
        }
        self.listen(handle, now);
        self.set_timer(handle);
        if tx.is_full() {
            self.touch(handle);
        }
    }

    fn set_timer(&mut self, handle: ConnectionHandle) {
        let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
            return;
        };
        let next = connection.inner.poll_timeout();
        if next == connection.timer {
            return;
        }
        if let Some(old) = std::mem::replace(&mut connection.timer, next) {
            self.timers.remove(&(old, handle.0));
        }
        if let Some(new) = next {
            self.timers.insert((new, handle.0));
        }
    }

    fn forget(&mut self, handle: ConnectionHandle) {
        if let Some(connection) = self.connections[handle.0].take()
            && let Some(timer) = connection.timer
        {
            self.timers.remove(&(timer, handle.0));
        }
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.dial_due(now);
        while let Some((at, number)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(connection) = &mut self.connections[number] {
                connection.timer = None;
                connection.inner.handle_timeout(now);
                self.listen(ConnectionHandle(number), now);
                self.serve(ConnectionHandle(number), now, tx);
            }
        }
        self.flush(now, tx);
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let first = [self.timers.first(), self.seconds.first()];
        first.into_iter().flatten().map(|(at, _)| *at).min()
    }
}

/// Hands on what quinn has to send, from where `path` says.
fn put(transmit: &Transmit, contents: &[u8], path: Path, tx: &mut impl TransmitSink) {
    let contents = &contents[..transmit.size];
    let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
    let to = Path {
        remote: transmit.destination,
        ..path
    };
    // RFC 9000, section 14: it finds the path's MTU by itself.
    tx.allow_fragments(false);
    for datagram in contents.chunks(segment) {
        tx.reserve(to, datagram.len())[..datagram.len()].copy_from_slice(datagram);
        tx.commit(datagram.len());
    }
    tx.allow_fragments(true);
}
