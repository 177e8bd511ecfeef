//! Public IP addresses. They exist because the gateways that stock clients create refer to them. They assign no address
//! to a machine: a machine has its public address already, and its agent reports it.

use crate::arm::body::{Object, Shape};
use crate::arm::view::{Endpoints, Views, reference};
use crate::draft::Draft;
use crate::path::Kind;
use crate::problems::Problems;
use crate::resource::Envelope;
use crate::resource::frame::{Echoed, Put, Resource};
use crate::rules::place::Place;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tombolo_proto::id::ResourceId;

/// A public IP address resource. It has no effect on packets, because agents report their underlay endpoints
/// themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicIpAddress {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `ipAddress` of a static address: the one that the operator has set, otherwise a placeholder (see
    /// [`is_placeholder`]). A dynamic one has none, and one that an earlier version stored counts for nothing.
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
            "ipTags": [],
        })
    },
};

impl Resource for PublicIpAddress {
    const KIND: Kind = Kind::PublicIpAddress;
    const ECHOED: Echoed = ECHOED;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let mut kept = put.echoed_with_defaults(&mut draft.problems);
        let problems = &mut draft.problems;
        let methods = ["Dynamic", "Static"];
        let given_method = put.properties.choice("publicIPAllocationMethod", &methods, problems);
        let version = put
            .properties
            .choice("publicIPAddressVersion", &["IPv4", "IPv6"], problems);
        let sku = put.root.object_or_empty("sku", &mut Problems::default());
        let given_sku = sku.choice("name", &["Basic", "Standard", "StandardV2"], problems);
        // A body that Azure accepts without a SKU asks for a dynamic address, which only the SKU Basic has.
        let sku_name = given_sku.unwrap_or(match (put.old(), given_method) {
            (Some(old), _) => old.sku_name(),
            (None, Some("Dynamic")) => "Basic",
            (None, _) => "Standard",
        });
        let default_method = match put.old() {
            _ if sku_name != "Basic" => "Static",
            Some(old) => old.method(),
            None => "Dynamic",
        };
        let method = given_method.unwrap_or(default_method);
        if sku_name != "Basic" && method == "Dynamic" {
            problems.add(
                "StandardSkuPublicIPAddressesMustBeStatic",
                put.properties.at("publicIPAllocationMethod"),
                format!(
                    "{}: Standard sku publicIp {} must have AllocationMethod set to Static. Set publicIPAllocationMethod to \
                     Static, or sku.name to Basic.",
                    put.properties.at("publicIPAllocationMethod"),
                    put.id
                ),
            );
        }
        let old_tier = put.old().map_or("Regional", Self::sku_tier);
        let tier = sku
            .choice("tier", &["Regional", "Global"], problems)
            .unwrap_or(old_tier);
        let given = put.properties.address("ipAddress", problems);
        // GET shows these values in Azure's casing, even if the body of the PUT had another casing.
        let version = version.unwrap_or("IPv4");
        kept.insert("sku".to_owned(), json!({"name": sku_name, "tier": tier}));
        let properties = kept.entry("properties").or_insert_with(|| json!({}));
        properties["publicIPAllocationMethod"] = method.into();
        properties["publicIPAddressVersion"] = version.into();
        let ip_address = match method {
            // The address of a dynamic one is read-only: GET shows that of the machine.
            "Dynamic" => None,
            _ => draft.static_address(put, given, version == "IPv6"),
        };
        Some(Self {
            envelope: put.envelope(draft, Self::ECHOED.without_defaults(kept)),
            ip_address,
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
        let mut properties = json!({"publicIPAllocationMethod": self.method()});
        if let Some(address) = self.shown_address(views) {
            properties["ipAddress"] = address.to_string().into();
        }
        if let Some(user) = views.public_ip_user(&self.envelope.id) {
            properties["ipConfiguration"] = reference(user);
        }
        properties
    }
}

/// The prefixes of the placeholders for static addresses that no operator has set. They are reserved for benchmarks,
/// and the Internet does not route them (RFC 2544, RFC 5180).
const PLACEHOLDERS: (Ipv4Net, Ipv6Net) = (
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48),
);

/// Whether an address is a placeholder. Azure's clients expect that a static public address has a value from its
/// creation on. The controller owns no public addresses, so it allocates one that names no machine, and shows the
/// address of the machine as soon as its agent reports it.
fn is_placeholder(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => PLACEHOLDERS.0.contains(&address),
        IpAddr::V6(address) => PLACEHOLDERS.1.contains(&address),
    }
}

impl PublicIpAddress {
    /// The address that GET shows: the one that the operator has set, else the underlay address of the agent of the
    /// machine or gateway that uses the resource, else the placeholder. `None`: a dynamic address that no machine with
    /// an agent uses.
    pub(crate) fn shown_address(&self, views: &Views<'_>) -> Option<IpAddr> {
        self.address_or(|| {
            let user = views.public_ip_user(&self.envelope.id)?;
            let same_family = |address: &IpAddr| address.is_ipv6() == self.is_ipv6();
            views.endpoint(&ResourceId::new(user.as_str()), same_family)
        })
    }

