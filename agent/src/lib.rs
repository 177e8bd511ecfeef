//! The agent: the shell that gives the engine a TUN device, a UDP socket, a clock and its configuration.
//!
//! * [`run`]: the order in which the parts come and go.
//! * [`agent`]: what is in force, and the one way in which that changes; [`apply`] is the kernel's half of it
//!   ([`apply::plan`] pure, [`netlink`] the calls).
//! * [`lane`]: packets. One thread with [`tun`], its [`ports`] ([`udp`] each), the [`outbox`] between them and the engine.
//!   [`lane::builder`]: tables, beside the data path. [`log_limit`]: what others can cause in the log.
//! * [`bgp`]: routes from sites and customer edges, and to them; BIRD speaks for it.
//! * [`join`], [`first_join`], [`control`]: the controller. [`identity`], [`tls`]: keys and trust.
//! * [`state`], [`config`], [`keep`]: what is on disk. [`claim`], [`host`]: what an agent has for itself on its host,
//!   and what it changes there. `switches`: the kernel switches of its devices.
//! * [`admin`], [`metrics`], [`probe`]: seeing inside.

pub mod admin;
pub mod agent;
pub mod apply;
pub mod bgp;
pub mod claim;
pub mod config;
pub mod control;
pub mod filter;
pub mod first_join;
pub mod host;
pub mod identity;
pub mod join;
pub mod keep;
pub mod lane;
pub mod lanes;
pub mod log_limit;
pub mod metrics;
pub mod netlink;
pub mod outbox;
pub mod ports;
pub mod probe;
pub mod run;
pub mod state;
mod switches;
mod sys;
pub mod tls;
pub mod tun;
pub mod udp;
