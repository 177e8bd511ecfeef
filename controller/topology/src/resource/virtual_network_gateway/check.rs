//! The rules of a gateway's type, place and BGP settings (G1 to G4). Among them: at most one gateway of each type in a
//! VNet (G2, X7), no gateway in a VNet with useRemoteGateways (P20), and the route table of `GatewaySubnet` (R16).

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::lookup::{gateways_of, is_gateway_subnet};
use crate::net::{holds_32, is_apipa, is_reserved_asn, last_free, listed};
use crate::path::{parent_id, shown};
use crate::resource::{Subnet, VirtualNetworkGateway};
use crate::rules::address::{AddressRequest, used_addresses};
use std::net::IpAddr;
use tombolo_proto::config::{DEFAULT_ASN, GatewayKind};
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Reads `gatewayType`, which is immutable. If it is missing, an existing gateway keeps its type, and a new one
    /// gets `Vpn`. An unknown type adds a problem, and so does a type other than the present one.
    pub(super) fn gateway_kind(&mut self, properties: &Object<'_>, old: Option<&VirtualNetworkGateway>) -> GatewayKind {
        let kinds = ["Vpn", "ExpressRoute", "LocalGateway"];
        let at = properties.at("gatewayType");
        let kind = match properties.choice("gatewayType", &kinds, &mut self.problems) {
            Some("Vpn") => GatewayKind::Vpn,
            Some("ExpressRoute") => GatewayKind::ExpressRoute,
            Some(other) => {
                let message = format!("{at}: {other} gateways are not supported, only Vpn and ExpressRoute");
                self.problems.add("XGatewayTypeNotSupported", at, message);
                return GatewayKind::default();
            }
            None => return old.map_or(GatewayKind::default(), |o| o.gateway_type),
        };
        if let Some(old) = old.filter(|o| o.gateway_type != kind) {
            let message = format!("{at}: cannot change from {:?} to {kind:?} (G2)", old.gateway_type);
            self.problems.add("XGatewayTypeImmutable", at, message);
        }
        kind
    }

    /// Reads `vpnType` (G3), `RouteBased` if it is missing. The type of an existing gateway cannot change.
    pub(super) fn vpn_type(
        &mut self,
        properties: &Object<'_>,
        kind: GatewayKind,
        old: Option<&VirtualNetworkGateway>,
    ) -> &'static str {
        let at = properties.at("vpnType");
        let types = ["RouteBased", "PolicyBased"];
        let vpn_type = properties
            .choice("vpnType", &types, &mut self.problems)
            .unwrap_or("RouteBased");
        if kind == GatewayKind::ExpressRoute && vpn_type != "RouteBased" {
            let message = format!("{at}: an ExpressRoute gateway is RouteBased, not {vpn_type} (G3, E2)");
            self.problems.add("XRouteBasedRequired", at, message);
        } else if let Some(old) = old.filter(|o| o.vpn_type != vpn_type) {
            let message = format!("{at}: cannot change from {} to {vpn_type} (G3)", old.vpn_type);
            self.problems.add("XVpnTypeImmutable", at, message);
        }
        vpn_type
    }

    /// Reads the name of the SKU. Names of SKUs that Azure may add are accepted. If the name is missing, an existing gateway keeps its
    /// present SKU, and a new one gets `VpnGw1` (VPN) or `Standard` (ExpressRoute).
    pub(super) fn gateway_sku(
        &mut self,
        properties: &Object<'_>,
        kind: GatewayKind,
        old: Option<&VirtualNetworkGateway>,
    ) -> String {
        let sku = properties.object_or_empty("sku", &mut self.problems);
        let name = sku.text("name", &mut self.problems);
        let word = |n: &str| !n.is_empty() && n.len() <= 40 && n.chars().all(|c| c.is_ascii_alphanumeric());
        if let Some(name) = name.filter(|n| !word(n)) {
            let at = sku.at("name");
            let message = format!("{at}: '{}' is not the name of a gateway SKU", shown(name));
            self.problems.add("InvalidRequestFormat", at, message);
        }
        let default = match kind {
            GatewayKind::Vpn => "VpnGw1",
            GatewayKind::ExpressRoute => "Standard",
        };
        let before = || old.map_or_else(|| default.to_owned(), |o| o.sku.clone());
        name.map_or_else(before, str::to_owned)
    }

    /// Checks the place of a gateway: it is in one `GatewaySubnet` (G1) and stays there, its VNet has at most one
    /// gateway of each type (G2), no peering of the VNet has useRemoteGateways (P20), and a route table of the subnet
    /// neither disables BGP propagation (R15) nor has a default route (R16). The last two rules are checked for a new
    /// gateway only.
    pub(super) fn check_gateway_place(
        &mut self,
        id: &ResourceId,
        kind: GatewayKind,
        vpn_type: &str,
        requested: &[AddressRequest],
        old: Option<&VirtualNetworkGateway>,
    ) {
        for w in requested.iter().filter(|w| !is_gateway_subnet(&w.subnet.id)) {
            self.problems.add(
                "XGatewaySubnetRequired",
                id,
                format!(
                    "Gateway {id} must be in a subnet named GatewaySubnet, not in {} (G1).",
                    w.subnet.id
                ),
            );
        }
        let Some(first) = requested.first() else { return };
        if let Some(other) = requested.iter().find(|w| w.subnet.id != first.subnet.id) {
            self.problems.add(
                "XGatewaySubnetRequired",
                id,
                format!(
                    "All ip configurations of gateway {id} must be in one GatewaySubnet, found {} and {} (G1).",
                    first.subnet.id, other.subnet.id
                ),
            );
        }
        let was = old.and_then(|g| g.ip_configurations.first()).map(|c| &c.subnet);
        if let Some(was) = was.filter(|w| **w != first.subnet.id) {
            self.problems.add(
                "XGatewaySubnetImmutable",
                id,
                format!("Gateway {id} is in {was} and cannot move to {}.", first.subnet.id),
            );
        }
        self.check_beside_others(id, kind, vpn_type, &first.subnet);
        let vnet = parent_id(&first.subnet.id);
        let using = self
            .topology
            .vnets
            .get(&vnet)
            .and_then(|v| v.peerings.iter().find(|p| p.use_remote_gateways));
        if let Some(using) = using.map(|p| p.id.clone()).filter(|_| old.is_none()) {
            self.problems.add(
                "XVnetUsesRemoteGateways",
                id,
                format!(
                    "Virtual network {vnet} cannot have a gateway of its own while peering {using} has \
                     useRemoteGateways set to true (P20, P23)."
                ),
            );
        }
        let table = first
            .subnet
            .route_table
            .as_ref()
            .and_then(|t| self.topology.route_tables.get(t))
            .cloned();
        if let Some(table) = table.filter(|_| old.is_none()) {
            self.check_table_for_gateway(&table, &first.subnet.id);
        }
    }

    /// Checks a gateway against the VNet's other gateways: there is at most one of each type (G2, X7). If the VNet has
    /// a gateway of the other type, `GatewaySubnet` must have enough addresses for both (G1), and the VPN gateway must
    /// be RouteBased (G3).
    fn check_beside_others(&mut self, id: &ResourceId, kind: GatewayKind, vpn_type: &str, subnet: &Subnet) {
        let vnet = parent_id(&subnet.id);
        let others = gateways_of(&self.topology, &vnet).filter(|g| g.envelope.id != *id);
        let others: Vec<_> = others.map(std::sync::Arc::clone).collect();
        for other in others {
            let twin = &other.envelope.id;
            if other.gateway_type == kind {
                let message = format!(
                    "Virtual network {vnet} already has {kind:?} gateway {twin}; it can have one of each type (G2, X7)."
                );
                self.problems.add("XGatewayLimitReached", id, message);
                continue;
            }
            self.check_room_for_two_kinds(id, subnet);
            if [vpn_type, &other.vpn_type].contains(&"PolicyBased") {
                let message = format!(
                    "Gateways {id} and {twin} cannot be in one virtual network: a VPN gateway beside an ExpressRoute \
                     gateway must be RouteBased (G3)."
                );
                self.problems.add("XRouteBasedRequired", id, message);
            }
        }
    }

    /// Checks that one prefix of a `GatewaySubnet` with a VPN and an ExpressRoute gateway is a /27 or larger (G1).
    /// `target`: the resource that the problem names.
    pub(crate) fn check_room_for_two_kinds(&mut self, target: &ResourceId, subnet: &Subnet) {
        if !subnet.prefixes.iter().any(holds_32) {
            let message = format!(
                "{} with address prefix {} is too small for a VPN and an ExpressRoute gateway: they need a /27 or a \
                 shorter prefix (G1).",
                subnet.id,
                listed(&subnet.prefixes)
            );
            self.problems.add("XGatewaySubnetTooSmall", target, message);
        }
    }

    /// Reads `bgpSettings`: the ASN and the BGP address (G4). `own`: the addresses of the instances, the first
    /// instance's first. If the ASN is missing, an existing gateway keeps its ASN, and a new one gets 65515. If the BGP
    /// address is missing, the gateway keeps its present one if that is in the subnet and the second instance does not
    /// have it; otherwise it gets the last free address of the subnet. `None` as the address: the subnet does not exist
    /// or is full, and a problem says so.
    pub(super) fn bgp_settings(
        &mut self,
        id: &ResourceId,
        properties: &Object<'_>,
        kind: GatewayKind,
        subnet: Option<&Subnet>,
        own: &[IpAddr],
        old: Option<&VirtualNetworkGateway>,
    ) -> (u32, Option<IpAddr>) {
        let bgp = properties.object_or_empty("bgpSettings", &mut self.problems);
        let default = old.map_or(DEFAULT_ASN, |o| o.asn);
        let asn = bgp
            .integer("asn", 1..=i64::from(u32::MAX), &mut self.problems)
            .unwrap_or_else(|| i64::from(default));
        if is_reserved_asn(asn) {
            let at = bgp.at("asn");
            let message = format!("{at}: {asn} is reserved (G4)");
            self.problems.add("XReservedAsn", at, message);
        }
        bgp.integer("peerWeight", 0..=100, &mut self.problems);
        let asn = u32::try_from(asn).unwrap_or_default();
        if kind == GatewayKind::ExpressRoute {
            // An ExpressRoute gateway exchanges routes inside its tunnels and uses the first instance's address. A BGP
            // address in the body is ignored (D3).
            return (asn, own.first().copied());
        }
        let Some(subnet) = subnet else { return (asn, None) };
        let used = used_addresses(&self.topology, &parent_id(&subnet.id), id);
        let given = bgp.address("bgpPeeringAddress", &mut self.problems);
        if let Some(address) = given {
            let at = bgp.at("bgpPeeringAddress");
            if is_apipa(address) {
                return (asn, Some(address));
            }
            let asker = format!("The BGP peer of gateway {id} (G4)");
            self.check_given(id, &asker, &at, subnet, address, &used);
            if own.iter().skip(1).any(|instance| *instance == address) {
                let message = format!(
                    "{at}: {address} is the address of another instance of gateway {id}, which speaks BGP from it itself: \
                     use the first instance's address or a free one of {}, or leave it out (G4)",
                    listed(&subnet.prefixes)
                );
                self.problems.add("PrivateIPAddressInUse", at, message);
            }
            return (asn, Some(address));
        }
        let free = |a: &IpAddr| subnet.prefixes.iter().any(|p| p.contains(a)) && !own.iter().skip(1).any(|o| o == a);
        let kept = old.map(|o| o.bgp_peering_address).filter(free);
        if kept.is_some() {
            return (asn, kept);
        }
        let mut prefixes: Vec<_> = subnet.prefixes.iter().collect();
        prefixes.sort_by_key(|p| p.addr().is_ipv6());
        let mut taken = used;
        taken.extend(own);
        let found = prefixes.iter().find_map(|p| last_free(p, &taken));
        if found.is_none() {
            let ipv6 = prefixes.first().is_some_and(|p| p.addr().is_ipv6());
            self.subnet_is_full(id, subnet, ipv6);
        }
        (asn, found)
    }
}
