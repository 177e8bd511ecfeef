//! The routes of one neighbour, as BIRD sends them: an Adj-RIB-In (RFC 4271) that survives a restart of BIRD.

use super::message::{Family, Path, Update};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::route::{Route, RouteOrigin};

/// One neighbour's routes. When the session with BIRD ends, its routes become stale instead of being removed, because
/// the neighbour may still forward packets. This is what RFC 4724 demands of a Receiving Speaker. The caller removes
/// stale routes by [`remove_stale`](Self::remove_stale); the table has no timer.
#[derive(Debug, Default)]
pub struct Table {
    /// AS paths of the present session, by prefix and path identifier. A prefix may have two paths for a moment, while
    /// a new path replaces an old one.
    current: BTreeMap<Path, Arc<[u32]>>,
    /// AS paths of earlier sessions, the latest one for each prefix.
    stale: BTreeMap<IpNet, Arc<[u32]>>,
    /// The families for which the present session has sent End-of-RIB.
    complete: BTreeSet<Family>,
}

impl Table {
    /// Applies an UPDATE: first withdrawals, then new paths. A withdrawal does not remove a stale route. Returns
    /// whether a path changed, or a family became complete. The prefixes must have no host bits set.
    pub fn apply(&mut self, update: Update) -> bool {
        let mut changed = false;
        for path in &update.withdrawn {
            changed |= self.current.remove(path).is_some();
        }
        let as_path: Arc<[u32]> = update.as_path.into();
        for path in update.reached {
            changed |= self.current.insert(path, as_path.clone()).as_ref() != Some(&as_path);
        }
        if let Some(family) = update.end_of_rib {
            changed |= self.complete.insert(family);
        }
        changed
    }

    /// Whether the present session has sent End-of-RIB for both families. False while there is no session.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.len() == Family::ALL.len()
    }

    /// Whether the table keeps routes of an earlier session.
    #[must_use]
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Makes the routes of the present session stale. The caller calls this when the session has ended. Stale routes of
    /// earlier sessions stay, except those to prefixes that the present session has a route to.
    pub fn end_session(&mut self) {
        self.complete.clear();
        for ((prefix, _), as_path) in std::mem::take(&mut self.current) {
            self.stale.insert(prefix, as_path);
        }
    }

    /// Removes the routes of earlier sessions at once.
    pub fn remove_stale(&mut self) {
        self.stale.clear();
    }

    /// All routes in ascending order, without duplicates: the routes of the present session, and the stale routes to
    /// other prefixes. The origin of each is [`RouteOrigin::Site`].
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let present: BTreeSet<&IpNet> = match self.stale.is_empty() {
            true => BTreeSet::new(),
            false => self.current.keys().map(|(prefix, _)| prefix).collect(),
        };
        let stale = self.stale.iter().filter(|(prefix, _)| !present.contains(prefix));
        let current = self.current.iter().map(|((prefix, _), as_path)| (prefix, as_path));
        let mut routes: Vec<Route> = current
            .chain(stale)
            .map(|(prefix, as_path)| route(*prefix, as_path))
            .collect();
        routes.sort_unstable();
        routes.dedup();
        routes
    }
}

fn route(prefix: IpNet, as_path: &[u32]) -> Route {
    Route {
        prefix,
        via: None,
        as_path: as_path.to_vec(),
        weight: 0,
        origin: RouteOrigin::Site,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    fn path(prefix: &str, identifier: u32) -> Path {
        (prefix.parse().unwrap(), identifier)
    }

    fn reach(paths: &[Path], as_path: &[u32]) -> Update {
        Update {
            reached: paths.to_vec(),
            as_path: as_path.to_vec(),
            ..Update::default()
        }
    }

    fn withdraw(paths: &[Path]) -> Update {
        Update {
            withdrawn: paths.to_vec(),
            ..Update::default()
        }
    }

    fn shown(table: &Table) -> Vec<(String, Vec<u32>)> {
        let routes = table.routes().into_iter();
        routes.map(|r| (r.prefix.to_string(), r.as_path)).collect()
    }

    fn line(prefix: &str, as_path: &[u32]) -> (String, Vec<u32>) {
        (prefix.to_owned(), as_path.to_vec())
    }

    #[test]
    fn a_path_replaces_the_one_with_its_identifier() {
        let mut table = Table::default();
        assert!(table.apply(reach(&[path("10.1.0.0/16", 1), path("fd00::/64", 1)], &[65021])));
        assert!(!table.apply(reach(&[path("10.1.0.0/16", 1)], &[65021])));
        assert!(table.apply(reach(&[path("10.1.0.0/16", 1)], &[65021, 7])));
        assert_eq!(
            shown(&table),
            [line("10.1.0.0/16", &[65021, 7]), line("fd00::/64", &[65021])]
        );
        // After a reset of the neighbour's session, BIRD sends the new path before it withdraws the old one.
        table.apply(reach(&[path("10.1.0.0/16", 2)], &[65021, 7]));
        assert_eq!(shown(&table).len(), 2);
        table.apply(withdraw(&[path("10.1.0.0/16", 1)]));
        assert_eq!(shown(&table).len(), 2);
        assert!(table.apply(withdraw(&[path("10.1.0.0/16", 2), path("fd00::/64", 1)])));
        assert!(!table.apply(withdraw(&[path("10.1.0.0/16", 2)])));
        assert_eq!(shown(&table), []);
    }

    #[test]
    fn stale_routes_fill_in_until_they_are_removed() {
        let mut table = Table::default();
        table.apply(reach(&[path("10.1.0.0/16", 1), path("10.2.0.0/16", 1)], &[1]));
        table.end_session();
        assert_eq!(shown(&table).len(), 2);
        table.apply(reach(&[path("10.1.0.0/16", 9)], &[2]));
        assert_eq!(shown(&table), [line("10.1.0.0/16", &[2]), line("10.2.0.0/16", &[1])]);
        let complete = |f| Update {
            end_of_rib: Some(f),
            ..Update::default()
        };
        assert!(table.apply(complete(Family::V4)) && !table.is_complete());
        assert!(table.apply(complete(Family::V6)) && table.is_complete());
        // When a second session ends, the stale routes of the first session stay.
        table.end_session();
        assert!(!table.is_complete() && table.has_stale());
        assert_eq!(shown(&table).len(), 2);
        table.remove_stale();
        assert_eq!(shown(&table), []);
    }
}
