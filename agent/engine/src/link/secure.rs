//! The encrypted links of one engine: each goes over WireGuard or QUIC, as its peering says and as the network allows.
//!
//! Both share one UDP port: the first byte of a datagram tells them apart. Links in use are kept under observation by
//! echoes inside them ([`control`](super::control)); what is seen decides which transport is used ([`choice`](super::choice)).

use super::choice::{Choice, Side, Step};
use super::control::{Echoes, LEN, LONGEST_PROBE, Message};
use super::parts::{self, Assembly};
use super::path_mtu::PathMtu;
use super::quic::{News, Quic, Taken};
use super::wireguard::WireGuard;
use super::{Event, LinkSet, Opened, Sealed, index_of};
use crate::buffer::TransmitSink;
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use rustls::pki_types::PrivateKeyDer;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};
use tombolo_proto::config::{DEFAULT_MTU, Link, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::{Carrier, LinkState, LinkStatus};

/// Links in use are looked at so often.
const STEP: Duration = Duration::from_millis(50);

/// Echoes on a link that has an alternative (D19), and on others.
const OFTEN: Duration = Duration::from_millis(100);
const RARELY: Duration = Duration::from_secs(1);

/// A link is in use for so long after its last packet.
const IN_USE: Duration = Duration::from_secs(5);

/// First bytes from here on are QUIC's: its fixed bit is kept.
const QUIC: u8 = 0x40;

/// What is observed of a link in use.
#[derive(Default)]
struct Observed {
    wireguard: Echoes,
    quic: Echoes,
    /// How long packets may be over WireGuard; QUIC finds out by itself.
    path: PathMtu,
    parts: Assembly,
    /// What brought the last packet, and when.
    last: Option<(Carrier, Instant)>,
}

impl Observed {
    fn of(&mut self, carrier: Carrier) -> &mut Echoes {
        match carrier {
            Carrier::WireGuard => &mut self.wireguard,
            Carrier::Quic => &mut self.quic,
        }
    }
}

/// One link, above its transports.
struct Way {
    peer: AgentId,
    transport: Transport,
    /// The other end's key for QUIC is known.
    quic: bool,
    choice: Choice,
    /// Only of links that are in use.
    observed: Option<Box<Observed>>,
    used: Option<Instant>,
    /// Longest packet that goes whole over WireGuard, as far as is known.
    limit: Option<u16>,
    /// Another lane than the first may send; kept up to date while it is observed.
    ready: bool,
    /// What was said of it last.
    up: Option<bool>,
    /// Inner packets and bytes over QUIC: received, sent.
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl Way {
    fn new(link: &Link) -> Self {
        Self {
            peer: link.peer.clone(),
            transport: link.transport,
            quic: link.quic.is_some(),
            choice: Choice::default(),
            observed: None,
            used: None,
            limit: None,
            ready: false,
            up: None,
            packets: [0; 2],
            bytes: [0; 2],
        }
    }

    fn carrier(&self) -> Carrier {
        match self.transport {
            Transport::WireGuard => Carrier::WireGuard,
            Transport::Quic => Carrier::Quic,
            Transport::Automatic => self.choice.current(),
        }
    }

    /// The limit, where it says that the path is narrower than packets may be.
    fn narrow(&self, mtu: u16) -> Option<u16> {
        self.limit.filter(|limit| *limit < mtu)
    }

    /// Both transports are possible.
    fn has_choice(&self) -> bool {
        self.quic && self.transport == Transport::Automatic
    }
}

/// All encrypted links of one engine.
pub struct SecureLinks {
    wireguard: WireGuard,
    quic: Option<Quic>,
    /// By [`LinkIndex`].
    ways: Vec<Way>,
    in_use: Vec<LinkIndex>,
    next: Option<Instant>,
    events: VecDeque<Event>,
    /// Which of the agent's lanes this is.
    lane: u16,
    /// The device's.
    mtu: u16,
    probe: Box<[u8; LONGEST_PROBE]>,
    /// Number of the next packet that goes in parts.
    cut: u32,
    /// A packet whose last part has just come.
    whole: Vec<u8>,
}

impl std::fmt::Debug for SecureLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureLinks")
            .field("links", &self.ways.len())
            .finish_non_exhaustive()
    }
}

impl SecureLinks {
    /// The links of the agent with this WireGuard key; none yet. Without a key for QUIC all go over WireGuard.
    #[must_use]
    pub fn new(private_key: [u8; 32]) -> Self {
        Self {
            wireguard: WireGuard::new(private_key),
            quic: None,
            ways: Vec::new(),
            in_use: Vec::new(),
            next: None,
            events: VecDeque::new(),
            lane: 0,
            mtu: DEFAULT_MTU,
            probe: Box::new([0; LONGEST_PROBE]),
            cut: 0,
            whole: Vec::new(),
        }
    }

