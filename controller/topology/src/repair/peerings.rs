//! Changes of peerings: flags, halves that are missing, and address spaces that are not in sync.

use super::change::{RepairChange, free_name, view};
use super::stopped::{Candidate, Stopped, vnets_with};
use crate::lookup::{half_towards, sync_level, vnet_of};
use crate::resource::{Peering, PeeringState, VirtualNetwork};
use crate::topology::Topology;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let mut all = Vec::new();
    for vnet in stopped.vnets() {
        for half in vnet
            .peerings
            .iter()
            .filter(|half| stopped.near.contains(&half.remote_vnet))
        {
            let Some(remote) = stopped.topology.vnets.get(&half.remote_vnet) else {
                continue;
            };
            match half.state {
                PeeringState::Connected => of_flags(stopped, vnet, remote, half, &mut all),
                PeeringState::Initiated => {
                    all.extend(answers(stopped.topology, vnet, remote, half).map(Candidate::from))
                }
                PeeringState::Disconnected => all.extend(again(stopped, vnet, remote, half)),
            }
            if sync_level(stopped.topology, vnet, half).starts_with("Local") {
                all.extend(synced(stopped, vnet, half));
            }
        }
    }
    all.extend(between(stopped));
    all.extend(with_gateway(stopped));
    all
}

/// A flag of a peering half.
struct Flag {
    name: &'static str,
    is_set: fn(&Peering) -> bool,
}

const ACCESS: Flag = Flag {
    name: "allowVirtualNetworkAccess",
    is_set: |half| half.allow_virtual_network_access,
};
const FORWARDED: Flag = Flag {
    name: "allowForwardedTraffic",
    is_set: |half| half.allow_forwarded_traffic,
};
const TRANSIT: Flag = Flag {
    name: "allowGatewayTransit",
    is_set: |half| half.allow_gateway_transit,
};
const REMOTE: Flag = Flag {
    name: "useRemoteGateways",
    is_set: |half| half.use_remote_gateways,
};

fn of_flags(
    stopped: &Stopped<'_>,
    vnet: &VirtualNetwork,
    remote: &VirtualNetwork,
    half: &Peering,
    all: &mut Vec<Candidate>,
) {
    let set = |vnet: &VirtualNetwork, half: &Peering, flag: &Flag| {
        if (flag.is_set)(half) {
            return None;
        }
        let text = format!(
            "set {} of the peering {} of {}",
            flag.name,
            half.id.name(),
            vnet.envelope.id.name()
        );
        let pointer = format!("/properties/{}", flag.name);
        RepairChange::set(stopped.topology, text, &half.id, &pointer, json!(true))
    };
    for flag in [ACCESS, FORWARDED, TRANSIT, REMOTE] {
        all.extend(set(vnet, half, &flag).map(Candidate::from));
    }
    // One of the two is refused without the other.
    if let Some(other) = half_towards(remote, &vnet.envelope.id)
        && let (Some(transit), Some(uses)) = (set(remote, other, &TRANSIT), set(vnet, half, &REMOTE))
    {
        all.push(Candidate::of(vec![transit, uses]));
    }
}

/// The id of a new half from one network to another. Networks of different resource groups may have the same name.
fn half_id(topology: &Topology, vnet: &VirtualNetwork, remote: &VirtualNetwork) -> ResourceId {
    let collection = format!("{}/virtualNetworkPeerings", vnet.envelope.id);
    let name = free_name(topology, &collection, &format!("to-{}", remote.envelope.id.name()));
    ResourceId::new(format!("{collection}/{name}"))
}

/// Creates the half of `vnet` towards `remote`, with Azure's defaults, or with `allowForwardedTraffic`.
fn create(topology: &Topology, vnet: &VirtualNetwork, remote: &VirtualNetwork, forwarded: bool) -> RepairChange {
    let id = half_id(topology, vnet, remote);
    let mut change = new_half(vnet, remote, &id, |properties| {
        if forwarded {
            properties.insert("allowForwardedTraffic".into(), true.into());
        }
    });
    if forwarded {
        change.text = format!("{}, with {}", change.text, FORWARDED.name);
    }
    change
}

fn new_half(
    vnet: &VirtualNetwork,
    remote: &VirtualNetwork,
    id: &ResourceId,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> RepairChange {
    let (here, there) = (vnet.envelope.id.name(), remote.envelope.id.name());
    let mut properties = Map::new();
    properties.insert("remoteVirtualNetwork".into(), json!({"id": remote.envelope.id}));
    properties.insert("allowVirtualNetworkAccess".into(), true.into());
    edit(&mut properties);
    let text = format!("create the peering {} of {here} with {there}", id.name());
    RepairChange::put(text, id, json!({"properties": properties}))
}

/// The halves that could answer `half` of `vnet`: with and without `allowForwardedTraffic`, and `useRemoteGateways` if `half`
/// permits it. Nothing if there is one already.
fn answers<'a>(
    topology: &'a Topology,
    vnet: &'a VirtualNetwork,
    remote: &'a VirtualNetwork,
    half: &'a Peering,
) -> impl Iterator<Item = RepairChange> + 'a {
    let flags = [(false, false), (true, false), (false, true), (true, true)].into_iter();
    let possible = flags.filter(|(_, uses)| !uses || half.allow_gateway_transit);
    let missing = possible.filter(|_| half_towards(remote, &vnet.envelope.id).is_none());
    missing.map(|(forwarded, uses)| {
        let mut change = new_half(remote, vnet, &half_id(topology, remote, vnet), |properties| {
            properties.insert("allowForwardedTraffic".into(), forwarded.into());
            properties.insert("useRemoteGateways".into(), uses.into());
            properties.insert("allowGatewayTransit".into(), half.use_remote_gateways.into());
        });
        for (set, name) in [(forwarded, FORWARDED.name), (uses, REMOTE.name)] {
            if set {
                change.text = format!("{} and {name}", change.text);
            }
        }
        change
    })
}

