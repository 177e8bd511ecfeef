//! Tests of Network Watcher's actions about the live network: connectivity check, the view of security groups, and the
//! troubleshooting of gateways.

use crate::fake_agent::{FakeAgent, Stream};
use crate::features::hello_of_today;
use crate::security::{secured, watcher};
use crate::world::{Answer, GROUP, World, until};
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{ProbeResult, Status};
use tombolo_proto::probe::{Hop, ProbeKind, ProbeReport, ProbeRequest};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};

const NET: &str = "~/providers/Microsoft.Network";

fn id(tail: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{tail}")
}

fn vm(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}")
}

async fn post(world: &World, action: &str, body: Value) -> Answer {
    world.arm(Method::POST, &watcher(action), Some(body)).await
}

/// The body of a check from `vm-a` to an address, with a port.
fn question(address: &str, port: Option<u16>) -> Value {
    json!({"source": {"resourceId": vm("vm-a")}, "destination": {"address": address, "port": port}})
}

/// Answers the next `count` probes with the reports that `report` makes. Returns the requests.
async fn answer_probes(
    stream: &mut Stream,
    count: usize,
    report: impl Fn(&ProbeRequest) -> ProbeReport,
) -> Vec<ProbeRequest> {
    let mut requests = Vec::new();
    while requests.len() < count {
        let Some(FromController::Probe(probe)) = stream.next().await.unwrap() else {
            continue;
        };
        let request: ProbeRequest = serde_json::from_slice(&probe.request).unwrap();
        let report = serde_json::to_vec(&report(&request)).unwrap();
        let result = ProbeResult { id: probe.id, report };
        stream.send(FromAgent::ProbeResult(result)).await;
        requests.push(request);
    }
    requests
}

/// A report with all probes refused, or a trace that arrives at once.
fn refusing(request: &ProbeRequest) -> ProbeReport {
    match request.kind {
        ProbeKind::Trace => ProbeReport {
            hops: vec![Hop {
                address: Some(request.destination),
                rtts_ms: vec![1.2],
            }],
            ..ProbeReport::default()
        },
        ProbeKind::Ping | ProbeKind::Connect => ProbeReport {
            sent: request.count,
            refused: request.count,
            ..ProbeReport::default()
        },
    }
}

