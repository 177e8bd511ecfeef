//! Token buckets that limit what a NIC sends and what passes the tunnels of a gateway (P32, G5).
//!
//! All lanes of an agent take their tokens from one bucket. A lane takes more tokens than a packet needs and keeps the
//! rest, so that it changes the shared word once for several packets, and no lane waits for another. A packet for which
//! there are no tokens is dropped. If all packets of a device count for one bucket, the lane does not read the device
//! while there are none (see [`Bucket::available_at`]), so that the kernel slows down the senders, and nothing is lost.
//!
//! In each interval of `t` seconds at most `rate × t + burst` bytes pass, over all lanes. A bucket holds a part of the
//! burst; the rest is what lanes may have taken without having used it yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tombolo_proto::config::MAX_LANES;

/// The burst of a bucket is what its rate passes in this time, in milliseconds. While a TCP connection repeats lost packets,
/// the bucket fills, and the connection then uses this credit. A shorter time costs throughput, and a longer one lets short
/// transfers exceed the rate.
const BURST_MS: u64 = 50;

/// Smallest burst, in bytes. The part that lanes do not keep must suffice for a packet of a kernel with segmentation offload,
/// which arrives as one burst.
const MIN_BURST: u64 = 128 << 10;

/// The length of such a packet at most, with the headers of all packets that it becomes.
const MAX_SUPER_PACKET: u64 = 72 << 10;

/// Most bytes that a lane takes from the shared bucket at once without need.
const MAX_CHUNK: u64 = 64 << 10;

/// The time for a byte at 1 Mbit/s, in nanoseconds.
const NANOSECONDS: u64 = 8_000;

/// A token bucket for one rate.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// In Mbit/s.
    rate: u64,
    /// Most bytes that a lane takes without need.
    chunk: u64,
    /// The time in which the shared bucket fills, in nanoseconds.
    depth: u64,
    level: Arc<Level>,
}

/// The shared state of a bucket.
#[derive(Debug, Default)]
struct Level {
    /// The beginning of the bucket's time: its first use.
    began: OnceLock<Instant>,
    /// When the bucket will be full, in nanoseconds of the bucket's time (the virtual scheduling algorithm of ITU-T
    /// I.371). A time in the past: it is full.
    full_at: AtomicU64,
}

/// The tokens that one lane has taken from a bucket and not used yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    /// Bytes that may pass.
    bytes: u64,
    /// The bucket has refused this number of bytes…
    refused: u64,
    /// … until this time, so that a lane need not ask before.
    refused_until: u64,
}

impl Bucket {
    /// A full bucket with a rate in Mbit/s. A rate of 0 counts as 1.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self::with(rate, Arc::default())
    }

    /// A bucket with another rate, in Mbit/s, that will be full at the time at which this one will be. So a change of the
    /// rate gives no additional burst.
    #[must_use]
    pub fn with_rate(&self, rate: u32) -> Self {
        Self::with(rate, self.level.clone())
    }

    fn with(rate: u32, level: Arc<Level>) -> Self {
        let rate = u64::from(rate.max(1));
        let burst = burst_of(rate);
        // All lanes together keep at most a quarter of the burst.
        let lanes = u64::from(MAX_LANES);
        let chunk = (burst / 4 / lanes).min(MAX_CHUNK);
        Self {
            rate,
            chunk,
            depth: (burst - chunk * lanes) * NANOSECONDS / rate,
            level,
        }
    }

    /// The rate in Mbit/s.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// The burst in bytes: what a full bucket passes at once, over all lanes.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        burst_of(self.rate)
    }

    /// Takes tokens for a packet of `len` bytes. Returns false, and takes nothing, if there are too few. `credit` must be
    /// the calling lane's own, for this bucket alone. `now` may go back, or differ between lanes: then fewer bytes pass,
    /// never more.
    #[inline]
    pub fn take(&self, credit: &mut Credit, len: usize, now: Instant) -> bool {
        let len = len as u64;
        if credit.bytes >= len {
            credit.bytes -= len;
            return true;
        }
        self.refill_and_take(credit, len, now)
    }

    /// When there are tokens for a packet of any length. `None`: now.
    #[must_use]
    pub fn available_at(&self, now: Instant) -> Option<Instant> {
        let began = *self.level.began.get_or_init(|| now);
        let at = u64::try_from(now.saturating_duration_since(began).as_nanos()).unwrap_or(u64::MAX);
        let cost = (MAX_SUPER_PACKET * NANOSECONDS).div_ceil(self.rate).min(self.depth);
        let full_at = self.level.full_at.load(Ordering::Relaxed);
        let until = full_at.max(at).saturating_add(cost).saturating_sub(self.depth);
        (until > at).then(|| began + Duration::from_nanos(until))
    }

    fn refill_and_take(&self, credit: &mut Credit, len: u64, now: Instant) -> bool {
        let began = *self.level.began.get_or_init(|| now);
        let now = u64::try_from(now.saturating_duration_since(began).as_nanos()).unwrap_or(u64::MAX);
        let missing = len - credit.bytes;
        if missing >= credit.refused && now < credit.refused_until {
            return false;
        }
        // If there is less than a chunk, what the packet needs may still be there.
        let chunk = (self.chunk > missing).then_some(self.chunk);
        for wanted in chunk.into_iter().chain([missing]) {
            match self.take_shared(wanted, now) {
                Ok(()) => {
                    credit.bytes += wanted - missing;
                    credit.bytes -= len - missing;
                    return true;
                }
                Err(until) => (credit.refused, credit.refused_until) = (wanted, until),
            }
        }
        false
    }

    /// Takes this number of bytes from the shared bucket. On failure, returns the earliest time at which they can be there.
    fn take_shared(&self, bytes: u64, now: u64) -> Result<(), u64> {
        let cost = (bytes * NANOSECONDS).div_ceil(self.rate);
        let mut full_at = self.level.full_at.load(Ordering::Relaxed);
        loop {
            let after = full_at.max(now).saturating_add(cost);
            if after - now > self.depth {
                return Err(after - self.depth);
            }
            // No other memory depends on the word, so no ordering is needed. Whenever this lane fails, another one has
            // taken tokens.
            let level = &self.level.full_at;
            match level.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now_there) => full_at = now_there,
            }
        }
    }
}

/// The burst of a rate in Mbit/s, in bytes.
const fn burst_of(rate: u64) -> u64 {
    // 1 Mbit/s is 125 bytes in a millisecond.
    let burst = rate * 125 * BURST_MS;
    if burst > MIN_BURST { burst } else { MIN_BURST }
}

#[cfg(test)]
mod tests;
