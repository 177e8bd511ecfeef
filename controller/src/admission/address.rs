//! The unit for which the port's limits count connections: an IPv4 address, or an IPv6 /64.

use std::net::IpAddr;

/// The address of a client, as the port's limits count it. An IPv6 host usually has a whole /64, so all addresses of a
/// /64 count as one. An IPv4-mapped IPv6 address counts as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// All 32 bits of an IPv4 address.
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
}

impl Address {
    /// Whether this is a loopback address. An IPv6 address counts as loopback if its first 64 bits are 0. The only
    /// address of that /64 that a client can have is `::1`.
    pub(super) const fn is_loopback(self) -> bool {
        match self {
            Self::V4(bits) => bits >> 24 == 127,
            Self::V6(bits) => bits == 0,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::V4(bits) => std::net::Ipv4Addr::from_bits(bits).fmt(f),
            Self::V6(bits) => write!(f, "{}/64", std::net::Ipv6Addr::from_bits(u128::from(bits) << 64)),
        }
    }
}
