//! WireGuard for all links of one engine: keeps the peers, and finds the peer that a datagram belongs to. A single peer
//! is in [`peer`], the states of its handshakes in [`handshake`].
//!
//! The receiver index of a data message selects the peer: its upper 24 bits are a generation and the peer's slot. An
//! initiation has no receiver index, so the static key inside it selects the peer.
//!
//! boringtun itself reads the system's clock and random numbers. Nothing outside of this module depends on that.

mod handshake;
mod peer;
mod sources;

use super::transport::{NoSession, PathHint, SecureTransport, SessionState, TransportEvent};
use super::{Opened, Sealed, commit};
use crate::buffer::{Outer, Path, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use peer::{Peer, Reply};
use sources::Sources;
pub(super) use sources::network_of;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;
use tombolo_proto::id::{AgentId, PublicKey};
use tombolo_proto::status::LinkStatus;

/// Interval at which boringtun's timers run. boringtun's timers advance only when the agent calls `update_timers`, so
/// they have this precision. It is fine enough for retries after 400 ms.
const TICK_INTERVAL: Duration = Duration::from_millis(200);

/// Largest number of handshake messages per second, as boringtun counts them. Above it senders must prove by
/// WireGuard's cookies that they own their address. The factor 2 is needed because boringtun counts each message twice:
/// before the initiator's static key in it is decrypted, and in the check by the peer's own state.
const MAX_HANDSHAKES_PER_SECOND: u64 = 2 * 1000;

/// Number of bits of the slot in a receiver index. Above these bits are the 8 bits of the generation, below them the 8
/// bits of the session.
const SLOT_BITS: u32 = 16;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// Least time between two searches for the sender of data of an unknown session. A search is costly, because it visits
/// all peers.
const UNKNOWN_SESSION_INTERVAL: Duration = Duration::from_millis(50);

/// Length in bytes of an initiation, which is the longest message that is not data.
const MAX_CONTROL_LEN: usize = 148;

/// The agent's identity, shared by all peers.
struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    /// The number of session states created so far, modulo 256. The number is part of the receiver index. So a late
    /// response to an initiation of an earlier session state in the same slot is not taken for a response to the
    /// present state.
    generation: u8,
}

impl Identity {
    /// Creates boringtun's session state for a peer. This costs a Diffie-Hellman operation.
    fn tunn(&mut self, link: &Link, slot: usize) -> Tunn {
        self.generation = self.generation.wrapping_add(1);
        // boringtun shifts the index to the left by eight bits, and counts sessions in these bits.
        #[expect(clippy::cast_possible_truncation, reason = "tables have at most MAX_LINKS links")]
        let index = u32::from(self.generation) << SLOT_BITS | slot as u32 & SLOT_MASK;
        let (key, psk) = (
            x25519::PublicKey::from(link.public_key.0),
            link.preshared_key.map(|k| k.0),
        );
        // boringtun's own keepalives stay off: with them, both ends would initiate handshakes at the same time.
        Tunn::new(self.private.clone(), key, psk, None, index, Some(self.limiter.clone()))
    }
}

/// Results that the owner of the links has not read yet.
#[derive(Default)]
struct TransportEvents {
    queue: VecDeque<TransportEvent>,
    /// Number of packets that were dropped while they waited for a handshake.
    lost: u64,
}

impl TransportEvents {
    /// Reports a new endpoint. If the last unread event is about the same peer, it is replaced, so that an endpoint
    /// that changes with every datagram leaves only one event.
    fn endpoint_changed(&mut self, peer: &AgentId, to: SocketAddr) {
        match self.queue.back_mut() {
            Some(TransportEvent::EndpointChanged(before, at)) if before == peer => *at = to,
            _ => self.queue.push_back(TransportEvent::EndpointChanged(peer.clone(), to)),
        }
    }
}

