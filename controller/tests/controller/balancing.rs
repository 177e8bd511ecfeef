//! The health of back ends: agents report it, and the controller passes it to the agents that know the front end (L6, D36).
//! Actions on back-end pools (L2).

use crate::fake_agent::{FakeAgent, Stream};
use crate::features::hello_of_today;
use crate::world::{Answer, EVENT_TIMEOUT, GROUP, World};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{Health, Owner, Status};
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::{AgentStatus, BackEndHealth, HealthVersion, ProbeFailure};

const NETWORK: &str = "~/providers/Microsoft.Network";

fn id(tail: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{tail}")
}

/// Two peered VNets. The load balancer `lb` in `a` has the NIC `a-nic` as back end, and a probe.
async fn balanced() -> World {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let lb = |tail: &str| json!({"id": id(&format!("loadBalancers/lb/{tail}"))});
    let nic = format!("{NETWORK}/networkInterfaces/a-nic");
    let mut a_nic: Value = world.arm(Method::GET, &nic, None).await.body;
    let subnet = a_nic["properties"]["ipConfigurations"][0]["properties"]["subnet"].clone();
    let body = json!({"location": "region1", "sku": {"name": "Standard"}, "properties": {
        "frontendIPConfigurations": [{"name": "front", "properties": {"subnet": subnet}}],
        "backendAddressPools": [{"name": "pool"}],
        "probes": [{"name": "probe", "properties": {"protocol": "Tcp", "port": 8080, "intervalInSeconds": 5}}],
        "loadBalancingRules": [{"name": "web", "properties": {
            "protocol": "Tcp", "frontendPort": 80, "backendPort": 8080,
            "frontendIPConfiguration": lb("frontendIPConfigurations/front"),
            "backendAddressPool": lb("backendAddressPools/pool"), "probe": lb("probes/probe"),
        }}],
    }});
    world.put(&format!("{NETWORK}/loadBalancers/lb"), body).await;
    a_nic["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] =
        json!([lb("backendAddressPools/pool")]);
    world.put(&nic, a_nic).await;
    world
}

/// Reports the health of the only back end.
async fn report(stream: &Stream, address: &str, up: bool) {
    report_version(stream, address, up, None).await;
}

async fn report_version(stream: &Stream, address: &str, up: bool, version: Option<HealthVersion>) {
    report_reason(stream, address, up, version, None).await;
}

async fn report_reason(
    stream: &Stream,
    address: &str,
    up: bool,
    health_version: Option<HealthVersion>,
    reason: Option<ProbeFailure>,
) {
    let status = AgentStatus {
        health: vec![BackEndHealth {
            probe: ResourceId::new(id("loadBalancers/lb/probes/probe")),
            address: address.parse().unwrap(),
            up,
            reason,
        }],
        health_version,
        ..AgentStatus::default()
    };
    let status = Status {
        status: serde_json::to_vec(&status).unwrap(),
        ..Status::default()
    };
    stream.send(FromAgent::Status(status)).await;
}

/// The addresses that the next message reports as down.
async fn down(stream: &mut Stream) -> BTreeSet<String> {
    match stream.next().await.unwrap() {
        Some(FromController::Health(Health { down, .. })) => down.into_iter().map(|d| d.address).collect(),
        other => panic!("{other:?}"),
    }
}

async fn shown(world: &World) -> Value {
    let path = format!("{NETWORK}/loadBalancers/lb/loadBalancingRules/web/health");
    let answer = world.arm(Method::POST, &path, None).await;
    assert!(answer.status.is_success(), "{answer:?}");
    answer.body
}

#[tokio::test]
async fn l6_the_health_of_a_back_end_reaches_the_agents_that_know_its_front_end() {
    let world = balanced().await;
    let owner = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let client = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let mut owners = owner.open_stream(hello_of_today(&owner)).await.unwrap();
    let mut clients = client.open_stream(hello_of_today(&client)).await.unwrap();
    let (config, parsed) = clients.config().await;
    let address = parsed.front_ends[0].rules[0].back_ends[0].to_string();
    clients.applied(&config).await;
    assert!(down(&mut clients).await.is_empty(), "nothing is known yet");
    let (config, _) = owners.config().await;
    owners.applied(&config).await;
    assert!(down(&mut owners).await.is_empty());
    assert_eq!(shown(&world).await["down"], 1, "no agent has probed it yet");

    report(&owners, &address, false).await;
    assert_eq!(down(&mut clients).await, [address.clone()].into());
    assert_eq!(down(&mut owners).await, [address.clone()].into());
    report(&owners, &address, true).await;
    assert!(down(&mut clients).await.is_empty());
    assert!(down(&mut owners).await.is_empty());
    let health = shown(&world).await;
    assert_eq!((&health["up"], &health["down"]), (&json!(1), &json!(0)));
    let member = &health["loadBalancerBackendAddresses"][0];
    assert_eq!(
        (&member["ipAddress"], &member["state"]),
        (&json!(address), &json!("Up"))
    );

    // An agent that does not own the back end is not believed.
    report(&clients, &address, false).await;
    assert!(clients.quiet().await && owners.quiet().await);
    assert_eq!(shown(&world).await["up"], 1);

    // The reason why a back end is down, which agents of earlier versions do not report. The other agents are not told it.
    for (reason, text) in [
        (None, "The back end does not answer the probe."),
        (
            Some(ProbeFailure::Refused),
            "The back end is down: the back end refuses the connection.",
        ),
        (
            Some(ProbeFailure::Status(503)),
            "The back end is down: the HTTP status of the response is 503, not 200.",
        ),
    ] {
        report_reason(&owners, &address, false, None, reason).await;
        let seen = async {
            while shown(&world).await["loadBalancerBackendAddresses"][0]["reason"] != text {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(EVENT_TIMEOUT, seen).await.expect(text);
    }
    assert_eq!(down(&mut clients).await, [address.clone()].into());
    assert_eq!(down(&mut owners).await, [address.clone()].into());
    assert!(clients.quiet().await && owners.quiet().await);
    report(&owners, &address, true).await;
    assert!(down(&mut clients).await.is_empty());
    assert!(down(&mut owners).await.is_empty());

    // An agent that connects again is told what is known now. An agent of version 0.1 is told nothing.
    report(&owners, &address, false).await;
    assert_eq!(down(&mut clients).await.len(), 1);
    let mut again = client.open_stream(hello_of_today(&client)).await.unwrap();
    let (config, _) = again.config().await;
    again.applied(&config).await;
    assert_eq!(down(&mut again).await, [address].into());
    let mut old = client.hello(0, "").await.unwrap();
    let (config, parsed) = old.config().await;
    assert!(parsed.front_ends.is_empty());
    old.applied(&config).await;
    assert!(old.quiet().await);
}

/// D36: an agent learns of which report of an owner the controller knows, so that it can compare this report with what the owner
/// has stated over the link. Owners that have not reported are left out.
#[tokio::test]
async fn d36_the_controller_passes_on_which_reports_it_has() {
    async fn next(stream: &mut Stream) -> (usize, Option<Owner>) {
        match stream.next().await.unwrap() {
            Some(FromController::Health(Health {
                down,
                mut owners,
                has_owners: true,
            })) => {
                assert!(owners.len() <= 1, "only owners of back ends: {owners:?}");
                (down.len(), owners.pop())
            }
            other => panic!("{other:?}"),
        }
    }
    let world = balanced().await;
    let owner = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let client = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let mut owners = owner.open_stream(hello_of_today(&owner)).await.unwrap();
    let mut clients = client.open_stream(hello_of_today(&client)).await.unwrap();
    let (config, parsed) = clients.config().await;
    let address = parsed.front_ends[0].rules[0].back_ends[0].to_string();
    clients.applied(&config).await;
    assert_eq!(next(&mut clients).await, (0, None), "the owner has not reported yet");
    let (config, _) = owners.config().await;
    owners.applied(&config).await;
    let known = |start, change| {
        let agent = "vm-a".into();
        Some(Owner { agent, start, change })
    };
    // An owner that does not number its reports.
    report(&owners, &address, false).await;
    assert_eq!(next(&mut clients).await, (1, known(0, 0)));
    // A change that makes no difference for the client is passed on too: a statement over the link may be older.
    for (up, start, change) in [(false, 7, 1), (true, 7, 2), (true, 7, 4), (true, 9, 1)] {
        report_version(&owners, &address, up, Some(HealthVersion { start, change })).await;
        assert_eq!(next(&mut clients).await, (usize::from(!up), known(start, change)));
    }
    report_version(&owners, &address, true, Some(HealthVersion { start: 9, change: 1 })).await;
    assert!(clients.quiet().await);
}

async fn post(world: &World, tail: &str, body: Value) -> Answer {
    let path = format!("{NETWORK}/loadBalancers/lb{tail}");
    world.arm(Method::POST, &path, Some(body)).await
}

/// L2: the inbound NAT rules to a member of a pool, and the migration of the pool to addresses.
#[tokio::test]
async fn l2_a_pool_shows_the_ports_of_its_members_and_is_migrated() {
    const QUERY: &str = "/backendAddressPools/pool/queryInboundNatRulePortMapping";
    let world = balanced().await;
    let lb = format!("{NETWORK}/loadBalancers/lb");
    let mut balancer = world.arm(Method::GET, &lb, None).await.body;
    let front = json!({"id": id("loadBalancers/lb/frontendIPConfigurations/front")});
    let rule = |name: &str, port: u16| {
        json!({"name": name, "properties": {
            "protocol": "Tcp", "frontendPort": port, "backendPort": 22, "frontendIPConfiguration": front,
        }})
    };
    balancer["properties"]["inboundNatRules"] = json!([rule("ssh", 2222), rule("other", 2223)]);
    world.put(&lb, balancer).await;
    let nic = format!("{NETWORK}/networkInterfaces/a-nic");
    let mut a_nic = world.arm(Method::GET, &nic, None).await.body;
    let configuration = &mut a_nic["properties"]["ipConfigurations"][0];
    let (address, own) = (
        configuration["properties"]["privateIPAddress"].clone(),
        configuration["id"].clone(),
    );
    configuration["properties"]["loadBalancerInboundNatRules"] =
        json!([{"id": id("loadBalancers/lb/inboundNatRules/ssh")}]);
    world.put(&nic, a_nic).await;

    let mapped = json!({"inboundNatRulePortMappings": [
        {"inboundNatRuleName": "ssh", "protocol": "Tcp", "frontendPort": 2222, "backendPort": 22},
    ]});
    let by_id = json!({"ipConfiguration": {"id": own}});
    for body in [
        json!({"ipAddress": address}),
        by_id.clone(),
        json!({"ipAddress": address, "ipConfiguration": {"id": own}}),
    ] {
        let answer = post(&world, QUERY, body).await;
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &mapped));
    }
    for (body, code) in [
        (json!({}), "InvalidRequestFormat"),
        (json!({"ipAddress": "10"}), "InvalidIPAddressFormat"),
        (json!({"ipConfiguration": {}}), "InvalidRequestFormat"),
        (json!({"ipAddress": "10.9.9.9"}), "XNotInPool"),
        (
            json!({"ipAddress": "10.9.9.9", "ipConfiguration": {"id": own}}),
            "XNotInPool",
        ),
    ] {
        let answer = post(&world, QUERY, body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (400, code), "{body}");
    }
    let none = post(&world, &QUERY.replace("/pool/", "/none/"), by_id.clone()).await;
    assert_eq!(none.status, 404);

    let migrated = json!({"migratedPools": ["pool"]});
    for body in [json!({"pools": ["Pool"]}), json!({"Pools": ["pool"]}), json!({})] {
        let answer = post(&world, "/migrateToIpBased", body).await;
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &migrated));
        assert!(answer.header("x-tombolo-revision").is_some());
    }
    let answer = post(&world, "/migrateToIpBased", json!({"pools": []})).await;
    assert_eq!(answer.body, json!({"migratedPools": []}));
    let pool = world
        .arm(Method::GET, &format!("{lb}/backendAddressPools/pool"), None)
        .await
        .body;
    let first = &pool["properties"]["loadBalancerBackendAddresses"][0]["properties"];
    assert_eq!(
        (&first["ipAddress"], &first["networkInterfaceIPConfiguration"]["id"]),
        (&address, &own)
    );
    let again = post(&world, QUERY, by_id).await;
    assert_eq!(
        again.body, mapped,
        "the network interface is still the target of the rule"
    );
    let unknown = post(&world, "/migrateToIpBased", json!({"pools": ["none"]})).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code()),
        (400, "InvalidResourceReference")
    );
    let path = format!("{NETWORK}/loadBalancers/none/migrateToIpBased");
    assert_eq!(world.arm(Method::POST, &path, None).await.status, 404);
    let path = format!("{lb}/migrateToIpBased");
    assert_eq!(world.arm(Method::GET, &path, None).await.status, 405);
}
