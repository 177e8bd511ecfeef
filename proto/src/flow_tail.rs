//! Tails of flow logs (D38): what an agent is asked to follow, and the records that it sends while it makes them.
//!
//! An agent sends lines. Each line is a [`TailEntry`] as JSON.

use crate::capture::STREAM_WINDOW;
use crate::config::{Direction, FlowLogFormat};
use crate::id::ResourceId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Largest number of tails that run at an agent at a time.
pub const MAX_RUNNING: usize = 4;
/// Largest number of flow logs that a request names.
pub const MAX_LOGS: usize = 64;
/// Smallest window of a tail in bytes. The largest is [`STREAM_WINDOW`].
pub const MIN_WINDOW: usize = 8 << 10;
/// Largest length of a line in bytes, without the line break.
pub const MAX_LINE: usize = 4096;
/// Largest length of a text in a record, in bytes.
pub const MAX_TEXT: usize = 1024;

/// The flow logs that an agent is asked to follow. The agent refuses values out of the given ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TailRequest {
    /// The resource ids of the logs, at most [`MAX_LOGS`]. Empty: all logs of the agent. A log that the agent does not have
    /// (yet) has no records.
    pub logs: Vec<ResourceId>,
    /// Largest number of bytes that the agent sends before the controller has passed them on, [`MIN_WINDOW`] to
    /// [`STREAM_WINDOW`].
    pub window: u32,
}

impl TailRequest {
    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// A text that names the first wrong field and its value.
    pub fn check(&self) -> Result<(), String> {
        if self.logs.len() > MAX_LOGS {
            let count = self.logs.len();
            return Err(format!("logs: {count} entries; at most {MAX_LOGS} are possible"));
        }
        let window = usize::try_from(self.window).unwrap_or(usize::MAX);
        if !(MIN_WINDOW..=STREAM_WINDOW).contains(&window) {
            return Err(format!(
                "window: {window} is not within {MIN_WINDOW} to {STREAM_WINDOW}"
            ));
        }
        Ok(())
    }
}

/// A line of a tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TailEntry {
    /// A record of a flow log.
    Record(FlowRecord),
    /// This many records are missing here, because the reader was too slow.
    Dropped(u64),
}

/// A record of a flow log: one tuple of its file, with the rule and the network interface that the file has around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// The time in milliseconds of Unix time. Files of groups have it in seconds.
    pub time_ms: u64,
    /// The resource id of the log.
    pub log: ResourceId,
    /// The layout of the log's files.
    pub format: FlowLogFormat,
    /// The resource id of the network interface, or of the subnet of machines without an agent.
    pub nic: ResourceId,
    /// The MAC address that stands for it: 12 hexadecimal digits in upper case.
    pub mac_address: String,
    /// The source of the packet that began the flow, or that was denied.
    pub source: IpAddr,
    /// Its port; 0 for protocols other than TCP and UDP.
    pub source_port: u16,
    /// The destination of this packet.
    pub destination: IpAddr,
    /// Its port; 0 for protocols other than TCP and UDP.
    pub destination_port: u16,
    /// The number of the protocol.
    pub protocol: u8,
    /// The direction of this packet, as seen from the network interface.
    pub direction: Direction,
    /// What happened to the flow.
    pub state: FlowState,
    /// The resource id of the group whose rule decided. `None`: no group applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<ResourceId>,
    /// The name of the rule, as files have it, such as `UserRule_web` or `DefaultRule_DenyAllInBound`. `None`: no group applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The encryption of the flow. `None`: the layout does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<FlowEncryption>,
    /// Packets since the last record of the flow, in the direction of the packet that began it.
    pub packets_sent: u64,
    /// The length of their IP packets in bytes.
    pub bytes_sent: u64,
    /// Packets since the last record of the flow, in the other direction.
    pub packets_received: u64,
    /// The length of their IP packets in bytes.
    pub bytes_received: u64,
}

/// What happened to a flow, in Azure's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowState {
    /// The flow began: it is allowed.
    #[serde(rename = "B")]
    Begin,
    /// It goes on.
    #[serde(rename = "C")]
    Continue,
    /// It has ended.
    #[serde(rename = "E")]
    End,
    /// It is denied.
    #[serde(rename = "D")]
    Denied,
}

