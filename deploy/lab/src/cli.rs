//! `tombolo lab`: the lab from the command line.

use crate::demo::{self, Demo};
use crate::host::{Hosts, Namespaces};
use crate::lab::{Lab, Options};
use crate::progress::Progress;
use crate::state::{self, State};
use crate::topology::{CONTROLLER, INTERNET, Topology};
use crate::underlay;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Prints a line; a reader that has gone away is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// A whole topology on this machine: a controller and agents in network namespaces. Needs root.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Folder for the state of one lab [default: /run/tombolo-lab/<name>].
    #[arg(long, value_name = "DIR", global = true)]
    lab_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Bring a topology up and leave it up
    Up {
        /// A topology file, or the name of a built-in topology
        topology: String,
        /// Take down what is left of a lab of the same name first
        #[arg(long)]
        replace: bool,
    },
    /// What is up, host by host
    Status {
        /// The lab; all labs if not given
        lab: Option<String>,
    },
    /// Run a program on a host: `tombolo lab exec hub-vm ping 10.1.0.4`
    Exec {
        /// The lab; may be left out if there is only one
        #[arg(long)]
        lab: Option<String>,
        /// The host; 'controller' and 'internet' are hosts too
        host: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a host off the underlay, or two hosts off each other, silently
    Cut {
        /// The lab; may be left out if there is only one
        #[arg(long)]
        lab: Option<String>,
        /// The host
        host: String,
        /// The other host: only the path between the two is cut
        other: Option<String>,
    },
    /// Undo a cut
    Restore {
        /// The lab; may be left out if there is only one
        #[arg(long)]
        lab: Option<String>,
        /// The host
        host: String,
        /// The other host
        other: Option<String>,
    },
    /// Take a lab down, whatever state it is in
    Down {
        /// The lab: its name, or its topology file; may be left out if there is only one
        lab: Option<String>,
        /// All labs
        #[arg(long, conflicts_with = "lab")]
        all: bool,
    },
    /// Bring a lab up, walk through it live, and take it down
    Demo {
        /// The topology to walk through
        #[arg(default_value = "hub-spoke")]
        topology: String,
        /// Leave the lab up at the end
        #[arg(long)]
        keep: bool,
    },
}

