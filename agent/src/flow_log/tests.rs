use super::*;
use std::collections::BTreeSet;
use std::path::Path;
use tombolo_engine::security::{Counted, FlowEventKind, FlowKey, LoggedRule};
use tombolo_proto::config::{Direction, FlowLog, FlowLogFormat, LoggedNic};
use tombolo_proto::flow_tail::{FlowEncryption, FlowRecord, FlowState};
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
        taps: Taps::default(),
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

/// The logs of [`logs`], and one in the layout of groups.
fn both_layouts() -> Arc<FlowLogs> {
    let mut logs = (*logs(&["/a", "/b"])).clone();
    let group = FlowLog {
        id: ResourceId::new("/networkWatchers/w/flowLogs/group"),
        target: ResourceId::new("/web"),
        format: FlowLogFormat::Group2,
        ..logs.logs[0].clone()
    };
    logs.logs.push(group);
    Arc::new(logs)
}

/// Events of a flow at each of two network interfaces, of a denied one, and of ICMP.
fn events(worker: &Worker, at: Instant) -> Vec<FlowEvent> {
    let rule = worker.flows.log().number(LoggedRule {
        nic: ResourceId::new("/a"),
        rule: Some((ResourceId::new("/web"), "securityRules/https".into())),
    });
    let mut all = Vec::new();
    for nic in ["/a", "/b"] {
        for (number, kind) in [
            (1, FlowEventKind::Begin),
            (1, FlowEventKind::Continue),
            (1, FlowEventKind::End),
            (2, FlowEventKind::Denied),
            // Repetitions of a denied packet have no tuple.
            (2, FlowEventKind::Denied),
            (3, FlowEventKind::Begin),
        ] {
            let mut event = FlowEvent {
                kind,
                at,
                ..event(worker, nic, number)
            };
            if nic == "/a" {
                event.rule = rule;
            }
            if number == 3 {
                (event.key.protocol, event.is_local) = (1, true);
            }
            if matches!(kind, FlowEventKind::Continue | FlowEventKind::End) {
                event.forward = Counted { packets: 4, bytes: 300 };
                event.backward = Counted { packets: 3, bytes: 200 };
            }
            all.push(event);
        }
    }
    all
}

/// The tuples in all files of a directory, each after the layout of its file.
fn tuples_in(directory: &Path) -> BTreeSet<String> {
    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let all = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
        all.collect()
    }
    fn texts(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => map.values().for_each(|value| texts(value, found)),
            serde_json::Value::Array(all) => all.iter().for_each(|value| texts(value, found)),
            serde_json::Value::String(text) if text.matches(',').count() > 6 => found.push(text.clone()),
            _ => {}
        }
    }
    let mut all = BTreeSet::new();
    for file in files(directory) {
        let mut found = Vec::new();
        texts(
            &serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(),
            &mut found,
        );
        all.extend(found);
    }
    all
}

/// The tuple that stands for a record in the file of its log.
fn tuple_of(record: &FlowRecord) -> String {
    let FlowRecord {
        source, destination, ..
    } = record;
    let (from, to) = (record.source_port, record.destination_port);
    let state = record.state.letter();
    let mut counters = format!(
        "{},{},{},{}",
        record.packets_sent, record.bytes_sent, record.packets_received, record.bytes_received
    );
    match record.format {
        FlowLogFormat::Network4 => {
            let encryption = record.encryption.map_or("", FlowEncryption::name);
            format!(
                "{},{source},{destination},{from},{to},{},I,{state},{encryption},{counters}",
                record.time_ms, record.protocol
            )
        }
        FlowLogFormat::Group1 | FlowLogFormat::Group2 => {
            let decision = if record.state == FlowState::Denied { "D" } else { "A" };
            let state = if record.state == FlowState::Denied { "B" } else { state };
            if state == "B" {
                counters = ",,,".into();
            }
            let seconds = record.time_ms / 1000;
            format!("{seconds},{source},{destination},{from},{to},T,I,{decision},{state},{counters}")
        }
    }
}

/// D38: a tail has exactly the tuples that are written to the files of its logs, in both layouts, and the files are the same as
/// without a tail.
#[test]
fn d38_a_tail_has_the_tuples_of_the_files_and_changes_none() {
    let at = Instant::now();
    let clock = Clock::now();
    let now = clock.system + Duration::from_secs(1);
    let run = |logs_of_taps: &[&[&str]]| {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path());
        let taps = logs_of_taps.iter().map(|logs| {
            let logs = logs.iter().map(|log| ResourceId::new(*log)).collect();
            let (tap, records) = tail::tap(logs, Arc::default());
            worker.taps.add(tap);
            records
        });
        let mut taps: Vec<_> = taps.collect();
        worker.set_logs(Some(both_layouts()));
        for event in events(&worker, at) {
            worker.add(&event, &clock);
        }
        worker.write(now);
        let read = |records: &mut rtrb::Consumer<FlowRecord>| {
            let all = std::iter::from_fn(|| records.pop().ok());
            all.collect::<Vec<_>>()
        };
        let read: Vec<Vec<FlowRecord>> = taps.iter_mut().map(read).collect();
        (tuples_in(dir.path()), read)
    };
    let (without, _) = run(&[]);
    let group = "/networkWatchers/w/flowlogs/GROUP";
    let (with, taps) = run(&[&[], &[group], &["/networkWatchers/w/flowLogs/other"]]);
    assert_eq!(with, without);
    assert_eq!(
        without.len(),
        9,
        "the flows of both network interfaces are equal: {without:?}"
    );
    let all: BTreeSet<String> = taps[0].iter().map(tuple_of).collect();
    assert_eq!(all, without);
    assert_eq!(taps[0].len(), 14, "ten of the VNet, and four of the group");
    assert!(taps[1].iter().all(|record| record.log == ResourceId::new(group)));
    assert_eq!(taps[1].len(), 4, "the layout of groups has no ICMP");
    assert_eq!(taps[2], []);
    let denied = taps[1].iter().find(|record| record.state == FlowState::Denied).unwrap();
    assert_eq!(denied.nic, ResourceId::new("/a"));
    assert_eq!((denied.mac_address.as_str(), denied.encryption), ("02000000000a", None));
    assert_eq!(denied.group, Some(ResourceId::new("/web")));
    assert_eq!(denied.rule.as_deref(), Some("UserRule_https"));
}

/// D38: a tail that has ended is forgotten, also if there is no log.
#[test]
fn d38_tails_that_have_ended_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let writer = FlowLogWriter::new(
        dir.path().to_owned(),
        FlowLogSettings::default(),
        Arc::new(Flows::new(1024, 1)),
    );
    assert!(
        writer.thread.lock().unwrap().is_none(),
        "nothing runs before the first log"
    );
    let (tap, records) = tail::tap(Vec::new(), Arc::default());
    writer.tail(tap).unwrap();
    let (second, _) = tail::tap(Vec::new(), Arc::default());
    drop(records);
    writer.tail(second).unwrap();
    writer.stop();
    let mut taps = Taps::default();
    let (tap, records) = tail::tap(Vec::new(), Arc::default());
    taps.add(tap);
    assert_eq!(taps.count(), 1);
    drop(records);
    taps.remove_abandoned();
    assert_eq!(taps.count(), 0);
}
