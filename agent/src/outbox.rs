//! Queue of outgoing datagrams. The queue groups datagrams into batches that one system call can send (GSO). All
//! datagrams of a batch have the same path, the same fields of the outer IP header, and the same length; only the last
//! one may be shorter.
//!
//! Each turn of the lane fills the outbox and flushes it. Batches that the socket refuses stay in the outbox. While
//! batches stay, the lane does not read the TUN device, so that packets wait in the device's queue and the kernel slows
//! down the host's senders.

use tokio::sync::mpsc;
use tombolo_engine::buffer::{RedirectSink, Transmit, TransmitSink};
use tombolo_engine::decide::Ingress;
use tombolo_engine::tables::LinkIndex;

/// Longest batch in bytes. Until the kernel segments it, a batch is one UDP payload, which has at most 65,535 − 20
/// (IPv4 header) − 8 (UDP header) bytes.
const MAX_BATCH: usize = 65_507;

/// Largest number of datagrams of a batch: the kernel's `UDP_MAX_SEGMENTS`.
const MAX_COUNT: usize = 64;

/// Largest number of batches that wait until the socket's full send buffer has room; further packets are dropped.
/// Twelve full batches are about 6 ms at 1 Gbit/s.
const MAX_QUEUED_BATCHES: usize = 12;

/// Consecutive datagrams of one path.
#[derive(Debug)]
struct Batch {
    transmit: Transmit,
    buffer: Vec<u8>,
    len: usize,
    /// Length of every datagram except the last, in bytes.
    segment: usize,
    count: usize,
    /// Whether no further datagram may join. That is so if the last datagram is shorter than the others, which GSO
    /// permits only at the end of a batch, or if the next datagram is longer, which GSO does not permit.
    closed: bool,
}

/// A batch, as the outbox passes it to the socket.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams<'a> {
    /// Remote and local address, port, and the fields of the outer IP header. They are the same for all datagrams of
    /// the batch.
    pub transmit: Transmit,
    /// The datagrams, one after the other without gaps.
    pub bytes: &'a [u8],
    /// Length of each datagram in bytes. The last one may be shorter.
    pub segment: usize,
}

/// A packet that another lane redirects to lane 0, because the other lane has no session with the agent to which the
/// packet must go.
#[derive(Debug)]
pub struct RedirectedPacket {
    /// Number of the configuration in the redirecting lane. A link index is valid only within one configuration.
    pub generation: u64,
    /// Where the packet entered the agent.
    pub ingress: Ingress,
    /// The packet, as the redirecting lane has received it. Empty: the lane redirects no packet, but asks lane 0 to send the
    /// peer of the link `ingress` the health of this agent's back ends (D36).
    pub packet: Vec<u8>,
    back: mpsc::Sender<Vec<u8>>,
}

impl RedirectedPacket {
    /// Returns the buffer to the redirecting lane, which uses it for another packet. Does not wait. If the other lane
    /// has ended or has enough buffers, the buffer is dropped.
    pub fn return_buffer(self) {
        // If the return queue is full or closed, the only cost is that the other lane allocates a new buffer.
        let _ = self.back.try_send(self.packet);
    }
}

/// Redirects packets from another lane to lane 0. Buffers come back from lane 0 and are used again, so that redirecting
/// allocates nothing in the long run.
#[derive(Debug)]
pub struct RedirectSender {
    inbox: mpsc::Sender<RedirectedPacket>,
    back: mpsc::Sender<Vec<u8>>,
    spare: mpsc::Receiver<Vec<u8>>,
    /// Number of the installed configuration. A configuration has the same number in all lanes. 0: no configuration is
    /// installed yet. The lane sets this field.
    pub generation: u64,
}

impl RedirectSender {
    /// A sender into lane 0's queue of redirected packets. The queue's capacity also limits the buffers that come back.
    /// The caller sets [`generation`](Self::generation) when it installs a configuration.
    #[must_use]
    pub fn new(inbox: mpsc::Sender<RedirectedPacket>) -> Self {
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
        room.send(RedirectedPacket {
            generation: self.generation,
            ingress,
            packet: buffer,
            back: self.back.clone(),
        });
        true
    }

    fn return_health(&mut self, link: LinkIndex) -> bool {
        self.redirect_to_lane0(Ingress::Link(link), &[])
    }
}

/// Queue of outgoing datagrams. A datagram joins the newest batch of its remote address, or starts a batch. So the
/// order of datagrams to one address is kept.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Batches with their buffers, which are used again. The batches from index `sent` to index `used` (exclusive) are
    /// queued.
    batches: Vec<Batch>,
    sent: usize,
    used: usize,
    /// Whether the socket has refused the oldest queued batch.
    stuck: bool,
    /// Index of the batch whose buffer the last call of `reserve` returned.
    slot: usize,
}

