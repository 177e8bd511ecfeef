//! Site probes (M10): what the controller sends to the host of a probe, and what it takes from there.

use crate::fake_agent::{FakeAgent, csr};
use crate::features::hello_of_today;
use crate::world::{GROUP, World, answer, until};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{Applied, ProbeResult, Rejected, Status};
use tombolo_proto::id::{PublicKey, ResourceId};
use tombolo_proto::probe::{ProbeReport, ProbeRequest};
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_proto::status::{AgentStatus, NeighbourRoutes};

fn site(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/localNetworkGateways/{name}")
}

fn binding() -> Value {
    json!({"type": "site", "attachments": [site("office")], "address": "192.168.7.10"})
}

/// Two peered VNets, and a site that no connection joins with them yet.
async fn world() -> World {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let office = json!({"location": "region1", "properties": {"localNetworkAddressSpace": {"addressPrefixes": ["192.168.7.0/24"]}}});
    let put = world
        .put("~/providers/Microsoft.Network/localNetworkGateways/office", office)
        .await;
    assert!(put.status.is_success(), "{put:?}");
    world
}

/// M10: a probe's stream carries requests for probes and nothing else, whatever changes in the network. A check from the site
/// takes the name of the agent or the id of the attachment.
#[tokio::test]
async fn m10_a_probe_gets_requests_and_nothing_else() {
    let world = world().await;
    let probe = FakeAgent::join_as(&world, "office-probe", binding()).await;
    let vm = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = probe.open_stream(hello_of_today(&probe)).await.unwrap();
    let mut other = vm.open_stream(hello_of_today(&vm)).await.unwrap();
    // The machine gets its configuration, and a new one after the peering is gone. So the controller has sent what it sends.
    let (config, _) = other.config().await;
    other.applied(&config).await;
    let half = "~/providers/Microsoft.Network/virtualNetworks/a/virtualNetworkPeerings/to-b";
    let deleted = world.arm(Method::DELETE, half, None).await;
    assert!(deleted.status.is_success(), "{deleted:?}");
    other.config().await;
    assert!(stream.quiet().await, "a probe gets no message about the network");

    for from in ["office-probe".to_owned(), site("office"), "192.168.7.10".to_owned()] {
        let body = json!({"from": from, "to": "10.1.0.4"});
        let answers = async {
            let mut requests = Vec::new();
            while requests.len() < 2 {
                match stream.next().await.unwrap().unwrap() {
                    FromController::Probe(sent) => {
                        let request: ProbeRequest = serde_json::from_slice(&sent.request).unwrap();
                        let report = serde_json::to_vec(&ProbeReport::default()).unwrap();
                        let result = ProbeResult { id: sent.id, report };
                        stream.send(FromAgent::ProbeResult(result)).await;
                        requests.push(request);
                    }
                    other => panic!("{other:?}"),
                }
            }
            requests
        };
        let (checked, requests) = tokio::join!(world.fabric(Method::POST, "check", Some(body)), answers);
        assert_eq!(checked.status, 200, "{checked:?}");
        assert!(
            requests
                .iter()
                .all(|r| r.source.to_string() == "192.168.7.10" && r.destination.to_string() == "10.1.0.4"),
            "{requests:?}"
        );
        assert_eq!(checked.body["connectionStatus"], "Unreachable");
        let summary = checked.body["summary"].as_str().unwrap();
        assert!(summary.contains("no connection joins the site office"), "{summary}");
    }
    let shown = world.fabric(Method::GET, "agents/office-probe", None).await.body;
    assert_eq!((&shown["connected"], &shown["endpoints"]), (&json!(true), &json!([])));
    assert_eq!(shown["binding"], binding());
    let config = world.fabric(Method::GET, "agents/office-probe/config", None).await;
    assert_eq!(config.status, 404, "{config:?}");
    let revisions = world.fabric(Method::GET, "revisions", None).await.body;
    let of_probe = revisions["agents"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["agent"] == "office-probe");
    assert_eq!(of_probe.unwrap()["upToDate"], true, "{revisions}");
    // Revoking ends the stream.
    let revoked = world.fabric(Method::POST, "agents/office-probe/revoke", None).await;
    assert_eq!(revoked.status, 204, "{revoked:?}");
    assert!(stream.next().await.is_err());
}

