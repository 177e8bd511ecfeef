//! Explains why a gateway or an edge does not forward a packet, and which change would permit it.

use super::finding::{Facts, Finding};
use super::gateways::missing_flags;
use super::node::Node;
use crate::lookup::connection;
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_engine::decide::Trace;
use tombolo_proto::config::{GatewayConnection, Relation, Role};
use tombolo_proto::id::{AgentId, ResourceId};

/// Explains why the gateway or edge of `node` does not forward a packet from one of its neighbours to another. `from`:
/// the peer over whose link the packet came.
pub(super) fn refused(
    facts: Facts<'_>,
    node: &Node,
    from: Option<&AgentId>,
    trace: &Trace,
    destination: IpAddr,
) -> Finding {
    let config = &node.config;
    let name = config.agent.as_str();
    match &config.role {
        Role::VpnGateway { connections, .. } => {
            let came_by = match from.and_then(|from| node.link(from)).map(|link| &link.relation) {
                Some(Relation::Connection { connection } | Relation::Site { connection }) => Some(connection),
                _ => None,
            };
            let of = |id: Option<&ResourceId>| id.and_then(|id| connections.iter().find(|c| c.connection == *id));
            match (of(came_by), of(trace.connection.as_ref())) {
                (Some(inward), Some(onward)) => between(facts.topology, name, inward, onward),
                _ => no_client(facts, node, destination),
            }
        }
        Role::ExpressRouteGateway { .. } => Finding::new(
            "E8",
            format!(
                "the ExpressRoute gateway {name} passes packets from its circuits to its own virtual network and those that \
                 use it, and {destination} is in none of these"
            ),
            "let the virtual network use this gateway (useRemoteGateways with allowGatewayTransit), or attach both networks \
             by VPN",
        ),
        Role::CircuitEdge { circuit, .. } => Finding::new(
            "E6",
            format!(
                "the circuit {} does not join virtual networks with each other",
                circuit.name()
            ),
            "create a peering between the two, or allow it everywhere: tombolo settings set circuitVnetToVnet=true",
        )
        .at(circuit),
        Role::Vm { .. } => no_client(facts, node, destination),
    }
}

/// Explains why a VPN gateway does not forward a packet from the connection `inward` to the connection `onward` (G18,
/// G19).
fn between(topology: &Topology, name: &str, inward: &GatewayConnection, onward: &GatewayConnection) -> Finding {
    let silent: Vec<&GatewayConnection> = [inward, onward].into_iter().filter(|c| !c.exchange).collect();
    // If one of the two connections leads to a site without BGP, it is enough that the other connection exchanges
    // routes. So if neither exchanges routes, the remedy is at the connection that does not lead to a site.
    let lacking = silent.iter().find(|c| !c.site).or(silent.first());
    let Some(lacking) = lacking else {
        return Finding::new(
            "G21",
            format!("the gateway {name} has no next hop among the routes of its VPN connections"),
            "check its learned routes: tombolo gateway learned-routes",
        );
    };
    Finding::new(
        "G19",
        format!(
            "the gateway {name} passes packets from the connection {} on to {} only where routes are exchanged by BGP over \
             both, or over one of them and the other leads to a site",
            inward.connection.name(),
            onward.connection.name()
        ),
        remedy(topology, lacking),
    )
    .at(&lacking.connection)
}

/// What to set so that routes are exchanged over a connection (G4): `enableBgp` of a connection object, `bgpSettings`
/// of the site, or another ASN.
fn remedy(topology: &Topology, lacking: &GatewayConnection) -> String {
    let id = &lacking.connection;
    let Some(own) = topology.connections.get(id) else {
        return format!("set enableBgp on {}", id.name());
    };
    let asn = topology.gateways.get(&own.gateway1).map(|g| g.asn);
    if let Some(site) = topology.local_gateways.get(&own.gateway2) {
        let name = site.envelope.id.name();
        return match site.bgp {
            None => format!(
                "give the local network gateway {name} bgpSettings (asn, bgpPeeringAddress), then set enableBgp on {}",
                id.name()
            ),
            Some(bgp) if asn == Some(bgp.asn) => {
                format!("give the local network gateway {name} an ASN other than {}", bgp.asn)
            }
            Some(_) => format!("set enableBgp on {}", id.name()),
        };
    }
    let back = connection(topology, &own.gateway2, &own.gateway1);
    let objects = [Some(&**own), back];
    let off = objects.into_iter().flatten().filter(|c| !c.enable_bgp);
    let off: Vec<&str> = off.map(|c| c.envelope.id.name()).collect();
    match (off.as_slice(), asn) {
        ([], Some(asn)) => format!("give one of its two gateways an ASN other than {asn}"),
        ([], None) => format!("set enableBgp on {} and on its counterpart", id.name()),
        (off, _) => format!("set enableBgp on {}", off.join(" and ")),
    }
}