/// WireGuard for all links of one engine.
pub(super) struct WireGuard {
    identity: Identity,
    /// The peers by slot. A peer keeps its slot while it is configured, because the receiver indices of its sessions
    /// contain the slot.
    peers: Vec<Option<Peer>>,
    /// The slot of each [`LinkIndex`].
    slots: Vec<usize>,
    /// The slot of each public key.
    by_key: BTreeMap<[u8; 32], usize>,
    events: TransportEvents,
    next_tick: Option<Instant>,
    /// Time of the last search for the sender of data of an unknown session.
    last_unknown_session: Option<Instant>,
    /// Rate limit of handshakes by source address.
    sources: Sources,
    /// The number of this lane, from 0.
    lane: u16,
    /// The endpoints from which peers sent before this agent restarted, or before the peers were removed from the
    /// configuration.
    remembered: BTreeMap<AgentId, SocketAddr>,
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireGuard")
            .field("links", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl WireGuard {
    /// Creates a set without links, for the agent with this private key (X25519).
    pub(super) fn new(private_key: [u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(private_key);
        let public = x25519::PublicKey::from(&private);
        Self {
            identity: Identity {
                limiter: Arc::new(RateLimiter::new(&public, MAX_HANDSHAKES_PER_SECOND)),
                private,
                public,
                // The first generation is random, so that late responses to initiations from before a restart are not
                // accepted.
                generation: RandomState::new().build_hasher().finish() as u8,
            },
            peers: Vec::new(),
            slots: Vec::new(),
            by_key: BTreeMap::new(),
            events: TransportEvents::default(),
            next_tick: None,
            last_unknown_session: None,
            sources: Sources::new(),
            lane: 0,
            remembered: BTreeMap::new(),
        }
    }

    /// The agent's public key, which peers must pin.
    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey(self.identity.public.to_bytes())
    }

    fn peer(&self, link: LinkIndex) -> Option<&Peer> {
        self.peers.get(*self.slots.get(link.get())?)?.as_ref()
    }

    /// The peer of a link with its slot, and the other parts of `self` that the peer's methods need.
    fn peer_mut(&mut self, link: LinkIndex) -> Option<(usize, &mut Peer, &mut Identity, &mut TransportEvents)> {
        let slot = *self.slots.get(link.get())?;
        let peer = self.peers.get_mut(slot)?.as_mut()?;
        Some((slot, peer, &mut self.identity, &mut self.events))
    }

    /// The slot in a receiver index, if a peer has this slot.
    fn slot_of(&self, receiver_index: u32) -> Option<usize> {
        let slot = (receiver_index >> 8 & SLOT_MASK) as usize;
        self.peers.get(slot)?.as_ref().map(|_| slot)
    }

    fn tick_soon(&mut self, now: Instant) {
        self.next_tick.get_or_insert(now + TICK_INTERVAL);
    }

    /// Handles an initiation. The checks come in the order of their cost: the rate limit, the limit of the source
    /// address, decryption of the initiator's static key, and the check by the peer's own state.
    fn handle_initiation(&mut self, datagram: &[u8], from: Path, now: Instant, tx: &mut impl TransmitSink) -> Opened {
        self.identity.limiter.reset_count();
        let mut cookie = [0; MAX_CONTROL_LEN];
        let checked = self
            .identity
            .limiter
            .verify_packet(Some(from.remote.ip()), datagram, &mut cookie);
        let init = match checked {
            Ok(Packet::HandshakeInit(init)) => init,
            Err(TunnResult::WriteToNetwork(reply)) => {
                commit(tx, &from.into(), reply);
                return Opened::Control;
            }
            _ => return Opened::Refused(DropReason::BadDatagram),
        };
        if !self.sources.take(from.remote.ip(), now) {
            return Opened::Refused(DropReason::BadDatagram);
        }
        let Identity { private, public, .. } = &self.identity;
        let Ok(initiation) = parse_handshake_anon(private, public, &init) else {
            return Opened::Refused(DropReason::BadDatagram);
        };
        let slot = self.by_key.get(&initiation.peer_static_public).copied();
        let Some((slot, peer)) = slot.and_then(|s| Some((s, self.peers.get_mut(s)?.as_mut()?))) else {
            return Opened::Refused(DropReason::BadDatagram);
        };
        let was_open = peer.is_open();
        peer.ensure_open(&mut self.identity, slot);
        let reply = peer.receive(datagram, from, now, &mut cookie, &mut self.events);
        // Anybody can put a known public key into an initiation. So, if an initiation does not verify, the session
        // state that was created for it is dropped.
        if !was_open && matches!(reply, Reply::Refused(_) | Reply::NoSession) {
            peer.close(now, &mut self.events);
        }
        let opened = match reply {
            Reply::Send(len) => {
                commit(tx, &from.into(), cookie.get(..len).unwrap_or_default());
                Opened::Control
            }
            Reply::Nothing => Opened::Control,
            Reply::Packet(_) | Reply::NoSession => Opened::Refused(DropReason::BadDatagram),
            Reply::Refused(reason) => Opened::Refused(reason),
        };
        self.tick_soon(now);
        opened
    }

    /// Handles a response to an initiation of this end, or a cookie reply.
    fn handle_response(&mut self, datagram: &[u8], from: Path, now: Instant, tx: &mut impl TransmitSink) -> Opened {
        // In a cookie reply (type 3) the receiver index comes after four bytes, and in a response after eight bytes.
        let at = if datagram.first() == Some(&3) { 4 } else { 8 };
        let Some((peer, events)) = self.receiver(datagram, at) else {
            return Opened::Refused(DropReason::BadDatagram);
        };
        let mut out = [0; MAX_CONTROL_LEN];
        match peer.receive(datagram, from, now, &mut out, events) {
            Reply::Send(len) => {
                commit(tx, &from.into(), out.get(..len).unwrap_or_default());
                peer.flush(now, tx);
                Opened::Control
            }
            Reply::Nothing => Opened::Control,
            Reply::Packet(_) | Reply::NoSession => Opened::Refused(DropReason::BadDatagram),
            Reply::Refused(reason) => Opened::Refused(reason),
        }
    }

    /// The peer that the receiver index at byte `at` of the datagram belongs to.
    fn receiver(&mut self, datagram: &[u8], at: usize) -> Option<(&mut Peer, &mut TransportEvents)> {
        let index = u32::from_le_bytes(*datagram.get(at..)?.first_chunk()?);
        let slot = self.slot_of(index)?;
        Some((self.peers.get_mut(slot)?.as_mut()?, &mut self.events))
    }

    /// Handles data of an unknown session. If the data comes from the endpoint of a peer, that peer probably still uses
    /// a session from before this agent's restart. So this end initiates a handshake, which replaces that session.
    /// Anybody can send such datagrams, so the rate is limited.
    fn unknown_session(&mut self, from: SocketAddr, now: Instant, tx: &mut impl TransmitSink) {
        let is_recent = |at| now.saturating_duration_since(at) < UNKNOWN_SESSION_INTERVAL;
        if self.last_unknown_session.is_some_and(is_recent) {
            return;
        }
        self.last_unknown_session = Some(now);
        let here = |(slot, peer): (usize, &mut Option<Peer>)| match peer {
            Some(found) if found.is_at(from) => Some(slot),
            Some(_) | None => None,
        };
        if let Some(slot) = self.peers.iter_mut().enumerate().find_map(here)
            && let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut)
            && peer.may_restart(now)
        {
            peer.ensure_open(&mut self.identity, slot);
            peer.initiate(now, tx, &mut self.events);
            self.tick_soon(now);
        }
    }

    /// The first free slot from `at` on; a new slot if none of these is free.
    fn free_slot(&mut self, at: usize) -> usize {
        let free = self.peers.iter().enumerate().skip(at).find(|(_, peer)| peer.is_none());
        free.map(|(slot, _)| slot).unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        })
    }
}