impl Outbox {
    /// Number of queued batches. A batch without a datagram counts too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used - self.sent
    }

    /// Whether no batch is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == self.sent
    }

    /// Whether the socket has refused the oldest queued batch, at the last flush. The caller should then wait until the
    /// socket is writable.
    #[must_use]
    pub fn is_backpressured(&self) -> bool {
        self.stuck
    }

    /// Passes batches to `send` in order, until `send` returns [`SendOutcome::WouldBlock`] or none is left. The refused
    /// batch and those after it stay queued. The bytes that `send` gets are valid only during the call. Must not be
    /// called between `reserve` and `commit`, because the reserved slot would be lost.
    pub fn flush(&mut self, send: &mut dyn FnMut(&Datagrams<'_>) -> SendOutcome) {
        while let Some(batch) = self.batches[..self.used].get(self.sent) {
            let datagrams = Datagrams {
                transmit: batch.transmit,
                bytes: &batch.buffer[..batch.len],
                segment: batch.segment,
            };
            if batch.count > 0 && send(&datagrams) == SendOutcome::WouldBlock {
                self.stuck = true;
                return;
            }
            self.sent += 1;
        }
        (self.sent, self.used, self.stuck) = (0, 0, false);
    }

    /// Passes batches to `send` as [`flush`](Self::flush) does, but keeps the newest batch, to which datagrams may
    /// still be added. The other batches are sent early, so that their buffers are used again while they are in the
    /// CPU's cache. Does nothing if fewer than two batches are queued.
    pub fn flush_full(&mut self, send: &mut dyn FnMut(&Datagrams<'_>) -> SendOutcome) {
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

    /// Starts an empty batch with room for at least `len` bytes. Returns its index.
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

/// Result of passing a batch to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// The batch needs nothing more: it was sent, or dropped and counted.
    Accepted,
    /// The socket's send buffer is full. The batch stays queued.
    WouldBlock,
}

impl TransmitSink for Outbox {
    fn is_full(&self) -> bool {
        self.stuck && self.used - self.sent >= MAX_QUEUED_BATCHES
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
            // A datagram's length is known only now. GSO permits no segment that is longer than the first, so the
            // datagram moves into a new batch.
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
    use tombolo_engine::tables::NicIndex;

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
            SendOutcome::Accepted
        });
        sent
    }

    /// With any mix of lengths, every datagram arrives whole, and datagrams to one address arrive in order.
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

    /// A datagram starts a new batch if its setting of fragmentation or ECN differs from that of the datagram before.
    /// The order stays.
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
            SendOutcome::Accepted
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

    /// A batch has only one path. The order of datagrams to one remote address is kept across paths.
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
            SendOutcome::Accepted
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

    /// Full batches are sent before the turn ends. The order is kept, the newest batch waits for more datagrams, and
    /// few buffers are used.
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
                SendOutcome::Accepted
            });
            assert_eq!(outbox.len(), 1);
        }
        assert!(outbox.batches.len() <= 3, "{}", outbox.batches.len());
        outbox.flush_full(&mut |_| panic!("the newest waits"));
        // A refused batch stays queued, with all batches after it.
        put(&mut outbox, to, &[10; 1400]);
        put(&mut outbox, to, &[11; 1452]);
        outbox.flush_full(&mut |_| SendOutcome::WouldBlock);
        assert!(outbox.is_backpressured() && outbox.len() == 2);
        order.extend(sent(&mut outbox).iter().map(|(_, bytes)| bytes[0]));
        assert_eq!(order.len(), 10 * 48 + 2);
        assert!(order.is_sorted());
    }

    /// Redirecting uses returned buffers again, and fails if lane 0's queue is full.
    #[test]
    fn buffers_of_handed_packets_are_used_again() {
        let (inbox, mut lane0) = mpsc::channel(4);
        let mut redirect = RedirectSender::new(inbox);
        let mut buffers = std::collections::BTreeSet::new();
        for n in 0..20u8 {
            for _ in 0..4 {
                assert!(redirect.redirect_to_lane0(Ingress::Tun(NicIndex::FIRST), &[n; 1400]));
            }
            assert!(!redirect.redirect_to_lane0(Ingress::Tun(NicIndex::FIRST), &[n; 1400]));
            while let Ok(redirected) = lane0.try_recv() {
                assert_eq!(redirected.packet, [n; 1400]);
                buffers.insert(redirected.packet.as_ptr());
                redirected.return_buffer();
            }
        }
        assert_eq!(buffers.len(), 4);
    }

    /// While the socket's send buffer is full, queued datagrams wait without loss or reordering. Datagrams beyond the
    /// limit are refused.
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
            outbox.flush(&mut |_| SendOutcome::WouldBlock);
        }
        assert_eq!(outbox.len(), MAX_QUEUED_BATCHES);
        let mut first = true;
        let mut left = Vec::new();
        outbox.flush(&mut |d| {
            left.push(d.bytes[0]);
            if std::mem::take(&mut first) {
                SendOutcome::Accepted
            } else {
                SendOutcome::WouldBlock
            }
        });
        assert_eq!(
            (left, outbox.len(), outbox.is_full()),
            (vec![0, 1], MAX_QUEUED_BATCHES - 1, false)
        );
        let rest: Vec<u8> = sent(&mut outbox).iter().map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(
            (rest.len(), rest.first(), rest.last()),
            (45 * (MAX_QUEUED_BATCHES - 1), Some(&1), Some(&(taken - 1)))
        );
    }
}
