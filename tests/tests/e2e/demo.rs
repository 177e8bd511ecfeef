//! The demo as a test. However the demo ends, it must remove everything that it created.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tombolo_lab::state::dir_of;
use tombolo_lab::{Topology, binary};
use tombolo_tests::live::{hub_spoke, namespaces, require_root};

/// A running process of `tombolo lab`, in a process group of its own. Its output is collected.
struct Running {
    child: Child,
    name: String,
    dir: tempfile::TempDir,
}

impl Running {
    /// Starts `tombolo lab demo`.
    fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_with(name, &[&["demo"], arguments].concat(), &[])
    }

    fn start_with(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        require_root();
        let dir = tempfile::tempdir()?;
        let topology = hub_spoke(name);
        let child = spawn(&topology, dir.path(), arguments, environment)?;
        Ok(Self {
            child,
            name: topology.name,
            dir,
        })
    }

    /// Starts another command in the same folder, where it finds the leftovers of the previous command.
    fn again(&mut self, arguments: &[&str]) -> Result<()> {
        let mut topology = hub_spoke("");
        topology.name.clone_from(&self.name);
        self.child = spawn(&topology, self.dir.path(), arguments, &[])?;
        Ok(())
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    fn lab_dir(&self) -> PathBuf {
        dir_of(None, &self.name)
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

    /// Waits until the output of the command contains a text.
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

    /// Sends a signal to the whole process group of the command, as a terminal does for Ctrl-C.
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(killpg(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
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

/// Runs a command of `tombolo lab` on the topology of this test.
fn spawn(topology: &Topology, dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Child> {
    let file = dir.join("topology.yaml");
    std::fs::write(&file, topology.to_text()?)?;
    let (verb, rest) = arguments.split_first().context("no command")?;
    let output = std::fs::File::create(dir.join("output"))?;
    let child = Command::new(binary::find("tombolo")?)
        // The state folder has the lab's usual path, so that this run finds and replaces the leftovers of an aborted
        // run.
        .args(["lab", "--lab-dir"])
        .arg(dir_of(None, &topology.name))
        .arg(verb)
        .arg(&file)
        .args(rest)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()?;
    Ok(child)
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // A failed test may leave a lab; errors do not matter here, because the next run replaces it.
        let _ = self.take_down();
    }
}

/// The processes whose command line contains the path of a folder.
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

/// The demo runs to its end, with all its checks, and leaves nothing behind.
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

/// After SIGINT (Ctrl-C) or SIGTERM during the demo, and the same signal again during its clean-up, nothing of the lab
/// is left.
#[test]
fn an_interrupted_demo_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut demo = Running::start(if signal == Signal::SIGINT { "int" } else { "term" }, &[])?;
        demo.until("A peering has two halves")?;
        ensure!(!namespaces(&demo.name).is_empty(), "the lab is up");
        demo.signal(signal)?;
        // The second signal must arrive during the clean-up, which takes longer than this pause.
        std::thread::sleep(Duration::from_millis(200));
        demo.signal(signal)?;
        let status = demo.wait(Duration::from_secs(20))?;
        ensure!(
            status.code() == Some(128 + signal as i32),
            "{status}:\n{}",
            demo.output()
        );
        ensure!(
            demo.output().contains("interrupted: everything was taken down"),
            "{}",
            demo.output()
        );
        demo.nothing_left()?;
    }
    Ok(())
}

/// Returns a value for `PATH` with which `ip` is a script: it runs the shell command `first`, and then the real `ip`.
/// Also returns the folder of the script, which must exist while the value is used.
fn ip_that(first: &str) -> Result<(tempfile::TempDir, String)> {
    let dir = tempfile::tempdir()?;
    let real = Command::new("sh").args(["-c", "command -v ip"]).output()?;
    ensure!(real.status.success(), "there is no 'ip'");
    let real = String::from_utf8(real.stdout)?;
    let fake = dir.path().join("ip");
    std::fs::write(&fake, format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", real.trim()))?;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH")?);
    Ok((dir, path))
}

/// A Ctrl-C that also makes a helper program fail is reported as an interrupt, and not as an error of the helper.
#[test]
fn an_interrupt_that_fails_a_helper_is_an_interrupt() -> Result<()> {
    let interrupted = "case \"$*\" in *'link set lo up') kill -INT $PPID; exit 130;; esac";
    let (_dir, path) = ip_that(interrupted)?;
    let mut lab = Running::start_with("hit", &["demo"], &[("PATH", &path)])?;
    let status = lab.wait(Duration::from_secs(30))?;
    ensure!(status.code() == Some(130), "{status}:\n{}", lab.output());
    ensure!(
        lab.output().contains("interrupted: everything was taken down"),
        "{}",
        lab.output()
    );
    lab.nothing_left()
}

/// If the demo cannot remove a part of the lab, it reports this, and does not claim that everything was removed.
#[test]
fn an_interrupted_lab_that_cannot_be_removed_says_so() -> Result<()> {
    // With this `ip` program the lab can be created, but the lab's namespaces cannot be deleted.
    let (_dir, path) = ip_that("[ \"$1 $2\" = 'netns del' ] && exit 1")?;
    let mut lab = Running::start_with("stuck", &["demo"], &[("PATH", &path)])?;
    let start = Instant::now();
    while namespaces(&lab.name).len() < 3 {
        ensure!(start.elapsed() < Duration::from_secs(20), "{}", lab.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.signal(Signal::SIGINT)?;
    let status = lab.wait(Duration::from_secs(30))?;
    let output = lab.output();
    ensure!(status.code() == Some(130), "{status}:\n{output}");
    ensure!(
        output.contains("NOT everything was taken down") && output.contains("netns del"),
        "{output}"
    );
    ensure!(
        output.contains(&format!("down {}", lab.name)),
        "what to do next: {output}"
    );
    lab.take_down().context("down")?;
    lab.nothing_left()
}

/// After `kill -9` of the demo, the lab's watcher process takes the lab down. The next lab starts normally, whether the
/// watcher has finished or not.
#[test]
fn a_killed_demo_leaves_nothing() -> Result<()> {
    let mut demo = Running::start("killed", &[])?;
    demo.until("A peering has two halves")?;
    demo.signal(Signal::SIGKILL)?;
    demo.wait(Duration::from_secs(5))?;
    let start = Instant::now();
    while let Err(left) = demo.nothing_left() {
        ensure!(start.elapsed() < Duration::from_secs(20), "{left}:\n{}", demo.output());
        std::thread::sleep(Duration::from_millis(50));
    }

    demo.again(&["demo"])?;
    demo.until("A peering has two halves")?;
    demo.signal(Signal::SIGKILL)?;
    demo.wait(Duration::from_secs(5))?;
    demo.again(&["up", "--replace"])?;
    let status = demo.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "{status}:\n{}", demo.output());

    // The lab of `up` must stay. Only the watcher of the killed demo could take it down by mistake, so the test waits
    // until that watcher has ended, and then checks that the lab still exists.
    let start = Instant::now();
    while processes_of(&demo.lab_dir())?
        .iter()
        .any(|line| line.contains(" watch "))
    {
        ensure!(start.elapsed() < Duration::from_secs(20), "the watcher does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(!namespaces(&demo.name).is_empty(), "the lab did not stay up");
    demo.again(&["demo"])?;
    demo.until("A peering has two halves")?;
    demo.signal(Signal::SIGINT)?;
    demo.wait(Duration::from_secs(20))?;
    demo.nothing_left()
}
