//! One link over boringtun.
//!
//! ```text
//!            packet, or always_on             answer verifies, or data on a new session
//!   Idle ───────────────────────▶ Connecting ────────────────────────────────▶ Up
//!    ▲                              │   │ 10 s without answer                  │ 10 s without answer
//!    │ sessions expired             │   └──────────────▶ Unreachable ◀─────────┘ to a handshake
//!    └───────── Up                  │ answer does not verify
//!                                   └──────────────▶ AuthenticationFailed
//! ```
//! `Unreachable` and `AuthenticationFailed` stay until a handshake ends well. `NoEndpoint`: a packet wanted to go, and
//! the other end has never been heard of.

mod upkeep;

use super::{Identity, News};
use crate::buffer::{Path, TransmitSink};
use crate::link::Sealed;
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

/// What sealing adds, bytes; boringtun panics if it does not find room for it.
const OVERHEAD: usize = 32;

/// Longest handshake message, bytes.
const HANDSHAKE: usize = 148;

/// Packets that wait for a handshake. A flow that starts sends few before its first answer.
const MAX_WAITING: usize = 64;

/// A handshake unanswered for so long says that the peer does not answer.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);

/// A stock device that was sent packets and has said nothing since is asked by a handshake after so long (D19): agents have
/// echoes for that.
const UNHEARD: Duration = Duration::from_secs(3);

/// It is given up when it has not answered that for so long.
const STOCK_UNREACHABLE_AFTER: Duration = Duration::from_secs(3);

