//! The fabric API: agents, join tokens, revisions, diagnosis and settings, for which ARM has no resources.

mod agents;
mod controller;
mod device;
mod diagnosis;
mod request;
mod tokens;

pub use agents::AgentView;
pub use device::{DeviceBgp, DeviceConfig, DeviceTunnel};
pub use diagnosis::{ExplainRequest, ProbeAnswer};
pub use tokens::{Binding, Package, Packages, Token};
pub use tombolo_proto::fabric::{AgentRevision, NewApiToken, NewToken, Probe, Rejected, Revisions, Waited};
