//! The fabric API: agents, join tokens, revisions, diagnosis, settings. ARM has no resources for these.

mod agents;
mod controller;
mod device;
mod diagnosis;
mod request;
mod tokens;

pub use tombolo_proto::fabric::{
    AgentRevision, AgentView, Binding, DeviceBgp, DeviceConfig, DeviceTunnel, ExplainRequest, NewApiToken, NewToken,
    Package, Packages, Probe, ProbeAnswer, Protocol, Rejected, Revisions, Token, Waited,
};
