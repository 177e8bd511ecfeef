//! Finds the lab that a command refers to, by its name, its topology file or its state folder.

use crate::invocation;
use crate::state::{self, State};
use crate::topology::Topology;
use crate::underlay;
use anyhow::{Context, Result, bail};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The labs that are up, each with its state folder and its record, and an error for each record that cannot be read.
pub(super) struct Candidates {
    pub(super) labs: Vec<(PathBuf, State)>,
    pub(super) unreadable: Vec<anyhow::Error>,
}

/// Returns the lab in the folder `dir`; if `dir` is `None`, all labs below the default folder. A folder without a
/// record is no error.
pub(super) fn candidates(dir: Option<&Path>) -> Candidates {
    let folders = match dir {
        Some(dir) => vec![dir.to_owned()],
        None => state::all(None),
    };
    let mut found = Candidates {
        labs: Vec::new(),
        unreadable: Vec::new(),
    };
    for folder in folders {
        match state::read(&folder) {
            Ok(Some(state)) => found.labs.push((folder, state)),
            Ok(None) => {}
            Err(e) => found.unreadable.push(e),
        }
    }
    found
}

impl Candidates {
    /// Prints a warning for each record that cannot be read. Such a record must not prevent the use of other labs.
    pub(super) fn report_unreadable(&self) {
        for error in &self.unreadable {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Returns the folder and record of a lab. `lab` is the lab's name or topology file; if it is `None`, exactly one lab
/// must be up. `dir` is the lab's state folder; if it is `None`, the labs below the default folder are searched. Prints
/// warnings about records that cannot be read.
///
/// # Errors
/// The lab is not up, its topology file cannot be read, or several labs are up and `lab` is `None`.
pub(super) fn find_lab(dir: Option<&Path>, lab: Option<&str>) -> Result<(PathBuf, State)> {
    let candidates = candidates(dir);
    candidates.report_unreadable();
    let mut all = candidates.labs;
    if let Some(lab) = lab {
        let name = if lab.contains(['/', '.']) {
            Topology::load(lab)?.name
        } else {
            lab.to_owned()
        };
        let found = all.into_iter().find(|(_, s)| s.topology.name == name);
        return found.with_context(|| format!("no lab '{name}' is up"));
    }
    match (all.pop(), all.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => bail!(
            "no lab is up: start one with '{} up hub-spoke'",
            invocation::command(dir)
        ),
        (Some(last), _) => {
            let names: Vec<_> = all
                .iter()
                .chain([&last])
                .map(|(_, s)| s.topology.name.as_str())
                .collect();
            bail!("several labs are up: name one of {}", names.join(", "))
        }
    }
}

/// Returns the underlay address that a host has now, according to the lab's record. Fails if the host has no link to
/// the underlay.
pub(super) fn underlay_address(state: &State, host: &str) -> Result<IpAddr> {
    if let Some(moved) = state.moved.get(host) {
        return Ok(*moved);
    }
    let all = underlay::addresses(&state.topology);
    let found = all.into_iter().find(|(name, _)| name == host);
    Ok(found
        .with_context(|| format!("there is no host '{host}' in lab {}", state.topology.name))?
        .1)
}
