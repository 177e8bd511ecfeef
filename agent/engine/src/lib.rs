//! The packet decisions and encrypted links of an agent, without input or output.
//!
//! ```text
//! AgentConfig ──Tables::build──▶ Tables ──decide──▶ Verdict
//!     Dynamic ──────┘
//! ```
//!
//! * [`packet`]: a checked view of an IP packet; ICMP errors.
//! * [`routing`]: routes that move: what is taken, who is told, which one is used; [`tables`]: what lookups run on.
//! * [`decide`](decide::decide): one pure function from tables and packet to a [`Verdict`](verdict::Verdict).
//! * [`link`]: all encrypted links of one engine, behind few verbs; WireGuard under the feature `links`.
//! * [`engine`]: the whole, as its owner drives it; [`buffer`]: where it writes; [`stats`]: what it counts.
//! * [`offload`]: super-packets at the TUN device.
//!
//! # The owner's loop
//! Read a batch of packets → [`Engine::handle_tun`](engine::Engine::handle_tun) each; read a batch of datagrams →
//! [`Engine::handle_udp`](engine::Engine::handle_udp) each, and [`drained`](engine::Engine::drained) when there are no more;
//! flush both sinks; then
//! [`handle_timeout`](engine::Engine::handle_timeout) when [`poll_timeout`](engine::Engine::poll_timeout) says so, 100 ms
//! later at the latest; take events; take new tables between batches. One owner, one thread, no lock.

mod aqm;
pub mod buffer;
pub mod decide;
pub mod engine;
mod flow;
pub mod link;
pub mod offload;
pub mod packet;
pub mod routing;
pub mod security;
pub mod stats;
pub mod tables;
pub mod verdict;
