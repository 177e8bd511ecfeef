//! All encrypted links of one engine, behind few verbs.

// What strangers and peers send is read here, and links come and go with the configuration: no place is taken for granted.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(feature = "links")]
mod choice;
#[cfg(feature = "links")]
mod control;
#[cfg(feature = "links")]
mod exchange;
#[cfg(all(test, feature = "links"))]
mod golden;
#[cfg(feature = "links")]
mod parts;
#[cfg(feature = "links")]
mod path_mtu;
#[allow(
    clippy::indexing_slicing,
    reason = "for tests and simulations, whose datagrams are their own"
)]
mod plain;
#[cfg(feature = "links")]
mod quic;
#[cfg(feature = "links")]
pub mod secure;
#[cfg(feature = "links")]
pub mod wireguard;

pub use plain::PlainLinks;

use crate::buffer::{Path, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tombolo_proto::config::{Link, Probes};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{Carrier, LinkStatus};

/// What became of a packet that was to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// On its way, or waiting for the handshake to end.
    Sent,
    /// Not sent.
    Dropped(DropReason),
}

/// What a datagram held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A packet, in this part of the caller's buffer.
    Packet(LinkIndex, Range<usize>),
    /// A handshake, a keepalive: dealt with.
    Control,
    /// Nothing that may be used.
    Refused(DropReason),
}

/// Something that others may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session came up.
    Up(AgentId),
    /// The last session is gone, or handshakes fail.
    Down(AgentId),
    /// The other end is reached at another address now.
    Moved(AgentId, SocketAddr),
    /// Packets go over another transport now, and why.
    Switched(AgentId, Carrier, String),
    /// The other end told this table, whole ([`LinkSet::tell`]).
    Told(AgentId, Vec<u8>),
}

impl Event {
    /// The other end of the link that it is about.
    #[must_use]
    pub const fn peer(&self) -> &AgentId {
        match self {
            Self::Up(peer)
            | Self::Down(peer)
            | Self::Moved(peer, _)
            | Self::Switched(peer, ..)
            | Self::Told(peer, _) => peer,
        }
    }
}

/// Writes a datagram.
#[cfg(feature = "links")]
fn commit(tx: &mut impl TransmitSink, to: Path, datagram: &[u8]) {
    if let Some(slot) = tx.reserve(to, datagram.len()).get_mut(..datagram.len()) {
        slot.copy_from_slice(datagram);
        tx.commit(datagram.len());
    }
}

/// What became of route advertisements since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdvertisementStats {
    /// Complete tables that were not the newest one known.
    pub received: u64,
    /// Tables that were acted on ([`Event::Told`]).
    pub applied: u64,
    /// Tables that were not, because the sender changed its mind before their time had come.
    pub superseded: u64,
    /// Messages of ends that have no routes to advertise.
    pub refused: u64,
    /// Messages that are no part of a table, and tables that no table is made of.
    pub malformed: u64,
}

/// A position in the configuration as an index.
#[cfg(feature = "links")]
#[expect(clippy::cast_possible_truncation, reason = "tables have at most MAX_LINKS links")]
const fn index_of(position: usize) -> LinkIndex {
    LinkIndex(position as u32)
}

/// The set of links. Two implementations: `SecureLinks` (the product), [`PlainLinks`] (tests and simulations).
pub trait LinkSet {
    /// Opens, keeps and closes links; positions become [`LinkIndex`]es. Sessions whose keys stay the same go on.
    fn update(&mut self, links: &[Link], now: Instant);

    /// From now on the other end is to be told this table, whole and again whenever it may have lost it (D11).
    fn tell(&mut self, _link: LinkIndex, _table: Arc<[u8]>) {}

    /// What is to be told goes out with the next [`handle_timeout`](Self::handle_timeout), which is due now.
    fn hurry(&mut self, _now: Instant) {}

    /// Longest packet that the device hands over, bytes.
    fn set_mtu(&mut self, _mtu: u16) {}

    /// Whether the other end may advertise routes from now on; after an [`update`](Self::update) what was said before holds for links
    /// that stay. At first it may not.
    fn accept_routes(&mut self, _link: LinkIndex, _accepts: bool) {}

    /// What became of route advertisements so far.
    fn advertisements(&self) -> AdvertisementStats {
        AdvertisementStats::default()
    }

    /// How the silence of a link is noticed (D19).
    fn set_probes(&mut self, _probes: Probes) {}

    /// Plain → wire.
    fn seal(&mut self, link: LinkIndex, packet: &[u8], now: Instant, tx: &mut impl TransmitSink) -> Sealed;

    /// Whether this lane may send on a link; if not, the first lane does ([`TransmitSink::hand_over`]), and this one tries
    /// to get a session.
    fn is_ready(&mut self, _link: LinkIndex, _now: Instant) -> bool {
        true
    }

    /// Longest packet that a link takes now, bytes; none: any.
    fn max_packet(&mut self, _link: LinkIndex) -> Option<u16> {
        None
    }

    /// Wire → plain, into `buffer`, which must be at least as long as the datagram and 256 bytes.
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened;

    /// A further packet of the datagrams that were opened, in this part of the buffer.
    fn next_packet(
        &mut self,
        _now: Instant,
        _buffer: &mut [u8],
        _tx: &mut impl TransmitSink,
    ) -> Option<(LinkIndex, Range<usize>)> {
        None
    }

    /// The end of a batch: what was held back for it leaves.
    fn flush(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink);

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The next event.
    fn poll_event(&mut self) -> Option<Event>;

    /// Links that were used or are always on, ordered by peer.
    fn status(&self, now: Instant) -> Vec<LinkStatus>;

    /// Where peers are reached now, for keeping over a restart.
    fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr>;

    /// Packets that [`seal`](Self::seal) took and that were dropped since the last call, because no handshake ended well.
    fn take_lost(&mut self) -> u64;

    /// Says on all links that this end is about to stop: those with another way take it at once.
    fn leave(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Nothing can be sent from this address of ours any more.
    fn local_refused(&mut self, _local: IpAddr) {}

    /// The first lane reaches this peer now, and packets for it may come to this lane: it gets a session before they do.
    fn expect(&mut self, _peer: &AgentId, _now: Instant) {}

    /// The first lane heard a peer at this address.
    fn moved(&mut self, _peer: &AgentId, _to: SocketAddr) {}

    /// Endpoints known from before a restart: used where policy gives none, or until something better is learned.
    fn remember_endpoints(&mut self, endpoints: &BTreeMap<AgentId, SocketAddr>);
}
