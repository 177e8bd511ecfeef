//! The flow logs that an agent writes (N14, D38).

use super::Security;
use crate::id::ResourceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Largest number of entries in [`FlowLogs::logs`]. A NIC is covered by at most one log of a NIC, subnet or VNet, and by
/// those of its two groups.
pub const MAX_FLOW_LOGS: usize = 3 * super::MAX_NICS;

/// The flow logs that cover NICs of [`Security::nics`]. Needs [`Feature::FlowLogs`](super::Feature::FlowLogs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowLogs {
    /// The logs, ordered by id.
    pub logs: Vec<FlowLog>,
    /// The NICs that a log covers, in the order of [`Security::nics`].
    pub nics: Vec<LoggedNic>,
    /// The GUIDs of [`Security::groups`], in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<LoggedGroup>,
}

/// A flow log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowLog {
    /// The resource id of the log.
    pub id: ResourceId,
    /// The GUID of the log, as `resourceGuid` has it.
    pub guid: String,
    /// The resource id of the target: a network security group, a VNet, a subnet or a NIC.
    pub target: ResourceId,
    /// The layout of the records.
    pub format: FlowLogFormat,
    /// The NICs whose flows the log has; some of [`FlowLogs::nics`], in the same order. A log of a group has only those
    /// flows about which a rule of the group has decided.
    pub nics: Vec<ResourceId>,
}

/// The layout of the records of a flow log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowLogFormat {
    /// NSG flow log, version 1: the beginning of each flow, without counters.
    Group1,
    /// NSG flow log, version 2.
    Group2,
    /// VNet flow log, version 4.
    Network4,
}

/// A NIC that a flow log covers, or a served subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoggedNic {
    /// The id of an entry in [`Security::nics`].
    pub id: ResourceId,
    /// The MAC address by which records and paths name the NIC: 12 hexadecimal digits in upper case.
    pub mac: String,
}

/// A security group that applies to a logged NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoggedGroup {
    /// The group's resource id.
    pub id: ResourceId,
    /// The group's GUID, as `resourceGuid` has it.
    pub guid: String,
}

impl FlowLogs {
    /// Checks whether the logs agree with the NICs and groups of `security`.
    ///
    /// # Errors
    /// A text that names the first wrong field and its value.
    pub(super) fn check(&self, security: &Security) -> Result<(), String> {
        if self.logs.len() > MAX_FLOW_LOGS {
            return Err(format!(
                "security.flowLogs.logs: {} entries; at most {MAX_FLOW_LOGS} are possible",
                self.logs.len()
            ));
        }
        let known: BTreeSet<&ResourceId> = security.nics.iter().map(|nic| &nic.id).collect();
        let mut covered = BTreeSet::new();
        for nic in &self.nics {
            if !known.contains(&nic.id) || !covered.insert(&nic.id) {
                return Err(format!(
                    "security.flowLogs.nics: {} is listed twice, or is not in security.nics",
                    nic.id
                ));
            }
            let is_digit = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
            if nic.mac.len() != 12 || !nic.mac.bytes().all(is_digit) {
                return Err(format!(
                    "security.flowLogs.nics: mac of {}: '{}' must be 12 hexadecimal digits in upper case",
                    nic.id, nic.mac
                ));
            }
        }
        let mut ids = BTreeSet::new();
        for log in &self.logs {
            if !ids.insert(&log.id) {
                return Err(format!("security.flowLogs.logs: {} is listed twice", log.id));
            }
            if let Some(unknown) = log.nics.iter().find(|nic| !covered.contains(nic)) {
                return Err(format!(
                    "security.flowLogs.logs: {} names {unknown}, which is not in security.flowLogs.nics",
                    log.id
                ));
            }
            check_guid(&log.id, &log.guid)?;
        }
        let groups: BTreeSet<&ResourceId> = security.groups.iter().map(|group| &group.id).collect();
        for group in &self.groups {
            if !groups.contains(&group.id) {
                return Err(format!(
                    "security.flowLogs.groups: {} is not in security.groups",
                    group.id
                ));
            }
            check_guid(&group.id, &group.guid)?;
        }
        Ok(())
    }
}

/// Checks the form of a GUID: 8, 4, 4, 4 and 12 hexadecimal digits with hyphens between. It becomes a part of JSON texts
/// and of names of files.
fn check_guid(id: &ResourceId, guid: &str) -> Result<(), String> {
    let is_hyphen = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let fits = |(at, b): (usize, u8)| {
        if is_hyphen(at) {
            b == b'-'
        } else {
            b.is_ascii_hexdigit()
        }
    };
    if guid.len() == 36 && guid.bytes().enumerate().all(fits) {
        return Ok(());
    }
    Err(format!("security.flowLogs: guid of {id}: '{guid}' is not a GUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security() -> Security {
        let json = serde_json::json!({
            "groups": [{"id": "/g", "rules": []}],
            "nics": [{"id": "/n", "prefixes": ["10.0.0.4/32"], "subnet": "/s", "nicGroup": "/g"}],
            "flowLogs": {
                "logs": [{
                    "id": "/log", "guid": "6f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", "target": "/n", "format": "network4",
                    "nics": ["/n"],
                }],
                "nics": [{"id": "/n", "mac": "0200DEADBEEF"}],
                "groups": [{"id": "/g", "guid": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"}],
            },
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn n14_logs_name_known_nics_and_groups() {
        assert_eq!(security().check(), Ok(()));
        type Change = fn(&mut FlowLogs);
        let wrong: [(&str, Change); 7] = [
            ("'02:00' must be 12", |logs| logs.nics[0].mac = "02:00".into()),
            ("/x is listed twice, or is not in", |logs| {
                logs.nics[0].id = ResourceId::new("/x")
            }),
            ("/log names /x", |logs| logs.logs[0].nics.push(ResourceId::new("/x"))),
            ("/log is listed twice", |logs| logs.logs.push(logs.logs[0].clone())),
            ("guid of /log: '../..' is not a GUID", |logs| {
                logs.logs[0].guid = "../..".into()
            }),
            ("/x is not in security.groups", |logs| {
                logs.groups[0].id = ResourceId::new("/x")
            }),
            ("guid of /g: '' is not a GUID", |logs| logs.groups[0].guid.clear()),
        ];
        for (expected, change) in wrong {
            let mut security = security();
            change(security.flow_logs.as_mut().unwrap());
            let refused = security.check().unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
