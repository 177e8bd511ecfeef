//! One WireGuard peer over boringtun: its session state and its endpoint. The states of its handshakes are in
//! [`handshake`](super::handshake), the work of its timers in [`upkeep`].

mod upkeep;

use super::handshake::{Action, Event, Handshakes, Policy, Traffic};
use super::{Identity, TransportEvents};
use crate::buffer::{Outer, Path, Transmit, TransmitSink};
use crate::link::Sealed;
use crate::link::transport::SessionState;
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::LinkState;

/// Bytes that encryption adds: 16 of the header and 16 of the tag. boringtun panics if the slot has no room for them.
const OVERHEAD: usize = 32;

/// Length of an initiation, the longest handshake message, in bytes.
const MAX_HANDSHAKE_LEN: usize = 148;

/// Message types, the first byte of a WireGuard message.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

/// Largest number of packets that wait for a handshake. A flow sends few packets before its first answer.
const MAX_WAITING: usize = 64;

/// Least time between two handshakes that this end initiates because of datagrams of unknown sessions. There must be a
/// limit, because anybody can send such datagrams.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// If the peer has sent from its present endpoint within this time, a newly configured endpoint does not replace it.
const ROAMED_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of decrypting a datagram.
pub(super) enum Reply {
    /// The output holds a packet of this number of bytes, from its first byte on.
    Packet(usize),
    /// The output holds a message of this number of bytes, which must be sent to the sender of the datagram.
    Send(usize),
    /// The datagram was a keepalive or a handshake message that needs no answer.
    Nothing,
    /// The datagram is data of a session that this end does not have.
    NoSession,
    /// The datagram was dropped, for this reason.
    Refused(DropReason),
}

/// One WireGuard peer. It has session state only after its first use.
pub(super) struct Peer {
    /// The position of its link in the configuration.
    pub(super) index: LinkIndex,
    config: Link,
    /// boringtun's state. This state is created only when the peer is first used, because it costs 19 KB and a
    /// Diffie-Hellman operation.
    tunn: Option<Box<Tunn>>,
    handshakes: Handshakes,
    traffic: Traffic,
    /// The state that was reported last.
    state: LinkState,
    /// The path on which datagrams for the peer are sent.
    endpoint: Option<Path>,
    /// The path of the peer's last authentic datagram that was no initiation: the datagram's source, and the address of
    /// this host at which it arrived. Answers are sent from this address.
    heard: Option<Path>,
    last_tx: Option<Instant>,
    /// Whether a packet was dropped because no endpoint of the peer is known.
    is_endpoint_missing: bool,
    /// Lengths in bytes of the packets in boringtun's queue, oldest first.
    waiting: VecDeque<usize>,
    /// Whether a packet or a message between agents was ever encrypted for the peer.
    has_sent: bool,
}

impl Peer {
    /// Creates a peer without session state. `heard` is the endpoint from which the peer sent before this agent
    /// restarted. `heard` has precedence over the configured endpoint, which may be out of date.
    pub(super) fn new(link: &Link, heard: Option<SocketAddr>) -> Self {
        Self {
            index: LinkIndex(0),
            config: link.clone(),
            tunn: None,
            handshakes: Handshakes::default(),
            traffic: Traffic::default(),
            state: LinkState::Idle,
            endpoint: heard.or(link.endpoint).map(Path::from),
            heard: heard.map(Path::from),
            last_tx: None,
            is_endpoint_missing: false,
            waiting: VecDeque::new(),
            has_sent: false,
        }
    }

    /// The name of the peer in the configuration.
    pub(super) fn name(&self) -> &AgentId {
        &self.config.peer
    }

    /// Whether boringtun's session state exists; it does from the first use until [`close`](Self::close).
    pub(super) fn is_open(&self) -> bool {
        self.tunn.is_some()
    }

    /// Creates boringtun's session state if there is none.
    pub(super) fn ensure_open(&mut self, identity: &mut Identity, slot: usize) {
        if self.tunn.is_none() {
            self.tunn = Some(Box::new(identity.tunn(&self.config, slot)));
        }
    }

    /// The endpoint from which the peer's last authentic datagram came. Before the first datagram it is the endpoint
    /// that was remembered from before the restart.
    pub(super) fn heard(&self) -> Option<SocketAddr> {
        self.heard.map(|path| path.remote)
    }

