//! Resolves the names of a question to ends.

use super::ends::End;
use crate::path::parent_id;
use crate::resource::Binding;
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// Positions of the ends that a name means: a virtual network, a subnet (`VNET/SUBNET`), a network interface, a machine,
/// an application security group, a front end (`LB/FRONT-END`), a site, an id of one of these, an address or a prefix. A
/// name that means several resources means the ends of all of them.
///
/// # Errors
/// The name means no end. The text begins with `field`.
pub(super) fn select(topology: &Topology, ends: &[End], field: &str, name: &str) -> Result<BTreeSet<u32>, String> {
    let found: BTreeSet<u32> = match (name.parse::<IpAddr>(), name.parse::<IpNet>()) {
        (Ok(address), _) => positions(ends, |end| has(end, IpNet::from(address))),
        (_, Ok(prefix)) => positions(ends, |end| has(end, prefix)),
        _ => {
            let machines = nics_of_machines(topology, name);
            let members = addresses_of_group(topology, name);
            positions(ends, |end| {
                is(&end.id, name)
                    || machines.contains(&end.id)
                    || members.contains(&end.address)
                    || end
                        .subnet
                        .as_ref()
                        .is_some_and(|subnet| is(subnet, name) || is(&parent_id(subnet), name))
            })
        }
    };
    match found.is_empty() {
        false => Ok(found),
        true => Err(format!(
            "{field}: '{name}' is not the name, id, address or prefix of anything that sends or receives: give a virtual \
             network, VNET/SUBNET, a network interface, a machine, an application security group, LB/FRONT-END or a site"
        )),
    }
}

fn positions(ends: &[End], wanted: impl Fn(&End) -> bool) -> BTreeSet<u32> {
    let all = ends.iter().zip(0u32..);
    all.filter(|(end, _)| wanted(end))
        .map(|(_, position)| position)
        .collect()
}

/// Whether an end has an address of the prefix, or stands for one.
fn has(end: &End, prefix: IpNet) -> bool {
    prefix.contains(&end.address)
        || end
            .prefix
            .is_some_and(|own| own.contains(&prefix) || prefix.contains(&own))
}

/// Whether `name` is the resource's id, its name, or its name after that of its parent.
fn is(id: &ResourceId, name: &str) -> bool {
    if id.name().eq_ignore_ascii_case(name) || id.as_str().eq_ignore_ascii_case(name) {
        return true;
    }
    name.split_once('/').is_some_and(|(parent, child)| {
        id.name().eq_ignore_ascii_case(child) && parent_id(id).name().eq_ignore_ascii_case(parent)
    })
}

/// The network interfaces of the machines with this name or id.
fn nics_of_machines(topology: &Topology, name: &str) -> BTreeSet<ResourceId> {
    let mut found = BTreeSet::new();
    for agent in topology.agents.values().filter(|agent| !agent.revoked) {
        if let Binding::Vm { vm, nics, .. } = &agent.binding
            && (agent.id.as_str() == name || is(vm, name))
        {
            found.extend(nics.iter().cloned());
        }
    }
    found
}

/// The addresses of the application security groups with this name or id.
fn addresses_of_group(topology: &Topology, name: &str) -> BTreeSet<IpAddr> {
    let configurations = topology.nics.values().flat_map(|nic| &nic.ip_configurations);
    let members = configurations.filter(|c| c.application_security_groups.iter().any(|group| is(group, name)));
    members.map(|c| c.address).collect()
}
