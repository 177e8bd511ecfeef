//! A local process that represents a program on a virtual machine.
//!
//! The process runs a command line that starts the program over SSH. When the process receives a signal, it writes the
//! signal's name and a newline to the command's standard input, and the script `run` in the guest (deploy/vm/guest/run)
//! sends the signal to the program. At the end of standard input the script kills the program, so that a SIGKILL of the
//! local process ends the program too.

use anyhow::{Context, Result};
use std::process::{ExitCode, Stdio};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Name of the hidden command `tombolo lab remote COMMAND…`.
pub(crate) const COMMAND: &str = "remote";

/// Runs the command line `argv` until it ends, and passes SIGINT, SIGTERM and SIGHUP on to it. Returns its exit code,
/// or 1 if a signal ended it.
///
/// # Errors
/// `argv` is empty, or the command cannot be started.
pub(crate) async fn run(argv: &[String]) -> Result<ExitCode> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        // On Ctrl-C the terminal signals the whole foreground process group. The command is put into another group,
        // because it must receive each signal only once, through its standard input.
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
        // Writing fails only if the command is about to end, so an error is ignored: `wait` then returns.
        let _ = signals.write_all(name.as_bytes()).await;
    }
}
