//! Tests plans with the controller's rules, but without a controller: creates topologies from manifests, applies the
//! manifests again, and changes, repairs and prunes the topologies. A plan is right if the rules accept every step and
//! a second plan is empty.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod balancers;
mod network;
mod security;
mod sites;
mod world;
