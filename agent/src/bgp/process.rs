//! Handle of a running BIRD, which is a child process or a service: its log, its end, and signals to a child.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Longest log line in bytes. A longer line becomes several events. The limit bounds the memory that BIRD can make the
/// agent use.
pub(super) const MAX_LINE: u64 = 4096;
/// Largest number of log lines that wait for the supervisor. Further lines are dropped. If the reader of the log waited
/// for room instead, BIRD would block on its log.
pub(super) const MAX_WAITING_LINES: usize = 256;

/// An event of a running BIRD.
#[derive(Debug)]
pub(super) enum Event {
    /// BIRD wrote this log line.
    Log(String),
    /// BIRD has ended. The text is its exit status, or says why the status is unknown.
    Ended(String),
}

/// A running BIRD. Dropping the handle sends SIGTERM to a child; a service continues.
#[derive(Debug)]
pub(super) struct Process {
    events: mpsc::Receiver<Event>,
    /// The process ID of a child. None: BIRD is a service, which the agent may not signal.
    pid: Option<SharedPid>,
}

impl Process {
    /// The handle of a BIRD that has started. `events` has its log lines and its end; `pid` is the process ID of a
    /// child.
    pub(super) const fn new(events: mpsc::Receiver<Event>, pid: Option<SharedPid>) -> Self {
        Self { events, pid }
    }

    /// Waits for the next event. The last one is [`Event::Ended`], and further calls return that event again. Cancel
    /// safe.
    pub(super) async fn next(&mut self) -> Event {
        let event = self.events.recv().await;
        event.unwrap_or_else(|| Event::Ended("its log was closed".into()))
    }

    /// Sends a signal to a child, or does nothing if the child has ended. Returns false for a service, which gets no
    /// signal. On SIGTERM BIRD closes its sessions with a Cease.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = &self.pid else { return false };
        if let Some(pid) = *pid.lock() {
            // The call fails only if the child has ended. That is no error, because the agent sends only SIGTERM and
            // SIGKILL, which ask the child to end.
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

/// A child's process ID. None: the process has not started, or was reaped. A reaped process must not be signalled,
/// because the kernel may reuse its ID.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPid(Arc<Mutex<Option<Pid>>>);

impl SharedPid {
    /// Locks the ID. While the caller holds the lock, the child is not reaped. A poisoned lock is used nevertheless,
    /// because a panic cannot leave a wrong ID in it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a log line as printable text: trimmed, without control characters, and with invalid UTF-8 replaced.
pub(super) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}
