//! The private peering of a circuit: its two lines to the customer (E1, G4).

use crate::arm::body::{Item, Object, missing, prefix};
use crate::arm::view::child;
use crate::draft::Draft;
use crate::net::{is_reserved_for_customers, overlap, special_use};
use crate::path::{Kind, child_id, parent_id, shown};
use crate::resource::frame::{Child, ChildWrites, Request};
use crate::rules::unsupported;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::config::EDGE_ASN;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A circuit's private peering, with its two lines to the customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrivatePeering {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the peering.
    pub etag: Uuid,
    /// `peerASN`: the customer's ASN.
    pub peer_asn: u32,
    /// `primaryPeerAddressPrefix`: a /30, or an IPv6 /126. The first address is the customer's, the second one is the
    /// edge's (E1).
    pub primary: IpNet,
    /// `secondaryPeerAddressPrefix`: the prefix of the secondary line. It has the same length and address family as
    /// `primary`, and does not overlap it.
    pub secondary: IpNet,
    /// `vlanId`, 0 to 4094. It is kept and shown only, because the operator creates the VLAN interface on the edge's
    /// host.
    pub vlan_id: u16,
    /// `sharedKey`: the TCP MD5 key of the BGP sessions on both lines (RFC 2385). `None`: the sessions have no key.
    #[serde(default)]
    pub shared_key: Option<String>,
}

/// The only supported type. A peering's name equals its type.
const PRIVATE: &str = "AzurePrivatePeering";

/// The peerings of a circuit as child items. Only a private peering can exist.
pub(super) const PEERINGS: Child = Child {
    name: "peerings",
    kind: Some(Kind::CircuitPeering),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_circuit_peering(request),
        delete: |draft, id, if_match| draft.delete_circuit_peering(id, if_match),
    }),
    item: |views, path| {
        let circuit = views.topology.circuits.get(&path.parent()?.id())?;
        let peering = circuit.private_peering.as_ref().filter(|p| p.id == path.id());
        peering.map(PrivatePeering::view)
    },
    list: |views, parent| {
        let circuit = views.topology.circuits.get(parent)?;
        Some(circuit.private_peering.iter().map(PrivatePeering::view).collect())
    },
};

impl PrivatePeering {
    /// The ARM body of the peering, without its secret key.
    pub(super) fn view(&self) -> Value {
        let properties = json!({
            "peeringType": "AzurePrivatePeering",
            "state": "Enabled",
            "azureASN": EDGE_ASN,
            "peerASN": self.peer_asn,
            "primaryPeerAddressPrefix": self.primary,
            "secondaryPeerAddressPrefix": self.secondary,
            "vlanId": self.vlan_id,
            "connections": [],
            "peeredConnections": [],
        });
        child(&self.id, Kind::CircuitPeering, self.etag, properties)
    }
}

