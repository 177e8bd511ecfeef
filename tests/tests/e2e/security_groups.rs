//! Network security groups at running agents: which packets pass, which rule is counted, and what a change disturbs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_lab::demo::{self, Demo};
use tombolo_lab::echo::{Connection, Datagrams, EchoServer, Port};
use tombolo_lab::probe::BackgroundPing;
use tombolo_lab::{Topology, binary};
use tombolo_tests::live::{PING_INTERVAL, World, require_root};

const ALLOWED: u16 = 5001;
const DENIED: u16 = 5002;

/// Time for a restarted agent to have its configuration in force.
const READY: Duration = Duration::from_secs(20);

/// N1, N3, N6, N7: one rule at a network interface drops the connections to one port, is counted, and leaves established
/// connections and all other traffic alone; without the rule the port is open again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_drops_one_port_and_nothing_else() -> Result<()> {
    let w = World::up("nsg-rule").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let pings = [("spoke-a-vm", "hub-vm"), ("hub-vm", "hub-fw")].map(|(a, b)| w.start_ping(a, b, PING_INTERVAL));
    let servers = servers(&w, "hub-vm")?;
    let mut early = connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.context("no group is attached yet")?;

    let group = w.group().item("networkSecurityGroups", "web");
    let client = w.client()?;
    client.arm_put(&group, &json!({"location": "region1"})).await?;
    let rule = |priority: u16, access: &str| {
        json!({"properties": {
            "priority": priority, "direction": "Inbound", "access": access, "protocol": "Tcp",
            "sourceAddressPrefix": "VirtualNetwork", "sourcePortRange": "*",
            "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
        }})
    };
    let deny = format!("{group}/securityRules/deny-one-port");
    client.arm_put(&deny, &rule(200, "Deny")).await?;
    attach(&w, "hub-vm", Some(&group)).await?;

    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", ALLOWED)?.is_some(),
        "N10: default rules let peers in"
    );
    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(),
        "denied from a peer"
    );
    ensure!(
        connect(&w, "hub-fw", "hub-vm", DENIED)?.is_none(),
        "N4: denied inside the subnet or VNet too"
    );
    early
        .exchange()
        .context("N6, D34: the connection is older than the group")?;
    let hits = hits(&w, "hub-vm").await?;
    let counted = |rule: &str| hits.iter().find(|(name, _)| name == rule).map_or(0, |(_, n)| *n);
    ensure!(counted("securityRules/deny-one-port") >= 2, "{hits:?}");
    ensure!(counted("defaultSecurityRules/AllowVnetInBound") >= 1, "{hits:?}");

    let listed = listed(&w, "web").await?;
    let of_rule = |name: &str| listed.iter().find(|rule| rule["name"] == name);
    let deny_row = of_rule("deny-one-port").context("the command line lists the rule")?;
    let nic = w.group().item("networkInterfaces", "hub-vm-nic");
    let at_nic = json!([{"nic": {"id": nic}, "packets": counted("securityRules/deny-one-port")}]);
    ensure!(
        deny_row["hits"] == at_nic[0]["packets"] && deny_row["hitsPerNic"] == at_nic,
        "{deny_row}, but {hits:?}"
    );
    let never = of_rule("AllowAzureLoadBalancerInBound").context("the command line lists default rules")?;
    ensure!(never["hits"] == 0 && never["hitsPerNic"] == json!([]), "{never}");

    // A rule of a lower number comes first (N3).
    let allow = format!("{group}/securityRules/allow-it-again");
    client.arm_put(&allow, &rule(150, "Allow")).await?;
    w.in_force().await?;
    let mut later = connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.context("allowed by the first rule")?;
    ensure!(client.arm_delete(&allow).await?);
    w.in_force().await?;
    ensure!(connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(), "denied again");
    later.exchange().context("N6: a change applies to new flows only")?;

    attach(&w, "hub-vm", None).await?;
    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_some(),
        "N5: without a group everything is allowed"
    );
    let pings = pings.into_iter().collect::<Result<Vec<_>>>()?;
    for pinged in BackgroundPing::stop_all(pings) {
        let pinged = pinged?;
        ensure!(
            pinged.all(),
            "{} of {} lost: {:?}",
            pinged.missing.len(),
            pinged.sent,
            pinged.missing
        );
    }
    drop(servers);
    w.end().await
}

