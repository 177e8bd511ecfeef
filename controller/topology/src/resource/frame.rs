//! What every kind of top-level resource has in common, written once: PUT, PATCH of tags, DELETE, etags, stored documents,
//! bodies and lists. A kind implements [`Resource`] and stands in the registry of [`crate::resource`].
//!
//! ```text
//! Change ─▶ Draft ─▶ Entry ─▶ frame::{put, patch_tags, delete} ─▶ Resource::{read, check_unused} ─▶ Draft::commit
//! GET ─▶ Views ─▶ Entry ─▶ frame::view ─▶ Resource::properties
//! ```

use super::document;
use crate::arm::body::{Object, Shape};
use crate::arm::view::{Views, top};
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

/// Tags by name.
pub(crate) type Tags = BTreeMap<String, String>;

/// Whether a scope, such as a resource group, holds an item.
pub(crate) type Holds<'s> = &'s dyn Fn(&ResourceId) -> bool;

/// What Azure says about one kind of top-level resource.
pub(crate) trait Resource: Stored {
    const KIND: Kind;
    /// Members that are kept and shown without being acted on.
    const ECHOED: Echoed = Echoed::NOTHING;
    /// Collections below an item.
    const CHILDREN: &'static [Child] = &[];

    /// Reads a body, and notes everything that is wrong with it and with the resource as a whole. `None`: nothing is put
    /// into the draft, and a problem says why.
    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self>;

    /// Checks and changes that need the new resource in the draft. Runs after each [`Self::read`] that gave one.
    fn after_put(_draft: &mut Draft<'_>, _put: &Put<'_, Self>) {}

    /// Gives new etags to children that differ from those of `old`.
    fn renew_children(&mut self, _old: Option<&Self>, _fresh: &mut dyn FnMut() -> Uuid) {}

    /// Checks that follow each change of a resource, whoever asked for it.
    fn after_change(_draft: &mut Draft<'_>, _id: &ResourceId) {}

    /// Notes who forbids deletion. `id` is as the request wrote it.
    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self);

    /// Checks that nobody forbids deletion, and removes the resource.
    fn delete(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        Self::check_unused(draft, id, old);
        Self::map_mut(&mut draft.topology).remove(id);
    }

    /// The own members of `properties`; those that are echoed come from the frame.
    fn properties(&self, views: &Views<'_>) -> Value;
}

/// The members of a body that are kept without being acted on, with what Azure shows where a body said nothing.
pub(crate) struct Echoed {
    /// Beside `properties`.
    pub(crate) top: &'static [(&'static str, Shape)],
    pub(crate) top_defaults: fn() -> Value,
    /// Of `properties`.
    pub(crate) properties: &'static [(&'static str, Shape)],
    pub(crate) defaults: fn() -> Value,
}

impl Echoed {
    pub(crate) const NOTHING: Self = Self {
        top: &[],
        top_defaults: || json!({}),
        properties: &[],
        defaults: || json!({}),
    };

    /// Removes what equals the value that is shown anyway, so that writing back what was read changes nothing.
    pub(crate) fn without_defaults(&self, mut kept: JsonMap<String, Value>) -> JsonMap<String, Value> {
        without_default_properties(&mut kept, &(self.defaults)());
        without_defaults(&mut kept, &(self.top_defaults)());
        kept
    }
}

/// A PUT of a top-level resource or of a child.
pub(crate) struct Request<'r> {
    pub(crate) group: &'r ResourceGroup,
    pub(crate) path: &'r ArmPath,
    pub(crate) body: &'r Value,
    pub(crate) if_match: Option<&'r str>,
    /// `syncRemoteAddressSpace`, of peerings only.
    pub(crate) sync_remote_address_space: bool,
}

/// A PUT of a top-level resource, taken apart.
pub(crate) struct Put<'p, R> {
    pub(crate) path: &'p ArmPath,
    /// In the casing of its creation.
    pub(crate) id: ResourceId,
    old: Option<Arc<R>>,
    pub(crate) root: Object<'p>,
    pub(crate) properties: Object<'p>,
}

