//! The state of one link in [`SecureLinks`](super::SecureLinks), independent of its transports.

use crate::health::MAX_STATEMENT_LEN;
use crate::link::choice::Choice;
use crate::link::fragment::Reassembly;
use crate::link::in_band::Message;
use crate::link::liveness::Liveness;
use crate::link::path_mtu::PathMtu;
use crate::link::table_sync::TableSync;
use crate::link::transport::{CARRIERS, position_of};
use std::time::Instant;
use tombolo_proto::config::{Link, Probes, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::{Carrier, Volume};

/// The kinds of tables that agents exchange inside links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Routes (D11).
    Routes,
    /// The health of back ends (D36).
    Health,
}

impl Topic {
    /// All topics.
    pub(super) const ALL: [Self; 2] = [Self::Routes, Self::Health];

    /// The message in which tables of this topic are sent.
    pub(super) const fn message(self) -> Message {
        match self {
            Self::Routes => Message::Routes,
            Self::Health => Message::Health,
        }
    }
}

/// The measurements of a link in use.
#[derive(Default)]
pub(super) struct LinkMonitor {
    /// The echoes over each transport, by position in [`CARRIERS`].
    liveness: [Liveness; CARRIERS.len()],
    /// The path MTU, for transports that do not discover it.
    pub(super) path_mtu: PathMtu,
    pub(super) reassembly: Reassembly,
    /// The transport over which the last packet came, and the time at which it came.
    pub(super) last_rx: Option<(Carrier, Instant)>,
}

impl LinkMonitor {
    /// Creates the measurements of a link on which nothing was measured yet.
    pub(super) fn new(probes: Probes) -> Self {
        let mut new = Self::default();
        new.set_probes(probes);
        new
    }

    /// Sets the interval of echoes, and the number of unanswered echoes after which the peer counts as silent, for both
    /// transports.
    pub(super) fn set_probes(&mut self, probes: Probes) {
        for liveness in &mut self.liveness {
            liveness.set_probes(probes);
        }
    }

    /// The echoes over one transport.
    #[expect(clippy::indexing_slicing, reason = "a position in CARRIERS, as long as the array")]
    pub(super) const fn of(&self, carrier: Carrier) -> &Liveness {
        &self.liveness[position_of(carrier)]
    }

    /// The echoes over one transport, so that the caller can change them.
    #[expect(clippy::indexing_slicing, reason = "a position in CARRIERS, as long as the array")]
    pub(super) const fn of_mut(&mut self, carrier: Carrier) -> &mut Liveness {
        &mut self.liveness[position_of(carrier)]
    }

    /// Starts to count answered echoes from zero, as after a silence. The peer must then answer for a while before the
    /// link is up again.
    pub(super) fn forget_answers(&mut self) {
        for liveness in &mut self.liveness {
            liveness.forget_answers();
        }
    }
}

/// Number of inner packets in one direction, and the sum of their lengths in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Traffic {
    /// Counts a packet and its bytes.
    pub(super) const fn count(&mut self, packet: &[u8]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }
}

/// The state of one link.
pub(super) struct LinkEntry {
    pub(super) peer: AgentId,
    /// The keys that the peer must prove to hold: its WireGuard key, and its QUIC key if it has one.
    public_key: PublicKey,
    pin: Option<KeyPin>,
    pub(super) transport: Transport,
    /// Whether both ends have keys for QUIC, so that the link can use it.
    pub(super) has_quic: bool,
    /// Number of lanes of the peer (D15).
    pub(super) peer_lanes: u16,
    pub(super) choice: Choice,
    /// The measurements; present only while the link is in use.
    pub(super) monitor: Option<Box<LinkMonitor>>,
    /// Time at which the last packet was sent or received.
    pub(super) last_used: Option<Instant>,
    /// Longest packet that the path carries without fragmentation, in bytes, as found by probes; `None`: no limit is
    /// known.
    pub(super) path_limit: Option<u16>,
    /// Whether this lane, if it is not lane 0, may send over the link: it has a session, and the peer is not silent.
    /// The value is updated while the link has a monitor.
    pub(super) is_ready: bool,
    /// The state that was reported to the owner last: `true` is up. `None`: none was reported.
    pub(super) reported_up: Option<bool>,
    /// Whether the link is monitored even without traffic.
    pub(super) always_on: bool,
    /// Whether another path can replace this link. If so, the peer's silence is reported at once (D19).
    pub(super) monitored: bool,
    /// Whether the peer owns back ends of load balancers that this agent reaches. If so, its silence is reported too,
    /// because the flows of its back ends must end then (D36).
    pub(super) owns_back_ends: bool,
    /// Whether the peer is a third-party device instead of an agent (D16).
    pub(super) third_party: bool,
    /// Whether the link is down because the peer does not answer or is about to stop. It becomes true only while the
    /// link's failures are [detected](Self::detects_failure). It stays true until the peer answers again, because the owner
    /// was told that the link is down.
    pub(super) is_dead: bool,
    route_sync: TableSync,
    /// The exchange of the health of back ends; `None`: neither end has had a back end that the other end knows.
    health_sync: Option<Box<TableSync>>,
    /// The packets of the engine that have passed, over either transport. Messages between agents do not count.
    pub(super) rx: Traffic,
    pub(super) tx: Traffic,
    /// The part of `rx` and `tx` that [`take_volume`](Self::take_volume) has returned.
    taken: Volume,
}

