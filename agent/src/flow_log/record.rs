//! Azure's layouts of flow logs: tuples, records and the names of files (N14). No function of this file does I/O.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tombolo_engine::security::{FlowEvent, FlowEventKind};
use tombolo_proto::config::{Direction, FlowLog, FlowLogFormat};
use tombolo_proto::flow_tail::{FlowEncryption, FlowState};
use tombolo_proto::id::ResourceId;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The name of each file: the records of one hour.
pub const FILE: &str = "PT1H.json";

/// Stands for the group and the rule of a flow to which no group applies.
const UNSPECIFIED: &str = "unspecified";

/// Appends the tuple of an event to `out`, in quotes. `at` is the time of the event. Returns false and appends nothing if
/// the layout has no tuple for such an event.
pub fn tuple(out: &mut String, format: FlowLogFormat, event: &FlowEvent, at: SystemTime) -> bool {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let protocol = match (format, event.key.protocol) {
        (FlowLogFormat::Network4, _) => "",
        (_, TCP) => "T",
        (_, UDP) => "U",
        // These layouts have no letter for other protocols.
        _ => return false,
    };
    let is_version1 = format == FlowLogFormat::Group1;
    if is_version1 && matches!(event.kind, FlowEventKind::Continue | FlowEventKind::End) {
        return false;
    }
    let separator = if out.is_empty() { "" } else { "," };
    let (source, destination) = (event.key.source, event.key.destination);
    let ports = ports(event);
    let direction = match event.key.direction {
        Direction::Inbound => "I",
        Direction::Outbound => "O",
    };
    let state = state(event.kind).letter();
    let (there, back) = (event.forward, event.backward);
    // Writing to a string never fails.
    let _ = match format {
        FlowLogFormat::Network4 => write!(
            out,
            "{separator}\"{},{source},{destination},{},{},{},{direction},{state},{},{},{},{},{}\"",
            since_epoch.as_millis(),
            ports.0,
            ports.1,
            event.key.protocol,
            encryption(format, event).map_or("", FlowEncryption::name),
            there.packets,
            there.bytes,
            back.packets,
            back.bytes,
        ),
        FlowLogFormat::Group1 | FlowLogFormat::Group2 => {
            let decision = if event.kind == FlowEventKind::Denied { "D" } else { "A" };
            let _ = write!(
                out,
                "{separator}\"{},{source},{destination},{},{},{protocol},{direction},{decision}",
                since_epoch.as_secs(),
                ports.0,
                ports.1,
            );
            match event.kind {
                _ if is_version1 => write!(out, "\""),
                FlowEventKind::Begin | FlowEventKind::Denied => write!(out, ",B,,,,\""),
                FlowEventKind::Continue | FlowEventKind::End => write!(
                    out,
                    ",{state},{},{},{},{}\"",
                    there.packets, there.bytes, back.packets, back.bytes
                ),
            }
        }
    };
    true
}

/// The ports of an event. Other protocols than TCP and UDP have none.
#[must_use]
pub const fn ports(event: &FlowEvent) -> (u16, u16) {
    match event.key.protocol {
        TCP | UDP => event.key.ports,
        _ => (0, 0),
    }
}

/// The state of a flow after an event.
#[must_use]
pub const fn state(kind: FlowEventKind) -> FlowState {
    match kind {
        FlowEventKind::Begin => FlowState::Begin,
        FlowEventKind::Continue => FlowState::Continue,
        FlowEventKind::End => FlowState::End,
        FlowEventKind::Denied => FlowState::Denied,
    }
}

/// The encryption status of a flow. All links between hosts are encrypted. `None`: the layout does not have it.
#[must_use]
pub const fn encryption(format: FlowLogFormat, event: &FlowEvent) -> Option<FlowEncryption> {
    match format {
        FlowLogFormat::Group1 | FlowLogFormat::Group2 => return None,
        FlowLogFormat::Network4 => {}
    }
    Some(match (event.is_local, event.kind, event.key.direction) {
        (true, ..) => FlowEncryption::Local,
        (false, FlowEventKind::Denied, Direction::Outbound) => FlowEncryption::NotSent,
        (false, ..) => FlowEncryption::Encrypted,
    })
}

/// The tuples of one rule at one NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTuples<'t> {
    /// The GUID of the group. `None`: no group applies.
    pub group: Option<&'t str>,
    /// The rule as `securityRules/NAME` or `defaultSecurityRules/NAME`. `None`: no group applies.
    pub rule: Option<&'t str>,
    /// The tuples that [`tuple()`] has appended.
    pub tuples: &'t str,
}

/// The name of a rule in a flow log.
#[must_use]
pub fn shown_rule(rule: Option<&str>) -> String {
    let Some(rule) = rule else {
        return UNSPECIFIED.to_owned();
    };
    match rule.split_once('/') {
        Some(("defaultSecurityRules", name)) => format!("DefaultRule_{name}"),
        Some((_, name)) => format!("UserRule_{name}"),
        None => format!("UserRule_{rule}"),
    }
}

