//! The controller: a thin shell around the topology.
//!
//! * [`store`], [`writer`]: the desired state, durable; one writer.
//! * [`compiled`], [`agents`], `sync`: what each agent should run, what it runs, and the push between them; `endpoints`:
//!   where it is reached.
//! * [`http`], [`grpc`]: the one port. [`admission`]: which of its connections are kept; [`connections`]: the tasks that
//!   serve them; [`descriptors`]: how many there may be. [`tls`], [`ca`], [`secret`]: who is who.
//! * [`rest`]: bodies and errors; `arm`: the Azure Resource Manager dialect; `fabric`: what Azure has no word for;
//!   `auth`: its tokens; [`packages`]: what new machines download.
//! * [`app`]: all of it together. [`health`]: asking a running one.

pub mod admission;
pub mod agents;
pub mod app;
mod arm;
mod auth;
pub mod ca;
pub mod compiled;
pub mod connections;
mod deployments;
pub mod descriptors;
mod endpoints;
mod fabric;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
pub mod packages;
pub mod peer;
pub mod rest;
pub mod secret;
pub mod store;
mod sync;
pub mod tls;
pub mod writer;
