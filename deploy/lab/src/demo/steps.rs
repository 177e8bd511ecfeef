//! The steps of the demo, in order. Their hosts and VNets are those of the built-in topology `hub-spoke`.

use super::report::seconds;
use super::stage::{Flags, Stage};
use crate::probe::BackgroundPing;
use crate::topology::Topology;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const HUB: &str = "hub";
const A: &str = "spoke-a";
const B: &str = "spoke-b";
const BRANCH: &str = "branch";
const HUB_VM: &str = "hub-vm";
const HUB_FW: &str = "hub-fw";
const HUB_GW: &str = "hub-gw";
const BRANCH_GW: &str = "branch-gw";
const A_VM: &str = "spoke-a-vm";
const B_VM: &str = "spoke-b-vm";
const BRANCH_VM: &str = "branch-vm";
const A_ROUTES: &str = "spoke-a-routes";
const B_ROUTES: &str = "spoke-b-routes";
const TO_BRANCH: &str = "hub-to-branch";
const TO_HUB: &str = "branch-to-hub";

const PLAIN: Flags = Flags {
    forwarded: false,
    transit: false,
    remote_gateways: false,
};
const FORWARDED: Flags = Flags {
    forwarded: true,
    ..PLAIN
};
const TRANSIT: Flags = Flags { transit: true, ..PLAIN };

/// Time between two echo requests of the background pings. An interruption that is shorter than this time may lose no
/// echo request, so the demo may not notice it.
const PING_INTERVAL: Duration = Duration::from_millis(20);

/// Time that the background pings run before the controller is killed. An echo request that is lost in this time was
/// not lost because of the controller's end.
const UNDISTURBED: Duration = Duration::from_millis(500);
/// Longest time that agents may take to reconnect to a restarted controller.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns those hosts and resources that the steps need but the topology does not have, each as a text for an error.
/// Empty if the steps can be carried out.
pub(super) fn missing(topology: &Topology) -> Vec<String> {
    let (hosts, all) = (&topology.hosts, &topology.resources);
    let mut missing = Vec::new();
    let mut need = |there: bool, what: String| {
        if !there {
            missing.push(what);
        }
    };
    for vm in [HUB_VM, HUB_FW, A_VM, B_VM, BRANCH_VM] {
        need(
            hosts.get(vm).is_some_and(|h| h.vm.is_some()),
            format!("host '{vm}' with a vm"),
        );
    }
    for gateway in [HUB_GW, BRANCH_GW] {
        let there = hosts.get(gateway).is_some_and(|h| h.gateway.is_some());
        need(there, format!("host '{gateway}' with a gateway"));
    }
    for vnet in [HUB, A, B, BRANCH] {
        need(all.virtual_networks.find(vnet).is_some(), format!("VNet '{vnet}'"));
    }
    for table in [A_ROUTES, B_ROUTES] {
        need(all.route_tables.find(table).is_some(), format!("route table '{table}'"));
    }
    for connection in [TO_BRANCH, TO_HUB] {
        let key = all.connections.find(connection).and_then(|c| c.shared_key.as_ref());
        need(key.is_some(), format!("connection '{connection}' with a shared key"));
    }
    missing
}

/// Runs all steps. Stops after the first step with a failed check, because later steps depend on it.
pub(super) async fn walk(s: &mut Stage<'_>) -> Result<()> {
    // P16: a change must not disturb traffic that it does not concern. No step concerns the traffic between these two
    // machines of the hub. So this ping, which runs during all steps, must lose no echo request.
    let inside = s.lab.start_ping(HUB_VM, HUB_FW, PING_INTERVAL)?;
    macro_rules! step {
        ($step:expr) => {
            $step.await?;
            s.agrees().await?;
            if !s.report.good() {
                return Ok(());
            }
        };
    }
    step!(halves(s));
    step!(not_transitive(s));
    step!(appliance(s));
    step!(gateway(s));
    step!(wrong_key(s));
    step!(peering_beats_tunnel(s));
    step!(disconnected(s));
    step!(controller_dies(s));
    s.report.step("Meanwhile, inside the hub");
    no_losses(s, vec![inside])
}

