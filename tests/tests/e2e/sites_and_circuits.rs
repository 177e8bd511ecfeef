//! Circuits, sites and VPNs with real processes. The tests check every row (expected path) of the published
//! interoperability lab, and of a second lab whose rows derive from the rules alone (`docs/two-hubs.md`): in the steady
//! state, after each event, and after the recovery.

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_engine::verdict::DropReason;
use tombolo_lab::check;
use tombolo_lab::lab::{Lab, Options};
use tombolo_lab::probe::Ping;
use tombolo_lab::topology::Topology;
use tombolo_lab::topology::rename::rename;
use tombolo_tests::live::World;

async fn every_row(name: &str, silent: &[(&str, &str, &str)]) -> Result<()> {
    let mut topology = Topology::load(name)?;
    topology.name = format!("e2e-{name}");
    every_row_of(&topology, silent).await
}

async fn every_row_of(topology: &Topology, silent: &[(&str, &str, &str)]) -> Result<()> {
    let lab = Lab::up(topology, Options::default()).await?;
    let mut wrong = Vec::new();
    let good = check::phases(&lab, true, |title, phase| {
        let (rows, heard) = phase.map_or((&[][..], &[][..]), |p| (&p.outcome.rows, &p.outcome.learned));
        // E16: pings do not show leaked routes. So the sites' routers must also have learned exactly the expected
        // prefixes.
        for heard in heard.iter().filter(|h| !h.good()) {
            let (who, expected, saw) = (heard.neighbour(), heard.expected(), heard.seen());
            wrong.push(format!("{title}: {who}: expected {expected}, seen {saw}"));
        }
        for row in rows.iter().filter(|r| !r.good()) {
            let (from, to) = (&row.row.from, &row.row.to);
            wrong.push(format!(
                "{title}: {from} → {to}: expected {}, seen {}",
                row.expected(),
                row.seen()
            ));
        }
    })
    .await?;
    ensure!(good, "{}", wrong.join("\n"));
    // E16: pings do not show leaked routes. So every agent must also have exactly the tables and the permitted sources
    // of links that the controller computes, and no further kernel routes.
    let agreement = check::all(&lab).await?;
    ensure!(agreement.problems.is_empty(), "{}", agreement.problems.join("\n"));
    for (from, to, silent) in silent {
        kept_silent(&lab, from, to, silent).await?;
    }
    lab.down()
}

/// Probes of a traceroute for each TTL. It is traceroute's default.
const PROBES: u8 = 3;

/// T4 to T6, D23: traces from `from` to `to`, where `silent` is the host of the silent hop. Fails unless the agent of
/// `silent` counts one silent drop for each probe of this hop, and no other agent counts any. The trace alone would not
/// prove this, because `*` in a trace could also stand for a lost answer.
async fn kept_silent(lab: &Lab, from: &str, to: &str, silent: &str) -> Result<()> {
    let before = silences(lab).await?;
    let traced = lab.trace(from, to, PROBES).await?;
    let after = silences(lab).await?;
    let counted: Vec<_> = after.iter().filter(|(host, n)| before.get(*host) != Some(n)).collect();
    let now = before.get(silent).copied().unwrap_or_default() + u64::from(PROBES);
    ensure!(
        counted == [(&silent.to_owned(), &now)],
        "{from} → {to}: {silent} must count {PROBES} silent drops; before: {before:?}, changed: {counted:?}, {traced:?}"
    );
    Ok(())
}

/// For each agent the number of packets whose TTL has expired there without an ICMP error, since the agent's start.
async fn silences(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let reason = DropReason::TtlExceededSilent.name();
    let mut all = BTreeMap::new();
    for (host, _) in lab.topology().hosts.iter() {
        let status = lab.agent_status(host).await?;
        all.insert(host.clone(), status.drops.get(reason).copied().unwrap_or_default());
    }
    Ok(all)
}

/// The published lab shows its 30 rows in the steady state, the 11 rows that change while a circuit is cut, and the 30 rows
/// again afterwards. These rows follow from the rules of circuits (E), gateways (G) and hops (T).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_lab_shows_every_published_path() -> Result<()> {
    let silent = [
        ("hub-vm", "branch-vm", "branch-vpn"),
        ("branch-vm", "loc1-vm", "hub-vpn"),
        ("loc1-vm", "hub-vm", "hub-er"),
        ("hub-vm", "remote-vm", "remote-er"),
    ];
    every_row("interop", &silent).await
}

/// The published lab shows the same rows when every network, host, site and resource has another name and another
/// address. So nothing in the product depends on the names and addresses of the published lab.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_lab_is_not_about_its_names_and_numbers() -> Result<()> {
    let mut topology = rename(&Topology::load("interop")?, u64::from(std::process::id()))?;
    topology.name = "e2e-renamed".into();
    every_row_of(&topology, &[])
        .await
        .with_context(|| topology.to_text().unwrap_or_default())
}