    /// The path on which datagrams for the peer are sent; `None`: no endpoint is known.
    pub(super) fn endpoint(&self) -> Option<Path> {
        self.endpoint
    }

    fn configured_endpoint(&self) -> Option<Path> {
        self.config.endpoint.map(Path::from)
    }

    fn policy(&self) -> Policy {
        Policy::of(&self.config)
    }

    /// Records that the kernel does not accept `local` as a source address any more. If the peer's path used `local`,
    /// the kernel chooses the source address from now on, until the peer sends to an address of this host again.
    pub(super) fn source_unavailable(&mut self, local: IpAddr) {
        for path in [&mut self.endpoint, &mut self.heard].into_iter().flatten() {
            path.local = path.local.filter(|l| *l != local);
        }
    }

    /// The state of the session: `Up` if the peer has proven to hold the keys of a session; otherwise `Connecting` if
    /// an initiation is unanswered.
    pub(super) fn session(&self) -> SessionState {
        if self.handshakes.session().is_some() {
            return SessionState::Up;
        }
        let since = self.handshakes.initiated_since();
        since.map_or(SessionState::Down, |since| SessionState::Connecting {
            since: Some(since),
        })
    }

    /// Whether datagrams for the peer are sent to `remote`.
    pub(super) fn is_at(&self, remote: SocketAddr) -> bool {
        self.endpoint.is_some_and(|path| path.remote == remote)
    }

    /// Drops boringtun's session state, and the packets that wait for a session. A requested handshake stays requested.
    pub(super) fn close(&mut self, now: Instant, events: &mut TransportEvents) {
        self.reset(Event::Closed, now, events);
    }

    fn reset(&mut self, event: Event, now: Instant, events: &mut TransportEvents) {
        self.tunn = None;
        (self.traffic, self.last_tx, self.is_endpoint_missing) = (Traffic::default(), None, false);
        self.handle(event, now, events);
    }

    /// Passes an event to the state machine, and carries out its action.
    fn handle(&mut self, event: Event, now: Instant, events: &mut TransportEvents) {
        match self.handshakes.handle(event, now) {
            Action::None => {}
            Action::DropWaiting => {
                events.lost += self.waiting.len() as u64;
                self.waiting.clear();
            }
        }
    }

    /// Applies a new configuration of the same link. The session state stays, unless the public key or the preshared
    /// key has changed.
    pub(super) fn reconfigure(&mut self, link: &Link, now: Instant, events: &mut TransportEvents) {
        let is_other_peer = link.public_key != self.config.public_key;
        let is_other_secret = link.preshared_key != self.config.preshared_key;
        let is_moved = link.endpoint.is_some() && link.endpoint != self.config.endpoint;
        if is_other_peer || is_other_secret {
            // The two ends change their keys at different times. Each end initiates as soon as it has changed its key.
            // So the handshake of the end that changes later succeeds. If the keys of the two ends stay different, the
            // handshakes of both ends fail, and both ends report it.
            let request = self.is_open() || link.always_on;
            self.reset(Event::KeyChanged { request }, now, events);
        }
        let is_heard = self
            .traffic
            .last_rx
            .is_some_and(|at| now.saturating_duration_since(at) < ROAMED_TIMEOUT);
        if link.endpoint.is_some() && (is_other_peer || is_moved && !is_heard) {
            self.endpoint = link.endpoint.map(Path::from);
            self.heard = self.heard.filter(|_| !is_other_peer);
        }
        let is_failing = matches!(self.state, LinkState::Unreachable | LinkState::NoEndpoint);
        let is_worth_a_try = is_moved && (is_failing || self.handshakes.initiated_since().is_some());
        self.endpoint = self.endpoint.or(link.endpoint.map(Path::from));
        self.config = link.clone();
        if is_worth_a_try || self.config.always_on && self.config.initiator && !self.is_open() {
            self.handle(Event::Requested, now, events);
        }
        self.evaluate(now, events);
    }

    /// Whether a handshake was requested and an endpoint is known.
    pub(super) fn is_handshake_requested(&self) -> bool {
        self.handshakes.is_requested() && self.endpoint.is_some()
    }

    /// Whether [`request_session`](Self::request_session) would start a handshake.
    pub(super) fn may_request_session(&self) -> bool {
        self.handshakes.may_be_requested() && self.endpoint.is_some()
    }

