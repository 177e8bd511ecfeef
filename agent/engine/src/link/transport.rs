//! What WireGuard and QUIC have in common, as the links see it.
//!
//! A transport serves all links of one engine. [`SecureLinks`](super::secure::SecureLinks) keeps the transports in
//! order of preference ([`CARRIERS`]), and its monitor chooses one for each link. Dispatch is static: packets cause no
//! indirect call.

use super::quic::Quic;
use super::wireguard::WireGuard;
use super::{Opened, Sealed};
use crate::buffer::{Outer, Path, TransmitSink};
use crate::tables::LinkIndex;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use tombolo_proto::config::Link;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{Carrier, LinkStatus};

/// The transports of a link, the preferred one first (D6).
pub(super) const CARRIERS: [Carrier; 2] = [Carrier::WireGuard, Carrier::Quic];

/// The position of a transport in [`CARRIERS`].
pub(super) const fn position_of(carrier: Carrier) -> usize {
    match carrier {
        Carrier::WireGuard => 0,
        Carrier::Quic => 1,
    }
}

/// Whether a transport can carry packets of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum SessionState {
    /// It has no session, and establishes none.
    #[default]
    Down,
    /// It establishes a session.
    Connecting {
        /// Since when the peer does not answer, if the transport measures that.
        since: Option<Instant>,
    },
    /// It has a session.
    Up,
}

/// Something that happened to a transport's session. It names the peer: a [`LinkIndex`] is valid until the next
/// [`update`](SecureTransport::update) only, and events may be read later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransportEvent {
    /// The first session is up.
    Up(AgentId),
    /// The last session is gone, or none can be established; with the reason if the transport knows it.
    Down(AgentId, Option<String>),
    /// The peer sends from another address or port.
    EndpointChanged(AgentId, SocketAddr),
}

/// What a link knows about the path to its peer, for a transport that connects.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PathHint {
    /// Where another transport reaches the peer.
    pub(super) endpoint: Option<Path>,
    /// Longest packet that the path carries whole inside WireGuard, bytes; `None`: no limit is known.
    pub(super) max_packet: Option<u16>,
}

/// There is no session, nor is one being established: nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoSession;

/// An encrypted transport for all links of one engine. Sans-IO: time is an argument, datagrams go into a
/// [`TransmitSink`].
pub(super) trait SecureTransport {
    /// Whether the transport finds the path MTU by itself. If not, the link probes for it.
    const DISCOVERS_PATH_MTU: bool;

    /// Takes a new configuration; positions become [`LinkIndex`]es. Sessions of unchanged keys survive.
    fn update(&mut self, links: &[Link], now: Instant);

    /// Selects a lane: its sessions are with the same lane of other agents, whose ports follow one another (D15).
    fn set_lane(&mut self, lane: u16);

    /// The agent has a second UDP port (D6).
    fn set_second_port(&mut self) {}

    /// Whether the transport has a session for a link.
    fn session(&self, link: LinkIndex) -> SessionState;

    /// Whether [`connect`](Self::connect) is needed to get a session: none is up or in progress, and no attempt has
    /// just failed.
    fn needs_connect(&self, link: LinkIndex) -> bool;

