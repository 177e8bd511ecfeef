//! Peerings: how a half is read and shown, and the state machine of both halves (P5 to P9, P13, P14, P17, P18, P27).

mod check;

use crate::arm::body::{Item, MAX_ITEMS, Object, missing};
use crate::arm::view::{Views, address_space, child, reference};
use crate::draft::Draft;
use crate::lookup::{gateways_of, half_towards, sync_level};
use crate::path::{Kind, child_id, parent_id};
use crate::problems::Problems;
use crate::resource::VirtualNetwork;
use crate::resource::frame::{Child, ChildWrites, Request};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use tombolo_proto::config::Transport;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// One half of a peering (P5): the object of one VNet that points to the other VNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peering {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the half, including changes of `state`.
    pub etag: Uuid,
    /// A GUID that both halves share.
    pub resource_guid: Uuid,
    /// The remote VNet. Immutable (P8).
    pub remote_vnet: ResourceId,
    /// `allowVirtualNetworkAccess`: whether the two VNets may reach each other. Both halves must allow it (P17).
    pub allow_virtual_network_access: bool,
    /// `allowForwardedTraffic`: whether appliances of the remote VNet may forward packets to this VNet whose source is
    /// outside of the remote VNet (P18).
    pub allow_forwarded_traffic: bool,
    /// `allowGatewayTransit`: whether the remote VNet may use this VNet's gateways (P19).
    pub allow_gateway_transit: bool,
    /// `useRemoteGateways`: whether this VNet uses the remote VNet's gateways (P20).
    pub use_remote_gateways: bool,
    /// `doNotVerifyRemoteGateways`: kept and shown only (P22).
    pub do_not_verify_remote_gateways: bool,
    /// The transport that this half requests for links between agents of the two VNets (D6). If one half requests
    /// `Automatic`, the other half decides.
    #[serde(default)]
    pub transport: Transport,
    /// The state of the half (P13).
    pub state: PeeringState,
    /// `remoteAddressSpace`: the prefixes of the remote VNet at the last sync of this half. Only these prefixes have
    /// peering routes (P27).
    pub remote_address_space: Vec<IpNet>,
    /// The prefixes of this VNet at the last sync of the other half (P5, P27).
    pub local_address_space: Vec<IpNet>,
}

/// The state of a peering half (P13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeeringState {
    /// The remote VNet has no half that points to this VNet, or does not exist any more.
    Initiated,
    /// Both VNets have a half that points to the other one, so traffic flows.
    Connected,
    /// The half was `Connected`, and then the other half or the remote VNet was deleted.
    Disconnected,
}

/// The requested properties of a half.
struct PeeringSpec {
    remote: ResourceId,
    allow_virtual_network_access: bool,
    allow_forwarded_traffic: bool,
    allow_gateway_transit: bool,
    use_remote_gateways: bool,
    do_not_verify_remote_gateways: bool,
    /// `None`: the body has no transport, so the present one stays. Stock clients do not know the property and leave it
    /// out.
    transport: Option<Transport>,
}

impl PeeringSpec {
    /// Sets the requested properties of `half`. The half's state and address spaces stay as they are.
    fn apply(&self, half: &mut Peering) {
        half.allow_virtual_network_access = self.allow_virtual_network_access;
        half.allow_forwarded_traffic = self.allow_forwarded_traffic;
        half.allow_gateway_transit = self.allow_gateway_transit;
        half.use_remote_gateways = self.use_remote_gateways;
        half.do_not_verify_remote_gateways = self.do_not_verify_remote_gateways;
        half.transport = self.transport.unwrap_or(half.transport);
    }
}

/// Reads `transport`, a property of this product that Azure does not have (D6). `None`: the member is missing or not a
/// known transport. An unknown transport also adds a problem.
fn transport(properties: &Object<'_>, problems: &mut Problems) -> Option<Transport> {
    let text = properties.text("transport", problems)?;
    let known = [Transport::Automatic, Transport::WireGuard, Transport::Quic];
    let found = known.into_iter().find(|t| text.eq_ignore_ascii_case(&format!("{t:?}")));
    if found.is_none() {
        let at = properties.at("transport");
        let message = format!("{at}: '{text}' is not one of Automatic, WireGuard and Quic");
        problems.add("InvalidRequestFormat", at, message);
    }
    found
}

