//! Tests with two engines and a simulated network: route advertisements inside links (D11), and detection of a peer's
//! silence (D19).
#![cfg(feature = "links")]
#![allow(clippy::unwrap_used, reason = "helpers of tests; the clock is the test's")]

mod common;

use common::{World, agent, udp};
use std::sync::Arc;
use std::time::Duration;
use tombolo_engine::link::Event;
use tombolo_engine::tables::LinkIndex;
use tombolo_proto::config::Relation;

fn table(len: usize) -> Arc<[u8]> {
    (0..len)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect::<Vec<_>>()
        .into()
}

fn told(world: &World, node: usize) -> Vec<Vec<u8>> {
    let told = |e: &Event| match e {
        Event::RoutesReceived(_, table) => Some(table.clone()),
        _ => None,
    };
    world.nodes[node].events.iter().filter_map(told).collect()
}

/// The `Up` and `Down` events of a node.
fn changes(world: &World, node: usize) -> Vec<Event> {
    let events = world.nodes[node].events.iter();
    events
        .filter(|e| matches!(e, Event::Up(_) | Event::Down(_)))
        .cloned()
        .collect()
}

/// Passes time in steps of 50 ms.
fn run(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.pass(Duration::from_millis(50));
        world.settle();
    }
}

/// Routes are advertised on a link without traffic, and a change is advertised at once. Advertisements are not
/// delivered to the TUN device.
#[test]
fn routes_are_told_over_links_that_are_always_on() {
    let mut world = World::strangers();
    // `a` is the gateway of `b`.
    world.join(0, 1, |link| {
        link.always_on = true;
        link.initiator = link.peer == agent("b");
        if link.peer == agent("a") {
            link.relation = Relation::Gateway {};
        }
    });
    world.nodes[0].engine.links_mut().advertise(LinkIndex(0), table(5000));
    run(&mut world, Duration::from_secs(1));
    assert_eq!(told(&world, 1), [table(5000).to_vec()]);
    // A changed table is advertised although no time passes. With a delay at each agent, a route that passes through
    // several agents would arrive late.
    world.advertise(0, LinkIndex(0), table(0));
    world.settle();
    assert_eq!(told(&world, 1).last(), Some(&Vec::new()));
    assert!(world.nodes[1].delivered.is_empty() && told(&world, 0).is_empty());
    // A peer that restarted receives the table again, even if the table is the same.
    for _ in 0..2 {
        let now = world.now;
        world.nodes[1].restart(now);
        world.nodes[1].events.clear();
        world.nodes[0].engine.links_mut().advertise(LinkIndex(0), table(70));
        run(&mut world, Duration::from_secs(20));
        assert_eq!(told(&world, 1), [table(70).to_vec()]);
    }
}

/// A peer that is no gateway may not advertise routes: its messages are counted as refused, and its routes are
/// discarded.
#[test]
fn advertisements_of_whoever_is_no_gateway_are_refused() {
    let mut world = World::strangers();
    world.join(0, 1, |link| {
        link.always_on = true;
        link.initiator = link.peer == agent("b");
    });
    world.nodes[0].engine.links_mut().advertise(LinkIndex(0), table(5000));
    run(&mut world, Duration::from_secs(1));
    assert_eq!(told(&world, 1), Vec::<Vec<u8>>::new());
    let stats = world.nodes[1].engine.links().advertisements();
    assert!(stats.refused >= 6 && stats.received == 0, "{stats:?}");
}

/// D19: a monitored link, i.e. one that another path can replace, goes down after three unanswered echoes. It comes up
/// again after ten answers that span three seconds. A link that is not monitored reports nothing.
#[test]
fn silence_of_a_watched_link_is_noticed_and_so_is_its_return() {
    for watched in [true, false] {
        let mut world = World::strangers();
        world.join(0, 1, |link| link.monitored = watched);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
        world.settle();
        run(&mut world, Duration::from_secs(1));
        assert_eq!(changes(&world, 0), [Event::Up(agent("b"))]);
        let b = world.nodes[1].at;
        world.cut.push(b);
        run(&mut world, Duration::from_millis(250));
        assert_eq!(changes(&world, 0).len(), 1, "too early");
        run(&mut world, Duration::from_millis(250));
        let mut expected = vec![Event::Up(agent("b"))];
        if watched {
            expected.push(Event::Down(agent("b")));
        }
        assert_eq!(changes(&world, 0), expected);
        // A link that is down is still probed long after its last packet, so that its return is noticed.
        run(&mut world, Duration::from_secs(7));
        world.cut.clear();
        run(&mut world, Duration::from_millis(2800));
        assert_eq!(changes(&world, 0), expected, "not before it has held");
        run(&mut world, Duration::from_millis(800));
        if watched {
            expected.push(Event::Up(agent("b")));
        }
        assert_eq!(changes(&world, 0), expected);
    }
}

