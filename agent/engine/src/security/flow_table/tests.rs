use super::*;
use crate::packet::TCP;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const IDLE: u32 = 240;
const NO_FLAGS: TcpFlags = TcpFlags {
    syn: false,
    fin: false,
    rst: false,
};

fn key(n: u32, protocol: u8) -> FlowKey {
    FlowKey {
        nic: 0,
        direction: Direction::Outbound,
        protocol,
        source: IpAddr::from((0x0a00_0000 + (n >> 8)).to_be_bytes()),
        destination: IpAddr::from([10, 1, 0, 4]),
        ports: (u16::try_from(n & 0xff).unwrap() + 40_000, 443),
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

fn table() -> FlowTable {
    FlowTable::new(1024, 4, 7)
}

#[test]
fn n6_one_entry_serves_both_directions() {
    let table = table();
    let key = key(1, 6);
    assert_eq!(table.find(&key, 0), None);
    table.insert(&key, 0, IDLE, 0).unwrap();
    let there = table.find(&key, 1).unwrap();
    let back = table.find(&reply(key), 1).unwrap();
    assert!(there.forward && !back.forward);
    assert_eq!(there.status, FlowStatus::Unanswered);
    table.touch(&back, NO_FLAGS, 1);
    assert_eq!(table.find(&key, 2).unwrap().status, FlowStatus::Established);
    assert_eq!((table.len(), table.unanswered()), (1, 0));
}

#[test]
fn n6_the_same_addresses_and_ports_at_another_nic_or_protocol_are_another_flow() {
    let table = table();
    table.insert(&key(1, 6), 0, IDLE, 0).unwrap();
    assert_eq!(table.find(&key(1, 17), 0), None);
    assert_eq!(table.find(&FlowKey { nic: 1, ..key(1, 6) }, 0), None);
    assert_eq!(
        table.find(
            &FlowKey {
                ports: (443, 40_001),
                ..key(1, 6)
            },
            0
        ),
        None
    );
}

#[test]
fn d25_a_forwarded_packet_is_one_flow_when_it_comes_and_another_when_it_leaves() {
    let table = table();
    let comes = FlowKey {
        direction: Direction::Inbound,
        ..key(1, 6)
    };
    let leaves = key(1, 6);
    table.insert(&comes, 0, IDLE, 0).unwrap();
    assert_eq!(table.find(&leaves, 0), None);
    table.insert(&leaves, FROM_HOST, IDLE, 0).unwrap();
    // The reply is a reply of the outbound flow when it comes in, and a reply of the inbound flow when it leaves.
    for k in [reply(comes), reply(leaves)] {
        assert!(!table.find(&k, 0).unwrap().forward);
    }
    assert_eq!(table.len(), 2);
}

#[test]
fn a_flow_is_named_as_it_began() {
    for k in [key(1, 6), reply(key(1, 6))] {
        let table = table();
        table.insert(&k, 0, IDLE, 0).unwrap();
        let mut seen = Vec::new();
        table.judge_again_where(0..table.entries(), |found| {
            seen.push(*found);
            false
        });
        assert_eq!(seen, [k]);
    }
}

#[test]
fn n6_an_ipv6_flow_is_not_the_ipv4_flow_of_the_same_bits() {
    let table = table();
    let v4 = FlowKey {
        source: IpAddr::from([0, 0, 0, 1]),
        destination: IpAddr::from([0, 0, 0, 2]),
        ..key(1, 17)
    };
    let v6 = FlowKey {
        source: IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
        destination: IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 2]),
        ..v4
    };
    table.insert(&v4, 0, IDLE, 0).unwrap();
    assert!(table.find(&v4, 0).is_some());
    assert_eq!(table.find(&v6, 0), None);
}

#[test]
fn d31_silence_ends_a_flow_after_the_timeout_of_its_status() {
    let table = table();
    let (half_open, datagrams, open, closed) = (key(1, 6), key(2, 17), key(3, 6), key(4, 6));
    for k in [half_open, datagrams, open, closed] {
        table.insert(&k, 0, IDLE, 100).unwrap();
    }
    for k in [open, closed] {
        table.touch(&table.find(&reply(k), 100).unwrap(), NO_FLAGS, 100);
    }
    table.touch(
        &table.find(&closed, 100).unwrap(),
        TcpFlags { rst: true, ..NO_FLAGS },
        100,
    );
    let alive = |now| [half_open, datagrams, open, closed].map(|k| table.find(&k, now).is_some());
    assert_eq!(alive(110), [true, true, true, true]);
    assert_eq!(alive(111), [true, true, true, false]);
    assert_eq!(alive(160), [true, true, true, false]);
    assert_eq!(alive(161), [false, true, true, false]);
    assert_eq!(alive(340), [false, true, true, false]);
    assert_eq!(alive(341), [false, false, false, false]);
    assert_eq!(table.len(), 4);
    assert_eq!(table.sweep(0, table.entries(), 341), 0);
    assert_eq!((table.len(), table.unanswered()), (0, 0));
}

