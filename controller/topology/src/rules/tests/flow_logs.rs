//! Tests of flow logs as resources: N14, M9.

use super::{SUBSCRIPTION, World, net, path, with};
use crate::change::{Change, Rejection};
use crate::topology::AgentStatuses;
use serde_json::{Value, json};

/// The id of a flow log below the watcher of a region.
fn log_id(region: &str, name: &str) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
         NetworkWatcher_{region}/flowLogs/{name}"
    )
}

fn body(target: &str, more: Value) -> Value {
    let storage = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a";
    let properties = json!({"targetResourceId": net(target), "storageId": storage});
    json!({"location": "region1", "properties": with(properties, more)})
}

/// A VNet `hub` with a subnet `s` and a NIC `n`, and a group `web`.
fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    w.put(&net("networkSecurityGroups/web"), json!({"location": "region1"}))
        .unwrap();
    w
}

fn message(refused: &Rejection) -> &str {
    &refused.problems[0].message
}

/// Azure's answer has every member, and the GUID of the target. Writing it back changes nothing.
#[test]
fn n14_a_flow_log_shows_its_defaults() {
    let mut w = world();
    let id = log_id("region1", "one");
    // Azure's command line sends the version 0.
    let sent = body(
        "networkSecurityGroups/web",
        json!({"enabled": true, "format": {"version": 0}}),
    );
    let shown = w.put(&id, sent).unwrap();
    assert_eq!(shown["type"], "Microsoft.Network/networkWatchers/FlowLogs");
    assert_eq!(shown["name"], "one");
    let properties = &shown["properties"];
    assert_eq!(properties["format"], json!({"type": "JSON", "version": 2}));
    assert_eq!(properties["retentionPolicy"], json!({"days": 0, "enabled": false}));
    assert_eq!(properties["flowAnalyticsConfiguration"], json!({}));
    assert_eq!(properties["enabled"], true);
    assert_eq!(properties["provisioningState"], "Succeeded");
    let group = w.get(&net("networkSecurityGroups/web"));
    assert_eq!(properties["targetResourceGuid"], group["properties"]["resourceGuid"]);
    assert_eq!(group["properties"]["flowLogs"], json!([{"id": id}]));
    assert_eq!(w.put(&id, shown.clone()).unwrap(), shown);

    let analytics =
        json!({"networkWatcherFlowAnalyticsConfiguration": {"enabled": true, "trafficAnalyticsInterval": 10}});
    let more = json!({
        "enabled": false, "format": {"type": "JSON", "version": 1}, "retentionPolicy": {"days": 7, "enabled": true},
        "flowAnalyticsConfiguration": analytics,
    });
    let changed = w.put(&id, body("networkSecurityGroups/web", more.clone())).unwrap();
    for (name, value) in more.as_object().unwrap() {
        assert_eq!(&changed["properties"][name], value, "{name}");
    }
    assert_eq!(w.put(&id, changed.clone()).unwrap(), changed);
    assert!(w.delete(&id).unwrap());
    assert!(!w.delete(&id).unwrap());
    let group = w.get(&net("networkSecurityGroups/web"));
    assert_eq!(group["properties"]["flowLogs"], json!([]));
}

#[test]
fn n14_groups_vnets_subnets_and_nics_can_have_a_flow_log() {
    let mut w = world();
    let targets = [
        "networkSecurityGroups/web",
        "virtualNetworks/hub",
        "virtualNetworks/hub/subnets/s",
        "networkInterfaces/n",
    ];
    for (n, target) in targets.iter().enumerate() {
        let shown = w
            .put(&log_id("region1", &format!("log{n}")), body(target, json!({})))
            .unwrap();
        assert_eq!(shown["properties"]["targetResourceId"], net(target), "{target}");
        assert!(shown["properties"]["targetResourceGuid"].is_string(), "{target}");
    }
    let collection = log_id("region1", "x");
    let (collection, _) = collection.rsplit_once('/').unwrap();
    let listed = w.now.list(collection, &AgentStatuses::default()).unwrap();
    let names: Vec<&str> = listed.iter().map(|log| log["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["log0", "log1", "log2", "log3"]);
    let elsewhere = collection.replace("region1", "region2");
    assert!(w.now.list(&elsewhere, &AgentStatuses::default()).unwrap().is_empty());
    // The resource group of watchers exists from the first flow log on.
    let group = w.get(&format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG"
    ));
    assert_eq!(group["location"], "region1");

    let tags = Change::PatchTags {
        path: path(&log_id("region1", "log0")),
        body: json!({"tags": {"owner": "net"}}),
        if_match: None,
    };
    w.apply(&tags).unwrap();
    assert_eq!(w.get(&log_id("region1", "log0"))["tags"], json!({"owner": "net"}));
}

#[test]
fn n14_wrong_flow_logs_are_refused_with_the_field() {
    let mut w = world();
    w.put(&log_id("region1", "first"), body("virtualNetworks/hub", json!({})))
        .unwrap();
    let here = log_id("region1", "one");
    let lost = json!({"storageId": ""});
    let cases = [
        (
            here.clone(),
            body("virtualNetworks/hub/subnets/s", lost),
            "properties.storageId",
        ),
        (
            here.clone(),
            body("virtualNetworks/none", json!({})),
            "virtualNetworks/none",
        ),
        (here.clone(), body("routeTables/r", json!({})), "cannot have a flow log"),
        (here.clone(), body("virtualNetworks/hub", json!({})), "has the flow log"),
        (
            here.clone(),
            body("networkInterfaces/n", json!({"format": {"version": 3}})),
            "properties.format.version: 3 is not within 0 to 2",
        ),
        (
            here.clone(),
            body("networkInterfaces/n", json!({"format": {"type": "XML"}})),
            "properties.format.type: 'XML'",
        ),
        (
            here.clone(),
            body("networkInterfaces/n", json!({"retentionPolicy": {"days": 366}})),
            "properties.retentionPolicy.days: 366",
        ),
        (
            log_id("region2", "one"),
            body("networkInterfaces/n", json!({})),
            "NetworkWatcher_region1",
        ),
        (
            log_id("region2", "one"),
            with(body("networkInterfaces/n", json!({})), json!({"location": "region2"})),
            "is in region 'region1', and the flow log",
        ),
        (
            net("networkWatchers/NetworkWatcher_region1/flowLogs/one"),
            body("networkInterfaces/n", json!({})),
            "NetworkWatcherRG",
        ),
    ];
    for (id, body, expected) in cases {
        let refused = w.put(&id, body).unwrap_err();
        assert!(message(&refused).contains(expected), "{expected}: {refused}");
        assert!(w.view(&id).is_none());
    }
    let refused = w.put(&here, json!({"location": "region1"})).unwrap_err();
    assert_eq!(refused.problems.len(), 2, "target and storage are required: {refused}");
}

/// The target of a flow log can be deleted. The log stays, and stays writable.
#[test]
fn n14_a_flow_log_does_not_hold_its_target() {
    let mut w = world();
    let id = log_id("region1", "one");
    let sent = body("networkSecurityGroups/web", json!({}));
    w.put(&id, sent.clone()).unwrap();
    assert!(w.delete(&net("networkSecurityGroups/web")).unwrap());
    let shown = w.get(&id);
    assert_eq!(
        shown["properties"]["targetResourceId"],
        net("networkSecurityGroups/web")
    );
    assert_eq!(shown["properties"].get("targetResourceGuid"), None);
    w.put(&id, with(sent, json!({"tags": {"a": "b"}}))).unwrap();
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG");
    assert!(w.delete(&group).unwrap());
    assert!(w.view(&id).is_none(), "its resource group takes it along");
}
