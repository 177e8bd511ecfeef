//! The fabric API: agents, join tokens, revisions, diagnosis and settings, for which ARM has no resources.

mod agents;
mod capture;
mod controller;
mod device;
mod diagnosis;
mod flow_log;
mod request;
mod tokens;

pub use capture::CaptureStream;
pub use flow_log::FlowTailStream;
pub use tombolo_proto::fabric::{
    AgentRevision, AgentView, AssertedTraffic, Assertion, Binding, CaptureFilterText, CheckRequest, DeviceBgp,
    DeviceConfig, DeviceTunnel, ExplainRequest, FlowLogTail, LiveCapture, MonitorOutcome, MonitorResult,
    MonitorTestView, MonitorView, NewApiToken, NewToken, Package, Packages, Probe, ProbeAnswer, ProposedChange,
    Protocol, ReachDiffRequest, ReachRequest, Rejected, Revisions, StoredAssertions, TailLine, TailState, Token,
    UsageRequest, Waited,
};
