//! The limits of the port: numbers of connections, timeouts, bytes and rates.

use super::pool::Share;
use std::time::Duration;
use tombolo_proto::budget::Rate;

/// File descriptors that are not for admitted connections: 128 for evicted connections that are not closed yet
/// (`MAX_CLOSING`), 32 for packages in transfer (`MAX_DOWNLOADS`), and the others for the store, logs and the listener.
pub(super) const RESERVED_DESCRIPTORS: usize = 256;

/// The limits of one port, for connections and for what they may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most admitted connections. Up to `MAX_CLOSING` evicted ones that are not closed yet may be open besides.
    pub total: usize,
    /// Unauthenticated connections from addresses without agents.
    pub open: Unauthenticated,
    /// Unauthenticated connections from addresses of agents, and from this host.
    pub reserved: Unauthenticated,
    /// Most connections that have shown a bearer token, of all clients together.
    pub bearers: usize,
    /// Most connections of one agent.
    pub per_agent: usize,
    /// Most bytes of request bodies in memory, of all unauthenticated connections together.
    pub body_bytes: usize,
    /// Rate of key exchanges for one address that is not this host. A ClientHello costs its sender almost nothing, and
    /// computing the response takes a fraction of a millisecond.
    pub key_exchanges: Rate,
    /// Rate of key exchanges that is added for each agent that is known at the address.
    pub key_exchanges_per_agent: Rate,
}

/// Limits for connections that have not authenticated, by stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthenticated {
    /// Connections without a complete ClientHello.
    pub silent: Share,
    /// Connections in the TLS handshake.
    pub handshake: Share,
    /// Connections after the TLS handshake.
    pub strangers: Share,
    /// Time for the whole TLS handshake, from the acceptance of the connection.
    pub handshake_timeout: Duration,
}

/// Longest time by which the rate limit of its address ([`Limits::key_exchanges`]) may delay a key exchange. A connection that would have to wait longer is
/// closed. A third of the shorter handshake timeout, so that the handshake can still complete after the wait.
pub(super) const MAX_KEY_EXCHANGE_WAIT: Duration = Duration::from_secs(1);

/// Time for a stranger's request and its response. Longer than the 10 s in which the body of a request without a token
/// must arrive, so that a late body is still answered with an error.
pub(super) const STRANGER_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for a stranger's download of a package: 6 MB, about the size of an agent's package, at 160 kbit/s.
pub(super) const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Idle time after which a stranger's connection is closed. An honest stranger needs little of it: the two requests of
/// a join are milliseconds apart.
pub(super) const STRANGER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle time after which an authenticated connection is closed, and time for which a bearer token authenticates its
/// connection. A client that polls every few seconds keeps its connection.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

impl Limits {
    /// The limits for a process that may open `descriptors` file descriptors; fewer than 320 count as 320.
    /// Unauthenticated connections get at most half of the connections in `total`.
    #[must_use]
    pub fn for_descriptors(descriptors: usize) -> Self {
        let total = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(64);
        // The totals below add up to 28 units of at most 256 connections, fewer where descriptors are few. An idle
        // connection takes some 60 KiB after the handshake and some 10 KiB before it: 150 MiB for all. A reserved
        // address may be a NAT gateway with several hundred agents, which all reconnect when the controller restarts.
        let unit = (total / 2 / 28).clamp(1, 256);
        let share = |per_holder: usize, total: usize| Share {
            per_holder: (per_holder * unit / 256).max(1),
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
                // After a restart, the handshakes of all agents may take some seconds of computing time.
                handshake_timeout: Duration::from_secs(10),
            },
            bearers: total / 4,
            per_agent: 8,
            body_bytes: 16 << 20,
            // Enough for a pipeline behind one address that runs 30 commands a second, each with its own connection.
            key_exchanges: Rate {
                burst: 128,
                per_second: 32,
            },
            // All agents behind a NAT gateway reconnect at once, and retry where the first connections failed.
            key_exchanges_per_agent: Rate {
                burst: 4,
                per_second: 1,
            },
        }
    }
}
