//! What one neighbour announces, as BIRD tells it.

use super::message::{Family, Path, Update};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::route::{Route, RouteOrigin};

/// One neighbour's routes. When the session with BIRD ends they stay, as stale ones, until a new session has told anew what
/// there is: BIRD's death is not the neighbour's (RFC 4724, seen from the one who waits).
#[derive(Debug, Default)]
pub struct Table {
    /// The session's, by path: one prefix may have two for a moment, while one replaces the other.
    told: BTreeMap<Path, Arc<[u32]>>,
    /// What earlier sessions told.
    stale: BTreeMap<IpNet, Arc<[u32]>>,
    /// The families in which the session has told all that there is.
    complete: BTreeSet<Family>,
}

impl Table {
    /// Takes an UPDATE in. Returns whether it changed what is told, or said that a first table is complete.
    pub fn apply(&mut self, update: Update) -> bool {
        let mut changed = false;
        for path in &update.withdrawn {
            changed |= self.told.remove(path).is_some();
        }
        let as_path: Arc<[u32]> = update.as_path.into();
        for path in update.reached {
            changed |= self.told.insert(path, as_path.clone()).as_ref() != Some(&as_path);
        }
        if let Some(family) = update.end_of_rib {
            changed |= self.complete.insert(family);
        }
        changed
    }

    /// Whether the session has told all that there is.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.len() == Family::ALL.len()
    }

    /// Whether there is something that only an earlier session told.
    #[must_use]
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// The session ended: what it told is stale now.
    pub fn end_session(&mut self) {
        self.complete.clear();
        for ((prefix, _), as_path) in std::mem::take(&mut self.told) {
            self.stale.insert(prefix, as_path);
        }
    }

    /// Forgets what only earlier sessions told.
    pub fn forget_stale(&mut self) {
        self.stale.clear();
    }

    /// All routes, ordered: those of the session, and stale ones for prefixes that it has not told of.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let told: BTreeSet<&IpNet> = match self.stale.is_empty() {
            true => BTreeSet::new(),
            false => self.told.keys().map(|(prefix, _)| prefix).collect(),
        };
        let stale = self.stale.iter().filter(|(prefix, _)| !told.contains(prefix));
        let told = self.told.iter().map(|((prefix, _), as_path)| (prefix, as_path));
        let mut routes: Vec<Route> = told
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
    #![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

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
        // The neighbour's session was renewed: the new path comes before the old one goes.
        table.apply(reach(&[path("10.1.0.0/16", 2)], &[65021, 7]));
        assert_eq!(shown(&table).len(), 2);
        table.apply(withdraw(&[path("10.1.0.0/16", 1)]));
        assert_eq!(shown(&table).len(), 2);
        assert!(table.apply(withdraw(&[path("10.1.0.0/16", 2), path("fd00::/64", 1)])));
        assert!(!table.apply(withdraw(&[path("10.1.0.0/16", 2)])));
        assert_eq!(shown(&table), []);
    }

    #[test]
    fn stale_routes_fill_in_until_they_are_forgotten() {
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
        // A second crash before that: what the first one left is as good as ever.
        table.end_session();
        assert!(!table.is_complete() && table.has_stale());
        assert_eq!(shown(&table).len(), 2);
        table.forget_stale();
        assert_eq!(shown(&table), []);
    }
}
