//! The encrypted links of one engine. Each link uses WireGuard or QUIC, as its configuration demands and the network
//! allows.
//!
//! ```text
//!   packet ──▶ LinkEntry ── carrier ──▶ transports[carrier] ──▶ datagram        seal: this file
//!   datagram ── first byte ──▶ transports[carrier] ──▶ packet ──▶ engine        open: this file
//!                                            └──▶ in-band message               dispatch.rs
//!   every 50 ms, for each link in use:
//!     echoes, silence, up and down        dead_peer.rs
//!     path MTU                            path_probe.rs
//!     which transport is used             selection.rs
//!   health of back ends                   health.rs
//!   counters for charges                  metering.rs
//! ```
//! Both transports share a UDP port. The first byte of a datagram shows to which one it belongs.

mod dead_peer;
mod dispatch;
mod health;
mod link_entry;
mod metering;
mod path_probe;
mod selection;

use super::fragment;
use super::in_band::MAX_PROBE_LEN;
use super::quic::Quic;
use super::transport::{AnyTransport, PathHint, position_of};
use super::wireguard::WireGuard;
use super::{AdvertisementStats, Event, LinkSet, Opened, Sealed, index_of};
use crate::buffer::{Outer, Path, Port, TransmitSink};
use crate::tables::{LinkIndex, Tables};
use crate::verdict::DropReason;
use link_entry::{LinkEntry, LinkMonitor, Topic};
use rustls::pki_types::PrivateKeyDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::{DEFAULT_MTU, Link, Probes};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::{Carrier, LinkStatus, Volume};

/// Interval at which each link in use is monitored: half the default interval of echoes (100 ms, D19).
const MONITOR_INTERVAL: Duration = Duration::from_millis(50);

/// Least first byte of a QUIC datagram: it has QUIC's fixed bit (RFC 9000, section 17.2), which agents never grease.
/// WireGuard's first bytes are 1 to 4.
const FIRST_QUIC_BYTE: u8 = 0x40;

/// All encrypted links of one engine. The set belongs to one thread, and its methods never block.
pub struct SecureLinks {
    /// The transports in the order of [`CARRIERS`](super::transport::CARRIERS). Without a key for QUIC there is only
    /// WireGuard.
    transports: Vec<AnyTransport>,
    public_key: PublicKey,
    pin: Option<KeyPin>,
    /// The links by [`LinkIndex`], ordered by peer.
    links: Vec<LinkEntry>,
    /// The links in use, i.e. those that have a monitor.
    in_use: Vec<LinkIndex>,
    /// Time at which the links of `in_use` are monitored next; `None`: no link is in use.
    monitor_at: Option<Instant>,
    events: VecDeque<Event>,
    /// The number of this lane, from 0.
    lane: u16,
    /// MTU of the TUN device, in bytes.
    mtu: u16,
    probes: Probes,
    /// Buffer for probes of the path MTU.
    probe: Box<[u8; MAX_PROBE_LEN]>,
    /// Number of the last packet that was sent in fragments.
    fragmented: u32,
    /// A reassembled packet whose last fragment has just arrived; empty if there is none.
    reassembled: Vec<u8>,
    advertisements: AdvertisementStats,
    /// The health of this agent's back ends, which peers are told on request; `None`: it has had none yet.
    health: Option<Arc<[u8]>>,
    health_statements: AdvertisementStats,
    /// What has passed links that were removed, since the last call of [`take_traffic`](Self::take_traffic).
    gone: BTreeMap<AgentId, Volume>,
}

impl std::fmt::Debug for SecureLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureLinks")
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

