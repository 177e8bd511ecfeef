//! How far a connection is, why it is closed, and how many there are of each.

use tombolo_proto::id::AgentId;

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Accepted; the ClientHello is not whole.
    Silent,
    /// The rest of the TLS handshake.
    Handshake,
    /// TLS is up, and nothing is known about who it is.
    Stranger,
    /// A valid bearer token came on it.
    Bearer,
    /// It showed the certificate of this agent, which is not revoked.
    Agent(AgentId),
}

impl Stage {
    /// All stages, as metrics name them.
    pub const NAMES: [&str; 5] = ["silent", "handshake", "stranger", "bearer", "agent"];

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

/// Why a connection is closed or was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no room even after giving up connections.
    Refused,
    /// A newer connection took its place.
    Displaced,
    /// Its stage lasted too long.
    Timeout,
    /// Its address held the most bytes of request bodies.
    Bytes,
    /// Its address asked for more key exchanges than it gets.
    Rate,
}

impl Why {
    /// All reasons, as metrics name them.
    pub const NAMES: [&str; 5] = ["refused", "displaced", "timeout", "body_bytes", "rate"];

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

/// Numbers for operators.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections now, in the order of [`Stage::NAMES`].
    pub open: [usize; Stage::NAMES.len()],
    /// Connections that have to be closed and are not yet.
    pub closing: usize,
    /// Accepted since the start.
    pub accepted: u64,
    /// Closed or refused by stage and reason, in the order of [`Stage::NAMES`] and [`Why::NAMES`].
    pub closed: [[u64; Why::NAMES.len()]; Stage::NAMES.len()],
    /// Bytes of strangers' request bodies that are held.
    pub body_bytes: usize,
}
