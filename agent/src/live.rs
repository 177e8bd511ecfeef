//! Live streams of bytes from threads of the agent to the controller: packets of live captures, and records of flow logs
//! (D38, D42). A thread waits for its reader; the rest of the agent does not wait for the thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tombolo_proto::capture::{CaptureReport, STREAM_CHUNK};
use uuid::Uuid;

/// First wait before the next look whether there is room in the window. It doubles with each look.
const MIN_WAIT: Duration = Duration::from_millis(2);

/// Time that a stream has after its end to send the bytes that it has.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of a stream for the controller.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamData {
    /// The capture or tail.
    pub id: Uuid,
    /// The next bytes.
    pub data: Vec<u8>,
    /// Whether no more bytes follow.
    pub end: bool,
}

/// What the thread of a capture or tail shares with the rest of the agent.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    /// Whether nobody can take the bytes of a stream any more.
    is_abandoned: AtomicBool,
    /// Number of bytes of the stream that the controller has passed on.
    read: AtomicU64,
    /// Number of packets or records that found no room.
    pub lost: Arc<AtomicU64>,
    report: Mutex<CaptureReport>,
    /// Whether the report has changed since it was taken.
    is_new: AtomicBool,
}

impl Shared {
    /// Lets the thread end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the thread should end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Lets a stream end at once, without the bytes that it has.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Whether the thread has ended, and its last report was taken.
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

/// The sending end of a stream, which its thread has.
#[derive(Debug)]
pub struct StreamSender {
    /// The capture or tail.
    pub id: Uuid,
    /// What others see and set.
    pub shared: Arc<Shared>,
    /// The queue to the control stream, which all streams share.
    pub queue: mpsc::Sender<StreamData>,
    /// Largest number of bytes that the controller has not passed on yet.
    pub window: usize,
    /// Longest wait before the next look whether there is room, at least 2 ms.
    pub max_wait: Duration,
    /// Number of bytes that were sent.
    pub sent: u64,
}

impl StreamSender {
    /// Sends bytes. Waits while the controller has not passed on enough of the earlier ones. Returns false if nobody takes
    /// the bytes at the end of the stream, which is at `until` or when it is stopped.
    pub fn send(&mut self, bytes: &[u8], until: Option<Instant>) -> bool {
        let chunks = bytes.chunks(STREAM_CHUNK.min(self.window));
        chunks
            .map(<[u8]>::to_vec)
            .all(|chunk| self.send_one(chunk, false, until))
    }

    /// Sends the end of the stream, as [`send`](Self::send) sends bytes.
    pub fn send_end(&mut self, until: Option<Instant>) -> bool {
        self.send_one(Vec::new(), true, until)
    }

    fn send_one(&mut self, data: Vec<u8>, end: bool, until: Option<Instant>) -> bool {
        let length = data.len() as u64;
        let mut message = Some(StreamData { id: self.id, data, end });
        let (mut give_up, mut wait) = (None, MIN_WAIT);
        loop {
            let waiting = self.sent.saturating_sub(self.shared.read.load(Ordering::Relaxed));
            if waiting + length <= self.window as u64
                && let Some(ready) = message.take()
            {
                match self.queue.try_send(ready) {
                    Ok(()) => break,
                    Err(mpsc::error::TrySendError::Full(ready)) => message = Some(ready),
                    Err(mpsc::error::TrySendError::Closed(_)) => return false,
                }
            }
            let now = Instant::now();
            if self.shared.is_stopped() || until.is_some_and(|until| now >= until) {
                let last = *give_up.get_or_insert(now + GRACE);
                if now >= last || self.shared.is_abandoned.load(Ordering::Relaxed) {
                    return false;
                }
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(self.max_wait);
        }
        self.sent += length;
        true
    }
}
