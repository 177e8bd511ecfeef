//! Explains why no gateway connects two VNets. The explanation names the object, flag or BGP setting that is missing.

use super::finding::{Facts, Finding, connected, gateway_agents};
use super::keys;
use crate::lookup::{connection, gateways_of, half_towards};
use crate::resource::{Binding, Connection, ConnectionType, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use std::collections::{BTreeMap, VecDeque};
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::{AgentId, ResourceId};

/// The connections that lead to a local network gateway, with their gateways, ordered by connection.
pub(super) fn tunnels_of<'t>(
    topology: &'t Topology,
    site: &'t ResourceId,
) -> impl Iterator<Item = (&'t Connection, &'t VirtualNetworkGateway)> + 't {
    let all = topology.connections.values().filter(move |c| c.gateway2 == *site);
    all.filter(|c| c.connection_type == ConnectionType::IPsec)
        .filter_map(|c| Some((&**c, &**topology.gateways.get(&c.gateway1)?)))
}

/// The agents of a circuit's edges that are not revoked, the primary line first.
pub(super) fn edges_of<'t>(topology: &'t Topology, circuit: &'t ResourceId) -> impl Iterator<Item = &'t AgentId> + 't {
    let mut edges: Vec<_> = topology
        .agents
        .values()
        .filter(|a| !a.revoked)
        .filter_map(|a| match &a.binding {
            Binding::Edge { circuit: c, link } if c == circuit => Some((*link, &a.id)),
            _ => None,
        })
        .collect();
    edges.sort();
    edges.into_iter().map(|(_, agent)| agent)
}

/// The gateway of the type `kind` in a VNet (X7: there is at most one of each type). `None`: the VNet has none.
pub(super) fn in_vnet<'t>(
    topology: &'t Topology,
    vnet: &'t ResourceId,
    kind: GatewayKind,
) -> Option<&'t VirtualNetworkGateway> {
    let mut all = gateways_of(topology, vnet).filter(|g| g.gateway_type == kind);
    all.next().map(|gateway| &**gateway)
}

/// The gateway of the type `kind` that a VNet uses, preceded by the id of the VNet in which the gateway is: the VNet
/// itself, or a peered VNet (P19, P20, P23). A VNet that has a gateway of any type uses no gateway of a peered VNet.
/// `None`: the VNet uses no gateway of this type.
pub(super) fn used<'t>(
    topology: &'t Topology,
    vnet: &'t VirtualNetwork,
    kind: GatewayKind,
) -> Option<(&'t ResourceId, &'t VirtualNetworkGateway)> {
    let id = &vnet.envelope.id;
    if gateways_of(topology, id).next().is_some() {
        return Some((id, in_vnet(topology, id, kind)?));
    }
    let mut halves = vnet.peerings.iter();
    let in_use = halves.find(|p| p.use_remote_gateways && p.state == PeeringState::Connected)?;
    let hub = topology.vnets.get(&in_use.remote_vnet)?;
    half_towards(hub, id).filter(|p| p.allow_gateway_transit)?;
    Some((&hub.envelope.id, in_vnet(topology, &hub.envelope.id, kind)?))
}

/// Explains why gateways do not connect two VNets that are not peered. `None`: the gateways that the two VNets use, or
/// could use, do not lead from one VNet to the other.
pub(super) fn between(facts: Facts<'_>, own: &VirtualNetwork, target: &VirtualNetwork) -> Option<Finding> {
    by_vpn(facts, own, target).or_else(|| by_circuit(facts.topology, own, target))
}

