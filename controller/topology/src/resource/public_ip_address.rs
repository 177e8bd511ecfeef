//! Public IP addresses. They are kept and shown only. They exist because the gateways that stock clients create refer
//! to them.

use crate::arm::body::{Object, Shape};
use crate::arm::view::{Views, reference};
use crate::draft::Draft;
use crate::path::Kind;
use crate::resource::Envelope;
use crate::resource::frame::{Echoed, Put, Resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// A public IP address resource. It has no effect, because agents report their underlay endpoints themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicIpAddress {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `ipAddress`, if the operator set one.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
}

/// The properties that are kept and shown only, with Azure's defaults.
const ECHOED: Echoed = Echoed {
    top: &[
        ("sku", Shape::Object),
        ("zones", Shape::Texts),
        ("extendedLocation", Shape::Object),
    ],
    top_defaults: || json!({"sku": {"name": "Standard", "tier": "Regional"}}),
    properties: &[
        ("publicIPAllocationMethod", Shape::Text),
        ("publicIPAddressVersion", Shape::Text),
        ("idleTimeoutInMinutes", Shape::Integer(4, 30)),
        ("dnsSettings", Shape::Object),
        ("ddosSettings", Shape::Object),
        ("ipTags", Shape::Objects),
        ("deleteOption", Shape::Text),
    ],
    defaults: || {
        json!({
            "publicIPAllocationMethod": "Dynamic",
            "publicIPAddressVersion": "IPv4",
            "idleTimeoutInMinutes": 4,
        })
    },
};

impl Resource for PublicIpAddress {
    const KIND: Kind = Kind::PublicIpAddress;
    const ECHOED: Echoed = ECHOED;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let mut kept = put.echoed_with_defaults(&mut draft.problems);
        for (name, values) in [
            ("publicIPAllocationMethod", ["Dynamic", "Static"]),
            ("publicIPAddressVersion", ["IPv4", "IPv6"]),
        ] {
            // GET shows these values in Azure's casing, even if the body of the PUT had another casing.
            let value = put.properties.choice(name, &values, &mut draft.problems);
            if let (Some(value), Some(Value::Object(inner))) = (value, kept.get_mut("properties")) {
                inner.insert(name.to_owned(), Value::from(value));
            }
        }
        Some(Self {
            envelope: put.envelope(draft, Self::ECHOED.without_defaults(kept)),
            ip_address: put.properties.address("ipAddress", &mut draft.problems),
        })
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        if let Some(user) = draft.public_ip_user(id) {
            draft.problems.add(
                "PublicIPAddressCannotBeDeleted",
                id,
                format!("Public IP address {id} can not be deleted since it is still allocated to resource {user}."),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let mut properties = json!({});
        if let Some(address) = self.ip_address {
            properties["ipAddress"] = address.to_string().into();
        }
        if let Some(user) = views.public_ip_user(&self.envelope.id) {
            properties["ipConfiguration"] = reference(user);
        }
        properties
    }
}

impl Draft<'_> {
    /// The id of the ip configuration, of a NIC or a gateway, that uses the public address `id`. `None`: none uses it.
    pub(crate) fn public_ip_user(&self, id: &ResourceId) -> Option<String> {
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

    /// Resolves `publicIPAddress` of the ip configuration `config` of `owner`. `None`: the reference is missing or
    /// cannot be resolved. A reference that cannot be resolved adds a problem. An address that another resource uses
    /// also adds a problem, and is returned.
    pub(crate) fn resolve_public_ip(
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
}

/// Whether `config` is the id of an ip configuration of `owner`. Public addresses that the ip configurations of `owner`
/// use now do not count as in use in a PUT of `owner`: the PUT may move them from one ip configuration to another.
fn belongs_to(config: &str, owner: &ResourceId) -> bool {
    let owner = owner.as_str();
    config.len() > owner.len()
        && config.is_char_boundary(owner.len())
        && config[..owner.len()].eq_ignore_ascii_case(owner)
        && config.as_bytes()[owner.len()] == b'/'
}
