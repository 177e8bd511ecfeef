use super::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use tombolo_proto::status::LinkMeter;
use tombolo_topology::change::Change;
use tombolo_topology::path::ArmPath;
use tombolo_topology::reach::as_designed;
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// A time at the beginning of a day.
const NOW: u64 = 20_000 * DAY;

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/g";

fn id(tail: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{tail}")
}

/// Two peered VNets `a` and `b` with a machine each, whose agents have the names that [`agent`] returns.
fn topology() -> Topology {
    let mut topology = Topology::default();
    let mut put = |path: &str, body: Value| {
        let change = Change::Put {
            path: ArmPath::parse(path).unwrap(),
            body,
            if_match: None,
            sync_remote_address_space: false,
        };
        topology = topology.apply(&change, &mut Uuid::new_v4).unwrap().topology;
    };
    put(GROUP, json!({"location": "region1"}));
    for (name, prefix) in [("a", "10.1"), ("b", "10.2")] {
        let subnet = json!({"name": "w", "properties": {"addressPrefix": format!("{prefix}.0.0/24")}});
        let space = json!({"addressPrefixes": [format!("{prefix}.0.0/16")]});
        let properties = json!({"addressSpace": space, "subnets": [subnet]});
        put(
            &id(&format!("virtualNetworks/{name}")),
            json!({"location": "region1", "properties": properties}),
        );
        let subnet = id(&format!("virtualNetworks/{name}/subnets/w"));
        let configuration = json!({"name": "c", "properties": {"subnet": {"id": subnet}}});
        let properties = json!({"ipConfigurations": [configuration]});
        put(
            &id(&format!("networkInterfaces/{name}")),
            json!({"location": "region1", "properties": properties}),
        );
    }
    for (from, to) in [("a", "b"), ("b", "a")] {
        let remote = json!({"id": id(&format!("virtualNetworks/{to}"))});
        put(
            &id(&format!("virtualNetworks/{from}/virtualNetworkPeerings/p")),
            json!({"properties": {"remoteVirtualNetwork": remote}}),
        );
    }
    as_designed(&topology)
}

/// The agent of a machine.
fn agent(name: &str) -> AgentId {
    AgentId::of_site(&ResourceId::new(id(&format!("networkInterfaces/{name}"))))
}

/// The report of the agent of `from` about its link with `to`.
fn report(from: &str, to: &AgentId, epoch: u64, (received, sent): (u64, u64)) -> BTreeMap<AgentId, Meters> {
    let volume = Volume {
        rx_bytes: received,
        tx_bytes: sent,
        rx_packets: received / 100,
        tx_packets: sent / 100,
    };
    let link = LinkMeter {
        peer: to.clone(),
        volume,
    };
    let links = vec![link];
    [(agent(from), Meters { epoch, links })].into()
}

/// A ledger in a directory, which can be closed and opened again.
struct World {
    dir: tempfile::TempDir,
    topology: Topology,
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            topology: topology(),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("usage.db")
    }

    fn open(&self) -> Ledger {
        Ledger::open(&self.file()).unwrap()
    }

    /// Records what machine `a` has received from `b` and sent to it.
    fn record(&self, ledger: &mut Ledger, epoch: u64, totals: (u64, u64), now: u64) {
        let reports = report("a", &agent("b"), epoch, totals);
        ledger.record(&reports, &Payers::of(&self.topology), now).unwrap();
    }
}

/// All rows of the peering of `a`.
fn rows(ledger: &Ledger) -> Vec<Row> {
    let peering = ResourceId::new(id("virtualNetworks/A/virtualNetworkPeerings/p"));
    ledger.rows_of(&peering, 0, u64::MAX).unwrap()
}

/// Beginning, length, ingress and egress of each sum.
fn sums(ledger: &Ledger) -> Vec<(u64, u64, u64, u64)> {
    let rows = rows(ledger).into_iter();
    rows.map(|row| {
        (
            row.start,
            row.seconds,
            row.amounts.ingress_bytes,
            row.amounts.egress_bytes,
        )
    })
    .collect()
}

#[test]
fn meter_6_what_a_report_adds_counts_once() {
    let world = World::new();
    let mut ledger = world.open();
    world.record(&mut ledger, 1, (100, 1000), NOW);
    world.record(&mut ledger, 1, (100, 1000), NOW + 10);
    world.record(&mut ledger, 1, (300, 1500), NOW + 20);
    assert_eq!(sums(&ledger), [(NOW, HOUR, 300, 1500)]);
    let row = &rows(&ledger)[0];
    assert_eq!(
        row.payer.resource,
        ResourceId::new(id("virtualNetworks/a/virtualNetworkPeerings/p"))
    );
    assert_eq!((row.amounts.ingress_packets, row.amounts.egress_packets), (3, 15));

    // The controller is killed without notice, and starts again.
    drop(ledger);
    let mut ledger = world.open();
    world.record(&mut ledger, 1, (300, 1500), NOW + 30);
    world.record(&mut ledger, 1, (350, 1500), NOW + HOUR);
    assert_eq!(sums(&ledger), [(NOW, HOUR, 300, 1500), (NOW + HOUR, HOUR, 50, 0)]);
    assert_eq!(ledger.sums(NOW + 1, NOW + HOUR).unwrap(), Sums::default());
    let both = ledger.sums(0, u64::MAX).unwrap();
    assert_eq!((both.first, both.end), (Some(NOW), Some(NOW + 2 * HOUR)));
    let [(payer, amounts)] = &both.all[..] else {
        panic!("{both:?}")
    };
    assert_eq!((amounts.ingress_bytes, amounts.egress_bytes), (350, 1500));
    let days = ledger.days(&GROUP.to_uppercase(), 0, u64::MAX).unwrap();
    let [day] = &days[..] else { panic!("{days:?}") };
    assert_eq!(
        (day.start, day.seconds, &day.payer, &day.amounts),
        (NOW, DAY, payer, amounts)
    );
    assert_eq!(ledger.days("/subscriptions/other", 0, u64::MAX).unwrap(), []);
}

