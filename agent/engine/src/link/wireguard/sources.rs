//! How many handshakes an address may begin: a bucket of tokens for each, in bounded memory.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshakes that an address may begin at once: as many agents behind one address that come up together.
const BURST: u32 = 200;

/// Time in which an address earns another one.
const REFILL: Duration = Duration::from_millis(20);

/// Buckets, a power of two. Addresses share one by a hash that nobody outside can compute, so nothing is ever evicted.
const BUCKETS: usize = 4096;

/// Buckets by source address.
pub(super) struct Sources {
    hasher: RandomState,
    /// When the bucket will be full again. In the past: it is full.
    full_at: Vec<Option<Instant>>,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            full_at: vec![None; BUCKETS],
        }
    }

    /// Takes a token; false: there is none left.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let slot = self.hasher.hash_one(network_of(source)) as usize % BUCKETS;
        let Some(full_at) = self.full_at.get_mut(slot) else {
            return false;
        };
        let full = full_at.map_or(now, |t| t.max(now));
        if full + REFILL > now + REFILL * BURST {
            return false;
        }
        *full_at = Some(full + REFILL);
        true
    }
}

/// Whoever has an IPv6 address has its whole /64.
pub(in crate::link) fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(a) => IpAddr::V4(a),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the clock is the test's")]
    fn an_address_has_a_burst_and_earns_more() {
        let (mut sources, now) = (Sources::new(), Instant::now());
        let source: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::ffff".parse().unwrap();
        let taken = (0..2 * BURST).filter(|_| sources.take(source, now)).count();
        assert_eq!(taken, BURST as usize);
        assert!(!sources.take(neighbour, now), "the same /64");
        let later = now + REFILL * 3;
        let taken = (0..BURST).filter(|_| sources.take(source, later)).count();
        assert_eq!(taken, 3);
        // Whoever else asks is heard.
        let others = (0..20u8)
            .filter(|i| sources.take(IpAddr::from([192, 0, 2, *i]), now))
            .count();
        assert!(others >= 19, "{others}");
        assert_eq!(sources.full_at.len(), BUCKETS);
    }
}
