//! The limits of the port: numbers of connections, timeouts, bytes and rates.

use super::pool::Share;
use std::time::Duration;
use tombolo_proto::budget::Rate;

/// Number of file descriptors that are kept free of admitted connections: 128 for evicted connections that are not
/// closed yet (`MAX_CLOSING`), 32 for packages in transfer (`MAX_DOWNLOADS`), and the others for the store, logs and
/// the listener.
pub(super) const RESERVED_DESCRIPTORS: usize = 256;

/// The limits of one port: for its connections, and for the memory and computing time that they may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of admitted connections. In addition, the sockets of up to `MAX_CLOSING` evicted connections may
    /// still be open.
    pub total: usize,
    /// Limits for unauthenticated connections from addresses at which no agent is known.
    pub open: Unauthenticated,
    /// Limits for unauthenticated connections from addresses of known agents, and from this host.
    pub reserved: Unauthenticated,
    /// Maximum number of connections that have shown a bearer token, of all clients together.
    pub bearers: usize,
    /// Largest number of connections of one agent.
    pub per_agent: usize,
    /// Maximum number of bytes of request bodies in memory, of all unauthenticated connections together.
    pub body_bytes: usize,
    /// Rate at which one address may begin key exchanges. Addresses of this host have no limit. Without this limit, one
    /// address could keep all cores busy: a ClientHello costs its sender almost nothing, and computing the response
    /// takes a fraction of a millisecond.
    pub key_exchanges: Rate,
    /// Rate that an address gets in addition to `key_exchanges`, for each agent that is known at it.
    pub key_exchanges_per_agent: Rate,
}

/// The limits of each stage in which connections have not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthenticated {
    /// Connections without a complete ClientHello.
    pub silent: Share,
    /// Connections in the TLS handshake.
    pub handshake: Share,
    /// Connections after the TLS handshake.
    pub strangers: Share,
    /// Longest time from the acceptance of the connection to the end of the TLS handshake.
    pub handshake_timeout: Duration,
}

/// Longest time by which the rate limit of its address ([`Limits::key_exchanges`]) may delay a key exchange. A
/// connection that would have to wait longer is closed. The value is a third of the shorter of the two handshake
/// timeouts, so that the handshake can still complete after the wait.
pub(super) const MAX_KEY_EXCHANGE_WAIT: Duration = Duration::from_secs(1);

/// Longest time from the start of a stranger's request to the end of its response. It is longer than the 10 s within
/// which the body of a request without a token must arrive, so that a body that is too slow is still answered with an
/// error.
pub(super) const STRANGER_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest time for a stranger's download of a package. In this time, 6 MB, about the size of an agent's package, are
/// transferred at 160 kbit/s.
pub(super) const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Idle time after which a stranger's connection is closed. An honest stranger is idle for a much shorter time: the two
/// requests of a join are milliseconds apart.
pub(super) const STRANGER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle time after which an authenticated connection is closed. Also the time for which a bearer token authenticates
/// the connection that it was sent over. A client that polls every few seconds keeps its connection.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

impl Limits {
    /// The limits for a process that may open `descriptors` file descriptors; fewer than 320 count as 320. The limits
    /// of all unauthenticated stages together are at most half of `total`.
    #[must_use]
    pub fn for_descriptors(descriptors: usize) -> Self {
        let total = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(64);
        // The totals below add up to 28 units. A unit is 256 connections, or fewer if the process may open few
        // descriptors. An idle connection takes some 60 KiB after the handshake and some 10 KiB before it, so the
        // connections of all 28 units together take some 150 MiB. An address in the reserved pools may be a NAT gateway
        // with several hundred agents, which all reconnect when the controller restarts.
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
                // After a restart of the controller, the handshakes of all agents may take some seconds of computing
                // time, so connections from addresses of agents get more time than others.
                handshake_timeout: Duration::from_secs(10),
            },
            bearers: total / 4,
            per_agent: 8,
            body_bytes: 16 << 20,
            // This is enough for a script that runs 30 commands a second from one address, each over a new connection.
            key_exchanges: Rate {
                burst: 128,
                per_second: 32,
            },
            // After a restart of the controller, all agents behind a NAT gateway reconnect at once, and those whose
            // first connection failed try again. So each agent needs several key exchanges.
            key_exchanges_per_agent: Rate {
                burst: 4,
                per_second: 1,
            },
        }
    }
}
