//! Plain counters: one owner, no atomics; copied out by the owner when somebody asks.

use crate::verdict::DropReason;
use tombolo_proto::status::Totals;

/// Counters of one engine. Two sums hold at all times ([`conserved`](Self::conserved)):
/// `tun_in + link_in + taken = tun_out + link_out + replied + dropped + given`, where `link_out` counts packets and not datagrams, those
/// that wait for a handshake among them; and `datagrams + bundled = link_in + control_datagrams + refused_datagrams`.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Packets by fate.
    pub totals: Totals,
    drops: Box<[u64]>,
    /// Datagrams read from the wire.
    pub datagrams: u64,
    /// Datagrams whose packets, if any, are counted as `bundled`: handshakes, cookies, keepalives, all of QUIC's.
    pub control_datagrams: u64,
    /// Packets of QUIC's datagrams, of which one may hold several.
    pub bundled: u64,
    /// Packets that another lane gave to this one. They were counted there when they came in.
    pub taken: u64,
    /// Packets that this lane gave away. They are counted there when they end.
    pub given: u64,
    /// Datagrams that were refused, by reason `bad_datagram` or `replayed`.
    pub refused_datagrams: u64,
}

impl Stats {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            drops: vec![0; DropReason::ALL.len()].into_boxed_slice(),
            ..Self::default()
        }
    }

    /// Counts a dropped packet.
    pub fn dropped(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        self.totals.dropped += 1;
    }

    /// Counts a refused datagram under its reason; no packet was lost that anyone can name.
    pub fn refused(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        self.refused_datagrams += 1;
    }

    /// Packets that waited for a handshake were dropped after all.
    pub fn lost(&mut self, packets: u64) {
        self.totals.link_out = self.totals.link_out.saturating_sub(packets);
        self.totals.dropped += packets;
        self.drops[DropReason::LinkDown as usize] += packets;
    }

    /// Datagrams that the kernel refused to send, counted as packets: a handshake among them is rare.
    pub fn not_sent(&mut self, datagrams: u64) {
        let packets = datagrams.min(self.totals.link_out);
        self.totals.link_out -= packets;
        self.totals.dropped += packets;
        self.drops[DropReason::SendRefused as usize] += packets;
    }

    /// Packets that the kernel refused to take from the device.
    pub fn not_delivered(&mut self, packets: u64) {
        let packets = packets.min(self.totals.tun_out);
        self.totals.tun_out -= packets;
        self.totals.dropped += packets;
        self.drops[DropReason::DeviceRefused as usize] += packets;
    }

    /// Whether the sums hold.
    #[must_use]
    pub fn conserved(&self) -> bool {
        let t = &self.totals;
        t.tun_in + t.link_in + self.taken == t.tun_out + t.link_out + t.replied + t.dropped + self.given
            && self.datagrams + self.bundled == t.link_in + self.control_datagrams + self.refused_datagrams
    }

    /// How often a reason occurred.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Reasons that occurred, with their counts.
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.drops(*r)))
            .filter(|(_, n)| *n > 0)
    }
}