async fn halves(s: &mut Stage<'_>) -> Result<()> {
    s.report.step("A peering has two halves (P13)");
    s.silent(A_VM, HUB_VM).await?;
    s.silent(HUB_VM, A_VM).await?;
    s.peer(HUB, A, PLAIN).await?;
    s.state_is(HUB, A, "Initiated").await?;
    s.silent(A_VM, HUB_VM).await?;
    s.peer(A, HUB, PLAIN).await?;
    s.state_is(HUB, A, "Connected").await?;
    s.state_is(A, HUB, "Connected").await?;
    s.both_reach(A_VM, HUB_VM).await?;
    s.reaches(A_VM, &format!("{HUB_VM}/6")).await?;
    s.path_is(A_VM, HUB_VM, &[]).await
}

async fn not_transitive(s: &mut Stage<'_>) -> Result<()> {
    s.report.step("Peering is not transitive (P24)");
    s.silent(B_VM, HUB_VM).await?;
    s.peer(HUB, B, PLAIN).await?;
    s.peer(B, HUB, PLAIN).await?;
    s.both_reach(B_VM, HUB_VM).await?;
    s.silent(A_VM, B_VM).await?;
    s.silent(B_VM, A_VM).await
}

async fn appliance(s: &mut Stage<'_>) -> Result<()> {
    s.report.step("Spoke to spoke through an appliance in the hub (R19)");
    s.silent(A_VM, B_VM).await?;
    s.route(A_ROUTES, B, HUB_FW).await?;
    s.route(B_ROUTES, A, HUB_FW).await?;
    s.silent(A_VM, B_VM).await?;
    s.stopped_by(A_VM, B_VM, "P18").await?;
    s.peer(A, HUB, FORWARDED).await?;
    s.silent(A_VM, B_VM).await?;
    s.peer(B, HUB, FORWARDED).await?;
    s.both_reach(A_VM, B_VM).await?;
    s.path_is(A_VM, B_VM, &[HUB_FW]).await?;
    s.path_is(B_VM, A_VM, &[HUB_FW]).await?;
    s.path_is(A_VM, HUB_VM, &[]).await
}

