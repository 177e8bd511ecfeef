//! Writes the flow logs of an agent to disk (N14, D38): a thread takes the events of all lanes, and appends one record a
//! minute for each log and NIC. Without a flow log there is no thread.
//!
//! * `batch`: the events of one batch. `record`: Azure's layouts and names. `files`: the files. `tail`: live streams of the
//!   same tuples.

pub mod batch;
pub mod files;
pub mod record;
pub mod tail;

use crate::config::FlowLogSettings;
use anyhow::{Context, Result};
use batch::Batch;
use files::LogFiles;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tail::{Tap, Taps};
use tombolo_engine::security::{FlowEvent, Flows};
use tombolo_proto::config::{AgentConfig, FlowLogs};

/// Time between two looks at the events of the lanes. A lane's queue holds the events of 10,000 new flows a second for more
/// than three times as long.
const DRAIN_INTERVAL: Duration = Duration::from_millis(250);

/// Length of a batch's tuples in bytes, from which on the batch is written before its time. It bounds the memory that a
/// batch takes.
const MAX_BATCH: usize = 4 << 20;

/// Longest time for which an event of a network interface without a log waits for the logs of a new configuration. Lanes may
/// have the configuration before the writer, but not by more than moments.
const MAX_EARLY_TIME: Duration = Duration::from_secs(5);

/// Largest number of events that wait for the logs of a new configuration. They take 8 MB.
const MAX_EARLY: usize = 65_536;

/// The numbers that metrics show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLogStats {
    /// Tuples that were written.
    pub tuples: u64,
    /// Events that were lost because too many waited.
    pub lost: u64,
    /// Tuples that were not written, because the disk or the directory was full, or the file could not be written.
    pub not_written: u64,
    /// The sum of the files' lengths, in bytes.
    pub bytes: u64,
}

/// Counters of the writer's thread.
#[derive(Debug, Default)]
struct Counters {
    tuples: AtomicU64,
    lost: AtomicU64,
    not_written: AtomicU64,
    bytes: AtomicU64,
}

enum Command {
    /// The logs of a new configuration. `None`: there is none.
    SetLogs(Option<Arc<FlowLogs>>),
    /// Copy tuples into a tail.
    Tail(Tap),
    /// Write everything, and end.
    Stop,
}

/// Handle of the thread that writes flow logs.
#[derive(Debug)]
pub struct FlowLogWriter {
    directory: PathBuf,
    settings: FlowLogSettings,
    flows: Arc<Flows>,
    counters: Arc<Counters>,
    thread: Mutex<Option<(Sender<Command>, JoinHandle<()>)>>,
}

impl FlowLogWriter {
    /// A writer into `directory`. It starts its thread with the first flow log.
    #[must_use]
    pub fn new(directory: PathBuf, settings: FlowLogSettings, flows: Arc<Flows>) -> Self {
        Self {
            directory,
            settings,
            flows,
            counters: Arc::default(),
            thread: Mutex::default(),
        }
    }

    /// Takes the flow logs of a configuration that is in force from now on. Returns at once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn set_config(&self, config: &AgentConfig) -> Result<()> {
        let logs = config.security.as_ref().and_then(|security| security.flow_logs.clone());
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if logs.is_none() && thread.is_none() {
            return Ok(());
        }
        self.send(&mut thread, Command::SetLogs(logs.map(Arc::new)))
    }

    /// Copies the tuples of the tap's logs into the tap from now on, until its other end is dropped. Returns at once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn tail(&self, tap: Tap) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut thread, Command::Tail(tap))
    }

    fn send(&self, thread: &mut Option<(Sender<Command>, JoinHandle<()>)>, command: Command) -> Result<()> {
        let sender = match &*thread {
            Some((sender, _)) => sender,
            None => &thread.insert(self.start()?).0,
        };
        // The thread ends only with `stop`.
        let _ = sender.send(command);
        Ok(())
    }

    fn start(&self) -> Result<(Sender<Command>, JoinHandle<()>)> {
        let (sender, commands) = channel();
        let worker = Worker {
            directory: self.directory.clone(),
            interval: Duration::from_secs(self.settings.interval_seconds.into()),
            limit: u64::from(self.settings.max_megabytes) << 20,
            flows: self.flows.clone(),
            counters: self.counters.clone(),
            batch: None,
            early: VecDeque::new(),
            files: None,
            has_failed: false,
            taps: Taps::default(),
        };
        let thread = std::thread::Builder::new()
            .name("flow-log".into())
            .spawn(move || worker.run(&commands))
            .context("starting the thread of the flow logs")?;
        Ok((sender, thread))
    }

    /// Writes a last record for all flows, and ends the thread. To be called when the lanes have ended. Blocks until the
    /// files are written.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, thread)) = thread {
            // If the thread has panicked, nothing is left to write.
            let _ = sender.send(Command::Stop);
            let _ = thread.join();
        }
    }

    /// The numbers that metrics show.
    #[must_use]
    pub fn stats(&self) -> FlowLogStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FlowLogStats {
            tuples: of(&self.counters.tuples),
            lost: self.flows.log().lost() + of(&self.counters.lost),
            not_written: of(&self.counters.not_written),
            bytes: of(&self.counters.bytes),
        }
    }
}

