//! Health probes of load balancers (rules L6 to L8, decision D36), without I/O: packets and the time are arguments.
//!
//! The kernel cannot open connections from [`PROBE_SOURCE_V4`], so the prober has a TCP stack of its own.
//!
//! * [`Prober`]: all targets, and the state machine that the agent drives.
//! * `cadence`: when a target is probed. `status`: results to health.
//! * `probe`: one probe in flight, as a `connection` (TCP) and a `dialogue` (TCP, HTTP or HTTPS on it). `http`: request
//!   and response. `tls`: the client's configuration.
//! * `flow`: the connection that a packet belongs to. `ports`: source ports.

mod cadence;
mod connection;
mod dialogue;
mod flow;
mod http;
mod ports;
mod probe;
mod status;
#[cfg(test)]
mod tests;
mod tls;

use cadence::Cadence;
use flow::Flow;
use ports::Ports;
use probe::Probe;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::ClientConfig;
use status::Status;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::status::ProbeFailure;

/// Source address of probes of IPv4 back ends, as in Azure (L6).
pub const PROBE_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Source address of probes of IPv6 back ends, as in Azure (L6).
pub const PROBE_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);

/// Largest number of targets that a [`Prober`] probes. It bounds the prober's memory.
pub const MAX_TARGETS: usize = 4_096;

/// Longest time from the start of a probe to its result. The interval of the probe is used if it is shorter.
/// Azure documents 30 seconds for HTTP (L6).
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// A back end and the probe that it must answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Address of the back end.
    pub address: IpAddr,
    /// How the back end is probed.
    pub probe: ProbeSpec,
}

/// A probe of a load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeSpec {
    /// Protocol of the probe.
    pub protocol: ProbeProtocol,
    /// Port of the back end. A probe of port 0 always fails.
    pub port: u16,
    /// Path of the request, for HTTP and HTTPS. A leading `/` is added if it is missing. Bytes that a request line must
    /// not contain are percent-encoded.
    pub path: String,
    /// Time between the starts of two probes. Values outside of 1 second to 1 day are replaced by the nearest bound.
    pub interval: Duration,
    /// Number of consecutive results that change the health: `probeThreshold`. 0 means 1.
    pub threshold: u16,
}

/// What makes a probe succeed (L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeProtocol {
    /// The TCP handshake completes.
    Tcp,
    /// A GET request is answered with status 200.
    Http,
    /// The same over TLS 1.2 or 1.3. Any certificate is accepted, as in Azure.
    Https,
}

/// The part of a target that its health depends on. A target whose interval or threshold changes keeps its health.
#[derive(PartialEq, Eq, Hash)]
struct Subject(IpAddr, ProbeProtocol, u16, String);

impl Target {
    fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.probe.port)
    }

    fn subject(&self) -> Subject {
        let probe = &self.probe;
        Subject(self.address, probe.protocol, probe.port, probe.path.clone())
    }
}

/// Probes back ends, and keeps their health.
///
/// The owner calls [`Prober::poll`] at [`Prober::next_due`], which [`Prober::set_targets`] and [`Prober::receive`] can
/// make earlier. `now` must not decrease from call to call. A target needs at most about 40 KiB while it is probed over
/// TCP or HTTP, most of it for packets that wait for the next poll; over HTTPS a handshake adds up to 64 KiB.
pub struct Prober {
    rng: StdRng,
    tls: Option<Arc<ClientConfig>>,
    entries: Vec<Entry>,
    /// When an entry has work, with its index in `entries`.
    due: BTreeSet<(Instant, usize)>,
    /// The entry of each connection.
    flows: HashMap<Flow, usize>,
    ports: Ports,
    /// Fraction of the interval at which the next new target is probed, in units of 2⁻³².
    phase: u32,
    /// Probes of removed targets, whose connections the next poll resets.
    removed: Vec<Probe>,
    removed_at: Option<Instant>,
    changed: bool,
}

struct Entry {
    target: Target,
    status: Status,
    cadence: Cadence,
    probe: Option<Probe>,
    /// The time of the entry in `Prober::due`. A target over the limit has none.
    due: Option<Instant>,
}

