//! The stages of a connection, the reasons for closing one, and their counters.

use tombolo_proto::id::AgentId;

/// The stage of a connection: how far its client has authenticated itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// The TCP connection is accepted; the ClientHello is not complete.
    Silent,
    /// The ClientHello is complete; the TLS handshake is not.
    Handshake,
    /// TLS is up; the client has not authenticated itself.
    Stranger,
    /// A request on the connection carried a valid bearer token within the last minute.
    Bearer,
    /// The client has the certificate of this agent, which is not revoked.
    Agent(AgentId),
}

impl Stage {
    /// The values of the metrics' label `stage`, in the order of the variants.
    pub const NAMES: [&str; 5] = ["silent", "handshake", "stranger", "bearer", "agent"];

    /// The position of the stage's name in [`Self::NAMES`].
    pub(super) const fn index(&self) -> usize {
        match self {
            Self::Silent => 0,
            Self::Handshake => 1,
            Self::Stranger => 2,
            Self::Bearer => 3,
            Self::Agent(_) => 4,
        }
    }
}

/// Why a connection was closed or not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The port is full and no connection can be evicted, or the sockets of too many evicted connections are still
    /// open.
    Refused,
    /// A newer connection displaced this one, because the pool or the whole port was full.
    Displaced,
    /// The deadline of the connection has passed.
    Timeout,
    /// The request bodies of all strangers together exceeded their limit. This connection's bodies were the largest of
    /// all connections of its address, and the bodies of this address were the largest of all addresses.
    Bytes,
    /// The address of the connection has begun more key exchanges than its rate limit allows.
    Rate,
}

impl CloseReason {
    /// The values of the metrics' label `reason`, in the order of the variants.
    pub const NAMES: [&str; 5] = ["refused", "displaced", "timeout", "body_bytes", "rate"];

    /// The position of the reason's name in [`Self::NAMES`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::Displaced => 1,
            Self::Timeout => 2,
            Self::Bytes => 3,
            Self::Rate => 4,
        }
    }
}

/// The numbers of connections and the counters of events, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Numbers of open connections by stage, in the order of [`Stage::NAMES`].
    pub open: [usize; Stage::NAMES.len()],
    /// Evicted connections whose sockets are still open.
    pub closing: usize,
    /// Number of connections that `accept(2)` has returned since the start, including those that were refused.
    pub accepted: u64,
    /// Numbers of connections that were evicted or refused since the start, by stage in the order of [`Stage::NAMES`]
    /// and by reason in the order of [`CloseReason::NAMES`].
    pub closed: [[u64; CloseReason::NAMES.len()]; Stage::NAMES.len()],
    /// Bytes of strangers' request bodies in memory.
    pub body_bytes: usize,
}
