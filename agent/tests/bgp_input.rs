//! Malformed input on the agent's session with its own BIRD causes an error that ends the session. Malformed input
//! never causes a panic, and never a route that was not announced. These tests also run under a fuzzer: `cargo bolero
//! test -p tombolo-agent --test bgp_input TARGET`.

use std::panic::AssertUnwindSafe;
use tombolo_agent::bgp::message::{self, Message};
use tombolo_agent::bgp::table::Table;

/// Messages of BIRD 2.0.12, each as type and body: OPEN, KEEPALIVE, routes of both families, End-of-RIB, withdrawals,
/// NOTIFICATION.
const MESSAGES: [&str; 9] = [
    "01 042f2c0000010101012e022c0104000100010104000200010200400a00780001010000020100410400002f2c450800010102000201024600",
    "04",
    "02 0000001b4001010040020602010000fdfd4003047f0707014005040000006400000004100a09",
    "02 0000001f4001010040020a02020000fdfd0000fe4b4003047f07070140050400000064000000041 90a021e00",
    "02 00000000",
    "02 0000003a900e00220002011000000000000000000000000000000001000000000440fd020000000000004001010040020602010000fdfd40050400000064",
    "02 00000006800f03000201",
    "02 0009000000041 90a021e000000",
    "03 0602",
];

fn session() -> Vec<u8> {
    let digit = |c: char| c.to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::new();
    for message in MESSAGES {
        let digits: Vec<u8> = message.chars().filter_map(digit).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect();
        out.extend([0xff; 16]);
        out.extend(u16::try_from(18 + bytes.len()).expect("short").to_be_bytes());
        out.extend(bytes);
    }
    out
}

/// Parses bytes that arrive in pieces of the given size, applies the messages to a table, and checks the table's
/// invariants. Returns the number of parsed messages.
fn receive(bytes: &[u8], piece: usize) -> usize {
    let (mut table, mut received, mut messages) = (Table::default(), Vec::new(), 0);
    'session: for piece in bytes.chunks(piece) {
        received.extend(piece);
        loop {
            let before = received.len();
            match message::parse_next(&mut received) {
                Ok(Some(message)) => {
                    assert!(received.len() + 19 <= before, "a message was parsed and not removed");
                    messages += 1;
                    if let Message::Update(update) = message {
                        table.apply(update);
                    }
                }
                Ok(None) => break,
                Err(_) => break 'session,
            }
        }
        assert!(received.len() < 4096, "more than one message is buffered");
    }
    let routes = table.routes();
    assert!(routes.is_sorted() && routes.iter().all(|r| r.prefix == r.prefix.trunc()));
    table.end_session();
    let prefixes =
        |r: &[tombolo_proto::route::Route]| r.iter().map(|r| r.prefix).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(prefixes(&table.routes()), prefixes(&routes));
    table.remove_stale();
    assert_eq!(table.routes(), []);
    messages
}

#[test]
fn a_valid_session_is_parsed_to_its_end() {
    for piece in [1, 7, 4096] {
        assert_eq!(receive(&session(), piece), MESSAGES.len());
    }
}

#[test]
fn noise() {
    bolero::check!()
        .with_iterations(20_000)
        .with_max_len(4096)
        .for_each(|bytes: &[u8]| {
            receive(bytes, 4096);
        });
}

#[test]
fn a_session_with_changed_bytes() {
    let good = session();
    let check = AssertUnwindSafe(|input: &[u8]| {
        let mut bytes = good.clone();
        for change in input.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
            bytes[at] = change[2];
        }
        receive(&bytes, 100);
    });
    bolero::check!()
        .with_iterations(20_000)
        .with_max_len(60)
        .for_each(|input: &[u8]| (check)(input));
}

/// UPDATEs with a valid header and a random body cause no panic. Because of the valid header, more inputs reach the
/// parser of attributes than with random bytes alone.
#[test]
fn an_update_of_noise() {
    bolero::check!()
        .with_iterations(20_000)
        .with_max_len(512)
        .for_each(|body: &[u8]| {
            let body = &body[..body.len().min(4077)];
            let mut bytes = vec![0xff; 16];
            bytes.extend(u16::try_from(19 + body.len()).expect("short").to_be_bytes());
            bytes.push(2);
            bytes.extend(body);
            receive(&bytes, 4096);
        });
}
