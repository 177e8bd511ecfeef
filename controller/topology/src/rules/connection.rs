//! VNet-to-VNet connections (G3, G9 to G11, G13, G16, X8).

use super::{Draft, changed, echoed};
use crate::arm::body::{Object, Shape, missing};
use crate::path::{ArmPath, Kind};
use crate::resource::{Connection, ConnectionType, ResourceGroup, VirtualNetworkGateway};
use serde_json::Value;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const PROPERTIES: [(&str, Shape); 3] = [
    ("connectionProtocol", Shape::Text),
    ("connectionMode", Shape::Text),
    ("dpdTimeoutSeconds", Shape::Integer(0, 3600)),
];

impl Draft<'_> {
    pub(super) fn put_connection(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.connections.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |c| c.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|c| c.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let kept = echoed(&root, &[], &PROPERTIES, &mut self.problems);
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|c| &c.envelope), kept);
        let supported = self.connection_type(&properties);
        let routing_weight = properties
            .integer("routingWeight", 0..=32_000, &mut self.problems)
            .unwrap_or(0);
        let enable_bgp = properties.boolean("enableBgp", &mut self.problems).unwrap_or(false);
        let key = properties.text("sharedKey", &mut self.problems);
        if let Some(key) = key {
            self.check_shared_key(key, &properties.at("sharedKey"));
        }
        if !supported {
            return old.is_none();
        }
        let first = self.connection_gateway(&id, &properties, "virtualNetworkGateway1");
        let second = self.connection_gateway(&id, &properties, "virtualNetworkGateway2");
        let (Some(first), Some(second)) = (first, second) else {
            return old.is_none();
        };
        self.check_ends(&id, &first, &second, old.as_deref());
        if self.problems.is_empty() {
            // The key is never shown, so a body that was read and edited has none: it stays.
            let kept_key = old.as_deref().and_then(|c| c.shared_key.clone());
            self.commit_connection(Connection {
                envelope,
                connection_type: ConnectionType::Vnet2Vnet,
                gateway1: first.envelope.id.clone(),
                gateway2: second.envelope.id.clone(),
                tunnel_addresses: Vec::new(),
                shared_key: key.map(str::to_owned).or(kept_key),
                routing_weight: u32::try_from(routing_weight).unwrap_or_default(),
                enable_bgp,
            });
        }
        old.is_none()
    }

    fn connection_type(&mut self, properties: &Object<'_>) -> bool {
        let kinds = ["Vnet2Vnet", "IPsec", "ExpressRoute", "VPNClient"];
        let at = properties.at("connectionType");
        match properties.choice("connectionType", &kinds, &mut self.problems) {
            Some("Vnet2Vnet") => true,
            Some(other) => {
                let message = format!("{at}: {other} connections are not supported, only Vnet2Vnet (G9)");
                self.problems.add("XConnectionTypeNotSupported", at, message);
                false
            }
            None => {
                if properties.get("connectionType").is_none() {
                    missing(&mut self.problems, &at);
                }
                true
            }
        }
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

    fn check_ends(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        second: &VirtualNetworkGateway,
        old: Option<&Connection>,
    ) {
        let ends = (&first.envelope.id, &second.envelope.id);
        if let Some(old) = old.filter(|o| (&o.gateway1, &o.gateway2) != ends) {
            self.problems.add(
                "XConnectionGatewaysImmutable",
                id,
                format!(
                    "Connection {id} joins {} to {} and cannot be changed to join {} to {}: delete it and create it anew.",
                    old.gateway1, old.gateway2, ends.0, ends.1
                ),
            );
            return;
        }
        if ends.0 == ends.1 {
            self.problems.add(
                "XConnectionToItself",
                id,
                format!("Connection {id} has the same gateway on both ends: {}.", ends.0),
            );
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
        if old.is_some() {
            return;
        }
        let mut own = self.topology.connections.values().filter(|c| c.gateway1 == *ends.0);
        if let Some(twin) = own.find(|c| c.gateway2 == *ends.1).map(|c| c.envelope.id.clone()) {
            self.problems.add(
                "XRedundantTunnelNotAllowed",
                id,
                format!(
                    "Connection {twin} already joins {} to {}; a second tunnel is not allowed (G13).",
                    ends.0, ends.1
                ),
            );
        }
        let limit = self.topology.settings.tunnels_per_gateway as usize;
        if self
            .topology
            .connections
            .values()
            .filter(|c| c.gateway1 == *ends.0)
            .count()
            >= limit
        {
            self.problems.add(
                "XTunnelLimitReached",
                id,
                format!("Gateway {} has {limit} tunnels, the most it may have (X8).", ends.0),
            );
        }
        self.check_vpn_before_joining(id, first, second);
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

    pub(super) fn set_shared_key(&mut self, connection: &ResourceId, value: &str, if_match: Option<&str>) -> bool {
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
        self.check_shared_key(value, "value");
        let mut new = (*old).clone();
        new.shared_key = Some(value.to_owned());
        self.commit_connection(new);
        false
    }

    pub(super) fn delete_connection(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.connections.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        self.topology.connections.remove(id);
        true
    }

    pub(super) fn commit_connection(&mut self, mut new: Connection) {
        let old = self.topology.connections.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.connections.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
