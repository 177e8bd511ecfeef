//! The controller process: IO, clock and runtime around the topology crate, which has none of them.
//!
//! * **State.** [`store`] keeps the desired state on disk. [`writer`] is its only writer and publishes each new state.
//! * **Agents.** [`compiled`] computes the configuration of each agent. `sync` pushes it over the control stream.
//!   [`agents`] holds the configuration that each agent runs, and the agent's reports. `endpoints` stores the addresses
//!   at which agents are reached.
//! * **Port.** [`http`] accepts connections, and [`grpc`] serves the control streams of agents. [`admission`] decides
//!   which connections stay open, [`connections`] holds their tasks, and [`descriptors`] raises the limit of open
//!   files.
//! * **Identity.** [`ca`] issues certificates, [`tls`] verifies them, [`secret`] handles tokens and private files, and
//!   `auth` checks the tokens of the REST interface. [`peer`] describes the client of a request.
//! * **REST.** [`rest`] has the router, request bodies and errors. `arm` is Azure Resource Manager's dialect, with the
//!   history of `deployments`. `fabric` is the API for objects that ARM does not have. `connectivity` checks connections
//!   with live probes, for both, and `monitors` repeats such checks. `captures` keeps packet captures, and `flow_tail` follows flow logs. [`packages`] holds the packages for new machines.
//! * **Process.** [`app`] assembles the parts, [`metrics`] exports figures, and [`health`] checks a running controller.

pub mod activity;
pub mod admission;
pub mod agents;
pub mod app;
mod arm;
mod asserted;
mod auth;
pub mod ca;
mod captures;
pub mod compiled;
pub mod connections;
mod connectivity;
mod database;
pub mod delta;
mod deployments;
pub mod descriptors;
mod endpoints;
mod excerpt;
mod fabric;
mod flow_tail;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
mod monitors;
pub mod packages;
pub mod peer;
mod reach_cache;
pub mod rest;
pub mod secret;
pub mod store;
mod sync;
mod times;
pub mod tls;
mod troubleshooting;
pub mod usage;
pub mod writer;
