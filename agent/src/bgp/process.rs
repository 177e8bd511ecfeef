//! A running BIRD, whoever started it: its log lines, its end, and signals where the agent may send them.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Longest line of BIRD's log that is read as one, bytes.
pub(super) const MAX_LINE: u64 = 4096;
/// Lines that wait for the agent. More are lost: BIRD must not wait for its log.
pub(super) const MAX_WAITING_LINES: usize = 256;

/// What a running BIRD reports.
#[derive(Debug)]
pub(super) enum Event {
    /// A line of its log.
    Log(String),
    /// It ended: how.
    Ended(String),
}

/// A running BIRD. A child that is dropped is told to end.
#[derive(Debug)]
pub(super) struct Process {
    events: mpsc::Receiver<Event>,
    /// Of a child only: the agent has no right to signal a service.
    pid: Option<SharedPid>,
}

impl Process {
    pub(super) const fn new(events: mpsc::Receiver<Event>, pid: Option<SharedPid>) -> Self {
        Self { events, pid }
    }

    /// What it reports next. The last event is [`Event::Ended`].
    pub(super) async fn next(&mut self) -> Event {
        let event = self.events.recv().await;
        event.unwrap_or_else(|| Event::Ended("its log was closed".into()))
    }

    /// Signals a child. Returns false for a service. SIGTERM is an orderly end: sessions are closed with a Cease.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = &self.pid else { return false };
        if let Some(pid) = *pid.lock() {
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

/// A child's process ID; none once it was waited for, because the number may then be another's.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPid(Arc<Mutex<Option<Pid>>>);

impl SharedPid {
    /// Nothing can panic while it is held.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of the log as text on one line.
pub(super) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}
