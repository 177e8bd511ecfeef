//! `tombolo flow-log tail`: the records of flow logs while agents make them.

use super::named::{all, find};
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::name;
use crate::output::at;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use time::OffsetDateTime;
use tombolo_client::fabric::{FlowLogTail, TailLine, TailState};
use tombolo_proto::config::Direction;
use tombolo_proto::flow_tail::{FlowEncryption, FlowRecord, FlowState, MAX_LOGS, is_printable};
use tombolo_proto::id::ResourceId;

/// Prints the records of flow logs as agents make them, until Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Names of flow logs
    #[arg(value_name = "NAME", value_parser = name, required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Follow all flow logs, also those that are created later
    #[arg(long)]
    all: bool,
    /// Region of the flow logs, such as westeurope [default: every region]
    #[arg(long, visible_alias = "location", value_name = "REGION")]
    region: Option<String>,
}

impl Tail {
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let request = FlowLogTail {
            logs: self.logs(c).await?,
            region: self.region.clone(),
        };
        let mut stream = c.client.tail_flow_logs(&request).await?;
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        let is_one = request.logs.len() == 1;
        if !c.out.is_json() && !print(&title(is_one))? {
            return Ok(());
        }
        loop {
            let line = tokio::select! {
                next = stream.next() => next?,
                // The agents stop sending when the stream is dropped.
                _ = &mut interrupted => return Ok(()),
            };
            let Some(line) = line else {
                bail!(
                    "the controller has ended the tail, because it stops, or the token is not valid any more; begin again"
                );
            };
            let text = match (&line, c.out.is_json()) {
                (_, true) => ascii(&serde_json::to_string(&line)?),
                (TailLine::Record { record, .. }, false) => row(record, is_one),
                (TailLine::Agents { .. } | TailLine::Agent { .. } | TailLine::Dropped { .. }, false) => {
                    // Nobody may read the notes any more.
                    let _ = writeln!(std::io::stderr(), "{}", note(&line));
                    continue;
                }
            };
            if !print(&text)? {
                return Ok(());
            }
        }
    }

    /// The ids of the logs; empty means all.
    async fn logs(&self, c: &Context) -> Result<Vec<ResourceId>> {
        if self.names.len() > MAX_LOGS {
            let what = format!(
                "{} flow logs are named; at most {MAX_LOGS} are possible",
                self.names.len()
            );
            return Err(UsageError::new(what, "--all").into());
        }
        if self.names.is_empty() {
            return Ok(Vec::new());
        }
        let is_in = |log: &Value| {
            let location = at(log, "/location");
            let region = self.region.as_deref().unwrap_or(&location);
            region.replace(' ', "").eq_ignore_ascii_case(&location)
        };
        let logs: Vec<Value> = all(c).await?.into_iter().filter(is_in).collect();
        let found = self.names.iter().map(|name| find(&logs, name, "--region"));
        found.map(|log| Ok(ResourceId::new(at(log?, "/id")))).collect()
    }
}

/// Writes a line. Returns false if nobody reads any more, as when `head` has ended.
fn print(text: &str) -> Result<bool> {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("cannot write to standard output"),
    }
}

/// A text of the controller or an agent without characters that a terminal might obey.
fn shown(text: &str) -> String {
    let shown = |c: char| {
        if is_printable(c) {
            c.to_string()
        } else {
            c.escape_unicode().to_string()
        }
    };
    text.chars().map(shown).collect()
}

/// A JSON text in which every character that a terminal might obey is escaped. Outside of strings JSON has none.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string never fails.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// A line for people about anything but a record.
fn note(line: &TailLine) -> String {
    let text = match line {
        TailLine::Agents { count: 0 } => {
            "No agent writes these flow logs now; records follow when one does.".to_owned()
        }
        TailLine::Agents { count: 1 } => "1 agent writes these flow logs; Ctrl-C ends the tail.".to_owned(),
        TailLine::Agents { count } => format!("{count} agents write these flow logs; Ctrl-C ends the tail."),
        TailLine::Agent { agent, state, message } => {
            let why = message.as_deref().unwrap_or("no reason is given");
            match state {
                TailState::Following => format!("agent {agent}: followed"),
                TailState::Waiting => format!("agent {agent}: waiting: {why}"),
                TailState::Failed => format!("agent {agent}: not followed: {why}"),
            }
        }
        TailLine::Dropped { agent, records } => {
            format!("agent {agent}: {records} records are missing here, because they came faster than they were read")
        }
        TailLine::Record { .. } => String::new(),
    };
    shown(&text)
}

/// A column: its title, its least width, and its text.
type Column = (&'static str, usize, fn(&FlowRecord) -> String);

const COLUMNS: [Column; 10] = [
    ("TIME", 24, |r| time(r.time_ms)),
    ("NIC", 16, |r| r.nic.name().to_owned()),
    ("DIRECTION", 9, |r| match r.direction {
        Direction::Inbound => "in".to_owned(),
        Direction::Outbound => "out".to_owned(),
    }),
    ("DECISION", 8, |r| match r.state {
        FlowState::Denied => "denied".to_owned(),
        FlowState::Begin | FlowState::Continue | FlowState::End => "allowed".to_owned(),
    }),
    ("STATE", 5, |r| r.state.letter().to_owned()),
    ("PROTOCOL", 8, |r| match r.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }),
    ("FLOW", 45, |r| {
        let end = |address: std::net::IpAddr, port| match r.protocol {
            6 | 17 => std::net::SocketAddr::new(address, port).to_string(),
            _ => address.to_string(),
        };
        let (from, to) = (end(r.source, r.source_port), end(r.destination, r.destination_port));
        format!("{from} -> {to}")
    }),
    ("RULE", 36, |r| match (&r.group, &r.rule) {
        (Some(group), Some(rule)) => format!("{}/{rule}", group.name()),
        _ => "-".to_owned(),
    }),
    ("ENCRYPTION", 12, |r| {
        r.encryption.map_or("-", FlowEncryption::name).to_owned()
    }),
    ("PACKETS/BYTES", 13, |r| match r.state {
        FlowState::Begin | FlowState::Denied => "-".to_owned(),
        FlowState::Continue | FlowState::End => format!(
            "sent {}/{} received {}/{}",
            r.packets_sent, r.bytes_sent, r.packets_received, r.bytes_received
        ),
    }),
];

