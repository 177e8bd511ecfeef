//! One QUIC connection, and what is known of it.

use super::tls::pin_of;
use crate::link::Sealed;
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use bytes::Bytes;
use quinn_proto::{Event, SendDatagramError, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::time::Instant;
use tombolo_proto::id::KeyPin;

/// Something that a connection said.
pub(super) enum Heard {
    /// Nothing more.
    Nothing,
    /// The other end has proven to hold this key.
    Established(Option<KeyPin>),
    /// It is over; whether it was established before, and why it ended.
    Lost(bool, String),
    /// The other end is elsewhere.
    Moved(SocketAddr),
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
    /// Longest packet that it takes now, bytes.
    pub(super) max_packet: Option<u16>,
    remote: SocketAddr,
}

impl Connection {
    pub(super) fn new(inner: quinn_proto::Connection, pin: Option<KeyPin>, link: Option<LinkIndex>) -> Self {
        Self {
            remote: inner.remote_address(),
            inner,
            link,
            pin,
            over: false,
            established: None,
            dirty: false,
            timer: None,
            max_packet: None,
        }
    }

    /// The key of the other end, once it is known.
    pub(super) fn pin(&self) -> Option<KeyPin> {
        self.pin
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
                    return Heard::Lost(self.established.take().is_some(), reason.to_string());
                }
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramReceived | Event::DatagramsUnblocked => {}
            }
        }
        let remote = self.inner.remote_address();
        if remote != self.remote {
            self.remote = remote;
            return Heard::Moved(remote);
        }
        Heard::Nothing
    }
}
