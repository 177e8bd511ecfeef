//! The agent: connects the engine, which does no I/O, to a TUN device, UDP sockets, a clock and the configuration.
//!
//! * [`run`]: starts and stops all parts. [`clean`]: removes what an agent leaves on the host.
//! * [`agent`]: the configuration in force and its replacement. [`apply`]: the kernel's routes, rules and addresses for
//!   a configuration ([`apply::plan`] computes them without system calls, [`netlink`] makes the requests). [`filter`]:
//!   the packet filter.
//! * [`lane`]: one thread that moves packets, with a queue of the [`tun`] device, [`sockets`] (each a [`udp`] socket),
//!   and the [`outbox`] between the engine and the sockets; [`lanes`]: all lanes of the agent. [`lane::builder`] builds
//!   lookup tables in a thread of its own. [`log_limit`] bounds log lines that peers can cause.
//! * [`bgp`]: routes from and to sites and customer edges, through BIRD.
//! * [`join`], [`first_join`], [`control`]: communication with the controller, over an `uplink`. [`identity`], [`tls`]: keys
//!   and certificates. [`site_probe`]: the agent of a host in a site, which only sends probes.
//! * [`state`], [`config`], [`persist`], [`flow_file`], [`meter`]: files. [`claim`]: exclusive use of a device's name and of
//!   routing tables. [`host`]: the host's sysctl for ICMP redirects. `switches`: the sysctls of the agent's devices.
//! * [`flow_log`]: writes flow logs. [`capture`]: packet captures. [`live`]: the streams of both to the controller.
//! * [`health`]: health probes of the back ends of load balancers.
//! * [`admin`], [`status_text`], [`metrics`], [`probe`]: status, metrics, ping and traceroute.

pub mod admin;
pub mod agent;
pub mod apply;
pub mod bgp;
pub mod capture;
pub mod claim;
pub mod clean;
pub mod config;
pub mod control;
pub mod filter;
pub mod first_join;
pub mod flow_file;
pub mod flow_log;
pub mod health;
pub mod host;
pub mod identity;
pub mod join;
pub mod lane;
pub mod lanes;
mod last_minute;
pub mod live;
pub mod log_limit;
pub mod meter;
pub mod metrics;
pub mod netlink;
pub mod outbox;
pub mod persist;
pub mod probe;
pub mod run;
pub mod site_probe;
pub mod sockets;
pub mod state;
pub mod status_text;
mod switches;
mod sys;
pub mod tls;
pub mod tun;
pub mod udp;
mod uplink;
