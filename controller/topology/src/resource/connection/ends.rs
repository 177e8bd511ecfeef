//! The rules of a connection's two ends (G3, G9, G13, E2, E3, X8, X12, X13).

use crate::arm::body::{Object, missing};
use crate::draft::Draft;
use crate::resource::express_route_circuit::location_of;
use crate::resource::express_route_circuit::max_links;
use crate::resource::{Connection, ConnectionType, ExpressRouteCircuit, LocalNetworkGateway, VirtualNetworkGateway};
use std::sync::Arc;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;

/// The maximum numbers of circuits to which a gateway can be connected: in one peering location, and in all locations
/// together (X12). The numbers are Azure's.
const CIRCUITS_PER_GATEWAY: (usize, usize) = (4, 16);

/// The far end of a connection.
pub(super) enum End {
    /// The other gateway of a `Vnet2Vnet` connection.
    Gateway(Arc<VirtualNetworkGateway>),
    /// The site of an `IPsec` connection.
    Site(Arc<LocalNetworkGateway>),
    /// The circuit of an `ExpressRoute` connection.
    Circuit(Arc<ExpressRouteCircuit>),
}

impl End {
    /// The id of the resource at the far end.
    pub(super) fn id(&self) -> &ResourceId {
        match self {
            Self::Gateway(gateway) => &gateway.envelope.id,
            Self::Site(site) => &site.envelope.id,
            Self::Circuit(circuit) => &circuit.envelope.id,
        }
    }
}

