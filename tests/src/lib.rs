//! Shared code of the tests of several programs.
//!
//! * [`arm`]: ARM paths and bodies.
//! * [`operation`]: operations on a topology as data, and their generator.
//! * [`model`]: the reference model: the specification as loops over lists of prefixes, without product code.
//! * [`product`]: the same operations on the product's topology.
//! * [`world`]: all agents of a topology in one process, with the engine of real agents.
//! * [`simulation`]: the control plane under faults, with one seed and one clock.
//! * [`corpus`]: recorded inputs of the fuzz targets.
//! * [`differential`]: plays one seed against model and product; shrinks a run that differs.
//! * [`binary`]: the built programs.
//! * [`citations`]: the tests and rules that documents and code cite.
//! * [`controller`]: a real controller process with its certificate and token.
//! * [`hostile`]: a joined agent that attacks its peers.
//! * [`live`]: a lab of real processes in network namespaces, with assertions about it.

pub mod arm;
pub mod binary;
pub mod citations;
pub mod controller;
pub mod corpus;
pub mod differential;
pub mod hostile;
pub mod live;
pub mod model;
pub mod operation;
pub mod product;
pub mod simulation;
pub mod world;
