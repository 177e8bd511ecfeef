//! How evenly the flows of a rule are spread over its back ends, and which flows a change moves (L4).
//!
//! A hash spreads flows like chance does. Of F flows, each of N back ends gets F/N on average, with a standard deviation of
//! √(F/N·(1 − 1/N)). So 10,000 flows for each back end show a deviation of 1 %, and 5 % would be five times as much. With
//! 10,000 flows in all, each of 100 back ends gets 100 with a deviation of 10 %.

use super::*;
use std::collections::BTreeMap;

/// Sizes of pools.
const SIZES: [u16; 9] = [2, 3, 5, 10, 20, 50, 64, 65, 100];

/// How the flows of a test differ.
#[derive(Debug, Clone, Copy)]
enum Flows {
    /// Consecutive ports of one client, and then of the next one.
    Ports,
    /// Consecutive addresses of clients that use the same port.
    Clients,
    /// Sixteen consecutive ports of each of consecutive addresses.
    Both,
}

impl Flows {
    /// The client's address, as a distance from the first one, and its port.
    fn client(self, n: u32) -> (u32, u16) {
        /// Number of ephemeral ports of Linux, from 32768 on.
        const PORTS: u32 = 28_232;
        let (client, port) = match self {
            Self::Ports => (n / PORTS, n % PORTS),
            Self::Clients => (n, 0),
            Self::Both => (n / 16, n % 16),
        };
        (client, 32_768 + u16::try_from(port).unwrap())
    }
}

/// The address number `n` after the first of the network 10.`net`.0.0 or fd00:`net`::.
fn numbered(is_v6: bool, net: u8, n: u32) -> IpAddr {
    match is_v6 {
        false => IpAddr::from((u32::from_be_bytes([10, net, 0, 4]) + n).to_be_bytes()),
        true => IpAddr::from(((0xfd00 << 112 | u128::from(net) << 96 | 4) + u128::from(n)).to_be_bytes()),
    }
}

/// A rule with consecutive addresses as back ends.
fn rule(is_v6: bool, distribution: Distribution, count: u16) -> Rule {
    let back_ends = (0..count).map(|n| numbered(is_v6, 1, n.into())).collect::<Vec<_>>();
    let all = in_state(distribution, &[], &RoutingState::default(), |rule| {
        rule.back_ends.clone_from(&back_ends);
    });
    all.all[0].rules[0].clone()
}

fn flow(is_v6: bool, flows: Flows, n: u32) -> PacketInfo {
    let (client, port) = flows.client(n);
    PacketInfo {
        source: numbered(is_v6, 2, client),
        destination: numbered(is_v6, 3, 0),
        ports: u32::from(port) << 16 | 80,
        ..packet(0, 0)
    }
}

/// The number of flows that each back end gets.
fn counts(rule: &Rule, is_v6: bool, flows: Flows, total: u32) -> Vec<u32> {
    let position: BTreeMap<IpAddr, usize> = rule.members.iter().map(|m| m.address).zip(0..).collect();
    let mut counts = vec![0; rule.members.len()];
    for n in 0..total {
        let chosen = rule.choose(&flow(is_v6, flows, n), Among::All).unwrap();
        counts[position[&chosen.address]] += 1;
    }
    counts
}

/// The distributions with the flows that they tell apart.
const CASES: [(Distribution, Flows); 5] = [
    (Distribution::Default, Flows::Ports),
    (Distribution::Default, Flows::Clients),
    (Distribution::Default, Flows::Both),
    (Distribution::SourceIP, Flows::Clients),
    (Distribution::SourceIPProtocol, Flows::Clients),
];

/// The share of each back end is within 5 % of an even share, measured with 10,000 flows for each. Pools of up to 20 back
/// ends are measured in all cases. Of the larger ones, which take much longer, one case of each family is.
fn assert_even(is_v6: bool, of_large: (Distribution, Flows)) {
    for count in SIZES {
        let cases = if count <= 20 { &CASES[..] } else { &[of_large] };
        for (distribution, flows) in cases {
            let rule = rule(is_v6, *distribution, count);
            let counts = counts(&rule, is_v6, *flows, 10_000 * u32::from(count));
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(
                (9500..=10_500).contains(least) && (9500..=10_500).contains(most),
                "{count} back ends, {distribution:?}, {flows:?}: {least} to {most} flows"
            );
        }
    }
}

#[test]
fn l4_each_back_end_gets_an_even_share() {
    assert_even(false, (Distribution::Default, Flows::Ports));
}

#[test]
fn l4_each_back_end_gets_an_even_share_of_ipv6() {
    assert_even(true, (Distribution::SourceIPProtocol, Flows::Clients));
}

/// Of 10,000 flows, at most 5 % would have to move for an even spread. By chance, √((N − 1) / (2π · 10,000)) of them would
/// have to on average: 0.4 % with two back ends, and 4 % with 100. The standard deviation is 0.3 % with all sizes.
#[test]
fn l4_of_10_000_flows_few_are_at_the_wrong_back_end() {
    for count in SIZES {
        for (is_v6, (distribution, flows)) in CASES.iter().flat_map(|case| [(false, *case), (true, *case)]) {
            let counts = counts(&rule(is_v6, distribution, count), is_v6, flows, 10_000);
            let even = 10_000.0 / f64::from(count);
            let surplus: f64 = counts.iter().map(|n| (f64::from(*n) - even).max(0.0)).sum();
            let by_chance = (10_000.0 * f64::from(count - 1) / std::f64::consts::TAU).sqrt();
            assert!(
                surplus <= by_chance + 150.0 && surplus <= 500.0,
                "{count} back ends, {distribution:?}, {flows:?}: {surplus} flows too many, {by_chance} by chance"
            );
        }
    }
}

/// A back end that leaves moves only its own flows, and one that comes takes flows only for itself. The others get them
/// evenly.
#[test]
fn l4_a_change_moves_only_the_flows_of_one_back_end() {
    for count in SIZES {
        for is_v6 in [false, true] {
            let all = rule(is_v6, Distribution::Default, count);
            for leaving in [0, count / 2, count - 1].map(usize::from) {
                let mut less = all.clone();
                let gone = less.members.remove(leaving).address;
                less.candidates = Candidates::of(&less.members);
                let (mut of_gone, mut taken) = (0, BTreeMap::<IpAddr, u32>::new());
                for n in 0..2000 {
                    let packet = flow(is_v6, Flows::Both, n);
                    let of = |rule: &Rule| rule.choose(&packet, Among::All).unwrap().address;
                    let (before, after) = (of(&all), of(&less));
                    if before == gone {
                        of_gone += 1;
                        *taken.entry(after).or_default() += 1;
                    } else {
                        assert_eq!(before, after, "{count} back ends");
                    }
                }
                assert!(of_gone > 0, "{count} back ends");
                // About as many as the back ends that remain, or as the flows if there are more back ends.
                let expected = usize::from(count - 1).min(of_gone / 3).max(1);
                assert!(
                    taken.len() >= expected,
                    "{count} back ends: {of_gone} flows to {}",
                    taken.len()
                );
            }
        }
    }
}
