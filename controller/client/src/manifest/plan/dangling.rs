//! References to resources that do not exist.

use super::{CHILDREN, Server};
use crate::manifest::compare::name;
use crate::manifest::error::ManifestError;
use crate::manifest::expand::DesiredResource;
use serde_json::Value;
use std::collections::BTreeSet;

/// Refuses references to resources that do not exist. A resource exists if the manifest contains it or, without
/// pruning, if the controller has it. References into groups that were not read are not checked.
pub(super) fn refuse_dangling(desired: &[DesiredResource], server: &Server, prune: bool) -> Result<(), ManifestError> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut add = |path: &str, body: &Value| {
        for list in CHILDREN {
            let children = body.pointer(&format!("/properties/{list}")).and_then(Value::as_array);
            for child in children.into_iter().flatten().filter_map(name) {
                known.insert(format!("{path}/{list}/{child}").to_ascii_lowercase());
            }
        }
        known.insert(path.to_ascii_lowercase());
    };
    for e in desired {
        add(&e.path, &e.body);
    }
    if !prune {
        for (path, (_, body)) in &server.items {
            add(path, body);
        }
    }
    let mut problems = Vec::new();
    for e in desired {
        let mut ids = Vec::new();
        references(&e.body, &mut ids);
        for id in ids {
            let lower = id.to_ascii_lowercase();
            let group = lower.split("/providers/").next().unwrap_or_default();
            if server.groups.contains(group) && !known.contains(&lower) {
                let target = id.split("/Microsoft.Network/").nth(1).unwrap_or(id);
                let missing_in = if prune {
                    "the manifest does not contain"
                } else {
                    "neither the manifest nor the controller has"
                };
                problems.push(format!(
                    "{}: {} {} refers to {target}, which {missing_in}",
                    e.origin, e.kind, e.name
                ));
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(ManifestError::Invalid(problems))
    }
}

/// Collects the ids that a body refers to.
fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(o) => {
            for (key, v) in o {
                match v {
                    Value::String(id) if key == "id" => out.push(id),
                    other => references(other, out),
                }
            }
        }
        Value::Array(a) => a.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}
