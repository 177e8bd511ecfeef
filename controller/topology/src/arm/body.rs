//! Reads ARM request bodies. A null counts as an absent member, unknown members are ignored, and an error names the
//! field with the wrong type.

use crate::path::{ArmPath, shown};
use crate::problems::Problems;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// The maximum number of items of a list in a request's body, if no rule sets a lower one. It bounds the time of the
/// checks, because some of them compare every pair of items.
pub(crate) const MAX_ITEMS: usize = 1_000;

/// The maximum size, in bytes of JSON, of one echoed property, that is, a property that is only kept and shown. It
/// bounds the size of stored documents.
const MAX_ECHOED_BYTES: usize = 64 * 1024;

/// Azure's maximum number of tags of a resource.
const MAX_TAGS: usize = 50;

/// The maximum length of a tag's name in bytes. Azure's limit is the same number of characters.
const MAX_TAG_NAME: usize = 512;
/// The maximum length of a tag's value in bytes. Azure's limit is 256 characters, which have at most 1,024 bytes in
/// UTF-8.
const MAX_TAG_VALUE: usize = 1024;

/// An object of a body, and its path in the body.
#[derive(Clone)]
pub(crate) struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// An item of a list, and its path in the body.
pub(crate) struct Item<'a> {
    value: &'a Value,
    /// The path, e.g. `properties.subnets[0]`.
    pub(crate) path: String,
}

/// The JSON types of echoed properties, which are properties that are only kept and shown.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// A boolean.
    Bool,
    /// An integer with its smallest and largest value.
    Integer(i64, i64),
    /// A string.
    Text,
    /// An object with any members.
    Object,
    /// A list of strings.
    Texts,
    /// A list of objects.
    Objects,
}

/// Code reads this empty object in place of a missing or unreadable one, so it needs no special case for them.
static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// The JSON type of a value, with an indefinite article, for messages: `a number`.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Adds the problem that a member has the wrong JSON type.
fn wrong_type(problems: &mut Problems, path: &str, expected: &str, value: &Value) {
    problems.add(
        "InvalidRequestFormat",
        path,
        format!("{path}: expected {expected}, found {}", type_of(value)),
    );
}

impl<'a> Object<'a> {
    /// The whole body. If the body is not an object, this adds a problem and returns an empty object.
    pub(crate) fn root(body: &'a Value, problems: &mut Problems) -> Self {
        match body {
            Value::Object(map) => Self {
                map,
                path: String::new(),
            },
            other => {
                problems.add(
                    "InvalidRequestFormat",
                    None::<String>,
                    format!("the request body must be a JSON object, found {}", type_of(other)),
                );
                Self {
                    map: &EMPTY,
                    path: String::new(),
                }
            }
        }
    }

    /// The path of the member `name` in the body, for messages: `properties.subnets`.
    pub(crate) fn at(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The member `name`. A name without an exact match is looked up ignoring case, as ARM does. `None`: the member is
    /// absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        let exact = self.map.get(name);
        let loose = || {
            self.map
                .iter()
                .find(|(k, _)| k.eq_ignore_ascii_case(name))
                .map(|(_, v)| v)
        };
        exact.or_else(loose).filter(|v| !v.is_null())
    }

