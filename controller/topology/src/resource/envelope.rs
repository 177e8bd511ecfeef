//! What every ARM resource has, and resource groups.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// What every top-level ARM resource has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The full id.
    pub id: ResourceId,
    /// The region.
    pub location: String,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Changes with each change of the resource (children included).
    pub etag: Uuid,
    /// Never changes.
    pub resource_guid: Uuid,
    /// Properties that Tombolo keeps and echoes without acting on them (`dhcpOptions`, `sku`, …), in ARM's form,
    /// as an object with `properties` and top-level members.
    #[serde(default)]
    pub echoed: serde_json::Map<String, serde_json::Value>,
}

/// A resource group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceGroup {
    /// `/subscriptions/{sub}/resourceGroups/{rg}`.
    pub id: ResourceId,
    /// The region.
    pub location: String,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}
