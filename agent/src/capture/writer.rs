//! The thread of a capture: takes packets from the rings of all lanes, and writes them to a file or a stream.

use super::files::CaptureFiles;
use super::pcapng::Blocks;
use super::ring::RingReader;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc};
use tombolo_proto::capture::{CaptureError, CaptureReport, CaptureState, CaptureStop, STREAM_CHUNK, STREAM_WINDOW};
use uuid::Uuid;

/// Wait of the thread while the rings are empty. A lane at 1 Gbit/s fills its ring in 8 ms.
const IDLE_WAIT: Duration = Duration::from_millis(4);

/// Wait for the controller to read a live capture.
const STREAM_WAIT: Duration = Duration::from_millis(2);

/// Time that a live capture has after its end to send the packets that it has.
const STREAM_GRACE: Duration = Duration::from_secs(2);

/// Largest number of packets that are taken from one ring before the next ring.
const MAX_TURN: usize = 1024;

/// Number of bytes from which on blocks are written.
const FLUSH_LENGTH: usize = 64 << 10;

/// Number of bytes for which room is made in the directory at a time.
const ROOM: u64 = 1 << 20;

/// Time between two reports of a capture in progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a live capture for the controller.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamData {
    /// The capture.
    pub id: Uuid,
    /// The next bytes.
    pub data: Vec<u8>,
    /// Whether no more bytes follow.
    pub end: bool,
}

/// What the thread of a capture shares with the rest of the agent.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    /// Whether nobody can take the bytes of a stream any more.
    is_abandoned: AtomicBool,
    /// Number of bytes of the stream that the controller has passed on.
    read: AtomicU64,
    /// Number of copies that found no room in the rings.
    pub(super) lost: Arc<AtomicU64>,
    report: Mutex<CaptureReport>,
    /// Whether the report has changed since it was taken.
    is_new: AtomicBool,
}

impl Shared {
    /// Lets the capture end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets a live capture end at once, without the packets that it has.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Whether the capture has ended, and its last report was taken.
    pub fn is_over(&self) -> bool {
        self.report().is_final() && !self.is_new.load(Ordering::Acquire)
    }

    /// Notes how many bytes of the stream the controller has passed on in all.
    pub fn read(&self, bytes: u64) {
        self.read.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Replaces the report.
    pub fn set(&self, report: CaptureReport) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        self.is_new.store(true, Ordering::Release);
    }

    /// Lets [`take`](Self::take) return the report, also if it has not changed.
    pub fn renew(&self) {
        self.is_new.store(true, Ordering::Release);
    }

    /// The report, if it has changed since the last call.
    pub fn take(&self) -> Option<CaptureReport> {
        self.is_new.swap(false, Ordering::Acquire).then(|| self.report())
    }

    /// The present report.
    pub fn report(&self) -> CaptureReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where the packets go.
pub enum Output {
    /// A file, which the directory has as open.
    File(Arc<CaptureFiles>, PathBuf, File),
    /// The queue to the control stream.
    Stream(mpsc::Sender<StreamData>),
}

/// The state of the thread.
pub struct Worker {
    /// The capture.
    pub id: Uuid,
    /// What others see and set.
    pub shared: Arc<Shared>,
    /// The rings of all lanes.
    pub rings: Vec<RingReader>,
    /// The file's beginning, and later its next blocks.
    pub blocks: Blocks,
    /// Where the blocks go.
    pub output: Output,
    /// Largest number of bytes of the file or stream.
    pub total: u64,
    /// Longest time of the capture.
    pub time: Duration,
    /// Notified when the report has changed.
    pub changed: Arc<Notify>,
}

/// Counters of a capture in progress.
struct Progress {
    end: Instant,
    /// The present report.
    report: CaptureReport,
    /// Room in the directory that was made and not used yet.
    room: u64,
}

/// The result of a turn over all rings.
#[derive(PartialEq, Eq)]
enum Turn {
    Idle,
    Busy,
    /// The next packet would exceed the largest length.
    Full,
}

impl Worker {
    /// Captures until the end. Returns when everything is written.
    pub fn run(mut self) {
        let file = match &self.output {
            Output::File(_, path, _) => Some(path.display().to_string()),
            Output::Stream(_) => None,
        };
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut progress = Progress {
            end: Instant::now() + self.time,
            report: CaptureReport {
                state: CaptureState::Running,
                started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
                file,
                ..CaptureReport::default()
            },
            room: 0,
        };
        self.publish(&mut progress);
        match self.capture(&mut progress) {
            Ok(reason) => {
                progress.report.state = CaptureState::Stopped;
                progress.report.stop_reason = Some(reason);
            }
            Err(e) => {
                progress.report.state = CaptureState::Error;
                progress.report.error = Some(CaptureError::LocalFileFailed);
                progress.report.message = Some(format!("{e:#}"));
            }
        }
        match &self.output {
            Output::File(files, path, _) => files.close(path),
            Output::Stream(_) => {
                self.send(Vec::new(), true, &mut progress);
            }
        }
        tracing::info!(
            capture = %self.id, packets = progress.report.packets, reason = ?progress.report.stop_reason, "capture ended"
        );
        self.publish(&mut progress);
    }