/// The peerings of a VNet as child items.
pub(super) const PEERINGS: Child = Child {
    name: "virtualNetworkPeerings",
    kind: Some(Kind::Peering),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_peering(request),
        delete: |draft, id, if_match| draft.delete_peering(id, if_match),
    }),
    item: |views, path| {
        let id = path.id();
        let vnet = views.topology.vnets.get(&parent_id(&id))?;
        let half = vnet.peerings.iter().find(|p| p.id == id)?;
        Some(half.view(views, vnet))
    },
    list: |views, parent| {
        let vnet = views.topology.vnets.get(parent)?;
        Some(vnet.peerings.iter().map(|p| p.view(views, vnet)).collect())
    },
};

impl Peering {
    /// The ARM body of the half, which belongs to `vnet`.
    pub(super) fn view(&self, views: &Views<'_>, vnet: &VirtualNetwork) -> Value {
        let remote = views.topology.vnets.get(&self.remote_vnet);
        let remote_now = remote.map_or(self.remote_address_space.as_slice(), |r| &r.address_space);
        let mut properties = json!({
            "remoteVirtualNetwork": reference(&self.remote_vnet),
            "allowVirtualNetworkAccess": self.allow_virtual_network_access,
            "allowForwardedTraffic": self.allow_forwarded_traffic,
            "allowGatewayTransit": self.allow_gateway_transit,
            "useRemoteGateways": self.use_remote_gateways,
            "doNotVerifyRemoteGateways": self.do_not_verify_remote_gateways,
            "transport": self.transport,
            "peerCompleteVnets": true,
            "enableOnlyIPv6Peering": false,
            "peeringState": format!("{:?}", self.state),
            "peeringSyncLevel": sync_level(views.topology, vnet, self),
            "resourceGuid": self.resource_guid.to_string(),
            "remoteAddressSpace": address_space(&self.remote_address_space),
            "remoteVirtualNetworkAddressSpace": address_space(remote_now),
            "localAddressSpace": address_space(&self.local_address_space),
            "localVirtualNetworkAddressSpace": address_space(&vnet.address_space),
            "routeServiceVips": {},
        });
        if self.use_remote_gateways {
            let gateways: Vec<Value> = gateways_of(views.topology, &self.remote_vnet)
                .map(|g| reference(&g.envelope.id))
                .collect();
            properties["remoteGateways"] = gateways.into();
        }
        child(&self.id, Kind::Peering, self.etag, properties)
    }
}

