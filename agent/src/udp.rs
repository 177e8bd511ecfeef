//! The UDP socket of a lane: batches in both directions where the kernel has them, one datagram at a time elsewhere.

use crate::outbox::Datagrams;
use crate::sys;
use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Most batches of one receive call. Where the kernel joins nothing, a batch is one datagram.
const BATCHES: usize = 16;

/// Room for one batch, bytes: more than GRO makes of datagrams, and a multiple of a cache line.
const ROOM: usize = 1 << 16;

/// Bytes of a receive buffer. What is not used of it takes no memory.
pub const BUFFER: usize = BATCHES * ROOM;

/// Most bytes of one send: a GSO batch is a UDP payload before it is cut.
const MAX_BATCH: usize = 65_507;

/// Send buffer, bytes: a few batches, some milliseconds at gigabit speed. What finds no room waits where its sender feels
/// it.
const SEND_BUFFER: usize = 1 << 20;

/// Segmentation that was given up is tried again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The socket, bound once and kept.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Bound to `[::]` for both families; IPv4 addresses appear as mapped ones.
    dual: bool,
    /// Datagrams may be cut on their way, as the socket is set now.
    fragments: bool,
    /// Datagrams of a batch when the socket was new, and since when it is fewer.
    segments: usize,
    narrowed: Option<Instant>,
    /// Batches to ask for in the next call: as many as there were lately, and one where each is many datagrams.
    ask: usize,
    received: [RecvMeta; BATCHES],
    /// Datagrams that could not be sent.
    pub send_errors: u64,
}

/// The socket's send buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// One batch: datagrams of one source.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Length of each datagram in it; the last may be shorter. At least 1.
    pub stride: usize,
    /// Who sent them.
    pub source: SocketAddr,
    /// ECN bits of their outer header.
    pub ecn: u8,
}

/// Whether a datagram's source can be answered and looks like a host's.
#[must_use]
pub fn is_usable(source: SocketAddr) -> bool {
    source.port() != 0 && !source.ip().is_unspecified() && !source.ip().is_multicast()
}

