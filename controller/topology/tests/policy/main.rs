//! What the rules say an agent must get, and what a packet must meet: compile and explain against docs/rules.
#![allow(clippy::unwrap_used, reason = "tests")]

mod circuits;
mod explain;
mod learned;
mod links;
mod locality;
mod outside;
mod routes;
mod world;
