//! A client of the controller's REST interface, and the declarative file that is applied through it. No server code.
//!
//! * [`Client`]: one controller, one token; ARM by path, the fabric API by typed calls.
//! * [`error`]: what can go wrong, with the controller's own code and message.
//! * [`path`]: how paths of resources are written.
//! * [`fabric`]: agents, tokens, revisions, diagnosis, settings.
//! * [`manifest`]: the declarative file: read, compare, apply.

mod arm;
mod client;
pub mod error;
pub mod fabric;
pub mod manifest;
pub mod path;

pub use client::Client;
pub use error::{ApiError, Detail, Error};
