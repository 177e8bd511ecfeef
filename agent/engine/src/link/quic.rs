//! Links over QUIC: inner packets are datagrams (RFC 9221) of connections between agents that pin each other's keys.
//!
//! This module drives `quinn-proto`: it passes received datagrams to `quinn-proto`, runs the timers and, at the end of
//! each batch ([`flush`](SecureTransport::flush)), fetches the datagrams that must be sent. Either end may open a
//! connection. If two connections exist with one peer, each end sends on the one that was established last, and the end
//! with the smaller key closes the others.

mod connection;
mod peers;
mod settings;
mod tls;

use super::transport::{NoSession, PathHint, SecureTransport, SessionState, TransportEvent};
use super::wireguard::network_of;
use super::{Opened, Sealed, commit};
use crate::buffer::{Outer, Path, Port, Transmit, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use bytes::{Bytes, BytesMut};
use connection::{Connection, ConnectionEvent};
use peers::Peer;
use quinn_proto::{ConnectionHandle, DatagramEvent, Endpoint, Incoming, TransportConfig};
use rustls::pki_types::PrivateKeyDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tls::{Identity, Pins};
use tombolo_proto::budget::{Budgets, Rate};
use tombolo_proto::config::Link;
use tombolo_proto::id::KeyPin;
use tombolo_proto::status::{LinkState, LinkStatus};

/// Size in bytes of the buffers from which packets are allocated. One buffer has room for about 180 full-sized packets.
const CHUNK_LEN: usize = 256 << 10;

/// The bit of the first byte that marks a long header, which the packets of handshakes have (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// Largest number of packets that wait for a connection. A flow sends few packets before its first answer.
const MAX_WAITING: usize = 64;

/// If this number of handshakes is in progress, the sender of a new one must first validate its address, by the token
/// of a Retry packet (RFC 9000, section 8.1.2).
const RETRY_THRESHOLD: usize = 64;

/// If this number of handshakes is in progress, new ones are ignored. The limit bounds the memory that unknown senders
/// can occupy.
const MAX_HANDSHAKES: usize = 1024;

/// Largest number of handshakes in progress that validated addresses of one network (an IPv4 address or an IPv6 /64)
/// have started. Further ones from this network are ignored.
const MAX_HALF_OPEN: usize = 64;

/// Rate at which one network may open connections. The rate is limited because a handshake costs this end as much
/// computation as its peer. The burst allows for several agents behind one NAT gateway. Each network has two budgets,
/// because an address that is not validated may be forged. Above the rate, an address that is not validated must first
/// be validated, and a new connection from a validated address is ignored.
const CONNECTION_RATE: Rate = Rate {
    burst: 32,
    per_second: 4,
};

/// All QUIC links of one engine.
pub(super) struct Quic {
    endpoint: Endpoint,
    identity: Identity,
    pins: Arc<Pins>,
    transport: Arc<TransportConfig>,
    peers: Vec<Peer>,
    by_pin: BTreeMap<KeyPin, LinkIndex>,
    connections: Vec<Option<Connection>>,
    /// Number of connections whose handshake is in progress.
    handshaking: usize,
    /// Number of handshakes in progress that peers started from validated addresses, by the network of the address.
    half_open: BTreeMap<IpAddr, usize>,
    /// Budgets for opening connections. The key is the network, and whether the address was validated.
    opened: Budgets<(IpAddr, bool)>,
    /// The time at which each connection's next timer is due, with the connection's handle.
    timers: BTreeSet<(Instant, usize)>,
    /// The times at which connections to second ports of peers will be opened, unless others are established by then;
    /// each with the position of the link.
    planned: BTreeSet<(Instant, usize)>,
    /// The port of this agent from which datagrams to second ports of peers are sent.
    own_second: Port,
    /// The number of this lane, from 0.
    lane: u16,
    /// The connections that may have something to send.
    dirty: Vec<ConnectionHandle>,
    /// Received packets that were not fetched yet, oldest first.
    packets: VecDeque<(LinkIndex, Bytes)>,
    events: VecDeque<TransportEvent>,
    /// Number of packets that were dropped while they waited for a connection.
    lost: u64,
    /// The buffers from which received and sent packets are allocated.
    incoming: BytesMut,
    outgoing: BytesMut,
    /// The buffer into which quinn writes datagrams.
    buffer: Vec<u8>,
}

impl Quic {
    /// Creates a set without links, for the agent with this private key (PKCS #8). `seed` is a secret random number.
    ///
    /// # Errors
    /// The key cannot be parsed, TLS 1.3 has no signature scheme for it, or its public key cannot be derived.
    pub(super) fn new(key: PrivateKeyDer<'static>, seed: [u8; 32]) -> Result<Self, rustls::Error> {
        let pins = Arc::new(Pins::default());
        let reset = settings::reset_key(&key);
        let identity = Identity::new(key)?;
        let transport = Arc::new(settings::transport());
        let server = settings::server(identity.server(pins.clone())?, transport.clone());
        // The argument `true` allows path MTU discovery. It needs datagrams with don't-fragment, which `put` sets.
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
            half_open: BTreeMap::new(),
            opened: Budgets::default(),
            timers: BTreeSet::new(),
            planned: BTreeSet::new(),
            own_second: Port::Lane,
            lane: 0,
            dirty: Vec::new(),
            packets: VecDeque::new(),
            events: VecDeque::new(),
            lost: 0,
            incoming: BytesMut::with_capacity(CHUNK_LEN),
            outgoing: BytesMut::with_capacity(CHUNK_LEN),
            buffer: Vec::new(),
        })
    }

    /// The pin of the agent's key, which peers must have in their configuration.
    pub(super) fn pin(&self) -> KeyPin {
        self.identity.pin()
    }

    /// Marks a connection that may have datagrams to send, so that the next flush writes them.
    fn touch(&mut self, handle: ConnectionHandle) {
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(handle);
        }
    }

    /// Handles the first datagram of a new connection: depending on the load, accepts the connection, answers by a
    /// Retry that demands validation of the address, or ignores the datagram.
    fn accept(&mut self, incoming: Incoming, from: Path, now: Instant, tx: &mut impl TransmitSink) {
        self.buffer.clear();
        let network = network_of(from.remote.ip());
        let is_validated = incoming.remote_address_validated();
        let half_open = self.half_open.get(&network).copied().unwrap_or_default();
        // Only handshakes from validated addresses count as half-open. If others counted too, a sender that forges an
        // address could use up the limit of that address, so that the address's owner could not connect.
        let is_full = self.handshaking >= MAX_HANDSHAKES || is_validated && half_open >= MAX_HALF_OPEN;
        let is_in_budget = !is_full && self.opened.try_take((network, is_validated), CONNECTION_RATE, now);
        if is_full || is_validated && !is_in_budget {
            self.endpoint.ignore(incoming);
        } else if (self.handshaking >= RETRY_THRESHOLD || !is_in_budget) && incoming.may_retry() {
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.buffer) {
                put(&transmit, &self.buffer, from, tx);
            }
        } else {
            match self.endpoint.accept(incoming, now, &mut self.buffer, None) {
                Ok((handle, inner)) => {
                    let mut connection = Connection::new(inner, from, None, None, now);
                    connection.half_open = is_validated.then_some(network);
                    self.keep(handle, connection);
                    self.take_events(handle, now);
                }
                Err(error) => {
                    if let Some(transmit) = error.response {
                        put(&transmit, &self.buffer, from, tx);
                    }
                }
            }
        }
    }

    /// Handles the waiting events of a connection.
    fn take_events(&mut self, handle: ConnectionHandle, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
                return;
            };
            match connection.poll_event(now) {
                None => break,
                Some(ConnectionEvent::Established(pin)) => {
                    self.handshake_over(handle);
                    self.established(handle, pin, now);
                }
                Some(ConnectionEvent::Lost(reason)) => {
                    self.handshake_over(handle);
                    self.lost(handle, reason);
                }
                Some(ConnectionEvent::PathChanged(to)) => {
                    // A peer that sends to this agent's second port may send from its own second port. That port is not
                    // reported as the peer's endpoint, because it accepts neither WireGuard nor datagrams for other
                    // lanes.
                    let link = connection.link.filter(|_| to.port == Port::Lane);
                    if let Some(peer) = link.and_then(|link| self.peers.get(link.get())) {
                        let event = TransportEvent::EndpointChanged(peer.name.clone(), to.remote);
                        self.events.push_back(event);
                    }
                }
            }
        }
    }

    /// Writes the datagrams that a connection has to send into `tx`, and sets its timer. If the sink is full, the
    /// remaining datagrams are written with a later batch.
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
            connection.update_max_packet();
        }
        self.take_events(handle, now);
        self.set_timer(handle);
        if tx.is_full() {
            self.touch(handle);
        }
    }

    /// Updates the entry of a connection in `timers` to the time at which the connection's next timer is due.
    fn set_timer(&mut self, handle: ConnectionHandle) {
        let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
            return;
        };
        let next = connection.timeout();
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

    /// Removes a connection that quinn reports as drained, i.e. for which late datagrams need no more answers.
    fn forget(&mut self, handle: ConnectionHandle) {
        self.handshake_over(handle);
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::take)
            && let Some(timer) = connection.timer
        {
            self.timers.remove(&(timer, handle.0));
        }
    }

    /// Ends a connection whose handshake has taken too long.
    fn give_up(&mut self, handle: ConnectionHandle, now: Instant) {
        let connection = self.connections.get(handle.0).and_then(Option::as_ref);
        let Some(connection) = connection.filter(|c| c.deadline.is_some() && !c.over) else {
            return;
        };
        let link = connection.link;
        self.end(handle, now, "the handshake took too long");
        if let Some(link) = link.filter(|link| self.needs_connect(*link)) {
            self.report_down(link, "the handshake took too long".to_owned());
        }
    }
}