impl SecureLinks {
    /// Creates a set without links, for lane 0 of the agent with this WireGuard key (X25519). Without
    /// [`with_quic`](Self::with_quic) all links use WireGuard. All 32-byte values are valid keys.
    /// [`update`](LinkSet::update) adds the links.
    #[must_use]
    pub fn new(private_key: [u8; 32]) -> Self {
        let wireguard = WireGuard::new(private_key);
        Self {
            public_key: wireguard.public_key(),
            transports: vec![AnyTransport::WireGuard(Box::new(wireguard))],
            pin: None,
            links: Vec::new(),
            in_use: Vec::new(),
            monitor_at: None,
            events: VecDeque::new(),
            lane: 0,
            mtu: DEFAULT_MTU,
            probes: Probes::default(),
            probe: Box::new([0; MAX_PROBE_LEN]),
            fragmented: 0,
            reassembled: Vec::new(),
            advertisements: AdvertisementStats::default(),
            health: None,
            health_statements: AdvertisementStats::default(),
            gone: BTreeMap::new(),
        }
    }

    /// Adds QUIC. `key` is the agent's private key in PKCS #8, `seed` a secret random number. Must be called before
    /// [`of_lane`](Self::of_lane) and [`with_second_port`](Self::with_second_port), because these methods only change
    /// the transports that exist already. Must also be called before the first [`update`](LinkSet::update), because
    /// QUIC knows only the links of updates after this call. A second call discards the first call's QUIC links and
    /// their settings.
    ///
    /// # Errors
    /// The key cannot be parsed, TLS 1.3 has no signature scheme for it, or its public key cannot be derived.
    pub fn with_quic(mut self, key: PrivateKeyDer<'static>, seed: [u8; 32]) -> Result<Self, rustls::Error> {
        let quic = Quic::new(key, seed)?;
        self.pin = Some(quic.pin());
        self.transports.truncate(position_of(Carrier::Quic));
        self.transports.push(AnyTransport::Quic(Box::new(quic)));
        Ok(self)
    }

    /// Sets the number of this lane, from 0; a new set belongs to lane 0. A lane has sessions only with the lanes of
    /// the same number at other agents. The UDP port of a lane is the port of the agent's lane 0 plus the lane's number
    /// (D15). Must be called before the first [`update`](LinkSet::update). Dead-peer detection and the exchange of
    /// routes run only in lane 0.
    #[must_use]
    pub fn of_lane(mut self, lane: u16) -> Self {
        self.lane = lane;
        for transport in &mut self.transports {
            transport.set_lane(lane);
        }
        self
    }

    /// Records that the agent has a second UDP port, for QUIC alone (D6). Datagrams to second ports of peers are sent
    /// from this port.
    #[must_use]
    pub fn with_second_port(mut self) -> Self {
        for transport in &mut self.transports {
            transport.set_second_port();
        }
        self
    }

    /// The agent's WireGuard public key, which peers must pin.
    #[must_use]
    pub const fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The pin of the agent's QUIC key, which peers must have in their configuration; `None` without QUIC.
    #[must_use]
    pub const fn pin(&self) -> Option<KeyPin> {
        self.pin
    }

    /// Advertises `table`, the result of [`encode`](crate::routing::encode), to the peer of a link, in place of the
    /// earlier table (D11). If the link is in use and has a session, the table is sent within 50 ms, or sooner after
    /// [`advertise_now`](Self::advertise_now). The table is repeated until the peer confirms it, and is sent again if
    /// the peer has restarted. An empty `table` withdraws all routes. The call is ignored if the link is unknown, the
    /// table is longer than 512 KiB, or it equals the earlier table of the link. Only lane 0 sends tables. An
    /// [`update`](LinkSet::update) that keeps the link keeps its table.
    pub fn advertise(&mut self, link: LinkIndex, table: Arc<[u8]>) {
        let entry = self.links.get_mut(link.get());
        if let Some(sync) = entry.and_then(|entry| entry.sync_mut(Topic::Routes)) {
            sync.advertise(table);
        }
    }

    /// Makes the next [`handle_timeout`](LinkSet::handle_timeout) due immediately, which sends the pending route
    /// advertisements. Does nothing if no link is in use.
    pub fn advertise_now(&mut self, now: Instant) {
        self.monitor_at = self.monitor_at.map(|_| now);
    }

    /// Counters of the route advertisements that were received since the set was created.
    #[must_use]
    pub const fn advertisements(&self) -> AdvertisementStats {
        self.advertisements
    }

