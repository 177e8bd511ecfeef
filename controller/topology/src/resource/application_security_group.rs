//! Application security groups: NICs that security rules name together (N9).

use crate::arm::body::{MAX_ITEMS, Object};
use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::Kind;
use crate::resource::Envelope;
use crate::resource::frame::{Put, Resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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
    /// The application security groups in the list `name` of `object`, with the ids that they were created with. `from` is
    /// the resource that the body describes. A group that does not exist is a problem; regions are not
    /// compared.
    pub(crate) fn resolve_application_groups(
        &mut self,
        object: &Object<'_>,
        name: &str,
        from: &ResourceId,
    ) -> Vec<ResourceId> {
        let items = object.list(name, MAX_ITEMS, &mut self.problems).unwrap_or_default();
        let mut groups = Vec::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let found = self.resolve_own(&object, from, |topology, group| {
                let found = topology.application_security_groups.get(group)?;
                Some(found.envelope.id.clone())
            });
            groups.extend(found.filter(|id| !groups.contains(id)));
        }
        groups
    }
}
