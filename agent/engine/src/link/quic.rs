//! Links over QUIC: inner packets as datagrams (RFC 9221) of connections between agents that pin each other's keys.
//!
//! `quinn-proto` is driven here by hand: what arrives goes in, what is to be sent is taken at the end of each batch
//! ([`Quic::flush`]), timers are ours. Either end may open a connection. Where two exist with one peer, each end sends on
//! the one that was established last, and the end with the smaller key closes the others.

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
use connection::{Connection, Heard};
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

/// Chunk from which inner packets are cut, bytes: one allocation for hundreds of them.
const CHUNK: usize = 256 << 10;

/// The bit of the first byte that says that a datagram belongs to a handshake (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// Packets that wait for a connection. A flow that starts sends few before its first answer.
const MAX_WAITING: usize = 64;

/// Handshakes under way beyond which strangers must show that they own their address.
const BUSY: usize = 64;

/// Handshakes under way beyond which new ones are not answered.
const FULL: usize = 1024;

/// Handshakes under way from one IPv4 address or IPv6 /64 that was shown to be the sender's, beyond which new ones from there are
/// not answered.
const MAX_HALF_OPEN: usize = 64;

/// Connections that one IPv4 address or IPv6 /64 may open: a handshake costs this end as much as the other, and links that come
/// and go cost it more. Several agents may be behind one NAT gateway. As an address that was not shown to be the sender's may be
/// anybody's, those beyond the limit are made to show it, and counted by themselves.
const CONNECTIONS: Rate = Rate {
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
    /// How many of them are not established.
    handshaking: usize,
    /// How many of these others opened from an address that is theirs, by its network.
    half_open: BTreeMap<IpAddr, usize>,
    /// Connections that were opened lately, by network, and whether that was shown to be the sender's.
    opened: Budgets<(IpAddr, bool)>,
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
    events: VecDeque<TransportEvent>,
    /// Packets that waited in vain for a connection.
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
            half_open: BTreeMap::new(),
            opened: Budgets::default(),
            timers: BTreeSet::new(),
            seconds: BTreeSet::new(),
            own_second: Port::Lane,
            lane: 0,
            dirty: Vec::new(),
            packets: VecDeque::new(),
            events: VecDeque::new(),
            lost: 0,
            incoming: BytesMut::with_capacity(CHUNK),
            outgoing: BytesMut::with_capacity(CHUNK),
            buffer: Vec::new(),
        })
    }

    /// What others must pin.
    pub(super) fn pin(&self) -> KeyPin {
        self.identity.pin()
    }

    /// Notes that there may be something to send.
    fn touch(&mut self, handle: ConnectionHandle) {
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(handle);
        }
    }

    fn accept(&mut self, incoming: Incoming, from: Path, now: Instant, tx: &mut impl TransmitSink) {
        self.buffer.clear();
        // Who has not shown that it owns its address is not counted there: it could shut out whoever does.
        let network = network_of(from.remote.ip());
        let shown = incoming.remote_address_validated();
        let half_open = self.half_open.get(&network).copied().unwrap_or_default();
        let is_full = self.handshaking >= FULL || shown && half_open >= MAX_HALF_OPEN;
        let is_in_time = !is_full && self.opened.try_take((network, shown), CONNECTIONS, now);
        if is_full || shown && !is_in_time {
            self.endpoint.ignore(incoming);
        } else if (self.handshaking >= BUSY || !is_in_time) && incoming.may_retry() {
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.buffer) {
                put(&transmit, &self.buffer, from, tx);
            }
        } else {
            match self.endpoint.accept(incoming, now, &mut self.buffer, None) {
                Ok((handle, inner)) => {
                    let mut connection = Connection::new(inner, from, None, None, now);
                    connection.half_open = shown.then_some(network);
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

    /// Takes what a connection has to say.
    fn take_events(&mut self, handle: ConnectionHandle, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
                return;
            };
            match connection.hear(now) {
                Heard::Nothing => break,
                Heard::Established(pin) => {
                    self.handshake_over(handle);
                    self.established(handle, pin, now);
                }
                Heard::Lost(reason) => {
                    self.handshake_over(handle);
                    self.lost(handle, reason);
                }
                Heard::Moved(to) => {
                    // What comes to the second port comes from one perhaps: it says nothing of the lanes' ports.
                    let link = connection.link.filter(|_| to.port == Port::Lane);
                    if let Some(peer) = link.and_then(|link| self.peers.get(link.get())) {
                        let event = TransportEvent::EndpointChanged(peer.name.clone(), to.remote);
                        self.events.push_back(event);
                    }
                }
            }
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
        self.take_events(handle, now);
        self.set_timer(handle);
        if tx.is_full() {
            self.touch(handle);
        }
    }

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

    fn forget(&mut self, handle: ConnectionHandle) {
        self.handshake_over(handle);
        if let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::take)
            && let Some(timer) = connection.timer
        {
            self.timers.remove(&(timer, handle.0));
        }
    }

    /// A handshake takes too long.
    fn give_up(&mut self, handle: ConnectionHandle, now: Instant) {
        let connection = self.connections.get(handle.0).and_then(Option::as_ref);
        let Some(connection) = connection.filter(|c| c.deadline.is_some() && !c.over) else {
            return;
        };
        let link = connection.link;
        self.end(handle, now, "the handshake took too long");
        if let Some(link) = link.filter(|link| self.needs_connect(*link)) {
            self.say_down(link, "the handshake took too long".to_owned());
        }
    }
}

