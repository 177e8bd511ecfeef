//! Client of BIRD's control socket. The client opens a connection for each command, and parses the reply to `show
//! protocols all`.

use super::home::Home;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tombolo_proto::status::BgpPeerState;

/// Timeout of a command. BIRD does not answer while it reads its configuration. For 40,000 routes that takes 0.2 s, so
/// 5 s are ample.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest reply that is read, in bytes: far more than the state of the 253 sessions that can be configured. The limit
/// protects the agent's memory from a compromised BIRD.
const MAX_REPLY: u64 = 4 << 20;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// BIRD did not reply, so a later attempt may succeed.
    #[error("bird does not answer on its control socket: {0}")]
    NoReply(String),
    /// BIRD replied with this error. The same command would fail again.
    #[error("bird refused the command: {0}")]
    Refused(String),
}

/// Sends a command to BIRD, and returns the lines of BIRD's reply without their codes. Each call opens a connection and
/// closes it.
///
/// # Errors
/// BIRD refuses the command, does not run, or does not reply within [`COMMAND_TIMEOUT`]. If a process of another user
/// than BIRD's listens on the socket, the process gets no command, and the result is [`Failure::NoReply`].
pub(super) async fn send_command(home: &Home, command: &str) -> Result<Vec<String>, Failure> {
    let socket = home.control_socket();
    let reply = tokio::time::timeout(COMMAND_TIMEOUT, exchange(&socket, home.uid(), command));
    match reply.await {
        Ok(Ok(reply)) => reply.map_err(Failure::Refused),
        Ok(Err(e)) => Err(Failure::NoReply(e.to_string())),
        Err(_) => Err(Failure::NoReply(format!(
            "no reply within {} s",
            COMMAND_TIMEOUT.as_secs()
        ))),
    }
}

async fn exchange(socket: &Path, uid: u32, command: &str) -> std::io::Result<Result<Vec<String>, String>> {
    let mut stream = UnixStream::connect(socket).await?;
    // BIRD's user can write the directory, so a compromised BIRD could replace its socket by a link to another
    // program's socket. The agent must not send commands to that program.
    let listener = stream.peer_cred()?.uid();
    if listener != uid {
        let message = format!(
            "{}: user {listener} listens here, not BIRD's user {uid}",
            socket.display()
        );
        return Err(std::io::Error::other(message));
    }
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut lines = BufReader::new(stream.take(MAX_REPLY)).split(b'\n');
    let (mut greeted, mut reply) = (false, Vec::new());
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line).into_owned();
        let (code, text) = split_code(&line);
        match code {
            // The greeting: "0001 BIRD 2.0.12 ready."
            Some((1, _)) if !greeted => greeted = true,
            // 8xxx: runtime errors; 9xxx: syntax errors.
            Some((8000.., true)) => return Ok(Err(text.to_owned())),
            Some((_, true)) => {
                reply.push(text.to_owned());
                return Ok(Ok(reply));
            }
            Some((_, false)) | None => reply.push(text.to_owned()),
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// Splits a line of a reply into its code and its text. The code is a number of four digits. The flag next to it says
/// whether the reply ends with this line. A line without a code has the same code as the line before; its first
/// character, a blank, is dropped.
fn split_code(line: &str) -> (Option<(u16, bool)>, &str) {
    let code = line.get(..4).filter(|c| c.bytes().all(|b| b.is_ascii_digit()));
    let code = code.and_then(|c| c.parse().ok());
    match (code, line.get(4..5), line.get(5..)) {
        (Some(code), Some(" "), Some(text)) => (Some((code, true)), text),
        (Some(code), Some("-"), Some(text)) => (Some((code, false)), text),
        _ => (None, line.get(1..).unwrap_or_default()),
    }
}

/// A session's state as BIRD reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Session {
    pub state: BgpPeerState,
    /// When the present state began, in seconds of Unix time; 0 if unknown.
    pub since: u64,
    /// Routes imported from the neighbour, of both families.
    pub received: u64,
    /// Routes exported to the neighbour, of both families.
    pub sent: u64,
    pub last_error: Option<String>,
    /// Whether the session is down because the neighbour restarts gracefully (RFC 4724). Each end then keeps the routes
    /// that it has received from the other.
    pub restarting: bool,
}

/// Parses the reply to `show protocols all`. Returns the BGP sessions by the name of their protocol in BIRD. The
/// configuration must have `timeformat protocol "%s"`, so that times are Unix times. Unknown lines are ignored, and a
/// number that cannot be parsed counts as 0.
pub(super) fn parse_sessions(reply: &[String]) -> BTreeMap<String, Session> {
    let mut sessions = BTreeMap::new();
    let mut current: Option<(String, Session)> = None;
    for line in reply {
        if !line.starts_with(' ') && !line.is_empty() {
            sessions.extend(current.take());
            // The line with which BIRD begins the description of a session (the heading of the reply does not match):
            // n_x        BGP        ---        up     1795681816    Established
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [name, "BGP", _table, up_or_not, since, ..] = words[..] {
                let state = match up_or_not {
                    "up" => BgpPeerState::Connected,
                    "down" => BgpPeerState::Stopped,
                    _ => BgpPeerState::Connecting,
                };
                let session = Session {
                    state,
                    since: since.parse().unwrap_or_default(),
                    ..Session::default()
                };
                current = Some((name.to_owned(), session));
            }
        } else if let Some((_, session)) = &mut current {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            session.set_detail(key.trim(), value.trim());
        }
    }
    sessions.extend(current);
    sessions
}

impl Session {
    /// Enters the value of one indented line of `show protocols all`, which the caller has split at its first colon.
    fn set_detail(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("Neighbor graceful restart active", _) => self.restarting = true,
            ("BGP state", "Idle") if self.state == BgpPeerState::Connecting => self.state = BgpPeerState::Idle,
            ("Last error", error) => {
                // BIRD retries a session with too many routes after a wait, and reports the state "start" meanwhile.
                // The agent reports "stopped" instead, because the session stays down until the neighbour sends fewer
                // routes.
                if error.ends_with("Route limit exceeded") && self.state != BgpPeerState::Connected {
                    self.state = BgpPeerState::Stopped;
                }
                self.last_error = Some(error.to_owned());
            }
            // One line for each family: "3 imported, 1 filtered, 2 exported, 3 preferred".
            ("Routes", counts) => {
                let count = |n: &str| n.parse().unwrap_or(0);
                for part in counts.split(',') {
                    match part.trim().split_once(' ') {
                        Some((n, "imported")) => self.received = self.received.saturating_add(count(n)),
                        Some((n, "exported")) => self.sent = self.sent.saturating_add(count(n)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
