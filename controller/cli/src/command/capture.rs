//! `tombolo capture`: live captures of packets, and packet captures as resources, which lie below the network watcher of
//! their region.

mod blocks;
mod filter;

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{duration, name, reference};
use crate::output::{Column, at, state};
use anyhow::{Context as _, Result};
use blocks::Blocks;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use filter::filter;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tombolo_client::fabric::{CaptureFilterText, LiveCapture};
use tombolo_proto::arm::Kind;

/// Captures packets at a machine, and writes them to a file or to standard output, until Ctrl-C or a limit.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Capture {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Machine, network interface or agent, by name or id
    #[arg(value_name = "VM", required = true)]
    target: Option<String>,
    /// File in pcapng to write; - is standard output, as in `-w - | wireshark -k -i -`
    #[arg(short = 'w', long, value_name = "FILE", required = true)]
    write: Option<PathBuf>,
    /// Capture the encrypted datagrams of the agent's links instead of the packets
    #[arg(long)]
    sealed: bool,
    #[command(flatten)]
    limits: Limits,
}

/// What is captured, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Packets to capture, such as "tcp remote=10.0.0.4 remote-port=80-90;443"; words are tcp, udp, local=, local-port=,
    /// remote= and remote-port=. With several filters one has to match
    #[arg(long = "filter", value_name = "FILTER", value_parser = filter)]
    filters: Vec<CaptureFilterText>,
    /// Longest time of the capture, such as 30s or 5m [default: 5h]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    seconds: Option<Duration>,
    /// Number of bytes to keep of each packet [default: all]
    #[arg(long, value_name = "BYTES")]
    bytes_per_packet: Option<u32>,
    /// Largest length of the capture in bytes [default: 1 GiB for a file of the agent, otherwise 4 GiB]
    #[arg(long, value_name = "BYTES")]
    total_bytes: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a capture into a file on the disk of the machine's agent
    Create {
        /// Name of the capture
        #[arg(value_parser = name)]
        name: String,
        /// Machine whose packets are captured
        #[arg(long, value_name = "VM", value_parser = reference)]
        vm: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// List the captures of all regions
    List,
    /// Show a capture with its state
    Show {
        /// Name of the capture
        #[arg(value_parser = name)]
        name: String,
    },
    /// End a capture; its file stays
    Stop {
        /// Name of the capture
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a capture, which ends before; its file stays
    Delete {
        /// Name of the capture
        #[arg(value_parser = name)]
        name: String,
    },
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Target", |v| {
        Cell::new(tombolo_client::path::last(&at(v, "/properties/target")))
    }),
    ("State", |v| state(&at(v, "/status/packetCaptureStatus"))),
    ("Reason", |v| {
        let reason = at(v, "/status/stopReason");
        Cell::new(if reason.is_empty() {
            at(v, "/status/message")
        } else {
            reason
        })
    }),
    ("Packets", |v| Cell::new(at(v, "/status/packets"))),
    ("Lost", |v| Cell::new(at(v, "/status/lostPackets"))),
    ("Bytes", |v| Cell::new(at(v, "/status/bytes"))),
    ("File", |v| {
        let (agent, path) = (at(v, "/status/agent"), at(v, "/status/agentFilePath"));
        Cell::new(if path.is_empty() {
            path
        } else {
            format!("{agent}:{path}")
        })
    }),
];

