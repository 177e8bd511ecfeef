//! Builds the network that a topology file describes on one machine: network namespaces with an underlay, sites, a
//! controller and agents.
//!
//! * [`topology`]: the topology file, its check, and its renaming.
//! * [`host`]: hosts as namespaces, containers or virtual machines.
//! * [`underlay`]: the network between the hosts, whose links can be cut. [`delay`]: a program that delays packets
//!   between its segments, for kernels without netem.
//! * [`interfaces`]: veth pairs and addresses.
//! * [`site`]: on-premises networks of stock routers and VPN devices.
//! * [`lab`]: [`Lab`], which brings a topology up, changes it, and takes it down.
//! * [`process`]: long-running programs. [`command`]: helper programs that end by themselves.
//! * [`state`]: the record of all that a lab has made, by which all of this can be removed.
//! * [`private`]: files with secrets.
//! * [`probe`]: the real `ping` and `traceroute`.
//! * [`check`]: compares the controller's answers and the topology's expectations with live packets.
//! * [`cli`]: the command `tombolo lab`. [`demo`]: its step-by-step demo.
//! * [`operator`]: the client of the controller's REST interface.
//! * [`progress`]: progress messages.
//! * [`watch`]: takes a lab down after the program that made it was killed.
//! * [`binary`]: finds the product's programs.

pub mod binary;
pub mod check;
pub mod cli;
pub mod command;
pub mod delay;
pub mod demo;
pub mod echo;
pub mod host;
pub mod interfaces;
mod invocation;
pub mod lab;
pub mod operator;
pub mod private;
pub mod probe;
pub mod process;
pub mod progress;
pub mod site;
pub mod state;
pub mod topology;
pub mod underlay;
pub mod watch;

pub use lab::{Lab, Options};
pub use topology::Topology;
