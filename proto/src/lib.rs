//! The types and formats that controller, agents, client and command line share.
//!
//! * [`arm`]: kinds of ARM items, their paths and names.
//! * [`budget`]: rate limits for requests of clients and peers.
//! * [`capture`]: packet captures.
//! * [`config`]: [`AgentConfig`](config::AgentConfig), the complete configuration of one agent.
//! * [`control_stream`] (feature `grpc`): generated messages of the control stream.
//! * [`exposition`]: the text format of metrics.
//! * [`fabric`]: requests and responses of the fabric API.
//! * [`flow_tail`]: tails of flow logs.
//! * [`id`]: names, keys and secrets.
//! * [`installed`]: the tables and kernel routes that an agent uses now.
//! * [`net`]: arithmetic of prefixes.
//! * [`probe`]: live ping and traceroute.
//! * [`route`]: effective and advertised routes.
//! * [`status`]: the status that agents report.

pub mod arm;
pub mod budget;
pub mod capture;
pub mod config;
#[cfg(feature = "grpc")]
pub mod control_stream;
pub mod delta;
pub mod exposition;
pub mod fabric;
pub mod flow_tail;
pub mod id;
pub mod installed;
pub mod net;
pub mod probe;
pub mod route;
pub mod status;