impl SecureTransport for Quic {
    // RFC 9000, section 14.3.
    const DISCOVERS_PATH_MTU: bool = true;

    fn update(&mut self, links: &[Link], now: Instant) {
        self.update_peers(links, now);
    }

    fn set_lane(&mut self, lane: u16) {
        self.lane = lane;
    }

    /// Connections to second ports of peers leave by the own one: a firewall that lets it in probably lets it out.
    fn set_second_port(&mut self) {
        self.own_second = Port::Quic;
    }

    fn session(&self, link: LinkIndex) -> SessionState {
        match self.peers.get(link.get()) {
            Some(peer) if peer.active.is_some() => SessionState::Up,
            Some(peer) if peer.is_asking() => SessionState::Connecting { since: None },
            Some(_) | None => SessionState::Down,
        }
    }

    fn needs_connect(&self, link: LinkIndex) -> bool {
        self.session(link) == SessionState::Down
    }

    /// To the peer's endpoint, and a little later also to its second port if it has one (D6). The first connection that is
    /// up is kept.
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

    /// Queues the packet; it leaves with the next [`flush`](SecureTransport::flush), or when congestion control allows.
    /// `outer` is ignored: quinn chooses the IP header, and an acknowledged connection has a congestion control of its own.
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
        if active.is_none() && !peer.is_asking() {
            return Err(NoSession);
        }
        if self.outgoing.capacity() < packet.len() {
            self.outgoing.reserve(CHUNK);
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

    /// Packets of the datagram wait for [`next_packet`](SecureTransport::next_packet); `buffer` is not used.
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        _buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        // A handshake's bytes may be kept for long, and a chunk as long as any part of it: they get memory of their own.
        let datagram = if datagram.first().is_some_and(|first| first & LONG_HEADER != 0) {
            BytesMut::from(datagram)
        } else {
            if self.incoming.capacity() < datagram.len() {
                self.incoming.reserve(CHUNK);
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
        // Connections that become dirty meanwhile wait for the next batch.
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
        let first = [self.timers.first(), self.seconds.first()];
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

/// Hands on what quinn has to send, from where `path` says.
fn put(transmit: &quinn_proto::Transmit, contents: &[u8], path: Path, tx: &mut impl TransmitSink) {
    let contents = contents.get(..transmit.size).unwrap_or(contents);
    let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
    let to = Transmit {
        path: Path {
            remote: transmit.destination,
            ..path
        },
        // Path MTU discovery needs it (RFC 9000, section 14).
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
