//! Tests of the activity log.

use crate::world::{GROUP, World};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The events that a filter wants, of the subscription of the tests.
async fn events(world: &World, filter: &str) -> Vec<Value> {
    let subscription = GROUP.split("/resourceGroups").next().unwrap();
    let filter = filter.replace(' ', "%20");
    let path = format!(
        "{subscription}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01&$filter={filter}"
    );
    let answer = world.send(Method::GET, &path, None).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body["value"].as_array().unwrap().clone()
}

/// Operation and status of events.
fn shown(events: &[Value]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|event| {
            (
                event["operationName"]["value"].as_str().unwrap(),
                event["status"]["value"].as_str().unwrap(),
            )
        })
        .collect()
}

/// Each write has two events, whether it succeeds or not, and they survive a `kill -9` of the controller. Reads and writes of
/// strangers have none.
#[tokio::test]
async fn writes_are_in_the_activity_log() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let vnet = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/a");
    let log = events(&world, &format!("resourceId eq '{vnet}'")).await;
    let write = "Microsoft.Network/virtualNetworks/write";
    assert_eq!(shown(&log), [(write, "Succeeded"), (write, "Started")]);
    assert_eq!(log[0]["operationId"], log[1]["operationId"]);
    assert_eq!(
        (&log[0]["caller"], &log[0]["level"]),
        (&json!("admin"), &json!("Informational"))
    );
    assert_eq!(log[0]["httpRequest"]["clientIpAddress"], "127.0.0.1");

    let refused = world
        .arm(Method::PUT, &vnet, Some(json!({"location": "region1"})))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
    world.arm(Method::GET, &vnet, None).await;
    world.fabric(Method::POST, "reach", Some(json!({}))).await;
    let settings = world.fabric(Method::GET, "settings", None).await.body;
    world.fabric(Method::PUT, "settings", Some(settings)).await;
    world.kill_and_restart().await;
    let log = events(&world, "").await;
    let own = "Tombolo.Fabric/settings/write";
    let expected = [
        (own, "Succeeded"),
        (own, "Started"),
        (write, "Failed"),
        (write, "Started"),
    ];
    assert_eq!(shown(&log)[..4], expected);
    let failed = &log[2];
    assert_eq!(failed["level"], "Error");
    let message = failed["properties"]["statusMessage"].as_str().unwrap();
    assert!(message.contains(refused.code()), "{message}");

    let before = log.len();
    let url = world.url(&vnet);
    let denied = world
        .client
        .delete(format!("{url}?api-version=2024-05-01"))
        .send()
        .await
        .unwrap();
    assert_eq!(denied.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(events(&world, "").await.len(), before);

    let subscription = GROUP.split("/resourceGroups").next().unwrap();
    let path = format!(
        "{subscription}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01&$filter=x"
    );
    let wrong = world.send(Method::GET, &path, None).await;
    assert_eq!(
        (wrong.status, wrong.code()),
        (StatusCode::BAD_REQUEST, "InvalidFilterInQueryString")
    );
}

/// A client that disconnects while its write is made leaves no write without a record.
#[tokio::test]
async fn a_write_whose_client_has_left_is_recorded() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let group = |number: u32| format!("{GROUP}/providers/Microsoft.Network/applicationSecurityGroups/g{number}");
    for number in 0..200 {
        let url = world.url(&format!("{}?api-version=2024-05-01", group(number)));
        let request = world.client.put(url).bearer_auth(&world.token);
        let request = request.json(&json!({"location": "region1"}));
        let patience = std::time::Duration::from_micros(u64::from(number) * 50);
        // Most of these clients leave before the answer comes.
        let _ = tokio::time::timeout(patience, request.send()).await;
    }
    // The last writes are still made.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let mut made = 0;
    for number in 0..200 {
        if world.arm(Method::GET, &group(number), None).await.status == StatusCode::OK {
            let log = events(&world, &format!("resourceId eq '{}'", group(number))).await;
            let write = "Microsoft.Network/applicationSecurityGroups/write";
            assert_eq!(shown(&log), [(write, "Succeeded"), (write, "Started")], "{number}");
            made += 1;
        }
    }
    assert!(made > 0, "no client waited long enough");
}

/// The id in an answer finds the write in the log.
#[tokio::test]
async fn the_correlation_id_of_an_answer_is_that_of_the_record() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let path = format!("{GROUP}/providers/Microsoft.Network/applicationSecurityGroups/g");
    let answer = world
        .arm(Method::PUT, &path, Some(json!({"location": "region1"})))
        .await;
    let id = answer.header("x-ms-correlation-request-id").unwrap().to_owned();
    assert_eq!(
        events(&world, &format!("correlationId eq '{id}'")).await.len(),
        2,
        "{id}"
    );
}
