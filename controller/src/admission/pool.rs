//! Connections in one stage, grouped by holder (an address or an agent), with a limit for each holder and a limit for
//! all holders together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// Identifies a connection. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) u64);

/// The limits of a pool, in connections. A holder is an address or an agent, for which connections are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Largest number of connections of one holder.
    pub per_holder: usize,
    /// Largest number of connections of all holders together.
    pub total: usize,
}

/// A set of connections that admits every new connection. If the holder of the new connection is at its limit, its
/// oldest connection is displaced. If all holders together are at their limit, the oldest connection of the holder with
/// the most connections is displaced. So a holder below its own limit loses no connection while another holder has
/// more.
#[derive(Debug)]
pub(super) struct Pool<K> {
    share: Share,
    /// The connections of each holder by their order of arrival in this pool.
    holders: HashMap<K, BTreeMap<u64, Id>>,
    /// The holders by their number of connections. Among holders with the same number, the holder of the oldest
    /// connection comes last.
    by_size: BTreeSet<(usize, Reverse<u64>, K)>,
    len: usize,
}

impl<K: Clone + Eq + Hash + Ord> Pool<K> {
    /// An empty pool with these limits.
    pub(super) fn new(share: Share) -> Self {
        Self {
            share,
            holders: HashMap::new(),
            by_size: BTreeSet::new(),
            len: 0,
        }
    }

    /// The number of connections in the pool, of all holders.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Adds a connection. `order` must be larger than that of every connection added before. Returns the displaced
    /// connection, which is no longer in the pool. The new connection itself is displaced only if a limit is 0.
    pub(super) fn insert(&mut self, holder: K, order: u64, id: Id) -> Option<Id> {
        let held = self.change(holder.clone(), |connections| {
            connections.insert(order, id);
            connections.len()
        });
        self.len += 1;
        if held > self.share.per_holder {
            return self.pop_oldest(&holder);
        }
        if self.len > self.share.total {
            return self.pop_from_largest();
        }
        None
    }

    /// Removes and returns the oldest connection of the holder that has the most connections. `None`: the pool is
    /// empty.
    pub(super) fn pop_from_largest(&mut self) -> Option<Id> {
        let (_, _, holder) = self.by_size.last()?.clone();
        self.pop_oldest(&holder)
    }

    /// Removes the connection with this order of a holder. Does nothing if there is no such connection in the pool.
    pub(super) fn remove(&mut self, holder: &K, order: u64) {
        if self.holders.get(holder).is_some_and(|c| c.contains_key(&order)) {
            self.change(holder.clone(), |connections| connections.remove(&order));
            self.len -= 1;
        }
    }

    fn pop_oldest(&mut self, holder: &K) -> Option<Id> {
        let oldest = self.change(holder.clone(), BTreeMap::pop_first);
        let (_, id) = oldest?;
        self.len -= 1;
        Some(id)
    }

    /// Changes the connections of a holder by calling `change`, and updates the holder's entry in `by_size`.
    fn change<T>(&mut self, holder: K, change: impl FnOnce(&mut BTreeMap<u64, Id>) -> T) -> T {
        let connections = self.holders.entry(holder.clone()).or_default();
        if let Some(key) = size_key(&holder, connections) {
            self.by_size.remove(&key);
        }
        let result = change(connections);
        match size_key(&holder, connections) {
            Some(key) => {
                self.by_size.insert(key);
            }
            None => {
                self.holders.remove(&holder);
            }
        }
        result
    }

    /// The holder with the most connections, and how many it has. `None`: the pool is empty.
    pub(super) fn largest(&self) -> Option<(&K, usize)> {
        self.by_size.last().map(|(size, _, holder)| (holder, *size))
    }

    /// The number of a holder's connections in the pool.
    #[cfg(test)]
    pub(super) fn held(&self, holder: &K) -> usize {
        self.holders.get(holder).map_or(0, BTreeMap::len)
    }
}

/// The entry of a holder in `by_size`; `None` if the holder has no connection.
fn size_key<K: Clone>(holder: &K, connections: &BTreeMap<u64, Id>) -> Option<(usize, Reverse<u64>, K)> {
    let (oldest, _) = connections.first_key_value()?;
    Some((connections.len(), Reverse(*oldest), holder.clone()))
}