impl SecureTransport for WireGuard {
    // WireGuard itself does not discover the path MTU, so the link sends probes (D20).
    const DISCOVERS_PATH_MTU: bool = false;

    fn update(&mut self, links: &[Link], now: Instant) {
        let mut before: BTreeMap<AgentId, usize> = BTreeMap::new();
        for (slot, peer) in self.peers.iter().enumerate() {
            if let Some(peer) = peer {
                before.insert(peer.name().clone(), slot);
            }
        }
        // Removed peers give up their slots first, so that new peers can get these slots.
        for (name, slot) in &before {
            if links.binary_search_by(|l| l.peer.cmp(name)).is_err()
                && let Some(mut gone) = self.peers.get_mut(*slot).and_then(Option::take)
            {
                gone.close(now, &mut self.events);
                // The endpoint is remembered, because the peer may be configured again later, and probably has the same
                // endpoint then.
                self.remembered.extend(gone.heard().map(|at| (name.clone(), at)));
            }
        }
        self.slots.clear();
        self.by_key.clear();
        // All slots before `cursor` are in use, so the search for a free slot need not start from 0 again.
        let mut cursor = 0;
        for (position, link) in links.iter().enumerate() {
            let here = Link {
                endpoint: link.endpoint.map(|e| above(e, self.lane)),
                // D15: if the peer has no lane of this number, this lane needs no session with the peer.
                always_on: link.always_on && self.lane < link.peer_lanes,
                ..link.clone()
            };
            let link = &here;
            let slot = match before.get(&link.peer) {
                Some(slot) => *slot,
                None => {
                    let slot = self.free_slot(cursor);
                    cursor = slot + 1;
                    let heard = self.remembered.get(&link.peer).copied();
                    if let Some(place) = self.peers.get_mut(slot) {
                        *place = Some(Peer::new(link, heard));
                    }
                    slot
                }
            };
            self.slots.push(slot);
            self.by_key.insert(link.public_key.0, slot);
            let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            peer.index = super::index_of(position);
            peer.reconfigure(link, now, &mut self.events);
        }
        // Requested handshakes start with the next call of `handle_timeout`, without waiting for a tick.
        self.next_tick = Some(now);
    }

    fn set_lane(&mut self, lane: u16) {
        self.lane = lane;
    }

    fn session(&self, link: LinkIndex) -> SessionState {
        self.peer(link).map_or(SessionState::Down, Peer::session)
    }