/// M10: whatever the host of a probe sends, the state of the network, of the store and of the agent stays as it is; a report
/// that is too long ends the stream.
#[tokio::test]
async fn m10_a_hostile_probe_changes_nothing() {
    let world = world().await;
    let probe = FakeAgent::join_as(&world, "office-probe", binding()).await;
    let stream = probe.hello(1 << 40, "digest").await.unwrap();
    let connected = async || {
        let shown = world.fabric(Method::GET, "agents/office-probe", None).await;
        (shown.body["connected"] == true).then_some(shown)
    };
    let before = until("the probe is connected", connected).await;
    let question = json!({"from": "192.168.7.10", "to": "10.9.9.9"});
    let explain = async || world.fabric(Method::POST, "explain", Some(question.clone())).await.body;
    let explained = explain().await;

    let route = Route {
        prefix: "10.9.0.0/16".parse().unwrap(),
        via: None,
        as_path: vec![65_001],
        weight: 0,
        origin: RouteOrigin::Site,
    };
    let status = AgentStatus {
        digest: "digest".into(),
        learned: vec![NeighbourRoutes {
            neighbour: ResourceId::new(site("office")),
            routes: vec![route],
        }],
        ..AgentStatus::default()
    };
    let (revision, digest) = (1 << 40, "digest".to_owned());
    stream
        .send(FromAgent::Status(Status {
            status: serde_json::to_vec(&status).unwrap(),
            endpoints: vec!["198.51.100.66:51820".into()],
        }))
        .await;
    stream
        .send(FromAgent::Status(Status {
            status: b"no json".to_vec(),
            endpoints: vec![],
        }))
        .await;
    stream
        .send(FromAgent::Applied(Applied {
            revision,
            digest: digest.clone(),
        }))
        .await;
    stream
        .send(FromAgent::Rejected(Rejected {
            revision,
            digest,
            reason: "x".repeat(100_000),
        }))
        .await;
    // Nobody waits for this report.
    let unasked = serde_json::to_vec(&ProbeReport::default()).unwrap();
    stream
        .send(FromAgent::ProbeResult(ProbeResult { id: 7, report: unasked }))
        .await;
    // The controller reads messages in order, so it has read all of them when it ends the stream for this one.
    let long = FromAgent::ProbeResult(ProbeResult {
        id: 8,
        report: vec![b' '; 65 << 10],
    });
    stream.send(long).await;
    let mut stream = stream;
    let status = stream.next().await.unwrap_err();
    assert!(status.message().contains("at most 65536 are possible"), "{status:?}");

    let after = world.fabric(Method::GET, "agents/office-probe", None).await;
    for field in [
        "endpoints",
        "appliedRevision",
        "desiredDigest",
        "appliedDigest",
        "rejected",
        "status",
    ] {
        assert_eq!(after.body[field], before.body[field], "{field}");
    }
    assert!(after.body.get("status").is_none_or(Value::is_null), "{after:?}");
    assert_eq!(explain().await, explained);
    assert_eq!(world.document("fabric/agents/office-probe")["endpoints"], json!([]));
}

/// M10: a probe's token has a form of its own, which earlier agents do not accept, and works in this form only.
#[tokio::test]
async fn m10_a_token_of_a_probe_has_a_form_of_its_own() {
    let world = world().await;
    let body = json!({"agent": "office-probe", "binding": binding()});
    let token = world.fabric(Method::POST, "tokens", Some(body)).await.body["token"].clone();
    let token = token.as_str().unwrap();
    let rest = token.strip_prefix("tmb1probe.").unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let join = async |token: &str| {
        let body = json!({"token": token, "csr": csr(&key), "publicKey": PublicKey([9; 32]), "endpoints": ["192.0.2.1:51820"]});
        answer(world.client.post(world.url("/fabric/v1/join")).json(&body)).await
    };
    let refused = join(&format!("tmb1.{rest}")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (403, "XTokenInvalid"),
        "{refused:?}"
    );
    assert_eq!(join(token).await.status, 200);
    let shown = world.fabric(Method::GET, "agents/office-probe", None).await.body;
    assert_eq!(shown["endpoints"], json!([]), "a probe has no links");
    // A token for a machine does not become one for a probe.
    let machine = json!({"agent": "vm-a", "binding": crate::fake_agent::vm("vm-a", "a-nic")});
    let token = world.fabric(Method::POST, "tokens", Some(machine)).await.body["token"].clone();
    let rest = token.as_str().unwrap().strip_prefix("tmb1.").unwrap().to_owned();
    assert_eq!(join(&format!("tmb1probe.{rest}")).await.status, 403);
}
