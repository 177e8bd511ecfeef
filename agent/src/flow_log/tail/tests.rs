use super::*;
use crate::live::{Shared, StreamData};
use std::thread::JoinHandle;
use tokio::sync::mpsc;
use tombolo_engine::security::{Counted, FlowEventKind, FlowKey};
use tombolo_proto::config::{Direction, FlowLogFormat};
use uuid::Uuid;

fn log() -> FlowLog {
    FlowLog {
        id: ResourceId::new("/networkWatchers/w/flowLogs/all"),
        guid: "00000000-0000-4000-8000-00000000000a".into(),
        target: ResourceId::new("/vnet"),
        format: FlowLogFormat::Network4,
        nics: vec![ResourceId::new("/nic")],
    }
}

/// Copies a tuple, of which the source address has the number.
fn offer(taps: &mut Taps, number: u32) {
    let event = FlowEvent {
        kind: FlowEventKind::Denied,
        at: Instant::now(),
        key: FlowKey {
            nic: 0,
            direction: Direction::Inbound,
            protocol: 6,
            source: number.to_be_bytes().into(),
            destination: [10, 0, 0, 2].into(),
            ports: (1, 443),
        },
        rule: 1,
        is_local: false,
        forward: Counted::default(),
        backward: Counted::default(),
    };
    let rule = LoggedRule {
        nic: ResourceId::new("/nic"),
        rule: None,
    };
    taps.offer(&Added {
        log: &log(),
        mac: "020000000001",
        rule: &rule,
        event: &event,
        at: SystemTime::now(),
    });
}

/// A tail, its thread, and the queue to the control stream.
struct Following {
    taps: Taps,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<StreamData>,
    thread: JoinHandle<()>,
}

fn follow(window: usize) -> Following {
    let shared = Arc::<Shared>::default();
    let (sender, queue) = mpsc::channel(4);
    let (tap, records) = tap(Vec::new(), shared.lost.clone());
    let mut taps = Taps::default();
    taps.add(tap);
    let worker = Worker {
        stream: StreamSender {
            id: Uuid::new_v4(),
            shared: shared.clone(),
            queue: sender,
            window,
            max_wait: Duration::from_millis(4),
            sent: 0,
        },
        records,
        changed: Arc::default(),
    };
    let thread = std::thread::spawn(move || worker.run());
    Following {
        taps,
        shared,
        queue,
        thread,
    }
}

/// The numbers of the records in complete lines, and the number of those that are missing.
fn read(bytes: &[u8]) -> (Vec<u32>, u64) {
    let (mut numbers, mut dropped) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line).unwrap() {
            TailEntry::Record(record) => match record.source {
                std::net::IpAddr::V4(source) => numbers.push(source.to_bits()),
                std::net::IpAddr::V6(source) => panic!("{source}"),
            },
            TailEntry::Dropped(more) => dropped += more,
        }
    }
    (numbers, dropped)
}

/// D38: while nobody reads, no more than the window is sent, and the writer does not wait. The reader gets the records in their
/// order, and the number of those that are missing.
#[test]
fn d38_a_slow_reader_loses_records_and_is_told_how_many() {
    const ALL: u32 = 30_000;
    const WINDOW: usize = 8192;
    let mut tail = follow(WINDOW);
    for number in 0..ALL {
        offer(&mut tail.taps, number);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(tail.shared.lost.load(Ordering::Relaxed) > 10_000);
    let mut bytes = Vec::new();
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} bytes", bytes.len());
        match tail.queue.try_recv() {
            Ok(data) => {
                let before = bytes.len();
                bytes.extend(data.data);
                assert!(bytes.len() - before <= WINDOW);
                tail.shared.read(bytes.len() as u64);
            }
            Err(_) if bytes.ends_with(b"\n") => {
                let (numbers, dropped) = read(&bytes);
                if numbers.len() as u64 + dropped == u64::from(ALL) {
                    assert!(numbers.is_sorted() && dropped > 0);
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    tail.shared.stop();
    let end = tail.queue.blocking_recv().unwrap();
    assert!(end.end && end.data.is_empty());
    tail.thread.join().unwrap();
    let report = tail.shared.report();
    assert_eq!(report.stop_reason, Some(CaptureStop::Stopped));
    assert_eq!(report.packets + report.lost, u64::from(ALL));
    assert_eq!(report.bytes, bytes.len() as u64);
    tail.taps.remove_abandoned();
    assert_eq!(tail.taps.count(), 0, "the writer copies nothing any more");
}

/// D38: a record is sent at once, and a tail that nobody can read any more ends at once.
#[test]
fn d38_a_record_is_sent_when_it_is_made() {
    let mut tail = follow(8192);
    offer(&mut tail.taps, 7);
    let begin = Instant::now();
    let data = tail.queue.blocking_recv().unwrap();
    assert_eq!(read(&data.data), (vec![7], 0));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    for number in 0..1000 {
        offer(&mut tail.taps, number);
    }
    // The window is full, because nothing was read.
    std::thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    tail.shared.abandon();
    tail.thread.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}
