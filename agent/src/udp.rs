//! A UDP socket of a lane. It sends and receives batches (GSO, GRO) if the kernel supports them, and single datagrams
//! otherwise.

use crate::outbox::Datagrams;
use crate::sys;
use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, MsgHdr, Protocol, SockRef, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context as Task, Poll};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tombolo_engine::buffer::{Path, Port};

/// Messages per `recvmmsg` call. Without GRO each message is one datagram. Several messages per call then raise the
/// throughput of a plain NIC by a third (docs/performance.md).
const MAX_BATCHES: usize = 16;

/// Size of the buffer for one batch in bytes. GRO builds batches of at most 65,535 bytes, and the next power of two
/// keeps batches aligned to cache lines.
const BATCH_BUFFER: usize = 1 << 16;

/// Size of a lane's receive buffer in bytes. Pages of the buffer that no datagram has reached take no memory.
pub const BUFFER: usize = MAX_BATCHES * BATCH_BUFFER;

/// Longest GSO batch in bytes. Until the kernel segments it, a batch is one UDP payload, which has at most 65,535 − 20
/// (IPv4 header) − 8 (UDP header) bytes.
const MAX_BATCH: usize = 65_507;

/// Size of the send buffer in bytes: a few batches, or some milliseconds at 1 Gbit/s. Further packets wait in the queue
/// of the TUN device, where the kernel slows down the host's TCP senders.
const SEND_BUFFER: usize = 1 << 20;

/// Lengths in bytes: of `struct cmsghdr`, and of a whole control message whose data is a `u16`, padded to a machine
/// word.
const CMSG_HEADER: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();
const CMSG_LEN: usize = CMSG_HEADER + size_of::<usize>();

/// After the kernel has refused GSO or a source address, the socket sends without GSO or without that address for this
/// time, and then tries it again. If the cause lasts, that costs one refused batch a minute; if the cause soon ends, it
/// costs a minute without GSO.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Error numbers with which the kernel refuses the source address of a datagram.
const BAD_SOURCE_ERRNOS: [i32; 5] = [
    libc::EINVAL,
    libc::EADDRNOTAVAIL,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENODEV,
];

/// A UDP socket of a lane. Either the socket is bound to a port and many paths share it, or it is connected to one
/// path.
pub struct Udp {
    /// Which port of the agent the socket belongs to.
    port: Port,
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether the socket is an IPv6 socket. An IPv6 socket that is bound to `[::]` carries both families, and IPv4
    /// addresses appear as IPv4-mapped IPv6 addresses.
    dual: bool,
    /// Whether outer datagrams may be fragmented, by the present options of the socket.
    fragments: bool,
    /// Largest number of segments of a GSO batch when the socket was new, and when [`maintain`](Self::maintain) first
    /// saw that `quinn-udp` permits fewer.
    initial_segments: usize,
    gso_reduced_since: Option<Instant>,
    /// How many messages the next receive call requests: as many as arrived lately, or one if GRO joins datagrams.
    batches_to_read: usize,
    received: [RecvMeta; MAX_BATCHES],
    /// A local address that the kernel has refused as source of a datagram, and the time of the refusal.
    unusable_source: Option<(IpAddr, Instant)>,
    /// Whether a datagram was received, or sent by [`send_connected`](Self::send_connected), since the last call of
    /// [`take_used`](Self::take_used).
    used: bool,
    /// Number of datagrams that the kernel refused even when they were sent one by one, since the socket was opened.
    pub send_errors: u64,
}

/// Result of a batch that the socket accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Number of datagrams of the batch that the kernel refused. These are lost.
    pub refused: usize,
    /// The requested source address, if the kernel refused it and the batch left from another address. None: the batch
    /// left from the requested address, or no address was requested.
    pub failed_source: Option<IpAddr>,
}

/// The socket's send buffer is full, and nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WouldBlock;

