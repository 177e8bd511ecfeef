//! Connections: reading, and what holds for all types (G9, G11, X8).

mod ends;
mod tunnels;

use crate::arm::body::{Object, Shape, missing};
use crate::arm::status;
use crate::arm::view::{Views, reference};
use crate::draft::Draft;
use crate::path::{ArmPath, Kind};
use crate::resource::frame::{Echoed, Put, Resource};
use crate::resource::{Envelope, VirtualNetworkGateway};
use crate::rules::unsupported;
use ends::End;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// A connection object (G9); of type `Vnet2Vnet` it is one side's (G10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Id, location, tags, etag.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `connectionType`. Immutable.
    #[serde(default)]
    pub connection_type: ConnectionType,
    /// This side's gateway.
    pub gateway1: ResourceId,
    /// The other end: a gateway, a local network gateway or a circuit, by `connection_type`. Immutable.
    pub gateway2: ResourceId,
    /// `ExpressRoute` only: the ends of the tunnels to the primary and the secondary edge, addresses of the gateway's
    /// `GatewaySubnet`. Allocated at creation unless given.
    #[serde(default)]
    pub tunnel_addresses: Vec<IpAddr>,
    /// G11; none until set: the tunnel cannot come up.
    #[serde(default)]
    pub shared_key: Option<String>,
    /// `routingWeight`.
    pub routing_weight: u32,
    /// `enableBgp`.
    pub enable_bgp: bool,
    /// `dpdTimeoutSeconds`: silence of a site's device after which it is given up, seconds, 9 to 3600; none: the default.
    #[serde(default)]
    pub dpd_timeout: Option<u16>,
}

/// `connectionType` (G9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConnectionType {
    /// Gateway to gateway; needs a second object for the way back (G10).
    #[default]
    Vnet2Vnet,
    /// Gateway to the device of a site.
    IPsec,
    /// ExpressRoute gateway to circuit.
    ExpressRoute,
}

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
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        draft.check_supported(properties, unsupported::CONNECTION);
        let kind = draft.connection_type(id, properties, put.old());
        if kind == Some(ConnectionType::ExpressRoute) {
            draft.check_supported(properties, unsupported::CIRCUIT_CONNECTION);
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
        let first = draft.connection_gateway(id, properties, "virtualNetworkGateway1");
        let far = draft.far_end(id, kind, properties);
        let (first, far) = (first?, far?);
        draft.check_ends(id, &first, &far, enable_bgp, put.old());
        let tunnel_addresses = match &far {
            End::Circuit(circuit) => draft.tunnel_addresses(id, properties, &first, circuit, put.old()),
            End::Gateway(_) | End::Site(_) => Vec::new(),
        };
        if !draft.problems.is_empty() {
            return None;
        }
        // The key is never shown, so a body that was read and edited has none: it stays.
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

    /// Nothing refers to a connection.
    fn check_unused(_draft: &mut Draft<'_>, _id: &ResourceId, _old: &Self) {}

    fn properties(&self, views: &Views<'_>) -> Value {
        let status = status::of(views.topology, views.live, self);
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
        properties
    }
}

impl Draft<'_> {
    /// `connectionType` (G9): immutable. None: nothing can be said of the ends.
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
                 anew (G9)",
                old.connection_type
            );
            self.problems.add("XConnectionTypeImmutable", at, message);
            return None;
        }
        Some(kind)
    }

    fn connection_gateway(
        &mut self,
        id: &ResourceId,
        properties: &Object<'_>,
        name: &str,
    ) -> Option<Arc<VirtualNetworkGateway>> {
        if properties.get(name).is_none() {
            missing(&mut self.problems, &properties.at(name));
        }
        self.resolve(properties, name, id, |t, gateway| t.gateways.get(gateway).cloned())
    }

    /// `dpdTimeoutSeconds`: 9 to 3600, and 0 for the default, as Azure has it.
    fn dpd_timeout(&mut self, properties: &Object<'_>) -> Option<u16> {
        let seconds = properties.integer("dpdTimeoutSeconds", 0..=3600, &mut self.problems)?;
        if (1..9).contains(&seconds) {
            let at = properties.at("dpdTimeoutSeconds");
            let message = format!("{at}: {seconds} is neither 0, which is the default, nor 9 to 3600 seconds");
            self.problems.add("InvalidRequestFormat", at, message);
        }
        u16::try_from(seconds).ok().filter(|s| *s > 0)
    }

    /// G11.
    fn check_shared_key(&mut self, key: &str, at: &str) {
        let good = |c: char| c.is_ascii_graphic() && c != '-' && c != '~';
        if key.is_empty() || key.len() > 128 || !key.chars().all(good) {
            // The key itself is a secret and stays out of the message.
            self.problems.add(
                "XInvalidSharedKey",
                at,
                format!("{at}: a shared key has 1 to 128 printable ASCII characters without space, '-' and '~' (G11)"),
            );
        }
    }

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
