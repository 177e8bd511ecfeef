//! Tests the parser with messages of BIRD 2.0.12, with messages that violate one rule each, and with attributes of
//! hostile neighbours that BIRD forwards.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use proptest::prelude::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

/// Parses one message, and checks that the parser has removed it from the received bytes.
fn one(kind: u8, body: &[u8]) -> Result<Message, Malformed> {
    let mut received = message(kind, body);
    let message = parse_next(&mut received).map(Option::unwrap);
    assert!(message.is_err() || received.is_empty());
    message
}

fn update(hex: &str) -> Result<Update, Malformed> {
    match one(UPDATE, &bytes(hex))? {
        Message::Update(update) => Ok(update),
        other => panic!("{other:?}"),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn an_open_of_bird_is_parsed() {
    let open = bytes(
        "042f2c0000010101012e022c0104000100010104000200010200400a00780001010000020100410400002f2c45080001010200020102 4600",
    );
    let expected = Open {
        asn: 12076,
        four_octets: true,
        sends_paths: vec![Family::V4, Family::V6],
    };
    assert_eq!(one(OPEN, &open), Ok(Message::Open(expected)));
    // The agent's own OPEN says that the agent sends no path identifiers.
    let mut own = super::open(4_200_000_001, Ipv4Addr::new(127, 0, 0, 2));
    let Ok(Some(Message::Open(own))) = parse_next(&mut own) else {
        panic!("not an OPEN")
    };
    assert_eq!(
        (own.asn, own.four_octets, own.sends_paths),
        (4_200_000_001, true, vec![])
    );
}

#[test]
fn updates_of_bird_are_parsed() {
    let v4 =
        update("0000001f4001010040020a02020000fdfd0000fe4b4003047f07070140050400000064 00000004190a021e00").unwrap();
    assert_eq!(v4.reached, [(net("10.2.30.0/25"), 4)]);
    assert_eq!(v4.as_path, [65021, 65099]);
    let v6 = update(
        "0000003a900e00220002011000000000000000000000000000000001000000000440fd020000000000004001010040020602010000fdfd40050400000064",
    )
    .unwrap();
    assert_eq!((v6.reached, v6.as_path), (vec![(net("fd02::/64"), 4)], vec![65021]));
    assert_eq!(update("00000000").unwrap().end_of_rib, Some(Family::V4));
    assert_eq!(update("00000006800f03000201").unwrap().end_of_rib, Some(Family::V6));
    let gone = update("0009 00000004190a021e00 0000").unwrap();
    assert_eq!(
        (gone.withdrawn, gone.end_of_rib),
        (vec![(net("10.2.30.0/25"), 4)], None)
    );
    let gone = update("0000 0014 900f0010 000201 00000004 40 fd02000000000000").unwrap();
    assert_eq!(gone.withdrawn, [(net("fd02::/64"), 4)]);
    // An UPDATE with the default route and a prefix with host bits set. The first copy has three bytes too many.
    let odd = update("0000 000d 400101004002060201 0000fdfd 0000000100 00000001070bffffff").unwrap_err();
    assert_eq!(odd, Malformed("UPDATE"));
    let odd = update("0000 000d 400101004002060201 0000fdfd 0000000100 00000001070b").unwrap();
    assert_eq!(odd.reached, [(net("0.0.0.0/0"), 1), (net("10.0.0.0/7"), 1)]);
}

#[test]
fn a_set_is_read_as_its_members() {
    let set = update("0000 0012 4002 0f 0201 0000fdfd 0102 00000001 00000002 0000000108 0a").unwrap_err();
    assert_eq!(set, Malformed("UPDATE"));
    let set = update("0000 0013 4002 10 0201 0000fdfd 0102 00000001 00000002 00000001080a").unwrap();
    assert_eq!(set.as_path, [65021, 1, 2]);
}

#[test]
fn messages_come_in_pieces_and_together() {
    let mut all = keepalive();
    all.extend(end_of_rib());
    let mut received = Vec::new();
    let mut messages = Vec::new();
    for byte in all {
        received.push(byte);
        messages.extend(parse_next(&mut received).unwrap());
    }
    let ends = |f| {
        Message::Update(Update {
            end_of_rib: Some(f),
            ..Update::default()
        })
    };
    assert_eq!(messages, [Message::Keepalive, ends(Family::V4), ends(Family::V6)]);
}

#[test]
fn inconsistent_lengths_are_refused() {
    for (bad, why) in [
        ("0001", "withdrawn routes beyond the end"),
        ("0000 0001", "attributes beyond the end"),
        ("0000 0004 40010500", "an attribute beyond the attributes"),
        ("0000 0005 4002030202", "a path shorter than its count"),
        ("0000 0000 00000001 21 0a000000 00", "a prefix of 33 bits"),
        ("0000 0000 00000001 08 0a", "a route without a path"),
        ("0000 0004 800e0100", "half a family"),
    ] {
        assert!(update(bad).is_err(), "{why}");
    }
    for (kind, body, why) in [
        (OPEN, "03fdfd0000010101 0100", "version 3"),
        (OPEN, "04fdfd000001010101 05", "parameters beyond the end"),
        (KEEPALIVE, "00", "a KEEPALIVE with a body"),
        (NOTIFICATION, "06", "half a NOTIFICATION"),
        (9, "", "an unknown type"),
    ] {
        assert!(one(kind, &bytes(body)).is_err(), "{why}");
    }
    for header in ["fe", "ff"] {
        let mut short = bytes(&(header.to_owned() + &"ff".repeat(15) + "001204"));
        assert_eq!(parse_next(&mut short), Err(Malformed("header")), "{header}");
    }
    let mut long = bytes(&("ff".repeat(16) + "100102"));
    assert_eq!(parse_next(&mut long), Err(Malformed("header")));
}

/// D17: the parser skips all attributes except three, whatever they contain, because BIRD forwards attributes that it
/// does not know.
#[test]
fn foreign_attributes_change_nothing() {
    for code in (0..=255_u8).filter(|c| ![AS_PATH, MP_REACH, MP_UNREACH].contains(c)) {
        for value in ["", "ff", "0102030405060708", "00ff00ff00ff00ff00ff00ff"] {
            let value = bytes(value);
            let mut attributes = vec![0xc0, code, u8::try_from(value.len()).unwrap()];
            attributes.extend(&value);
            attributes.extend(bytes("4002060201 0000fdfd"));
            let mut body = vec![0, 0, 0, u8::try_from(attributes.len()).unwrap()];
            body.extend(attributes);
            body.extend(bytes("00000007 18 0a0102"));
            let Ok(Message::Update(update)) = one(UPDATE, &body) else {
                panic!("attribute {code} of {value:?}")
            };
            assert_eq!(update.reached, [(net("10.1.2.0/24"), 7)]);
            assert_eq!(update.as_path, [65021]);
        }
    }
}

fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0..=32_u8).prop_map(|(a, l)| Ipv4Net::new(a.into(), l).unwrap().trunc().into()),
        (any::<u128>(), 0..=128_u8).prop_map(|(a, l)| Ipv6Net::new(a.into(), l).unwrap().trunc().into()),
    ]
}

