//! Connections of gateways: how they are read and shown, and the rules that apply to all types (G9, G11, X8).

mod ends;
mod tunnels;

use crate::arm::body::{Object, Shape, missing};
use crate::arm::status;
use crate::arm::view::{Views, reference};
use crate::draft::Draft;
use crate::path::{ArmPath, Kind};
use crate::resource::frame::{Echoed, Put, Resource};
use crate::resource::{Envelope, VirtualNetworkGateway};
use crate::rules::place::Place;
use crate::rules::unsupported;
use ends::End;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// A connection object (G9). A `Vnet2Vnet` connection consists of two objects, one on each side (G10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `connectionType`. It cannot change after the creation (G9).
    #[serde(default)]
    pub connection_type: ConnectionType,
    /// The gateway on this side. Immutable.
    pub gateway1: ResourceId,
    /// The far end: a gateway, a local network gateway or a circuit, depending on `connection_type`. Immutable.
    pub gateway2: ResourceId,
    /// The addresses of the tunnels to the primary and the secondary edge, in the gateway's `GatewaySubnet`. Allocated
    /// at creation unless the body has them. Empty for the other types of connections.
    #[serde(default)]
    pub tunnel_addresses: Vec<IpAddr>,
    /// The shared key. `None`: not set, so the tunnel cannot come up (G11). Always `None` for `ExpressRoute`.
    #[serde(default)]
    pub shared_key: Option<String>,
    /// `routingWeight`, 0 to 32,000: if several connections have a route for one prefix, the route of the connection
    /// with the higher weight wins (E12).
    pub routing_weight: u32,
    /// `enableBgp`: whether this side wants to exchange routes over the connection. Routes are exchanged only if the
    /// far end wants it too, and if the ASNs differ (G4). Has no effect on a connection to a circuit, which always
    /// exchanges routes.
    pub enable_bgp: bool,
    /// `dpdTimeoutSeconds`: the dead-peer-detection timeout of a site's device in seconds, 9 to 3600. `None`: the
    /// default.
    #[serde(default)]
    pub dpd_timeout: Option<u16>,
    /// The circuit's authorization whose key the connection has shown, for type `ExpressRoute` only. `None`: the body
    /// had no key, and none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<ResourceId>,
}

/// The kinds of far ends of a connection, `connectionType` (G9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConnectionType {
    /// Between two VPN gateways. It needs a second object for the way back (G10).
    #[default]
    Vnet2Vnet,
    /// Between a VPN gateway and the device of a site.
    IPsec,
    /// Between an ExpressRoute gateway and a circuit.
    ExpressRoute,
}

/// The protocol of a tunnel whose body names none.
const DEFAULT_PROTOCOL: &str = "IKEv2";

/// The properties that are kept and shown, but have no effect.
const ECHOED: Echoed = Echoed {
    properties: &[
        ("connectionProtocol", Shape::Text),
        ("connectionMode", Shape::Text),
        ("expressRouteGatewayBypass", Shape::Bool),
        ("enablePrivateLinkFastPath", Shape::Bool),
    ],
    ..Echoed::NOTHING
};

