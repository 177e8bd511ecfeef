//! Source ports of probes.

use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The ports that RFC 6335 leaves to short-lived use.
const FIRST: u16 = 49_152;
const COUNT: u16 = u16::MAX - FIRST + 1;

/// How long a port is not used again for the same endpoint: TIME-WAIT on Linux.
const REUSE_DELAY: Duration = Duration::from_secs(60);

/// Allocates source ports. Each endpoint has its own sequence of 16,384 ports, which begins at a random port and takes
/// more than 4 hours at the shortest interval.
#[derive(Default)]
pub(super) struct Ports(HashMap<SocketAddr, Sequence>);

struct Sequence {
    offset: u16,
    used_at: Instant,
}

impl Ports {
    /// The next port for a connection to `endpoint` for which `is_used` is false. If all are in use, the next port.
    pub(super) fn take(
        &mut self,
        endpoint: SocketAddr,
        now: Instant,
        rng: &mut impl Rng,
        is_used: impl Fn(u16) -> bool,
    ) -> u16 {
        let sequence = self.0.entry(endpoint).or_insert_with(|| Sequence {
            offset: rng.random_range(0..COUNT),
            used_at: now,
        });
        sequence.used_at = now;
        let mut port = FIRST;
        for _ in 0..COUNT {
            port = FIRST + sequence.offset;
            sequence.offset = (sequence.offset + 1) % COUNT;
            if !is_used(port) {
                break;
            }
        }
        port
    }

    /// Forgets the sequences of endpoints that are not in `endpoints` and whose last port may be used again.
    pub(super) fn retain(&mut self, endpoints: &HashSet<SocketAddr>, now: Instant) {
        self.0.retain(|endpoint, sequence| {
            endpoints.contains(endpoint) || now.saturating_duration_since(sequence.used_at) < REUSE_DELAY
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn a_port_returns_after_all_others_even_if_the_target_was_removed() {
        let (mut ports, mut rng) = (Ports::default(), StdRng::seed_from_u64(1));
        let endpoint = SocketAddr::from(([10, 0, 0, 4], 80));
        let now = Instant::now();
        let first = ports.take(endpoint, now, &mut rng, |_| false);
        ports.retain(&HashSet::new(), now + REUSE_DELAY - Duration::from_secs(1));
        let mut seen = HashSet::from([first]);
        for _ in 1..COUNT {
            let port = ports.take(endpoint, now, &mut rng, |_| false);
            assert!(port >= FIRST && seen.insert(port), "{port}");
        }
        assert_eq!(ports.take(endpoint, now, &mut rng, |_| false), first);
        ports.retain(&HashSet::new(), now + REUSE_DELAY);
        assert!(ports.0.is_empty(), "memory is bounded");
    }

    #[test]
    fn a_port_in_use_is_skipped() {
        let (mut ports, mut rng) = (Ports::default(), StdRng::seed_from_u64(1));
        let endpoint = SocketAddr::from(([10, 0, 0, 4], 80));
        let now = Instant::now();
        let first = ports.take(endpoint, now, &mut rng, |_| false);
        let used = FIRST + (first - FIRST + 1) % COUNT;
        assert_ne!(ports.take(endpoint, now, &mut rng, |port| port == used), used);
        ports.take(endpoint, now, &mut rng, |_| true);
    }
}