/// One received batch, which consists of datagrams of one sender.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Length of the batch in bytes. It may be 0, for an empty datagram.
    pub len: usize,
    /// Length of each datagram in bytes, at least 1. The last one may be shorter.
    pub stride: usize,
    /// Sender, local address and port of all datagrams. The local address is missing if the kernel has refused it as a
    /// source within the last minute.
    pub from: Path,
    /// ECN bits of the outer header (RFC 3168).
    pub ecn: u8,
}

/// Whether a datagram's source can be answered: it has a port other than 0, and its address is neither unspecified nor
/// multicast.
#[must_use]
pub fn is_usable(source: SocketAddr) -> bool {
    source.port() != 0 && !source.ip().is_unspecified() && !source.ip().is_multicast()
}

impl Udp {
    /// Binds `port` on all addresses of both families, or, if the host has no IPv6, on all IPv4 addresses. Port 0 lets
    /// the kernel choose a port. `of`: which port of the agent this is. `fwmark` marks all sent datagrams, and
    /// `receive_buffer` is in bytes. Afterwards a second agent that binds the port gets EADDRINUSE, while sockets of
    /// [`connect`](Self::connect) in this process share the port. Path MTU discovery is off, so that datagrams may be
    /// fragmented.
    ///
    /// # Errors
    /// The port is in use, or the process lacks CAP_NET_ADMIN, which it needs for the mark (`SO_MARK`) and for the
    /// sizes of the buffers.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn bind(of: Port, port: u16, fwmark: u32, receive_buffer: usize) -> Result<Self> {
        let setting = match of {
            Port::Lane => "listen_port",
            Port::Quic => "quic_port",
        };
        let (socket, dual) = match Self::socket(Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port) {
            Ok(socket) => (socket, true),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                return Err(e).with_context(|| format!("{setting}: UDP port {port} is taken"));
            }
            Err(_) => {
                let socket = Self::socket(Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
                (
                    socket.with_context(|| format!("{setting}: binding UDP port {port}"))?,
                    false,
                )
            }
        };
        socket
            .set_mark(fwmark)
            .context("marking the UDP socket: CAP_NET_ADMIN is needed")?;
        // The bind is exclusive, because SO_REUSEPORT is set only after it: a second agent that binds the port gets
        // EADDRINUSE. The connected sockets of this process set SO_REUSEPORT before they bind, and so share the port.
        socket.set_reuse_port(true)?;
        Self::new(of, socket, dual, receive_buffer)
    }

    /// Opens a socket on the port of `beside`, and connects it to `path.remote`. The socket receives only datagrams of
    /// that peer. Sends nothing. Both addresses of `path` must be of one family. `fwmark` and `receive_buffer` are as
    /// for [`bind`](Self::bind). `beside` stays as it is.
    ///
    /// # Errors
    /// The path has no local address, that address cannot be bound, there is no route to the remote one, or
    /// CAP_NET_ADMIN is missing.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn connect(path: Path, beside: &Self, fwmark: u32, receive_buffer: usize) -> Result<Self> {
        let local = path.local.context("the path's own address is not known")?;
        let at = SocketAddr::new(local, beside.port()?);
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_mark(fwmark)?;
        socket.set_reuse_port(true)?;
        // Between bind and connect this socket may receive datagrams of other peers, which are meant for the shared
        // socket. They do no harm, because the lane reads the sender of every datagram.
        socket.bind(&at.into())?;
        socket.connect(&path.remote.into())?;
        Self::new(path.port, socket, at.is_ipv6(), receive_buffer)
    }

    fn new(of: Port, socket: Socket, dual: bool, receive_buffer: usize) -> Result<Self> {
        // The `FORCE` options permit more than `rmem_max` and `wmem_max`. They need CAP_NET_ADMIN, like the mark.
        setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).context("receive_buffer")?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // quinn-udp sets "don't fragment". On a path with an unknown MTU a tunnel prefers fragments to loss (D20).
        sys::allow_fragments(&socket, dual, true)?;
        Ok(Self {
            port: of,
            initial_segments: state.max_gso_segments(),
            socket,
            state,
            dual,
            fragments: true,
            gso_reduced_since: None,
            batches_to_read: 1,
            received: [RecvMeta::default(); MAX_BATCHES],
            unusable_source: None,
            used: false,
            send_errors: 0,
        })
    }

    /// The number of the local port.
    ///
    /// # Errors
    /// The kernel does not return the socket's address.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Sets the size of the receive buffer in bytes. The host's limit `rmem_max` does not apply.
    ///
    /// # Errors
    /// The process lacks CAP_NET_ADMIN.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.socket, sockopt::RcvBufForce, &bytes)?)
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

    /// Datagrams that the kernel has dropped because the receive buffer was full, since the socket was opened. 0 if the
    /// kernel does not report the number.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        sys::overflow(&self.socket).unwrap_or_default()
    }

    /// Returns ready if the socket may be readable. Otherwise wakes the task when it may be. Does not block. Of several
    /// tasks that poll, only the last one is woken.
    ///
    /// # Errors
    /// Polling the socket failed, as it does when the runtime shuts down.
    pub fn poll_readable(&self, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_recv_ready(task)
    }

    /// Reads with one system call into `buffer`, without waiting. Requests at most `max_datagrams` messages, and at
    /// least one; with GRO one message may have more datagrams than that. Returns the number of batches, from 1 to 16.
    /// [`received`](Self::received) describes each of them, until the next call.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is queued. Other errors are those of the system call.
    pub fn try_recv(&mut self, buffer: &mut [u8; BUFFER], max_datagrams: usize) -> io::Result<usize> {
        let mut buffers = buffer.chunks_exact_mut(BATCH_BUFFER);
        let mut slices: [IoSliceMut<'_>; MAX_BATCHES] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let batches_to_read = self.batches_to_read.min(max_datagrams.max(1));
        let received = &mut self.received;
        let count = self.socket.try_io(Interest::READABLE, || {
            self.state.recv(
                UdpSockRef::from(&self.socket),
                &mut slices[..batches_to_read],
                &mut received[..batches_to_read],
            )
        })?;
        self.used = true;
        // With GRO one message has many datagrams. More messages per call would exceed the number of datagrams that the
        // lane may read in one turn.
        let joined = received[..count].iter().any(|meta| meta.len > meta.stride);
        self.batches_to_read = match (joined, count == batches_to_read) {
            (true, _) => 1,
            (false, true) => (2 * batches_to_read).min(MAX_BATCHES),
            (false, false) => count.max(1),
        };
        Ok(count)
    }

    /// Whether a datagram was received, or sent by [`send_connected`](Self::send_connected), since the last call of
    /// this function. The next call returns false until there is another datagram.
    pub fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Describes batch number `batch`, from 0, of the last call of [`try_recv`](Self::try_recv). Also returns the
    /// batch's datagrams, one after the other, from `buffer`, which must be the buffer of that call. If `batch` is not
    /// below the number that `try_recv` returned, the result is stale.
    ///
    /// # Panics
    /// If `batch` is 16 or more.
    #[must_use]
    pub fn received<'a>(&self, batch: usize, buffer: &'a [u8; BUFFER]) -> (Received, &'a [u8]) {
        let RecvMeta {
            addr,
            len,
            stride,
            ecn,
            dst_ip,
            ..
        } = self.received[batch];
        // IPv6 addresses keep their scope ID, because a link-local address has no meaning without it.
        let remote = match addr.ip().to_canonical() {
            IpAddr::V6(_) => addr,
            v4 => SocketAddr::new(v4, addr.port()),
        };
        let local = dst_ip.map(|ip| ip.to_canonical());
        let received = Received {
            len,
            stride: stride.max(1),
            from: Path {
                remote,
                local: local.filter(|ip| self.unusable_source.is_none_or(|(source, _)| source != *ip)),
                port: self.port,
            },
            ecn: ecn.map_or(0, |code| code as u8),
        };
        (received, &buffer[batch * BATCH_BUFFER..][..len.min(BATCH_BUFFER)])
    }

    /// Waits until the socket may accept a batch. The next send may still find the buffer full. Cancel safe.
    ///
    /// # Errors
    /// Polling the socket failed, as it does when the runtime shuts down.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Sends a batch from the path's local address, without waiting. If the kernel refuses that address, the batch
    /// leaves from any address, and the result says so. If the kernel refuses the batch, its datagrams are sent one by
    /// one; those that are refused again, or find the send buffer full, are lost, and are counted in the result and in
    /// `send_errors`. A single datagram that must not be fragmented is not sent again: if it is refused, only the
    /// result counts it.
    ///
    /// # Errors
    /// [`WouldBlock`]: the send buffer is full, and nothing was sent. The caller may send the batch again.
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<Sent, WouldBlock> {
        let mut path = datagrams.transmit.path;
        let refused = self.send_by(&mut path, datagrams)?;
        let failed_source = datagrams.transmit.path.local.filter(|_| path.local.is_none());
        Ok(Sent { refused, failed_source })
    }

    /// Sends a batch of datagrams of `segment` bytes through a connected socket, as a whole or not at all, without
    /// waiting. `segment` is from 1 to 65,535; only the last datagram may be shorter. The kernel sends it without ECN
    /// bits, from the socket's own address.
    ///
    /// # Errors
    /// `WouldBlock`: the send buffer is full. `ConnectionRefused`: an ICMP error for an earlier batch has arrived, and
    /// this batch was not sent. Other errors: the kernel refuses the batch or the path.
    pub fn send_connected(&mut self, bytes: &[u8], segment: usize) -> io::Result<()> {
        self.used = true;
        if bytes.len() <= segment {
            return self.socket.try_send(bytes).map(drop);
        }
        let control = gso(segment as u16);
        let (slices, flags) = ([IoSlice::new(bytes)], 0);
        let message = MsgHdr::new().with_buffers(&slices).with_control(&control);
        self.socket
            .try_io(Interest::WRITABLE, || {
                SockRef::from(&self.socket).sendmsg(&message, flags)
            })
            .map(drop)
    }

    /// Sends a batch as a whole, or, if the kernel refuses the batch, its datagrams one by one. Clears `path.local` if
    /// the kernel refused that source address. Returns the number of refused datagrams.
    fn send_by(&mut self, path: &mut Path, datagrams: &Datagrams<'_>) -> Result<usize, WouldBlock> {
        let Datagrams { bytes, transmit, .. } = *datagrams;
        let fragments = !transmit.outer.dont_fragment;
        let ecn = EcnCodepoint::from_bits(transmit.outer.ecn);
        let segment = datagrams.segment.clamp(1, MAX_BATCH);
        if fragments != self.fragments {
            match sys::allow_fragments(&self.socket, self.dual, fragments) {
                Ok(()) => self.fragments = fragments,
                Err(e) => tracing::debug!(error = %e, "fragmentation setting not changed"),
            }
        }
        let count = bytes.len().div_ceil(segment);
        if self.state.max_gso_segments() >= count {
            match self.send_batch(path, bytes, segment, ecn) {
                Ok(()) => return Ok(0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(WouldBlock),
                // A single datagram that must not be fragmented is refused if it is too long. It is a path MTU probe,
                // or a datagram of QUIC, which discovers the path MTU by itself. Sending it again would fail again, and
                // its sender treats it as lost.
                Err(_) if count == 1 && !fragments => return Ok(1),
                Err(e) => {
                    tracing::debug!(to = %path.remote, count, error = %e, "batch refused; sending single datagrams")
                }
            }
        }
        // The kernel refuses a batch if the device has no GSO, the path MTU is smaller than a segment, or one datagram
        // is too long. Single datagrams may still pass.
        Ok(self.send_singly(path, bytes, segment, ecn))
    }

    /// Sends the datagrams of a refused batch one at a time, and returns the number of refused ones. If the send buffer
    /// becomes full meanwhile, the datagram is lost and not sent again, because a retry of the batch would send its
    /// first datagrams twice.
    fn send_singly(&mut self, path: &mut Path, batch: &[u8], segment: usize, ecn: Option<EcnCodepoint>) -> usize {
        let mut refused = 0;
        for datagram in batch.chunks(segment) {
            if let Err(e) = self.send_batch(path, datagram, segment, ecn) {
                refused += 1;
                self.send_errors += 1;
                tracing::debug!(to = %path.remote, len = datagram.len(), error = %e, "datagram not sent");
            }
        }
        refused
    }

    /// Sends a batch from `path.local`. If the kernel refuses that source, sends from any address, and clears
    /// `path.local`.
    fn send_batch(
        &mut self,
        path: &mut Path,
        contents: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<()> {
        let error = match (self.transmit(*path, contents, segment, ecn), path.local) {
            (Err(e), Some(_)) if e.raw_os_error().is_some_and(|e| BAD_SOURCE_ERRNOS.contains(&e)) => e,
            (done, _) => return done,
        };
        if error.raw_os_error() == Some(libc::EINVAL) {
            // quinn-udp takes EINVAL for a sign of a kernel without GSO and ECN, and turns both off. Here the source
            // address may be the cause.
            self.reset_state();
        }
        let anywhere = Path { local: None, ..*path };
        // If this attempt fails too, the source address was not the cause.
        self.transmit(anywhere, contents, segment, ecn)?;
        tracing::debug!(?path, %error, "source address refused; sent from another one");
        self.unusable_source = path.local.map(|local| (local, Instant::now()));
        *path = anywhere;
        Ok(())
    }

    fn transmit(&self, path: Path, contents: &[u8], segment: usize, ecn: Option<EcnCodepoint>) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.to_native(path.remote),
            ecn,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: path.local,
        };
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
        })
    }

    /// Enables GSO again, and permits the refused source address again, when a minute has passed since the kernel
    /// refused them. One refused batch makes `quinn-udp` give up GSO for all destinations, although perhaps the MTU of
    /// only one path was too small. To be called regularly; most calls do nothing.
    pub fn maintain(&mut self, now: Instant) {
        self.unusable_source = self
            .unusable_source
            .filter(|(_, since)| now.saturating_duration_since(*since) < RETRY_INTERVAL);
        if self.state.max_gso_segments() >= self.initial_segments {
            return;
        }
        let since = *self.gso_reduced_since.get_or_insert(now);
        if now.saturating_duration_since(since) < RETRY_INTERVAL {
            return;
        }
        self.gso_reduced_since = None;
        self.reset_state();
    }

    /// Creates the `quinn-udp` state anew, which enables GSO and ECN again. Restores the socket's setting for
    /// fragmentation, which `quinn-udp` overwrites when it creates a state.
    fn reset_state(&mut self) {
        let renewed = UdpSocketState::new(UdpSockRef::from(&self.socket))
            .and_then(|state| sys::allow_fragments(&self.socket, self.dual, self.fragments).map(|()| state));
        match renewed {
            Ok(state) => self.state = state,
            Err(e) => tracing::debug!(error = %e, "GSO not re-enabled"),
        }
    }

    /// The address in the form that the socket needs: a dual-stack socket takes IPv4 addresses as IPv4-mapped IPv6
    /// addresses.
    fn to_native(&self, a: SocketAddr) -> SocketAddr {
        match a.ip() {
            IpAddr::V4(ip) if self.dual => SocketAddr::new(ip.to_ipv6_mapped().into(), a.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => a,
        }
    }
}

