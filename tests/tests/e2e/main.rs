//! End-to-end tests: real processes, real TUN devices and real tunnels, in network namespaces. They need root.
//!
//! Each test brings up a lab of its own in separate namespaces, so tests run side by side although all labs have the
//! addresses of the built-in topology. Most tests end with a comparison of the controller's routes and `explain` with the
//! agents' tables and with live packets.

mod appliance;
mod azure_cli;
mod bandwidth;
mod connectivity_check;
mod demo;
mod failover;
mod faults;
mod first_join;
mod flow_logs;
mod load_balancer;
mod load_balancer_health;
mod packet_captures;
mod peering;
mod plain_site;
mod security_changes;
mod security_groups;
mod security_predictions;
mod site_probe;
mod sites_and_circuits;
mod stream;
mod transit;
mod usage;
