//! A cache of packet decisions. It saves most lookups in the tables, because most packets belong to the same flow as a
//! recent packet.
//!
//! A decision depends on ingress, source and destination. If a route shares flows between several links, the decision
//! also depends on the ports, and if there are load balancers, on ports and protocol. The choice of a load balancer holds
//! for about a second, and not for a packet that asks for a new connection: the flow may have ended, and another lane may
//! have seen the beginning of the next one. The TTL changes the decision only if it expires here, so packets whose TTL
//! expires here bypass the cache. New tables clear the cache.

use crate::decide::Ingress;
use crate::packet::PacketInfo;
use crate::security::CountedFlow;
use crate::tables::Choice;
use crate::verdict::{DropReason, Verdict};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

/// Number of cache slots; a power of two, so that a mask selects the slot. Flows whose hashes select the same slot
/// overwrite each other.
const SLOTS: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    ingress: Ingress,
    source: IpAddr,
    destination: IpAddr,
    ports: u32,
    /// 0 if decisions do not depend on ports.
    protocol: u8,
}

/// The cache: one decision in each slot.
#[derive(Debug)]
pub(crate) struct FlowCache {
    slots: Box<[Option<Slot>]>,
    hash: FixedState,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: Key,
    verdict: Verdict,
    /// The choice of a load balancer for the flow.
    choice: Option<Choice>,
    admission: Option<Admission>,
}

/// The last time when security groups admitted a packet of the slot's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admission {
    /// The IP protocol of the packet. The slot's key does not have it.
    pub(crate) protocol: u8,
    /// The period in which it was admitted; one of `security::guard`.
    pub(crate) period: u32,
    /// The choice of a load balancer to whose flow the packet is a reply.
    pub(crate) replies_to: Option<Choice>,
    /// The flow, if a flow log has its packets counted. Then `period` has the bit [`COUNTED`].
    pub(crate) counted: Option<CountedFlow>,
}

/// Bit of [`Admission::period`]: the flow's packets are counted. So a comparison with the present period fails, and
/// packets of other flows need no look at [`Admission::counted`].
pub(crate) const COUNTED: u32 = 1 << 31;

/// How packets are told apart, and what a cached decision must fulfil to apply to one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    /// Whether decisions depend on ports and protocol. The value must stay the same until the next
    /// [`FlowCache::clear`].
    pub(crate) by_ports: bool,
    /// Whether the packet asks for a new connection. A decision with a choice does not apply to it.
    pub(crate) opens: bool,
    /// The present period of `security::guard`. A decision with a choice applies only if security groups admitted a packet
    /// of the flow in this period.
    pub(crate) period: u32,
}

impl Slot {
    /// Whether the decision applies to a packet with this key.
    fn applies(&self, key: &Key, lookup: Lookup) -> bool {
        let is_recent = || {
            self.admission
                .is_some_and(|admission| admission.period & !COUNTED == lookup.period)
        };
        self.key == *key && (self.choice.is_none() || !lookup.opens && is_recent())
    }
}

