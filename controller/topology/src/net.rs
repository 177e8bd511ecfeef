//! Arithmetic on prefixes (overlaps in large sets, free addresses of a subnet), and the address ranges and ASNs that
//! are reserved.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::DEFAULT_ASN;
pub(crate) use tombolo_proto::net::overlap;

/// Whether the prefix is IPv6, and its first and last address as numbers. In the order of these tuples, IPv4 prefixes
/// come before IPv6 ones.
fn span(net: &IpNet) -> (bool, u128, u128) {
    match net {
        IpNet::V4(v4) => (
            false,
            u128::from(u32::from(v4.network())),
            u128::from(u32::from(v4.broadcast())),
        ),
        IpNet::V6(v6) => (true, u128::from(v6.network()), u128::from(v6.broadcast())),
    }
}

/// A set of pairwise disjoint prefixes, sorted by address. A query for overlaps does a binary search and then visits
/// only the overlapping prefixes.
pub(crate) struct DisjointSet(Vec<(bool, u128, u128, IpNet)>);

impl DisjointSet {
    /// Sorts the prefixes. Whether they are disjoint is not checked. If two of them overlap, queries can miss overlaps,
    /// but then another rule reports the two in the same request, which is refused.
    pub(crate) fn new(prefixes: &[IpNet]) -> Self {
        let mut spans: Vec<_> = prefixes
            .iter()
            .map(|net| {
                let (family, first, last) = span(net);
                (family, first, last, *net)
            })
            .collect();
        spans.sort_unstable();
        Self(spans)
    }

    /// The prefixes of the set that overlap `net`, in order of address. Prefixes of the other address family never
    /// overlap it.
    pub(crate) fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = IpNet> + '_ {
        let (family, first, last) = span(net);
        // Disjoint prefixes in order of their first addresses are also in order of their last addresses, so a binary
        // search finds the first overlap.
        let from = self.0.partition_point(|s| (s.0, s.2) < (family, first));
        self.0[from..]
            .iter()
            .take_while(move |s| s.0 == family && s.1 <= last)
            .map(|s| s.3)
    }

    /// The prefix of the set that contains all of `net`. `None`: no single prefix contains `net`; several of them
    /// together may contain it.
    pub(crate) fn containing(&self, net: &IpNet) -> Option<IpNet> {
        self.overlapping(net).find(|member| member.contains(net))
    }

    /// All overlapping pairs of a prefix of the set and a prefix of `others`, ordered, without duplicates.
    pub(crate) fn overlaps_with<'a>(&self, others: impl IntoIterator<Item = &'a IpNet>) -> Vec<(IpNet, IpNet)> {
        let mut pairs = BTreeSet::new();
        for other in others {
            pairs.extend(self.overlapping(other).map(|member| (member, *other)));
        }
        pairs.into_iter().collect()
    }
}

/// Pairs of indices of overlapping prefixes, ordered, the smaller index first; empty only if all prefixes are disjoint.
/// Not every overlapping pair is returned: each prefix is paired with at most one prefix before it in order of address,
/// so n equal prefixes result in n − 1 pairs.
pub(crate) fn overlaps_within(prefixes: &[IpNet]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..prefixes.len()).collect();
    order.sort_by_key(|&i| (span(&prefixes[i]).0, span(&prefixes[i]).1, prefixes[i].prefix_len(), i));
    let mut pairs = Vec::new();
    // The prefixes are in the order of their first addresses. So it is enough to compare each prefix with the earlier
    // one that ends last: if it overlaps any earlier prefix, it overlaps that one.
    let mut widest: Option<usize> = None;
    for &i in &order {
        let (family, first, last) = span(&prefixes[i]);
        match widest.map(|w| (w, span(&prefixes[w]))) {
            Some((w, (f, _, end))) if f == family && end >= first => {
                pairs.push((w.min(i), w.max(i)));
                if last > end {
                    widest = Some(i);
                }
            }
            _ => widest = Some(i),
        }
    }
    pairs.sort_unstable();
    pairs
}

