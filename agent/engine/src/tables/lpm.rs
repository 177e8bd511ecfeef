//! Longest-prefix match for IPv4 and IPv6.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use std::net::IpAddr;

/// A map from IPv4 and IPv6 prefixes to values. Host bits of prefixes are ignored, in all methods.
#[derive(Debug, Clone)]
pub struct Lpm<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Self {
            v4: PrefixMap::new(),
            v6: PrefixMap::new(),
        }
    }
}

impl<T> Lpm<T> {
    /// Inserts a value for a prefix. If the same prefix was in the map, replaces its value, and returns the earlier
    /// value.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> Option<T> {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.insert(p, value),
            IpNet::V6(p) => self.v6.insert(p, value),
        }
    }

    /// The value of the longest prefix that contains the address; `None` if no prefix does. An IPv4-mapped IPv6 address
    /// is an IPv6 address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).map(|(_, v)| v),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, v)| v),
        }
    }

    /// The value of exactly this prefix; `None` if only shorter or longer ones are in the map.
    #[must_use]
    pub fn exact(&self, prefix: IpNet) -> Option<&T> {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.get(&p),
            IpNet::V6(p) => self.v6.get(&p),
        }
    }

    /// Whether one prefix of the map, equal to `prefix` or shorter, contains all addresses of `prefix`. Several
    /// prefixes that cover it only together do not count.
    #[must_use]
    pub fn covers(&self, prefix: IpNet) -> bool {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.get_lpm(&p).is_some(),
            IpNet::V6(p) => self.v6.get_lpm(&p).is_some(),
        }
    }

    /// All prefixes with their values: IPv4 before IPv6, each family in the order of addresses, a prefix before longer
    /// ones within it.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.iter().map(|(p, v)| (IpNet::V4(p), v));
        v4.chain(self.v6.iter().map(|(p, v)| (IpNet::V6(p), v)))
    }

    /// Whether the map has no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.len() == 0 && self.v6.len() == 0
    }
}
