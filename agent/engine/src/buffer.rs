//! Where the engine writes: slots for datagrams, and packets for the TUN device.

use crate::decide::Ingress;
use std::net::{IpAddr, SocketAddr};

/// One of the agent's own UDP ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Port {
    /// The lane's.
    #[default]
    Lane,
    /// The second one of the first lane, for QUIC alone (D6).
    Quic,
}

/// The way of a datagram between this host and another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The other end.
    pub remote: SocketAddr,
    /// The own address; none: the kernel chooses.
    pub local: Option<IpAddr>,
    /// The own port.
    pub port: Port,
}

impl From<SocketAddr> for Path {
    /// By the lane's port, from whichever address the kernel chooses.
    fn from(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
            port: Port::Lane,
        }
    }
}

/// Takes datagrams, written in place. The owner may put consecutive ones of the same path into one system call.
pub trait TransmitSink {
    /// A slot of at least `len` bytes for a datagram that goes this way. A slot that is not committed is forgotten.
    fn reserve(&mut self, to: Path, len: usize) -> &mut [u8];

    /// The last reserved slot holds a datagram of `len` bytes.
    fn commit(&mut self, len: usize);

    /// Whether datagrams reserved from now on may be cut on their way (they may at first); those that may not and are too
    /// long for it are lost.
    fn allow_fragments(&mut self, _allow: bool) {}

    /// The ECN bits of the outer header of datagrams reserved from now on (RFC 6040); 0 at first.
    fn set_ecn(&mut self, _bits: u8) {}

    /// Gives a packet, as it came in, to the first lane, which has the session that it needs. Whether there was room.
    fn hand_over(&mut self, _ingress: Ingress, _packet: &[u8]) -> bool {
        false
    }

    /// Whether so much waits that packets should rather be dropped than sealed.
    fn is_full(&self) -> bool {
        false
    }
}

/// Takes packets for the TUN device.
pub trait DeliverSink {
    /// Takes one packet; it is copied or written before the call returns.
    fn deliver(&mut self, packet: &[u8]);
}

/// Keeps everything, for tests and simulations.
#[derive(Debug, Default)]
pub struct Collected {
    /// Datagrams with their destinations.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Packets for the TUN device.
    pub packets: Vec<Vec<u8>>,
    /// Longest datagram that may not be cut and is not lost, bytes; none: any.
    pub narrow: Option<usize>,
    /// ECN bits of each datagram.
    pub ecn: Vec<u8>,
    /// The way that each goes.
    pub paths: Vec<Path>,
    bits: u8,
    whole: bool,
    slot: Vec<u8>,
    to: Option<Path>,
}

impl TransmitSink for Collected {
    fn reserve(&mut self, to: Path, len: usize) -> &mut [u8] {
        self.to = Some(to);
        self.slot.clear();
        self.slot.resize(len, 0);
        &mut self.slot
    }

    fn commit(&mut self, len: usize) {
        let lost = self.whole && self.narrow.is_some_and(|most| len > most);
        if let Some(to) = self.to.take().filter(|_| !lost) {
            self.datagrams.push((to.remote, self.slot[..len].to_vec()));
            self.paths.push(to);
            self.ecn.push(self.bits);
        }
    }

    fn set_ecn(&mut self, bits: u8) {
        self.bits = bits;
    }

    fn allow_fragments(&mut self, allow: bool) {
        self.whole = !allow;
    }
}

impl DeliverSink for Collected {
    fn deliver(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
    }
}
