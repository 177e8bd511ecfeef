//! BIRD's control socket: one command a connection, and what `show protocols` says of sessions.

use super::home::Home;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tombolo_proto::status::BgpPeerState;

/// A BIRD that takes longer than this is counted as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nothing that is asked for comes near this, bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody answers: another time, perhaps.
    #[error("bird does not answer: {0}")]
    Silent(String),
    /// BIRD's words.
    #[error("bird refuses: {0}")]
    Refused(String),
}

/// Gives a command and returns what BIRD says, line by line, without the codes.
///
/// # Errors
/// Nobody answers, or BIRD refuses.
pub(super) async fn ask(home: &Home, command: &str) -> Result<Vec<String>, Failure> {
    let socket = home.control_socket();
    let asked = tokio::time::timeout(PATIENCE, converse(&socket, home.uid(), command));
    match asked.await {
        Ok(Ok(answer)) => answer.map_err(Failure::Refused),
        Ok(Err(e)) => Err(Failure::Silent(e.to_string())),
        Err(_) => Err(Failure::Silent(format!("{} s are over", PATIENCE.as_secs()))),
    }
}

async fn converse(socket: &Path, uid: u32, command: &str) -> std::io::Result<Result<Vec<String>, String>> {
    let mut stream = UnixStream::connect(socket).await?;
    // The directory is BIRD's own: the name could be a link to another program's socket.
    let listener = stream.peer_cred()?.uid();
    if listener != uid {
        let message = format!("{}: the user {listener} listens, not BIRD's ({uid})", socket.display());
        return Err(std::io::Error::other(message));
    }
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut lines = BufReader::new(stream.take(MAX_ANSWER)).split(b'\n');
    let (mut greeted, mut said) = (false, Vec::new());
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line).into_owned();
        let (code, text) = split(&line);
        match code {
            // "0001 BIRD 2.0.12 ready."
            Some((1, _)) if !greeted => greeted = true,
            Some((8000.., true)) => return Ok(Err(text.to_owned())),
            Some((_, true)) => {
                said.push(text.to_owned());
                return Ok(Ok(said));
            }
            Some((_, false)) | None => said.push(text.to_owned()),
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// The code of a line, and whether it is the last one with it; the text. Lines without a code go on under the one before.
fn split(line: &str) -> (Option<(u16, bool)>, &str) {
    let code = line.get(..4).filter(|c| c.bytes().all(|b| b.is_ascii_digit()));
    let code = code.and_then(|c| c.parse().ok());
    match (code, line.get(4..5), line.get(5..)) {
        (Some(code), Some(" "), Some(text)) => (Some((code, true)), text),
        (Some(code), Some("-"), Some(text)) => (Some((code, false)), text),
        _ => (None, line.get(1..).unwrap_or_default()),
    }
}

/// A session as BIRD sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub state: BgpPeerState,
    /// When it came into that state, seconds since 1970.
    pub since: u64,
    pub received: u64,
    pub sent: u64,
    pub last_error: Option<String>,
    /// The neighbour is gone and expected back (RFC 4724): its routes stay, and ours stay with it.
    pub restarting: bool,
}

/// What BIRD says of each session, by the protocol's name: the answer to `show protocols all`, where the time format is `%s`.
pub(super) fn sessions(answer: &[String]) -> BTreeMap<String, Seen> {
    let mut sessions = BTreeMap::new();
    let mut current: Option<(String, Seen)> = None;
    for line in answer {
        if !line.starts_with(' ') && !line.is_empty() {
            sessions.extend(current.take());
            // n_x        BGP        ---        up     1795681816    Established
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [name, "BGP", _table, up_or_not, since, ..] = words[..] {
                let state = match up_or_not {
                    "up" => BgpPeerState::Connected,
                    "down" => BgpPeerState::Stopped,
                    _ => BgpPeerState::Connecting,
                };
                let seen = Seen {
                    state,
                    since: since.parse().unwrap_or_default(),
                    ..Seen::default()
                };
                current = Some((name.to_owned(), seen));
            }
        } else if let Some((_, seen)) = &mut current {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            seen.detail(key.trim(), value.trim());
        }
    }
    sessions.extend(current);
    sessions
}