/// M5: the agent of the source makes the probes, from the address of its NIC, and the answer has Azure's form.
#[tokio::test]
async fn m5_a_connectivity_check_is_made_by_the_agent() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let other = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let away = post(&world, "connectivityCheck", question("10.2.0.4", Some(443))).await;
    assert_eq!(
        (away.status.as_u16(), away.code()),
        (400, "XAgentNotConnected"),
        "{away:?}"
    );

    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    let _other = other.open_stream(hello_of_today(&other)).await.unwrap();
    stream.config().await;
    let (checked, requests) = tokio::join!(
        post(&world, "connectivityCheck", question("10.2.0.4", Some(443))),
        answer_probes(&mut stream, 2, refusing)
    );
    assert_eq!(checked.status, 200, "{checked:?}");
    let [connect, trace] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(
        (connect.kind, connect.port, connect.count),
        (ProbeKind::Connect, Some(443), 10)
    );
    assert_eq!((trace.kind, trace.port, trace.max_ttl), (ProbeKind::Trace, None, 5));
    assert_eq!(connect.source.to_string(), "10.1.0.4");
    let ip_configuration = |nic: &str| id(&format!("networkInterfaces/{nic}/ipConfigurations/ipconfig1"));
    assert_eq!(
        checked.body,
        json!({
            "connectionStatus": "Unreachable", "probesSent": 10, "probesFailed": 10,
            "hops": [
                {
                    "type": "Source", "id": "hop-0", "address": "10.1.0.4", "resourceId": ip_configuration("a-nic"),
                    "nextHopIds": ["hop-1"], "previousHopIds": [], "previousLinks": [], "issues": [],
                    "links": [{
                        "nextHopId": "hop-1", "linkType": "VNetPeering", "issues": [], "context": {},
                        "resourceId": ip_configuration("b-nic"),
                        "properties": {"roundTripTimeMin": 1, "roundTripTimeAvg": 1, "roundTripTimeMax": 1},
                    }],
                },
                {
                    "type": "VnetLocal", "id": "hop-1", "address": "10.2.0.4", "resourceId": ip_configuration("b-nic"),
                    "nextHopIds": [], "previousHopIds": ["hop-0"], "links": [],
                    "previousLinks": [{
                        "nextHopId": "hop-0", "linkType": "VNetPeering", "issues": [], "context": {},
                        "resourceId": ip_configuration("a-nic"),
                        "properties": {"roundTripTimeMin": 1, "roundTripTimeAvg": 1, "roundTripTimeMax": 1},
                    }],
                    "issues": [{
                        "origin": "Inbound", "severity": "Error", "type": "GuestFirewall",
                        "context": [{"key": "Reason", "value": "refused"}],
                    }],
                },
            ],
        })
    );

    // A trace that differs from `explain` is repeated once. The fabric API shows the difference.
    let silent = |request: &ProbeRequest| ProbeReport {
        sent: request.count,
        received: u32::MAX,
        rtts_ms: vec![0.2; 1000],
        ..ProbeReport::default()
    };
    let body = json!({"from": "vm-a", "to": "b-nic"});
    let (checked, requests) = tokio::join!(
        world.fabric(Method::POST, "check", Some(body)),
        answer_probes(&mut stream, 3, silent)
    );
    assert_eq!(checked.status, 200, "{checked:?}");
    let kinds: Vec<_> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [ProbeKind::Ping, ProbeKind::Trace, ProbeKind::Trace]);
    assert_eq!(
        checked.body["difference"],
        json!({"ttl": 1, "expected": "10.2.0.4", "observed": null})
    );
    assert_eq!(
        [
            &checked.body["connectionStatus"],
            &checked.body["probesFailed"],
            &checked.body["avgLatencyInMs"]
        ],
        [&json!("Reachable"), &json!(0), &json!(1)]
    );
    assert_eq!(checked.body["explained"], true);
}

/// D27: an agent of an earlier version gets no probe that it cannot read.
#[tokio::test]
async fn d27_an_older_agent_is_not_asked_for_connections() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let mut hello = hello_of_today(&agent);
    hello.features.retain(|feature| feature != "connectProbe");
    let mut stream = agent.open_stream(hello).await.unwrap();
    stream.config().await;
    let refused = post(&world, "connectivityCheck", question("10.2.0.4", Some(443))).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "XAgentTooOld"),
        "{refused:?}"
    );
    let probe = json!({"from": "vm-a", "to": "10.2.0.4", "kind": "connect", "port": 443});
    let refused = world.fabric(Method::POST, "probe", Some(probe)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "XAgentTooOld"),
        "{refused:?}"
    );
    // The agent is asked for echo requests, and was asked for nothing before.
    let (checked, requests) = tokio::join!(
        post(&world, "connectivityCheck", question("10.2.0.4", None)),
        answer_probes(&mut stream, 2, refusing)
    );
    assert_eq!(
        (checked.status.as_u16(), requests[0].kind),
        (200, ProbeKind::Ping),
        "{checked:?}"
    );
}

/// M5: values that are not possible are refused by name.
#[tokio::test]
async fn m5_impossible_checks_are_refused_by_field() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    for (field, value, code) in [
        ("protocol", json!("Https"), "XProtocolNotSupported"),
        ("protocol", json!("Tcp"), "InvalidRequestFormat"),
        (
            "destination",
            json!({"address": "www.example.com"}),
            "InvalidRequestFormat",
        ),
        (
            "destination",
            json!({"address": "10.2.0.4", "port": 65_536}),
            "InvalidRequestFormat",
        ),
        (
            "destination",
            json!({"resourceId": vm("none")}),
            "InvalidResourceReference",
        ),
        ("source", json!({"resourceId": vm("none")}), "InvalidResourceReference"),
        (
            "source",
            json!({"resourceId": vm("vm-a"), "port": 7}),
            "XSourcePortNotSupported",
        ),
        ("source", json!(null), "InvalidRequestFormat"),
    ] {
        let mut body = question("10.2.0.4", None);
        body[field] = value.clone();
        let refused = post(&world, "connectivityCheck", body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (400, code),
            "{field}: {value}: {refused:?}"
        );
    }
    for body in [
        json!({"from": "vm-a", "to": "10.2.0.4", "protocol": "udp", "port": 53}),
        json!({"from": "vm-a", "to": "10.2.0.4", "protocol": "tcp", "port": 0}),
        json!({"from": "vm-a", "to": "10.2.0.4", "port": 80}),
    ] {
        let refused = world.fabric(Method::POST, "check", Some(body.clone())).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (400, "InvalidRequestFormat"),
            "{body}: {refused:?}"
        );
    }
}

