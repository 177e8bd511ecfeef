//! Flow logs: which NICs of an agent they cover (N14, M9, D38).

use crate::world::{World, id, subnet_id, vnet_id};
use std::sync::Arc;
use tombolo_proto::config::{Feature, FlowLogFormat, FlowLogs};
use tombolo_proto::id::ResourceId;
use tombolo_topology::resource::FlowLog;
use uuid::Uuid;

fn two_machines() -> World {
    let mut w = World::default();
    w.vnet("front", "10.0.0.0/16", "web=10.0.0.0/24 db=10.0.1.0/24")
        .vm("web-vm", "front/web=10.0.0.4")
        .vm("db-vm", "front/db=10.0.1.4");
    w
}

/// Adds a flow log of a target.
fn log(w: &mut World, name: &str, target: &ResourceId, enabled: bool, version: u8) {
    let id = ResourceId::new(format!("/networkWatchers/w/flowLogs/{name}"));
    let mut envelope = World::envelope(id.clone(), "region1");
    envelope.resource_guid = Uuid::from_u128(7);
    let log = FlowLog {
        envelope,
        target: target.clone(),
        storage_id: "a".into(),
        enabled,
        version,
        retention_days: 0,
        retention_enabled: false,
    };
    w.topology.flow_logs.insert(id, Arc::new(log));
}

fn logs(w: &World, machine: &str) -> Option<FlowLogs> {
    w.config(machine).security.and_then(|security| security.flow_logs)
}

/// The names of the logs of a machine, and their formats.
fn names(w: &World, machine: &str) -> Vec<(String, FlowLogFormat)> {
    let logs = logs(w, machine).map_or_else(Vec::new, |logs| logs.logs);
    logs.into_iter()
        .map(|log| (log.id.name().to_owned(), log.format))
        .collect()
}

#[test]
fn n14_the_log_of_the_nic_comes_before_that_of_the_subnet_and_that_of_the_vnet() {
    use FlowLogFormat::Network4;
    let mut w = two_machines();
    assert_eq!(w.config("web-vm").security, None);
    log(&mut w, "vnet", &vnet_id("front"), true, 2);
    log(&mut w, "off", &subnet_id("front/web"), false, 2);
    for machine in ["web-vm", "db-vm"] {
        assert_eq!(names(&w, machine), [("vnet".to_owned(), Network4)], "{machine}");
    }
    log(&mut w, "subnet", &subnet_id("front/db"), true, 1);
    assert_eq!(names(&w, "web-vm"), [("vnet".to_owned(), Network4)]);
    assert_eq!(names(&w, "db-vm"), [("subnet".to_owned(), Network4)]);
    let nic = w
        .topology
        .nics
        .keys()
        .find(|id| id.as_str().contains("db-vm"))
        .unwrap()
        .clone();
    log(&mut w, "nic", &nic, true, 2);
    assert_eq!(names(&w, "db-vm"), [("nic".to_owned(), Network4)]);
    let logs = logs(&w, "db-vm").unwrap();
    assert_eq!(logs.logs[0].nics, std::slice::from_ref(&nic));
    assert_eq!(logs.logs[0].guid, Uuid::from_u128(7).to_string());
    assert_eq!(logs.nics[0].id, nic);
    // Of another target nothing is sent.
    w.topology.flow_logs.clear();
    log(&mut w, "other", &vnet_id("other"), true, 2);
    assert_eq!(w.config("web-vm").security, None);
}

#[test]
fn n14_the_log_of_a_group_covers_the_nics_to_which_the_group_applies() {
    let mut w = two_machines();
    w.group("web", &[]).group("db", &[]);
    w.secure_subnet("front/web", "web");
    let group = id("networkSecurityGroups", "web");
    log(&mut w, "group", &group, true, 1);
    log(&mut w, "vnet", &vnet_id("front"), true, 2);
    assert_eq!(
        names(&w, "web-vm"),
        [
            ("group".to_owned(), FlowLogFormat::Group1),
            ("vnet".to_owned(), FlowLogFormat::Network4)
        ]
    );
    assert_eq!(names(&w, "db-vm").len(), 1);
    log(&mut w, "group", &group, true, 2);
    assert_eq!(names(&w, "web-vm")[0].1, FlowLogFormat::Group2);
    let logs = logs(&w, "web-vm").unwrap();
    assert_eq!(logs.groups.len(), 1);
    assert_eq!(logs.groups[0].id, group);
}

/// An agent of a version before gets everything but the log.
#[test]
fn n14_an_agent_without_the_feature_gets_the_same_configuration_without_the_log() {
    let mut w = two_machines();
    let before = w.config("web-vm");
    log(&mut w, "vnet", &vnet_id("front"), true, 2);
    let config = w.config("web-vm");
    assert!(config.needs().contains(&Feature::FlowLogs));
    assert_eq!(config.without_flow_logs(), before);
    w.group("web", &[]).secure_subnet("front/web", "web");
    let with_group = w.config("web-vm");
    w.topology.flow_logs.clear();
    assert_eq!(with_group.without_flow_logs(), w.config("web-vm"));
}

/// Machines in a served subnet are covered by the log of the subnet. A NIC there with a log of its own has an entry.
#[test]
fn n14_served_subnets_and_the_nics_in_them_have_logs() {
    let mut w = two_machines();
    w.nic("other", "front/db=10.0.1.9", false);
    w.topology.agents.clear();
    w.nic("host", "front/web=10.0.0.9", false);
    w.bind("host", World::vm_binding("host", &["host"], &["front/db"]));
    log(&mut w, "subnet", &subnet_id("front/db"), true, 2);
    let covered = |w: &World| -> Vec<String> {
        let logs = logs(w, "host").unwrap();
        logs.nics.iter().map(|nic| nic.id.name().to_owned()).collect()
    };
    assert_eq!(covered(&w), ["db"]);
    log(&mut w, "nic", &id("networkInterfaces", "other"), true, 2);
    assert_eq!(covered(&w), ["db", "other"]);
    assert_eq!(names(&w, "host").len(), 2);
}