    /// Starts to establish a session, beside those that exist. Returns `false` if no endpoint is known, or a handshake
    /// is in progress.
    fn connect(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool;

    /// Ends all sessions of a link, with a reason for the peer.
    fn close(&mut self, link: LinkIndex, now: Instant, reason: &'static str);

    /// Longest inner packet that the session takes now, bytes; `None`: no limit is known.
    fn max_packet(&self, _link: LinkIndex) -> Option<u16> {
        None
    }

    /// Where datagrams for the peer go, if the transport knows that without a session.
    fn endpoint(&self, _link: LinkIndex) -> Option<Path> {
        None
    }

    /// Sets the endpoint at which another lane has received from the peer.
    fn set_endpoint(&mut self, _link: LinkIndex, _to: SocketAddr) {}

    /// The endpoints that peers have sent from, for [`remember_endpoints`](Self::remember_endpoints) after a restart.
    fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        BTreeMap::new()
    }

    /// Endpoints from before a restart.
    fn remember_endpoints(&mut self, _endpoints: &BTreeMap<AgentId, SocketAddr>) {}

    /// Seals a packet and sends it now or with the next [`flush`](Self::flush), or queues it for a session that is
    /// being established.
    fn seal(
        &mut self,
        link: LinkIndex,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Result<Sealed, NoSession>;

    /// Opens a datagram into `buffer`. Further packets wait for [`next_packet`](Self::next_packet).
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened;

    /// The next packet of the datagrams that were opened.
    fn next_packet(&mut self) -> Option<(LinkIndex, Bytes)> {
        None
    }

    /// Sends what was held back until the end of a batch.
    fn flush(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Serves timers that are due.
    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink);

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The next event.
    fn poll_event(&mut self) -> Option<TransportEvent>;

    /// Writes what the transport knows about a link into its status. Returns `false`, and writes nothing, if it was
    /// never used for the link.
    fn describe(&self, link: LinkIndex, now: Instant, status: &mut LinkStatus) -> bool;

    /// Packets that [`seal`](Self::seal) queued and that were dropped since the last call.
    fn take_lost(&mut self) -> u64;

    /// The kernel sends nothing from this address of the host any more.
    fn source_unavailable(&mut self, local: IpAddr);
}

/// One of the transports.
pub(super) enum AnyTransport {
    WireGuard(Box<WireGuard>),
    Quic(Box<Quic>),
}

/// Calls the same method of whichever transport it is.
macro_rules! dispatch {
    ($any:expr, $transport:ident => $call:expr) => {
        match $any {
            Self::WireGuard($transport) => $call,
            Self::Quic($transport) => $call,
        }
    };
}

impl AnyTransport {
    pub(super) const fn discovers_path_mtu(&self) -> bool {
        match self {
            Self::WireGuard(_) => WireGuard::DISCOVERS_PATH_MTU,
            Self::Quic(_) => Quic::DISCOVERS_PATH_MTU,
        }
    }

    pub(super) fn update(&mut self, links: &[Link], now: Instant) {
        dispatch!(self, t => t.update(links, now));
    }

    pub(super) fn set_lane(&mut self, lane: u16) {
        dispatch!(self, t => t.set_lane(lane));
    }

    pub(super) fn set_second_port(&mut self) {
        dispatch!(self, t => t.set_second_port());
    }

    pub(super) fn session(&self, link: LinkIndex) -> SessionState {
        dispatch!(self, t => t.session(link))
    }

    pub(super) fn needs_connect(&self, link: LinkIndex) -> bool {
        dispatch!(self, t => t.needs_connect(link))
    }

    pub(super) fn connect(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool {
        dispatch!(self, t => t.connect(link, hint, now))
    }

    pub(super) fn close(&mut self, link: LinkIndex, now: Instant, reason: &'static str) {
        dispatch!(self, t => t.close(link, now, reason));
    }

    pub(super) fn max_packet(&self, link: LinkIndex) -> Option<u16> {
        dispatch!(self, t => t.max_packet(link))
    }

    pub(super) fn endpoint(&self, link: LinkIndex) -> Option<Path> {
        dispatch!(self, t => t.endpoint(link))
    }

    pub(super) fn set_endpoint(&mut self, link: LinkIndex, to: SocketAddr) {
        dispatch!(self, t => t.set_endpoint(link, to));
    }

    pub(super) fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        dispatch!(self, t => t.endpoints())
    }

    pub(super) fn remember_endpoints(&mut self, endpoints: &BTreeMap<AgentId, SocketAddr>) {
        dispatch!(self, t => t.remember_endpoints(endpoints));
    }

    pub(super) fn seal(
        &mut self,
        link: LinkIndex,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Result<Sealed, NoSession> {
        dispatch!(self, t => t.seal(link, packet, outer, now, tx))
    }

    pub(super) fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        dispatch!(self, t => t.open(datagram, from, now, buffer, tx))
    }

    pub(super) fn next_packet(&mut self) -> Option<(LinkIndex, Bytes)> {
        dispatch!(self, t => t.next_packet())
    }

    pub(super) fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        dispatch!(self, t => t.flush(now, tx));
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        dispatch!(self, t => t.handle_timeout(now, tx));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        dispatch!(self, t => t.poll_timeout())
    }

    pub(super) fn poll_event(&mut self) -> Option<TransportEvent> {
        dispatch!(self, t => t.poll_event())
    }

    pub(super) fn describe(&self, link: LinkIndex, now: Instant, status: &mut LinkStatus) -> bool {
        dispatch!(self, t => t.describe(link, now, status))
    }

    pub(super) fn take_lost(&mut self) -> u64 {
        dispatch!(self, t => t.take_lost())
    }

    pub(super) fn source_unavailable(&mut self, local: IpAddr) {
        dispatch!(self, t => t.source_unavailable(local));
    }
}