/// Two flows from `spoke-a-vm` to `hub-vm`, which a group without rules of the user allows: a TCP connection to the
/// port [`DENIED`], and datagrams to the same port of UDP.
struct Flows {
    tcp: Connection,
    udp: Datagrams,
    /// The path of a rule that denies such flows, but does not exist yet.
    rule: String,
    _servers: Vec<EchoServer>,
}

impl Flows {
    async fn begin(w: &World) -> Result<Self> {
        w.join("hub", "spoke-a").await?;
        w.reach("spoke-a-vm", "hub-vm").await?;
        let group = w.group().item("networkSecurityGroups", "web");
        w.client()?.arm_put(&group, &json!({"location": "region1"})).await?;
        attach(w, "hub-vm", Some(&group)).await?;
        let mut servers = servers(w, "hub-vm")?;
        let (netns, address) = (w.hosts().netns("hub-vm"), w.address("hub-vm")?);
        servers.push(EchoServer::start(&netns, address, Port::Udp(DENIED))?);
        let to = SocketAddr::new(address, DENIED);
        let mut flows = Self {
            tcp: connect(w, "spoke-a-vm", "hub-vm", DENIED)?.context("allowed by default rules")?,
            udp: Datagrams::open(&w.hosts().netns("spoke-a-vm"), to)?,
            rule: format!("{group}/securityRules/no-new-flows"),
            _servers: servers,
        };
        ensure!(flows.udp.exchange()?, "allowed by default rules");
        Ok(flows)
    }

    /// Denies such flows, and waits until that is in force.
    async fn deny(&self, w: &World) -> Result<()> {
        let body = json!({"properties": {
            "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "*",
            "sourceAddressPrefix": "VirtualNetwork", "sourcePortRange": "*",
            "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
        }});
        w.client()?.arm_put(&self.rule, &body).await?;
        w.in_force().await.map(drop)
    }
}

/// N6, D34: flows that the present rules would not allow survive a planned restart of the agent. They do not survive a
/// crash, except for TCP connections, which are adopted. A new connection needs a rule at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d34_established_flows_survive_a_planned_restart() -> Result<()> {
    let w = World::up("nsg-restart").await?;
    let mut flows = Flows::begin(&w).await?;
    flows.deny(&w).await?;
    flows.tcp.exchange().context("N6")?;
    ensure!(flows.udp.exchange()?, "N6");
    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(),
        "a new connection"
    );

    for restart in 1..=2 {
        ensure!(w.stop_agent("hub-vm")?, "the agent had to be killed");
        w.start_agent("hub-vm")?;
        w.wait_until_ready(READY).await?;
        w.reach("spoke-a-vm", "hub-fw").await?;
        ensure!(flows.udp.exchange()?, "UDP after restart {restart}");
        flows.tcp.exchange().context("TCP after a restart")?;
        ensure!(
            connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(),
            "a SYN after restart {restart}"
        );
        ensure!(
            connect(&w, "spoke-a-vm", "hub-vm", ALLOWED)?.is_some(),
            "after restart {restart}"
        );
    }

    w.kill_agent("hub-vm")?;
    w.start_agent("hub-vm")?;
    w.wait_until_ready(READY).await?;
    ensure!(connect(&w, "spoke-a-vm", "hub-vm", ALLOWED)?.is_some(), "after a crash");
    ensure!(!flows.udp.exchange()?, "UDP after a crash");
    flows.tcp.exchange().context("TCP in mid-stream is adopted")?;
    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(),
        "a SYN after a crash"
    );
    w.end().await
}

