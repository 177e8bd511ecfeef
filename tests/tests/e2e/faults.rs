//! Faults: crashes of agents, revoked agents, hosts with new addresses, and cut networks.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::check;
use tombolo_tests::live::{PING_INTERVAL, World};

/// A killed agent starts from its last good configuration. The rules and routes that a stopped or killed agent leaves in
/// the kernel keep overlay packets on its host; `clean` removes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_comes_back_and_a_cleaned_host_has_nothing_left() -> Result<()> {
    let mut w = World::up("crash").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let before_join = host_state(&w, "hub-fw").await?;

    w.kill_agent("spoke-a-vm")?;
    w.silent_from("hub-vm", "spoke-a-vm").await?;
    w.start_agent("spoke-a-vm")?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(15)).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;

    // The restart must also work without a controller. A controller that starts again must send no configuration to
    // agents that already run the newest one.
    w.kill_controller()?;
    w.kill_agent("hub-vm")?;
    w.start_agent("hub-vm")?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(15)).await?;
    let sent = w.configurations_received("spoke-a-vm").await?;
    w.start_controller().await?;
    w.wait_until_ready(Duration::from_secs(30)).await?;
    ensure!(
        w.configurations_received("spoke-a-vm").await? == sent,
        "a configuration was sent again"
    );
    ensure!(
        w.configurations_received("hub-vm").await? == 0,
        "the restarted agent was up to date"
    );

    let mut clean = Vec::new();
    for host in ["hub-fw", "spoke-b-vm"] {
        if host == "hub-fw" {
            w.kill_agent(host)?;
        } else {
            ensure!(w.stop_agent(host)?, "the agent had to be killed");
        }
        let left = host_state(&w, host).await?;
        ensure!(
            left.contains("fwmark") && left.contains("tombolo-"),
            "{host} is not confined: {left}"
        );
        let program = tombolo_lab::binary::find("tombolo-agent")?.display().to_string();
        let dir = w.agent_dir(host)?.display().to_string();
        let done = w
            .exec(host, &[&program, "clean", "--state-dir", &dir], Duration::from_secs(10))
            .await?;
        ensure!(done.code == 0, "clean: {}", done.stderr);
        clean.push((host, host_state(&w, host).await?));
    }
    ensure!(
        traces(&before_join).count() > 1,
        "the check does not recognise a running agent: {before_join}"
    );
    for (host, text) in &clean {
        let left: Vec<_> = traces(text).collect();
        ensure!(left.is_empty(), "{host} still has {left:?}: {text}");
    }
    for host in ["hub-fw", "spoke-b-vm"] {
        w.start_agent(host)?;
    }
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.reach_within("hub-vm", "hub-fw", Duration::from_secs(10)).await?;
    w.end().await
}

/// A host's routing rules, routes of all tables, devices and nftables tables, as text.
async fn host_state(w: &World, host: &str) -> Result<String> {
    let script = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                  ip -o link | cut -d: -f2; nft list tables";
    let done = w.exec(host, &["sh", "-c", script], Duration::from_secs(5)).await?;
    ensure!(done.code == 0, "{}", done.stderr);
    Ok(done.stdout)
}

/// The traces of an agent in a host's state: prefixes of overlay routes, rules with a mark, TUN devices, nftables tables.
fn traces(state: &str) -> impl Iterator<Item = &'static str> {
    let all = ["10.1.", "10.2.", "10.3.", "fd00:10", "fwmark", "tl-", "tombolo-"];
    all.into_iter().filter(|trace| state.contains(trace))
}

