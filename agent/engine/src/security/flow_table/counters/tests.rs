use super::*;
use crate::security::flow_table::FROM_HOST;
use tombolo_proto::config::Direction;

const IDLE: u32 = 240;

fn key(port: u16) -> FlowKey {
    FlowKey {
        nic: 0,
        direction: Direction::Outbound,
        protocol: 17,
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        ports: (port, 53),
    }
}

fn table() -> FlowTable {
    let table = FlowTable::new(1024, 1, 7);
    table.keep_counters();
    table
}

fn insert(table: &FlowTable, port: u16, tag: u32, now: u32) -> (FlowRef, Vec<FlowReport>) {
    let mut reports = Vec::new();
    let report = &mut |r: &FlowReport| reports.push(*r);
    let flow = table.insert_counted(&key(port), (FROM_HOST, IDLE), now, (0, tag), report);
    (flow.unwrap(), reports)
}

fn counted(packets: u32, bytes: u32) -> Counted {
    Counted { packets, bytes }
}

#[test]
fn n14_packets_count_in_their_direction_until_the_record() {
    let table = table();
    let (flow, _) = insert(&table, 1, 9, 10);
    let (there, back) = (flow.counted(), flow.against().counted());
    for _ in 0..3 {
        assert_eq!(table.count(&there, 1000), Count::Done);
    }
    assert_eq!(table.count(&back, 40), Count::Done);
    assert_eq!(table.tag_of(&back), Some(9));
    let mut reports = Vec::new();
    let mut sweep = |now| {
        reports.clear();
        table.sweep_counted(0, table.entries(), now, &mut |r| reports.push(*r));
        reports.clone()
    };
    table.touch(&flow, crate::security::TcpFlags::default(), 305);
    assert!(sweep(309).is_empty(), "not due");
    let expected = FlowReport {
        key: key(1),
        tag: 9,
        forward: counted(3, 3000),
        backward: counted(1, 40),
        last_seen: 305,
        is_over: false,
    };
    assert_eq!(sweep(310), [expected]);
    assert_eq!(table.count(&there, 7), Count::Done);
    assert!(sweep(311).is_empty());
    let end = FlowReport {
        forward: counted(1, 7),
        backward: counted(0, 0),
        is_over: true,
        ..expected
    };
    assert_eq!(sweep(305 + IDLE + 1), [end]);
    assert_eq!(table.count(&there, 7), Count::Gone);
    assert_eq!(table.tag_of(&there), None);
    assert_eq!(table.key(&there), None);
}

/// The counters are recorded before they overflow.
#[test]
fn n14_full_counters_get_a_record_before_their_time() {
    let table = table();
    let (flow, _) = insert(&table, 1, 9, 10);
    let flow = flow.counted();
    let (mut packets, mut bytes, mut records) = (0u64, 0u64, 0);
    for _ in 0..150_000 {
        packets += 1;
        bytes += 65_535;
        if table.count(&flow, 65_535) == Count::Full {
            table.record_now(&flow, 11, &mut |report| {
                records += 1;
                packets -= u64::from(report.forward.packets);
                bytes -= u64::from(report.forward.bytes);
            });
        }
    }
    assert_eq!(records, 4, "of 9.8 GB");
    table.record_all(12, &mut |report| {
        assert_eq!(
            (u64::from(report.forward.packets), u64::from(report.forward.bytes)),
            (packets, bytes)
        );
        packets = 0;
    });
    assert_eq!(packets, 0);
}

/// A flow whose entry another one takes has its last record then (D32). A flow without a number has none.
#[test]
fn d32_a_displaced_flow_has_its_last_record() {
    let table = table();
    let (first, _) = insert(&table, 1, 9, 10);
    table.count(&first.counted(), 60);
    let (again, reports) = insert(&table, 1, 8, 11);
    assert_eq!(reports.len(), 1);
    assert_eq!(
        (reports[0].tag, reports[0].forward, reports[0].is_over),
        (9, counted(1, 60), true)
    );
    assert_eq!(table.tag_of(&again.counted()), Some(8));

    let (_, reports) = insert(&table, 1, 0, 12);
    assert_eq!(reports.len(), 1);
    let (uncounted, reports) = insert(&table, 1, 7, 13);
    assert!(reports.is_empty());
    assert_eq!(table.tag_of(&uncounted.counted()), Some(7));

    // Flows without a reply use a quarter of the table; further ones displace them.
    let (mut inserted, mut ended) = (0, 0);
    for port in 100..2100 {
        let report = &mut |r: &FlowReport| ended += u32::from(r.is_over);
        inserted += u32::from(
            table
                .insert_counted(&key(port), (FROM_HOST, IDLE), 14, (0, 5), report)
                .is_ok(),
        );
    }
    assert!(ended > 0);
    assert_eq!(table.len() as u32, 1 + inserted - ended);
}

#[test]
fn a_flow_can_be_counted_from_now_on() {
    let table = table();
    let (flow, _) = insert(&table, 1, 0, 10);
    let flow = flow.counted();
    assert_eq!(table.tag_of(&flow), None);
    table.begin_counting(&flow, 3, 20);
    table.begin_counting(&flow, 4, 21);
    assert_eq!(table.tag_of(&flow), Some(3));
    assert_eq!(table.key(&flow), Some(key(1)));
}

#[test]
fn without_counters_nothing_is_counted() {
    let table = FlowTable::new(1024, 1, 7);
    let (flow, reports) = insert(&table, 1, 3, 10);
    assert!(reports.is_empty());
    assert_eq!(table.count(&flow.counted(), 1), Count::Gone);
    assert_eq!(table.sweep(0, table.entries(), 10_000), 0);
    assert!(table.is_empty());
}

/// While a lane takes the counters of a flow, no other one does, also within the same second. Nothing counts twice, and nothing
/// is lost.
#[test]
fn n14_one_lane_at_a_time_takes_the_counters() {
    let table = table();
    let (flow, _) = insert(&table, 1, 9, 10);
    let slot = flow.slot as usize;
    table.count(&flow.counted(), 60);
    let counters = table.counters.get().unwrap();
    // The last record is of the present second.
    assert_eq!(counters.claim(slot, |_| true), Some(9));
    let mut reports = Vec::new();
    table.record_all(10, &mut |report| reports.push(*report));
    assert!(reports.is_empty(), "another lane takes them: {reports:?}");
    assert_eq!(counters.reset(slot), (counted(1, 60), counted(0, 0)));
}

/// A flow that ends while another lane takes its counters has its last record all the same.
#[test]
fn n14_a_flow_has_its_last_record_although_another_lane_takes_its_counters() {
    let table = table();
    let (flow, _) = insert(&table, 1, 9, 10);
    let slot = flow.slot as usize;
    table.count(&flow.counted(), 60);
    assert_eq!(table.counters.get().unwrap().claim(slot, |_| true), Some(9));
    let mut reports = Vec::new();
    table.sweep_counted(0, table.entries(), 10 + IDLE + 1, &mut |r| reports.push(*r));
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].tag, reports[0].is_over), (9, true));
    assert_eq!(table.counters.get().unwrap().tag(slot), 0);
}
