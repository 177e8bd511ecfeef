//! End to end: real processes, real TUN devices, real tunnels, in network namespaces. Needs root.
//!
//! Each test brings up its own lab, with the addresses of the built-in topology in separate namespaces. Most tests end with
//! a comparison: the controller's routes and `explain` with the agents' tables and with live packets.

mod demo;
mod failover;
mod faults;
mod first_join;
mod peering;
mod plain_site;
mod sites_and_circuits;
mod stream;
mod transit;