async fn gateway(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("Spoke to branch through the hub's VPN gateway (P19 to P21)");
    s.connection_is(TO_BRANCH, "Connected", "").await?;
    s.connection_is(TO_HUB, "Connected", "").await?;
    s.path_is(HUB_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.silent(A_VM, BRANCH_VM).await?;
    s.peer(HUB, A, TRANSIT).await?;
    s.silent(A_VM, BRANCH_VM).await?;
    s.peer(
        A,
        HUB,
        Flags {
            remote_gateways: true,
            ..FORWARDED
        },
    )
    .await?;
    s.both_reach(A_VM, BRANCH_VM).await?;
    s.path_is(A_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.path_is(BRANCH_VM, A_VM, &[BRANCH_GW, "*"]).await?;
    s.silent(B_VM, BRANCH_VM).await
}

async fn wrong_key(s: &mut Stage<'_>) -> Result<()> {
    s.report.step("A wrong shared key on one side (G11, D14)");
    s.reaches(A_VM, BRANCH_VM).await?;
    let right = s.key_of(TO_HUB)?;
    s.shared_key(TO_HUB, &format!("Not{right}")).await?;
    s.connection_is(TO_BRANCH, "NotConnected", "Authentication").await?;
    s.connection_is(TO_HUB, "NotConnected", "Authentication").await?;
    s.silent(A_VM, BRANCH_VM).await?;
    s.both_reach(A_VM, B_VM).await?;
    s.shared_key(TO_HUB, &right).await?;
    s.connection_is(TO_BRANCH, "Connected", "").await?;
    s.connection_is(TO_HUB, "Connected", "").await?;
    s.both_reach(A_VM, BRANCH_VM).await
}

async fn peering_beats_tunnel(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("Hub and branch are peered too: the peering wins (P25), the spoke stays on the VPN (D9)");
    s.path_is(HUB_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.peer(HUB, BRANCH, PLAIN).await?;
    s.path_is(HUB_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.peer(BRANCH, HUB, PLAIN).await?;
    s.state_is(HUB, BRANCH, "Connected").await?;
    s.path_is(HUB_VM, BRANCH_VM, &[]).await?;
    s.path_is(BRANCH_VM, HUB_VM, &[]).await?;
    s.path_is(A_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.path_is(BRANCH_VM, A_VM, &[BRANCH_GW, "*"]).await?;
    s.silent(B_VM, BRANCH_VM).await
}

async fn disconnected(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("One half is deleted: Disconnected, back to the VPN (P13, P15)");
    s.path_is(HUB_VM, BRANCH_VM, &[]).await?;
    s.unpeer(HUB, BRANCH).await?;
    s.state_is(BRANCH, HUB, "Disconnected").await?;
    s.both_reach(HUB_VM, BRANCH_VM).await?;
    s.path_is(HUB_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.path_is(A_VM, BRANCH_VM, &[HUB_GW, "*"]).await?;
    s.unpeer(BRANCH, HUB).await
}

async fn controller_dies(s: &mut Stage<'_>) -> Result<()> {
    s.report.step("The controller is killed with kill -9, and comes back");
    let before = desired(s).await?;
    let sent_before = configurations(s, &[B_VM]).await?;
    let mut pings = Vec::new();
    for (from, to) in [(A_VM, HUB_VM), (HUB_VM, A_VM), (A_VM, BRANCH_VM), (HUB_VM, BRANCH_VM)] {
        s.address(to)?;
        pings.push(s.lab.start_ping(from, to, PING_INTERVAL)?);
    }
    tokio::time::sleep(UNDISTURBED).await;
    s.lab.kill_controller()?;
    s.report.act("kill -9 of the controller", "");
    let health = s.lab.client()?.health().await;
    s.report.check("the controller does not answer", health.is_err(), "");
    s.both_reach(A_VM, B_VM).await?;
    s.lab.kill_agent(B_VM)?;
    s.report.act(&format!("kill -9 of the agent of {B_VM}"), "");
    s.silent(A_VM, B_VM).await?;
    let start = Instant::now();
    s.lab.start_agent(B_VM)?;
    // Other agents go on encrypting packets with the keys of the killed agent's sessions, until they have received a
    // packet of a new session. So the host of the restarted agent pings first, which makes its agent start a new
    // session.
    s.reaches_again(B_VM, HUB_VM, start).await?;
    s.reaches_again(A_VM, B_VM, start).await?;
    s.both_reach(A_VM, B_VM).await?;
    s.path_is(B_VM, A_VM, &[HUB_FW]).await?;

    let start = Instant::now();
    s.report.progress().set_activity("the controller starts again");
    s.lab.start_controller().await?;
    let answered = start.elapsed();
    s.lab.wait_until_ready(RECONNECT_TIMEOUT).await?;
    let all = seconds(start.elapsed());
    s.report.act(
        "the controller starts again",
        &format!("answers after {}, all agents after {all}", seconds(answered)),
    );
    let after = desired(s).await?;
    let same = before == after;
    let seen = format!(
        "{} resources, revision {}",
        after.len().saturating_sub(1),
        after[REVISION]
    );
    s.report.check(
        "it has the same state",
        same,
        &if same { seen } else { changes(&before, &after) },
    );
    let sent_after = configurations(s, &[B_VM]).await?;
    let total: u64 = sent_after.values().sum();
    let seen = format!("{total} configurations received since their start, as before");
    let same = sent_before == sent_after;
    let seen = if same {
        seen
    } else {
        format!("before {sent_before:?}, after {sent_after:?}")
    };
    s.report
        .check("nothing was re-sent to agents that are up to date", same, &seen);
    no_losses(s, pings)
}

/// Stops background pings, and checks that every echo request of each ping was answered.
fn no_losses(s: &mut Stage<'_>, pings: Vec<BackgroundPing>) -> Result<()> {
    let names: Vec<_> = pings.iter().map(|p| p.name.clone()).collect();
    for (name, pinged) in names.into_iter().zip(BackgroundPing::stop_all(pings)) {
        let pinged = pinged?;
        let lost = pinged.missing.len();
        let mut seen = format!(
            "{} sent every {} ms, {lost} lost",
            pinged.sent,
            PING_INTERVAL.as_millis()
        );
        if !pinged.all() {
            seen += &format!(": numbers {:?}", pinged.missing);
        }
        s.report.check(&format!("{name} never stopped"), pinged.all(), &seen);
    }
    Ok(())
}

const REVISION: &str = "revision";

/// Returns the desired state of the controller as a map. The keys are the ids of all resources of the kinds listed
/// below, `agent NAME` for every agent, and `revision`. The value of a resource is its JSON (with the etag, without
/// what agents report); that of an agent is its public key, whether it is revoked, and the digest of its desired
/// configuration.
async fn desired(s: &Stage<'_>) -> Result<BTreeMap<String, Value>> {
    let client = s.lab.client()?;
    let mut all = BTreeMap::new();
    for kind in [
        "virtualNetworks",
        "routeTables",
        "networkInterfaces",
        "publicIPAddresses",
        "virtualNetworkGateways",
        "connections",
    ] {
        for mut item in client.arm_list(&s.lab.group().collection(kind)).await? {
            // The agents report the values of these properties, so the properties are not part of the desired state.
            if let Some(properties) = item["properties"].as_object_mut() {
                for live in [
                    "connectionStatus",
                    "tunnelConnectionStatus",
                    "ingressBytesTransferred",
                    "egressBytesTransferred",
                    "tunnelBandwidth",
                ] {
                    properties.remove(live);
                }
            }
            let id = item["id"].as_str().context("a resource without id")?.to_owned();
            all.insert(id, item);
        }
    }
    for agent in client.agents().await? {
        let identity = serde_json::json!([agent.public_key.to_string(), agent.revoked, agent.desired_digest]);
        all.insert(format!("agent {}", agent.id), identity);
    }
    let health = client.health().await?;
    all.insert(REVISION.to_owned(), health[REVISION].clone());
    Ok(all)
}

/// Formats the differences between two desired states, one difference on each line.
fn changes(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> String {
    let names = before.keys().chain(after.keys().filter(|k| !before.contains_key(*k)));
    let changed = names.filter(|k| before.get(*k) != after.get(*k));
    let lines = changed.map(|k| format!("{k}: {:?} became {:?}", before.get(k), after.get(k)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns, for each agent that is not in `except`, the number of configurations that the agent has received since its
/// start.
async fn configurations(s: &Stage<'_>, except: &[&str]) -> Result<BTreeMap<String, u64>> {
    let names = s.lab.topology().agents().map(|(name, _)| name.to_owned());
    let mut all = BTreeMap::new();
    for name in names.filter(|n| !except.contains(&n.as_str())).collect::<Vec<_>>() {
        let count = s.lab.configurations_received(&name).await?;
        all.insert(name, count);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_for_another_purpose_is_found_out_before_anything_is_made() {
        let mut topology = Topology::load("hub-spoke").unwrap();
        assert_eq!(missing(&topology), Vec::<String>::new());
        topology.hosts.remove(B_VM);
        topology.resources.connections = tombolo_client::manifest::Document::default().connections;
        let missing = missing(&topology).join(", ");
        for part in ["spoke-b-vm", "hub-to-branch", "branch-to-hub"] {
            assert!(missing.contains(part), "{missing}");
        }
    }
}
