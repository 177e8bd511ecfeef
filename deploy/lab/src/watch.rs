//! A small process beside a lab. It takes the lab down when the program that made it is gone without having done so:
//! killed, crashed, or out of memory.
//!
//! It holds the reading end of a pipe. The program says that all is well with one byte; when the pipe ends without it,
//! the program is gone, however that came.

use crate::binary;
use crate::lab::teardown;
use crate::state::StateDir;
use anyhow::{Context, Result};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The hidden command: `tombolo lab --lab-dir DIR watch ID`.
pub const COMMAND: &str = "watch";
/// All is well.
const DONE: &[u8] = b"d";
/// How long whoever else works on the lab may take. Longer, and it is a later lab, which looks after itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// A helper that the program had started may be about to make something.
const HELPERS_END: Duration = Duration::from_millis(300);

/// The watcher of one lab, seen from the program that made it.
#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    /// Starts one. None if the program `tombolo` is not there: the lab's own tests run without it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(dir: &Path, id: &str) -> Result<Option<Self>> {
        let Ok(program) = binary::find("tombolo") else {
            return Ok(None);
        };
        let child = Command::new(&program)
            .args(["lab", "--lab-dir"])
            .arg(dir)
            .args([COMMAND, id])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Neither Ctrl-C nor the end of the terminal is for it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Some(Self(child)))
    }

    /// The lab is gone, or is to stay.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // Nobody there to be told is as good.
            let _ = pipe.write_all(DONE);
        }
        let _ = self.0.wait();
    }
}

/// What the watcher does: waits, and takes down the lab in `dir` if it is still the one that is meant.
///
/// # Errors
/// What could not be removed.
pub async fn watch(dir: &Path, id: &str) -> Result<()> {
    // Caught and never looked at: only the pipe counts.
    let _ignored = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let mut byte = [0];
    if std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) || !dir.exists() {
        return Ok(());
    }
    let dir = StateDir::open_within(dir, PATIENCE).await?;
    tokio::time::sleep(HELPERS_END).await;
    let Some(state) = dir.load()? else {
        // It had not come further than that.
        return dir.remove();
    };
    if state.id != id {
        return Ok(());
    }
    let name = &state.topology.name;
    eprintln!("the program that made lab {name} is gone without having taken it down: doing it now");
    teardown::all(&*state.runtime.hosts(&state.topology, dir.path()), &state)?;
    dir.remove()?;
    eprintln!("lab {name} is gone");
    Ok(())
}