impl Draft<'_> {
    /// Resolves the required reference to the far end: `virtualNetworkGateway2`, `localNetworkGateway2` or `peer`,
    /// depending on the type of the connection (G9). `None`: a problem gives the reason.
    pub(super) fn far_end(&mut self, id: &ResourceId, kind: ConnectionType, properties: &Object<'_>) -> Option<End> {
        let name = match kind {
            ConnectionType::Vnet2Vnet => "virtualNetworkGateway2",
            ConnectionType::IPsec => "localNetworkGateway2",
            ConnectionType::ExpressRoute => "peer",
        };
        if properties.get(name).is_none() {
            missing(&mut self.problems, &properties.at(name));
        }
        self.resolve(properties, name, id, |t, far| match kind {
            ConnectionType::Vnet2Vnet => t.gateways.get(far).cloned().map(End::Gateway),
            ConnectionType::IPsec => t.local_gateways.get(far).cloned().map(End::Site),
            ConnectionType::ExpressRoute => t.circuits.get(far).cloned().map(End::Circuit),
        })
    }

    /// Checks the two ends of a new or changed connection. The ends of an existing connection are immutable. Limits,
    /// overlaps, and the rule against a second connection between the same ends are checked only when a connection is
    /// created.
    pub(super) fn check_ends(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        far: &End,
        enable_bgp: bool,
        old: Option<&Connection>,
    ) {
        let ends = (&first.envelope.id, far.id());
        if let Some(old) = old.filter(|o| (&o.gateway1, &o.gateway2) != ends) {
            self.problems.add(
                "XConnectionGatewaysImmutable",
                id,
                format!(
                    "Connection {id} joins {} to {} and cannot be changed to join {} to {}: delete it and create it again.",
                    old.gateway1, old.gateway2, ends.0, ends.1
                ),
            );
            return;
        }
        match far {
            End::Gateway(second) => self.check_gateways(id, first, second, old),
            End::Site(site) => self.check_site(id, first, site, enable_bgp, old),
            End::Circuit(circuit) => self.check_circuit(id, first, circuit, old),
        }
    }

    /// Checks a connection between two gateways: the two are different gateways, both of type VPN and RouteBased (G3).
    fn check_gateways(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        second: &VirtualNetworkGateway,
        old: Option<&Connection>,
    ) {
        let ends = (&first.envelope.id, &second.envelope.id);
        if ends.0 == ends.1 {
            self.problems.add(
                "XConnectionToItself",
                id,
                format!("Connection {id} has the same gateway on both ends: {}.", ends.0),
            );
            return;
        }
        if !self.check_kinds(id, GatewayKind::Vpn, [first, second]) {
            return;
        }
        for gateway in [first, second].into_iter().filter(|g| g.vpn_type != "RouteBased") {
            self.problems.add(
                "XRouteBasedRequired",
                id,
                format!(
                    "Connection {id} needs a RouteBased gateway on both ends; {} is {} (G3).",
                    gateway.envelope.id, gateway.vpn_type
                ),
            );
        }
        if old.is_none() {
            self.check_second_tunnel(id, ends.0, ends.1);
            self.check_tunnel_limit(id, ends.0);
            self.check_vpn_before_joining(id, first, second);
        }
    }

    /// Checks a connection to a site: the gateway is of type VPN, the site has `bgpSettings` if the connection uses BGP
    /// (G4), and a PolicyBased gateway has only one connection, without BGP (G3).
    fn check_site(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        site: &LocalNetworkGateway,
        enable_bgp: bool,
        old: Option<&Connection>,
    ) {
        let (gateway, far) = (&first.envelope.id, &site.envelope.id);
        if !self.check_kinds(id, GatewayKind::Vpn, [first]) {
            return;
        }
        if enable_bgp && site.bgp.is_none() {
            self.problems.add(
                "XBgpSettingsRequired",
                "properties.enableBgp",
                format!("Connection {id} cannot use BGP: local network gateway {far} has no bgpSettings (G4)."),
            );
        }
        let others = || self.connections_of(gateway).filter(|c| c.envelope.id != *id);
        let several = others().next().is_some();
        if first.vpn_type != "RouteBased" && (enable_bgp || several) {
            let what = if enable_bgp { "BGP" } else { "more than one connection" };
            self.problems.add(
                "XRouteBasedRequired",
                id,
                format!(
                    "Connection {id} needs a RouteBased gateway: {gateway} is {}, and {what} is not possible there (G3).",
                    first.vpn_type
                ),
            );
        }
        if old.is_none() {
            self.check_second_tunnel(id, gateway, far);
            self.check_tunnel_limit(id, gateway);
            self.check_sites_distinct(id, gateway, Some(site));
        }
    }

    /// Checks a new connection to a circuit: the gateway is of type ExpressRoute (E2), the circuit has a private
    /// peering and is not connected to the gateway already, and neither the gateway nor the circuit has reached its
    /// limit of connections (X12, X13).
    fn check_circuit(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        circuit: &ExpressRouteCircuit,
        old: Option<&Connection>,
    ) {
        let (gateway, far) = (&first.envelope.id, &circuit.envelope.id);
        if !self.check_kinds(id, GatewayKind::ExpressRoute, [first]) || old.is_some() {
            return;
        }
        if circuit.private_peering.is_none() {
            self.problems.add(
                "XCircuitHasNoPrivatePeering",
                "properties.peer.id",
                format!("Connection {id} cannot be created: circuit {far} has no AzurePrivatePeering yet (E1)."),
            );
        }
        let connected: Vec<&Connection> = self.connections_of(gateway).collect();
        let twin = connected.iter().find(|c| c.gateway2 == *far);
        let twin = twin.map(|c| c.envelope.id.clone());
        let circuits = connected.iter().filter_map(|c| self.topology.circuits.get(&c.gateway2));
        let near = circuits.filter(|c| location_of(c).eq_ignore_ascii_case(&location_of(circuit)));
        let (near, all) = (near.count(), connected.len());
        let links = self.links_of(far).count();
        if let Some(twin) = twin {
            let message = format!("Connection {twin} already joins {gateway} to circuit {far} (E3).");
            self.problems.add("XCircuitAlreadyConnected", id, message);
        }
        let (most_near, most) = CIRCUITS_PER_GATEWAY;
        if near >= most_near || all >= most {
            let message = format!(
                "Gateway {gateway} is connected to {all} circuits, {near} of them in peering location '{}'; the limits are {most} \
                 and, for one location, {most_near} (X12).",
                location_of(circuit)
            );
            self.problems.add("XCircuitLimitReached", id, message);
        }
        if links >= max_links(circuit) {
            let message = format!(
                "Circuit {far} has {links} virtual networks linked to it, the most it may have by its SKU (X13)."
            );
            self.problems.add("XCircuitLinkLimitReached", id, message);
        }
    }

    /// Checks that all `gateways` are of type `kind`: connections to gateways and sites need VPN gateways, connections
    /// to circuits need ExpressRoute gateways (G9). False: a gateway has another type, and a problem says so.
    fn check_kinds<const N: usize>(
        &mut self,
        id: &ResourceId,
        kind: GatewayKind,
        gateways: [&VirtualNetworkGateway; N],
    ) -> bool {
        let mut good = true;
        for gateway in gateways.into_iter().filter(|g| g.gateway_type != kind) {
            self.problems.add(
                "XGatewayTypeMismatch",
                id,
                format!(
                    "Connection {id} needs a gateway of type {kind:?}; {} is of type {:?} (G9).",
                    gateway.envelope.id, gateway.gateway_type
                ),
            );
            good = false;
        }
        good
    }

    /// Refuses a second connection object from the same gateway to the same far end (G13).
    fn check_second_tunnel(&mut self, id: &ResourceId, gateway: &ResourceId, far: &ResourceId) {
        let twin = self.connections_of(gateway).find(|c| c.gateway2 == *far);
        if let Some(twin) = twin.map(|c| c.envelope.id.clone()) {
            self.problems.add(
                "XRedundantTunnelNotAllowed",
                id,
                format!("Connection {twin} already joins {gateway} to {far}; a second tunnel is not allowed (G13)."),
            );
        }
    }

    /// Refuses one more tunnel if the gateway already has as many tunnels as the settings allow (X8).
    fn check_tunnel_limit(&mut self, id: &ResourceId, gateway: &ResourceId) {
        let limit = self.topology.settings.tunnels_per_gateway as usize;
        if self.connections_of(gateway).count() >= limit {
            self.problems.add(
                "XTunnelLimitReached",
                id,
                format!("Gateway {gateway} has {limit} tunnels, the most it may have (X8)."),
            );
        }
    }

    /// The connection objects whose own side (`virtualNetworkGateway1`) is `gateway`, ordered by id.
    pub(crate) fn connections_of(&self, gateway: &ResourceId) -> impl Iterator<Item = &Connection> {
        let all = self.topology.connections.values().map(|c| &**c);
        all.filter(move |c| c.gateway1 == *gateway)
    }

    /// The connection objects whose far end is `far`, a circuit, a site or a gateway; ordered by id.
    pub(crate) fn links_of(&self, far: &ResourceId) -> impl Iterator<Item = &Connection> {
        let all = self.topology.connections.values().map(|c| &**c);
        all.filter(move |c| c.gateway2 == *far)
    }
}
