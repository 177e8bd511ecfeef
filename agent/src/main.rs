//! `tombolo-agent`: flags, tracing, start and signals.

use anyhow::{Context, Result, bail};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tombolo_agent::agent::AgentView;
use tombolo_agent::join::{JoinOptions, JoinToken, join};
use tombolo_agent::state::StateDir;
use tombolo_agent::{admin, run};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// What is logged unless `TOMBOLO_LOG` says otherwise. boringtun reports as errors what is no error: a session that
/// ended because nobody used it. What matters of a link, the lane reports.
fn default_log() -> Targets {
    Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("boringtun", LevelFilter::OFF)
}

/// Stands for a machine, or a VPN gateway, of a virtual network on this host.
#[derive(Parser)]
#[command(name = "tombolo-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turns a one-time join token into an identity in the state directory.
    Join {
        /// Where the agent keeps its keys, certificate and configuration.
        #[arg(long)]
        state_dir: PathBuf,
        /// https://host:port of the controller.
        #[arg(long, env = "TOMBOLO_CONTROLLER")]
        controller: String,
        /// A file that only its owner may access (mode 0600), with the token that 'tombolo token create' printed in its
        /// first line; '-' is standard input. Without this option the environment's TOMBOLO_JOIN_TOKEN is the token.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// UDP port of the encrypted links.
        #[arg(long)]
        listen_port: Option<u16>,
        /// Where other agents reach this one, best first. Default: the listen port at the address that the controller
        /// sees.
        #[arg(long = "endpoint", value_name = "IP:PORT")]
        endpoints: Vec<SocketAddr>,
        /// A second UDP port, for QUIC alone: 443 gets through where everything else is blocked.
        #[arg(long)]
        quic_port: Option<u16>,
        /// Name of the TUN device.
        #[arg(long)]
        interface: Option<String>,
        /// At the edge of a circuit: the interface that faces the customer's router.
        #[arg(long)]
        customer_interface: Option<String>,
        /// Lets a user-defined 0.0.0.0/0 or ::/0 take this host's default route.
        #[arg(long)]
        allow_default_route: bool,
    },
    /// Runs the agent in the foreground until SIGTERM, SIGINT or SIGHUP.
    Run {
        /// The directory that 'join' filled.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Asks the running agent what it does.
    Status {
        /// The directory that it runs from.
        #[arg(long)]
        state_dir: PathBuf,
        /// How to print it.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// The tables that packets are looked up in instead, as JSON.
        #[arg(long)]
        tables: bool,
        /// The configuration in force instead, as JSON.
        #[arg(long, conflicts_with = "tables")]
        config: bool,
        /// Prometheus metrics instead.
        #[arg(long, conflicts_with_all = ["tables", "config"])]
        metrics: bool,
    },
    /// Removes the rules, routes and packet filter that an agent leaves on the host when it ends. They keep packets with
    /// overlay addresses from leaving in clear text: run this when the host is to have no part in the overlay any more.
    Clean {
        /// The directory that it ran from.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// As 'clean', and forgets the identity: keys, certificate and configuration are deleted.
    Leave {
        /// The directory that it ran from.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Writes the manual pages and the completions of shells into a directory, for packages.
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    // The first of all: with two providers in the tree rustls cannot choose by itself.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing installs a provider before main");
    let wanted = std::env::var("TOMBOLO_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = wanted.unwrap_or_else(default_log);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter).init();
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().context("starting the runtime")
    };
    match command {
        Command::Join {
            state_dir,
            controller,
            token_file,
            listen_port,
            endpoints,
            quic_port,
            interface,
            customer_interface,
            allow_default_route,
        } => {
            let token = JoinToken::from_file_or_environment(token_file.as_deref())?;
            let state = StateDir::create(state_dir)?;
            let _lock = state.lock()?;
            let options = JoinOptions {
                controller,
                token,
                listen_port,
                endpoints,
                quic_port,
                interface,
                customer_interface,
                allow_default_route,
            };
            let config = runtime()?.block_on(join(&state, options))?;
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "joined");
            Ok(())
        }
        Command::Run { state_dir } => runtime()?.block_on(run::run(&StateDir::new(state_dir))),
        Command::Status {
            state_dir,
            output,
            tables,
            config,
            metrics,
        } => {
            let state = StateDir::new(state_dir);
            let path = if tables {
                "/tables"
            } else if config {
                "/config"
            } else if metrics {
                "/metrics"
            } else {
                "/status"
            };
            let answer = admin::ask(&state, path)?;
            match output {
                Output::Text if path == "/status" => {
                    let view: AgentView = serde_json::from_str(&answer)?;
                    print!("{}", run::describe(&view));
                }
                Output::Text | Output::Json => println!("{}", answer.trim_end()),
            }
            Ok(())
        }
        Command::Clean { state_dir } => runtime()?.block_on(run::clean(&StateDir::new(state_dir))),
        Command::Leave { state_dir } => {
            if !state_dir.is_dir() {
                bail!("{} is not a directory", state_dir.display());
            }
            runtime()?.block_on(run::leave(&StateDir::new(state_dir)))
        }
        Command::Manual { dir } => Ok(write_manual(&dir)?),
    }
}

fn write_manual(dir: &Path) -> std::io::Result<()> {
    let mut all = Arguments::command().disable_help_subcommand(true);
    all.build();
    write_pages(&all, dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "tombolo-agent", dir)?;
    }
    Ok(())
}

/// Writes the page of a command and those of its subcommands, in the section of daemons: tombolo-agent(1) is the command 'tombolo agent'.
fn write_pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(below, dir)?;
    }
    clap_mangen::Man::new(command.clone())
        .section("8")
        .generate_to(dir)
        .map(drop)
}
