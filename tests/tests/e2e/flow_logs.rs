//! Flow logs of running agents: the files on an agent's disk have the flows that were there, with their packets and bytes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombolo_lab::echo::{Connection, Datagrams, EchoServer, Port};
use tombolo_tests::live::World;
use tombolo_tests::program::Program;

const ALLOWED: u16 = 5001;
const DENIED: u16 = 5002;

/// Time for the end of a closed connection to be in the file: it is kept for 10 s, and found within 20 s.
const END: Duration = Duration::from_secs(60);

/// Time for a restarted agent to have its configuration in force.
const READY: Duration = Duration::from_secs(20);

/// A tuple, with the rule of its group.
#[derive(Debug, Clone)]
struct Tuple {
    rule: String,
    fields: Vec<String>,
}

impl Tuple {
    /// Source, destination and their ports.
    fn ends(&self) -> [&str; 4] {
        [1, 2, 3, 4].map(|n| self.fields[n].as_str())
    }
}

/// N14, D38: live TCP, UDP and a denied connection are in the log of the VNet and in that of the group, with the packets and
/// bytes that the kernel counts, and the rule that decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n14_flow_logs_have_the_flows_with_their_packets_and_bytes() -> Result<()> {
    let w = World::up("flow-logs").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    write_each_second(&w, "hub-vm").await?;

    let group = w.group().item("networkSecurityGroups", "web");
    let vnet = w.group().item("virtualNetworks", "hub");
    let attached = deny_and_log(&w, &[("group", &group), ("vnet", &vnet)]).await?;
    let mac = attached["properties"]["macAddress"]
        .as_str()
        .context("the MAC address")?;
    let mac = mac.replace('-', "");

    let (from, to) = (w.address("spoke-a-vm")?, w.address("hub-vm")?);
    count(&w, "hub-vm", &from.to_string()).await?;
    let netns = w.hosts().netns("hub-vm");
    let servers = [Port::Tcp(ALLOWED), Port::Tcp(DENIED), Port::Udp(ALLOWED)];
    let servers = servers.map(|port| EchoServer::start(&netns, to, port));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let sender = w.hosts().netns("spoke-a-vm");
    let mut tcp = Connection::open(&sender, SocketAddr::new(to, ALLOWED))?.context("allowed")?;
    let mut udp = Datagrams::open(&sender, SocketAddr::new(to, ALLOWED))?;
    for _ in 0..20 {
        tcp.exchange()?;
        ensure!(udp.exchange()?, "allowed");
    }
    ensure!(
        Connection::open(&sender, SocketAddr::new(to, DENIED))?.is_none(),
        "denied"
    );
    drop(tcp);

    let directory = w.agent_dir("hub-vm")?.join("flow-logs");
    let of_tcp = |t: &Tuple| t.ends()[..2] == [from.to_string(), to.to_string()] && t.ends()[3] == ALLOWED.to_string();
    let start = Instant::now();
    loop {
        let (_, vnet) = read(&directory, &mac)?;
        let ended = |t: &&Tuple| of_tcp(t) && t.fields[5] == "6" && t.fields[7] == "E";
        if vnet.iter().any(|t| ended(&t)) {
            break;
        }
        ensure!(start.elapsed() < END, "the connection has not ended: {vnet:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The agent writes what it has counted when it stops.
    ensure!(w.stop_agent("hub-vm")?, "the agent had to be killed");
    let counted = counters(&w, "hub-vm").await?;
    let (of_group, vnet) = read(&directory, &mac)?;

    for (protocol, letter) in [("6", "T"), ("17", "U")] {
        let of_vnet: Vec<&Tuple> = vnet.iter().filter(|t| of_tcp(t) && t.fields[5] == protocol).collect();
        let states: String = of_vnet.iter().map(|t| t.fields[7].as_str()).collect();
        ensure!(states == if letter == "T" { "BE" } else { "BC" }, "{of_vnet:?}");
        ensure!(
            of_vnet.iter().all(|t| t.rule == "DefaultRule_AllowVnetInBound"),
            "{of_vnet:?}"
        );
        ensure!(
            of_vnet.iter().all(|t| t.fields[6] == "I" && t.fields[8] == "X"),
            "{of_vnet:?}"
        );
        let expected: Vec<String> = ["in", "out"]
            .iter()
            .flat_map(|direction| counted[&format!("{letter}{direction}")])
            .map(|n| n.to_string())
            .collect();
        ensure!(
            of_vnet[1].fields[9..] == expected,
            "{of_vnet:?}, but the kernel has {counted:?}"
        );
        let port = of_vnet[0].ends()[2];
        let same = of_group
            .iter()
            .filter(|t| of_tcp(t) && t.ends()[2] == port && t.fields[5] == letter);
        let same: Vec<&Tuple> = same.collect();
        ensure!(same.len() == 2 && same[1].fields[9..] == expected, "{same:?}");
        ensure!(same[0].fields[6..] == ["I", "A", "B", "", "", "", ""], "{same:?}");
    }
    let denied = |t: &&Tuple| t.ends()[3] == DENIED.to_string();
    let of_vnet: Vec<&Tuple> = vnet.iter().filter(denied).collect();
    ensure!(
        !of_vnet.is_empty() && of_vnet.len() <= 2,
        "one in each second: {of_vnet:?}"
    );
    ensure!(of_vnet.iter().all(|t| t.rule == "UserRule_no-5002"), "{of_vnet:?}");
    ensure!(
        of_vnet
            .iter()
            .all(|t| t.fields[6..] == ["I", "D", "X", "0", "0", "0", "0"]),
        "{of_vnet:?}"
    );
    let of_group: Vec<&Tuple> = of_group.iter().filter(denied).collect();
    ensure!(of_group.len() == of_vnet.len(), "{of_group:?}");
    ensure!(
        of_group.iter().all(|t| t.fields[6..9] == ["I", "D", "B"]),
        "{of_group:?}"
    );

    drop((servers, udp));
    w.start_agent("hub-vm")?;
    w.wait_until_ready(READY).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.end().await
}

/// D38: the command line follows the logs of two agents, in both layouts, while connections are made. Ctrl-C ends it, and then no
/// agent sends records any more. An agent that restarts is followed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d38_flow_logs_are_followed_while_agents_make_them() -> Result<()> {
    let w = World::up("flow-tail").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let group = w.group().item("networkSecurityGroups", "web");
    let [hub, spoke] = ["hub", "spoke-a"].map(|vnet| w.group().item("virtualNetworks", vnet));
    deny_and_log(&w, &[("group", &group), ("hub", &hub), ("spoke", &spoke)]).await?;
    let (from, to) = (w.address("spoke-a-vm")?, w.address("hub-vm")?);
    let _server = EchoServer::start(&w.hosts().netns("hub-vm"), to, Port::Tcp(ALLOWED))?;
    let sender = w.hosts().netns("spoke-a-vm");

    let (json, text) = (w.path()?.join("tail.json"), w.path()?.join("tail.txt"));
    let mut all = Program::tombolo(&w, "hub-fw", &["-o", "json", "flow-log", "tail", "--all"], &json)?;
    let mut one = Program::tombolo(&w, "hub-fw", &["flow-log", "tail", "hub", "--region", "region1"], &text)?;
    let followed = |line: &Value| line["type"] == "agent" && line["state"] == "following";
    until_line(&all, 2, followed).await?;
    // Two at the agent of the hub, and one at the other.
    until_tails(&w, 3).await?;
    until_text(&one, |text| text.contains("ENCRYPTION")).await?;
    let begin = Instant::now();
    let mut tcp = Connection::open(&sender, SocketAddr::new(to, ALLOWED))?.context("allowed")?;
    tcp.exchange()?;
    ensure!(
        Connection::open(&sender, SocketAddr::new(to, DENIED))?.is_none(),
        "denied"
    );
    let is = |line: &Value, agent: &str, log: &str, port: u16, state: &str| {
        let ends = line["source"] == json!(from) && line["destination"] == json!(to) && line["destinationPort"] == port;
        let log_is = line["log"]
            .as_str()
            .is_some_and(|id| id.ends_with(&format!("/flowLogs/{log}")));
        line["agent"] == agent && ends && log_is && line["state"] == state
    };
    let expected = [
        ("hub-vm", "hub", ALLOWED, "B", "Inbound"),
        ("hub-vm", "group", ALLOWED, "B", "Inbound"),
        ("spoke-a-vm", "spoke", ALLOWED, "B", "Outbound"),
        ("hub-vm", "hub", DENIED, "D", "Inbound"),
        ("hub-vm", "group", DENIED, "D", "Inbound"),
        ("spoke-a-vm", "spoke", DENIED, "B", "Outbound"),
    ];
    for (agent, log, port, state, direction) in expected {
        let found = until_line(&all, 1, |line| is(line, agent, log, port, state)).await?;
        let line = &found[0];
        ensure!(line["direction"] == direction && line["protocol"] == 6, "{line}");
        let rule = if port == DENIED {
            "UserRule_no-5002"
        } else {
            "DefaultRule_AllowVnetInBound"
        };
        let rule = if agent == "hub-vm" { json!(rule) } else { Value::Null };
        ensure!(line["rule"] == rule, "{line}");
        let (encryption, format) = if log == "group" {
            (Value::Null, "group2")
        } else {
            (json!("X"), "network4")
        };
        ensure!(line["encryption"] == encryption && line["format"] == format, "{line}");
    }
    // Records are written once a minute, and shown at once.
    ensure!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let ends = format!("{from}:");
    until_text(&one, |text| {
        let has = |words: &[&str]| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        has(&[&ends, &format!(" {to}:{DENIED} "), " denied ", "web/UserRule_no-5002"])
            && has(&[&ends, &format!(" {to}:{ALLOWED} "), " allowed ", "hub-vm-nic"])
    })
    .await?;

    w.stop_agent("hub-vm")?;
    until_line(&all, 1, |line| line["agent"] == "hub-vm" && line["state"] == "waiting").await?;
    w.start_agent("hub-vm")?;
    w.wait_until_ready(READY).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    until_line(&all, 2, |line| followed(line) && line["agent"] == "hub-vm").await?;
    let _again = Connection::open(&sender, SocketAddr::new(to, ALLOWED))?.context("allowed")?;
    until_line(&all, 2, |line| is(line, "hub-vm", "hub", ALLOWED, "B")).await?;
    until_text(&one, |text| {
        text.lines()
            .filter(|line| line.contains(&format!(" {to}:{ALLOWED} ")))
            .count()
            > 1
    })
    .await?;

    for program in [&mut all, &mut one] {
        let status = program.interrupt().await?;
        ensure!(status.code() == Some(0), "{status}: {}", program.errors()?);
    }
    until_tails(&w, 0).await?;
    let errors = one.errors()?;
    ensure!(errors.contains("agent hub-vm: waiting: "), "{errors}");
    w.end().await
}

