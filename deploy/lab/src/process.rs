//! Long-running processes of a lab, with their output in log files.
//!
//! A process is identified by its process id and its start time. So the lab never signals a later process that has the
//! same id.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Time between two checks whether a process has ended. The lab has to poll: the kernel notifies only the parent of a
/// process that ends, and this program may not be the parent.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Longest time that a process may take to end after SIGKILL. Before the process can end, the kernel may have to finish
/// a system call of the process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A process that this program or another one has started on this machine. The process may have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Process id on this machine.
    pub pid: i32,
    /// Start time, clock ticks since boot. A later process with the same id has another start time.
    pub started: u64,
    /// File to which the process's output is appended.
    pub log: PathBuf,
}

/// Returns this program's children by process id. A child stays here until it has ended and was reaped.
fn children() -> &'static Mutex<HashMap<i32, Child>> {
    static CHILDREN: OnceLock<Mutex<HashMap<i32, Child>>> = OnceLock::new();
    CHILDREN.get_or_init(Mutex::default)
}

/// Starts a program in the background and returns as soon as its process exists. Its output is appended to the file
/// `log`, which is created if it is missing, but not its folder. Its standard input is empty. `environment` is added to
/// this program's own. The program is in a process group of its own, so Ctrl-C does not reach it.
///
/// If `tied`, the kernel kills the program when this program ends in any way. The program is then started by `setpriv`,
/// so a missing program is no error here: the process ends a moment later, and its log contains the reason.
///
/// All programs run in the network namespace in which the first caller of this function in this process was, and not in
/// that of the present caller. To use another namespace, put a command such as `ip netns exec` into `argv`.
///
/// # Errors
/// `argv` is empty, the log cannot be written, the program (if `tied`: `setpriv`) cannot be started, or the process has
/// ended already when its start time is read.
pub fn start(argv: &[String], log: &Path, environment: &[(String, String)], tied: bool) -> Result<Process> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("log {}", log.display()))?;
    let mut argv = argv.to_vec();
    if tied {
        argv.splice(0..0, ["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
    }
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // Ctrl-C signals the foreground process group. The process is put into a group of its own, so that Ctrl-C does
        // not end it and only the lab does.
        .process_group(0);
    let child = on_spawner_thread(move || command.spawn())?.with_context(|| format!("starting '{program}'"))?;
    let pid = child.id().cast_signed();
    lock().insert(pid, child);
    let started = start_time(pid).with_context(|| format!("'{program}' ended at once, see {}", log.display()))?;
    Ok(Process {
        pid,
        started,
        log: log.to_owned(),
    })
}

fn lock() -> std::sync::MutexGuard<'static, HashMap<i32, Child>> {
    // A poisoned lock is ignored, because a panic of another thread cannot leave the map invalid.
    children().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `job` on the one thread that starts all processes and never ends. The thread must not end, because the kernel
/// sends the parent-death signal when the thread that started the child ends, and not only when the program ends.
fn on_spawner_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    type Job = Box<dyn FnOnce() + Send>;
    static STARTER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        std::thread::spawn(move || receiver.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (reply, result) = mpsc::channel();
    let job: Job = Box::new(move || {
        // The receiver waits below, so sending cannot fail.
        let _ = reply.send(job());
    });
    starter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .ok()
        .context("the thread that starts processes is gone")?;
    result.recv().context("the thread that starts processes is gone")
}

impl Process {
    /// Returns the process that has the id `pid` at present; `None` if no process has this id or it is a zombie without
    /// other threads. `log` is the file that contains the process's output; it is not opened.
    #[must_use]
    pub fn from_pid(pid: i32, log: &Path) -> Option<Self> {
        Some(Self {
            pid,
            started: start_time(pid)?,
            log: log.to_owned(),
        })
    }

    /// Whether the process still runs. A zombie has ended, unless it has other threads. Reaps the process if it is this
    /// program's child.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.reap();
        start_time(self.pid) == Some(self.started)
    }

    /// Reaps the child if it has ended.
    fn reap(&self) {
        let mut children = lock();
        if let Some(child) = children.get_mut(&self.pid)
            && matches!(child.try_wait(), Ok(Some(_)) | Err(_))
        {
            children.remove(&self.pid);
        }
    }

    /// Sends a signal, unless the process has ended. Does not wait for an effect. A process that has ended is no error.
    ///
    /// # Errors
    /// The kernel refuses the signal, for example because this program does not run as root.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.alive() {
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("signalling {}", self.pid))?;
        }
        Ok(())
    }

    /// Blocks the thread until the process has ended; returns at once if it has ended before. Sends no signal.
    ///
    /// # Errors
    /// The process still runs after `limit`.
    ///
    /// # Panics
    /// If the end of `limit` is later than an [`Instant`] can be, as with [`Duration::MAX`].
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() > deadline {
                bail!("process {} still runs after {} s", self.pid, limit.as_secs_f64());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Kills the process with SIGKILL, and blocks until it has ended. A process that has ended before is no error.
    ///
    /// # Errors
    /// The kernel refuses the signal, or the process still runs after five seconds.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(KILL_TIMEOUT)
    }

    /// Sends SIGTERM, and SIGKILL if the process still runs after `grace`. Blocks until it has ended. Returns true if
    /// the process ended without SIGKILL, or had ended before the call.
    ///
    /// # Errors
    /// The kernel refuses a signal, or the process still runs five seconds after SIGKILL.
    ///
    /// # Panics
    /// As [`Self::wait`], for `grace`.
    pub fn stop(&self, grace: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(grace).is_ok() {
            return Ok(true);
        }
        self.kill()?;
        Ok(false)
    }

    /// Returns the last `lines` lines of the process's log, as [`tail`].
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

/// Returns the last `lines` lines of a file, joined by newlines, with no newline at the end. Empty if the file cannot
/// be read. Reads the whole file. Bytes that are not valid UTF-8 are replaced by U+FFFD.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Returns the start time of the process with this id, in clock ticks since boot; `None` if the process has ended.
///
/// A zombie counts as running while it has other threads, because these still hold its files and locks.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces and parentheses. After the name, the first field is the state, and the
    // 20th is the start time.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        if threads.count() <= 1 {
            return None;
        }
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_process_is_started_logged_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let process = start(&argv("sleep 60"), &log, &[], true).unwrap();
        assert!(process.alive());
        let stranger = Process {
            started: process.started + 1,
            ..process.clone()
        };
        assert!(
            !stranger.alive(),
            "the same pid with another start time is somebody else"
        );
        stranger.kill().unwrap();
        assert!(process.alive());
        assert!(process.stop(Duration::from_secs(5)).unwrap());
        assert!(!process.alive());

        let process = start(&argv("echo hello"), &log, &[], false);
        if let Ok(process) = &process {
            process.wait(Duration::from_secs(5)).unwrap();
        }
        assert_eq!(tail(&log, 1), "hello");
    }
}
