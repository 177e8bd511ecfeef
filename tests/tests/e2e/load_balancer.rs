//! Internal load balancers with real connections: across a peering of two regions, and inside the VNet (L1 to L5, L10,
//! P30).

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_lab::demo::{self, Demo};
use tombolo_lab::echo::{Connection, Datagrams, EchoServer, Port};
use tombolo_lab::host::inside;
use tombolo_tests::live::{World, require_root};

/// The machines of the global-peering article (L12): a client in one region, and two back ends in another. `beside` is in
/// the VNet of the back ends.
pub(super) const TOPOLOGY: &str = "
name: e2e-balancer
underlay:
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  client: {address: 203.0.113.11, vm: {nics: [client-nic]}}
  six: {address: 203.0.113.12, vm: {nics: [six-nic]}}
  four: {address: 203.0.113.13, vm: {nics: [four-nic]}}
  beside: {address: 203.0.113.14, vm: {nics: [beside-nic]}}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    near:
      addressSpace: [192.168.1.0/24]
      subnets: {workload: {addressPrefix: 192.168.1.0/25}}
      peerings: {to-far: {remoteVirtualNetwork: far}}
    far:
      location: region2
      addressSpace: [192.168.2.0/24]
      subnets: {workload: {addressPrefix: 192.168.2.0/25}}
      peerings: {to-near: {remoteVirtualNetwork: near}}
  networkInterfaces:
    client-nic: {subnet: far/workload, privateIPAddress: 192.168.2.4}
    six-nic: {subnet: near/workload, privateIPAddress: 192.168.1.6}
    four-nic: {subnet: near/workload, privateIPAddress: 192.168.1.4}
    beside-nic: {subnet: near/workload, privateIPAddress: 192.168.1.10}
";

const FRONT: [u8; 4] = [192, 168, 1, 36];
const FRONT_PORT: u16 = 80;
pub(super) const BACK_PORT: u16 = 8080;

/// The body of the load balancer, whose id is `lb`, with a rule for TCP and one for UDP. Both have the probe `probe`, if
/// there is one.
pub(super) fn body(w: &World, lb: &str, sku: &str, probe: Option<Value>) -> Value {
    let subnet = format!("{}/subnets/workload", w.group().item("virtualNetworks", "near"));
    let rule = |name: &str, protocol: &str| {
        json!({"name": name, "properties": {
            "protocol": protocol, "frontendPort": FRONT_PORT, "backendPort": BACK_PORT,
            "frontendIPConfiguration": {"id": format!("{lb}/frontendIPConfigurations/front")},
            "backendAddressPool": {"id": format!("{lb}/backendAddressPools/pool")},
            "probe": probe.as_ref().map(|_| json!({"id": format!("{lb}/probes/probe")})),
        }})
    };
    json!({"location": "region1", "sku": {"name": sku}, "properties": {
        "frontendIPConfigurations": [{"name": "front", "properties": {
            "subnet": {"id": subnet}, "privateIPAddress": IpAddr::from(FRONT), "privateIPAllocationMethod": "Static",
        }}],
        "backendAddressPools": [{"name": "pool"}],
        "loadBalancingRules": [rule("web", "Tcp"), rule("names", "Udp")],
        "probes": probe.iter().map(|p| json!({"name": "probe", "properties": p})).collect::<Vec<_>>(),
    }})
}

