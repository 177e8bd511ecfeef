//! The authorizations of a circuit: keys with which the owners of other subscriptions connect gateways to it (E3).

use crate::arm::body::{Item, Object};
use crate::arm::view::{Views, child};
use crate::draft::Draft;
use crate::path::{Kind, child_id, parent_id};
use crate::resource::frame::{Child, ChildWrites, Request};
use crate::resource::{Connection, ExpressRouteCircuit};
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// An authorization: a key that one connection to the circuit may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitAuthorization {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the authorization.
    pub etag: Uuid,
    /// `authorizationKey`, which the controller generates.
    pub key: Uuid,
}

/// The maximum number of authorizations of a circuit. It bounds the size of a circuit's document. A circuit has at most
/// 100 connections (X13), and each needs at most one.
pub(super) const MAX_AUTHORIZATIONS: usize = 100;

/// The authorizations of a circuit as child items.
pub(super) const AUTHORIZATIONS: Child = Child {
    name: "authorizations",
    kind: Some(Kind::CircuitAuthorization),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_authorization(request),
        delete: |draft, id, if_match| draft.delete_authorization(id, if_match),
    }),
    item: |views, path| {
        let circuit = views.topology.circuits.get(&path.parent()?.id())?;
        find(circuit, path.name()).map(|one| one.view(views))
    },
    list: |views, parent| {
        let circuit = views.topology.circuits.get(parent)?;
        Some(circuit.authorizations.iter().map(|one| one.view(views)).collect())
    },
};

/// The authorization with a name, ignoring case.
pub(super) fn find<'c>(circuit: &'c ExpressRouteCircuit, name: &str) -> Option<&'c CircuitAuthorization> {
    let mut all = circuit.authorizations.iter();
    all.find(|one| one.id.name().eq_ignore_ascii_case(name))
}

/// The connection that uses an authorization.
fn user<'t>(topology: &'t Topology, authorization: &ResourceId) -> Option<&'t Connection> {
    let mut all = topology.connections.values();
    let found = all.find(|c| c.authorization.as_ref() == Some(authorization));
    found.map(|c| &**c)
}

impl CircuitAuthorization {
    /// The ARM body of the authorization. As in Azure, it shows the key, which the circuit's owner reads here.
    pub(super) fn view(&self, views: &Views<'_>) -> Value {
        let user = user(views.topology, &self.id);
        let mut properties = json!({
            "authorizationKey": self.key.to_string(),
            "authorizationUseStatus": if user.is_some() { "InUse" } else { "Available" },
        });
        if let Some(user) = user {
            properties["connectionResourceUri"] = json!(user.envelope.id);
        }
        child(&self.id, Kind::CircuitAuthorization, self.etag, properties)
    }
}

impl Draft<'_> {
    /// PUT of an authorization, which creates its key. An existing one keeps its key. True: it is new.
    fn put_authorization(&mut self, request: &Request<'_>) -> bool {
        let path = request.path;
        let Some(circuit) = path.parent().and_then(|p| self.topology.circuits.get(&p.id()).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&circuit, path.name());
        self.check_if_match(request.if_match, old.map(|one| one.etag), &path.id());
        Object::root(request.body, &mut self.problems);
        if old.is_some() {
            return false;
        }
        self.check_name(path.name(), &path.id());
        let mut new = (*circuit).clone();
        let made = self.new_authorization(&circuit.envelope.id, path.name());
        new.authorizations.push(made);
        self.check_authorizations(Some(&circuit), &new);
        self.commit(new);
        true
    }

    fn new_authorization(&mut self, circuit: &ResourceId, name: &str) -> CircuitAuthorization {
        CircuitAuthorization {
            id: child_id(circuit, "authorizations", name),
            etag: Uuid::nil(),
            key: (self.new_guid)(),
        }
    }

    /// DELETE of an authorization. True: it existed. While a connection uses it, the deletion adds a problem.
    fn delete_authorization(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(circuit) = self.topology.circuits.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = circuit.authorizations.iter().find(|one| one.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*circuit).clone();
        new.authorizations.retain(|one| one.id != *id);
        self.check_authorizations(Some(&circuit), &new);
        self.commit(new);
        true
    }

    /// Reads the `authorizations` of a circuit's body, which must list all that the circuit is to have. Present ones
    /// keep their keys.
    pub(super) fn read_authorizations(
        &mut self,
        circuit: &ResourceId,
        items: &[Item<'_>],
        old: Option<&ExpressRouteCircuit>,
    ) -> Vec<CircuitAuthorization> {
        let mut all = Vec::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let Some(name) = self.child_name(&object) else { continue };
            let before = old.and_then(|circuit| find(circuit, &name)).cloned();
            all.push(before.unwrap_or_else(|| self.new_authorization(circuit, &name)));
        }
        let names = all.iter().map(|one: &CircuitAuthorization| one.id.name());
        self.check_unique_names(circuit, "authorization", names);
        all
    }

    /// Checks the authorizations of a circuit: their number, and that no connection uses a removed one.
    pub(super) fn check_authorizations(&mut self, old: Option<&ExpressRouteCircuit>, new: &ExpressRouteCircuit) {
        let id = &new.envelope.id;
        if new.authorizations.len() > MAX_AUTHORIZATIONS {
            let message = format!(
                "Circuit {id} has {} authorizations, at most {MAX_AUTHORIZATIONS} are allowed.",
                new.authorizations.len()
            );
            self.problems.add("XTooManyItems", id, message);
        }
        let before = old.map_or(&[][..], |c| &c.authorizations);
        for gone in before
            .iter()
            .filter(|one| !new.authorizations.iter().any(|n| n.id == one.id))
        {
            if let Some(user) = user(&self.topology, &gone.id).map(|c| c.envelope.id.clone()) {
                let message = format!(
                    "Authorization {} cannot be deleted because connection {user} uses it. Delete the connection first (E3).",
                    gone.id
                );
                self.problems.add("XCircuitAuthorizationInUse", &gone.id, message);
            }
        }
    }

    /// Reads `authorizationKey` of the connection `id` to `circuit`: the id of the authorization with this key. A body
    /// without a key leaves the present authorization as it is, because GET does not show the key. A key that belongs
    /// to no authorization of the circuit, or that another connection uses, adds a problem.
    pub(in crate::resource) fn used_authorization(
        &mut self,
        id: &ResourceId,
        properties: &Object<'_>,
        circuit: &ExpressRouteCircuit,
        old: Option<&Connection>,
    ) -> Option<ResourceId> {
        let text = properties.text("authorizationKey", &mut self.problems);
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return old.and_then(|c| c.authorization.clone());
        };
        let at = properties.at("authorizationKey");
        let key = text.parse::<Uuid>().ok();
        let found = circuit.authorizations.iter().find(|one| Some(one.key) == key);
        let Some(found) = found.map(|one| one.id.clone()) else {
            // The key is a secret, so the message does not show it.
            let message = format!(
                "{at}: circuit {} has no authorization with this key. Leave it out: a connection to a circuit of this \
                 controller needs none (E3).",
                circuit.envelope.id
            );
            self.problems.add("XCircuitAuthorizationNotFound", at, message);
            return None;
        };
        let other = user(&self.topology, &found).filter(|c| c.envelope.id != *id);
        if let Some(other) = other.map(|c| c.envelope.id.clone()) {
            let message = format!("{at}: connection {other} uses authorization {found} already (E3)");
            self.problems.add("XCircuitAuthorizationInUse", at, message);
        }
        Some(found)
    }
}
