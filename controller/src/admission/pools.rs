//! All connections of the port by stage and holder.

use super::address::Address;
use super::limits::{Limits, Unauthenticated};
use super::pool::{Id, Pool, Share};
use super::stage::Stage;
use tombolo_proto::id::AgentId;

/// The pools of unauthenticated connections.
#[derive(Debug)]
pub(super) struct StrangerPools {
    pub(super) silent: Pool<Address>,
    pub(super) handshake: Pool<Address>,
    pub(super) strangers: Pool<Address>,
}

impl StrangerPools {
    fn new(limits: &Unauthenticated) -> Self {
        Self {
            silent: Pool::new(limits.silent),
            handshake: Pool::new(limits.handshake),
            strangers: Pool::new(limits.strangers),
        }
    }
}

/// Where a connection is kept: what its pool is chosen by, and its place there.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) stage: Stage,
    pub(super) address: Address,
    /// Its address was known for an agent when it was accepted.
    pub(super) reserved: bool,
    /// Its place in its pool: by the order of arrival.
    pub(super) order: u64,
}

/// A pool for each stage.
#[derive(Debug)]
pub(super) struct Pools {
    /// Of addresses that no agent is known at.
    pub(super) open: StrangerPools,
    /// Of addresses that agents are known at.
    pub(super) reserved: StrangerPools,
    pub(super) bearers: Pool<()>,
    agents: Pool<AgentId>,
}

impl Pools {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            open: StrangerPools::new(&limits.open),
            reserved: StrangerPools::new(&limits.reserved),
            bearers: Pool::new(Share {
                each: limits.bearers,
                total: limits.bearers,
            }),
            agents: Pool::new(Share {
                each: limits.each_agent,
                total: limits.total,
            }),
        }
    }

    /// Adds a connection. Returns the one that has to be closed for it, which is no longer in its pool.
    pub(super) fn insert(&mut self, id: Id, place: &Place) -> Option<Id> {
        let (address, order) = (place.address, place.order);
        let pools = self.strangers_mut(place.reserved);
        match &place.stage {
            Stage::Silent => pools.silent.insert(address, order, id),
            Stage::Handshake => pools.handshake.insert(address, order, id),
            Stage::Stranger => pools.strangers.insert(address, order, id),
            Stage::Bearer => self.bearers.insert((), order, id),
            Stage::Agent(agent) => self.agents.insert(agent.clone(), order, id),
        }
    }

    /// Removes the connection of a place, if it is still there.
    pub(super) fn remove(&mut self, place: &Place) {
        let (address, order) = (&place.address, place.order);
        let pools = self.strangers_mut(place.reserved);
        match &place.stage {
            Stage::Silent => pools.silent.remove(address, order),
            Stage::Handshake => pools.handshake.remove(address, order),
            Stage::Stranger => pools.strangers.remove(address, order),
            Stage::Bearer => self.bearers.remove(&(), order),
            Stage::Agent(agent) => self.agents.remove(agent, order),
        }
    }

    /// Takes an unauthenticated connection out: those of addresses without agents before others, and in each part the
    /// stages in order.
    pub(super) fn take_unauthenticated(&mut self) -> Option<Id> {
        [&mut self.open, &mut self.reserved].into_iter().find_map(|p| {
            let silent = p.silent.take_from_largest();
            silent
                .or_else(|| p.handshake.take_from_largest())
                .or_else(|| p.strangers.take_from_largest())
        })
    }

    /// The address that holds the most unauthenticated connections in one stage, and how many.
    pub(super) fn largest(&self) -> Option<(Address, usize)> {
        let pools = [&self.open, &self.reserved];
        let all = pools.iter().flat_map(|p| [&p.silent, &p.handshake, &p.strangers]);
        let largest = all.filter_map(Pool::largest).max_by_key(|(_, n)| *n)?;
        Some((*largest.0, largest.1))
    }

    const fn strangers_mut(&mut self, reserved: bool) -> &mut StrangerPools {
        if reserved { &mut self.reserved } else { &mut self.open }
    }
}
