//! Limits the handshakes that a source address may initiate, by token buckets in bounded memory.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Number of handshakes that an address may initiate at once. The number is high because many agents behind one NAT may
/// start at the same time.
const BURST: u32 = 200;

/// Time after which an address gets another token, so that it may initiate 50 handshakes per second.
const REFILL_INTERVAL: Duration = Duration::from_millis(20);

/// Number of buckets, which need 64 KB. A keyed hash maps addresses to buckets. So no bucket is ever evicted. Because
/// the key is secret, a sender cannot choose an address whose bucket is also that of a certain other address.
const BUCKETS: usize = 4096;

/// Token buckets by source address.
pub(super) struct Sources {
    hasher: RandomState,
    /// Time at which each bucket is full again. A bucket is full if its time is in the past, or if it has no time.
    full_at: Vec<Option<Instant>>,
}

impl Sources {
    /// Creates full buckets, with a random key for the hash.
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            full_at: vec![None; BUCKETS],
        }
    }

    /// Takes a token from the bucket of this source. Returns `false` if the bucket is empty.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let slot = self.hasher.hash_one(network_of(source)) as usize % BUCKETS;
        let Some(full_at) = self.full_at.get_mut(slot) else {
            return false;
        };
        let full = full_at.map_or(now, |t| t.max(now));
        // A bucket with `n` missing tokens is full again after `n` intervals. If more than `BURST` tokens would be
        // missing after this one, the bucket is empty.
        if full + REFILL_INTERVAL > now + REFILL_INTERVAL * BURST {
            return false;
        }
        *full_at = Some(full + REFILL_INTERVAL);
        true
    }
}

/// The network that counts as one source: an IPv4 address, or an IPv6 /64, because a host can use all addresses of its
/// /64. An IPv4-mapped address counts as the IPv4 address.
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
        let later = now + REFILL_INTERVAL * 3;
        let taken = (0..BURST).filter(|_| sources.take(source, later)).count();
        assert_eq!(taken, 3);
        // Other addresses have other buckets; one of twenty may share the empty bucket by chance.
        let others = (0..20u8)
            .filter(|i| sources.take(IpAddr::from([192, 0, 2, *i]), now))
            .count();
        assert!(others >= 19, "{others}");
        assert_eq!(sources.full_at.len(), BUCKETS);
    }
}
