//! What agents of neighbouring versions get: a configuration that they understand (D27).

use crate::fake_agent::FakeAgent;
use crate::world::World;
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::Hello;

const NETWORK: &str = "~/providers/Microsoft.Network";

/// The Hello of an agent of this version.
fn hello_of_today(agent: &FakeAgent) -> Hello {
    Hello {
        agent: agent.id.clone(),
        endpoints: vec!["0.0.0.0:51820".into()],
        version: "test".into(),
        features: Feature::ALL.iter().map(|f| f.name().to_owned()).collect(),
        ..Hello::default()
    }
}

/// Attaches a new group to a NIC.
async fn attach(world: &World, nic: &str) {
    let group = format!("{NETWORK}/networkSecurityGroups/web");
    let made = world
        .arm(Method::PUT, &group, Some(json!({"location": "region1"})))
        .await;
    assert!(made.status.is_success(), "{made:?}");
    let nic = format!("{NETWORK}/networkInterfaces/{nic}");
    let mut body: Value = world.arm(Method::GET, &nic, None).await.body;
    body["properties"]["networkSecurityGroup"] = json!({"id": made.body["id"]});
    let put = world.arm(Method::PUT, &nic, Some(body)).await;
    assert!(put.status.is_success(), "{put:?}");
}

#[tokio::test]
async fn d27_an_agent_that_cannot_enforce_a_group_gets_no_links_and_every_other_change() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let old = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let today = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let (mut stream, mut other) = (
        old.hello(0, "").await.unwrap(),
        today.open_stream(hello_of_today(&today)).await.unwrap(),
    );
    let (config, parsed) = stream.config().await;
    assert_eq!(parsed.links.len(), 1, "without a group an older agent gets all");
    stream.applied(&config).await;
    let (config, _) = other.config().await;
    other.applied(&config).await;

    attach(&world, "a-nic").await;
    let (config, parsed) = stream.config().await;
    assert!(parsed.links.is_empty() && parsed.security.is_none(), "{parsed:?}");
    stream.applied(&config).await;
    let agents = world.fabric(Method::GET, "revisions", None).await.body;
    let entry = agents["agents"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["agent"] == "vm-a")
        .unwrap()
        .clone();
    let reason = entry["rejected"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(
        reason.contains("securityGroups") && reason.contains("upgraded"),
        "{entry}"
    );

    // The upgraded agent gets the group and its links.
    let mut upgraded = old.open_stream(hello_of_today(&old)).await.unwrap();
    let (_, parsed) = upgraded.config().await;
    assert_eq!(parsed.links.len(), 1);
    assert_eq!(
        parsed.security.unwrap().nics[0].nic_group.as_ref().map(|g| g.name()),
        Some("web")
    );
}

#[tokio::test]
async fn d27_features_of_a_later_version_are_no_error() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut hello = hello_of_today(&agent);
    hello.features.push("ofALaterVersion".into());
    agent.open_stream(hello).await.unwrap().config().await;
}
