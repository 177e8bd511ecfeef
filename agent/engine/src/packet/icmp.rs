//! The ICMP errors that the engine sends, and their rate limit.

use crate::packet::{ICMP, ICMPV6, PacketInfo};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Longest error, in bytes: an ICMPv6 error may not exceed the minimum MTU (RFC 4443, 2.4).
pub const MAX_ERROR: usize = 1280;

/// The cause of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// The TTL or hop limit expired.
    TimeExceeded,
    /// The packet is too big for the path. Holds the MTU of the path in bytes.
    TooBig(u16),
}

/// Whether the standards allow an ICMP error for a packet. They forbid one for a fragment other than the first, for an
/// ICMP error or redirect, and for a packet from or to a multicast, unspecified or broadcast address (RFC 1122, 3.2.2;
/// RFC 4443, 2.4). Of the broadcast addresses, only 255.255.255.255 is recognised. Also false if the transport header
/// was not found. `info` must be the result of parsing `packet`.
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

/// Builds the complete IP packet of an ICMP error, which is sent from `from` to the source of `packet`, and quotes the
/// start of `packet`. `info` must be the result of parsing `packet`. The checksums are complete and the TTL is 64. An
/// MTU below 1,280 in [`IcmpError::TooBig`] is raised to 1,280 for IPv6. The result has at most 576 bytes for IPv4 and
/// [`MAX_ERROR`] bytes for IPv6. Neither [`may_answer`] nor the rate limit is checked here. `None`: `from` and the
/// source of the packet belong to different address families.
///
/// # Panics
/// May panic if `packet` is shorter than `info.len`.
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
            // 48: the IPv6 header and the ICMPv6 header.
            let quote = &packet[..info.len.min(MAX_ERROR - 48)];
            let kind = match cause {
                IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                IcmpError::TooBig(mtu) => Icmpv6Type::PacketTooBig {
                    // A host ignores an MTU below the minimum of IPv6 (RFC 8200, 5).
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

/// Token bucket that limits the ICMP errors of one engine. The bucket is large enough for simultaneous traceroutes from
/// 30 sources, with three probes for each TTL (D23).
#[derive(Debug)]
pub struct Limiter {
    tokens: f64,
    last: Option<Instant>,
}

impl Limiter {
    /// Size of the bucket in errors: 30 sources send three probes for each of 30 TTLs, all at once (30 × 3 × 30).
    const BURST: f64 = 2700.0;
    /// Sustained rate, in errors per second.
    const RATE: f64 = 1000.0;

    /// Creates a full bucket: 2,700 errors may be sent at once.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tokens: Self::BURST,
            last: None,
        }
    }

    /// Returns `true` if another error may be sent at `now`, and then takes one token. The bucket refills at 1,000
    /// tokens per second. Times must not go back. Returns `false`, and takes no token, if the bucket has less than one.
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
