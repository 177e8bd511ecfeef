//! What the tests of the whole share.
//!
//! * [`arm`]: ARM paths and bodies.
//! * [`operation`]: what may happen to a topology, as data, and its generator.
//! * [`model`]: the reference model: loops over lists of prefixes, from the specification, without product code.
//! * [`product`]: the same operations and packets through the product: topology, compile, tables, engine.
//! * [`world`]: all agents of a topology in one memory, on the engine that real agents run.
//! * [`simulation`]: the control plane under faults, one seed and one clock.
//! * [`corpus`]: kept inputs of the fuzz targets.
//! * [`differential`]: one seed's run of both; what differs; the smallest run that still differs.
//! * [`binary`]: the built programs.
//! * [`citations`]: the tests and rules that documents and code cite.
//! * [`controller`]: a real controller process with its certificate and token.
//! * [`hostile`]: an agent that has joined and attacks its peers.
//! * [`live`]: a lab of real processes in network namespaces, and the words in which tests speak of it.

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
