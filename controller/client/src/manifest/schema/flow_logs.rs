//! Flow logs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A flow log (N14). It lies below the network watcher of its region, outside of the document's resource group. Exactly one
/// of `networkSecurityGroup`, `virtualNetwork`, `subnet` and `networkInterface` is its target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlowLog {
    /// Region of the resource, which must be that of the target; if absent, that of a target in the same document, or
    /// else the region of the document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// Name or full id of a network security group: the flows about which its rules decide.
    pub network_security_group: Option<String>,
    /// Name or full id of a virtual network: the flows of all its network interfaces.
    pub virtual_network: Option<String>,
    /// A subnet, as `virtual-network/subnet` or full id: the flows of all its network interfaces.
    pub subnet: Option<String>,
    /// Name or full id of a network interface.
    pub network_interface: Option<String>,
    /// Whether agents write the log; true if absent.
    pub enabled: Option<bool>,
    /// Layout of a group's records: 1 or 2; 2 if absent.
    pub format_version: Option<u8>,
    /// Id of a storage account, which is kept and shown only.
    pub storage_account: Option<String>,
}
