//! The fabric API: agents, join tokens, revisions, diagnosis, settings. Everything that Azure has no word for.

mod agents;
mod controller;
mod device;
mod diagnosis;
mod request;
mod tokens;

pub use agents::AgentView;
pub use device::{DeviceBgp, DeviceConfig, DeviceTunnel};
pub use diagnosis::{ExplainRequest, Probed};
pub use tokens::{Binding, Package, Packages, Token};
pub use tombolo_proto::fabric::{AgentRevision, NewApiToken, NewToken, Probe, Rejected, Revisions, Waited};
