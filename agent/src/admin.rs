//! The local socket `admin.sock`: the running agent answers requests for its status, configuration, tables and metrics.
//! The socket speaks HTTP/1.1, so that `curl --unix-socket` and collectors of metrics can use it. Only root and the
//! user that the agent runs as can open the socket.
//!
//! | Path | Answer |
//! |---|---|
//! | `/status` | [`AgentView`](crate::agent::AgentView) |
//! | `/config` | the configuration in force, without secrets |
//! | `/tables` | [`Installed`](tombolo_proto::installed::Installed): the lookup tables and kernel routes in use |
//! | `/metrics` | Prometheus text |
//!
//! If `metrics_listen` is set in `agent.toml`, `/metrics` is also available at that TCP address, to anyone who reaches
//! it.

use crate::agent::Agent;
use crate::metrics;
use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tombolo_proto::exposition;

/// Largest request head in bytes, the limit that HTTP servers usually have. Requests for the four fixed paths are far
/// shorter.
const MAX_REQUEST: usize = 8192;
/// Timeout of each read of a request. A request fits into one packet, so it normally takes one read. For a scraper (a
/// client of `metrics_listen`) the same time limits the whole exchange, because a scraper occupies one of
/// [`MAX_SCRAPERS`] places until its exchange ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a failed `accept`. The usual cause is that the process has no free file descriptor. Retries without a
/// pause would fail for the same reason, and use up a CPU.
const ACCEPT_BACKOFF: Duration = REQUEST_TIMEOUT;

/// Timeout of each read of an answer, for a client of the local socket. The time is longer than [`REQUEST_TIMEOUT`],
/// because the agent delays its answer for `/tables` while a configuration is being applied.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Largest number of scrapers that are served at the same moment. The limit bounds the memory and the file descriptors
/// that clients of the port `metrics_listen` can use up.
const MAX_SCRAPERS: usize = 8;

/// Binds the local socket, for [`serve`], and gives it mode 0600. Removes a socket file that exists at the same path,
/// even that of a running agent. The caller must therefore hold the lock of the state directory.
///
/// # Errors
/// The socket's path is longer than the address of a Unix socket may be (107 bytes on Linux), the state directory is
/// missing or not writable, or the mode cannot be set. The old socket file may be gone then.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn bind(state: &StateDir) -> Result<UnixListener> {
    state.remove(file::ADMIN_SOCKET)?;
    let path = state.path(file::ADMIN_SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds `address`, the setting `metrics_listen`, for [`serve_metrics`]. Port 0 lets the kernel choose a port.
///
/// # Errors
/// Another program listens at the port, no interface of this host has the address, or the agent may not bind a port
/// below 1024.
pub async fn bind_metrics(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| {
        format!("metrics_listen = \"{address}\": cannot listen there; name a free port at an address of this host")
    })
}

/// Serves `/metrics`, and no other path, over TCP. Answers up to eight scrapers at the same moment; each has two
/// seconds for its whole exchange. Runs until its task is cancelled. If `accept` fails, the error is logged, and
/// `accept` is retried after two seconds. An exchange that has begun then still ends in a task of its own.
pub async fn serve_metrics(listener: TcpListener, agent: Arc<Agent>) {
    let room = Arc::new(Semaphore::new(MAX_SCRAPERS));
    loop {
        // Further connections wait in the kernel's accept queue.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    let answered = timeout(REQUEST_TIMEOUT, answer(stream, &agent, Audience::Scraper)).await;
                    if let Err(e) = answered.unwrap_or_else(|e| Err(e.into())) {
                        tracing::debug!(error = %e, "request for metrics failed");
                    }
                    drop(permit);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "socket for metrics");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// The origin of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The agent's user, through the local socket.
    User,
    /// Anyone who reaches the TCP port `metrics_listen`. Such a client gets only `/metrics`.
    Scraper,
}

/// Serves the paths of this module's table on the local socket. Runs until its task is cancelled. If `accept` fails,
/// the error is logged, and `accept` is retried after two seconds. Each connection is answered in a task of its own,
/// which goes on if this task is cancelled. The number of connections is not limited; a client that sends nothing for
/// two seconds is disconnected. [`bind`] makes the listener.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, &agent, Audience::User).await {
                        tracing::debug!(error = %e, "local request failed");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "local socket");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Serves only `/status` on the local socket, with the text that `status` returns. Otherwise as [`serve`].
pub(crate) async fn serve_status(
    listener: UnixListener,
    status: impl Fn() -> Result<String> + Clone + Send + Sync + 'static,
) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let status = status.clone();
                tokio::spawn(async move {
                    let answered = async {
                        let (status, kind, body) = match read_path(&mut stream).await?.as_deref() {
                            Some("/status") => ("200 OK", "application/json", status()?),
                            _ => ("404 Not Found", "text/plain", "/status\n".to_owned()),
                        };
                        write_answer(stream, (status, kind, body)).await
                    };
                    if let Err(e) = answered.await {
                        tracing::debug!(error = %e, "local request failed");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "local socket");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Reads a request. Returns its path; `None`: its method is not GET.
async fn read_path(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<String>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let n = timeout(REQUEST_TIMEOUT, stream.read(&mut part)).await??;
        if n == 0 || request.len() + n > MAX_REQUEST {
            bail!("not a request");
        }
        request.extend_from_slice(&part[..n]);
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    Ok(match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", path, _] => Some(path.to_owned()),
        _ => None,
    })
}

/// Answers a request with a status, a content type and a body.
async fn write_answer(mut stream: impl AsyncWrite + Unpin, (status, kind, body): (&str, &str, String)) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, agent: &Agent, audience: Audience) -> Result<()> {
    let path = read_path(&mut stream).await?;
    let answered = match path.as_deref() {
        path if audience == Audience::Scraper && path != Some("/metrics") => {
            ("404 Not Found", "text/plain", "/metrics\n".to_owned())
        }
        Some("/status") => (
            "200 OK",
            "application/json",
            serde_json::to_string(&agent.view().await)?,
        ),
        Some("/config") => ("200 OK", "application/json", agent.config_text()?),
        Some("/tables") => (
            "200 OK",
            "application/json",
            serde_json::to_string(&agent.installed().await)?,
        ),
        Some("/metrics") => ("200 OK", exposition::CONTENT_TYPE, metrics::text(&agent.view().await)),
        _ => (
            "404 Not Found",
            "text/plain",
            "/status, /config, /tables, /metrics\n".to_owned(),
        ),
    };
    write_answer(stream, answered).await
}

/// Requests `path`, one of the paths of this module's table such as `/status`, from the agent that runs with this state
/// directory. Must not be called in the agent's own process: it blocks the calling thread, for up to 4 s at each read.
/// Returns the body of the answer. `path` is case-sensitive, and is sent as it is.
///
/// # Errors
/// No agent runs with this directory, this user may not open its socket, no data arrives for 4 s, the answer is not
/// HTTP in UTF-8, or it has another status than 200, as for an unknown path.
pub fn ask(state: &StateDir, path: &str) -> Result<String> {
    let socket = state.path(file::ADMIN_SOCKET);
    let mut stream = BlockingStream::connect(&socket).with_context(|| {
        format!(
            "no agent answers at {}: is 'tombolo-agent run' running?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("the agent's answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