impl Draft<'_> {
    /// PUT of a half. True: the half is new.
    fn put_peering(&mut self, request: &Request<'_>) -> bool {
        let (path, body) = (request.path, request.body);
        let Some(vnet) = path.parent().and_then(|p| self.topology.vnets.get(&p.id()).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let old = half_by_name(&vnet, path.name());
        self.check_if_match(request.if_match, old.map(|p| p.etag), &path.id());
        if old.is_none() {
            self.check_name(path.name(), &path.id());
        }
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let id = half_id(&vnet, path.name());
        if let Some(spec) = self.read_half(&id, &properties) {
            self.put_half(&vnet.envelope.id, path.name(), &spec, request.sync_remote_address_space);
        }
        old.is_none()
    }

    /// DELETE of a half. True: the half existed.
    fn delete_peering(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let owner = parent_id(id);
        let Some(vnet) = self.topology.vnets.get(&owner).cloned() else {
            return false;
        };
        let Some(old) = half_by_name(&vnet, id.name()) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        self.remove_half(&owner, id.name());
        true
    }

    /// Replaces the peerings of a VNet by the `virtualNetworkPeerings` of its body, which lists all of them: a half
    /// that is not in the list is removed. Halves whose requested properties equal the present ones stay untouched,
    /// because an edit of another property of the VNet is not an update of its halves (P13).
    pub(crate) fn replace_peerings(&mut self, vnet_id: &ResourceId, items: &[Item<'_>]) {
        let Some(vnet) = self.topology.vnets.get(vnet_id).cloned() else {
            return;
        };
        let mut names = Vec::new();
        let mut changes = Vec::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let Some(name) = self.child_name(&object) else { continue };
            let properties = object.object_or_empty("properties", &mut self.problems);
            let old = half_by_name(&vnet, &name);
            // An untouched half is not read again, because its remote VNet may have been deleted and could not be
            // resolved (P13).
            let untouched = old.is_some_and(|o| self.same_half(o, &properties));
            names.push(name.clone());
            if untouched {
                continue;
            }
            if let Some(spec) = self.read_half(&half_id(&vnet, &name), &properties) {
                changes.push((name, spec));
            }
        }
        self.check_unique_names(vnet_id, "peering", names.iter().map(String::as_str));
        for old in &vnet.peerings {
            if !names.iter().any(|n| n.eq_ignore_ascii_case(old.id.name())) {
                self.remove_half(vnet_id, old.id.name());
            }
        }
        for (name, spec) in changes {
            self.put_half(vnet_id, &name, &spec, false);
        }
    }

    /// Whether a body requests exactly the present properties of a half.
    fn same_half(&mut self, old: &Peering, properties: &Object<'_>) -> bool {
        // Problems are not reported here. If the properties differ or cannot be read, the caller reads them again with
        // `read_half`, which reports the problems.
        let mut unused = Problems::default();
        let remote = properties.reference("remoteVirtualNetwork", &mut unused);
        let flag = |name, default, unused: &mut Problems| properties.boolean(name, unused).unwrap_or(default);
        remote.is_some_and(|(path, _)| path.id() == old.remote_vnet)
            && flag("allowVirtualNetworkAccess", true, &mut unused) == old.allow_virtual_network_access
            && flag("allowForwardedTraffic", false, &mut unused) == old.allow_forwarded_traffic
            && flag("allowGatewayTransit", false, &mut unused) == old.allow_gateway_transit
            && flag("useRemoteGateways", false, &mut unused) == old.use_remote_gateways
            && flag("doNotVerifyRemoteGateways", false, &mut unused) == old.do_not_verify_remote_gateways
            && transport(properties, &mut unused).is_none_or(|t| t == old.transport)
            && flag("peerCompleteVnets", true, &mut unused)
            && !flag("enableOnlyIPv6Peering", false, &mut unused)
            && unused.is_empty()
    }

    /// Reads the properties of the half `id`. `None`: the remote VNet, a flag or the transport cannot be read, and a
    /// problem says so. A property of subnet peering (P29) adds a problem too, but the half is still returned.
    fn read_half(&mut self, id: &ResourceId, properties: &Object<'_>) -> Option<PeeringSpec> {
        let before = self.problems.len();
        let remote = self.read_remote(id, properties);
        let mut flag = |name: &str, default: bool| properties.boolean(name, &mut self.problems).unwrap_or(default);
        let spec = PeeringSpec {
            remote: remote.clone().unwrap_or_else(|| id.clone()),
            allow_virtual_network_access: flag("allowVirtualNetworkAccess", true),
            allow_forwarded_traffic: flag("allowForwardedTraffic", false),
            allow_gateway_transit: flag("allowGatewayTransit", false),
            use_remote_gateways: flag("useRemoteGateways", false),
            do_not_verify_remote_gateways: flag("doNotVerifyRemoteGateways", false),
            transport: transport(properties, &mut self.problems),
        };
        // The properties above define the half. If they could be read, the half is returned even if one of the
        // properties below is wrong. The caller then checks the rules of the half, so that one answer has all problems.
        let known = remote.is_some() && self.problems.len() == before;
        let mut flag = |name: &str, default: bool| properties.boolean(name, &mut self.problems).unwrap_or(default);
        let complete = flag("peerCompleteVnets", true);
        let only_ipv6 = flag("enableOnlyIPv6Peering", false);
        for name in ["localSubnetNames", "remoteSubnetNames"] {
            let list = properties.list(name, MAX_ITEMS, &mut self.problems).unwrap_or_default();
            for item in &list {
                item.text(&mut self.problems);
            }
            if complete && !list.is_empty() {
                let at = properties.at(name);
                self.problems.add(
                    "XSubnetPeeringNotSupported",
                    at.clone(),
                    format!("{at}: subnet peering (P29) is not supported; leave the list out"),
                );
            }
        }
        if !complete || only_ipv6 {
            let at = properties.at(if complete {
                "enableOnlyIPv6Peering"
            } else {
                "peerCompleteVnets"
            });
            self.problems.add(
                "XSubnetPeeringNotSupported",
                at.clone(),
                format!("{at}: {only_ipv6}: peering of parts of a virtual network (P29) is not supported"),
            );
        }
        known.then_some(spec)
    }

    /// Reads `remoteVirtualNetwork.id`, and returns the stored id of that VNet (P9). If an existing half would get
    /// another remote VNet, the change is refused with P8, even if the requested VNet does not exist. `None`: a problem
    /// gives the reason.
    fn read_remote(&mut self, id: &ResourceId, properties: &Object<'_>) -> Option<ResourceId> {
        if properties.get("remoteVirtualNetwork").is_none() {
            missing(&mut self.problems, &properties.at("remoteVirtualNetwork"));
            return None;
        }
        let (path, at) = properties.reference("remoteVirtualNetwork", &mut self.problems)?;
        let old = self
            .topology
            .vnets
            .get(&parent_id(id))
            .and_then(|v| half_by_name(v, id.name()));
        if let Some(old) = old.filter(|o| o.remote_vnet != path.id()) {
            self.problems.add(
                "ChangingRemoteVirtualNetworkNotAllowed",
                at,
                format!(
                    "Changing RemoteVirtualNetwork from {} to {} in peering {id} is not allowed (P8).",
                    old.remote_vnet,
                    path.id()
                ),
            );
            return None;
        }
        if path.kind() != Some(Kind::VirtualNetwork) {
            self.dangling(id, &path, &at);
            return None;
        }
        let found = self.topology.vnets.get(&path.id()).map(|v| v.envelope.id.clone());
        if found.is_none() {
            self.dangling(id, &path, &at);
        }
        found
    }

    /// Creates or updates a half, and updates the state and address spaces of the other half. `sync`: this half syncs,
    /// that is, copies the present address space of the remote VNet (P27). If a check finds a problem, nothing is
    /// changed.
    fn put_half(&mut self, vnet_id: &ResourceId, name: &str, spec: &PeeringSpec, sync: bool) {
        let (Some(vnet), Some(remote)) = (
            self.topology.vnets.get(vnet_id).cloned(),
            self.topology.vnets.get(&spec.remote).cloned(),
        ) else {
            return;
        };
        let id = half_id(&vnet, name);
        let old = half_by_name(&vnet, name).cloned();
        let other = half_towards(&remote, vnet_id).cloned();
        let before = self.problems.len();
        self.check_half(&id, &vnet, &remote, spec, old.as_ref(), other.as_ref());
        if self.problems.len() > before {
            return;
        }
        // A `Disconnected` half starts again like a new one: it becomes `Initiated`, or `Connected` if the other half
        // is `Initiated`. When two halves become `Connected`, both sync, so a new peering is `FullyInSync` (P13).
        let state = match (old.as_ref().map(|o| o.state), other.as_ref().map(|o| o.state)) {
            (Some(PeeringState::Connected), _) => PeeringState::Connected,
            (_, Some(PeeringState::Initiated)) => PeeringState::Connected,
            _ => PeeringState::Initiated,
        };
        let connects = state == PeeringState::Connected && old.as_ref().map(|o| o.state) != Some(state);
        let starts = old.as_ref().is_none_or(|o| o.state == PeeringState::Disconnected) || connects;
        let mut half = old.clone().unwrap_or_else(|| Peering {
            id: id.clone(),
            etag: Uuid::nil(),
            resource_guid: other.as_ref().map_or_else(|| (self.new_guid)(), |o| o.resource_guid),
            remote_vnet: remote.envelope.id.clone(),
            allow_virtual_network_access: true,
            allow_forwarded_traffic: false,
            allow_gateway_transit: false,
            use_remote_gateways: false,
            do_not_verify_remote_gateways: false,
            transport: Transport::Automatic,
            state,
            remote_address_space: Vec::new(),
            local_address_space: Vec::new(),
        });
        spec.apply(&mut half);
        half.state = state;
        if starts || sync {
            half.remote_address_space.clone_from(&remote.address_space);
        }
        if starts {
            half.local_address_space.clone_from(&vnet.address_space);
        }
        let mut new = (*vnet).clone();
        match new.peerings.iter_mut().find(|p| p.id == id) {
            Some(slot) => *slot = half,
            None => new.peerings.push(half),
        }
        self.commit(new);
        if let Some(other) = other {
            self.edit_half(&remote.envelope.id, other.id.name(), |h| {
                if connects {
                    h.state = PeeringState::Connected;
                    h.remote_address_space.clone_from(&vnet.address_space);
                }
                if connects || sync {
                    h.local_address_space.clone_from(&remote.address_space);
                }
            });
        }
        let both = [vnet.envelope.id.clone(), remote.envelope.id.clone()];
        self.check_attached(&id, &format!("Cannot create or update peering {id}."), &both);
    }

    /// Removes a half, if it exists. If the other half is `Connected`, it becomes `Disconnected` (P13).
    pub(crate) fn remove_half(&mut self, vnet_id: &ResourceId, name: &str) {
        let Some(vnet) = self.topology.vnets.get(vnet_id).cloned() else {
            return;
        };
        let Some(gone) = half_by_name(&vnet, name).cloned() else {
            return;
        };
        let mut new = (*vnet).clone();
        new.peerings.retain(|p| p.id != gone.id);
        self.commit(new);
        let other = self
            .topology
            .vnets
            .get(&gone.remote_vnet)
            .and_then(|r| half_towards(r, vnet_id));
        if let Some(other) = other
            .filter(|o| o.state == PeeringState::Connected)
            .map(|o| o.id.clone())
        {
            self.edit_half(&gone.remote_vnet, other.name(), |h| {
                h.state = PeeringState::Disconnected
            });
        }
    }

    /// Changes the half of a VNet with a name, ignoring case. Nothing happens if the VNet or the half does not exist.
    pub(crate) fn edit_half(&mut self, vnet_id: &ResourceId, name: &str, edit: impl FnOnce(&mut Peering)) {
        let Some(vnet) = self.topology.vnets.get(vnet_id).map(Arc::clone) else {
            return;
        };
        let mut new = (*vnet).clone();
        if let Some(half) = new.peerings.iter_mut().find(|p| p.id.name().eq_ignore_ascii_case(name)) {
            edit(half);
        }
        self.commit(new);
    }

    /// The halves, in any state, that other VNets have towards `vnet`. Each is returned with the id of its VNet, and
    /// they are ordered by this id.
    pub(crate) fn halves_towards(&self, vnet: &ResourceId) -> Vec<(ResourceId, Peering)> {
        let halves = self.topology.vnets.values().flat_map(|owner| {
            let own = owner.peerings.iter().filter(|p| p.remote_vnet == *vnet);
            own.map(|p| (owner.envelope.id.clone(), p.clone()))
        });
        halves.filter(|(owner, _)| owner != vnet).collect()
    }
}

/// The half with a name, ignoring case.
fn half_by_name<'v>(vnet: &'v VirtualNetwork, name: &str) -> Option<&'v Peering> {
    vnet.peerings.iter().find(|p| p.id.name().eq_ignore_ascii_case(name))
}

/// The id of the half with a name: the stored one if the half exists, otherwise a new one in the casing of `name`.
fn half_id(vnet: &VirtualNetwork, name: &str) -> ResourceId {
    half_by_name(vnet, name).map_or_else(
        || child_id(&vnet.envelope.id, "virtualNetworkPeerings", name),
        |p| p.id.clone(),
    )
}
