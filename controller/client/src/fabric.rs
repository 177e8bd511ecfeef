//! The fabric API: agents, join tokens, revisions, diagnosis and settings, for which ARM has no resources.

mod agents;
mod capture;
mod controller;
mod device;
mod diagnosis;
mod request;
mod tokens;

pub use capture::CaptureStream;
pub use tombolo_proto::fabric::{
    AgentRevision, AgentView, AssertedTraffic, Assertion, Binding, CaptureFilterText, CheckRequest, DeviceBgp,
    DeviceConfig, DeviceTunnel, ExplainRequest, LiveCapture, MonitorOutcome, MonitorResult, MonitorTestView,
    MonitorView, NewApiToken, NewToken, Package, Packages, Probe, ProbeAnswer, ProposedChange, Protocol,
    ReachDiffRequest, ReachRequest, Rejected, Revisions, StoredAssertions, Token, UsageRequest, Waited,
};