    /// Sets whether the peer of a link may advertise routes; at first it may not. The setting survives an
    /// [`update`](LinkSet::update) that keeps the link. Only lane 0 exchanges routes, and only with agents, so `true`
    /// has no effect in other lanes and for third-party devices. [`configure`](LinkSet::configure) calls this method
    /// for all links. `false` discards a received table that was not reported yet, and later advertisements count as
    /// refused. The call is ignored if the link is unknown.
    pub fn accept_routes(&mut self, link: LinkIndex, accepts: bool) {
        if let Some(entry) = self.links.get_mut(link.get()) {
            let accepts = accepts && self.lane == 0 && !entry.third_party;
            entry.accept(Topic::Routes, accepts);
        }
    }

    /// Records the MTU of the TUN device, in bytes. Probes search for a path MTU up to this value. The value is not
    /// checked. [`configure`](LinkSet::configure) calls this method.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    /// Sets the intervals and counts by which failed links are detected (D19). Links in use apply them at once. The
    /// values are not checked. [`configure`](LinkSet::configure) calls this method.
    pub fn set_probes(&mut self, probes: Probes) {
        self.probes = probes;
        for monitor in self.links.iter_mut().filter_map(LinkEntry::monitor_mut) {
            monitor.set_probes(probes);
        }
    }

    /// Starts to establish this lane's session with a peer that lane 0 has reached, because this lane may get packets
    /// for the peer soon. Sends nothing: the handshake goes out with the next
    /// [`handle_timeout`](LinkSet::handle_timeout) or [`flush`](LinkSet::flush). Starts no session in lane 0, or if the
    /// peer is unknown, if it has no lane of this number, or if a session with it is up or being established.
    pub fn prepare_session(&mut self, peer: &AgentId, now: Instant) {
        if let Some(link) = self.position(peer) {
            self.is_ready(link, now);
        }
    }

    /// Takes over the peer's endpoint that lane 0 has learned from received datagrams. `to` is the endpoint of the
    /// peer's lane 0; the port of the peer's lane with this lane's number is computed from it. Does nothing for unknown
    /// peers.
    pub fn set_endpoint(&mut self, peer: &AgentId, to: SocketAddr) {
        if let Some(link) = self.position(peer) {
            for transport in &mut self.transports {
                transport.set_endpoint(link, to);
            }
        }
    }

