//! Compares the bytes that engines exchange inside links with recorded files. A difference means that agents of two
//! versions no longer understand each other.

use super::in_band::{MAX_PROBE_LEN, MESSAGE_LEN, Message};
use super::table_sync::{MAX_MESSAGE_LEN, TableSync};
use super::{AdvertisementStats, fragment};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tombolo_golden::{every_variant, golden};

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

#[test]
fn messages_inside_links() {
    let messages = [
        ("echo", Message::Echo(0x0102_0304)),
        ("reply", Message::Reply(0x0102_0304)),
        ("arrived", Message::ProbeAck(1400)),
        (
            "part",
            Message::Fragment {
                packet: 0x0102_0304,
                index: 5,
                count: 6,
            },
        ),
        ("routes", Message::Routes),
        ("leaving", Message::Drain),
        ("health", Message::Health),
        ("probe", Message::Probe(1400)),
    ];
    every_variant!(
        Message {
            Echo,
            Reply,
            Probe,
            ProbeAck,
            Fragment,
            Routes,
            Drain,
            Health
        },
        messages.iter().map(|(_, message)| message)
    );
    let mut text = String::new();
    for (name, message) in messages {
        let mut packet = message.encode().to_vec();
        if let Message::Probe(size) = message {
            packet = Message::probe(size, &mut [0; MAX_PROBE_LEN]).to_vec();
            assert_eq!(packet.len(), usize::from(size));
        }
        assert!(Message::is_in_band(&packet));
        assert_eq!(Message::decode(&packet), Some(message), "{name}");
        writeln!(text, "{name} {}", hex(&packet[..MESSAGE_LEN])).unwrap();
    }
    let packet: Vec<u8> = (0..100).collect();
    assert!(fragment::split(&packet, MESSAGE_LEN + 40, 7, |part| {
        writeln!(text, "partOfPacket {}", hex(part)).unwrap();
    }));
    golden!().text("messages_inside_links.txt", &text);
}

/// Records the messages with which one end advertises a table (two messages) and the other end confirms it (one).
#[test]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
fn messages_of_route_advertisements() {
    let now = Instant::now();
    let mut stats = AdvertisementStats::default();
    let (mut sender, mut receiver) = (TableSync::of_routes(), TableSync::of_routes());
    receiver.accept(true);
    let table: Vec<u8> = (0..1200u32).map(|n| (n % 251) as u8).collect();
    sender.advertise(table.clone().into());
    let mut text = String::new();
    let mut sent = Vec::new();
    sender.poll_messages(now, &mut |message| sent.push(message.to_vec()));
    for message in &sent {
        assert!(message.len() <= MAX_MESSAGE_LEN);
        writeln!(text, "table {}", hex(message)).unwrap();
        receiver.receive(message, now, &mut stats);
    }
    assert_eq!(receiver.next_table(now, &mut stats), Some(table));
    let later = now + Duration::from_secs(1);
    receiver.poll_messages(later, &mut |message| writeln!(text, "have {}", hex(message)).unwrap());
    golden!().text("messages_of_route_advertisements.txt", &text);
}