/// Restores a peering of which only one half is left (P14): puts that half again, and creates the other one. If the half has
/// `useRemoteGateways`, it can also be deleted first and created last (P20).
fn again(stopped: &Stopped<'_>, vnet: &VirtualNetwork, remote: &VirtualNetwork, half: &Peering) -> Vec<Candidate> {
    let name = format!("{} of {}", half.id.name(), vnet.envelope.id.name());
    let Some(body) = view(stopped.topology, &half.id) else {
        return Vec::new();
    };
    // The same write can set flags too.
    let flags = [ACCESS, FORWARDED].map(|flag| (flag.name, (flag.is_set)(half)));
    let off: Vec<&str> = flags
        .iter()
        .filter(|(_, is_set)| !is_set)
        .map(|(name, _)| *name)
        .collect();
    let mut sets: Vec<Vec<&str>> = vec![Vec::new()];
    sets.extend(off.iter().map(|name| vec![*name]));
    sets.extend((off.len() > 1).then(|| off.clone()));
    let put = |names: &Vec<&str>| {
        let mut body = body.clone();
        for name in names {
            body["properties"][*name] = json!(true);
        }
        let with = match names.is_empty() {
            true => String::new(),
            false => format!(", with {}", names.join(" and ")),
        };
        RepairChange::put(
            format!("put the disconnected peering {name} again{with}"),
            &half.id,
            body,
        )
    };
    let delete = RepairChange::delete(format!("delete the disconnected peering {name}"), &half.id);
    let create = RepairChange::put(format!("create the peering {name} again"), &half.id, body.clone());
    let mut all = Vec::new();
    for other in answers(stopped.topology, vnet, remote, half) {
        all.extend(sets.iter().map(|names| Candidate::of(vec![put(names), other.clone()])));
        if half.use_remote_gateways {
            all.push(Candidate::of(vec![delete.clone(), other, create.clone()]));
        }
    }
    all
}

/// Syncs the half with the present address space of the remote network (P27).
fn synced(stopped: &Stopped<'_>, vnet: &VirtualNetwork, half: &Peering) -> Option<Candidate> {
    let body = view(stopped.topology, &half.id)?;
    let text = format!("sync the peering {} of {}", half.id.name(), vnet.envelope.id.name());
    let mut change = RepairChange::put(text, &half.id, body);
    change.sync_remote_address_space = true;
    Some(change.into())
}

/// Peers the network of the source with that of a gateway that leads to the destination's site, so that it uses this gateway
/// (R3).
fn with_gateway(stopped: &Stopped<'_>) -> Option<Candidate> {
    let topology = stopped.topology;
    let id = stopped
        .stop
        .resource
        .as_ref()
        .filter(|_| stopped.stop.rule.as_deref() == Some("R3"))?;
    let mut connections = topology.connections.values();
    let connection = connections.find(|c| c.envelope.id == *id || c.gateway2 == *id)?;
    let hub = vnet_of(topology.gateways.get(&connection.gateway1)?)?;
    let hub = topology.vnets.get(&hub)?;
    let own = vnets_with(topology, stopped.source).next()?;
    if half_towards(own, &hub.envelope.id).is_some() || half_towards(hub, &own.envelope.id).is_some() {
        return None;
    }
    let half = |vnet: &VirtualNetwork, remote: &VirtualNetwork, flag: &Flag| {
        let mut change = new_half(vnet, remote, &half_id(topology, vnet, remote), |properties| {
            properties.insert(flag.name.into(), true.into());
        });
        change.text = format!("{}, with {}", change.text, flag.name);
        change
    };
    Some(Candidate::of(vec![half(hub, own, &TRANSIT), half(own, hub, &REMOTE)]))
}

/// Peers two networks that the packet would have to pass one after the other: those of the two ends, or one on the path with
/// that of an appliance to which a route leads. Each half with and without `allowForwardedTraffic`.
fn between(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let topology = stopped.topology;
    let walks = [Some(&stopped.explanation.request), stopped.explanation.reply.as_ref()];
    let hops = || walks.into_iter().flatten().flat_map(|walk| &walk.hops);
    let appliances = hops()
        .filter_map(|hop| hop.route.as_ref())
        .flat_map(|route| &route.next_hop_ip_address);
    let to: BTreeSet<IpAddr> = appliances.chain([&stopped.destination]).copied().collect();
    let mut from: BTreeSet<&ResourceId> = hops().map(|hop| &hop.vnet).collect();
    from.extend(vnets_with(topology, stopped.source).map(|vnet| &vnet.envelope.id));
    let mut all = Vec::new();
    for one in from.into_iter().filter_map(|id| topology.vnets.get(id)) {
        for other in to.iter().flat_map(|address| vnets_with(topology, *address)) {
            let ids = (&one.envelope.id, &other.envelope.id);
            let is_free = half_towards(one, ids.1).is_none() && half_towards(other, ids.0).is_none();
            if ids.0 == ids.1 || !is_free {
                continue;
            }
            let flags = [(false, false), (true, false), (false, true), (true, true)].into_iter();
            let sets = flags
                .map(|(there, back)| vec![create(topology, one, other, there), create(topology, other, one, back)]);
            all.extend(Candidate::first_of(sets));
        }
    }
    all
}
