//! Probes in a site behind a router, which a VPN joins with a hub and its spokes (M10): live results, the issues that are
//! named, and what `explain` says about the same packets.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tombolo_client::fabric::{Binding, CheckRequest, ExplainRequest, MonitorOutcome, Protocol};
use tombolo_lab::binary;
use tombolo_lab::check;
use tombolo_lab::echo::{EchoServer, Port};
use tombolo_lab::lab::{Lab, Options};
use tombolo_lab::topology::Topology;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_tests::live::World;

/// The time limit for handshakes of a new lab, and for the result of a monitor.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(40);

/// The port of a server in the spoke, and of the probe in the office.
const OPEN: u16 = 5001;
const DENIED: u16 = 5002;

const TOPOLOGY: &str = "
name: e2e-site-probe
underlay:
  segments: {internet: {prefix: 203.0.113.0/24}}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  hub-vm: {address: 203.0.113.11, vm: {nics: [hub-vm-nic]}}
  hub-gw: {address: 203.0.113.12, gateway: {name: hub-gw}}
  a-vm: {address: 203.0.113.21, vm: {nics: [a-vm-nic]}}
  b-vm: {address: 203.0.113.31, vm: {nics: [b-vm-nic]}}
sites:
  office:
    asn: 65021
    prefixes: [192.168.7.0/24]
    lan: {router: 192.168.7.1/24, hosts: {vm: 192.168.7.10}, probes: {vm: 203.0.113.52}}
    customerEdges:
      ce: {lan: 192.168.33.0/31, address: 203.0.113.51, tunnels: [{connection: to-office, address: 192.168.7.254}]}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16]
      subnets:
        workload: {addressPrefix: 10.1.0.0/24}
        GatewaySubnet: {addressPrefix: 10.1.255.0/27}
      peerings:
        to-a: {remoteVirtualNetwork: a, allowGatewayTransit: true}
        to-b: {remoteVirtualNetwork: b, allowGatewayTransit: true}
    a:
      addressSpace: [10.2.0.0/16]
      subnets: {workload: {addressPrefix: 10.2.0.0/24}}
      peerings:
        to-hub: {remoteVirtualNetwork: hub, useRemoteGateways: true}
    b:
      addressSpace: [10.3.0.0/16]
      subnets: {workload: {addressPrefix: 10.3.0.0/24}}
      peerings:
        to-hub: {remoteVirtualNetwork: hub, useRemoteGateways: true}
  networkInterfaces:
    hub-vm-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
    a-vm-nic: {subnet: a/workload, privateIPAddress: 10.2.0.4}
    b-vm-nic: {subnet: b/workload, privateIPAddress: 10.3.0.4}
  virtualNetworkGateways:
    hub-gw: {virtualNetwork: hub}
  localNetworkGateways:
    office: {gatewayIpAddress: 203.0.113.51, localNetworkAddressSpace: [192.168.7.0/24]}
  connections:
    to-office: {connectionType: IPsec, virtualNetworkGateway1: hub-gw, localNetworkGateway2: office, sharedKey: EqualOnBothEnds}
";

fn request(from: &str, to: &str, port: Option<u16>) -> CheckRequest {
    CheckRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: if port.is_some() { Protocol::Tcp } else { Protocol::Icmp },
        port,
    }
}

/// Makes a check. Fails unless it has this status, exactly these issues (number of the hop, type, first entry of the
/// context), the summary of `explain`, and a trace as `explain` expects. Returns the result.
async fn check_is(w: &World, check: CheckRequest, status: &str, issues: &[&str]) -> Result<Value> {
    let question = ExplainRequest {
        from: check.from.clone(),
        to: check.to.clone(),
        protocol: check.protocol,
        destination_port: check.port,
        ttl: None,
        design: false,
    };
    let result = w.client()?.check(&check).await?;
    let explained = w.client()?.explain(&question).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (number, hop) in result["hops"].as_array().into_iter().flatten().enumerate() {
        for issue in hop["issues"].as_array().into_iter().flatten() {
            let first = &issue["context"][0];
            let (kind, key, value) = (text(&issue["type"]), text(&first["key"]), text(&first["value"]));
            found.push(format!("{number}: {kind} {key}={value}"));
        }
    }
    ensure!(
        result["connectionStatus"] == status
            && found == issues
            && result["explained"] == json!(status == "Reachable")
            && result["summary"] == explained["summary"]
            && result["difference"].is_null(),
        "{check:?}: expected {status} {issues:?}: {result:#}\n{explained:#}"
    );
    Ok(result)
}

