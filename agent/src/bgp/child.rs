//! BIRD as a child process, for hosts where no service manager starts it: containers, labs and tests.
//!
//! A dedicated thread starts BIRD, forwards its log and waits for its end. The kernel sends the parent-death signal
//! (`prctl(2)`, `PR_SET_PDEATHSIG`) when the *thread* that created the process ends, so the dedicated thread lives as
//! long as BIRD. The signal is SIGTERM. BIRD then sends a Cease, so that neighbours switch to another path at once. The
//! neighbours must switch, because nothing forwards their packets after the agent has ended.

use super::home::{CONFIG, CONTROL_SOCKET, Home, PID_FILE, RUN_DIR};
use super::process::{Event, MAX_LINE, MAX_WAITING_LINES, Process, SharedPid, printable};
use super::program::{SYSTEM_PATH, bird_arguments, find};
use anyhow::{Context, Result};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, User, geteuid, getgroups};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use tokio::sync::{mpsc, oneshot};

/// The user that BIRD runs as, if the agent may change users. Debian's package `bird2` creates this user.
const USER: &str = "bird";

/// The number of a capability in `linux/capability.h`.
type Capability = u32;
const CHOWN: Capability = 0;
const DAC_OVERRIDE: Capability = 1;
const KILL: Capability = 5;
const SETGID: Capability = 6;
const SETUID: Capability = 7;
const SETPCAP: Capability = 8;

/// The capabilities that BIRD gets: to bind port 179, and to send BFD packets. TCP MD5 signatures (RFC 2385), TTL
/// security and packet priority need no further capability (tested on Linux 6.1 and 6.18).
const NEEDED: [(&str, Capability); 2] = [("net_bind_service", 10), ("net_raw", 13)];
/// Capabilities that the agent needs to start BIRD as another user, to change the group of its files and to signal it.
const TO_CHANGE_USER: [Capability; 5] = [CHOWN, KILL, SETGID, SETUID, SETPCAP];

/// A capability set, one bit for each capability.
#[derive(Debug, Clone, Copy)]
struct Capabilities(u64);

impl Capabilities {
    /// The effective set of this process. The set is empty if `/proc` does not show it; BIRD then runs as the agent's
    /// user.
    fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
        Self(
            effective
                .and_then(|h| u64::from_str_radix(h.trim(), 16).ok())
                .unwrap_or(0),
        )
    }

    const fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability) != 0
    }
}

/// The user that BIRD runs as. None: BIRD runs as the agent's own user, because there is no user `bird` or the agent
/// may not change users. Fails if the user database or the agent's groups cannot be read.
pub(super) fn user() -> Result<Option<User>> {
    let Some(user) = User::from_name(USER)? else {
        return Ok(None);
    };
    Ok(may_change_user(Capabilities::own(), &getgroups()?, user.gid).then_some(user))
}

/// Whether an agent with the capabilities `own` and the groups `groups` can run BIRD as a user whose group is `group`.
/// The agent must also be able to connect to BIRD's socket, so it must be a member of the group or have
/// CAP_DAC_OVERRIDE.
fn may_change_user(own: Capabilities, groups: &[Gid], group: Gid) -> bool {
    TO_CHANGE_USER.into_iter().all(|c| own.has(c)) && (own.has(DAC_OVERRIDE) || groups.contains(&group))
}

