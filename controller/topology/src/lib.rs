//! The desired state, its rules in Azure's words, and what each agent gets from it. Pure: no socket, no clock, no
//! randomness of its own.
//!
//! ```text
//! Change ──Topology::apply──▶ Topology ──compile──▶ AgentConfig
//!                                 └──────view─────▶ ARM JSON
//! ```
//!
//! * [`resource`]: the resources as typed, valid data.
//! * [`path`]: ARM resource paths.
//! * [`change`]: what may be asked for, and what comes of it.
//! * [`topology`]: all resources of one revision; `api` has what can be asked of them.
//! * [`compile`]: `(Topology, agent) → AgentConfig`; effective routes.
//! * [`device`]: what the device of a site has to be told.
//! * [`sync`]: the push to one agent.
//! * [`explain`]: what the agents would do with a packet, hop by hop, by the agents' own code.

mod api;
mod arm;
pub mod change;
pub mod compile;
pub mod device;
mod documents;
mod draft;
pub mod explain;
pub mod learned_routes;
mod lookup;
mod net;
pub mod path;
mod preshared;
mod problems;
pub mod resource;
mod rules;
pub mod sync;
pub mod topology;
