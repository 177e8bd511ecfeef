//! Applies the limits of bandwidth to packets (P32, G5).

use super::PacketContext;
use crate::bandwidth::Credit;
use crate::decide::Ingress;
use crate::tables::{Buckets, MAX_BUCKETS, Tables};
use crate::verdict::Verdict;

/// The tokens that a lane has taken from each bucket of the installed tables.
pub(super) type Credits = [Credit; MAX_BUCKETS];

impl<L, R> PacketContext<'_, L, R> {
    /// Whether the bandwidth suffices for a packet of `len` bytes that is about to be sent, or the packet counts for no
    /// limit. If the bandwidth suffices, it has been used.
    // Most agents have no limits, so the code of this function is kept out of the packet path.
    #[inline(never)]
    pub(super) fn has_bandwidth(
        &mut self,
        buckets: &Buckets,
        tables: &Tables,
        (ingress, verdict): (Ingress, Verdict),
        len: usize,
    ) -> bool {
        let charge = buckets.charge(&tables.links, ingress, verdict);
        charge.is_none_or(|charge| {
            let credit = &mut self.credits[charge.number];
            charge.bucket.take(credit, len * charge.times, self.now)
        })
    }
}
