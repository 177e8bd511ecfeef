//! Long-running processes of a lab: started with their output in a log file, known by pid *and* start time, so that
//! nothing but what the lab started is ever signalled.

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

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot: a pid that is used again has another one.
    pub started: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

/// Children of this program; they are kept to be reaped.
fn children() -> &'static Mutex<HashMap<i32, Child>> {
    static CHILDREN: OnceLock<Mutex<HashMap<i32, Child>>> = OnceLock::new();
    CHILDREN.get_or_init(Mutex::default)
}

/// Starts a program with its output appended to `log`. A `tied` one is killed when this program ends, however it ends.
///
/// # Errors
/// The log cannot be written or the program cannot be started.
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
        // Ctrl-C is for the program in front; it then ends its processes in order.
        .process_group(0);
    let child = on_immortal_thread(move || command.spawn())?.with_context(|| format!("starting '{program}'"))?;
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
    // A panic elsewhere leaves the map as valid as before.
    children().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel sends the parent-death signal when the *thread* that started the child ends, so one thread, which lives
/// as long as the program, starts them all.
fn on_immortal_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    type Job = Box<dyn FnOnce() + Send>;
    static STARTER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        std::thread::spawn(move || receiver.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (reply, result) = mpsc::channel();
    let job: Job = Box::new(move || {
        // The other end waits below.
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
    /// A process that somebody else started; none if it has ended.
    #[must_use]
    pub fn of(pid: i32, log: &Path) -> Option<Self> {
        Some(Self {
            pid,
            started: start_time(pid)?,
            log: log.to_owned(),
        })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.reap();
        start_time(self.pid) == Some(self.started)
    }

    /// Takes the exit status of an ended child, so that no zombie stays.
    fn reap(&self) {
        let mut children = lock();
        if let Some(child) = children.get_mut(&self.pid)
            && matches!(child.try_wait(), Ok(Some(_)) | Err(_))
        {
            children.remove(&self.pid);
        }
    }

    /// Sends a signal, if it is still this process.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.alive() {
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("signalling {}", self.pid))?;
        }
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() > deadline {
                bail!("process {} still runs after {} s", self.pid, limit.as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it at once, without a chance to tidy up.
    ///
    /// # Errors
    /// It does not go away.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(5))
    }

    /// Asks it to end, and kills it when it has not after `grace`. Returns whether it ended by itself.
    ///
    /// # Errors
    /// It does not go away.
    pub fn stop(&self, grace: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(grace).is_ok() {
            return Ok(true);
        }
        self.kill()?;
        Ok(false)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

/// The last lines of a file; empty if it cannot be read.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Start time of a running process, clock ticks since boot; none for one that ended. A zombie has ended when its last
/// thread has: until then its files, and the locks on them, are still held.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; what follows it is regular: state first, start time as the 20th.
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
