//! The counters of one engine: plain numbers with one owner, who copies them out on request.

use crate::verdict::DropReason;
use tombolo_proto::status::Totals;

/// Counters of one engine. Two sums hold at all times ([`conserved`](Self::conserved)):
///
/// * `tun_in + link_in + redirected_in = tun_out + link_out + replied + dropped + redirected_out`. `link_out` counts packets, not
///   datagrams, and includes those that wait for a handshake.
/// * `datagrams + bundled = link_in + control_datagrams + refused_datagrams`.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Packets by fate.
    pub totals: Totals,
    drops: Box<[u64]>,
    /// Datagrams read from the sockets.
    pub datagrams: u64,
    /// Datagrams that yielded no packet at once: handshakes, cookies, keepalives, and all of QUIC, whose packets
    /// `bundled` counts.
    pub control_datagrams: u64,
    /// Packets out of QUIC datagrams, of which one may hold several.
    pub bundled: u64,
    /// Packets that another lane redirected to this one. That lane counted their arrival.
    pub redirected_in: u64,
    /// Packets that this lane redirected to another one, which counts their fate.
    pub redirected_out: u64,
    /// Refused datagrams, e.g. for the reasons `bad_datagram` and `replayed`.
    pub refused_datagrams: u64,
}

impl Stats {
    /// Counters that are all zero.
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

    /// Counts a refused datagram under its reason. It counts as no dropped packet, because what it held is unknown.
    pub fn refused(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        self.refused_datagrams += 1;
    }

    /// Counts packets as dropped that were counted as sent while they waited for a handshake, which failed.
    pub fn lost(&mut self, packets: u64) {
        self.totals.link_out = self.totals.link_out.saturating_sub(packets);
        self.totals.dropped += packets;
        self.drops[DropReason::LinkDown as usize] += packets;
    }

    /// Counts datagrams that the kernel refused to send, each as one dropped packet. Handshakes among them are few
    /// enough to ignore.
    pub fn not_sent(&mut self, datagrams: u64) {
        let packets = datagrams.min(self.totals.link_out);
        self.totals.link_out -= packets;
        self.totals.dropped += packets;
        self.drops[DropReason::SendRefused as usize] += packets;
    }

    /// Counts packets that the TUN device refused, as dropped instead of delivered.
    pub fn not_delivered(&mut self, packets: u64) {
        let packets = packets.min(self.totals.tun_out);
        self.totals.tun_out -= packets;
        self.totals.dropped += packets;
        self.drops[DropReason::DeviceRefused as usize] += packets;
    }

    /// Whether both sums of the type's documentation hold.
    #[must_use]
    pub fn conserved(&self) -> bool {
        let t = &self.totals;
        t.tun_in + t.link_in + self.redirected_in
            == t.tun_out + t.link_out + t.replied + t.dropped + self.redirected_out
            && self.datagrams + self.bundled == t.link_in + self.control_datagrams + self.refused_datagrams
    }

    /// Number of packets and datagrams that were dropped or refused for this reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// All reasons with a number above zero, in the order of [`DropReason::ALL`].
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.drops(*r)))
            .filter(|(_, n)| *n > 0)
    }
}
