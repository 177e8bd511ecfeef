//! Tests of reachability: who reaches whom, what a proposed change connects and cuts, and assertions.

use crate::world::{GROUP, World};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn id(tail: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{tail}")
}

/// Two VNets, each with a network interface, and no agent.
async fn two_nics() -> World {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world
}

/// The two halves of a peering of the VNets `a` and `b`, as proposed changes.
fn peering() -> Value {
    let half = |from: &str, to: &str| {
        json!({"path": id(&format!("virtualNetworks/{from}/virtualNetworkPeerings/to-{to}")), "body": {"properties": {
            "remoteVirtualNetwork": {"id": id(&format!("virtualNetworks/{to}"))}, "allowVirtualNetworkAccess": true,
        }}})
    };
    json!([half("a", "b"), half("b", "a")])
}

async fn ask(world: &World, path: &str, question: Value) -> (StatusCode, Value) {
    let answer = world.fabric(Method::POST, path, Some(question)).await;
    (answer.status, answer.body)
}

/// D41, D43: a proposed peering connects its two networks, before any agent has joined, and nothing is changed. After the
/// peering is made, both reach each other, and its deletion would cut them.
#[tokio::test]
async fn d41_d43_what_a_change_connects_and_cuts() {
    let world = two_nics().await;
    let (status, before) = ask(&world, "reach", json!({})).await;
    assert_eq!((status, &before["entries"]), (StatusCode::OK, &json!([])), "{before}");
    assert_eq!(before["groups"][0]["name"], "a/w", "{before}");

    let (status, effect) = ask(&world, "reach/diff", json!({"changes": peering()})).await;
    assert_eq!(status, StatusCode::OK, "{effect}");
    assert_eq!((&effect["cuts"], &effect["violations"]), (&json!([]), &json!([])));
    let connects = effect["connects"].as_array().unwrap();
    assert_eq!(connects.len(), 2, "{effect}");
    let first = &connects[0];
    assert_eq!(
        (&first["tcp"], &first["udp"], &first["icmp"]),
        (&json!(["*"]), &json!(["*"]), &json!(true))
    );
    assert_eq!(first["from"][0]["address"], "10.1.0.4");
    assert_eq!(ask(&world, "reach", json!({})).await.1, before, "nothing was changed");

    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let (_, after) = ask(&world, "reach", json!({"from": ["a"], "to": ["b/w"]})).await;
    assert_eq!(after["entries"].as_array().map(Vec::len), Some(1), "{after}");
    let gone = json!([{"path": id("virtualNetworks/a/virtualNetworkPeerings/to-b")}]);
    let (_, effect) = ask(&world, "reach/diff", json!({"changes": gone})).await;
    assert_eq!(effect["cuts"].as_array().map(Vec::len), Some(2), "{effect}");
}

/// D41: an assertion that would not hold is named with a pair that breaks it.
#[tokio::test]
async fn d41_assertions_are_checked_after_the_proposed_changes() {
    let world = two_nics().await;
    let assertions = json!([
        {"never": {"from": "a", "to": "b", "protocol": "tcp", "ports": ["22"]}},
        {"always": {"from": "b-nic", "to": "10.1.0.0/24"}},
    ]);
    let (_, now) = ask(&world, "reach/diff", json!({"assertions": assertions})).await;
    assert_eq!(now["violations"].as_array().map(Vec::len), Some(1), "{now}");
    assert_eq!(now["violations"][0]["assertion"], 1);
    let (_, after) = ask(
        &world,
        "reach/diff",
        json!({"changes": peering(), "assertions": assertions}),
    )
    .await;
    let [broken] = &after["violations"].as_array().unwrap()[..] else {
        panic!("one assertion does not hold: {after}");
    };
    assert_eq!(
        broken["text"],
        "never from a to b: a-nic (10.1.0.4) reaches b-nic (10.2.0.4) by tcp 22"
    );
}

/// D3, D41: a change that the controller would refuse has the answer of the refusal; unknown names, ports and fields are
/// named.
#[tokio::test]
async fn d41_bad_questions_are_refused_by_name() {
    let world = two_nics().await;
    let overlapping = json!({"path": id("virtualNetworks/a/subnets/second"), "body": {"properties": {"addressPrefix": "10.1.0.0/24"}}});
    for (path, question, code, words) in [
        (
            "reach",
            json!({"from": ["nobody"]}),
            "InvalidResourceReference",
            "from: 'nobody' is not",
        ),
        ("reach", json!({"source": []}), "InvalidRequestContent", "source"),
        (
            "reach/diff",
            json!({"changes": [overlapping]}),
            "NetcfgSubnetRangesOverlap",
            "second",
        ),
        (
            "reach/diff",
            json!({"changes": [{"path": "nonsense"}]}),
            "InvalidResourceId",
            "changes[0].path",
        ),
        (
            "reach/diff",
            json!({"assertions": [{"never": {"from": "a", "to": "b", "ports": ["70000"]}}]}),
            "InvalidResourceReference",
            "assert[0].ports: '70000'",
        ),
        (
            "reach/diff",
            json!({"assertions": [{"never": {"from": "a", "to": "b", "protocol": "icmp", "ports": ["1"]}}]}),
            "InvalidResourceReference",
            "ICMP has no ports",
        ),
        (
            "reach/diff",
            json!({"assertions": [{}]}),
            "InvalidRequestContent",
            "needs never or always",
        ),
    ] {
        let (status, body) = ask(&world, path, question).await;
        let error = &body["error"];
        assert_eq!(
            (status, &error["code"]),
            (StatusCode::BAD_REQUEST, &json!(code)),
            "{body}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{words}: {body}");
    }
}

