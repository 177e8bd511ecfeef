//! BIRD as a service of its own, which a service manager starts when there is a configuration for it.
//!
//! ```text
//! service manager ── starts ──▶ tombolo-agent bird ── connects ──▶ start.sock of the agent
//!                                      │          ◀── "start" or "restart" ──
//!                                      └── becomes BIRD, which writes its log into that connection
//! ```
//!
//! The agent so learns of each BIRD's start, log and end, and says whether it restarts gracefully, without any right over it.
//! Neither of the two makes the service manager, which may do everything, open a file that the other one could replace.

use super::home::{CONFIG, CONTROL_SOCKET, Home, PID_FILE, START_SOCKET};
use super::process::{Event, MAX_LINE, MAX_WAITING_LINES, Process, printable};
use super::program::{bird_arguments, find};
use anyhow::{Context, Result, bail};
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// What the agent says to a BIRD that is about to start: afresh, or after another one whose routes neighbours keep.
const START: &str = "start\n";
const RESTART: &str = "restart\n";
/// Longest that a starting BIRD waits for that: twice the longest wait between two starts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest time between two starts; the service manager's own waits are longer. A BIRD that a neighbour has taken over can
/// cause no more work than this.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);

/// The agent's end.
#[derive(Debug)]
pub(super) struct Starts {
    listener: UnixListener,
    uid: u32,
    not_before: Instant,
}

impl Starts {
    /// Waits for BIRDs from now on.
    pub(super) fn listen(home: &Home) -> Result<Self> {
        let path = home.start_socket();
        let step = || -> std::io::Result<UnixListener> {
            // A killed agent leaves one behind.
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            if let Some(user) = home.user() {
                let group = user.gid.as_raw();
                if fs::symlink_metadata(&path)?.gid() != group {
                    lchown(&path, None, Some(group))?;
                }
                fs::set_permissions(&path, Permissions::from_mode(0o660))?;
            }
            Ok(listener)
        };
        Ok(Self {
            listener: step().with_context(|| path.display().to_string())?,
            uid: home.uid(),
            not_before: Instant::now(),
        })
    }

    /// Has BIRDs that would start before that time wait for it.
    pub(super) const fn none_before(&mut self, time: Instant) {
        self.not_before = time;
    }

    /// The next BIRD that is about to start. Nothing is lost if this is not waited for to its end.
    pub(super) async fn next(&mut self, recovers: bool) -> Process {
        loop {
            sleep_until(self.not_before).await;
            let accepted = self.listener.accept().await;
            self.not_before = Instant::now() + ACCEPT_INTERVAL;
            match accepted.and_then(|(stream, _)| greet(stream, self.uid, recovers)) {
                Ok(stream) => return follow(stream),
                Err(e) => tracing::debug!(error = %e, "a start of bird failed"),
            }
        }
    }
}

fn greet(stream: UnixStream, uid: u32, recovers: bool) -> std::io::Result<UnixStream> {
    let peer = stream.peer_cred()?.uid();
    if peer != uid {
        return Err(std::io::Error::other(format!("the user {peer} is not BIRD's ({uid})")));
    }
    let word = if recovers { RESTART } else { START };
    // Nothing was written before, so there is room.
    stream.try_write(word.as_bytes())?;
    Ok(stream)
}

/// Reads the log until BIRD, and nobody else, has ended.
fn follow(stream: UnixStream) -> Process {
    let (events, receiver) = mpsc::channel(MAX_WAITING_LINES);
    tokio::spawn(async move {
        let mut log = tokio::io::BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            let mut limited = (&mut log).take(MAX_LINE);
            if limited.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                break;
            }
            let _ = events.try_send(Event::Log(printable(&line)));
            line.clear();
        }
        let _ = events.send(Event::Ended("its log was closed".into())).await;
    });
    Process::new(receiver, None)
}

/// Becomes BIRD for an agent that listens in `config_dir`; `run_dir` gets BIRD's own files. Returns only if that fails.
///
/// # Errors
/// No agent listens there, this host has no BIRD, or it cannot be executed.
pub fn become_bird(config_dir: &Path, run_dir: &Path) -> Result<Infallible> {
    let socket = config_dir.join(START_SOCKET);
    let agent = std::os::unix::net::UnixStream::connect(&socket).with_context(|| {
        format!(
            "{}: no agent listens: start it with --bird-config-dir",
            socket.display()
        )
    })?;
    let failed = |e: anyhow::Error| {
        // The agent shows it as the reason why there is no BGP.
        let _ = writeln!(&agent, "{e:#}");
        Err(e)
    };
    let mut command = match prepare(&agent, config_dir, run_dir) {
        Ok(command) => command,
        Err(e) => return failed(e),
    };
    let log: OwnedFd = match agent.try_clone() {
        Ok(log) => log.into(),
        Err(e) => return failed(e.into()),
    };
    let error = command.stdout(Stdio::null()).stderr(log).exec();
    let _ = writeln!(&agent, "bird cannot be executed: {error}");
    Err(error).context("executing bird")
}

fn prepare(agent: &std::os::unix::net::UnixStream, config_dir: &Path, run_dir: &Path) -> Result<Command> {
    agent.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut word = String::new();
    let longest = RESTART.len().max(START.len()) as u64;
    BufReader::new(agent.take(longest)).read_line(&mut word)?;
    let recovers = match word.as_str() {
        START => false,
        RESTART => true,
        _ => bail!(
            "{START_SOCKET}: the agent says '{}', not start or restart",
            word.escape_debug()
        ),
    };
    let paths = [
        config_dir.join(CONFIG),
        run_dir.join(CONTROL_SOCKET),
        run_dir.join(PID_FILE),
    ];
    let [config, socket, pid] = &paths;
    let mut command = Command::new(find("bird")?);
    command
        .args(bird_arguments(config, socket, pid, recovers))
        .stdin(Stdio::null());
    Ok(command)
}
