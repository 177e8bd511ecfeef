//! All encrypted links of one engine, behind one trait.

// Datagrams of strangers and of peers are parsed here, and links come and go with the configuration: no index is
// trusted.
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
mod route_sync;
#[cfg(feature = "links")]
pub mod secure;
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
    /// The packet is on its way, or queued until the handshake ends.
    Sent,
    /// The packet was not sent.
    Dropped(DropReason),
}

/// The contents of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A packet from this link, in this part of the caller's buffer.
    Packet(LinkIndex, Range<usize>),
    /// A handshake, a keepalive, or packets for [`LinkSet::next_packet`].
    Control,
    /// Nothing that may be used.
    Refused(DropReason),
}

/// A change that the owner acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The link has a session and its peer answers.
    Up(AgentId),
    /// The last session is gone, handshakes fail, or the peer is silent or drains (D19).
    Down(AgentId),
    /// The peer sends from another address or port.
    EndpointChanged(AgentId, SocketAddr),
    /// Packets go over another transport, for this reason.
    Switched(AgentId, Carrier, String),
    /// The peer advertises this table of routes, complete (D11).
    RoutesReceived(AgentId, Vec<u8>),
}

impl Event {
    /// The other end of the link that the event is about.
    #[must_use]
    pub const fn peer(&self) -> &AgentId {
        match self {
            Self::Up(peer)
            | Self::Down(peer)
            | Self::EndpointChanged(peer, _)
            | Self::Switched(peer, ..)
            | Self::RoutesReceived(peer, _) => peer,
        }
    }
}

/// Writes a datagram.
#[cfg(feature = "links")]
fn commit(tx: &mut impl TransmitSink, transmit: &Transmit, datagram: &[u8]) {
    if let Some(slot) = tx.reserve(transmit, datagram.len()).get_mut(..datagram.len()) {
        slot.copy_from_slice(datagram);
        tx.commit(datagram.len());
    }
}

/// Counters of route advertisements since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdvertisementStats {
    /// Complete tables that were new.
    pub received: u64,
    /// Tables that were reported ([`Event::RoutesReceived`]).
    pub applied: u64,
    /// Tables that were not reported, because the peer replaced or withdrew them before their time had come.
    pub superseded: u64,
    /// Messages of peers that may not advertise routes.
    pub refused: u64,
    /// Messages that are no part of a table, and tables whose digest is wrong.
    pub malformed: u64,
}

/// A position in the configuration as an index.
#[cfg(feature = "links")]
#[expect(clippy::cast_possible_truncation, reason = "tables have at most MAX_LINKS links")]
const fn index_of(position: usize) -> LinkIndex {
    LinkIndex(position as u32)
}

/// A set of links, as an [`Engine`](crate::engine::Engine) drives it. There are two: `SecureLinks`, the product's, and
/// [`PlainLinks`] for tests and simulations.
///
/// Implementations are sans-IO: time is an argument and never goes back, datagrams go into a [`TransmitSink`].
pub trait LinkSet {
    /// Takes a new configuration: opens, keeps and closes links. Their positions become [`LinkIndex`]es. Sessions
    /// survive while the keys stay the same.
    fn update(&mut self, links: &[Link], now: Instant);

    /// Takes from the tables of the same configuration what holds for links: MTU, probes, and which peers may advertise
    /// routes. To be called after [`update`](Self::update).
    fn configure(&mut self, _tables: &Tables) {}

    /// Whether this lane may send on a link. If not, the packet is for lane 0
    /// ([`RedirectSink`](crate::buffer::RedirectSink)), and this lane tries to establish a session.
    fn is_ready(&mut self, _link: LinkIndex, _now: Instant) -> bool {
        true
    }

    /// Longest packet that a link takes now, bytes; `None`: no limit is known.
    fn max_packet(&mut self, _link: LinkIndex) -> Option<u16> {
        None
    }

    /// Seals a packet and sends it, or queues it until there is a session. `ecn` is the codepoint for the outer header.
    fn seal(&mut self, link: LinkIndex, packet: &[u8], ecn: u8, now: Instant, tx: &mut impl TransmitSink) -> Sealed;

    /// Opens a datagram into `buffer`, which must have room for the datagram, and for 256 bytes. Further packets may
    /// wait for [`next_packet`](Self::next_packet), whatever the result.
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened;

    /// The next packet of the datagrams that were opened, in this part of the buffer.
    fn next_packet(
        &mut self,
        _now: Instant,
        _buffer: &mut [u8],
        _tx: &mut impl TransmitSink,
    ) -> Option<(LinkIndex, Range<usize>)> {
        None
    }

    /// Sends datagrams that were held back until the end of a batch.
    fn flush(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Serves timers that are due.
    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink);

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None`: not before another call.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The next event, oldest first.
    fn poll_event(&mut self) -> Option<Event>;

    /// Number of packets that [`seal`](Self::seal) queued and that were dropped since the last call, because no
    /// handshake succeeded.
    fn take_lost(&mut self) -> u64;

    /// Announces to all peers that this agent is about to stop. Peers with another link move to it at once (D19).
    fn drain(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// The kernel sends nothing from this address of the host any more: no link uses it as source until the peer sends
    /// to it again.
    fn source_unavailable(&mut self, _local: IpAddr) {}
}