/// The hops of a result: type, address, and name of the resource.
fn hops(result: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let hop = |hop: &Value| {
        let id = text(&hop["resourceId"]);
        let whole = id.split("/ipConfigurations/").next().unwrap_or_default();
        let name = whole.rsplit('/').next().unwrap_or_default();
        format!("{} {} {name}", text(&hop["type"]), text(&hop["address"]))
    };
    result["hops"].as_array().into_iter().flatten().map(hop).collect()
}

/// M10: from the site, checks reach what `explain` says, and name what stops the others: a missing flag of a peering, and a
/// security rule. The probe answers checks towards the site too. It has no TUN device, no routes or rules of an agent, no
/// configuration, and no capability but that for raw sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m10_a_probe_shows_the_view_from_its_site() -> Result<()> {
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    w.reach_within("office-vm", "a-vm", CONVERGENCE_TIMEOUT).await?;
    let _server = EchoServer::start(&w.hosts().netns("a-vm"), w.address("a-vm")?, Port::Tcp(OPEN))?;

    let echo = check_is(&w, request("office-vm", "a-vm", None), "Reachable", &[]).await?;
    let path = [
        "Source 192.168.7.10 office",
        "Internet 192.168.7.1 -",
        "Internet 192.168.33.0 -",
        "VirtualNetworkGateway 10.1.255.4 hub-gw",
        "VnetLocal 10.2.0.4 a-vm-nic",
    ];
    ensure!(hops(&echo) == path, "{:?}", hops(&echo));
    for (to, port) in [("a-vm", Some(OPEN)), ("hub-vm", None), ("b-vm", None)] {
        check_is(&w, request("office-vm", to, port), "Reachable", &[]).await?;
    }
    the_probe_has_learned_nothing(&w).await?;
    stock_requests_name_the_site(&w).await?;
    the_command_line_checks(&w).await?;
    the_probe_answers_where_its_host_wants(&w).await?;
    wrong_places_are_refused(&w).await?;

    // A security rule of the spoke's machine.
    let client = w.client()?;
    let group = w.group().item("networkSecurityGroups", "web");
    client.arm_put(&group, &json!({"location": "region1"})).await?;
    let rule = json!({"properties": {
        "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "192.168.7.0/24", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
    }});
    client
        .arm_put(&format!("{group}/securityRules/no-office"), &rule)
        .await?;
    let nic = w.group().item("networkInterfaces", "a-vm-nic");
    let mut body: Value = client.arm_get(&nic).await?;
    body["properties"]["networkSecurityGroup"] = json!({"id": group});
    client.arm_put(&nic, &body).await?;
    w.in_force().await?;
    let denied = ["4: NetworkSecurityRule RuleName=UserRule_no-office"];
    check_is(&w, request("office-vm", "a-vm", Some(DENIED)), "Unreachable", &denied).await?;
    check_is(&w, request("office-vm", "a-vm", Some(OPEN)), "Reachable", &[]).await?;

    // The flag with which the other spoke uses the hub's gateway.
    let half = w.half("b", "hub");
    let mut body: Value = client.arm_get(&half).await?;
    body["properties"]["useRemoteGateways"] = json!(false);
    client.arm_put(&half, &body).await?;
    w.in_force().await?;
    let lost = ["0: UserDefinedRoute RouteType=System"];
    let result = check_is(&w, request("office-vm", "b-vm", None), "Unreachable", &lost).await?;
    let summary = result["summary"].as_str().unwrap_or_default();
    ensure!(
        summary.contains("set useRemoteGateways on to-hub of b") && summary.contains("the site office"),
        "{summary}"
    );
    check_is(&w, request("office-vm", "hub-vm", None), "Reachable", &[]).await?;

    ensure!(w.stop_agent("office-vm")?, "the probe had to be killed");
    let away = client.check(&request("office-vm", "hub-vm", None)).await;
    let away = away.err().context("nobody can probe")?;
    ensure!(away.code() == Some("XAgentNotConnected"), "{away}");
    w.down()
}

