//! Tests of token buckets. The clock is the tests'.
#![allow(clippy::disallowed_methods, reason = "the clock is the test's")]

use super::{Bucket, Credit, MAX_SUPER_PACKET};
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// What a rate in Mbit/s passes in this time, in bytes.
fn bytes(rate: u32, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * 125 * time.as_nanos() / 1_000_000).unwrap()
}

/// One packet: the lane, the time since the packet before in microseconds, how far the lane's clock is behind, and the
/// length.
fn packets() -> impl Strategy<Value = Vec<(usize, u64, u64, usize)>> {
    let pause = prop_oneof![8 => 0u64..200, 1 => 0u64..20_000, 1 => 0u64..300_000];
    prop::collection::vec((0usize..64, pause, 0u64..2000, 20usize..=9000), 1..400)
}

proptest! {
    /// P32, G5: in no interval of the lanes' clocks more bytes pass than the rate and one burst allow, whatever lanes the
    /// packets come to, and although the clock of a lane may be behind that of another one.
    #[test]
    fn p32_g5_no_interval_passes_more_than_rate_and_burst(rate in prop_oneof![Just(1u32), 1u32..2000], packets in packets()) {
        let bucket = Bucket::new(rate);
        let mut credits = [Credit::default(); 64];
        let begin = Instant::now() + Duration::from_secs(1);
        let mut at = Duration::from_millis(5);
        let mut passed: Vec<(Duration, u64)> = Vec::new();
        for (lane, pause, behind, len) in packets {
            at += Duration::from_micros(pause);
            let seen = at - Duration::from_micros(behind);
            // A device with segmentation offload passes many packets at once.
            for _ in 0..45 {
                if bucket.take(&mut credits[lane], len, begin + seen) {
                    passed.push((seen, len as u64));
                }
            }
        }
        for first in (0..passed.len()).step_by(31) {
            let (mut sum, mut least, mut most) = (0, passed[first].0, passed[first].0);
            for (seen, len) in &passed[first..] {
                sum += len;
                (least, most) = (least.min(*seen), most.max(*seen));
                let allowed = bytes(rate, most - least) + bucket.burst();
                prop_assert!(sum <= allowed, "{sum} bytes in {:?}, {allowed} allowed", most - least);
            }
        }
    }
}

/// P32: of a load that is always too high, the whole rate passes, with one lane and with several.
#[test]
fn p32_a_load_that_is_too_high_gets_the_whole_rate() {
    for (rate, lanes) in [(1u32, 1), (50, 1), (50, 4), (650, 4), (10_000, 64)] {
        let bucket = Bucket::new(rate);
        let mut credits = vec![Credit::default(); lanes];
        let begin = Instant::now();
        let time = Duration::from_secs(2);
        let step = Duration::from_micros(500);
        // Twice the rate.
        let each = (bytes(rate, step) * 2 / 1400).max(1);
        let (mut passed, mut at, mut number) = (0u64, Duration::ZERO, 0);
        while at < time {
            for _ in 0..each {
                number += 1;
                passed += u64::from(bucket.take(&mut credits[number % lanes], 1400, begin + at)) * 1400;
            }
            at += step;
        }
        let expected = bytes(rate, time);
        assert!(
            passed * 100 >= expected * 98,
            "{rate} Mbit/s, {lanes} lanes: {passed} of {expected}"
        );
        assert!(
            passed <= expected + bucket.burst(),
            "{rate} Mbit/s, {lanes} lanes: {passed}"
        );
    }
}

/// G5: several threads that take tokens at the same moment get one burst together.
#[test]
fn g5_threads_share_one_burst() {
    let bucket = Bucket::new(100);
    let now = Instant::now();
    let taken: u64 = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut credit = Credit::default();
                    (0..20_000).filter(|_| bucket.take(&mut credit, 100, now)).count() as u64 * 100
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
    });
    assert!(taken <= bucket.burst(), "{taken} of {}", bucket.burst());
    assert!(taken * 10 >= bucket.burst() * 7, "{taken} of {}", bucket.burst());
}

/// An empty bucket passes again as soon as it has what a packet needs, and short packets before long ones.
#[test]
fn an_empty_bucket_fills_with_time() {
    let bucket = Bucket::new(8);
    let (mut credit, now) = (Credit::default(), Instant::now());
    while bucket.take(&mut credit, 1000, now) {}
    while bucket.take(&mut credit, 10, now) {}
    let later = |micros| now + Duration::from_micros(micros);
    // At 8 Mbit/s a byte takes a microsecond.
    assert!(!bucket.take(&mut credit, 1000, later(500)));
    assert!(bucket.take(&mut credit, 100, later(500)));
    assert!(!bucket.take(&mut credit, 1000, later(900)));
    assert!(bucket.take(&mut credit, 1000, later(1200)));
    // The clock of another lane is far behind.
    assert!(!bucket.take(&mut Credit::default(), 1000, now));
    assert!(bucket.take(&mut credit, 1000, later(1_000_000)));
}

/// A new configuration with another rate gives no second burst, and the new rate applies at once.
#[test]
fn a_change_of_the_rate_continues_with_the_level() {
    let (mut credit, now) = (Credit::default(), Instant::now());
    let bucket = Bucket::new(1000);
    while bucket.take(&mut credit, 1000, now) {}
    let slower = bucket.with_rate(100);
    assert!(!slower.take(&mut Credit::default(), 1000, now));
    let mut credit = Credit::default();
    let (mut passed, mut at) = (0u64, now);
    while at < now + Duration::from_secs(1) {
        at += Duration::from_micros(100);
        passed += (0..4).filter(|_| slower.take(&mut credit, 1000, at)).count() as u64 * 1000;
    }
    let expected = bytes(100, Duration::from_secs(1));
    assert!(passed.abs_diff(expected) * 50 <= expected, "{passed} of {expected}");
}

/// P32: a lane that reads its device only when the bucket has tokens for the longest packet drops nothing, and the rate is
/// used.
#[test]
fn p32_a_lane_that_waits_for_tokens_drops_nothing() {
    for rate in [1, 10, 50, 1000] {
        let bucket = Bucket::new(rate);
        let (begin, mut credit, mut passed) = (Instant::now(), Credit::default(), 0);
        let mut now = begin;
        while now < begin + Duration::from_secs(2) {
            if let Some(at) = bucket.available_at(now) {
                assert!(at > now, "{rate}");
                now = at;
                continue;
            }
            let len = usize::try_from(MAX_SUPER_PACKET).unwrap() - 7;
            assert!(bucket.take(&mut credit, len, now), "{rate}: a packet is lost");
            passed += len as u64;
        }
        let expected = bytes(rate, Duration::from_secs(2));
        assert!(
            passed >= expected && passed <= expected + bucket.burst() + MAX_SUPER_PACKET,
            "{rate}: {passed} of {expected}"
        );
    }
}
