//! BIRD as a separate service. A service manager starts BIRD while the file with BIRD's configuration exists.
//!
//! ```text
//! service manager ── starts ──▶ tombolo-agent bird ── connects ──▶ start.sock of the agent
//!                                      │          ◀── "start" or "restart" ──
//!                                      └── becomes BIRD, which writes its log into that connection
//! ```
//!
//! Over the connection to `start.sock` the agent learns of each start, log line and end of BIRD, and tells BIRD whether
//! to restart gracefully. So the agent needs no rights over BIRD's process. The service manager runs as root. In this
//! design the service manager opens no file that the agent or BIRD could replace by a link to another file.

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

/// The agent's answers to a BIRD that is about to start: a cold start, or a graceful restart (RFC 4724), after which
/// neighbours may still keep the routes of the BIRD that ran before.
const START: &str = "start\n";
const RESTART: &str = "restart\n";
/// How long a starting BIRD waits for the agent's answer. The time is twice the agent's longest restart backoff (30 s),
/// so that BIRD still waits when the backoff ends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest time between two starts of BIRD that the agent accepts. The limit bounds the work that a compromised BIRD
/// can cause by connecting again and again. The service manager's own restart delay is longer, so this limit does not
/// delay a start by the service manager.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);

/// The agent's listener, to which BIRD connects when a service manager starts it.
#[derive(Debug)]
pub(super) struct StartListener {
    listener: UnixListener,
    /// BIRD's user ID. Connections of other users are refused.
    uid: u32,
    not_before: Instant,
}

impl StartListener {
    /// Binds the socket in the configuration directory, and lets BIRD's group read and write it. A socket with this
    /// name is replaced.
    ///
    /// # Errors
    /// The socket cannot be bound, or its group or mode cannot be set.
    pub(super) fn bind(home: &Home) -> Result<Self> {
        let path = home.start_socket();
        let step = || -> std::io::Result<UnixListener> {
            // A killed agent leaves its socket. If the removal fails, the error is reported by `bind`, because the name
            // is then in use.
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

    /// Delays further starts of BIRD until the given time. If the service manager starts BIRD earlier, BIRD waits for
    /// the agent's answer until that time.
    pub(super) const fn delay_until(&mut self, time: Instant) {
        self.not_before = time;
    }

    /// Waits until BIRD starts, and answers with a graceful restart (`recovers`) or a cold start. Returns the handle of
    /// that BIRD. Connections of other users are closed and logged. Cancel safe: a BIRD that was not answered yet is
    /// answered by the next call.
    pub(super) async fn accept(&mut self, recovers: bool) -> Process {
        loop {
            sleep_until(self.not_before).await;
            let accepted = self.listener.accept().await;
            self.not_before = Instant::now() + ACCEPT_INTERVAL;
            match accepted.and_then(|(stream, _)| answer(stream, self.uid, recovers)) {
                Ok(stream) => return read_log(stream),
                Err(e) => tracing::debug!(error = %e, "refused a start of bird"),
            }
        }
    }
}

/// Checks that BIRD's user has connected, and sends the answer. Closes the connection at an error.
fn answer(stream: UnixStream, uid: u32, recovers: bool) -> std::io::Result<UnixStream> {
    let peer = stream.peer_cred()?.uid();
    if peer != uid {
        return Err(std::io::Error::other(format!(
            "user {peer} connected, not BIRD's user {uid}"
        )));
    }
    let answer = if recovers { RESTART } else { START };
    // The send buffer of a new connection is empty, so a write of a few bytes succeeds at once and completely.
    stream.try_write(answer.as_bytes())?;
    Ok(stream)
}

/// Reads the log in a task of its own. Only BIRD holds the other end of the connection, so end of file means that BIRD
/// has ended.
fn read_log(stream: UnixStream) -> Process {
    let (events, receiver) = mpsc::channel(MAX_WAITING_LINES);
    tokio::spawn(async move {
        let mut log = tokio::io::BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            let mut limited = (&mut log).take(MAX_LINE);
            if limited.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                break;
            }
            // A line that does not fit into the queue is dropped. If this task waited for room instead, BIRD would
            // block on its log.
            let _ = events.try_send(Event::Log(printable(&line)));
            line.clear();
        }
        // The send fails if the supervisor has ended. Nobody needs the event then.
        let _ = events.send(Event::Ended("its log was closed".into())).await;
    });
    Process::new(receiver, None)
}

/// Replaces the calling process by BIRD (`execve(2)`), for the agent that listens in `config_dir`. First waits for the
/// agent's answer, which may take as long as the agent's restart backoff, and blocks the calling thread. The process
/// must run as BIRD's user, because the agent closes the connections of other users. BIRD inherits the environment of
/// this process. BIRD's own files are created in `run_dir`. Returns only after a failure. If the agent was reached, it
/// gets the reason as a log line.
///
/// # Errors
/// No agent listens in `config_dir`, the agent does not answer within 60 s, closes the connection, or answers something
/// unknown, BIRD is not installed, or it cannot be executed.
pub fn become_bird(config_dir: &Path, run_dir: &Path) -> Result<Infallible> {
    let socket = config_dir.join(START_SOCKET);
    let agent = std::os::unix::net::UnixStream::connect(&socket).with_context(|| {
        format!(
            "{}: no agent listens here: start the agent with --bird-config-dir",
            socket.display()
        )
    })?;
    let failed = |e: anyhow::Error| {
        // The agent logs this line. If the connection is gone, the caller still gets the reason.
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
    // The agent logs this line too.
    let _ = writeln!(&agent, "bird cannot be executed: {error}");
    Err(error).context("executing bird")
}

/// Waits for the agent's answer, and builds BIRD's command line from it.
fn prepare(agent: &std::os::unix::net::UnixStream, config_dir: &Path, run_dir: &Path) -> Result<Command> {
    agent.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut answer = String::new();
    let longest = RESTART.len().max(START.len()) as u64;
    BufReader::new(agent.take(longest)).read_line(&mut answer)?;
    let recovers = match answer.as_str() {
        START => false,
        RESTART => true,
        _ => bail!(
            "{START_SOCKET}: the agent answered '{}' instead of 'start' or 'restart'",
            answer.escape_debug()
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
