//! The security groups that a machine's agent enforces (D25).

use super::flow_logs;
use super::index::{Index, Machine, Vnet};
use super::prefix;
use crate::resource::NetworkSecurityGroup;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::{
    AddressMatch, ApplicationGroup, Direction, MAX_NICS, Nic, SERVICE_TAGS, SecuredNic, Security, SecurityGroup,
};
use tombolo_proto::id::ResourceId;

/// The security groups that the agent of `machine` enforces: those of the machine's NICs, and those of the subnets that
/// the machine's host serves, with the NICs in these subnets. `nics` are the NICs in the agent's configuration. `None`:
/// no group applies to any of these NICs and subnets (N5), and no flow log covers any of them (N14). `has_rules`: whether the groups have their rules.
pub(super) fn of_machine(
    index: &Index<'_>,
    vnet: &Vnet<'_>,
    machine: &Machine<'_>,
    nics: &[Nic],
    has_rules: bool,
) -> Option<Security> {
    let topology = index.topology;
    let subnet_group = |subnet: &ResourceId| {
        let (_, subnet) = index.subnet(subnet)?;
        subnet.network_security_group.clone()
    };
    let mut secured = Vec::with_capacity(nics.len());
    for nic in nics {
        secured.push(SecuredNic {
            id: nic.id.clone(),
            prefixes: nic.addresses.iter().map(|a| IpNet::from(a.addr())).collect(),
            subnet: nic.subnet.clone(),
            subnet_group: subnet_group(&nic.subnet),
            nic_group: topology
                .nics
                .get(&nic.id)
                .and_then(|n| n.network_security_group.clone()),
        });
    }
    let mut served: Vec<_> = machine.served.iter().collect();
    served.sort_by(|a, b| a.id.cmp(&b.id));
    for subnet in served {
        secured.push(SecuredNic {
            id: subnet.id.clone(),
            prefixes: prefix::sorted(&subnet.prefixes),
            subnet: subnet.id.clone(),
            subnet_group: subnet.network_security_group.clone(),
            nic_group: None,
        });
        secured.extend(nics_of_others(index, vnet, &subnet.id));
    }
    if secured.len() > MAX_NICS {
        // Entries without a group are only there to keep the numbers of the others.
        let mut position = 0;
        secured.retain(|nic| {
            position += 1;
            position <= nics.len() || nic.subnet_group.is_some() || nic.nic_group.is_some()
        });
    }
    let used: BTreeSet<&ResourceId> = secured
        .iter()
        .flat_map(|nic| nic.subnet_group.iter().chain(&nic.nic_group))
        .collect();
    let groups: Vec<SecurityGroup> = used
        .into_iter()
        .filter_map(|id| topology.network_security_groups.get(id))
        .map(|group| match has_rules {
            true => compiled(group),
            false => SecurityGroup {
                id: group.envelope.id.clone(),
                rules: Vec::new(),
            },
        })
        .collect();
    let flow_logs = flow_logs::of_machine(index, vnet, &secured, &groups);
    if groups.is_empty() && flow_logs.is_none() {
        return None;
    }
    let application_groups = application_groups(index, &groups);
    Some(Security {
        groups,
        application_groups,
        nics: secured,
        access_off: topology.settings.vnet_access_off,
        reevaluate: topology.settings.reevaluate,
        flow_timeout_minutes: vnet.resource.flow_timeout_minutes(),
        flow_logs,
    })
}

fn compiled(group: &NetworkSecurityGroup) -> SecurityGroup {
    let directions = [Direction::Inbound, Direction::Outbound];
    let rules = directions.into_iter().flat_map(|direction| group.compiled(direction));
    SecurityGroup {
        id: group.envelope.id.clone(),
        rules: rules.collect(),
    }
}

/// All security groups, and the application security groups to which their rules refer.
pub(super) fn all(index: &Index<'_>) -> (Vec<SecurityGroup>, Vec<ApplicationGroup>) {
    let groups = index.topology.network_security_groups.values();
    let groups: Vec<SecurityGroup> = groups.map(|group| compiled(group)).collect();
    let application_groups = application_groups(index, &groups);
    (groups, application_groups)
}

/// The NICs in a served subnet that have a group or a flow log of their own and whose machines have no agent, ordered by
/// id.
fn nics_of_others(index: &Index<'_>, vnet: &Vnet<'_>, subnet: &ResourceId) -> Vec<SecuredNic> {
    let has_agent = |nic: &ResourceId| {
        let machines = vnet.machines.iter();
        machines.flat_map(|m| &m.nics).any(|n| n.envelope.id == *nic)
    };
    let Some((_, resource)) = index.subnet(subnet) else {
        return Vec::new();
    };
    let nics = index.topology.nics.values();
    let nics = nics.filter(|nic| nic.network_security_group.is_some() || index.flow_logs.has(&nic.envelope.id));
    let nics = nics.filter(|nic| nic.ip_configurations.iter().any(|c| c.subnet == *subnet));
    nics.filter(|nic| !has_agent(&nic.envelope.id))
        .map(|nic| SecuredNic {
            id: nic.envelope.id.clone(),
            prefixes: nic.ip_configurations.iter().map(|c| IpNet::from(c.address)).collect(),
            subnet: subnet.clone(),
            subnet_group: resource.network_security_group.clone(),
            nic_group: nic.network_security_group.clone(),
        })
        .collect()
}

/// The application security groups to which the rules of `groups` refer, with their addresses. The groups are ordered
/// by name, and the addresses of each group in ascending order.
fn application_groups(index: &Index<'_>, groups: &[SecurityGroup]) -> Vec<ApplicationGroup> {
    let mut members: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for rule in groups.iter().flat_map(|g| &g.rules) {
        for side in [&rule.source, &rule.destination] {
            let AddressMatch::Sets(names) = side else { continue };
            let own = names.iter().filter(|name| !SERVICE_TAGS.contains(&name.as_str()));
            own.for_each(|name| {
                members.entry(name.clone()).or_default();
            });
        }
    }
    if members.is_empty() {
        return Vec::new();
    }
    let configurations = index.topology.nics.values().flat_map(|nic| &nic.ip_configurations);
    for configuration in configurations {
        for group in &configuration.application_security_groups {
            if let Some(addresses) = members.get_mut(&group.as_str().to_ascii_lowercase()) {
                addresses.insert(configuration.address);
            }
        }
    }
    members
        .into_iter()
        .map(|(name, addresses)| ApplicationGroup {
            name,
            addresses: addresses.into_iter().collect(),
        })
        .collect()
}