#[test]
fn d31_d32_an_answered_syn_is_no_established_connection_until_the_handshake_is_complete() {
    let table = table();
    let k = key(1, TCP);
    table.insert(&k, 0, 240, 0).unwrap();
    let syn = TcpFlags { syn: true, ..NO_FLAGS };
    table.touch(&table.find(&reply(k), 0).unwrap(), syn, 0);
    assert_eq!(
        table.find(&k, 0).unwrap().status,
        FlowStatus::Unanswered,
        "the address may be forged"
    );
    assert_eq!(table.unanswered(), 1);
    table.touch(&table.find(&k, 0).unwrap(), syn, 0);
    assert_eq!(
        table.find(&k, 0).unwrap().status,
        FlowStatus::Unanswered,
        "the SYN again"
    );
    table.touch(&table.find(&k, 0).unwrap(), NO_FLAGS, 0);
    assert_eq!(table.find(&k, 0).unwrap().status, FlowStatus::Established);
    assert_eq!(table.unanswered(), 0);
}

#[test]
fn d31_tcp_closes_when_both_ends_have_sent_fin() {
    let table = table();
    let key = key(1, 6);
    let fin = TcpFlags { fin: true, ..NO_FLAGS };
    table.insert(&key, 0, IDLE, 0).unwrap();
    table.touch(&table.find(&reply(key), 0).unwrap(), NO_FLAGS, 0);
    table.touch(&table.find(&key, 0).unwrap(), fin, 0);
    table.touch(&table.find(&key, 0).unwrap(), fin, 0);
    assert_eq!(table.find(&key, 0).unwrap().status, FlowStatus::Established);
    table.touch(&table.find(&reply(key), 0).unwrap(), fin, 0);
    assert_eq!(table.find(&key, 0).unwrap().status, FlowStatus::Closing);
}

#[test]
fn a_flow_that_was_removed_is_not_revived_by_a_late_packet() {
    let table = table();
    let key = key(1, 6);
    let flow = table.insert(&key, 0, IDLE, 0).unwrap();
    assert_eq!(table.sweep(0, table.entries(), 61), 0);
    table.touch(&flow, NO_FLAGS, 61);
    table.deny(&flow, 61);
    assert_eq!(table.find(&key, 61), None);
    assert_eq!((table.len(), table.unanswered()), (0, 0));
}

#[test]
fn d32_flows_without_a_reply_use_a_quarter_of_the_table_and_one_link_half_of_that() {
    let table = table();
    for n in 0..2000 {
        let _ = table.insert(&key(n, 17), 1, IDLE, n);
    }
    assert!((120..=128).contains(&table.unanswered()), "{}", table.unanswered());
    for n in 2000..4000 {
        let _ = table.insert(&key(n, 17), 2, IDLE, n);
    }
    assert!((240..=256).contains(&table.unanswered()), "{}", table.unanswered());
    // The share of the whole table is used up now. So flows over a third link can only take the entries of other flows
    // without a reply.
    let before = table.unanswered();
    let added = (4000..4100)
        .filter(|n| table.insert(&key(*n, 17), 3, IDLE, *n).is_ok())
        .count();
    assert!(added > 50, "{added}");
    assert_eq!(table.unanswered(), before);
}

#[test]
fn d32_a_flood_of_new_flows_removes_no_established_flow() {
    let table = table();
    let established: Vec<FlowKey> = (0..500).map(|n| key(n, 6)).collect();
    for k in &established {
        table.insert(k, 0, IDLE, 0).unwrap();
        table.touch(&table.find(&reply(*k), 0).unwrap(), NO_FLAGS, 0);
    }
    for n in 1000..50_000 {
        let _ = table.insert(&key(n, 6), 1, IDLE, 1);
    }
    assert!(established.iter().all(|k| table.find(k, 1).is_some()));
    assert_eq!(table.evictions().established.load(Ordering::Relaxed), 0);
    assert!(table.evictions().unanswered.load(Ordering::Relaxed) > 30_000);
}