/// Adds a NIC to the pool, or removes it.
pub(super) async fn set_member(w: &World, nic: &str, pool: Option<&str>) -> Result<()> {
    let nic = w.group().item("networkInterfaces", nic);
    let client = w.client()?;
    let mut body: Value = client.arm_get(&nic).await?;
    let pools: Vec<Value> = pool.iter().map(|pool| json!({"id": pool})).collect();
    body["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] = pools.into();
    client.arm_put(&nic, &body).await?;
    w.in_force().await.map(drop)
}

/// Opens a connection to the front end. `None`: there is no answer.
pub(super) fn connect(w: &World, from: &str) -> Result<Option<Connection>> {
    Connection::open(&w.hosts().netns(from), SocketAddr::from((FRONT, FRONT_PORT)))
}

fn counts(servers: &[EchoServer]) -> Vec<usize> {
    servers.iter().map(EchoServer::served).collect()
}

/// L4, L5, L10, L12, P30: a client in another region and one in the same VNet reach both back ends through the front end;
/// a back end that leaves the pool gets no new flows, and the flows of the other one go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_reach_the_back_ends_through_the_front_end() -> Result<()> {
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    w.reach("client", "six").await?;
    w.reach("client", "four").await?;
    let client = w.client()?;
    let lb = w.group().item("loadBalancers", "lb");
    let pool = format!("{lb}/backendAddressPools/pool");
    client.arm_put(&lb, &body(&w, &lb, "Standard", None)).await?;
    for nic in ["six-nic", "four-nic"] {
        set_member(&w, nic, Some(&pool)).await?;
    }
    let start = |host: &str, port| EchoServer::start(&w.hosts().netns(host), w.address(host)?, port);
    let servers = [
        start("six", Port::Tcp(BACK_PORT))?,
        start("four", Port::Tcp(BACK_PORT))?,
    ];

    let mut connections = Vec::new();
    for from in ["client", "beside"] {
        let before = counts(&servers);
        for number in 0..12 {
            let connection = connect(&w, from)?;
            connections.push(connection.with_context(|| format!("connection {number} of {from}"))?);
        }
        let after = counts(&servers);
        ensure!(
            after.iter().sum::<usize>() - before.iter().sum::<usize>() == 12,
            "{from}: {before:?}, {after:?}"
        );
        ensure!(
            after[0] > before[0] && after[1] > before[1],
            "{from} reaches both: {before:?}, {after:?}"
        );
    }
    // The back ends are reached directly too, as in the article.
    for back_end in ["six", "four"] {
        let to = SocketAddr::new(w.address(back_end)?, BACK_PORT);
        let direct = Connection::open(&w.hosts().netns("client"), to)?;
        ensure!(direct.is_some(), "{back_end} answers directly");
    }
    // L5: UDP has its own rule.
    let datagrams = [
        start("six", Port::Udp(BACK_PORT))?,
        start("four", Port::Udp(BACK_PORT))?,
    ];
    for _ in 0..12 {
        let mut socket = Datagrams::open(&w.hosts().netns("client"), SocketAddr::from((FRONT, FRONT_PORT)))?;
        ensure!(socket.exchange()? && socket.exchange()?, "UDP through the front end");
    }
    ensure!(
        datagrams.iter().all(|server| server.served() >= 2),
        "{:?}",
        counts(&datagrams)
    );

    // L4: a back end that joins disturbs no flow. Here it is `four` that leaves and joins again.
    for connection in &mut connections {
        connection.exchange().context("before the change")?;
    }
    set_member(&w, "four-nic", None).await?;
    let before = counts(&servers);
    for _ in 0..6 {
        ensure!(connect(&w, "client")?.is_some(), "six alone answers");
    }
    ensure!(
        counts(&servers) == [before[0] + 6, before[1]],
        "{before:?}, {:?}",
        counts(&servers)
    );
    let mut of_six = (0..6)
        .map(|_| connect(&w, "client")?.context("six"))
        .collect::<Result<Vec<_>>>()?;
    set_member(&w, "four-nic", Some(&pool)).await?;
    for connection in &mut of_six {
        connection.exchange().context("a back end joined")?;
    }

    // L3: the front end has no other port, and does not answer ping.
    let other = SocketAddr::from((FRONT, FRONT_PORT + 1));
    ensure!(
        Connection::open(&w.hosts().netns("client"), other)?.is_none(),
        "no rule for this port"
    );
    // P30: another region reaches Standard load balancers only.
    drop(connections);
    for nic in ["six-nic", "four-nic"] {
        set_member(&w, nic, None).await?;
    }
    ensure!(client.arm_delete(&lb).await?);
    w.in_force().await?;
    ensure!(connect(&w, "beside")?.is_none(), "the front end is gone");
    client.arm_put(&lb, &body(&w, &lb, "Basic", None)).await?;
    set_member(&w, "six-nic", Some(&pool)).await?;
    ensure!(connect(&w, "beside")?.is_some(), "inside the VNet");
    ensure!(connect(&w, "client")?.is_none(), "from another region");
    drop(servers);
    w.end().await
}

/// Opens new connections until twelve in a row succeed and are spread over exactly the servers `expected`. Returns the
/// time that this took.
pub(super) async fn settles(w: &World, servers: &[Option<EchoServer>; 2], expected: [bool; 2]) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let count = || servers.each_ref().map(|s| s.as_ref().map_or(0, EchoServer::served));
        let before = count();
        let all = (0..12).all(|_| connect(w, "client").is_ok_and(|connection| connection.is_some()));
        let after = count();
        let used = [after[0] > before[0], after[1] > before[1]];
        if used == expected && all == expected.contains(&true) {
            return Ok(begun.elapsed());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(40),
            "{used:?} are used, all answered: {all}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// L6, L7, L8, L12: a back end whose server stops gets no new flows, and the flows of the other one go on; with both
/// stopped the front end takes no new flows, and nothing else changes; a server that starts again gets flows again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_back_end_that_does_not_answer_gets_no_new_flows() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "e2e-probes".into();
    let w = World::of(&topology).await?;
    let client = w.client()?;
    let lb = w.group().item("loadBalancers", "lb");
    let pool = format!("{lb}/backendAddressPools/pool");
    let probe = json!({"protocol": "Tcp", "port": BACK_PORT, "intervalInSeconds": 5, "probeThreshold": 1});
    client.arm_put(&lb, &body(&w, &lb, "Standard", Some(probe))).await?;
    for nic in ["six-nic", "four-nic"] {
        set_member(&w, nic, Some(&pool)).await?;
    }
    let start = |host: &str| EchoServer::start(&w.hosts().netns(host), w.address(host)?, Port::Tcp(BACK_PORT));
    let mut servers = [Some(start("six")?), Some(start("four")?)];
    settles(&w, &servers, [true, true]).await?;

    // Connections to `four`: they are opened while `six` is stopped.
    servers[0] = None;
    settles(&w, &servers, [false, true]).await?;
    let mut of_four = (0..6)
        .map(|_| connect(&w, "client")?.context("four"))
        .collect::<Result<Vec<_>>>()?;
    servers[0] = Some(start("six")?);
    settles(&w, &servers, [true, true]).await?;
    for connection in &mut of_four {
        connection.exchange().context("six is back: the flows of four stay")?;
    }
    // L8, L12: both stopped.
    drop(of_four);
    servers = [None, None];
    settles(&w, &servers, [false, false]).await?;
    w.reach("client", "six").await?;
    w.reach("client", "four").await?;
    servers[1] = Some(start("four")?);
    settles(&w, &servers, [false, true]).await?;
    drop(servers);
    w.end().await
}

