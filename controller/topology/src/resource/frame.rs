//! The operations that all kinds of top-level resources share: PUT, PATCH of tags, DELETE, etags, stored documents,
//! bodies and lists. Each kind implements [`Resource`] and has a line in the macro `each_kind` of [`crate::resource`].
//!
//! ```text
//! Change ─▶ Draft ─▶ Entry ─▶ frame::{put, patch_tags, delete} ─▶ Resource::{read, check_unused} ─▶ Draft::commit
//! GET ─▶ Views ─▶ Entry ─▶ frame::view ─▶ Resource::properties
//! ```

use super::document;
use crate::arm::body::{Object, Shape};
use crate::arm::view::{Views, merge_echoed, top_level};
use crate::draft::{Draft, changed};
use crate::path::{ArmPath, Kind};
use crate::problems::Problems;
use crate::resource::{Envelope, ResourceGroup};
use crate::rules::request::{echoed, without_default_properties, without_defaults};
use crate::topology::{DocumentChange, Stored, Topology};
use serde_json::{Map as JsonMap, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The tags of a resource: values by name.
pub(crate) type Tags = BTreeMap<String, String>;

/// A test whether a resource group or a subscription contains the item with an id.
pub(crate) type Holds<'s> = &'s dyn Fn(&ResourceId) -> bool;

/// The behaviour of one kind of top-level resource.
pub(crate) trait Resource: Stored {
    /// The kind's path, ARM type and title.
    const KIND: Kind;
    /// The members of a body that are kept and shown. They have no effect, except that some members of a circuit's body
    /// decide limits.
    const ECHOED: Echoed = Echoed::NOTHING;
    /// The collections below an item of this kind.
    const CHILDREN: &'static [Child] = &[];

    /// Parses the body of a PUT, and adds every problem of the body and of the resource as a whole. Returns the new
    /// resource, which the caller writes to the draft. Even if there are problems, a resource may be returned. `None`:
    /// no resource can be formed, and a problem gives the reason.
    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self>;

    /// Runs the checks and changes that are possible only when the new resource is in the draft. It runs after each PUT
    /// for which [`Self::read`] returned a resource.
    fn after_put(_draft: &mut Draft<'_>, _put: &Put<'_, Self>) {}

    /// Sets new etags on the children that differ from those of `old`, the resource before the change.
    fn renew_children(&mut self, _old: Option<&Self>, _new_guid: &mut dyn FnMut() -> Uuid) {}

    /// Runs checks after each change of the resource `id`: by its own PUT, by a PUT or DELETE of a child, or as an
    /// effect of a change of another resource.
    fn after_change(_draft: &mut Draft<'_>, _id: &ResourceId) {}

    /// Adds a problem if another resource or an agent uses this one, so that it cannot be deleted. `id` has the casing
    /// of the request.
    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self);

    /// Removes the resource from the draft, and adds a problem if the resource is in use.
    fn delete(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        Self::check_unused(draft, id, old);
        Self::map_mut(&mut draft.topology).remove(id);
    }

    /// The members of `properties` that this kind defines. The function `view` adds the echoed members.
    fn properties(&self, views: &Views<'_>) -> Value;

    /// The members beside `properties` that this kind defines, such as a typed `sku`.
    fn top_members(&self) -> Value {
        json!({})
    }
}

/// The echoed members of a body, which are only kept and shown, and the values that Azure shows for them if the body
/// lacks them.
pub(crate) struct Echoed {
    /// Members beside `properties`, with their JSON types.
    pub(crate) top: &'static [(&'static str, Shape)],
    /// The values that are shown for missing members beside `properties`.
    pub(crate) top_defaults: fn() -> Value,
    /// Members of `properties`, with their JSON types.
    pub(crate) properties: &'static [(&'static str, Shape)],
    /// The values that are shown for missing members of `properties`.
    pub(crate) defaults: fn() -> Value,
}

impl Echoed {
    /// No member is kept.
    pub(crate) const NOTHING: Self = Self {
        top: &[],
        top_defaults: || json!({}),
        properties: &[],
        defaults: || json!({}),
    };

    /// Removes members that equal their default. GET shows defaults, and a client that writes back such a body must
    /// change nothing.
    pub(crate) fn without_defaults(&self, mut kept: JsonMap<String, Value>) -> JsonMap<String, Value> {
        without_default_properties(&mut kept, &(self.defaults)());
        without_defaults(&mut kept, &(self.top_defaults)());
        kept
    }
}

