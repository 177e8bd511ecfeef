//! The pools of all stages.

use super::address::Address;
use super::limits::{Limits, Unauthenticated};
use super::pool::{Id, Pool, Share};
use super::stage::Stage;
use tombolo_proto::id::AgentId;

/// The pools of unauthenticated connections, one for each stage, grouped by address.
#[derive(Debug)]
pub(super) struct UnauthenticatedPools {
    pub(super) silent: Pool<Address>,
    pub(super) handshake: Pool<Address>,
    pub(super) strangers: Pool<Address>,
}

impl UnauthenticatedPools {
    fn new(limits: &Unauthenticated) -> Self {
        Self {
            silent: Pool::new(limits.silent),
            handshake: Pool::new(limits.handshake),
            strangers: Pool::new(limits.strangers),
        }
    }
}

/// The place of a connection: the criteria by which its pool is chosen, and its position in that pool.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) stage: Stage,
    pub(super) address: Address,
    /// Whether an agent was known at the connection's address when the connection was accepted, or the address is a
    /// loopback address. The value does not change if an agent becomes known at this address later.
    pub(super) reserved: bool,
    /// The position in the pool, at least 1: a larger number means that the connection entered the pool later. It is 0
    /// before the connection enters its first pool.
    pub(super) order: u64,
}

/// The pools of all stages, by which the limits are kept.
#[derive(Debug)]
pub(super) struct Pools {
    /// Connections from addresses without agents.
    pub(super) open: UnauthenticatedPools,
    /// Connections from addresses of agents, and from this host.
    pub(super) reserved: UnauthenticatedPools,
    pub(super) bearers: Pool<()>,
    agents: Pool<AgentId>,
}

impl Pools {
    /// Empty pools with their limits.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            open: UnauthenticatedPools::new(&limits.open),
            reserved: UnauthenticatedPools::new(&limits.reserved),
            bearers: Pool::new(Share {
                per_holder: limits.bearers,
                total: limits.bearers,
            }),
            agents: Pool::new(Share {
                per_holder: limits.per_agent,
                total: limits.total,
            }),
        }
    }

    /// Adds a connection at its place. Returns the connection that it displaces, which is no longer in its pool.
    pub(super) fn insert(&mut self, id: Id, place: &Place) -> Option<Id> {
        let (address, order) = (place.address, place.order);
        let pools = self.unauthenticated_mut(place.reserved);
        match &place.stage {
            Stage::Silent => pools.silent.insert(address, order, id),
            Stage::Handshake => pools.handshake.insert(address, order, id),
            Stage::Stranger => pools.strangers.insert(address, order, id),
            Stage::Bearer => self.bearers.insert((), order, id),
            Stage::Agent(agent) => self.agents.insert(agent.clone(), order, id),
        }
    }

    /// Removes the connection of a place from its pool. Does nothing if the connection is not in the pool.
    pub(super) fn remove(&mut self, place: &Place) {
        let (address, order) = (&place.address, place.order);
        let pools = self.unauthenticated_mut(place.reserved);
        match &place.stage {
            Stage::Silent => pools.silent.remove(address, order),
            Stage::Handshake => pools.handshake.remove(address, order),
            Stage::Stranger => pools.strangers.remove(address, order),
            Stage::Bearer => self.bearers.remove(&(), order),
            Stage::Agent(agent) => self.agents.remove(agent, order),
        }
    }

    /// Removes and returns an unauthenticated connection. Prefers addresses at which no agent is known, and then the
    /// earliest stage. `None`: there is no unauthenticated connection.
    pub(super) fn pop_unauthenticated(&mut self) -> Option<Id> {
        [&mut self.open, &mut self.reserved].into_iter().find_map(|p| {
            let silent = p.silent.pop_from_largest();
            silent
                .or_else(|| p.handshake.pop_from_largest())
                .or_else(|| p.strangers.pop_from_largest())
        })
    }

    /// The address that has the most unauthenticated connections in one stage, and their number there. `None`: there
    /// are none.
    pub(super) fn largest(&self) -> Option<(Address, usize)> {
        let pools = [&self.open, &self.reserved];
        let all = pools.iter().flat_map(|p| [&p.silent, &p.handshake, &p.strangers]);
        let largest = all.filter_map(Pool::largest).max_by_key(|(_, n)| *n)?;
        Some((*largest.0, largest.1))
    }

    const fn unauthenticated_mut(&mut self, reserved: bool) -> &mut UnauthenticatedPools {
        if reserved { &mut self.reserved } else { &mut self.open }
    }
}
