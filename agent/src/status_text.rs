//! The status of the agent as text for people: for health checks, and for `tombolo-agent status`.

use crate::agent::AgentView;
use anyhow::{Result, bail};
use std::fmt::Write as _;

/// One line about a healthy agent, without a line break. An agent with a configuration in force counts as healthy, even
/// without the controller or with a rejected newer configuration. Such an agent forwards packets, and a restart would
/// interrupt that.
///
/// # Errors
/// No configuration is in force. The error has the reason, if `view` has it.
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

/// The status as several lines of text for people. The format may change; `AgentView` as JSON is for programs.
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
    for back_end in &s.health {
        let state = if back_end.up { "up" } else { "down" };
        let reason = back_end
            .reason
            .map_or_else(String::new, |reason| format!("  ({reason})"));
        let (address, probe) = (back_end.address, back_end.probe.name());
        writeln!(out, "back end    {address:<20} {state:<20} probe {probe}{reason}")?;
    }
    for (reason, n) in &s.drops {
        writeln!(out, "dropped     {reason:<24} {n}")?;
    }
    for refused in &s.refused_routes {
        let sender = refused.sender.as_deref().unwrap_or("any sender, left out by this host");
        writeln!(
            out,
            "not used    {:<24} {} routes of {sender}, such as {}",
            refused.reason, refused.count, refused.example
        )?;
    }
    Ok(())
}
