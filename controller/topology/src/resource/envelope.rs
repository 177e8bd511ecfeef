//! The properties that every ARM resource has, and resource groups.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The properties that every top-level ARM resource has, besides those of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The full resource id.
    pub id: ResourceId,
    /// The region, lower case without spaces.
    pub location: String,
    /// Tags by name.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// A GUID that is new after each change of the resource or of one of its children. Requests name it in `If-Match`.
    pub etag: Uuid,
    /// A GUID that stays the same for the life of the resource.
    pub resource_guid: Uuid,
    /// Properties that are kept and shown (`dhcpOptions`, `sku`, …), in ARM's form: an object with top-level members,
    /// and with `properties`. They have no effect, except that some properties of a circuit decide limits (X12, X13).
    /// Members whose value is Azure's default are not stored.
    #[serde(default)]
    pub echoed: serde_json::Map<String, serde_json::Value>,
}

/// A resource group: a region, tags, and all resources whose ids begin with the id of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceGroup {
    /// The id of the group: `/subscriptions/{sub}/resourceGroups/{rg}`.
    pub id: ResourceId,
    /// The region, lower case without spaces.
    pub location: String,
    /// Tags by name.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}
