//! Starting and stopping: the order in which the parts come and go.

use crate::agent::{Agent, AgentView};
use crate::apply::Kernel;
use crate::apply::plan::KernelIds;
use crate::bgp::{Bgp, Bird, BirdService};
use crate::claim::{clear_host, take_host};
use crate::config::Config;
use crate::control::Control;
use crate::first_join::{FirstJoin, join_when_possible};
use crate::identity::LinkKeys;
use crate::lanes::Lanes;
use crate::state::{StateDir, file};
use crate::{admin, host};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// What is needed only at the start has been needed by then.
const STARTED: std::time::Duration = std::time::Duration::from_secs(2);

/// Runs until SIGTERM, SIGINT or SIGHUP, or until a part that cannot be replaced fails. BIRD is the agent's child unless it is a
/// service of its own.
///
/// # Errors
/// The state directory is not usable, another agent has the device or a routing table, the host refuses the device or
/// the port, or a lane ended.
pub async fn run(state: &StateDir, bird: Option<BirdService>) -> Result<()> {
    let config = Config::load(state)?;
    let _lock = state.lock()?;
    // First of all, so that a start from a half-filled directory changes nothing.
    let keys = LinkKeys::load(state)?;
    let (_claim, netlink, inherited) = take_host(state, &config)?;
    restore_switch(&config.interface);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let news = Arc::new(Notify::new());
    let (lanes, mut ended) = Lanes::start(&config, keys, &news)?;
    let kernel = Kernel::new(netlink, config.interface.clone(), lanes.device_index(), inherited).await?;
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let bird = bird.map_or_else(|| Bird::Child(state.path(file::BGP)), Bird::Service);
    let bgp = Bgp::start(&bird).await?;
    let agent = Agent::new(config.clone(), state.clone(), numbers, lanes, kernel, bgp, news);
    let agent = Arc::new(agent);
    // What can fail comes before anything forwards.
    let socket = admin::bind(state)?;
    let scraped = match config.metrics_listen {
        Some(address) => Some(admin::bind_metrics(address).await?),
        None => None,
    };
    let keeper = tokio::spawn({
        let keeper = agent.keeper().clone();
        async move { keeper.run().await }
    });
    let forwards = match agent.resume().await {
        Ok(true) => {
            tracing::info!("forwarding from the last good configuration");
            true
        }
        Ok(false) => {
            tracing::info!("no configuration yet: waiting for the controller");
            false
        }
        Err(e) => {
            tracing::warn!(error = %format!("{e:#}"), "last good configuration not usable: waiting for the controller");
            false
        }
    };

    let reporter = tokio::spawn({
        let agent = agent.clone();
        async move { agent.report().await }
    });
    let follower = tokio::spawn({
        let agent = agent.clone();
        async move { agent.follow().await }
    });
    let listener = tokio::spawn({
        let agent = agent.clone();
        async move { agent.hear().await }
    });
    let local = tokio::spawn(admin::serve(socket, agent.clone()));
    if let Some(listener) = scraped {
        tokio::spawn(admin::serve_metrics(listener, agent.clone()));
    }
    let control = match Control::new(agent.clone(), state.clone(), config.clone()) {
        Ok(control) => Ok(Some(tokio::spawn(control.run()))),
        // Whoever forwards goes on: the controller is not needed for that (D21).
        Err(e) if forwards => {
            tracing::error!(error = %format!("{e:#}"), "the controller cannot be spoken to: forwarding goes on without it");
            Ok(None)
        }
        Err(e) => Err(e),
    };
    tokio::spawn(async {
        tokio::time::sleep(STARTED).await;
        if let Err(e) = crate::sys::release_text() {
            tracing::debug!(error = %e, "what the start needed stays in memory");
        }
    });
    let outcome = match &control {
        Err(_) => Ok(()),
        Ok(_) => {
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "running");
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
                _ = hangup.recv() => Ok(()),
                reason = ended.recv() => {
                    let reason = reason.unwrap_or_else(|| "panic".to_owned());
                    Err(anyhow::anyhow!("the data path ended: {reason}"))
                }
            }
        }
    };
    // What neighbours announced is kept: packets still come.
    listener.abort();
    if outcome.is_ok() {
        tokio::select! {
            () = agent.leave() => {}
            // Asked twice it leaves at once.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    if let Ok(Some(control)) = &control {
        control.abort();
    }
    local.abort();
    reporter.abort();
    follower.abort();
    keeper.abort();
    agent.end();
    // All of it is tried, whatever fails.
    let kept = agent.keeper().flush().context("the last good configuration");
    let removed = state.remove(file::ADMIN_SOCKET);
    tracing::info!("stopped");
    control.map(drop).and(outcome).and(kept).and(removed)
}