/// D43: `explain` answers before agents have joined, if it is asked about the design.
#[tokio::test]
async fn d43_the_design_is_explained_before_agents_join() {
    let world = two_nics().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let question = |design: bool| json!({"from": "a-nic", "to": "b-nic", "design": design});
    let (status, body) = ask(&world, "explain", question(false)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    let (status, body) = ask(&world, "explain", question(true)).await;
    assert_eq!((status, &body["reachable"]), (StatusCode::OK, &json!(true)), "{body}");
}

/// D41: stored assertions refuse the change that would break them, by whichever client it is made, and survive a `kill -9`
/// of the controller. Changes that break none are made.
#[tokio::test]
async fn d41_stored_assertions_refuse_a_write() {
    let mut world = two_nics().await;
    let put = async |world: &World, assertions: Value| {
        let question = Some(json!({"assertions": assertions}));
        let answer = world.fabric(Method::PUT, "assertions", question).await;
        (answer.status, answer.body)
    };
    let never = json!([{"never": {"from": "a", "to": "b", "protocol": "tcp"}}]);
    let (status, refused) = put(&world, json!([{"always": {"from": "a", "to": "b"}}])).await;
    assert_eq!(status, StatusCode::CONFLICT, "it does not hold: {refused}");
    assert_eq!(refused["error"]["code"], "XAssertionViolated");
    let (status, _) = put(&world, json!([{"never": {"from": "a", "to": "nothing"}}])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a name means nothing");
    assert_eq!(put(&world, never.clone()).await.0, StatusCode::OK);

    world.kill_and_restart().await;
    let stored = world.fabric(Method::GET, "assertions", None).await.body;
    assert_eq!(stored, json!({"assertions": never, "violations": []}));

    // One half alone connects nothing.
    world.peer("a", "b").await;
    let half = peering()[1].clone();
    let path = half["path"].as_str().unwrap();
    let refused = world.arm(Method::PUT, path, Some(half["body"].clone())).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "RequestDisallowedByPolicy");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("never from a to b") && message.contains("tcp"),
        "{message}"
    );
    assert_eq!(world.arm(Method::GET, path, None).await.status, StatusCode::NOT_FOUND);
    let (_, proposed) = ask(&world, "reach/diff", json!({"changes": [half]})).await;
    assert_eq!(proposed["refused"].as_array().map(Vec::len), Some(1), "{proposed}");

    // What the assertion names may not go either, because it would no longer say anything.
    let nic = id("networkInterfaces/b-nic");
    let gone = world.arm(Method::DELETE, &nic, None).await;
    assert_eq!(gone.status, StatusCode::FORBIDDEN, "{}", gone.body);

    assert_eq!(put(&world, json!([])).await.0, StatusCode::OK);
    world.peer("b", "a").await;
    let (_, connected) = ask(&world, "reach", json!({"from": ["a"], "to": ["b"]})).await;
    assert_eq!(connected["entries"].as_array().map(Vec::len), Some(1), "{connected}");
}

/// The present revision.
async fn revision(world: &World) -> u64 {
    let answer = world.fabric(Method::GET, "revisions", None).await;
    answer.body["desired"].as_u64().unwrap()
}

/// D41: the states of earlier revisions are compared, also after a restart.
#[tokio::test]
async fn d41_what_changes_since_a_revision_connect_and_cut() {
    let mut world = two_nics().await;
    let apart = revision(&world).await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let peered = revision(&world).await;
    let half = id("virtualNetworks/a/virtualNetworkPeerings/to-b");
    world.arm(Method::DELETE, &half, None).await;
    world.kill_and_restart().await;
    let entries = |answer: &Value, side: &str| answer[side].as_array().map(Vec::len).unwrap();
    let (_, both) = ask(&world, "reach/diff", json!({"since": apart, "until": peered})).await;
    assert_eq!((entries(&both, "connects"), entries(&both, "cuts")), (2, 0), "{both}");
    let (_, later) = ask(&world, "reach/diff", json!({"since": peered})).await;
    assert_eq!(
        (entries(&later, "connects"), entries(&later, "cuts")),
        (0, 2),
        "{later}"
    );
    let (_, all) = ask(&world, "reach/diff", json!({"since": apart})).await;
    assert_eq!((entries(&all, "connects"), entries(&all, "cuts")), (0, 0), "{all}");
    let (_, again) = ask(&world, "reach/diff", json!({"until": apart, "changes": peering()})).await;
    assert_eq!(
        (entries(&again, "connects"), entries(&again, "cuts")),
        (2, 0),
        "{again}"
    );

    for (field, wanted) in [("since", 1_000_000), ("until", u64::MAX)] {
        let (status, answer) = ask(&world, "reach/diff", json!({field: wanted})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{field}: revision ")), "{message}");
    }
}