/// Names the flag, connection object or BGP setting that is missing for a VPN between the two VNets. `None`: none of
/// these alone would connect them.
fn by_vpn(facts: Facts<'_>, own: &VirtualNetwork, target: &VirtualNetwork) -> Option<Finding> {
    /// The type of all gateways that this function looks for.
    const VPN: GatewayKind = GatewayKind::Vpn;
    let topology = facts.topology;
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let joined = |a: &VirtualNetworkGateway, b: &VirtualNetworkGateway| {
        let (a, b) = (&a.envelope.id, &b.envelope.id);
        connection(topology, a, b).is_some() && connection(topology, b, a).is_some()
    };
    // If the target VNet uses no gateway, one of its peered VNets may have a gateway that is connected to this VNet's
    // gateway. Then only the flags are missing with which the target would use it.
    let Some((_, far)) = used(topology, target, VPN) else {
        let (_, near) = used(topology, own, VPN)?;
        let theirs = connected(target);
        let leads = |hub: &&ResourceId| in_vnet(topology, hub, VPN).is_some_and(|far| joined(near, far));
        return missing_flags(topology, target, theirs.iter().find(leads)?, here);
    };
    let Some((hub, near)) = used(topology, own, VPN) else {
        // The target uses a gateway, but the packet's VNet does not. One of the peered VNets of the packet's VNet may
        // have a gateway that is connected to the target's. Then only the flags are missing with which the packet's
        // VNet would use it.
        let ours = connected(own);
        let leads = |hub: &&ResourceId| in_vnet(topology, hub, VPN).is_some_and(|near| joined(near, far));
        return missing_flags(topology, own, ours.iter().find(leads)?, there);
    };
    let (near, far) = (&near.envelope.id, &far.envelope.id);
    if near == far {
        return None;
    }
    match (connection(topology, near, far), connection(topology, far, near)) {
        (Some(one), None) => Some(without_counterpart(one, far, near)),
        (None, Some(one)) => Some(without_counterpart(one, near, far)),
        (Some(out), Some(back)) => {
            let finding = keys::differ(topology, &out.envelope.id).or_else(|| equal_asns(topology, (out, back)));
            Some(finding.unwrap_or_else(|| not_in_force(facts, hub, there)))
        }
        // No connection joins the two gateways directly. They may be joined by a chain over other gateways, if all its
        // connections exchange routes (G19).
        (None, None) => without_bgp(topology, &chain(topology, near, far)?, &there),
    }
}

/// Explains why the packet's subnet has no route to `there`, although the packet's VNet uses a gateway of `hub` that
/// has a path to `there`. If the subnet does not accept gateway routes, that is the cause (R15). Otherwise the cause is
/// not known, and the remedy is to compare the routes of the gateway and the subnet.
pub(super) fn not_in_force(facts: Facts<'_>, hub: &ResourceId, there: impl std::fmt::Display) -> Finding {
    let hub = hub.name();
    let table = facts.subnet.and_then(|id| {
        let mut subnets = facts.topology.vnets.values().flat_map(|v| &v.subnets);
        let table = subnets.find(|s| s.id == *id)?.route_table.as_ref()?;
        facts.topology.route_tables.get(table)
    });
    match table.filter(|t| t.disable_bgp_route_propagation) {
        Some(table) => Finding::new(
            "R15",
            format!("the gateway of {hub} leads to {there}, but this subnet does not accept its routes"),
            format!(
                "set disableBgpRoutePropagation of the route table {} to false, or add a route of its own to \
                 VirtualNetworkGateway",
                table.envelope.id.name()
            ),
        )
        .at(&table.envelope.id),
        None => Finding::new(
            "R7",
            format!("the gateway of {hub} is joined with {there}, but no route of this subnet leads there now"),
            "compare the gateway's learned routes (tombolo gateway learned-routes) with the subnet's effective routes",
        ),
    }
}

/// The finding that only one of the two connection objects between two gateways exists (G10).
fn without_counterpart(one: &Connection, from: &ResourceId, to: &ResourceId) -> Finding {
    Finding::new(
        "G10",
        format!("the connection {} has no counterpart", one.envelope.id.name()),
        format!("create one from gateway {} to {}", from.name(), to.name()),
    )
    .at(&one.envelope.id)
}

/// The two connection objects between two gateways (G10).
type Pair<'t> = (&'t Connection, &'t Connection);

/// The shortest chain of connections between VPN gateways from `from` to `to` (breadth-first). Every connection of the
/// chain exists on both sides. Empty if `from` and `to` are the same gateway. `None`: no chain exists.
pub(super) fn chain<'t>(topology: &'t Topology, from: &'t ResourceId, to: &ResourceId) -> Option<Vec<Pair<'t>>> {
    let mut chains: BTreeMap<&ResourceId, Vec<Pair<'t>>> = BTreeMap::from([(from, Vec::new())]);
    let mut open = VecDeque::from([from]);
    while let Some(at) = open.pop_front() {
        if at == to {
            return chains.remove(at);
        }
        let outward = topology
            .connections
            .values()
            .filter(|c| c.connection_type == ConnectionType::Vnet2Vnet && c.gateway1 == *at);
        for out in outward {
            let Some(back) = connection(topology, &out.gateway2, at).filter(|_| !chains.contains_key(&out.gateway2))
            else {
                continue;
            };
            let mut chain = chains[at].clone();
            chain.push((out, back));
            chains.insert(&out.gateway2, chain);
            open.push_back(&out.gateway2);
        }
    }
    None
}

