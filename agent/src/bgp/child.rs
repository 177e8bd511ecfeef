//! BIRD as a child process.
//!
//! A thread starts it, hands on what it logs, and waits for its end. That thread being its parent, the kernel ends BIRD when
//! the agent dies, and for nothing else. It ends by SIGTERM, so that neighbours hear a Cease and turn to another way at once:
//! without the agent nobody forwards.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, User};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Names in BIRD's directory. BIRD is started in it and has them without the way there, which it may not be allowed to go.
pub(super) const CONF: &str = "bird.conf";
const SOCKET: &str = "bird.ctl";
const PID: &str = "bird.pid";

/// Whom BIRD runs as where the agent may choose; Debian's package makes it.
const USER: &str = "bird";
/// What BIRD needs: port 179; signed sessions and its packets' priority.
const NEEDED: [(&str, u32); 2] = [("net_bind_service", 10), ("net_admin", 12)];
/// What it takes to give up the rest: CHOWN, SETGID, SETUID, SETPCAP.
const TO_CHANGE: [u32; 4] = [0, 6, 7, 8];

/// Longest line of BIRD's that is read, bytes.
const LONGEST_LINE: u64 = 4096;
/// Where programs are that a service's PATH may not name.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// BIRD's directory, and whom it runs as.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    user: Option<User>,
}

impl Home {
    /// Makes the directory, for the agent and BIRD alone.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        let failed = || dir.display().to_string();
        fs::create_dir_all(dir).with_context(failed)?;
        let dir = dir.canonicalize().with_context(failed)?;
        let socket = dir.join(SOCKET);
        // One byte of sun_path ends it.
        if socket.as_os_str().len() >= 108 {
            anyhow::bail!("{}: longer than the 107 bytes of a socket's path", socket.display());
        }
        let user = may_change_user().then(|| User::from_name(USER)).transpose()?.flatten();
        let home = Self { dir, user };
        home.share(&home.dir, 0o770).with_context(failed)?;
        Ok(home)
    }

    /// Gives BIRD's group a file, where BIRD has a user of its own.
    fn share(&self, path: &Path, mode: u32) -> std::io::Result<()> {
        if let Some(user) = &self.user {
            chown(path, None, Some(user.gid.as_raw()))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    /// Replaces the configuration. It has passwords.
    pub(super) fn write(&self, text: &str) -> Result<()> {
        let (path, new) = (self.dir.join(CONF), self.dir.join("bird.conf.new"));
        let step = || -> std::io::Result<()> {
            // A file that is left over has somebody's rights already.
            let _ = fs::remove_file(&new);
            fs::write(&new, "")?;
            self.share(&new, 0o640)?;
            fs::write(&new, text)?;
            fs::rename(&new, &path)
        };
        step().with_context(|| format!("writing {}", path.display()))
    }

    /// The control socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Removes what BIRD leaves.
    pub(super) fn clear(&self) {
        for name in [CONF, SOCKET, PID] {
            let _ = fs::remove_file(self.dir.join(name));
        }
    }

    /// `recovers`: BIRD was there a moment ago, and its neighbours keep its routes (RFC 4724).
    fn command(&self, recovers: bool) -> Result<Command> {
        let (setpriv, bird) = (find("setpriv")?, find("bird")?);
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "TERM", "--no-new-privs"]);
        if let Some(user) = &self.user {
            let (user, group) = (user.uid.to_string(), user.gid.to_string());
            command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
            let only = NEEDED.map(|(name, _)| format!(",+{name}")).concat();
            for set in ["inh-caps", "ambient-caps", "bounding-set"] {
                command.arg(format!("--{set}=-all{only}"));
            }
        }
        command.arg("--").arg(bird);
        command.args(["-f", "-c", CONF, "-s", SOCKET, "-P", PID]);
        if recovers {
            command.arg("-R");
        }
        command.env_clear().env("PATH", SYSTEM_PATH).current_dir(&self.dir);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok(command)
    }
}

/// Whether this process may hand its child to another user, and give it what it needs there.
fn may_change_user() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let held = held.and_then(|h| u64::from_str_radix(h.trim(), 16).ok()).unwrap_or(0);
    let needed = NEEDED.iter().map(|(_, bit)| bit).chain(&TO_CHANGE);
    needed.copied().all(|bit| held & (1 << bit) != 0)
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = OsString::from(SYSTEM_PATH);
    let mut candidates = std::env::split_paths(&path).chain(std::env::split_paths(&system));
    let found = candidates.find_map(|dir| Some(dir.join(program)).filter(|p| dir.is_absolute() && p.is_file()));
    found.with_context(|| format!("{program}: no such program on this host"))
}

/// What a running BIRD tells of itself.
#[derive(Debug)]
pub(super) enum Event {
    /// A line of its log.
    Log(String),
    /// It ended: how.
    Ended(String),
}

/// A running BIRD. Dropped, it is told to end.
#[derive(Debug)]
pub(super) struct Child {
    /// None once it was waited for: then the number may be another's.
    pid: Arc<Mutex<Option<Pid>>>,
    events: mpsc::Receiver<Event>,
}

impl Child {
    pub(super) async fn start(home: &Home, recovers: bool) -> Result<Self> {
        let mut command = home.command(recovers)?;
        let (begun, begins) = oneshot::channel();
        let (events, receiver) = mpsc::channel(256);
        let pid = Arc::new(Mutex::new(None));
        let shared = pid.clone();
        std::thread::Builder::new().name("bird".into()).spawn(move || {
            let child = command.spawn().context("starting bird");
            let mut child = match child {
                Ok(child) => child,
                Err(e) => return drop(begun.send(Err(e))),
            };
            let number = Pid::from_raw(child.id().cast_signed());
            *lock(&shared) = Some(number);
            let _ = begun.send(Ok(()));
            if let Some(log) = child.stderr.take() {
                read_log(log, &events);
            }
            // Ended, and not waited for yet: the number is still its own, until nobody can use it any more.
            let _ = waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let mut held = lock(&shared);
            *held = None;
            let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            drop(held);
            let _ = events.blocking_send(Event::Ended(how));
        })?;
        begins.await.context("starting bird")??;
        Ok(Self { pid, events: receiver })
    }

    /// What it tells next. Ends with [`Event::Ended`].
    pub(super) async fn next(&mut self) -> Event {
        let event = self.events.recv().await;
        event.unwrap_or_else(|| Event::Ended("nobody waits for it".into()))
    }

    /// SIGTERM is an orderly end: sessions are closed with a Cease.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = *lock(&self.pid) {
            let _ = kill(pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
    }
}

/// Nothing can panic while it is held.
fn lock(pid: &Mutex<Option<Pid>>) -> std::sync::MutexGuard<'_, Option<Pid>> {
    pid.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until BIRD closes it. Lines that nobody has time for are lost: BIRD must not wait for its log.
fn read_log(log: ChildStderr, events: &mpsc::Sender<Event>) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    while log
        .by_ref()
        .take(LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .is_ok_and(|n| n > 0)
    {
        let text = String::from_utf8_lossy(&line);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        let _ = events.try_send(Event::Log(text));
        line.clear();
    }
}
