//! The counters of one engine. They are plain numbers without locks: only the engine's thread changes them, and other
//! threads get copies.

use crate::verdict::DropReason;
use tombolo_proto::status::Totals;

/// One counter for each drop reason.
#[derive(Debug, Clone)]
struct Drops(Box<[u64]>);

impl Default for Drops {
    fn default() -> Self {
        Self(vec![0; DropReason::ALL.len()].into_boxed_slice())
    }
}

/// Counters of one engine since its start. Two sums hold at all times ([`conserved`](Self::conserved)):
///
/// * `tun_in + link_in + redirected_in = tun_out + link_out + replied + dropped + redirected_out`. `link_out` counts
///   packets, not datagrams, and includes packets that wait for a handshake.
/// * `datagrams + bundled = link_in + control_datagrams + refused_datagrams`.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Numbers of packets by their origin and by their outcome.
    pub totals: Totals,
    drops: Drops,
    /// Datagrams read from the sockets.
    pub datagrams: u64,
    /// Datagrams that yielded no packet immediately: handshakes, cookies, keepalives, messages between agents and
    /// fragments, and all QUIC datagrams. The packets in QUIC datagrams are counted by `bundled`.
    pub control_datagrams: u64,
    /// Packets that came in QUIC datagrams. A datagram may hold several, or none.
    pub bundled: u64,
    /// Packets that another lane redirected to this one. That lane counted their arrival.
    pub redirected_in: u64,
    /// Packets that this lane redirected to another one. The other lane counts their outcome.
    pub redirected_out: u64,
    /// Refused datagrams. [`drops`](Self::drops) has their reasons, e.g. `bad_datagram` and `replayed`.
    pub refused_datagrams: u64,
    last_reason: Option<DropReason>,
}

impl Stats {
    /// Creates counters that are all zero, as [`Stats::default`] does.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a dropped packet under its reason. The sum of all dropped packets grows by one too.
    pub fn dropped(&mut self, reason: DropReason) {
        self.drops.0[reason as usize] += 1;
        self.totals.dropped += 1;
        self.last_reason = Some(reason);
    }

    /// Counts a refused datagram under its reason. The datagram does not count as a dropped packet, because it is
    /// unknown whether it held a packet.
    pub fn refused(&mut self, reason: DropReason) {
        self.drops.0[reason as usize] += 1;
        self.refused_datagrams += 1;
        self.last_reason = Some(reason);
    }

    /// The reason for which the last packet was dropped, or the last datagram refused. `None`: there was none yet.
    #[must_use]
    pub const fn last_reason(&self) -> Option<DropReason> {
        self.last_reason
    }

    /// Subtracts packets from the sent ones, and adds them to the dropped ones (`link_down`). The packets were counted
    /// as sent when they began to wait for a handshake. Then the handshake failed, or the link was removed. If fewer
    /// packets than `packets` are counted as sent, their counter becomes 0, and [`conserved`](Self::conserved) is false
    /// from then on.
    pub fn lost(&mut self, packets: u64) {
        self.totals.link_out = self.totals.link_out.saturating_sub(packets);
        self.totals.dropped += packets;
        self.drops.0[DropReason::LinkDown as usize] += packets;
    }

    /// Subtracts datagrams that the kernel refused to send, each as one packet, from the sent packets, and adds them to
    /// the dropped ones (`send_refused`). If some of the datagrams are handshakes, these are wrongly counted as
    /// packets, but they are few. At most `link_out` packets are moved, so that no counter wraps.
    pub fn not_sent(&mut self, datagrams: u64) {
        let packets = datagrams.min(self.totals.link_out);
        self.totals.link_out -= packets;
        self.totals.dropped += packets;
        self.drops.0[DropReason::SendRefused as usize] += packets;
    }

    /// Subtracts packets that the TUN device refused from the delivered ones, and adds them to the dropped ones
    /// (`device_refused`). At most `tun_out` packets are moved, so that no counter wraps.
    pub fn not_delivered(&mut self, packets: u64) {
        let packets = packets.min(self.totals.tun_out);
        self.totals.tun_out -= packets;
        self.totals.dropped += packets;
        self.drops.0[DropReason::DeviceRefused as usize] += packets;
    }

    /// Whether both sums of the type's documentation hold. False means that the engine has a bug.
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
        self.drops.0[reason as usize]
    }

    /// The drop reasons that were counted at least once, each with its number, in the order of [`DropReason::ALL`].
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.drops(*r)))
            .filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_counter_from_the_start() {
        let mut stats = Stats::default();
        for reason in DropReason::ALL {
            stats.dropped(*reason);
        }
        assert!(stats.drops_by_reason().all(|(_, count)| count == 1));
    }
}