/// The control message `UDP_SEGMENT`: `struct cmsghdr`, and the segment length as a `u16`.
fn gso(segment: u16) -> [u8; CMSG_LEN] {
    let mut control = [0; CMSG_LEN];
    let (len, rest) = control.split_at_mut(size_of::<usize>());
    len.copy_from_slice(&(CMSG_HEADER + size_of::<u16>()).to_ne_bytes());
    let words = [libc::SOL_UDP.to_ne_bytes(), libc::UDP_SEGMENT.to_ne_bytes()];
    for (room, word) in rest.chunks_exact_mut(size_of::<libc::c_int>()).zip(words) {
        room.copy_from_slice(&word);
    }
    control[CMSG_HEADER..CMSG_HEADER + size_of::<u16>()].copy_from_slice(&segment.to_ne_bytes());
    control
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// A socket with its port, which the kernel has chosen. Needs root to mark packets.
    fn bound() -> (Udp, u16) {
        let udp = Udp::bind(Port::Lane, 0, 0x746d, 100_000).unwrap();
        let port = udp.port().unwrap();
        (udp, port)
    }

    /// Sends three datagrams as one batch. Returns the result of sending, and the source and destination addresses that
    /// the receiver saw.
    async fn exchange(from: &mut Udp, to: &mut Udp, path: Path) -> (Sent, IpAddr, Option<IpAddr>) {
        let datagrams = Datagrams {
            transmit: path.into(),
            bytes: &[7; 250],
            segment: 100,
        };
        from.writable().await.unwrap();
        let sent = from.send(&datagrams).unwrap();
        let mut buffer: Box<[u8; BUFFER]> = vec![0; BUFFER].try_into().unwrap();
        let (mut bytes, mut seen) = (0, None);
        while bytes < 250 {
            poll_fn(|task| to.poll_readable(task)).await.unwrap();
            let Ok(batches) = to.try_recv(&mut buffer, 8) else {
                continue;
            };
            for batch in 0..batches {
                let (received, _) = to.received(batch, &buffer);
                bytes += received.len;
                seen = Some((received.from.remote.ip(), received.from.local));
            }
        }
        let (source, local) = seen.unwrap();
        (sent, source, local)
    }

    #[tokio::test]
    async fn a_batch_is_sent_from_the_requested_address_or_from_any() {
        let ((mut a, _), (mut b, port)) = (bound(), bound());
        let segments = a.state.max_gso_segments();
        for (to, own, gone) in [
            ("127.0.0.1", "127.0.0.9", "198.51.100.77"),
            ("::1", "::1", "2001:db8::77"),
        ] {
            let to: IpAddr = to.parse().unwrap();
            let path = |local: Option<&str>| Path {
                local: local.map(|l| l.parse().unwrap()),
                ..Path::from(SocketAddr::new(to, port))
            };
            let fine = Sent::default();
            let (sent, source, local) = exchange(&mut a, &mut b, path(Some(own))).await;
            assert_eq!((sent, source, local), (fine, own.parse().unwrap(), Some(to)));
            let (sent, source, _) = exchange(&mut a, &mut b, path(Some(gone))).await;
            let failed_source = Some(gone.parse().unwrap());
            assert_eq!(
                (sent, source),
                (
                    Sent {
                        refused: 0,
                        failed_source
                    },
                    to
                )
            );
            assert_eq!(a.state.max_gso_segments(), segments, "GSO stays on");
            let (sent, source, _) = exchange(&mut a, &mut b, path(None)).await;
            assert_eq!((sent, source), (fine, to));
        }
    }

    /// After the kernel has refused a source address, received datagrams do not report it as their local address for a
    /// minute.
    #[tokio::test]
    async fn a_refused_source_address_is_not_reported_for_a_while() {
        let ((mut a, _), (mut b, port)) = (bound(), bound());
        let at: IpAddr = "127.0.0.5".parse().unwrap();
        let to = Path::from(SocketAddr::new(at, port));
        let now = Instant::now();
        b.unusable_source = Some((at, now));
        assert_eq!(exchange(&mut a, &mut b, to).await.2, None);
        b.maintain(now + RETRY_INTERVAL / 2);
        assert_eq!(exchange(&mut a, &mut b, to).await.2, None);
        b.maintain(now + RETRY_INTERVAL);
        assert_eq!(exchange(&mut a, &mut b, to).await.2, Some(at));
    }
}
