//! A program that runs on a host of a lab while a test goes on.

use crate::live::World;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time for a program to end after a signal.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A program, which is killed when the value is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `tombolo` on a host, with the token of the lab's operator. Its standard output goes into the file `output`, and
    /// its standard error into the same file with the suffix `.err`.
    ///
    /// # Errors
    /// The program is not built, or a file cannot be created.
    pub fn tombolo(w: &World, host: &str, arguments: &[&str], output: &Path) -> Result<Self> {
        let folder = w.controller_dir()?;
        let program = tombolo_lab::binary::find("tombolo")?.display().to_string();
        let [ca, token] = ["ca.pem", "admin.token"].map(|name| folder.join(name).display().to_string());
        let url = w.url();
        let argv = [&program, "--controller", &url, "--ca", &ca, "--token-file", &token];
        let argv: Vec<String> = argv.iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let argv = w.hosts().wrap_with_signals(host, &argv);
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(File::create(output)?)
            .stderr(File::create(output.with_extension("err"))?)
            .spawn()
            .context("tombolo")?;
        let output = output.to_owned();
        Ok(Self { child, output })
    }

    /// What the program has written so far to standard output.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn output(&self) -> Result<Vec<u8>> {
        Ok(fs::read(&self.output)?)
    }

    /// What the program has written so far to standard error.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8.
    pub fn errors(&self) -> Result<String> {
        Ok(fs::read_to_string(self.output.with_extension("err"))?)
    }

    /// Sends SIGINT, as Ctrl-C does, and waits for the end of the program.
    ///
    /// # Errors
    /// The program has ended before, or does not end within 20 s.
    pub async fn interrupt(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("the program has ended before: {status}; {}", self.errors()?);
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(begin.elapsed() < END_TIMEOUT, "the program does not end by SIGINT");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
