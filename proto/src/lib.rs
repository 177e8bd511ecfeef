//! The contract between controller, agents, client and command line.
//!
//! * [`arm`]: kinds and paths of ARM items, and what may name them.
//! * [`budget`]: limits of rate, for what strangers and peers may cause on either side.
//! * [`id`]: names of things.
//! * [`route`]: effective routes in Azure's words.
//! * [`config`]: [`AgentConfig`](config::AgentConfig), everything one agent must know; complete, never a delta.
//! * [`exposition`]: the text format of the metrics.
//! * [`fabric`]: requests and answers of the fabric API.
//! * [`installed`]: what an agent has in force, read back.
//! * [`net`]: arithmetic of prefixes.
//! * [`probe`]: live ping and traceroute.
//! * [`status`]: what agents report.
//! * [`wire`] (feature `grpc`): the generated messages of the control stream.

pub mod arm;
pub mod budget;
pub mod config;
pub mod exposition;
pub mod fabric;
pub mod id;
pub mod installed;
pub mod net;
pub mod probe;
pub mod route;
pub mod status;
#[cfg(feature = "grpc")]
pub mod wire;
