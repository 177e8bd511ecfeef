//! An agent with one or several lanes and unencrypted links. The kernel may pass each packet of a flow to another lane.

use super::agent;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tombolo_engine::buffer::{Collected, Path, RedirectSink, TransmitSink};
use tombolo_engine::decide::Ingress;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::{Event, LinkSet, Opened, PlainLinks, Sealed};
use tombolo_engine::security::Flows;
use tombolo_engine::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, Link};

/// Links without encryption. In all lanes but the first, those with the listed peers have no session.
pub struct LaneLinks {
    pub links: PlainLinks,
    pub without_session: Vec<LinkIndex>,
    /// The links whose peers were told the health of back ends.
    pub health_returned: Vec<LinkIndex>,
}

impl LinkSet for LaneLinks {
    fn update(&mut self, links: &[Link], now: Instant) {
        self.links.update(links, now);
    }
    fn is_ready(&mut self, link: LinkIndex, _now: Instant) -> bool {
        !self.without_session.contains(&link)
    }
    fn seal(&mut self, link: LinkIndex, packet: &[u8], ecn: u8, now: Instant, tx: &mut impl TransmitSink) -> Sealed {
        self.links.seal(link, packet, ecn, now, tx)
    }
    fn open(
        &mut self,
        datagram: &[u8],
        from: Path,
        now: Instant,
        buffer: &mut [u8],
        tx: &mut impl TransmitSink,
    ) -> Opened {
        self.links.open(datagram, from, now, buffer, tx)
    }
    fn handle_timeout(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn poll_event(&mut self) -> Option<Event> {
        None
    }
    fn take_lost(&mut self) -> u64 {
        0
    }
    fn return_health(&mut self, link: LinkIndex, _now: Instant) {
        self.health_returned.push(link);
    }
}

/// The queue of packets for lane 0.
#[derive(Clone, Default)]
pub struct Queue(pub Rc<RefCell<Vec<Redirected>>>);

/// A redirected packet, with where it entered the agent. An empty one asks lane 0 to return the health of back ends.
pub type Redirected = (Ingress, Vec<u8>);

impl RedirectSink for Queue {
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool {
        self.0.borrow_mut().push((ingress, packet.to_vec()));
        true
    }

    fn return_health(&mut self, link: LinkIndex) -> bool {
        self.redirect_to_lane0(Ingress::Link(link), &[])
    }
}

/// The lanes of an agent.
pub struct Lanes {
    pub engines: Vec<Engine<LaneLinks, Option<Queue>>>,
    pub queue: Queue,
    pub flows: Arc<Flows>,
    pub now: Instant,
    pub config: AgentConfig,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was sent to this peer.
    Sent(String, Vec<u8>),
    /// It was delivered to the device of this NIC.
    Delivered(u8, Vec<u8>),
    Dropped,
}

impl Fate {
    /// The name of the peer, and the packet.
    pub fn sent(self) -> (String, Vec<u8>) {
        match self {
            Self::Sent(peer, packet) => (peer, packet),
            other => panic!("not sent: {other:?}"),
        }
    }

    /// The NIC, and the packet.
    pub fn delivered(self) -> (u8, Vec<u8>) {
        match self {
            Self::Delivered(nic, packet) => (nic, packet),
            other => panic!("not delivered: {other:?}"),
        }
    }
}

impl Lanes {
    /// An agent that has just started with this configuration.
    pub fn new(lanes: usize, config: &AgentConfig, now: Instant) -> Self {
        let (queue, flows) = (Queue::default(), Arc::new(Flows::new(4096, 5)));
        let lane = |number: usize| {
            let links = LaneLinks {
                links: PlainLinks::new(config.agent.clone()),
                without_session: Vec::new(),
                health_returned: Vec::new(),
            };
            let redirect = (number > 0).then(|| queue.clone());
            let mut engine = Engine::with_redirect(links, number as u64, redirect);
            engine.share_flows(flows.clone());
            engine
        };
        let mut all = Self {
            engines: (0..lanes).map(lane).collect(),
            queue: queue.clone(),
            flows: flows.clone(),
            now,
            config: config.clone(),
        };
        all.install(config);
        all
    }

    /// Installs a configuration in one lane after the other.
    pub fn install(&mut self, config: &AgentConfig) {
        self.install_with(config, &RoutingState::default());
    }

    /// Installs a configuration with a routing state, as after a change of health.
    pub fn install_with(&mut self, config: &AgentConfig, state: &RoutingState) {
        let mut config = config.clone();
        for (link, number) in config.links.iter_mut().zip(1..) {
            link.endpoint = Some(std::net::SocketAddr::from(([192, 0, 2, 1], number)));
        }
        let before = self.engines[0].tables().cloned();
        let tables = Arc::new(Tables::build_after(&config, state, before.as_deref()).unwrap());
        for engine in &mut self.engines {
            engine.install(tables.clone(), &config.links, self.now);
        }
        self.config = config;
    }

    /// The lanes, of which a test tries each.
    pub fn lanes(&self) -> Range<usize> {
        0..self.engines.len()
    }

    /// The number of packets that all lanes have dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.engines.iter().map(|engine| engine.stats().drops(reason)).sum()
    }

    /// Passes a packet of the device of a NIC to a lane.
    pub fn leaves(&mut self, lane: usize, nic: u8, packet: &[u8]) -> Fate {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let mut packet = packet.to_vec();
        self.engines[lane].handle_tun(NicIndex(nic), &mut packet, self.now, &mut tx, &mut rx);
        self.fate(tx, rx)
    }

    /// Passes a packet of a peer to a lane.
    pub fn comes(&mut self, lane: usize, peer: &str, packet: &[u8]) -> Fate {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let datagram = [
            &[u8::try_from(peer.len()).unwrap()][..],
            agent(peer).as_str().as_bytes(),
            packet,
        ]
        .concat();
        let from = "192.0.2.1:1".parse().unwrap();
        self.engines[lane].handle_udp(&datagram, from, self.now, &mut tx, &mut rx);
        self.engines[lane].drained(self.now);
        self.fate(tx, rx)
    }

    fn fate(&mut self, mut tx: Collected, mut rx: Collected) -> Fate {
        for (ingress, mut packet) in self.queue.0.take() {
            if let (Ingress::Link(link), true) = (ingress, packet.is_empty()) {
                self.engines[0].return_health(link, self.now);
                continue;
            }
            self.engines[0].handle_redirected(ingress, &mut packet, self.now, &mut tx, &mut rx);
        }
        assert!(self.engines.iter().all(|engine| engine.stats().conserved()));
        assert!(tx.datagrams.len() + rx.packets.len() <= 1, "one packet has one fate");
        match (tx.datagrams.pop(), rx.packets.pop()) {
            (Some((to, datagram)), _) => {
                let peer = &self.config.links[usize::from(to.port()) - 1].peer;
                let own = usize::from(datagram[0]);
                Fate::Sent(peer.as_str().to_owned(), datagram[1 + own..].to_vec())
            }
            (None, Some(packet)) => Fate::Delivered(rx.nics[0].0, packet),
            (None, None) => Fate::Dropped,
        }
    }
}
