//! Predictions about security groups on random topologies, without processes: `explain`, IP flow verify, the agents'
//! engines and the reference model must give the same verdict about each connection, and name the same rules. The same
//! topologies with real agents: `tests/tests/e2e/security_predictions.rs`.

use tombolo_proto::config::AgentConfig;
use tombolo_tests::policy::Policy;
use tombolo_tests::policy::in_process::{Tally, check};
use tombolo_tests::world::Mutation;

/// The number of topologies of a run, if `TOMBOLO_TOPOLOGIES` does not set another one.
const TOPOLOGIES: u64 = 2000;

/// The share of all questions about a topology that are asked. In the same time, more topologies find more defects than
/// more questions about one topology.
const SHARE: f64 = 0.1;

/// The first seed of a run: `TOMBOLO_SEED`, or a random number. It is printed, so that a failure can be repeated.
fn first_seed() -> u64 {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={seed}");
    seed
}

fn topologies() -> u64 {
    let given = std::env::var("TOMBOLO_TOPOLOGIES").ok().and_then(|s| s.parse().ok());
    given.unwrap_or(TOPOLOGIES)
}

/// N1 to N11, D25, D26, D28, M4: all four give the same verdict, and name the same rules.
#[test]
fn predictions_agree() {
    let (first, count) = (first_seed(), topologies());
    let mut total = Tally::default();
    for number in 0..count {
        let seed = first.wrapping_add(number);
        match check(&Policy::draw(seed), SHARE, None) {
            Ok(tally) => total.add(&tally),
            Err(difference) => panic!(
                "TOMBOLO_SEED={seed} TOMBOLO_TOPOLOGIES=1 cargo test --test predictions predictions_agree repeats this:\n{difference}"
            ),
        }
    }
    println!("{count} topologies: {total:?}");
    let at_least = |counter: u32, share: u32| {
        assert!(
            u64::from(counter) * 1000 >= u64::from(share) * u64::from(total.asked),
            "{total:?}"
        );
    };
    if count >= 100 {
        // Comparisons prove nothing about cases that never occur.
        at_least(total.reachable, 300);
        at_least(total.denied, 150);
        at_least(total.forwarded, 30);
        at_least(total.verified, 2000);
        assert!(total.open * 100 < total.asked, "{total:?}");
    }
}

/// The number of seeds within which the comparison must notice a defect.
const MAX_SEEDS: u64 = 100;

fn must_be_caught(what: &str, mutation: Mutation) {
    let caught = (0..MAX_SEEDS).find(|seed| {
        let policy = Policy::draw(*seed);
        check(&policy, SHARE, Some(mutation)).is_err() && check(&policy, SHARE, None).is_ok()
    });
    let seed = caught.unwrap_or_else(|| panic!("{what}: {MAX_SEEDS} seeds did not catch it"));
    println!("{what}: caught by seed {seed}");
}

/// N4: with the defect, agents apply the groups in the opposite order. The verdicts are the same, but other rules
/// decide.
#[test]
fn agents_with_another_order_of_groups_are_caught() {
    must_be_caught(
        "N4, order",
        Mutation::Config(|config: &mut AgentConfig| {
            for nic in config.security.iter_mut().flat_map(|s| &mut s.nics) {
                std::mem::swap(&mut nic.subnet_group, &mut nic.nic_group);
            }
        }),
    );
}

/// N6: with the defect, rules decide about replies too.
#[test]
fn agents_without_flows_are_caught() {
    must_be_caught("N6", Mutation::Forgetful);
}

/// N9: with the defect, application security groups lack one of their members.
#[test]
fn agents_that_miss_a_member_of_an_application_security_group_are_caught() {
    must_be_caught(
        "N9, application security groups",
        Mutation::Config(|config: &mut AgentConfig| {
            for group in config.security.iter_mut().flat_map(|s| &mut s.application_groups) {
                group.addresses.pop();
            }
        }),
    );
}
