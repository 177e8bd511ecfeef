//! A change of a repair, as a write of an ARM resource.

use crate::change::Change;
use crate::path::ArmPath;
use crate::topology::{AgentStatuses, Topology};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// One write that a repair needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairChange {
    /// The change in words: an imperative sentence without a full stop.
    pub text: String,
    /// The path of the resource.
    pub path: String,
    /// The body of the PUT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The path of a shared key whose value is put to `path`, which is the path of another shared key. No answer has the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_from: Option<String>,
    /// Whether the controller generates the shared key at `path`: the POST of `{path}/reset`. No answer has the value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub generate_key: bool,
    /// Whether the resource is deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
    /// The etag that the resource has before the whole repair. Only the first change of a resource has it. With another etag, somebody has
    /// changed the resource since, and the repair is out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Whether the resource does not exist before the whole repair.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_new: bool,
    /// Whether the PUT of a peering has `syncRemoteAddressSpace=true` (P27).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_remote_address_space: bool,
}

impl RepairChange {
    /// The PUT of a resource.
    pub(super) fn put(text: String, path: &ResourceId, body: Value) -> Self {
        Self {
            body: Some(body),
            ..Self::of(text, path.to_string())
        }
    }

    /// A change that does nothing yet.
    const fn of(text: String, path: String) -> Self {
        Self {
            text,
            path,
            body: None,
            copy_from: None,
            generate_key: false,
            delete: false,
            etag: None,
            is_new: false,
            sync_remote_address_space: false,
        }
    }

    /// The deletion of a resource.
    pub(super) fn delete(text: String, path: &ResourceId) -> Self {
        Self {
            delete: true,
            ..Self::of(text, path.to_string())
        }
    }

    /// The PUT of the shared key of a connection, with the value that another connection has.
    pub(super) fn copy_key(text: String, from: &ResourceId, to: &ResourceId) -> Self {
        Self {
            copy_from: Some(format!("{from}{SHARED_KEY}")),
            ..Self::of(text, format!("{to}{SHARED_KEY}"))
        }
    }

    /// The generation of a shared key for a connection.
    pub(super) fn generate_key(text: String, of: &ResourceId) -> Self {
        Self {
            generate_key: true,
            ..Self::of(text, format!("{of}{SHARED_KEY}"))
        }
    }

    /// The PUT of an existing resource with one property set. `pointer` is the JSON pointer of the property; its parent must
    /// exist. `None`: the resource or the parent does not exist.
    pub(super) fn set(topology: &Topology, text: String, id: &ResourceId, pointer: &str, value: Value) -> Option<Self> {
        let mut body = view(topology, id)?;
        let (parent, name) = pointer.rsplit_once('/')?;
        body.pointer_mut(parent)?
            .as_object_mut()?
            .insert(name.to_owned(), value);
        Some(Self::put(text, id, body))
    }

    /// The topology after the change. `None`: the change would be refused.
    pub(super) fn applied_to(&self, topology: &Topology) -> Option<Topology> {
        let path = || ArmPath::parse(&self.path).ok();
        let set_key = |value| {
            Some(Change::SetSharedKey {
                connection: ResourceId::new(self.path.strip_suffix(SHARED_KEY)?),
                value,
                if_match: None,
            })
        };
        let change = match (&self.body, &self.copy_from) {
            // Which key is generated makes no difference to the packet.
            _ if self.generate_key => set_key("generated".to_owned())?,
            (_, Some(from)) => set_key(shared_key(topology, from)?)?,
            (Some(body), None) => Change::Put {
                path: path()?,
                body: body.clone(),
                if_match: None,
                sync_remote_address_space: self.sync_remote_address_space,
            },
            (None, None) => Change::Delete {
                path: path()?,
                if_match: None,
            },
        };
        // The GUIDs are in no answer, and the topology is thrown away.
        let mut number = 0;
        let mut guid = || {
            number += 1;
            Uuid::from_u128(number)
        };
        topology.apply(&change, &mut guid).ok().map(|done| done.topology)
    }
}

/// Notes in the changes of a repair what their resources are in this topology, to which the first one is made. Shared keys
/// have the etags of their connections.
pub(super) fn note_etags(changes: &mut [RepairChange], topology: &Topology) {
    let mut seen = BTreeSet::new();
    for change in changes {
        let path = change.path.strip_suffix(SHARED_KEY).unwrap_or(&change.path).to_owned();
        if !seen.insert(path.to_ascii_lowercase()) {
            continue;
        }
        let present = view(topology, &ResourceId::new(path));
        change.etag = present
            .as_ref()
            .and_then(|view| view["etag"].as_str().map(str::to_owned));
        change.is_new = present.is_none();
    }
}

/// The end of the path of a connection's shared key.
const SHARED_KEY: &str = "/sharedkey";

/// The shared key at a path. `None`: the connection does not exist, or has none.
fn shared_key(topology: &Topology, path: &str) -> Option<String> {
    let connection = ResourceId::new(path.strip_suffix(SHARED_KEY)?);
    topology.connections.get(&connection)?.shared_key.clone()
}

/// Longest name of a resource (N1).
const MAX_NAME: usize = 80;

/// A name in `collection`, which is a path such as `…/routes`, that no resource has: `wanted`, or `wanted` with a number. Names
/// that are too long are cut.
pub(super) fn free_name(topology: &Topology, collection: &str, wanted: &str) -> String {
    let cut = |length: usize| {
        let cut: String = wanted.chars().take(length).collect();
        cut.trim_end_matches('-').to_owned()
    };
    let numbered = (2..1000).map(|n| {
        let end = format!("-{n}");
        cut(MAX_NAME - end.len()) + &end
    });
    let mut names = std::iter::once(cut(MAX_NAME)).chain(numbered);
    let is_free = |name: &String| view(topology, &ResourceId::new(format!("{collection}/{name}"))).is_none();
    names.find(is_free).unwrap_or_else(|| cut(MAX_NAME))
}

/// The body of a resource. `None`: it does not exist.
pub(super) fn view(topology: &Topology, id: &ResourceId) -> Option<Value> {
    topology.view(&ArmPath::parse(id.as_str()).ok()?, &AgentStatuses::default())
}
