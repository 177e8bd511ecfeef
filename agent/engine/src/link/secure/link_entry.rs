//! One link as [`SecureLinks`](super::SecureLinks) keeps it, above its transports.

use crate::link::choice::Choice;
use crate::link::fragment::Reassembly;
use crate::link::liveness::Liveness;
use crate::link::path_mtu::PathMtu;
use crate::link::route_sync::RouteSync;
use crate::link::transport::{CARRIERS, position_of};
use std::time::Instant;
use tombolo_proto::config::{Link, Probes, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::Carrier;

/// What is measured about a link in use.
#[derive(Default)]
pub(super) struct LinkMonitor {
    /// By position in [`CARRIERS`].
    liveness: [Liveness; CARRIERS.len()],
    /// The path MTU, for transports that do not find it themselves.
    pub(super) path_mtu: PathMtu,
    pub(super) reassembly: Reassembly,
    /// Which transport brought the last packet, and when.
    pub(super) last_rx: Option<(Carrier, Instant)>,
}

impl LinkMonitor {
    pub(super) fn new(probes: Probes) -> Self {
        let mut new = Self::default();
        new.set_probes(probes);
        new
    }

    pub(super) fn set_probes(&mut self, probes: Probes) {
        for liveness in &mut self.liveness {
            liveness.set_probes(probes);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a position in CARRIERS, as long as the array")]
    pub(super) const fn of(&self, carrier: Carrier) -> &Liveness {
        &self.liveness[position_of(carrier)]
    }

    #[expect(clippy::indexing_slicing, reason = "a position in CARRIERS, as long as the array")]
    pub(super) const fn of_mut(&mut self, carrier: Carrier) -> &mut Liveness {
        &mut self.liveness[position_of(carrier)]
    }

    /// Forgets past answers: the peer has to answer for a while before its link is used again, as after silence.
    pub(super) fn forget_answers(&mut self) {
        for liveness in &mut self.liveness {
            liveness.forget_answers();
        }
    }
}

/// Inner packets and bytes in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Traffic {
    pub(super) const fn count(&mut self, packet: &[u8]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }
}

/// One link.
pub(super) struct LinkEntry {
    pub(super) peer: AgentId,
    /// The keys that the peer has to prove.
    public_key: PublicKey,
    pin: Option<KeyPin>,
    pub(super) transport: Transport,
    /// Both ends have keys for QUIC.
    pub(super) has_quic: bool,
    /// Number of lanes of the peer (D15).
    pub(super) peer_lanes: u16,
    pub(super) choice: Choice,
    /// Present while the link is in use.
    pub(super) monitor: Option<Box<LinkMonitor>>,
    /// When the last packet went or came.
    pub(super) last_used: Option<Instant>,
    /// Longest packet that the path carries whole where the transport does not know it, bytes; `None`: no limit is
    /// known.
    pub(super) path_limit: Option<u16>,
    /// Another lane than 0 may send: it has a session, and the peer is not silent. Current while there is a monitor.
    pub(super) is_ready: bool,
    /// The state that was reported last.
    pub(super) reported_up: Option<bool>,
    /// Monitored also without traffic.
    pub(super) always_on: bool,
    /// Another link can take over, so silence is reported at once (D19).
    pub(super) monitored: bool,
    /// The peer is a third-party device, not an agent (D16).
    pub(super) third_party: bool,
    /// The link is monitored, and the peer does not answer.
    pub(super) is_dead: bool,
    pub(super) route_sync: RouteSync,
    /// Traffic over QUIC; WireGuard counts its own.
    pub(super) rx: Traffic,
    pub(super) tx: Traffic,
}

impl LinkEntry {
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
            third_party: link.third_party,
            is_dead: false,
            route_sync: RouteSync::default(),
            rx: Traffic::default(),
            tx: Traffic::default(),
        }
    }

    /// Whether the peer is the one of before. A QUIC key that is added or removed does not make it another.
    pub(super) fn is_with(&self, link: &Link) -> bool {
        let differ = |(before, now)| before != now;
        self.public_key == link.public_key && !self.pin.zip(link.quic).is_some_and(differ)
    }

    /// Takes those parts of a configuration that need no new session.
    pub(super) fn reconfigure(&mut self, link: &Link) {
        self.pin = link.quic;
        self.always_on = link.always_on && !link.third_party;
        self.monitored = link.monitored;
        self.third_party = link.third_party;
        self.is_dead &= link.monitored;
        self.peer_lanes = link.peer_lanes;
    }

    /// The transport that packets go over.
    pub(super) fn carrier(&self) -> Carrier {
        match self.transport {
            Transport::WireGuard => Carrier::WireGuard,
            Transport::Quic => Carrier::Quic,
            Transport::Automatic => self.choice.current(),
        }
    }

    /// The path's limit, if it is lower than the device's MTU.
    pub(super) fn limit_below(&self, mtu: u16) -> Option<u16> {
        self.path_limit.filter(|limit| *limit < mtu)
    }

    /// Whether either transport may be used.
    pub(super) fn has_choice(&self) -> bool {
        self.has_quic && self.transport == Transport::Automatic
    }

    pub(super) fn monitor_mut(&mut self) -> Option<&mut LinkMonitor> {
        self.monitor.as_deref_mut()
    }
}
