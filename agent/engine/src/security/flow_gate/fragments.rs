//! The datagrams whose first fragments one lane has admitted: later fragments have no ports, so the decision about the
//! first one applies to them (D13).

use super::AtNic;
use crate::security::flow_key::Fragment;
use crate::security::flow_table::FlowRef;
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use tombolo_proto::config::Direction;

/// The datagrams whose first fragment one lane has admitted within the last 30 s.
#[derive(Debug)]
pub(super) struct Fragments {
    places: Box<[Option<Admitted>]>,
    hash: FixedState,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Admitted {
    fragment: Fragment,
    /// The length of the first fragment's data, in bytes.
    pub(super) end: usize,
    /// The flow of the datagram.
    pub(super) flow: Option<FlowRef>,
    nic: u8,
    direction: Direction,
    /// The last second in which later fragments pass, in seconds since the flow table was made.
    until: u32,
}

impl Fragments {
    /// Largest number of datagrams that are remembered; a power of two, so that a mask of the hash selects a place. If
    /// two datagrams have the same place, the newer one replaces the older one, and further fragments of the older one
    /// are dropped. So few places suffice because hosts reassemble few datagrams at once: Linux keeps 4 MiB of
    /// fragments.
    const PLACES: usize = 256;

    /// Time for which a datagram is remembered, in seconds. It is the time for which Linux keeps a datagram that is not
    /// complete (`ipfrag_time`).
    const TIMEOUT: u32 = 30;

    pub(super) fn new(seed: u64) -> Self {
        Self {
            places: vec![None; Self::PLACES].into_boxed_slice(),
            hash: FixedState::with_seed(seed),
        }
    }

    fn place(&self, fragment: &Fragment) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        let hash = self.hash.hash_one(fragment) as usize;
        hash & (Self::PLACES - 1)
    }

    pub(super) fn insert(&mut self, fragment: Fragment, end: usize, flow: Option<FlowRef>, at: &AtNic<'_>) {
        let place = self.place(&fragment);
        self.places[place] = Some(Admitted {
            fragment,
            end,
            flow,
            nic: at.nic,
            direction: at.direction,
            until: at.now.saturating_add(Self::TIMEOUT),
        });
    }

    /// The first fragment of a datagram. `None`: it was not admitted.
    pub(super) fn find(&self, fragment: &Fragment, at: &AtNic<'_>) -> Option<Admitted> {
        self.places[self.place(fragment)].filter(|admitted| {
            admitted.fragment == *fragment
                && admitted.nic == at.nic
                && admitted.direction == at.direction
                && at.now <= admitted.until
        })
    }
}
