use super::*;

fn id(peer: &str) -> AgentId {
    AgentId::new(peer).unwrap()
}

fn volume(bytes: u64) -> Volume {
    Volume {
        rx_bytes: bytes,
        tx_bytes: 2 * bytes,
        rx_packets: bytes / 100,
        tx_packets: bytes / 50,
    }
}

/// What a lane has counted.
fn counted(all: &[(&str, u64)]) -> BTreeMap<AgentId, Volume> {
    all.iter().map(|(peer, bytes)| (id(peer), volume(*bytes))).collect()
}

fn received(meters: &Meters) -> Vec<(&str, u64)> {
    let links = meters.links.iter();
    links.map(|link| (link.peer.as_str(), link.volume.rx_bytes)).collect()
}

fn meter(now: Instant) -> Meter {
    let saved = Saved {
        epoch: 7,
        links: BTreeMap::new(),
    };
    Meter::new(saved, SavedEarlier::default(), now)
}

/// The meter after a restart.
fn restarted(meter: &Meter, now: Instant) -> Meter {
    let saved = serde_json::to_string(&meter.saved()).unwrap();
    let earlier = serde_json::to_string(&meter.saved_earlier()).unwrap();
    let read = (serde_json::from_str(&saved), serde_json::from_str(&earlier));
    Meter::new(read.0.unwrap(), read.1.unwrap(), now)
}

#[test]
fn meter_6_totals_go_on_over_new_links_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let mut meters = MeterFile::open(state.clone());
    let first = meters.update(counted(&[("a", 1000)]), None, true);
    assert_eq!(received(&first), [("a", 1000)]);
    meters.due().unwrap()();
    assert!(meters.due().is_none(), "once in 10 s");
    assert_eq!(received(&meters.update(BTreeMap::new(), None, true)), [("a", 1000)]);
    assert_eq!(
        received(&meters.update(counted(&[("a", 300)]), None, true)),
        [("a", 1300)]
    );
    // After a crash, what was not written is lost, and nothing else.
    let mut crashed = MeterFile::open(state.clone());
    let after = crashed.update(counted(&[("a", 50)]), None, true);
    assert_eq!((received(&after), after.epoch), (vec![("a", 1050)], first.epoch));
    meters.flush();
    let mut stopped = MeterFile::open(state.clone());
    let after = stopped.update(counted(&[("a", 50)]), None, true);
    assert_eq!(received(&after), [("a", 1350)]);

    // A file that cannot be read is replaced, and the totals have another epoch.
    state.write(file::METERS, b"{").unwrap();
    std::thread::sleep(Duration::from_millis(2));
    let mut lost = MeterFile::open(state);
    let after = lost.update(counted(&[("a", 50)]), None, true);
    assert_eq!(received(&after), [("a", 50)]);
    assert_ne!(after.epoch, first.epoch);
}

/// Lanes pass on what is new. So a report without a lane, or before and after a change of one lane, counts nothing twice.
#[test]
fn meter_6_what_lanes_pass_on_counts_once() {
    let traffic = Traffic::default();
    let (lane0, lane1) = (traffic.clone(), traffic.clone());
    let now = Instant::now();
    let mut meter = meter(now);
    let mut total = |traffic: &Traffic| {
        meter.update(traffic.take(), |_| true, true, now);
        meter.report(now).links[0].volume
    };
    lane0.add(counted(&[("a", 1000)]));
    lane1.add(counted(&[("a", 500)]));
    assert_eq!(total(&traffic), volume(1500));
    // Lane 1 has ended, and has nothing more.
    lane0.add(counted(&[("a", 100)]));
    assert_eq!(total(&traffic), volume(1600));
    assert_eq!(total(&traffic), volume(1600));
    // A link that was removed and made again has passed more than before.
    lane0.add(counted(&[("a", 10)]));
    lane0.add(counted(&[("a", 5000)]));
    assert_eq!(total(&traffic), volume(6610));
}

/// A peer that the configuration does not have any more is reported for a day, and its total goes on if it comes back,
/// also after a restart.
#[test]
fn meter_6_a_peer_that_has_left_is_not_reported_for_ever() {
    let mut now = Instant::now();
    let mut meter = meter(now);
    let has = |peer: &AgentId| *peer == id("stays");
    meter.update(counted(&[("leaves", 1000), ("stays", 10)]), |_| true, true, now);
    let mut pass = |meter: &mut Meter, hours: u64, is_connected| {
        for _ in 0..hours * 360 {
            now += Duration::from_secs(10);
            meter.update(BTreeMap::new(), has, is_connected, now);
        }
        now
    };
    pass(&mut meter, 23, true);
    // The controller may not have the last total.
    let at = pass(&mut meter, 100, false);
    assert_eq!(received(&meter.report(at)), [("leaves", 1000), ("stays", 10)]);
    let at = pass(&mut meter, 2, true);
    assert_eq!(received(&meter.report(at)), [("stays", 10)]);
    assert_eq!(meter.saved().links.len(), 1);

    let mut meter = restarted(&meter, at);
    meter.update(counted(&[("leaves", 5)]), |_| true, true, at);
    assert_eq!(received(&meter.report(at)), [("leaves", 1005), ("stays", 10)]);
    // The second time it leaves with its new total, also if the agent has crashed between the two files.
    let old = meter.saved();
    meter.update(counted(&[("leaves", 7)]), has, true, at);
    meter.leave(id("leaves"));
    assert!(!meter.saved().links.contains_key(&id("leaves")));
    let mut crashed = Meter::new(old, meter.saved_earlier(), at);
    crashed.update(counted(&[("leaves", 1)]), |_| true, true, at);
    assert_eq!(received(&crashed.report(at))[0], ("leaves", 1013));
}

/// A report is bounded. Agents with more peers report all of them in turns.
#[test]
fn meter_6_an_agent_with_many_peers_reports_them_in_turns() {
    let begin = Instant::now();
    let mut meter = meter(begin);
    let long = "x".repeat(57);
    let names: Vec<String> = (0..2 * MAX_METERS + 10).map(|n| format!("{long}{n:06}")).collect();
    let most = Volume {
        rx_bytes: u64::MAX,
        tx_bytes: u64::MAX,
        rx_packets: u64::MAX,
        tx_packets: u64::MAX,
    };
    let all = names.iter().map(|name| (id(name), most)).collect();
    meter.update(all, |_| true, true, begin);
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..3 {
        let report = meter.report(begin + TURN * turn);
        assert!(report.links.len() <= MAX_METERS);
        assert!(serde_json::to_vec(&report).unwrap().len() < 220 * MAX_METERS);
        assert_eq!(
            report,
            meter.report(begin + TURN * turn + TURN / 2),
            "the same for a while"
        );
        seen.extend(report.links.into_iter().map(|link| link.peer));
    }
    assert_eq!(seen.len(), names.len());
}

/// Peers that come and go fill neither the reports nor the files.
#[test]
fn meter_6_the_totals_of_peers_that_have_left_are_bounded() {
    let now = Instant::now();
    let mut meter = meter(now);
    for batch in 0..4 {
        let names = (0..10_000).map(|n| id(&format!("vm-{batch}-{n}")));
        let all = names.map(|name| (name, volume(100))).collect();
        meter.update(all, |_| false, true, now);
        assert!(meter.links.len() <= MAX_ABSENT);
        assert!(meter.earlier.len() <= MAX_EARLIER);
    }
    assert_eq!(restarted(&meter, now).earlier.len(), MAX_EARLIER);
}
