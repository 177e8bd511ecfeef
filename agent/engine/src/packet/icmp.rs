//! The ICMP errors that the engine sends, and their rate limit.

use crate::packet::{ICMP, ICMPV6, PacketInfo};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Longest error, in bytes: an ICMPv6 error may not exceed the minimum MTU (RFC 4443, 2.4).
pub const MAX_ERROR: usize = 1280;

/// The type of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// The TTL or hop limit expired.
    TimeExceeded,
    /// The packet is too big; holds the MTU of the path in bytes.
    TooBig(u16),
}

/// Whether an ICMP error may be sent for a packet: not for an ICMP error, a later fragment, or a packet from or to a
/// multicast, unspecified or broadcast address (RFC 1122, 3.2.2; RFC 4443, 2.4).
#[must_use]
pub fn may_answer(packet: &[u8], info: &PacketInfo) -> bool {
    let group = |a: IpAddr| a.is_multicast() || a.is_unspecified() || a == IpAddr::V4(Ipv4Addr::BROADCAST);
    let Some(transport) = info.transport else { return false };
    let kind = packet.get(transport).copied();
    let is_error = match info.protocol {
        ICMP => matches!(kind, Some(3 | 4 | 5 | 11 | 12)),
        // 137 is an ICMPv6 redirect.
        ICMPV6 => kind.is_some_and(|k| k < 128 || k == 137),
        _ => false,
    };
    !group(info.source) && !group(info.destination) && !is_error
}

/// The ICMP error that `from` sends for `packet`. `None`: the addresses belong to different families.
#[must_use]
pub fn error(from: IpAddr, packet: &[u8], info: &PacketInfo, cause: IcmpError) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(MAX_ERROR);
    match (from, info.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 1812, 4.3.2.3: quote as much of the packet as fits into 576 bytes.
            let quote = &packet[..info.len.min(576 - 28)];
            let kind = match cause {
                IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                IcmpError::TooBig(mtu) => {
                    Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                        next_hop_mtu: mtu,
                    })
                }
            };
            PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                .icmpv4(kind)
                .write(&mut out, quote)
                .ok()?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quote = &packet[..info.len.min(MAX_ERROR - 48)];
            let kind = match cause {
                IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                IcmpError::TooBig(mtu) => Icmpv6Type::PacketTooBig {
                    // No path MTU is below the minimum of IPv6 (RFC 8200, 5).
                    mtu: u32::from(mtu.max(super::IPV6_MIN_MTU)),
                },
            };
            PacketBuilder::ipv6(from.octets(), to.octets(), 64)
                .icmpv6(kind)
                .write(&mut out, quote)
                .ok()?;
        }
        _ => return None,
    }
    Some(out)
}

/// Token bucket that limits ICMP errors and still serves traceroutes: three probes for each TTL, from 30 sources at
/// once (D23).
#[derive(Debug)]
pub struct Limiter {
    tokens: f64,
    last: Option<Instant>,
}

impl Limiter {
    /// Three probes from each of 30 sources for each of 30 TTLs, all at once.
    const BURST: f64 = 2700.0;
    /// Sustained rate, in errors per second.
    const RATE: f64 = 1000.0;

    /// A full bucket.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tokens: Self::BURST,
            last: None,
        }
    }

    /// Whether another error may be sent now; uses one token if so.
    pub fn allow(&mut self, now: Instant) -> bool {
        let passed = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * Self::RATE).min(Self::BURST);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}
