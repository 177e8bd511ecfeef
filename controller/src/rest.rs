//! The REST interface: ARM's dialect, discovery and login for stock clients, and the fabric API.

pub(crate) mod failure;
pub(crate) mod json;
pub mod router;
mod state;

pub(crate) use state::{Rest, external_url};
