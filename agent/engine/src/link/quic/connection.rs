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

/// A handshake that takes longer than this is given up. The time is enough for three transmissions of the first flight,
/// because quinn repeats it after one second and then after two more.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A change of a connection that its owner must handle.
pub(super) enum ConnectionEvent {
    /// The handshake is complete, and the peer has proven to hold this key. `None`: it has shown no key.
    Established(Option<KeyPin>),
    /// The peer or a timeout ended the connection. The text is the reason.
    Lost(String),
    /// The peer sends from another address or port; this is the new path.
    PathChanged(Path),
}

/// A QUIC connection with one peer.
pub(super) struct Connection {
    pub(super) inner: quinn_proto::Connection,
    /// The link that the connection belongs to. `None`: a peer opened the connection and has not proven its key yet,
    /// the peer is not configured any more, or the connection is over.
    pub(super) link: Option<LinkIndex>,
    /// The key that the peer has proven, or must prove.
    pin: Option<KeyPin>,
    /// Whether the connection was closed by either end, or was lost. If so, it carries no more packets.
    pub(super) over: bool,
    /// Time at which the connection was established. `None`: its handshake is in progress or has failed, or the
    /// connection was lost.
    pub(super) established: Option<Instant>,
    /// Whether the connection may have datagrams to send.
    pub(super) dirty: bool,
    /// The time of the connection's entry in `Quic::timers`; `None`: it has no entry.
    pub(super) timer: Option<Instant>,
    /// Time at which the handshake is given up; `None`: the handshake has succeeded or failed.
    pub(super) deadline: Option<Instant>,
    /// The peer's network, if the peer started the handshake from a validated address and the handshake is still in
    /// progress.
    pub(super) half_open: Option<IpAddr>,
    /// Longest packet that the connection carries now, in bytes; `None`: it carries no packets yet.
    pub(super) max_packet: Option<u16>,
    /// The peer's address and port, and the address and port of this agent to which the peer sends.
    pub(super) path: Path,
}

impl Connection {
    /// Creates the state of a connection whose handshake starts now. `pin` and `link` belong to the peer to which this
    /// end connects. Both are `None` for a connection that a peer opened.
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

    /// The key that the peer has proven to hold, or must prove to hold. `None`: the peer opened the connection and has
    /// not proven a key yet.
    pub(super) fn pin(&self) -> Option<KeyPin> {
        self.pin
    }

    /// The time at which the connection's next timer or the deadline of its handshake is due; `None`: no timer runs.
    pub(super) fn timeout(&mut self) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| !self.over);
        self.inner.poll_timeout().into_iter().chain(deadline).min()
    }

    /// Closes the connection, and marks it as over. The peer receives `why` with the next flush.
    pub(super) fn close(&mut self, now: Instant, why: &'static str) {
        self.over = true;
        self.inner
            .close(now, VarInt::from_u32(0), Bytes::from_static(why.as_bytes()));
    }

    /// Updates `max_packet`, because path MTU discovery may have changed it.
    pub(super) fn update_max_packet(&mut self) {
        let max_size = self.inner.datagrams().max_size();
        self.max_packet = max_size.map(|size| size.try_into().unwrap_or(u16::MAX));
    }

    /// Queues a packet. If the queue is full, its oldest packet is dropped; no counter counts that packet. `Dropped`:
    /// the packet is longer than the connection carries, or the peer accepts no datagrams.
    pub(super) fn send(&mut self, packet: Bytes) -> Sealed {
        match self.inner.datagrams().send(packet, true) {
            Ok(()) => Sealed::Sent,
            Err(SendDatagramError::TooLarge) => Sealed::Dropped(DropReason::TooBig),
            Err(_) => Sealed::Dropped(DropReason::LinkDown),
        }
    }

    /// Removes and returns the next event of quinn's connection; `None` if there is none. Updates the state of this
    /// value accordingly.
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

    /// Handles the contents of a datagram that came on the path `from`. If the contents are authentic, later datagrams
    /// to the peer are sent from the address and port of this agent at which this datagram arrived, because the earlier
    /// address or port may have stopped working.
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

    /// The number of received frames of the kinds that are added up here. Each authentic packet has at least one such
    /// frame, so the number grows with each authentic packet. quinn has no other way to show that a packet was
    /// authentic.
    fn authentic_frames(&self) -> u64 {
        let f = self.inner.stats().frame_rx;
        f.datagram + f.acks + f.ping + f.immediate_ack + f.path_challenge + f.path_response + f.new_connection_id
    }
}