impl SecureTransport for Quic {
    // quinn discovers the path MTU (RFC 9000, section 14.3).
    const DISCOVERS_PATH_MTU: bool = true;

    fn update(&mut self, links: &[Link], now: Instant) {
        self.update_peers(links, now);
    }

    fn set_lane(&mut self, lane: u16) {
        self.lane = lane;
    }

    /// From now on datagrams to second ports of peers are sent from this agent's second port, because a firewall that
    /// admits this port as a destination probably admits it as a source too.
    fn set_second_port(&mut self) {
        self.own_second = Port::Quic;
    }

    fn session(&self, link: LinkIndex) -> SessionState {
        match self.peers.get(link.get()) {
            Some(peer) if peer.active.is_some() => SessionState::Up,
            Some(peer) if peer.is_connecting() => SessionState::Connecting { since: None },
            Some(_) | None => SessionState::Down,
        }
    }

    fn needs_connect(&self, link: LinkIndex) -> bool {
        self.session(link) == SessionState::Down
    }

    /// Opens a connection to the peer's endpoint and, 300 ms later, another one to the peer's second port if the peer
    /// has one (D6). The first connection that is established is kept.
    fn connect(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool {
        self.dial_peer(link, hint, now)
    }

    fn close(&mut self, link: LinkIndex, now: Instant, reason: &'static str) {
        let connections = self.peers.get(link.get()).map(|p| p.connections.clone());
        for handle in connections.into_iter().flatten() {
            self.end(handle, now, reason);
        }
    }

    fn max_packet(&self, link: LinkIndex) -> Option<u16> {
        self.active(link)?.max_packet
    }

    /// Queues the packet. The packet is sent with the next [`flush`](SecureTransport::flush), or later when congestion
    /// control allows. `outer` is ignored, because a datagram may hold packets with different ECN fields: [`put`] sets
    /// the datagram's ECN field to 0.
    fn seal(
        &mut self,
        link: LinkIndex,
        packet: &[u8],
        _outer: Outer,
        _now: Instant,
        _tx: &mut impl TransmitSink,
    ) -> Result<Sealed, NoSession> {
        let Some(peer) = self.peers.get_mut(link.get()) else {
            return Ok(Sealed::Dropped(DropReason::NoLink));
        };
        let active = peer.active;
        if active.is_none() && !peer.is_connecting() {
            return Err(NoSession);
        }
        if self.outgoing.capacity() < packet.len() {
            self.outgoing.reserve(CHUNK_LEN);
        }
        self.outgoing.extend_from_slice(packet);
        let packet = self.outgoing.split().freeze();
        let active = active.and_then(|h| Some((h, self.connections.get_mut(h.0)?.as_mut()?)));
        let Some((handle, connection)) = active else {
            if peer.waiting.len() >= MAX_WAITING {
                return Ok(Sealed::Dropped(DropReason::LinkDown));
            }
            peer.waiting.push(packet);
            return Ok(Sealed::Sent);
        };
        let sealed = connection.send(packet);
        self.touch(handle);
        Ok(sealed)
    }

    /// The packets in the datagram wait for [`next_packet`](SecureTransport::next_packet); `buffer` is not used.
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        _buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        // quinn may keep the bytes of a handshake for a long time. They are copied to an allocation of their own: as a
        // part of the shared buffer they would keep its 256 KiB in memory.
        let datagram = if datagram.first().is_some_and(|first| first & LONG_HEADER != 0) {
            BytesMut::from(datagram)
        } else {
            if self.incoming.capacity() < datagram.len() {
                self.incoming.reserve(CHUNK_LEN);
            }
            self.incoming.extend_from_slice(datagram);
            self.incoming.split()
        };
        self.buffer.clear();
        let event = self
            .endpoint
            .handle(now, from.remote, None, None, datagram, &mut self.buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
                    return Opened::Refused(DropReason::BadDatagram);
                };
                connection.handle(event, from);
                if let Some(link) = connection.link {
                    while let Some(packet) = connection.inner.datagrams().recv() {
                        self.packets.push_back((link, packet));
                    }
                }
                self.touch(handle);
                self.take_events(handle, now);
                Opened::Control
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accept(incoming, from, now, tx);
                Opened::Control
            }
            Some(DatagramEvent::Response(transmit)) => {
                put(&transmit, &self.buffer, from, tx);
                Opened::Refused(DropReason::BadDatagram)
            }
            None => Opened::Refused(DropReason::BadDatagram),
        }
    }

    fn next_packet(&mut self) -> Option<(LinkIndex, Bytes)> {
        self.packets.pop_front()
    }

    fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        // The datagrams of connections that are marked during this loop are written with the next batch.
        for handle in std::mem::take(&mut self.dirty) {
            self.serve(handle, now, tx);
        }
    }

    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.dial_due(now);
        while let Some((at, number)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let handle = ConnectionHandle(number);
            if let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) {
                connection.timer = None;
                connection.inner.handle_timeout(now);
                let is_overdue = connection.deadline.is_some_and(|deadline| deadline <= now);
                self.take_events(handle, now);
                if is_overdue {
                    self.give_up(handle, now);
                }
                self.serve(handle, now, tx);
            }
        }
        self.flush(now, tx);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let first = [self.timers.first(), self.planned.first()];
        first.into_iter().flatten().map(|(at, _)| *at).min()
    }

    fn poll_event(&mut self) -> Option<TransportEvent> {
        self.events.pop_front()
    }

    fn describe(&self, link: LinkIndex, now: Instant, status: &mut LinkStatus) -> bool {
        if let Some(connection) = self.active(link)
            && let Some(since) = connection.established
        {
            (status.state, status.reason) = (LinkState::Up, None);
            status.endpoint = Some(connection.inner.remote_address());
            status.handshake_age = Some(now.saturating_duration_since(since).as_secs_f64());
            status.rtt_ms = Some(connection.inner.rtt().as_secs_f64() * 1000.0);
            return true;
        }
        let is_connecting = matches!(self.session(link), SessionState::Connecting { .. });
        if is_connecting {
            (status.state, status.reason) = (LinkState::Connecting, None);
        }
        is_connecting
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn source_unavailable(&mut self, local: IpAddr) {
        self.clear_source(local);
    }
}

/// Writes datagrams that quinn has produced into the sink. They leave by the local address and port of `path`.
fn put(transmit: &quinn_proto::Transmit, contents: &[u8], path: Path, tx: &mut impl TransmitSink) {
    let contents = contents.get(..transmit.size).unwrap_or(contents);
    let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
    let to = Transmit {
        path: Path {
            remote: transmit.destination,
            ..path
        },
        // Path MTU discovery needs don't-fragment (RFC 9000, section 14).
        outer: Outer {
            ecn: 0,
            dont_fragment: true,
        },
    };
    for datagram in contents.chunks(segment) {
        commit(tx, &to, datagram);
    }
}

#[cfg(test)]
mod tests;