/// When an agent announces that it is about to stop, its peers immediately report their monitored links with this agent
/// as down, although the agent still carries packets. The answers that the agent still sends do not bring such a link
/// up at once.
#[test]
fn who_is_about_to_stop_is_left_at_once() {
    for watched in [true, false] {
        let mut world = World::strangers();
        world.join(0, 1, |link| link.monitored = watched);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
        run(&mut world, Duration::from_secs(5));
        world.drain(1);
        world.settle();
        let mut expected = vec![Event::Up(agent("b"))];
        if watched {
            expected.push(Event::Down(agent("b")));
        }
        assert_eq!(changes(&world, 0), expected);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
        world.settle();
        assert_eq!(world.nodes[1].delivered.len(), 2, "it carries packets for a while");
        run(&mut world, Duration::from_millis(2500));
        assert_eq!(changes(&world, 0), expected);
        run(&mut world, Duration::from_secs(1));
        if watched {
            expected.push(Event::Up(agent("b")));
        }
        assert_eq!(changes(&world, 0), expected, "it did not stop after all");
    }
}

/// If another path can replace a link, the link is reported as down within a second when its peer has never answered.
#[test]
fn a_watched_link_that_never_comes_up_is_down_soon() {
    let mut world = World::strangers();
    world.join(0, 1, |link| link.monitored = true);
    let b = world.nodes[1].at;
    world.cut.push(b);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
    run(&mut world, Duration::from_millis(700));
    assert_eq!(changes(&world, 0), [Event::Down(agent("b"))]);
}

/// Two nodes with a link and traffic in both directions. By the configuration of `a`, the peer `b` is a third-party
/// device.
fn with_a_device(dead_after: Option<u16>) -> World {
    let mut world = World::strangers();
    world.join(0, 1, |link| {
        link.always_on = true;
        (link.initiator, link.third_party) = (link.peer == agent("b"), link.peer == agent("b"));
        link.dpd_timeout = dead_after.filter(|_| link.third_party);
    });
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
    run(&mut world, Duration::from_secs(1));
    assert_eq!(changes(&world, 0), [Event::Up(agent("b"))]);
    world
}

/// D19: if a third-party device answers neither packets nor handshakes, its link is reported as down long before its
/// session expires, and as up again when the device answers.
#[test]
fn a_stock_device_that_goes_silent_is_given_up() {
    for (dead_after, seconds) in [(None, 6), (Some(30), 30)] {
        let mut world = with_a_device(dead_after);
        let b = world.nodes[1].at;
        world.cut.push(b);
        // The last packet to the device was sent a second ago, and the device has sent nothing since then.
        let since = world.now - Duration::from_secs(1);
        while changes(&world, 0).len() == 1 && world.now < since + Duration::from_mins(1) {
            world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
            run(&mut world, Duration::from_millis(250));
        }
        let silent = (world.now - since).as_secs_f64();
        assert!((silent - f64::from(seconds)).abs() < 1.0, "{dead_after:?}: {silent} s");
        assert_eq!(changes(&world, 0)[1..], [Event::Down(agent("b"))]);
        world.cut.clear();
        run(&mut world, Duration::from_secs(6));
        assert_eq!(changes(&world, 0)[2..], [Event::Up(agent("b"))]);
    }
}

/// The link with a third-party device that answers only handshakes, and sends no packets, stays up.
#[test]
fn a_stock_device_that_has_nothing_to_say_stays() {
    let mut world = with_a_device(None);
    for _ in 0..120 {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
        run(&mut world, Duration::from_millis(250));
    }
    assert_eq!(changes(&world, 0).len(), 1);
}

/// D16: a third-party device receives none of the messages between agents.
#[test]
fn a_stock_device_hears_nothing_but_wireguard() {
    let mut world = World::strangers();
    world.join(0, 1, |link| {
        (link.third_party, link.always_on) = (true, true);
        link.initiator = link.peer == agent("b");
    });
    world.nodes[0].engine.links_mut().advertise(LinkIndex(0), table(50));
    run(&mut world, Duration::from_secs(3));
    // Data messages of WireGuard have the type 4; one without contents, a keepalive, has 32 bytes.
    let has_contents = |datagram: &[u8]| datagram[0] == 4 && datagram.len() > 32;
    assert!(world.seen.iter().any(|(_, _, datagram)| datagram[0] == 4), "a session");
    assert!(!world.seen.iter().any(|(_, _, datagram)| has_contents(datagram)));
}