/// A revoked agent loses all its links at once; other agents are not affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_cut_off_at_once() -> Result<()> {
    let w = World::up("revoke").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "spoke-b").await?;
    for host in ["hub-vm", "hub-fw"] {
        w.reach("spoke-a-vm", host).await?;
    }
    let others = w.start_ping("spoke-b-vm", "hub-vm", PING_INTERVAL)?;
    w.client()?.revoke_agent("spoke-a-vm").await?;
    w.in_force().await?;
    for host in ["hub-vm", "hub-fw"] {
        w.silent_from(host, "spoke-a-vm").await?;
        w.silent_or_down("spoke-a-vm", host).await?;
        let links = w.agent_tables(host).await?.links;
        ensure!(
            !links.iter().any(|l| l.peer.as_str() == "spoke-a-vm"),
            "{host} still has a link with it"
        );
    }
    let agent = w.client()?.agent("spoke-a-vm").await?;
    ensure!(agent.revoked && !agent.connected, "{agent:?}");
    // The agent must not reconnect with its identity. The controller counts refused attempts. The first refused attempt
    // from here on may still come from the killed process, so the test waits for two.
    w.kill_agent("spoke-a-vm")?;
    let refused = refused_requests(&w).await?;
    w.start_agent("spoke-a-vm")?;
    let start = Instant::now();
    while refused_requests(&w).await? < refused + 2 {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "the revoked agent does not try to connect"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        !w.client()?.agent("spoke-a-vm").await?.connected,
        "a revoked agent is connected"
    );
    w.silent_or_down("spoke-a-vm", "hub-vm").await?;
    w.silent_from("hub-vm", "spoke-a-vm").await?;
    let pinged = others.stop()?;
    ensure!(pinged.all(), "others lost packets: {:?}", pinged.missing);
    // The revoked agent is killed first, because its tables cannot be compared: the controller has no configuration for
    // a revoked agent.
    w.kill_agent("spoke-a-vm")?;
    let found = check::tables(&w).await?;
    ensure!(
        found.problems.is_empty() && found.agents > 0,
        "disagreements:\n{}",
        found.problems.join("\n")
    );
    w.down()
}

/// The number of agents' requests that the controller has refused since its start.
async fn refused_requests(w: &World) -> Result<u64> {
    let metrics = w.client()?.metrics().await?;
    let value = metrics
        .lines()
        .find_map(|l| l.strip_prefix("tombolo_control_refused_total "));
    Ok(value.context("no such metric")?.trim().parse()?)
}

/// D18: links follow hosts to new underlay addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_moves_is_found_again() -> Result<()> {
    let w = World::up("move").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("hub-vm", "branch-vm").await?;
    w.readdress("spoke-a-vm", "203.0.113.121".parse()?)?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(20)).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    // The link of a gateway's connection must recover too. It differs from a link between VMs: both ends keep it up
    // even without traffic.
    w.readdress("branch-gw", "203.0.113.142".parse()?)?;
    w.reach_within("hub-vm", "branch-vm", Duration::from_secs(30)).await?;
    w.reach("hub-vm", "branch-vm").await?;
    // The test waits here, because the controller learns the new addresses of the agents only after it has detected
    // that the streams from the old addresses are dead.
    for host in ["spoke-a-vm", "branch-gw"] {
        w.wait_for_known_endpoint(host).await?;
    }
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.end().await
}

/// A cut in the underlay stops the traffic between the hosts that it separates, and no other traffic. The stopped
/// traffic recovers when the cut ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_underlay_stops_exactly_what_was_cut() -> Result<()> {
    let w = World::up("cut").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "spoke-b").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("spoke-a-vm", "hub-fw").await?;
    w.cut_pair("spoke-a-vm", "hub-vm")?;
    w.silent("spoke-a-vm", "hub-vm").await?;
    w.reach("spoke-a-vm", "hub-fw").await?;
    w.reach("spoke-b-vm", "hub-vm").await?;
    w.restore_pair("spoke-a-vm", "hub-vm")?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(15)).await?;
    w.cut("hub-vm")?;
    w.silent("spoke-b-vm", "hub-vm").await?;
    w.reach("spoke-a-vm", "hub-fw").await?;
    w.restore("hub-vm")?;
    w.reach_within("spoke-b-vm", "hub-vm", Duration::from_secs(15)).await?;
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.end().await
}