/// The record of one batch, as one line of JSON. `rules` has at least one entry, and those of a group follow each other.
/// `group` is the GUID of the target, if that is a group.
#[must_use]
pub fn record(log: &FlowLog, group: Option<&str>, mac: &str, at: SystemTime, rules: &[RuleTuples<'_>]) -> String {
    let time = timestamp(at);
    let size: usize = rules.iter().map(|rule| rule.tuples.len() + 128).sum();
    let mut out = String::with_capacity(size + 1024);
    // Writing to a string never fails.
    let _ = match log.format {
        FlowLogFormat::Group1 | FlowLogFormat::Group2 => {
            let version = if log.format == FlowLogFormat::Group1 { 1 } else { 2 };
            let _ = write!(
                out,
                "{{\"time\":\"{time}\",\"systemId\":{},\"macAddress\":\"{mac}\",\
                 \"category\":\"NetworkSecurityGroupFlowEvent\",\"resourceId\":{},\
                 \"operationName\":\"NetworkSecurityGroupFlowEvents\",\"properties\":{{\"Version\":{version},\"flows\":[",
                quoted(group.unwrap_or_default()),
                quoted(&log.target.as_str().to_ascii_uppercase()),
            );
            for (position, rule) in rules.iter().enumerate() {
                let _ = write!(
                    out,
                    "{}{{\"rule\":{},\"flows\":[{{\"mac\":\"{mac}\",\"flowTuples\":[{}]}}]}}",
                    if position == 0 { "" } else { "," },
                    quoted(&shown_rule(rule.rule)),
                    rule.tuples,
                );
            }
            write!(out, "]}}}}")
        }
        FlowLogFormat::Network4 => {
            let _ = write!(
                out,
                "{{\"time\":\"{time}\",\"flowLogVersion\":4,\"flowLogGUID\":{},\"macAddress\":\"{mac}\",\
                 \"category\":\"FlowLogFlowEvent\",\"flowLogResourceID\":{},\"targetResourceID\":{},\
                 \"operationName\":\"FlowLogFlowEvent\",\"flowRecords\":{{\"flows\":[",
                quoted(&log.guid),
                quoted(&log.id.as_str().to_ascii_uppercase()),
                quoted(log.target.as_str()),
            );
            let mut before = None;
            for rule in rules {
                let acl = rule.group.unwrap_or(UNSPECIFIED);
                let _ = match before {
                    Some(same) if same == acl => write!(out, ","),
                    Some(_) => write!(out, "]}},{{\"aclID\":{},\"flowGroups\":[", quoted(acl)),
                    None => write!(out, "{{\"aclID\":{},\"flowGroups\":[", quoted(acl)),
                };
                before = Some(acl);
                let _ = write!(
                    out,
                    "{{\"rule\":{},\"flowTuples\":[{}]}}",
                    quoted(&shown_rule(rule.rule)),
                    rule.tuples
                );
            }
            write!(out, "]}}]}}}}")
        }
    };
    out
}

/// A text as JSON string. Line breaks are escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The time in the form `2022-09-14T09:00:52.5625085Z`.
fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:07}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond() / 100
    )
}

/// The hour of a time, as the names of directories: `y=2026/m=01/d=02/h=03/m=00`.
#[must_use]
pub fn hour(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    format!(
        "y={:04}/m={:02}/d={:02}/h={:02}/m=00",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour()
    )
}

/// The path of the file for the records of a NIC in an hour, relative to the directory of the flow logs. No part of it
/// leads out of this directory.
#[must_use]
pub fn path(log: &FlowLog, mac: &str, hour: &str) -> PathBuf {
    let mut path = PathBuf::new();
    match log.format {
        FlowLogFormat::Group1 | FlowLogFormat::Group2 => {
            path.push("insights-logs-networksecuritygroupflowevent");
            path.push("resourceId=");
            path.extend(segments(&log.target).map(|s| safe(&s)));
        }
        FlowLogFormat::Network4 => {
            path.push("insights-logs-flowlogflowevent");
            path.push("flowLogResourceID=");
            let all: Vec<String> = segments(&log.id).collect();
            let after = |name: &str| {
                let position = all.iter().position(|s| s == name);
                position.and_then(|p| all.get(p + 1)).map_or("", String::as_str)
            };
            path.push(safe(&format!("{}_{}", after("SUBSCRIPTIONS"), after("RESOURCEGROUPS"))));
            path.push(safe(&format!("{}_{}", after("NETWORKWATCHERS"), after("FLOWLOGS"))));
        }
    }
    path.push(hour);
    path.push(format!("macAddress={mac}"));
    path.push(FILE);
    path
}

/// The segments of a resource id in upper case.
fn segments(id: &ResourceId) -> impl Iterator<Item = String> {
    let upper = id.as_str().to_ascii_uppercase();
    let all: Vec<String> = upper.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    all.into_iter()
}

/// A text as the name of a file or directory. Names that the kernel treats specially, and characters that names of
/// resources do not have, are replaced.
fn safe(text: &str) -> String {
    /// Longest name of a file on Linux.
    const LONGEST: usize = 255;
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.()".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = text.chars().take(LONGEST).map(plain).collect();
    if name.trim_matches('.').is_empty() {
        "_".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests;
