//! Tests of the controller from outside: the real program runs on loopback, a plain HTTP client sends REST requests,
//! and fake agents speak the real protocol.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions only, not in their helpers"
)]

mod activity;
mod agents;
mod balancing;
mod captures;
mod fabric;
mod fake_agent;
mod features;
mod flow_logs;
mod flow_tails;
mod gateways;
mod golden;
mod health;
mod kinds;
mod login;
mod packages;
mod port;
mod reach;
mod refusals;
mod resources;
mod restart;
mod security;
mod site_probe;
mod stock_clients;
mod watcher;
mod world;