/// Does what the arguments say.
///
/// # Errors
/// What did not work, for a person to read.
pub async fn run(args: LabArgs) -> Result<ExitCode> {
    let dir = args.lab_dir.as_deref();
    match args.command {
        LabCommand::Up { topology, replace } => {
            let topology = Topology::load(&topology)?;
            unless_interrupted(up(&topology, args.lab_dir, replace)).await
        }
        LabCommand::Status { lab } => status(dir, lab.as_deref()).await,
        LabCommand::Exec { lab, host, command } => exec(dir, lab.as_deref(), &host, &command),
        LabCommand::Cut { lab, host, other } => {
            let state = one(dir, lab.as_deref())?.1;
            let hosts = Namespaces::new(&state.topology.name);
            match other {
                Some(other) => {
                    let (a, b) = (underlay_address(&state, &host)?, underlay_address(&state, &other)?);
                    underlay::cut_pair(&hosts, (&host, a), (&other, b))?;
                }
                None => underlay::cut(&hosts, &state.topology, &host)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Restore { lab, host, other } => {
            let state = one(dir, lab.as_deref())?.1;
            let hosts = Namespaces::new(&state.topology.name);
            match other {
                Some(other) => {
                    underlay::restore_pairs(&hosts, &host)?;
                    underlay::restore_pairs(&hosts, &other)?;
                }
                None => underlay::restore(&hosts, &state.topology, &host)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Down { lab, all } => down(dir, lab.as_deref(), all),
        LabCommand::Demo { topology, keep } => {
            let topology = Topology::load(&topology)?;
            let demo = Demo {
                keep,
                state_dir: args.lab_dir,
            };
            let walk = async {
                let good = demo::run(&topology, demo).await?;
                Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            };
            unless_interrupted(walk).await
        }
    }
}

/// Runs `work` until it ends or a signal comes; dropped, it takes down what it made.
async fn unless_interrupted(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let number: u8 = tokio::select! {
        done = work => return done,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    };
    // `work` is gone now, and so is its lab.
    eprintln!("interrupted: everything was taken down");
    Ok(ExitCode::from(128 + number))
}

async fn up(topology: &Topology, state_dir: Option<PathBuf>, replace: bool) -> Result<ExitCode> {
    let progress = Progress::stderr();
    let start = Instant::now();
    let options = Options {
        state_dir,
        detached: true,
        replace,
        progress: progress.clone(),
    };
    let lab = Lab::up(topology, options).await?;
    progress.finish();
    let name = &topology.name;
    say!(
        "lab {name} is up after {:.1} s: {} agents",
        start.elapsed().as_secs_f64(),
        topology.agents().count()
    );
    say!("  tombolo lab status {name}");
    say!("  tombolo lab exec --lab {name} HOST COMMAND…");
    say!("  tombolo lab down {name}");
    drop(lab);
    Ok(ExitCode::SUCCESS)
}

/// The labs to choose from: the folder given, or all below the default one.
fn candidates(dir: Option<&Path>) -> Result<Vec<(PathBuf, State)>> {
    let folders = match dir {
        Some(dir) => vec![dir.to_owned()],
        None => state::all(None),
    };
    let mut found = Vec::new();
    for folder in folders {
        if let Some(state) = state::read(&folder)? {
            found.push((folder, state));
        }
    }
    Ok(found)
}

/// The lab that is meant, by its name, its topology file, or as the only one.
fn one(dir: Option<&Path>, lab: Option<&str>) -> Result<(PathBuf, State)> {
    let mut all = candidates(dir)?;
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
        (None, _) => bail!("no lab is up: start one with 'tombolo lab up hub-spoke'"),
        (Some(last), _) => {
            let names: Vec<_> = all
                .iter()
                .chain([&last])
                .map(|(_, s)| s.topology.name.as_str())
                .collect();
            bail!("several labs are up, name one: {}", names.join(", "))
        }
    }
}

fn underlay_address(state: &State, host: &str) -> Result<std::net::IpAddr> {
    if let Some(moved) = state.moved.get(host) {
        return Ok(*moved);
    }
    let all = underlay::attached(&state.topology);
    let found = all.into_iter().find(|(name, _)| name == host);
    Ok(found
        .with_context(|| format!("there is no host '{host}' in lab {}", state.topology.name))?
        .1)
}

fn exec(dir: Option<&Path>, lab: Option<&str>, host: &str, command: &[String]) -> Result<ExitCode> {
    let state = one(dir, lab)?.1;
    if !state.hosts.iter().any(|h| h == host) {
        bail!("there is no host '{host}': there are {}", state.hosts.join(", "));
    }
    let argv = Namespaces::new(&state.topology.name).wrap(host, command);
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let status = std::process::Command::new(program).args(arguments).status()?;
    Ok(ExitCode::from(
        status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1),
    ))
}

fn down(dir: Option<&Path>, lab: Option<&str>, all: bool) -> Result<ExitCode> {
    let doomed = if all { candidates(dir)? } else { vec![one(dir, lab)?] };
    let progress = Progress::stderr();
    for (folder, state) in doomed {
        progress.doing(format!("taking down lab {}", state.topology.name));
        Lab::attach(&folder)?.down()?;
        progress.print(&format!("lab {} is gone", state.topology.name));
    }
    progress.finish();
    Ok(ExitCode::SUCCESS)
}

async fn status(dir: Option<&Path>, lab: Option<&str>) -> Result<ExitCode> {
    let labs = match lab {
        Some(_) => vec![one(dir, lab)?],
        None => candidates(dir)?,
    };
    if labs.is_empty() {
        say!("no lab is up");
    }
    for (folder, state) in labs {
        let complete = if state.complete {
            "up"
        } else {
            "not complete: take it down"
        };
        say!("{} ({complete}), state in {}", state.topology.name, folder.display());
        let agents = agents(&folder, &state).await;
        let row = |a: &str, b: &str, c: &str, d: &str| say!("  {a:<16} {b:<18} {c:<28} {d}");
        row("HOST", "UNDERLAY", "OVERLAY", "STATE");
        for host in &state.hosts {
            let address = underlay_address(&state, host).map_or("-".to_owned(), |a| a.to_string());
            let overlay = state
                .addresses
                .get(host)
                .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            let process = state.processes.get(host);
            let text = match (process.map(crate::process::Process::alive), agents.get(host)) {
                (Some(false), _) => "its process has ended".to_owned(),
                (Some(true), Some(agent)) => agent.clone(),
                (Some(true), None) if host == CONTROLLER => "runs".to_owned(),
                (Some(true), None) => "runs, unknown to the controller".to_owned(),
                (None, _) if host == INTERNET => "stands for the internet".to_owned(),
                (None, _) => "plain host".to_owned(),
            };
            row(host, &address, &overlay.unwrap_or_else(|| "-".to_owned()), &text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the controller says of each agent; nothing if it does not answer.
async fn agents(folder: &Path, state: &State) -> BTreeMap<String, String> {
    let Ok(client) = crate::lab::client_of(&state.topology, folder) else {
        return BTreeMap::new();
    };
    let asked = tokio::time::timeout(Duration::from_secs(3), client.revisions()).await;
    let Ok(Ok(revisions)) = asked else {
        return BTreeMap::new();
    };
    let text = |a: &tombolo_client::fabric::AgentRevision| match (a.connected, a.up_to_date, a.applied) {
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
