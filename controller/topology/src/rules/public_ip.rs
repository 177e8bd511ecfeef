//! Public IP addresses: kept so that stock gateway requests work.

use super::{Draft, changed, echoed, without_default_properties};
use crate::arm::body::{Object, Shape};
use crate::arm::view::{public_ip_defaults, public_ip_sku};
use crate::path::ArmPath;
use crate::resource::{PublicIpAddress, ResourceGroup};
use serde_json::Value;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const TOP: [(&str, Shape); 3] = [
    ("sku", Shape::Object),
    ("zones", Shape::Texts),
    ("extendedLocation", Shape::Object),
];
const PROPERTIES: [(&str, Shape); 7] = [
    ("publicIPAllocationMethod", Shape::Text),
    ("publicIPAddressVersion", Shape::Text),
    ("idleTimeoutInMinutes", Shape::Integer(4, 30)),
    ("dnsSettings", Shape::Object),
    ("ddosSettings", Shape::Object),
    ("ipTags", Shape::Objects),
    ("deleteOption", Shape::Text),
];

impl Draft<'_> {
    pub(super) fn put_public_ip(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.public_ips.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |p| p.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|p| p.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let mut kept = echoed(&root, &TOP, &PROPERTIES, &mut self.problems);
        for (name, values) in [
            ("publicIPAllocationMethod", ["Dynamic", "Static"]),
            ("publicIPAddressVersion", ["IPv4", "IPv6"]),
        ] {
            // Canonical on output.
            let value = properties.choice(name, &values, &mut self.problems);
            if let (Some(value), Some(Value::Object(inner))) = (value, kept.get_mut("properties")) {
                inner.insert(name.to_owned(), Value::from(value));
            }
        }
        without_default_properties(&mut kept, &public_ip_defaults());
        if kept.get("sku") == Some(&public_ip_sku()) {
            kept.remove("sku");
        }
        let new = PublicIpAddress {
            envelope: self.envelope(&root, id, old.as_deref().map(|p| &p.envelope), kept),
            ip_address: properties.address("ipAddress", &mut self.problems),
        };
        self.commit_public_ip(new);
        old.is_none()
    }

    pub(super) fn delete_public_ip(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.public_ips.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        if let Some(user) = self.public_ip_user(id) {
            self.problems.add(
                "PublicIPAddressCannotBeDeleted",
                id,
                format!("Public IP address {id} can not be deleted since it is still allocated to resource {user}."),
            );
        }
        self.topology.public_ips.remove(id);
        true
    }

    /// The ip configuration that uses a public address.
    pub(super) fn public_ip_user(&self, id: &ResourceId) -> Option<String> {
        let nics = self.topology.nics.values().flat_map(|n| {
            let owner = &n.envelope.id;
            n.ip_configurations
                .iter()
                .map(move |c| (owner, &c.name, &c.public_ip_address))
        });
        let gateways = self.topology.gateways.values().flat_map(|g| {
            let owner = &g.envelope.id;
            g.ip_configurations
                .iter()
                .map(move |c| (owner, &c.name, &c.public_ip_address))
        });
        nics.chain(gateways)
            .find(|(_, _, used)| used.as_ref() == Some(id))
            .map(|(owner, name, _)| format!("{owner}/ipConfigurations/{name}"))
    }

    /// A reference to a public address from an ip configuration; each has one user.
    pub(super) fn resolve_public_ip(
        &mut self,
        properties: &Object<'_>,
        owner: &ResourceId,
        config: &str,
    ) -> Option<ResourceId> {
        let found = self.resolve(properties, "publicIPAddress", owner, |t, id| {
            t.public_ips.get(id).map(|p| p.envelope.id.clone())
        })?;
        let user = format!("{owner}/ipConfigurations/{config}");
        let taken = self.public_ip_user(&found);
        if let Some(taken) = taken.filter(|t| !t.eq_ignore_ascii_case(&user) && !belongs_to(t, owner)) {
            let at = properties.at("publicIPAddress.id");
            self.problems.add(
                "PublicIPAddressInUse",
                at,
                format!("Resource {user} is referencing public IP address {found} that is already allocated to resource {taken}."),
            );
        }
        Some(found)
    }

    pub(super) fn commit_public_ip(&mut self, mut new: PublicIpAddress) {
        let old = self.topology.public_ips.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.public_ips.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}

/// True for an ip configuration of `owner`: what the resource being written had before does not count.
fn belongs_to(config: &str, owner: &ResourceId) -> bool {
    let owner = owner.as_str();
    config.len() > owner.len()
        && config.is_char_boundary(owner.len())
        && config[..owner.len()].eq_ignore_ascii_case(owner)
        && config.as_bytes()[owner.len()] == b'/'
}