#[test]
fn d32_in_a_full_table_the_flow_that_was_idle_the_longest_goes() {
    let table = table();
    for n in 0..4096 {
        let k = key(n, 6);
        if table.insert(&k, 0, 10_000, n).is_ok() {
            table.touch(&table.find(&reply(k), n).unwrap(), NO_FLAGS, n);
        }
    }
    assert!(table.len() >= table.capacity());
    let newest = (3600..4096).filter(|n| table.find(&key(*n, 6), 4096).is_some()).count();
    assert_eq!(newest, 496, "the newest half is there");
    assert!(
        (0..1024).all(|n| table.find(&key(n, 6), 4096).is_none()),
        "the oldest quarter is not"
    );
}

#[test]
fn d30_a_table_takes_its_capacity_at_less_than_96_bytes_a_flow() {
    let table = FlowTable::new(60_000, 0, 3);
    for n in 0..60_000 {
        let k = key(n, 6);
        table.insert(&k, FROM_HOST, IDLE, 0).unwrap();
        table.touch(&table.find(&reply(k), 0).unwrap(), NO_FLAGS, 0);
    }
    let lost = (0..60_000).filter(|n| table.find(&key(*n, 6), 0).is_none()).count();
    assert!(
        lost <= 60,
        "{lost} of 60,000 flows were evicted before the table was full"
    );
    let bytes = table.entries() * (size_of::<AtomicU64>() * (1 + BODY));
    assert!(bytes / table.capacity() <= 96);
}

#[test]
fn lanes_that_use_one_table_at_once_never_see_another_flow_than_they_ask_for() {
    let table = FlowTable::new(1024, 4, 11);
    std::thread::scope(|scope| {
        for lane in 0..4u32 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..30_000u32 {
                    // There are far more flows than entries, so lanes take each other's entries all the time.
                    let k = key((round * 7 + lane * 13) % 3000, 6);
                    if let Some(flow) = table.find(&k, round / 100) {
                        table.touch(
                            &flow,
                            TcpFlags {
                                syn: round % 7 == 0,
                                fin: round % 3 == 0,
                                rst: round % 50 == 0,
                            },
                            round / 100,
                        );
                        if let Some(back) = table.find(&reply(k), round / 100) {
                            table.touch(&back, NO_FLAGS, round / 100);
                        }
                    } else {
                        let _ = table.insert(&k, lane, IDLE, round / 100);
                    }
                    table.sweep((round as usize * 64) % table.entries(), 8, round / 100);
                }
            });
        }
    });
    // Every counter agrees with the entries in the table.
    let headers: Vec<u64> = (0..table.entries())
        .map(|slot| table.header(slot).load(Ordering::Relaxed))
        .collect();
    let statuses: Vec<FlowStatus> = headers.iter().filter_map(|header| status_of(*header)).collect();
    assert_eq!(table.len(), statuses.len());
    let unanswered = statuses.iter().filter(|s| **s == FlowStatus::Unanswered).count();
    assert_eq!(table.unanswered(), unanswered);
    let of_links: u32 = table.per_link.iter().map(|c| c.load(Ordering::Relaxed)).sum();
    assert_eq!(of_links as usize, unanswered);
    assert!(headers.iter().all(|header| header & STATUS != BUSY));
}

#[derive(Debug, Clone)]
enum Step {
    Packet {
        flow: u32,
        backward: bool,
        fin: bool,
        rst: bool,
    },
    Insert {
        flow: u32,
    },
    Wait {
        seconds: u32,
    },
    Sweep,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..20, any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1))
            .prop_map(|(flow, backward, fin, rst)| Step::Packet { flow, backward, fin, rst }),
        4 => (0u32..20).prop_map(|flow| Step::Insert { flow }),
        1 => (1u32..100).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Sweep),
    ]
}

/// A flow in the model, which is a plain map.
struct Flow {
    status: FlowStatus,
    last_seen: u32,
    fins: [bool; 2],
}

