//! Measures what a restart and a change cost at 1,000,000 flows (D34): saving, writing and loading the flows, and
//! checking them after a change of routes or rules.
//!
//! `flows FILE` uses FILE for the saved flows, which it then removes. An agent uses a file in memory (`/run`).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program for measurements: it may stop at anything unexpected, and brings the clock along"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::groups::{group, rule, security};
use common::{agent, link, vm};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::engine::Engine;
use tombolo_engine::link::PlainLinks;
use tombolo_engine::security::{BootTime, DEFAULT_FLOWS, FROM_HOST, FlowKey, FlowTable, Flows, TcpFlags};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::{Access, Direction, Relation, Security};

/// Number of flows.
const COUNT: u32 = 1_000_000;

/// Time for which a lane checks flows between two turns.
const RECHECK_TIME: Duration = Duration::from_micros(40);

/// The flow of a TCP connection from another machine.
fn key(number: u32) -> FlowKey {
    FlowKey {
        nic: 0,
        direction: Direction::Inbound,
        protocol: 6,
        source: std::net::Ipv4Addr::from(0x0a01_0000 + number / 16).into(),
        destination: [10, 0, 0, 1].into(),
        ports: (40_000 + (number % 16) as u16, 443),
    }
}

fn reply(key: &FlowKey) -> FlowKey {
    FlowKey {
        direction: key.direction.opposite(),
        source: key.destination,
        destination: key.source,
        ports: (key.ports.1, key.ports.0),
        ..*key
    }
}

/// The time that the calling thread has run on a CPU. Unlike the clock it is not longer on a busy machine.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Does something, and returns its result with the times that it took: on the CPU, and by the clock.
fn timed<T>(work: impl FnOnce() -> T) -> (T, String) {
    let (begun, cpu_before) = (Instant::now(), cpu());
    let result = work();
    (
        result,
        format!(
            "{:?} on the CPU, {:?} by the clock",
            cpu() - cpu_before,
            begun.elapsed()
        ),
    )
}

fn main() {
    let file = std::env::args().nth(1).expect("flows FILE");
    let at = BootTime {
        boot: [1; 16],
        since_boot: Duration::from_secs(1000),
    };
    let table = FlowTable::new(DEFAULT_FLOWS, 1, 7);
    for number in 0..COUNT {
        table.insert(&key(number), FROM_HOST, 240, 0).unwrap();
        let back = table.find(&reply(&key(number)), 0).unwrap();
        table.touch(&back, TcpFlags::default(), 0);
    }
    println!("{} flows", table.len());

    let (saved, took) = timed(|| table.save(&at, 1));
    println!("save: {took}; {} bytes", saved.len());
    let ((), took) = timed(|| std::fs::write(&file, &saved).unwrap());
    println!("write the file: {took}");

    let flows = Arc::new(Flows::new(DEFAULT_FLOWS, 9));
    let (read, took) = timed(|| std::fs::read(&file).unwrap());
    println!("read the file: {took}");
    let (count, took) = timed(|| flows.load(&read, &at, Instant::now()).unwrap());
    println!("load: {took}; {count} flows");
    std::fs::remove_file(&file).unwrap();
    drop((saved, read, table));

    let mut engine = Engine::new(PlainLinks::new(agent("vm")), 1);
    engine.share_flows(flows);
    for (what, reevaluate, priority) in [
        ("the start", false, 100),
        ("a change", false, 101),
        ("a change with reevaluate", true, 102),
    ] {
        let rules = vec![rule("all", priority, Direction::Inbound, Access::Allow)];
        let security = Security {
            reevaluate,
            ..security(&["10.0.0.1/32"], None, Some(group("web", rules)))
        };
        let peer = link("b", Relation::VnetLocal {}, &["10.1.0.0/16"]);
        let mut config = vm(
            "vm",
            &["10.0.0.1/24"],
            vec![peer],
            &[("10.0.0.1/32", "vm"), ("10.1.0.0/16", "b")],
        );
        config.security = Some(security);
        let tables = Tables::build(&config, &RoutingState::default()).unwrap();
        engine.install(Arc::new(tables), &config.links, Instant::now());
        let mut turns = Vec::new();
        let ((), took) = timed(|| {
            let mut left = true;
            while left {
                let turn = Instant::now();
                loop {
                    left = engine.recheck_flows();
                    if !left || turn.elapsed() >= RECHECK_TIME {
                        break;
                    }
                }
                turns.push(turn.elapsed());
            }
        });
        turns.sort();
        let share = |thousandths: usize| turns[(turns.len() - 1) * thousandths / 1000];
        println!(
            "check after {what}: {took}; {} turns, median {:?}, 99 % within {:?}",
            turns.len(),
            share(500),
            share(990)
        );
    }
}
