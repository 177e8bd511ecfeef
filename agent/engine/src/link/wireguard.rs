//! WireGuard for all links of one engine: which peer a datagram belongs to, and which peers exist. One peer is in
//! [`peer`], the states of its handshakes in [`handshake`].
//!
//! The receiver index of a data message selects the peer: its upper 24 bits are a generation and a slot. For an
//! initiation it is the static key inside.
//!
//! boringtun reads the clock and the random numbers of the system itself. Nothing outside of this module depends on
//! that.

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

/// How often boringtun's timers run. Its clock stands still in between, so this is their precision, fine enough for
/// retries after 400 ms.
const TICK_INTERVAL: Duration = Duration::from_millis(200);

/// Handshake messages per second beyond which senders must prove that they own their address (cookie replies).
/// boringtun counts each message twice: before the key inside is decrypted, and in the peer's own check.
const MAX_HANDSHAKES_PER_SECOND: u64 = 2 * 1000;

/// Bits of a receiver index for the slot. Above them are 8 bits for the generation, below them 8 for the session.
const SLOT_BITS: u32 = 16;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// Least time between two searches for the sender of an unknown session: each looks at all peers.
const UNKNOWN_SESSION_INTERVAL: Duration = Duration::from_millis(50);

/// Length of the longest message that is not data, an initiation, bytes.
const MAX_CONTROL_LEN: usize = 148;

/// The agent's identity, shared by all peers.
struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    /// Counts the session states made. A late response to an earlier state of the same slot has another generation, and
    /// is not mistaken for a response to the present one.
    generation: u8,
}

impl Identity {
    /// Makes the session state of a peer. It costs a Diffie-Hellman operation.
    fn tunn(&mut self, link: &Link, slot: usize) -> Tunn {
        self.generation = self.generation.wrapping_add(1);
        // boringtun appends eight bits for the session.
        #[expect(clippy::cast_possible_truncation, reason = "tables have at most MAX_LINKS links")]
        let index = u32::from(self.generation) << SLOT_BITS | slot as u32 & SLOT_MASK;
        let (key, psk) = (
            x25519::PublicKey::from(link.public_key.0),
            link.preshared_key.map(|k| k.0),
        );
        // Without boringtun's keepalives: if both ends use them, both initiate handshakes at the same time.
        Tunn::new(self.private.clone(), key, psk, None, index, Some(self.limiter.clone()))
    }
}

/// What the owner of the links has not read yet.
#[derive(Default)]
struct TransportEvents {
    queue: VecDeque<TransportEvent>,
    /// Packets that waited in vain for a handshake.
    lost: u64,
}

