//! Runs helper programs (`ip`, `nft`, …) with a time limit. The error of a failed helper contains its output.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longest time that a helper may run. A helper takes milliseconds; the rest of the time allows for a busy machine.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(15);

/// Exit status and output of a program that has ended.
#[must_use = "the program may have failed"]
#[derive(Debug, Clone)]
pub struct CommandOutput {
    /// Exit status; 128 + the signal's number if a signal ended the program.
    pub code: i32,
    /// Standard output. Bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error. Bytes that are no UTF-8 are replaced.
    pub stderr: String,
}

/// Runs a program with empty standard input, and blocks until it has ended and its output is closed. If a child of the
/// program keeps the output open, this takes longer than the program. `argv` is the program's name or path and its
/// arguments. The program runs with this program's environment, and in the network namespace of the calling thread. It
/// is in a process group of its own, so Ctrl-C does not reach it. A non-zero exit status is no error.
///
/// # Errors
/// `argv` is empty, the program cannot be started, or it has not ended or its output is still open after `limit`. The
/// program is then killed, but its own children are not, and its output is lost. Does not wait for the end of the
/// killed program.
pub fn finish(argv: &[String], limit: Duration) -> Result<CommandOutput> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C signals the foreground process group. The helper is put into another group, so that it can finish when
        // Ctrl-C makes this program take the lab down.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run '{program}': is it installed?"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Sending fails only if the receiver was dropped after the timeout. The output is not needed then, so an error
        // is ignored.
        let _ = sender.send(child.wait_with_output());
    });
    match receiver.recv_timeout(limit) {
        Ok(output) => Ok(finished(&output.with_context(|| format!("waiting for '{program}'"))?)),
        Err(_) => {
            // The thread has sent no result, so it has not yet reaped the child. Until then the kernel gives the
            // child's process id to no other process, so this cannot kill another process.
            let _ = kill(pid, Signal::SIGKILL);
            bail!("'{}' did not end within {} s", argv.join(" "), limit.as_secs_f64())
        }
    }
}

fn finished(output: &Output) -> CommandOutput {
    use std::os::unix::process::ExitStatusExt;
    CommandOutput {
        code: output
            .status
            .code()
            .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a helper that must succeed, as [`finish`] with the limit [`HELPER_TIMEOUT`], 15 seconds. Returns its standard
/// output.
///
/// # Errors
/// As [`finish`], or a non-zero exit status. In the second case the message contains the helper's standard error, or
/// its standard output if standard error is empty.
pub fn run(argv: &[&str]) -> Result<String> {
    let owned: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
    let done = finish(&owned, HELPER_TIMEOUT)?;
    if done.code != 0 {
        let output = if done.stderr.trim().is_empty() {
            &done.stdout
        } else {
            &done.stderr
        };
        bail!("'{}' failed ({}): {}", argv.join(" "), done.code, output.trim());
    }
    Ok(done.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_helper_says_why() {
        let error = run(&["sh", "-c", "echo broken >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains("(3)"), "{error}");
        assert!(
            run(&["no-such-program-here"])
                .unwrap_err()
                .to_string()
                .contains("installed")
        );
    }

    #[test]
    fn a_helper_that_hangs_is_killed() {
        let argv = ["sleep", "60"].map(str::to_owned);
        let error = finish(&argv, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }
}
