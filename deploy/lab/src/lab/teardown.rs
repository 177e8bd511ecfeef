//! Removes everything that a lab has made. This needs only the record in [`State`], so it is also possible after a
//! crash.

use crate::host::Hosts;
use crate::state::State;
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Longest wait for the processes of a lab to end: once for all recorded processes after SIGTERM, and then once for
/// each host after SIGKILL to the host's remaining processes.
const TERMINATE_GRACE: Duration = Duration::from_secs(3);

/// Time between two rounds of kills on a host. A round may miss a process that is being forked.
const KILL_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Ends every process and removes every host that `state` records. Blocks meanwhile. Continues after a failure. The
/// state folder stays.
///
/// # Errors
/// A process or host could not be removed; the message lists all of them.
pub(crate) fn all(hosts: &dyn Hosts, state: &State) -> Result<()> {
    let mut failed = Vec::new();
    for process in state.processes.values() {
        // An error of SIGTERM is ignored: a process that still runs is killed below, and an error of that kill is
        // reported.
        let _ = process.signal(Signal::SIGTERM);
    }
    let deadline = Instant::now() + TERMINATE_GRACE;
    for (name, process) in &state.processes {
        let left = deadline.saturating_duration_since(Instant::now());
        if process.wait(left).is_err()
            && let Err(e) = process.kill()
        {
            failed.push(format!("{name}: {e:#}"));
        }
    }
    for host in &state.hosts {
        kill_remaining(hosts, host);
        if let Err(e) = hosts.remove(host) {
            failed.push(format!("{host}: {e:#}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not everything could be removed: {}", failed.join("; "))
}

/// Kills all other processes of a host: shells, pings, and processes that a crash has left without a record.
fn kill_remaining(hosts: &dyn Hosts, host: &str) {
    let deadline = Instant::now() + TERMINATE_GRACE;
    while hosts.exists(host) && Instant::now() < deadline {
        let left = hosts.processes(host);
        if left.is_empty() {
            return;
        }
        for pid in left {
            // Every process in the host's namespace belongs to the lab, so it may be killed without a check. A process
            // that has ended meanwhile is no error.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(KILL_POLL_INTERVAL);
    }
}
