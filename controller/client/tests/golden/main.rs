//! What the client sends, and what people's files say, as recorded files.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fabric;
mod gateways;
mod network;