impl Seen {
    fn detail(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("Neighbor graceful restart active", _) => self.restarting = true,
            ("BGP state", "Idle") if self.state == BgpPeerState::Connecting => self.state = BgpPeerState::Idle,
            ("Last error", error) => {
                // BIRD waits before it tries again; nobody else knows that there were too many.
                if error.ends_with("Route limit exceeded") && self.state != BgpPeerState::Connected {
                    self.state = BgpPeerState::Stopped;
                }
                self.last_error = Some(error.to_owned());
            }
            // 3 imported, 1 filtered, 2 exported, 3 preferred: of one family
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As BIRD 2.0.12 says it, cut down.
    const ANSWER: &str = "\
Name       Proto      Table      State  Since         Info
n_a        BGP        ---        up     1795681816    Established   
  BGP state:          Established
    Neighbor address: 192.168.30.17
    Neighbor AS:      65021
    Last error:       Socket: Connection closed
  Channel ipv4
    State:          UP
    Routes:         2 imported, 1 filtered, 2 exported, 1 preferred
    Route change stats:     received   rejected   filtered    ignored   accepted
      Import updates:              2          0          0          0          2
  Channel ipv6
    Routes:         1 imported, 3 exported, 1 preferred

n_b        BGP        ---        start  1795681817    Active        Socket: No route to host
  BGP state:          Active
    Connect delay:    1.234/5
    Last error:       Socket: No route to host
n_c        BGP        ---        start  1795681818    Idle          Automatic shutdown: Route limit exceeded
  BGP state:          Idle
    Last error:       Automatic shutdown: Route limit exceeded
n_d        BGP        ---        start  1795681818    Idle
  BGP state:          Idle
n_e        BGP        ---        down   1795681818
n_f        BGP        ---        start  1795681819    Active        Received: Administrative reset
  BGP state:          Active
    Neighbor graceful restart active
    Restart timer:    57.123/-
";

    #[test]
    fn sessions_are_read() {
        let lines: Vec<String> = ANSWER.lines().map(str::to_owned).collect();
        let seen = sessions(&lines);
        let states: Vec<_> = seen.values().map(|s| s.state).collect();
        use BgpPeerState::{Connected, Connecting, Idle, Stopped};
        assert_eq!(states, [Connected, Connecting, Stopped, Idle, Stopped, Connecting]);
        let restarting = seen.iter().filter(|(_, s)| s.restarting).map(|(name, _)| name.as_str());
        assert_eq!(restarting.collect::<Vec<_>>(), ["n_f"]);
        let expected = Seen {
            state: Connected,
            since: 1_795_681_816,
            received: 3,
            sent: 5,
            last_error: Some("Socket: Connection closed".into()),
            restarting: false,
        };
        assert_eq!(seen.get("n_a"), Some(&expected));
    }

    #[test]
    fn lines_have_codes_or_go_on() {
        assert_eq!(
            split("0001 BIRD 2.0.12 ready."),
            (Some((1, true)), "BIRD 2.0.12 ready.")
        );
        assert_eq!(split("1006-  BGP state: Up"), (Some((1006, false)), "  BGP state: Up"));
        assert_eq!(split("   BGP state: Up"), (None, "  BGP state: Up"));
        assert_eq!(split("0000 "), (Some((0, true)), ""));
        for odd in ["", "é", "1", "12é4", "9999", "9999é", "9999x", "+0001"] {
            assert_eq!(split(odd).0, None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read(lines in prop::collection::vec("\\PC{0,60}|n_a +BGP [a-z-]{1,4} up [0-9]{0,25}| +Routes: +[0-9]{1,25} imported, \\PC*", 0..20)) {
            for line in &lines {
                let _ = split(line);
            }
            sessions(&lines);
        }
    }
}
