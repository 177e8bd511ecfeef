//! Changes of security groups on a running network disturb no unrelated flow: groups are created, changed and deleted,
//! and move between subnets and network interfaces, while pings and TCP connections pass the same interfaces.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tombolo_lab::echo::{Connection, EchoServer, Port};
use tombolo_lab::probe::BackgroundPing;
use tombolo_tests::live::{PING_INTERVAL, World};

/// The port of unrelated connections.
const OPEN: u16 = 5001;
/// The port about which the changed rules decide.
const CHANGED: u16 = 5002;

/// How often all changes are made.
const ROUNDS: usize = 2;

/// Longest time that an exchange over an unrelated connection may take on a busy machine. A lost segment would be
/// visible as a drop at an agent.
const LONGEST: Duration = Duration::from_secs(1);

/// Most SYNs that the kernel sends in one attempt of 1.2 s, and one more because the machine may be busy.
const MOST_SENT: u64 = 3;

/// N6, N7: created, changed, moved and deleted groups take effect on new connections. Meanwhile no ping of those that
/// are sent every 10 ms is lost, connections that rules do not concern go on, and no agent drops any other packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n6_changes_of_groups_disturb_no_unrelated_flow() -> Result<()> {
    let w = World::up("group-changes").await?;
    w.join("hub", "spoke-a").await?;
    for (a, b) in [("spoke-a-vm", "hub-vm"), ("hub-vm", "hub-fw"), ("spoke-a-vm", "hub-fw")] {
        w.reach(a, b).await?;
    }
    let serve = |host: &str, port| EchoServer::start(&w.hosts().netns(host), w.address(host)?, Port::Tcp(port));
    let servers = [
        serve("hub-vm", OPEN)?,
        serve("hub-vm", CHANGED)?,
        serve("hub-fw", OPEN)?,
    ];
    let before = drops(&w).await?;
    let pings = [
        ("spoke-a-vm", "hub-vm"),
        ("hub-vm", "spoke-a-vm"),
        ("hub-vm", "hub-fw"),
        ("spoke-a-vm", "hub-fw"),
    ];
    let pings = pings.map(|(a, b)| w.start_ping(a, b, PING_INTERVAL));
    let pings = pings.into_iter().collect::<Result<Vec<_>>>()?;
    let streams = [
        Stream::start(&w, "spoke-a-vm", "hub-vm")?,
        Stream::start(&w, "hub-vm", "hub-fw")?,
    ];

    let mut denied = 0;
    for _ in 0..ROUNDS {
        denied += change_everything(&w).await?;
    }

    for stream in streams {
        let (exchanges, longest) = stream.stop()?;
        ensure!(exchanges > 100, "only {exchanges} exchanges");
        ensure!(longest < LONGEST, "an exchange took {longest:?}");
    }
    for pinged in BackgroundPing::stop_all(pings) {
        let pinged = pinged?;
        let lost = &pinged.missing;
        ensure!(pinged.all(), "{} of {} pings lost: {lost:?}", lost.len(), pinged.sent);
    }
    let after = drops(&w).await?;
    ensure!(
        before.1 == after.1,
        "packets were dropped for other reasons than rules: {before:?}, {after:?}"
    );
    let by_rules = after.0 - before.0;
    ensure!(
        (denied..=denied * MOST_SENT).contains(&by_rules),
        "rules dropped {by_rules} packets of {denied} attempts"
    );
    drop(servers);
    w.end().await
}

