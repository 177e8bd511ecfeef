//! Arithmetic of prefixes.

use ipnet::IpNet;

/// Whether two prefixes have an address in common. Always false for an IPv4 and an IPv6 prefix.
#[must_use]
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