/// A PUT of a top-level resource or of a child.
pub(crate) struct Request<'r> {
    /// The resource group of the path, which exists.
    pub(crate) group: &'r ResourceGroup,
    /// The path of the item, in the casing of the request.
    pub(crate) path: &'r ArmPath,
    /// The body as parsed JSON, of any type.
    pub(crate) body: &'r Value,
    /// The header `If-Match`.
    pub(crate) if_match: Option<&'r str>,
    /// The query parameter `syncRemoteAddressSpace`, for peerings only.
    pub(crate) sync_remote_address_space: bool,
}

/// A PUT of a top-level resource with its parsed body.
pub(crate) struct Put<'p, R> {
    /// The path in the casing of the request.
    pub(crate) path: &'p ArmPath,
    /// The id in the casing of its creation.
    pub(crate) id: ResourceId,
    old: Option<Arc<R>>,
    /// The whole body.
    pub(crate) root: Object<'p>,
    /// The member `properties` of the body; empty if it is missing.
    pub(crate) properties: Object<'p>,
}

impl<R: Resource> Put<'_, R> {
    /// The resource before this PUT. `None`: the PUT creates it.
    pub(crate) fn old(&self) -> Option<&R> {
        self.old.as_deref()
    }

    /// The echoed members of the body ([`Resource::ECHOED`]), including those that equal their default.
    pub(crate) fn echoed_with_defaults(&self, problems: &mut Problems) -> JsonMap<String, Value> {
        echoed(&self.root, R::ECHOED.top, R::ECHOED.properties, problems)
    }

    /// The echoed members of the body ([`Resource::ECHOED`]), without those that equal their default.
    pub(crate) fn echoed(&self, problems: &mut Problems) -> JsonMap<String, Value> {
        R::ECHOED.without_defaults(self.echoed_with_defaults(problems))
    }

    /// The new envelope. `kept` becomes its [`Envelope::echoed`]. [`Draft::commit`] sets its etag.
    pub(crate) fn envelope(&self, draft: &mut Draft<'_>, kept: JsonMap<String, Value>) -> Envelope {
        draft.envelope(&self.root, self.id.clone(), self.old().map(R::envelope), kept)
    }
}

/// The operations of one kind, for code that works with every kind and not with the kind's Rust type.
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// `None`: the kind is a read-only view of other resources.
    pub(crate) stored: Option<Writes>,
    /// The body of one item. `None`: it does not exist.
    pub(crate) item: fn(&Views<'_>, &ResourceId) -> Option<Value>,
    /// The bodies of all items in a scope, ordered by id.
    pub(crate) list: fn(&Views<'_>, Holds<'_>) -> Vec<Value>,
    /// The collections below an item of this kind.
    pub(crate) children: &'static [Child],
}

