//! Applies a change. Every operation works on a draft of the topology. After a problem it continues as far as it can,
//! so that an answer lists all problems of a request. A draft with problems is discarded, so the topology stays as it
//! was.

pub(crate) mod address;
mod address_limits;
mod agents;
mod attached;
mod bindings;
mod dns_servers;
mod group;
pub(crate) mod place;
pub(crate) mod request;
mod secured;
mod settings;
mod site_probe;
#[cfg(test)]
mod tests;
mod tokens;
pub(crate) mod unsupported;
mod vpn;

use crate::arm::body::Object;
use crate::change::{Change, Outcome};
use crate::draft::Draft;
use crate::path::{ArmPath, Kind};
use crate::problems::{Problems, Rejection};
use crate::resource::frame::Request;
use crate::resource::registry;
use crate::topology::Topology;
use serde_json::Value;
use uuid::Uuid;

/// Applies a change to a draft of `before`, and returns the draft or its problems; see [`Topology::apply`].
pub(crate) fn apply(
    before: &Topology,
    change: &Change,
    new_guid: &mut dyn FnMut() -> Uuid,
) -> Result<Outcome, Rejection> {
    let mut draft = Draft {
        topology: before.clone(),
        problems: Problems::default(),
        new_guid,
    };
    let created_or_removed = match change {
        Change::Put {
            path,
            body,
            if_match,
            sync_remote_address_space,
        } => draft.put(path, body, if_match.as_deref(), *sync_remote_address_space),
        Change::PatchTags { path, body, if_match } => draft.patch_tags(path, body, if_match.as_deref()),
        Change::Delete { path, if_match } => draft.delete(path, if_match.as_deref()),
        Change::MigratePools { path, body } => draft.migrate_pools(path, body),
        Change::SetSharedKey {
            connection,
            value,
            if_match,
        } => draft.set_shared_key(connection, value, if_match.as_deref()),
        Change::PutToken(token) => draft.put_token(token),
        Change::DeleteToken(id) => draft.topology.tokens.remove(id).is_some(),
        Change::Join { token, agent } => draft.join(token, agent),
        Change::SetReach { agent, reach } => draft.set_reach(agent, reach),
        Change::SetCertificateKey {
            agent,
            expected,
            certificate_key,
        } => draft.set_certificate_key(agent, expected, certificate_key),
        Change::RevokeAgent(agent) => draft.revoke(agent),
        Change::DeleteAgent(agent) => draft.topology.agents.remove(agent).is_some(),
        Change::SetSettings(settings) => draft.set_settings(settings),
    };
    if draft.problems.is_empty() {
        Ok(Outcome {
            topology: draft.topology,
            created_or_removed,
        })
    } else {
        Err(draft.problems.into_rejection())
    }
}

impl Draft<'_> {
    /// PUT of an item of any kind. True: the item is new.
    fn put(&mut self, path: &ArmPath, body: &Value, if_match: Option<&str>, sync: bool) -> bool {
        let Some(kind) = self.kind(path) else { return false };
        if kind == Kind::ResourceGroup {
            return self.put_group(path, body);
        }
        if kind == Kind::FlowLog {
            self.create_watcher_group(path, body);
        }
        let Some(group) = self.topology.resource_groups.get(&path.group_id()).cloned() else {
            self.group_not_found(path);
            return false;
        };
        let put = match (registry::entry(kind), registry::child(kind)) {
            (Some(entry), _) => entry.stored.as_ref().map(|writes| writes.put),
            (None, Some(child)) => child.writes.as_ref().map(|writes| writes.put),
            (None, None) => None,
        };
        let Some(put) = put else {
            self.read_only(path);
            return false;
        };
        let request = Request {
            group: &group,
            path,
            body,
            if_match,
            sync_remote_address_space: sync,
        };
        put(self, &request)
    }

    /// DELETE of an item of any kind. True: the item existed.
    fn delete(&mut self, path: &ArmPath, if_match: Option<&str>) -> bool {
        let Some(kind) = self.kind(path) else { return false };
        if kind == Kind::ResourceGroup {
            return self.delete_group(path);
        }
        if kind == Kind::VirtualMachine {
            return self.delete_virtual_machine(&path.id(), if_match);
        }
        let delete = match (registry::entry(kind), registry::child(kind)) {
            (Some(entry), _) => entry.stored.as_ref().map(|writes| writes.delete),
            (None, Some(child)) => child.writes.as_ref().map(|writes| writes.delete),
            (None, None) => None,
        };
        let Some(delete) = delete else {
            self.read_only(path);
            return false;
        };
        delete(self, &path.id(), if_match)
    }

    /// PATCH of tags. Always false: nothing is created.
    fn patch_tags(&mut self, path: &ArmPath, body: &Value, if_match: Option<&str>) -> bool {
        let Some(kind) = self.kind(path) else { return false };
        let root = Object::root(body, &mut self.problems);
        let given = root.get("tags").is_some_and(|t| !t.is_null());
        let tags = given.then(|| root.tags(&mut self.problems));
        if kind == Kind::ResourceGroup {
            self.patch_group(path, tags);
        } else if let Some(writes) = registry::entry(kind).and_then(|entry| entry.stored.as_ref()) {
            (writes.patch_tags)(self, path, tags, if_match);
        } else {
            let id = path.id();
            self.problems.add(
                "XPatchNotSupported",
                &id,
                format!("{id}: only the tags of top-level resources can be patched; PUT the whole body instead"),
            );
        }
        false
    }
}
