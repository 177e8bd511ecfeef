use super::*;
use std::path::Path;
use tombolo_engine::security::{Counted, FlowEventKind, FlowKey, LoggedRule};
use tombolo_proto::config::{Direction, FlowLog, FlowLogFormat, LoggedNic};
use tombolo_proto::id::ResourceId;

/// A log of these network interfaces.
fn logs(nics: &[&str]) -> Arc<FlowLogs> {
    Arc::new(FlowLogs {
        logs: vec![FlowLog {
            id: ResourceId::new("/networkWatchers/w/flowLogs/all"),
            guid: "00000000-0000-4000-8000-00000000000a".into(),
            target: ResourceId::new("/vnet"),
            format: FlowLogFormat::Network4,
            nics: nics.iter().map(|nic| ResourceId::new(*nic)).collect(),
        }],
        nics: nics
            .iter()
            .map(|nic| LoggedNic {
                id: ResourceId::new(*nic),
                mac: format!("02{:0>10}", nic.trim_start_matches('/')),
            })
            .collect(),
        groups: Vec::new(),
    })
}

fn worker(directory: &Path) -> Worker {
    Worker {
        directory: directory.to_owned(),
        interval: Duration::from_secs(60),
        limit: 1 << 30,
        flows: Arc::new(Flows::new(1024, 1)),
        counters: Arc::default(),
        batch: None,
        early: VecDeque::new(),
        files: None,
        has_failed: false,
    }
}

fn event(worker: &Worker, nic: &str, number: u32) -> FlowEvent {
    let rule = worker.flows.log().number(LoggedRule {
        nic: ResourceId::new(nic),
        rule: None,
    });
    FlowEvent {
        kind: FlowEventKind::Begin,
        at: Instant::now(),
        key: FlowKey {
            nic: 0,
            direction: Direction::Inbound,
            protocol: 6,
            source: number.to_be_bytes().into(),
            destination: [10, 0, 0, 2].into(),
            ports: (1, 443),
        },
        rule,
        is_local: false,
        forward: Counted::default(),
        backward: Counted::default(),
    }
}

fn written(worker: &Worker) -> u64 {
    worker.counters.tuples.load(Ordering::Relaxed)
}

/// When the agent stops, a flow table may have millions of flows. The records are written in parts, so that they do not take
/// memory for all of them.
#[test]
fn d38_the_last_records_of_many_flows_are_written_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(dir.path());
    worker.set_logs(Some(logs(&["/a"])));
    let clock = Clock::now();
    let mut most = 0;
    for number in 0..150_000 {
        let event = event(&worker, "/a", number);
        worker.add_and_write(&event, &clock);
        most = most.max(worker.batch.as_ref().unwrap().1.bytes());
    }
    assert!(most <= MAX_BATCH, "{most} bytes");
    assert!(written(&worker) > 50_000, "{}", written(&worker));
    worker.write(SystemTime::now());
    assert_eq!(written(&worker), 150_000);
}

/// Lanes may have a configuration before the writer has its logs. Their events are not lost.
#[test]
fn d38_events_that_come_before_their_log_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(dir.path());
    for (nics, nic) in [(&["/a"][..], "/a"), (&["/a", "/b"][..], "/b")] {
        let event = event(&worker, nic, 1);
        assert!(!worker.add(&event, &Clock::now()));
        worker.early.push_back(event);
        worker.set_logs(Some(logs(nics)));
        assert_eq!(worker.batch.as_ref().unwrap().1.tuples(), 1, "{nic}");
        assert!(worker.early.is_empty());
    }
    assert_eq!(written(&worker), 1, "the old batch");
    // Events of a network interface without a log do not wait for ever.
    let mut old = event(&worker, "/c", 1);
    old.at -= MAX_EARLY_TIME + Duration::from_secs(1);
    worker.early.push_back(old);
    worker.drain();
    assert!(worker.early.is_empty());
}

/// Each file counts by itself: if one cannot be written, the tuples in the others count as written.
#[test]
fn d38_tuples_count_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(dir.path());
    worker.set_logs(Some(logs(&["/a", "/b"])));
    for (nic, number) in [("/a", 1), ("/b", 1), ("/b", 2)] {
        let event = event(&worker, nic, number);
        worker.add(&event, &Clock::now());
    }
    let now = SystemTime::now();
    // A directory is in the way of the file of `/a`.
    let records = worker.batch.as_ref().unwrap().1.records(now);
    let blocked = records.iter().find(|record| record.tuples == 1).unwrap();
    std::fs::create_dir_all(dir.path().join(&blocked.path)).unwrap();
    worker.write(now);
    assert_eq!(written(&worker), 2);
    assert_eq!(worker.counters.not_written.load(Ordering::Relaxed), 1);
}
