//! The desired state of the network, the rules that Azure applies to it, and the configuration that each agent gets.
//! The crate does no IO, and has no clock and no randomness of its own.
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
//! * [`compile`]: the configuration of an agent from a topology; effective routes of subnets.
//! * [`device`]: the WireGuard and BGP configuration of a site's device.
//! * [`back_end_health`]: which back ends of load balancers are up.
//! * [`address_use`]: the addresses of a VNet that are free and in use.
//! * [`sync`]: the state machine that decides when an agent is sent its configuration.
//! * [`capture`]: what packet captures record, and where.
//! * [`connectivity`]: judges the results of live probes.
//! * [`explain`]: walks a packet hop by hop through the agents' own decision code.
//! * [`reach`]: which addresses reach which, for a whole topology.
//! * [`repair`]: the changes that let a packet arrive.
//! * [`learned_routes`]: the routes that agents learn from BGP and from each other.
//! * [`metering`]: for which resources traffic counts, and what it costs.
//! * [`monitor`]: the tests of connection monitors.
//! * [`nic_security`]: the security groups of one network interface, with the meaning of tags there.
//! * [`troubleshoot`]: the faults of gateways and connections.

pub mod address_use;
mod api;
mod arm;
pub mod back_end_health;
mod back_ends;
pub mod capture;
pub mod change;
pub mod compile;
pub mod connectivity;
pub mod device;
mod documents;
mod draft;
pub mod explain;
pub mod learned_routes;
mod lookup;
pub mod metering;
pub mod monitor;
mod net;
pub mod nic_security;
pub mod path;
mod preshared;
mod problems;
pub mod reach;
pub mod repair;
pub mod resource;
mod rules;
pub mod sync;
pub mod topology;
pub mod troubleshoot;