    /// The endpoints from which authentic WireGuard datagrams of peers came last, for
    /// [`remember_endpoints`](Self::remember_endpoints) after a restart. In a lane other than 0, the ports are those of
    /// the peers' lanes with the same number. If a peer has sent none yet, its entry is the endpoint of
    /// [`remember_endpoints`](Self::remember_endpoints), or is missing.
    #[must_use]
    pub fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        let endpoints = self.transports.iter().map(AnyTransport::endpoints);
        endpoints.flatten().collect()
    }

    /// Sets the endpoints that peers had before a restart, as lane 0 returned them. When a peer in `endpoints` is
    /// configured, its link starts with this endpoint instead of the configured one. Must be called before the first
    /// [`update`](LinkSet::update). A later call replaces the endpoints of the same peers. Names are not checked;
    /// endpoints of peers that are never configured have no effect.
    pub fn remember_endpoints(&mut self, endpoints: &BTreeMap<AgentId, SocketAddr>) {
        for transport in &mut self.transports {
            transport.remember_endpoints(endpoints);
        }
    }

    /// The status at `now` of the links that were used or are always on, ordered by peer. Reads the state, and sends
    /// nothing.
    #[must_use]
    pub fn status(&self, now: Instant) -> Vec<LinkStatus> {
        let links = (0..self.links.len()).map(index_of);
        links.filter_map(|link| self.status_of(link, now)).collect()
    }

    /// The status of one link. WireGuard writes its values first. Then the transport in use, if it is QUIC, replaces the
    /// values that it knows.
    fn status_of(&self, link: LinkIndex, now: Instant) -> Option<LinkStatus> {
        let entry = self.links.get(link.get())?;
        let carrier = entry.carrier();
        let mut status = LinkStatus::new(entry.peer.clone());
        let base = self.transports.first();
        if !base.is_some_and(|base| base.describe(link, now, &mut status)) && entry.last_used.is_none() {
            return None;
        }
        if carrier != Carrier::WireGuard
            && let Some(transport) = self.transport(carrier)
        {
            transport.describe(link, now, &mut status);
        }
        status.transport = carrier;
        status.mtu = self.limit_of(link).map(|limit| limit.min(self.mtu));
        (status.rx_packets, status.rx_bytes) = (entry.rx.packets, entry.rx.bytes);
        (status.tx_packets, status.tx_bytes) = (entry.tx.packets, entry.tx.bytes);
        if let Some(liveness) = entry.monitor.as_deref().map(|monitor| monitor.of(carrier)) {
            let rtt = liveness.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0);
            status.rtt_ms = rtt.or(status.rtt_ms);
            status.loss = liveness.loss(now).map(|(share, _)| share);
        }
        Some(status)
    }

    fn transport(&self, carrier: Carrier) -> Option<&AnyTransport> {
        self.transports.get(position_of(carrier))
    }

    fn transport_mut(&mut self, carrier: Carrier) -> Option<&mut AnyTransport> {
        self.transports.get_mut(position_of(carrier))
    }

    /// Records that a packet was sent or received. From now on the link is monitored.
    fn mark_used(&mut self, link: LinkIndex, now: Instant) {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        entry.last_used = Some(now);
        if entry.monitor.is_none() {
            entry.monitor = Some(Box::new(LinkMonitor::new(self.probes)));
            self.in_use.push(link);
            self.monitor_at.get_or_insert(now + MONITOR_INTERVAL);
        }
    }

    /// Sends a packet that fits the path over the transport `carrier`. If this transport has no session, it starts to
    /// establish one.
    fn send(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Sealed {
        let Some(transport) = self.transport_mut(carrier) else {
            return Sealed::Dropped(DropReason::LinkDown);
        };
        if let Ok(sealed) = transport.seal(link, packet, outer, now, tx) {
            return sealed;
        }
        if !self.connect(link, carrier, now) {
            return Sealed::Dropped(DropReason::LinkDown);
        }
        self.transport_mut(carrier)
            .and_then(|transport| transport.seal(link, packet, outer, now, tx).ok())
            .unwrap_or(Sealed::Dropped(DropReason::LinkDown))
    }

    /// Starts to establish a session over the transport `carrier`. Returns `false` if no endpoint is known, or the
    /// transport allows no attempt now.
    fn connect(&mut self, link: LinkIndex, carrier: Carrier, now: Instant) -> bool {
        let entry = self.links.get(link.get());
        let hint = PathHint {
            endpoint: self.transports.iter().find_map(|transport| transport.endpoint(link)),
            max_packet: entry.and_then(|entry| entry.limit_below(self.mtu)),
        };
        self.transport_mut(carrier)
            .is_some_and(|transport| transport.connect(link, hint, now))
    }

    /// The monitor of a link, if it is in use.
    fn monitor_mut(&mut self, link: LinkIndex) -> Option<&mut LinkMonitor> {
        self.links.get_mut(link.get())?.monitor_mut()
    }

    /// Longest packet that a link carries without fragmentation now, in bytes. QUIC discovers the path MTU itself, and
    /// knows this length; for WireGuard the length is the result of probes. `None`: no limit is known.
    fn limit_of(&self, link: LinkIndex) -> Option<u16> {
        let entry = self.links.get(link.get())?;
        let transport = self.transport(entry.carrier())?;
        if transport.discovers_path_mtu() {
            transport.max_packet(link)
        } else {
            entry.path_limit
        }
    }

    /// Sends a packet that is too long for the path in fragments of at most `limit` bytes. If one fragment cannot be
    /// sent, the rest is not sent either.
    fn send_fragmented(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        (limit, outer): (u16, Outer),
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Sealed {
        self.fragmented = self.fragmented.wrapping_add(1);
        let mut sealed = Sealed::Sent;
        let fits = fragment::split(packet, usize::from(limit), self.fragmented, |fragment| {
            if sealed == Sealed::Sent {
                sealed = self.send(link, carrier, fragment, outer, now, tx);
            }
        });
        if fits {
            sealed
        } else {
            Sealed::Dropped(DropReason::TooBig)
        }
    }

    /// Copies the packet whose last fragment has just arrived to the start of the buffer, and returns its range.
    /// `None`: there is no such packet, or it does not fit.
    fn take_reassembled(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        let len = self.reassembled.len();
        let room = buffer.get_mut(..len).filter(|_| len > 0)?;
        room.copy_from_slice(&self.reassembled);
        self.reassembled.clear();
        Some(0..len)
    }

    fn position(&self, peer: &AgentId) -> Option<LinkIndex> {
        let found = self.links.binary_search_by(|entry| entry.peer.cmp(peer));
        found.ok().map(index_of)
    }
}

impl LinkSet for SecureLinks {
    fn update(&mut self, links: &[Link], now: Instant) {
        // Events that still wait in the transports concern the links of the previous configuration, so they are
        // converted to events of links before the update.
        self.take_transport_events();
        for transport in &mut self.transports {
            transport.update(links, now);
        }
        let mut before: BTreeMap<AgentId, LinkEntry> = self.links.drain(..).map(|e| (e.peer.clone(), e)).collect();
        let mut known: BTreeSet<&AgentId> = BTreeSet::new();
        let has_quic = self.transport(Carrier::Quic).is_some();
        for link in links {
            // A peer with the same name and another key is another peer, so the state of the earlier peer is dropped.
            let earlier = before.remove(&link.peer);
            let has_same_key = earlier.as_ref().is_some_and(|entry| entry.is_with(link));
            if has_same_key {
                known.insert(&link.peer);
            }
            let mut entry = match earlier {
                Some(same) if has_same_key && same.transport == link.transport => same,
                Some(other) => {
                    let mut entry = LinkEntry::new(link);
                    // Meter-6: counters belong to the name.
                    entry.continue_counters(&other);
                    entry
                }
                None => LinkEntry::new(link),
            };
            if let Some(health) = self.health.as_ref().filter(|_| !link.third_party) {
                entry.health().advertise(health.clone());
            }
            entry.has_quic = link.quic.is_some() && has_quic;
            entry.reconfigure(link);
            if entry.always_on && entry.monitor.is_none() && self.lane == 0 {
                entry.monitor = Some(Box::new(LinkMonitor::new(self.probes)));
                self.monitor_at.get_or_insert(now + MONITOR_INTERVAL);
            }
            self.links.push(entry);
        }
        before.into_values().for_each(|removed| self.keep_traffic(removed));
        self.events.retain(|event| known.contains(event.peer()));
        let in_use = self
            .links
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.monitor.is_some());
        self.in_use = in_use.map(|(position, _)| index_of(position)).collect();
    }

    fn configure(&mut self, tables: &Tables) {
        self.set_mtu(tables.mtu);
        self.set_probes(tables.probes);
        for (position, link) in tables.links.iter().enumerate() {
            self.accept_routes(index_of(position), link.advertises);
        }
        let owners: BTreeSet<LinkIndex> = tables.front_ends.owner_links().collect();
        for link in (0..self.links.len()).map(index_of) {
            let owns = owners.contains(&link);
            if let Some(entry) = self.links.get_mut(link.get()) {
                entry.set_owns_back_ends(owns);
            }
            // D36: an agent is believed about its own back ends only, so other agents need not state anything.
            self.accept_health(link, owns);
        }
    }

    fn is_ready(&mut self, link: LinkIndex, now: Instant) -> bool {
        let Some(entry) = self.links.get(link.get()).filter(|_| self.lane > 0) else {
            return true;
        };
        // D15: the peer has no lane of this number.
        if self.lane >= entry.peer_lanes {
            return false;
        }
        if entry.monitor.is_none() {
            self.update_readiness(link, now);
        }
        let Some((false, carrier)) = self
            .links
            .get(link.get())
            .map(|entry| (entry.is_ready, entry.carrier()))
        else {
            return true;
        };
        self.mark_used(link, now);
        if self
            .transport(carrier)
            .is_some_and(|transport| transport.needs_connect(link))
        {
            self.connect(link, carrier, now);
        }
        false
    }

    fn seal(&mut self, link: LinkIndex, packet: &[u8], ecn: u8, now: Instant, tx: &mut impl TransmitSink) -> Sealed {
        let Some(entry) = self.links.get(link.get()) else {
            return Sealed::Dropped(DropReason::NoLink);
        };
        let carrier = entry.carrier();
        self.mark_used(link, now);
        let outer = Outer {
            ecn,
            dont_fragment: false,
        };
        let sealed = match self.limit_of(link) {
            Some(limit) if packet.len() > usize::from(limit) => {
                self.send_fragmented(link, carrier, packet, (limit, outer), now, tx)
            }
            Some(_) | None => self.send(link, carrier, packet, outer, now, tx),
        };
        if sealed == Sealed::Sent
            && let Some(entry) = self.links.get_mut(link.get())
        {
            entry.tx.count(packet);
        }
        sealed
    }

    fn max_packet(&mut self, link: LinkIndex) -> Option<u16> {
        self.limit_of(link)
    }

    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        let is_quic = datagram.first().is_some_and(|first| *first >= FIRST_QUIC_BYTE);
        let carrier = match from.port {
            _ if is_quic => Carrier::Quic,
            Port::Lane => Carrier::WireGuard,
            Port::Quic => return Opened::Refused(DropReason::BadDatagram),
        };
        let Some(transport) = self.transport_mut(carrier) else {
            return Opened::Refused(DropReason::BadDatagram);
        };
        match transport.open(datagram, from, now, buffer, tx) {
            Opened::Packet(link, range) => {
                let packet = buffer.get(range.clone()).unwrap_or_default();
                if self.receive(link, carrier, packet, now, tx) {
                    return Opened::Packet(link, range);
                }
                self.take_reassembled(buffer)
                    .map_or(Opened::Control, |range| Opened::Packet(link, range))
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
            // Only QUIC has further packets: a datagram of WireGuard holds one packet at most.
            let (link, packet) = self.transport_mut(Carrier::Quic)?.next_packet()?;
            let Some(room) = buffer.get_mut(..packet.len()) else {
                continue;
            };
            if self.links.len() > link.get() && self.receive(link, Carrier::Quic, &packet, now, tx) {
                room.copy_from_slice(&packet);
                return Some((link, 0..packet.len()));
            }
            if let Some(range) = self.take_reassembled(buffer) {
                return Some((link, range));
            }
        }
    }

    fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        for transport in &mut self.transports {
            transport.flush(now, tx);
        }
    }

    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        for transport in &mut self.transports {
            transport.handle_timeout(now, tx);
        }
        self.take_transport_events();
        if self.monitor_at.is_some_and(|at| at <= now) {
            let mut in_use = std::mem::take(&mut self.in_use);
            in_use.retain(|link| self.monitor(*link, now, tx));
            self.in_use = in_use;
            self.monitor_at = (!self.in_use.is_empty()).then_some(now + MONITOR_INTERVAL);
            self.flush(now, tx);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let transports = self.transports.iter().filter_map(AnyTransport::poll_timeout);
        transports.chain(self.monitor_at).min()
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.take_transport_events();
        self.events.pop_front()
    }

    fn take_lost(&mut self) -> u64 {
        self.transports.iter_mut().map(AnyTransport::take_lost).sum()
    }

    fn drain(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.announce_drain(now, tx);
    }

    fn return_health(&mut self, link: LinkIndex, now: Instant) {
        self.send_health_to(link, now);
    }

    fn source_unavailable(&mut self, local: IpAddr) {
        for transport in &mut self.transports {
            transport.source_unavailable(local);
        }
    }
}
