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

    /// Where everything is kept: state, keys, `ca.pem`, `admin.token`.
    #[arg(long, env = "TOMBOLO_DATA_DIR", default_value = "/var/lib/tombolo-controller")]
    data_dir: PathBuf,

    /// Address and port of REST and of the agents.
    #[arg(long, env = "TOMBOLO_LISTEN", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,

    /// Further names and addresses by which clients reach this controller; may be repeated.
    #[arg(long = "public-name", env = "TOMBOLO_PUBLIC_NAMES", value_delimiter = ',')]
    public_names: Vec<String>,

    /// Packages of agents (`tombolo-agent_*.deb`), which anybody may download from this controller.
    #[arg(long, env = "TOMBOLO_PACKAGES_DIR", default_value = "/usr/share/tombolo/packages")]
    packages_dir: PathBuf,

    /// How long an agent's certificate is valid (90s, 15m, 24h, 7d); agents renew at two thirds of it.
    #[arg(long, env = "TOMBOLO_AGENT_CERTIFICATE_LIFETIME", default_value = "24h", value_parser = duration)]
    agent_certificate_lifetime: Duration,

    /// How log lines are written. Automatic: text on a terminal and in systemd's journal, JSON elsewhere.
    #[arg(long, env = "TOMBOLO_LOG_FORMAT", value_enum, default_value = "auto")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts a backup in place as the state of a data directory that has none. The controller must not be running.
    Restore {
        /// The file that `tombolo backup` wrote.
        #[arg(long)]
        from: PathBuf,
        /// The data directory.
        #[arg(long)]
        data_dir: PathBuf,
    },
    /// Asks the controller of this data directory and address whether it works; the exit code says so, for health checks.
    Health,
    /// Writes the manual pages and the completions of shells into a directory, for packages.
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let format = match &arguments.command {
        // Only what runs for long is for collectors.
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
            runtime.shutdown_timeout(Duration::from_secs(1));
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
    let (writer, asked) = (app.writer.clone(), stopped()?);
    let stop = async {
        tokio::select! {
            () = asked => {}
            () = writer.ended() => {}
        }
    };
    server.serve(app, router, stop).await;
    // The store is closed before the process ends: nothing of it stays beside its file.
    anyhow::ensure!(writer.stop().await, "the store cannot be written any more, see above");
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

/// Writes the page of a command and those of its subcommands, in the section of daemons.
fn write_pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(below, dir)?;
    }
    clap_mangen::Man::new(command.clone())
        .section("8")
        .generate_to(dir)
        .map(drop)
}

/// Reads a number of seconds, or of what its last letter says. From a second to a year.
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
        _ => return Err(format!("'{text}' is not written as 90s, 15m, 24h or 7d")),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    match seconds {
        Some(seconds) if (1..=366 * 86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(format!("'{text}' is not within 1s to 366d")),
    }
}

/// Ends with SIGTERM or SIGINT.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The state while it is checked.
const RESTORED: &str = "state.restored";

fn restore(from: &Path, data_dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot make {}", data_dir.display()))?;
    let _lock = app::lock(data_dir)?;
    // A log that stays behind would be replayed over the restored state.
    let beside = |name: &str| ["", "-wal", "-shm"].map(|end| data_dir.join(format!("{name}{end}")));
    let there: Vec<String> = beside(STORE_FILE)
        .iter()
        .filter(|file| file.symlink_metadata().is_ok())
        .map(|file| file.display().to_string())
        .collect();
    anyhow::ensure!(there.is_empty(), "move away first: {}", there.join(", "));
    for leftover in beside(RESTORED) {
        let _ = std::fs::remove_file(leftover);
    }
    let target = data_dir.join(STORE_FILE);
    let fresh = data_dir.join(RESTORED);
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    secret::write_private(&fresh, &content)?;
    // The copy is checked, not the original: opening a store writes beside it.
    let checked = SqliteStore::open(&fresh).and_then(|s| s.revision());
    if checked.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    let revision = checked.with_context(|| format!("{} is no backup", from.display()))?;
    std::fs::rename(&fresh, &target)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    tracing::info!(%revision, data_dir = %data_dir.display(), "state restored, with the authority; the next start makes ca.pem and a new admin.token");
    Ok(())
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
