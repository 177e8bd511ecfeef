//! The REST interface: ARM's dialect, discovery and login for stock clients, and the fabric API.

mod change;
pub(crate) mod failure;
pub(crate) mod json;
mod recorder;
pub mod router;
mod state;

pub(crate) use state::{Rest, external_url};
