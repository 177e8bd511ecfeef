//! The controller's command line.

use anyhow::Context;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tombolo_controller::admission::Limits;
use tombolo_controller::app::{self, App, STORE_FILE};
use tombolo_controller::http::Server;
use tombolo_controller::packages::Packages;
use tombolo_controller::store::Store;
use tombolo_controller::store::sqlite::SqliteStore;
use tombolo_controller::{descriptors, health, http, rest, secret};
use tombolo_logging::LogFormat;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Tombolo's controller: keeps the desired state and pushes it to agents.
#[derive(Debug, Parser)]
#[command(name = "tombolo-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Data directory: state, keys, `ca.pem` and `admin.token`.
    #[arg(long, env = "TOMBOLO_DATA_DIR", default_value = "/var/lib/tombolo-controller")]
    data_dir: PathBuf,

    /// Address and TCP port that REST clients and agents connect to.
    #[arg(long, env = "TOMBOLO_LISTEN", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,

    /// Further DNS names and IP addresses by which clients reach this controller, for its TLS certificate; may be
    /// repeated.
    #[arg(long = "public-name", env = "TOMBOLO_PUBLIC_NAMES", value_delimiter = ',')]
    public_names: Vec<String>,

    /// Directory of agent packages (`tombolo-agent_*.deb`), which this controller serves without authentication.
    #[arg(long, env = "TOMBOLO_PACKAGES_DIR", default_value = "/usr/share/tombolo/packages")]
    packages_dir: PathBuf,

    /// Lifetime of agents' certificates (90s, 15m, 24h, 7d; from 1s to 366d). Agents renew after two thirds of it.
    #[arg(long, env = "TOMBOLO_AGENT_CERTIFICATE_LIFETIME", default_value = "24h", value_parser = duration)]
    agent_certificate_lifetime: Duration,

    /// Format of log lines. `auto`: text on a terminal and in systemd's journal, JSON elsewhere.
    #[arg(long, env = "TOMBOLO_LOG_FORMAT", value_enum, default_value = "auto")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Restores a backup into a data directory that holds no state. The controller must not be running.
    Restore {
        /// Backup file, as written by `tombolo backup`.
        #[arg(long)]
        from: PathBuf,
        /// Data directory to restore into; created if it does not exist.
        #[arg(long)]
        data_dir: PathBuf,
    },
    /// Checks the running controller of this data directory and address. Exits with 0 if it is healthy.
    Health,
    /// Writes manual pages and shell completions into a directory, for packages.
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

/// Longest time that blocking tasks get to end at shutdown. It starts after the grace period of connections, and after
/// the store was closed.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    // This call fails only if a provider is installed already, and no other code of this program installs one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let format = match &arguments.command {
        // Log collectors read only the log of the controller itself. People run the subcommands, which end at once.
        Some(_) => LogFormat::Text,
        None => arguments.log_format,
    };
    tombolo_logging::init(format, Targets::new().with_default(LevelFilter::INFO));
    match &arguments.command {
        Some(Command::Health) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            println!(
                "{}",
                runtime.block_on(health::ask(&arguments.data_dir, arguments.listen))?
            );
            Ok(())
        }
        Some(Command::Restore { from, data_dir }) => restore(from, data_dir),
        Some(Command::Manual { dir }) => Ok(write_manual(dir)?),
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let result = runtime.block_on(run(&arguments));
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
            result
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let limits = Limits::for_descriptors(descriptors::raise()?);
    let app = App::open(&arguments.data_dir, arguments.agent_certificate_lifetime, limits)?;
    let rest = rest::router::router(&app, Packages::new(arguments.packages_dir.clone())).await?;
    let server = Server::bind(arguments.listen, &arguments.public_names, &app.authority).await?;
    let revision = app.writer.current().revision;
    let address = server.address()?;
    let dir = arguments.data_dir.display();
    tracing::info!(%address, %revision, ca = format!("{dir}/ca.pem"), "controller is ready");
    let router = http::router(&app, rest);
    let (writer, signal) = (app.writer.clone(), termination_signal()?);
    let stop = async {
        tokio::select! {
            () = signal => {}
            () = writer.closed() => {}
        }
    };
    let (usage, agents, compiled) = (app.usage.clone(), app.agents.clone(), app.compiled.clone());
    server.serve(app, router, stop).await;
    let compiled = compiled.borrow().clone();
    tokio::task::spawn_blocking(move || usage.record(&agents, &compiled)).await?;
    // Closing the store folds its write-ahead log into the database file.
    anyhow::ensure!(
        writer.stop().await,
        "the controller stopped because its store can no longer be written; the log lines above say why"
    );
    tracing::info!("controller stopped");
    Ok(())
}