impl Resource for Connection {
    const KIND: Kind = Kind::Connection;
    const ECHOED: Echoed = ECHOED;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties) = (&put.id, &put.properties);
        let mut kept = put.echoed(&mut draft.problems);
        draft.check_supported(properties, unsupported::CONNECTION);
        let kind = draft.connection_type(id, properties, put.old());
        draft.connection_protocol(kind, properties, &mut kept);
        let envelope = put.envelope(draft, kept);
        if kind == Some(ConnectionType::ExpressRoute) {
            draft.check_supported(properties, unsupported::CIRCUIT_CONNECTION);
        } else {
            draft.check_supported(properties, unsupported::TUNNEL_CONNECTION);
        }
        let routing_weight = properties
            .integer("routingWeight", 0..=32_000, &mut draft.problems)
            .unwrap_or(0);
        let enable_bgp = properties.boolean("enableBgp", &mut draft.problems).unwrap_or(false);
        let dpd_timeout = draft.dpd_timeout(properties);
        let key = properties.text("sharedKey", &mut draft.problems);
        if let Some(key) = key.filter(|_| kind != Some(ConnectionType::ExpressRoute)) {
            draft.check_shared_key(key, &properties.at("sharedKey"));
        }
        let kind = kind?;
        let held = put.old().map(|c| c.gateway1.clone()).into_iter().collect();
        let first = draft.connection_gateway(properties, &Place::of(&envelope, held));
        let far = draft.far_end(id, kind, properties);
        let (first, far) = (first?, far?);
        draft.check_ends(id, &first, &far, enable_bgp, put.old());
        let tunnel_addresses = match &far {
            End::Circuit(circuit) => draft.tunnel_addresses(id, properties, &first, circuit, put.old()),
            End::Gateway(_) | End::Site(_) => Vec::new(),
        };
        let authorization = match &far {
            End::Circuit(circuit) => draft.used_authorization(id, properties, circuit, put.old()),
            End::Gateway(_) | End::Site(_) => None,
        };
        if !draft.problems.is_empty() {
            return None;
        }
        // GET never shows the shared key. So a client that reads a body, edits it and writes it back sends no key; this
        // must not delete the stored key.
        let kept_key = put.old().and_then(|c| c.shared_key.clone());
        let key = key.map(str::to_owned).or(kept_key);
        Some(Self {
            envelope,
            connection_type: kind,
            gateway1: first.envelope.id.clone(),
            gateway2: far.id().clone(),
            tunnel_addresses,
            shared_key: key.filter(|_| kind != ConnectionType::ExpressRoute),
            routing_weight: u32::try_from(routing_weight).unwrap_or_default(),
            enable_bgp,
            dpd_timeout,
            authorization,
        })
    }

    fn after_put(draft: &mut Draft<'_>, put: &Put<'_, Self>) {
        if put.old().is_some() {
            return;
        }
        let new = draft.topology.connections.get(&put.id);
        let first = new.and_then(|c| draft.topology.gateways.get(&c.gateway1)).cloned();
        if let Some(first) = first {
            draft.check_attached_to(&put.id, &format!("Connection {} cannot be created.", put.id), &first);
        }
    }

    /// Checks nothing, because no other resource can refer to a connection.
    fn check_unused(_draft: &mut Draft<'_>, _id: &ResourceId, _old: &Self) {}

    fn properties(&self, views: &Views<'_>) -> Value {
        let status = status::of(views.topology, views.statuses, self);
        let mut properties = json!({
            "connectionType": self.connection_type,
            "virtualNetworkGateway1": reference(&self.gateway1),
            "routingWeight": self.routing_weight,
            "enableBgp": self.enable_bgp,
            "dpdTimeoutSeconds": self.dpd_timeout.unwrap_or(0),
            "connectionStatus": status.status,
            "ingressBytesTransferred": status.ingress,
            "egressBytesTransferred": status.egress,
            "tunnelConnectionStatus": status.tunnels,
            "usePolicyBasedTrafficSelectors": false,
            "ipsecPolicies": [],
            "trafficSelectorPolicies": [],
        });
        let far = match self.connection_type {
            ConnectionType::Vnet2Vnet => "virtualNetworkGateway2",
            ConnectionType::IPsec => "localNetworkGateway2",
            ConnectionType::ExpressRoute => {
                properties["tunnelAddresses"] = json!(self.tunnel_addresses);
                "peer"
            }
        };
        properties[far] = reference(&self.gateway2);
        let kept = self.envelope.echoed.get("properties");
        if self.connection_type != ConnectionType::ExpressRoute
            && kept.and_then(|p| p.get("connectionProtocol")).is_none()
        {
            properties["connectionProtocol"] = DEFAULT_PROTOCOL.into();
        }
        properties
    }
}

