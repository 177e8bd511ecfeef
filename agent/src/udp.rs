//! A UDP socket of a lane: batches in both directions where the kernel has them, one datagram at a time elsewhere.

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

/// Bytes of a control message's header, and of one with a `u16`, which takes a machine word.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();
const CONTROL: usize = HEADER + size_of::<usize>();

/// What was given up (segmentation, an own address as source) is tried again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the kernel says where it cannot send from the address that it was told.
const NOT_FROM_THERE: [i32; 5] = [
    libc::EINVAL,
    libc::EADDRNOTAVAIL,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENODEV,
];

/// The socket, bound once and kept.
pub struct Udp {
    /// Which of the agent's ports it is.
    port: Port,
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
    /// An own address that nothing could be sent from, and since when.
    barred: Option<(IpAddr, Instant)>,
    /// Something was received, or sent to the other end that it is connected to, since this was asked.
    used: bool,
    /// Datagrams that could not be sent.
    pub send_errors: u64,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many of its datagrams the kernel refused.
    pub refused: usize,
    /// The address that it was to leave from, where the kernel sent it from another one only.
    pub not_from: Option<IpAddr>,
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
    /// Who sent them, and where they came in.
    pub from: Path,
    /// ECN bits of their outer header.
    pub ecn: u8,
}

/// Whether a datagram's source can be answered and looks like a host's.
#[must_use]
pub fn is_usable(source: SocketAddr) -> bool {
    source.port() != 0 && !source.ip().is_unspecified() && !source.ip().is_multicast()
}

