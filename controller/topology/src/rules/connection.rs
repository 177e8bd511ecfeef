//! Connections: reading, and what holds for all types (G9, G11, X8).

mod ends;
mod tunnels;

use super::{Draft, changed, echoed, unsupported};
use crate::arm::body::{Object, Shape, missing};
use crate::path::{ArmPath, Kind};
use crate::resource::{Connection, ConnectionType, ResourceGroup, VirtualNetworkGateway};
use ends::End;
use serde_json::Value;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const PROPERTIES: [(&str, Shape); 4] = [
    ("connectionProtocol", Shape::Text),
    ("connectionMode", Shape::Text),
    ("expressRouteGatewayBypass", Shape::Bool),
    ("enablePrivateLinkFastPath", Shape::Bool),
];

impl Draft<'_> {
    pub(crate) fn put_connection(
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
        self.check_supported(&properties, unsupported::CONNECTION);
        let kind = self.connection_type(&id, &properties, old.as_deref());
        if kind == Some(ConnectionType::ExpressRoute) {
            self.check_supported(&properties, unsupported::CIRCUIT_CONNECTION);
        }
        let routing_weight = properties
            .integer("routingWeight", 0..=32_000, &mut self.problems)
            .unwrap_or(0);
        let enable_bgp = properties.boolean("enableBgp", &mut self.problems).unwrap_or(false);
        let dpd_timeout = self.dpd_timeout(&properties);
        let key = properties.text("sharedKey", &mut self.problems);
        if let Some(key) = key.filter(|_| kind != Some(ConnectionType::ExpressRoute)) {
            self.check_shared_key(key, &properties.at("sharedKey"));
        }
        let Some(kind) = kind else { return old.is_none() };
        let first = self.connection_gateway(&id, &properties, "virtualNetworkGateway1");
        let far = self.far_end(&id, kind, &properties);
        let (Some(first), Some(far)) = (first, far) else {
            return old.is_none();
        };
        self.check_ends(&id, &first, &far, enable_bgp, old.as_deref());
        let tunnel_addresses = match &far {
            End::Circuit(circuit) => self.tunnel_addresses(&id, &properties, &first, circuit, old.as_deref()),
            End::Gateway(_) | End::Site(_) => Vec::new(),
        };
        if self.problems.is_empty() {
            // The key is never shown, so a body that was read and edited has none: it stays.
            let kept_key = old.as_deref().and_then(|c| c.shared_key.clone());
            let key = key.map(str::to_owned).or(kept_key);
            self.commit_connection(Connection {
                envelope,
                connection_type: kind,
                gateway1: first.envelope.id.clone(),
                gateway2: far.id().clone(),
                tunnel_addresses,
                shared_key: key.filter(|_| kind != ConnectionType::ExpressRoute),
                routing_weight: u32::try_from(routing_weight).unwrap_or_default(),
                enable_bgp,
                dpd_timeout,
            });
            if old.is_none() {
                self.check_attached_to(&id, &format!("Connection {id} cannot be created."), &first);
            }
        }
        old.is_none()
    }

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
        self.commit_connection(new);
        false
    }

    pub(crate) fn delete_connection(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.connections.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        self.topology.connections.remove(id);
        true
    }

    pub(crate) fn commit_connection(&mut self, mut new: Connection) {
        let old = self.topology.connections.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.connections.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