/// D16: after a restart of a site's device, or a change of the device's public address, the link with the device
/// recovers without an action of the operator. After a change of the device's key, the link recovers when the new key
/// is written to the controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sites_device_restarts_moves_and_changes_its_key() -> Result<()> {
    let mut topology = Topology::load("interop")?;
    topology.name = "e2e-device".into();
    let lab = Lab::up(&topology, Options::default()).await?;
    let event = topology.events.find("cut").context("the event")?;
    lab.trigger(event)?;
    answers(&lab, "by the tunnel").await?;
    lab.restart_device("loc1-ce1", 0, false).await?;
    answers(&lab, "restarted").await?;
    lab.readdress("loc1-ce1", "203.0.113.59".parse()?)?;
    answers(&lab, "moved").await?;
    let key = lab.restart_device("loc1-ce1", 0, true).await?.context("a new key")?;
    let site = lab.group().item("localNetworkGateways", "loc1");
    let mut body = lab.client()?.arm_get(&site).await?;
    body["properties"]["wireGuardPublicKey"] = serde_json::to_value(key)?;
    lab.client()?.arm_put(&site, &body).await?;
    answers(&lab, "with another key").await?;
    lab.down()
}

/// Waits until a host of location 1 reaches the hub. Fails after a minute; `when` names the situation in the error.
async fn answers(lab: &Lab, when: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !lab.ping("loc1-vm", "hub-vm", Ping::UNREACHABLE).await?.all() {
        ensure!(Instant::now() < end, "{when}: location 1 does not reach the hub");
    }
    Ok(())
}

/// D19: a circuit's line and a site's VPN device become silent, but keep their carrier. BFD detects the silent line,
/// and unanswered handshakes show the silent device, both long before the hold time of the two BGP sessions ends. The
/// site's routes are withdrawn, and return when the line and the device answer again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_and_a_device_that_go_silent_are_given_up() -> Result<()> {
    const HOLD_TIME: u16 = 180;
    let mut topology = Topology::load("interop")?;
    topology.name = "e2e-silence".into();
    for site in topology.sites.values_mut() {
        site.bgp.hold_time = HOLD_TIME;
    }
    let w = World::of(&topology).await?;
    answers(&w, "by the circuit").await?;
    let begun = Instant::now();
    on_the_line(&w, "add table inet silent").await?;
    for (hook, way) in [("input", "iifname"), ("forward", "iifname"), ("output", "oifname")] {
        let chain = format!("add chain inet silent {hook} {{ type filter hook {hook} priority 0; }}");
        on_the_line(&w, &chain).await?;
        on_the_line(&w, &format!("add rule inet silent {hook} {way} line0 drop")).await?;
    }
    on_the_line(&w, "add rule inet silent forward oifname line0 drop").await?;
    answers(&w, "by the tunnel").await?;
    wait_for_route_to_location_1(&w, true).await?;
    // The tunnel is cut too. Then no path to the site is left, so all agents must lose the routes to it.
    w.cut_pair("hub-vpn", "loc1-ce1")?;
    w.connection_is_because("hub-loc1", "NotConnected", "PeerReachability")
        .await?;
    wait_for_route_to_location_1(&w, false).await?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(u64::from(HOLD_TIME) / 3),
        "that took {took:?}"
    );
    w.restore_pair("hub-vpn", "loc1-ce1")?;
    answers(&w, "by the tunnel again").await?;
    on_the_line(&w, "delete table inet silent").await?;
    let edge = "10.10.30.132".parse()?;
    let end = Instant::now() + Duration::from_secs(60);
    while w.traceroute("hub-vm", "loc1-vm").await?.hops.first() != Some(&Some(edge)) {
        ensure!(Instant::now() < end, "the circuit is not used again");
    }
    w.down()
}

/// Runs an nftables command at the customer edge of location 1. Both the line and the tunnel end there.
async fn on_the_line(w: &World, command: &str) -> Result<()> {
    let done = w.exec("loc1-ce1", &["nft", command], Duration::from_secs(5)).await?;
    ensure!(done.code == 0, "nft {command}: {done:?}");
    Ok(())
}

