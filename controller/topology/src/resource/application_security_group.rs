//! Application security groups: NICs that security rules name together (N9).

use crate::arm::body::{MAX_ITEMS, Object};
use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::{Kind, parent_id};
use crate::resource::frame::{Put, Resource};
use crate::resource::{Envelope, SecurityRule};
use crate::rules::place::Place;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Checks that the members of all application security groups that one rule names are in one VNet (N9), for the
    /// rules for which `concerned` is true. Rules without such groups are not affected.
    pub(crate) fn check_members_in_one_vnet(&mut self, concerned: impl Fn(&SecurityRule) -> bool) {
        let groups = self.topology.network_security_groups.values();
        let rules = groups.flat_map(|g| &g.security_rules);
        let rules: Vec<&SecurityRule> = rules
            .filter(|rule| rule.application_groups().next().is_some() && concerned(rule))
            .collect();
        if rules.is_empty() {
            return;
        }
        let mut vnets: BTreeMap<&ResourceId, BTreeSet<ResourceId>> = BTreeMap::new();
        for configuration in self.topology.nics.values().flat_map(|nic| &nic.ip_configurations) {
            for group in &configuration.application_security_groups {
                vnets.entry(group).or_default().insert(parent_id(&configuration.subnet));
            }
        }
        let mut wrong = Vec::new();
        for rule in rules {
            let mut all = BTreeSet::new();
            for group in rule.application_groups() {
                all.extend(vnets.get(group).into_iter().flatten());
            }
            if all.len() > 1 {
                // There can be thousands of VNets, so the message names at most ten.
                let names: Vec<&str> = all.into_iter().take(10).map(ResourceId::as_str).collect();
                wrong.push((rule.id.clone(), names.join(", ")));
            }
        }
        for (rule, names) in wrong {
            self.problems.add(
                "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet",
                &rule,
                format!(
                    "Security rule {rule} has Application Security Groups (ASGs) from multiple virtual networks ({names}). All \
                     ASGs on the Security Rule must be from the same virtual network (N9)."
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
