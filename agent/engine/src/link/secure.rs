//! The encrypted links of one engine: each goes over WireGuard or QUIC, as its peering says and as the network allows.
//!
//! Both share one UDP port: the first byte of a datagram tells them apart. Links in use are kept under observation by
//! echoes inside them ([`control`](super::control)); what is seen decides which transport is used ([`choice`](super::choice)).

mod observe;
mod way;

use super::control::LONGEST_PROBE;
use super::parts;
use super::quic::{Quic, Taken};
use super::wireguard::WireGuard;
use super::{AdvertisementStats, Event, LinkSet, Opened, Sealed, index_of};
use crate::buffer::{Path, Port, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use rustls::pki_types::PrivateKeyDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::{DEFAULT_MTU, Link, Probes};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::{Carrier, LinkState, LinkStatus};
use way::{Observed, Way};

/// Links in use are looked at so often.
const STEP: Duration = Duration::from_millis(50);

/// First bytes from here on are QUIC's: its fixed bit is kept.
const QUIC: u8 = 0x40;

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
    /// How silence is noticed.
    probes: Probes,
    probe: Box<[u8; LONGEST_PROBE]>,
    /// Number of the next packet that goes in parts.
    cut: u32,
    /// A packet whose last part has just come.
    whole: Vec<u8>,
    advertisements: AdvertisementStats,
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
            probes: Probes::default(),
            probe: Box::new([0; LONGEST_PROBE]),
            cut: 0,
            whole: Vec::new(),
            advertisements: AdvertisementStats::default(),
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
        if let Some(quic) = &mut self.quic {
            quic.set_lane(lane);
        }
        self
    }

    /// The same for an agent that has a second port, for QUIC alone (D6).
    #[must_use]
    pub fn with_second_port(mut self) -> Self {
        if let Some(quic) = &mut self.quic {
            quic.set_second_port();
        }
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
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        way.used = Some(now);
        if way.observed.is_none() {
            way.observed = Some(Box::new(Observed::new(self.probes)));
            self.in_use.push(link);
            self.next.get_or_insert(now + STEP);
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
        match carrier {
            Carrier::WireGuard => self.wireguard.seal(link, packet, now, tx),
            Carrier::Quic => {
                if self.lacks_connection(link) && !self.connect(link, now) {
                    return Sealed::Dropped(DropReason::LinkDown);
                }
                let quic = self.quic.as_mut();
                quic.map_or(Sealed::Dropped(DropReason::LinkDown), |quic| quic.seal(link, packet))
            }
        }
    }

    /// Neither is a QUIC connection there, nor under way.
    fn lacks_connection(&self, link: LinkIndex) -> bool {
        let quic = self.quic.as_ref();
        quic.is_some_and(|quic| !quic.is_up(link) && !quic.is_connecting(link))
    }

    /// Opens a QUIC connection. Whether it is known where to.
    fn connect(&mut self, link: LinkIndex, now: Instant) -> bool {
        let longest = self.ways.get(link.get()).and_then(|way| way.narrow(self.mtu));
        let to = self.wireguard.endpoint(link);
        let quic = self.quic.as_mut();
        quic.is_some_and(|quic| quic.connect(link, to, longest, now))
    }

    /// What is observed of a link, if it is in use.
    fn observed(&mut self, link: LinkIndex) -> Option<&mut Observed> {
        self.ways.get_mut(link.get())?.observed.as_deref_mut()
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

    fn position(&self, peer: &AgentId) -> Option<LinkIndex> {
        self.ways.binary_search_by(|w| w.peer.cmp(peer)).ok().map(index_of)
    }
}

impl LinkSet for SecureLinks {
    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    fn set_probes(&mut self, probes: Probes) {
        self.probes = probes;
        for observed in self.ways.iter_mut().filter_map(|way| way.observed.as_mut()) {
            observed.wireguard.set_probes(probes);
            observed.quic.set_probes(probes);
        }
    }

    fn is_ready(&mut self, link: LinkIndex, now: Instant) -> bool {
        let Some(way) = self.ways.get(link.get()).filter(|_| self.lane > 0) else {
            return true;
        };
        // D15: the other end has no such lane.
        if self.lane >= way.lanes {
            return false;
        }
        if way.observed.is_none() {
            self.look_whether_ready(link, now);
        }
        let Some((false, carrier)) = self.ways.get(link.get()).map(|way| (way.ready, way.carrier())) else {
            return true;
        };
        self.used(link, now);
        match carrier {
            Carrier::WireGuard => self.wireguard.want(link, now),
            Carrier::Quic if self.lacks_connection(link) => {
                self.connect(link, now);
            }
            Carrier::Quic => {}
        }
        false
    }

    fn accept_routes(&mut self, link: LinkIndex, accepts: bool) {
        if let Some(way) = self.ways.get_mut(link.get()) {
            way.exchange.accept(accepts && self.lane == 0 && !way.stock);
        }
    }

    fn advertisements(&self) -> AdvertisementStats {
        self.advertisements
    }

    fn tell(&mut self, link: LinkIndex, table: Arc<[u8]>) {
        if let Some(way) = self.ways.get_mut(link.get()) {
            way.exchange.tell(table);
        }
    }

    fn leave(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.say_leaving(now, tx);
    }

    fn hurry(&mut self, now: Instant) {
        self.next = self.next.map(|_| now);
    }

    fn local_refused(&mut self, local: IpAddr) {
        self.wireguard.local_refused(local);
        if let Some(quic) = &mut self.quic {
            quic.local_refused(local);
        }
    }

    fn expect(&mut self, peer: &AgentId, now: Instant) {
        if let Some(link) = self.position(peer) {
            self.is_ready(link, now);
        }
    }

    fn moved(&mut self, peer: &AgentId, to: SocketAddr) {
        if let Some(link) = self.position(peer) {
            self.wireguard.moved(link, to);
        }
    }

    fn update(&mut self, links: &[Link], now: Instant) {
        // What the transports have to say is about the links of before.
        self.listen();
        self.wireguard.update(links, now);
        if let Some(quic) = &mut self.quic {
            quic.update(links, now);
        }
        let mut before: BTreeMap<AgentId, Way> = self.ways.drain(..).map(|w| (w.peer.clone(), w)).collect();
        let mut known: BTreeSet<&AgentId> = BTreeSet::new();
        for link in links {
            // With another key it is somebody else: nothing that is known of the one before holds for it.
            let same = before.remove(&link.peer).filter(|way| way.is_with(link));
            if same.is_some() {
                known.insert(&link.peer);
            }
            let same = same.filter(|way| way.transport == link.transport);
            let mut way = same.unwrap_or_else(|| Way::new(link));
            way.quic = link.quic.is_some() && self.quic.is_some();
            way.settle(link);
            if way.always && way.observed.is_none() && self.lane == 0 {
                way.observed = Some(Box::new(Observed::new(self.probes)));
                self.next.get_or_insert(now + STEP);
            }
            way.lanes = link.peer_lanes;
            self.ways.push(way);
        }
        self.events.retain(|event| known.contains(event.peer()));
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
        from: Path,
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
        if from.port == Port::Quic {
            return Opened::Refused(DropReason::BadDatagram);
        }
        match self.wireguard.open(datagram, from, now, buffer, tx) {
            Opened::Packet(link, range) => {
                let packet = buffer.get(range.clone()).unwrap_or_default();
                if self.arrived(link, Carrier::WireGuard, packet, now, tx) {
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
