//! The thread of a capture: takes packets from the rings of all lanes, and writes them to a file or a stream.

use super::files::CaptureFiles;
use super::pcapng::Blocks;
use super::ring::RingReader;
use crate::live::{Shared, StreamSender};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tombolo_proto::capture::{CaptureError, CaptureReport, CaptureState, CaptureStop};
use uuid::Uuid;

/// Wait of the thread while the rings are empty. A lane at 1 Gbit/s fills its ring in 8 ms.
const IDLE_WAIT: Duration = Duration::from_millis(4);

/// Largest number of packets that are taken from one ring before the next ring.
const MAX_TURN: usize = 1024;

/// Number of bytes from which on blocks are written.
const FLUSH_LENGTH: usize = 64 << 10;

/// Number of bytes for which room is made in the directory at a time.
const ROOM: u64 = 1 << 20;

/// Time between two reports of a capture in progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the packets go.
pub enum Output {
    /// A file, which the directory has as open.
    File(Arc<CaptureFiles>, PathBuf, File),
    /// The control stream.
    Stream(StreamSender),
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
        match &mut self.output {
            Output::File(files, path, _) => files.close(path),
            Output::Stream(stream) => {
                stream.send_end(Some(progress.end));
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
            let (is_stopped, now) = (self.shared.is_stopped(), Instant::now());
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
            // While this waits, the rings fill, and the lanes count what they lose.
            Output::Stream(stream) => {
                if !stream.send(&bytes, Some(progress.end)) {
                    return Ok(());
                }
            }
        }
        progress.report.bytes += length;
        Ok(())
    }
}
