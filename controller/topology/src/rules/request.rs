//! Checks and readers that the requests of all kinds share: preconditions, names, the members that all kinds have,
//! references, lists of prefixes.

use crate::arm::body::{MAX_ITEMS, Object, Shape, missing, prefix};
use crate::draft::Draft;
use crate::path::{ArmPath, shown};
use crate::problems::{IntoTarget, Problems};
use crate::resource::{Envelope, ResourceGroup};
use crate::topology::Topology;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tombolo_proto::arm::check_name;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

impl Draft<'_> {
    /// Checks the header `If-Match`: one of its etags, weak or strong, must equal `current`, the present etag of the
    /// resource `id`. `*` matches any existing resource. Without the header nothing is checked. `current`: `None` if
    /// the resource does not exist.
    pub(crate) fn check_if_match(&mut self, if_match: Option<&str>, current: Option<Uuid>, id: &ResourceId) {
        let Some(wanted) = if_match else { return };
        let holds = current.is_some_and(|etag| {
            wanted.split(',').any(|one| {
                let one = one.trim();
                let bare = one.strip_prefix("W/").unwrap_or(one).trim_matches('"');
                bare == "*" || bare.parse() == Ok(etag)
            })
        });
        if !holds {
            let now = current.map_or_else(
                || "the resource does not exist".to_owned(),
                |etag| format!("the resource has etag W/\"{etag}\""),
            );
            self.problems.add_status(
                412,
                "PreconditionFailed",
                id,
                format!("{id}: If-Match is '{}', but {now}", shown(wanted)),
            );
        }
    }

    /// The id of a new top-level resource at `path`. The part of the id that names the group has the casing with which
    /// the group was created; the rest has the casing of the request.
    pub(crate) fn new_id(group: &ResourceGroup, path: &ArmPath) -> ResourceId {
        let own = path.id();
        let tail = own.as_str().get(group.id.as_str().len()..).unwrap_or_default();
        ResourceId::new(format!("{}{tail}", group.id))
    }

    /// Checks a new name by ARM's common rule, which for peerings is P6. A name has 1 to 80 characters, starts with a
    /// letter or digit, ends with a letter, a digit or `_`, and may have `.`, `-` and `_` between.
    pub(crate) fn check_name(&mut self, name: &str, target: impl IntoTarget) {
        if check_name(name).is_err() {
            self.problems.add(
                "InvalidResourceName",
                target,
                format!(
                    "Resource name '{}' is invalid. The name can be up to 80 characters long. It must begin with a word \
                     character, and it must end with a word character or with '_'. The name may contain word characters \
                     or '.', '-', '_'.",
                    shown(name)
                ),
            );
        }
    }

    /// Reads the members that the PUT's body of every kind has: the region and the tags. Checks the name of a new
    /// resource. Returns the new [`Envelope`]. `echoed`: the members of the body that are kept and shown. `id`: the
    /// stored id of an existing resource, or a new id. The envelope of an existing resource keeps its etag and GUID;
    /// that of a new one has a nil etag and a new GUID.
    pub(crate) fn envelope(
        &mut self,
        root: &Object<'_>,
        id: ResourceId,
        old: Option<&Envelope>,
        echoed: Map<String, Value>,
    ) -> Envelope {
        if old.is_none() {
            self.check_name(id.name(), &id);
        }
        let location = self.location(root, old.map(|o| o.location.as_str()), &id);
        let tags = root.tags(&mut self.problems);
        match old {
            Some(old) => Envelope {
                location,
                tags,
                echoed,
                ..old.clone()
            },
            None => Envelope {
                id,
                location,
                tags,
                etag: Uuid::nil(),
                resource_guid: (self.new_guid)(),
                echoed,
            },
        }
    }

    /// Reads `location`, which is immutable and required for a new resource. Returns it in Azure's normal form: lower
    /// case without spaces. After a problem the result is the present region, and empty for a new resource.
    pub(crate) fn location(&mut self, root: &Object<'_>, old: Option<&str>, id: &ResourceId) -> String {
        let given = root.text("location", &mut self.problems);
        let location: String = given
            .unwrap_or_default()
            .chars()
            .filter(|c| *c != ' ')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match (given, old) {
            (None, Some(old)) => return old.to_owned(),
            (None, None) => {
                if root.get("location").is_none() {
                    self.problems.add(
                        "LocationRequired",
                        "location",
                        format!("The location property is required for this definition ({id})."),
                    );
                }
            }
            (Some(text), _) if location.is_empty() || location.len() > 64 || !location.chars().all(good) => {
                self.problems.add(
                    "LocationNotAvailableForResourceType",
                    "location",
                    format!("location: '{}' is not the name of a region", shown(text)),
                );
                return old.unwrap_or_default().to_owned();
            }
            (Some(_), Some(old)) if old != location => {
                self.problems.add_status(
                    409,
                    "InvalidResourceLocation",
                    "location",
                    format!(
                        "The resource '{id}' already exists in location '{old}'. A resource with the same name cannot be \
                         created in location '{location}'."
                    ),
                );
                return old.to_owned();
            }
            (Some(_), _) => {}
        }
        location
    }

    /// Adds the problem that the target `to` of the reference at the field `at` of the resource `from` does not exist
    /// (P9).
    pub(crate) fn dangling(&mut self, from: &ResourceId, to: &ArmPath, at: &str) {
        let same = ArmPath::parse(from.as_str()).is_ok_and(|f| f.subscription.eq_ignore_ascii_case(&to.subscription));
        let code = if same {
            "InvalidResourceReference"
        } else {
            "InvalidGlobalResourceReference"
        };
        self.problems.add(
            code,
            at,
            format!(
                "{at}: Resource {} referenced by resource {from} was not found. Please make sure that the referenced \
                 resource exists.",
                to.id()
            ),
        );
    }

    /// Reads the reference `name` of `object`, which is a part of the resource `from`, and returns what `find` returns
    /// for the id of the target. `None`: the reference is absent, is malformed, or its target does not exist. The last
    /// two also add a problem.
    pub(crate) fn resolve<T>(
        &mut self,
        object: &Object<'_>,
        name: &str,
        from: &ResourceId,
        find: impl FnOnce(&Topology, &ResourceId) -> Option<T>,
    ) -> Option<T> {
        let reference = object.reference(name, &mut self.problems)?;
        self.resolve_path(reference, from, find)
    }

    /// Resolves an object `{"id": "…"}`, as [`resolve`](Self::resolve) does with a member.
    pub(crate) fn resolve_own<T>(
        &mut self,
        object: &Object<'_>,
        from: &ResourceId,
        find: impl FnOnce(&Topology, &ResourceId) -> Option<T>,
    ) -> Option<T> {
        let reference = object.own_reference(&mut self.problems)?;
        self.resolve_path(reference, from, find)
    }

    fn resolve_path<T>(
        &mut self,
        (path, at): (ArmPath, String),
        from: &ResourceId,
        find: impl FnOnce(&Topology, &ResourceId) -> Option<T>,
    ) -> Option<T> {
        let found = find(&self.topology, &path.id());
        if found.is_none() {
            self.dangling(from, &path, &at);
        }
        found
    }

    /// A required member that is one of the texts of `values`, ignoring case; the result is the value of this text.
    /// `None`: the member is absent or has another value, and a problem says so.
    pub(crate) fn required_choice<T: Copy>(
        &mut self,
        object: &Object<'_>,
        name: &str,
        values: &[(&'static str, T)],
    ) -> Option<T> {
        if object.get(name).is_none() {
            missing(&mut self.problems, &object.at(name));
            return None;
        }
        self.optional_choice(object, name, values)
    }

    /// A member that is one of the texts of `values`, ignoring case; the result is the value of this text. `None`: the
    /// member is absent or has another value. Another value also adds a problem.
    pub(crate) fn optional_choice<T: Copy>(
        &mut self,
        object: &Object<'_>,
        name: &str,
        values: &[(&'static str, T)],
    ) -> Option<T> {
        let names: Vec<&'static str> = values.iter().map(|(name, _)| *name).collect();
        let chosen = object.choice(name, &names, &mut self.problems)?;
        values.iter().find(|(name, _)| *name == chosen).map(|(_, value)| *value)
    }

    /// Parses the list of prefixes `name`. Each prefix is returned with its field for messages, in the order of the
    /// body. A wrong prefix adds a problem and is left out. `None`: the member is absent, is no list, or has too many
    /// items. The last two also add a problem.
    pub(crate) fn prefixes(&mut self, object: &Object<'_>, name: &str) -> Option<Vec<(IpNet, String)>> {
        let items = object.list(name, MAX_ITEMS, &mut self.problems)?;
        let mut result = Vec::new();
        for item in items {
            let text = item.text(&mut self.problems);
            if let Some(net) = text.and_then(|t| prefix(t, &item.path, &mut self.problems)) {
                result.push((net, item.path));
            }
        }
        Some(result)
    }

    /// Reads and checks the name of a child inside its parent's body. The name is the child's `name`, or if that is
    /// missing, the last segment of its `id`. `None`: both are missing, and a problem says so.
    pub(crate) fn child_name(&mut self, object: &Object<'_>) -> Option<String> {
        let name = object.text("name", &mut self.problems);
        if let Some(name) = name {
            self.check_name(name, object.at("name"));
            return Some(name.to_owned());
        }
        let from_id = object
            .get("id")
            .and_then(Value::as_str)
            .and_then(|id| ArmPath::parse(id).ok())
            .map(|path| path.name().to_owned());
        match &from_id {
            Some(name) => self.check_name(name, object.at("id")),
            None if object.get("name").is_none() => missing(&mut self.problems, &object.at("name")),
            None => {}
        }
        from_id
    }

    /// Adds a problem for each name that occurs more than once in a list, ignoring case. `what`: the kind of the
    /// children, for the message.
    pub(crate) fn check_unique_names<'n>(
        &mut self,
        parent: &ResourceId,
        what: &str,
        names: impl Iterator<Item = &'n str>,
    ) {
        let mut seen = BTreeMap::new();
        for name in names {
            let count: &mut u32 = seen.entry(name.to_ascii_lowercase()).or_default();
            *count += 1;
            if *count == 2 {
                self.problems.add(
                    "DuplicateResourceName",
                    parent,
                    format!("Resource {parent} has two child resources with the same name ({what} '{name}')."),
                );
            }
        }
    }
}

/// Collects the members of a body that are only kept and shown, in the form of [`Envelope::echoed`]. `top`: the names
/// of such members beside `properties`. `properties`: the names of such members in `properties`. A member of a wrong
/// type adds a problem and is left out.
pub(crate) fn echoed(
    root: &Object<'_>,
    top: &[(&str, Shape)],
    properties: &[(&str, Shape)],
    problems: &mut Problems,
) -> Map<String, Value> {
    let mut kept = root.echo(top, problems);
    let inner = root
        .object_or_empty("properties", &mut Problems::default())
        .echo(properties, problems);
    if !inner.is_empty() {
        kept.insert("properties".to_owned(), Value::Object(inner));
    }
    kept
}

/// Removes members that equal their default. GET shows defaults, and a client that writes back such a body must change
/// nothing.
pub(crate) fn without_defaults(kept: &mut Map<String, Value>, defaults: &Value) {
    kept.retain(|name, value| defaults.get(name) != Some(value));
}

/// Removes members that equal their default from `properties` in the result of [`echoed`]. If `properties` is empty
/// then, it is removed too.
pub(crate) fn without_default_properties(kept: &mut Map<String, Value>, defaults: &Value) {
    if let Some(Value::Object(inner)) = kept.get_mut("properties") {
        without_defaults(inner, defaults);
        if inner.is_empty() {
            kept.remove("properties");
        }
    }
}
