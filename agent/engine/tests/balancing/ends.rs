//! How flows end and go on when back ends are down (L8), or their agent is gone (D36).

use super::{BACK, CLIENT, FRONT, NODES, balancing_rule, delivered, ends, send, world};
use crate::common::groups::{Flags, tcp};
use crate::common::{World, agent, id, udp};
use etherparse::{SlicedPacket, TransportSlice};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tombolo_engine::link::Event;
use tombolo_engine::owners::OwnerWatch;
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{BalancedProtocol, BalancingRule, GONE_WITHOUT_PROBE, HealthProbe, ProbeProtocol};

/// The client, as its agent drives the engine: it takes the engine's events, and installs new tables after a change.
struct Client {
    watch: OwnerWatch,
    state: RoutingState,
}

impl Client {
    fn of(world: &World) -> Self {
        let mut watch = OwnerWatch::default();
        watch.configure(&world.nodes[0].config);
        Self {
            watch,
            state: RoutingState::default(),
        }
    }

    /// Takes the events of the links, and installs tables for the state that follows.
    fn update(&mut self, world: &mut World) {
        let now = world.now;
        let node = &mut world.nodes[0];
        for event in node.events.drain(..) {
            match event {
                Event::Up(peer) => {
                    self.watch.link_up(&peer);
                    self.state.down.remove(&peer);
                }
                Event::Down(peer) => {
                    self.watch.link_down(&peer, now);
                    self.state.down.insert(peer);
                }
                _ => {}
            }
        }
        self.state.gone = self.watch.gone(now);
        let tables = Tables::build(&node.config, &self.state).unwrap();
        node.engine.refresh(Arc::new(tables), now);
    }

    /// Lets time pass in steps of a second. The client sends a segment of each connection in each step.
    fn pass(&mut self, world: &mut World, seconds: u32, connections: &[u16]) {
        for _ in 0..seconds {
            for port in connections {
                send(world, 0, tcp((CLIENT, *port), (FRONT, 80), Flags::Ack));
            }
            world.pass(Duration::from_secs(1));
            self.update(world);
        }
    }
}

/// Opens connections from these ports. Returns the node of the back end of each one.
fn connect(world: &mut World, ports: std::ops::Range<u16>) -> Vec<(u16, usize)> {
    let mut all = Vec::new();
    for port in ports {
        let (node, _) = delivered(world, port, Flags::Syn).unwrap();
        send(world, node, tcp((BACK[node - 1], 8080), (CLIENT, port), Flags::SynAck));
        assert_eq!(delivered(world, port, Flags::Ack).unwrap().0, node);
        all.push((port, node));
    }
    assert!(NODES.iter().all(|node| all.iter().any(|(_, n)| n == node)));
    all
}

/// Sends a segment of a connection. Returns the reset that the client gets, if it gets one.
fn reset_for(world: &mut World, port: u16) -> Option<Vec<u8>> {
    world.nodes[0].delivered.clear();
    send(world, 0, tcp((CLIENT, port), (FRONT, 80), Flags::Ack));
    world.nodes[0].delivered.pop()
}

/// A rule whose probe has this interval, in seconds, and this threshold.
pub(super) fn probed(interval: u32, threshold: u16) -> BalancingRule {
    BalancingRule {
        probe: Some(HealthProbe {
            id: id("lb-probe"),
            protocol: ProbeProtocol::Tcp,
            port: 8080,
            path: String::new(),
            interval,
            threshold,
            all_up_when_all_down: false,
        }),
        ..balancing_rule(false)
    }
}

/// The time in which a failed link is detected if it is in use: three echoes, one a second, and a step of the test.
const DETECTION: u32 = 4;

