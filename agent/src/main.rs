//! `tombolo-agent`: flags, tracing, start and signals.

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tombolo_agent::agent::AgentView;
use tombolo_agent::bgp::BirdService;
use tombolo_agent::bgp::service::become_bird;
use tombolo_agent::first_join::{FirstJoin, has_joined};
use tombolo_agent::join::{JoinOptions, JoinSettings, JoinToken, join};
use tombolo_agent::state::StateDir;
use tombolo_agent::{admin, run};
use tombolo_logging::LogFormat;
use tracing_subscriber::filter::{LevelFilter, Targets};

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
        #[command(flatten)]
        settings: Settings,
    },
    /// Runs the agent in the foreground until SIGTERM, SIGINT or SIGHUP. Given a token file, it joins first if the state
    /// directory has no identity yet.
    Run {
        /// The directory that 'join' filled.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
        state_dir: PathBuf,
        /// A file with a join token. It is waited for, as the controller is, and needed only until the agent has joined.
        #[arg(long, env = "TOMBOLO_JOIN_TOKEN_FILE", requires = "controller")]
        join_token_file: Option<PathBuf>,
        /// https://host:port of the controller that the token is of.
        #[arg(long, env = "TOMBOLO_CONTROLLER")]
        controller: Option<String>,
        /// How long to wait for the token file and the controller, seconds.
        #[arg(long, env = "TOMBOLO_JOIN_TIMEOUT", default_value = "300", value_name = "SECONDS")]
        join_timeout: u64,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        bird: BirdArguments,
        /// How log lines are written. Automatic: text on a terminal and in systemd's journal, JSON elsewhere.
        #[arg(long, env = "TOMBOLO_LOG_FORMAT", value_enum, default_value = "auto")]
        log_format: LogFormat,
    },
    /// Says whether the agent runs and has a configuration in force; the exit code says the same, for health checks.
    Health {
        /// The directory that it runs from.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
        state_dir: PathBuf,
    },
    /// Becomes BIRD for an agent that was started with the same directories: what the unit tombolo-bird@ runs.
    Bird {
        /// The directory that the agent writes BIRD's configuration into.
        #[arg(long, value_name = "DIR")]
        config_dir: PathBuf,
        /// The directory for BIRD's control socket.
        #[arg(long, value_name = "DIR")]
        run_dir: PathBuf,
    },
    /// Asks the running agent what it does.
    Status {
        /// The directory that it runs from.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
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

/// Local settings, which `agent.toml` in the state directory keeps: they count when the agent joins.
#[derive(Args)]
#[command(next_help_heading = "Settings, kept when the agent joins")]
struct Settings {
    /// UDP port of the encrypted links.
    #[arg(long, env = "TOMBOLO_LISTEN_PORT")]
    listen_port: Option<u16>,
    /// Where other agents reach this one, best first. Default: the listen port at the address that the controller
    /// sees.
    #[arg(
        long = "endpoint",
        value_name = "IP:PORT",
        env = "TOMBOLO_ENDPOINTS",
        value_delimiter = ','
    )]
    endpoints: Vec<SocketAddr>,
    /// A second UDP port, for QUIC alone: 443 gets through where everything else is blocked.
    #[arg(long, env = "TOMBOLO_QUIC_PORT")]
    quic_port: Option<u16>,
    /// Name of the TUN device.
    #[arg(long, env = "TOMBOLO_INTERFACE")]
    interface: Option<String>,
    /// At the edge of a circuit: the interface that faces the customer's router.
    #[arg(long, env = "TOMBOLO_CUSTOMER_INTERFACE")]
    customer_interface: Option<String>,
    /// Lets a user-defined 0.0.0.0/0 or ::/0 take this host's default route.
    #[arg(long, env = "TOMBOLO_ALLOW_DEFAULT_ROUTE")]
    allow_default_route: bool,
}

impl From<Settings> for JoinSettings {
    fn from(s: Settings) -> Self {
        Self {
            listen_port: s.listen_port,
            endpoints: s.endpoints,
            quic_port: s.quic_port,
            interface: s.interface,
            customer_interface: s.customer_interface,
            allow_default_route: s.allow_default_route,
        }
    }
}

/// BIRD as a service of its own. Without these options BIRD is a child of the agent.
#[derive(Args)]
struct BirdArguments {
    /// The directory that BIRD's configuration is written into. A service manager starts 'tombolo-agent bird' when bird.conf
    /// exists there, and ends it with the agent.
    #[arg(long, value_name = "DIR", requires_all = ["bird_run_dir", "bird_user"])]
    bird_config_dir: Option<PathBuf>,
    /// The directory that BIRD has its control socket in.
    #[arg(long, value_name = "DIR", requires = "bird_config_dir")]
    bird_run_dir: Option<PathBuf>,
    /// The user that BIRD runs as. The agent must have that user's group.
    #[arg(long, value_name = "USER", requires = "bird_config_dir")]
    bird_user: Option<String>,
}

impl BirdArguments {
    /// None: BIRD is a child.
    fn service(self) -> Option<BirdService> {
        Some(BirdService {
            config_dir: self.bird_config_dir?,
            run_dir: self.bird_run_dir?,
            user: self.bird_user?,
        })
    }
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
    let command = Arguments::parse().command;
    let format = match &command {
        Command::Run { log_format, .. } => *log_format,
        // Only what runs for long is for collectors.
        _ => LogFormat::Text,
    };
    tombolo_logging::init(format, default_log());
    match dispatch(command) {
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
            settings,
        } => {
            let token = JoinToken::from_file_or_environment(token_file.as_deref())?;
            let state = StateDir::create(state_dir)?;
            let _lock = state.lock()?;
            let options = JoinOptions {
                controller,
                token,
                settings: settings.into(),
            };
            let config = runtime()?.block_on(join(&state, options))?;
            tracing::info!(agent = %config.agent, interface = config.interface, port = config.listen_port, "joined");
            Ok(())
        }
        Command::Run {
            state_dir,
            join_token_file,
            controller,
            join_timeout,
            settings,
            bird,
            log_format: _,
        } => {
            let state = StateDir::new(&state_dir);
            let first = join_token_file
                .zip(controller)
                .map(|(token_file, controller)| FirstJoin {
                    controller,
                    token_file,
                    timeout: Duration::from_secs(join_timeout),
                    settings: settings.into(),
                });
            match first.filter(|_| !has_joined(&state)) {
                Some(first) => runtime()?.block_on(async {
                    let state = StateDir::create(state_dir)?;
                    if run::join(&state, &first).await? {
                        run::run(&state, bird.service()).await?;
                    }
                    Ok(())
                }),
                None => runtime()?.block_on(run::run(&state, bird.service())),
            }
        }
        Command::Health { state_dir } => {
            let view: AgentView = serde_json::from_str(&admin::ask(&StateDir::new(state_dir), "/status")?)?;
            println!("{}", run::health(&view)?);
            Ok(())
        }
        Command::Bird { config_dir, run_dir } => match become_bird(&config_dir, &run_dir)? {},
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

#[cfg(test)]
mod golden {
    use super::Arguments;
    use clap::CommandFactory as _;
    use tombolo_golden::{golden, options_of};

    /// Units, container images and people's scripts use these names.
    #[test]
    fn options_of_the_program() {
        golden!().text("options.txt", &options_of(Arguments::command()));
    }
}
