//! An entry of the list of packet captures that an agent should have.

use bytes::Bytes;
use tokio::sync::mpsc;
use tombolo_proto::capture::{CaptureReport, CaptureRequest};

/// A capture in an agent's list.
#[derive(Debug)]
pub(super) struct Listed {
    /// The request, as the agent gets it.
    pub(super) request: Vec<u8>,
    pub(super) report: CaptureReport,
    /// Whether the agent should end it. It is then missing in the list that the agent gets.
    pub(super) is_stopped: bool,
    /// The bytes of a live capture.
    pub(super) live: Option<mpsc::Sender<Result<Bytes, String>>>,
    /// Number of bytes of a live capture that have come, and that the client has read.
    pub(super) received: u64,
    pub(super) read: u64,
}

impl Listed {
    pub(super) fn new(request: &CaptureRequest, live: Option<mpsc::Sender<Result<Bytes, String>>>) -> Self {
        Self {
            // Serialization cannot fail, because a request consists of numbers, texts and lists.
            request: serde_json::to_vec(request).unwrap_or_default(),
            report: CaptureReport::default(),
            is_stopped: false,
            live,
            received: 0,
            read: 0,
        }
    }
}
