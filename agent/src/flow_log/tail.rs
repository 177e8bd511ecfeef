//! Tails of flow logs (D38): the writer of the logs copies each tuple, when it adds the tuple to its batch, into the rings of
//! the tails. The thread of a tail sends them to the controller. A tail changes nothing in the files, and if its reader is
//! slow, it loses records; neither the writer nor a lane waits.

use super::record;
use crate::live::StreamSender;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tombolo_engine::security::{FlowEvent, LoggedRule};
use tombolo_proto::capture::{CaptureReport, CaptureState, CaptureStop};
use tombolo_proto::config::FlowLog;
use tombolo_proto::flow_tail::{FlowRecord, TailEntry};
use tombolo_proto::id::ResourceId;

/// Number of records that wait for the thread of a tail. The writer has up to 10,000 at a time at 20,000 events a second. The
/// ring takes 2 MB.
const RING: usize = 10_240;

/// Wait of the thread of a tail while there is nothing to send, and the longest one while there is no room in the window. A
/// record is on its way within this time and the interval at which the writer takes events.
pub const IDLE_WAIT: Duration = Duration::from_millis(50);

/// Number of bytes that are sent at a time.
const FLUSH_LENGTH: usize = 64 << 10;

/// Time between two reports of a tail in progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a tail that the writer of the flow logs has.
pub struct Tap {
    /// The logs that are followed. Empty: all.
    logs: Vec<ResourceId>,
    ring: Producer<FlowRecord>,
    lost: Arc<AtomicU64>,
}

/// A tuple that was added to a batch.
#[derive(Debug, Clone, Copy)]
pub struct Added<'b> {
    /// The log.
    pub log: &'b FlowLog,
    /// The MAC address of the network interface.
    pub mac: &'b str,
    /// The rule that decided.
    pub rule: &'b LoggedRule,
    /// The event.
    pub event: &'b FlowEvent,
    /// Its time.
    pub at: SystemTime,
}

/// The two ends of a tail of these logs; empty means all. Records that find no room are counted in `lost`.
#[must_use]
pub fn tap(logs: Vec<ResourceId>, lost: Arc<AtomicU64>) -> (Tap, Consumer<FlowRecord>) {
    let (ring, records) = RingBuffer::new(RING);
    (Tap { logs, ring, lost }, records)
}

/// The tails that are followed at present.
#[derive(Default)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Adds a tail.
    pub fn add(&mut self, tap: Tap) {
        self.remove_abandoned();
        self.0.push(tap);
    }

    /// Removes the tails that have ended.
    pub fn remove_abandoned(&mut self) {
        self.0.retain(|tap| !tap.ring.is_abandoned());
    }

    /// Number of tails.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Copies a tuple into the tails of its log.
    pub fn offer(&mut self, added: &Added<'_>) {
        for tap in &mut self.0 {
            if !tap.logs.is_empty() && !tap.logs.contains(&added.log.id) {
                continue;
            }
            // A record costs two allocations, so none is made for a full ring.
            if tap.ring.is_full() || tap.ring.push(record_of(added)).is_err() {
                tap.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn record_of(added: &Added<'_>) -> FlowRecord {
    let Added { log, rule, event, .. } = added;
    let time = added.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ports = record::ports(event);
    let (there, back) = (event.forward, event.backward);
    FlowRecord {
        time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        log: log.id.clone(),
        format: log.format,
        nic: rule.nic.clone(),
        mac_address: added.mac.to_owned(),
        source: event.key.source,
        source_port: ports.0,
        destination: event.key.destination,
        destination_port: ports.1,
        protocol: event.key.protocol,
        direction: event.key.direction,
        state: record::state(event.kind),
        group: rule.rule.as_ref().map(|(group, _)| group.clone()),
        rule: rule.rule.as_ref().map(|(_, name)| record::shown_rule(Some(name))),
        encryption: record::encryption(log.format, event),
        packets_sent: there.packets.into(),
        bytes_sent: there.bytes.into(),
        packets_received: back.packets.into(),
        bytes_received: back.bytes.into(),
    }
}

/// The thread of a tail.
pub struct Worker {
    /// The stream to the controller.
    pub stream: StreamSender,
    /// The records of the writer.
    pub records: Consumer<FlowRecord>,
    /// Notified when the report has changed.
    pub changed: Arc<Notify>,
}

impl Worker {
    /// Sends records until the tail is stopped.
    pub fn run(mut self) {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut report = CaptureReport {
            state: CaptureState::Running,
            started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            ..CaptureReport::default()
        };
        self.publish(&report);
        let (mut lines, mut report_at) = (Vec::new(), Instant::now() + REPORT_INTERVAL);
        while !self.stream.shared.is_stopped() {
            lines.clear();
            self.take(&mut lines, &mut report);
            if lines.is_empty() {
                std::thread::sleep(IDLE_WAIT);
                continue;
            }
            if !self.stream.send(&lines, None) {
                break;
            }
            report.bytes = self.stream.sent;
            if Instant::now() >= report_at {
                report_at = Instant::now() + REPORT_INTERVAL;
                self.publish(&report);
            }
        }
        self.stream.send_end(None);
        report.state = CaptureState::Stopped;
        report.stop_reason = Some(CaptureStop::Stopped);
        tracing::info!(tail = %self.stream.id, records = report.packets, lost = report.lost, "tail of flow logs ended");
        self.publish(&report);
    }

    fn publish(&self, report: &CaptureReport) {
        self.stream.shared.set(report.clone());
        self.changed.notify_one();
    }

    /// Takes records, and the number of those that were lost since the last call, as lines.
    fn take(&mut self, lines: &mut Vec<u8>, report: &mut CaptureReport) {
        while lines.len() < FLUSH_LENGTH
            && let Ok(record) = self.records.pop()
        {
            report.packets += 1;
            line(lines, &TailEntry::Record(record));
        }
        let lost = self.stream.shared.lost.load(Ordering::Relaxed);
        if lost > report.lost {
            line(lines, &TailEntry::Dropped(lost - report.lost));
            report.lost = lost;
        }
    }
}

fn line(lines: &mut Vec<u8>, entry: &TailEntry) {
    // Serialization into memory cannot fail: an entry consists of numbers and texts.
    let _ = serde_json::to_writer(&mut *lines, entry);
    lines.push(b'\n');
}

#[cfg(test)]
mod tests;
