//! The command `tombolo lab`.

/// Prints a line to standard output. A closed pipe is no error.
macro_rules! print_line {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

mod check;
mod find;
mod status;

use crate::demo::{self, Demo};
use crate::host::{Runtime, remote};
use crate::invocation;
use crate::lab::{Lab, Options, in_own_run};
use crate::progress::Progress;
use crate::topology::Topology;
use crate::topology::rename::rename;
use crate::{delay, underlay, watch};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use find::{candidates, find_lab, underlay_address};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// Run a whole topology on this machine: a controller and agents in network namespaces. Needs root.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Folder of the lab's state [default: /run/tombolo-lab/NAME].
    #[arg(long, value_name = "DIR", global = true)]
    lab_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Bring up a topology, and keep it up until `down`
    Up {
        /// Topology file, or name of a built-in topology
        topology: String,
        /// Take down an earlier lab of the same name first
        #[arg(long)]
        replace: bool,
        /// Kind of the hosts
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// Show the hosts of labs and their state
    Status {
        /// Name or topology file of the lab [default: all labs]
        lab: Option<String>,
    },
    /// Compare the topology's expectations with live packets, in the steady state and after each event; exit code 1 on
    /// a difference
    Check {
        /// Name or topology file of the lab; required if several are up
        lab: Option<String>,
        /// Check only the steady state, without any event
        #[arg(long)]
        steady: bool,
        /// Check only the rows with a site at one end, by probes from sites and machines, and compare with what explain
        /// predicts
        #[arg(long)]
        site_view: bool,
    },
    /// Trigger an event of the topology: `tombolo lab event cut`; the event `restore` undoes all others
    Event {
        /// Name or topology file of the lab; required if several are up
        #[arg(long)]
        lab: Option<String>,
        /// Name of the event
        name: String,
    },
    /// Print a topology with other names, addresses and ASNs, and the same structure
    Rename {
        /// Topology file, or name of a built-in topology
        topology: String,
        /// Number that determines the new names and addresses
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run a program on a host: `tombolo lab exec hub-vm ping 10.1.0.4`
    Exec {
        /// Name or topology file of the lab; required if several are up
        #[arg(long)]
        lab: Option<String>,
        /// Host, also 'controller' or 'internet'
        host: String,
        /// Program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Disconnect a host from the underlay, or two hosts from each other, without ICMP errors
    Cut {
        /// Name or topology file of the lab; required if several are up
        #[arg(long)]
        lab: Option<String>,
        /// Host to disconnect
        host: String,
        /// Second host; only the path between the two is cut
        other: Option<String>,
    },
    /// Undo a cut
    Restore {
        /// Name or topology file of the lab; required if several are up
        #[arg(long)]
        lab: Option<String>,
        /// Host that was disconnected
        host: String,
        /// Second host of the cut
        other: Option<String>,
    },
    /// Take a lab down, also one whose bring-up has failed
    Down {
        /// Name or topology file of the lab; required if several are up
        lab: Option<String>,
        /// Take down all labs
        #[arg(long, conflicts_with = "lab")]
        all: bool,
    },
    /// Bring up a lab, demonstrate it step by step, and take it down; a topology with expectations is checked instead
    Demo {
        /// Topology file, or name of a built-in topology, such as `interop`
        #[arg(default_value = "hub-spoke")]
        topology: String,
        /// Keep the lab up at the end
        #[arg(long)]
        keep: bool,
        /// Kind of the hosts
        #[arg(long, value_enum, default_value_t)]
        runtime: Runtime,
    },
    /// Delay packets between segments
    #[command(hide = true, name = delay::COMMAND)]
    DelayLine {
        /// Lines, each as device:milliseconds:loss
        #[arg(required = true)]
        lines: Vec<delay::Line>,
    },
    /// Run a program on a virtual machine, as a process of this machine
    #[command(hide = true, name = remote::COMMAND)]
    Remote {
        /// Command line that starts the program over SSH
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take the lab down if the program at the other end of standard input dies
    #[command(hide = true, name = watch::COMMAND)]
    Watch {
        /// Id of the bring-up
        id: String,
    },
}

/// Runs a command of `tombolo lab` to its end, and prints its output. With `json`, `status` prints JSON. Returns the
/// exit code. For `exec` and `remote` this is the exit code of the program that was run, or 1 if a signal ended the
/// program. For the other commands it is 1 if a check found a difference, 128 plus the signal's number if a signal
/// interrupted `up` or `demo`, and otherwise 0. If the future is dropped during `up` or `demo`, the lab is taken down.
///
/// # Errors
/// The command fails, `json` is set and the command has no JSON output, or this program does not run as root and the
/// command needs that. The caller has to print the error.
///
/// # Panics
/// Outside of a Tokio runtime with I/O and time enabled.
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
            print_line!("{}", renamed.to_text()?.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::DelayLine { lines } => delay::run(lines).await.map(|()| ExitCode::SUCCESS),
        LabCommand::Remote { command } => remote::run(&command).await,
        LabCommand::Watch { id } => {
            let dir = dir.context("--lab-dir is missing")?;
            watch::watch(dir, &id).await.map(|()| ExitCode::SUCCESS)
        }
        other => {
            // Only root may read the state folders of labs, so for other users the search would find no lab.
            if !nix::unistd::geteuid().is_root() {
                bail!(
                    "labs belong to root: run this command as root ('sudo {} …')",
                    invocation::command(dir)
                );
            }
            run_for_lab(other, dir, json).await
        }
    }
}

/// Runs a command that concerns labs that are up.
async fn run_for_lab(command: LabCommand, dir: Option<&Path>, json: bool) -> Result<ExitCode> {
    match command {
        LabCommand::Status { lab } => status::status(dir, lab.as_deref(), json).await,
        LabCommand::Exec { lab, host, command } => exec(dir, lab.as_deref(), &host, &command),
        LabCommand::Cut { lab, host, other } => {
            let (folder, state) = find_lab(dir, lab.as_deref())?;
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
            let (folder, state) = find_lab(dir, lab.as_deref())?;
            let hosts = state.runtime.hosts(&state.topology, &folder);
            match other {
                Some(other) => underlay::restore_pair(&*hosts, &host, &other)?,
                None => underlay::restore(&*hosts, &state.topology, &host)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Check { lab, steady, site_view } => check::check(dir, lab.as_deref(), !steady, site_view).await,
        LabCommand::Event { lab, name } => check::event(dir, lab.as_deref(), &name),
        LabCommand::Down { lab, all } => down(dir, lab.as_deref(), all),
        LabCommand::Up { .. }
        | LabCommand::Demo { .. }
        | LabCommand::Rename { .. }
        | LabCommand::DelayLine { .. }
        | LabCommand::Remote { .. }
        | LabCommand::Watch { .. } => {
            bail!("this command is not for a lab that is up")
        }
    }
}

/// A signal such as Ctrl-C may end a helper program before this program receives the signal. This is the longest time
/// between the two.
const SIGNAL_GRACE: std::time::Duration = std::time::Duration::from_millis(100);

/// Runs `work` until it ends or SIGINT, SIGTERM or SIGHUP arrives. On a signal `work` is dropped, which takes its lab
/// down. If a part of the lab cannot be removed, `progress` reports this.
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
        // Ctrl-C signals the whole process group of this program. A helper program is in this group at first, and
        // leaves it only after its start. So Ctrl-C may end a helper, and thus `work` with an error, before this
        // program has noticed the signal.
        Err(Err(error)) => match tokio::time::timeout(SIGNAL_GRACE, signalled()).await {
            Ok(number) => number,
            Err(_) => return Err(error),
        },
    };
    // `select!` has dropped `work`, and with it the lab.
    progress.finish();
    if progress.warned() {
        let command = invocation::command(dir);
        eprintln!("interrupted: NOT everything was taken down: '{command} down {name}' tries again");
    } else {
        eprintln!("interrupted: everything was taken down");
    }
    Ok(ExitCode::from(128 + number))
}

/// Brings a detached lab up and prints how to use it.
async fn up(topology: &Topology, options: Options) -> Result<ExitCode> {
    let start = Instant::now();
    let command = invocation::command(options.state_dir.as_deref());
    let progress = options.progress.clone();
    let lab = Lab::up(topology, options).await?;
    progress.finish();
    let name = &topology.name;
    print_line!(
        "lab {name} is up after {:.1} s: {} agents",
        start.elapsed().as_secs_f64(),
        topology.agents().count()
    );
    print_line!("  {command} status {name}");
    print_line!("  {command} exec --lab {name} HOST COMMAND…");
    if !topology.expected.is_empty() {
        print_line!("  {command} check {name}");
    }
    print_line!("  {command} down {name}");
    drop(lab);
    Ok(ExitCode::SUCCESS)
}

/// Runs a program on a host with this program's terminal. Returns the program's exit code, or 1 if a signal ended it.
fn exec(dir: Option<&Path>, lab: Option<&str>, host: &str, command: &[String]) -> Result<ExitCode> {
    let (folder, state) = find_lab(dir, lab)?;
    if !state.hosts.iter().any(|h| h == host) {
        bail!("there is no host '{host}': there are {}", state.hosts.join(", "));
    }
    let argv = in_own_run(&state.topology, &folder, host, command);
    let argv = state.runtime.hosts(&state.topology, &folder).wrap(host, &argv);
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let status = std::process::Command::new(program).args(arguments).status()?;
    Ok(ExitCode::from(
        status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1),
    ))
}

/// Takes down one lab or all labs, and continues after a failure.
fn down(dir: Option<&Path>, lab: Option<&str>, all: bool) -> Result<ExitCode> {
    let mut failed = Vec::new();
    let doomed = if all {
        let found = candidates(dir);
        failed.extend(found.unreadable.iter().map(|e| format!("{e:#}")));
        found.labs
    } else {
        vec![find_lab(dir, lab)?]
    };
    let progress = Progress::stderr();
    for (folder, state) in doomed {
        let name = &state.topology.name;
        progress.set_activity(format!("taking down lab {name}"));
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
