//! Transit through the appliance in the hub and through VPN gateways, and the choice between a peering and a VPN.

use anyhow::Result;
use serde_json::json;
use tombolo_tests::live::{FORWARDED, Flags, PLAIN, World};

/// Spokes reach each other through an appliance (R11, R19, P18, P24), and the branch through the hub's gateway (P19 to
/// P21). A peering between hub and branch changes the path from the hub to the branch, but not the path from a spoke to
/// the branch (P25, D9). Before a step that permits traffic, the test shows that this traffic does not pass yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_reach_each_other_and_the_branch_only_as_declared() -> Result<()> {
    let w = World::up("transit").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "spoke-b").await?;
    w.silent("spoke-a-vm", "spoke-b-vm").await?;
    for (table, name, prefix) in [
        ("spoke-a-routes", "b", "10.3.0.0/16"),
        ("spoke-b-routes", "a", "10.2.0.0/16"),
    ] {
        w.route(table, name, prefix, "hub-fw").await?;
    }
    w.silent("spoke-a-vm", "spoke-b-vm").await?;
    w.peer("spoke-a", "hub", FORWARDED).await?;
    w.peer("spoke-b", "hub", FORWARDED).await?;
    w.reach("spoke-a-vm", "spoke-b-vm").await?;
    w.trace_is("spoke-a-vm", &["hub-fw", "spoke-b-vm"]).await?;
    w.trace_is("spoke-b-vm", &["hub-fw", "spoke-a-vm"]).await?;
    w.agree().await?;

    // R12: a NIC without `enableIPForwarding` drops packets to addresses that are not its own, so the appliance no
    // longer forwards.
    let nic = w.group().item("networkInterfaces", "hub-fw-nic");
    let mut body = w.client()?.arm_get(&nic).await?;
    body["properties"]["enableIPForwarding"] = json!(false);
    w.client()?.arm_put(&nic, &body).await?;
    w.in_force().await?;
    w.silent("spoke-a-vm", "spoke-b-vm").await?;
    w.agree().await?;
    body["properties"]["enableIPForwarding"] = json!(true);
    w.client()?.arm_put(&nic, &body).await?;
    w.in_force().await?;
    w.reach("spoke-a-vm", "spoke-b-vm").await?;

    // The hub reaches the branch by VPN from the start. spoke-a reaches the branch once both halves of its peering have
    // the flags of P19 and P20. spoke-b never reaches it.
    w.connection_is("hub-to-branch", "Connected").await?;
    w.trace_is("hub-vm", &["hub-gw", "*", "branch-vm"]).await?;
    w.silent("spoke-a-vm", "branch-vm").await?;
    w.peer("hub", "spoke-a", Flags { transit: true, ..PLAIN }).await?;
    w.peer(
        "spoke-a",
        "hub",
        Flags {
            remote_gateways: true,
            ..FORWARDED
        },
    )
    .await?;
    w.reach("spoke-a-vm", "branch-vm").await?;
    w.trace_is("spoke-a-vm", &["hub-gw", "*", "branch-vm"]).await?;
    w.trace_is("branch-vm", &["branch-gw", "*", "spoke-a-vm"]).await?;
    w.silent("spoke-b-vm", "branch-vm").await?;
    w.agree().await?;

    // P25, D9: packets between hub and branch use the new peering of the two; spoke-a still reaches the branch by VPN.
    w.join("hub", "branch").await?;
    w.trace_is("hub-vm", &["branch-vm"]).await?;
    w.trace_is("spoke-a-vm", &["hub-gw", "*", "branch-vm"]).await?;
    w.silent("spoke-b-vm", "branch-vm").await?;
    w.agree().await?;
    w.unpeer("branch", "hub").await?;
    w.trace_is("hub-vm", &["hub-gw", "*", "branch-vm"]).await?;

    // P21: without `useRemoteGateways` spoke-a no longer reaches the branch.
    w.peer("spoke-a", "hub", FORWARDED).await?;
    w.silent("spoke-a-vm", "branch-vm").await?;
    w.end().await
}

/// G11, D14, D40: with different shared keys the handshake of the gateways fails, and both connections show why. The repair
/// copies one key to the other object, without showing it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_shared_key_is_found_and_mended() -> Result<()> {
    let w = World::up("key").await?;
    w.connection_is("hub-to-branch", "Connected").await?;
    w.reach("hub-vm", "branch-vm").await?;
    let path = format!("{}/sharedkey", w.group().item("connections", "branch-to-hub"));
    w.client()?.arm_put(&path, &json!({"value": "another"})).await?;
    w.in_force().await?;
    for connection in ["hub-to-branch", "branch-to-hub"] {
        w.connection_is_because(connection, "NotConnected", "Authentication")
            .await?;
    }
    w.silent("hub-vm", "branch-vm").await?;
    // D40: the repair is known before the handshake fails, and no answer has a key.
    let question = serde_json::from_value(json!({"from": "hub-vm", "to": "branch-vm"}))?;
    let found = w.client()?.repair(&question).await?;
    let changes = found["repairs"][0]["changes"].as_array().cloned().unwrap_or_default();
    assert!(changes.len() == 1 && changes[0]["copyFrom"].is_string(), "{found}");
    assert!(!found.to_string().contains("\"another\""), "{found}");
    w.client()?.make_change(&changes[0]).await?;
    w.in_force().await?;
    w.connection_is("hub-to-branch", "Connected").await?;
    w.connection_is("branch-to-hub", "Connected").await?;
    w.reach("hub-vm", "branch-vm").await?;
    w.end().await
}