    /// The address that GET shows if `reported` is the one that an agent has reported.
    fn address_or(&self, reported: impl FnOnce() -> Option<IpAddr>) -> Option<IpAddr> {
        let stored = self.static_address();
        let set = stored.filter(|address| !is_placeholder(*address));
        set.or_else(reported).or(stored)
    }

    /// The stored address, if the allocation method is `Static`.
    fn static_address(&self) -> Option<IpAddr> {
        self.ip_address.filter(|_| self.method() == "Static")
    }

    /// The text `member` of an echoed object; empty if it is not stored, which means the default.
    fn echoed_text(&self, object: &str, member: &str) -> &str {
        let found = self.envelope.echoed.get(object).and_then(|o| o.get(member));
        found.and_then(Value::as_str).unwrap_or_default()
    }

    /// `sku.name`, by default `Standard`.
    fn sku_name(&self) -> &'static str {
        match self.echoed_text("sku", "name").to_ascii_lowercase().as_str() {
            "basic" => "Basic",
            "standardv2" => "StandardV2",
            _ => "Standard",
        }
    }

    /// `sku.tier`, by default `Regional`.
    fn sku_tier(&self) -> &'static str {
        if self.echoed_text("sku", "tier").eq_ignore_ascii_case("Global") {
            "Global"
        } else {
            "Regional"
        }
    }

    /// `publicIPAllocationMethod`. Version 0.1 stored Standard addresses without a method, or with `Dynamic`. They are
    /// static, as every address with this SKU.
    fn method(&self) -> &'static str {
        let method = self.echoed_text("properties", "publicIPAllocationMethod");
        if self.sku_name() != "Basic" || method.eq_ignore_ascii_case("Static") {
            "Static"
        } else {
            "Dynamic"
        }
    }

    /// Whether `publicIPAddressVersion` is IPv6; by default it is IPv4.
    fn is_ipv6(&self) -> bool {
        self.echoed_text("properties", "publicIPAddressVersion")
            .eq_ignore_ascii_case("IPv6")
    }
}

impl Draft<'_> {
    /// The lowest placeholder that no public address has. `None`: all are in use, and a problem says so.
    fn free_placeholder(&mut self, ipv6: bool) -> Option<IpAddr> {
        let used: BTreeSet<IpAddr> = self.topology.public_ips.values().filter_map(|p| p.ip_address).collect();
        let found = if ipv6 {
            let mut all = PLACEHOLDERS.1.hosts().skip(1).map(IpAddr::V6);
            all.find(|address| !used.contains(address))
        } else {
            let mut all = PLACEHOLDERS.0.hosts().map(IpAddr::V4);
            all.find(|address| !used.contains(address))
        };
        if found.is_none() {
            let at = "properties.ipAddress";
            let message = format!("{at}: no free address is left; set one, or delete public addresses");
            self.problems.add("PublicIPCountLimitReached", at, message);
        }
        found
    }

    /// The address that the PUT of a static public address stores: the address `given` in the body if it differs from the
    /// one that GET shows, otherwise the present one, or a new placeholder. Adds a problem if `given` has not the family
    /// of the resource. A client that writes back the address of a machine, or a placeholder, sets nothing.
    fn static_address(&mut self, put: &Put<'_, PublicIpAddress>, given: Option<IpAddr>, ipv6: bool) -> Option<IpAddr> {
        let shown = put.old().and_then(|old| {
            old.address_or(|| {
                let user = self.public_ip_user(&put.id)?;
                let same_family = |address: &IpAddr| address.is_ipv6() == old.is_ipv6();
                Endpoints::of(&self.topology).of_user(&ResourceId::new(user), same_family)
            })
        });
        if let Some(given) = given.filter(|address| Some(*address) != shown && !is_placeholder(*address)) {
            if given.is_ipv6() != ipv6 {
                let at = put.properties.at("ipAddress");
                let version = if ipv6 { "IPv6" } else { "IPv4" };
                let message = format!(
                    "{at}: {given} is not an {version} address, as publicIPAddressVersion says. Give an address of this \
                     version, or leave ipAddress out."
                );
                self.problems.add("InvalidRequestFormat", at, message);
            }
            return Some(given);
        }
        let present = put.old().and_then(PublicIpAddress::static_address);
        let kept = present.filter(|address| address.is_ipv6() == ipv6);
        kept.or_else(|| self.free_placeholder(ipv6))
    }

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

    /// Resolves `publicIPAddress` of the ip configuration `config` of the NIC or gateway at `place`. `None`: the
    /// reference is missing or cannot be resolved. A reference that cannot be resolved adds a problem. An address that
    /// another resource uses, or that is in another region or subscription, also adds a problem, and is returned.
    pub(crate) fn resolve_public_ip(
        &mut self,
        properties: &Object<'_>,
        place: &Place<'_>,
        config: &str,
    ) -> Option<ResourceId> {
        let owner = place.id;
        let found = self.resolve_beside(properties, "publicIPAddress", place, |t, id| {
            t.public_ips.get(id).map(|p| &p.envelope)
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
