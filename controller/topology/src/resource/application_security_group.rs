//! Application security groups: NICs that security rules name together (N9).

use crate::arm::body::{MAX_ITEMS, Object};
use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::{Kind, is_child_of, parent_id};
use crate::resource::frame::{Put, Resource};
use crate::resource::{Envelope, SecurityRule};
use crate::rules::place::Place;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_proto::id::ResourceId;

/// An application security group. Besides its name it has only a region and tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationSecurityGroup {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
}

impl Resource for ApplicationSecurityGroup {
    const KIND: Kind = Kind::ApplicationSecurityGroup;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let kept = put.echoed(&mut draft.problems);
        Some(Self {
            envelope: put.envelope(draft, kept),
        })
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        let topology = &draft.topology;
        let nics = topology.nics.values().filter(|nic| {
            let mut groups = nic
                .ip_configurations
                .iter()
                .flat_map(|c| &c.application_security_groups);
            groups.any(|group| *group == old.envelope.id)
        });
        let rules = topology
            .network_security_groups
            .values()
            .flat_map(|g| &g.security_rules);
        let rules = rules.filter(|rule| rule.application_groups().any(|group| *group == old.envelope.id));
        // A message that lists thousands of NICs helps nobody.
        let users = nics.map(|n| &n.envelope.id).chain(rules.map(|r| &r.id)).take(10);
        let users: Vec<String> = users.map(ToString::to_string).collect();
        if !users.is_empty() {
            draft.problems.add(
                "InUseApplicationSecurityGroupCannotBeDeleted",
                id,
                format!(
                    "Application security group {id} cannot be deleted because it is in use by the following resources: {}.",
                    users.join(", ")
                ),
            );
        }
    }

    fn properties(&self, _views: &Views<'_>) -> Value {
        json!({})
    }
}

impl Draft<'_> {
    /// Checks that the members of all application security groups that one rule names are in one VNet (N9), for the rules
    /// for which `concerned` is true. Rules without such groups are not affected. For each group at most two VNets are
    /// remembered, which is enough to find that there are several.
    pub(crate) fn check_members_in_one_vnet(&mut self, concerned: impl Fn(&SecurityRule) -> bool) {
        let groups = self.topology.network_security_groups.values();
        let rules = groups.flat_map(|g| &g.security_rules);
        let rules: Vec<&SecurityRule> = rules
            .filter(|rule| rule.application_groups().next().is_some() && concerned(rule))
            .collect();
        if rules.is_empty() {
            return;
        }
        let named = rules.iter().flat_map(|rule| rule.application_groups());
        let mut vnets: BTreeMap<&ResourceId, Vec<ResourceId>> = named.map(|group| (group, Vec::new())).collect();
        for configuration in self.topology.nics.values().flat_map(|nic| &nic.ip_configurations) {
            for group in &configuration.application_security_groups {
                let Some(known) = vnets.get_mut(group).filter(|known| known.len() < 2) else {
                    continue;
                };
                if !known.iter().any(|vnet| is_child_of(&configuration.subnet, vnet)) {
                    known.push(parent_id(&configuration.subnet));
                }
            }
        }
        let mut wrong = Vec::new();
        for rule in rules {
            let mut all = rule.application_groups().filter_map(|group| vnets.get(group)).flatten();
            let first = all.next();
            let second = all.find(|vnet| Some(*vnet) != first);
            if let (Some(first), Some(second)) = (first, second) {
                wrong.push((rule.id.clone(), format!("{first}, {second}")));
            }
        }
        for (rule, names) in wrong {
            self.problems.add(
                "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet",
                &rule,
                format!(
                    "Security rule {rule} has Application Security Groups (ASGs) from multiple virtual networks ({names}). All \
                     ASGs on the Security Rule must be from the same virtual network (N9). Remove a group from the rule, or \
                     remove the groups from the network interfaces in one of these virtual networks."
                ),
            );
        }
    }

    /// The application security groups in the list `name` of `object`, with the ids that they were created with.
    /// `place`: the resource that the body describes. A group that does not exist, or is in another region or
    /// subscription, is a problem.
    pub(crate) fn resolve_application_groups(
        &mut self,
        object: &Object<'_>,
        name: &str,
        place: &Place<'_>,
    ) -> Vec<ResourceId> {
        let items = object.list(name, MAX_ITEMS, &mut self.problems).unwrap_or_default();
        let mut groups = Vec::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let found = self.resolve_own_beside(&object, place, |topology, group| {
                Some(&topology.application_security_groups.get(group)?.envelope)
            });
            groups.extend(found.filter(|id| !groups.contains(id)));
        }
        groups
    }
}
