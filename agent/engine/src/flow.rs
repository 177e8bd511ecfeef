//! Decisions that are remembered: most packets are like one shortly before.
//!
//! A decision depends on where a packet came in and on its two addresses alone, and on its ports where tables spread flows over
//! links; TTL is looked at only when it runs out, and such packets are decided afresh. New tables forget everything.

use crate::decide::Ingress;
use crate::packet::PacketInfo;
use crate::verdict::Verdict;
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

/// Decisions that are kept; a power of two. Two that fall on the same place take turns.
const PLACES: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    ingress: Ingress,
    source: IpAddr,
    destination: IpAddr,
    ports: u32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Flows {
    places: Box<[Option<(Key, Verdict)>]>,
    hash: FixedState,
}

impl Flows {
    /// An empty one. `seed` keeps strangers from choosing addresses that fall on one place.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            places: vec![None; PLACES].into_boxed_slice(),
            hash: FixedState::with_seed(seed),
        }
    }

    /// The decision for a packet: remembered, or made by `decide`. `by_ports`: it may be another one for other ports.
    pub(crate) fn decide(
        &mut self,
        ingress: Ingress,
        packet: &PacketInfo,
        by_ports: bool,
        decide: impl FnOnce() -> Verdict,
    ) -> Verdict {
        if packet.ttl <= 1 {
            return decide();
        }
        let key = Key {
            ingress,
            source: packet.source,
            destination: packet.destination,
            ports: if by_ports { packet.ports } else { 0 },
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        let place = &mut self.places[self.hash.hash_one(key) as usize & (PLACES - 1)];
        match place {
            Some((known, verdict)) if *known == key => *verdict,
            Some(_) | None => {
                let verdict = decide();
                *place = Some((key, verdict));
                verdict
            }
        }
    }

    /// Forgets all decisions: there are other tables now.
    pub(crate) fn forget(&mut self) {
        self.places.fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::LinkIndex;
    use crate::verdict::DropReason;

    fn packet(last: u8, ttl: u8) -> PacketInfo {
        PacketInfo {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, last].into(),
            ttl,
            protocol: 17,
            transport: Some(20),
            ports: 7 << 16 | 7,
            len: 64,
        }
    }

    #[test]
    fn remembered_until_forgotten_and_never_for_the_last_ttl() {
        let mut flows = Flows::new(7);
        let forward = Verdict::Forward {
            link: LinkIndex(3),
            take_ttl: true,
        };
        let none = || -> Verdict { panic!("known") };
        assert_eq!(flows.decide(Ingress::Tun, &packet(2, 64), true, || forward), forward);
        assert_eq!(flows.decide(Ingress::Tun, &packet(2, 2), true, none), forward);
        let expired = flows.decide(Ingress::Tun, &packet(2, 1), true, || Verdict::TimeExceeded);
        assert_eq!(expired, Verdict::TimeExceeded);
        assert_eq!(flows.decide(Ingress::Tun, &packet(2, 64), true, none), forward);
        let dropped = Verdict::Drop(DropReason::SpoofedSource);
        let elsewhere = Ingress::Link(LinkIndex(0));
        assert_eq!(flows.decide(elsewhere, &packet(2, 64), true, || dropped), dropped);
        flows.forget();
        assert_eq!(flows.decide(Ingress::Tun, &packet(2, 64), true, || dropped), dropped);
    }

    #[test]
    fn ports_count_where_flows_are_spread() {
        let mut flows = Flows::new(7);
        let forward = |link| Verdict::Forward {
            link: LinkIndex(link),
            take_ttl: false,
        };
        let other = PacketInfo {
            ports: 9,
            ..packet(2, 64)
        };
        for (by_ports, expected) in [(true, 2), (false, 1)] {
            flows.forget();
            assert_eq!(
                flows.decide(Ingress::Tun, &packet(2, 64), by_ports, || forward(1)),
                forward(1)
            );
            assert_eq!(
                flows.decide(Ingress::Tun, &other, by_ports, || forward(2)),
                forward(expected)
            );
        }
    }

    #[test]
    fn more_flows_than_places_are_all_decided_rightly() {
        let mut flows = Flows::new(1);
        for round in 0..2 {
            for n in 0..3 * PLACES as u32 {
                let mut p = packet(0, 64);
                p.source = std::net::Ipv4Addr::from(n).into();
                let verdict = Verdict::Forward {
                    link: LinkIndex(n),
                    take_ttl: false,
                };
                assert_eq!(
                    flows.decide(Ingress::Tun, &p, true, || verdict),
                    verdict,
                    "round {round}"
                );
            }
        }
    }
}