impl Draft<'_> {
    /// PUT of a peering. True: the peering is new.
    fn put_circuit_peering(&mut self, request: &Request<'_>) -> bool {
        let (path, body) = (request.path, request.body);
        let Some(circuit) = path.parent().and_then(|p| self.topology.circuits.get(&p.id()).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let id = &circuit.envelope.id;
        let named = path.name().eq_ignore_ascii_case(PRIVATE);
        let old = circuit.private_peering.as_ref().filter(|_| named);
        self.check_if_match(request.if_match, old.map(|p| p.etag), &path.id());
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        if !self.check_peering_type(path.name(), &path.id().to_string(), &properties) {
            return old.is_none();
        }
        let mut new = (*circuit).clone();
        if let Some(peering) = self.read_peering(id, &properties, old) {
            new.private_peering = Some(peering);
            self.commit(new);
        }
        old.is_none()
    }

    /// DELETE of a peering. True: the peering existed. While connections use the circuit, the deletion adds a problem.
    fn delete_circuit_peering(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(circuit) = self.topology.circuits.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = circuit.private_peering.as_ref().filter(|p| p.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*circuit).clone();
        new.private_peering = None;
        self.check_circuit_in_use(Some(&circuit), &new);
        self.commit(new);
        true
    }

    /// Reads the `peerings` of a circuit's body, which must list all peerings that the circuit is to have. `None`: the
    /// list has no private peering, so a present one is removed. If the list has one that cannot be read, the present
    /// one stays.
    pub(super) fn read_peerings(
        &mut self,
        circuit: &ResourceId,
        items: &[Item<'_>],
        old: Option<&PrivatePeering>,
    ) -> Option<PrivatePeering> {
        let mut names = Vec::new();
        let mut found = None;
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let Some(name) = self.child_name(&object) else { continue };
            let properties = object.object_or_empty("properties", &mut self.problems);
            names.push(name.clone());
            if self.check_peering_type(&name, &object.at("name"), &properties) {
                // If the new form of an existing peering cannot be read, the peering stays in the draft. Otherwise the
                // answer would also report problems of a deletion that nobody requested.
                found = self.read_peering(circuit, &properties, old).or_else(|| old.cloned());
            }
        }
        self.check_unique_names(circuit, "peering", names.iter().map(String::as_str));
        found
    }

    /// Checks that a peering is the private one, by `peeringType` and by its name. False: it is another one, and a
    /// problem says so.
    fn check_peering_type(&mut self, name: &str, at: &str, properties: &Object<'_>) -> bool {
        let types = [PRIVATE, "AzurePublicPeering", "MicrosoftPeering"];
        let before = self.problems.len();
        let kind = properties.choice("peeringType", &types, &mut self.problems);
        let wrong = kind
            .filter(|k| *k != PRIVATE)
            .or(Some(name).filter(|n| !n.eq_ignore_ascii_case(PRIVATE)));
        if let Some(wrong) = wrong {
            let message = format!("{at}: '{}' is not supported, only {PRIVATE} (E1)", shown(wrong));
            self.problems.add("XPeeringTypeNotSupported", at, message);
        }
        self.problems.len() == before
    }

    /// Reads the properties of a peering. `None`: one of them is wrong.
    fn read_peering(
        &mut self,
        circuit: &ResourceId,
        properties: &Object<'_>,
        old: Option<&PrivatePeering>,
    ) -> Option<PrivatePeering> {
        let before = self.problems.len();
        let peer_asn = self.required(properties, "peerASN", 1..=i64::from(u32::MAX));
        if let Some(asn) = peer_asn.filter(|a| is_reserved_for_customers(*a)) {
            let at = properties.at("peerASN");
            let message = format!("{at}: {asn} is reserved, a customer cannot have it (G4)");
            self.problems.add("XReservedAsn", at, message);
        }
        let vlan_id = self.required(properties, "vlanId", 0..=4094);
        let primary = self.line(properties, "primaryPeerAddressPrefix");
        let secondary = self.line(properties, "secondaryPeerAddressPrefix");
        if let (Some(primary), Some(secondary)) = (&primary, &secondary) {
            let at = properties.at("secondaryPeerAddressPrefix");
            if overlap(primary, secondary) {
                let message = format!("{at}: {secondary} overlaps primaryPeerAddressPrefix {primary} (E1)");
                self.problems.add("XInvalidPeerAddressPrefix", at, message);
            } else if primary.addr().is_ipv4() != secondary.addr().is_ipv4() {
                let message = format!("{at}: {secondary} is not of the address family of {primary} (E1)");
                self.problems.add("XInvalidPeerAddressPrefix", at, message);
            }
        }
        let key = properties
            .text("sharedKey", &mut self.problems)
            .filter(|k| !k.is_empty());
        if key.is_some_and(|k| k.len() > 80 || !k.chars().all(|c| c.is_ascii_graphic() && c != '"')) {
            // The key is a secret, so the message does not show it.
            let at = properties.at("sharedKey");
            let message =
                format!("{at}: it has at most 80 printable ASCII characters without space and '\"' (RFC 2385)");
            self.problems.add("XInvalidSharedKey", at, message);
        }
        self.check_supported(properties, unsupported::CIRCUIT_PEERING);
        let state = properties.choice("state", &["Enabled", "Disabled"], &mut self.problems);
        if state == Some("Disabled") {
            let at = properties.at("state");
            let message = format!("{at}: a peering cannot be disabled here; delete it instead");
            self.problems.add("XNotSupported", at, message);
        }
        if self.problems.len() > before {
            return None;
        }
        Some(PrivatePeering {
            id: old.map_or_else(|| child_id(circuit, "peerings", PRIVATE), |p| p.id.clone()),
            etag: old.map_or(Uuid::nil(), |p| p.etag),
            peer_asn: u32::try_from(peer_asn?).ok()?,
            primary: primary?,
            secondary: secondary?,
            vlan_id: u16::try_from(vlan_id?).ok()?,
            // GET never shows the shared key. So a client that reads a body, edits it and writes it back sends no key;
            // this must not delete the stored key.
            shared_key: key
                .map(str::to_owned)
                .or_else(|| old.and_then(|p| p.shared_key.clone())),
        })
    }

    /// Reads the required integer `name`. `None`: the member is missing, not an integer or out of `range`, and a
    /// problem says so.
    fn required(&mut self, properties: &Object<'_>, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        if properties.get(name).is_none() {
            missing(&mut self.problems, &properties.at(name));
        }
        properties.integer(name, range, &mut self.problems)
    }

    /// Reads the prefix of a line: a /30, or an IPv6 /126 (E1). `None`: the member is missing or not a prefix, and a
    /// problem says so. A prefix of another length or in a special-use block adds a problem and is returned.
    fn line(&mut self, properties: &Object<'_>, name: &str) -> Option<IpNet> {
        let at = properties.at(name);
        if properties.get(name).is_none() {
            missing(&mut self.problems, &at);
        }
        let text = properties.text(name, &mut self.problems)?;
        let net = prefix(text, &at, &mut self.problems)?;
        let block = special_use(&net);
        if net.max_prefix_len() - net.prefix_len() != 2 || block.is_some() {
            let why = block.map_or_else(
                || "it must be a /30, or an IPv6 /126".to_owned(),
                |block| format!("it overlaps {block}, where no line can be"),
            );
            let message = format!("{at}: {net} cannot be the addresses of a line: {why} (E1)");
            self.problems.add("XInvalidPeerAddressPrefix", at, message);
        }
        Some(net)
    }
}