impl FlowCache {
    /// Creates an empty cache. `seed` must be secret, so that senders cannot choose addresses that share one slot.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            slots: vec![None; SLOTS].into_boxed_slice(),
            hash: FixedState::with_seed(seed),
        }
    }

    /// Returns the cached decision with the choice of a load balancer, and where the slot keeps its admission by security
    /// groups; `None`: the decision is not cached. If there is no cached decision that applies, calls `decide`, and caches
    /// the result. A packet with a TTL of 1 or 0 is always decided anew, and the result is not cached.
    #[inline]
    pub(crate) fn decide_and_admit(
        &mut self,
        ingress: Ingress,
        packet: &PacketInfo,
        lookup: Lookup,
        decide: impl FnOnce() -> (Verdict, Option<Choice>),
    ) -> (Verdict, Option<Choice>, Option<&mut Option<Admission>>) {
        if packet.ttl <= 1 {
            let (verdict, choice) = decide();
            return (verdict, choice, None);
        }
        let key = Key {
            ingress,
            source: packet.source,
            destination: packet.destination,
            ports: if lookup.by_ports { packet.ports } else { 0 },
            protocol: if lookup.by_ports { packet.protocol } else { 0 },
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        // A hash selects exactly one slot, and the lookup searches no others. So the most work that a packet can cause
        // is one decision.
        let slot = &mut self.slots[self.hash.hash_one(key) as usize & (SLOTS - 1)];
        if slot.is_none_or(|slot| !slot.applies(&key, lookup)) {
            *slot = None;
        }
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let (verdict, choice) = decide();
                // A new connection with the same ports has another back end.
                if verdict == Verdict::Drop(DropReason::BackEndGone) {
                    return (verdict, choice, None);
                }
                slot.insert(Slot {
                    key,
                    verdict,
                    choice,
                    admission: None,
                })
            }
        };
        (slot.verdict, slot.choice, Some(&mut slot.admission))
    }

    /// Removes all decisions. The caller does so when it replaces the tables.
    pub(crate) fn clear(&mut self) {
        self.slots.fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{LinkIndex, NicIndex};

    impl FlowCache {
        fn decide(
            &mut self,
            ingress: Ingress,
            packet: &PacketInfo,
            by_ports: bool,
            decide: impl FnOnce() -> Verdict,
        ) -> Verdict {
            let lookup = Lookup {
                by_ports,
                opens: false,
                period: 0,
            };
            self.decide_and_admit(ingress, packet, lookup, || (decide(), None)).0
        }
    }

    const TUN: Ingress = Ingress::Tun(NicIndex::FIRST);

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
        let mut flows = FlowCache::new(7);
        let forward = Verdict::Forward {
            link: LinkIndex(3),
            decrement_ttl: true,
        };
        let none = || -> Verdict { panic!("known") };
        assert_eq!(flows.decide(TUN, &packet(2, 64), true, || forward), forward);
        assert_eq!(flows.decide(TUN, &packet(2, 2), true, none), forward);
        let expired = flows.decide(TUN, &packet(2, 1), true, || Verdict::TimeExceeded);
        assert_eq!(expired, Verdict::TimeExceeded);
        assert_eq!(flows.decide(TUN, &packet(2, 64), true, none), forward);
        let dropped = Verdict::Drop(DropReason::SpoofedSource);
        let elsewhere = Ingress::Link(LinkIndex(0));
        assert_eq!(flows.decide(elsewhere, &packet(2, 64), true, || dropped), dropped);
        flows.clear();
        assert_eq!(flows.decide(TUN, &packet(2, 64), true, || dropped), dropped);
    }

    /// The choice of a load balancer applies to the packets of one period that do not ask for a new connection.
    #[test]
    fn l4_a_choice_is_not_remembered_for_long() {
        let mut flows = FlowCache::new(7);
        let mut made = 0;
        let mut look = |flows: &mut FlowCache, opens, period| {
            let lookup = Lookup {
                by_ports: true,
                opens,
                period,
            };
            let decide = || {
                made += 1;
                (Verdict::TimeExceeded, Some(Choice(made)))
            };
            let (_, choice, admission) = flows.decide_and_admit(TUN, &packet(2, 64), lookup, decide);
            *admission.unwrap() = Some(Admission {
                protocol: 6,
                period,
                replies_to: None,
                counted: None,
            });
            choice.unwrap().0
        };
        for (opens, period, expected) in [
            (true, 1, 1),
            (false, 1, 1),
            (true, 1, 2),
            (false, 1, 2),
            (false, 2, 3),
            (false, 2, 3),
        ] {
            assert_eq!(look(&mut flows, opens, period), expected, "{opens}, {period}");
        }
    }

    #[test]
    fn ports_count_where_flows_are_spread() {
        let mut flows = FlowCache::new(7);
        let forward = |link| Verdict::Forward {
            link: LinkIndex(link),
            decrement_ttl: false,
        };
        let other = PacketInfo {
            ports: 9,
            ..packet(2, 64)
        };
        for (by_ports, expected) in [(true, 2), (false, 1)] {
            flows.clear();
            assert_eq!(flows.decide(TUN, &packet(2, 64), by_ports, || forward(1)), forward(1));
            assert_eq!(flows.decide(TUN, &other, by_ports, || forward(2)), forward(expected));
        }
    }

    #[test]
    fn more_flows_than_places_are_all_decided_rightly() {
        let mut flows = FlowCache::new(1);
        for round in 0..2 {
            for n in 0..3 * SLOTS as u32 {
                let mut p = packet(0, 64);
                p.source = std::net::Ipv4Addr::from(n).into();
                let verdict = Verdict::Forward {
                    link: LinkIndex(n),
                    decrement_ttl: false,
                };
                assert_eq!(flows.decide(TUN, &p, true, || verdict), verdict, "round {round}");
            }
        }
    }
}