    /// A member that is a string, possibly empty. `None`: the member is absent or of another type. Another type also
    /// adds a problem.
    pub(crate) fn text(&self, name: &str, problems: &mut Problems) -> Option<&'a str> {
        let value = self.get(name)?;
        let text = value.as_str();
        if text.is_none() {
            wrong_type(problems, &self.at(name), "a string", value);
        }
        text
    }

    /// A member that is a boolean. `None`: the member is absent or of another type. Another type also adds a problem.
    pub(crate) fn boolean(&self, name: &str, problems: &mut Problems) -> Option<bool> {
        let value = self.get(name)?;
        let boolean = value.as_bool();
        if boolean.is_none() {
            wrong_type(problems, &self.at(name), "a boolean", value);
        }
        boolean
    }

    /// A member that is an integer. `None`: the member is absent, of another type, or outside of `range`. The last two
    /// also add a problem.
    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<i64>, problems: &mut Problems) -> Option<i64> {
        let value = self.get(name)?;
        let Some(number) = value.as_i64() else {
            wrong_type(problems, &self.at(name), "an integer", value);
            return None;
        };
        if range.contains(&number) {
            return Some(number);
        }
        let at = self.at(name);
        let message = format!("{at}: {number} is not within {} to {}", range.start(), range.end());
        problems.add("InvalidRequestFormat", at, message);
        None
    }

    /// A member that is an object. `None`: the member is absent or of another type. Another type also adds a problem.
    pub(crate) fn object(&self, name: &str, problems: &mut Problems) -> Option<Self> {
        match self.get(name)? {
            Value::Object(map) => Some(Self {
                map,
                path: self.at(name),
            }),
            other => {
                wrong_type(problems, &self.at(name), "an object", other);
                None
            }
        }
    }

    /// A member that is an object. If the member is absent or of another type, the result is an empty object with the
    /// member's path. Another type also adds a problem.
    pub(crate) fn object_or_empty(&self, name: &str, problems: &mut Problems) -> Self {
        self.object(name, problems).unwrap_or_else(|| Self {
            map: &EMPTY,
            path: self.at(name),
        })
    }

    /// A member that is a list of at most `max` items. Nulls are left out, but the index in an item's path is the
    /// item's index in the body. `None`: the member is absent, of another type, or too long. The last two also add a
    /// problem.
    pub(crate) fn list(&self, name: &str, max: usize, problems: &mut Problems) -> Option<Vec<Item<'a>>> {
        let at = self.at(name);
        match self.get(name)? {
            Value::Array(items) if items.len() > max => {
                let message = format!("{at}: {} items, at most {max} are allowed", items.len());
                problems.add("XTooManyItems", at, message);
                None
            }
            Value::Array(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(i, value)| Item {
                        value,
                        path: format!("{at}[{i}]"),
                    })
                    .collect(),
            ),
            other => {
                wrong_type(problems, &at, "an array", other);
                None
            }
        }
    }

    /// Calls `found` with the path and value of every member at `path`. `path` is names joined by dots; `[]` after the
    /// name of a list means each item of the list. If a part of the path is missing or has another JSON type, `found`
    /// is not called for it.
    pub(crate) fn find(&self, path: &str, found: &mut dyn FnMut(String, &'a Value)) {
        let (first, rest) = path
            .split_once('.')
            .map_or((path, None), |(first, rest)| (first, Some(rest)));
        let name = first.strip_suffix("[]").unwrap_or(first);
        let (Some(value), at) = (self.get(name), self.at(name)) else {
            return;
        };
        let Some(rest) = rest else {
            return found(at, value);
        };
        let mut inward = |value: &'a Value, path: String| {
            if let Value::Object(map) = value {
                Self { map, path }.find(rest, found);
            }
        };
        match value {
            Value::Array(items) if name != first => {
                for (i, item) in items.iter().enumerate() {
                    inward(item, format!("{at}[{i}]"));
                }
            }
            _ if name == first => inward(value, at),
            _ => {}
        }
    }

    /// The id in a reference `{"id": "…"}` to a resource, with the path of this id in the body. Other members of the
    /// object are ignored, because clients embed whole objects. `None`: the object is absent or has no valid id. An
    /// object without a valid id also adds a problem. Whether the resource exists is not checked.
    pub(crate) fn reference(&self, name: &str, problems: &mut Problems) -> Option<(ArmPath, String)> {
        self.object(name, problems)?.own_reference(problems)
    }

    /// The resource that this object refers to, `{"id": "…"}`, and the full name of the `id`. `None`: the `id` is absent or
    /// malformed, which is a problem.
    pub(crate) fn own_reference(&self, problems: &mut Problems) -> Option<(ArmPath, String)> {
        let at = self.at("id");
        let Some(text) = self.text("id", problems) else {
            if self.get("id").is_none() {
                missing(problems, &at);
            }
            return None;
        };
        match ArmPath::parse(text) {
            Ok(path) => Some((path, at)),
            Err(why) => {
                problems.add("InvalidRequestFormat", at.clone(), format!("{at}: {why}"));
                None
            }
        }
    }

    /// A member that is one of the strings `values`, ignoring case; returned in the casing of `values`. `None`: the
    /// member is absent, or of another type or value. Another type or value also adds a problem.
    pub(crate) fn choice(&self, name: &str, values: &[&'static str], problems: &mut Problems) -> Option<&'static str> {
        let text = self.text(name, problems)?;
        let found = values.iter().find(|v| v.eq_ignore_ascii_case(text)).copied();
        if found.is_none() {
            let at = self.at(name);
            let message = format!("{at}: '{}' is not one of {}", shown(text), values.join(", "));
            problems.add("InvalidRequestFormat", at, message);
        }
        found
    }

    /// A member that is an IP address of either family, as a string. `None`: the member is absent, empty, or not an
    /// address. A text that is not an address also adds a problem.
    pub(crate) fn address(&self, name: &str, problems: &mut Problems) -> Option<IpAddr> {
        let text = self.text(name, problems).filter(|t| !t.is_empty())?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let at = self.at(name);
            let message = format!("{at}: '{}' is not an IP address", shown(text));
            problems.add("InvalidIPAddressFormat", at, message);
        }
        parsed
    }

    /// The member `tags`: at most 50, with names of at most 512 and values of at most 1,024 bytes. Empty if it is
    /// absent. Each wrong tag adds a problem and is left out.
    pub(crate) fn tags(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let Some(tags) = self.object("tags", problems) else {
            return BTreeMap::new();
        };
        if tags.map.len() > MAX_TAGS {
            problems.add(
                "XTooManyItems",
                "tags".to_owned(),
                format!("tags: {} tags, at most {MAX_TAGS} are allowed", tags.map.len()),
            );
            return BTreeMap::new();
        }
        let mut result = BTreeMap::new();
        for (name, value) in tags.map {
            let at = tags.at(&shown(name));
            match value {
                Value::Null => {}
                Value::String(text) if name.len() <= MAX_TAG_NAME && text.len() <= MAX_TAG_VALUE => {
                    result.insert(name.clone(), text.clone());
                }
                Value::String(_) => {
                    let message =
                        format!("{at}: a tag's name has at most {MAX_TAG_NAME} bytes, its value {MAX_TAG_VALUE}");
                    problems.add("InvalidRequestFormat", at, message);
                }
                other => wrong_type(problems, &at, "a string", other),
            }
        }
        result
    }

    /// The members that `shapes` names, with unchanged values; these properties are only kept and shown. A member of
    /// another type, or with more than 64 KiB of JSON, adds a problem and is left out.
    pub(crate) fn echo(&self, shapes: &[(&str, Shape)], problems: &mut Problems) -> Map<String, Value> {
        let mut kept = Map::new();
        for (name, shape) in shapes {
            let Some(value) = self.get(name) else { continue };
            let at = self.at(name);
            let (good, expected) = match shape {
                Shape::Bool => (value.is_boolean(), "a boolean"),
                Shape::Text => (value.is_string(), "a string"),
                Shape::Object => (value.is_object(), "an object"),
                Shape::Integer(low, high) => {
                    self.integer(name, *low..=*high, problems).inspect(|_| {
                        kept.insert((*name).to_owned(), value.clone());
                    });
                    continue;
                }
                Shape::Texts => (is_list_of(value, Value::is_string), "an array of strings"),
                Shape::Objects => (is_list_of(value, Value::is_object), "an array of objects"),
            };
            if !good {
                wrong_type(problems, &at, expected, value);
            } else if value.to_string().len() > MAX_ECHOED_BYTES {
                problems.add("XTooManyItems", at.clone(), format!("{at}: larger than 64 KiB"));
            } else {
                kept.insert((*name).to_owned(), value.clone());
            }
        }
        kept
    }
}