/// Explains why a gateway does not relay a packet to `destination`: the destination's VNet does not use the gateway
/// (D9).
fn no_client(facts: Facts<'_>, node: &Node, destination: IpAddr) -> Finding {
    let (name, hub) = (node.config.agent.as_str(), &node.config.vnet);
    let mut vnets = facts.topology.vnets.values();
    let target = vnets.find(|v| v.address_space.iter().any(|p| p.contains(&destination)));
    let flags = target.and_then(|target| missing_flags(facts.topology, target, hub, "where the packet comes from"));
    let cause = format!(
        "the gateway {name} does not relay to {destination}: it serves its own VNet, the VNets that use it and its \
         connections, never a plain peering"
    );
    match flags {
        Some(flags) => Finding {
            rule: "D9",
            cause,
            ..flags
        },
        None => Finding::new(
            "D9",
            cause,
            format!(
                "let the VNet of {destination} use it (useRemoteGateways with allowGatewayTransit), or peer the two ends"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::path::ArmPath;
    use serde_json::{Value, json};
    use uuid::Uuid;

    const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab";

    fn id(tail: &str) -> String {
        format!("{GROUP}/providers/Microsoft.Network/{tail}")
    }

    /// Two gateways that are connected to each other, and two sites of the first one: a site without BGP, and a site
    /// with the same ASN as the gateway.
    fn topology() -> Topology {
        let mut topology = Topology::default();
        let mut guids = 0;
        let mut put = |id: &str, properties: Value| {
            let change = Change::Put {
                path: ArmPath::parse(id).unwrap(),
                body: json!({"location": "region1", "properties": properties}),
                if_match: None,
                sync_remote_address_space: false,
            };
            let mut new_guid = || {
                guids += 1;
                Uuid::from_u128(guids)
            };
            topology = topology.apply(&change, &mut new_guid).unwrap().topology;
        };
        put(GROUP, json!({}));
        for (vnet, second) in [("hub", 1), ("branch", 2)] {
            let subnet =
                json!({"name": "GatewaySubnet", "properties": {"addressPrefix": format!("10.{second}.255.0/27")}});
            let space = json!({"addressPrefixes": [format!("10.{second}.0.0/16")]});
            put(
                &id(&format!("virtualNetworks/{vnet}")),
                json!({"addressSpace": space, "subnets": [subnet]}),
            );
            let subnet = json!({"id": id(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet"))});
            let configuration = json!({"name": "a", "properties": {"subnet": subnet}});
            put(
                &id(&format!("virtualNetworkGateways/{vnet}-gw")),
                json!({"gatewayType": "Vpn", "ipConfigurations": [configuration], "bgpSettings": {"asn": 65_100 + second}}),
            );
        }
        let gateway = |vnet: &str| json!({"id": id(&format!("virtualNetworkGateways/{vnet}-gw"))});
        for (name, from, to, bgp) in [("there", "hub", "branch", true), ("back", "branch", "hub", false)] {
            put(
                &id(&format!("connections/{name}")),
                json!({
                    "connectionType": "Vnet2Vnet", "virtualNetworkGateway1": gateway(from),
                    "virtualNetworkGateway2": gateway(to), "enableBgp": bgp,
                }),
            );
        }
        for (name, bgp) in [
            ("plain", json!(null)),
            ("twin", json!({"asn": 65_101, "bgpPeeringAddress": "10.8.0.1"})),
        ] {
            put(
                &id(&format!("localNetworkGateways/{name}")),
                json!({"bgpSettings": bgp}),
            );
            put(
                &id(&format!("connections/to-{name}")),
                json!({
                    "connectionType": "IPsec", "virtualNetworkGateway1": gateway("hub"),
                    "localNetworkGateway2": {"id": id(&format!("localNetworkGateways/{name}"))}, "enableBgp": bgp != json!(null),
                }),
            );
        }
        topology
    }

    fn ends(name: &str, site: bool, exchange: bool) -> GatewayConnection {
        GatewayConnection {
            connection: ResourceId::new(id(&format!("connections/{name}"))),
            ends: Vec::new(),
            exchange,
            asn: 0,
            site,
            weight: 0,
        }
    }

    /// G19: the finding names the connection over which no routes are exchanged, and the setting that is missing.
    #[test]
    fn g19_what_a_connection_lacks_is_named() {
        let topology = topology();
        let (bgp, plain, twin) = (
            ends("other", true, true),
            ends("to-plain", true, false),
            ends("to-twin", true, false),
        );
        let tunnel = ends("there", false, false);
        for (inward, onward, at, words) in [
            // A connection to a site may be without BGP if the other connection uses BGP. So the remedy is at the
            // connection between the two gateways: one of its two connection objects has `enableBgp` off.
            (&plain, &tunnel, "there", "set enableBgp on back"),
            (&tunnel, &bgp, "there", "set enableBgp on back"),
            (
                &plain,
                &twin,
                "to-plain",
                "give the local network gateway plain bgpSettings",
            ),
            (&twin, &plain, "to-twin", "an ASN other than 65101"),
        ] {
            let finding = between(&topology, "hub-gw", inward, onward);
            assert_eq!(finding.rule, "G19");
            assert!(finding.remedy.contains(words), "{finding:?}");
            assert_eq!(finding.resource.as_ref().map(ResourceId::name), Some(at), "{finding:?}");
        }
    }
}
