//! The demo as a test, and that it leaves nothing behind however it ends.

use crate::harness::{hub_spoke, namespaces, require_root};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tombolo_lab::binary;

/// A demo in a process of its own.
struct Running {
    child: Child,
    name: String,
    dir: tempfile::TempDir,
}

impl Running {
    fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        require_root();
        let dir = tempfile::tempdir()?;
        let topology = hub_spoke(name);
        let file = dir.path().join("topology.yaml");
        std::fs::write(&file, topology.to_text()?)?;
        let mut command = Command::new(binary::find("tombolo")?);
        command
            .args(["lab", "--lab-dir"])
            .arg(dir.path().join("lab"))
            .arg("demo")
            .arg(&file)
            .args(arguments);
        let output = std::fs::File::create(dir.path().join("output"))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        Ok(Self {
            child: command.spawn()?,
            name: topology.name,
            dir,
        })
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    fn lab_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("lab")
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                start.elapsed() < limit,
                "still runs after {limit:?}:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the output contains a text.
    fn until(&mut self, text: &str) -> Result<()> {
        let start = Instant::now();
        while !self.output().contains(text) {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "ended before '{text}':\n{}", self.output());
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "no '{text}':\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(kill(pid, signal)?)
    }

    fn nothing_left(&self) -> Result<()> {
        ensure!(namespaces(&self.name).is_empty(), "left: {:?}", namespaces(&self.name));
        ensure!(!self.lab_dir().exists(), "the state folder is left");
        ensure!(
            processes_of(&self.lab_dir())?.is_empty(),
            "left: {:?}",
            processes_of(&self.lab_dir())?
        );
        Ok(())
    }

    fn take_down(&self) -> Result<()> {
        let mut down = Command::new(binary::find("tombolo")?);
        down.args(["lab", "--lab-dir"]).arg(self.lab_dir()).arg("down");
        let done = down.output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = self.take_down();
    }
}

/// Processes whose command line names a folder.
fn processes_of(dir: &Path) -> Result<Vec<String>> {
    let text = dir.display().to_string();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if pid.parse::<u32>().is_ok() && pid != own && line.contains(&text) {
            found.push(line.replace('\0', " "));
        }
    }
    Ok(found)
}

/// The whole walk: every step asserted before and after.
#[test]
fn the_demo_is_as_announced() -> Result<()> {
    let mut demo = Running::start("demo", &[])?;
    let status = demo.wait(Duration::from_secs(180))?;
    ensure!(status.success(), "{status}:\n{}", demo.output());
    let output = demo.output();
    ensure!(
        output.contains("were as announced") && !output.contains('✗'),
        "{output}"
    );
    demo.nothing_left()
}

/// Ctrl-C in the middle.
#[test]
fn an_interrupted_demo_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut demo = Running::start(if signal == Signal::SIGINT { "int" } else { "term" }, &[])?;
        demo.until("A peering has two halves")?;
        ensure!(!namespaces(&demo.name).is_empty(), "the lab is up");
        demo.signal(signal)?;
        let status = demo.wait(Duration::from_secs(20))?;
        ensure!(
            status.code() == Some(128 + signal as i32),
            "{status}:\n{}",
            demo.output()
        );
        demo.nothing_left()?;
    }
    Ok(())
}

/// `kill -9` in the middle: the processes end with it, `down` removes the rest.
#[test]
fn a_killed_demo_is_taken_down_later() -> Result<()> {
    let mut demo = Running::start("killed", &[])?;
    demo.until("A peering has two halves")?;
    demo.signal(Signal::SIGKILL)?;
    demo.wait(Duration::from_secs(5))?;
    let start = Instant::now();
    while !processes_of(&demo.lab_dir())?.is_empty() {
        let left = processes_of(&demo.lab_dir())?;
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "processes outlive the demo: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    demo.take_down().context("down")?;
    demo.nothing_left()
}