proptest! {
    #[test]
    fn d31_the_table_agrees_with_a_plain_map(steps in vec(steps(), 1..200)) {
        let table = table();
        let mut model: BTreeMap<u32, Flow> = BTreeMap::new();
        let mut now = 0;
        for step in steps {
            model.retain(|_, flow| now - flow.last_seen <= match flow.status {
                FlowStatus::Unanswered => 60,
                FlowStatus::Closing => 10,
                FlowStatus::Established => IDLE,
            });
            match step {
                Step::Wait { seconds } => now += seconds,
                Step::Sweep => {
                    table.sweep(0, table.entries(), now);
                    prop_assert_eq!(table.len(), model.len());
                }
                Step::Insert { flow } => {
                    prop_assert!(table.insert(&key(flow, 6), 0, IDLE, now).is_ok());
                    model.insert(flow, Flow { status: FlowStatus::Unanswered, last_seen: now, fins: [false; 2] });
                }
                Step::Packet { flow, backward, fin, rst } => {
                    let k = if backward { reply(key(flow, 6)) } else { key(flow, 6) };
                    let found = table.find(&k, now);
                    let expected = model.get_mut(&flow);
                    prop_assert_eq!(found.map(|f| (f.status, f.forward)), expected.as_ref().map(|f| (f.status, !backward)));
                    let (Some(found), Some(expected)) = (found, expected) else { continue };
                    table.touch(&found, TcpFlags { fin, rst, ..NO_FLAGS }, now);
                    expected.last_seen = now;
                    expected.fins[usize::from(backward)] |= fin;
                    if rst || expected.fins == [true, true] {
                        expected.status = FlowStatus::Closing;
                    } else if backward && expected.status == FlowStatus::Unanswered {
                        expected.status = FlowStatus::Established;
                    }
                }
            }
        }
    }
}

/// X16: several lanes that add flows at the same time exceed the limit by none. Another NIC is not concerned.
#[test]
fn x16_lanes_share_the_limit_of_a_nic() {
    let table = FlowTable::new(100_000, 4, 7);
    assert_eq!(table.of_nics.most(), 500_000, "Azure's limit");
    table.limit_flows_of_nics(1000);
    let added: usize = std::thread::scope(|scope| {
        let table = &table;
        let lane = |lane: u32| {
            scope.spawn(move || {
                let keys = (0..1000).map(|n| key(lane * 1000 + n, 6));
                let results = keys.map(|key| table.insert(&key, lane, IDLE, 0));
                results.filter(Result::is_ok).count()
            })
        };
        let lanes: Vec<_> = (0..4).map(lane).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
    });
    assert_eq!((added, table.flows_of_nic(0), table.len()), (1000, 1000, 1000));
    assert_eq!(table.insert(&key(5000, 6), 0, IDLE, 0), Err(Full::Nic));
    let other = FlowKey { nic: 1, ..key(5000, 6) };
    table.insert(&other, 0, IDLE, 0).unwrap();
    assert_eq!((table.flows_of_nic(0), table.flows_of_nic(1)), (1000, 1));
    // A known flow is replaced, not added.
    let known = (0..4000).map(|n| key(n, 6)).find(|key| table.find(key, 0).is_some());
    table.insert(&known.unwrap(), 0, IDLE, 0).unwrap();
    assert_eq!(table.flows_of_nic(0), 1000);
}

/// X16: at the limit, a flow that is over makes room before the table is swept, if it is in a bucket of the new flow. The
/// counts are those of the table's entries after any number of changes.
#[test]
fn x16_counts_follow_the_table() {
    let table = table();
    table.limit_flows_of_nics(300);
    let mut full = 0;
    for n in 0..3000 {
        let key = FlowKey {
            nic: u8::try_from(n % 3).unwrap(),
            ..key(n, 6)
        };
        if let Ok(flow) = table.insert(&key, n % 4, IDLE, n) {
            table.touch(&flow.against(), NO_FLAGS, n);
        } else {
            full += 1;
        }
        if n % 500 == 499 {
            table.sweep(0, table.entries(), n);
        }
    }
    let mut counts = [0; 3];
    for slot in 0..table.entries() {
        let header = table.header(slot).load(Ordering::Acquire);
        if status_of(header).is_some() {
            counts[usize::from(key_of(header, &table.body(slot)).nic)] += 1;
        }
    }
    assert_eq!([0, 1, 2].map(|nic| table.flows_of_nic(nic)), counts);
    assert_eq!(counts.iter().sum::<usize>(), table.len());

    table.limit_flows_of_nics(u32::try_from(counts[0]).unwrap());
    // All flows are over, and none was removed.
    let late = 3000 + 10 * IDLE;
    let added = (0..200).filter(|n| table.insert(&key(10_000 + n, 6), 0, IDLE, late).is_ok());
    assert!(added.count() > 100, "{full} refused before");
    assert!(table.flows_of_nic(0) <= counts[0]);
}
