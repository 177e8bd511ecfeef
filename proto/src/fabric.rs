//! Requests and responses of the fabric API, which serves the objects that Azure's REST API does not have, such as
//! agents and join tokens. Controller, client, command line and agents share these types.
//!
//! Requests refuse unknown fields (D3). Clients ignore unknown fields in responses, so that a client can read the
//! responses of a newer controller. Some types that occur in responses refuse unknown fields nevertheless, such as
//! [`Binding`].

mod agent;
mod capture;
mod device;
mod diagnosis;
mod flow_log;
mod monitor;
mod reach;
mod token;
mod usage;

pub use agent::{AgentRevision, AgentView, Rejected, Revisions, Waited};
pub use capture::{CaptureFilterText, LiveCapture};
pub use device::{DeviceBgp, DeviceConfig, DeviceRequest, DeviceTunnel};
pub use diagnosis::{CheckRequest, ExplainRequest, Probe, ProbeAnswer, Protocol};
pub use flow_log::{FlowLogTail, TailLine, TailState};
pub use monitor::{MonitorOutcome, MonitorResult, MonitorTestView, MonitorView};
pub use reach::{
    AssertedTraffic, Assertion, MAX_ASSERTIONS, MAX_PROPOSED_CHANGES, ProposedChange, ReachDiffRequest, ReachRequest,
    StoredAssertions,
};
pub use token::{
    ApiTokenRequest, Binding, JoinReply, JoinRequest, MAX_ATTACHMENTS, NewApiToken, NewToken, Package, Packages, Token,
    TokenRequest,
};

pub use usage::UsageRequest;

use serde::{Deserialize, Serialize};

/// The response to a list: `{"value": […]}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListResponse<T> {
    /// The items, in the order that the documentation of the request states.
    pub value: Vec<T>,
}
