//! Handle of a running BIRD, whether a child process or a service: its log, its end, and signals if it is a child.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Longest log line in bytes. A longer line is split; this bounds the memory that BIRD can make the agent use.
pub(super) const MAX_LINE: u64 = 4096;
/// Log lines that are queued for the supervisor. Further lines are dropped: BIRD must never block on its log.
pub(super) const MAX_WAITING_LINES: usize = 256;

/// An event of a running BIRD.
#[derive(Debug)]
pub(super) enum Event {
    /// BIRD wrote this log line.
    Log(String),
    /// BIRD ended; with its exit status, or the reason why that is unknown.
    Ended(String),
}

/// A running BIRD. Dropping the handle sends SIGTERM to a child.
#[derive(Debug)]
pub(super) struct Process {
    events: mpsc::Receiver<Event>,
    /// The process ID of a child. None for a service, which the agent may not signal.
    pid: Option<SharedPid>,
}

impl Process {
    pub(super) const fn new(events: mpsc::Receiver<Event>, pid: Option<SharedPid>) -> Self {
        Self { events, pid }
    }

    /// Waits for the next event. The last one is [`Event::Ended`]; further calls return it again. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let event = self.events.recv().await;
        event.unwrap_or_else(|| Event::Ended("its log was closed".into()))
    }

    /// Sends a signal to a child. Returns false for a service. On SIGTERM BIRD closes its sessions with a Cease.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = &self.pid else { return false };
        if let Some(pid) = *pid.lock() {
            // Fails only if the child has ended, which is what both signals in use ask for.
            let _ = kill(pid, signal);
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
    }
}

/// A child's process ID. None after the child was reaped, because the kernel may then reuse the ID for another process.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPid(Arc<Mutex<Option<Pid>>>);

impl SharedPid {
    /// Locks the ID. Holding the lock keeps the child from being reaped. A poisoned lock is used anyway: the ID is always valid.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log line as printable text: trimmed, without control characters, invalid UTF-8 replaced.
pub(super) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}
