//! The sinks into which the engine writes: datagrams for the network, packets for the TUN device, packets for lane 0.

use crate::decide::Ingress;
use crate::tables::{LinkIndex, NicIndex};
use crate::verdict::DropReason;
use std::net::{IpAddr, SocketAddr};

/// One of the UDP ports that the agent is bound to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Port {
    /// The port of the engine's own lane, for WireGuard and QUIC.
    #[default]
    Lane,
    /// The second port of lane 0, for QUIC alone (D6).
    Quic,
}

/// The addresses and ports of both ends of a datagram in the underlay. For a received datagram `remote` is its source,
/// for a sent one its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Address and port of the other end of the path.
    pub remote: SocketAddr,
    /// Address of this host. `None`: the kernel chooses the address when the datagram is sent.
    pub local: Option<IpAddr>,
    /// The port of this agent: for a received datagram its destination port, for a sent one its source port.
    pub port: Port,
}

impl From<SocketAddr> for Path {
    /// The path to `remote` from the lane's port. The kernel chooses the source address.
    fn from(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
            port: Port::Lane,
        }
    }
}

/// The fields of a datagram's outer IP header that the engine chooses. The default is Not-ECT, and fragmentation is
/// allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outer {
    /// The ECN field (RFC 6040), in the two low bits.
    pub ecn: u8,
    /// Don't-fragment: neither this host nor a router may fragment the datagram. A datagram that is longer than the
    /// path MTU is then lost.
    pub dont_fragment: bool,
}

/// The path and the IP header of a datagram that is sent. The owner may pass consecutive datagrams that have the same
/// path and header fields to the kernel in one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// The source and the destination.
    pub path: Path,
    /// The chosen fields of the IP header.
    pub outer: Outer,
}

impl<P: Into<Path>> From<P> for Transmit {
    /// A datagram on `path` with the default IP header.
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            outer: Outer::default(),
        }
    }
}

/// A queue of datagrams for the network. WireGuard encrypts into the queue's memory, which saves a copy.
pub trait TransmitSink {
    /// Returns a slot of at least `len` bytes for one datagram; its contents are unspecified. The slot is not sent
    /// before [`commit`](Self::commit). The next `reserve` discards a slot that was not committed. The sink must
    /// provide a slot even if [`is_full`](Self::is_full).
    fn reserve(&mut self, transmit: &Transmit, len: usize) -> &mut [u8];

    /// Completes the slot of the last [`reserve`](Self::reserve): its first `len` bytes are a datagram to send. `len`
    /// is at most the reserved length.
    fn commit(&mut self, len: usize);

    /// Whether the queue has so little room that the engine should drop packets instead of sealing them. Handshake
    /// messages may be written nevertheless. The default implementation always returns `false`.
    fn is_full(&self) -> bool {
        false
    }
}

/// A queue of packets for the TUN devices.
pub trait DeliverSink {
    /// Takes one complete IP packet for the TUN device of `nic`. The sink must copy or write the packet before the call
    /// returns, because the engine reuses the memory.
    fn deliver(&mut self, nic: NicIndex, packet: &[u8]);

    /// Shows the sink a packet before the engine decides about it and changes it, so that the sink can record it. `packet`
    /// may have padding at its end. The default does nothing, and then costs nothing.
    fn arrived(&mut self, _ingress: Ingress, _packet: &[u8]) {}

    /// Tells the sink what has become of the packet of the last [`arrived`](Self::arrived). Calls of
    /// [`deliver`](Self::deliver) between the two are about this packet, or about an answer to it.
    fn finished(&mut self, _outcome: Outcome) {}
}

/// What has become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was dropped for this reason.
    Dropped(DropReason),
    /// It was redirected to lane 0, where it arrives again.
    Redirected,
    /// It was delivered, sent into a link, or answered.
    Done,
}

/// A queue of packets that lane 0 must send, because this lane has no usable session with their next hop. Lane 0 has
/// such a session, or establishes it (D15).
pub trait RedirectSink {
    /// Copies a packet into the queue of lane 0. The packet is as it arrived at `ingress`, except that this lane may
    /// have set CE in its ECN field. Returns `false`, and copies nothing, if the queue has no room, or if there is no
    /// queue.
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool;

    /// Asks lane 0 to send the peer of a link the health of this agent's back ends (D36). Returns `false` if the queue has no
    /// room, or if there is no queue, as in lane 0 itself.
    fn return_health(&mut self, _link: LinkIndex) -> bool {
        false
    }
}

/// The redirect sink of lane 0, and of an agent with one lane: it refuses every packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRedirect;

impl RedirectSink for NoRedirect {
    fn redirect_to_lane0(&mut self, _ingress: Ingress, _packet: &[u8]) -> bool {
        false
    }
}

/// A sink that is `None` refuses every packet. So all lanes can have engines of the same type, although lane 0 has no
/// redirect sink.
impl<R: RedirectSink> RedirectSink for Option<R> {
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool {
        self.as_mut()
            .is_some_and(|sink| sink.redirect_to_lane0(ingress, packet))
    }

    fn return_health(&mut self, link: LinkIndex) -> bool {
        self.as_mut().is_some_and(|sink| sink.return_health(link))
    }
}

/// A transmit sink and a deliver sink that keep everything that the engine writes into them, for tests and simulations.
/// `datagrams`, `ecn` and `paths` have one entry for each datagram, in the order of commits.
#[derive(Debug, Default)]
pub struct Collected {
    /// Datagrams with their destinations, in the order of commits.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Packets for the TUN devices.
    pub packets: Vec<Vec<u8>>,
    /// The NIC of each packet.
    pub nics: Vec<NicIndex>,
    /// Path MTU as bytes of UDP payload. A longer datagram with don't-fragment is discarded. `None`: no limit.
    pub narrow: Option<usize>,
    /// ECN field of each datagram.
    pub ecn: Vec<u8>,
    /// Path of each datagram, which also tells this end's address and port.
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
    fn deliver(&mut self, nic: NicIndex, packet: &[u8]) {
        self.packets.push(packet.to_vec());
        self.nics.push(nic);
    }
}
