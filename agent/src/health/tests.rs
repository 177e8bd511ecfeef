//! The prober against back ends that are stacks of their own. Time is simulated.

mod backend;
mod hostile;
mod http;
mod schedule;
mod tcp;
mod world;

use super::{ProbeProtocol, ProbeSpec, Target};
use std::time::Duration;

fn target(address: &str, protocol: ProbeProtocol, port: u16) -> Target {
    Target {
        address: address.parse().unwrap(),
        probe: ProbeSpec {
            protocol,
            port,
            path: "/health".to_owned(),
            interval: Duration::from_secs(5),
            threshold: 2,
        },
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
