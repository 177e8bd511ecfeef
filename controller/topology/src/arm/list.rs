//! Finds the bodies of single items, and of all items of a collection below a group, a subscription or a parent.

use super::view::{Views, generic, group};
use crate::path::{ArmPath, Kind, is_child_of, shown};
use crate::problems::{Problem, Rejection, group_not_found, not_found};
use crate::resource::registry;
use serde_json::Value;
use tombolo_proto::id::ResourceId;

/// The scope of a list of top-level items.
enum Scope {
    /// The resource group with this id.
    Group(ResourceId),
    /// The subscription with this id.
    Subscription(String),
}

impl Scope {
    /// Whether the scope contains an item.
    fn holds(&self, id: &ResourceId) -> bool {
        let Ok(path) = ArmPath::parse(id.as_str()) else {
            return false;
        };
        match self {
            Self::Group(group) => path.group_id() == *group,
            Self::Subscription(subscription) => path.subscription.eq_ignore_ascii_case(subscription),
        }
    }
}

/// A rejection with status 404.
fn rejected(problem: Problem) -> Rejection {
    Rejection {
        status: 404,
        problems: vec![problem],
    }
}

/// The rejection of a path that is not a known collection.
fn unknown_type(collection: &str) -> Rejection {
    rejected(Problem {
        code: "InvalidResourceType",
        message: format!("'{}' is not a collection that exists here.", shown(collection)),
        target: None,
    })
}

/// The body of one item of any kind. `None`: the item does not exist, or the path has an unknown type.
pub(crate) fn item(views: &Views<'_>, path: &ArmPath) -> Option<Value> {
    let id = path.id();
    let kind = path.kind()?;
    if let Some(entry) = registry::entry(kind) {
        return (entry.item)(views, &id);
    }
    if let Some(child) = registry::child(kind) {
        return (child.item)(views, path);
    }
    views.topology.resource_groups.get(&id).map(|g| group(g))
}

/// The bodies of all items of a collection, or a rejection with status 404; see [`crate::topology::Topology::list`].
pub(crate) fn list(views: &Views<'_>, collection: &str) -> Result<Vec<Value>, Rejection> {
    let trimmed = collection.strip_suffix('/').unwrap_or(collection);
    let parts: Vec<&str> = trimmed.split('/').skip(1).collect();
    let is = |i: usize, word: &str| parts.get(i).is_some_and(|p| p.eq_ignore_ascii_case(word));
    if !trimmed.starts_with('/') || !is(0, "subscriptions") || parts.len() < 3 || parts.iter().any(|p| p.is_empty()) {
        return Err(unknown_type(collection));
    }
    let subscription = Scope::Subscription(parts[1].to_owned());
    match parts.len() {
        3 if is(2, "resourceGroups") => {
            let groups = views
                .topology
                .resource_groups
                .values()
                .filter(|g| subscription.holds(&g.id));
            return Ok(groups.map(|g| group(g)).collect());
        }
        3 if is(2, "resources") => return Ok(resources(views, &subscription)),
        5 if is(2, "providers") => return top_level(views, parts[3], parts[4], &subscription, collection),
        _ => {}
    }
    if !is(2, "resourceGroups") || parts.len() < 5 {
        return Err(unknown_type(collection));
    }
    let group = ResourceId::new(format!("/subscriptions/{}/resourceGroups/{}", parts[1], parts[3]));
    if !views.topology.resource_groups.contains_key(&group) {
        return Err(rejected(group_not_found(parts[3])));
    }
    let scope = Scope::Group(group);
    match parts.len() {
        5 if is(4, "resources") => Ok(resources(views, &scope)),
        7 if is(4, "providers") => top_level(views, parts[5], parts[6], &scope, collection),
        9 if is(4, "providers") => children(views, trimmed),
        _ => Err(unknown_type(collection)),
    }
}

/// All top-level items of a type in a scope. `types`: the last part of the ARM type. If the type is unknown, the result
/// is a rejection.
fn top_level(
    views: &Views<'_>,
    provider: &str,
    types: &str,
    scope: &Scope,
    collection: &str,
) -> Result<Vec<Value>, Rejection> {
    let kind = Kind::of(provider, types);
    kind.and_then(|kind| of_kind(views, kind, scope))
        .ok_or_else(|| unknown_type(collection))
}

/// All top-level items of a kind in a scope. `None`: the kind has no top-level items.
fn of_kind(views: &Views<'_>, kind: Kind, scope: &Scope) -> Option<Vec<Value>> {
    registry::entry(kind).map(|entry| (entry.list)(views, &|id| scope.holds(id)))
}

/// The generic list of all resources in a scope, ordered by type and then by id. Each body has only the members that
/// all types have.
fn resources(views: &Views<'_>, scope: &Scope) -> Vec<Value> {
    let mut kinds: Vec<Kind> = registry::ENTRIES.iter().map(|entry| entry.kind).collect();
    kinds.sort_by_key(|kind| kind.types());
    let bodies = kinds
        .into_iter()
        .filter_map(|kind| of_kind(views, kind, scope))
        .flatten();
    bodies.map(|body| generic(&body)).collect()
}

/// The bodies of all items of a collection below another item. `collection`: the path of the collection. An unknown
/// collection and a missing parent are errors.
fn children(views: &Views<'_>, collection: &str) -> Result<Vec<Value>, Rejection> {
    let Some((parent, types)) = collection.rsplit_once('/') else {
        return Err(unknown_type(collection));
    };
    let Ok(parent) = ArmPath::parse(parent) else {
        return Err(unknown_type(collection));
    };
    let id = parent.id();
    let missing = || rejected(not_found(&parent));
    let is = |word: &str| types.eq_ignore_ascii_case(word);
    let entry = parent.kind().and_then(registry::entry);
    if let Some(child) = entry.and_then(|e| e.children.iter().find(|c| is(c.name))) {
        return (child.list)(views, &id).ok_or_else(missing);
    }
    // Network watchers are not stored, and the items below them are resources of their own.
    let below = parent
        .provider
        .as_deref()
        .and_then(|provider| Kind::of(provider, &format!("{}/{types}", parent.types())));
    if let Some(entry) = below.and_then(registry::entry) {
        return Ok((entry.list)(views, &|item| is_child_of(item, &id)));
    }
    Err(unknown_type(collection))
}
