//! The flow logs that a machine's agent writes (N14, D38).

use super::index::{Index, Vnet};
use crate::resource::mac_of;
use std::collections::BTreeMap;
use tombolo_proto::config::{FlowLog, FlowLogFormat, FlowLogs, LoggedGroup, LoggedNic, SecuredNic, SecurityGroup};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The flow logs that cover `nics`, the NICs of an agent. `groups` are the groups that apply to them. `None`: no log covers
/// any of them.
pub(super) fn of_machine(
    index: &Index<'_>,
    vnet: &Vnet<'_>,
    nics: &[SecuredNic],
    groups: &[SecurityGroup],
) -> Option<FlowLogs> {
    if index.flow_logs.is_empty() {
        return None;
    }
    let mut logs: BTreeMap<&ResourceId, FlowLog> = BTreeMap::new();
    let mut logged = Vec::new();
    for nic in nics {
        let of_nic = index.flow_logs.of_nic(nic, &vnet.resource.envelope.id);
        let of_nic = of_nic.map(|log| (log, FlowLogFormat::Network4));
        let of_groups = index.flow_logs.of_groups(nic).map(|log| {
            let format = match log.version {
                1 => FlowLogFormat::Group1,
                _ => FlowLogFormat::Group2,
            };
            (log, format)
        });
        let mut is_covered = false;
        for (log, format) in of_nic.into_iter().chain(of_groups) {
            is_covered = true;
            let entry = logs.entry(&log.envelope.id).or_insert_with(|| FlowLog {
                id: log.envelope.id.clone(),
                guid: log.envelope.resource_guid.to_string(),
                target: log.target.clone(),
                format,
                nics: Vec::new(),
            });
            entry.nics.push(nic.id.clone());
        }
        if is_covered {
            logged.push(LoggedNic {
                id: nic.id.clone(),
                mac: mac(index, &nic.id),
            });
        }
    }
    let guid = |group: &SecurityGroup| {
        let stored = index.topology.network_security_groups.get(&group.id)?;
        Some(LoggedGroup {
            id: group.id.clone(),
            guid: stored.envelope.resource_guid.to_string(),
        })
    };
    (!logs.is_empty()).then(|| FlowLogs {
        logs: logs.into_values().collect(),
        nics: logged,
        groups: groups.iter().filter_map(guid).collect(),
    })
}

/// The MAC address that stands for a NIC, or for a served subnet, in flow logs.
fn mac(index: &Index<'_>, id: &ResourceId) -> String {
    let nic = index.topology.nics.get(id);
    let guid = nic.map(|nic| nic.envelope.resource_guid);
    mac_of(guid.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, id.key().as_bytes())))
}
