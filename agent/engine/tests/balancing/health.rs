//! The health of back ends over links, without the controller (L7, D36).

use super::ends_of_flows::probed;
use super::{BACK, CLIENT, FRONT, NODES, delivered, world};
use crate::common::groups::{Flags, tcp};
use crate::common::lanes::{Fate, Lanes};
use crate::common::{World, id, ip};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::health::{HealthSources, Probed};
use tombolo_engine::link::Event;
use tombolo_engine::routing::RoutingState;
use tombolo_engine::tables::{LinkIndex, Tables};
use tombolo_engine::verdict::DropReason;

/// A step of the test's clock, in which a message goes there and back.
const STEP: Duration = Duration::from_millis(100);

/// Longer than a link counts as in use after its last packet.
const IDLE: Duration = Duration::from_secs(10);

/// The agents of a world as they drive their engines: they take the events of the links, and install new tables when the
/// health of a back end has changed.
struct Agents {
    sources: Vec<HealthSources>,
    states: Vec<RoutingState>,
    /// Number of received statements that cannot be decoded.
    malformed: u32,
}

fn back_end(node: usize) -> Probed {
    (id("lb-probe"), ip(BACK[node - 1]))
}

impl Agents {
    /// Agents that know nothing yet.
    fn of(world: &World) -> Self {
        let sources = world.nodes.iter().map(|node| {
            let mut sources = HealthSources::new(1000);
            sources.configure(&node.config);
            sources
        });
        Self {
            sources: sources.collect(),
            states: vec![RoutingState::default(); world.nodes.len()],
            malformed: 0,
        }
    }

    /// Both back ends are up, the client has used both links, and then no link was used for a while.
    fn at_rest(world: &mut World) -> Self {
        let mut agents = Self::of(world);
        for node in NODES {
            agents.probe(world, node, true);
        }
        assert_eq!(used(world, 40_000), NODES.into());
        agents.pass(world, IDLE);
        assert!(agents.known_down(0).is_empty());
        agents
    }

    /// The result of the probes of a node's back end.
    fn probe(&mut self, world: &mut World, node: usize, up: bool) {
        self.sources[node].set_own([(back_end(node), up)].into());
        let statement = self.sources[node].statement().unwrap();
        let now = world.now;
        world.nodes[node].engine.links_mut().advertise_health(&statement, now);
        self.update(world);
    }

    /// Takes the events of all links, and installs the tables that follow.
    fn update(&mut self, world: &mut World) {
        let now = world.now;
        for (number, node) in world.nodes.iter_mut().enumerate() {
            let state = &mut self.states[number];
            for event in node.events.drain(..) {
                match event {
                    Event::Up(peer) => _ = state.down.remove(&peer),
                    Event::Down(peer) => _ = state.down.insert(peer),
                    Event::HealthReceived(peer, statement) => {
                        let received = self.sources[number].receive(&peer, &statement);
                        self.malformed += u32::from(received.is_err());
                    }
                    _ => {}
                }
            }
            state.unhealthy = self.sources[number].unhealthy(&state.down);
            let tables = Tables::build(&node.config, state).unwrap();
            node.engine.refresh(Arc::new(tables), now);
        }
    }

    fn pass(&mut self, world: &mut World, time: Duration) {
        let end = world.now + time;
        while world.now < end {
            world.pass(STEP);
            self.update(world);
        }
    }

    /// The back ends that an agent takes for down.
    fn known_down(&self, node: usize) -> BTreeSet<IpAddr> {
        let down = self.states[node].unhealthy.iter();
        down.map(|(_, address)| *address).collect()
    }
}

/// Opens 20 connections. Returns the nodes to which they come.
fn used(world: &mut World, first_port: u16) -> BTreeSet<usize> {
    let ports = first_port..first_port + 20;
    ports
        .filter_map(|port| Some(delivered(world, port, Flags::Syn)?.0))
        .collect()
}

/// A port from which a new connection of the client comes to this node's agent.
fn port_to(world: &mut World, node: usize) -> u16 {
    let is_to = |port: &u16| delivered(world, *port, Flags::Syn).is_some_and(|(to, _)| to == node);
    (50_000..60_000).find(is_to).unwrap()
}

