//! A client of the controller's REST interface, and the manifests that are applied through it.
//!
//! * [`Client`]: a connection to one controller with one token. ARM resources are addressed by path; the fabric API has
//!   typed calls.
//! * [`error`]: the errors of calls, with the controller's own code and message.
//! * [`path`]: the paths and ids of resources.
//! * [`fabric`]: agents, tokens, revisions, diagnosis, settings.
//! * [`manifest`]: manifests: read, compare, apply.

mod arm;
mod client;
pub mod error;
pub mod fabric;
pub mod manifest;
pub mod path;

pub use client::Client;
pub use error::{ApiError, Detail, Error};
