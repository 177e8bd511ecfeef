//! Removes all that a lab has made. Works from the state alone, so that it works after a crash too.

use crate::host::Hosts;
use crate::state::State;
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long processes get to end in order.
const GRACE: Duration = Duration::from_secs(3);

/// Ends every process and removes every host; goes on after a failure.
pub(crate) fn all(hosts: &dyn Hosts, state: &State) -> Result<()> {
    let mut failed = Vec::new();
    for process in state.processes.values() {
        let _ = process.signal(Signal::SIGTERM);
    }
    let deadline = Instant::now() + GRACE;
    for (name, process) in &state.processes {
        let left = deadline.saturating_duration_since(Instant::now());
        if process.wait(left).is_err()
            && let Err(e) = process.kill()
        {
            failed.push(format!("{name}: {e:#}"));
        }
    }
    for host in &state.hosts {
        empty(hosts, host);
        if let Err(e) = hosts.remove(host) {
            failed.push(format!("{host}: {e:#}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not everything could be removed: {}", failed.join("; "))
}

/// Ends what else runs on a host: shells, pings, a process that was started just before a crash.
fn empty(hosts: &dyn Hosts, host: &str) {
    let deadline = Instant::now() + GRACE;
    while hosts.exists(host) && Instant::now() < deadline {
        let left = hosts.processes(host);
        if left.is_empty() {
            return;
        }
        for pid in left {
            // The host is the lab's own, and so is what runs on it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