/// Number of tails that the agents of the lab send.
fn tails(w: &World) -> Result<usize> {
    let mut count = 0;
    for host in ["hub-vm", "spoke-a-vm"] {
        for pid in w.hosts().processes(host) {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten() {
                // A thread may end meanwhile.
                let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
                count += usize::from(name.trim() == "flow-log-tail");
            }
        }
    }
    Ok(count)
}

/// Waits until the agents send this number of tails.
async fn until_tails(w: &World, count: usize) -> Result<()> {
    let begin = Instant::now();
    while tails(w)? != count {
        ensure!(begin.elapsed() < READY, "{} tails", tails(w)?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until a program has written this number of lines of JSON for which `holds` is true, and returns them.
async fn until_line(program: &Program, count: usize, holds: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let begin = Instant::now();
    loop {
        let output = program.output()?;
        let lines = output
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        let lines: Vec<Value> = lines.map(serde_json::from_slice).collect::<Result<_, _>>()?;
        let found: Vec<Value> = lines.iter().filter(|line| holds(line)).cloned().collect();
        if found.len() >= count {
            return Ok(found);
        }
        ensure!(begin.elapsed() < READY, "{lines:#?} {}", program.errors()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the output of a program is as expected.
async fn until_text(program: &Program, holds: impl Fn(&str) -> bool) -> Result<()> {
    let begin = Instant::now();
    loop {
        let output = String::from_utf8(program.output()?)?;
        if holds(&output) {
            return Ok(());
        }
        ensure!(begin.elapsed() < READY, "{output} {}", program.errors()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Attaches a group to `hub-vm` that denies a port, creates flow logs with these names and targets, and waits until that is in
/// force. Returns the network interface.
async fn deny_and_log(w: &World, logs: &[(&str, &String)]) -> Result<Value> {
    let group = w.group().item("networkSecurityGroups", "web");
    let client = w.client()?;
    client.arm_put(&group, &json!({"location": "region1"})).await?;
    let deny = json!({"properties": {
        "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "VirtualNetwork", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
    }});
    client.arm_put(&format!("{group}/securityRules/no-5002"), &deny).await?;
    let nic = w.group().item("networkInterfaces", "hub-vm-nic");
    let mut body = client.arm_get(&nic).await?;
    body["properties"]["networkSecurityGroup"] = json!({"id": group});
    let attached = client.arm_put(&nic, &body).await?;
    for (name, target) in logs {
        let storage = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a";
        let body = json!({"location": "region1", "properties": {"targetResourceId": target, "storageId": storage}});
        let made = client.arm_put(&log_path(w, name)?, &body).await?;
        ensure!(made["properties"]["format"]["version"] == 2, "{made}");
    }
    w.in_force().await?;
    Ok(attached)
}

/// The path of a flow log below the watcher of the lab's region.
fn log_path(w: &World, name: &str) -> Result<String> {
    let group = w.group().path();
    let (subscription, _) = group.split_once("/resourceGroups/").context("the lab's group")?;
    Ok(format!(
        "{subscription}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
         NetworkWatcher_region1/flowLogs/{name}"
    ))
}

/// Restarts an agent with a setting by which it writes a record each second.
async fn write_each_second(w: &World, host: &str) -> Result<()> {
    ensure!(w.stop_agent(host)?, "the agent had to be killed");
    let file = w.agent_dir(host)?.join("agent.toml");
    let settings = fs::read_to_string(&file)? + "\n[flow_logs]\ninterval_seconds = 1\n";
    fs::write(&file, settings)?;
    w.start_agent(host)?;
    w.wait_until_ready(READY).await?;
    w.reach("spoke-a-vm", host).await
}

/// Lets the kernel of a host count the packets and bytes of the test's flows with `peer`.
async fn count(w: &World, host: &str, peer: &str) -> Result<()> {
    let mut script = "add table inet flows; ".to_owned();
    for (chain, hook, address, port) in [
        ("in", "prerouting", "saddr", "dport"),
        ("out", "postrouting", "daddr", "sport"),
    ] {
        script += &format!("add chain inet flows {chain} {{ type filter hook {hook} priority -300; }}; ");
        for (letter, protocol) in [("T", "tcp"), ("U", "udp")] {
            script += &format!("add counter inet flows {letter}{chain}; ");
            script += &format!(
                "add rule inet flows {chain} ip {address} {peer} {protocol} {port} {ALLOWED} counter name {letter}{chain}; "
            );
        }
    }
    let done = w.exec(host, &["nft", &script], Duration::from_secs(20)).await?;
    ensure!(done.code == 0, "{done:?}");
    Ok(())
}

/// Packets and bytes of each counter.
async fn counters(w: &World, host: &str) -> Result<BTreeMap<String, [u64; 2]>> {
    let list = ["nft", "-j", "list", "counters", "table", "inet", "flows"];
    let done = w.exec(host, &list, Duration::from_secs(20)).await?;
    ensure!(done.code == 0, "{done:?}");
    let all: Value = serde_json::from_str(&done.stdout)?;
    let counters = all["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("counter"));
    let read = |c: &Value| {
        let number = |name: &str| c[name].as_u64();
        Some((c["name"].as_str()?.to_owned(), [number("packets")?, number("bytes")?]))
    };
    Ok(counters.filter_map(read).collect())
}

/// The tuples of the log of the group and of that of the VNet, in the order of the files, for one NIC.
fn read(directory: &Path, mac: &str) -> Result<(Vec<Tuple>, Vec<Tuple>)> {
    let (mut of_group, mut of_vnet) = (Vec::new(), Vec::new());
    for path in files(directory)? {
        let parsed: Value = serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
        ensure!(
            path.to_str()
                .is_some_and(|p| p.contains(&format!("/m=00/macAddress={mac}/"))),
            "{}",
            path.display()
        );
        for record in parsed["records"].as_array().context("records")? {
            ensure!(record["macAddress"] == mac, "{record}");
            let groups: Vec<&Value> = match record["category"].as_str() {
                Some("FlowLogFlowEvent") => items(&record["flowRecords"]["flows"])
                    .flat_map(|f| items(&f["flowGroups"]))
                    .collect(),
                _ => items(&record["properties"]["flows"]).collect(),
            };
            for group in groups {
                let of_mac = items(&group["flows"]).flat_map(|flow| items(&flow["flowTuples"]));
                for tuple in items(&group["flowTuples"]).chain(of_mac) {
                    let tuple = Tuple {
                        rule: group["rule"].as_str().context("rule")?.to_owned(),
                        fields: tuple.as_str().context("tuple")?.split(',').map(str::to_owned).collect(),
                    };
                    match record["category"].as_str() {
                        Some("FlowLogFlowEvent") => of_vnet.push(tuple),
                        _ => of_group.push(tuple),
                    }
                }
            }
        }
    }
    // Groups of a record are ordered by rule, and its tuples by time.
    of_group.sort_by_key(|t| t.fields[0].parse::<u64>().unwrap_or_default());
    of_vnet.sort_by_key(|t| t.fields[0].parse::<u64>().unwrap_or_default());
    Ok((of_group, of_vnet))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The files of flow logs, in the order of their hours.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(found);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
