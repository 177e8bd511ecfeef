//! The thread of a lane.
//!
//! ```text
//! wait ─▶ turn: datagrams → engine → device; packets → engine → outbox → socket ─▶ more? another turn (50 ms at most)
//!   ▲                                                                             │
//!   └────────── timers, events ◀───────────────────────────────────────────────────┘
//! ```
//! The lane handles commands from the rest of the agent between two turns, so that one configuration decides about all
//! packets of a turn.

mod health;

use super::builder::{BuildQueue, BuildRequest, Built};
use super::health_checks::HealthChecks;
use super::{Command, Inspection, Lane, LaneReport, LaneSetup, Prepared, RedirectQueue};
use crate::capture::tap::{Tapped, Taps};
use crate::config::Config;
use crate::log_limit::LogLimiter;
use crate::meter::Traffic;
use crate::outbox::{Datagrams, Outbox, RedirectSender, RedirectedPacket, SendOutcome};
use crate::sockets::{LaneSockets, SocketId};
use crate::tun::TunQueues;
use crate::udp::{self, Sent, WouldBlock};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tombolo_engine::decide::Ingress;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::link::{AdvertisementStats, Event};
use tombolo_engine::owners::OwnerWatch;
use tombolo_engine::routing;
use tombolo_engine::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::AgentId;

/// Longest time between two calls that advance the links' timers. boringtun has no clock of its own: its timers run
/// only in `update_timers`, for which it recommends an interval of 100 ms.
const TIMER_INTERVAL: Duration = Duration::from_millis(100);

/// Longest time that a loaded lane moves packets before it handles timers and events. This time is half of
/// [`TIMER_INTERVAL`], so that load delays a timer by at most half an interval.
const MAX_BUSY: Duration = Duration::from_millis(50);

/// Largest number of datagrams that a lane reads from one socket in one turn: about three GRO batches of full-size
/// datagrams. The limit counts datagrams, not calls, because a call returns only one datagram without GRO.
const MAX_DATAGRAMS: usize = 144;

/// Largest number of reads from the TUN device in one turn, with GSO packets and without them. A GSO packet has up to
/// about 45 packets of full size, so four reads admit a few more packets than [`MAX_DATAGRAMS`], and 64 plain reads
/// admit fewer.
const MAX_SUPER_READS: usize = 4;
const MAX_PLAIN_READS: usize = 64;

/// Longest time for which a lane checks established flows between two turns. It is so short that packets do not wait
/// noticeably. The last step of a check may take 10 µs longer.
const RECHECK_TIME: Duration = Duration::from_micros(40);

/// The state of a lane's thread, which [`run`](Self::run) drives.
pub(super) struct Worker {
    pub(super) tun: TunQueues,
    udp: LaneSockets,
    settings: Config,
    engine: Engine<SecureLinks, Option<RedirectSender>>,
    /// Number of the installed configuration. A configuration has the same number in all lanes. 0: no configuration is
    /// installed yet.
    generation: u64,
    outbox: Outbox,
    commands: mpsc::UnboundedReceiver<Command>,
    /// In lane 0: the packets that other lanes redirect. None in other lanes.
    redirected: Option<mpsc::Receiver<RedirectedPacket>>,
    /// In lane 0: the handles of the other lanes. Empty in other lanes.
    other_lanes: Vec<Lane>,
    number: u16,
    traffic: Traffic,
    status_changed: Arc<Notify>,
    routing_state: watch::Sender<RoutingState>,
    config: Option<Arc<AgentConfig>>,
    dynamic: RoutingState,
    /// In lane 0: the queue to the table builder. None in other lanes.
    build_queue: Option<BuildQueue>,
    /// Tables of a configuration that this lane does not have yet.
    early: Option<Built>,
    /// How often this lane installed tables that were built without a new configuration.
    rebuilds: u64,
    /// Route advertisements that could not be decoded.
    unreadable: u64,
    /// Statements about the health of back ends that could not be decoded.
    unreadable_health: u64,
    log: LogLimiter,
    from_udp: Box<[u8; udp::BUFFER]>,
    malformed: u64,
    /// In lane 0: probes the back ends that this agent owns. None in other lanes.
    health: Option<HealthChecks>,
    /// In lane 0: how long the links with owners of back ends have been down.
    owners: OwnerWatch,
    /// The captures in progress.
    pub(super) taps: Taps,
    /// Whether the lane has just woken up and has read nothing yet.
    woken: bool,
}

