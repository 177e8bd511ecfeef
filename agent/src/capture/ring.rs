//! The ring by which a lane passes copies of packets to the thread that writes them. The lane allocates nothing and takes
//! no lock; a copy that finds no room is counted and lost.

use super::flow::Direction;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tombolo_engine::verdict::DropReason;

/// Length of the head of a record in the ring.
const HEAD: usize = 24;

/// What is known about a packet besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Time in nanoseconds of Unix time.
    pub at: u64,
    /// Number of bytes that the packet had.
    pub length: u32,
    /// The number of the interface in the file.
    pub interface: u8,
    /// Whether the packet came or went.
    pub direction: Direction,
    /// Why the packet was dropped. `None`: it was not.
    pub dropped: Option<DropReason>,
}

/// The end of a lane.
pub struct RingWriter {
    ring: Producer<u8>,
    lost: Arc<AtomicU64>,
}

/// The end of the thread that writes.
pub struct RingReader(Consumer<u8>);

/// A ring with room for `bytes` bytes. Copies that find no room are counted in `lost`.
#[must_use]
pub fn ring(bytes: usize, lost: Arc<AtomicU64>) -> (RingWriter, RingReader) {
    let (producer, consumer) = RingBuffer::new(bytes);
    (RingWriter { ring: producer, lost }, RingReader(consumer))
}

impl RingWriter {
    /// Whether nothing reads the ring any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }

    /// Appends a packet, whose bytes are `head` and then `body`, of which at most `most` bytes are kept.
    pub fn push(&mut self, record: &Record, [head, body]: [&[u8]; 2], most: usize) {
        let head = &head[..head.len().min(most)];
        let body = &body[..body.len().min(most - head.len())];
        let kept = head.len() + body.len();
        let Ok(mut chunk) = self.ring.write_chunk(HEAD + kept) else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (first, second) = chunk.as_mut_slices();
        let mut at = 0;
        for part in [&encode(record, kept)[..], head, body] {
            let (begin, rest) = part.split_at(part.len().min(first.len().saturating_sub(at)));
            if !begin.is_empty() {
                first[at..at + begin.len()].copy_from_slice(begin);
            }
            at += begin.len();
            if !rest.is_empty() {
                let from = at - first.len();
                second[from..from + rest.len()].copy_from_slice(rest);
            }
            at += rest.len();
        }
        chunk.commit_all();
    }
}

fn encode(record: &Record, kept: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&record.at.to_le_bytes());
    head[8..12].copy_from_slice(&record.length.to_le_bytes());
    // A packet has at most 64 KiB.
    head[12..16].copy_from_slice(&u32::try_from(kept).unwrap_or_default().to_le_bytes());
    head[16] = record.interface;
    head[17] = u8::from(record.direction == Direction::Out);
    let reason = record.dropped.map_or(0, |reason| reason as u16 + 1);
    head[18..20].copy_from_slice(&reason.to_le_bytes());
    head
}

impl RingReader {
    /// Replaces the contents of `packet` by the kept bytes of the oldest packet, which it removes. `None`: there is none.
    pub fn pop(&mut self, packet: &mut Vec<u8>) -> Option<Record> {
        let mut head = [0; HEAD];
        // A record is committed as a whole, so its bytes are there if its head is.
        let chunk = self.0.read_chunk(HEAD).ok()?;
        let (first, second) = chunk.as_slices();
        head[..first.len()].copy_from_slice(first);
        head[first.len()..].copy_from_slice(second);
        chunk.commit_all();
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let kept = usize::try_from(number(12)).unwrap_or_default();
        packet.clear();
        let chunk = self.0.read_chunk(kept).ok()?;
        let (first, second) = chunk.as_slices();
        packet.extend_from_slice(first);
        packet.extend_from_slice(second);
        chunk.commit_all();
        let reason = usize::from(u16::from_le_bytes([head[18], head[19]]));
        Some(Record {
            at: u64::from(number(0)) | u64::from(number(4)) << 32,
            length: number(8),
            interface: head[16],
            direction: if head[17] == 1 { Direction::Out } else { Direction::In },
            dropped: reason.checked_sub(1).and_then(|at| DropReason::ALL.get(at).copied()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: u64, dropped: Option<DropReason>) -> Record {
        Record {
            at,
            length: 1500,
            interface: 1,
            direction: Direction::Out,
            dropped,
        }
    }

    /// Packets arrive whole and in order, also across the end of the ring; those that find no room are counted.
    #[test]
    fn d42_the_ring_keeps_order_and_counts_what_is_lost() {
        let lost = Arc::new(AtomicU64::new(0));
        let (mut writer, mut reader) = ring(1000, lost.clone());
        let mut packet = Vec::new();
        let (mut next, mut read) = (0u64, 0u64);
        for turn in 0..200u64 {
            for _ in 0..turn % 5 + 1 {
                let before = lost.load(Ordering::Relaxed);
                let body = [next as u8; 150];
                writer.push(&record(next, Some(DropReason::NoRoute)), [&[7; 20], &body], 100);
                next += u64::from(lost.load(Ordering::Relaxed) == before);
            }
            for _ in 0..turn % 3 + 1 {
                let Some(found) = reader.pop(&mut packet) else { break };
                assert_eq!(found, record(read, Some(DropReason::NoRoute)));
                assert_eq!(packet, [&[7; 20][..], &[read as u8; 80]].concat());
                read += 1;
            }
        }
        assert!(read > 100 && lost.load(Ordering::Relaxed) > 100, "{read} {lost:?}");
        drop(reader);
        assert!(writer.is_abandoned());
    }

    #[test]
    fn every_reason_passes_the_ring() {
        let (mut writer, mut reader) = ring(1000, Arc::default());
        let mut packet = Vec::new();
        for reason in DropReason::ALL.iter().copied().map(Some).chain([None]) {
            writer.push(&record(u64::MAX, reason), [&[], &[1]], usize::MAX);
            assert_eq!(reader.pop(&mut packet), Some(record(u64::MAX, reason)));
        }
        assert_eq!((reader.pop(&mut packet), packet), (None, vec![1]));
    }
}
