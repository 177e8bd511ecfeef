//! The properties that every ARM resource has, and resource groups.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The properties that every top-level ARM resource has.
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
    /// A GUID that is new after each change of the resource or of one of its children.
    pub etag: Uuid,
    /// A GUID that stays the same for the life of the resource.
    pub resource_guid: Uuid,
    /// Properties that are kept and shown without any effect (`dhcpOptions`, `sku`, …), in ARM's form: an object with
    /// `properties` and top-level members.
    #[serde(default)]
    pub echoed: serde_json::Map<String, serde_json::Value>,
}

/// A resource group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceGroup {
    /// `/subscriptions/{sub}/resourceGroups/{rg}`.
    pub id: ResourceId,
    /// The region, lower case without spaces.
    pub location: String,
    /// Tags by name.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}
