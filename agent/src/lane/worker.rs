//! The thread of a lane.
//!
//! ```text
//! wait ─▶ turn: datagrams → engine → device; packets → engine → outbox → socket ─▶ more? another turn (50 ms at most)
//!   ▲                                                                             │
//!   └────────── timers, events ◀───────────────────────────────────────────────────┘
//! ```
//! Orders from the rest of the agent are taken between turns, so a configuration changes between two batches.

use super::builder::{Built, Request, Requests};
use super::{Inbox, Inspection, Lane, LaneReport, Order, Parts, Prepared};
use crate::config::Config;
use crate::log_limit::LogLimiter;
use crate::outbox::{Datagrams, Handed, Outbox, RedirectSender, Room};
use crate::ports::{Ports, Which};
use crate::tun::{self, TunQueue};
use crate::udp::{self, NoRoom, Sent};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tombolo_engine::engine::Engine;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::link::{AdvertisementStats, Event};
use tombolo_engine::routing;
use tombolo_engine::tables::{LinkIndex, RoutingState};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::AgentId;

/// WireGuard's timers stand still unless they are served this often.
const TICK: Duration = Duration::from_millis(100);

/// A busy lane looks after its timers this often.
const BUSY: Duration = Duration::from_millis(50);

/// Datagrams of one turn. Counted in datagrams and not in calls: without GRO a call is one datagram.
const DATAGRAMS: usize = 144;

/// Reads from the device in one turn, with and without super-packets: about as many packets as [`DATAGRAMS`].
const SUPER_READS: usize = 4;
const PLAIN_READS: usize = 64;

pub(super) struct Worker {
    pub(super) tun: TunQueue,
    udp: Ports,
    settings: Config,
    engine: Engine<SecureLinks, Option<RedirectSender>>,
    outbox: Outbox,
    /// The number of the configuration that is installed, the same in all lanes; 0: none yet.
    generation: u64,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Packets that other lanes are not ready for, in the first.
    handed: Option<mpsc::Receiver<Handed>>,
    /// The other lanes, in the first.
    others: Vec<Lane>,
    number: u16,
    news: Arc<Notify>,
    moving: watch::Sender<RoutingState>,
    config: Option<Arc<AgentConfig>>,
    dynamic: RoutingState,
    /// Where tables are built, in the first lane.
    requests: Option<Requests>,
    /// Tables that were built because something was learned.
    rebuilds: u64,
    /// Tables of other agents that could not be read.
    unreadable: u64,
    log: LogLimiter,
    from_tun: Vec<u8>,
    from_udp: Box<[u8; udp::BUFFER]>,
    malformed: u64,
    /// Nothing was read since the lane waited.
    woken: bool,
}

impl Worker {
    pub(super) fn new(parts: Parts, orders: mpsc::UnboundedReceiver<Order>) -> Result<Self> {
        let Parts {
            number,
            config,
            keys,
            news,
            moving,
            device,
            handed,
            others,
            requests,
            end: _,
        } = parts;
        let (handed, first) = match handed {
            Inbox::First(handed) => (Some(handed), None),
            Inbox::Other(first) => (None, Some(first)),
        };
        let mut links = keys.links().of_lane(number);
        if number == 0 && config.quic_port.is_some() {
            links = links.with_second_port();
        }
        Ok(Self {
            udp: Ports::bind(&config, number)?,
            tun: device.queue()?,
            settings: config,
            engine: Engine::with_redirect(links, rand::random(), first.map(RedirectSender::new)),
            outbox: Outbox::default(),
            generation: 0,
            orders,
            handed,
            others,
            number,
            news,
            moving,
            config: None,
            dynamic: RoutingState::default(),
            requests,
            rebuilds: 0,
            unreadable: 0,
            log: LogLimiter::default(),
            from_tun: vec![0; tun::BUFFER],
            from_udp: vec![0; udp::BUFFER]
                .try_into()
                .map_err(|_| anyhow::anyhow!("the receive buffer's length"))?,
            malformed: 0,
            woken: false,
        })
    }