/// A time limit that is longer than any connection needs until it is established or reset: the detection of the failure,
/// the probe's interval, and the longest pause of TCP between two repetitions of a segment in this time.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection of the client to the front end that exchanges bytes all the time, in a thread of its own.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Busy {
    /// Opens a connection, which takes as long as TCP repeats its SYN.
    fn open(w: &World) -> Result<Self> {
        let to = SocketAddr::from((FRONT, FRONT_PORT));
        let stream = inside(&w.hosts().netns("client"), || {
            TcpStream::connect_timeout(&to, END_TIMEOUT)
        })?;
        let mut stream = stream.context("a new connection")?;
        stream.set_read_timeout(Some(END_TIMEOUT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut exchange = move || {
            let mut back = [0; 5];
            stream.write_all(b"hello")?;
            stream.read_exact(&mut back)
        };
        exchange().context("a new connection")?;
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                exchange()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Ok(Self { stop, thread })
    }

    /// Ends the connection. Returns the error with which it had ended by itself; `None`: it was in use until now.
    fn end(self) -> Option<ErrorKind> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().expect("the thread does not panic");
        result.err().map(|error| error.kind())
    }
}

/// D36: the agent of a back end is killed under running connections. Those to this back end are reset, the others do not
/// notice it, and new connections are established all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d36_connections_are_reset_when_the_agent_of_their_back_end_is_gone() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "e2e-gone".into();
    let w = World::of(&topology).await?;
    let client = w.client()?;
    let lb = w.group().item("loadBalancers", "lb");
    let pool = format!("{lb}/backendAddressPools/pool");
    let probe = json!({"protocol": "Tcp", "port": BACK_PORT, "intervalInSeconds": 5, "probeThreshold": 1});
    client.arm_put(&lb, &body(&w, &lb, "Standard", Some(probe))).await?;
    for nic in ["six-nic", "four-nic"] {
        set_member(&w, nic, Some(&pool)).await?;
    }
    let start = |host: &str| EchoServer::start(&w.hosts().netns(host), w.address(host)?, Port::Tcp(BACK_PORT));
    let servers = [Some(start("six")?), Some(start("four")?)];
    settles(&w, &servers, [true, true]).await?;
    let of_four = || servers[1].as_ref().map_or(0, EchoServer::served);

    let before = of_four();
    let connections = (0..40).map(|_| Busy::open(&w)).collect::<Result<Vec<_>>>()?;
    let lost = of_four() - before;
    ensure!(lost > 0 && lost < connections.len(), "both back ends have some: {lost}");
    w.kill_agent("four")?;
    let killed = Instant::now();
    let ended = || connections.iter().filter(|c| c.thread.is_finished()).count();
    let mut new = Vec::new();
    while ended() < lost {
        new.push(Busy::open(&w).with_context(|| format!("{:?} after the end of the agent", killed.elapsed()))?);
        ensure!(
            killed.elapsed() < END_TIMEOUT,
            "{} of {lost} connections have ended",
            ended()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "{lost} connections were reset within {:?}; {} new ones",
        killed.elapsed(),
        new.len()
    );
    let results: Vec<_> = connections.into_iter().map(Busy::end).collect();
    let is_reset = |result: &&Option<ErrorKind>| **result == Some(ErrorKind::ConnectionReset);
    ensure!(
        results.iter().filter(is_reset).count() == lost && results.iter().flatten().count() == lost,
        "{lost} were to be reset: {results:?}"
    );
    let results: Vec<_> = new.into_iter().map(Busy::end).collect();
    ensure!(
        results.iter().flatten().next().is_none(),
        "new connections: {results:?}"
    );
    settles(&w, &servers, [true, false]).await?;

    // The agent returns, and its back end gets connections again.
    w.start_agent("four")?;
    settles(&w, &servers, [true, true]).await?;
    drop(servers);
    w.down()
}

/// L6, L7, L8, L10, L12, P30: every check of `make demo LAB=global` succeeds: connections to the front end and to both back
/// ends from another region, what `explain` says of each, back ends that go down and return, and the end of an agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_of_two_regions_succeeds() -> Result<()> {
    require_root();
    let mut topology = Topology::load("global")?;
    topology.name = "e2e-global".into();
    ensure!(demo::run(&topology, Demo::default()).await?, "a check failed");
    Ok(())
}