/// The first repeats of an unanswered handshake: the other end may be learning of this one just now. Then every five
/// seconds, which boringtun does by itself.
const RETRIES: [Duration; 3] = [
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// A peer that never answered is tried again so long after boringtun gave up (90 s of trying).
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Both ends of an `always_on` link with a session send so often, bytes or nothing.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Silence on an `always_on` link after which a new handshake is tried; longer at the end that does not initiate.
const SILENCE: Duration = Duration::from_secs(12);
const SILENCE_RESPONDER: Duration = Duration::from_secs(17);

/// We answered a handshake, and nothing came on its session: the other end refused our answer, so ask ourselves.
const UNCONFIRMED: Duration = Duration::from_secs(2);

/// Least time between handshakes that a datagram of an unknown session brings about.
const RESTART: Duration = Duration::from_secs(1);

/// A learned place is trusted over a newly configured one if the peer was heard from there so recently.
const FRESH: Duration = Duration::from_secs(10);

/// What boringtun made of a datagram.
pub(super) enum Reply {
    /// A packet of this length, in the output.
    Packet(usize),
    /// So many bytes of the output go back to where the datagram came from.
    Send(usize),
    /// Nothing more to do.
    Nothing,
    /// Data of a session that is not there.
    NoSession,
    /// Dropped.
    Refused(DropReason),
}

/// One link.
pub(super) struct Peer {
    /// Its position in the configuration.
    pub(super) index: LinkIndex,
    config: Link,
    /// Made by the first use.
    tunn: Option<Box<Tunn>>,
    /// A handshake is to start at the next tick.
    ask: bool,
    /// boringtun has a session to seal with.
    sealing: bool,
    /// Nothing is pending and the peer is where we think: data needs no further look.
    settled: bool,
    state: LinkState,
    endpoint: Option<Path>,
    /// Where the peer was last heard from, and at which of our addresses: it is answered from there.
    heard: Option<Path>,
    /// When the first unanswered handshake went out; which repeat comes next, and when.
    asking_since: Option<Instant>,
    retry: usize,
    retry_at: Option<Instant>,
    /// Where the last handshake went: only from there can its answer fail to verify.
    asked: Option<Path>,
    authentication_failed: bool,
    /// When boringtun gave up.
    gave_up: Option<Instant>,
    /// A handshake of the peer was answered, and is not confirmed by data yet.
    answered: Option<Instant>,
    /// The newest confirmed session's index (its lowest eight bits count up) and since when.
    session: Option<(u32, Instant)>,
    last_received: Option<Instant>,
    last_sent: Option<Instant>,
    /// When the first packet went out that nothing has come after.
    unheard: Option<Instant>,
    wanted_without_endpoint: bool,
    /// Lengths of packets in boringtun's queue.
    waiting: VecDeque<usize>,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets: u64,
    tx_packets: u64,
}

impl Peer {
    pub(super) fn new(link: &Link, heard: Option<SocketAddr>) -> Self {
        Self {
            index: LinkIndex(0),
            config: link.clone(),
            tunn: None,
            ask: false,
            sealing: false,
            settled: false,
            state: LinkState::Idle,
            endpoint: heard.or(link.endpoint).map(Path::from),
            heard: heard.map(Path::from),
            asking_since: None,
            retry: 0,
            retry_at: None,
            asked: None,
            authentication_failed: false,
            gave_up: None,
            answered: None,
            session: None,
            last_received: None,
            last_sent: None,
            unheard: None,
            wanted_without_endpoint: false,
            waiting: VecDeque::new(),
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
        }
    }

    pub(super) fn name(&self) -> &AgentId {
        &self.config.peer
    }

    /// Whether there is session state.
    pub(super) fn is_open(&self) -> bool {
        self.tunn.is_some()
    }

    /// Makes session state if there is none: by the first use, and not for every possible peer.
    pub(super) fn ensure_open(&mut self, identity: &mut Identity, slot: usize) {
        if self.tunn.is_none() {
            self.tunn = Some(Box::new(identity.tunn(&self.config, slot)));
        }
    }

    /// Where the peer was last heard from.
    pub(super) fn heard(&self) -> Option<SocketAddr> {
        self.heard.map(|path| path.remote)
    }

    /// Where datagrams for the peer go.
    pub(super) fn endpoint(&self) -> Option<Path> {
        self.endpoint
    }

    /// Where the configuration says that it is.
    fn configured(&self) -> Option<Path> {
        self.config.endpoint.map(Path::from)
    }

    /// No datagram leaves from this address of ours any more.
    pub(super) fn local_refused(&mut self, local: IpAddr) {
        for path in [&mut self.endpoint, &mut self.heard].into_iter().flatten() {
            path.local = path.local.filter(|l| *l != local);
        }
    }

    /// Whether there is a session, and since when one is asked for in vain.
    pub(super) fn session(&self) -> (bool, Option<Instant>) {
        (self.sealing && self.session.is_some(), self.asking_since)
    }

    /// Whether datagrams for the peer go there.
    pub(super) fn is_at(&self, place: SocketAddr) -> bool {
        self.endpoint.is_some_and(|path| path.remote == place)
    }

    /// Forgets all session state. Packets that waited are lost.
    pub(super) fn close(&mut self, news: &mut News) {
        self.tunn = None;
        (self.sealing, self.settled, self.authentication_failed) = (false, false, false);
        (self.asking_since, self.retry, self.retry_at, self.asked) = (None, 0, None, None);
        (self.gave_up, self.answered, self.session) = (None, None, None);
        (self.last_received, self.last_sent, self.unheard) = (None, None, None);
        self.wanted_without_endpoint = false;
        self.lose_waiting(news);
    }

    /// Takes a new entry. Session state stays as it is unless a key changed.
    pub(super) fn reconfigure(&mut self, link: &Link, now: Instant, news: &mut News) {
        let new_identity = link.public_key != self.config.public_key;
        let new_secret = link.preshared_key != self.config.preshared_key;
        let moved = link.endpoint.is_some() && link.endpoint != self.config.endpoint;
        if new_identity || new_secret {
            // Either end changes at its own time; each asks at once, so that the later one finds it settled or failed.
            self.ask = self.is_open() || link.always_on;
            self.close(news);
        }
        let fresh = self
            .last_received
            .is_some_and(|t| now.saturating_duration_since(t) < FRESH);
        if link.endpoint.is_some() && (new_identity || moved && !fresh) {
            self.endpoint = link.endpoint.map(Path::from);
            self.heard = self.heard.filter(|_| !new_identity);
        }
        let failing = matches!(self.state, LinkState::Unreachable | LinkState::NoEndpoint);
        self.ask |= moved && (failing || self.asking_since.is_some());
        self.endpoint = self.endpoint.or(link.endpoint.map(Path::from));
        self.config = link.clone();
        self.ask |= self.config.always_on && self.config.initiator && !self.is_open();
        self.evaluate(now, news);
    }

    /// Whether a handshake is to start, although nobody sends.
    pub(super) fn asks(&self) -> bool {
        self.ask && self.endpoint.is_some()
    }

    /// A session is wanted. Whether that is news: no handshake is running, or was given up just now.
    pub(super) fn want(&mut self) -> bool {
        let idle = !self.ask && self.asking_since.is_none() && self.gave_up.is_none() && !self.authentication_failed;
        self.ask |= idle && self.endpoint.is_some();
        idle && self.ask
    }

    /// The peer is there now, as another lane heard. Behind a NAT the port that this lane has heard itself is the better one.
    pub(super) fn set_endpoint(&mut self, to: SocketAddr) {
        if self.endpoint.map(|e| e.remote.ip()) != Some(to.ip()) {
            (self.endpoint, self.settled) = (Some(to.into()), false);
        }
    }

    /// Whether a handshake may start because the peer seems to use a session that is not there any more.
    pub(super) fn may_restart(&self, now: Instant) -> bool {
        !self.sealing && self.asking_since.is_none() && past(self.last_sent, now, RESTART)
    }

    /// Starts a handshake, also if one is running.
    pub(super) fn initiate(&mut self, now: Instant, tx: &mut impl TransmitSink, news: &mut News) {
        let to = self.place_to_ask(now);
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), to) else {
            return;
        };
        if let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(tx.reserve(to, HANDSHAKE), true) {
            let len = message.len();
            tx.commit(len);
            self.asked(to, now);
        }
        self.evaluate(now, news);
    }

    /// Notes that a handshake went out.
    fn asked(&mut self, to: Path, now: Instant) {
        self.asked = Some(to);
        self.gave_up = None;
        self.asking_since.get_or_insert(now);
        self.retry_at = RETRIES.get(self.retry).map(|wait| now + *wait);
        self.retry += 1;
        self.ask = false;
        self.settled = false;
        self.last_sent = Some(now);
    }

    /// Seals a packet if there is a session; none if not.
    pub(super) fn seal(&mut self, packet: &[u8], now: Instant, tx: &mut impl TransmitSink) -> Option<Sealed> {
        let (true, Some(tunn), Some(to)) = (self.sealing, self.tunn.as_mut(), self.endpoint) else {
            return None;
        };
        let slot = tx.reserve(to, packet.len() + OVERHEAD);
        match tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(sealed) => {
                let len = sealed.len();
                tx.commit(len);
                self.tx_bytes += packet.len() as u64;
                self.tx_packets += 1;
                self.last_sent = Some(now);
                self.unheard.get_or_insert(now);
                Some(Sealed::Sent)
            }
            // Without a session boringtun has put it into its queue.
            _ => {
                self.sealing = false;
                self.waiting.push_back(packet.len());
                Some(Sealed::Sent)
            }
        }
    }

    /// Lets a packet wait for a handshake, which it starts.
    pub(super) fn wait(&mut self, packet: &[u8], now: Instant, tx: &mut impl TransmitSink, news: &mut News) -> Sealed {
        let Some(to) = self.endpoint else {
            self.wanted_without_endpoint = true;
            self.evaluate(now, news);
            return Sealed::Dropped(DropReason::LinkDown);
        };
        let Some(tunn) = self.tunn.as_mut().filter(|_| self.waiting.len() < MAX_WAITING) else {
            return Sealed::Dropped(DropReason::LinkDown);
        };
        let slot = tx.reserve(to, HANDSHAKE.max(packet.len() + OVERHEAD));
        let len = match tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(message) => Some((kind_of(message), message.len())),
            _ => None,
        };
        match len {
            // A session after all.
            Some((4, len)) => {
                tx.commit(len);
                self.tx_bytes += packet.len() as u64;
                self.tx_packets += 1;
                self.sealing = true;
                return Sealed::Sent;
            }
            Some((_, len)) => {
                tx.commit(len);
                self.asked(to, now);
            }
            None => {}
        }
        self.waiting.push_back(packet.len());
        self.evaluate(now, news);
        Sealed::Sent
    }

    /// Sends what waited, now that there is a session.
    pub(super) fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        if self.waiting.is_empty() || !self.sealing {
            return;
        }
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), self.endpoint) else {
            return;
        };
        let room = self.waiting.iter().max().map_or(0, |l| l + OVERHEAD).max(HANDSHAKE);
        while let TunnResult::WriteToNetwork(sealed) = tunn.decapsulate(None, &[], tx.reserve(to, room)) {
            let len = sealed.len();
            tx.commit(len);
            if len > OVERHEAD {
                self.waiting.pop_front();
                self.tx_bytes += (len - OVERHEAD) as u64;
                self.tx_packets += 1;
            }
        }
        self.last_sent = Some(now);
    }

    /// Takes a datagram that names this link. `output` has room for the datagram, and for a handshake message.
    pub(super) fn receive(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        output: &mut [u8],
        news: &mut News,
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
            TunnResult::Err(WireGuardError::InvalidAeadTag)
                if kind == 2 && self.asked.is_some_and(|asked| asked.remote == from.remote) =>
            {
                // M8, G11: it answers, and not with our secret.
                self.authentication_failed = true;
                (self.asking_since, self.retry_at, self.settled) = (None, None, false);
                self.evaluate(now, news);
                return Reply::Refused(DropReason::BadDatagram);
            }
            TunnResult::Err(
                WireGuardError::DuplicateCounter
                | WireGuardError::InvalidCounter
                | WireGuardError::WrongTai64nTimestamp,
            ) => return Reply::Refused(DropReason::Replayed),
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) if kind == 4 => {
                return Reply::NoSession;
            }
            TunnResult::Err(_) => return Reply::Refused(DropReason::BadDatagram),
        };
        match (kind, &reply) {
            (4, _) => {
                if let Reply::Packet(len) = &reply {
                    self.rx_bytes += *len as u64;
                    self.rx_packets += 1;
                }
                (self.last_received, self.unheard) = (Some(now), None);
                let session = index_at(datagram, 4);
                if !self.settled || self.endpoint != Some(from) || self.session.is_none_or(|(s, _)| s != session) {
                    self.proven(session, from, now, news);
                }
            }
            // Our handshake's answer verified (a cookie reply begins with 3 and proves nothing).
            (2, Reply::Send(_)) if kind_of(output) == 4 => {
                (self.last_received, self.unheard) = (Some(now), None);
                let session = index_at(datagram, 8);
                self.proven(session, from, now, news);
            }
            // We answered the peer's handshake. It may be an old one sent by somebody else: nothing is learned until
            // data comes on the session.
            (1, Reply::Send(_)) if kind_of(output) == 2 => {
                self.answered.get_or_insert(now);
                // Our own handshake ended with that: without data on this session, ask again.
                if self.asking_since.is_some() {
                    self.retry_at = Some(now + UNCONFIRMED);
                }
                self.settled = false;
                self.evaluate(now, news);
            }
            _ => {}
        }
        reply
    }

    /// The peer has shown that it holds the session's keys, and sent from this place (D18).
    fn proven(&mut self, session: u32, from: Path, now: Instant, news: &mut News) {
        // Sessions count up in the lowest byte; late data of the one before changes nothing.
        let newer = self
            .session
            .is_none_or(|(s, _)| (1..128).contains(&(session as u8).wrapping_sub(s as u8)));
        if newer {
            self.session = Some((session, now));
            self.answered = None;
            self.authentication_failed = false;
        }
        if !self.authentication_failed {
            (self.asking_since, self.retry, self.retry_at, self.gave_up) = (None, 0, None, None);
        }
        self.sealing = true;
        self.wanted_without_endpoint = false;
        self.heard = Some(from);
        let before = self.endpoint.replace(from);
        if before.is_none_or(|path| path.remote != from.remote) {
            news.moved(&self.config.peer, from.remote);
        }
        self.settled = self.answered.is_none() && !self.authentication_failed;
        self.evaluate(now, news);
    }
}

/// What kind of message it is, by its first byte; 0: none of WireGuard's.
fn kind_of(message: &[u8]) -> u8 {
    message.first().copied().unwrap_or(0)
}

/// A session's index in a message; 0 where the message ends before.
fn index_at(message: &[u8], at: usize) -> u32 {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Whether it is `wait` or more since `then`, or `then` never was.
fn past(then: Option<Instant>, now: Instant, wait: Duration) -> bool {
    then.is_none_or(|t| now.saturating_duration_since(t) >= wait)
}

/// Whether it is `wait` or more since `then`.
fn past_some(then: Option<Instant>, now: Instant, wait: Duration) -> bool {
    then.is_some() && past(then, now, wait)
}
