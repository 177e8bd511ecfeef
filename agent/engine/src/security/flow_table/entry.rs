//! An entry of a flow table, as words of 64 bits: a header and a body. The functions of this file compute these words
//! and read them. They access no table.

use super::{FlowKey, FlowStatus, TcpFlags};
use std::net::IpAddr;
use std::time::Duration;
use tombolo_proto::config::Direction;

/// Number of 64-bit words in the body of an entry. They fill a cache line of 64 bytes.
pub(super) const BODY: usize = 8;

/// A TCP flow that the other end has not answered ends after this time without packets (D31). The time is short, so
/// that the flows of a SYN flood end soon. It is longer than the intervals between the first five SYNs of a client,
/// which come after 0, 1, 3, 7 and 15 s (RFC 6298), so that each of them finds the flow of the first one.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A TCP flow that both ends have closed, or that one end has reset, ends after this time without packets (D31). Within
/// this time, an end whose ACK was lost can repeat its FIN.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

// Header: status in bits 0 to 7, flags in 8 to 15, version in 16 to 31, tag in 32 to 63.
pub(super) const EMPTY: u64 = 0;
pub(super) const BUSY: u64 = 1;
pub(super) const UNANSWERED: u64 = 2;
pub(super) const ESTABLISHED: u64 = 3;
pub(super) const CLOSING: u64 = 4;
pub(super) const STATUS: u64 = 0xff;
/// Flag of a header: the flow began at the second end of the [`Ordered`] key.
pub(super) const FROM_SECOND: u64 = 1 << 8;
/// Flag of a header: the end that began the flow has sent FIN.
pub(super) const FIN_FORWARD: u64 = 1 << 9;
/// Flag of a header: the other end has sent FIN.
pub(super) const FIN_BACKWARD: u64 = 1 << 10;
/// The other end has answered a SYN by a segment with SYN, and the handshake is not complete yet.
pub(super) const SYN_ANSWERED: u64 = 1 << 11;
/// The rules must decide about the flow again, as about a new one (D34).
pub(super) const JUDGE_AGAIN: u64 = 1 << 12;
const VERSION_SHIFT: u32 = 16;
pub(super) const TAG_SHIFT: u32 = 32;

// Body: words 0 to 3 are the two addresses; word 4 has the ports, the protocol, the NIC, the direction (bit 1) and the
// family (bit 0); word 5 has the choices of load balancers; word 6 has the times, word 7 the link and the idle timeout.
pub(super) const CHOICES: usize = 5;
pub(super) const TIMES: usize = 6;
pub(super) const ORIGIN: usize = 7;

/// A key whose two ends (address and port) are in ascending order, so that the keys of both directions of a flow have
/// the same words.
pub(super) struct Ordered {
    pub(super) words: [u64; 6],
    /// Whether the packet of the key goes from the second end to the first one.
    pub(super) from_second: bool,
}

