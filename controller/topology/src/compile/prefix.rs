//! Set arithmetic on prefixes.

use ipnet::IpNet;
use std::net::IpAddr;

/// The prefixes in order, IPv4 before IPv6, without duplicates. Overlapping prefixes stay as they are.
pub(super) fn sorted(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut prefixes = prefixes.to_vec();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// Whether a single prefix of `by` contains the whole `prefix`. False if only several of them together do.
pub(super) fn covered(prefix: &IpNet, by: &[IpNet]) -> bool {
    by.iter().any(|b| b.contains(prefix))
}

/// The address with a prefix length: that of the longest prefix in `prefixes` that contains the address. If no prefix
/// contains it, the length is 32 (IPv4) or 128 (IPv6).
pub(super) fn within(address: IpAddr, prefixes: &[IpNet]) -> IpNet {
    prefixes
        .iter()
        .filter(|p| p.contains(&address))
        .map(IpNet::prefix_len)
        .max()
        .and_then(|length| IpNet::new(address, length).ok())
        .unwrap_or_else(|| IpNet::from(address))
}

/// The addresses of `prefixes` that are in no prefix of `minus`, as a list of prefixes, ordered and without duplicates.
/// A prefix that is only partly in `minus` is halved until each part is either inside or outside. Adjacent prefixes of
/// the result are not merged.
pub(super) fn subtract(prefixes: &[IpNet], minus: &[IpNet]) -> Vec<IpNet> {
    /// Adds to `rest` the parts of `prefix` that are in no prefix of `minus`.
    fn cut(prefix: IpNet, minus: &[IpNet], rest: &mut Vec<IpNet>) {
        if covered(&prefix, minus) {
            return;
        }
        if !minus.iter().any(|m| prefix.contains(m)) {
            rest.push(prefix);
            return;
        }
        // `minus` has a longer prefix inside `prefix`. So `prefix` does not have the maximum length, and can be halved.
        if let Ok(halves) = prefix.subnets(prefix.prefix_len() + 1) {
            halves.for_each(|half| cut(half, minus, rest));
        }
    }
    let mut rest = Vec::with_capacity(prefixes.len());
    for prefix in prefixes {
        cut(*prefix, minus, &mut rest);
    }
    rest.sort_unstable();
    rest.dedup();
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn subtraction_cuts_out_exactly_what_is_named() {
        assert_eq!(subtract(&nets("10.0.0.0/8"), &nets("10.0.0.0/8")), nets(""));
        assert_eq!(subtract(&nets("10.0.0.0/8"), &nets("10.0.0.0/7")), nets(""));
        assert_eq!(subtract(&nets("10.0.0.0/8"), &nets("11.0.0.0/8")), nets("10.0.0.0/8"));
        assert_eq!(
            subtract(&nets("10.0.0.0/14 fd00::/16"), &nets("10.1.0.0/16 fd00::/17")),
            nets("10.0.0.0/16 10.2.0.0/15 fd00:8000::/17")
        );
        let all_but_one = subtract(&nets("0.0.0.0/0"), &nets("10.1.0.4/32"));
        assert_eq!(all_but_one.len(), 32);
        assert!(!covered(&nets("10.1.0.4/32")[0], &all_but_one));
        assert!(covered(&nets("10.1.0.5/32")[0], &all_but_one));
    }

    #[test]
    fn an_address_takes_the_length_of_its_subnet() {
        let subnet = nets("10.1.0.0/24 fd00::/64");
        assert_eq!(within("10.1.0.4".parse().unwrap(), &subnet).to_string(), "10.1.0.4/24");
        assert_eq!(within("fd00::4".parse().unwrap(), &subnet).to_string(), "fd00::4/64");
        assert_eq!(within("10.2.0.4".parse().unwrap(), &subnet).to_string(), "10.2.0.4/32");
    }
}