    /// The same with a key for QUIC, a private one in PKCS #8. `seed` is any secret number.
    ///
    /// # Errors
    /// The key is of no kind that TLS 1.3 knows.
    pub fn with_quic(mut self, key: PrivateKeyDer<'static>, seed: [u8; 32]) -> Result<Self, rustls::Error> {
        self.quic = Some(Quic::new(key, seed)?);
        Ok(self)
    }

    /// The same for another lane than the first: its sessions are with the same lane of other agents, whose ports follow
    /// one another (D15).
    #[must_use]
    pub fn of_lane(mut self, lane: u16) -> Self {
        self.lane = lane;
        self.wireguard.set_lane(lane);
        self
    }

    /// The WireGuard key that others must pin.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.wireguard.public_key()
    }

    /// What others must pin for QUIC.
    #[must_use]
    pub fn pin(&self) -> Option<KeyPin> {
        self.quic.as_ref().map(Quic::pin)
    }

    /// Notes that a packet went or came; from now on the link is observed.
    fn used(&mut self, link: LinkIndex, now: Instant) {
        let way = &mut self.ways[link.get()];
        way.used = Some(now);
        if way.observed.is_none() {
            way.observed = Some(Box::default());
            self.in_use.push(link);
            self.next.get_or_insert(now + STEP);
        }
    }

    /// A packet came out of a link. Whether it goes on.
    fn arrived(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> bool {
        if Message::is_one(packet) {
            match Message::decode(packet) {
                Some(Message::Echo(number)) => {
                    self.send(link, carrier, &Message::Reply(number).encode(), now, tx);
                    self.heard(link, carrier, now);
                }
                Some(Message::Reply(number)) => {
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.of(carrier).reply(number, now);
                    }
                }
                Some(Message::Probe(size)) => {
                    self.send(link, carrier, &Message::Arrived(size).encode(), now, tx);
                }
                Some(Message::Arrived(size)) => {
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.path.answered(size);
                    }
                }
                Some(Message::Part {
                    packet: number,
                    index,
                    count,
                }) => {
                    self.used(link, now);
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.of(carrier).heard(now);
                        if let Some(whole) = observed.parts.take(number, (index, count), &packet[LEN..]) {
                            self.whole.extend_from_slice(whole);
                        }
                    }
                }
                None => {}
            }
            return false;
        }
        if carrier == Carrier::Quic {
            let way = &mut self.ways[link.get()];
            way.packets[0] += 1;
            way.bytes[0] += packet.len() as u64;
        }
        self.used(link, now);
        self.heard(link, carrier, now);
        if let Some(observed) = &mut self.ways[link.get()].observed {
            observed.last = Some((carrier, now));
        }
        true
    }

    fn heard(&mut self, link: LinkIndex, carrier: Carrier, now: Instant) {
        if let Some(observed) = &mut self.ways[link.get()].observed {
            observed.of(carrier).heard(now);
        }
    }

    fn send(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Sealed {
        match (carrier, &mut self.quic) {
            (Carrier::WireGuard, _) => self.wireguard.seal(link, packet, now, tx),
            (Carrier::Quic, Some(quic)) => {
                if !quic.is_up(link) && !quic.is_connecting(link) {
                    let Some(to) = self.wireguard.endpoint(link) else {
                        return Sealed::Dropped(DropReason::LinkDown);
                    };
                    quic.connect(link, to, self.ways[link.get()].narrow(self.mtu), now);
                }
                quic.seal(link, packet)
            }
            (Carrier::Quic, None) => Sealed::Dropped(DropReason::LinkDown),
        }
    }

    /// Sends a packet that is too long for the path.
    fn in_parts(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        limit: u16,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Sealed {
        self.cut = self.cut.wrapping_add(1);
        let mut sealed = Sealed::Sent;
        let possible = parts::split(packet, usize::from(limit), self.cut, |part| {
            if sealed == Sealed::Sent {
                sealed = self.send(link, carrier, part, now, tx);
            }
        });
        if possible {
            sealed
        } else {
            Sealed::Dropped(DropReason::TooBig)
        }
    }

    /// The packet whose last part has just come, in the front of the buffer.
    fn whole(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        let len = self.whole.len();
        let room = buffer.get_mut(..len).filter(|_| len > 0)?;
        room.copy_from_slice(&self.whole);
        self.whole.clear();
        Some(0..len)
    }

    /// Looks after one link in use. Whether it still is.
    fn observe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) -> bool {
        let way = &mut self.ways[link.get()];
        if way.used.is_none_or(|t| now.saturating_duration_since(t) > IN_USE) {
            way.observed = None;
            return false;
        }
        let (carrier, choice) = (way.carrier(), way.has_choice());
        let other = match carrier {
            Carrier::WireGuard => None,
            Carrier::Quic => choice.then_some(Carrier::WireGuard),
        };
        for (carrier, main) in [(Some(carrier), true), (other, false)] {
            let Some(carrier) = carrier else { continue };
            // A session that is not there is looked for by packets; a standby has none.
            if main && !self.side(link, carrier, now).up {
                continue;
            }
            let Some(observed) = &mut self.ways[link.get()].observed else {
                continue;
            };
            let echoes = observed.of(carrier);
            // D19: where there is an alternative; for a lane beside the first, that is the first.
            let often = choice && (main || echoes.answers().is_some()) || self.lane > 0;
            let every = if often { OFTEN } else { RARELY };
            if echoes
                .last_sent()
                .is_none_or(|t| now.saturating_duration_since(t) >= every)
            {
                let echo = echoes.send(now);
                self.send(link, carrier, &echo.encode(), now, tx);
            }
        }
        if carrier == Carrier::WireGuard {
            self.probe(link, now, tx);
        }
        if choice {
            self.choose(link, now, tx);
        }
        if self.lane > 0 {
            self.look_whether_ready(link, now);
        }
        true
    }

    /// A lane beside the first sends where it has a session that works.
    fn look_whether_ready(&mut self, link: LinkIndex, now: Instant) {
        let side = self.side(link, self.ways[link.get()].carrier(), now);
        self.ways[link.get()].ready = side.up && side.silent.is_none();
    }

    /// Looks how long packets may be.
    fn probe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let way = &mut self.ways[link.get()];
        let Some(observed) = way.observed.as_deref_mut() else {
            return;
        };
        // A stock device answers nothing, and a closed way says nothing about lengths.
        if observed.wireguard.answers().is_none() || observed.wireguard.silent(now).is_some() {
            return;
        }
        let sizes = observed.path.probes(now, self.mtu, observed.wireguard.rtt());
        if observed.path.limit().is_some() && observed.path.limit() != way.limit {
            way.limit = observed.path.limit();
            tracing::debug!(link = %way.peer, bytes = way.limit, "longest packet that the path carries whole");
        }
        tx.allow_fragments(false);
        for size in sizes {
            self.wireguard
                .seal(link, Message::probe(size, &mut self.probe), now, tx);
        }
        tx.allow_fragments(true);
    }

    fn choose(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let (wireguard, quic) = (
            self.side(link, Carrier::WireGuard, now),
            self.side(link, Carrier::Quic, now),
        );
        let way = &mut self.ways[link.get()];
        match way.choice.step(now, wireguard, quic) {
            None => {}
            Some(Step::Connect) => {
                if let (Some(quic), Some(to)) = (&mut self.quic, self.wireguard.endpoint(link)) {
                    quic.connect(link, to, way.narrow(self.mtu), now);
                    quic.flush(now, tx);
                }
            }
            Some(Step::Disconnect) => {
                if let Some(quic) = &mut self.quic {
                    quic.close(link, now, "WireGuard is in use");
                    quic.flush(now, tx);
                }
            }
            Some(Step::Switch(to, reason)) => {
                self.events.push_back(Event::Switched(way.peer.clone(), to, reason));
            }
        }
    }

    /// What is known of a transport.
    fn side(&self, link: LinkIndex, carrier: Carrier, now: Instant) -> Side {
        let (up, asking) = match (carrier, &self.quic) {
            (Carrier::WireGuard, _) => self.wireguard.session(link),
            (Carrier::Quic, Some(quic)) => (quic.is_up(link), quic.is_connecting(link).then_some(now)),
            (Carrier::Quic, None) => (false, None),
        };
        let observed = self.ways[link.get()].observed.as_deref();
        let used = |(by, at): (Carrier, Instant)| by == carrier && now.saturating_duration_since(at) < RARELY;
        let echoes = observed.map(|o| match carrier {
            Carrier::WireGuard => &o.wireguard,
            Carrier::Quic => &o.quic,
        });
        Side {
            up,
            asking,
            silent: echoes.and_then(|e| e.silent(now)),
            answers: echoes.and_then(Echoes::answers),
            loss: echoes.and_then(|e| e.loss(now)),
            used: observed.and_then(|o| o.last).is_some_and(used),
        }
    }

    /// Says once that a link is up or down, whatever carries it.
    fn report(&mut self, link: LinkIndex, up: bool) {
        let up = up || self.wireguard.session(link).0 || self.quic.as_ref().is_some_and(|q| q.is_up(link));
        let way = &mut self.ways[link.get()];
        if way.up != Some(up) {
            way.up = Some(up);
            let peer = way.peer.clone();
            self.events
                .push_back(if up { Event::Up(peer) } else { Event::Down(peer) });
        }
    }

    fn position(&self, peer: &AgentId) -> Option<LinkIndex> {
        self.ways.binary_search_by(|w| w.peer.cmp(peer)).ok().map(index_of)
    }

    /// Takes what the transports have to say.
    fn listen(&mut self) {
        while let Some(event) = self.wireguard.poll_event() {
            match event {
                Event::Up(peer) => {
                    if let Some(link) = self.position(&peer) {
                        self.report(link, true);
                    }
                }
                Event::Down(peer) => {
                    if let Some(link) = self.position(&peer) {
                        self.report(link, false);
                    }
                }
                Event::Moved(ref peer, _) => {
                    let link = self.position(peer).and_then(|l| self.ways.get_mut(l.get()));
                    if let Some(observed) = link.and_then(|way| way.observed.as_mut()) {
                        observed.path.look();
                    }
                    self.events.push_back(event);
                }
                Event::Switched(..) => self.events.push_back(event),
            }
        }
        while let Some(news) = self.quic.as_mut().and_then(|q| q.news.pop_front()) {
            match news {
                News::Up(link) => self.report(link, true),
                News::Down(link, reason) => {
                    tracing::debug!(link = %self.ways[link.get()].peer, reason, "QUIC connection gone");
                    self.report(link, false);
                }
                News::Moved(link, to) => {
                    let peer = self.ways[link.get()].peer.clone();
                    self.events.push_back(Event::Moved(peer, to));
                }
            }
        }
    }
}

