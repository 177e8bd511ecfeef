//! A local process that stands for a program on a virtual machine.
//!
//! The process runs a command line that starts the program over SSH. Signals to the process are passed on as names on
//! the command's standard input, one a line. The end of standard input kills the program, so that SIGKILL has its
//! effect too.

use anyhow::{Context, Result};
use std::process::{ExitCode, Stdio};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// The hidden command: `tombolo lab remote COMMAND…`.
pub(crate) const COMMAND: &str = "remote";

/// Runs the command line until it ends, and passes signals on to it. Returns its exit code.
///
/// # Errors
/// The command cannot be started.
pub(crate) async fn run(argv: &[String]) -> Result<ExitCode> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        // Signals of the terminal must reach the command once, as passed on here, and not directly as well.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting '{program}'"))?;
    let mut signals = child.stdin.take().context("no standard input")?;
    loop {
        let name = tokio::select! {
            ended = child.wait() => {
                let code = ended?.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
                return Ok(ExitCode::from(code));
            }
            _ = interrupt.recv() => "INT\n",
            _ = terminate.recv() => "TERM\n",
            _ = hangup.recv() => "HUP\n",
        };
        // Writing fails only if the command is about to end, which `wait` reports.
        let _ = signals.write_all(name.as_bytes()).await;
    }
}
