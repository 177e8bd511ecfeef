//! `tombolo status`: the controller, its agents, gateways and connections, and peerings with problems.

use crate::command::{agent, connection, gateway, peering};
use crate::context::Context;
use crate::output::{at, items};
use anyhow::Result;
use serde_json::json;
use tombolo_proto::arm::Kind;

/// Reads the controller's state and prints it. Shows the resources of the whole subscription, even if a resource group
/// is set. The exit code is 0 even if agents or connections are down.
pub(crate) async fn run(c: &Context) -> Result<()> {
    let (health, revisions) = tokio::try_join!(c.client.health(), c.client.revisions())?;
    let agents = c.client.agents().await?;
    let vnets = c.list_all(Kind::VirtualNetwork).await?;
    let gateways = c.list_all(Kind::VirtualNetworkGateway).await?;
    let connections = c.list_all(Kind::Connection).await?;
    let peerings: Vec<_> = vnets
        .iter()
        .flat_map(|v| items(v, "/properties/virtualNetworkPeerings"))
        .cloned()
        .collect();
    let has_problem = |p: &&serde_json::Value| {
        at(p, "/properties/peeringState") != "Connected"
            || !matches!(at(p, "/properties/peeringSyncLevel").as_str(), "FullyInSync" | "")
    };
    let problems: Vec<_> = peerings.iter().filter(has_problem).cloned().collect();
    if c.out.is_json() {
        return c.out.json(&json!({
            "controller": c.client.base(), "health": health, "revisions": revisions, "agents": agents,
            "gateways": gateways, "connections": connections, "peeringsNotConnected": problems,
        }));
    }
    c.out.line(&format!(
        "Controller {}: {}, revision {} desired, {} in force.",
        c.client.base(),
        at(&health, "/status"),
        revisions.desired,
        revisions.in_force
    ));
    c.out.line(&format!(
        "{} virtual network(s), {} peering half(s).",
        vnets.len(),
        peerings.len()
    ));
    c.out.title("\nAgents");
    agent::table(c, &agents);
    if !gateways.is_empty() {
        c.out.title("\nGateways");
        c.out.list(&gateways, gateway::COLUMNS, "")?;
    }
    if !connections.is_empty() {
        c.out.title("\nConnections");
        connection::list(c, &connections)?;
    }
    if !problems.is_empty() {
        c.out.title("\nPeerings that are not Connected and in sync");
        c.out.list(&problems, peering::COLUMNS, "")?;
    }
    Ok(())
}