/// The state of the thread.
struct Worker {
    directory: PathBuf,
    interval: Duration,
    limit: u64,
    flows: Arc<Flows>,
    counters: Arc<Counters>,
    /// `None`: there is no flow log.
    batch: Option<(Arc<FlowLogs>, Batch)>,
    /// Events of network interfaces without a log in the present configuration, oldest first.
    early: VecDeque<FlowEvent>,
    /// `None`: the directory was not opened yet.
    files: Option<LogFiles>,
    /// Whether the last batch could not be written, so that the reason is not logged again.
    has_failed: bool,
    taps: Taps,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut due = self.next_batch();
        loop {
            let command = match &self.batch {
                Some(_) => commands.recv_timeout(DRAIN_INTERVAL),
                // Nothing is to be done, so the thread sleeps.
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            self.drain();
            match command {
                Ok(Command::SetLogs(logs)) => self.set_logs(logs),
                Ok(Command::Tail(tap)) => self.taps.add(tap),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.log_all();
                    return self.write(SystemTime::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let is_full = self.is_full();
            let now = SystemTime::now();
            // A clock that was set back must not delay the next batch by more than an interval.
            let is_set_back = due.duration_since(now).is_ok_and(|left| left > self.interval);
            if is_full || now >= due || is_set_back {
                self.write(now);
                due = self.next_batch();
            }
        }
    }

    /// Takes the logs of a new configuration. Lanes may have sent events of its network interfaces already.
    fn set_logs(&mut self, logs: Option<Arc<FlowLogs>>) {
        self.write(SystemTime::now());
        let early = std::mem::take(&mut self.early);
        self.batch = logs.map(|logs| (logs.clone(), Batch::new(logs)));
        let clock = Clock::now();
        for event in early {
            // Events of network interfaces without a log end here.
            self.add(&event, &clock);
        }
    }

    /// Adds an event to the batch. Returns false if its network interface has no log.
    fn add(&mut self, event: &FlowEvent, clock: &Clock) -> bool {
        let (log, taps) = (self.flows.log(), &mut self.taps);
        let Some((_, batch)) = &mut self.batch else {
            return false;
        };
        let rule = |number| log.rule(number);
        batch.add(event, clock.time(event), rule, |added| taps.offer(added))
    }

    /// The end of the present batch: a multiple of the interval since 1970. A batch has two hours only if the interval is no
    /// divisor of an hour; its record is then in the file of the later one.
    fn next_batch(&self) -> SystemTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let interval = self.interval.as_secs().max(1);
        UNIX_EPOCH + Duration::from_secs((since.as_secs() / interval + 1) * interval)
    }

    /// Takes the events of all lanes. Those of network interfaces without a log wait for the next configuration.
    fn drain(&mut self) {
        self.taps.remove_abandoned();
        let clock = Clock::now();
        let flows = self.flows.clone();
        flows.log().drain(|event| {
            if self.add(&event, &clock) {
                return;
            }
            if self.early.len() < MAX_EARLY {
                self.early.push_back(event);
            } else {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
            }
        });
        // No configuration with a log of these has come.
        let is_over = |event: &FlowEvent| clock.instant.saturating_duration_since(event.at) > MAX_EARLY_TIME;
        self.early.retain(|event| !is_over(event));
    }

    /// Adds a last record of all flows. Writes batches that become full meanwhile.
    fn log_all(&mut self) {
        if self.batch.is_none() {
            return;
        }
        let clock = Clock::now();
        let flows = self.flows.clone();
        flows.log_all(clock.instant, |event| self.add_and_write(&event, &clock));
    }

    /// Adds an event, and writes the batch if it is full.
    fn add_and_write(&mut self, event: &FlowEvent, clock: &Clock) {
        self.add(event, clock);
        if self.is_full() {
            self.write(SystemTime::now());
        }
    }

    fn is_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|(_, batch)| batch.bytes() >= MAX_BATCH)
    }

    /// Writes the batch, and begins the next one.
    fn write(&mut self, now: SystemTime) {
        self.flows.log().begin_batch();
        let Some((logs, batch)) = &mut self.batch else { return };
        let batch = std::mem::replace(batch, Batch::new(logs.clone()));
        if batch.tuples() == 0 {
            return;
        }
        match self.append(&batch, now) {
            Ok(()) => self.has_failed = false,
            Err(e) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(
                        error = %format!("{e:#}"),
                        "flow log not written; later failures are counted in tombolo_flow_log_tuples_total"
                    );
                }
            }
        }
        let used = self.files.as_ref().map_or(0, LogFiles::used);
        self.counters.bytes.store(used, Ordering::Relaxed);
    }

    /// Writes the records of a batch, and counts their tuples.
    fn append(&mut self, batch: &Batch, now: SystemTime) -> Result<()> {
        let files = match &mut self.files {
            Some(files) => files,
            None => match LogFiles::open(&self.directory, self.limit) {
                Ok(files) => self.files.insert(files),
                Err(e) => {
                    self.counters.not_written.fetch_add(batch.tuples(), Ordering::Relaxed);
                    return Err(e);
                }
            },
        };
        let mut outcome = Ok(());
        for written in batch.records(now) {
            // A file that cannot be written must not stop the others.
            let counter = match files.append(&written.path, &written.record) {
                Ok(()) => &self.counters.tuples,
                Err(e) => {
                    outcome = Err(e);
                    &self.counters.not_written
                }
            };
            counter.fetch_add(written.tuples, Ordering::Relaxed);
        }
        outcome
    }
}

/// The same moment by two clocks.
struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            system: SystemTime::now(),
        }
    }

    /// The time of an event.
    fn time(&self, event: &FlowEvent) -> SystemTime {
        let ago = self.instant.saturating_duration_since(event.at);
        self.system.checked_sub(ago).unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests;
