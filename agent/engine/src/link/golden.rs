//! What engines write to each other inside links, byte by byte, as a recorded file.

use super::control::{LEN, LONGEST_PROBE, Message};
use super::exchange::{Exchange, LONGEST_MESSAGE};
use super::{AdvertisementStats, parts};
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
        ("arrived", Message::Arrived(1400)),
        (
            "part",
            Message::Part {
                packet: 0x0102_0304,
                index: 5,
                count: 6,
            },
        ),
        ("routes", Message::Routes),
        ("leaving", Message::Leaving),
        ("probe", Message::Probe(1400)),
    ];
    every_variant!(
        Message {
            Echo,
            Reply,
            Probe,
            Arrived,
            Part,
            Routes,
            Leaving
        },
        messages.iter().map(|(_, message)| message)
    );
    let mut text = String::new();
    for (name, message) in messages {
        let mut packet = message.encode().to_vec();
        if let Message::Probe(size) = message {
            packet = Message::probe(size, &mut [0; LONGEST_PROBE]).to_vec();
            assert_eq!(packet.len(), usize::from(size));
        }
        assert!(Message::is_one(&packet));
        assert_eq!(Message::decode(&packet), Some(message), "{name}");
        writeln!(text, "{name} {}", hex(&packet[..LEN])).unwrap();
    }
    let packet: Vec<u8> = (0..100).collect();
    assert!(parts::split(&packet, LEN + 40, 7, |part| {
        writeln!(text, "partOfPacket {}", hex(part)).unwrap();
    }));
    golden!().text("messages_inside_links.txt", &text);
}

/// One end advertises a table of two messages, the other confirms it.
#[test]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
fn messages_of_route_advertisements() {
    let now = Instant::now();
    let mut stats = AdvertisementStats::default();
    let (mut sender, mut receiver) = (Exchange::default(), Exchange::default());
    receiver.accept(true);
    let table: Vec<u8> = (0..1200u32).map(|n| (n % 251) as u8).collect();
    sender.tell(table.clone().into());
    let mut text = String::new();
    let mut sent = Vec::new();
    sender.messages(now, &mut |message| sent.push(message.to_vec()));
    for message in &sent {
        assert!(message.len() <= LONGEST_MESSAGE);
        writeln!(text, "table {}", hex(message)).unwrap();
        receiver.take(message, now, &mut stats);
    }
    assert_eq!(receiver.due(now, &mut stats), Some(table));
    let later = now + Duration::from_secs(1);
    receiver.messages(later, &mut |message| writeln!(text, "have {}", hex(message)).unwrap());
    golden!().text("messages_of_route_advertisements.txt", &text);
}