impl Capture {
    /// Captures live, or creates, ends, deletes or prints captures.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match (&self.verb, &self.target, &self.write) {
            (Some(verb), ..) => verb.run(c).await,
            (None, Some(target), Some(file)) => self.live(c, target, file).await,
            (None, ..) => Err(UsageError::new("no machine and no file are given", "tombolo capture VM -w FILE").into()),
        }
    }

    async fn live(&self, c: &Context, target: &str, file: &Path) -> Result<()> {
        let request = LiveCapture {
            target: target.to_owned(),
            sealed: self.sealed,
            filters: self.limits.filters.clone(),
            bytes_per_packet: self.limits.bytes_per_packet,
            total_bytes: self.limits.total_bytes,
            seconds: self.limits.whole_seconds()?,
        };
        // The capture begins first, so that a wrong name does not replace a file.
        let mut stream = c.client.capture(&request).await?;
        let failed = || format!("cannot write {}", file.display());
        let is_stdout = file.as_os_str() == "-";
        let mut out: Box<dyn Write> = if is_stdout {
            Box::new(std::io::stdout())
        } else {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            Box::new(options.open(file).with_context(failed)?)
        };
        if !is_stdout {
            eprintln!("Capturing to {}; Ctrl-C ends the capture.", file.display());
        }
        let (mut length, mut blocks) = (0, Blocks::default());
        let mut write = |bytes: &[u8]| match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => {
                length += bytes.len();
                Ok(true)
            }
            // The reader of the pipe has gone, as when Wireshark is closed.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(e).with_context(failed),
        };
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let bytes = tokio::select! {
                next = stream.next() => match next? {
                    Some(bytes) => bytes,
                    None => {
                        write(&blocks.rest())?;
                        break;
                    }
                },
                _ = &mut interrupted => break,
            };
            if !write(&blocks.complete(&bytes))? {
                break;
            }
        }
        // The agent ends the capture when the stream is gone.
        drop(stream);
        match (is_stdout, c.out.is_json()) {
            (true, _) => Ok(()),
            (false, true) => c.out.json(&json!({"file": file, "bytes": length})),
            (false, false) => {
                c.out.note(&format!("Saved {length} bytes to {}.", file.display()));
                Ok(())
            }
        }
    }
}

impl Limits {
    fn whole_seconds(&self) -> Result<Option<u32>> {
        let Some(time) = self.seconds else { return Ok(None) };
        let seconds = u32::try_from(time.as_secs()).ok().filter(|seconds| *seconds > 0);
        match seconds {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(UsageError::new("--seconds: the time is no second", "a time from 1s to 5h").into()),
        }
    }
}

impl Verb {
    async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create { name, vm, limits } => create(c, name, vm, limits).await,
            Self::List => {
                let captures = c.client.captures().await?;
                let empty = "No packet captures. Start one: tombolo capture create NAME --vm VM";
                c.out.list(&captures, COLUMNS, empty)
            }
            Self::Show { name } => c.out.item(&find(c, name).await?, COLUMNS),
            Self::Stop { name } => {
                let path = format!("{}/stop", at(&find(c, name).await?, "/id"));
                c.client.arm_post(&path, &json!({})).await?;
                c.report(&json!({"stopped": true}), &format!("Stopped packet capture {name}."))
                    .await
            }
            Self::Delete { name } => {
                let found = find(c, name).await?;
                // The answer to a DELETE below a watcher does not say whether there was something.
                c.client.arm_delete(&at(&found, "/id")).await?;
                c.report(&json!({"deleted": true}), &format!("Deleted packet capture {name}."))
                    .await
            }
        }
    }
}

async fn create(c: &Context, name: &str, vm: &str, limits: &Limits) -> Result<()> {
    let id = c.group()?.resolve(Kind::VirtualMachine.collection(), vm);
    let location = c.client.arm_get(&id).await?["location"].clone();
    let region = location.as_str().unwrap_or_default();
    let path = format!(
        "{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_{region}/\
         packetCaptures/{name}",
        c.subscription()
    );
    let mut properties = json!({
        "target": id,
        // Azure requires a place. The agent chooses the real one.
        "storageLocation": {"filePath": format!("/var/captures/{name}.cap")},
        "filters": limits.filters,
    });
    if let Some(seconds) = limits.whole_seconds()? {
        properties["timeLimitInSeconds"] = json!(seconds);
    }
    if let Some(bytes) = limits.bytes_per_packet {
        properties["bytesToCapturePerPacket"] = json!(bytes);
    }
    if let Some(bytes) = limits.total_bytes {
        properties["totalBytesPerSession"] = json!(bytes);
    }
    let message = format!("Started packet capture {name}.");
    c.put(&path, &json!({"properties": properties}), &message).await
}

/// The capture with a name.
///
/// # Errors
/// [`UsageError`]: there is none, or several regions have one.
async fn find(c: &Context, name: &str) -> Result<Value> {
    let is_named = |capture: &Value| at(capture, "/name").eq_ignore_ascii_case(name);
    let mut found: Vec<Value> = c.client.captures().await?.into_iter().filter(is_named).collect();
    match (found.pop(), found.is_empty()) {
        (Some(capture), true) => Ok(capture),
        (Some(_), false) => {
            let what = format!("several regions have a packet capture '{name}'");
            Err(UsageError::new(what, "the REST API, which names a region's network watcher").into())
        }
        (None, _) => {
            let what = format!("there is no packet capture '{name}'");
            Err(UsageError::new(what, "`tombolo capture list`").into())
        }
    }
}