/// Whether a value is a list whose items all satisfy `is`.
fn is_list_of(value: &Value, is: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(is))
}

impl<'a> Item<'a> {
    /// The item as an object. `None`: the item is of another type, and a problem says so.
    pub(crate) fn object(&self, problems: &mut Problems) -> Option<Object<'a>> {
        match self.value {
            Value::Object(map) => Some(Object {
                map,
                path: self.path.clone(),
            }),
            other => {
                wrong_type(problems, &self.path, "an object", other);
                None
            }
        }
    }

    /// The item as a string. `None`: the item is of another type, and a problem says so.
    pub(crate) fn text(&self, problems: &mut Problems) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            wrong_type(problems, &self.path, "a string", self.value);
        }
        text
    }
}

/// Adds the problem, with status 400, that the required member at the path `at` is missing.
pub(crate) fn missing(problems: &mut Problems, at: &str) {
    problems.add(
        "InvalidRequestFormat",
        at,
        format!("{at}: required property is missing"),
    );
}

/// Parses an address prefix, `address/length`. `at`: the prefix's field, for messages. A prefix with host bits adds a
/// problem, but is returned without these bits, so that the same request also checks the other rules. `None`: the text
/// is not a prefix, and a problem says so.
pub(crate) fn prefix(text: &str, at: &str, problems: &mut Problems) -> Option<IpNet> {
    let Some(net) = strict(text) else {
        let message = format!("{at}: '{}' is not an address prefix (address/length)", shown(text));
        problems.add("InvalidAddressPrefixFormat", at, message);
        return None;
    };
    let meant = net.trunc();
    if meant != net {
        let message = format!("{at}: '{text}' has host bits set; the prefix would be {meant}");
        problems.add("InvalidCIDRNotation", at, message);
    }
    Some(meant)
}

/// Parses `address/length` strictly: no leading zeros, plain digits in the length. Host bits may be set. `None`: the
/// text has another form.
pub(crate) fn strict(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length == "0" || (!length.starts_with('0') && length.bytes().all(|b| b.is_ascii_digit()));
    IpNet::new(address.parse().ok()?, length.parse().ok().filter(|_| plain)?).ok()
}