/// Waits until a VM of the hub has a route to location 1 (`known`), or has none. Fails after 30 s.
async fn wait_for_route_to_location_1(w: &World, known: bool) -> Result<()> {
    let prefix: IpNet = "10.2.30.0/25".parse()?;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let tables = w.agent_tables("hub-vm").await?;
        let mut routes = tables.subnets.iter().flat_map(|s| &s.routes);
        if routes.any(|r| r.prefix == prefix) == known {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "the hub has the route: {}, expected {known}",
            !known
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A wrong configuration of a site is either refused and changes nothing, or it is accepted, and then the connection's
/// status gives the reason why the connection does not work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_configured_wrongly_is_refused_or_said() -> Result<()> {
    let mut topology = Topology::load("interop")?;
    topology.name = "e2e-wrong".into();
    let w = World::of(&topology).await?;
    let site = w.group().item("localNetworkGateways", "loc1");
    let good = w.client()?.arm_get(&site).await?;
    w.connection_is("hub-loc1", "Connected").await?;

    // The controller refuses what it can check without a gateway: a reserved ASN (G4), a prefix of another site (G7),
    // and a gateway whose VNet has no `GatewaySubnet` (G1).
    let mut clash = good.clone();
    clash["properties"]["bgpSettings"]["asn"] = json!(65515);
    refused(&w, &site, &clash, "XReservedAsn").await?;
    let twin = w.group().item("localNetworkGateways", "twin");
    let key = "p/2DIHe5kOYqBHJ9AYpMxXEcXUGKbNl0EFyB0Mc0FVA=";
    let properties = json!({
        "gatewayIpAddress": "203.0.113.77",
        "localNetworkAddressSpace": {"addressPrefixes": ["10.2.30.64/26"]},
        "wireGuardPublicKey": key,
    });
    let body = json!({"location": "region1", "properties": properties});
    w.client()?.arm_put(&twin, &body).await?;
    let to_twin = w.group().item("connections", "hub-twin");
    let connection = |key: Option<&str>| {
        let mut properties = json!({
            "connectionType": "IPsec",
            "virtualNetworkGateway1": {"id": w.group().item("virtualNetworkGateways", "hub-vpn")},
            "localNetworkGateway2": {"id": twin},
        });
        if let Some(key) = key {
            properties["sharedKey"] = json!(key);
        }
        json!({"location": "region1", "properties": properties})
    };
    refused(&w, &to_twin, &connection(Some("abc")), "XLocalNetworkOverlap").await?;
    let gateway = w.group().item("virtualNetworkGateways", "spoke-vpn");
    let subnet = w.group().item("virtualNetworks", "spoke") + "/subnets/GatewaySubnet";
    let configuration = json!({"name": "default", "properties": {"subnet": {"id": subnet}}});
    let properties = json!({"gatewayType": "Vpn", "ipConfigurations": [configuration]});
    let body = json!({"location": "region1", "properties": properties});
    refused(&w, &gateway, &body, "InvalidResourceReference").await?;

    // Other faults show only when the gateway tries to connect, so the connection's status gives the reason: no shared
    // key (G11), no device, a wrong public key (D16), or a wrong shared key (D14).
    let mut apart = w.client()?.arm_get(&twin).await?;
    apart["properties"]["localNetworkAddressSpace"]["addressPrefixes"] = json!(["10.77.0.0/24"]);
    w.client()?.arm_put(&twin, &apart).await?;
    w.client()?.arm_put(&to_twin, &connection(None)).await?;
    w.connection_is_because("hub-twin", "NotConnected", "no shared key is set")
        .await?;
    w.client()?.arm_put(&to_twin, &connection(Some("abc"))).await?;
    w.connection_is_because("hub-twin", "NotConnected", "PeerReachability")
        .await?;
    let mut stranger = good.clone();
    stranger["properties"]["wireGuardPublicKey"] = json!("YAnz5TF+lXXJte14tji3zlMNftFL27WRg8X+xYyUNHg=");
    w.client()?.arm_put(&site, &stranger).await?;
    w.connection_is_because("hub-loc1", "NotConnected", "PeerReachability")
        .await?;
    w.client()?.arm_put(&site, &good).await?;
    w.connection_is("hub-loc1", "Connected").await?;
    let shared = w.group().item("connections", "hub-loc1") + "/sharedkey";
    w.client()?.arm_put(&shared, &json!({"value": "another"})).await?;
    w.connection_is_because("hub-loc1", "NotConnected", "Authentication")
        .await?;
    w.client()?
        .arm_put(&shared, &json!({"value": "EqualOnBothEnds"}))
        .await?;
    w.connection_is("hub-loc1", "Connected").await?;
    w.down()
}

/// Asserts that a PUT is refused with this code, and that the resource is unchanged.
async fn refused(w: &World, path: &str, body: &Value, code: &str) -> Result<()> {
    let before = w.client()?.arm_find(path).await?;
    match w.client()?.arm_put(path, body).await {
        Ok(_) => bail!("{path} was accepted: {body}"),
        Err(e) => ensure!(format!("{e:?}").contains(code), "{path}: {e:?} instead of {code}"),
    }
    let after = w.client()?.arm_find(path).await?;
    let tag = |v: &Option<Value>| v.as_ref().map(|v| v["etag"].clone());
    ensure!(tag(&before) == tag(&after), "{path} has changed");
    Ok(())
}

/// The lab of `docs/two-hubs.md` shows all its rows. Two hubs are joined by VPN and by a circuit (E6, E9), a site is on two
/// of three circuits (E7, E12), and a chain of VPN gateways joins two sites (G19, D9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_show_every_path_that_the_rules_give() -> Result<()> {
    every_row("two-hubs", &[]).await
}
