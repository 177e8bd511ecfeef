//! Flow logs below network watchers, as stock clients write and read them (N14, M9).

use crate::world::{Answer, SUBSCRIPTION, World};
use reqwest::Method;
use serde_json::{Value, json};

const NET: &str = "~/providers/Microsoft.Network";

fn outcome(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.code())
}

pub(crate) fn watcher(region: &str) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
         NetworkWatcher_{region}"
    )
}

/// The body that `az network watcher flow-log create` sends.
pub(crate) fn body(target: &str) -> Value {
    let storage =
        format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.Storage/storageAccounts/logs");
    json!({"location": "region1", "properties": {
        "targetResourceId": target,
        "storageId": storage,
        "enabled": true,
        "format": {"type": "JSON", "version": 0},
    }})
}

#[tokio::test]
async fn n14_m9_a_flow_log_is_created_read_listed_changed_and_deleted() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let target = format!("{}/providers/Microsoft.Network/virtualNetworks/a", crate::world::GROUP);
    let (list, path) = (
        format!("{}/flowLogs", watcher("region1")),
        format!("{}/flowLogs/one", watcher("region1")),
    );
    assert_eq!(world.arm(Method::GET, &list, None).await.body["value"], json!([]));
    assert_eq!(outcome(&world.arm(Method::GET, &path, None).await), (404, "NotFound"));
    assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 204);

    let made = world.arm(Method::PUT, &path, Some(body(&target))).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["properties"]["format"], json!({"type": "JSON", "version": 2}));
    let read = world.arm(Method::GET, &path, None).await;
    assert_eq!((read.status.as_u16(), &read.body), (200, &made.body));
    let listed = world.arm(Method::GET, &list, None).await;
    assert_eq!(listed.body["value"], json!([made.body]));
    let other = format!("{}/flowLogs/one", watcher("region9"));
    let refused = world.arm(Method::PUT, &other, Some(body(&target))).await;
    assert_eq!(refused.status, 404, "{refused:?}");

    let status = |target: &str| {
        let body = json!({"targetResourceId": target});
        let path = format!("{}/queryFlowLogStatus", watcher("region1"));
        let world = &world;
        async move { world.arm(Method::POST, &path, Some(body)).await }
    };
    let on = status(&target).await;
    assert_eq!(
        (on.status.as_u16(), &on.body["properties"]["enabled"]),
        (200, &json!(true))
    );
    let vnet_b = target.replace("virtualNetworks/a", "virtualNetworks/b");
    let off = status(&vnet_b).await;
    assert_eq!(
        (off.status.as_u16(), &off.body["properties"]["enabled"]),
        (200, &json!(false))
    );
    assert_eq!(off.body["properties"]["storageId"], "");
    assert_eq!(outcome(&status("/x").await), (400, "InvalidResourceReference"));

    // A client changes what it has read and writes it back.
    let mut changed = read.body.clone();
    changed["properties"]["enabled"] = false.into();
    let changed = world.arm(Method::PUT, &path, Some(changed)).await;
    assert_eq!(
        (changed.status.as_u16(), &changed.body["properties"]["enabled"]),
        (200, &json!(false))
    );
    let tags = json!({"tags": {"owner": "net"}});
    let tagged = world.arm(Method::PATCH, &path, Some(tags.clone())).await;
    assert_eq!((tagged.status.as_u16(), &tagged.body["tags"]), (200, &tags["tags"]));
    world.kill_and_restart().await;
    let after = world.arm(Method::GET, &path, None).await;
    assert_eq!((after.status.as_u16(), &after.body), (200, &tagged.body));

    // Clients accept only 202 and 204 here. A second DELETE has the same answer.
    for _ in 0..2 {
        assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 204);
    }
    assert_eq!(outcome(&world.arm(Method::GET, &path, None).await), (404, "NotFound"));
    assert_eq!(
        outcome(&world.arm(Method::PATCH, &path, Some(tags)).await),
        (404, "NotFound")
    );
    let wrong = world
        .arm(Method::PUT, &path, Some(body(&format!("{NET}/virtualNetworks/none"))))
        .await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
}

/// The older action of Azure's clients makes the same resource, and changes only what it names.
#[tokio::test]
async fn n14_configure_flow_log_makes_and_changes_the_flow_log_of_a_target() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let target = format!("{}/providers/Microsoft.Network/virtualNetworks/a", crate::world::GROUP);
    let configure = |body: Value| {
        let path = format!("{}/configureFlowLog", watcher("region1"));
        let world = &world;
        async move { world.arm(Method::POST, &path, Some(body)).await }
    };
    let storage = body(&target)["properties"]["storageId"].clone();
    let on = json!({"storageId": storage, "enabled": true, "retentionPolicy": {"days": 7, "enabled": true}});
    let made = configure(json!({"targetResourceId": target, "properties": on})).await;
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(made.body["properties"]["retentionPolicy"], on["retentionPolicy"]);
    let group = crate::world::GROUP.rsplit('/').next().unwrap();
    let path = format!("{}/flowLogs/a-{group}-flowlog", watcher("region1"));
    let read = world.arm(Method::GET, &path, None).await;
    assert_eq!(
        (read.status.as_u16(), &read.body["properties"]["enabled"]),
        (200, &json!(true))
    );

    let tags = json!({"tags": {"owner": "net"}});
    world.arm(Method::PATCH, &path, Some(tags.clone())).await;
    let off = configure(json!({"targetResourceId": target, "properties": {"enabled": false}})).await;
    assert_eq!(
        (off.status.as_u16(), &off.body["properties"]["enabled"]),
        (200, &json!(false))
    );
    assert_eq!(
        off.body["properties"]["retentionPolicy"], on["retentionPolicy"],
        "stays"
    );
    assert_eq!(off.body["properties"]["storageId"], storage);
    let read = world.arm(Method::GET, &path, None).await;
    assert_eq!(
        (&read.body["tags"], &read.body["properties"]["enabled"]),
        (&tags["tags"], &json!(false))
    );

    let none = configure(json!({"targetResourceId": target})).await;
    assert_eq!(outcome(&none), (400, "InvalidRequestFormat"));
    let unknown = configure(json!({"targetResourceId": "/x", "properties": on})).await;
    assert_eq!(outcome(&unknown), (400, "InvalidResourceReference"));
}
