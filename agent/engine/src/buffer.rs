//! Where the engine writes: datagrams for the network, packets for the TUN device, packets for lane 0.

use crate::decide::Ingress;
use std::net::{IpAddr, SocketAddr};

/// One of the agent's own UDP ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Port {
    /// The lane's port, for WireGuard and QUIC.
    #[default]
    Lane,
    /// The second port of lane 0, for QUIC alone (D6).
    Quic,
}

/// The two ends of a datagram's journey through the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Address and port of the other end.
    pub remote: SocketAddr,
    /// Address of this end; `None`: the kernel chooses it.
    pub local: Option<IpAddr>,
    /// Port of this end.
    pub port: Port,
}

impl From<SocketAddr> for Path {
    /// From the lane's port, and from the address that the kernel chooses.
    fn from(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
            port: Port::Lane,
        }
    }
}

/// The fields of a datagram's IP header that the sender chooses. Default: not ECN-capable, fragments allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outer {
    /// ECN codepoint (RFC 6040), in the two low bits.
    pub ecn: u8,
    /// Neither this host nor a router may fragment the datagram; where it does not fit it is lost.
    pub dont_fragment: bool,
}

/// How a datagram is sent. The owner may put consecutive datagrams with equal values into one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// From where, and where to.
    pub path: Path,
    /// Its IP header.
    pub outer: Outer,
}

impl<P: Into<Path>> From<P> for Transmit {
    /// With the default IP header.
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            outer: Outer::default(),
        }
    }
}

/// Takes datagrams, which the engine writes in place.
pub trait TransmitSink {
    /// Returns a slot of at least `len` bytes for one datagram. The next `reserve` discards a slot that was not
    /// committed.
    fn reserve(&mut self, transmit: &Transmit, len: usize) -> &mut [u8];

    /// Completes the slot of the last [`reserve`](Self::reserve): its first `len` bytes are a datagram.
    fn commit(&mut self, len: usize);

    /// Whether backpressure is such that the engine should drop a packet instead of sealing it.
    fn is_full(&self) -> bool {
        false
    }
}

/// Takes packets for the TUN device.
pub trait DeliverSink {
    /// Takes one packet; it is copied or written before the call returns.
    fn deliver(&mut self, packet: &[u8]);
}

/// Takes packets whose next hop this lane has no session with. Lane 0 has one, or establishes it (D15).
pub trait RedirectSink {
    /// Copies a packet, unchanged since it came in, into the queue of lane 0. Returns `false` if the queue has no room.
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool;
}

/// The redirect sink of an engine that is lane 0, or has no other lanes: it refuses every packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRedirect;

impl RedirectSink for NoRedirect {
    fn redirect_to_lane0(&mut self, _ingress: Ingress, _packet: &[u8]) -> bool {
        false
    }
}

/// `None` refuses every packet.
impl<R: RedirectSink> RedirectSink for Option<R> {
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool {
        self.as_mut()
            .is_some_and(|sink| sink.redirect_to_lane0(ingress, packet))
    }
}

/// Keeps everything, for tests and simulations.
#[derive(Debug, Default)]
pub struct Collected {
    /// Datagrams with their destinations.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Packets for the TUN device.
    pub packets: Vec<Vec<u8>>,
    /// Path MTU: a longer datagram with don't-fragment is lost; bytes of UDP payload. `None`: no limit.
    pub narrow: Option<usize>,
    /// ECN codepoint of each datagram.
    pub ecn: Vec<u8>,
    /// Path of each datagram.
    pub paths: Vec<Path>,
    slot: Vec<u8>,
    reserved: Option<Transmit>,
}

impl TransmitSink for Collected {
    fn reserve(&mut self, transmit: &Transmit, len: usize) -> &mut [u8] {
        self.reserved = Some(*transmit);
        self.slot.clear();
        self.slot.resize(len, 0);
        &mut self.slot
    }

    fn commit(&mut self, len: usize) {
        let is_too_long = self.narrow.is_some_and(|max| len > max);
        let Some(Transmit { path, outer }) = self.reserved.take() else {
            return;
        };
        if !(outer.dont_fragment && is_too_long) {
            self.datagrams.push((path.remote, self.slot[..len].to_vec()));
            self.paths.push(path);
            self.ecn.push(outer.ecn);
        }
    }
}

impl DeliverSink for Collected {
    fn deliver(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
    }
}