#[test]
fn l7_d36_a_change_arrives_over_a_link_that_is_up_even_if_it_is_idle() {
    let mut world = world(&[probed(5, 1)]);
    let mut agents = Agents::at_rest(&mut world);
    for (round, node) in NODES.into_iter().chain(NODES).enumerate() {
        let port = 41_000 + 100 * round as u16;
        agents.probe(&mut world, node, false);
        agents.pass(&mut world, STEP);
        assert_eq!(agents.known_down(0), [ip(BACK[node - 1])].into());
        assert_eq!(used(&mut world, port), [3 - node].into());
        agents.pass(&mut world, IDLE);
        agents.probe(&mut world, node, true);
        // The rate limit may delay the second of two changes that follow each other closely.
        agents.pass(&mut world, IDLE);
        assert_eq!(used(&mut world, port + 50), NODES.into());
        agents.pass(&mut world, IDLE);
    }
    let statements = world.nodes[0].engine.links().health_statements();
    assert_eq!((statements.malformed, statements.refused), (0, 0));
    assert_eq!(statements.received, statements.applied + statements.superseded);
    // Back ends state nothing to agents that own none, such as the client, and nobody asks the client.
    for node in NODES {
        let statements = world.nodes[node].engine.links().health_statements();
        assert_eq!(statements.refused, 0, "{statements:?}");
    }
}

#[test]
fn d36_a_lost_statement_is_repeated() {
    let mut world = world(&[probed(5, 1)]);
    let mut agents = Agents::at_rest(&mut world);
    world.cut = vec![world.nodes[1].at];
    agents.probe(&mut world, 1, false);
    agents.pass(&mut world, Duration::from_secs(1));
    assert!(agents.known_down(0).is_empty());
    world.cut.clear();
    agents.pass(&mut world, Duration::from_secs(2));
    assert_eq!(agents.known_down(0), [ip(BACK[0])].into());
}

/// D36: the client did not get the change, because the network failed for longer than the owner repeats it on an idle link.
/// When the client chooses the back end that is down, the owner returns its health, and the repeated SYN goes elsewhere.
#[test]
fn d36_an_owner_returns_its_health_to_a_client_that_chooses_a_back_end_that_is_down() {
    let mut world = world(&[probed(5, 1)]);
    let mut agents = Agents::at_rest(&mut world);
    let port = port_to(&mut world, 1);
    agents.pass(&mut world, IDLE);
    world.cut = vec![world.nodes[1].at];
    agents.probe(&mut world, 1, false);
    agents.pass(&mut world, 3 * IDLE);
    world.cut.clear();
    agents.pass(&mut world, IDLE);
    assert!(agents.known_down(0).is_empty(), "nothing is sent over an idle link");
    let dropped = |world: &World| world.nodes[1].engine.stats().drops(DropReason::NoBackEnd);
    let before = dropped(&world);
    assert_eq!(delivered(&mut world, port, Flags::Syn), None);
    assert_eq!(dropped(&world), before + 1);
    // TCP repeats the SYN after a second.
    agents.pass(&mut world, Duration::from_secs(1));
    assert_eq!(agents.known_down(0), [ip(BACK[0])].into());
    assert_eq!(delivered(&mut world, port, Flags::Syn).unwrap().0, 2);
}

/// D36: an owner that has restarted reports its back end as down until the first result of a probe. What it has stated before
/// does not count any more.
#[test]
fn d36_an_owner_that_has_restarted_states_its_health_anew() {
    let mut world = world(&[probed(5, 1)]);
    let mut agents = Agents::at_rest(&mut world);
    let now = world.now;
    world.nodes[1].restart(now);
    agents.sources[1] = HealthSources::new(2000);
    agents.sources[1].configure(&world.nodes[1].config);
    agents.probe(&mut world, 1, false);
    for (up, expected) in [(false, vec![ip(BACK[0])]), (true, vec![])] {
        agents.probe(&mut world, 1, up);
        let mut seconds = 0;
        // The session of before the restart must be replaced first.
        while agents.known_down(0) != expected.iter().copied().collect() {
            used(&mut world, 45_000 + 100 * seconds);
            agents.pass(&mut world, Duration::from_secs(1));
            seconds += 1;
            assert!(seconds < 30, "{:?}", agents.known_down(0));
        }
    }
}