impl Worker {
    /// Binds the lane's UDP ports, and adds the lane's queue to the TUN device. Must run inside the lane's tokio
    /// runtime.
    pub(super) fn new(setup: LaneSetup, commands: mpsc::UnboundedReceiver<Command>) -> Result<Self> {
        let LaneSetup {
            number,
            config,
            keys,
            status_changed,
            routing_state,
            device,
            redirected,
            other_lanes,
            build_queue,
            flows,
            traffic,
            ended: _,
        } = setup;
        let (redirected, lane0) = match redirected {
            RedirectQueue::Receiver(redirected) => (Some(redirected), None),
            RedirectQueue::Sender(lane0) => (None, Some(lane0)),
        };
        let mut links = keys.links().of_lane(number);
        if number == 0 && config.quic_port.is_some() {
            links = links.with_second_port();
        }
        let mut engine = Engine::with_redirect(links, rand::random(), lane0.map(RedirectSender::new));
        engine.share_flows(flows);
        let health = (number == 0).then(|| HealthChecks::new(rand::random()));
        if health.is_some() {
            engine.keep_probe_replies();
        }
        let taps = Taps::new(config.listen_port.saturating_add(number), config.quic_port);
        Ok(Self {
            taps,
            udp: LaneSockets::bind(&config, number)?,
            tun: TunQueues::new(&device)?,
            settings: config,
            engine,
            outbox: Outbox::default(),
            generation: 0,
            commands,
            redirected,
            other_lanes,
            number,
            traffic,
            status_changed,
            routing_state,
            config: None,
            dynamic: RoutingState::default(),
            build_queue,
            early: None,
            rebuilds: 0,
            unreadable: 0,
            unreadable_health: 0,
            log: LogLimiter::default(),
            from_udp: vec![0; udp::BUFFER]
                .try_into()
                .map_err(|_| anyhow::anyhow!("the receive buffer's length"))?,
            malformed: 0,
            health,
            owners: OwnerWatch::default(),
            woken: false,
        })
    }

    /// Runs until a stop command, or until the agent has dropped the lane's handles. An error means that the TUN device
    /// or a UDP socket failed.
    pub(super) async fn run(mut self) -> Result<()> {
        let outcome = self.run_until_end().await;
        self.pass_on_traffic();
        outcome
    }

    async fn run_until_end(&mut self) -> Result<()> {
        let mut tick = interval(TIMER_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reads_again_at = self.reads_again_at();
            // The `select` only waits for the first source that has input; the loop below then reads all sources. The
            // TUN device is polled first, so that a single packet of the host is handled while the CPU's caches are
            // warm.
            tokio::select! {
                biased;
                read = self.tun.recv(), if !self.outbox.is_backpressured() && reads_again_at.is_none() => {
                    let (nic, len) = read.context("TUN device")?;
                    let now = Instant::now();
                    self.handle_read(nic, len, now);
                    // An idle lane usually gets one packet per wake-up, so the packet is sent before the lane polls for
                    // another one.
                    self.send(now);
                }
                ready = self.udp.readable() => ready.context("UDP socket")?,
                ready = self.udp.writable(), if self.outbox.is_backpressured() => ready.context("UDP socket")?,
                Some(redirected) = next_redirected(&mut self.redirected) => {
                    let now = Instant::now();
                    self.handle_redirected(redirected, now);
                }
                command = self.commands.recv() => match command {
                    None | Some(Command::Stop) => return Ok(()),
                    Some(command) => self.handle_command(command),
                },
                () = sleep_until(reads_again_at.unwrap_or_else(Instant::now).into()), if reads_again_at.is_some() => {}
                _ = tick.tick() => {}
            }
            self.woken = true;
            let end = Instant::now() + MAX_BUSY;
            loop {
                loop {
                    match self.commands.try_recv() {
                        Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                        Ok(command) => self.handle_command(command),
                        Err(TryRecvError::Empty) => break,
                    }
                }
                let now = Instant::now();
                let worked = self.run_once(now)?;
                self.send(now);
                let checking = self.recheck_flows();
                if !(worked || checking) || now > end {
                    break;
                }
            }
            let now = Instant::now();
            self.udp.maintain(now);
            if self.engine.poll_timeout().is_some_and(|t| t <= now) {
                self.engine.handle_timeout(now, &mut self.outbox);
                self.send(now);
            }
            self.check_health(now);
            self.handle_events();
            self.check_owners(now);
        }
    }

