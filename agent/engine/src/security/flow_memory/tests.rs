use super::*;
use std::time::Duration;

fn packet(client: u32, port: u16) -> PacketInfo {
    PacketInfo {
        source: IpAddr::from((0xc0a8_0000 + client).to_be_bytes()),
        destination: [10, 0, 255, 1].into(),
        ttl: 64,
        protocol: TCP,
        transport: Some(20),
        ports: u32::from(port) << 16 | 80,
        len: 60,
    }
}

fn later(seconds: u64) -> Instant {
    START.with(|start| *start) + Duration::from_secs(seconds)
}

thread_local! {
    #[expect(clippy::disallowed_methods, reason = "the clock is the test's")]
    static START: Instant = Instant::now();
}

fn table(flows: usize) -> FlowMemory<1> {
    FlowMemory::new(flows, 7, later(0))
}

const TIMEOUT: u32 = 240;

#[test]
fn l4_a_choice_is_known_for_both_directions_until_the_flow_was_idle_for_too_long() {
    let table = table(1024);
    let there = packet(1, 1000);
    let back = PacketInfo {
        source: there.destination,
        destination: there.source,
        ports: there.ports.rotate_left(16),
        ..there
    };
    assert_eq!(table.find(&there, Part::Middle, later(0)), None);
    table.note(&there, Part::Middle, [5], TIMEOUT, later(0));
    assert_eq!(table.find(&there, Part::Middle, later(240)), Some([5]));
    assert_eq!(table.find(&back, Part::Middle, later(240)), Some([5]));
    assert_eq!(table.find(&there, Part::Middle, later(241)), None, "idle for too long");
    for other in [
        packet(2, 1000),
        packet(1, 1001),
        PacketInfo { protocol: UDP, ..there },
        PacketInfo {
            destination: [10, 0, 255, 2].into(),
            ..there
        },
    ] {
        assert_eq!(table.find(&other, Part::Middle, later(1)), None, "another flow");
    }
    // Each packet begins the time anew, and a later choice replaces the earlier one.
    table.note(&there, Part::Middle, [6], TIMEOUT, later(200));
    assert_eq!(table.find(&there, Part::Middle, later(440)), Some([6]));
}

#[test]
fn l4_a_syn_begins_a_new_flow_unless_it_is_repeated() {
    let table = table(1024);
    let flow = packet(1, 1000);
    table.note(&flow, Part::Begin, [5], TIMEOUT, later(0));
    assert_eq!(table.find(&flow, Part::Begin, later(60)), Some([5]), "repeated");
    assert_eq!(
        table.find(&flow, Part::Begin, later(61)),
        None,
        "half open for too long"
    );
    table.note(&flow, Part::Middle, [5], TIMEOUT, later(1));
    assert_eq!(table.find(&flow, Part::Begin, later(2)), None, "an established flow");
    assert_eq!(table.find(&flow, Part::Middle, later(240)), Some([5]));
    // The last packets of a flow that ends are for the same back end.
    table.note(&flow, Part::End, [5], TIMEOUT, later(3));
    assert_eq!(table.find(&flow, Part::Middle, later(4)), Some([5]));
}

/// New flows replace first those of which a single packet has come. Flows in use are replaced only by more flows than
/// there is room for, and are counted.
#[test]
fn l4_a_flood_replaces_flows_in_use_last_and_the_size_stays() {
    let table = table(4096);
    let entries = table.words.len();
    let in_use = 0..200;
    for client in in_use.clone() {
        for part in [Part::Begin, Part::Middle] {
            table.note(&packet(client, 1), part, [u64::from(client) + 1], TIMEOUT, later(0));
        }
    }
    for client in 0..100_000 {
        let part = if client % 2 == 0 { Part::Begin } else { Part::Middle };
        table.note(&packet(client % 60_000, 2), part, [9], TIMEOUT, later(1));
    }
    assert_eq!(table.words.len(), entries);
    assert_eq!(table.replaced(), 0);
    for client in in_use.clone() {
        let found = table.find(&packet(client, 1), Part::Middle, later(2));
        assert_eq!(found, Some([u64::from(client) + 1]), "client {client}");
    }
    // A flood of flows that send several packets replaces those that were idle the longest.
    for client in 0..60_000 {
        for _ in 0..2 {
            table.note(&packet(client, 3), Part::Middle, [9], TIMEOUT, later(3));
        }
    }
    assert!(table.replaced() > 50_000, "{}", table.replaced());
    let known = in_use.filter(|client| table.find(&packet(*client, 1), Part::Middle, later(4)).is_some());
    assert_eq!(known.count(), 0);
    // Flows that have ended, or were idle for too long, are replaced without being counted.
    let before = table.replaced();
    for client in 0..60_000 {
        table.note(&packet(client, 4), Part::Middle, [9], TIMEOUT, later(300));
    }
    assert_eq!(table.replaced(), before);
}

/// Whatever several lanes do at the same time, a lane never finds the choice of another flow.
#[test]
fn d33_lanes_never_find_the_choice_of_another_flow() {
    let start = later(0);
    let table = FlowMemory::<4>::new(64, 7, start);
    std::thread::scope(|scope| {
        for lane in 0..4u32 {
            let table = &table;
            scope.spawn(move || {
                for n in 0..100_000u32 {
                    let client = n.wrapping_mul(2_654_435_761) % 200 + lane;
                    let flow = packet(client, 1);
                    let own = [u64::from(client) + 1; 4];
                    if let Some(found) = table.find(&flow, Part::Middle, start) {
                        assert_eq!(found, own);
                    }
                    table.note(&flow, Part::Middle, own, TIMEOUT, start);
                }
            });
        }
    });
    assert!(table.replaced() > 0);
}
