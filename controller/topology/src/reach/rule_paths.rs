//! The paths on which the rules of a network interface decide, so that a change of rules need not search all paths.

use super::checks::place;
use super::path::Path;
use std::collections::HashMap;
use std::sync::Arc;
use tombolo_engine::security::NicRules;

/// All rules that decide somewhere, each with the positions of its paths. Rules are known by their place in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct RulePaths(HashMap<usize, Use>);

#[derive(Debug, Clone)]
struct Use {
    rules: Arc<NicRules>,
    paths: Arc<[u32]>,
}

impl RulePaths {
    /// Those of all paths.
    pub(super) fn of(paths: &[Arc<Path>]) -> Self {
        let mut found: HashMap<usize, (&Arc<NicRules>, Vec<u32>)> = HashMap::new();
        for (path, position) in paths.iter().zip(0..) {
            for rules in path.rules() {
                let (_, positions) = found.entry(place(rules)).or_insert_with(|| (rules, Vec::new()));
                // The same rules may decide twice on a path.
                if positions.last() != Some(&position) {
                    positions.push(position);
                }
            }
        }
        let all = found.into_iter().map(|(place, (rules, paths))| {
            let found = Use {
                rules: rules.clone(),
                paths: paths.into(),
            };
            (place, found)
        });
        Self(all.collect())
    }

    /// The new rules where `change` returns some, by the place of the old ones.
    pub(super) fn changed(&self, change: impl Fn(&NicRules) -> Option<NicRules>) -> HashMap<usize, Arc<NicRules>> {
        let all = self.0.iter();
        all.filter_map(|(place, found)| Some((*place, Arc::new(change(&found.rules)?))))
            .collect()
    }

    /// The positions of the paths on which one of these rules decides, in ascending order.
    pub(super) fn paths_of(&self, changed: &HashMap<usize, Arc<NicRules>>) -> Vec<u32> {
        let found = changed.keys().filter_map(|place| self.0.get(place));
        let mut paths: Vec<u32> = found.flat_map(|found| found.paths.iter().copied()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The same with other rules.
    pub(super) fn with(&self, changed: &HashMap<usize, Arc<NicRules>>) -> Self {
        let all = self.0.iter().map(|(old, found)| match changed.get(old) {
            Some(rules) => {
                let found = Use {
                    rules: rules.clone(),
                    paths: found.paths.clone(),
                };
                (place(rules), found)
            }
            None => (*old, found.clone()),
        });
        Self(all.collect())
    }
}
