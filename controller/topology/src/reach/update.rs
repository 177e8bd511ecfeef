//! The reachability after a change, from the one before.

use super::sets::{Reach, Run};
use crate::learned_routes::LearnedReports;
use crate::resource::{Binding, NetworkSecurityGroup};
use crate::topology::Topology;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use tombolo_engine::security::{GroupRules, NicRules};
use tombolo_proto::config::{Direction, SecurityGroup};
use tombolo_proto::id::{AgentId, ResourceId};

/// After this number of changes of rules, everything is computed anew, so that results of old rules do not fill the memory.
const MAX_CHANGES: u32 = 100;

impl Reach {
    /// The reachability of `after`. This is the one of `before`. If only rules of security groups differ, only the paths that
    /// they are on are evaluated, and no walk is repeated. Otherwise the same as [`Reach::of`].
    #[must_use]
    pub fn after(&self, before: &Topology, after: &Topology, reports: &LearnedReports, run: Run<'_>) -> Self {
        let changed = changed_groups(before, after).filter(|_| !self.is_worn());
        let Some(rules) = changed.and_then(|changed| self.changed_rules(&changed)) else {
            return Self::of(after, reports, run);
        };
        self.memo.count_change();
        let of = (self.ends.as_slice(), self.classes.as_slice());
        let affected = self.rule_paths.paths_of(&rules);
        let new: Vec<OnceLock<_>> = affected.iter().map(|_| OnceLock::new()).collect();
        run(affected.len(), &|number| {
            new[number].get_or_init(|| self.paths[affected[number] as usize].with(&rules, of, &self.memo));
        });
        let mut paths = self.paths.clone();
        for (path, new) in affected.into_iter().zip(new) {
            if let Some(new) = new.into_inner().flatten() {
                paths[path as usize] = Arc::new(new);
            }
        }
        self.with_paths(paths, self.rule_paths.with(&rules))
    }

    /// Whether so many changes of rules were evaluated, proposed ones included, that it should be computed anew: what was
    /// computed for them stays in memory.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.memo.changes() >= MAX_CHANGES
    }

    /// The rules of network interfaces with changed groups, by the place of the old rules in memory. `None`: a new rule names
    /// an application security group that no rule has named before.
    fn changed_rules(&self, changed: &[&NetworkSecurityGroup]) -> Option<HashMap<usize, Arc<NicRules>>> {
        let prepared = self.groups.as_ref()?;
        let mut groups: BTreeMap<ResourceId, Arc<GroupRules>> = BTreeMap::new();
        for group in changed {
            let directions = [Direction::Inbound, Direction::Outbound];
            let rules = directions.into_iter().flat_map(|direction| group.compiled(direction));
            let id = group.envelope.id.clone();
            let group = SecurityGroup {
                id: id.clone(),
                rules: rules.collect(),
            };
            groups.insert(id, prepared.prepare(group)?);
        }
        Some(self.rule_paths.changed(|rules| rules.with(&groups)))
    }
}

/// What reachability depends on of each agent.
fn agents_of(topology: &Topology) -> impl Iterator<Item = (&AgentId, &Binding, bool, bool)> {
    let agents = topology.agents.values();
    agents.map(|agent| (&agent.id, &agent.binding, agent.revoked, agent.reach.many_routes))
}

/// The security groups that differ. `None`: something else differs too, or a group is only in one of the topologies.
fn changed_groups<'t>(before: &Topology, after: &'t Topology) -> Option<Vec<&'t NetworkSecurityGroup>> {
    let (old, new) = (&before.network_security_groups, &after.network_security_groups);
    if old.len() != new.len() {
        return None;
    }
    let mut changed = Vec::new();
    for (id, group) in new {
        if !old.get(id).is_some_and(|old| Arc::ptr_eq(old, group)) {
            old.get(id)?;
            changed.push(&**group);
        }
    }
    let mut same = after.clone();
    same.network_security_groups.clone_from(old);
    // Keys and endpoints of agents, and tokens, change often, and alter nothing.
    same.tokens.clone_from(&before.tokens);
    if agents_of(before).eq(agents_of(after)) {
        same.agents.clone_from(&before.agents);
    }
    same.documents_since(before).is_empty().then_some(changed)
}
