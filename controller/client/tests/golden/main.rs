//! Golden files of the client's requests and of manifests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod fabric;
mod gateways;
mod network;
