//! The packet decisions and encrypted links of an agent, without input or output.
//!
//! ```text
//! AgentConfig ──Tables::build──▶ Tables ──decide──▶ Verdict
//! RoutingState ─────┘
//! ```
//!
//! * [`packet`]: a checked view of an IP packet; ICMP errors.
//! * [`routing`]: which learned routes are accepted, used and advertised; [`tables`]: the lookup tables of the
//!   decision.
//! * [`decide`](decide::decide): one pure function from tables and packet to a [`Verdict`](verdict::Verdict).
//! * [`bandwidth`]: token buckets, which limit what NICs and tunnels carry.
//! * [`health`]: which back ends are down, of what several sources say.
//! * [`owners`]: which owners of back ends are gone, because the links with them are down.
//! * [`link`]: all encrypted links of one engine; WireGuard and QUIC under the feature `links`.
//! * [`engine`]: the parts above together, as the owner of an engine drives them; [`buffer`]: the sinks that it writes
//!   into; [`stats`]: its counters.
//! * [`offload`]: splits and joins super-packets (GSO and GRO) at the TUN device.
//!
//! # The owner's loop
//! An [`Engine`](engine::Engine) is the packet path of one lane. One thread owns it, so there is no lock. Sockets, the
//! TUN device and the clock belong to this thread, the engine's *owner*. The owner makes these calls:
//!
//! 1. **Once:** [`with_redirect`](engine::Engine::with_redirect), or [`new`](engine::Engine::new) if the agent has only
//!    one lane; then [`remember_endpoints`](link::secure::SecureLinks::remember_endpoints).
//! 2. **For each configuration**, between two batches: [`install`](engine::Engine::install); for new routes in the same
//!    configuration: [`refresh`](engine::Engine::refresh). Both take tables that were built elsewhere. Lane 0 then
//!    calls [`advertise`](link::secure::SecureLinks::advertise) for each link and
//!    [`advertise_now`](link::secure::SecureLinks::advertise_now). When the health of its back ends changes, lane 0 calls
//!    [`advertise_health`](link::secure::SecureLinks::advertise_health).
//! 3. **For each batch of input:**
//!    * datagrams: [`handle_datagram`](engine::Engine::handle_datagram) for each, or [`refuse`](engine::Engine::refuse)
//!      for a datagram that is empty or whose source address cannot be replied to; when the sockets are empty,
//!      [`drained`](engine::Engine::drained);
//!    * packets of the TUN device: [`handle_tun`](engine::Engine::handle_tun) for each;
//!    * in lane 0, packets of other lanes: [`handle_redirected`](engine::Engine::handle_redirected) for each, or
//!      [`refuse_redirected`](engine::Engine::refuse_redirected) if the packet's link index belongs to another
//!      configuration.
//! 4. **After each batch:** [`flush`](engine::Engine::flush); then the owner sends the datagrams of the transmit sink.
//!    The owner reports the datagrams and packets that the kernel refused: [`not_sent`](engine::Engine::not_sent),
//!    [`local_refused`](engine::Engine::local_refused), [`not_delivered`](engine::Engine::not_delivered).
//!    Then the owner calls [`recheck_flows`](engine::Engine::recheck_flows), and again while it returns true, for at
//!    most a few tens of microseconds between two batches.
//! 5. **When [`poll_timeout`](engine::Engine::poll_timeout) is due:**
//!    [`handle_timeout`](engine::Engine::handle_timeout), then step 4. Any call may change the due time, so the owner
//!    calls `poll_timeout` after each batch; the agent calls `handle_timeout` at least every 100 ms.
//! 6. **At the end of each pass through steps 3 to 5:** [`poll_event`](engine::Engine::poll_event) until there is none.
//! 7. **Before the agent stops:** [`drain`](engine::Engine::drain), then step 4.
//!
//! When the engine of lane 0 reports a link as up, the owners of the other lanes call
//! [`prepare_session`](link::secure::SecureLinks::prepare_session). When lane 0 reports that a peer has roamed, i.e.
//! changed its endpoint, they call [`set_endpoint`](link::secure::SecureLinks::set_endpoint).
//!
//! Two engines with a wire between them:
//!
//! ```
//! # #[cfg(feature = "links")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{net::SocketAddr, sync::Arc, time::{Duration, Instant}};
//! use tombolo_engine::buffer::Collected;
//! use tombolo_engine::engine::Engine;
//! use tombolo_engine::link::{Event, secure::SecureLinks};
//! use tombolo_engine::tables::{NicIndex, Tables};
//! use tombolo_proto::config::AgentConfig;
//!
//! # use tombolo_proto::id::PublicKey;
//! # let config = |own: &str, peer: &str, key: PublicKey, host: u8| -> Result<AgentConfig, serde_json::Error> {
//! #     let address = |host: u8| format!("10.0.0.{host}");
//! #     serde_json::from_value(serde_json::json!({
//! #         "agent": own, "vnet": "/vnet", "addressSpace": ["10.0.0.0/24"], "mtu": 1420,
//! #         "role": { "type": "vm", "served": [], "nics": [{ "id": "/nic", "subnet": "/subnet",
//! #             "addresses": [format!("{}/24", address(host))], "ipForwarding": false }] },
//! #         "subnets": [{ "id": "/subnet", "prefixes": ["10.0.0.0/24"], "routes": [{ "source": "Default",
//! #             "state": "Active", "prefix": "10.0.0.0/24", "nextHop": { "type": "VnetLocal" } }] }],
//! #         "spaces": [{ "vnet": "/vnet", "kind": { "type": "local" }, "prefixes": ["10.0.0.0/24"], "owners": [
//! #             { "prefix": format!("{}/32", address(host)), "agent": own },
//! #             { "prefix": format!("{}/32", address(3 - host)), "agent": peer }] }],
//! #         "links": [{ "peer": peer, "publicKey": key, "transport": "WireGuard", "alwaysOn": false,
//! #             "initiator": false, "relation": { "type": "vnetLocal" }, "foreign": "none",
//! #             "endpoint": format!("192.0.2.{}:51820", 3 - host),
//! #             "sources": [format!("{}/32", address(3 - host))] }],
//! #     }))
//! # };
//! // Steps 1 and 2. Each end has a private key, and pins the other's public key in its configuration.
//! let mut now = Instant::now();
//! let keys = [[1; 32], [2; 32]];
//! let pins = keys.map(|key| SecureLinks::new(key).public_key());
//! let mut engines = keys.map(|key| Engine::new(SecureLinks::new(key), 0));
//! let configs = [config("a", "b", pins[1], 1)?, config("b", "a", pins[0], 2)?];
//! for (engine, config) in engines.iter_mut().zip(&configs) {
//!     let tables = Tables::build(config, &Default::default())?;
//!     engine.install(Arc::new(tables), &config.links, now);
//! }
//! let addresses = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 51820)));
//!
//! // What waits for each end: packets in its TUN device, datagrams in its socket.
//! let mut packet = Vec::new();
//! etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
//!     .udp(1000, 2000)
//!     .write(&mut packet, b"hello")?;
//! let mut tun = [vec![packet.clone()], Vec::new()];
//! let mut wire: [Vec<Vec<u8>>; 2] = Default::default();
//! let (mut delivered, mut events) = (Vec::new(), Vec::new());
//!
//! for _turn in 0..10 {
//!     for own in [0, 1] {
//!         let (engine, peer) = (&mut engines[own], 1 - own);
//!         let (mut tx, mut rx) = (Collected::default(), Collected::default());
//!         // Step 3.
//!         for datagram in std::mem::take(&mut wire[own]) {
//!             engine.handle_datagram(&datagram, addresses[peer].into(), 0, now, &mut tx, &mut rx);
//!         }
//!         engine.drained(now);
//!         for mut packet in std::mem::take(&mut tun[own]) {
//!             engine.handle_tun(NicIndex::FIRST, &mut packet, now, &mut tx, &mut rx);
//!         }
//!         // Step 5, with step 4 for both.
//!         if engine.poll_timeout().is_some_and(|at| at <= now) {
//!             engine.handle_timeout(now, &mut tx);
//!         }
//!         engine.flush(now, &mut tx);
//!         wire[peer].extend(tx.datagrams.into_iter().map(|(_, bytes)| bytes));
//!         engine.not_sent(0);
//!         engine.not_delivered(0);
//!         delivered.extend(rx.packets);
//!         // Step 6.
//!         events.extend(std::iter::from_fn(|| engine.poll_event()));
//!     }
//!     now += Duration::from_millis(10);
//! }
//! assert_eq!(delivered, [packet]);
//! assert!(matches!(&events[..], [Event::Up(a), ..] if a.as_str() == "b"), "{events:?}");
//!
//! // Step 7.
//! let mut tx = Collected::default();
//! engines[0].drain(now, &mut tx);
//! engines[0].flush(now, &mut tx);
//! assert_eq!(tx.datagrams.len(), 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "links"))]
//! # fn main() {}
//! ```

mod aqm;
pub mod bandwidth;
pub mod buffer;
pub mod decide;
pub mod engine;
mod flow;
pub mod health;
pub mod host_routes;
pub mod link;
pub mod offload;
pub mod owners;
pub mod packet;
pub mod routing;
pub mod security;
pub mod stats;
pub mod tables;
pub mod verdict;
