//! What agents of neighbouring versions get: a configuration that they understand (D27).

use crate::fake_agent::FakeAgent;
use crate::world::World;
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::{self, Hello, Rejected, piece};

const NETWORK: &str = "~/providers/Microsoft.Network";

/// The Hello of an agent of this version.
pub(crate) fn hello_of_today(agent: &FakeAgent) -> Hello {
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

/// An application security group with 100 addresses, to which the rule of one NIC refers: one address more is a small
/// message. An older agent, and one that has rejected a change, get the whole configuration.
#[tokio::test]
async fn d27_a_small_change_of_a_configuration_is_sent_as_a_change() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    attach(&world, "a-nic").await;
    let put = async |path: String, body: Value| {
        let answer = world.arm(Method::PUT, &format!("{NETWORK}/{path}"), Some(body)).await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.body["id"].clone()
    };
    let members = put(
        "applicationSecurityGroups/members".into(),
        json!({"location": "region1"}),
    )
    .await;
    let rule = json!({"properties": {
        "priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "Tcp",
        "sourceApplicationSecurityGroups": [{"id": members}], "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": "443",
    }});
    put("networkSecurityGroups/web/securityRules/members".into(), rule).await;
    let subnet = world
        .arm(Method::GET, &format!("{NETWORK}/networkInterfaces/a-nic"), None)
        .await
        .body["properties"]["ipConfigurations"][0]["properties"]["subnet"]
        .clone();
    let add_member = async |number: usize| {
        let configuration = json!({"name": "one", "properties": {
            "subnet": subnet, "applicationSecurityGroups": [{"id": members}],
        }});
        let body = json!({"location": "region1", "properties": {"ipConfigurations": [configuration]}});
        put(format!("networkInterfaces/member-{number}"), body).await;
    };
    for number in 0..100 {
        add_member(number).await;
    }
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    let (config, _) = stream.config().await;
    assert!(config.base.is_empty(), "the first one is whole");
    stream.applied(&config).await;
    add_member(100).await;
    let (config, parsed) = stream.config().await;
    let weight = |piece: &control_stream::Piece| match &piece.content {
        Some(piece::Content::Data(data)) => data.len(),
        Some(piece::Content::Part(_)) | None => 8,
    };
    let sent: usize = config.pieces.iter().map(weight).sum();
    assert!(
        !config.base.is_empty() && sent < config.config.len() / 2,
        "{sent} of {}",
        config.config.len()
    );
    let groups = parsed.security.unwrap().application_groups;
    assert_eq!(groups[0].addresses.len(), 101);

    // The change is not applied, so the next message is a change of the configuration before.
    let rejected = Rejected {
        revision: config.revision,
        digest: config.digest.clone(),
        reason: "test".into(),
    };
    stream.send(FromAgent::Rejected(rejected)).await;
    let mut hello = hello_of_today(&agent);
    hello.features.retain(|f| f != Feature::ConfigDelta.name());
    let mut older = agent.open_stream(hello).await.unwrap();
    let (config, _) = older.config().await;
    older.applied(&config).await;
    add_member(101).await;
    assert!(
        older.config().await.0.base.is_empty(),
        "an agent without the feature gets all"
    );
}