/// The finding that both ends of a connection with BGP have the same ASN (G4). `None`: BGP is off on one object, or the
/// ASNs differ.
fn equal_asns(topology: &Topology, (out, back): Pair<'_>) -> Option<Finding> {
    let asn = |id: &ResourceId| topology.gateways.get(id).map(|g| g.asn);
    let asn = asn(&out.gateway1).filter(|own| out.enable_bgp && back.enable_bgp && asn(&out.gateway2) == Some(*own))?;
    let (near, far) = (out.gateway1.name(), out.gateway2.name());
    Some(
        Finding::new(
            "G4",
            format!(
                "the gateways {near} and {far} both have ASN {asn}, and no BGP session comes up between equal ASNs"
            ),
            "give one of them another ASN, or set enableBgp to false on both connection objects",
        )
        .at(&out.envelope.id),
    )
}

/// Explains why no routes are exchanged along a chain of gateways to `there`: different shared keys (D14), equal ASNs (G4),
/// or a connection object without BGP (G19). `None`: routes are exchanged along the whole chain.
pub(super) fn without_bgp(topology: &Topology, way: &[Pair<'_>], there: &dyn std::fmt::Display) -> Option<Finding> {
    if let Some(finding) = way.iter().find_map(|(out, _)| keys::differ(topology, &out.envelope.id)) {
        return Some(finding);
    }
    if let Some(finding) = way.iter().find_map(|pair| equal_asns(topology, *pair)) {
        return Some(finding);
    }
    let objects = way.iter().flat_map(|(out, back)| [out, back]);
    let silent: Vec<&Connection> = objects.filter(|c| !c.enable_bgp).copied().collect();
    let first = silent.first()?;
    let names: Vec<&str> = silent.iter().map(|c| c.envelope.id.name()).collect();
    let cause = format!(
        "gateways lead to {there}, but pass on routes and packets only along connections that use BGP at both ends"
    );
    let remedy = format!("set enableBgp on {}", names.join(", "));
    Some(Finding::new("G19", cause, remedy).at(&first.envelope.id))
}

/// Explains why circuits do not connect two VNets. If both are linked to one circuit (E3), either the setting
/// `circuitVnetToVnet` is off, or no edge of the circuit announces the target now (E6). If only one of them is linked
/// to a circuit, the other one reaches the VNets of that circuit by VPN only, and VPN and ExpressRoute gateways do not
/// relay to each other (E8). `None`: neither of the two cases applies.
fn by_circuit(topology: &Topology, own: &VirtualNetwork, target: &VirtualNetwork) -> Option<Finding> {
    /// The type of the gateways that lead to circuits.
    const CIRCUIT: GatewayKind = GatewayKind::ExpressRoute;
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let near = used(topology, own, CIRCUIT).map(|(_, gateway)| gateway);
    let far = used(topology, target, CIRCUIT).map(|(_, gateway)| gateway);
    if let (Some(near), Some(far)) = (near, far) {
        let shared = circuits(topology, near)
            .into_iter()
            .find(|c| circuits(topology, far).contains(c))?;
        let name = shared.name();
        let finding = if topology.settings.circuit_vnet_to_vnet {
            Finding::new(
                "E6",
                format!("{here} and {there} are linked to the circuit {name}, but no edge of it announces {there} now"),
                format!(
                    "check that an agent of each edge of {name} and of the gateways {} and {} runs and is connected",
                    near.envelope.id.name(),
                    far.envelope.id.name()
                ),
            )
        } else {
            Finding::new(
                "E6",
                format!("{here} and {there} are linked to the circuit {name}, which does not join virtual networks"),
                "create a peering, both halves, or allow it everywhere: tombolo settings set circuitVnetToVnet=true",
            )
        };
        return Some(finding.at(shared));
    }
    // The last case (E8): one VNet is linked to a circuit. The other VNet is joined by VPN with a third VNet, which is
    // linked to the same circuit.
    let (circuit_side, vpn_side) = match (near, far) {
        (Some(near), None) => (near, target),
        (None, Some(far)) => (far, own),
        _ => return None,
    };
    let (_, vpn) = used(topology, vpn_side, GatewayKind::Vpn)?;
    let shares = |hub: &ResourceId| {
        let beside = in_vnet(topology, hub, CIRCUIT);
        beside.is_some_and(|g| {
            circuits(topology, g)
                .iter()
                .any(|c| circuits(topology, circuit_side).contains(c))
        })
    };
    let hub = topology.vnets.keys().find(|vnet| {
        let gateway = in_vnet(topology, vnet, GatewayKind::Vpn);
        gateway.is_some_and(|g| chain(topology, &vpn.envelope.id, &g.envelope.id).is_some()) && shares(vnet)
    })?;
    Some(Finding::new(
        "E8",
        format!(
            "{here} and {there} meet in {} only, where one is attached by VPN and the other by a circuit, and gateways of \
             the two types do not relay to each other",
            hub.name()
        ),
        "create a peering, both halves, or attach both to the circuit or both by VPN",
    ))
}

/// The ids of the circuits that an ExpressRoute gateway is connected to, ordered by connection.
pub(super) fn circuits<'t>(topology: &'t Topology, gateway: &VirtualNetworkGateway) -> Vec<&'t ResourceId> {
    let links = topology
        .connections
        .values()
        .filter(|c| c.gateway1 == gateway.envelope.id);
    let links = links.filter(|c| c.connection_type == ConnectionType::ExpressRoute);
    links.map(|c| &c.gateway2).collect()
}