    /// Requests new tables if the agent of a back end is gone now, or is back (D36).
    fn check_owners(&mut self, now: Instant) {
        let gone = self.owners.gone(now);
        if gone != self.dynamic.gone {
            self.dynamic.gone = gone;
            self.on_routes_changed();
        }
    }

    /// Checks established flows after a change of routes or rules, for [`RECHECK_TIME`] at most (D34). Returns whether
    /// flows are left to check.
    fn recheck_flows(&mut self) -> bool {
        if !self.engine.recheck_flows() {
            return false;
        }
        let end = Instant::now() + RECHECK_TIME;
        while self.engine.recheck_flows() {
            if Instant::now() >= end {
                return true;
            }
        }
        false
    }

    /// Reads from each source as much as one turn may read, and handles it. Returns whether any source had input.
    fn run_once(&mut self, now: Instant) -> Result<bool> {
        if !self.taps.is_empty() {
            self.taps.prune();
        }
        // An idle lane usually gets one packet per wake-up, from the device or from a socket, so this packet is sent
        // before the next read.
        let mut woken = std::mem::take(&mut self.woken);
        let (mut datagrams, mut drained) = (0, true);
        for socket in self.udp.all() {
            let (count, empty) = self.receive_from(socket, &mut woken, now);
            datagrams += count;
            drained &= empty;
        }
        if drained {
            self.engine.drained(now);
        }
        self.deliver();
        let mut reads = 0;
        for nic in (0..self.tun.count()).filter_map(|n| u8::try_from(n).ok()) {
            reads += self.read_device(NicIndex(nic), &mut woken, now)?;
        }
        let mut redirects = 0;
        while redirects < MAX_DATAGRAMS && !self.outbox.is_backpressured() {
            let Some(redirected) = self.redirected.as_mut().and_then(|h| h.try_recv().ok()) else {
                break;
            };
            self.handle_redirected(redirected, now);
            redirects += 1;
        }
        // A packet that the host sends to its own overlay address returns to the device. Such packets are still in the
        // write buffer, and this call writes them.
        self.deliver();
        Ok(datagrams + reads + redirects > 0)
    }

    /// When the lane reads its device again after the NIC has used its bandwidth (P32). `None`: now. A lane with several devices
    /// waits for all of them together, so it reads them always, and the engine drops what is too much.
    fn reads_again_at(&self) -> Option<Instant> {
        match self.tun.count() {
            1 => self.engine.reads_again_at(NicIndex::FIRST, Instant::now),
            _ => None,
        }
    }

