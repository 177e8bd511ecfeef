//! The contract between controller and agents.
//!
//! * [`budget`]: limits of rate, for what strangers and peers may cause on either side.
//! * [`id`]: names of things.
//! * [`route`]: effective routes in Azure's words.
//! * [`config`]: [`AgentConfig`](config::AgentConfig), everything one agent must know; complete, never a delta.
//! * [`exposition`]: the text format of the metrics.
//! * [`installed`]: what an agent has in force, read back.
//! * [`probe`]: live ping and traceroute.
//! * [`status`]: what agents report.
//! * [`wire`] (feature `grpc`): the generated messages of the control stream.

pub mod budget;
pub mod config;
pub mod exposition;
pub mod id;
pub mod installed;
pub mod probe;
pub mod route;
pub mod status;
#[cfg(feature = "grpc")]
pub mod wire;