impl Draft<'_> {
    /// Reads `connectionType`, which is immutable (G9). `None`: the type is missing or wrong, so the connection's ends
    /// cannot be checked.
    fn connection_type(
        &mut self,
        id: &ResourceId,
        properties: &Object<'_>,
        old: Option<&Connection>,
    ) -> Option<ConnectionType> {
        let kinds = ["Vnet2Vnet", "IPsec", "ExpressRoute", "VPNClient"];
        let at = properties.at("connectionType");
        let kind = match properties.choice("connectionType", &kinds, &mut self.problems) {
            Some("Vnet2Vnet") => ConnectionType::Vnet2Vnet,
            Some("IPsec") => ConnectionType::IPsec,
            Some("ExpressRoute") => ConnectionType::ExpressRoute,
            Some(other) => {
                let message =
                    format!("{at}: {other} connections are not supported, only Vnet2Vnet, IPsec and ExpressRoute (G9)");
                self.problems.add("XConnectionTypeNotSupported", at, message);
                return None;
            }
            None => {
                if properties.get("connectionType").is_none() {
                    missing(&mut self.problems, &at);
                }
                return None;
            }
        };
        if let Some(old) = old.filter(|o| o.connection_type != kind) {
            let message = format!(
                "{at}: connection {id} is of type {:?} and cannot become one of type {kind:?}: delete it and create it \
                 again (G9)",
                old.connection_type
            );
            self.problems.add("XConnectionTypeImmutable", at, message);
            return None;
        }
        Some(kind)
    }

    /// Reads `connectionProtocol`, which has no effect, because all tunnels are WireGuard's. GET shows `IKEv2` for a
    /// tunnel whose body has none, as Azure does, so this value is not kept. A connection to a circuit has no protocol.
    fn connection_protocol(
        &mut self,
        kind: Option<ConnectionType>,
        properties: &Object<'_>,
        kept: &mut Map<String, Value>,
    ) {
        let protocol = properties.choice("connectionProtocol", &[DEFAULT_PROTOCOL, "IKEv1"], &mut self.problems);
        let protocol = protocol.filter(|p| *p != DEFAULT_PROTOCOL && kind != Some(ConnectionType::ExpressRoute));
        let Some(Value::Object(inner)) = kept.get_mut("properties") else {
            return;
        };
        match protocol {
            Some(protocol) => inner.insert("connectionProtocol".to_owned(), protocol.into()),
            None => inner.remove("connectionProtocol"),
        };
        if inner.is_empty() {
            kept.remove("properties");
        }
    }

    /// Resolves the required reference `virtualNetworkGateway1`, and checks that the gateway is in the region and
    /// subscription of the connection at `place` (P1). The far end may be in another region or subscription (G14).
    /// `None`: the reference is missing, malformed, or its target does not exist.
    fn connection_gateway(&mut self, properties: &Object<'_>, place: &Place<'_>) -> Option<Arc<VirtualNetworkGateway>> {
        let name = "virtualNetworkGateway1";
        if properties.get(name).is_none() {
            missing(&mut self.problems, &properties.at(name));
        }
        let gateway = self.resolve_beside(properties, name, place, |t, gateway| {
            t.gateways.get(gateway).map(|g| &g.envelope)
        })?;
        self.topology.gateways.get(&gateway).cloned()
    }

    /// Reads `dpdTimeoutSeconds`, in seconds: 9 to 3600, or 0 for the default, as Azure does. `None`: the member is
    /// missing, 0, or not an integer from 0 to 3600; the last also adds a problem. A value from 1 to 8 adds a problem
    /// and is returned.
    fn dpd_timeout(&mut self, properties: &Object<'_>) -> Option<u16> {
        let seconds = properties.integer("dpdTimeoutSeconds", 0..=3600, &mut self.problems)?;
        if (1..9).contains(&seconds) {
            let at = properties.at("dpdTimeoutSeconds");
            let message = format!("{at}: {seconds} is neither 0, which is the default, nor 9 to 3600 seconds");
            self.problems.add("InvalidRequestFormat", at, message);
        }
        u16::try_from(seconds).ok().filter(|s| *s > 0)
    }

    /// Checks the format of a shared key: 1 to 128 printable ASCII characters without space, `-` and `~` (G11). `at`:
    /// the field that the problem names.
    fn check_shared_key(&mut self, key: &str, at: &str) {
        let good = |c: char| c.is_ascii_graphic() && c != '-' && c != '~';
        if key.is_empty() || key.len() > 128 || !key.chars().all(good) {
            // The key is a secret, so the message does not show it.
            self.problems.add(
                "XInvalidSharedKey",
                at,
                format!("{at}: a shared key has 1 to 128 printable ASCII characters without space, '-' and '~' (G11)"),
            );
        }
    }

    /// Sets the shared key of a connection, and adds a problem if the connection does not exist or is of type
    /// `ExpressRoute`. Always false, because nothing is created.
    pub(crate) fn set_shared_key(&mut self, connection: &ResourceId, value: &str, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.connections.get(connection).cloned() else {
            match ArmPath::parse(connection.as_str()) {
                Ok(path) if path.kind() == Some(Kind::Connection) => self.not_found(&path),
                _ => self.problems.add_status(
                    404,
                    "ResourceNotFound",
                    connection,
                    format!("{connection} is not a connection"),
                ),
            }
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), connection);
        if old.connection_type == ConnectionType::ExpressRoute {
            self.problems.add(
                "XSharedKeyNotUsed",
                connection,
                format!("Connection {connection} is of type ExpressRoute, which has no shared key (G11)."),
            );
            return false;
        }
        self.check_shared_key(value, "value");
        let mut new = (*old).clone();
        new.shared_key = Some(value.to_owned());
        self.commit(new);
        false
    }
}
