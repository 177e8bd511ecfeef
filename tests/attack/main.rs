//! Attacks on real processes in network namespaces: scenarios for findings of `docs/security.md`. They need root.
//!
//! A scenario first shows that the attacker can do what it is permitted to do. Otherwise an attacker that does not work
//! at all would look like an attack that was repelled. Then the scenario performs the attack, and checks that it had no
//! effect, and that other agents and users kept working. All scenarios together take at most three minutes.

mod advertisements;
mod clear_text;
mod controller_bodies;
mod controller_connections;
mod customer_edge_source;
mod learned_host_networks;
mod learned_super_prefix;
mod quic_flap;
mod site;
mod stranger;
