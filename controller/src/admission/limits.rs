//! How many connections, how long, how many bytes.

use super::pool::Share;
use std::time::Duration;
use tombolo_proto::budget::Rate;

/// File descriptors that are not for connections: the store, logs, the listener, resolvers, and connections that are being closed.
pub(super) const RESERVED_DESCRIPTORS: usize = 256;

/// Limits of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, those that are being closed included.
    pub total: usize,
    /// Of addresses that no agent is known at.
    pub open: Unauthenticated,
    /// Of addresses that agents are known at, and of this host.
    pub reserved: Unauthenticated,
    /// Connections that have shown a bearer token.
    pub bearers: usize,
    /// Connections of one agent.
    pub each_agent: usize,
    /// Bytes of request bodies of unauthenticated connections that are held at a time.
    pub body_bytes: usize,
    /// Key exchanges of one address other than this host. A ClientHello costs its sender next to nothing, and the answer to it
    /// a fraction of a millisecond.
    pub exchanges: Rate,
    /// As many more for each agent that is known at the address.
    pub exchanges_of_agent: Rate,
}

/// Limits for connections that have not authenticated themselves, by stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthenticated {
    /// Nothing or a part of the ClientHello came.
    pub silent: Share,
    /// The TLS handshake is under way.
    pub handshake: Share,
    /// TLS is up.
    pub strangers: Share,
    /// For the whole TLS handshake, from the connection's acceptance.
    pub handshake_timeout: Duration,
}

/// Longest that a key exchange waits for its address's rate. A connection that would have to wait longer is closed.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A stranger's request must have its answer by then: the bodies of requests that need no token are small.
pub(super) const STRANGER_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A stranger's download of a package must end by then: 6 MB at 160 kbit/s.
pub(super) const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Idle time after which a stranger's connection ends. Between the two requests of a join lie milliseconds.
pub(super) const STRANGER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle time after which a connection that authenticated itself ends; also, how long a bearer token counts for the connection
/// that it came on.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

impl Limits {
    /// The limits for a process that may have so many file descriptors. Unauthenticated connections get at most half of them.
    #[must_use]
    pub fn for_descriptors(descriptors: usize) -> Self {
        let total = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(64);
        // The sum of what follows, in units of 256 connections: scaled down where descriptors are few. An idle connection
        // after TLS takes some 60 KiB, before it some 10: together 150 MiB at most. In the reserved part one address may be
        // a NAT gateway with several hundred agents, which all come back when the controller restarts.
        let unit = (total / 2 / 28).clamp(1, 256);
        let share = |each: usize, total: usize| Share {
            each: (each * unit / 256).max(1),
            total: total * unit,
        };
        Self {
            total,
            open: Unauthenticated {
                silent: share(256, 8),
                handshake: share(128, 4),
                strangers: share(64, 4),
                handshake_timeout: Duration::from_secs(3),
            },
            reserved: Unauthenticated {
                silent: share(1024, 6),
                handshake: share(1024, 4),
                strangers: share(128, 2),
                // A restarted controller may need some seconds for the handshakes of all its agents.
                handshake_timeout: Duration::from_secs(10),
            },
            bearers: total / 4,
            each_agent: 8,
            body_bytes: 16 << 20,
            // A pipeline that runs 30 commands a second behind one address has room.
            exchanges: Rate {
                burst: 128,
                per_second: 32,
            },
            // All agents behind a NAT gateway come back at once, and again where the first connections failed.
            exchanges_of_agent: Rate {
                burst: 4,
                per_second: 1,
            },
        }
    }
}