    /// Requests a handshake, which starts with the next tick. Returns `false`, and does nothing, if no endpoint is
    /// known, a handshake is requested or in progress, or the last one failed.
    pub(super) fn request_session(&mut self, now: Instant) -> bool {
        let is_new = self.may_request_session();
        if is_new {
            self.handshakes.handle(Event::Requested, now);
        }
        is_new
    }

    /// Takes over the peer's endpoint that another lane has learned from received datagrams. If only the port differs,
    /// nothing changes, because behind a NAT the port that this lane has learned may be right although it differs from
    /// the computed one.
    pub(super) fn set_endpoint(&mut self, to: SocketAddr) {
        if self.endpoint.map(|e| e.remote.ip()) != Some(to.ip()) {
            self.endpoint = Some(to.into());
        }
    }

    /// Whether this end may start a handshake because the peer seems to use a session that this end has lost. It may if
    /// it has no session, no handshake of its own is in progress, and it has sent nothing to the peer for a second.
    pub(super) fn may_restart(&self, now: Instant) -> bool {
        let is_rested = |at| now.saturating_duration_since(at) >= RESTART_INTERVAL;
        !self.traffic.can_seal && self.handshakes.initiated_since().is_none() && self.last_tx.is_none_or(is_rested)
    }

    /// Writes an initiation into `tx`, even while another handshake is in progress. Does nothing without session state
    /// or endpoint.
    pub(super) fn initiate(&mut self, now: Instant, tx: &mut impl TransmitSink, events: &mut TransportEvents) {
        let to = self.next_target(now);
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), to) else {
            return;
        };
        let slot = tx.reserve(&to.into(), MAX_HANDSHAKE_LEN);
        if let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(slot, true) {
            let len = message.len();
            tx.commit(len);
            self.initiation_sent(to, now);
        }
        self.evaluate(now, events);
    }

    fn initiation_sent(&mut self, to: Path, now: Instant) {
        self.handshakes.handle(Event::InitiationSent(to), now);
        self.last_tx = Some(now);
    }

    /// Encrypts a packet into `tx`. `None`: there is no session, and nothing was done with the packet.
    pub(super) fn seal(
        &mut self,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Option<Sealed> {
        let (true, Some(tunn), Some(path)) = (self.traffic.can_seal, self.tunn.as_mut(), self.endpoint) else {
            return None;
        };
        let slot = tx.reserve(&Transmit { path, outer }, packet.len() + OVERHEAD);
        match tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(sealed) => {
                let len = sealed.len();
                tx.commit(len);
                self.has_sent = true;
                self.last_tx = Some(now);
                self.traffic.first_unanswered_tx.get_or_insert(now);
                Some(Sealed::Sent)
            }
            // boringtun has found that its session is no longer valid, and has put the packet into its own queue.
            _ => {
                self.session_lost(now);
                self.waiting.push_back(packet.len());
                Some(Sealed::Sent)
            }
        }
    }

    fn session_lost(&mut self, now: Instant) {
        self.traffic.can_seal = false;
        self.handshakes.handle(Event::SessionLost, now);
    }

    /// Queues a packet until a handshake has established a session, and starts this handshake unless one is in
    /// progress. The packet is dropped if no endpoint is known or the queue is full.
    pub(super) fn wait(
        &mut self,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
        events: &mut TransportEvents,
    ) -> Sealed {
        let Some(path) = self.endpoint else {
            self.is_endpoint_missing = true;
            self.evaluate(now, events);
            return Sealed::Dropped(DropReason::LinkDown);
        };
        let Some(tunn) = self.tunn.as_mut().filter(|_| self.waiting.len() < MAX_WAITING) else {
            return Sealed::Dropped(DropReason::LinkDown);
        };
        let slot = tx.reserve(
            &Transmit { path, outer },
            MAX_HANDSHAKE_LEN.max(packet.len() + OVERHEAD),
        );
        match tunn.encapsulate(packet, slot) {
            // boringtun has a session of which `handshakes` does not know yet.
            TunnResult::WriteToNetwork(message) if kind_of(message) == DATA => {
                let len = message.len();
                tx.commit(len);
                self.has_sent = true;
                self.traffic.can_seal = true;
                return Sealed::Sent;
            }
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                tx.commit(len);
                self.initiation_sent(path, now);
            }
            _ => {}
        }
        self.waiting.push_back(packet.len());
        self.evaluate(now, events);
        Sealed::Sent
    }

    /// Encrypts the packets that waited for a session into `tx`, if there is a session now.
    pub(super) fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        if self.waiting.is_empty() || !self.traffic.can_seal {
            return;
        }
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), self.endpoint) else {
            return;
        };
        let longest = self.waiting.iter().max().map_or(0, |len| len + OVERHEAD);
        let (to, room) = (to.into(), longest.max(MAX_HANDSHAKE_LEN));
        while let TunnResult::WriteToNetwork(sealed) = tunn.decapsulate(None, &[], tx.reserve(&to, room)) {
            let len = sealed.len();
            tx.commit(len);
            if len > OVERHEAD {
                self.waiting.pop_front();
                self.has_sent = true;
            }
        }
        self.last_tx = Some(now);
    }

    /// Handles a datagram for this peer from the path `from`. `output` must be at least as long as the datagram, and at
    /// least as long as a handshake message. If the datagram is authentic and no initiation, `from` becomes the peer's
    /// endpoint.
    pub(super) fn receive(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        output: &mut [u8],
        events: &mut TransportEvents,
    ) -> Reply {
        let Some(tunn) = self.tunn.as_mut() else {
            return Reply::NoSession;
        };
        let kind = kind_of(datagram);
        let reply = match tunn.decapsulate(Some(from.remote.ip()), datagram, output) {
            TunnResult::WriteToTunnelV4(packet, _) => Reply::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Reply::Packet(packet.len()),
            TunnResult::WriteToNetwork(message) => Reply::Send(message.len()),
            TunnResult::Done => Reply::Nothing,
            // M8, G11: the peer responds, but it has another preshared key than this end.
            TunnResult::Err(WireGuardError::InvalidAeadTag) if kind == RESPONSE && self.is_target(from) => {
                self.handle(Event::Rejected, now, events);
                self.evaluate(now, events);
                return Reply::Refused(DropReason::BadDatagram);
            }
            TunnResult::Err(
                WireGuardError::DuplicateCounter
                | WireGuardError::InvalidCounter
                | WireGuardError::WrongTai64nTimestamp,
            ) => return Reply::Refused(DropReason::Replayed),
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) if kind == DATA => {
                return Reply::NoSession;
            }
            TunnResult::Err(_) => return Reply::Refused(DropReason::BadDatagram),
        };
        match (kind, &reply) {
            (DATA, _) => self.received(index_at(datagram, 4), from, now, events),
            // The response to this end's initiation verified. A cookie reply is not data and proves nothing.
            (RESPONSE, Reply::Send(_)) if kind_of(output) == DATA => {
                self.received(index_at(datagram, 8), from, now, events);
            }
            // An initiation does not move the endpoint, because somebody else may have replayed it.
            (INITIATION, Reply::Send(_)) if kind_of(output) == RESPONSE => {
                self.handle(Event::ResponseSent, now, events);
                self.evaluate(now, events);
            }
            _ => {}
        }
        reply
    }

    fn is_target(&self, from: Path) -> bool {
        self.handshakes
            .target()
            .is_some_and(|target| target.remote == from.remote)
    }

    /// Records an authentic datagram on the session with this index: the peer holds the session's keys, and `from` is
    /// the peer's endpoint from now on (D18).
    fn received(&mut self, session: u32, from: Path, now: Instant, events: &mut TransportEvents) {
        (self.traffic.last_rx, self.traffic.first_unanswered_tx) = (Some(now), None);
        // For nearly every packet the function returns here. So this check must be fast, and the rest need not be.
        if self.handshakes.is_settled(session) && self.endpoint == Some(from) && self.heard == Some(from) {
            return;
        }
        self.handle(Event::Proven(session), now, events);
        (self.traffic.can_seal, self.is_endpoint_missing) = (true, false);
        self.heard = Some(from);
        let before = self.endpoint.replace(from);
        if before.is_none_or(|path| path.remote != from.remote) {
            events.endpoint_changed(&self.config.peer, from.remote);
        }
        self.evaluate(now, events);
    }
}

/// The type of a WireGuard message, i.e. its first byte; 0 for an empty one.
fn kind_of(message: &[u8]) -> u8 {
    message.first().copied().unwrap_or(0)
}

/// The session index at byte `at` of a message; 0 if the message is shorter.
fn index_at(message: &[u8], at: usize) -> u32 {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
