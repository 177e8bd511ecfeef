//! The control plane under faults: all agents converge to their newest configurations, an outage of the controller changes
//! no agent's configuration, and a seed always gives the same run.

use tombolo_tests::simulation::Simulation;

/// The seeds that every run plays. It also plays random ones, and one that once failed.
const FIXED: std::ops::Range<u64> = 0..150;

#[test]
fn everyone_comes_to_run_what_it_should() {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|s| s.parse().ok());
    let fresh: u64 = given.unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={fresh}");
    let (mut received, mut faults) = (0, 0);
    // In the run of this seed an agent is deleted, and another host joins with the deleted agent's name.
    let rejoined = 2_666_218_544_002_482_707;
    for seed in FIXED.chain([rejoined]).chain((0..30).map(|n| fresh.wrapping_add(n))) {
        let played = Simulation::play(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        received += played.received();
        faults += played
            .log
            .iter()
            .filter(|l| l.contains("dead") || l.contains("breaks"))
            .count();
    }
    println!("{received} configurations received, {faults} faults");
    assert!(received > 1000 && faults > 500, "{received} {faults}");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [3, 7, 11] {
        let [a, b] = [(); 2].map(|()| Simulation::play(seed).unwrap_or_else(|e| panic!("{e}")).log);
        assert_eq!(a, b);
    }
}
