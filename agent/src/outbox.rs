//! Datagrams on their way to the socket, in the shape that one system call sends many of them: equal lengths, one way, the
//! last perhaps shorter.
//!
//! A turn fills it and empties it. What the socket has no room for stays, and while something stays the lane reads no
//! more from the device: the queue is the device's then, where the host's senders feel it.

use tokio::sync::mpsc;
use tombolo_engine::buffer::{RedirectSink, Transmit, TransmitSink};
use tombolo_engine::decide::Ingress;

/// Most bytes of a batch: a UDP payload before it is cut.
const MAX_BATCH: usize = 65_507;

/// Most datagrams of a batch: the kernel's limit.
const MAX_COUNT: usize = 64;

/// Batches beyond which nothing more is taken while the socket has no room: some milliseconds at gigabit speed.
const MAX_WAITING: usize = 12;

/// Datagrams that go one way, one after the other.
#[derive(Debug)]
struct Batch {
    transmit: Transmit,
    buffer: Vec<u8>,
    len: usize,
    /// Length of all but the last.
    segment: usize,
    count: usize,
    /// A shorter one has ended it.
    closed: bool,
}

/// What one system call can send.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams<'a> {
    /// Where they go, where from, and their IP header.
    pub transmit: Transmit,
    /// One after the other.
    pub bytes: &'a [u8],
    /// Length of each; the last may be shorter.
    pub segment: usize,
}

/// A packet for the first lane.
#[derive(Debug)]
pub struct Handed {
    /// The configuration that the giving lane had installed: an index of a link means something in one only.
    pub generation: u64,
    /// Where it came in.
    pub ingress: Ingress,
    /// As it came in.
    pub packet: Vec<u8>,
    back: mpsc::Sender<Vec<u8>>,
}

impl Handed {
    /// Gives the buffer back to the lane that the packet came from.
    pub fn done(self) {
        let _ = self.back.try_send(self.packet);
    }
}

/// The way to the first lane, in other lanes. Buffers come back and are used again: packets allocate nothing.
#[derive(Debug)]
pub struct RedirectSender {
    inbox: mpsc::Sender<Handed>,
    back: mpsc::Sender<Vec<u8>>,
    spare: mpsc::Receiver<Vec<u8>>,
    /// The number of the configuration that is installed, the same in all lanes; 0: none yet.
    pub generation: u64,
}

impl RedirectSender {
    /// The way into this inbox of the first lane.
    #[must_use]
    pub fn new(inbox: mpsc::Sender<Handed>) -> Self {
        let (back, spare) = mpsc::channel(inbox.max_capacity());
        Self {
            inbox,
            back,
            spare,
            generation: 0,
        }
    }
}

impl RedirectSink for RedirectSender {
    fn redirect_to_lane0(&mut self, ingress: Ingress, packet: &[u8]) -> bool {
        let Ok(room) = self.inbox.try_reserve() else {
            return false;
        };
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        room.send(Handed {
            generation: self.generation,
            ingress,
            packet: buffer,
            back: self.back.clone(),
        });
        true
    }
}

/// Datagrams that wait. Order per address is kept: a datagram joins the newest batch of its address or begins one.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Kept with their buffers; those from `sent` to `used` hold something.
    batches: Vec<Batch>,
    sent: usize,
    used: usize,
    /// The socket had no room for what waits.
    stuck: bool,
    /// Where the reserved slot is.
    slot: usize,
}

impl Outbox {
    /// How many batches wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used - self.sent
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == self.sent
    }

    /// Whether the socket had no room for what waits.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Hands out batches in order until `send` says that there is no room. Batches for which it said so stay.
    pub fn flush(&mut self, send: &mut dyn FnMut(&Datagrams<'_>) -> Room) {
        while let Some(batch) = self.batches[..self.used].get(self.sent) {
            let datagrams = Datagrams {
                transmit: batch.transmit,
                bytes: &batch.buffer[..batch.len],
                segment: batch.segment,
            };
            if batch.count > 0 && send(&datagrams) == Room::None {
                self.stuck = true;
                return;
            }
            self.sent += 1;
        }
        (self.sent, self.used, self.stuck) = (0, 0, false);
    }

    /// The same for all but the newest batch, which may still grow. Buffers are used again while they are in the cache.
    pub fn flush_full(&mut self, send: &mut dyn FnMut(&Datagrams<'_>) -> Room) {
        if self.len() < 2 {
            return;
        }
        let newest = self.used - 1;
        self.used = newest;
        self.flush(send);
        if self.is_empty() {
            self.batches.swap(0, newest);
            self.used = 1;
        } else {
            self.used = newest + 1;
        }
    }

    /// Opens an empty batch with room for `len` bytes; returns its position.
    fn begin(&mut self, transmit: Transmit, len: usize) -> usize {
        if self.used == self.batches.len() {
            let buffer = vec![0; MAX_BATCH];
            self.batches.push(Batch {
                transmit,
                buffer,
                len: 0,
                segment: 0,
                count: 0,
                closed: false,
            });
        }
        let batch = &mut self.batches[self.used];
        batch.transmit = transmit;
        (batch.len, batch.segment, batch.count, batch.closed) = (0, 0, 0, false);
        if batch.buffer.len() < len {
            batch.buffer.resize(len, 0);
        }
        self.used += 1;
        self.used - 1
    }
}

/// What the socket said to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The batch was dealt with.
    Taken,
    /// There is no room now; the same batch comes again.
    None,
}