/// Creates, changes, moves and deletes groups, and checks after each change which new connections it allows. Returns
/// the number of attempts that rules denied.
async fn change_everything(w: &World) -> Result<u64> {
    let client = w.client()?;
    let [first, second] = ["first", "second"].map(|name| w.group().item("networkSecurityGroups", name));
    let vnet = w.group().item("virtualNetworks", "hub");
    let nic = w.group().item("networkInterfaces", "hub-vm-nic");
    let nic_body: Value = client.arm_get(&nic).await?;
    let subnet = nic_body["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"].as_str();
    let subnet = subnet.context("the subnet of hub-vm")?.to_owned();
    ensure!(subnet.starts_with(&vnet), "{subnet} is not in {vnet}");
    let mut denied = 0;
    let mut expect = async |open: bool, what: &str| -> Result<()> {
        w.in_force().await?;
        denied += u64::from(!open);
        let connected = connect(w, "spoke-a-vm", "hub-vm", CHANGED).await?;
        ensure!(connected.is_some() == open, "{what}: open is {}", connected.is_some());
        Ok(())
    };

    // Creation, without and with an association.
    client.arm_put(&first, &group(&[])).await?;
    client.arm_put(&second, &group(&[rule("deny", 200, "Deny")])).await?;
    expect(true, "groups that are attached to nothing").await?;
    attach(w, &nic, Some(&first)).await?;
    expect(true, "default rules").await?;

    // Changes: a rule is added, changed, overridden, removed; all rules are replaced.
    let deny = format!("{first}/securityRules/deny");
    client.arm_put(&deny, &rule("deny", 200, "Deny")).await?;
    expect(false, "an added rule").await?;
    client.arm_put(&deny, &rule("deny", 200, "Allow")).await?;
    expect(true, "a changed rule").await?;
    client.arm_put(&deny, &rule("deny", 300, "Deny")).await?;
    let allow = format!("{first}/securityRules/allow");
    client.arm_put(&allow, &rule("allow", 100, "Allow")).await?;
    expect(true, "a rule with a lower number").await?;
    ensure!(client.arm_delete(&allow).await?);
    expect(false, "a removed rule").await?;
    client.arm_put(&first, &group(&[])).await?;
    expect(true, "replaced rules").await?;

    // Associations: from group to group, to the subnet, to both, and away.
    attach(w, &nic, Some(&second)).await?;
    expect(false, "another group of the interface").await?;
    attach(w, &subnet, Some(&second)).await?;
    attach(w, &nic, Some(&first)).await?;
    expect(false, "the group of the subnet").await?;
    attach(w, &subnet, Some(&first)).await?;
    expect(true, "another group of the subnet").await?;
    attach(w, &subnet, None).await?;
    attach(w, &nic, None).await?;
    expect(true, "no group").await?;

    // Deletion.
    ensure!(client.arm_delete(&first).await? && client.arm_delete(&second).await?);
    expect(true, "deleted groups").await?;
    Ok(denied)
}

fn group(rules: &[Value]) -> Value {
    json!({"location": "region1", "properties": {"securityRules": rules}})
}

/// An inbound rule for the port [`CHANGED`].
fn rule(name: &str, priority: u16, access: &str) -> Value {
    json!({"name": name, "properties": {
        "priority": priority, "direction": "Inbound", "access": access, "protocol": "Tcp",
        "sourceAddressPrefix": "*", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": CHANGED.to_string(),
    }})
}

/// Attaches a group to a subnet or network interface, or removes it, and waits until that is in force.
async fn attach(w: &World, to: &str, group: Option<&str>) -> Result<()> {
    let client = w.client()?;
    let mut body: Value = client.arm_get(to).await?;
    body["properties"]["networkSecurityGroup"] = group.map_or(Value::Null, |id| json!({"id": id}));
    client.arm_put(to, &body).await?;
    w.in_force().await.map(drop)
}

/// Numbers of packets that the agents of the three machines have dropped: by security rules, and for each other reason.
async fn drops(w: &World) -> Result<(u64, Vec<(String, u64)>)> {
    let (mut by_rules, mut others) = (0, Vec::new());
    for host in ["spoke-a-vm", "hub-vm", "hub-fw"] {
        for (reason, count) in w.agent_status(host).await?.drops {
            if reason == "security_rule" {
                by_rules += count;
            } else {
                others.push((format!("{host} {reason}"), count));
            }
        }
    }
    Ok((by_rules, others))
}

/// Opens a connection. `None`: nobody answers.
async fn connect(w: &World, from: &str, to: &str, port: u16) -> Result<Option<Connection>> {
    let (netns, to) = (w.hosts().netns(from), SocketAddr::new(w.address(to)?, port));
    tokio::task::spawn_blocking(move || Connection::open(&netns, to)).await?
}

/// A TCP connection over which data goes to and fro all the time.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u32, Duration)>>,
}

impl Stream {
    /// Opens a connection to the port [`OPEN`], and begins to exchange data.
    fn start(w: &World, from: &str, to: &str) -> Result<Self> {
        let netns: PathBuf = w.hosts().netns(from);
        let connected = Connection::open(&netns, SocketAddr::new(w.address(to)?, OPEN))?;
        let mut connection = connected.with_context(|| format!("{from} → {to}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut exchanges, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                connection.exchange()?;
                longest = longest.max(start.elapsed());
                exchanges += 1;
            }
            Ok((exchanges, longest))
        });
        Ok(Self { stop, thread })
    }

    /// Stops the exchange. Returns the number of exchanges, and the time of the longest one.
    fn stop(self) -> Result<(u32, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
