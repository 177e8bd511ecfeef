//! Routes and sessions of gateways and circuits, in ARM's words (M7).
//!
//! Which sessions there should be is desired state; how they are is what agents last reported. What agents tell each other
//! inside their links follows from that by their own rules (see [`crate::learned_routes`]).

mod circuit;
mod instances;
mod peers;
mod routes;
mod time;

pub(crate) use circuit::{circuit_routes, circuit_summary};
pub(crate) use peers::bgp_peers;
pub(crate) use routes::{advertised, learned};