impl Ordered {
    pub(super) fn new(key: &FlowKey) -> Self {
        let (source, destination) = (bits(key.source), bits(key.destination));
        let from_second = (source, key.ports.0) > (destination, key.ports.1);
        let (first, second, ports) = if from_second {
            (destination, source, (key.ports.1, key.ports.0))
        } else {
            (source, destination, key.ports)
        };
        let family = u64::from(key.source.is_ipv6());
        // This is the direction of packets from the first end to the second one, which is the same for both directions
        // of a flow.
        let inbound = u64::from((key.direction == Direction::Inbound) != from_second);
        let rest = u64::from(ports.0) << 48 | u64::from(ports.1) << 32 | u64::from(key.protocol) << 24;
        Self {
            words: [
                high(first),
                low(first),
                high(second),
                low(second),
                rest | u64::from(key.nic) << 16 | inbound << 1 | family,
                0,
            ],
            from_second,
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

const fn high(bits: u128) -> u64 {
    (bits >> 64) as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
const fn low(bits: u128) -> u64 {
    bits as u64
}

/// A copy of a body. The copy is valid only if the header has the same version before and after the copying.
pub(super) type Body = [u64; BODY];

#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// When the last packet came, in seconds since the table was made.
    pub(super) last_seen: u32,
    /// When the flow was added, in seconds since the table was made.
    pub(super) created: u32,
}

impl Times {
    pub(super) const fn pack(self) -> u64 {
        (self.last_seen as u64) << 32 | self.created as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            last_seen: (word >> 32) as u32,
            created: word as u32,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The link over which the first packet came, or [`FROM_HOST`](super::FROM_HOST).
    pub(super) link: u32,
    /// Time without packets after which an established flow ends, in seconds.
    pub(super) idle_timeout: u32,
}

impl Origin {
    pub(super) const fn pack(self) -> u64 {
        (self.link as u64) << 32 | self.idle_timeout as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            link: (word >> 32) as u32,
            idle_timeout: word as u32,
        }
    }
}

pub(super) const fn status_of(header: u64) -> Option<FlowStatus> {
    match header & STATUS {
        UNANSWERED => Some(FlowStatus::Unanswered),
        ESTABLISHED => Some(FlowStatus::Established),
        CLOSING => Some(FlowStatus::Closing),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the version's bits alone")]
pub(super) const fn version_of(header: u64) -> u16 {
    (header >> VERSION_SHIFT) as u16
}

/// A header with the bits `rest` and with the version that follows the version of `before`.
pub(super) const fn next_version(before: u64, rest: u64) -> u64 {
    rest | (version_of(before).wrapping_add(1) as u64) << VERSION_SHIFT
}

/// The header `before` as a packet with the flags `tcp` changes it. `forward`: the packet came from the end that began
/// the flow.
pub(super) const fn advance(before: u64, forward: bool, tcp: TcpFlags) -> u64 {
    let status = before & STATUS;
    let mut after = before;
    if tcp.fin {
        after |= if forward { FIN_FORWARD } else { FIN_BACKWARD };
    }
    let both_closed = after & FIN_FORWARD != 0 && after & FIN_BACKWARD != 0;
    // An answer to a SYN proves nothing about the sender: its address may be forged. Only the segment that completes
    // the handshake shows that the sender gets the answers (D31, D32).
    let completes = forward && !tcp.syn && before & SYN_ANSWERED != 0;
    if !forward && tcp.syn {
        after |= SYN_ANSWERED;
    }
    let next = if tcp.rst || both_closed {
        CLOSING
    } else if status == UNANSWERED && ((!forward && !tcp.syn) || completes) {
        ESTABLISHED
    } else {
        status
    };
    after & !STATUS | next
}

/// Whether a flow has been idle for longer than its state allows, at the time `now` in seconds since the table was
/// made.
pub(super) fn is_over(header: u64, body: &Body, now: u32) -> bool {
    let idle = now.saturating_sub(Times::unpack(body[TIMES]).last_seen);
    let idle_timeout = Origin::unpack(body[ORIGIN]).idle_timeout;
    let tcp = body[4] >> 24 & 0xff == u64::from(crate::packet::TCP);
    let timeout = match header & STATUS {
        UNANSWERED if tcp => seconds(HALF_OPEN_TIMEOUT).min(idle_timeout),
        CLOSING => seconds(CLOSING_TIMEOUT).min(idle_timeout),
        _ => idle_timeout,
    };
    idle > timeout
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// The number of the NIC in word 4 of a body.
#[expect(clippy::cast_possible_truncation, reason = "the value has its place in the word")]
pub(super) const fn nic_of(word: u64) -> u8 {
    (word >> 16) as u8
}

/// The key of an entry, in the direction of the packet that began the flow.
pub(super) fn key_of(header: u64, body: &Body) -> FlowKey {
    let address = |high: u64, low: u64| {
        let bits = u128::from(high) << 64 | u128::from(low);
        if body[4] & 1 == 1 {
            IpAddr::from(bits.to_be_bytes())
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address has 32 bits")]
            IpAddr::from((bits as u32).to_be_bytes())
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "each value has its place in the word")]
    let (port1, port2, protocol) = ((body[4] >> 48) as u16, (body[4] >> 32) as u16, (body[4] >> 24) as u8);
    let (first, second) = (address(body[0], body[1]), address(body[2], body[3]));
    let (source, destination, ports) = match header & FROM_SECOND {
        0 => (first, second, (port1, port2)),
        _ => (second, first, (port2, port1)),
    };
    let began_inbound = (body[4] >> 1 & 1 == 1) != (header & FROM_SECOND != 0);
    FlowKey {
        nic: nic_of(body[4]),
        direction: if began_inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        },
        protocol,
        source,
        destination,
        ports,
    }
}
