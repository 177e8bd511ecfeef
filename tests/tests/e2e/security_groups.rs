//! Network security groups at running agents: which packets pass, which rule is counted, and what a change disturbs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tombolo_lab::host::inside;
use tombolo_lab::probe::BackgroundPing;
use tombolo_tests::live::{PING_INTERVAL, World};

const ALLOWED: u16 = 5001;
const DENIED: u16 = 5002;

/// How long a connection attempt waits. An answer inside of a lab takes milliseconds; a denied SYN gets none (N7).
const ATTEMPT: Duration = Duration::from_millis(1500);

/// N1, N3, N6, N7: one rule at a network interface drops the connections to one port, is counted, and leaves established
/// connections and all other traffic alone; without the rule the port is open again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_drops_one_port_and_nothing_else() -> Result<()> {
    let w = World::up("nsg").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let pings = [("spoke-a-vm", "hub-vm"), ("hub-vm", "hub-fw")].map(|(a, b)| w.start_ping(a, b, PING_INTERVAL));
    let servers = Servers::start(&w, "hub-vm")?;
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
    echo(&mut early).context("N6, D34: the connection is older than the group")?;
    let hits = hits(&w, "hub-vm").await?;
    let counted = |rule: &str| hits.iter().find(|(name, _)| name == rule).map_or(0, |(_, n)| *n);
    ensure!(counted("securityRules/deny-one-port") >= 2, "{hits:?}");
    ensure!(counted("defaultSecurityRules/AllowVnetInBound") >= 1, "{hits:?}");

    // A rule of a lower number comes first (N3).
    let allow = format!("{group}/securityRules/allow-it-again");
    client.arm_put(&allow, &rule(150, "Allow")).await?;
    w.in_force().await?;
    let mut later = connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.context("allowed by the first rule")?;
    ensure!(client.arm_delete(&allow).await?);
    w.in_force().await?;
    ensure!(connect(&w, "spoke-a-vm", "hub-vm", DENIED)?.is_none(), "denied again");
    echo(&mut later).context("N6: a change applies to new flows only")?;

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

/// TCP servers on both ports of a host, which send back what they receive until the value is dropped.
struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    fn start(w: &World, host: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for port in [ALLOWED, DENIED] {
            let address = SocketAddr::new(w.address(host)?, port);
            let listener = inside(&w.hosts().netns(host), || TcpListener::bind(address))?.context("listening")?;
            listener.set_nonblocking(true)?;
            let stop = stop.clone();
            threads.push(std::thread::spawn(move || serve(&listener, &stop)));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that panicked has failed the test by not answering.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut open = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            // Without blocking, one thread answers all connections.
            if stream.set_nonblocking(true).is_ok() {
                open.push(stream);
            }
        }
        open.retain_mut(|stream| {
            let mut buffer = [0; 64];
            match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
                Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects and exchanges a few bytes. `None`: nobody answers within [`ATTEMPT`].
fn connect(w: &World, from: &str, to: &str, port: u16) -> Result<Option<TcpStream>> {
    let address = SocketAddr::new(w.address(to)?, port);
    let connected = inside(&w.hosts().netns(from), || TcpStream::connect_timeout(&address, ATTEMPT))?;
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("{from} to {address}")),
    };
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    echo(&mut stream)?;
    Ok(Some(stream))
}

/// Sends a few bytes, and waits until they come back.
fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    ensure!(back == *b"hello", "{back:?}");
    Ok(())
}
