//! The packet captures that the controller asks for (D42).

use super::Agent;
use crate::capture::{CaptureHost, Captures};
use crate::tun::device_name;
use tombolo_proto::capture::CaptureRequest;
use tombolo_proto::control_stream;
use uuid::Uuid;

impl Agent {
    /// The captures of the agent.
    #[must_use]
    pub fn captures(&self) -> &Captures {
        &self.captures
    }

    /// Takes the list of the captures that should be made. Entries without a valid id are ignored; those with a malformed
    /// request are reported as failed.
    pub fn set_captures(&self, wanted: &control_stream::Captures) {
        let read = |capture: &control_stream::Capture| {
            let Ok(id) = Uuid::try_parse(&capture.id) else {
                tracing::warn!(id = capture.id, "capture ignored: its id is no UUID");
                return None;
            };
            let request: Result<CaptureRequest, _> = serde_json::from_slice(&capture.request);
            Some((id, request.map_err(|e| format!("malformed capture: {e}"))))
        };
        let wanted = wanted.captures.iter().filter_map(read).collect();
        let running = self.running();
        let host = CaptureHost {
            config: running.config.as_deref(),
            device: &|number| device_name(&self.config.interface, number),
            lanes: self.lanes.count(),
            add_taps: &|taps| self.lanes.capture(taps).is_ok(),
        };
        self.captures.set(wanted, &host);
    }
}