/// Joins before the first run, while token and controller may still be on their way. Returns whether the agent has joined; not,
/// if it was told to end meanwhile.
///
/// # Errors
/// Another process works in the state directory, or the agent cannot join.
pub async fn join(state: &StateDir, first: &FirstJoin) -> Result<bool> {
    let _lock = state.lock()?;
    // The first process of a container has no default action for these.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        joined = join_when_possible(state, first) => {
            let config = joined?;
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "joined");
            Ok(true)
        }
        _ = terminate.recv() => Ok(false),
        _ = interrupt.recv() => Ok(false),
    }
}

/// One line about an agent that does its work. A controller that is away does not make an agent unhealthy, nor does a new
/// configuration that was rejected: packets are still forwarded, and a restart would interrupt that.
///
/// # Errors
/// No configuration is in force; with the reason, if it is known.
pub fn health(view: &AgentView) -> Result<String> {
    let rejected = view.rejected.as_deref();
    if view.status.digest.is_empty() {
        match rejected {
            Some(reason) => bail!("no configuration is in force: the last one was rejected: {reason}"),
            None if view.connected => bail!("no configuration is in force yet"),
            None => bail!(
                "no configuration is in force yet, and {} is not reached",
                view.controller
            ),
        }
    }
    let mut line = format!("revision {} is in force", view.status.applied);
    if !view.connected {
        line += &format!("; {} is not reached", view.controller);
    }
    if let Some(reason) = rejected {
        line += &format!("; a newer configuration was rejected: {reason}");
    }
    Ok(line)
}

/// Puts back what a crashed agent with this device changed on the host.
fn restore_switch(interface: &str) -> bool {
    host::restore(interface).unwrap_or_else(|e| {
        tracing::warn!(error = %format!("{e:#}"), "host not restored");
        false
    })
}

/// Removes what keeps packets with overlay addresses on the host, and everything else that agents leave there when they end.
///
/// # Errors
/// The agent runs, another one has its device or a routing table, or the kernel refuses.
pub async fn clean(state: &StateDir) -> Result<()> {
    let config = Config::load(state)?;
    let _lock = state.lock()?;
    let count = clear_host(state, &config).await?;
    let switched = restore_switch(&config.interface);
    state.remove(file::ADMIN_SOCKET)?;
    tracing::info!(rules_and_routes = count, redirects_restored = switched, "clean");
    Ok(())
}

/// Cleans and forgets the identity.
///
/// # Errors
/// The agent runs, the kernel refuses, or a file cannot be deleted.
pub async fn leave(state: &StateDir) -> Result<()> {
    if state.path(file::CONFIG).exists() {
        clean(state).await?;
    }
    let _lock = state.lock()?;
    // The settings go first: without them the rest is not an identity any more.
    for name in [
        file::CONFIG,
        file::CERTIFICATE,
        file::TLS_KEY,
        file::LINK_KEY,
        file::CA,
        file::LAST_GOOD,
        file::ENDPOINTS,
        file::NUMBERS,
    ] {
        state.remove(name)?;
    }
    Ok(())
}

/// The view as lines for people.
#[must_use]
pub fn describe(view: &AgentView) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_view(&mut out, view);
    out
}

fn write_view(out: &mut String, v: &AgentView) -> std::fmt::Result {
    let s = &v.status;
    writeln!(out, "agent       {}", v.agent)?;
    writeln!(
        out,
        "controller  {} ({})",
        v.controller,
        if v.connected { "connected" } else { "not connected" }
    )?;
    writeln!(
        out,
        "device      {}{}",
        v.interface,
        if v.offload { " (offload)" } else { "" }
    )?;
    if let Some(problem) = &v.filter_problem {
        writeln!(out, "filter      not loaded: {problem}")?;
    }
    if s.digest.is_empty() {
        writeln!(out, "revision    none yet")?;
    } else {
        writeln!(out, "revision    {} (digest {:.12})", s.applied, s.digest)?;
    }
    if let Some(reason) = &v.rejected {
        writeln!(out, "rejected    {reason}")?;
    }
    let t = &s.totals;
    writeln!(
        out,
        "packets     {} from the device, {} to it; {} from links, {} to them; {} answered, {} dropped",
        t.tun_in, t.tun_out, t.link_in, t.link_out, t.replied, t.dropped
    )?;
    for l in &s.links {
        let endpoint = l.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string());
        let age = l.handshake_age.map_or_else(|| "-".to_owned(), |a| format!("{a:.0} s"));
        let state = format!("{:?}", l.state);
        write!(
            out,
            "link        {:<20} {state:<20} {endpoint:<24} handshake {age}",
            l.peer.as_str()
        )?;
        writeln!(
            out,
            "{}",
            l.reason.as_deref().map_or_else(String::new, |r| format!("  ({r})"))
        )?;
    }
    for (reason, n) in &s.drops {
        writeln!(out, "dropped     {reason:<24} {n}")?;
    }
    for refused in &s.refused_routes {
        let sender = refused.sender.as_deref().unwrap_or("any, at this host");
        writeln!(
            out,
            "not used    {:<24} {} routes of {sender}, {} first",
            refused.reason, refused.count, refused.example
        )?;
    }
    Ok(())
}
