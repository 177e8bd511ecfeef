//! The interface that WireGuard and QUIC have in common.
//!
//! A value of a transport's type holds the sessions of all links of one engine.
//! [`SecureLinks`](super::secure::SecureLinks) keeps the transports in order of preference ([`CARRIERS`]), and chooses
//! one for each link. Calls are dispatched by a `match` ([`AnyTransport`]), so that no packet costs an indirect call.

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
    /// There is no session, and none is being established.
    #[default]
    Down,
    /// A session is being established.
    Connecting {
        /// Time of the first handshake message that the peer has not answered; `None`: the transport does not measure
        /// it.
        since: Option<Instant>,
    },
    /// There is a session, on which packets can be sent.
    Up,
}

/// Something that happened to a transport's session. The event names the peer instead of a [`LinkIndex`], because an
/// index is valid only until the next [`update`](SecureTransport::update), and the event may be read later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransportEvent {
    /// The link had no session in this transport, and now has one.
    Up(AgentId),
    /// The link has lost its session in this transport, or no session can be established. The text is the reason, if
    /// the transport knows it.
    Down(AgentId, Option<String>),
    /// The peer sends from another address or port.
    EndpointChanged(AgentId, SocketAddr),
}

/// The facts that a link knows about the path to its peer. A transport that connects to the peer needs them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PathHint {
    /// The path on which another transport sends to the peer.
    pub(super) endpoint: Option<Path>,
    /// Longest packet that the path carries without fragmentation inside WireGuard, in bytes; `None`: no limit is
    /// known.
    pub(super) max_packet: Option<u16>,
}

/// The error of a call that sent nothing, because the link has no session and none is being established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoSession;

/// An encrypted transport for all links of one engine. A transport does no input and output: time is an argument, and
/// datagrams go into a [`TransmitSink`].
pub(super) trait SecureTransport {
    /// Whether the transport discovers the path MTU. If not, [`PathMtu`](super::path_mtu::PathMtu) does so by probes
    /// inside the link.
    const DISCOVERS_PATH_MTU: bool;

    /// Takes the links of a new configuration; their positions become [`LinkIndex`]es. A session survives if the keys
    /// of its link stay the same.
    fn update(&mut self, links: &[Link], now: Instant);

    /// Sets the number of this lane, from 0. This lane has sessions with the lane of the same number at other agents.
    /// The UDP port of a lane is the port of the agent's lane 0 plus the lane's number (D15). Must be called before the
    /// first [`update`](Self::update).
    fn set_lane(&mut self, lane: u16);

    /// Records that this agent has a second UDP port, for QUIC alone (D6).
    fn set_second_port(&mut self) {}

    /// Whether the transport has a session for a link.
    fn session(&self, link: LinkIndex) -> SessionState;

    /// Whether [`connect`](Self::connect) is useful now. With QUIC, this is so if the link has no connection and none
    /// is being opened. With WireGuard, it is so if an endpoint is known, no handshake is requested or in progress, and
    /// the last one has not failed; there may be a session, which may not work any more.
    fn needs_connect(&self, link: LinkIndex) -> bool;

    /// Starts to establish a session, in addition to existing ones; the handshake goes out with the next
    /// [`handle_timeout`](Self::handle_timeout) or [`flush`](Self::flush). Returns `false`, and does nothing, if no
    /// endpoint is known or if the transport allows no further attempt now.
    fn connect(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool;

    /// Ends all sessions of a link. QUIC sends `reason` to the peer with the next flush; WireGuard has no such message.
    fn close(&mut self, link: LinkIndex, now: Instant, reason: &'static str);

    /// Longest inner packet that the session carries now, in bytes; `None`: no limit is known.
    fn max_packet(&self, _link: LinkIndex) -> Option<u16> {
        None
    }

    /// The path on which datagrams to the peer are sent, if the transport knows a path even without a session.
    fn endpoint(&self, _link: LinkIndex) -> Option<Path> {
        None
    }

    /// Takes over the peer's endpoint that another lane has learned from received datagrams. `to` is the endpoint of
    /// the peer's lane 0.
    fn set_endpoint(&mut self, _link: LinkIndex, _to: SocketAddr) {}

    /// The endpoints from which authentic datagrams of peers came last, for
    /// [`remember_endpoints`](Self::remember_endpoints) after a restart.
    fn endpoints(&self) -> BTreeMap<AgentId, SocketAddr> {
        BTreeMap::new()
    }

    /// Sets the endpoints that peers had before this agent restarted. The peers' links start with these endpoints. Must
    /// be called before the first [`update`](Self::update).
    fn remember_endpoints(&mut self, _endpoints: &BTreeMap<AgentId, SocketAddr>) {}

    /// Encrypts a packet, and writes it into `tx` now or with the next [`flush`](Self::flush). If a session is being
    /// established, queues the packet instead. `NoSession`: nothing was done with the packet, and
    /// [`connect`](Self::connect) is needed.
    fn seal(
        &mut self,
        link: LinkIndex,
        packet: &[u8],
        outer: Outer,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Result<Sealed, NoSession>;

    /// Decrypts a datagram into `buffer`. Packets of this datagram or of earlier ones may wait for
    /// [`next_packet`](Self::next_packet).
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened;

    /// Removes and returns the next packet of the datagrams that were opened, oldest first; `None` if none is left.
    fn next_packet(&mut self) -> Option<(LinkIndex, Bytes)> {
        None
    }

    /// Writes the datagrams into `tx` that were held back until the end of a batch.
    fn flush(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    /// Runs the timers that are due at `now`.
    fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink);

    /// The time at which [`handle_timeout`](Self::handle_timeout) is due next; `None`: no timer runs.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Removes and returns the oldest event.
    fn poll_event(&mut self) -> Option<TransportEvent>;

    /// Writes the transport's view of a link into `status`. Returns `false`, and writes nothing, if the transport has
    /// no values for the link.
    fn describe(&self, link: LinkIndex, now: Instant, status: &mut LinkStatus) -> bool;

    /// Number of packets that [`seal`](Self::seal) queued and that were dropped since the last call of this method.
    fn take_lost(&mut self) -> u64;

    /// Records that the kernel does not accept `local` as a source address any more, because the host has lost this
    /// address. No path uses `local` as its source address until the path's peer sends to `local` again.
    fn source_unavailable(&mut self, local: IpAddr);
}

/// One of the two transports. Its methods are those of [`SecureTransport`].
pub(super) enum AnyTransport {
    WireGuard(Box<WireGuard>),
    Quic(Box<Quic>),
}

/// Calls the same method of either transport.
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