/// The finding that `spoke` cannot use the gateways of `hub`, because the peering between the two lacks a flag (P19,
/// P20). `there`: where the gateways lead. `None`: no flag is missing, or the two VNets are not peered.
pub(super) fn missing_flags(
    topology: &Topology,
    spoke: &VirtualNetwork,
    hub: &ResourceId,
    there: impl std::fmt::Display,
) -> Option<Finding> {
    let resource = topology.vnets.get(hub)?;
    let (ours, theirs) = (half_towards(spoke, hub)?, half_towards(resource, &spoke.envelope.id)?);
    let (name, hub) = (spoke.envelope.id.name(), hub.name());
    let mut missing = Vec::new();
    if !theirs.allow_gateway_transit {
        missing.push(format!("allowGatewayTransit on {} of {hub}", theirs.id.name()));
    }
    if !ours.use_remote_gateways {
        missing.push(format!("useRemoteGateways on {} of {name}", ours.id.name()));
    }
    let at = if theirs.allow_gateway_transit { ours } else { theirs };
    (!missing.is_empty()).then(|| {
        Finding::new(
            "P20",
            format!("the gateway of {hub} leads to {there}, but {name} may not use it"),
            format!("set {}", missing.join(", then ")),
        )
        .at(&at.id)
    })
}

/// Explains why the connection `id` has no far end to which a packet can be sent: the connection or a key is missing,
/// the far gateway has no agent, or the far end does not answer.
pub(super) fn far_end(topology: &Topology, id: &ResourceId) -> Finding {
    let name = id.name();
    let Some(connection) = topology.connections.get(id) else {
        return Finding::new("G10", format!("the connection {name} does not exist"), "create it");
    };
    if connection.shared_key.is_none() {
        let cause = format!("the connection {name} has no shared key");
        let remedy = match connection.connection_type {
            ConnectionType::IPsec => "set it here and on the site's device",
            ConnectionType::Vnet2Vnet | ConnectionType::ExpressRoute => "set it on both connection objects",
        };
        return Finding::new("G11", cause, remedy).at(id);
    }
    if let Some(finding) = keys::differ(topology, id) {
        return finding;
    }
    if let Some(site) = topology.local_gateways.get(&connection.gateway2) {
        let far = site.envelope.id.name();
        return match site.public_key {
            None => Finding::new(
                "D16",
                format!("the local network gateway {far} has no wireGuardPublicKey"),
                format!("set the key of the site's device: tombolo local-gateway update {far} --public-key KEY"),
            )
            .at(&site.envelope.id),
            Some(_) => Finding::new(
                "G12",
                format!("the device of {far} at the end of the connection {name} cannot be reached"),
                format!("see the reason: tombolo connection show {name}"),
            )
            .at(id),
        };
    }
    let far = topology.gateways.get(&connection.gateway2);
    far.and_then(|gateway| gateway_agents(topology, gateway))
        .unwrap_or_else(|| {
            Finding::new(
                "G10",
                format!("no instance of the far gateway of the connection {name} can be reached"),
                format!("see the reason: tombolo connection show {name}"),
            )
            .at(id)
        })
}

/// Whether every agent of a gateway, except revoked ones, reports that `other` does not answer. False for a gateway
/// without agents.
pub(super) fn reported_down(facts: Facts<'_>, gateway: &ResourceId, other: &AgentId) -> bool {
    let stands_for = |b: &Binding| matches!(b, Binding::Gateway { gateway: g, .. } if g == gateway);
    let agents = facts
        .topology
        .agents
        .values()
        .filter(|a| !a.revoked && stands_for(&a.binding));
    let down = agents.map(|a| facts.reports.down.get(&a.id).is_some_and(|d| d.contains(other)));
    let all: Vec<bool> = down.collect();
    !all.is_empty() && all.iter().all(|d| *d)
}
