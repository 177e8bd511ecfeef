use super::*;
use crate::packet::{TCP, UDP};
use crate::security::{FROM_HOST, FlowStatus, TcpFlags};
use proptest::collection::vec;
use proptest::prelude::*;

const NO_FLAGS: TcpFlags = TcpFlags {
    syn: false,
    fin: false,
    rst: false,
};

fn at(seconds: u64) -> BootTime {
    BootTime {
        boot: *b"the boot's id...",
        since_boot: Duration::from_secs(1000 + seconds),
    }
}

fn key(port: u16, protocol: u8) -> FlowKey {
    FlowKey {
        nic: 0,
        direction: Direction::Inbound,
        protocol,
        source: [10, 9, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        ports: (port, 443),
    }
}

fn reply(key: FlowKey) -> FlowKey {
    FlowKey {
        direction: key.direction.opposite(),
        source: key.destination,
        destination: key.source,
        ports: (key.ports.1, key.ports.0),
        ..key
    }
}

fn v6(direction: Direction) -> FlowKey {
    FlowKey {
        direction,
        source: [0xfd00u16, 0, 0, 0, 0, 0, 0, 1].into(),
        destination: [0u16, 0, 0, 0, 0, 0, 0, 2].into(),
        ..key(7, UDP)
    }
}

/// A table with an established connection, a half-open one, one with a FIN of one end, a closing one, a flow that the
/// rules must decide about again, and flows of UDP over both versions of IP. The last packet of each came at 500.
fn filled() -> FlowTable {
    let table = FlowTable::new(1024, 4, 7);
    let [established, half_open, half_closed, closing, again] = [1, 2, 3, 4, 5].map(|port| key(port, TCP));
    for k in [
        established,
        half_open,
        half_closed,
        closing,
        again,
        key(6, UDP),
        v6(Direction::Inbound),
        v6(Direction::Outbound),
    ] {
        table.insert(&k, 2, 240, 400).unwrap();
    }
    for k in [established, half_closed, closing, again] {
        table.touch(&table.find(&reply(k), 400).unwrap(), NO_FLAGS, 400);
    }
    for slot in [
        established,
        half_open,
        half_closed,
        closing,
        again,
        key(6, UDP),
        v6(Direction::Inbound),
        v6(Direction::Outbound),
    ] {
        let flags = TcpFlags {
            fin: slot == half_closed,
            rst: slot == closing,
            syn: slot == half_open,
        };
        table.touch(&table.find(&slot, 440).unwrap(), flags, 440);
    }
    table.deny(&table.find(&again, 440).unwrap(), 440);
    table
}

#[test]
fn d34_a_loaded_flow_has_the_status_direction_and_age_of_the_saved_one() {
    let bytes = filled().save(&at(0), 445);
    assert_eq!(bytes.len(), HEADER + 8 * FLOW);
    let table = FlowTable::new(1024, 4, 99);
    assert_eq!(table.load(&bytes, &at(5), 10_000), Ok(8));
    let status = |port| {
        table
            .find(&key(port, TCP), 10_000)
            .map(|flow| (flow.status, flow.forward, flow.judge_again))
    };
    assert_eq!(status(1), Some((FlowStatus::Established, true, false)));
    assert_eq!(status(2), Some((FlowStatus::Unanswered, true, false)));
    assert_eq!(status(3), Some((FlowStatus::Established, true, false)));
    assert_eq!(status(4), Some((FlowStatus::Closing, true, false)));
    assert_eq!(status(5), Some((FlowStatus::Established, true, true)));
    assert!(!table.find(&reply(key(1, TCP)), 10_000).unwrap().forward);
    for direction in [Direction::Inbound, Direction::Outbound] {
        assert!(table.find(&v6(direction), 10_000).unwrap().forward, "{direction:?}");
    }
    assert_eq!((table.len(), table.unanswered()), (8, 4));
    // The other end's FIN closes a connection of which one end had sent FIN before.
    let fin = TcpFlags { fin: true, ..NO_FLAGS };
    table.touch(&table.find(&reply(key(3, TCP)), 10_000).unwrap(), fin, 10_000);
    assert_eq!(table.find(&key(3, TCP), 10_000).unwrap().status, FlowStatus::Closing);
    // The flows were idle for 5 s before they were saved and for 5 s afterwards.
    assert!(table.find(&key(4, TCP), 10_000).is_some() && table.find(&key(4, TCP), 10_001).is_none());
    assert!(table.find(&key(2, TCP), 10_050).is_some() && table.find(&key(2, TCP), 10_051).is_none());
    assert!(table.find(&key(1, TCP), 10_230).is_some() && table.find(&key(1, TCP), 10_231).is_none());
    table.sweep(0, table.entries(), 20_000);
    assert_eq!(
        (table.len(), table.unanswered()),
        (0, 0),
        "the counters agree with the entries"
    );
}

#[test]
fn d34_what_is_over_is_neither_saved_nor_loaded() {
    let table = filled();
    // At 455, the closing connection has ended.
    let bytes = table.save(&at(0), 455);
    assert_eq!(bytes.len(), HEADER + 7 * FLOW);
    // 50 s later, the half-open connection has ended too.
    let next = FlowTable::new(1024, 4, 1);
    assert_eq!(next.load(&bytes, &at(50), 10_000), Ok(6));
    assert!(next.find(&key(2, TCP), 10_000).is_none());
    assert_eq!(next.load(&bytes, &at(50), 10_000), Ok(0), "the table has them all");
}

#[test]
fn d34_flows_of_another_boot_time_or_format_are_discarded() {
    let bytes = filled().save(&at(0), 445);
    let table = FlowTable::new(1024, 4, 1);
    let load = |bytes: &[u8], at: &BootTime| table.load(bytes, at, 10_000);
    assert_eq!(load(&bytes, &at(61)), Err(Unusable::TooOld(61)));
    let early = BootTime {
        since_boot: Duration::from_secs(999),
        ..at(0)
    };
    assert_eq!(load(&bytes, &early), Err(Unusable::InTheFuture));
    assert_eq!(
        load(&bytes, &BootTime { boot: [0; 16], ..at(0) }),
        Err(Unusable::OtherBoot)
    );
    let mut other = bytes.clone();
    // The version before had another meaning of the choices.
    other[8] = 2;
    assert_eq!(load(&other, &at(0)), Err(Unusable::Format(2)));
    let mut other = bytes.clone();
    other[0] = b'x';
    assert_eq!(load(&other, &at(0)), Err(Unusable::Malformed(0)));
    for len in 0..bytes.len() {
        assert_eq!(load(&bytes[..len], &at(0)), Err(Unusable::Malformed(len)));
    }
    let mut longer = bytes.clone();
    longer.extend([0; FLOW]);
    assert_eq!(load(&longer, &at(0)), Err(Unusable::Malformed(longer.len())));
    // One malformed flow, and none is used.
    for (place, value, what) in [
        (0, 1, "an IPv4 address of more than four octets"),
        (37, STATUS_BITS, "an unknown status"),
        (38, 8, "a NIC that no machine has"),
        (39, 1, "a byte that must be zero"),
        (43, 1, "more time without packets than since the first one"),
        (51, 1, "an idle timeout of months"),
    ] {
        let mut bad = bytes.clone();
        let flow = HEADER + 2 * FLOW;
        let is_v6 = bad[flow + 37] & IPV6 != 0;
        if place == 0 && is_v6 {
            continue;
        }
        bad[flow + place] = value;
        assert_eq!(load(&bad, &at(0)), Err(Unusable::Malformed(flow)), "{what}");
    }
    assert!(table.is_empty());
}

#[test]
fn d34_a_full_table_is_saved_and_loaded_and_one_of_a_larger_table_is_refused() {
    let large = FlowTable::new(8192, 1, 7);
    for port in 0..2000 {
        large.insert(&key(port, TCP), FROM_HOST, 240, 400).unwrap();
        large.touch(&large.find(&reply(key(port, TCP)), 400).unwrap(), NO_FLAGS, 400);
    }
    let bytes = large.save(&at(0), 400);
    let small = FlowTable::new(1024, 1, 7);
    let refused = Unusable::TooMany {
        flows: 2000,
        entries: small.entries(),
    };
    assert_eq!(small.load(&bytes, &at(0), 400), Err(refused));
    assert!(bytes.len() > FlowTable::longest_saved(1024));

    // A full table has more flows than its capacity.
    let full = FlowTable::new(1024, 1, 7);
    for port in 0..5000 {
        if full.insert(&key(port, TCP), FROM_HOST, 240, 400).is_ok() {
            full.touch(&full.find(&reply(key(port, TCP)), 400).unwrap(), NO_FLAGS, 400);
        }
    }
    assert!(full.len() > full.capacity());
    let bytes = full.save(&at(0), 400);
    assert!(bytes.len() <= FlowTable::longest_saved(1024));
    let loaded = FlowTable::new(1024, 1, 9).load(&bytes, &at(0), 400).unwrap();
    assert!(
        loaded > 1000,
        "{loaded} of {}: as many as find an empty entry",
        full.len()
    );
}

proptest! {
    /// Any bytes are refused or loaded. What was loaded is within the table's capacity, and is saved as it was loaded.
    #[test]
    fn d34_any_bytes_are_refused_or_loaded(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in 0usize..3,
        noise in vec(any::<u8>(), 0..200),
    ) {
        let table = FlowTable::new(1024, 4, 1);
        prop_assert!(table.load(&noise, &at(0), 10_000).is_err());
        let mut bytes = filled().save(&at(0), 445);
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(bytes.len() - cut);
        let loaded = table.load(&bytes, &at(0), 10_000).unwrap_or(0);
        prop_assert_eq!(table.len(), loaded);
        let again = FlowTable::new(1024, 4, 2);
        prop_assert_eq!(again.load(&table.save(&at(0), 10_000), &at(0), 10_000), Ok(loaded));
        prop_assert_eq!(again.unanswered(), table.unanswered());
    }
}
