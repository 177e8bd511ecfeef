//! BIRD as a child process, where no service manager starts it: in containers, labs and tests.
//!
//! A thread starts it, hands on what it logs, and waits for its end. That thread being its parent, the kernel ends BIRD when
//! the agent dies, and for nothing else. It ends by SIGTERM, so that neighbours hear a Cease and turn to another way at once:
//! without the agent nobody forwards.

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

/// Whom BIRD runs as where the agent may choose; Debian's package makes it.
const USER: &str = "bird";

/// A Linux capability, by its number.
type Capability = u32;
const CHOWN: Capability = 0;
const DAC_OVERRIDE: Capability = 1;
const KILL: Capability = 5;
const SETGID: Capability = 6;
const SETUID: Capability = 7;
const SETPCAP: Capability = 8;

/// What BIRD needs: port 179, and BFD's packets. Signed sessions (RFC 2385), TTL security and the packets' priority need no
/// more (Linux 6.1 and 6.18).
const NEEDED: [(&str, Capability); 2] = [("net_bind_service", 10), ("net_raw", 13)];
/// What the agent needs to start BIRD as another user, to give it its files and to end it.
const TO_CHANGE_USER: [Capability; 5] = [CHOWN, KILL, SETGID, SETUID, SETPCAP];

/// Capabilities of this process, one bit each.
#[derive(Debug, Clone, Copy)]
struct Capabilities(u64);

impl Capabilities {
    fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let held = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
        Self(held.and_then(|h| u64::from_str_radix(h.trim(), 16).ok()).unwrap_or(0))
    }

    const fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability) != 0
    }
}

/// The user that BIRD is started as; none: the agent's own.
pub(super) fn user() -> Result<Option<User>> {
    let Some(user) = User::from_name(USER)? else {
        return Ok(None);
    };
    Ok(may_choose(Capabilities::own(), &getgroups()?, user.gid).then_some(user))
}

/// Whether an agent with these capabilities, in these groups, can start BIRD as a user of that group. It reaches BIRD's socket as a
/// member, or because no file's mode holds it off.
fn may_choose(own: Capabilities, groups: &[Gid], group: Gid) -> bool {
    TO_CHANGE_USER.into_iter().all(|c| own.has(c)) && (own.has(DAC_OVERRIDE) || groups.contains(&group))
}

/// Starts BIRD. `recovers`: it was there a moment ago, and its neighbours keep its routes (RFC 4724).
pub(super) async fn start(home: &Home, recovers: bool) -> Result<Process> {
    let mut command = command(home, recovers)?;
    let (begun, begins) = oneshot::channel();
    let (events, receiver) = mpsc::channel(MAX_WAITING_LINES);
    let pid = SharedPid::default();
    let shared = pid.clone();
    std::thread::Builder::new().name("bird".into()).spawn(move || {
        let child = command.spawn().context("starting bird");
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return drop(begun.send(Err(e))),
        };
        let number = Pid::from_raw(child.id().cast_signed());
        *shared.lock() = Some(number);
        let _ = begun.send(Ok(()));
        if let Some(log) = child.stderr.take() {
            read_log(log, &events);
        }
        // Ended, and not waited for yet: the number is still its own, until nobody can use it any more.
        let _ = waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut held = shared.lock();
        *held = None;
        let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        drop(held);
        let _ = events.blocking_send(Event::Ended(how));
    })?;
    begins.await.context("starting bird")??;
    Ok(Process::new(receiver, Some(pid)))
}

fn command(home: &Home, recovers: bool) -> Result<Command> {
    let (setpriv, bird) = (find("setpriv")?, find("bird")?);
    let own = Capabilities::own();
    let given = NEEDED.into_iter().filter(|(_, c)| own.has(*c));
    let given = given.fold("-all".to_owned(), |given, (name, _)| format!("{given},+{name}"));
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM", "--no-new-privs"]);
    if let Some(user) = home.user() {
        let (user, group) = (user.uid.to_string(), user.gid.to_string());
        command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
    }
    for set in ["inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}={given}"));
    }
    // What root executes has all of the bounding set.
    if own.has(SETPCAP) {
        command.arg(format!("--bounding-set={given}"));
    } else if geteuid().is_root() {
        tracing::warn!(
            "bird has all capabilities of the agent: grant the agent CAP_SETPCAP, which it needs to withhold them"
        );
    }
    // BIRD is started in the directory and names its files without the way there, which it may not be allowed to go.
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

/// Until BIRD closes it. Lines that nobody has time for are lost: BIRD must not wait for its log.
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
    fn another_user_takes_the_capabilities_and_a_way_to_the_socket() {
        let group = Gid::from_raw(101);
        let of = |all: &[Capability]| Capabilities(all.iter().fold(0, |set, c| set | 1 << c));
        // A container's agent, as deploy/compose.yaml starts it: in the group, and held off by the modes of files.
        let container = of(&TO_CHANGE_USER);
        assert!(may_choose(container, &[Gid::from_raw(0), group], group));
        assert!(!may_choose(container, &[Gid::from_raw(0)], group));
        assert!(may_choose(
            of(&[&TO_CHANGE_USER[..], &[DAC_OVERRIDE]].concat()),
            &[],
            group
        ));
        for missing in TO_CHANGE_USER {
            let others: Vec<_> = TO_CHANGE_USER.into_iter().filter(|c| *c != missing).collect();
            assert!(!may_choose(
                of(&[&others[..], &[DAC_OVERRIDE]].concat()),
                &[group],
                group
            ));
        }
    }
}