fn written(paths: &[Path], v6: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (net, identifier) in paths.iter().filter(|(n, _)| n.addr().is_ipv6() == v6) {
        let length = net.prefix_len();
        let octets = match net.addr() {
            std::net::IpAddr::V4(a) => a.octets().to_vec(),
            std::net::IpAddr::V6(a) => a.octets().to_vec(),
        };
        out.extend(identifier.to_be_bytes());
        out.push(length);
        out.extend(&octets[..usize::from(length).div_ceil(8)]);
    }
    out
}

fn attribute(code: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[0xd0, code], &length[..], value].concat()
}

proptest! {
    /// An UPDATE is encoded and parsed again, with foreign attributes around the known ones.
    #[test]
    fn updates_are_read_as_they_were_written(
        withdrawn in prop::collection::vec((any_net(), any::<u32>()), 0..20),
        reached in prop::collection::vec((any_net(), any::<u32>()), 1..20),
        path in prop::collection::vec(any::<u32>(), 0..255),
        foreign in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let mut attributes: Vec<Vec<u8>> = foreign
            .iter()
            .filter(|(code, _)| ![AS_PATH, MP_REACH, MP_UNREACH].contains(code))
            .map(|(code, value)| attribute(*code, value))
            .collect();
        let sequence: Vec<u8> = std::iter::once(2)
            .chain([u8::try_from(path.len()).unwrap()])
            .chain(path.iter().flat_map(|a| a.to_be_bytes()))
            .collect();
        attributes.push(attribute(AS_PATH, &sequence));
        let next_hop = [&[0, 2, 1, 16][..], &[0; 16], &[0]].concat();
        attributes.insert(0, attribute(MP_REACH, &[next_hop, written(&reached, true)].concat()));
        let at = attributes.len() / 2;
        attributes.insert(at, attribute(MP_UNREACH, &[&[0, 2, 1][..], &written(&withdrawn, true)].concat()));
        let counted = |b: Vec<u8>| [&u16::try_from(b.len()).unwrap().to_be_bytes()[..], &b].concat();
        let body = [counted(written(&withdrawn, false)), counted(attributes.concat()), written(&reached, false)].concat();
        let Ok(Message::Update(update)) = one(UPDATE, &body) else {
            return Err(TestCaseError::fail("not parsed"));
        };
        let ordered = |paths: &[Path]| -> Vec<Path> {
            let mut paths = paths.to_vec();
            paths.sort_unstable();
            paths
        };
        prop_assert_eq!(ordered(&update.reached), ordered(&reached));
        prop_assert_eq!(ordered(&update.withdrawn), ordered(&withdrawn));
        prop_assert_eq!((update.as_path, update.end_of_rib), (path, None));
    }
}