/// Whether two lists have the same prefixes, in any order and any number of times. The prefixes are not merged: a list
/// with a /16 differs from a list with the two halves of this /16.
pub(crate) fn same_set(a: &[IpNet], b: &[IpNet]) -> bool {
    let sorted = |s: &[IpNet]| s.iter().copied().collect::<BTreeSet<_>>();
    a == b || sorted(a) == sorted(b)
}

/// Prefixes for a message, in the given order and separated by commas.
pub(crate) fn listed<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> String {
    let texts: Vec<String> = prefixes.into_iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Pairs of overlapping prefixes as text for a message: the first 20, and an ellipsis if there are more. A pair of
/// equal prefixes is written as one prefix.
pub(crate) fn pairs(pairs: &[(IpNet, IpNet)]) -> String {
    let mut texts: Vec<String> = pairs
        .iter()
        .take(20)
        .map(|(a, b)| if a == b { a.to_string() } else { listed([a, b]) })
        .collect();
    if pairs.len() > texts.len() {
        texts.push("…".to_owned());
    }
    texts.join(", ")
}

/// The special-use block (loopback, link-local, multicast, unspecified, Azure's virtual public IP) that `net` overlaps:
/// `net` equals the block, is a part of it, or contains it. No VNet can have such a prefix. `None`: `net` overlaps none
/// of them.
pub(crate) fn special_use(net: &IpNet) -> Option<&'static str> {
    const BLOCKS: [&str; 9] = [
        // "This network" (RFC 1122), loopback, link-local (RFC 3927), Azure's virtual public IP address, and multicast
        // with the reserved class E and the broadcast address.
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "168.63.129.16/32",
        "224.0.0.0/3",
        // Unspecified and loopback, IPv4-mapped, link-local, multicast (RFC 4291).
        "::/127",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    BLOCKS
        .into_iter()
        .find(|block| block.parse::<IpNet>().is_ok_and(|block| overlap(&block, net)))
}

/// Whether Azure or IANA reserves an ASN, so that no gateway can have that ASN (G4). False for the default ASN of
/// gateways, [`DEFAULT_ASN`], which only [`is_reserved_for_customers`] includes.
pub(crate) fn is_reserved_asn(asn: i64) -> bool {
    // Microsoft's public ASNs; AS_TRANS (RFC 6793); documentation (RFC 5398); Azure's private ASNs; the last two-byte
    // ASN (RFC 7300) and documentation (RFC 5398).
    matches!(asn, 8074 | 8075 | 12076 | 23456 | 64496..=64511 | 65517..=65520 | 65535..=65551)
}

/// Whether an ASN is forbidden for sites and for customers of circuits (G4): it is reserved, or it is the default ASN
/// of gateways.
pub(crate) fn is_reserved_for_customers(asn: i64) -> bool {
    is_reserved_asn(asn) || asn == i64::from(DEFAULT_ASN)
}

/// Whether an address is in 169.254.21.0 to 169.254.22.255, the link-local range that Azure allows for BGP peers (G4).
pub(crate) fn is_apipa(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets(), [169, 254, 21 | 22, _]))
}

/// The address with a number, in the family of a [`span`].
fn address(family_v6: bool, number: u128) -> IpAddr {
    if family_v6 {
        IpAddr::V6(number.into())
    } else {
        // The number lies between the first and the last address of an IPv4 prefix, so it fits into 32 bits.
        IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into())
    }
}

/// Whether an address is reserved in a subnet's prefix. As in Azure, the first four addresses (network, gateway, two
/// for DNS) and the last one (broadcast) are reserved (P2). `address` must be in `prefix`.
pub(crate) fn is_reserved(prefix: &IpNet, address: IpAddr) -> bool {
    let (_, first, last) = span(prefix);
    let (_, own, _) = span(&IpNet::from(address));
    own < first.saturating_add(4) || own == last
}

/// The lowest address of `prefix` that is neither reserved (P2) nor in `used`. `None`: there is none. The time grows
/// with the number of used addresses, not with the size of the prefix.
pub(crate) fn first_free(prefix: &IpNet, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let (family, first, last) = span(prefix);
    let mut number = first.checked_add(4)?;
    while number < last {
        let candidate = address(family, number);
        if !used.contains(&candidate) {
            return Some(candidate);
        }
        number += 1;
    }
    None
}