/// Asserts on the probe's host, and on what the controller has for the probe.
async fn the_probe_has_learned_nothing(w: &World) -> Result<()> {
    let run = async |argv: &[&str]| -> Result<String> {
        let done = w.exec("office-vm", argv, Duration::from_secs(5)).await?;
        ensure!(done.code == 0, "{argv:?}: {done:?}");
        Ok(done.stdout)
    };
    let links = run(&["ip", "-o", "link"]).await?;
    let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1));
    let names: BTreeSet<&str> = names.map(str::trim).collect();
    ensure!(names == BTreeSet::from(["lan0", "lo", "underlay0"]), "{links}");
    let rules = run(&["ip", "rule"]).await?;
    ensure!(rules.lines().count() == 3, "only the kernel's own rules: {rules}");
    let routes = run(&["ip", "route", "show", "table", "all"]).await?;
    ensure!(!routes.contains("10.1.") && !routes.contains("10.2."), "{routes}");
    ensure!(run(&["nft", "list", "tables"]).await?.trim().is_empty());
    let dir = w.agent_dir("office-vm")?;
    let mut files: Vec<_> = std::fs::read_dir(&dir)?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    files.sort();
    let expected = [
        "admin.sock",
        "agent.pem",
        "agent.toml",
        "ca.pem",
        "link.key",
        "lock",
        "tls.key",
        "token",
    ];
    ensure!(files == expected, "{files:?}");
    let view = w.agent_view("office-vm").await?;
    ensure!(
        view["agent"] == "office-vm" && view["connected"] == true && view["requests"].as_u64() > Some(0),
        "{view}"
    );
    ensure!(
        view.get("status").is_none() && view.get("configurationsReceived").is_none(),
        "{view}"
    );

    let client = w.client()?;
    let missing = client
        .agent_config("office-vm")
        .await
        .err()
        .context("a configuration")?;
    ensure!(missing.code() == Some("NotFound"), "{missing}");
    let shown = client.agent("office-vm").await?;
    ensure!(
        shown.connected && shown.endpoints.is_empty() && shown.desired_digest.is_none() && shown.status.is_none(),
        "{shown:?}"
    );
    // No configuration of another agent names the probe, its key or its address.
    for host in ["hub-vm", "hub-gw", "a-vm", "b-vm"] {
        let config = serde_json::to_string(&client.agent_config(host).await?)?;
        for secret in ["office-vm", &shown.public_key.to_string(), "192.168.7.10"] {
            ensure!(!config.contains(secret), "{host} knows {secret}");
        }
    }
    let state = w.snapshot();
    let process = state.processes.get("office-vm").context("the probe's process")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // CAP_NET_RAW is capability 13.
    ensure!(capabilities.map(str::trim) == Some("0000000000002000"), "{status}");
    Ok(())
}

