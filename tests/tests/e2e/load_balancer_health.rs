//! The health of back ends without the controller (D36).

use crate::load_balancer::{BACK_PORT, TOPOLOGY, body, connect, set_member, settles};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_lab::echo::{EchoServer, Port};
use tombolo_tests::live::World;

/// Longest time until an event. The probes have an interval of 5 s, so it is a sign of an error if it is reached.
const EVENT_TIMEOUT: Duration = Duration::from_secs(40);

/// Waits until an agent has applied more than this number of statements of other agents about their back ends. Returns their
/// number.
async fn wait_for_statements(w: &World, host: &str, more_than: u64) -> Result<u64> {
    let begin = Instant::now();
    loop {
        let view: Value = w.agent_view(host).await?;
        let applied = view.pointer("/healthStatements/applied").and_then(Value::as_u64);
        let applied = applied.with_context(|| format!("{host} shows no statements: {view}"))?;
        if applied > more_than {
            return Ok(applied);
        }
        ensure!(begin.elapsed() < EVENT_TIMEOUT, "{host} has {applied} statements");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Opens new connections to the front end until twelve in a row are answered.
async fn wait_for_answers(w: &World, from: &str) -> Result<()> {
    let begin = Instant::now();
    while !(0..12).all(|_| connect(w, from).is_ok_and(|connection| connection.is_some())) {
        ensure!(
            begin.elapsed() < EVENT_TIMEOUT,
            "{from} chooses a back end that is down"
        );
    }
    Ok(())
}

/// L7, D36: the controller is killed, and then the server of a back end stops. A client in another region reaches the other
/// back end alone, until the server is back. Another client, which has not used the front end yet, comes to avoid the back
/// end that is down too: the agent of this back end returns its health when the client chooses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d36_health_arrives_without_the_controller() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "e2e-lb-health".into();
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

    w.kill_controller()?;
    let statements = wait_for_statements(&w, "client", 0).await?;
    servers[0] = None;
    // Only the agent of `six` can tell this, over its link.
    wait_for_statements(&w, "client", statements).await?;
    settles(&w, &servers, [false, true]).await?;
    for number in 0..24 {
        ensure!(connect(&w, "client")?.is_some(), "connection {number} of the client");
    }
    wait_for_answers(&w, "beside").await?;
    let mut of_four = (0..6)
        .map(|_| connect(&w, "client")?.context("four"))
        .collect::<Result<Vec<_>>>()?;
    servers[0] = Some(start("six")?);
    settles(&w, &servers, [true, true]).await?;
    for connection in &mut of_four {
        connection.exchange().context("six is back: the flows of four stay")?;
    }
    drop((of_four, servers));
    w.down()
}