/// The highest address of `prefix` that is neither reserved (P2) nor in `used`. `None`: there is none.
pub(crate) fn last_free(prefix: &IpNet, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let (family, first, last) = span(prefix);
    let lowest = first.checked_add(4)?;
    let mut number = last.checked_sub(1)?;
    while number >= lowest {
        let candidate = address(family, number);
        if !used.contains(&candidate) {
            return Some(candidate);
        }
        number -= 1;
    }
    None
}

/// Whether a prefix has at least 32 addresses: an IPv4 /27, an IPv6 /123, or a shorter prefix.
pub(crate) fn holds_32(prefix: &IpNet) -> bool {
    prefix.max_prefix_len() - prefix.prefix_len() >= 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn p2_first_four_and_last_are_reserved() {
        let prefix = net("10.0.0.8/29");
        let used = BTreeSet::new();
        assert_eq!(first_free(&prefix, &used), Some("10.0.0.12".parse().unwrap()));
        let free: Vec<_> = (8..16)
            .map(|i| format!("10.0.0.{i}").parse::<IpAddr>().unwrap())
            .filter(|a| !is_reserved(&prefix, *a))
            .collect();
        assert_eq!(free.len(), 3);
        let all = free.into_iter().collect();
        assert_eq!((first_free(&prefix, &all), last_free(&prefix, &all)), (None, None));
        let last = last_free(&prefix, &used);
        assert_eq!(last, Some("10.0.0.14".parse().unwrap()));
        let next = last_free(&prefix, &last.into_iter().collect());
        assert_eq!(next, Some("10.0.0.13".parse().unwrap()));
        assert_eq!(first_free(&net("fd00::/64"), &used), Some("fd00::4".parse().unwrap()));
    }

    #[test]
    fn special_use_is_found_from_inside_and_from_outside() {
        for bad in [
            "127.1.0.0/16",
            "0.0.0.0/0",
            "224.0.0.0/24",
            "::/0",
            "fe80::/64",
            "168.63.0.0/16",
        ] {
            assert!(special_use(&net(bad)).is_some(), "{bad}");
        }
        for good in ["10.0.0.0/8", "fd00::/8", "100.64.0.0/10", "203.0.113.0/24"] {
            assert!(special_use(&net(good)).is_none(), "{good}");
        }
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u32..64, 26u8..=32)
                .prop_map(|(a, l)| IpNet::new(IpAddr::V4((0x0a00_0000 | a).into()), l).unwrap().trunc()),
            (0u128..64, 122u8..=128).prop_map(|(a, l)| IpNet::new(IpAddr::V6((0xfd00u128 << 112 | a).into()), l)
                .unwrap()
                .trunc()),
        ]
    }

    proptest! {
        #[test]
        fn disjoint_set_finds_what_comparing_all_finds(raw in prop::collection::vec(prefix(), 0..12), others in prop::collection::vec(prefix(), 0..12)) {
            let mut disjoint: Vec<IpNet> = Vec::new();
            for candidate in raw {
                if disjoint.iter().all(|d| !overlap(d, &candidate)) {
                    disjoint.push(candidate);
                }
            }
            let mut naive: Vec<_> = disjoint.iter().flat_map(|d| others.iter().filter(|o| overlap(d, o)).map(|o| (*d, *o))).collect();
            naive.sort();
            naive.dedup();
            prop_assert_eq!(DisjointSet::new(&disjoint).overlaps_with(&others), naive);
        }

        #[test]
        fn overlaps_within_is_empty_only_for_disjoint_sets(prefixes in prop::collection::vec(prefix(), 0..12)) {
            let pairs = overlaps_within(&prefixes);
            let naive = (0..prefixes.len()).any(|i| (0..i).any(|j| overlap(&prefixes[i], &prefixes[j])));
            prop_assert_eq!(!pairs.is_empty(), naive);
            for (a, b) in pairs {
                prop_assert!(a < b && overlap(&prefixes[a], &prefixes[b]));
            }
        }
    }
}
