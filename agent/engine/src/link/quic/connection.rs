//! One QUIC connection, and what is known of it.

use super::tls::pin_of;
use crate::buffer::Path;
use crate::link::Sealed;
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use bytes::Bytes;
use quinn_proto::{ConnectionEvent, Event, SendDatagramError, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::id::KeyPin;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that a connection said.
pub(super) enum Heard {
    /// Nothing more.
    Nothing,
    /// The other end has proven to hold this key.
    Established(Option<KeyPin>),
    /// It is over, and why it ended.
    Lost(String),
    /// The other end is elsewhere.
    Moved(Path),
}

/// A connection.
pub(super) struct Connection {
    pub(super) inner: quinn_proto::Connection,
    /// Whose it is; none: not known yet, or not in the configuration any more.
    pub(super) link: Option<LinkIndex>,
    /// The key that the other end has, or must have.
    pin: Option<KeyPin>,
    /// Closed by either end, or given up: it carries nothing more.
    pub(super) over: bool,
    /// Since when it carries packets.
    pub(super) established: Option<Instant>,
    /// May have something to send.
    pub(super) dirty: bool,
    /// The timer that is set.
    pub(super) timer: Option<Instant>,
    /// When it is given up, while its handshake is under way.
    pub(super) deadline: Option<Instant>,
    /// The network that the other end opened it from, if that was shown, while its handshake is under way.
    pub(super) half_open: Option<IpAddr>,
    /// Longest packet that it takes now, bytes.
    pub(super) max_packet: Option<u16>,
    /// Where the other end is, and where it is answered from.
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

    /// The key of the other end, once it is known.
    pub(super) fn pin(&self) -> Option<KeyPin> {
        self.pin
    }

    /// When its timers are due.
    pub(super) fn timeout(&mut self) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| !self.over);
        self.inner.poll_timeout().into_iter().chain(deadline).min()
    }

    /// Ends it, in words for the other end.
    pub(super) fn close(&mut self, now: Instant, why: &'static str) {
        self.over = true;
        self.inner
            .close(now, VarInt::from_u32(0), Bytes::from_static(why.as_bytes()));
    }

    /// Looks how long packets may be now.
    pub(super) fn measure(&mut self) {
        let most = self.inner.datagrams().max_size();
        self.max_packet = most.map(|most| most.try_into().unwrap_or(u16::MAX));
    }

    /// Queues a packet.
    pub(super) fn send(&mut self, packet: Bytes) -> Sealed {
        match self.inner.datagrams().send(packet, true) {
            Ok(()) => Sealed::Sent,
            Err(SendDatagramError::TooLarge) => Sealed::Dropped(DropReason::TooBig),
            Err(_) => Sealed::Dropped(DropReason::LinkDown),
        }
    }

    /// What happened since it was asked last.
    pub(super) fn hear(&mut self, now: Instant) -> Heard {
        while let Some(event) = self.inner.poll() {
            match event {
                Event::Connected => {
                    self.established = Some(now);
                    self.measure();
                    let peer = self.inner.crypto_session().peer_identity();
                    let keys = peer.and_then(|p| p.downcast::<Vec<CertificateDer<'static>>>().ok());
                    self.pin = keys.and_then(|keys| keys.first().map(|k| pin_of(k)));
                    return Heard::Established(self.pin);
                }
                Event::ConnectionLost { .. } if self.over => {}
                Event::ConnectionLost { reason } => {
                    self.over = true;
                    self.established = None;
                    return Heard::Lost(reason.to_string());
                }
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramReceived | Event::DatagramsUnblocked => {}
            }
        }
        let remote = self.inner.remote_address();
        if remote != self.path.remote {
            self.path.remote = remote;
            return Heard::Moved(self.path);
        }
        Heard::Nothing
    }

    /// Takes what a datagram held; `from` is the way that it came. What is genuine is answered from where it came in.
    pub(super) fn handle(&mut self, event: ConnectionEvent, from: Path) {
        let here = (from.local, from.port);
        if (self.path.local, self.path.port) == here || self.established.is_none() {
            return self.inner.handle_event(event);
        }
        let before = self.genuine();
        self.inner.handle_event(event);
        if self.genuine() != before {
            (self.path.local, self.path.port) = here;
        }
    }

    /// Counts with every packet that was authenticated.
    fn genuine(&self) -> u64 {
        let f = self.inner.stats().frame_rx;
        f.datagram + f.acks + f.ping + f.immediate_ack + f.path_challenge + f.path_response + f.new_connection_id
    }
}
