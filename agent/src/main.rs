//! The program `tombolo-agent`: command line and logging.

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tombolo_agent::agent::AgentView;
use tombolo_agent::bgp::BirdService;
use tombolo_agent::bgp::service::become_bird;
use tombolo_agent::config::Config;
use tombolo_agent::first_join::{FirstJoin, has_joined};
use tombolo_agent::join::{JoinOptions, JoinSettings, JoinToken, join};
use tombolo_agent::site_probe::SiteProbeView;
use tombolo_agent::state::StateDir;
use tombolo_agent::{admin, clean, run, status_text};
use tombolo_logging::LogFormat;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Default log levels, which the environment variable `TOMBOLO_LOG` replaces. boringtun (WireGuard) is silenced because
/// it logs an error for every session that ends unused. The lanes log when a link goes up or down.
fn default_log() -> Targets {
    Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("boringtun", LevelFilter::OFF)
}

/// Connects this host to a virtual network, as a machine, a gateway or the edge of a circuit; or sends probes from a site.
#[derive(Parser)]
#[command(name = "tombolo-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Joins a network: exchanges a one-time join token for an identity in the state directory.
    Join {
        /// Directory for the agent's keys, certificate and configuration.
        #[arg(long)]
        state_dir: PathBuf,
        /// https://host:port of the controller.
        #[arg(long, env = "TOMBOLO_CONTROLLER")]
        controller: String,
        /// File with the token that 'tombolo token create' printed, in its first line; mode 0600. '-' reads standard
        /// input. Without this option the token comes from the environment variable TOMBOLO_JOIN_TOKEN.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Runs the agent in the foreground until SIGTERM, SIGINT or SIGHUP. With a token file it joins first, unless the
    /// state directory has an identity.
    Run {
        /// State directory that 'join' has filled.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
        state_dir: PathBuf,
        /// File with a join token, needed until the agent has joined. The agent waits for the file and for the
        /// controller.
        #[arg(long, env = "TOMBOLO_JOIN_TOKEN_FILE", requires = "controller")]
        join_token_file: Option<PathBuf>,
        /// https://host:port of the controller that issued the token.
        #[arg(long, env = "TOMBOLO_CONTROLLER")]
        controller: Option<String>,
        /// Seconds to wait for the token file and the controller.
        #[arg(long, env = "TOMBOLO_JOIN_TIMEOUT", default_value = "300", value_name = "SECONDS")]
        join_timeout: u64,
        #[command(flatten)]
        settings: Settings,
        /// Directory for what the next start needs and a boot may remove: the flows of security groups. Default: the
        /// state directory.
        #[arg(long, env = "TOMBOLO_RUNTIME_DIR", value_name = "DIR")]
        runtime_dir: Option<PathBuf>,
        #[command(flatten)]
        bird: BirdArguments,
        /// Format of log lines. auto: text on a terminal and in systemd's journal, JSON elsewhere.
        #[arg(long, env = "TOMBOLO_LOG_FORMAT", value_enum, default_value = "auto")]
        log_format: LogFormat,
    },
    /// Checks that the agent runs and has a configuration in force. The exit code is 0 if so, for health checks.
    Health {
        /// The directory that it runs from.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
        state_dir: PathBuf,
    },
    /// Becomes BIRD, for an agent that was started with the same directories. The unit tombolo-bird@ runs this command.
    Bird {
        /// Directory into which the agent writes BIRD's configuration.
        #[arg(long, value_name = "DIR")]
        config_dir: PathBuf,
        /// Directory of BIRD's control socket.
        #[arg(long, value_name = "DIR")]
        run_dir: PathBuf,
    },
    /// Shows the status of the running agent.
    Status {
        /// The directory that it runs from.
        #[arg(long, env = "TOMBOLO_STATE_DIR")]
        state_dir: PathBuf,
        /// Output format.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// Show the lookup tables instead, as JSON.
        #[arg(long)]
        tables: bool,
        /// Show the configuration in force instead, as JSON.
        #[arg(long, conflicts_with = "tables")]
        config: bool,
        /// Show Prometheus metrics instead.
        #[arg(long, conflicts_with_all = ["tables", "config"])]
        metrics: bool,
    },
    /// Removes the rules, routes and packet filter that an agent leaves on the host when it ends. They keep packets
    /// with overlay addresses from leaving in clear text: run this only when the host leaves the overlay for good.
    Clean {
        /// The directory that it ran from.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Cleans as 'clean' does, and deletes the identity: keys, certificate and configuration.
    Leave {
        /// The directory that it ran from.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Writes manual pages and shell completions into a directory, for packages.
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

/// Local settings, stored in `agent.toml` when the agent joins.
#[derive(Args)]
#[command(next_help_heading = "Settings, kept when the agent joins")]
struct Settings {
    /// UDP port of the encrypted links.
    #[arg(long, env = "TOMBOLO_LISTEN_PORT")]
    listen_port: Option<u16>,
    /// Endpoints at which other agents reach this one, best first. Default: the listen port at the address that the
    /// controller sees.
    #[arg(
        long = "endpoint",
        value_name = "IP:PORT",
        env = "TOMBOLO_ENDPOINTS",
        value_delimiter = ','
    )]
    endpoints: Vec<SocketAddr>,
    /// A second UDP port, for QUIC only: 443 passes firewalls that block other ports.
    #[arg(long, env = "TOMBOLO_QUIC_PORT")]
    quic_port: Option<u16>,
    /// Name of the TUN device.
    #[arg(long, env = "TOMBOLO_INTERFACE")]
    interface: Option<String>,
    /// At the edge of a circuit: the interface that faces the customer's router.
    #[arg(long, env = "TOMBOLO_CUSTOMER_INTERFACE")]
    customer_interface: Option<String>,
    /// Lets a user-defined 0.0.0.0/0 or ::/0 replace this host's default route.
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

/// Options of BIRD as a service of its own. Without them BIRD is a child process of the agent.
#[derive(Args)]
struct BirdArguments {
    /// Directory for BIRD's configuration. A service manager starts 'tombolo-agent bird' when bird.conf appears there,
    /// and stops it when the agent stops.
    #[arg(long, value_name = "DIR", requires_all = ["bird_run_dir", "bird_user"])]
    bird_config_dir: Option<PathBuf>,
    /// Directory of BIRD's control socket.
    #[arg(long, value_name = "DIR", requires = "bird_config_dir")]
    bird_run_dir: Option<PathBuf>,
    /// User that BIRD runs as. The agent must be a member of that user's group.
    #[arg(long, value_name = "USER", requires = "bird_config_dir")]
    bird_user: Option<String>,
}

impl BirdArguments {
    /// The directories and the user of BIRD's service. None: the options are absent, and BIRD is a child process of the
    /// agent.
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
    // rustls cannot choose between the two cryptography providers that are linked into this program, so the choice
    // comes before any use of TLS.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing installs a provider before main");
    let command = Arguments::parse().command;
    let format = match &command {
        Command::Run { log_format, .. } => *log_format,
        // Only the long-running command writes logs for collectors.
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
    match command {
        Command::Join {
            state_dir,
            controller,
            token_file,
            settings,
        } => join_now(state_dir, controller, token_file.as_deref(), settings),
        Command::Run {
            state_dir,
            join_token_file,
            controller,
            join_timeout,
            settings,
            runtime_dir,
            bird,
            log_format: _,
        } => {
            let first = join_token_file
                .zip(controller)
                .map(|(token_file, controller)| FirstJoin {
                    controller,
                    token_file,
                    timeout: Duration::from_secs(join_timeout),
                    settings: settings.into(),
                });
            join_and_run(state_dir, runtime_dir, first, bird.service())
        }
        Command::Health { state_dir } => {
            let state = StateDir::new(state_dir);
            let answer = admin::ask(&state, "/status")?;
            let line = if is_site_probe(&state)? {
                serde_json::from_str::<SiteProbeView>(&answer)?.health()?
            } else {
                status_text::health(&serde_json::from_str::<AgentView>(&answer)?)?
            };
            println!("{line}");
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
            let path = match (tables, config, metrics) {
                (true, ..) => "/tables",
                (_, true, _) => "/config",
                (.., true) => "/metrics",
                _ => "/status",
            };
            show_status(&StateDir::new(state_dir), path, output)
        }
        Command::Clean { state_dir } => runtime()?.block_on(clean::clean(&StateDir::new(state_dir))),
        Command::Leave { state_dir } => {
            if !state_dir.is_dir() {
                bail!("{} is not a directory", state_dir.display());
            }
            runtime()?.block_on(clean::leave(&StateDir::new(state_dir)))
        }
        Command::Manual { dir } => Ok(write_manual(&dir)?),
    }
}

/// The runtime for everything but the lanes. One thread suffices, because the lanes have threads of their own.
fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("starting the runtime")
}

fn join_now(state_dir: PathBuf, controller: String, token_file: Option<&Path>, settings: Settings) -> Result<()> {
    let token = JoinToken::from_file_or_environment(token_file)?;
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

/// Runs the agent. If the state directory has no identity and `first` is given, the agent first joins with these
/// parameters.
fn join_and_run(
    state_dir: PathBuf,
    runtime_dir: Option<PathBuf>,
    first: Option<FirstJoin>,
    bird: Option<BirdService>,
) -> Result<()> {
    let state = StateDir::new(&state_dir);
    let volatile = StateDir::new(runtime_dir.unwrap_or_else(|| state_dir.clone()));
    match first.filter(|_| !has_joined(&state)) {
        Some(first) => runtime()?.block_on(async {
            let state = StateDir::create(state_dir)?;
            if run::join(&state, &first).await? {
                run::run(&state, &volatile, bird).await?;
            }
            Ok(())
        }),
        None => runtime()?.block_on(run::run(&state, &volatile, bird)),
    }
}

/// Whether the agent of this directory is a site probe, which has a status of its own form (M10).
fn is_site_probe(state: &StateDir) -> Result<bool> {
    Ok(Config::load(state)?.site_probe)
}

/// Prints the running agent's answer for `path` of its local socket. `output` matters only for `/status`.
fn show_status(state: &StateDir, path: &str, output: Output) -> Result<()> {
    let answer = admin::ask(state, path)?;
    match output {
        Output::Text if path == "/status" && is_site_probe(state)? => {
            print!("{}", serde_json::from_str::<SiteProbeView>(&answer)?.describe());
        }
        Output::Text if path == "/status" => {
            let view: AgentView = serde_json::from_str(&answer)?;
            print!("{}", status_text::describe(&view));
        }
        Output::Text | Output::Json => println!("{}", answer.trim_end()),
    }
    Ok(())
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

/// Writes the manual page of a command, and those of its subcommands that are not hidden. The pages are in section 8
/// (daemons), because tombolo-agent(1) would be the page of the command 'tombolo agent'.
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

    /// The test fails when an option's name changes: units, container images and operators' scripts use these names.
    #[test]
    fn options_of_the_program() {
        golden!().text("options.txt", &options_of(Arguments::command()));
    }
}
