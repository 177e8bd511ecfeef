//! The local socket `admin.sock`: status, configuration, tables and metrics of the running agent. It speaks HTTP/1.1,
//! for `curl --unix-socket` and scrapers. Only the agent's user has access.
//!
//! | Path | Answer |
//! |---|---|
//! | `/status` | [`AgentView`](crate::agent::AgentView) |
//! | `/config` | the configuration in force, without secrets |
//! | `/tables` | [`Installed`](tombolo_proto::installed::Installed): the lookup tables and kernel routes in use |
//! | `/metrics` | Prometheus text |
//!
//! `/metrics` is also served over TCP if `metrics_listen` is set in `agent.toml`.

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

/// Bytes of a request head at most, and the timeout of each read; for scrapers also of the whole exchange. Four fixed
/// paths need far less than the 8 KiB that HTTP servers usually accept.
const MAX_REQUEST: usize = 8192;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a failed `accept`, which usually means that file descriptors ran out.
const ACCEPT_BACKOFF: Duration = REQUEST_TIMEOUT;

/// Timeout of each read of an answer. `/tables` is answered only when a configuration that is being applied is in
/// force.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Scrapers served at a time: bounds the memory and file descriptors that anyone who reaches the port can take.
const MAX_SCRAPERS: usize = 8;

/// Binds the local socket with mode 0600. Replaces a socket file that a crash left.
///
/// # Errors
/// The path is longer than a Unix socket's address may be, or the directory is not writable.
pub fn bind(state: &StateDir) -> Result<UnixListener> {
    state.remove(file::ADMIN_SOCKET)?;
    let path = state.path(file::ADMIN_SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds the TCP address of `metrics_listen`.
///
/// # Errors
/// The port is taken, or the address is not one of this host.
pub async fn bind_metrics(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| {
        format!("metrics_listen = \"{address}\": cannot listen there; name a free port at an address of this host")
    })
}

/// Serves `/metrics`, and nothing else, over TCP. Never returns.
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
    /// Anyone who reaches `metrics_listen`: gets `/metrics` only.
    Scraper,
}

/// Serves the local socket. Never returns.
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

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, agent: &Agent, audience: Audience) -> Result<()> {
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
    let words = line.split(' ').collect::<Vec<_>>();
    let (status, kind, body) = match words[..] {
        [_, path, ..] if audience == Audience::Scraper && path != "/metrics" => {
            ("404 Not Found", "text/plain", "/metrics\n".to_owned())
        }
        ["GET", "/status", _] => (
            "200 OK",
            "application/json",
            serde_json::to_string(&agent.view().await)?,
        ),
        ["GET", "/config", _] => ("200 OK", "application/json", agent.config_text()?),
        ["GET", "/tables", _] => (
            "200 OK",
            "application/json",
            serde_json::to_string(&agent.installed().await)?,
        ),
        ["GET", "/metrics", _] => ("200 OK", exposition::CONTENT_TYPE, metrics::text(&agent.view().await)),
        _ => (
            "404 Not Found",
            "text/plain",
            "/status, /config, /tables, /metrics\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Requests `path` from the running agent, from another process. Blocks for up to 4 s per read. Returns the response
/// body.
///
/// # Errors
/// No agent runs from this directory, or it answers with another status than 200.
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
