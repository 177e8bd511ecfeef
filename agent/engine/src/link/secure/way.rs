//! What is known of one link, above its transports.

use crate::link::choice::Choice;
use crate::link::control::Echoes;
use crate::link::exchange::Exchange;
use crate::link::parts::Assembly;
use crate::link::path_mtu::PathMtu;
use std::time::Instant;
use tombolo_proto::config::{Link, Probes, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_proto::status::Carrier;

/// What is observed of a link in use.
#[derive(Default)]
pub(super) struct Observed {
    pub(super) wireguard: Echoes,
    pub(super) quic: Echoes,
    /// How long packets may be over WireGuard; QUIC finds out by itself.
    pub(super) path: PathMtu,
    pub(super) parts: Assembly,
    /// What brought the last packet, and when.
    pub(super) last: Option<(Carrier, Instant)>,
}

impl Observed {
    pub(super) fn new(probes: Probes) -> Self {
        let mut new = Self::default();
        new.wireguard.set_probes(probes);
        new.quic.set_probes(probes);
        new
    }

    pub(super) fn of(&mut self, carrier: Carrier) -> &mut Echoes {
        match carrier {
            Carrier::WireGuard => &mut self.wireguard,
            Carrier::Quic => &mut self.quic,
        }
    }
}

/// One link, above its transports.
pub(super) struct Way {
    pub(super) peer: AgentId,
    /// The keys that it has to prove.
    public_key: PublicKey,
    pin: Option<KeyPin>,
    pub(super) transport: Transport,
    /// The other end's key for QUIC is known.
    pub(super) quic: bool,
    /// Lanes of the other end (D15).
    pub(super) lanes: u16,
    pub(super) choice: Choice,
    /// Only of links that are in use.
    pub(super) observed: Option<Box<Observed>>,
    pub(super) used: Option<Instant>,
    /// Longest packet that goes whole over WireGuard, as far as is known.
    pub(super) limit: Option<u16>,
    /// Another lane than the first may send; kept up to date while it is observed.
    pub(super) ready: bool,
    /// What was said of it last.
    pub(super) up: Option<bool>,
    /// Observed without traffic too.
    pub(super) always: bool,
    /// Something may stand in for it (D19).
    pub(super) watched: bool,
    /// The other end is no agent (D16).
    pub(super) stock: bool,
    /// It is watched, and does not answer.
    pub(super) dead: bool,
    /// Routes, told and being told.
    pub(super) exchange: Exchange,
    /// Inner packets and bytes over QUIC: received, sent.
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
}

impl Way {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            peer: link.peer.clone(),
            public_key: link.public_key,
            pin: link.quic,
            transport: link.transport,
            quic: link.quic.is_some(),
            lanes: link.peer_lanes,
            choice: Choice::default(),
            observed: None,
            used: None,
            limit: None,
            ready: false,
            up: None,
            always: link.always_on && !link.third_party,
            watched: link.monitored,
            stock: link.third_party,
            dead: false,
            exchange: Exchange::default(),
            packets: [0; 2],
            bytes: [0; 2],
        }
    }

    /// Whether the other end is still the one of before: a first or no key for QUIC makes it no other.
    pub(super) fn is_with(&self, link: &Link) -> bool {
        let other = |(before, now)| before != now;
        self.public_key == link.public_key && !self.pin.zip(link.quic).is_some_and(other)
    }

    /// Takes what may change without a new session.
    pub(super) fn settle(&mut self, link: &Link) {
        self.pin = link.quic;
        self.always = link.always_on && !link.third_party;
        self.watched = link.monitored;
        self.stock = link.third_party;
        self.dead &= link.monitored;
    }

    pub(super) fn carrier(&self) -> Carrier {
        match self.transport {
            Transport::WireGuard => Carrier::WireGuard,
            Transport::Quic => Carrier::Quic,
            Transport::Automatic => self.choice.current(),
        }
    }

    /// The limit, where it says that the path is narrower than packets may be.
    pub(super) fn narrow(&self, mtu: u16) -> Option<u16> {
        self.limit.filter(|limit| *limit < mtu)
    }

    /// Both transports are possible.
    pub(super) fn has_choice(&self) -> bool {
        self.quic && self.transport == Transport::Automatic
    }
}
