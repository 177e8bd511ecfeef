//! Compares the body of a resource in the manifest (the desired body) with its body at the controller. Compares only
//! properties that the desired body has.

use serde_json::{Map, Value};

/// Whether the server's body has all properties of the desired body, with equal values. A null in the desired body
/// means that the property must be absent or an empty list.
///
/// Items of lists are matched by name, or by value if they have no name. So the order of a list does not matter. Only
/// `tunnelAddresses` must have the same order. Ids and names are compared case-insensitively.
pub(super) fn holds(server: &Value, desired: &Value) -> bool {
    match (server, desired) {
        (Value::Null, Value::Object(d)) => d.values().all(|v| holds(&Value::Null, v)),
        (Value::Object(s), Value::Object(d)) => {
            d.iter().all(|(key, v)| match (s.get(key), v) {
                // ARM keeps the casing with which a resource was created.
                (Some(Value::String(s)), Value::String(d)) if key == "name" => s.eq_ignore_ascii_case(d),
                // The first address belongs to the circuit's primary line and the second to the secondary line, so the
                // order matters.
                (s, v) if key == "tunnelAddresses" => s == Some(v),
                (s, v) => holds(s.unwrap_or(&Value::Null), v),
            })
        }
        (Value::Null, Value::Array(list)) | (Value::Array(list), Value::Null) => list.is_empty(),
        (Value::Array(s), Value::Array(d)) => {
            s.len() == d.len() && d.iter().all(|v| counterpart(s, v).is_some_and(|o| holds(o, v)))
        }
        (Value::String(s), Value::String(d)) => s == d || (is_id(d) && s.eq_ignore_ascii_case(d)),
        (s, d) => s == d,
    }
}

/// Returns the body of the PUT: the server's body, in which the properties of the desired body replace those of the
/// same name. Other properties keep their values.
pub(super) fn merge(server: &Value, desired: &Value) -> Value {
    match (server, desired) {
        (Value::Object(s), Value::Object(d)) => {
            let mut out = s.clone();
            for (key, v) in d {
                let merged = merge(s.get(key).unwrap_or(&Value::Null), v);
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Value::Array(s), Value::Array(d)) => Value::Array(
            d.iter()
                .map(|v| {
                    counterpart(s, v)
                        .filter(|o| o.is_object())
                        .map_or_else(|| v.clone(), |o| merge(o, v))
                })
                .collect(),
        ),
        (_, d) => d.clone(),
    }
}

/// Returns, for display, those properties of the server's body that the desired body has too. If an item of a list has
/// a name and the desired body has no such item, only the item's name is shown.
pub(super) fn project(server: &Value, desired: &Value) -> Value {
    match (server, desired) {
        (Value::Object(s), Value::Object(d)) => {
            let shown = |key: &String, v| s.get(key).map(|o| (key.clone(), project(o, v)));
            Value::Object(d.iter().filter_map(|(key, v)| shown(key, v)).collect())
        }
        (Value::Array(s), Value::Array(d)) if s.iter().chain(d).all(|v| name(v).is_some()) => Value::Array(
            s.iter()
                .map(|o| match counterpart(d, o) {
                    Some(v) => project(o, v),
                    None => Value::Object(Map::from_iter([("name".to_owned(), o["name"].clone())])),
                })
                .collect(),
        ),
        (s, d) if holds(s, d) => d.clone(),
        (s, _) => s.clone(),
    }
}

/// Returns the value without properties that are null, for display.
pub(super) fn tidy(value: &Value) -> Value {
    match value {
        Value::Object(o) => Value::Object(
            o.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), tidy(v)))
                .collect(),
        ),
        Value::Array(a) => Value::Array(a.iter().map(tidy).collect()),
        other => other.clone(),
    }
}

/// Returns the item of `list` with the name of `item`, or, if `item` has no name, the first one that [`holds`] it.
/// `None`: there is no such item.
pub(super) fn counterpart<'a>(list: &'a [Value], item: &Value) -> Option<&'a Value> {
    match name(item) {
        Some(own) => list
            .iter()
            .find(|o| name(o).is_some_and(|n| n.eq_ignore_ascii_case(own))),
        None => list.iter().find(|o| holds(o, item)),
    }
}

/// Returns the property `name` of an item; `None` if the item has none or it is not a string.
pub(super) fn name(item: &Value) -> Option<&str> {
    item.get("name").and_then(Value::as_str)
}

fn is_id(text: &str) -> bool {
    text.get(..15)
        .is_some_and(|s| s.eq_ignore_ascii_case("/subscriptions/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_desired_is_compared() {
        let server = json!({"etag": "x", "properties": {"a": 1, "b": {"id": "/Subscriptions/S/x"}, "state": "ok"}});
        assert!(holds(
            &server,
            &json!({"properties": {"a": 1, "b": {"id": "/subscriptions/s/X"}, "none": null}})
        ));
        assert!(!holds(&server, &json!({"properties": {"a": 2}})));
        assert!(
            !holds(&server, &json!({"properties": {"b": null}})),
            "present, but should be absent"
        );
        assert!(!holds(
            &server,
            &json!({"properties": {"c": {"id": "/subscriptions/s/y"}}})
        ));
    }

    #[test]
    fn lists_compare_by_name_or_as_sets() {
        let server = json!({"n": [{"name": "A", "v": 1, "etag": "e"}, {"name": "b", "v": 2}], "p": ["x", "y"]});
        let same = json!({"n": [{"name": "b", "v": 2}, {"name": "a", "v": 1}], "p": ["y", "x"]});
        assert!(holds(&server, &same));
        assert!(!holds(&server, &json!({"n": [{"name": "b", "v": 2}]})), "one too many");
        assert!(!holds(&server, &json!({"p": ["x", "z"]})));
        assert!(holds(&json!({"p": []}), &json!({"p": null})) && holds(&json!({}), &json!({"p": []})));
        assert!(!holds(&server, &json!({"p": null})));
        let tunnels = json!({"tunnelAddresses": ["a", "b"]});
        assert!(holds(&tunnels, &tunnels) && !holds(&tunnels, &json!({"tunnelAddresses": ["b", "a"]})));
    }

    #[test]
    fn merging_keeps_what_is_not_mentioned() {
        let server = json!({"tags": {"t": "1"}, "n": [{"name": "a", "v": 1, "kept": true}, {"name": "gone"}]});
        let merged = merge(&server, &json!({"n": [{"name": "a", "v": 2}, {"name": "new"}]}));
        assert_eq!(
            merged,
            json!({"tags": {"t": "1"}, "n": [{"name": "a", "v": 2, "kept": true}, {"name": "new"}]})
        );
    }

    #[test]
    fn a_projection_shows_what_differs_only() {
        let server = json!({"etag": "x", "n": [{"name": "a", "v": 1, "w": 1}, {"name": "gone", "v": 1}]});
        let shown = project(&server, &json!({"n": [{"name": "a", "v": 2}], "q": 1}));
        assert_eq!(shown, json!({"n": [{"name": "a", "v": 1}, {"name": "gone"}]}));
    }
}