/// The titles of the columns. If several logs are followed, the last one is the log.
fn title(is_one: bool) -> String {
    let titles = COLUMNS.iter().map(|(title, width, _)| ((*title).to_owned(), *width));
    joined(titles, (!is_one).then_some("LOG"))
}

/// A record as one line for people.
fn row(record: &FlowRecord, is_one: bool) -> String {
    let cells = COLUMNS.iter().map(|(_, width, text)| (text(record), *width));
    shown(&joined(cells, (!is_one).then(|| record.log.name())))
}

fn joined(cells: impl Iterator<Item = (String, usize)>, log: Option<&str>) -> String {
    let mut line = String::new();
    for (text, width) in cells {
        let _ = write!(line, "{text:<width$} ");
    }
    line.push_str(log.unwrap_or_default());
    line.trim_end().to_owned()
}

/// The time in UTC, as `2026-01-02T03:04:05.678Z`.
fn time(ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    let Ok(at) = at else { return "-".to_owned() };
    let (date, time) = (at.date(), at.time());
    format!(
        "{date}T{:02}:{:02}:{:02}.{:03}Z",
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::config::FlowLogFormat;

    fn record() -> FlowRecord {
        FlowRecord {
            time_ms: 1_800_000_000_007,
            log: ResourceId::new("/networkWatchers/w/flowLogs/web"),
            format: FlowLogFormat::Network4,
            nic: ResourceId::new("/networkInterfaces/hub-vm-nic"),
            mac_address: "0200DEADBEEF".into(),
            source: [10, 1, 0, 4].into(),
            source_port: 40_000,
            destination: [10, 0, 0, 4].into(),
            destination_port: 443,
            protocol: 6,
            direction: Direction::Inbound,
            state: FlowState::End,
            group: Some(ResourceId::new("/networkSecurityGroups/web")),
            rule: Some("UserRule_https".into()),
            encryption: Some(FlowEncryption::Encrypted),
            packets_sent: 4,
            bytes_sent: 300,
            packets_received: 3,
            bytes_received: 200,
        }
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn d38_a_record_is_one_line_in_both_layouts() {
        let ended = row(&record(), false);
        let expected = "2027-01-15T08:00:00.007Z hub-vm-nic in allowed E tcp 10.1.0.4:40000 -> 10.0.0.4:443 \
                        web/UserRule_https X sent 4/300 received 3/200 web";
        assert_eq!(words(&ended), words(expected));
        let denied = FlowRecord {
            format: FlowLogFormat::Group2,
            direction: Direction::Outbound,
            state: FlowState::Denied,
            encryption: None,
            protocol: 17,
            source: "fd00::1".parse().unwrap(),
            ..record()
        };
        let expected = "2027-01-15T08:00:00.007Z hub-vm-nic out denied D udp [fd00::1]:40000 -> 10.0.0.4:443 \
                        web/UserRule_https - -";
        assert_eq!(words(&row(&denied, true)), words(expected));
        let ping = FlowRecord {
            state: FlowState::Begin,
            encryption: Some(FlowEncryption::Local),
            protocol: 1,
            group: None,
            rule: None,
            ..record()
        };
        let expected = "2027-01-15T08:00:00.007Z hub-vm-nic in allowed B icmp 10.1.0.4 -> 10.0.0.4 - NX_LOCAL_DST -";
        assert_eq!(words(&row(&ping, true)), words(expected));
        assert_eq!(
            title(true).find("FLOW"),
            row(&ping, true).find("10.1.0.4"),
            "the columns are below their titles"
        );
        let strange = FlowRecord {
            time_ms: u64::MAX,
            protocol: 255,
            ..record()
        };
        assert!(row(&strange, true).starts_with("- "));
    }

    #[test]
    fn d38_texts_of_agents_cannot_control_the_terminal() {
        let evil = FlowRecord {
            nic: ResourceId::new("/nic\u{1b}[2J\u{9b}31m\r\n"),
            rule: Some("UserRule_\u{202e}\u{7f}ü".into()),
            log: ResourceId::new("/log\u{7}"),
            ..record()
        };
        let line = row(&evil, false);
        assert!(
            line.contains("nic\\u{1b}[2J\\u{9b}31m\\u{d}\\u{a}")
                && line.contains("\\u{fc}")
                && line.ends_with("log\\u{7}")
        );
        assert!(line.chars().all(is_printable), "{line:?}");
        let agent: tombolo_proto::id::AgentId = "hub-vm".parse().unwrap();
        let line = TailLine::Record {
            agent: agent.clone(),
            record: evil,
        };
        let json = ascii(&serde_json::to_string(&line).unwrap());
        assert!(json.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{json:?}");
        assert_eq!(
            serde_json::from_str::<TailLine>(&json).unwrap(),
            line,
            "the values are the same"
        );
        let failed = TailLine::Agent {
            agent,
            state: TailState::Failed,
            message: Some("no\u{1b}[0m".into()),
        };
        assert_eq!(note(&failed), "agent hub-vm: not followed: no\\u{1b}[0m");
    }
}
