//! The controller as its clients see it: the real program on loopback, a plain HTTP client for REST, and fake agents
//! that speak the real protocol.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions only, not in their helpers"
)]

mod agents;
mod fabric;
mod fake_agent;
mod gateways;
mod golden;
mod health;
mod kinds;
mod login;
mod packages;
mod port;
mod refusals;
mod resources;
mod restart;
mod world;
