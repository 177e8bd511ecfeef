//! The UDP socket of a lane: batches in both directions where the kernel has them, one datagram at a time elsewhere.

use crate::sys;
use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Bytes of a receive buffer: the most that one GRO batch holds.
pub const BUFFER: usize = 65_535;

/// Most bytes of one send: a GSO batch is a UDP payload before it is cut.
const MAX_BATCH: usize = 65_507;

/// Send buffer, bytes.
const SEND_BUFFER: usize = 4 << 20;

/// Longest wait for room in the send buffer before a batch is dropped.
const SEND_WAIT: Duration = Duration::from_millis(5);

/// The socket, bound once and kept.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Bound to `[::]` for both families; IPv4 addresses appear as mapped ones.
    dual: bool,
    /// Datagrams that could not be sent.
    pub send_errors: u64,
}

/// What one receive call brought.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Length of each datagram in it; the last may be shorter. At least 1.
    pub stride: usize,
    /// Who sent them.
    pub source: SocketAddr,
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
        // quinn-udp forbids fragments, for QUIC; a tunnel rather delivers late than never.
        sys::allow_fragments(&socket, dual)?;
        Ok(Self {
            socket,
            state,
            dual,
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

    /// Waits until something may be read.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads one batch of one source, `WouldBlock` if none is there.
    ///
    /// # Errors
    /// Nothing is there, or the socket is broken.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut meta = [RecvMeta::default()];
        self.socket.try_io(Interest::READABLE, || {
            let mut slices = [IoSliceMut::new(buffer)];
            self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut meta)
        })?;
        let [RecvMeta { addr, len, stride, .. }] = meta;
        let source = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        Ok(Received {
            len,
            stride: stride.max(1),
            source,
        })
    }

    /// Sends datagrams of `segment` bytes each (the last may be shorter), lying one after the other.
    pub async fn send(&mut self, destination: SocketAddr, bytes: &[u8], segment: usize) {
        let segment = segment.clamp(1, MAX_BATCH);
        let most = self.state.max_gso_segments().min(MAX_BATCH / segment).max(1);
        for batch in bytes.chunks(segment * most) {
            if self.send_batch(destination, batch, segment).await.is_err() {
                self.one_by_one(destination, batch, segment).await;
            }
        }
    }

    /// What is left when a batch was refused: a device that cannot cut, or one datagram too long among them.
    async fn one_by_one(&mut self, destination: SocketAddr, batch: &[u8], segment: usize) {
        for datagram in batch.chunks(segment) {
            if let Err(e) = self.send_batch(destination, datagram, segment).await {
                self.send_errors += 1;
                tracing::debug!(%destination, len = datagram.len(), error = %e, "datagram not sent");
            }
        }
    }

    async fn send_batch(&self, destination: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.native(destination),
            ecn: None,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: None,
        };
        let attempt = || {
            self.socket.try_io(Interest::WRITABLE, || {
                self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
            })
        };
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = timeout(SEND_WAIT, self.socket.writable()).await;
                attempt()
            }
            other => other,
        }
    }

    /// The form that the socket's family wants.
    fn native(&self, a: SocketAddr) -> SocketAddr {
        match a.ip() {
            IpAddr::V4(ip) if self.dual => SocketAddr::new(ip.to_ipv6_mapped().into(), a.port()),
            _ => a,
        }
    }
}
