//! Compiled configurations and explanations, compared with docs/rules: the configuration that each agent gets, and the
//! fate of packets.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod circuits;
mod explain;
mod learned;
mod links;
mod locality;
mod outside;
mod routes;
mod security;
mod world;
