//! The desired state, the rules that Azure applies to it, and the configuration that each agent gets. The crate is
//! pure: it has no socket, no clock and no randomness of its own.
//!
//! ```text
//! Change ──Topology::apply──▶ Topology ──compile──▶ AgentConfig
//!                                 └──────view─────▶ ARM JSON
//! ```
//!
//! * [`resource`]: the resources as typed, valid data, one file for each kind.
//! * [`path`]: ARM resource paths.
//! * [`change`]: the changes that a client can request, and their outcomes.
//! * [`topology`]: all resources of one revision; `api` has the operations on them.
//! * [`compile`]: `(Topology, agent) → AgentConfig`; effective routes.
//! * [`device`]: the WireGuard configuration of a site's device.
//! * [`sync`]: the state machine that pushes configurations to one agent.
//! * [`explain`]: walks a packet hop by hop through the agents' own decision code.
//! * [`learned_routes`]: the routes that agents learn from BGP and from each other.

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