/// `connectivityCheck` and a connection monitor take the site's local network gateway as their source.
async fn stock_requests_name_the_site(w: &World) -> Result<()> {
    let client = w.client()?;
    let site = w.group().item("localNetworkGateways", "office");
    let watcher = format!(
        "/subscriptions/{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1",
        w.group().subscription
    );
    let body = json!({"source": {"resourceId": site}, "destination": {"address": "10.2.0.4", "port": OPEN}});
    let result = client.arm_post(&format!("{watcher}/connectivityCheck"), &body).await?;
    ensure!(
        result["connectionStatus"] == "Reachable" && result["hops"][0]["resourceId"] == json!(site),
        "{result:#}"
    );
    let monitor = format!("{watcher}/connectionMonitors/office");
    let endpoints = json!([
        {"name": "office", "resourceId": site},
        {"name": "a", "resourceId": w.group().vm("a-vm")},
    ]);
    let body = json!({"location": "region1", "properties": {
        "endpoints": endpoints,
        "testConfigurations": [{"name": "echo", "protocol": "Icmp"}],
        "testGroups": [{"name": "out", "testConfigurations": ["echo"], "sources": ["office"], "destinations": ["a"]},
                       {"name": "in", "testConfigurations": ["echo"], "sources": ["a"], "destinations": ["office"]}],
    }});
    client.arm_put(&monitor, &body).await?;
    let begin = Instant::now();
    loop {
        let monitors = client.monitors().await?;
        let tests = &monitors.first().context("the monitor")?.tests;
        let results: Vec<_> = tests.iter().filter_map(|test| test.history.last()).collect();
        if results.len() == 2 {
            ensure!(results.iter().all(|r| r.outcome == MonitorOutcome::Pass), "{results:?}");
            break;
        }
        ensure!(begin.elapsed() < CONVERGENCE_TIMEOUT, "{monitors:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.arm_delete(&monitor).await?;
    Ok(())
}

/// The command line makes the checks, and shows the probe as connected.
async fn the_command_line_checks(w: &World) -> Result<()> {
    let program = binary::find("tombolo")?.display().to_string();
    let folder = w.controller_dir()?;
    let [ca, token] = ["ca.pem", "admin.token"].map(|name| folder.join(name).display().to_string());
    let url = w.url();
    let connect = [
        &program,
        "--controller",
        &url,
        "--ca",
        &ca,
        "--token-file",
        &token,
        "-g",
        "lab",
    ];
    let port = OPEN.to_string();
    let tcp = ["check", "office-vm", "a-vm", "tcp", port.as_str()];
    for (rest, words) in [
        (
            &tcp[..],
            "Reachable: office-vm (192.168.7.10) → a-vm (10.2.0.4), tcp 5001",
        ),
        (&["check", "office", "a-vm"], "192.168.33.0"),
        (
            &["explain", "office-vm", "a-vm"],
            "the site's routers send it to hub-gw",
        ),
        (&["trace", "office-vm", "a-vm"], "192.168.33.0"),
        (&["agent", "list"], "site office (192.168.7.10)"),
        (&["status"], "office-vm"),
    ] {
        let argv: Vec<&str> = connect.iter().copied().chain(rest.iter().copied()).collect();
        let shown = w.exec("b-vm", &argv, Duration::from_secs(30)).await?;
        println!("{}", shown.stdout);
        ensure!(
            shown.code == 0 && shown.stdout.contains(words),
            "{rest:?}: {words}: {shown:?}"
        );
    }
    Ok(())
}

/// A listener of the probe exists only if the host's own settings ask for it; echo requests are answered by the host.
async fn the_probe_answers_where_its_host_wants(w: &World) -> Result<()> {
    check_is(w, request("a-vm", "office-vm", None), "Reachable", &[]).await?;
    is_refused(w, request("a-vm", "office-vm", Some(OPEN))).await?;
    ensure!(w.stop_agent("office-vm")?, "the probe had to be killed");
    let file = w.agent_dir("office-vm")?.join("agent.toml");
    let settings = std::fs::read_to_string(&file)?;
    ensure!(settings.contains("site_probe = true"), "{settings}");
    // Settings come before the first section.
    std::fs::write(&file, format!("tcp_echo = [\"192.168.7.10:{OPEN}\"]\n{settings}"))?;
    w.start_agent("office-vm")?;
    w.wait_until_ready(Duration::from_secs(20)).await?;
    check_is(w, request("a-vm", "office-vm", Some(OPEN)), "Reachable", &[]).await?;
    Ok(())
}

/// Makes a check of a closed port, which `explain` cannot know. Fails unless the last hop has this issue.
async fn is_refused(w: &World, check: CheckRequest) -> Result<()> {
    let result = w.client()?.check(&check).await?;
    let hops = result["hops"].as_array().context("hops")?;
    let issue = &hops.last().context("a hop")?["issues"][0];
    ensure!(
        result["connectionStatus"] == "Unreachable"
            && issue["type"] == "GuestFirewall"
            && issue["context"][0]["value"] == "refused",
        "{result:#}"
    );
    Ok(())
}

/// A token for an address outside of the site's prefixes, or in a VNet, is refused by name.
async fn wrong_places_are_refused(w: &World) -> Result<()> {
    let site = ResourceId::new(w.group().item("localNetworkGateways", "office"));
    for (address, words) in [
        (
            "192.168.8.10",
            "outside of the prefixes of office, which are 192.168.7.0/24",
        ),
        ("10.1.0.9", "in the address space of"),
    ] {
        let binding = Binding::Site {
            attachments: vec![site.clone()],
            address: address.parse()?,
        };
        let refused = w.client()?.create_token(&AgentId::new("stray")?, &binding, None).await;
        let refused = refused.err().context("a token for a wrong address")?;
        ensure!(
            refused.code() == Some("XAddressOutsideOfSite") && refused.to_string().contains(words),
            "{refused}"
        );
    }
    Ok(())
}

/// Brings up a lab, and fails unless all rows with a site at one end are as expected, seen and predicted. Returns the number
/// of rows.
async fn every_row_from_the_sites(name: &str, events: bool) -> Result<usize> {
    let mut topology = Topology::load(name)?;
    topology.name = format!("e2e-view-{name}");
    let lab = Lab::up(&topology, Options::default()).await?;
    let mut wrong = Vec::new();
    let mut rows = 0;
    let good = check::site_view(&lab, events, |title, phase| {
        for row in phase.map_or(&[][..], |phase| &phase.rows) {
            rows += 1;
            if !row.good() {
                wrong.push(format!("{title}: {row:?}"));
            }
        }
    })
    .await?;
    ensure!(good && wrong.is_empty(), "{}", wrong.join("\n"));
    lab.down()?;
    Ok(rows)
}

/// M10: the published table as the sites' probes see it, next to what `explain` predicts: in the steady state, after location
/// 1 has lost its circuit, and restored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m10_the_published_lab_from_the_sites() -> Result<()> {
    let rows = every_row_from_the_sites("interop", true).await?;
    ensure!(rows == 3 * 18, "{rows} rows");
    Ok(())
}

/// M10: a site with two circuits and a VPN, one with both lines of a circuit, and one whose VPN leads over two gateways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m10_the_second_lab_from_the_sites() -> Result<()> {
    every_row_from_the_sites("two-hubs", false).await.map(drop)
}
