//! Predicted is observed: on random topologies with security groups, `explain` and IP flow verify of a running
//! controller predict which connections between real agents succeed, and which rules count them.

use anyhow::{Context, Result, ensure};
use tombolo_tests::live::require_root;
use tombolo_tests::policy::in_process::Tally;
use tombolo_tests::policy::{Policy, in_process, live};

/// The number of topologies of a run, if `TOMBOLO_LIVE_TOPOLOGIES` does not set another one.
const TOPOLOGIES: u64 = 5;

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// N1 to N11, D25, D26, D28, M4: for every pair of machines, and TCP, UDP and ICMP, the live verdict is the predicted
/// one, and the counters of exactly the predicted rules grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn predicted_is_observed() -> Result<()> {
    require_root();
    let first = number_of("TOMBOLO_SEED").unwrap_or_else(rand::random);
    let count = number_of("TOMBOLO_LIVE_TOPOLOGIES").unwrap_or(TOPOLOGIES);
    println!("TOMBOLO_SEED={first}");
    let mut total = Tally::default();
    for number in 0..count {
        let seed = first.wrapping_add(number);
        let tally = check(seed).await.with_context(|| {
            format!(
                "TOMBOLO_SEED={seed} TOMBOLO_LIVE_TOPOLOGIES=1 cargo test --test e2e predicted_is_observed repeats this"
            )
        })?;
        println!("seed {seed}: {tally:?}");
        total.add(&tally);
    }
    println!("{count} topologies: {total:?}");
    ensure!(total.asked > 0 && total.denied > 0, "nothing was denied: {total:?}");
    Ok(())
}

/// Checks one topology: first without processes, because such a difference is easier to understand, and then live.
async fn check(seed: u64) -> Result<Tally> {
    let policy = Policy::draw(seed);
    in_process::check(&policy, 1.0, None).map_err(anyhow::Error::msg)?;
    live::check(&policy, "e2e-predictions").await
}
