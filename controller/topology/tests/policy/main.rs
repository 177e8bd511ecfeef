//! Tests of the rules in docs/rules with two results of this crate: the configuration that each agent gets, and the
//! answer of `explain` to what happens to a packet.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod appliances;
mod balancing;
mod bandwidth;
mod circuits;
mod connectivity;
mod explain;
mod flow_logs;
mod learned;
mod links;
mod locality;
mod outside;
mod reach;
mod repair;
mod routes;
mod security;
mod several_nics;
mod site_probe;
mod world;
