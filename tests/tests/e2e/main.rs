//! End to end: real processes, real TUN devices, real tunnels, in network namespaces. Needs root.
//!
//! Each test brings up a lab of its own (its addresses are those of the built-in topology, in namespaces of its own),
//! and ends by comparing the controller's routes and `explain` with the agents' tables and with live packets.

mod demo;
mod failover;
mod faults;
mod first_join;
mod peering;
mod plain_site;
mod sites_and_circuits;
mod stream;
mod transit;