impl TransmitSink for Outbox {
    fn is_full(&self) -> bool {
        self.stuck && self.used - self.sent >= MAX_WAITING
    }

    fn reserve(&mut self, transmit: &Transmit, len: usize) -> &mut [u8] {
        let remote = transmit.path.remote;
        let newest = (self.sent..self.used).rfind(|i| self.batches[*i].transmit.path.remote == remote);
        let fits = |b: &Batch| !b.closed && b.transmit == *transmit && b.count < MAX_COUNT && b.len + len <= MAX_BATCH;
        self.slot = match newest.filter(|i| fits(&self.batches[*i])) {
            Some(i) => i,
            None => self.begin(*transmit, len),
        };
        let batch = &mut self.batches[self.slot];
        &mut batch.buffer[batch.len..]
    }

    fn commit(&mut self, len: usize) {
        let batch = &mut self.batches[self.slot];
        if batch.count == 0 {
            (batch.len, batch.segment, batch.count) = (len, len, 1);
        } else if len <= batch.segment {
            batch.closed = len < batch.segment;
            batch.len += len;
            batch.count += 1;
        } else {
            // Longer than those before it: only known now. It begins the next batch.
            batch.closed = true;
            let (transmit, from, at) = (batch.transmit, self.slot, batch.len);
            let next = self.begin(transmit, len);
            let (before, after) = self.batches.split_at_mut(next);
            let new = &mut after[0];
            new.buffer[..len].copy_from_slice(&before[from].buffer[at..at + len]);
            (new.len, new.segment, new.count) = (len, len, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tombolo_engine::buffer::{Outer, Path, Port};

    fn put(outbox: &mut Outbox, to: impl Into<Path>, bytes: &[u8]) {
        put_as(outbox, Transmit::from(to), bytes);
    }

    fn put_as(outbox: &mut Outbox, transmit: Transmit, bytes: &[u8]) {
        let slot = outbox.reserve(&transmit, bytes.len().max(256));
        slot[..bytes.len()].copy_from_slice(bytes);
        outbox.commit(bytes.len());
    }

    fn sent(outbox: &mut Outbox) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut sent = Vec::new();
        outbox.flush(&mut |d| {
            sent.extend(d.bytes.chunks(d.segment).map(|c| (d.transmit.path.remote, c.to_vec())));
            Room::Taken
        });
        sent
    }

    /// Whatever the lengths: every datagram leaves whole, and those to one address in order.
    #[test]
    fn nothing_is_lost_or_reordered() {
        let to: Vec<SocketAddr> = (1..4).map(|i| format!("192.0.2.{i}:5").parse().unwrap()).collect();
        let mut outbox = Outbox::default();
        let mut seed = 1u64;
        for _turn in 0..20 {
            let mut all = Vec::new();
            for n in 0..300u32 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let len = [84, 1452, 148, 1452, 600][(seed >> 33) as usize % 5];
                let mut bytes = vec![n as u8; len];
                bytes[..4].copy_from_slice(&n.to_be_bytes());
                let to = to[(seed >> 40) as usize % 3];
                put(&mut outbox, to, &bytes);
                all.push((to, bytes));
            }
            let sent = sent(&mut outbox);
            assert_eq!(sent.len(), all.len());
            for to in &to {
                let of = |v: &[(SocketAddr, Vec<u8>)]| v.iter().filter(|d| d.0 == *to).cloned().collect::<Vec<_>>();
                assert_eq!(of(&sent), of(&all));
            }
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn a_stream_becomes_few_batches() {
        let to: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut outbox = Outbox::default();
        for _ in 0..90 {
            put(&mut outbox, to, &[1; 1452]);
        }
        assert_eq!(outbox.len(), 2 + usize::from(90 * 1452 > 2 * MAX_BATCH));
    }

    /// What must stay whole, or has other ECN bits, is in batches of its own, in order with the rest.
    #[test]
    fn a_batch_has_one_kind_of_outer_header() {
        let to: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut outbox = Outbox::default();
        for (n, fragments, ecn) in [(1, true, 0), (2, true, 0), (3, false, 0), (4, true, 0), (5, true, 2)] {
            let dont_fragment = !fragments;
            let transmit = Transmit {
                path: to.into(),
                outer: Outer { ecn, dont_fragment },
            };
            put_as(&mut outbox, transmit, &[n; 100]);
        }
        let mut seen = Vec::new();
        outbox.flush(&mut |d| {
            let Outer { ecn, dont_fragment } = d.transmit.outer;
            seen.push((d.bytes[0], d.bytes.len(), !dont_fragment, ecn));
            Room::Taken
        });
        assert_eq!(
            seen,
            [
                (1, 200, true, 0),
                (3, 100, false, 0),
                (4, 100, true, 0),
                (5, 100, true, 2)
            ]
        );
    }

    /// One way each, and in order with what goes to the same host another way.
    #[test]
    fn a_batch_leaves_from_one_address_by_one_port() {
        let any = Path::from(SocketAddr::from(([192, 0, 2, 1], 5)));
        let pinned = Path {
            local: Some([192, 0, 2, 9].into()),
            ..any
        };
        let second = Path {
            port: Port::Quic,
            ..pinned
        };
        let mut outbox = Outbox::default();
        for (n, path) in [(1, any), (2, pinned), (3, pinned), (4, any), (5, second), (6, second)] {
            put(&mut outbox, path, &[n; 100]);
        }
        let mut seen = Vec::new();
        outbox.flush(&mut |d| {
            seen.push((d.bytes[0], d.bytes.len(), d.transmit.path));
            Room::Taken
        });
        assert_eq!(seen, [(1, 100, any), (2, 200, pinned), (4, 100, any), (5, 200, second)]);
    }

    #[test]
    fn a_slot_that_is_not_committed_is_forgotten() {
        let to: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut outbox = Outbox::default();
        outbox.reserve(&to.into(), 9000)[0] = 1;
        put(&mut outbox, to, &[7; 100]);
        assert_eq!(sent(&mut outbox), [(to, vec![7; 100])]);
    }

    /// Sent as soon as they are full: order is kept, the newest waits for more, and few buffers are in use.
    #[test]
    fn full_batches_go_before_the_turn_ends() {
        let to: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut outbox = Outbox::default();
        let mut order = Vec::new();
        for read in 0..10u8 {
            for _ in 0..48 {
                put(&mut outbox, to, &[read; 1452]);
            }
            outbox.flush_full(&mut |d| {
                order.extend(d.bytes.chunks(d.segment).map(|c| c[0]));
                Room::Taken
            });
            assert_eq!(outbox.len(), 1);
        }
        assert!(outbox.batches.len() <= 3, "{}", outbox.batches.len());
        outbox.flush_full(&mut |_| panic!("the newest waits"));
        // One that finds no room stays, with all after it.
        put(&mut outbox, to, &[10; 1400]);
        put(&mut outbox, to, &[11; 1452]);
        outbox.flush_full(&mut |_| Room::None);
        assert!(outbox.is_stuck() && outbox.len() == 2);
        order.extend(sent(&mut outbox).iter().map(|(_, bytes)| bytes[0]));
        assert_eq!(order.len(), 10 * 48 + 2);
        assert!(order.is_sorted());
    }

    /// A packet for the first lane takes a buffer that has come back; without room there it is refused.
    #[test]
    fn buffers_of_handed_packets_are_used_again() {
        let (inbox, mut first) = mpsc::channel(4);
        let mut outbox = RedirectSender::new(inbox);
        let mut buffers = std::collections::BTreeSet::new();
        for n in 0..20u8 {
            for _ in 0..4 {
                assert!(outbox.redirect_to_lane0(Ingress::Tun, &[n; 1400]));
            }
            assert!(!outbox.redirect_to_lane0(Ingress::Tun, &[n; 1400]));
            while let Ok(handed) = first.try_recv() {
                assert_eq!(handed.packet, [n; 1400]);
                buffers.insert(handed.packet.as_ptr());
                handed.done();
            }
        }
        assert_eq!(buffers.len(), 4);
    }

    /// A socket without room stops the flow, loses nothing and reorders nothing, and more than enough is refused.
    #[test]
    fn what_finds_no_room_waits() {
        let to: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut outbox = Outbox::default();
        let mut taken = 0u8;
        while !outbox.is_full() {
            for _ in 0..45 {
                put(&mut outbox, to, &[taken; 1452]);
            }
            taken += 1;
            outbox.flush(&mut |_| Room::None);
        }
        assert_eq!(outbox.len(), MAX_WAITING);
        let mut first = true;
        let mut left = Vec::new();
        outbox.flush(&mut |d| {
            left.push(d.bytes[0]);
            if std::mem::take(&mut first) {
                Room::Taken
            } else {
                Room::None
            }
        });
        assert_eq!(
            (left, outbox.len(), outbox.is_full()),
            (vec![0, 1], MAX_WAITING - 1, false)
        );
        let rest: Vec<u8> = sent(&mut outbox).iter().map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(
            (rest.len(), rest.first(), rest.last()),
            (45 * (MAX_WAITING - 1), Some(&1), Some(&(taken - 1)))
        );
    }
}
