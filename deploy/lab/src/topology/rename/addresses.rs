//! Assigns new prefixes to networks, without overlaps. A network inside another network keeps its position in that
//! network.

use super::Random;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kinds of networks. Each kind is a list of prefixes: a network inside of one of these has the kind. The last text
/// of each kind is the prefix in which new prefixes for the kind are chosen. A network of no kind keeps its prefix.
const POOLS: &[(&[&str], &str)] = &[
    (&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], "10.0.0.0/8"),
    (
        &["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"],
        "198.18.0.0/15",
    ),
    (&["100.64.0.0/10"], "100.64.0.0/10"),
    (&["fc00::/7"], "fd00::/8"),
    (&["2001:db8::/32"], "2001:db8::/32"),
];
/// Largest number of random attempts to find a free prefix. If all fail, the network keeps its prefix.
const MAX_ATTEMPTS: usize = 10_000;

/// Disjoint old networks, each with its new prefix of the same length.
pub(super) struct Addresses(Vec<(IpNet, IpNet)>);

impl Addresses {
    /// Chooses a new prefix for every network among `texts` that has a kind (see [`POOLS`]). Texts that are no address
    /// or prefix are ignored.
    pub(super) fn new(texts: &[String], random: &mut Random) -> Self {
        let mut networks: Vec<IpNet> = texts.iter().filter_map(|t| network(t)).collect();
        networks.sort_by_key(|n| (n.prefix_len(), *n));
        networks.dedup();
        let known: BTreeSet<IpNet> = networks.iter().copied().collect();
        // A network that keeps its prefix may contain other networks that have a kind. If the outer network has a kind
        // too, an inner network gets a new prefix inside of the outer network. Otherwise the inner network gets one in
        // the pool of its own kind.
        let (mut moved, mut held): (Vec<(IpNet, IpNet)>, Vec<IpNet>) = (Vec::new(), Vec::new());
        for network in networks {
            if moved.iter().any(|(old, _)| old.contains(&network)) {
                continue;
            }
            // `held` is sorted from the largest to the smallest network, so the last match is the smallest kept network
            // that contains `network`.
            let holder = held.iter().rev().find(|h| h.contains(&network)).copied();
            let place = holder.filter(|h| pool(*h).is_some()).or_else(|| pool(network));
            let taken: Vec<IpNet> = moved.iter().map(|(_, new)| *new).collect();
            let new = place.and_then(|place| find(place, network, &taken, &known, random));
            match new {
                Some(new) => moved.push((network, new)),
                None => held.push(network),
            }
        }
        Self(moved)
    }

    /// Returns the new text of an address or prefix; `None` for other texts.
    pub(super) fn map(&self, text: &str) -> Option<String> {
        if let Ok(address) = text.parse() {
            return Some(self.address(address).to_string());
        }
        let net: IpNet = text.parse().ok()?;
        let moved = IpNet::new(self.address(net.addr()), net.prefix_len());
        // A network that keeps its prefix may begin with the same address as an inner network that has a new prefix.
        // The text of the outer network must then stay as it is, although its first address has a new value.
        if net.prefix_len() < net.max_prefix_len() && !self.0.iter().any(|(old, _)| old.contains(&net)) {
            return Some(text.to_owned());
        }
        moved.ok().map(|net| net.to_string())
    }

    fn address(&self, old: IpAddr) -> IpAddr {
        let found = self.0.iter().find(|(net, _)| net.contains(&old));
        found.map_or(old, |(from, to)| translate(old, *from, *to))
    }
}

/// Parses an address or a prefix as a network, without host bits. An address is a network of this one address.
fn network(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).ok().map(|net: IpNet| net.trunc())
}

/// Returns the prefix in which new prefixes for networks of the same kind are chosen; `None` for a network of no kind.
fn pool(network: IpNet) -> Option<IpNet> {
    let inside = |kind: &&str| kind.parse().is_ok_and(|k: IpNet| k.contains(&network));
    let found = POOLS.iter().find(|(kinds, _)| kinds.iter().any(&inside));
    found?.1.parse().ok()
}

/// Returns a random prefix in `pool` that has the prefix length of `network` and overlaps neither a prefix in `taken`
/// nor an old network in `known`. Returns `None` if `pool` is not larger than `network`, or if no attempt succeeds.
fn find(pool: IpNet, network: IpNet, taken: &[IpNet], known: &BTreeSet<IpNet>, random: &mut Random) -> Option<IpNet> {
    if network.prefix_len() <= pool.prefix_len() {
        return None;
    }
    let apart = |a: &IpNet, b: &IpNet| !a.contains(b) && !b.contains(a);
    (0..MAX_ATTEMPTS).find_map(|_| {
        let bits = u128::from(random.next()) << 64 | u128::from(random.next());
        let place = inside(pool, network.prefix_len(), bits)?;
        // Candidates are not compared with an old network that contains the pool or `network`: every candidate may be
        // inside of such a network, and then no candidate would be free.
        let old = known.iter().filter(|k| !k.contains(&pool) && !k.contains(&network));
        let free = taken.iter().chain(old).all(|t| apart(t, &place));
        free.then_some(place)
    })
}

/// Returns the prefix in `pool` with this length whose remaining bits are taken from `bits`; `None` if the address
/// family has no such length.
fn inside(pool: IpNet, length: u8, bits: u128) -> Option<IpNet> {
    match pool {
        IpNet::V4(pool) => {
            let host = u32::from(pool.hostmask());
            let low = u32::try_from(bits & u128::from(u32::MAX)).ok()?;
            let address = Ipv4Addr::from(u32::from(pool.network()) | low & host);
            Some(IpNet::V4(Ipv4Net::new(address, length).ok()?.trunc()))
        }
        IpNet::V6(pool) => {
            let host = u128::from(pool.hostmask());
            let address = Ipv6Addr::from(u128::from(pool.network()) | bits & host);
            Some(IpNet::V6(Ipv6Net::new(address, length).ok()?.trunc()))
        }
    }
}

/// Returns the address that has the same position in `to` as `old` has in `from`. Both networks have the same length.
fn translate(old: IpAddr, from: IpNet, to: IpNet) -> IpAddr {
    match (old, from, to) {
        (IpAddr::V4(old), IpNet::V4(from), IpNet::V4(to)) => {
            let place = u32::from(old) & u32::from(from.hostmask());
            Ipv4Addr::from(u32::from(to.network()) | place).into()
        }
        (IpAddr::V6(old), IpNet::V6(from), IpNet::V6(to)) => {
            let place = u128::from(old) & u128::from(from.hostmask());
            Ipv6Addr::from(u128::from(to.network()) | place).into()
        }
        _ => old,
    }
}