impl<R: Resource> Put<'_, R> {
    /// The resource before; none: it is created.
    pub(crate) fn old(&self) -> Option<&R> {
        self.old.as_deref()
    }

    /// The members of the body that are kept, defaults included.
    pub(crate) fn echoed_with_defaults(&self, problems: &mut Problems) -> JsonMap<String, Value> {
        echoed(&self.root, R::ECHOED.top, R::ECHOED.properties, problems)
    }

    /// The members of the body that are kept.
    pub(crate) fn echoed(&self, problems: &mut Problems) -> JsonMap<String, Value> {
        R::ECHOED.without_defaults(self.echoed_with_defaults(problems))
    }

    /// The new envelope; its etag changes when the resource is put into the draft.
    pub(crate) fn envelope(&self, draft: &mut Draft<'_>, kept: JsonMap<String, Value>) -> Envelope {
        draft.envelope(&self.root, self.id.clone(), self.old().map(R::envelope), kept)
    }
}

/// One line of the registry: what the rest of the crate asks of a kind without knowing its type.
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// None: a view of other resources, which cannot be written.
    pub(crate) stored: Option<Writes>,
    pub(crate) item: fn(&Views<'_>, &ResourceId) -> Option<Value>,
    /// The bodies of all items that a scope holds, in order of id.
    pub(crate) list: fn(&Views<'_>, Holds<'_>) -> Vec<Value>,
    pub(crate) children: &'static [Child],
}

/// What changes and stores the resources of a kind.
pub(crate) struct Writes {
    /// True: created.
    pub(crate) put: fn(&mut Draft<'_>, &Request<'_>) -> bool,
    /// Without tags nothing changes.
    pub(crate) patch_tags: fn(&mut Draft<'_>, &ArmPath, Option<Tags>, Option<&str>),
    /// True: removed.
    pub(crate) delete: fn(&mut Draft<'_>, &ResourceId, Option<&str>) -> bool,
    pub(crate) ids: fn(&Topology) -> Vec<ResourceId>,
    /// The documents in which the second topology differs from the first.
    pub(crate) differences: fn(&Topology, &Topology, &mut Vec<DocumentChange>),
    /// Adds the resource of a stored document.
    pub(crate) load: fn(&mut Topology, &str, &[u8]) -> Result<(), String>,
}

/// A collection below an item of a kind. Its members live in their parent.
pub(crate) struct Child {
    /// The last segment of the collection's path.
    pub(crate) name: &'static str,
    /// None: a collection of resources that have a path of their own.
    pub(crate) kind: Option<Kind>,
    /// None: a view, which cannot be written.
    pub(crate) writes: Option<ChildWrites>,
    pub(crate) item: fn(&Views<'_>, &ArmPath) -> Option<Value>,
    /// None: the parent does not exist.
    pub(crate) list: fn(&Views<'_>, &ResourceId) -> Option<Vec<Value>>,
}

/// What changes the children of a kind.
pub(crate) struct ChildWrites {
    /// True: created.
    pub(crate) put: fn(&mut Draft<'_>, &Request<'_>) -> bool,
    /// True: removed.
    pub(crate) delete: fn(&mut Draft<'_>, &ResourceId, Option<&str>) -> bool,
}

impl Entry {
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

fn delete<R: Resource>(draft: &mut Draft<'_>, id: &ResourceId, if_match: Option<&str>) -> bool {
    let Some(old) = R::map(&draft.topology).get(id).cloned() else {
        return false;
    };
    draft.check_if_match(if_match, Some(old.envelope().etag), id);
    R::delete(draft, id, &old);
    true
}

fn load<R: Resource>(topology: &mut Topology, key: &str, value: &[u8]) -> Result<(), String> {
    let resource: Arc<R> = document::read(key, value)?;
    R::map_mut(topology).insert(resource.envelope().id.clone(), resource);
    Ok(())
}

/// The ARM body: defaults, over them what is echoed, over that the own members.
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
    let mut body = top(envelope, R::KIND, properties);
    if let (Value::Object(body), Value::Object(defaults)) = (&mut body, (R::ECHOED.top_defaults)()) {
        for (name, value) in defaults {
            body.entry(name).or_insert(value);
        }
    }
    body
}

impl Draft<'_> {
    /// Puts a resource into the draft, with new etags for it and its children where they differ.
    pub(crate) fn commit<R: Resource>(&mut self, mut new: R) {
        let old = R::map(&self.topology).get(&new.envelope().id).cloned();
        new.renew_children(old.as_deref(), self.fresh);
        if let Some(etag) = changed(old.as_deref(), &new, self.fresh) {
            new.envelope_mut().etag = etag;
            let id = new.envelope().id.clone();
            R::map_mut(&mut self.topology).insert(id.clone(), Arc::new(new));
            R::after_change(self, &id);
        }
    }
}