#[test]
fn meter_6_an_agent_that_crashes_loses_what_it_had_not_written() {
    let world = World::new();
    let mut ledger = world.open();
    world.record(&mut ledger, 1, (1000, 0), NOW);
    // Its file had 900. What comes then counts as soon as it exceeds what has been counted.
    world.record(&mut ledger, 1, (950, 0), NOW + 10);
    world.record(&mut ledger, 1, (1020, 0), NOW + 20);
    assert_eq!(sums(&ledger), [(NOW, HOUR, 1020, 0)]);
    // Its file is gone: it begins at 0.
    world.record(&mut ledger, 2, (70, 0), NOW + 30);
    assert_eq!(sums(&ledger), [(NOW, HOUR, 1090, 0)]);
}

#[test]
fn meter_6_hours_become_days_and_days_are_deleted() {
    let world = World::new();
    let mut ledger = world.open();
    for hour in 0..30 {
        world.record(&mut ledger, 1, (hour + 1, 0), NOW + hour * HOUR);
    }
    let later = NOW + HOURS_KEPT + DAY;
    world.record(&mut ledger, 1, (30, 0), later);
    let reduced = sums(&ledger);
    assert_eq!(reduced[0], (NOW, DAY, 24, 0));
    assert_eq!(
        reduced[1..],
        (24..30).map(|h| (NOW + h * HOUR, HOUR, 1, 0)).collect::<Vec<_>>()
    );
    world.record(&mut ledger, 1, (30, 0), later + DAY);
    assert_eq!(sums(&ledger), [(NOW, DAY, 24, 0), (NOW + DAY, DAY, 6, 0)]);
    world.record(&mut ledger, 1, (30, 0), NOW + DAYS_KEPT + HOUR);
    assert_eq!(sums(&ledger), [(NOW + DAY, DAY, 6, 0)]);
}

/// The clock was a year ahead for a while, so that the hours of a day became a day's sum before the day was over.
#[test]
fn meter_6_sums_survive_a_clock_that_was_wrong() {
    let world = World::new();
    let mut ledger = world.open();
    world.record(&mut ledger, 1, (10, 0), NOW);
    world.record(&mut ledger, 1, (10, 0), NOW + HOURS_KEPT + DAY);
    assert_eq!(sums(&ledger), [(NOW, DAY, 10, 0)]);
    world.record(&mut ledger, 1, (30, 0), NOW + HOUR);
    world.record(&mut ledger, 1, (30, 0), NOW + HOURS_KEPT + 2 * DAY);
    assert_eq!(sums(&ledger), [(NOW, DAY, 30, 0)]);
}

/// The totals of machines that are gone do not stay for ever.
#[test]
fn meter_6_totals_of_agents_that_are_gone_are_forgotten() {
    let world = World::new();
    let mut ledger = world.open();
    world.record(&mut ledger, 1, (10, 0), NOW);
    let nobody = Topology::default();
    let payers = Payers::of(&nobody);
    for later in [HOUR, ORPHANS_KEPT] {
        ledger.record(&BTreeMap::new(), &payers, NOW + later).unwrap();
        assert_eq!(ledger.totals.len(), 1, "{later}");
    }
    ledger
        .record(&BTreeMap::new(), &payers, NOW + HOUR + ORPHANS_KEPT)
        .unwrap();
    assert!(ledger.totals.is_empty() && ledger.orphans.is_empty());
    drop(ledger);
    assert!(world.open().totals.is_empty());
}

/// Agents may report anything.
#[test]
fn meter_6_reports_are_bounded() {
    let world = World::new();
    let mut ledger = world.open();
    world.record(&mut ledger, u64::MAX, (u64::MAX, u64::MAX), NOW);
    for epoch in 2..20 {
        world.record(&mut ledger, epoch, (u64::MAX, u64::MAX), NOW);
    }
    assert_eq!(sums(&ledger), [(NOW, HOUR, MOST, MOST)]);
    let stranger = AgentId::new("nobody").unwrap();
    let reports = report("a", &stranger, 1, (5, 5));
    ledger.record(&reports, &Payers::of(&world.topology), NOW).unwrap();
    assert!(ledger.totals.keys().all(|(_, peer)| *peer != stranger));
}

#[test]
fn a_file_that_is_no_ledger_is_refused() {
    let world = World::new();
    let other = Connection::open(world.file()).unwrap();
    other.execute_batch("CREATE TABLE x (y)").unwrap();
    drop(other);
    let refused = Ledger::open(&world.file()).unwrap_err().to_string();
    assert!(refused.contains("another program"), "{refused}");
    std::fs::remove_file(world.file()).unwrap();
    drop(world.open());
    let newer = Connection::open(world.file()).unwrap();
    newer.pragma_update(None, "user_version", 2).unwrap();
    drop(newer);
    let refused = Ledger::open(&world.file()).unwrap_err().to_string();
    assert!(refused.contains("newer version"), "{refused}");
}
