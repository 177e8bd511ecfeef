//! Routes and BGP sessions of gateways and circuits in ARM's format (M7).
//!
//! The list of sessions follows from the desired state. The status of each session follows from the last reports of the
//! agents. Agents do not report the routes that they advertise to each other. These routes are computed from the
//! reports by the agents' own export rules; see [`crate::learned_routes`].

mod circuit;
mod instances;
mod peers;
mod routes;
mod time;

pub(crate) use circuit::{circuit_routes, circuit_summary};
pub(crate) use peers::bgp_peers;
pub(crate) use routes::{advertised, learned};
