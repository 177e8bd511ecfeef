//! A topology file becomes namespaces, an underlay, sites, a controller and agents on one machine.
//!
//! * [`topology`]: the file. Addresses stand only there.
//! * [`host`]: what a host is, apart from what runs on it.
//! * [`underlay`]: the network between the hosts; its links can be cut. [`delay`]: what makes it long. [`wire`]: a cable.
//! * [`site`]: on-premises networks of stock routers and VPN devices.
//! * [`process`], [`state`], [`command`]: what was started and made, so that all of it is removed again.
//! * [`lab`]: [`Lab`], all of it together.
//! * [`private`]: files with secrets.
//! * [`probe`]: real ping and traceroute.
//! * [`check`]: what is said, and what is expected, against what is.
//! * [`cli`], [`demo`]: `tombolo lab`.
//! * [`operator`]: the way to the controller's REST interface.
//! * [`progress`]: what is being done.
//! * [`watch`]: takes a lab down when the program that made it was killed.

pub mod binary;
pub mod check;
pub mod cli;
pub mod command;
pub mod delay;
pub mod demo;
pub mod host;
pub mod interfaces;
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
