//! Security groups whose rules are prepared once, for the tables of many agents.

use super::address_sets::AddressSets;
use super::nic_rules::GroupRules;
use super::secured_nics::without_routes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::config::{AddressMatch, ApplicationGroup, SecurityGroup};
use tombolo_proto::id::ResourceId;

/// Prepared security groups, with all application security groups that their rules name. A diagnosis that builds the
/// tables of many agents has each group in memory only once.
#[derive(Debug, Default)]
pub struct PreparedGroups {
    pub(super) sets: AddressSets,
    pub(super) groups: BTreeMap<ResourceId, Arc<GroupRules>>,
}

impl PreparedGroups {
    /// Prepares groups. `application_groups` must have each group that a rule names.
    #[must_use]
    pub fn new(groups: Vec<SecurityGroup>, application_groups: &[ApplicationGroup]) -> Self {
        let sets = without_routes(application_groups);
        let prepared = groups.into_iter().map(|group| {
            let rules = GroupRules::new(group.id.clone(), group.rules, &sets);
            (group.id, Arc::new(rules))
        });
        Self {
            groups: prepared.collect(),
            sets,
        }
    }

    /// Prepares a group anew that has other rules now. `None`: a rule names an application security group that these groups
    /// do not have.
    #[must_use]
    pub fn prepare(&self, group: SecurityGroup) -> Option<Arc<GroupRules>> {
        let sides = group.rules.iter().flat_map(|rule| [&rule.source, &rule.destination]);
        let names = sides.flat_map(|side| match side {
            AddressMatch::Sets(names) => names.as_slice(),
            AddressMatch::Any | AddressMatch::Prefixes(_) => &[],
        });
        let are_known = names.into_iter().all(|name| self.sets.id(name).is_some());
        are_known.then(|| Arc::new(GroupRules::new(group.id, group.rules, &self.sets)))
    }
}
