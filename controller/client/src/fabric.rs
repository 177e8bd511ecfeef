//! The fabric API: agents, join tokens, revisions, diagnosis and settings, for which ARM has no resources.

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