    /// Reads as much from one device as one turn may read, and handles it. Returns the number of reads.
    fn read_device(&mut self, nic: NicIndex, woken: &mut bool, now: Instant) -> Result<usize> {
        let mut reads = 0;
        let max_reads = if self.tun.offload() {
            MAX_SUPER_READS
        } else {
            MAX_PLAIN_READS
        };
        // Backpressure: while the socket's send buffer is full, or the NIC has used its bandwidth, packets stay in the
        // device's queue. The kernel then slows down the host's senders.
        while reads < max_reads && !self.outbox.is_backpressured() && self.reads_again_at().is_none() {
            match self.tun.try_recv(nic) {
                Ok(len) => {
                    self.handle_read(nic, len, now);
                    if std::mem::take(woken) {
                        self.send(now);
                    } else {
                        self.transmit(Outbox::flush_full);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("TUN device"),
            }
            reads += 1;
        }
        Ok(reads)
    }

    /// Reads as many datagrams from one socket as one turn may read, and handles them. Returns the number of datagrams,
    /// and whether the socket had no more of them.
    fn receive_from(&mut self, socket: SocketId, woken: &mut bool, now: Instant) -> (usize, bool) {
        let mut datagrams = 0;
        while datagrams < MAX_DATAGRAMS {
            let udp = self.udp.get(socket);
            let batches = match udp.try_recv(&mut self.from_udp, MAX_DATAGRAMS - datagrams) {
                Ok(batches) => batches,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return (datagrams, true),
                Err(e) => {
                    tracing::debug!(error = %e, "receiving datagrams");
                    break;
                }
            };
            for batch in 0..batches {
                datagrams += self.handle_batch(socket, batch, now);
                // The packets of this batch that go on to other agents are still in the CPU's cache. A gateway that
                // sends them now instead of after the turn has an eighth more throughput.
                self.transmit(Outbox::flush_full);
            }
            *woken &= datagrams == 1;
            if *woken {
                self.deliver();
                self.send(now);
                break;
            }
        }
        (datagrams, false)
    }

    /// Handles one packet that another lane redirected, and returns its buffer to that lane.
    fn handle_redirected(&mut self, mut redirected: RedirectedPacket, now: Instant) {
        let is_current = redirected.generation == self.generation;
        if redirected.packet.is_empty() {
            if let Ingress::Link(link) = redirected.ingress
                && is_current
            {
                self.engine.return_health(link, now);
            }
        } else if is_current {
            let (outbox, tun, taps) = (&mut self.outbox, &mut self.tun, &mut self.taps);
            let (ingress, packet) = (redirected.ingress, &mut redirected.packet);
            if taps.is_empty() {
                self.engine.handle_redirected(ingress, packet, now, outbox, tun);
            } else {
                let mut tapped = Tapped { tun, taps };
                self.engine.handle_redirected(ingress, packet, now, outbox, &mut tapped);
            }
        } else {
            // The packet's link index belongs to another configuration, where it may name another peer. This happens
            // only while a new configuration is being installed, because the lanes switch to it one after the other.
            self.engine.refuse_redirected();
        }
        redirected.return_buffer();
    }

    /// Handles batch number `batch` of the last receive call on `socket`. Returns its number of datagrams, 1 if the
    /// batch was refused.
    fn handle_batch(&mut self, socket: SocketId, batch: usize, now: Instant) -> usize {
        let (received, bytes) = self.udp.get(socket).received(batch, &self.from_udp);
        // A datagram is refused if it is empty, or if nothing can be sent to its source address. It counts as one
        // datagram, so that a flood of such datagrams reaches the limit of the turn and ends it.
        if received.len == 0 || !udp::is_usable(received.from.remote) {
            self.engine.refuse();
            return 1;
        }
        let mut count = 0;
        let datagrams = bytes.chunks(received.stride).inspect(|_| count += 1);
        let (engine, outbox, tun, taps) = (&mut self.engine, &mut self.outbox, &mut self.tun, &mut self.taps);
        if taps.is_empty() {
            for datagram in datagrams {
                engine.handle_datagram(datagram, received.from, received.ecn, now, outbox, tun);
            }
            return count;
        }
        for datagram in datagrams {
            let refused = engine.stats().refused_datagrams;
            let mut tapped = Tapped { tun, taps };
            engine.handle_datagram(datagram, received.from, received.ecn, now, outbox, &mut tapped);
            let stats = engine.stats();
            let reason = stats.last_reason().filter(|_| stats.refused_datagrams != refused);
            taps.received(&received.from, datagram, reason);
        }
        count
    }

    /// Handles the last read of a device, which had `len` bytes: one packet, or one GSO packet.
    fn handle_read(&mut self, nic: NicIndex, len: usize, now: Instant) {
        let (engine, outbox, taps) = (&mut self.engine, &mut self.outbox, &mut self.taps);
        let split = if taps.is_empty() {
            self.tun.packets(nic, len, |packet, tun| {
                engine.handle_tun(nic, packet, now, outbox, tun);
            })
        } else {
            self.tun.packets(nic, len, |packet, tun| {
                engine.handle_tun(nic, packet, now, outbox, &mut Tapped { tun, taps });
            })
        };
        if split.is_err() {
            self.malformed += 1;
        }
    }

    /// Encrypts the packets that links have queued, and sends the outbox's batches until the socket is full.
    fn send(&mut self, now: Instant) {
        self.engine.flush(now, &mut self.outbox);
        self.transmit(Outbox::flush);
    }

    /// Passes the batches that `flush` selects from the outbox to their socket. Counts datagrams that the kernel
    /// refused, and reports a local address that the kernel refused as source to the links.
    fn transmit(&mut self, flush: impl FnOnce(&mut Outbox, &mut dyn FnMut(&Datagrams<'_>) -> SendOutcome)) {
        let (udp, engine) = (&mut self.udp, &mut self.engine);
        let mut taps = Some(&mut self.taps).filter(|taps| taps.wants_datagrams());
        flush(&mut self.outbox, &mut |datagrams| match udp.send(datagrams) {
            Ok(Sent { refused, failed_source }) => {
                if let Some(taps) = &mut taps {
                    taps.sent(datagrams);
                }
                engine.not_sent(refused as u64);
                if let Some(local) = failed_source {
                    engine.local_refused(local);
                }
                SendOutcome::Accepted
            }
            Err(WouldBlock) => SendOutcome::WouldBlock,
        });
    }

    /// Writes the packets that were coalesced into GSO packets to the TUN device, and counts those that the kernel
    /// refused.
    fn deliver(&mut self) {
        self.tun.flush();
        self.engine.not_delivered(self.tun.take_lost());
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Install(prepared, done) => {
                self.install(prepared);
                // The caller may have been cancelled. The configuration is in force nevertheless.
                let _ = done.send(());
            }
            Command::SetDevices(devices, done) => {
                // The caller may have been cancelled. The next configuration sets the devices again.
                let _ = done.send(self.tun.set_devices(&devices));
            }
            Command::Refresh(built) => self.refresh(*built),
            Command::BuilderReady => {
                let (config, dynamic, generation) = (&self.config, &self.dynamic, self.generation);
                let tables = self.engine.tables();
                if let Some(build_queue) = &mut self.build_queue {
                    build_queue.builder_ready(|| build_request(config.as_ref(), dynamic, generation, tables));
                }
            }
            Command::Inspect(answer) => {
                // The caller may have been cancelled; then nobody needs the answer.
                let _ = answer.send(Inspection {
                    tables: self.engine.tables().cloned(),
                    dynamic: self.dynamic.clone(),
                });
            }
            Command::RememberEndpoints(endpoints) => self.engine.links_mut().remember_endpoints(&endpoints),
            Command::PrepareSession(peer) => self.engine.links_mut().prepare_session(&peer, Instant::now()),
            Command::EndpointChanged(peer, to) => self.engine.links_mut().set_endpoint(&peer, to),
            Command::SetBgpRoutes(routes) => {
                let before = std::mem::replace(&mut self.dynamic.learned, routes);
                if let Some(config) = &self.config {
                    self.dynamic.keep(config);
                }
                if before != self.dynamic.learned {
                    self.on_routes_changed();
                }
            }
            Command::SetReportedHealth(reported) => {
                if let Some(health) = &mut self.health {
                    health.set_reported(reported);
                }
                self.update_unhealthy();
            }
            Command::AnnounceDrain => {
                let now = Instant::now();
                self.engine.drain(now, &mut self.outbox);
                self.send(now);
            }
            Command::Capture(tap) => self.taps.add(*tap),
            Command::Report(answer) => {
                // The caller may have been cancelled; then nobody needs the answer.
                let _ = answer.send(self.report());
            }
            // This arm is never reached: both callers return at this command, which ends the thread, and do not call
            // this function.
            Command::Stop => {}
        }
    }

    fn install(&mut self, prepared: Prepared) {
        let Prepared { config, built } = prepared;
        self.engine.install(built.tables, &config.links, Instant::now());
        self.pass_on_traffic();
        self.generation = built.generation;
        if let Some(lane0) = self.engine.redirect_mut() {
            lane0.generation = built.generation;
        }
        let buffer = self.settings.receive_buffer(Some(&config.role));
        if let Err(error) = self.udp.set_receive_buffer(buffer) {
            tracing::warn!(buffer, %error, "receive_buffer not changed; check that the agent has CAP_NET_ADMIN");
        }
        self.dynamic.keep(&config);
        self.taps.configure(&config);
        let linked = |agent: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(agent)).is_ok();
        self.log.keep(linked);
        if let Some(health) = &mut self.health {
            let now = Instant::now();
            health.configure(&config, now);
            self.dynamic.unhealthy = health.unhealthy(&self.dynamic.down);
            self.owners.configure(&config);
            self.dynamic.gone = self.owners.gone(now);
            self.dynamic.keep(&config);
        }
        self.config = Some(config);
        if self.number == 0 {
            self.advertise_health(Instant::now());
            self.advertise(built.advertisements);
            // If routes or links have changed since the tables of this configuration were built, new tables are needed.
            if built.dynamic != self.dynamic {
                self.on_routes_changed();
            }
            self.share_routing_state(built.dynamic);
        }
        if let Some(early) = self.early.take() {
            self.refresh(early);
        }
    }

    /// Installs tables that were built because routes or links had changed.
    fn refresh(&mut self, built: Built) {
        // The builder may finish tables of an older configuration after this lane has switched to a newer one. Such
        // tables are of no use here, because link indexes have another meaning.
        if built.generation != self.generation {
            // The builder may also be ahead, and finish tables of a configuration that this lane has not installed yet.
            if built.generation > self.generation {
                self.early = Some(built);
            }
            return;
        }
        self.engine.refresh(built.tables, Instant::now());
        if self.number == 0 {
            self.rebuilds += 1;
            self.advertise(built.advertisements);
            self.share_routing_state(built.dynamic);
        }
    }

    /// Adds what has passed the links since the last call to the totals of the agent (Meter-6).
    fn pass_on_traffic(&mut self) {
        self.traffic.add(self.engine.links_mut().take_traffic());
    }

    fn report(&mut self) -> LaneReport {
        self.pass_on_traffic();
        let stats = self.engine.stats();
        let mut drops: BTreeMap<_, _> = stats.drops_by_reason().map(|(r, n)| (r.name().to_owned(), n)).collect();
        let mut totals = stats.totals;
        if self.malformed > 0 {
            let name = tombolo_engine::verdict::DropReason::Malformed.name();
            *drops.entry(name.to_owned()).or_default() += self.malformed;
            totals.tun_in += self.malformed;
            totals.dropped += self.malformed;
        }
        // A group that applies to the subnet and to the NIC has two counters of one name.
        let mut rule_hits = BTreeMap::new();
        for (rule, count) in self.engine.rule_hits() {
            *rule_hits.entry(rule).or_default() += count;
        }
        let advertisements = self.engine.links().advertisements();
        let statements = self.engine.links().health_statements();
        LaneReport {
            links: self.engine.links().status(Instant::now()),
            endpoints: self.engine.links().endpoints(),
            drops,
            rule_hits,
            adopted: self.engine.adopted_connections(),
            totals,
            lanes: vec![totals],
            offload: self.tun.offload(),
            tun_errors: self.tun.write_errors(),
            udp_errors: self.udp.send_errors(),
            udp_overflow: self.udp.overflow(),
            advertisements: AdvertisementStats {
                malformed: advertisements.malformed + self.unreadable,
                ..advertisements
            },
            rebuilds: self.rebuilds,
            health_statements: AdvertisementStats {
                malformed: statements.malformed + self.unreadable_health,
                ..statements
            },
            health_ignored: self.health.as_ref().map_or(0, HealthChecks::ignored),
            health: self.health.as_ref().map(HealthChecks::report).unwrap_or_default(),
            health_version: self.health.as_ref().and_then(HealthChecks::version),
        }
    }

    /// Handles the links' events: logs them, causes a status report, and requests new tables when a link went up or
    /// down, because another agent may then take over the routes (D11).
    fn handle_events(&mut self) {
        let mut changed = false;
        let mut any = false;
        while let Some(event) = self.engine.poll_event() {
            any = true;
            match event {
                // Lane 0 carries packets for peers that other lanes have no session with, so only lane 0 reports a peer
                // as down.
                Event::Up(peer) | Event::Down(peer) if self.number > 0 => {
                    tracing::debug!(link = %peer, lane = self.number, "session changed");
                }
                Event::Up(peer) => {
                    if let Some(permit) = self.log.permit(&peer, "up", Instant::now()) {
                        tracing::info!(link = %peer, left_out = permit.suppressed, "link up");
                    }
                    self.other_lanes.iter().for_each(|lane| lane.prepare_session(&peer));
                    self.owners.link_up(&peer);
                    changed |= self.dynamic.down.remove(&peer);
                }
                Event::Down(peer) => {
                    if let Some(permit) = self.log.permit(&peer, "down", Instant::now()) {
                        tracing::info!(link = %peer, left_out = permit.suppressed, "link down");
                    }
                    self.owners.link_down(&peer, Instant::now());
                    changed |= self.dynamic.down.insert(peer);
                }
                Event::EndpointChanged(peer, to) => {
                    tracing::debug!(link = %peer, lane = self.number, "endpoint of the link changed");
                    for other in &self.other_lanes {
                        other.endpoint_changed(&peer, to);
                    }
                }
                Event::Switched(peer, to, reason) => {
                    if let Some(permit) = self.log.permit(&peer, "switched", Instant::now()) {
                        tracing::info!(link = %peer, ?to, reason, left_out = permit.suppressed, "link switched");
                    }
                }
                Event::RoutesReceived(..) | Event::HealthReceived(..) if self.number > 0 => {}
                Event::RoutesReceived(peer, table) => changed |= self.receive_routes(peer, &table),
                Event::HealthReceived(peer, statement) => self.receive_health(&peer, &statement),
            }
        }
        if any {
            self.status_changed.notify_one();
        }
        if changed {
            // Without the controller, the health of back ends is known from links that are up.
            self.update_unhealthy();
            self.on_routes_changed();
        }
    }

    /// Stores the routes that a peer advertises. Returns whether lookup tables depend on these routes, so that they
    /// must be built again. A malformed advertisement changes nothing: it is counted and logged.
    fn receive_routes(&mut self, peer: AgentId, table: &[u8]) -> bool {
        let routes = match routing::decode(table) {
            Ok(routes) => routes,
            Err(error) => {
                self.unreadable += 1;
                if let Some(permit) = self.log.permit(&peer, "unreadable", Instant::now()) {
                    tracing::warn!(link = %peer, %error, left_out = permit.suppressed, "malformed route advertisement");
                }
                return false;
            }
        };
        if self
            .dynamic
            .received
            .get(&peer)
            .is_some_and(|before| **before == routes)
        {
            return false;
        }
        tracing::debug!(link = %peer, routes = routes.len(), "routes received");
        let config = self.config.as_ref();
        let counts = config.is_some_and(|config| routing::accepts_routes_from(config, &peer));
        self.dynamic.received.insert(peer, Arc::new(routes));
        counts
    }

    /// Sets the route table that each link advertises, and sends the advertisements at once.
    fn advertise(&mut self, advertisements: Vec<(LinkIndex, Arc<[u8]>)>) {
        for (link, table) in advertisements {
            self.engine.links_mut().advertise(link, table);
        }
        // Without this call each link would advertise only when its timer fires, and a route that spreads over several
        // agents would wait for a timer at each of them.
        let now = Instant::now();
        self.engine.links_mut().advertise_now(now);
        self.engine.handle_timeout(now, &mut self.outbox);
        self.send(now);
    }

    /// Publishes the routing state that the installed tables were built from, if it differs from the published one.
    fn share_routing_state(&self, dynamic: RoutingState) {
        self.routing_state.send_if_modified(|shown| {
            let changed = *shown != dynamic;
            if changed {
                *shown = dynamic;
            }
            changed
        });
    }

    /// Requests new tables because routes or links have changed. Only lane 0 requests them.
    fn on_routes_changed(&mut self) {
        let (config, dynamic, generation) = (&self.config, &self.dynamic, self.generation);
        let tables = self.engine.tables();
        if let Some(build_queue) = &mut self.build_queue {
            build_queue.request(|| build_request(config.as_ref(), dynamic, generation, tables));
        }
    }
}

/// The input of a table build. None: this lane has no configuration yet.
fn build_request(
    config: Option<&Arc<AgentConfig>>,
    dynamic: &RoutingState,
    generation: u64,
    tables: Option<&Arc<Tables>>,
) -> Option<BuildRequest> {
    let config = config?.clone();
    Some(BuildRequest {
        generation,
        config,
        dynamic: dynamic.clone(),
        before: tables.cloned(),
    })
}

/// Waits for the next redirected packet. Never returns in other lanes than lane 0.
async fn next_redirected(redirected: &mut Option<mpsc::Receiver<RedirectedPacket>>) -> Option<RedirectedPacket> {
    match redirected {
        Some(redirected) => redirected.recv().await,
        None => std::future::pending().await,
    }
}