#[test]
fn d36_connections_to_a_back_end_whose_agent_is_gone_are_reset() {
    let mut world = world(&[probed(5, 2)]);
    let mut client = Client::of(&world);
    let connections = connect(&mut world, 40_000..40_020);
    let ports: Vec<u16> = connections.iter().map(|(port, _)| *port).collect();
    client.update(&mut world);
    // The first back end does not answer any more.
    let mut ports_of_new = 44_000..44_100;
    let unanswered = ports_of_new.find(|port| delivered(&mut world, *port, Flags::Syn).unwrap().0 == 1);
    let unanswered = unanswered.unwrap();
    let lost = world.nodes[1].at;
    world.cut.push(lost);
    client.pass(&mut world, DETECTION, &ports);
    assert!(client.state.down.contains(&agent("six")) && client.state.gone.is_empty());
    // The link is down, and the agent may still restart: its connections wait, and new ones go elsewhere.
    for (port, node) in &connections {
        assert!(reset_for(&mut world, *port).is_none(), "{port} of node {node}");
    }
    for port in 41_000..41_020 {
        assert_eq!(delivered(&mut world, port, Flags::Syn).unwrap().0, 2);
    }
    // The SYN of a connection is repeated, because the first one got no answer. This one goes elsewhere too.
    assert_eq!(delivered(&mut world, unanswered, Flags::Syn).unwrap().0, 2);
    client.pass(&mut world, 10, &ports);
    assert!(client.state.gone.contains_key(&agent("six")));
    for (port, node) in &connections {
        let reset = reset_for(&mut world, *port);
        if *node != 1 {
            assert!(reset.is_none());
            assert_eq!(delivered(&mut world, *port, Flags::Ack).unwrap().0, *node);
            continue;
        }
        let reset = reset.expect("the client gets a reset");
        assert_eq!(ends(&reset), (format!("{FRONT}:80"), format!("{CLIENT}:{port}")));
        let sliced = SlicedPacket::from_ip(&reset).unwrap();
        let Some(TransportSlice::Tcp(segment)) = sliced.transport else {
            panic!("a TCP segment")
        };
        assert!(
            segment.rst() && segment.sequence_number() == 2,
            "the number that the client expects"
        );
        // A new connection from the same port reaches the other back end, and so do its later segments.
        assert_eq!(delivered(&mut world, *port, Flags::Syn).unwrap().0, 2);
        assert_eq!(delivered(&mut world, *port, Flags::Ack).unwrap().0, 2);
    }
    for port in 42_000..42_020 {
        assert_eq!(delivered(&mut world, port, Flags::Syn).unwrap().0, 2);
    }
    // The agent is back.
    world.cut.clear();
    client.pass(&mut world, 10, &ports);
    assert!(
        client.state.down.is_empty() && client.state.gone.is_empty(),
        "{:?}",
        client.state
    );
    connect(&mut world, 43_000..43_020);
}

/// A restart takes less time than the rule allows, so no connection is reset.
#[test]
fn d36_an_agent_that_restarts_is_not_gone() {
    let mut world = world(&[balancing_rule(false)]);
    let mut client = Client::of(&world);
    let connections = connect(&mut world, 40_000..40_020);
    let ports: Vec<u16> = connections.iter().map(|(port, _)| *port).collect();
    world.cut.push(world.nodes[1].at);
    client.pass(&mut world, GONE_WITHOUT_PROBE - 1, &ports);
    assert!(client.state.down.contains(&agent("six")) && client.state.gone.is_empty());
    world.cut.clear();
    client.pass(&mut world, 6, &ports);
    assert!(client.state.down.is_empty() && client.state.gone.is_empty());
    for (port, node) in connections {
        assert!(reset_for(&mut world, port).is_none());
        assert_eq!(delivered(&mut world, port, Flags::Ack).unwrap().0, node);
    }
}

/// An agent that stops in an orderly way says so. New connections go elsewhere at once, and established ones stay.
#[test]
fn d36_new_connections_avoid_an_agent_that_stops() {
    let mut world = world(&[balancing_rule(false)]);
    let mut client = Client::of(&world);
    let connections = connect(&mut world, 40_000..40_020);
    client.update(&mut world);
    world.drain(1);
    world.settle();
    client.update(&mut world);
    for port in 41_000..41_020 {
        assert_eq!(delivered(&mut world, port, Flags::Syn).unwrap().0, 2);
    }
    for (port, node) in connections {
        assert_eq!(delivered(&mut world, port, Flags::Ack).unwrap().0, node);
    }
}

/// A connection whose SYN got no answer before the agent was gone gets another back end. So do UDP flows.
#[test]
fn d36_what_is_not_established_moves_to_another_back_end() {
    let datagrams = BalancingRule {
        id: id("lb-udp"),
        protocol: BalancedProtocol::Udp,
        port: 2000,
        back_end_port: 2000,
        ..balancing_rule(false)
    };
    let mut world = world(&[balancing_rule(false), datagrams]);
    let mut client = Client::of(&world);
    let ports = 40_000..40_020;
    let waiting = ports.map(|port| (port, delivered(&mut world, port, Flags::Syn).unwrap().0));
    let waiting: Vec<(u16, usize)> = waiting.collect();
    send(&mut world, 0, udp(CLIENT, FRONT, 64, 10));
    let got = |world: &mut World| {
        let nodes = NODES
            .iter()
            .filter(|node| world.nodes[**node].delivered.pop().is_some());
        nodes.copied().collect::<BTreeSet<usize>>()
    };
    let before = got(&mut world);
    let lost = *before.first().unwrap();
    world.cut.push(world.nodes[lost].at);
    for _ in 0..GONE_WITHOUT_PROBE + DETECTION {
        send(&mut world, 0, udp(CLIENT, FRONT, 64, 10));
        world.pass(Duration::from_secs(1));
        client.update(&mut world);
    }
    assert_eq!(client.state.gone.len(), 1);
    for node in NODES {
        world.nodes[node].delivered.clear();
    }
    send(&mut world, 0, udp(CLIENT, FRONT, 64, 10));
    let after = got(&mut world);
    assert!(after.len() == 1 && after.is_disjoint(&before), "{before:?}, {after:?}");
    assert!(waiting.iter().any(|(_, node)| *node == lost));
    for (port, _) in waiting {
        let (node, _) = delivered(&mut world, port, Flags::Syn).expect("the SYN reaches a back end");
        assert_ne!(node, lost);
        assert_eq!(delivered(&mut world, port, Flags::Ack).unwrap().0, node);
    }
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::BackEndGone), 0);
}

