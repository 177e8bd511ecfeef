//! Golden files of manifests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod balancers;
mod gateways;
mod network;
