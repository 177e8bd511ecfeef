//! `tombolo lab status`: shows the hosts of labs and the state of their programs.

use super::find::{candidates, find_lab, underlay_address};
use crate::process::Process;
use crate::state::State;
use crate::topology::{CONTROLLER, INTERNET};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tombolo_client::fabric::AgentRevision;

/// Longest time that `status` waits for the answer of a lab's controller.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(3);

/// The status of one lab, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    name: String,
    state_dir: PathBuf,
    complete: bool,
    hosts: Vec<Row>,
}

/// The status of one host, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    host: String,
    underlay: Option<IpAddr>,
    overlay: Vec<IpAddr>,
    state: String,
}

/// Prints the status of the lab `lab`, as a table or as JSON. If `lab` is `None`, prints the status of all labs.
pub(super) async fn status(dir: Option<&Path>, lab: Option<&str>, json: bool) -> Result<ExitCode> {
    let labs = match lab {
        Some(_) => vec![find_lab(dir, lab)?],
        None => {
            let found = candidates(dir);
            found.report_unreadable();
            found.labs
        }
    };
    let mut all = Vec::new();
    for (folder, state) in labs {
        all.push(read(folder, &state).await);
    }
    if json {
        print_line!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        print_line!("no lab is up");
    }
    for lab in all {
        let complete = if lab.complete {
            "up"
        } else {
            "not complete: take it down"
        };
        print_line!("{} ({complete}), state in {}", lab.name, lab.state_dir.display());
        let row = |a: &str, b: &str, c: &str, d: &str| print_line!("  {a:<16} {b:<18} {c:<28} {d}");
        row("HOST", "UNDERLAY", "OVERLAY", "STATE");
        for Row {
            host,
            underlay,
            overlay,
            state,
        } in lab.hosts
        {
            let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
            let underlay = or_dash(underlay.map(|a| a.to_string()).unwrap_or_default());
            let overlay: Vec<_> = overlay.iter().map(ToString::to_string).collect();
            row(&host, &underlay, &or_dash(overlay.join(" ")), &state);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the status of the lab with this record. The controller is asked; agents are not.
async fn read(folder: PathBuf, state: &State) -> Status {
    let agents = agents(&folder, state).await;
    let site_hosts: Vec<_> = state.topology.machines().map(|m| m.host).collect();
    let hosts = state.hosts.iter().map(|host| {
        let process = state.processes.get(host);
        let text = match (process.map(Process::alive), agents.get(host)) {
            (Some(false), _) => "its process has ended",
            (Some(true), Some(agent)) => agent,
            (Some(true), None) if host == CONTROLLER => "runs",
            (Some(true), None) if site_hosts.contains(host) => "runs its routing daemon",
            (Some(true), None) => "runs, unknown to the controller",
            (None, _) if host == INTERNET => "router of the underlay",
            (None, _) if site_hosts.contains(host) => "in a site",
            (None, _) => "plain host",
        };
        Row {
            host: host.clone(),
            underlay: underlay_address(state, host).ok(),
            overlay: state.addresses.get(host).cloned().unwrap_or_default(),
            state: text.to_owned(),
        }
    });
    let hosts = hosts.collect();
    Status {
        name: state.topology.name.clone(),
        state_dir: folder,
        complete: state.complete,
        hosts,
    }
}

/// Returns the state of each agent, as the controller reports it. Empty if the controller does not answer in time.
async fn agents(folder: &Path, state: &State) -> BTreeMap<String, String> {
    let Ok(client) = crate::lab::client_of(&state.topology, folder) else {
        return BTreeMap::new();
    };
    let answer = tokio::time::timeout(CONTROLLER_TIMEOUT, client.revisions()).await;
    let Ok(Ok(revisions)) = answer else {
        return BTreeMap::new();
    };
    let text = |a: &AgentRevision| match (a.connected, a.up_to_date, a.applied) {
        (false, _, _) => "runs, not connected to the controller".to_owned(),
        (true, true, Some(revision)) => format!("connected, revision {revision}"),
        (true, _, _) => "connected, not up to date".to_owned(),
    };
    revisions
        .agents
        .iter()
        .map(|a| (a.agent.to_string(), text(a)))
        .collect()
}

#[cfg(test)]
mod golden {
    use super::{Row, Status};
    use tombolo_golden::golden;

    #[test]
    fn output_of_lab_status() {
        let host = |underlay: Option<&str>| Row {
            host: "vm".into(),
            underlay: underlay.map(|a| a.parse().unwrap()),
            overlay: vec!["10.1.0.4".parse().unwrap()],
            state: "up".into(),
        };
        let status = Status {
            name: "hub-spoke".into(),
            state_dir: "/run/tombolo-lab/hub-spoke".into(),
            complete: true,
            hosts: vec![host(Some("198.51.100.10")), host(None)],
        };
        golden!().written("status", &[("lab", status)]);
    }
}
