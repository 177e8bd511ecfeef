//! Connectivity checks at running agents (M5): what live probes find, the issue that is named, and that `explain` agrees.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tombolo_client::fabric::{CheckRequest, ExplainRequest, MonitorOutcome, Protocol};
use tombolo_lab::binary;
use tombolo_lab::echo::{EchoServer, Port};
use tombolo_tests::live::{FORWARDED, World};
use tombolo_tests::stock_client;

const OPEN: u16 = 5001;
const DENIED: u16 = 5002;
const CLOSED: u16 = 5003;
const FILTERED: u16 = 5004;

/// Longest time of a check, with one repeated trace. A check sends ten probes and at most two traces.
const CHECK_TIME: Duration = Duration::from_secs(15);

/// M5, D40, D42: a check of a working connection, of one that a rule denies, of a closed and a filtered port, and of a broken
/// route; each names its issue, and `explain` gives the same reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m5_a_check_names_what_stops_the_probes() -> Result<()> {
    let w = World::up("check").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let _server = EchoServer::start(&w.hosts().netns("hub-vm"), w.address("hub-vm")?, Port::Tcp(OPEN))?;

    let working = Checked::of(&w, "spoke-a-vm", "hub-vm", Some(OPEN)).await?;
    working.is("Reachable", &[])?;
    working.passes(&["Source 10.2.0.4 spoke-a-vm-nic", "VnetLocal 10.1.0.4 hub-vm-nic"])?;
    let echo = Checked::of(&w, "spoke-a-vm", "hub-vm", None).await?;
    echo.is("Reachable", &[])?;
    for checked in [&working, &echo] {
        checked.agrees(true)?;
        let latency = |name: &str| checked.result[format!("{name}LatencyInMs")].as_u64();
        ensure!(
            latency("min") >= Some(1) && latency("max") >= latency("avg"),
            "{}",
            checked.result
        );
    }

    let group = w.group().item("networkSecurityGroups", "web");
    let client = w.client()?;
    client.arm_put(&group, &json!({"location": "region1"})).await?;
    let rule = json!({"properties": {
        "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "VirtualNetwork", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
    }});
    client
        .arm_put(&format!("{group}/securityRules/deny-one-port"), &rule)
        .await?;
    let nic = w.group().item("networkInterfaces", "hub-vm-nic");
    let mut body: Value = client.arm_get(&nic).await?;
    body["properties"]["networkSecurityGroup"] = json!({"id": group});
    client.arm_put(&nic, &body).await?;
    w.in_force().await?;
    let denied = Checked::of(&w, "spoke-a-vm", "hub-vm", Some(DENIED)).await?;
    denied.is(
        "Unreachable",
        &["1: Inbound NetworkSecurityRule RuleName=UserRule_deny-one-port"],
    )?;
    denied.agrees(false)?;
    ensure!(
        denied.explained["request"]["stop"]["reason"] == "security_rule",
        "{}",
        denied.explained
    );
    Checked::of(&w, "spoke-a-vm", "hub-vm", Some(OPEN))
        .await?
        .is("Reachable", &[])?;

    let refused = Checked::of(&w, "spoke-a-vm", "hub-vm", Some(CLOSED)).await?;
    refused.is("Unreachable", &["1: Inbound GuestFirewall Reason=refused"])?;
    refused.agrees(true)?;
    filter(&w, "hub-vm", "input", &format!("tcp dport {FILTERED} drop")).await?;
    let filtered = Checked::of(&w, "spoke-a-vm", "hub-vm", Some(FILTERED)).await?;
    filtered.is("Unreachable", &["1: Inbound GuestFirewall Reason=noAnswer"])?;
    filtered.agrees(true)?;

    let route = format!("{}/routes/nowhere", w.group().item("routeTables", "spoke-a-routes"));
    let nowhere = json!({"properties": {"addressPrefix": "10.1.0.0/24", "nextHopType": "None"}});
    client.arm_put(&route, &nowhere).await?;
    w.in_force().await?;
    for port in [Some(OPEN), None] {
        let lost = Checked::of(&w, "spoke-a-vm", "hub-vm", port).await?;
        lost.is("Unreachable", &["0: Outbound UserDefinedRoute RouteType=User"])?;
        lost.agrees(false)?;
        ensure!(
            lost.explained["request"]["stop"]["reason"] == "route_none",
            "{}",
            lost.explained
        );
    }
    ensure!(client.arm_delete(&route).await?);
    w.in_force().await?;
    w.connection_is("hub-to-branch", "Connected").await?;
    the_stock_client_checks(&w).await?;
    the_command_line_checks(&w).await?;
    a_monitor_repeats_checks(&w).await?;

    ensure!(w.stop_agent("spoke-a-vm")?, "the agent had to be killed");
    let away = client.check(&request("spoke-a-vm", "hub-vm", None)).await;
    let away = away.err().context("nobody can probe")?;
    ensure!(away.code() == Some("XAgentNotConnected"), "{away}");
    w.start_agent("spoke-a-vm")?;
    w.wait_until_ready(Duration::from_secs(20)).await?;
    w.end().await
}