impl LinkSet for SecureLinks {
    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    fn is_ready(&mut self, link: LinkIndex, now: Instant) -> bool {
        let Some(way) = self.ways.get(link.get()).filter(|_| self.lane > 0) else {
            return true;
        };
        if way.observed.is_none() {
            self.look_whether_ready(link, now);
        }
        if self.ways[link.get()].ready {
            return true;
        }
        self.used(link, now);
        match self.ways[link.get()].carrier() {
            Carrier::WireGuard => self.wireguard.want(link, now),
            Carrier::Quic => {
                if let (Some(quic), Some(to)) = (&mut self.quic, self.wireguard.endpoint(link))
                    && !quic.is_up(link)
                    && !quic.is_connecting(link)
                {
                    quic.connect(link, to, self.ways[link.get()].narrow(self.mtu), now);
                }
            }
        }
        false
    }

    fn moved(&mut self, peer: &AgentId, to: SocketAddr) {
        if let Some(link) = self.position(peer) {
            self.wireguard.moved(link, to);
        }
    }

    fn update(&mut self, links: &[Link], now: Instant) {
        self.wireguard.update(links, now);
        if let Some(quic) = &mut self.quic {
            quic.update(links, now);
        }
        let mut before: BTreeMap<AgentId, Way> = self.ways.drain(..).map(|w| (w.peer.clone(), w)).collect();
        for link in links {
            let way = before.remove(&link.peer).filter(|w| w.transport == link.transport);
            let mut way = way.unwrap_or_else(|| Way::new(link));
            way.quic = link.quic.is_some() && self.quic.is_some();
            self.ways.push(way);
        }
        self.in_use.clear();
        for (position, way) in self.ways.iter().enumerate() {
            if way.observed.is_some() {
                self.in_use.push(index_of(position));
            }
        }
    }

