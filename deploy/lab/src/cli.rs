//! `tombolo lab`: the lab from the command line.

/// Prints a line; a reader that has gone away is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

pub(crate) mod check;
mod find;
mod status;
pub(crate) mod words;

use crate::demo::{self, Demo};
use crate::host::{Runtime, remote};
use crate::lab::{Lab, Options, at_home};
use crate::progress::Progress;
use crate::topology::Topology;
use crate::topology::rename::rename;
use crate::{delay, underlay, watch};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use find::{candidates, one, underlay_address};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// A whole topology on this machine: a controller and agents in network namespaces. Needs root.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Folder for the state of one lab [default: /run/tombolo-lab/NAME].
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
        /// What the hosts are
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// What is up, host by host
    Status {
        /// The lab; all labs if not given
        lab: Option<String>,
    },
    /// Try what the topology expects, in the steady state and after each event; status 1 on any difference
    Check {
        /// The lab: its name, or its topology file; may be left out if there is only one
        lab: Option<String>,
        /// The steady state only: nothing is disturbed
        #[arg(long)]
        steady: bool,
    },
    /// Make an event of the topology happen: `tombolo lab event cut`; `restore` undoes all
    Event {
        /// The lab; may be left out if there is only one
        #[arg(long)]
        lab: Option<String>,
        /// The event
        name: String,
    },
    /// Write a topology file with other names and addresses, otherwise the same
    Rename {
        /// A topology file, or the name of a built-in topology
        topology: String,
        /// Another number gives other names and addresses
        #[arg(long, default_value_t = 1)]
        seed: u64,
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
    /// Bring a lab up, walk through it live, and take it down; one with a table of what it expects shows that
    Demo {
        /// The topology to walk through, or whose table to try: `interop`
        #[arg(default_value = "hub-spoke")]
        topology: String,
        /// Leave the lab up at the end
        #[arg(long)]
        keep: bool,
        /// What the hosts are
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// Delay packets between segments that are far from each other
    #[command(hide = true, name = delay::COMMAND)]
    DelayLine {
        /// Each as device:milliseconds:loss
        #[arg(required = true)]
        lines: Vec<delay::Line>,
    },
    /// Run a program on a virtual machine as if it were a process of this one
    #[command(hide = true, name = remote::COMMAND)]
    Remote {
        /// What starts it
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take the lab down when the program at the other end of standard input is gone
    #[command(hide = true, name = watch::COMMAND)]
    Watch {
        /// The bring-up that is meant
        id: String,
    },
}

/// Does what the arguments say.
///
/// # Errors
/// What did not work, for a person to read.
pub async fn run(args: LabArgs, json: bool) -> Result<ExitCode> {
    let dir = args.lab_dir.as_deref();
    if json && !matches!(args.command, LabCommand::Status { .. }) {
        bail!("of the lab's commands only 'tombolo lab status' writes JSON");
    }
    match args.command {
        LabCommand::Up {
            topology,
            replace,
            runtime,
        } => {
            let (topology, progress) = (Topology::load(&topology)?, Progress::stderr());
            let options = Options {
                state_dir: args.lab_dir.clone(),
                detached: true,
                replace,
                runtime,
                progress: progress.clone(),
            };
            let work = up(&topology, options);
            unless_interrupted(work, &progress, dir, &topology.name).await
        }
        LabCommand::Demo {
            topology,
            keep,
            runtime,
        } => {
            let (topology, progress) = (Topology::load(&topology)?, Progress::stderr());
            let demo = Demo {
                progress: progress.clone(),
                keep,
                runtime,
                state_dir: args.lab_dir.clone(),
            };
            let walk = async {
                let good = demo::run(&topology, demo).await?;
                Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            };
            unless_interrupted(walk, &progress, dir, &topology.name).await
        }
        LabCommand::Rename { topology, seed } => {
            let renamed = rename(&Topology::load(&topology)?, seed)?;
            say!("{}", renamed.to_text()?.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::DelayLine { lines } => delay::run(lines).await.map(|()| ExitCode::SUCCESS),
        LabCommand::Remote { command } => remote::run(&command).await,
        LabCommand::Watch { id } => {
            let dir = dir.context("--lab-dir is missing")?;
            watch::watch(dir, &id).await.map(|()| ExitCode::SUCCESS)
        }
        other => {
            // Others cannot even see that there is a lab.
            if !nix::unistd::geteuid().is_root() {
                bail!(
                    "labs belong to root: run this as root ('sudo {} …')",
                    words::command(dir)
                );
            }
            of_a_lab(other, dir, json).await
        }
    }
}

/// The commands for a lab that is up.
async fn of_a_lab(command: LabCommand, dir: Option<&Path>, json: bool) -> Result<ExitCode> {
    match command {
        LabCommand::Status { lab } => status::status(dir, lab.as_deref(), json).await,
        LabCommand::Exec { lab, host, command } => exec(dir, lab.as_deref(), &host, &command),
        LabCommand::Cut { lab, host, other } => {
            let (folder, state) = one(dir, lab.as_deref())?;
            let hosts = state.runtime.hosts(&state.topology, &folder);
            match other {
                Some(other) => {
                    let (a, b) = (underlay_address(&state, &host)?, underlay_address(&state, &other)?);
                    underlay::cut_pair(&*hosts, (&host, a), (&other, b))?;
                }
                None => underlay::cut(&*hosts, &state.topology, &host)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Restore { lab, host, other } => {
            let (folder, state) = one(dir, lab.as_deref())?;
            let hosts = state.runtime.hosts(&state.topology, &folder);
            match other {
                Some(other) => underlay::restore_pair(&*hosts, &host, &other)?,
                None => underlay::restore(&*hosts, &state.topology, &host)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Check { lab, steady } => check::check(dir, lab.as_deref(), !steady).await,
        LabCommand::Event { lab, name } => check::event(dir, lab.as_deref(), &name),
        LabCommand::Down { lab, all } => down(dir, lab.as_deref(), all),
        LabCommand::Up { .. }
        | LabCommand::Demo { .. }
        | LabCommand::Rename { .. }
        | LabCommand::DelayLine { .. }
        | LabCommand::Remote { .. }
        | LabCommand::Watch { .. } => {
            bail!("this is no command for a lab that is up")
        }
    }
}

/// How long after a failure a signal that caused it may take to be seen.
const SIGNAL_GRACE: std::time::Duration = std::time::Duration::from_millis(100);

/// Runs `work` until it ends or a signal comes; dropped, it takes down what it made, and warns through `progress` of
/// what it could not.
async fn unless_interrupted(
    work: impl Future<Output = Result<ExitCode>>,
    progress: &Progress,
    dir: Option<&Path>,
    name: &str,
) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut signalled = async || -> u8 {
        tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        }
    };
    let ended = tokio::select! {
        done = work => Err(done),
        number = signalled() => Ok(number),
    };
    let number = match ended {
        Ok(number) => number,
        Err(Ok(code)) => return Ok(code),
        // Ctrl-C goes to the whole group, and a helper that was just being started may still have been in it: it
        // failed because of the signal that is ours to see.
        Err(Err(error)) => match tokio::time::timeout(SIGNAL_GRACE, signalled()).await {
            Ok(number) => number,
            Err(_) => return Err(error),
        },
    };
    // `work` is gone now, and so is its lab.
    progress.finish();
    if progress.warned() {
        let command = words::command(dir);
        eprintln!("interrupted: NOT everything was taken down: '{command} down {name}' tries again");
    } else {
        eprintln!("interrupted: everything was taken down");
    }
    Ok(ExitCode::from(128 + number))
}

async fn up(topology: &Topology, options: Options) -> Result<ExitCode> {
    let start = Instant::now();
    let command = words::command(options.state_dir.as_deref());
    let progress = options.progress.clone();
    let lab = Lab::up(topology, options).await?;
    progress.finish();
    let name = &topology.name;
    say!(
        "lab {name} is up after {:.1} s: {} agents",
        start.elapsed().as_secs_f64(),
        topology.agents().count()
    );
    say!("  {command} status {name}");
    say!("  {command} exec --lab {name} HOST COMMAND…");
    if !topology.expected.is_empty() {
        say!("  {command} check {name}");
    }
    say!("  {command} down {name}");
    drop(lab);
    Ok(ExitCode::SUCCESS)
}

fn exec(dir: Option<&Path>, lab: Option<&str>, host: &str, command: &[String]) -> Result<ExitCode> {
    let (folder, state) = one(dir, lab)?;
    if !state.hosts.iter().any(|h| h == host) {
        bail!("there is no host '{host}': there are {}", state.hosts.join(", "));
    }
    let argv = at_home(&state.topology, &folder, host, command);
    let argv = state.runtime.hosts(&state.topology, &folder).wrap(host, &argv);
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let status = std::process::Command::new(program).args(arguments).status()?;
    Ok(ExitCode::from(
        status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1),
    ))
}

fn down(dir: Option<&Path>, lab: Option<&str>, all: bool) -> Result<ExitCode> {
    let mut failed = Vec::new();
    let doomed = if all {
        let found = candidates(dir);
        failed.extend(found.unreadable.iter().map(|e| format!("{e:#}")));
        found.labs
    } else {
        vec![one(dir, lab)?]
    };
    let progress = Progress::stderr();
    for (folder, state) in doomed {
        let name = &state.topology.name;
        progress.doing(format!("taking down lab {name}"));
        match Lab::attach(&folder).and_then(Lab::down) {
            Ok(()) => progress.print(&format!("lab {name} is gone")),
            Err(e) => failed.push(format!("lab {name}: {e:#}")),
        }
    }
    progress.finish();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("NOT everything was taken down:\n  {}", failed.join("\n  "))
}
