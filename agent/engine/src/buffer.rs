//! Where the engine writes: slots for datagrams, and packets for the TUN device.

use std::net::SocketAddr;

/// Takes datagrams, written in place. The owner may put consecutive ones to the same address into one system call.
pub trait TransmitSink {
    /// A slot of at least `len` bytes for a datagram to `to`. A slot that is not committed is forgotten.
    fn reserve(&mut self, to: SocketAddr, len: usize) -> &mut [u8];

    /// The last reserved slot holds a datagram of `len` bytes.
    fn commit(&mut self, len: usize);

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
    slot: Vec<u8>,
    to: Option<SocketAddr>,
}

impl TransmitSink for Collected {
    fn reserve(&mut self, to: SocketAddr, len: usize) -> &mut [u8] {
        self.to = Some(to);
        self.slot.clear();
        self.slot.resize(len, 0);
        &mut self.slot
    }

    fn commit(&mut self, len: usize) {
        if let Some(to) = self.to.take() {
            self.datagrams.push((to, self.slot[..len].to_vec()));
        }
    }
}

impl DeliverSink for Collected {
    fn deliver(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
    }
}