impl TransportEvents {
    /// A peer that moves with every datagram makes one event of many.
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
    /// By slot. A peer keeps its slot, which its receiver indices contain, while it is configured.
    peers: Vec<Option<Peer>>,
    /// The slot of each [`LinkIndex`].
    slots: Vec<usize>,
    /// The slot of each public key.
    by_key: BTreeMap<[u8; 32], usize>,
    events: TransportEvents,
    next_tick: Option<Instant>,
    /// When the sender of an unknown session was last searched for.
    last_unknown_session: Option<Instant>,
    /// Limits the handshakes of each address.
    sources: Sources,
    /// Which of the agent's lanes this is.
    lane: u16,
    /// The endpoints that peers sent from before a restart, or before they left the configuration.
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
    /// For the agent with this private key; without links.
    pub(super) fn new(private_key: [u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(private_key);
        let public = x25519::PublicKey::from(&private);
        Self {
            identity: Identity {
                limiter: Arc::new(RateLimiter::new(&public, MAX_HANDSHAKES_PER_SECOND)),
                private,
                public,
                // Random, as responses to handshakes from before a restart may still come.
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

    /// The key that peers must pin.
    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey(self.identity.public.to_bytes())
    }

    fn peer(&self, link: LinkIndex) -> Option<&Peer> {
        self.peers.get(*self.slots.get(link.get())?)?.as_ref()
    }

    /// The peer of a link with its slot, and all that its methods need besides.
    fn peer_mut(&mut self, link: LinkIndex) -> Option<(usize, &mut Peer, &mut Identity, &mut TransportEvents)> {
        let slot = *self.slots.get(link.get())?;
        let peer = self.peers.get_mut(slot)?.as_mut()?;
        Some((slot, peer, &mut self.identity, &mut self.events))
    }

    /// The slot in a receiver index, if it has a peer.
    fn slot_of(&self, receiver_index: u32) -> Option<usize> {
        let slot = (receiver_index >> 8 & SLOT_MASK) as usize;
        self.peers.get(slot)?.as_ref().map(|_| slot)
    }

    fn tick_soon(&mut self, now: Instant) {
        self.next_tick.get_or_insert(now + TICK_INTERVAL);
    }

    /// Takes an initiation, in order of cost: rate limit, source limit, decryption of the key inside, the peer.
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
        // Anybody can put a public key into an initiation. One that does not verify must not leave session state
        // behind.
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

    /// Takes a response to an initiation of ours, or a cookie reply.
    fn handle_response(&mut self, datagram: &[u8], from: Path, now: Instant, tx: &mut impl TransmitSink) -> Opened {
        // The receiver index of a cookie reply (type 3) comes after four bytes, that of a response after eight.
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

    /// The peer of the receiver index at byte `at` of the datagram.
    fn receiver(&mut self, datagram: &[u8], at: usize) -> Option<(&mut Peer, &mut TransportEvents)> {
        let index = u32::from_le_bytes(*datagram.get(at..)?.first_chunk()?);
        let slot = self.slot_of(index)?;
        Some((self.peers.get_mut(slot)?.as_mut()?, &mut self.events))
    }

    /// Takes data of an unknown session. If it comes from a peer's endpoint, that peer does not know yet that this
    /// agent restarted: a handshake replaces the session. Anybody can send such datagrams, so the rate is limited.
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

    /// The first free slot from `at` on, which is made if there is none.
    fn free_slot(&mut self, at: usize) -> usize {
        let free = self.peers.iter().enumerate().skip(at).find(|(_, peer)| peer.is_none());
        free.map(|(slot, _)| slot).unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        })
    }
}

impl SecureTransport for WireGuard {
    // Probes inside the link find it (D20).
    const DISCOVERS_PATH_MTU: bool = false;

    fn update(&mut self, links: &[Link], now: Instant) {
        let mut before: BTreeMap<AgentId, usize> = BTreeMap::new();
        for (slot, peer) in self.peers.iter().enumerate() {
            if let Some(peer) = peer {
                before.insert(peer.name().clone(), slot);
            }
        }
        // Peers that are gone are removed first: their slots are for new ones.
        for (name, slot) in &before {
            if links.binary_search_by(|l| l.peer.cmp(name)).is_err()
                && let Some(mut gone) = self.peers.get_mut(*slot).and_then(Option::take)
            {
                gone.close(now, &mut self.events);
                // The peer may be configured again, and still have that address.
                self.remembered.extend(gone.heard().map(|at| (name.clone(), at)));
            }
        }
        self.slots.clear();
        self.by_key.clear();
        // All slots before this one are in use.
        let mut cursor = 0;
        for (position, link) in links.iter().enumerate() {
            let here = Link {
                endpoint: link.endpoint.map(|e| above(e, self.lane)),
                // D15: the peer has no such lane.
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
        // Requested handshakes start now, not with the next tick.
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

    /// Drops the session state. WireGuard has no message that closes a session, so the peer notices its silence.
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
        // Data first, as nearly every datagram is: type and three zero bytes, receiver index, counter, tag.
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

/// The address of an agent's lane: its port is the one of lane 0 plus the lane's number (D15).
fn above(first: SocketAddr, lane: u16) -> SocketAddr {
    SocketAddr::new(first.ip(), first.port().saturating_add(lane))
}
