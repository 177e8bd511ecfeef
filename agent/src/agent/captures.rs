//! The packet captures and tails of flow logs that the controller asks for (D38, D42).

use super::Agent;
use crate::capture::{CaptureHost, Captures, Wanted};
use crate::tun::device_name;
use tombolo_proto::control_stream;
use uuid::Uuid;

impl Agent {
    /// The captures of the agent.
    #[must_use]
    pub fn captures(&self) -> &Captures {
        &self.captures
    }

    /// Takes the list of the captures and tails that should be made. Entries without a valid id are ignored; those with a malformed
    /// request are reported as failed.
    pub fn set_captures(&self, wanted: &control_stream::Captures) {
        let read = |capture: &control_stream::Capture| {
            let Ok(id) = Uuid::try_parse(&capture.id) else {
                tracing::warn!(id = capture.id, "capture ignored: its id is no UUID");
                return None;
            };
            let request = match capture.tail.is_empty() {
                true => serde_json::from_slice(&capture.request).map(Wanted::Capture),
                false => serde_json::from_slice(&capture.tail).map(Wanted::Tail),
            };
            Some((id, request.map_err(|e| format!("malformed request: {e}"))))
        };
        let wanted = wanted.captures.iter().filter_map(read).collect();
        let running = self.running();
        let host = CaptureHost {
            config: running.config.as_deref(),
            device: &|number| device_name(&self.config.interface, number),
            lanes: self.lanes.count(),
            add_taps: &|taps| self.lanes.capture(taps).is_ok(),
            add_log_tap: &|tap| self.flow_log.tail(tap).is_ok(),
        };
        self.captures.set(wanted, &host);
    }
}