/// Starts BIRD with the files of `home`, in a thread of its own. Returns when the process exists, before BIRD has read
/// its configuration. With `recovers` BIRD starts as after a graceful restart (RFC 4724): neighbours may still keep the
/// routes of the BIRD that ran before.
///
/// # Errors
/// `bird` or `setpriv` is not installed, or the thread or the process cannot be started.
pub(super) async fn start(home: &Home, recovers: bool) -> Result<Process> {
    let mut command = command(home, recovers)?;
    let (started_sender, started) = oneshot::channel();
    let (events, receiver) = mpsc::channel(MAX_WAITING_LINES);
    let pid = SharedPid::default();
    let shared = pid.clone();
    std::thread::Builder::new().name("bird".into()).spawn(move || {
        let child = command.spawn().context("starting bird");
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return drop(started_sender.send(Err(e))),
        };
        let number = Pid::from_raw(child.id().cast_signed());
        *shared.lock() = Some(number);
        // Sending fails only if the runtime shuts down while `start` waits. BIRD then ends too, by its parent-death
        // signal.
        let _ = started_sender.send(Ok(()));
        if let Some(log) = child.stderr.take() {
            read_log(log, &events);
        }
        // WNOWAIT leaves a zombie, which keeps its process ID. So `SharedPid` is cleared before the kernel can reuse
        // the ID, and no signal reaches another process.
        let _ = waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut pid = shared.lock();
        *pid = None;
        let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        drop(pid);
        // The send fails if the supervisor has ended. Nobody needs the event then.
        let _ = events.blocking_send(Event::Ended(how));
    })?;
    started.await.context("starting bird")??;
    Ok(Process::new(receiver, Some(pid)))
}

fn command(home: &Home, recovers: bool) -> Result<Command> {
    let (setpriv, bird) = (find("setpriv")?, find("bird")?);
    let own = Capabilities::own();
    let granted = NEEDED.into_iter().filter(|(_, c)| own.has(*c));
    let granted = granted.fold("-all".to_owned(), |all, (name, _)| format!("{all},+{name}"));
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM", "--no-new-privs"]);
    if let Some(user) = home.user() {
        let (user, group) = (user.uid.to_string(), user.gid.to_string());
        command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
    }
    for set in ["inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}={granted}"));
    }
    // A program that root executes gets the whole bounding set as its permitted set (`capabilities(7)`), so the
    // bounding set must also be reduced to what BIRD needs.
    if own.has(SETPCAP) {
        command.arg(format!("--bounding-set={granted}"));
    } else if geteuid().is_root() {
        tracing::warn!(
            "bird has all capabilities of the agent: grant the agent CAP_SETPCAP, which it needs to withhold them"
        );
    }
    // BIRD gets relative paths, with its own directory as working directory. BIRD's user may lack access to the parent
    // directories, and a file can be opened by its absolute path only with that access.
    let run = Path::new(RUN_DIR);
    let arguments = bird_arguments(
        Path::new(CONFIG),
        &run.join(CONTROL_SOCKET),
        &run.join(PID_FILE),
        recovers,
    );
    command.arg("--").arg(bird).args(arguments);
    command
        .env_clear()
        .env("PATH", SYSTEM_PATH)
        .current_dir(home.config_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Forwards log lines until BIRD closes the pipe. Lines that do not fit into the channel are dropped. If this function
/// waited for room instead, the pipe would fill and BIRD would block.
fn read_log(log: ChildStderr, events: &mpsc::Sender<Event>) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    while log
        .by_ref()
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .is_ok_and(|n| n > 0)
    {
        let _ = events.try_send(Event::Log(printable(&line)));
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_the_user_needs_capabilities_and_access_to_the_socket() {
        let group = Gid::from_raw(101);
        let of = |all: &[Capability]| Capabilities(all.iter().fold(0, |set, c| set | 1 << c));
        // The agent of a container, as deploy/compose.yaml starts it, is in BIRD's group and lacks CAP_DAC_OVERRIDE.
        let container = of(&TO_CHANGE_USER);
        assert!(may_change_user(container, &[Gid::from_raw(0), group], group));
        assert!(!may_change_user(container, &[Gid::from_raw(0)], group));
        assert!(may_change_user(
            of(&[&TO_CHANGE_USER[..], &[DAC_OVERRIDE]].concat()),
            &[],
            group
        ));
        for missing in TO_CHANGE_USER {
            let others: Vec<_> = TO_CHANGE_USER.into_iter().filter(|c| *c != missing).collect();
            assert!(!may_change_user(
                of(&[&others[..], &[DAC_OVERRIDE]].concat()),
                &[group],
                group
            ));
        }
    }
}