/// D42: the system of an appliance drops what it should forward, which no configuration shows. The check names the first hop
/// that does not answer although `explain` expects it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d42_a_check_finds_the_first_hop_that_differs_from_explain() -> Result<()> {
    let w = World::up("check-hop").await?;
    for (a, b) in [
        ("hub", "spoke-a"),
        ("spoke-a", "hub"),
        ("hub", "spoke-b"),
        ("spoke-b", "hub"),
    ] {
        w.peer(a, b, FORWARDED).await?;
    }
    w.route("spoke-a-routes", "b", "10.3.0.0/16", "hub-fw").await?;
    w.route("spoke-b-routes", "a", "10.2.0.0/16", "hub-fw").await?;
    w.reach("spoke-a-vm", "spoke-b-vm").await?;
    let path = [
        "Source 10.2.0.4 spoke-a-vm-nic",
        "VirtualAppliance 10.1.1.4 hub-fw-nic",
        "VnetLocal 10.3.0.4 spoke-b-vm-nic",
    ];
    let working = Checked::of(&w, "spoke-a-vm", "spoke-b-vm", None).await?;
    working.is("Reachable", &[])?;
    working.passes(&path)?;

    filter(&w, "hub-fw", "forward", "drop").await?;
    let lost = Checked::of(&w, "spoke-a-vm", "spoke-b-vm", None).await?;
    lost.is("Unreachable", &["2: Inbound Platform Expected=10.3.0.4"])?;
    lost.passes(&path)?;
    ensure!(lost.result["explained"] == true, "{}", lost.result);
    ensure!(
        lost.result["difference"] == json!({"ttl": 2, "expected": "10.3.0.4", "observed": null}),
        "{}",
        lost.result
    );
    w.down()
}

fn request(from: &str, to: &str, port: Option<u16>) -> CheckRequest {
    CheckRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: if port.is_some() { Protocol::Tcp } else { Protocol::Icmp },
        port,
    }
}

/// The result of a check, and the answer of `explain` to the same packet.
struct Checked {
    result: Value,
    explained: Value,
}

impl Checked {
    async fn of(w: &World, from: &str, to: &str, port: Option<u16>) -> Result<Self> {
        let client = w.client()?;
        let check = request(from, to, port);
        let begin = Instant::now();
        let result = client.check(&check).await?;
        println!("{from} to {to} {port:?}: {:?}", begin.elapsed());
        ensure!(begin.elapsed() < CHECK_TIME, "{from} to {to}: {:?}", begin.elapsed());
        let question = ExplainRequest {
            from: check.from,
            to: check.to,
            protocol: check.protocol,
            destination_port: check.port,
            ttl: None,
            design: false,
        };
        let explained = client.explain(&question).await?;
        Ok(Self { result, explained })
    }

    /// Fails unless the check has this status and exactly these issues: the number of the hop, the origin, the type, and the
    /// first entry of the context.
    fn is(&self, status: &str, issues: &[&str]) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut found = Vec::new();
        for (number, hop) in self.hops().enumerate() {
            for issue in hop["issues"].as_array().into_iter().flatten() {
                let first = &issue["context"][0];
                found.push(format!(
                    "{number}: {} {} {}={}",
                    text(&issue["origin"]),
                    text(&issue["type"]),
                    text(&first["key"]),
                    text(&first["value"])
                ));
            }
        }
        ensure!(
            self.result["connectionStatus"] == status && found == issues,
            "expected {status} {issues:?}: {:#}",
            self.result
        );
        Ok(())
    }

    fn hops(&self) -> impl Iterator<Item = &Value> {
        self.result["hops"].as_array().into_iter().flatten()
    }

    /// Fails unless the hops are exactly these: type, address, and name of the network interface.
    fn passes(&self, expected: &[&str]) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let hop = |hop: &Value| {
            let id = text(&hop["resourceId"]);
            let nic = id.split("/ipConfigurations/").next().unwrap_or_default();
            let name = nic.rsplit('/').next().unwrap_or_default();
            format!("{} {} {name}", text(&hop["type"]), text(&hop["address"]))
        };
        let found: Vec<_> = self.hops().map(hop).collect();
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    /// Fails unless the check and `explain` say the same about the packet, and the trace was the expected one.
    fn agrees(&self, reachable: bool) -> Result<()> {
        ensure!(
            self.explained["reachable"] == reachable
                && self.result["explained"] == reachable
                && self.result["summary"] == self.explained["summary"]
                && self.result["difference"].is_null(),
            "{:#}\n{:#}",
            self.result,
            self.explained
        );
        Ok(())
    }
}

