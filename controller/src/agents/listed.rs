//! An entry of the list of packet captures and tails of flow logs that an agent should have.

use bytes::Bytes;
use std::collections::BTreeSet;
use tokio::sync::mpsc;
use tombolo_proto::capture::{self, CaptureReport, CaptureRequest, STREAM_WINDOW};
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream;
use tombolo_proto::flow_tail::{self, TailRequest};
use uuid::Uuid;

/// The queue of bytes for the client of a live stream.
pub(super) type Live = mpsc::Sender<Result<Bytes, LiveEnd>>;

/// Why a live stream has ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LiveEnd {
    /// The agent has disconnected.
    #[error("the agent has disconnected")]
    Disconnected,
    /// The agent could not do what it should. Has that in words, and the agent's reason.
    #[error("the agent could not {0}: {1}")]
    Refused(&'static str, String),
    /// The agent does not keep to the window.
    #[error("the agent has sent more than it may")]
    TooMuch,
}

/// What an entry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListedKind {
    Capture,
    Tail,
}

/// Why an entry cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unlisted {
    NotConnected,
    NotSupported,
    TooMany,
}

impl ListedKind {
    /// Whether an agent with these features can read such an entry (D27).
    pub(super) fn is_known(self, features: &BTreeSet<Feature>) -> bool {
        let is_tail = self == Self::Tail;
        features.contains(&Feature::PacketCapture) && (!is_tail || features.contains(&Feature::FlowLogTail))
    }

    /// Largest number of entries of this kind that run at an agent.
    pub(super) const fn most(self) -> usize {
        match self {
            Self::Capture => capture::MAX_RUNNING,
            Self::Tail => flow_tail::MAX_RUNNING,
        }
    }

    /// What the agent does, in words.
    const fn verb(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Tail => "send the records of its flow logs",
        }
    }
}

/// A capture or tail in an agent's list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) kind: ListedKind,
    /// The request, as the agent gets it.
    pub(super) wanted: control_stream::Capture,
    pub(super) report: CaptureReport,
    /// Whether the agent should end it. It is then missing in the list that the agent gets.
    pub(super) is_stopped: bool,
    /// The bytes of a live stream.
    pub(super) live: Option<Live>,
    /// Largest number of bytes of a live stream that the client has not read.
    window: u64,
    /// Number of bytes of a live stream that have come, and that the client has read.
    received: u64,
    pub(super) read: u64,
}

impl Listed {
    pub(super) fn capture(id: Uuid, request: &CaptureRequest, live: Option<Live>) -> Self {
        let wanted = control_stream::Capture {
            id: id.to_string(),
            // Serialization cannot fail, because a request consists of numbers, texts and lists.
            request: serde_json::to_vec(request).unwrap_or_default(),
            tail: Vec::new(),
        };
        Self::new(ListedKind::Capture, wanted, STREAM_WINDOW as u64, live)
    }

    pub(super) fn tail(id: Uuid, request: &TailRequest, live: Live) -> Self {
        let wanted = control_stream::Capture {
            id: id.to_string(),
            request: Vec::new(),
            tail: serde_json::to_vec(request).unwrap_or_default(),
        };
        Self::new(ListedKind::Tail, wanted, request.window.into(), Some(live))
    }

    fn new(kind: ListedKind, wanted: control_stream::Capture, window: u64, live: Option<Live>) -> Self {
        Self {
            kind,
            wanted,
            report: CaptureReport::default(),
            is_stopped: false,
            live,
            window,
            received: 0,
            read: 0,
        }
    }

    /// Takes a report. A live stream that could not start sends no bytes, so its client is told here.
    pub(super) fn take_report(&mut self, report: CaptureReport) {
        let is_told = self.report.message.is_some();
        self.report = report;
        if let (Some(message), Some(live), false) = (&self.report.message, &self.live, is_told) {
            let _ = live.try_send(Err(LiveEnd::Refused(self.kind.verb(), message.clone())));
        }
    }

    /// Takes bytes of a live stream, and passes them on. Returns whether the stream has ended: with these bytes, or because the
    /// agent does not keep to the window.
    pub(super) fn take_data(&mut self, data: Vec<u8>, end: bool) -> bool {
        let Some(live) = &self.live else { return false };
        self.received += data.len() as u64;
        let waiting = self.received.saturating_sub(self.read);
        let is_within = waiting <= self.window;
        let sent = is_within && (data.is_empty() || live.try_send(Ok(data.into())).is_ok());
        if !sent {
            let _ = live.try_send(Err(LiveEnd::TooMuch));
        }
        end || !sent
    }
}
