//! The links of one engine. The trait [`LinkSet`] is implemented by the encrypted links of the product, and by plain
//! links for tests.

// Datagrams from peers and from unknown senders are parsed in this module, and the configuration may add and remove
// links at any time. So no index is trusted: an index out of range must not panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(feature = "links")]
mod choice;
#[cfg(feature = "links")]
mod fragment;
#[cfg(all(test, feature = "links"))]
mod golden;
#[cfg(feature = "links")]
mod in_band;
#[cfg(feature = "links")]
mod liveness;
#[cfg(feature = "links")]
mod path_mtu;
#[allow(
    clippy::indexing_slicing,
    reason = "for tests and simulations, which make the datagrams themselves"
)]
mod plain;
#[cfg(feature = "links")]
mod quic;
#[cfg(feature = "links")]
pub mod secure;
#[cfg(feature = "links")]
mod table_sync;
#[cfg(feature = "links")]
mod transport;
#[cfg(feature = "links")]
mod wireguard;

pub use plain::PlainLinks;

#[cfg(feature = "links")]
use crate::buffer::Transmit;
use crate::buffer::{Path, TransmitSink};
use crate::tables::{LinkIndex, Tables};
use crate::verdict::DropReason;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;
use tombolo_proto::config::Link;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::Carrier;

/// The result of sealing a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// The packet was written into the transmit sink, or it is queued until the handshake ends or the next `flush`.
    Sent,
    /// The packet was dropped, for this reason.
    Dropped(DropReason),
}

/// The contents of a received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A packet from this link. It lies in this range of the caller's buffer.
    Packet(LinkIndex, Range<usize>),
    /// The datagram has put no packet into the buffer: it held a handshake, a keepalive, a message between agents or a
    /// fragment, or its packets wait for [`LinkSet::next_packet`].
    Control,
    /// The datagram was ignored, for this reason.
    Refused(DropReason),
}

/// A change of a link that the owner of the engine acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The link has a session and its peer answers.
    Up(AgentId),
    /// The link cannot be used: its last session has ended, its handshakes fail, its peer is silent, or its peer is
    /// about to stop (D19).
    Down(AgentId),
    /// The peer now sends from another address or port, which the event holds. From now on packets for the peer go to
    /// this address and port.
    EndpointChanged(AgentId, SocketAddr),
    /// From now on the link sends packets over this transport instead of the other one. The text is the reason, for
    /// people.
    Switched(AgentId, Carrier, String),
    /// The peer advertises this table of routes in place of its earlier ones (D11). The bytes are untrusted input for
    /// [`decode`](crate::routing::decode).
    RoutesReceived(AgentId, Vec<u8>),
    /// The peer states the health of its back ends, in place of its earlier statement (D36). The bytes are untrusted input
    /// for [`HealthSources::receive`](crate::health::HealthSources::receive).
    HealthReceived(AgentId, Vec<u8>),
}

impl Event {
    /// The peer of the link that the event is about.
    #[must_use]
    pub const fn peer(&self) -> &AgentId {
        match self {
            Self::Up(peer)
            | Self::Down(peer)
            | Self::EndpointChanged(peer, _)
            | Self::Switched(peer, ..)
            | Self::RoutesReceived(peer, _)
            | Self::HealthReceived(peer, _) => peer,
        }
    }
}

/// Writes a complete datagram into the sink. Does nothing if the slot is too short.
#[cfg(feature = "links")]
fn commit(tx: &mut impl TransmitSink, transmit: &Transmit, datagram: &[u8]) {
    if let Some(slot) = tx.reserve(transmit, datagram.len()).get_mut(..datagram.len()) {
        slot.copy_from_slice(datagram);
        tx.commit(datagram.len());
    }
}

/// Counters of the tables of one kind, routes or health, that this engine has received since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdvertisementStats {
    /// Complete tables that differ from the one before.
    pub received: u64,
    /// Tables that were reported to the owner ([`Event::RoutesReceived`], [`Event::HealthReceived`]).
    pub applied: u64,
    /// Tables that were not reported, because the peer replaced them before the rate limit allowed the report, or
    /// because they equal the table that was reported last.
    pub superseded: u64,
    /// Messages that were not permitted, and whose contents were not read: advertisements of peers that may not
    /// advertise, and confirmations of peers to which this agent advertises nothing.
    pub refused: u64,
    /// Messages that cannot be decoded, and tables whose digest is wrong.
    pub malformed: u64,
}