/// The operations that change and store the resources of a kind.
pub(crate) struct Writes {
    /// PUT. True: the item is new.
    pub(crate) put: fn(&mut Draft<'_>, &Request<'_>) -> bool,
    /// PATCH of tags. Without tags nothing changes.
    pub(crate) patch_tags: fn(&mut Draft<'_>, &ArmPath, Option<Tags>, Option<&str>),
    /// DELETE. True: the item existed.
    pub(crate) delete: fn(&mut Draft<'_>, &ResourceId, Option<&str>) -> bool,
    /// The ids of all resources of the kind.
    pub(crate) ids: fn(&Topology) -> Vec<ResourceId>,
    /// Appends the documents in which the second topology differs from the first.
    pub(crate) differences: fn(&Topology, &Topology, &mut Vec<DocumentChange>),
    /// Adds the resource of a stored document to a topology.
    pub(crate) load: fn(&mut Topology, &str, &[u8]) -> Result<(), String>,
}

/// A collection below an item. Its members are stored in the document of this item, unless `kind` is `None`.
pub(crate) struct Child {
    /// The last segment of the collection's path.
    pub(crate) name: &'static str,
    /// `None`: the members are top-level resources, which have paths of their own.
    pub(crate) kind: Option<Kind>,
    /// `None`: the collection is a read-only view.
    pub(crate) writes: Option<ChildWrites>,
    /// The body of one member. `None`: it does not exist.
    pub(crate) item: fn(&Views<'_>, &ArmPath) -> Option<Value>,
    /// The bodies of all members. `None`: the parent does not exist.
    pub(crate) list: fn(&Views<'_>, &ResourceId) -> Option<Vec<Value>>,
}

/// The operations that change the members of a collection.
pub(crate) struct ChildWrites {
    /// PUT. True: the item is new.
    pub(crate) put: fn(&mut Draft<'_>, &Request<'_>) -> bool,
    /// DELETE. True: the item existed.
    pub(crate) delete: fn(&mut Draft<'_>, &ResourceId, Option<&str>) -> bool,
}

impl Entry {
    /// The registry entry of the kind `R`, with the operations of this module for that kind.
    pub(crate) const fn of<R: Resource>() -> Self {
        Self {
            kind: R::KIND,
            stored: Some(Writes {
                put: put::<R>,
                patch_tags: patch_tags::<R>,
                delete: delete::<R>,
                ids: |topology| R::map(topology).keys().cloned().collect(),
                differences: |before, after, changes| {
                    document::differences(R::map(before), R::map(after), document::arm_key, changes);
                },
                load: load::<R>,
            }),
            item: |views, id| R::map(views.topology).get(id).map(|found| view(&**found, views)),
            list: |views, holds| {
                let all = R::map(views.topology).iter().filter(|(id, _)| holds(id));
                all.map(|(_, found)| view(&**found, views)).collect()
            },
            children: R::CHILDREN,
        }
    }
}

/// PUT of a resource of the kind `R`. True: it is new.
fn put<R: Resource>(draft: &mut Draft<'_>, request: &Request<'_>) -> bool {
    let old = R::map(&draft.topology).get(&request.path.id()).cloned();
    let id = old.as_deref().map_or_else(
        || Draft::new_id(request.group, request.path),
        |found| found.envelope().id.clone(),
    );
    draft.check_if_match(request.if_match, old.as_deref().map(|r| r.envelope().etag), &id);
    let root = Object::root(request.body, &mut draft.problems);
    let properties = root.object_or_empty("properties", &mut draft.problems);
    let put = Put {
        path: request.path,
        id,
        old,
        root,
        properties,
    };
    if let Some(new) = R::read(draft, &put) {
        draft.commit(new);
        R::after_put(draft, &put);
    }
    put.old.is_none()
}

/// PATCH of the tags of a resource of the kind `R`. `None`: the tags stay as they are.
fn patch_tags<R: Resource>(draft: &mut Draft<'_>, path: &ArmPath, tags: Option<Tags>, if_match: Option<&str>) {
    let id = path.id();
    let Some(old) = R::map(&draft.topology).get(&id).cloned() else {
        return draft.not_found(path);
    };
    draft.check_if_match(if_match, Some(old.envelope().etag), &id);
    let mut new = (*old).clone();
    if let Some(tags) = tags {
        new.envelope_mut().tags = tags;
    }
    draft.commit(new);
}

/// DELETE of a resource of the kind `R`. True: it existed. A missing one is no problem.
fn delete<R: Resource>(draft: &mut Draft<'_>, id: &ResourceId, if_match: Option<&str>) -> bool {
    let Some(old) = R::map(&draft.topology).get(id).cloned() else {
        return false;
    };
    draft.check_if_match(if_match, Some(old.envelope().etag), id);
    R::delete(draft, id, &old);
    true
}

/// Adds the resource of the stored document `key` to the topology.
fn load<R: Resource>(topology: &mut Topology, key: &str, value: &[u8]) -> Result<(), String> {
    let resource: Arc<R> = document::read(key, value)?;
    R::map_mut(topology).insert(resource.envelope().id.clone(), resource);
    Ok(())
}

/// The ARM body of a resource. A member of `properties` that the kind defines takes precedence over an echoed member
/// ([`Resource::ECHOED`]) of the same name, and an echoed member over its default.
pub(crate) fn view<R: Resource>(resource: &R, views: &Views<'_>) -> Value {
    let envelope = resource.envelope();
    let mut properties = (R::ECHOED.defaults)();
    if let Value::Object(slot) = &mut properties {
        if let Some(Value::Object(kept)) = envelope.echoed.get("properties") {
            slot.extend(kept.clone());
        }
        if let Value::Object(own) = resource.properties(views) {
            slot.extend(own);
        }
    }
    let mut body = top_level(envelope, R::KIND, properties);
    if let (Value::Object(body), Value::Object(defaults)) = (&mut body, (R::ECHOED.top_defaults)()) {
        for (name, value) in defaults {
            body.entry(name).or_insert(value);
        }
    }
    merge_echoed(resource.top_members(), Some(&body))
}

impl Draft<'_> {
    /// Writes a new or changed resource into the draft. The resource and each changed child get a new etag, and
    /// [`Resource::after_change`] runs. If the resource equals its present state, nothing happens.
    pub(crate) fn commit<R: Resource>(&mut self, mut new: R) {
        let old = R::map(&self.topology).get(&new.envelope().id).cloned();
        new.renew_children(old.as_deref(), self.new_guid);
        if let Some(etag) = changed(old.as_deref(), &new, self.new_guid) {
            new.envelope_mut().etag = etag;
            let id = new.envelope().id.clone();
            R::map_mut(&mut self.topology).insert(id.clone(), Arc::new(new));
            R::after_change(self, &id);
        }
    }
}
