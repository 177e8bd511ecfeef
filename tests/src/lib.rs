//! Shared code of the tests of several programs.
//!
//! * [`arm`] writes ARM paths and bodies.
//! * [`operation`] has operations on a topology as data, and their random generator.
//! * [`model`] is the reference model: the specification as loops over lists of prefixes, without product code.
//! * [`policy`] draws topologies with security groups, and compares predictions about them with what happens.
//! * [`product`] performs the operations of [`operation`] on the product's topology.
//! * [`world`] runs all agents of a topology in one process, with the engine of real agents.
//! * [`simulation`] runs the control plane under faults, with one seed and one clock.
//! * [`corpus`] replays recorded inputs of the fuzz targets.
//! * [`differential`] plays one seed against model and product, and shrinks a run in which they differ.
//! * [`binary`] finds the built programs.
//! * [`citations`] reads the tests and rules that documents and code cite.
//! * [`controller`] runs a real controller process.
//! * [`hostile`] is a joined agent that attacks its peers.
//! * [`stock_client`] prepares the environment of Azure's own clients.
//! * [`live`] runs a lab of real processes in network namespaces, and asserts its behaviour. [`program`] runs the command
//!   line there while a test goes on.

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
pub mod policy;
pub mod product;
pub mod program;
pub mod simulation;
pub mod stock_client;
pub mod world;
