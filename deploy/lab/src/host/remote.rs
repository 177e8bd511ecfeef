//! A program on a virtual machine that is seen, from here, as a process of this machine.
//!
//! The command line that it is given starts the program over a connection to the machine, and is told on standard input which
//! signals the program shall get, one name a line; the end of standard input kills the program. So signals pass, SIGKILL as well.

use anyhow::{Context, Result};
use std::process::{ExitCode, Stdio};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// The hidden command: `tombolo lab remote COMMAND…`.
pub(crate) const COMMAND: &str = "remote";

/// Runs the command line until it ends, and passes signals on. Returns its exit code.
///
/// # Errors
/// It cannot be started.
pub(crate) async fn run(argv: &[String]) -> Result<ExitCode> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        // What is meant for this process is passed on, and no more.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting '{program}'"))?;
    let mut told = child.stdin.take().context("no standard input")?;
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
        // One that no longer reads is about to end, which is seen above.
        let _ = told.write_all(name.as_bytes()).await;
    }
}