/// Converts a position in the configuration's list of links to an index.
#[cfg(feature = "links")]
#[expect(clippy::cast_possible_truncation, reason = "tables have at most MAX_LINKS links")]
const fn index_of(position: usize) -> LinkIndex {
    LinkIndex(position as u32)
}

/// A set of links, which an [`Engine`](crate::engine::Engine) drives. There are two implementations: `SecureLinks` for
/// agents, and [`PlainLinks`] for tests and simulations.
///
/// Implementations do no input and output, and their methods never block. Time is an argument and never goes back;
/// datagrams go into a [`TransmitSink`]. An index that belongs to no link has no effect.
pub trait LinkSet {
    /// Takes the links of a new configuration: opens, keeps and closes links. The positions in `links` become
    /// [`LinkIndex`]es; all earlier indices are invalid. A session survives if the keys of its link stay the same.
    /// Sends nothing.
    fn update(&mut self, links: &[Link], now: Instant);

    /// Applies the settings of links in `_tables`, which must be built from the same configuration: the MTU, the
    /// probes, which peers may advertise routes, and which own back ends. The owner calls this method after [`update`](Self::update).
    fn configure(&mut self, _tables: &Tables) {}

    /// Whether this lane may send on a link. If not, the packet is for lane 0
    /// ([`RedirectSink`](crate::buffer::RedirectSink)), and this lane starts to establish a session unless an attempt
    /// is in progress. Always true in lane 0.
    fn is_ready(&mut self, _link: LinkIndex, _now: Instant) -> bool {
        true
    }

    /// Longest packet that a link carries without fragmentation now, in bytes. `None`: no limit is known.
    fn max_packet(&mut self, _link: LinkIndex) -> Option<u16> {
        None
    }

    /// Encrypts a packet into `tx`. Without a session, queues the packet instead and starts a handshake, whose first
    /// datagram goes into `tx` now or with the next [`flush`](Self::flush). `ecn`, 0 to 3, is the ECN field for the
    /// outer header. A packet longer than [`max_packet`](Self::max_packet) is sent in fragments inside the link.
    fn seal(&mut self, link: LinkIndex, packet: &[u8], ecn: u8, now: Instant, tx: &mut impl TransmitSink) -> Sealed;

    /// Decrypts a received datagram into `buffer`, which must be at least as long as the datagram. The buffer must also
    /// have at least 256 bytes, because answers are built in the buffer. `from` is the path of the datagram. Answers,
    /// such as handshakes, go into `tx`. Whatever the result is, packets of this datagram or of earlier ones may wait
    /// for [`next_packet`](Self::next_packet).
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened;

    /// Removes the next packet of the datagrams that were opened, and copies the packet to the start of `buffer`, which
    /// must be long enough. Returns its link and its range in the buffer; `None`: no packet is left.
    fn next_packet(
        &mut self,
        _now: Instant,
        _buffer: &mut [u8],
        _tx: &mut impl TransmitSink,
    ) -> Option<(LinkIndex, Range<usize>)> {
        None
    }

    /// Writes the datagrams into `tx` that were held back until the end of a batch.
    fn flush(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Runs the timers that are due at `now`; if none is due, at most writes the datagrams that [`flush`](Self::flush)
    /// would write.
    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink);

    /// The time at which [`handle_timeout`](Self::handle_timeout) is due next; `None`: no timer runs. Any other call
    /// may change it.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Removes and returns the oldest event; `None` if there is none.
    fn poll_event(&mut self) -> Option<Event>;

    /// Number of packets that [`seal`](Self::seal) queued and that were dropped since the last call of this method,
    /// because no handshake succeeded or the link was removed.
    fn take_lost(&mut self) -> u64;

    /// Writes into `tx`, for each peer with a session, a message that says that this agent is about to stop. A peer
    /// that has another link to the same destinations then uses that link at once (D19).
    fn drain(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Sends the peer of a link the health of this agent's back ends, unless the peer has confirmed it: the peer has chosen
    /// a back end that is down (D36). Called in lane 0 only, at a limited rate. Sends nothing yet: the message, or a
    /// handshake for it, goes out with the next [`handle_timeout`](Self::handle_timeout), which becomes due.
    fn return_health(&mut self, _link: LinkIndex, _now: Instant) {}

    /// Records that the kernel does not accept `local` as a source address any more, because the host has lost this
    /// address. No link uses `local` as its source address until the link's peer sends a datagram to `local` again.
    fn source_unavailable(&mut self, _local: IpAddr) {}
}