    fn seal(&mut self, link: LinkIndex, packet: &[u8], now: Instant, tx: &mut impl TransmitSink) -> Sealed {
        let Some(way) = self.ways.get_mut(link.get()) else {
            return Sealed::Dropped(DropReason::NoLink);
        };
        let carrier = way.carrier();
        if carrier == Carrier::Quic {
            way.packets[1] += 1;
            way.bytes[1] += packet.len() as u64;
        }
        self.used(link, now);
        match self.max_packet(link) {
            Some(limit) if packet.len() > usize::from(limit) => self.in_parts(link, carrier, packet, limit, now, tx),
            Some(_) | None => self.send(link, carrier, packet, now, tx),
        }
    }

    fn max_packet(&mut self, link: LinkIndex) -> Option<u16> {
        let way = self.ways.get(link.get())?;
        match way.carrier() {
            Carrier::WireGuard => way.limit,
            Carrier::Quic => self.quic.as_ref()?.max_packet(link),
        }
    }

    fn open(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        if datagram.first().is_some_and(|first| *first >= QUIC) {
            return match self.quic.as_mut().map(|q| q.open(datagram, from, now, tx)) {
                Some(Taken::Known) => Opened::Control,
                Some(Taken::Refused) | None => Opened::Refused(DropReason::BadDatagram),
            };
        }
        match self.wireguard.open(datagram, from, now, buffer, tx) {
            Opened::Packet(link, range) => {
                if self.arrived(link, Carrier::WireGuard, &buffer[range.clone()], now, tx) {
                    Opened::Packet(link, range)
                } else {
                    self.whole(buffer)
                        .map_or(Opened::Control, |range| Opened::Packet(link, range))
                }
            }
            other => other,
        }
    }

