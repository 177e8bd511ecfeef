//! The local socket `admin.sock`: what runs here, as JSON or as Prometheus text. HTTP/1.1, so that `curl
//! --unix-socket` and scrapers can ask; readable by the agent's user only.
//!
//! | Path | Answer |
//! |---|---|
//! | `/status` | [`AgentView`] |
//! | `/config` | the configuration in force, without secrets |
//! | `/tables` | [`Installed`](tombolo_proto::installed::Installed): what packets are looked up in, read back |
//! | `/metrics` | Prometheus text |

use crate::agent::{Agent, AgentView};
use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{Read, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tombolo_proto::status::{Carrier, LinkState, LinkStatus};

/// Longest request, bytes, and longest wait for it.
const LARGEST_REQUEST: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(2);

/// Binds the socket, in place of one that a crash left.
///
/// # Errors
/// The path is too long or the directory not writable.
pub fn bind(state: &StateDir) -> Result<UnixListener> {
    state.remove(file::ADMIN_SOCKET)?;
    let path = state.path(file::ADMIN_SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, &agent).await {
                        tracing::debug!(error = %e, "local request failed");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "local socket");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, agent: &Agent) -> Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let n = timeout(PATIENCE, stream.read(&mut part)).await??;
        if n == 0 || request.len() + n > LARGEST_REQUEST {
            bail!("not a request");
        }
        request.extend_from_slice(&part[..n]);
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (status, kind, body) = match line.split(' ').collect::<Vec<_>>()[..] {
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
        ["GET", "/metrics", _] => ("200 OK", "text/plain; version=0.0.4", metrics(&agent.view().await)?),
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

/// Asks a running agent, from another process.
///
/// # Errors
/// No agent runs from this directory, or it does not know the path.
pub fn ask(state: &StateDir, path: &str) -> Result<String> {
    let socket = state.path(file::ADMIN_SOCKET);
    let mut stream = BlockingStream::connect(&socket).with_context(|| {
        format!(
            "no agent answers at {}: is 'tombolo-agent run' running?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("the agent's answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// What a link's gauge shows, if there is anything to show.
type Gauge = fn(&LinkStatus) -> Option<f64>;

fn metrics(view: &AgentView) -> Result<String> {
    let mut out = String::new();
    let s = &view.status;
    writeln!(out, "# TYPE tombolo_packets_total counter")?;
    for (what, n) in [
        ("tun_in", s.totals.tun_in),
        ("tun_out", s.totals.tun_out),
        ("link_in", s.totals.link_in),
        ("link_out", s.totals.link_out),
        ("replied", s.totals.replied),
    ] {
        writeln!(out, "tombolo_packets_total{{direction=\"{what}\"}} {n}")?;
    }
    writeln!(out, "# TYPE tombolo_lane_packets_total counter")?;
    for (lane, totals) in view.lanes.iter().enumerate() {
        for (what, n) in [("link_in", totals.link_in), ("link_out", totals.link_out)] {
            writeln!(
                out,
                "tombolo_lane_packets_total{{lane=\"{lane}\",direction=\"{what}\"}} {n}"
            )?;
        }
    }
    writeln!(out, "# TYPE tombolo_drops_total counter")?;
    for (reason, n) in &s.drops {
        writeln!(out, "tombolo_drops_total{{reason=\"{reason}\"}} {n}")?;
    }
    writeln!(out, "# TYPE tombolo_routes_refused gauge")?;
    for refused in &s.refused_routes {
        writeln!(
            out,
            "tombolo_routes_refused{{sender=\"{}\",reason=\"{}\"}} {}",
            refused.sender.as_deref().unwrap_or_default(),
            refused.reason,
            refused.count
        )?;
    }
    writeln!(out, "# TYPE tombolo_route_advertisements_total counter")?;
    let advertisements = view.route_advertisements;
    for (what, n) in [
        ("received", advertisements.received),
        ("applied", advertisements.applied),
        ("superseded", advertisements.superseded),
        ("refused", advertisements.refused),
        ("malformed", advertisements.malformed),
    ] {
        writeln!(out, "tombolo_route_advertisements_total{{outcome=\"{what}\"}} {n}")?;
    }
    writeln!(out, "# TYPE tombolo_table_rebuilds_total counter")?;
    writeln!(out, "tombolo_table_rebuilds_total {}", view.table_rebuilds)?;
    writeln!(out, "# TYPE tombolo_link_up gauge")?;
    for l in &s.links {
        writeln!(
            out,
            "tombolo_link_up{{peer=\"{}\"}} {}",
            l.peer,
            u8::from(l.state == LinkState::Up)
        )?;
    }
    writeln!(out, "# TYPE tombolo_link_bytes_total counter")?;
    for l in &s.links {
        writeln!(
            out,
            "tombolo_link_bytes_total{{peer=\"{}\",direction=\"rx\"}} {}",
            l.peer, l.rx_bytes
        )?;
        writeln!(
            out,
            "tombolo_link_bytes_total{{peer=\"{}\",direction=\"tx\"}} {}",
            l.peer, l.tx_bytes
        )?;
    }
    // Of links in use; the rest have nothing to tell.
    let gauges: [(&str, Gauge); 5] = [
        ("mtu_bytes", |l| l.mtu.map(f64::from)),
        ("handshake_age_seconds", |l| l.handshake_age),
        ("rtt_seconds", |l| l.rtt_ms.map(|ms| ms / 1000.0)),
        ("loss_ratio", |l| l.loss),
        ("quic", |l| Some(f64::from(u8::from(l.transport == Carrier::Quic)))),
    ];
    for (name, value) in gauges {
        writeln!(out, "# TYPE tombolo_link_{name} gauge")?;
        for link in &s.links {
            if let Some(value) = value(link) {
                writeln!(out, "tombolo_link_{name}{{peer=\"{}\"}} {value}", link.peer)?;
            }
        }
    }
    writeln!(
        out,
        "# TYPE tombolo_revision_applied gauge\ntombolo_revision_applied {}",
        s.applied
    )?;
    writeln!(out, "# TYPE tombolo_controller_connected gauge")?;
    writeln!(out, "tombolo_controller_connected {}", u8::from(view.connected))?;
    writeln!(
        out,
        "# TYPE tombolo_apply_seconds gauge\ntombolo_apply_seconds {}",
        view.last_apply_seconds
    )?;
    writeln!(
        out,
        "# TYPE tombolo_offload gauge\ntombolo_offload {}",
        u8::from(view.offload)
    )?;
    writeln!(out, "# TYPE tombolo_socket_errors_total counter")?;
    writeln!(out, "tombolo_socket_errors_total{{socket=\"tun\"}} {}", view.tun_errors)?;
    writeln!(out, "tombolo_socket_errors_total{{socket=\"udp\"}} {}", view.udp_errors)?;
    writeln!(out, "# TYPE tombolo_receive_overflow_total counter")?;
    writeln!(out, "tombolo_receive_overflow_total {}", view.udp_overflow)?;
    Ok(out)
}