/// The number of packets of the client's agent that were dropped because their connection has ended.
fn dropped(world: &World) -> u64 {
    world.nodes[0].engine.stats().drops(DropReason::FlowEnded)
}

/// Sends a segment in each direction of all connections.
fn exchange(world: &mut World, connections: &[(u16, usize)]) {
    for (port, node) in connections {
        assert_eq!(delivered(world, *port, Flags::Ack).unwrap().0, *node, "port {port}");
        send(world, *node, tcp((BACK[*node - 1], 8080), (CLIENT, *port), Flags::Ack));
        assert!(world.nodes[0].delivered.pop().is_some(), "port {port}");
    }
}

/// L3: a connection without packets for the idle timeout, here 4 minutes, is forgotten. With `enableTcpReset` the client
/// gets a reset when it goes on with the connection. Without it, the segment goes to a back end as that of a new flow.
#[test]
fn l3_an_idle_connection_ends_and_is_reset_if_the_rule_says_so() {
    for resets in [false, true] {
        let mut world = world(&[BalancingRule {
            tcp_reset: resets,
            ..balancing_rule(false)
        }]);
        let connections = connect(&mut world, 40_000..40_020);
        let (idle, busy) = connections.split_at(10);
        // Two minutes without packets are longer than a connection that is not established lasts.
        for _ in 0..3 {
            world.now += Duration::from_secs(120);
            exchange(&mut world, busy);
        }
        assert_eq!(dropped(&world), 0);
        for (port, _) in idle {
            let reset = reset_for(&mut world, *port);
            assert_eq!(reset.is_some(), resets, "port {port}");
            if !resets {
                assert!(delivered(&mut world, *port, Flags::Ack).is_some(), "port {port}");
            }
            if let Some(reset) = reset {
                assert_eq!(ends(&reset), (format!("{FRONT}:80"), format!("{CLIENT}:{port}")));
                let sliced = SlicedPacket::from_ip(&reset).unwrap();
                assert!(
                    matches!(sliced.transport, Some(TransportSlice::Tcp(t)) if t.rst() && t.sequence_number() == 2)
                );
            }
        }
        assert_eq!(dropped(&world), 0);
        for (port, _) in idle {
            assert!(
                delivered(&mut world, *port, Flags::Syn).is_some(),
                "a new connection from port {port}"
            );
        }
    }
}

/// L3, D34: after a crash, an agent does not know the connections that have begun before. It takes them up for a minute, and
/// later ends them if the rule has `enableTcpReset`.
#[test]
fn l3_connections_from_before_a_crash_are_taken_up() {
    for (crashed, resets) in [(0, true), (1, true), (1, false)] {
        let mut world = world(&[BalancingRule {
            tcp_reset: resets,
            ..balancing_rule(false)
        }]);
        let all = connect(&mut world, 40_000..40_040).into_iter();
        let connections: Vec<_> = all.filter(|(_, node)| *node == 1).collect();
        let (early, late) = connections.split_at(connections.len() / 2);
        let now = world.now;
        world.nodes[crashed].restart(now);
        // The link has a session again after a few packets.
        for _ in 0..30 {
            send(&mut world, 0, udp(CLIENT, BACK[0], 64, 10));
            world.pass(Duration::from_millis(100));
        }
        exchange(&mut world, early);
        world.now += Duration::from_secs(61);
        exchange(&mut world, early);
        for (port, node) in late {
            let reset = reset_for(&mut world, *port);
            assert_eq!(reset.is_some(), resets, "port {port}, node {crashed}");
            if !resets {
                assert_eq!(delivered(&mut world, *port, Flags::Ack).unwrap().0, *node);
            }
        }
    }
}