/// Whether a flow is encrypted between hosts, in Azure's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowEncryption {
    /// It is encrypted.
    #[serde(rename = "X")]
    Encrypted,
    /// Its packets did not leave the host.
    #[serde(rename = "NX")]
    NotSent,
    /// It stays on the host.
    #[serde(rename = "NX_LOCAL_DST")]
    Local,
}

impl FlowEncryption {
    /// The word of flow logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encrypted => "X",
            Self::NotSent => "NX",
            Self::Local => "NX_LOCAL_DST",
        }
    }
}

impl FlowState {
    /// The letter of flow logs.
    #[must_use]
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Begin => "B",
            Self::Continue => "C",
            Self::End => "E",
            Self::Denied => "D",
        }
    }
}

impl FlowRecord {
    /// Checks that the texts of a record can be shown: they are short, and have no control characters.
    ///
    /// # Errors
    /// A text that names the first wrong field.
    pub fn check(&self) -> Result<(), String> {
        let mac = &self.mac_address;
        if mac.len() != 12 || !mac.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("macAddress: 12 hexadecimal digits are needed".to_owned());
        }
        let group = self.group.as_ref().map_or("", ResourceId::as_str);
        let texts = [
            ("log", self.log.as_str()),
            ("nic", self.nic.as_str()),
            ("group", group),
            ("rule", self.rule.as_deref().unwrap_or_default()),
        ];
        for (field, text) in texts {
            if text.len() > MAX_TEXT {
                let length = text.len();
                return Err(format!("{field}: {length} bytes; at most {MAX_TEXT} are possible"));
            }
            if let Some(c) = text.chars().find(|c| !is_printable(*c)) {
                return Err(format!("{field}: the character {} is not possible", c.escape_unicode()));
            }
        }
        Ok(())
    }
}

/// Whether a terminal shows a character as itself, in its place: those of ASCII without control characters. The names of
/// resources have no others. Letters of some scripts change the direction of text, and others are invisible.
#[must_use]
pub fn is_printable(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> FlowRecord {
        FlowRecord {
            time_ms: 1,
            log: ResourceId::new("/log"),
            format: FlowLogFormat::Network4,
            nic: ResourceId::new("/nic"),
            mac_address: "0200DEADBEEF".into(),
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: [10, 0, 0, 2].into(),
            destination_port: 2,
            protocol: 6,
            direction: Direction::Inbound,
            state: FlowState::Begin,
            group: Some(ResourceId::new("/group")),
            rule: Some("UserRule_web".into()),
            encryption: None,
            packets_sent: 0,
            bytes_sent: 0,
            packets_received: 0,
            bytes_received: 0,
        }
    }

    #[test]
    fn d38_requests_out_of_range_are_refused_by_field() {
        let request = |logs, window| TailRequest {
            logs: vec![ResourceId::new("/log"); logs],
            window,
        };
        assert_eq!(request(MAX_LOGS, 8192).check(), Ok(()));
        assert_eq!(request(0, 262_144).check(), Ok(()));
        for (logs, window, expected) in [
            (MAX_LOGS + 1, 8192, "logs: 65 entries"),
            (1, 8191, "window: 8191 "),
            (1, 262_145, "window: 262145 "),
        ] {
            let refused = request(logs, window).check().unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }

    #[test]
    fn d38_records_with_texts_that_cannot_be_shown_are_refused() {
        assert_eq!(record().check(), Ok(()));
        type Change = fn(&mut FlowRecord);
        let wrong: [(&str, Change); 7] = [
            ("macAddress", |r| r.mac_address = "02:00:DE:AD:".into()),
            ("log: the character \\u{1b}", |r| r.log = ResourceId::new("/\u{1b}[2J")),
            ("nic: the character \\u{9b}", |r| r.nic = ResourceId::new("/\u{9b}2J")),
            ("group: the character \\u{202e}", |r| {
                r.group = Some(ResourceId::new("/\u{202e}x"))
            }),
            ("rule: the character \\u{5d0}", |r| {
                r.rule = Some("UserRule_\u{5d0}".into())
            }),
            ("rule: the character \\u{a}", |r| r.rule = Some("a\nb".into())),
            ("rule: 1025 bytes", |r| r.rule = Some("x".repeat(MAX_TEXT + 1))),
        ];
        for (expected, change) in wrong {
            let mut record = record();
            change(&mut record);
            let refused = record.check().unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