/// Adds a rule to the packet filter of a host's own system, which no agent knows.
async fn filter(w: &World, host: &str, hook: &str, rule: &str) -> Result<()> {
    let script = format!(
        "table inet guest {{\nchain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n{rule}\n}}\n}}\n"
    );
    let done = w.exec(host, &["nft", &script], Duration::from_secs(10)).await?;
    ensure!(done.code == 0, "{done:?}");
    Ok(())
}

/// The paths of the controller's certificate and of the admin token.
fn credentials(w: &World) -> Result<[String; 2]> {
    let folder = w.controller_dir()?;
    Ok(["ca.pem", "admin.token"].map(|name| folder.join(name).display().to_string()))
}

/// D42: a monitor tells an open from a denied port, by real connections.
async fn a_monitor_repeats_checks(w: &World) -> Result<()> {
    let path = format!(
        "/subscriptions/{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
         NetworkWatcher_region1/connectionMonitors/ports",
        w.group().subscription
    );
    let port = |name: &str, port: u16| json!({"name": name, "protocol": "Tcp", "tcpConfiguration": {"port": port}});
    let body = json!({"location": "region1", "properties": {
        "endpoints": [
            {"name": "a", "resourceId": w.group().vm("spoke-a-vm")},
            {"name": "hub", "resourceId": w.group().vm("hub-vm")},
        ],
        "testConfigurations": [port("open", OPEN), port("denied", DENIED)],
        "testGroups": [
            {"name": "ports", "testConfigurations": ["open", "denied"], "sources": ["a"], "destinations": ["hub"]},
        ],
    }});
    let client = w.client()?;
    client.arm_put(&path, &body).await?;
    let begin = Instant::now();
    let results = loop {
        let monitors = client.monitors().await?;
        let tests = &monitors.first().context("the monitor")?.tests;
        let results: Vec<_> = tests.iter().filter_map(|test| test.history.last().cloned()).collect();
        if results.len() == 2 {
            break results;
        }
        ensure!(begin.elapsed() < CHECK_TIME, "{monitors:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let found: Vec<_> = results.iter().map(|r| (r.outcome, r.checks_failed_percent)).collect();
    ensure!(
        found == [(MonitorOutcome::Pass, Some(0)), (MonitorOutcome::Fail, Some(100))],
        "{results:?}"
    );
    let (program, [ca, token], url) = (binary::find("tombolo")?.display().to_string(), credentials(w)?, w.url());
    let argv = [
        &program,
        "--controller",
        &url,
        "--ca",
        &ca,
        "--token-file",
        &token,
        "monitor",
        "list",
    ];
    let shown = w.exec("hub-fw", &argv, Duration::from_secs(20)).await?;
    println!("{}", shown.stdout);
    ensure!(
        shown.stdout.contains("failed") && shown.stdout.contains("100 %"),
        "{shown:?}"
    );
    client.arm_delete(&path).await?;
    Ok(())
}

/// Azure's own client makes the checks, and asks the other actions of Network Watcher.
async fn the_stock_client_checks(w: &World) -> Result<()> {
    let python = stock_client::python().display().to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/watcher.py");
    let [ca, token] = credentials(w)?;
    let (open, closed, denied) = (OPEN.to_string(), CLOSED.to_string(), DENIED.to_string());
    let url = w.url();
    let argv = [&python, script, &url, &ca, &token, &open, &closed, &denied];
    let done = w.exec("hub-fw", &argv, Duration::from_secs(120)).await?;
    ensure!(done.code == 0, "{}\n{}", done.stdout, done.stderr);
    println!("{}", done.stdout);
    Ok(())
}

/// The command line prints hops and issues, and its exit code says whether the destination answers.
async fn the_command_line_checks(w: &World) -> Result<()> {
    let program = binary::find("tombolo")?.display().to_string();
    let ([ca, token], url) = (credentials(w)?, w.url());
    let port = DENIED.to_string();
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
    let run = async |rest: &[&str]| {
        let argv: Vec<&str> = connect.iter().copied().chain(rest.iter().copied()).collect();
        w.exec("hub-fw", &argv, Duration::from_secs(60)).await
    };
    let shown = run(&["check", "spoke-a-vm", "hub-vm", "tcp", &port]).await?;
    println!("{}", shown.stdout);
    for words in [
        "Unreachable: spoke-a-vm (10.2.0.4) → hub-vm (10.1.0.4), tcp 5002",
        "10 sent, 10 failed",
        "hub-vm-nic",
        "Inbound error, NetworkSecurityRule: RuleName UserRule_deny-one-port, NetworkSecurityGroup web",
        "explain says: rule deny-one-port",
    ] {
        ensure!(shown.code == 1 && shown.stdout.contains(words), "{words}: {shown:?}");
    }
    let shown = run(&["-o", "json", "check", "spoke-a-vm", "hub-vm"]).await?;
    let result: Value = serde_json::from_str(&shown.stdout).context("the output")?;
    ensure!(
        shown.code == 0 && result["connectionStatus"] == "Reachable",
        "{shown:?}"
    );
    Ok(())
}