impl Prober {
    /// A prober without targets. Times, source ports and TCP sequence numbers are derived from `seed`. It must be random,
    /// so that nobody can predict them.
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            phase: rng.random(),
            rng,
            tls: None,
            entries: Vec::new(),
            due: BTreeSet::new(),
            flows: HashMap::new(),
            ports: Ports::default(),
            removed: Vec::new(),
            removed_at: None,
            changed: false,
        }
    }

    /// Replaces the targets.
    ///
    /// A target that stays keeps its health and its schedule. A target with the same address, protocol, port and path as
    /// before stays; if its interval changes, it gets a new schedule. A new target is down until its first result, which
    /// decides its health alone; its first probe starts within 1 second. The targets after the first [`MAX_TARGETS`] are
    /// never probed and stay down. [`Prober::take_changed`] does not report the health of new or removed targets.
    pub fn set_targets(&mut self, targets: &[Target], now: Instant) {
        if targets.len() > MAX_TARGETS {
            let count = targets.len();
            tracing::warn!("{count} health probes are configured, of which only {MAX_TARGETS} are done (rule L6)");
        }
        let mut old: HashMap<Subject, Vec<Entry>> = HashMap::new();
        // In reverse, so that `pop` returns equal targets in their order.
        for entry in self.entries.drain(..).rev() {
            old.entry(entry.target.subject()).or_default().push(entry);
        }
        for target in targets {
            let kept = old.get_mut(&target.subject()).and_then(Vec::pop);
            let mut entry = match kept {
                Some(entry) if entry.target.probe.interval == target.probe.interval => entry,
                Some(entry) => Entry {
                    cadence: Cadence::new(now, target.probe.interval, next_phase(&mut self.phase)),
                    ..entry
                },
                None => Entry {
                    target: target.clone(),
                    status: Status::default(),
                    cadence: Cadence::new(now, target.probe.interval, next_phase(&mut self.phase)),
                    probe: None,
                    due: None,
                },
            };
            entry.target.probe.interval = target.probe.interval;
            entry.target.probe.threshold = target.probe.threshold;
            self.entries.push(entry);
        }
        self.removed.extend(old.into_values().flatten().filter_map(|e| e.probe));
        self.removed
            .extend(self.entries.iter_mut().skip(MAX_TARGETS).filter_map(|e| e.probe.take()));
        self.removed_at = (!self.removed.is_empty()).then_some(now);

        self.due.clear();
        self.flows.clear();
        let mut endpoints = HashSet::new();
        for (index, entry) in self.entries.iter_mut().enumerate().take(MAX_TARGETS) {
            endpoints.insert(entry.target.endpoint());
            if let Some(probe) = &entry.probe {
                self.flows.insert(probe.flow(), index);
            }
            let due = entry.due(now);
            entry.due = Some(due);
            self.due.insert((due, index));
        }
        for entry in self.entries.iter_mut().skip(MAX_TARGETS) {
            entry.due = None;
        }
        self.ports.retain(&endpoints, now);
    }

    /// Takes an IP packet that a back end has sent to [`PROBE_SOURCE_V4`] or [`PROBE_SOURCE_V6`]. Checksums must be
    /// complete. The packet is processed by the next poll, which is due at once. Malformed packets, fragments and packets
    /// that belong to no connection of the prober are ignored.
    pub fn receive(&mut self, packet: &[u8], now: Instant) {
        let Some(index) = flow::of_received(packet).and_then(|f| self.flows.get(&f).copied()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let (Some(probe), Some(due)) = (&mut entry.probe, entry.due) else {
            return;
        };
        if probe.receive(packet) && now < due {
            self.due.remove(&(due, index));
            self.due.insert((now, index));
            entry.due = Some(now);
        }
    }

    /// Runs what is due, and passes IP packets of at most 1,280 bytes for back ends to `send`. Does nothing before
    /// [`Prober::next_due`].
    pub fn poll(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        if self.removed_at.is_some_and(|at| at <= now) {
            for mut probe in self.removed.drain(..) {
                probe.abandon(now, send);
            }
            self.removed_at = None;
        }
        while let Some(&(due, index)) = self.due.first() {
            if due > now {
                break;
            }
            self.due.pop_first();
            self.run(index, now, send);
            let Some(entry) = self.entries.get_mut(index) else {
                continue;
            };
            // `run` has done all that is due, so the next time is later. This keeps the loop finite in any case.
            let next = entry.due(now).max(now + connection::BUSY_RETRY);
            entry.due = Some(next);
            self.due.insert((next, index));
        }
    }

    fn run(&mut self, index: usize, now: Instant, send: &mut dyn FnMut(&[u8])) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if let Some(probe) = &mut entry.probe {
            if let Some(result) = probe.poll(now, send) {
                self.changed |= entry.status.record(&entry.target, result);
            }
            if probe.is_finished() {
                self.flows.remove(&probe.flow());
                entry.probe = None;
            }
        }
        // At most one probe of a target is in flight. Its deadline is not after the next start, except where the interval
        // has changed meanwhile.
        if !entry.cadence.start(now) || entry.probe.is_some() {
            return;
        }
        let endpoint = entry.target.endpoint();
        let flows = &self.flows;
        let is_used = |port| flows.contains_key(&Flow { endpoint, port });
        let port = self.ports.take(endpoint, now, &mut self.rng, is_used);
        let deadline = (now + cadence::clamp(entry.target.probe.interval).min(PROBE_TIMEOUT)).min(entry.cadence.next());
        let tls = match entry.target.probe.protocol {
            ProbeProtocol::Https => Some(self.tls.get_or_insert_with(tls::any_certificate)),
            ProbeProtocol::Tcp | ProbeProtocol::Http => None,
        };
        match Probe::start(&entry.target, port, tls, self.rng.random(), now, deadline) {
            Ok(mut probe) => {
                // Sends the SYN. There is no result yet.
                probe.poll(now, send);
                self.flows.insert(probe.flow(), index);
                entry.probe = Some(probe);
            }
            Err(failure) => self.changed |= entry.status.record(&entry.target, Err(failure)),
        }
    }

    /// When [`Prober::poll`] must be called next. `None` without targets.
    pub fn next_due(&self) -> Option<Instant> {
        let first = self.due.first().map(|&(due, _)| due);
        [first, self.removed_at].into_iter().flatten().min()
    }

    /// The targets in the order of [`Prober::set_targets`], each with its health: `true` is up.
    pub fn health(&self) -> impl Iterator<Item = (&Target, bool)> {
        self.entries.iter().map(|e| (&e.target, e.status.is_up()))
    }

    /// Why each target is down, in the same order; `None`: it is up. The reason can change while the target stays down, which
    /// [`Prober::take_changed`] does not report.
    pub fn failures(&self) -> impl Iterator<Item = Option<ProbeFailure>> {
        self.entries.iter().map(|e| e.status.failure())
    }

    /// Whether the health of a target has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

impl Entry {
    fn due(&mut self, now: Instant) -> Instant {
        let probe = self.probe.as_mut().map(|p| p.due(now));
        probe.map_or(self.cadence.next(), |due| due.min(self.cadence.next()))
    }
}

/// Steps by the golden ratio: any number of consecutive phases is spread evenly, also when targets are added later.
fn next_phase(phase: &mut u32) -> u32 {
    *phase = phase.wrapping_add(0x9e37_79b9);
    *phase
}