/// D34: with the setting `reevaluate`, a changed rule ends the flows that it denies, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d34_with_reevaluate_a_changed_rule_ends_established_flows() -> Result<()> {
    let w = World::up("nsg-again").await?;
    let mut flows = Flows::begin(&w).await?;
    let client = w.client()?;
    let mut settings = client.settings().await?;
    settings["reevaluate"] = true.into();
    client.put_settings(&settings).await?;
    w.in_force().await?;
    flows.tcp.exchange().context("the rules allow it")?;
    ensure!(flows.udp.exchange()?, "the rules allow it");
    let mut other = connect(&w, "spoke-a-vm", "hub-vm", ALLOWED)?.context("allowed by default rules")?;

    flows.deny(&w).await?;
    ensure!(!flows.udp.exchange()?, "denied now");
    other.exchange().context("another flow")?;
    ensure!(flows.tcp.exchange().is_err(), "denied now");
    ensure!(
        connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(),
        "a new connection"
    );

    ensure!(client.arm_delete(&flows.rule).await?);
    w.in_force().await?;
    ensure!(flows.udp.exchange()?, "allowed again");
    ensure!(connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_some(), "allowed again");
    w.end().await
}

/// Attaches a group to the NIC of a host, or removes it, and waits until that is in force.
async fn attach(w: &World, host: &str, group: Option<&str>) -> Result<()> {
    let nic = w.group().item("networkInterfaces", &format!("{host}-nic"));
    let client = w.client()?;
    let mut body: Value = client.arm_get(&nic).await?;
    body["properties"]["networkSecurityGroup"] = group.map_or(Value::Null, |id| json!({"id": id}));
    client.arm_put(&nic, &body).await?;
    w.in_force().await.map(drop)
}

/// How often each rule decided at the host's agent, as the agent reports it.
async fn hits(w: &World, host: &str) -> Result<Vec<(String, u64)>> {
    // A report comes every 2 s at least.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let agents = w.client()?.agents().await?;
    let agent = agents.iter().find(|a| a.id.as_str() == host).context("the agent")?;
    let status = agent.status.as_ref().context("the agent has reported")?;
    let hits = status.rule_hits.iter();
    Ok(hits.map(|h| (h.rule.clone(), h.packets)).collect())
}

/// The rules of a group with their counters, as the command line lists them.
async fn listed(w: &World, group: &str) -> Result<Vec<Value>> {
    let folder = w.controller_dir()?;
    let file = |name: &str| folder.join(name).display().to_string();
    let (program, url) = (binary::find("tombolo")?.display().to_string(), w.url());
    let (ca, token) = (file("ca.pem"), file("admin.token"));
    let connect = ["--controller", &url, "--ca", &ca, "--token-file", &token];
    let list = ["nsg", "rule", "list", group, "--include-default", "--per-nic"];
    let mut argv = vec![program.as_str()];
    argv.extend(connect.into_iter().chain(["-g", "lab", "-o", "json"]).chain(list));
    let done = w.exec("hub-fw", &argv, Duration::from_secs(20)).await?;
    ensure!(done.code == 0, "{done:?}");
    serde_json::from_str(&done.stdout).context("the command line's output")
}

/// Servers on both ports of a host, which run until they are dropped.
fn servers(w: &World, host: &str) -> Result<Vec<EchoServer>> {
    let start = |port| EchoServer::start(&w.hosts().netns(host), w.address(host)?, Port::Tcp(port));
    [ALLOWED, DENIED].into_iter().map(start).collect()
}

/// Opens a connection. `None`: nobody answers.
fn connect(w: &World, from: &str, to: &str, port: u16) -> Result<Option<Connection>> {
    Connection::open(&w.hosts().netns(from), SocketAddr::new(w.address(to)?, port))
}

/// N3, N4, N6, N9, L9, R11, D40: every check of `make demo LAB=policy` succeeds: open and closed ports, what `explain` says
/// of each, counters, the repair of a rule that breaks the site, and two appliances behind HA ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_of_three_tiers_succeeds() -> Result<()> {
    require_root();
    let mut topology = Topology::load("policy")?;
    topology.name = "e2e-policy".into();
    ensure!(demo::run(&topology, Demo::default()).await?, "a check failed");
    Ok(())
}