impl Udp {
    /// Binds a port on all addresses of both families, or of IPv4 where the host has no IPv6: the lane's, or the second one
    /// as `of` says. Needs a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, or the process may not mark packets.
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
        // Now that the port is ours, sockets that this process connects may have it too.
        socket.set_reuse_port(true)?;
        Self::new(of, socket, dual, receive_buffer)
    }

    /// Connects another socket of the port of `beside` to the other end of a path, whose own address must be known.
    ///
    /// # Errors
    /// The own address is not to be had, or there is no route.
    pub fn connect(path: Path, beside: &Self, fwmark: u32, receive_buffer: usize) -> Result<Self> {
        let local = path.local.context("the path's own address is not known")?;
        let at = SocketAddr::new(local, beside.port()?);
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_mark(fwmark)?;
        socket.set_reuse_port(true)?;
        // Until it is connected it gets what is for the other one. All the same: whatever comes is read, with its source.
        socket.bind(&at.into())?;
        socket.connect(&path.remote.into())?;
        Self::new(path.port, socket, at.is_ipv6(), receive_buffer)
    }

    fn new(of: Port, socket: Socket, dual: bool, receive_buffer: usize) -> Result<Self> {
        // Beyond the host's limits, which the same capability allows as the mark.
        setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).context("receive_buffer")?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // quinn-udp forbids fragments; a tunnel rather delivers late than never.
        sys::allow_fragments(&socket, dual, true)?;
        Ok(Self {
            port: of,
            segments: state.max_gso_segments(),
            socket,
            state,
            dual,
            fragments: true,
            narrowed: None,
            ask: 1,
            received: [RecvMeta::default(); BATCHES],
            barred: None,
            used: false,
            send_errors: 0,
        })
    }

    /// The port's number.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Changes the receive buffer, bytes, beyond the host's limit too.
    ///
    /// # Errors
    /// The process may not.
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

    /// Datagrams that the kernel dropped because the receive buffer was full; 0 where it does not say.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        sys::overflow(&self.socket).unwrap_or_default()
    }

    /// Whether something may be read; if not, the task is woken when it is.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn poll_readable(&self, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_recv_ready(task)
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
        self.used = true;
        // Where the kernel joins datagrams one batch is work enough.
        let joined = received[..count].iter().any(|meta| meta.len > meta.stride);
        self.ask = match (joined, count == ask) {
            (true, _) => 1,
            (false, true) => (2 * ask).min(BATCHES),
            (false, false) => count.max(1),
        };
        Ok(count)
    }

    /// Whether something was received, or sent by [`send_connected`](Self::send_connected), since this was asked.
    pub fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// What a batch of the last receive call is, and its datagrams one after the other.
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
        // A link-local address means nothing without its scope.
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
                local: local.filter(|ip| self.barred.is_none_or(|(barred, _)| barred != *ip)),
                port: self.port,
            },
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

    /// Sends a batch, or says that there is no room now.
    ///
    /// # Errors
    /// The send buffer is full.
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<Sent, NoRoom> {
        let mut path = datagrams.transmit.path;
        let refused = self.send_by(&mut path, datagrams)?;
        let not_from = datagrams.transmit.path.local.filter(|_| path.local.is_none());
        Ok(Sent { refused, not_from })
    }

    /// Sends a batch by a connected socket, all of it or nothing.
    ///
    /// # Errors
    /// `WouldBlock`: the send buffer is full. `ConnectionRefused`: of an earlier batch, this one was not sent. Any other: what
    /// the kernel has against the batch, or the path.
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

    /// The path loses its own address if the kernel sends from others only.
    fn send_by(&mut self, path: &mut Path, datagrams: &Datagrams<'_>) -> Result<usize, NoRoom> {
        let Datagrams { bytes, transmit, .. } = *datagrams;
        let fragments = !transmit.outer.dont_fragment;
        let ecn = EcnCodepoint::from_bits(transmit.outer.ecn);
        let segment = datagrams.segment.clamp(1, MAX_BATCH);
        if fragments != self.fragments {
            match sys::allow_fragments(&self.socket, self.dual, fragments) {
                Ok(()) => self.fragments = fragments,
                Err(e) => tracing::debug!(error = %e, "fragments stay as they are"),
            }
        }
        let count = bytes.len().div_ceil(segment);
        if self.state.max_gso_segments() >= count {
            match self.send_batch(path, bytes, segment, ecn) {
                Ok(()) => return Ok(0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(NoRoom),
                // Whoever asks how long a datagram may be hears it by the silence.
                Err(_) if count == 1 && !fragments => return Ok(1),
                Err(e) => tracing::debug!(to = %path.remote, count, error = %e, "batch refused: one by one"),
            }
        }
        // A device that cannot cut, a path too narrow for the batch's segments, or one datagram too long among them.
        Ok(self.one_by_one(path, bytes, segment, ecn))
    }

    /// What is left when a batch was refused. What finds no room here is lost: it cannot be told what has gone already.
    fn one_by_one(&mut self, path: &mut Path, batch: &[u8], segment: usize, ecn: Option<EcnCodepoint>) -> usize {
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

    /// From the path's own address, or from any where the kernel refuses that one.
    fn send_batch(
        &mut self,
        path: &mut Path,
        contents: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<()> {
        let error = match (self.transmit(*path, contents, segment, ecn), path.local) {
            (Err(e), Some(_)) if e.raw_os_error().is_some_and(|e| NOT_FROM_THERE.contains(&e)) => e,
            (done, _) => return done,
        };
        if error.raw_os_error() == Some(libc::EINVAL) {
            // quinn-udp takes it for a kernel that can neither cut batches nor mark them.
            self.renew();
        }
        let anywhere = Path { local: None, ..*path };
        // If that is refused too, the address was not the reason.
        self.transmit(anywhere, contents, segment, ecn)?;
        tracing::debug!(?path, %error, "the kernel sends from another address only");
        self.barred = path.local.map(|local| (local, Instant::now()));
        *path = anywhere;
        Ok(())
    }

    fn transmit(&self, path: Path, contents: &[u8], segment: usize, ecn: Option<EcnCodepoint>) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.native(path.remote),
            ecn,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: path.local,
        };
        self.socket.try_io(Interest::WRITABLE, || {
            self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
        })
    }

    /// One refused send makes `quinn-udp` give up segmentation for all destinations, for good: it may have been one path
    /// that is too narrow, so look again now and then. And an address that was refused may be the host's again.
    pub fn look_again(&mut self, now: Instant) {
        self.barred = self
            .barred
            .filter(|(_, since)| now.saturating_duration_since(*since) < LOOK_AGAIN);
        if self.state.max_gso_segments() >= self.segments {
            return;
        }
        let since = *self.narrowed.get_or_insert(now);
        if now.saturating_duration_since(since) < LOOK_AGAIN {
            return;
        }
        self.narrowed = None;
        self.renew();
    }

    fn renew(&mut self) {
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

/// The control message that has the kernel cut a batch into datagrams of this length: `struct cmsghdr`, and a `u16`.
fn gso(segment: u16) -> [u8; CONTROL] {
    let mut control = [0; CONTROL];
    let (len, rest) = control.split_at_mut(size_of::<usize>());
    len.copy_from_slice(&(HEADER + size_of::<u16>()).to_ne_bytes());
    let words = [libc::SOL_UDP.to_ne_bytes(), libc::UDP_SEGMENT.to_ne_bytes()];
    for (room, word) in rest.chunks_exact_mut(size_of::<libc::c_int>()).zip(words) {
        room.copy_from_slice(&word);
    }
    control[HEADER..HEADER + size_of::<u16>()].copy_from_slice(&segment.to_ne_bytes());
    control
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// A socket with its port. Marking packets needs root.
    fn bound() -> (Udp, u16) {
        let udp = Udp::bind(Port::Lane, 0, 0x746d, 100_000).unwrap();
        let port = udp.port().unwrap();
        (udp, port)
    }

    /// Sends three datagrams as one batch. What became of it, and who the receiver says sent them, to which address.
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
    async fn a_batch_leaves_from_the_address_that_is_wanted_or_from_any() {
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
            let not_from = Some(gone.parse().unwrap());
            assert_eq!((sent, source), (Sent { refused: 0, not_from }, to));
            assert_eq!(a.state.max_gso_segments(), segments, "batches are cut as before");
            let (sent, source, _) = exchange(&mut a, &mut b, path(None)).await;
            assert_eq!((sent, source), (fine, to));
        }
    }

    /// An address that is not to be had is not proposed again for a while.
    #[tokio::test]
    async fn an_address_that_was_refused_is_not_told_for_a_while() {
        let ((mut a, _), (mut b, port)) = (bound(), bound());
        let at: IpAddr = "127.0.0.5".parse().unwrap();
        let to = Path::from(SocketAddr::new(at, port));
        let now = Instant::now();
        b.barred = Some((at, now));
        assert_eq!(exchange(&mut a, &mut b, to).await.2, None);
        b.look_again(now + LOOK_AGAIN / 2);
        assert_eq!(exchange(&mut a, &mut b, to).await.2, None);
        b.look_again(now + LOOK_AGAIN);
        assert_eq!(exchange(&mut a, &mut b, to).await.2, Some(at));
    }
}