    fn publish(&self, progress: &mut Progress) {
        progress.report.lost = self.shared.lost.load(Ordering::Relaxed);
        self.shared.set(progress.report.clone());
        self.changed.notify_one();
    }

    fn capture(&mut self, progress: &mut Progress) -> Result<CaptureStop> {
        let reserve = self.blocks.end_length();
        if (self.blocks.len() + reserve) as u64 > self.total {
            // Not even the beginning of a file fits.
            self.blocks.truncate(0);
            return Ok(CaptureStop::TotalBytesExceeded);
        }
        self.flush(progress)?;
        let mut packet = Vec::new();
        let mut report_at = Instant::now() + REPORT_INTERVAL;
        let reason = loop {
            let (is_stopped, now) = (self.shared.stop.load(Ordering::Relaxed), Instant::now());
            let turn = self.turn(&mut packet, progress)?;
            if turn != Turn::Busy || self.blocks.len() >= FLUSH_LENGTH {
                self.flush(progress)?;
            }
            if turn == Turn::Full {
                break CaptureStop::TotalBytesExceeded;
            } else if is_stopped {
                break CaptureStop::Stopped;
            } else if now >= progress.end {
                break CaptureStop::TimeExceeded;
            }
            if now >= report_at {
                report_at = now + REPORT_INTERVAL;
                self.publish(progress);
            }
            if turn == Turn::Idle {
                std::thread::sleep(IDLE_WAIT);
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let lost = self.shared.lost.load(Ordering::Relaxed);
        self.blocks
            .end(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), lost)?;
        self.flush(progress)?;
        Ok(reason)
    }

    /// Takes packets from all rings.
    fn turn(&mut self, packet: &mut Vec<u8>, progress: &mut Progress) -> Result<Turn> {
        let reserve = self.blocks.end_length();
        let mut turn = Turn::Idle;
        for ring in &mut self.rings {
            for _ in 0..MAX_TURN {
                let Some(record) = ring.pop(packet) else { break };
                let before = self.blocks.len();
                self.blocks.add(&record, packet)?;
                if progress.report.bytes + (self.blocks.len() + reserve) as u64 > self.total {
                    self.blocks.truncate(before);
                    return Ok(Turn::Full);
                }
                progress.report.packets += 1;
                turn = Turn::Busy;
            }
        }
        Ok(turn)
    }

    /// Writes the blocks that are there.
    fn flush(&mut self, progress: &mut Progress) -> Result<()> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let bytes = self.blocks.take();
        let length = bytes.len() as u64;
        match &mut self.output {
            Output::File(files, path, file) => {
                if progress.room < length {
                    let more = ROOM.max(length);
                    files.make_room(more)?;
                    progress.room = more;
                }
                progress.room -= length;
                file.write_all(&bytes)
                    .with_context(|| format!("writing {}", path.display()))?;
            }
            Output::Stream(_) => {
                if !self.send(bytes, false, progress) {
                    return Ok(());
                }
            }
        }
        progress.report.bytes += length;
        Ok(())
    }

    /// Sends bytes of a live capture. Waits while the controller has not passed on enough of the earlier ones; meanwhile the
    /// rings fill, and the lanes count what they lose. Returns false if nobody takes the bytes at the end of the capture.
    fn send(&self, bytes: Vec<u8>, end: bool, progress: &mut Progress) -> bool {
        let Output::Stream(queue) = &self.output else {
            return false;
        };
        let mut sent = progress.report.bytes;
        let mut give_up = None;
        let chunks = bytes.chunks(STREAM_CHUNK).map(<[u8]>::to_vec);
        let last = end.then(Vec::new);
        for data in chunks.chain(last) {
            let length = data.len() as u64;
            let mut message = Some(StreamData { id: self.id, end, data });
            loop {
                let waiting = sent.saturating_sub(self.shared.read.load(Ordering::Relaxed));
                if waiting + length <= STREAM_WINDOW as u64
                    && let Some(ready) = message.take()
                {
                    match queue.try_send(ready) {
                        Ok(()) => break,
                        Err(mpsc::error::TrySendError::Full(ready)) => message = Some(ready),
                        Err(mpsc::error::TrySendError::Closed(_)) => return false,
                    }
                }
                let now = Instant::now();
                if self.shared.stop.load(Ordering::Relaxed) || now >= progress.end {
                    let until = *give_up.get_or_insert(now + STREAM_GRACE);
                    if now >= until || self.shared.is_abandoned.load(Ordering::Relaxed) {
                        return false;
                    }
                }
                std::thread::sleep(STREAM_WAIT);
            }
            sent += length;
        }
        true
    }
}