impl LinkEntry {
    /// Creates the state of a link that was never used.
    pub(super) fn new(link: &Link) -> Self {
        Self {
            peer: link.peer.clone(),
            public_key: link.public_key,
            pin: link.quic,
            transport: link.transport,
            has_quic: link.quic.is_some(),
            peer_lanes: link.peer_lanes,
            choice: Choice::default(),
            monitor: None,
            last_used: None,
            path_limit: None,
            is_ready: false,
            reported_up: None,
            always_on: link.always_on && !link.third_party,
            monitored: link.monitored,
            owns_back_ends: false,
            third_party: link.third_party,
            is_dead: false,
            route_sync: TableSync::of_routes(),
            health_sync: None,
            rx: Traffic::default(),
            tx: Traffic::default(),
            taken: Volume::default(),
        }
    }

    /// Continues the counters of an earlier link with a peer of the same name.
    pub(super) const fn continue_counters(&mut self, earlier: &Self) {
        (self.rx, self.tx, self.taken) = (earlier.rx, earlier.tx, earlier.taken);
    }

    /// What has passed since the last call.
    pub(super) fn take_volume(&mut self) -> Volume {
        let now = Volume {
            rx_bytes: self.rx.bytes,
            tx_bytes: self.tx.bytes,
            rx_packets: self.rx.packets,
            tx_packets: self.tx.packets,
        };
        now.beyond(std::mem::replace(&mut self.taken, now))
    }

    /// Whether the peer in `link` has the same keys as before. A QUIC key that was added or removed makes no
    /// difference.
    pub(super) fn is_with(&self, link: &Link) -> bool {
        let differ = |(before, now)| before != now;
        self.public_key == link.public_key && !self.pin.zip(link.quic).is_some_and(differ)
    }

    /// Applies those settings of a new configuration that can change while sessions continue.
    pub(super) fn reconfigure(&mut self, link: &Link) {
        self.pin = link.quic;
        self.always_on = link.always_on && !link.third_party;
        self.monitored = link.monitored;
        self.third_party = link.third_party;
        self.peer_lanes = link.peer_lanes;
    }

    /// Sets whether the peer owns back ends of load balancers.
    pub(super) const fn set_owns_back_ends(&mut self, owns: bool) {
        self.owns_back_ends = owns && !self.third_party;
    }

    /// The exchange of the tables of a topic; `None`: this end exchanges none.
    pub(super) fn sync_mut(&mut self, topic: Topic) -> Option<&mut TableSync> {
        match topic {
            Topic::Routes => Some(&mut self.route_sync),
            Topic::Health => self.health_sync.as_deref_mut(),
        }
    }

    /// Sets whether the peer may advertise tables of a topic.
    pub(super) fn accept(&mut self, topic: Topic, accepts: bool) {
        if topic == Topic::Health && accepts {
            self.health();
        }
        if let Some(sync) = self.sync_mut(topic) {
            sync.accept(accepts);
        }
    }

    /// The exchange of the health of back ends, which begins now if there was none.
    pub(super) fn health(&mut self) -> &mut TableSync {
        let new = || Box::new(TableSync::new(MAX_STATEMENT_LEN, true));
        self.health_sync.get_or_insert_with(new)
    }

    /// Whether a table of the peer waits until the rate limit allows its report.
    pub(super) fn has_table(&self) -> bool {
        self.route_sync.has_table() || self.health_sync.as_ref().is_some_and(|sync| sync.has_table())
    }

    /// Whether the peer has not confirmed the health of this agent's back ends, although it has asked for it.
    pub(super) fn is_health_unconfirmed(&self) -> bool {
        self.health_sync.as_ref().is_some_and(|sync| sync.is_unconfirmed())
    }

    /// Whether the link is down as soon as the peer does not answer (D19).
    pub(super) const fn detects_failure(&self) -> bool {
        self.monitored || self.owns_back_ends
    }

    /// The transport over which the link's packets are sent.
    pub(super) fn carrier(&self) -> Carrier {
        match self.transport {
            Transport::WireGuard => Carrier::WireGuard,
            Transport::Quic => Carrier::Quic,
            Transport::Automatic => self.choice.current(),
        }
    }

    /// The longest packet that the path carries without fragmentation, in bytes, if it is shorter than `mtu`, the MTU
    /// of the TUN device.
    pub(super) fn limit_below(&self, mtu: u16) -> Option<u16> {
        self.path_limit.filter(|limit| *limit < mtu)
    }

    /// Whether the link may use WireGuard and QUIC.
    pub(super) fn has_choice(&self) -> bool {
        self.has_quic && self.transport == Transport::Automatic
    }

    /// The measurements; `None`: the link is not in use.
    pub(super) fn monitor_mut(&mut self) -> Option<&mut LinkMonitor> {
        self.monitor.as_deref_mut()
    }
}
