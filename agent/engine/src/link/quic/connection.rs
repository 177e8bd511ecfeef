//! One QUIC connection and its state.

use super::tls::pin_of;
use crate::buffer::Path;
use crate::link::Sealed;
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use bytes::Bytes;
use quinn_proto::{Event, SendDatagramError, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::id::KeyPin;

/// A handshake that takes longer is given up: time for three transmissions of the first flight at quinn's initial
/// timeout of one second, doubled each time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that happened to a connection.
pub(super) enum ConnectionEvent {
    /// The handshake is complete: the peer has proven to hold this key.
    Established(Option<KeyPin>),
    /// The connection ended, not by this end, for this reason.
    Lost(String),
    /// The peer migrated to this path.
    PathChanged(Path),
}

/// A connection.
pub(super) struct Connection {
    pub(super) inner: quinn_proto::Connection,
    /// Its link; `None`: not known yet, or not configured any more.
    pub(super) link: Option<LinkIndex>,
    /// The key that the peer has proven, or has to prove.
    pin: Option<KeyPin>,
    /// Closed by either end, or given up: it carries no more packets.
    pub(super) over: bool,
    /// Since when it carries packets.
    pub(super) established: Option<Instant>,
    /// It may have something to send.
    pub(super) dirty: bool,
    /// The timer that is set for it.
    pub(super) timer: Option<Instant>,
    /// When the handshake is given up; `None`: it is complete or over.
    pub(super) deadline: Option<Instant>,
    /// While the handshake of a peer is in progress: the peer's network, if the address was validated.
    pub(super) half_open: Option<IpAddr>,
    /// Longest packet that it takes now, bytes.
    pub(super) max_packet: Option<u16>,
    /// The peer's address, and the address and port of this agent that the peer uses.
    pub(super) path: Path,
}

impl Connection {
    pub(super) fn new(
        inner: quinn_proto::Connection,
        path: Path,
        pin: Option<KeyPin>,
        link: Option<LinkIndex>,
        now: Instant,
    ) -> Self {
        Self {
            path,
            inner,
            link,
            pin,
            over: false,
            established: None,
            dirty: false,
            timer: None,
            deadline: Some(now + HANDSHAKE_TIMEOUT),
            half_open: None,
            max_packet: None,
        }
    }

    /// The key that the peer has proven, or has to prove; `None`: the peer opened the connection and has proven none
    /// yet.
    pub(super) fn pin(&self) -> Option<KeyPin> {
        self.pin
    }

    /// When its timers, or its handshake's deadline, are due.
    pub(super) fn timeout(&mut self) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| !self.over);
        self.inner.poll_timeout().into_iter().chain(deadline).min()
    }

    /// Closes it, with a reason for the peer.
    pub(super) fn close(&mut self, now: Instant, why: &'static str) {
        self.over = true;
        self.inner
            .close(now, VarInt::from_u32(0), Bytes::from_static(why.as_bytes()));
    }

    /// Updates `max_packet`, which path MTU discovery changes.
    pub(super) fn update_max_packet(&mut self) {
        let max_size = self.inner.datagrams().max_size();
        self.max_packet = max_size.map(|size| size.try_into().unwrap_or(u16::MAX));
    }

    /// Queues a packet. If the queue is full, its oldest packet is dropped.
    pub(super) fn send(&mut self, packet: Bytes) -> Sealed {
        match self.inner.datagrams().send(packet, true) {
            Ok(()) => Sealed::Sent,
            Err(SendDatagramError::TooLarge) => Sealed::Dropped(DropReason::TooBig),
            Err(_) => Sealed::Dropped(DropReason::LinkDown),
        }
    }

    /// The next event.
    pub(super) fn poll_event(&mut self, now: Instant) -> Option<ConnectionEvent> {
        while let Some(event) = self.inner.poll() {
            match event {
                Event::Connected => {
                    self.established = Some(now);
                    self.update_max_packet();
                    let peer = self.inner.crypto_session().peer_identity();
                    let keys = peer.and_then(|p| p.downcast::<Vec<CertificateDer<'static>>>().ok());
                    self.pin = keys.and_then(|keys| keys.first().map(|k| pin_of(k)));
                    return Some(ConnectionEvent::Established(self.pin));
                }
                Event::ConnectionLost { .. } if self.over => {}
                Event::ConnectionLost { reason } => {
                    self.over = true;
                    self.established = None;
                    return Some(ConnectionEvent::Lost(reason.to_string()));
                }
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramReceived | Event::DatagramsUnblocked => {}
            }
        }
        let remote = self.inner.remote_address();
        if remote != self.path.remote {
            self.path.remote = remote;
            return Some(ConnectionEvent::PathChanged(self.path));
        }
        None
    }

    /// Takes the contents of a datagram, which came over the path `from`. If they are authentic, answers leave by the
    /// same address and port of this agent: those of an old path may have stopped working.
    pub(super) fn handle(&mut self, event: quinn_proto::ConnectionEvent, from: Path) {
        let here = (from.local, from.port);
        if (self.path.local, self.path.port) == here || self.established.is_none() {
            return self.inner.handle_event(event);
        }
        let before = self.authentic_frames();
        self.inner.handle_event(event);
        if self.authentic_frames() != before {
            (self.path.local, self.path.port) = here;
        }
    }

    /// A count that grows with every authentic packet: each has at least one of these frames.
    fn authentic_frames(&self) -> u64 {
        let f = self.inner.stats().frame_rx;
        f.datagram + f.acks + f.ping + f.immediate_ack + f.path_challenge + f.path_response + f.new_connection_id
    }
}
