//! A watcher process that takes a lab down if the program that made it was killed, crashed, or ran out of memory.
//!
//! The watcher reads from a pipe. The program writes one byte to the pipe when it has taken its lab down, or leaves it
//! up on purpose. If the pipe is closed without this byte, the program has died.

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

/// Name of the hidden command `tombolo lab --lab-dir DIR watch ID`.
pub const COMMAND: &str = "watch";
/// The byte that dismisses the watcher.
const DONE: &[u8] = b"d";
/// Longest wait for the lock of the lab's state folder. If a program holds the lock longer, it has most likely brought
/// up a later lab in this folder. That lab has a watcher of its own, so this watcher gives up.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the watcher waits for the helper programs of the dead program to end. Until their end they may still
/// create a namespace or device.
const HELPER_GRACE: Duration = Duration::from_millis(300);

/// The watcher process of one lab. Dropping this value without [`Self::dismiss`] makes the watcher take the lab down.
#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    /// Starts a watcher of the lab with the state folder `dir`. `id` is [`State::id`](crate::state::State::id) of the
    /// lab: the watcher leaves a lab with another id alone. The watcher writes its messages to the standard error of
    /// this program. Returns `None` if the program `tombolo` does not exist; this is no error, because the lab's own
    /// tests run without that program.
    ///
    /// # Errors
    /// The process cannot be started.
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
            // The watcher is in a process group of its own, because Ctrl-C and the end of the terminal must not end it
            // before the lab is down.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Some(Self(child)))
    }

    /// Ends the watcher without taking the lab down. Callers do so when the lab has been removed or stays up on
    /// purpose. Blocks until the watcher's process has ended. A watcher that has ended before is no error.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // Writing fails only if the watcher has ended already, so an error is ignored.
            let _ = pipe.write_all(DONE);
        }
        // Reaps the child. Its exit status says nothing that matters here.
        let _ = self.0.wait();
    }
}

/// Runs the watcher. Waits for the end of standard input, and then takes down the lab with the state folder `dir`, and
/// removes the folder. If the folder has no record, only the folder is removed. A byte on standard input ends the
/// watcher without an action. Nothing is done either if the folder does not exist, or if the lab in it has another id
/// than `id`.
///
/// Root is needed. The wait blocks the thread. From the call on, the whole process ignores SIGINT, SIGTERM and SIGHUP.
///
/// # Errors
/// The folder cannot be opened, as for [`StateDir::open`]; another program holds the lock of the lab for longer than
/// ten seconds; the record cannot be read; or a part of the lab could not be removed. In the last case the record
/// stays.
///
/// # Panics
/// Outside of a Tokio runtime with I/O and time enabled.
pub async fn watch(dir: &Path, id: &str) -> Result<()> {
    // A signal with a handler does not end the process. The handlers do nothing else.
    let _ignored = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let mut byte = [0];
    if std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) || !dir.exists() {
        return Ok(());
    }
    let dir = StateDir::open_within(dir, LOCK_TIMEOUT).await?;
    tokio::time::sleep(HELPER_GRACE).await;
    let Some(state) = dir.load()? else {
        // The folder has no record: the program died before it had made any host or process of the lab.
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