fn write_manual(dir: &Path) -> std::io::Result<()> {
    let mut all = Arguments::command().disable_help_subcommand(true);
    all.build();
    write_pages(&all, dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "tombolo-controller", dir)?;
    }
    Ok(())
}

/// Writes the manual pages of a command and of its subcommands, in section 8 (system administration).
fn write_pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(subcommand, dir)?;
    }
    clap_mangen::Man::new(command.clone())
        .section("8")
        .generate_to(dir)
        .map(drop)
}

/// Parses a whole number with the unit `s`, `m`, `h` or `d`. A number without a unit is in seconds. The duration must
/// be from one second to 366 days.
///
/// The crate `humantime` is not used, because it refuses a number without a unit, which existing unit files may have.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => {
            return Err(format!(
                "'{text}' is not a duration; write a whole number and s, m, h or d, as 90s, 15m, 24h or 7d"
            ));
        }
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    match seconds {
        Some(seconds) if (1..=366 * 86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(format!("'{text}' is not within 1s to 366d")),
    }
}

/// A future that completes at SIGTERM or SIGINT.
///
/// # Errors
/// The signal handlers cannot be installed.
fn termination_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The name of the copy of a backup in the data directory, until the copy has been checked.
const UNCHECKED_STORE_FILE: &str = "state.restored";

/// Restores a backup: copies it beside the store's place, checks the copy, and renames it into place.
///
/// # Errors
/// The data directory is in use or holds a state, the file is no backup, or the file system fails. Nothing is restored
/// then.
fn restore(from: &Path, data_dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    let _lock = app::lock(data_dir)?;
    // A leftover write-ahead log also counts as a state, because SQLite would replay it over the restored state.
    let store_files = |name: &str| ["", "-wal", "-shm"].map(|end| data_dir.join(format!("{name}{end}")));
    let existing: Vec<String> = store_files(STORE_FILE)
        .iter()
        .filter(|file| file.symlink_metadata().is_ok())
        .map(|file| file.display().to_string())
        .collect();
    anyhow::ensure!(
        existing.is_empty(),
        "the data directory holds a state already; move it away first: {}",
        existing.join(", ")
    );
    for leftover in store_files(UNCHECKED_STORE_FILE) {
        // Usually there is no leftover file. If one exists and cannot be removed, the next write to it fails and
        // reports why.
        let _ = std::fs::remove_file(leftover);
    }
    let target = data_dir.join(STORE_FILE);
    let unchecked = data_dir.join(UNCHECKED_STORE_FILE);
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    secret::write_private(&unchecked, &content)?;
    // The copy is checked and not the backup itself, because opening a store creates two files beside it.
    let checked = SqliteStore::open(&unchecked).and_then(|s| s.revision());
    if checked.is_err() {
        // If the file cannot be removed, that error is ignored: the error of the check is reported, and the next
        // restore removes the file.
        let _ = std::fs::remove_file(&unchecked);
    }
    let revision = checked.with_context(|| format!("{} is not a backup of a controller", from.display()))?;
    std::fs::rename(&unchecked, &target)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    tracing::info!(%revision, data_dir = %data_dir.display(), "state and certificate authority restored; the next start creates ca.pem and a new admin.token");
    Ok(())
}

#[cfg(test)]
mod golden {
    use super::Arguments;
    use clap::CommandFactory as _;
    use tombolo_golden::{golden, options_of};

    /// These names must not change, because systemd units, container images and operators' scripts use them.
    #[test]
    fn options_of_the_program() {
        golden!().text("options.txt", &options_of(Arguments::command()));
    }
}