    fn needs_connect(&self, link: LinkIndex) -> bool {
        self.peer(link).is_some_and(Peer::may_request_session)
    }

    fn connect(&mut self, link: LinkIndex, _hint: PathHint, now: Instant) -> bool {
        let Some((slot, peer, identity, _)) = self.peer_mut(link) else {
            return false;
        };
        let is_new = peer.request_session(now);
        if is_new {
            peer.ensure_open(identity, slot);
            self.next_tick = Some(now);
        }
        is_new
    }

    /// Drops the session state. WireGuard has no message that closes a session, so the peer notices only that this end
    /// is silent.
    fn close(&mut self, link: LinkIndex, now: Instant, _reason: &'static str) {
        if let Some((_, peer, _, events)) = self.peer_mut(link) {
            peer.close(now, events);
        }
    }

    fn endpoint(&self, link: LinkIndex) -> Option<Path> {
        self.peer(link)?.endpoint()
    }

    fn set_endpoint(&mut self, link: LinkIndex, to: SocketAddr) {
        let to = above(to, self.lane);
        if let Some((_, peer, _, _)) = self.peer_mut(link) {
            peer.set_endpoint(to);
        }
    }

    fn seal(
        &mut self,
        link: LinkIndex,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Result<Sealed, NoSession> {
        let Some((slot, peer, identity, events)) = self.peer_mut(link) else {
            return Ok(Sealed::Dropped(DropReason::NoLink));
        };
        if let Some(sealed) = peer.seal(packet, outer, now, tx) {
            return Ok(sealed);
        }
        peer.ensure_open(identity, slot);
        let sealed = peer.wait(packet, outer, now, tx, events);
        self.tick_soon(now);
        Ok(sealed)
    }

    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        output: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        // Data is tried first, because nearly every datagram is data. A data message consists of the type and three
        // zero bytes, the receiver index, a counter, the encrypted packet and a tag.
        match (datagram.first_chunk::<4>(), datagram.len()) {
            (Some([4, 0, 0, 0]), 32..) => {
                let Some((peer, events)) = self.receiver(datagram, 4) else {
                    self.unknown_session(from.remote, now, tx);
                    return Opened::Refused(DropReason::BadDatagram);
                };
                let link = peer.index;
                let reply = peer.receive(datagram, from, now, output, events);
                peer.flush(now, tx);
                match reply {
                    Reply::NoSession => {
                        self.unknown_session(from.remote, now, tx);
                        Opened::Refused(DropReason::BadDatagram)
                    }
                    Reply::Packet(len) => Opened::Packet(link, 0..len),
                    Reply::Nothing | Reply::Send(_) => Opened::Control,
                    Reply::Refused(reason) => Opened::Refused(reason),
                }
            }
            (Some([1, 0, 0, 0]), 148) => self.handle_initiation(datagram, from, now, tx),
            (Some([2, 0, 0, 0]), 92) | (Some([3, 0, 0, 0]), 64) => self.handle_response(datagram, from, now, tx),
            _ => Opened::Refused(DropReason::BadDatagram),
        }
    }

    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        if self.next_tick.is_none_or(|t| t > now) {
            return;
        }
        self.identity.limiter.reset_count();
        let mut open = false;
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            if peer.is_handshake_requested() {
                peer.ensure_open(&mut self.identity, slot);
            }
            if peer.is_open() {
                open = true;
                peer.tick(now, tx, &mut self.events);
            }
        }
        self.next_tick = open.then_some(now + TICK_INTERVAL);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    fn poll_event(&mut self) -> Option<TransportEvent> {
        self.events.queue.pop_front()
    }

    fn describe(&self, link: LinkIndex, now: Instant, status: &mut LinkStatus) -> bool {
        let described = self.peer(link).and_then(|peer| peer.status(now));
        let is_used = described.is_some();
        if let Some(described) = described {
            *status = described;
        }
        is_used
    }

    fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        let peers = self.peers.iter().flatten();
        peers.filter_map(|p| Some((p.name().clone(), p.heard()?))).collect()
    }

    fn remember_endpoints(&mut self, endpoints: &BTreeMap<AgentId, SocketAddr>) {
        let here = endpoints.iter().map(|(a, e)| (a.clone(), above(*e, self.lane)));
        self.remembered.extend(here);
    }

    fn source_unavailable(&mut self, local: IpAddr) {
        for peer in self.peers.iter_mut().flatten() {
            peer.source_unavailable(local);
        }
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.events.lost)
    }
}

/// The address and port of a lane of an agent, computed from those of lane 0 (`first`): the port is the port of lane 0
/// plus the lane's number (D15).
fn above(first: SocketAddr, lane: u16) -> SocketAddr {
    SocketAddr::new(first.ip(), first.port().saturating_add(lane))
}
