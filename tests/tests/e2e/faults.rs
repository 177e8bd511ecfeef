//! What goes wrong: crashes, revocation, hosts that move, networks that are cut.

use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::check;
use tombolo_tests::live::{SPACING, World};

/// An agent that was killed starts from its last good configuration. What agents leave on their hosts, however they end, keeps
/// overlay packets there, and 'clean' removes it.
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

    // Without the controller too, and then the controller comes back to agents that are up to date.
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
        "this would not see an agent: {before_join}"
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

/// Rules, routes of all tables, devices and tables of nftables of a host.
async fn host_state(w: &World, host: &str) -> Result<String> {
    let script = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                  ip -o link | cut -d: -f2; nft list tables";
    let done = w.exec(host, &["sh", "-c", script], Duration::from_secs(5)).await?;
    ensure!(done.code == 0, "{}", done.stderr);
    Ok(done.stdout)
}

/// Which of an agent's traces a host's state has: overlay routes, rules for its mark, its devices.
fn traces(state: &str) -> impl Iterator<Item = &'static str> {
    let all = ["10.1.", "10.2.", "10.3.", "fd00:10", "fwmark", "tl-", "tombolo-"];
    all.into_iter().filter(|trace| state.contains(trace))
}

/// The number of agents' requests that the controller has refused.
async fn refused_requests(w: &World) -> Result<u64> {
    let metrics = w.client()?.metrics().await?;
    let name = "tombolo_control_refused_total ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.with_context(|| format!("no {name}in {metrics}"))?.parse()?)
}

/// A revoked agent is cut off everywhere at once, and others stay as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_cut_off_at_once() -> Result<()> {
    let w = World::up("revoke").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "spoke-b").await?;
    for host in ["hub-vm", "hub-fw"] {
        w.reach("spoke-a-vm", host).await?;
    }
    let others = w.start_ping("spoke-b-vm", "hub-vm", SPACING)?;
    w.client()?.revoke_agent("spoke-a-vm").await?;
    w.in_force().await?;
    for host in ["hub-vm", "hub-fw"] {
        w.silent_from(host, "spoke-a-vm").await?;
        w.mute("spoke-a-vm", host).await?;
        let links = w.agent_tables(host).await?.links;
        ensure!(
            !links.iter().any(|l| l.peer.as_str() == "spoke-a-vm"),
            "{host} still talks to it"
        );
    }
    let agent = w.client()?.agent("spoke-a-vm").await?;
    ensure!(agent.revoked && !agent.connected, "{agent:?}");
    // After a restart it connects again, and the controller refuses it each time.
    w.kill_agent("spoke-a-vm")?;
    let before = refused_requests(&w).await?;
    w.start_agent("spoke-a-vm")?;
    let end = Instant::now() + Duration::from_secs(15);
    while refused_requests(&w).await? < before + 2 {
        ensure!(Instant::now() < end, "the revoked agent does not try to connect");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        !w.client()?.agent("spoke-a-vm").await?.connected,
        "a revoked agent is connected"
    );
    w.mute("spoke-a-vm", "hub-vm").await?;
    w.silent_from("hub-vm", "spoke-a-vm").await?;
    let pinged = others.stop()?;
    ensure!(pinged.all(), "others lost packets: {:?}", pinged.missing);
    // What is left of it on its own host is not compared: it runs no policy of the controller's any more.
    w.kill_agent("spoke-a-vm")?;
    let found = check::tables(&w).await?;
    ensure!(
        found.problems.is_empty() && found.agents > 0,
        "disagreements:\n{}",
        found.problems.join("\n")
    );
    w.down()
}

/// D18: hosts get other underlay addresses; their links follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_moves_is_found_again() -> Result<()> {
    let w = World::up("move").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("hub-vm", "branch-vm").await?;
    w.readdress("spoke-a-vm", "203.0.113.121".parse()?)?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(20)).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    // A gateway of a connection, which both ends keep up.
    w.readdress("branch-gw", "203.0.113.142".parse()?)?;
    w.reach_within("hub-vm", "branch-vm", Duration::from_secs(30)).await?;
    w.reach("hub-vm", "branch-vm").await?;
    // The controller hears of the new addresses only when the streams from the old ones are known to be dead.
    for host in ["spoke-a-vm", "branch-gw"] {
        w.known_where_it_is(host).await?;
    }
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.end().await
}

/// A cut is silent, hits only what was cut, and is over when it is over.
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