    fn next_packet(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Option<(LinkIndex, Range<usize>)> {
        loop {
            let (link, packet) = self.quic.as_mut()?.next_packet()?;
            let Some(room) = buffer.get_mut(..packet.len()) else {
                continue;
            };
            if self.ways.len() > link.get() && self.arrived(link, Carrier::Quic, &packet, now, tx) {
                room.copy_from_slice(&packet);
                return Some((link, 0..packet.len()));
            }
            if let Some(range) = self.whole(buffer) {
                return Some((link, range));
            }
        }
    }

    fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        if let Some(quic) = &mut self.quic {
            quic.flush(now, tx);
        }
    }

    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.wireguard.handle_timeout(now, tx);
        if let Some(quic) = &mut self.quic {
            quic.handle_timeout(now, tx);
        }
        self.listen();
        if self.next.is_some_and(|t| t <= now) {
            let mut in_use = std::mem::take(&mut self.in_use);
            in_use.retain(|link| self.observe(*link, now, tx));
            self.in_use = in_use;
            self.next = (!self.in_use.is_empty()).then_some(now + STEP);
            self.flush(now, tx);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let quic = self.quic.as_ref().and_then(Quic::poll_timeout);
        [self.wireguard.poll_timeout(), quic, self.next]
            .into_iter()
            .flatten()
            .min()
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.listen();
        self.events.pop_front()
    }

    fn status(&self, now: Instant) -> Vec<LinkStatus> {
        let one = |(position, way): (usize, &Way)| {
            let link = index_of(position);
            let wireguard = self.wireguard.status_of(link, now);
            let quic = self.quic.as_ref().and_then(|q| q.path(link));
            let mut status = match (wireguard, way.used) {
                (Some(status), _) => status,
                (None, Some(_)) => LinkStatus::new(way.peer.clone()),
                (None, None) => return None,
            };
            status.transport = way.carrier();
            status.mtu = match (way.carrier(), &self.quic) {
                (Carrier::Quic, Some(quic)) => quic.max_packet(link),
                (Carrier::Quic, None) => None,
                (Carrier::WireGuard, _) => way.limit,
            }
            .map(|most: u16| most.min(self.mtu));
            status.rx_packets += way.packets[0];
            status.tx_packets += way.packets[1];
            status.rx_bytes += way.bytes[0];
            status.tx_bytes += way.bytes[1];
            if way.carrier() == Carrier::Quic {
                match quic {
                    Some((endpoint, rtt, since)) => {
                        (status.state, status.reason) = (LinkState::Up, None);
                        status.endpoint = Some(endpoint);
                        status.handshake_age = Some(now.saturating_duration_since(since).as_secs_f64());
                        status.rtt_ms = Some(rtt.as_secs_f64() * 1000.0);
                    }
                    None if self.quic.as_ref().is_some_and(|q| q.is_connecting(link)) => {
                        (status.state, status.reason) = (LinkState::Connecting, None);
                    }
                    None => {}
                }
            }
            if let Some(observed) = &way.observed {
                let echoes = match way.carrier() {
                    Carrier::WireGuard => &observed.wireguard,
                    Carrier::Quic => &observed.quic,
                };
                status.rtt_ms = echoes.rtt().map(|t| t.as_secs_f64() * 1000.0).or(status.rtt_ms);
                status.loss = echoes.loss(now).map(|(share, _)| share);
            }
            Some(status)
        };
        self.ways.iter().enumerate().filter_map(one).collect()
    }

    fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        self.wireguard.endpoints()
    }

    fn take_lost(&mut self) -> u64 {
        self.wireguard.take_lost() + self.quic.as_mut().map_or(0, Quic::take_lost)
    }

    fn remember_endpoints(&mut self, endpoints: &BTreeMap<AgentId, SocketAddr>) {
        self.wireguard.remember_endpoints(endpoints);
    }
}
