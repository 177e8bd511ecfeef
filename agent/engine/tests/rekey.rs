//! Tests of handshakes that renew running sessions. WireGuard renews sessions after minutes, and the tests do not wait
//! that long: boringtun reads the clock itself, so this program replaces the C library's clock.
#![cfg(all(feature = "links", target_pointer_width = "64"))]
#![allow(unsafe_code, reason = "the C library's clock is replaced")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::{World, udp};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_proto::status::LinkState;

thread_local! {
    /// The time in nanoseconds. Each test runs in a thread of its own, and therefore has a clock of its own.
    static CLOCK: Cell<u64> = const { Cell::new(1_800_000_000_000_000_000) };
}

/// The C library's `struct timespec`.
#[repr(C)]
pub struct Time {
    seconds: i64,
    nanoseconds: i64,
}

/// Replaces the function of the C library. All clocks show the same time, which the test advances.
///
/// # Safety
/// `time` must point to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(_clock: i32, time: *mut Time) -> i32 {
    let now = CLOCK.get().cast_signed();
    // SAFETY: the caller passes a pointer to a writable `timespec`.
    unsafe {
        *time = Time {
            seconds: now / 1_000_000_000,
            nanoseconds: now % 1_000_000_000,
        };
    }
    0
}

const TIME_STEP: Duration = Duration::from_millis(50);

/// Advances the clock of both ends by one step, and runs their timers.
fn step(world: &mut World) {
    CLOCK.set(CLOCK.get() + u64::try_from(TIME_STEP.as_nanos()).unwrap());
    world.now = std::time::Instant::now();
    world.serve();
}

fn is_init(datagram: &[u8]) -> bool {
    datagram[0] == 1
}

/// Sends a packet in each direction, and delivers all datagrams.
fn exchange(world: &mut World) {
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 56));
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 56));
}

#[test]
fn the_clock_is_the_tests() {
    let begin = std::time::Instant::now();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    CLOCK.set(CLOCK.get() + 1);
    assert_eq!(begin.elapsed(), Duration::from_nanos(1));
}

#[test]
fn new_keys_lose_nothing() {
    let mut world = World::pair();
    for round in 1..=200 * 20 {
        exchange(&mut world);
        step(&mut world);
        world.settle();
        let delivered = (world.nodes[0].delivered.len(), world.nodes[1].delivered.len());
        assert_eq!(
            delivered,
            (round, round),
            "after {:?}",
            TIME_STEP * u32::try_from(round).unwrap()
        );
    }
    let handshakes = world.seen.iter().filter(|(_, _, b)| is_init(b)).count();
    assert!((2..=6).contains(&handshakes), "{handshakes} handshakes");
    let age = world.nodes[0].link("b", world.now).unwrap().handshake_age.unwrap();
    assert!(age < 121.0, "{age}");
}

/// The configured endpoint of `b` is wrong, but `b` has sent from the right one. If the initiation of a handshake that
/// renews the session is lost, the next initiation goes to the configured endpoint. Packets of the session stay on the
/// path that works.
#[test]
fn a_lost_handshake_does_not_move_a_session_that_works() {
    let mut world = World::pair();
    // `a` initiates first, so it is the end that renews the session.
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 56));
    world.settle();
    exchange(&mut world);
    world.settle();
    let stale: SocketAddr = "203.0.113.9:9".parse().unwrap();
    world.join(0, 1, |link| {
        if link.peer.as_str() == "b" {
            link.endpoint = Some(stale);
        }
    });
    let (mut lost, before) = (0, world.nodes[1].delivered.len());
    // The test drops all datagrams from `b` until the handshake is repeated, because data from `b` would end the
    // handshake.
    let (mut exchanged, mut deaf, there) = (0, 0, world.nodes[1].at);
    for round in 1..=150 * 20 {
        step(&mut world);
        if round % 20 == 0 {
            exchanged += 1;
            exchange(&mut world);
        }
        if lost < 1 {
            let waiting = world.wire.len();
            world.wire.retain(|(_, _, b)| !is_init(b));
            lost += waiting - world.wire.len();
            deaf = if lost > 0 { 12 } else { 0 };
        }
        deaf -= i32::from(deaf > 0);
        while let Some((from, to, bytes)) = world.wire.pop_front() {
            let heard = deaf == 0 || from != there;
            if let Some(node) = world.nodes.iter().position(|n| heard && n.at == to) {
                world.receive(node, from, &bytes);
            }
        }
        assert_eq!(
            world.nodes[1].delivered.len(),
            before + exchanged,
            "after {round} steps"
        );
    }
    assert_eq!(lost, 1);
    let tried = |to| world.seen.iter().filter(|(_, at, b)| *at == to && is_init(b)).count();
    assert!(tried(stale) >= 1, "the configured endpoint was tried");
    let link = world.nodes[0].link("b", world.now).unwrap();
    assert_eq!(link.endpoint, Some(world.nodes[1].at));
    assert!(link.handshake_age.unwrap() < 40.0, "{link:?}");
}

/// Both ends initiate. `a` responds to the initiation of `b`, and then the network drops all datagrams. In boringtun,
/// sending the response has ended the handshake that `a` had initiated, so `a` must initiate again.
#[test]
fn answering_does_not_strand_ones_own_handshake() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    for _ in 0..3 * 20 {
        step(&mut world);
        world.wire.clear();
    }
    assert_eq!(world.state(0, "b"), LinkState::Connecting);
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    let (from, _, init) = world.wire.pop_front().unwrap();
    world.receive(0, from, &init);
    world.wire.clear();
    world.nodes.truncate(1);
    let mut initiations = 0;
    for _ in 0..3 * 20 {
        step(&mut world);
        initiations += world.wire.drain(..).filter(|(_, _, b)| is_init(b)).count();
    }
    assert!(initiations >= 1, "no handshake in three seconds");
}
