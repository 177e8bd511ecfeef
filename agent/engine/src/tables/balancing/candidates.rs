//! Rendezvous hashing over the back ends of a rule (L4), as arrays that one pass searches.

use super::{Member, mix};

/// The back ends that a choice may select.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    All,
    /// Those that this agent owns.
    Own,
}

/// The back ends of a rule to which new flows may go (L7).
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {
    all: ByLink,
    own: ByLink,
}

/// Back ends by the state of the link with their agent.
#[derive(Debug, Clone, Default)]
struct ByLink {
    reached: Hashes,
    /// Those with whose agent the link is down. They are chosen only if no other is there.
    unreached: Hashes,
}

/// Hashes of back ends, in ascending order of their addresses.
#[derive(Debug, Clone, Default)]
struct Hashes {
    hashes: Vec<u64>,
    /// The positions in the list of members, in the same order.
    positions: Vec<usize>,
}

impl Candidates {
    pub(super) fn of(members: &[Member]) -> Self {
        let mut up: Vec<_> = members.iter().enumerate().filter(|(_, member)| member.is_up).collect();
        up.sort_by_key(|(_, member)| member.address);
        let mut candidates = Self::default();
        for (position, member) in up {
            candidates.all.push(position, member);
            if member.own.is_some() {
                candidates.own.push(position, member);
            }
        }
        candidates
    }

    /// The position of the member whose hash together with `flow` is the highest. `None`: no back end is there.
    pub(super) fn choose(&self, flow: u64, among: Among) -> Option<usize> {
        let by_link = match among {
            Among::All => &self.all,
            Among::Own => &self.own,
        };
        by_link.reached.choose(flow).or_else(|| by_link.unreached.choose(flow))
    }
}

impl ByLink {
    fn push(&mut self, position: usize, member: &Member) {
        let hashes = match member.is_link_down {
            true => &mut self.unreached,
            false => &mut self.reached,
        };
        hashes.hashes.push(member.hash);
        hashes.positions.push(position);
    }
}

impl Hashes {
    /// The position of the member with the highest hash. Of equal hashes, the one with the highest address counts.
    fn choose(&self, flow: u64) -> Option<usize> {
        let mixed = self.hashes.iter().map(|hash| mix(flow ^ hash));
        let (at, _) = mixed.enumerate().max_by_key(|(_, mixed)| *mixed)?;
        self.positions.get(at).copied()
    }
}