impl Udp {
    /// Binds a port on all addresses of both families, or of IPv4 where the host has no IPv6. Needs a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, or the process may not mark packets.
    pub fn bind(port: u16, fwmark: u32, receive_buffer: usize) -> Result<Self> {
        let (socket, dual) = match Self::socket(Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port) {
            Ok(socket) => (socket, true),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                return Err(e).with_context(|| format!("listen_port: UDP port {port} is taken"));
            }
            Err(_) => {
                let socket = Self::socket(Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
                (socket.with_context(|| format!("binding UDP port {port}"))?, false)
            }
        };
        socket
            .set_mark(fwmark)
            .context("marking the UDP socket: CAP_NET_ADMIN is needed")?;
        // Beyond the host's limits, which the same capability allows as the mark.
        setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).context("receive_buffer")?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // quinn-udp forbids fragments; a tunnel rather delivers late than never.
        sys::allow_fragments(&socket, dual, true)?;
        Ok(Self {
            segments: state.max_gso_segments(),
            socket,
            state,
            dual,
            fragments: true,
            narrowed: None,
            ask: 1,
            received: [RecvMeta::default(); BATCHES],
            send_errors: 0,
        })
    }

    fn socket(domain: Domain, address: IpAddr, port: u16) -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(address, port).into())?;
        Ok(socket)
    }

    /// Datagrams that the kernel dropped because the receive buffer was full; 0 where it does not say.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        sys::overflow(&self.socket).unwrap_or_default()
    }

    /// Waits until something may be read.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads what is there, as far as one call does, and about `most` datagrams; returns how many batches that are,
    /// `WouldBlock` if none is there.
    /// [`received`](Self::received) says what they are.
    ///
    /// # Errors
    /// Nothing is there, or the socket is broken.
    pub fn try_recv(&mut self, buffer: &mut [u8; BUFFER], most: usize) -> io::Result<usize> {
        let mut rooms = buffer.chunks_exact_mut(ROOM);
        let mut slices: [IoSliceMut<'_>; BATCHES] =
            std::array::from_fn(|_| IoSliceMut::new(rooms.next().unwrap_or_default()));
        let ask = self.ask.min(most.max(1));
        let received = &mut self.received;
        let count = self.socket.try_io(Interest::READABLE, || {
            self.state
                .recv(UdpSockRef::from(&self.socket), &mut slices[..ask], &mut received[..ask])
        })?;
        // Where the kernel joins datagrams one batch is work enough.
        let joined = received[..count].iter().any(|meta| meta.len > meta.stride);
        self.ask = match (joined, count == ask) {
            (true, _) => 1,
            (false, true) => (2 * ask).min(BATCHES),
            (false, false) => count.max(1),
        };
        Ok(count)
    }

    /// What a batch of the last receive call is, and its datagrams one after the other.
    #[must_use]
    pub fn received<'a>(&self, batch: usize, buffer: &'a [u8; BUFFER]) -> (Received, &'a [u8]) {
        let RecvMeta {
            addr, len, stride, ecn, ..
        } = self.received[batch];
        // A link-local address means nothing without its scope.
        let source = match addr.ip().to_canonical() {
            IpAddr::V6(_) => addr,
            v4 => SocketAddr::new(v4, addr.port()),
        };
        let received = Received {
            len,
            stride: stride.max(1),
            source,
            ecn: ecn.map_or(0, |code| code as u8),
        };
        (received, &buffer[batch * ROOM..][..len.min(ROOM)])
    }

    /// Waits until there may be room for a batch.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Sends a batch. Says how many of its datagrams the kernel refused, or that it has no room now.
    ///
    /// # Errors
    /// The send buffer is full.
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<usize, NoRoom> {
        let Datagrams {
            to,
            bytes,
            fragments,
            ecn,
            ..
        } = *datagrams;
        let ecn = EcnCodepoint::from_bits(ecn);
        let segment = datagrams.segment.clamp(1, MAX_BATCH);
        if fragments != self.fragments {
            match sys::allow_fragments(&self.socket, self.dual, fragments) {
                Ok(()) => self.fragments = fragments,
                Err(e) => tracing::debug!(error = %e, "fragments stay as they are"),
            }
        }
        let count = bytes.len().div_ceil(segment);
        if self.state.max_gso_segments() >= count {
            match self.send_batch(to, bytes, segment, ecn) {
                Ok(()) => return Ok(0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(NoRoom),
                // Whoever asks how long a datagram may be hears it by the silence.
                Err(_) if count == 1 && !fragments => return Ok(1),
                Err(e) => tracing::debug!(%to, count, error = %e, "batch refused: one by one"),
            }
        }
        // A device that cannot cut, a path too narrow for the batch's segments, or one datagram too long among them.
        Ok(self.one_by_one(to, bytes, segment, ecn))
    }

    /// What is left when a batch was refused. What finds no room here is lost: it cannot be told what has gone already.
    fn one_by_one(
        &mut self,
        destination: SocketAddr,
        batch: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> usize {
        let mut refused = 0;
        for datagram in batch.chunks(segment) {
            if let Err(e) = self.send_batch(destination, datagram, segment, ecn) {
                refused += 1;
                self.send_errors += 1;
                tracing::debug!(%destination, len = datagram.len(), error = %e, "datagram not sent");
            }
        }
        refused
    }

    fn send_batch(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.native(destination),
            ecn,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: None,
        };
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
        })
    }

    /// One refused send makes `quinn-udp` give up segmentation for all destinations, for good: it may have been one path
    /// that is too narrow, so look again now and then.
    pub fn look_again(&mut self, now: Instant) {
        if self.state.max_gso_segments() >= self.segments {
            return;
        }
        let since = *self.narrowed.get_or_insert(now);
        if now.saturating_duration_since(since) < LOOK_AGAIN {
            return;
        }
        self.narrowed = None;
        let renewed = UdpSocketState::new(UdpSockRef::from(&self.socket))
            .and_then(|state| sys::allow_fragments(&self.socket, self.dual, self.fragments).map(|()| state));
        match renewed {
            Ok(state) => self.state = state,
            Err(e) => tracing::debug!(error = %e, "segmentation stays off"),
        }
    }

    /// The form that the socket's family wants.
    fn native(&self, a: SocketAddr) -> SocketAddr {
        match a.ip() {
            IpAddr::V4(ip) if self.dual => SocketAddr::new(ip.to_ipv6_mapped().into(), a.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => a,
        }
    }
}
