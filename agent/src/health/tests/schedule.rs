//! When targets are probed.

use super::super::{MAX_TARGETS, ProbeProtocol, Prober, Target};
use super::backend::Behaviour;
use super::world::World;
use super::{secs, target};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

fn many(count: u32) -> Vec<Target> {
    let address = |n: u32| IpAddr::from((0x0a00_0004 + n).to_be_bytes());
    (0..count)
        .map(|n| target(&address(n).to_string(), ProbeProtocol::Tcp, 80))
        .collect()
}

/// The times of first SYNs by target, of silent back ends.
fn starts(prober: &mut Prober, start: Instant, time: Duration) -> HashMap<IpAddr, Vec<Duration>> {
    let mut starts: HashMap<IpAddr, Vec<Duration>> = HashMap::new();
    let mut ports = HashMap::new();
    let mut now = start;
    while now < start + time {
        prober.poll(now, &mut |packet| {
            let address = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            if ports.insert(address, port) != Some(port) {
                starts.entry(address).or_default().push(now - start);
            }
        });
        let next = prober.next_due().unwrap();
        assert!(next > now);
        now = next;
    }
    starts
}

#[test]
fn l6_probes_are_spread_over_the_interval() {
    let start = Instant::now();
    let mut prober = Prober::new(3);
    prober.set_targets(&many(64), start);
    let starts = starts(&mut prober, start, secs(40));
    assert_eq!(starts.len(), 64);
    assert!(starts.values().all(|s| s[0] < secs(1)), "all are known after a second");
    for time in 15..35 {
        // In each second, a fifth of the targets.
        let (from, to) = (secs(time), secs(time + 1));
        let count = starts.values().flatten().filter(|at| (from..to).contains(*at)).count();
        assert!((11..=15).contains(&count), "{count} probes in second {time}");
    }
    let mut steady: Vec<Duration> = starts.values().map(|s| s[3]).collect();
    steady.sort();
    let gap = steady.windows(2).map(|w| w[1] - w[0]).min().unwrap();
    assert!(gap > Duration::from_millis(20), "{gap:?}: no two at the same time");
    for starts in starts.values() {
        let second = starts[1] - starts[0];
        assert!(second >= secs(5) && second < secs(10), "{second:?}");
        for pair in starts[1..].windows(2) {
            let period = pair[1] - pair[0];
            assert!(period < secs(5) + Duration::from_micros(2), "{period:?}");
            assert!(period + Duration::from_micros(2) > secs(5), "{period:?}");
        }
    }
}

#[test]
fn at_most_one_probe_of_a_target_is_in_flight() {
    let mut targets = many(1);
    let mut now = Instant::now();
    let mut prober = Prober::new(3);
    prober.set_targets(&targets, now);
    let end = now + secs(20);
    let mut packets = 0;
    while now < end {
        now = prober.next_due().unwrap();
        prober.poll(now, &mut |_| packets += 1);
        assert!(prober.flows.len() <= 1);
        if targets[0].probe.interval != secs(1) {
            assert_eq!(packets, 1, "the first probe has begun and lasts 5 seconds");
            targets[0].probe.interval = secs(1);
            prober.set_targets(&targets, now);
        }
    }
    assert!(packets > 15);
}

#[test]
fn the_schedule_is_a_function_of_the_seed() {
    let start = Instant::now();
    let run = |seed| {
        let mut prober = Prober::new(seed);
        prober.set_targets(&many(8), start);
        starts(&mut prober, start, secs(20))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn after_a_pause_of_the_agent_the_targets_are_still_spread() {
    let start = Instant::now();
    let mut prober = Prober::new(3);
    prober.set_targets(&many(64), start);
    starts(&mut prober, start, secs(30));
    let later = start + secs(3600) + Duration::from_millis(2_345);
    let starts = starts(&mut prober, later, secs(10));
    let burst = starts.values().flatten().filter(|at| **at == Duration::ZERO).count();
    assert!(burst <= 64 / 4 + 1, "{burst} at once");
    assert!(starts.values().all(|s| (1..=3).contains(&s.len())), "none is forgotten");
}

#[test]
fn a_poll_before_the_due_time_does_nothing() {
    let mut world = World::new(&many(8));
    for (index, target) in many(8).iter().enumerate() {
        match index % 3 {
            0 => world.serve(&target.address.to_string(), &[(80, Behaviour::Accept)]),
            1 => world.serve(&target.address.to_string(), &[(80, Behaviour::Hang)]),
            _ => {}
        }
    }
    for _ in 0..500 {
        world.run(Duration::from_millis(50));
        let due = world.prober.next_due().unwrap();
        let health = world.health();
        for early in [world.now, due - Duration::from_nanos(1)] {
            world.prober.poll(early, &mut |_| panic!("a packet before {due:?}"));
            assert_eq!((world.prober.next_due(), world.health()), (Some(due), health.clone()));
        }
    }
    assert!(world.health().iter().any(|up| *up));
}

#[test]
fn a_prober_without_targets_is_never_due() {
    let prober = Prober::new(1);
    assert_eq!(prober.next_due(), None);
}

#[test]
fn targets_over_the_limit_stay_down_and_are_not_probed() {
    let start = Instant::now();
    let mut prober = Prober::new(3);
    let targets = many(MAX_TARGETS as u32 + 2);
    prober.set_targets(&targets, start);
    let probed = starts(&mut prober, start, secs(2));
    assert_eq!(probed.len(), MAX_TARGETS);
    assert!(targets[..MAX_TARGETS].iter().all(|t| probed.contains_key(&t.address)));
    assert_eq!(prober.health().count(), MAX_TARGETS + 2);
    assert!(prober.health().map(|(t, _)| t).eq(&targets), "in order");
    // The last target takes a place that becomes free.
    let last = &targets[MAX_TARGETS + 1..];
    prober.set_targets(last, start + secs(2));
    let probed = starts(&mut prober, start + secs(2), secs(10));
    assert_eq!(probed.len(), 1);
}

#[test]
fn extreme_intervals_and_thresholds_are_bounded() {
    let start = Instant::now();
    let mut targets = many(3);
    targets[0].probe.interval = Duration::ZERO;
    targets[1].probe.interval = Duration::MAX;
    targets[2].probe.threshold = 0;
    let mut prober = Prober::new(3);
    prober.set_targets(&targets, start);
    let starts = starts(&mut prober, start, secs(20));
    assert!((18..=21).contains(&starts[&targets[0].address].len()));
    assert_eq!(starts[&targets[1].address].len(), 1);
}
