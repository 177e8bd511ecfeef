//! What an agent has sent and received over its links, as charges are computed from it (Meter-6).

use crate::id::AgentId;
use serde::{Deserialize, Serialize};

/// Largest number of [`Meters::links`]. An entry has 210 bytes at most, and the controller accepts messages of at most 1 MiB
/// from agents.
pub const MAX_METERS: usize = 1000;

/// The totals of an agent since it began to count. They survive a restart of the agent: only what the last 10 seconds before
/// a crash have added is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meters {
    /// When the agent began to count, in milliseconds of Unix time. A new number says that the totals begin at 0 again,
    /// because the agent has lost its file.
    pub epoch: u64,
    /// The totals by peer, ordered by peer. Links that the agent does not have any more are in the list too, for a day. At
    /// most [`MAX_METERS`] entries: an agent with more of them reports them in turns.
    pub links: Vec<LinkMeter>,
}

/// What has passed the tunnels of an instance of a VPN gateway (G5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelUse {
    /// Bytes of the last minute over all tunnels, in both directions, by the length of the packets inside the tunnels.
    pub last_minute_bytes: u64,
}

/// The totals of one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkMeter {
    /// The peer of the link.
    pub peer: AgentId,
    /// What has passed.
    #[serde(flatten)]
    pub volume: Volume,
}

/// Bytes and packets in both directions, by the length of the packets inside the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

impl Volume {
    /// Whether nothing has passed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            rx_packets: self.rx_packets.saturating_add(other.rx_packets),
            tx_packets: self.tx_packets.saturating_add(other.tx_packets),
        }
    }

    /// What this one has more than the other, each number by itself; 0 where it has less.
    #[must_use]
    pub const fn beyond(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.saturating_sub(other.rx_bytes),
            tx_bytes: self.tx_bytes.saturating_sub(other.tx_bytes),
            rx_packets: self.rx_packets.saturating_sub(other.rx_packets),
            tx_packets: self.tx_packets.saturating_sub(other.tx_packets),
        }
    }

    /// The larger one of each number.
    #[must_use]
    pub fn largest(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.max(other.rx_bytes),
            tx_bytes: self.tx_bytes.max(other.tx_bytes),
            rx_packets: self.rx_packets.max(other.rx_packets),
            tx_packets: self.tx_packets.max(other.tx_packets),
        }
    }

    /// Whether a number of this one is smaller than that of the other.
    #[must_use]
    pub const fn is_behind(self, other: Self) -> bool {
        self.rx_bytes < other.rx_bytes
            || self.tx_bytes < other.tx_bytes
            || self.rx_packets < other.rx_packets
            || self.tx_packets < other.tx_packets
    }
}
