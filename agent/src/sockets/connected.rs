//! The connected sockets of a lane, and the policy that decides which paths get one.

use super::heavy_hitters::HeavyHitters;
use crate::outbox::Datagrams;
use crate::udp::Udp;
use std::io::ErrorKind;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::Path;

/// Largest number of connected sockets of a lane. More of them would speed up more paths, but each may hold a receive
/// buffer of its own, up to 2 MB in a gateway.
pub(super) const MAX_CONNECTED: usize = 8;

/// Idle time after which a connected socket is closed, which frees its receive buffer.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Shortest idle time after which a connected socket may be closed for another path: if a lane has [`MAX_CONNECTED`] of
/// them, the socket that was idle longest is closed for a heavily used path. The time is ten times the 100 ms within
/// which a lane notices that a socket was used.
pub(super) const EVICTION_IDLE: Duration = Duration::from_secs(1);

/// Interval at which the counts of batches on each path restart at zero, so that slow, long-lived paths never reach the
/// threshold for a connected socket. To reach the threshold of 16 batches in this time, a path must carry about three
/// batches a second.
const COUNTING_INTERVAL: Duration = Duration::from_secs(5);

/// Pause after a failed connect, or after a connected socket that broke. If the cause lasts, such as a missing route,
/// the lane makes one attempt a minute. The shared socket carries the path meanwhile.
const RETRY_BACKOFF: Duration = Duration::from_secs(60);

/// A path with its connected socket.
pub(super) struct ConnectedSocket {
    pub(super) path: Path,
    udp: Udp,
    /// When the socket last carried a datagram, as far as the calls of [`ConnectedSockets::maintain`] have noticed it.
    last_used: Instant,
    /// Whether sending failed with an error other than a full send buffer (EAGAIN) or ECONNREFUSED. The next call of
    /// [`ConnectedSockets::maintain`] closes the socket.
    broken: bool,
}

/// The connected sockets of a lane.
pub(super) struct ConnectedSockets {
    pub(super) sockets: Vec<ConnectedSocket>,
    pub(super) heavy_hitters: HeavyHitters,
    counting_since: Instant,
    no_connect_before: Option<Instant>,
    fwmark: u32,
    /// Size of the receive buffer in bytes for sockets that are opened from now on.
    pub(super) receive_buffer: usize,
    /// Datagrams that the kernel dropped at full receive buffers of sockets that are closed by now.
    pub(super) closed_overflow: u64,
}

/// Result of sending through the connected socket of a path.
pub(super) enum Outcome {
    Sent,
    /// The send buffer of the socket with this index is full.
    WouldBlock(usize),
    /// The path has no connected socket, or that socket refused the batch. The caller must send the batch through the
    /// shared socket.
    NotSent,
}

impl ConnectedSockets {
    /// Starts without connected sockets. `fwmark` and `receive_buffer` (bytes) are for sockets that are opened later.
    pub(super) fn new(fwmark: u32, receive_buffer: usize) -> Self {
        Self {
            sockets: Vec::with_capacity(MAX_CONNECTED),
            heavy_hitters: HeavyHitters::default(),
            counting_since: Instant::now(),
            no_connect_before: None,
            fwmark,
            receive_buffer,
            closed_overflow: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// The socket with this index. None: there is no such socket.
    pub(super) fn get(&self, number: usize) -> Option<&Udp> {
        self.sockets.get(number).map(|connected| &connected.udp)
    }

    /// The socket with this index. None: there is no such socket.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Udp> {
        self.sockets.get_mut(number).map(|connected| &mut connected.udp)
    }

    /// Sends a batch through the connected socket of its path. If the path has none, counts the path and sends nothing.
    pub(super) fn send(&mut self, path: Path, datagrams: &Datagrams<'_>) -> Outcome {
        let mut sockets = self.sockets.iter_mut().enumerate();
        let Some((number, connected)) = sockets.find(|(_, connected)| connected.path == path) else {
            self.heavy_hitters.record(path);
            return Outcome::NotSent;
        };
        match connected.udp.send_connected(datagrams.bytes, datagrams.segment) {
            Ok(()) => Outcome::Sent,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Outcome::WouldBlock(number),
            // ECONNREFUSED reports an ICMP error for an earlier datagram, so the socket itself still works.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Outcome::NotSent,
            Err(error) => {
                tracing::debug!(?path, %error, "connected socket refused to send; using the shared one");
                connected.broken = true;
                Outcome::NotSent
            }
        }
    }

    /// Closes idle and broken sockets, and opens at most one, for a heavily used path on the port of `lane`. Indexes
    /// may change.
    pub(super) fn maintain(&mut self, lane: &Udp, now: Instant) {
        for connected in &mut self.sockets {
            if connected.udp.take_used() {
                connected.last_used = now;
            }
        }
        self.close(now, |connected, unused| connected.broken || unused >= IDLE_TIMEOUT);
        if now.saturating_duration_since(self.counting_since) >= COUNTING_INTERVAL {
            self.heavy_hitters.reset();
            self.counting_since = now;
        }
        if self.no_connect_before.is_some_and(|until| now < until) {
            return;
        }
        if let Some(path) = self.heavy_hitters.take_heavy() {
            self.open(path, lane, now);
        }
    }

    /// Opens a socket for `path` on the port of `lane`, if the limit permits or an idle socket can be closed for it. A
    /// failure delays the next attempt for any path.
    fn open(&mut self, path: Path, lane: &Udp, now: Instant) {
        if self.sockets.len() >= MAX_CONNECTED {
            let longest = self.sockets.iter().map(|connected| connected.last_used).min();
            self.close(now, |connected, unused| {
                Some(connected.last_used) == longest && unused >= EVICTION_IDLE
            });
        }
        if self.sockets.len() >= MAX_CONNECTED {
            return;
        }
        match Udp::connect(path, lane, self.fwmark, self.receive_buffer) {
            Ok(udp) => {
                tracing::debug!(?path, "connected a socket to a heavily used path");
                self.sockets.push(ConnectedSocket {
                    path,
                    udp,
                    last_used: now,
                    broken: false,
                });
            }
            Err(error) => {
                tracing::debug!(?path, %error, "connecting a socket to a heavily used path failed");
                self.no_connect_before = Some(now + RETRY_BACKOFF);
            }
        }
    }

    /// Closes the connected sockets for which `should_close` returns true. Its arguments are the socket and the
    /// socket's idle time.
    fn close(&mut self, now: Instant, should_close: impl Fn(&ConnectedSocket, Duration) -> bool) {
        self.sockets.retain(|connected| {
            let closes = should_close(connected, now.saturating_duration_since(connected.last_used));
            if closes {
                tracing::debug!(path = ?connected.path, broken = connected.broken, "connected socket closed");
                self.closed_overflow += connected.udp.overflow();
                if connected.broken {
                    self.no_connect_before = Some(now + RETRY_BACKOFF);
                }
            }
            !closes
        });
    }
}