/// N4, N8: the view of a machine has the rules of each group as they are configured, and all as they apply.
#[tokio::test]
async fn n4_n8_the_security_group_view_of_a_machine() {
    let world = secured().await;
    let body = json!({"targetResourceId": vm("vm-a")});
    let missing = post(&world, "securityGroupView", body.clone()).await;
    assert_eq!(
        (missing.status.as_u16(), missing.code()),
        (400, "InvalidResourceReference")
    );
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let answer = post(&world, "securityGroupView", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let [nic] = &answer.body["networkInterfaces"].as_array().unwrap()[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(nic["id"], id("networkInterfaces/a-nic"));
    let rules = &nic["securityRuleAssociations"];
    assert_eq!(
        rules["networkInterfaceAssociation"]["id"],
        id("networkInterfaces/a-nic")
    );
    assert_eq!(rules["subnetAssociation"]["id"], id("virtualNetworks/a/subnets/w"));
    assert_eq!(rules["subnetAssociation"]["securityRules"], json!([]));
    let group = world
        .arm(Method::GET, &format!("{NET}/networkSecurityGroups/nic"), None)
        .await
        .body;
    assert_eq!(
        rules["networkInterfaceAssociation"]["securityRules"],
        group["properties"]["securityRules"]
    );
    assert_eq!(rules["defaultSecurityRules"].as_array().map(Vec::len), Some(6));
    let effective = rules["effectiveSecurityRules"].as_array().unwrap();
    let names: Vec<_> = effective.iter().map(|rule| rule["name"].as_str().unwrap()).collect();
    for name in [
        "UserRule_https",
        "DefaultRule_AllowVnetOutBound",
        "DefaultInboundDenyAll",
        "DefaultOutboundDenyAll",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let https = effective.iter().find(|rule| rule["name"] == "UserRule_https").unwrap();
    assert_eq!(https["destinationPortRange"], "443-443");

    let none = post(&world, "securityGroupView", json!({"targetResourceId": vm("vm-b")})).await;
    assert_eq!(
        none.body["networkInterfaces"][0]["securityRuleAssociations"],
        json!({
            "networkInterfaceAssociation": null, "subnetAssociation": null,
            "defaultSecurityRules": [], "effectiveSecurityRules": [],
        })
    );
}

/// M8: the fault of a connection follows the reports of the gateway's agent, and the last result can be read again.
#[tokio::test]
async fn m8_troubleshooting_follows_the_reports() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let gateway = |name: &str| id(&format!("virtualNetworkGateways/{name}-gw"));
    for (vnet, n) in [("a", 1), ("b", 2)] {
        let subnet = json!({"properties": {"addressPrefix": format!("10.{n}.255.0/27")}});
        let path = format!("{NET}/virtualNetworks/{vnet}/subnets/GatewaySubnet");
        world.put(&path, subnet).await;
        let place = json!({"subnet": {"id": id(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet"))}});
        let body = json!({"location": "region1", "properties": {
            "gatewayType": "Vpn", "ipConfigurations": [{"name": "default", "properties": place}],
        }});
        world.put(&gateway(vnet), body).await;
    }
    for (name, from, to) in [("there", "a", "b"), ("back", "b", "a")] {
        let body = json!({"location": "region1", "properties": {
            "connectionType": "Vnet2Vnet", "sharedKey": "abc",
            "virtualNetworkGateway1": {"id": gateway(from)}, "virtualNetworkGateway2": {"id": gateway(to)},
        }});
        world.put(&format!("{NET}/connections/{name}"), body).await;
    }
    let target = |target: String| json!({"targetResourceId": target, "properties": {"storageId": "/s", "storagePath": "https://s"}});
    let connection = target(id("connections/there"));
    let never = post(&world, "queryTroubleshootResult", connection.clone()).await;
    assert_eq!((never.status.as_u16(), never.code()), (404, "NotFound"), "{never:?}");
    let binding = |name: &str| json!({"type": "gateway", "gateway": gateway(name), "ipConfiguration": "default"});
    let agent = FakeAgent::join_as(&world, "a-gw", binding("a")).await;
    FakeAgent::join_as(&world, "b-gw", binding("b")).await;
    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    stream.config().await;
    for (state, code, fault) in [
        (LinkState::AuthenticationFailed, "UnHealthy", "Authentication"),
        (LinkState::Unreachable, "UnHealthy", "PeerReachability"),
        (LinkState::Up, "Healthy", "NoFault"),
    ] {
        let status = AgentStatus {
            links: vec![LinkStatus {
                state,
                ..LinkStatus::new("b-gw".parse().unwrap())
            }],
            ..AgentStatus::default()
        };
        let (status, endpoints) = (serde_json::to_vec(&status).unwrap(), Vec::new());
        stream.send(FromAgent::Status(Status { status, endpoints })).await;
        let found = until(fault, async || {
            let found = post(&world, "troubleshoot", connection.clone()).await;
            (found.body["results"][0]["id"] == fault).then_some(found)
        })
        .await;
        assert_eq!(
            (found.status.as_u16(), &found.body["code"]),
            (200, &json!(code)),
            "{found:?}"
        );
        assert_eq!(found.body["results"][0]["reasonType"], fault);
        assert!(
            found.body["startTime"].is_string() && found.body["endTime"].is_string(),
            "{found:?}"
        );
        let again = post(&world, "queryTroubleshootResult", connection.clone()).await;
        assert_eq!((again.status.as_u16(), &again.body), (200, &found.body));
    }
    let healthy = post(&world, "troubleshoot", target(gateway("a"))).await;
    assert_eq!(healthy.body["code"], "Healthy", "{healthy:?}");
    let stopped = post(&world, "troubleshoot", target(gateway("b"))).await;
    let faults: Vec<_> = stopped.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["id"].as_str().unwrap())
        .collect();
    assert_eq!(faults, ["VipUnResponsive", "ConnectionsNotConnected"]);
    let unknown = post(&world, "troubleshoot", target(id("virtualNetworks/a"))).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code()),
        (400, "InvalidResourceReference")
    );
}

/// A monitor that checks a port of `vm-b` from `vm-a`, and from a machine that does not exist.
fn monitor() -> Value {
    json!({"location": "Region 1", "tags": {"owner": "net"}, "properties": {
        "endpoints": [
            {"name": "a", "type": "AzureVM", "resourceId": vm("vm-a")},
            {"name": "nobody", "resourceId": vm("nobody")},
            {"name": "b", "address": "10.2.0.4"},
        ],
        "testConfigurations": [{
            "name": "web", "protocol": "Tcp", "testFrequencySec": 1800, "tcpConfiguration": {"port": 443},
            "successThreshold": {"checksFailedPercent": 50},
        }],
        "testGroups": [
            {"name": "one", "testConfigurations": ["web"], "sources": ["a", "nobody"], "destinations": ["b"]},
        ],
        "outputs": [],
    }})
}

async fn metrics(world: &World) -> String {
    let answer = world.client.get(world.url("/metrics")).bearer_auth(&world.token);
    answer.send().await.unwrap().text().await.unwrap()
}

/// D42: the controller repeats the checks of a monitor, and shows their results as metrics and in the fabric API. The monitor
/// survives a restart of the controller, its results do not.
#[tokio::test]
async fn d42_a_connection_monitor_repeats_its_checks() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    stream.config().await;
    let path = watcher("connectionMonitors/web");
    let made = world.arm(Method::PUT, &path, Some(monitor())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let properties = &made.body["properties"];
    assert_eq!(
        [
            &properties["monitoringStatus"],
            &properties["connectionMonitorType"],
            &made.body["location"]
        ],
        [&json!("Running"), &json!("MultiEndpoint"), &json!("region1")]
    );
    let half = |request: &ProbeRequest| ProbeReport {
        sent: request.count,
        received: 3,
        rtts_ms: vec![0.3, 4.0, 7.0],
        ..ProbeReport::default()
    };
    let requests = answer_probes(&mut stream, 1, half).await;
    assert_eq!(
        (requests[0].kind, requests[0].port, requests[0].count),
        (ProbeKind::Connect, Some(443), 5)
    );
    let shown = until("both tests have a result", async || {
        let shown = world.fabric(Method::GET, "monitors", None).await.body["value"][0].clone();
        let tests = shown["tests"].as_array().unwrap();
        tests.iter().all(|test| test["history"][0].is_object()).then_some(shown)
    })
    .await;
    let [known, unknown] = &shown["tests"].as_array().unwrap()[..] else {
        panic!("{shown}")
    };
    assert_eq!(
        (&known["source"], &known["history"][0]["outcome"]),
        (&json!("a"), &json!("pass"))
    );
    assert_eq!(
        [
            &known["history"][0]["checksFailedPercent"],
            &known["history"][0]["roundTripTimeMs"]
        ],
        [&json!(40), &json!(4)]
    );
    let reason = unknown["history"][0]["reason"].as_str().unwrap();
    assert!(
        unknown["history"][0]["outcome"] == "indeterminate" && reason.starts_with("from:"),
        "{shown}"
    );
    let text = metrics(&world).await;
    let id = made.body["id"].as_str().unwrap();
    let labels =
        format!("{{monitor=\"{id}\",test_group=\"one\",test_configuration=\"web\",source=\"a\",destination=\"b\"}}");
    for line in [
        format!("tombolo_monitor_checks_failed_percent{labels} 40"),
        format!("tombolo_monitor_round_trip_time_ms{labels} 4"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
    }

    world.kill_and_restart().await;
    let again = world.arm(Method::GET, &path, None).await;
    assert_eq!((again.status.as_u16(), &again.body), (200, &made.body));
    let list = world.arm(Method::GET, &watcher("connectionMonitors"), None).await;
    assert_eq!(list.body["value"], json!([made.body]));
    let tagged = world
        .arm(Method::PATCH, &path, Some(json!({"tags": {"owner": "other"}})))
        .await;
    assert_eq!(
        (tagged.status.as_u16(), &tagged.body["tags"]["owner"]),
        (200, &json!("other"))
    );
    let action = |name: &str| watcher(&format!("connectionMonitors/web/{name}"));
    assert_eq!(world.arm(Method::POST, &action("stop"), None).await.status, 200);
    let stopped = world.fabric(Method::GET, "monitors", None).await.body["value"][0].clone();
    assert_eq!((&stopped["running"], &stopped["tests"]), (&json!(false), &json!([])));
    assert!(!metrics(&world).await.contains("tombolo_monitor_checks_failed_percent{"));
    assert_eq!(world.arm(Method::POST, &action("start"), None).await.status, 200);
    let started = world.fabric(Method::GET, "monitors", None).await.body["value"][0].clone();
    assert_eq!(
        (&started["running"], started["tests"].as_array().map(Vec::len)),
        (&json!(true), Some(2))
    );
    let query = world.arm(Method::POST, &action("query"), None).await;
    assert_eq!((query.status.as_u16(), query.code()), (400, "XActionNotSupported"));

    let mut bad = monitor();
    bad["properties"]["testConfigurations"][0]["protocol"] = json!("Http");
    let refused = world.arm(Method::PUT, &path, Some(bad)).await;
    assert_eq!(
        (
            refused.status.as_u16(),
            refused.code(),
            &refused.body["error"]["target"]
        ),
        (
            400,
            "InvalidRequestFormat",
            &json!("properties.testConfigurations[0].protocol")
        ),
        "{refused:?}"
    );
    let mut elsewhere = monitor();
    elsewhere["location"] = json!("region2");
    let refused = world.arm(Method::PUT, &path, Some(elsewhere)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "InvalidResourceLocation")
    );
    let replaced = world.arm(Method::PUT, &path, Some(monitor())).await;
    assert_eq!(replaced.status, 200, "{replaced:?}");
    assert_eq!(
        replaced.body["properties"]["startTime"],
        made.body["properties"]["startTime"]
    );
    for _ in 0..2 {
        assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 204);
    }
    let gone = world.arm(Method::GET, &path, None).await;
    assert_eq!((gone.status.as_u16(), gone.code()), (404, "NotFound"));
    assert_eq!(
        world.fabric(Method::GET, "monitors", None).await.body["value"],
        json!([])
    );
}

/// D42: a monitor that is deleted while others change it stays deleted, and changes of different parts are all kept.
#[tokio::test]
async fn d42_changes_of_a_monitor_at_the_same_time_are_not_lost() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let path = watcher("connectionMonitors/web");
    for _ in 0..20 {
        let made = world.arm(Method::PUT, &path, Some(monitor())).await;
        assert!(made.status.is_success(), "{made:?}");
        let stop = watcher("connectionMonitors/web/stop");
        let tags = json!({"tags": {"owner": "other"}});
        let (stopped, tagged) = tokio::join!(
            world.arm(Method::POST, &stop, None),
            world.arm(Method::PATCH, &path, Some(tags.clone()))
        );
        assert_eq!((stopped.status.as_u16(), tagged.status.as_u16()), (200, 200));
        let read = world.arm(Method::GET, &path, None).await.body;
        assert_eq!(
            (&read["tags"], &read["properties"]["monitoringStatus"]),
            (&tags["tags"], &json!("Stopped"))
        );
        let start = watcher("connectionMonitors/web/start");
        let (gone, _) = tokio::join!(
            world.arm(Method::DELETE, &path, None),
            world.arm(Method::POST, &start, None)
        );
        assert_eq!(gone.status, 204);
        assert_eq!(world.arm(Method::GET, &path, None).await.status, 404);
    }
}

/// D42: a monitor outlives the last resource of its region, and can be deleted then. It goes with the watchers' group.
#[tokio::test]
async fn d42_a_monitor_can_be_deleted_without_a_resource_in_its_region() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let vnet = "~/providers/Microsoft.Network/virtualNetworks/far";
    let space = json!({"location": "region2", "properties": {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}}});
    let mut far = monitor();
    far["location"] = json!("region2");
    let path = watcher("connectionMonitors/far").replace("region1", "region2");
    for by_group in [false, true] {
        world.put(vnet, space.clone()).await;
        let made = world.arm(Method::PUT, &path, Some(far.clone())).await;
        assert_eq!(made.status, 201, "{made:?}");
        world.arm(Method::DELETE, vnet, None).await;
        let group = path.split("/providers").next().unwrap();
        if by_group {
            world.put(group, json!({"location": "region1"})).await;
        }
        let delete = match by_group {
            true => group,
            false => path.as_str(),
        };
        let gone = world.arm(Method::DELETE, delete, None).await;
        assert_eq!(gone.status, if by_group { 202 } else { 204 }, "{gone:?}");
        world.put(vnet, space.clone()).await;
        assert_eq!(world.arm(Method::GET, &path, None).await.status, 404, "{by_group}");
    }
}

#[tokio::test]
async fn d42_a_monitor_that_would_fill_the_memory_is_refused() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let path = watcher("connectionMonitors/web");
    let mut large = monitor();
    large["properties"]["outputs"] = json!([{"type": "Workspace", "more": "x".repeat(70_000)}]);
    let refused = world.arm(Method::PUT, &path, Some(large)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "XConnectionMonitorTooLarge")
    );
    let mut twice = monitor();
    twice["properties"]["testGroups"][0]["sources"] = json!(["a", "a"]);
    let refused = world.arm(Method::PUT, &path, Some(twice)).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "InvalidRequestFormat"));
    assert_eq!(refused.body["error"]["target"], "properties.testGroups[0].sources");
}
