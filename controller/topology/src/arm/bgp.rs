//! Routes and BGP sessions of gateways and circuits in ARM's format (M7).
//!
//! The configured sessions follow from the desired state, their status from the last reports of the agents. The routes
//! that agents advertise to each other are computed from these reports by the agents' own rules; see
//! [`crate::learned_routes`].

mod circuit;
mod instances;
mod peers;
mod routes;
mod time;

pub(crate) use circuit::{circuit_routes, circuit_summary};
pub(crate) use peers::bgp_peers;
pub(crate) use routes::{advertised, learned};
