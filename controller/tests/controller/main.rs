//! The controller as its clients see it: the real program on loopback, REST by a plain HTTP client, agents that speak the
//! real protocol.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

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