/// D36: statements of an agent that owns no back end are not read. Those of an owner count for its own back ends only.
#[test]
fn d36_nobody_makes_the_back_ends_of_others_down() {
    let mut world = world(&[probed(5, 1)]);
    let mut agents = Agents::at_rest(&mut world);
    let mut hostile = HealthSources::new(u64::MAX);
    hostile.set_own(NODES.map(|node| (back_end(node), false)).into());
    let lie = hostile.statement().unwrap();
    let now = world.now;
    for sender in [0, 2] {
        world.nodes[sender].engine.links_mut().advertise_health(&lie, now);
        for link in [0, 1] {
            // A hostile agent does not wait until it is asked.
            world.nodes[sender].engine.return_health(LinkIndex(link), now);
        }
    }
    agents.pass(&mut world, Duration::from_secs(3));
    for node in [0, 1] {
        assert_eq!(
            agents.known_down(node),
            [ip(BACK[1])].into(),
            "node {node} believes the owner"
        );
        assert_eq!(agents.sources[node].ignored(), 1);
    }
    assert!(agents.known_down(2).is_empty(), "the client is not believed");
    for node in NODES {
        let statements = world.nodes[node].engine.links().health_statements();
        assert!(statements.refused > 0, "{statements:?}");
    }
    // Bytes that are no statement.
    for bytes in [vec![], vec![9; 17], vec![1; 40_000], vec![1; 3000]] {
        let now = world.now;
        let links = world.nodes[2].engine.links_mut();
        links.advertise_health(&Arc::from(bytes), now);
        agents.pass(&mut world, IDLE);
    }
    assert_eq!(
        agents.malformed,
        2 * 3,
        "two receivers, and one of the four is too long to be sent"
    );
    assert_eq!(agents.known_down(0), [ip(BACK[1])].into(), "the last statement stays");
}

/// D36: a packet of a new flow comes to a back end that is down, in any lane. Lane 0 returns the health of the back end to the
/// packet's sender, and not more often than a limit allows.
#[test]
fn d36_health_is_returned_whichever_lane_the_packet_comes_to() {
    let config = world(&[probed(5, 1)]).nodes[1].config.clone();
    let client = config
        .links
        .iter()
        .position(|link| link.peer.as_str() == "client")
        .unwrap();
    for lanes in [1, 4] {
        let mut owner = Lanes::new(lanes, &config, Instant::now());
        let returned = |owner: &mut Lanes| std::mem::take(&mut owner.engines[0].links_mut().health_returned);
        let mut down = RoutingState::default();
        down.unhealthy.insert(back_end(1));
        for lane in owner.lanes() {
            let syn = tcp((CLIENT, 40_000 + lane as u16), (FRONT, 80), Flags::Syn);
            owner.install_with(&config, &RoutingState::default());
            assert!(matches!(owner.comes(lane, "client", &syn), Fate::Delivered(..)));
            assert!(returned(&mut owner).is_empty(), "the back end is up");
            let syn = tcp((CLIENT, 41_000 + lane as u16), (FRONT, 80), Flags::Syn);
            owner.install_with(&config, &down);
            let before = owner.drops(DropReason::NoBackEnd);
            assert_eq!(owner.comes(lane, "client", &syn), Fate::Dropped);
            assert_eq!(owner.drops(DropReason::NoBackEnd), before + 1);
            let links: Vec<usize> = returned(&mut owner).into_iter().map(LinkIndex::get).collect();
            assert_eq!(links, [client], "lane {lane} of {lanes}");
        }
        // A port without a rule has no back end that could be down.
        let other = tcp((CLIENT, 42_000), (FRONT, 81), Flags::Syn);
        assert_eq!(owner.comes(0, "client", &other), Fate::Dropped);
        assert!(returned(&mut owner).is_empty());
        let mut count = 0;
        for port in 1..=12_000 {
            let syn = tcp((CLIENT, port), (FRONT, 80), Flags::Syn);
            owner.comes(usize::from(port) % lanes, "client", &syn);
            count += returned(&mut owner).len();
        }
        assert!((1..=2700 * lanes).contains(&count), "{count} of 12,000 in no time");
    }
}