    /// Runs until it is told to stop, or the device is gone.
    pub(super) async fn run(mut self) -> Result<()> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Whatever wakes the lane, it looks after everything below. What a lone packet waits for is asked first: the rest
            // would be cold in the cache.
            tokio::select! {
                biased;
                read = self.tun.recv(&mut self.from_tun), if !self.outbox.is_stuck() => {
                    let len = read.context("TUN device")?;
                    let now = Instant::now();
                    self.packets(len, now);
                    // After a wait one packet is the rule: it does not wait for the look for another.
                    self.send(now);
                }
                ready = self.udp.readable() => ready.context("UDP socket")?,
                ready = self.udp.writable(), if self.outbox.is_stuck() => ready.context("UDP socket")?,
                Some(handed) = next(&mut self.handed) => {
                    let now = Instant::now();
                    self.take(handed, now);
                }
                order = self.orders.recv() => match order {
                    None | Some(Order::Stop) => return Ok(()),
                    Some(order) => self.obey(order),
                },
                _ = tick.tick() => {}
            }
            self.woken = true;
            let end = Instant::now() + BUSY;
            loop {
                loop {
                    match self.orders.try_recv() {
                        Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                        Ok(order) => self.obey(order),
                        Err(TryRecvError::Empty) => break,
                    }
                }
                let now = Instant::now();
                let worked = self.turn(now)?;
                self.send(now);
                if !worked || now > end {
                    break;
                }
            }
            let now = Instant::now();
            self.udp.look_again(now);
            if self.engine.poll_timeout().is_some_and(|t| t <= now) {
                self.engine.handle_timeout(now, &mut self.outbox);
                self.send(now);
            }
            self.events();
        }
    }

    /// One batch from each side. Returns whether there was anything.
    fn turn(&mut self, now: Instant) -> Result<bool> {
        // After a wait one packet is the rule, from either side: it goes on before the lane looks for another.
        let mut woken = std::mem::take(&mut self.woken);
        let (mut datagrams, mut drained) = (0, true);
        for socket in self.udp.all() {
            let (count, empty) = self.datagrams(socket, &mut woken, now);
            datagrams += count;
            drained &= empty;
        }
        if drained {
            self.engine.drained(now);
        }
        self.deliver();
        let mut reads = 0;
        let most = if self.tun.offload() { SUPER_READS } else { PLAIN_READS };
        // While the socket has no room the queue is the device's, where the host's senders feel it.
        while reads < most && !self.outbox.is_stuck() {
            match self.tun.try_recv(&mut self.from_tun) {
                Ok(len) => {
                    self.packets(len, now);
                    if std::mem::take(&mut woken) {
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
        let mut taken = 0;
        while taken < DATAGRAMS && !self.outbox.is_stuck() {
            let Some(handed) = self.handed.as_mut().and_then(|h| h.try_recv().ok()) else {
                break;
            };
            self.take(handed, now);
            taken += 1;
        }
        // Packets that the host sent to itself through the device.
        self.deliver();
        Ok(datagrams + reads + taken > 0)
    }

    /// A turn's datagrams of one socket. Returns how many they were, and whether no more wait.
    fn datagrams(&mut self, socket: Which, woken: &mut bool, now: Instant) -> (usize, bool) {
        let mut datagrams = 0;
        while datagrams < DATAGRAMS {
            let udp = self.udp.get(socket);
            let batches = match udp.try_recv(&mut self.from_udp, DATAGRAMS - datagrams) {
                Ok(batches) => batches,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return (datagrams, true),
                Err(e) => {
                    tracing::debug!(error = %e, "receiving datagrams");
                    break;
                }
            };
            for batch in 0..batches {
                datagrams += self.batch(socket, batch, now);
                // What only passes through is in the cache now.
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

    /// One packet that another lane was not ready for.
    fn take(&mut self, mut handed: Handed, now: Instant) {
        if handed.generation == self.generation {
            let (outbox, tun) = (&mut self.outbox, &mut self.tun);
            self.engine
                .handle_redirected(handed.ingress, &mut handed.packet, now, outbox, tun);
        } else {
            // Of another configuration, whose links have other numbers: rare, and at a change only.
            self.engine.refuse_redirected();
        }
        handed.done();
    }

    /// One batch of the last receive call. Returns how many datagrams it was.
    fn batch(&mut self, socket: Which, batch: usize, now: Instant) -> usize {
        let (received, bytes) = self.udp.get(socket).received(batch, &self.from_udp);
        // Nobody can be answered there; an empty one is a datagram too, and costs its share of the turn.
        if received.len == 0 || !udp::is_usable(received.from.remote) {
            self.engine.refuse();
            return 1;
        }
        let mut count = 0;
        for datagram in bytes.chunks(received.stride) {
            count += 1;
            let (outbox, tun) = (&mut self.outbox, &mut self.tun);
            self.engine
                .handle_datagram(datagram, received.from, received.ecn, now, outbox, tun);
        }
        count
    }

    /// One read from the device.
    fn packets(&mut self, len: usize, now: Instant) {
        let (engine, outbox, tun) = (&mut self.engine, &mut self.outbox, &mut self.tun);
        let split = tun::packets(tun.offload(), &mut self.from_tun[..len], |packet| {
            engine.handle_tun(packet, now, outbox, tun);
        });
        if split.is_err() {
            self.malformed += 1;
        }
    }

    /// Sends what waits, as far as there is room.
    fn send(&mut self, now: Instant) {
        self.engine.flush(now, &mut self.outbox);
        self.transmit(Outbox::flush);
    }

    /// Gives the socket what `flush` hands out.
    fn transmit(&mut self, flush: impl FnOnce(&mut Outbox, &mut dyn FnMut(&Datagrams<'_>) -> Room)) {
        let (udp, engine) = (&mut self.udp, &mut self.engine);
        flush(&mut self.outbox, &mut |datagrams| match udp.send(datagrams) {
            Ok(Sent { refused, not_from }) => {
                engine.not_sent(refused as u64);
                if let Some(local) = not_from {
                    engine.local_refused(local);
                }
                Room::Taken
            }
            Err(NoRoom) => Room::None,
        });
    }

    /// Hands the kernel what waits for it.
    fn deliver(&mut self) {
        self.tun.flush();
        self.engine.not_delivered(std::mem::take(&mut self.tun.lost));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Install(prepared, done) => {
                self.install(prepared);
                let _ = done.send(());
            }
            Order::Refresh(built) => self.refresh(*built),
            Order::Ready => {
                let (config, dynamic, generation) = (&self.config, &self.dynamic, self.generation);
                if let Some(requests) = &mut self.requests {
                    requests.ready(|| request(config.as_ref(), dynamic, generation));
                }
            }
            Order::Inspect(answer) => {
                let _ = answer.send(Inspection {
                    tables: self.engine.tables().cloned(),
                    dynamic: self.dynamic.clone(),
                });
            }
            Order::Remember(endpoints) => self.engine.links_mut().remember_endpoints(&endpoints),
            Order::Expect(peer) => self.engine.links_mut().prepare_session(&peer, Instant::now()),
            Order::Moved(peer, to) => self.engine.links_mut().set_endpoint(&peer, to),
            Order::Learned(routes) => {
                let before = std::mem::replace(&mut self.dynamic.learned, routes);
                if let Some(config) = &self.config {
                    self.dynamic.keep(config);
                }
                if before != self.dynamic.learned {
                    self.rebuild();
                }
            }
            Order::Leave => {
                let now = Instant::now();
                self.engine.drain(now, &mut self.outbox);
                self.send(now);
            }
            Order::Report(answer) => {
                let _ = answer.send(self.report());
            }
            // Both callers see to it.
            Order::Stop => {}
        }
    }

    fn install(&mut self, prepared: Prepared) {
        let Prepared { config, built } = prepared;
        self.engine.install(built.tables, &config.links, Instant::now());
        self.generation = built.generation;
        if let Some(first) = self.engine.redirect_mut() {
            first.generation = built.generation;
        }
        let buffer = self.settings.receive_buffer(Some(&config.role));
        if let Err(error) = self.udp.set_receive_buffer(buffer) {
            tracing::warn!(buffer, %error, "receive_buffer stays as it is");
        }
        self.dynamic.keep(&config);
        let linked = |agent: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(agent)).is_ok();
        self.log.keep(linked);
        self.config = Some(config);
        if self.number == 0 {
            self.advertise(built.advertisements);
            // A link went up or down since the tables were built.
            if built.dynamic != self.dynamic {
                self.rebuild();
            }
            self.show(built.dynamic);
        }
    }

    /// Takes tables that were built from what was learned.
    fn refresh(&mut self, built: Built) {
        // They may be of the configuration before.
        if built.generation != self.generation {
            return;
        }
        self.engine.refresh(built.tables);
        if self.number == 0 {
            self.rebuilds += 1;
            self.advertise(built.advertisements);
            self.show(built.dynamic);
        }
    }

    fn report(&self) -> LaneReport {
        let stats = self.engine.stats();
        let mut drops: BTreeMap<_, _> = stats.drops_by_reason().map(|(r, n)| (r.name().to_owned(), n)).collect();
        let mut totals = stats.totals;
        if self.malformed > 0 {
            let name = tombolo_engine::verdict::DropReason::Malformed.name();
            *drops.entry(name.to_owned()).or_default() += self.malformed;
            totals.tun_in += self.malformed;
            totals.dropped += self.malformed;
        }
        let advertisements = self.engine.links().advertisements();
        LaneReport {
            links: self.engine.links().status(Instant::now()),
            endpoints: self.engine.links().endpoints(),
            drops,
            totals,
            lanes: vec![totals],
            offload: self.tun.offload(),
            tun_errors: self.tun.write_errors,
            udp_errors: self.udp.send_errors(),
            udp_overflow: self.udp.overflow(),
            advertisements: AdvertisementStats {
                malformed: advertisements.malformed + self.unreadable,
                ..advertisements
            },
            rebuilds: self.rebuilds,
        }
    }

    /// What the links have to say: for the log, for the controller, and for the tables where another agent can stand
    /// in for one that went down (D11).
    fn events(&mut self) {
        let mut changed = false;
        let mut any = false;
        while let Some(event) = self.engine.poll_event() {
            any = true;
            match event {
                // What another lane than the first cannot reach, the first one serves: it alone tells who is down.
                Event::Up(peer) | Event::Down(peer) if self.number > 0 => {
                    tracing::debug!(link = %peer, lane = self.number, "session came or went");
                }
                Event::Up(peer) => {
                    if let Some(permit) = self.log.permit(&peer, "up", Instant::now()) {
                        tracing::info!(link = %peer, left_out = permit.left_out, "link up");
                    }
                    self.others.iter().for_each(|lane| lane.expect(&peer));
                    changed |= self.dynamic.down.remove(&peer);
                }
                Event::Down(peer) => {
                    if let Some(permit) = self.log.permit(&peer, "down", Instant::now()) {
                        tracing::info!(link = %peer, left_out = permit.left_out, "link down");
                    }
                    changed |= self.dynamic.down.insert(peer);
                }
                Event::EndpointChanged(peer, to) => {
                    tracing::debug!(link = %peer, lane = self.number, "link moved");
                    for other in &self.others {
                        other.moved(&peer, to);
                    }
                }
                Event::Switched(peer, to, reason) => {
                    if let Some(permit) = self.log.permit(&peer, "switched", Instant::now()) {
                        tracing::info!(link = %peer, ?to, reason, left_out = permit.left_out, "link switched");
                    }
                }
                Event::RoutesReceived(..) if self.number > 0 => {}
                Event::RoutesReceived(peer, table) => changed |= self.told(peer, &table),
            }
        }
        if any {
            self.news.notify_one();
        }
        if changed {
            self.rebuild();
        }
    }

    /// Takes the routes that an agent advertises. Whether that changes anything.
    fn told(&mut self, peer: AgentId, table: &[u8]) -> bool {
        let routes = match routing::decode(table) {
            Ok(routes) => routes,
            Err(error) => {
                self.unreadable += 1;
                if let Some(permit) = self.log.permit(&peer, "unreadable", Instant::now()) {
                    tracing::warn!(link = %peer, %error, left_out = permit.left_out, "its route advertisement is refused");
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
        tracing::debug!(link = %peer, routes = routes.len(), "told of routes");
        let config = self.config.as_ref();
        let counts = config.is_some_and(|config| routing::accepts_routes_from(config, &peer));
        self.dynamic.received.insert(peer, Arc::new(routes));
        counts
    }

    /// Tells the other ends of links what they are to know of routes.
    fn advertise(&mut self, advertisements: Vec<(LinkIndex, Arc<[u8]>)>) {
        for (link, table) in advertisements {
            self.engine.links_mut().advertise(link, table);
        }
        // At once: each agent on a route's way would add what it waits.
        let now = Instant::now();
        self.engine.links_mut().advertise_now(now);
        self.engine.handle_timeout(now, &mut self.outbox);
        self.send(now);
    }

    /// Shows the rest of the agent what was learned, and is in force.
    fn show(&self, dynamic: RoutingState) {
        self.moving.send_if_modified(|shown| {
            let news = *shown != dynamic;
            if news {
                *shown = dynamic;
            }
            news
        });
    }

    /// Has the tables built again: something was learned.
    fn rebuild(&mut self) {
        let (config, dynamic, generation) = (&self.config, &self.dynamic, self.generation);
        if let Some(requests) = &mut self.requests {
            requests.want(|| request(config.as_ref(), dynamic, generation));
        }
    }
}

/// What tables are built from now; none: there is no configuration yet.
fn request(config: Option<&Arc<AgentConfig>>, dynamic: &RoutingState, generation: u64) -> Option<Request> {
    let config = config?.clone();
    Some(Request {
        generation,
        config,
        dynamic: dynamic.clone(),
    })
}

/// The next packet that another lane is not ready for; never, in those lanes.
async fn next(handed: &mut Option<mpsc::Receiver<Handed>>) -> Option<Handed> {
    match handed {
        Some(handed) => handed.recv().await,
        None => std::future::pending().await,
    }
}
