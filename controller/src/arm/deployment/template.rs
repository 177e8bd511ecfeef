//! The parser of templates: it evaluates expressions and orders resources.

use crate::rest::failure::{Failure, excerpt};
use crate::rest::json::MAX_BODY;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use tombolo_topology::path::ArmPath;

/// Maximum number of resources in one template. Azure allows 800. This limit is lower, because all resources are
/// written before the response is sent.
const MAX_RESOURCES: usize = 100;

/// Largest number of entries of one `dependsOn`: one for each resource.
const MAX_DEPENDS_ON: usize = 100;

/// A parsed template with its expressions evaluated.
#[derive(Debug)]
pub(super) struct Template {
    /// The resources; each comes after the resources that its `dependsOn` names.
    pub(super) resources: Vec<Resource>,
    /// Each output, and the name of the resource that it refers to.
    pub(super) outputs: Vec<(String, String)>,
    /// The parameters as responses show them, with their types. Values of secure parameters are left out.
    pub(super) shown_parameters: Value,
}

/// One resource of a template, with its expressions evaluated.
#[derive(Debug)]
pub(super) struct Resource {
    types: String,
    pub(super) name: String,
    /// `TYPE/NAME` of the resource in lower case, by which `dependsOn` refers to it.
    own: String,
    depends_on: Vec<String>,
    /// The body for a PUT.
    pub(super) body: Value,
}

/// 400 with Azure's code for templates.
fn invalid(message: String) -> Failure {
    Failure::bad("InvalidTemplate", message)
}

/// The value of a required string field of a resource.
fn text(object: &Value, field: &str) -> Result<String, Failure> {
    let found = object.get(field).and_then(Value::as_str).map(ToOwned::to_owned);
    found.ok_or_else(|| {
        invalid(format!(
            "template.resources: '{field}' of a resource is missing, or is not a string"
        ))
    })
}

/// The members of the object in a field; `None` if the field is absent or null.
fn members<'v>(parent: &'v Value, field: &str) -> Result<Option<&'v Map<String, Value>>, Failure> {
    match parent.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(invalid(format!("'{field}' must be an object"))),
    }
}

/// Parses an expression: `[parameters('x')]` is ("parameters", "x"). `None` if the text is not an expression.
///
/// # Errors
/// 400 for any expression that is not the call of a function with one string as argument.
fn expression(text: &str) -> Result<Option<(&str, &str)>, Failure> {
    let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        return Ok(None);
    };
    // `[[` escapes a text that begins with a bracket.
    if inner.starts_with('[') {
        return Ok(None);
    }
    let parsed = inner.trim().split_once('(').and_then(|(function, rest)| {
        let argument = rest.strip_suffix(')')?.trim();
        let argument = argument.strip_prefix('\'')?.strip_suffix('\'')?;
        (!argument.contains('\'')).then_some((function.trim(), argument))
    });
    match parsed {
        Some(found) => Ok(Some(found)),
        None => Err(invalid(format!(
            "the expression '{}' is not supported; supported are parameters('NAME'), variables('NAME') and reference('NAME')",
            excerpt(text)
        ))),
    }
}

/// Values by name in lower case.
type Named<'a> = BTreeMap<String, &'a Value>;

fn named(map: Option<&Map<String, Value>>) -> Named<'_> {
    let entries = map.into_iter().flatten();
    entries
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect()
}

/// The values that expressions refer to.
struct Names<'a> {
    /// The parameters of the request.
    passed: Named<'a>,
    /// The parameters that the template declares, as written.
    declared: Option<&'a Map<String, Value>>,
    /// The declared parameters by name in lower case.
    declared_by_name: Named<'a>,
    variables: Named<'a>,
    /// The approximate number of bytes of JSON that evaluated values may still add. Without a limit, a small template
    /// could insert a large parameter many times.
    budget: Cell<usize>,
}

/// The approximate size of a value in JSON, in bytes.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v) + 4).sum::<usize>() + 2,
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

impl Names<'_> {
    /// Subtracts `bytes` from the budget. Returns an error (400) if fewer are left.
    fn spend(&self, bytes: usize) -> Result<(), Failure> {
        let left = self.budget.get().checked_sub(bytes);
        let too_large = || {
            invalid(format!(
                "with its expressions evaluated, the template is larger than {MAX_BODY} bytes"
            ))
        };
        self.budget.set(left.ok_or_else(too_large)?);
        Ok(())
    }

    /// The value of a parameter, or the default value that the template declares for it. Returns an error (400) if
    /// there is neither.
    fn parameter(&self, name: &str) -> Result<Value, Failure> {
        let key = name.to_ascii_lowercase();
        let passed = self.passed.get(&key).and_then(|p| p.get("value"));
        let value = passed.or_else(|| self.declared_by_name.get(&key).and_then(|p| p.get("defaultValue")));
        let missing = || invalid(format!("the parameter '{}' has no value", excerpt(name)));
        let value = value.ok_or_else(missing)?;
        self.spend(size(value))?;
        Ok(value.clone())
    }

    /// A copy of a value with its expressions evaluated. `in_variables`: the value is a variable, which may not refer
    /// to variables, because variables could form a cycle.
    fn fill(&self, value: &Value, in_variables: bool) -> Result<Value, Failure> {
        Ok(match value {
            Value::String(text) => match expression(text)? {
                None => {
                    self.spend(text.len() + 2)?;
                    let plain = text.strip_prefix("[[");
                    Value::String(plain.map_or_else(|| text.clone(), |rest| format!("[{rest}")))
                }
                Some(("parameters", name)) => self.parameter(name)?,
                Some(("variables", name)) if !in_variables => {
                    let found = self.variables.get(&name.to_ascii_lowercase());
                    let found = found.ok_or_else(|| invalid(format!("there is no variable '{}'", excerpt(name))))?;
                    self.fill(found, true)?
                }
                Some(_) => {
                    return Err(invalid(format!(
                        "the expression '{}' is not supported here",
                        excerpt(text)
                    )));
                }
            },
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|v| self.fill(v, in_variables))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(map) => {
                let filled = map.iter().map(|(k, v)| {
                    self.spend(k.len() + 4)?;
                    Ok((k.clone(), self.fill(v, in_variables)?))
                });
                Value::Object(filled.collect::<Result<_, Failure>>()?)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                self.spend(8)?;
                value.clone()
            }
        })
    }
}

impl Template {
    /// Parses the body of a deployment and evaluates its expressions. Reads and writes no state. Fields that are not
    /// known are ignored.
    ///
    /// # Errors
    /// 400 if the template is malformed or too large, a parameter has no value, the dependencies form a cycle, or a
    /// feature is not supported, such as another mode than `Incremental`.
    pub(super) fn read(body: &Value) -> Result<Self, Failure> {
        let properties = body.get("properties").unwrap_or(&Value::Null);
        let mode = properties.get("mode").and_then(Value::as_str).unwrap_or("incremental");
        if !mode.eq_ignore_ascii_case("incremental") {
            return Err(invalid(format!(
                "mode: '{}' is not supported, only 'Incremental'",
                excerpt(mode)
            )));
        }
        let template = properties.get("template").filter(|t| t.is_object());
        let template = template.ok_or_else(|| invalid("properties.template is missing".into()))?;
        let declared = members(template, "parameters")?;
        let names = Names {
            passed: named(members(properties, "parameters")?),
            declared,
            declared_by_name: named(declared),
            variables: named(members(template, "variables")?),
            budget: Cell::new(MAX_BODY),
        };
        let listed = match template.get("resources") {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(items)) if items.len() <= MAX_RESOURCES => items,
            Some(_) => {
                return Err(invalid(format!(
                    "template.resources: must be an array of at most {MAX_RESOURCES}"
                )));
            }
        };
        let resources = listed
            .iter()
            .map(|r| Resource::read(r, &names))
            .collect::<Result<_, _>>()?;
        let mut outputs = Vec::new();
        for (output, value) in members(template, "outputs")?.into_iter().flatten() {
            let value = value.get("value").and_then(Value::as_str).unwrap_or_default();
            match expression(value)? {
                Some(("reference", name)) => outputs.push((output.clone(), name.to_owned())),
                _ => {
                    return Err(invalid(format!(
                        "outputs: '{}' is not supported; supported is reference('NAME')",
                        excerpt(value)
                    )));
                }
            }
        }
        Ok(Self {
            resources: ordered(resources)?,
            outputs,
            shown_parameters: Value::Object(shown_parameters(&names)),
        })
    }

    /// The ARM paths of the template's resources in `group`, in the order of `resources`: each comes after those that
    /// it depends on.
    ///
    /// # Errors
    /// 400 if the type and the name of a resource have different numbers of segments, or form no path.
    pub(super) fn paths(&self, group: &ArmPath) -> Result<Vec<ArmPath>, Failure> {
        self.resources.iter().map(|r| r.path(group)).collect()
    }
}

fn shown_parameters(names: &Names<'_>) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, declared) in names.declared.into_iter().flatten() {
        let kind = declared.get("type").and_then(Value::as_str).unwrap_or("String");
        let mut entry = json!({"type": kind});
        // Azure never returns secure parameters. Types are case-insensitive.
        if !kind.to_ascii_lowercase().starts_with("secure")
            && let Ok(value) = names.parameter(name)
        {
            entry["value"] = value;
        }
        shown.insert(name.clone(), entry);
    }
    shown
}

impl Resource {
    fn read(resource: &Value, names: &Names<'_>) -> Result<Self, Failure> {
        // `dependsOn` and `apiVersion` belong to the template and are no members of the resource's body.
        let filled = names.fill(resource, false)?;
        let depends_on = match filled.get("dependsOn") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) if items.len() <= MAX_DEPENDS_ON => items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_ascii_lowercase)
                .collect(),
            Some(_) => {
                return Err(invalid(format!(
                    "template.resources: 'dependsOn' must be an array of at most {MAX_DEPENDS_ON}"
                )));
            }
        };
        let mut body = Map::new();
        for field in ["location", "tags", "properties", "sku", "zones"] {
            if let Some(value) = filled.get(field) {
                body.insert(field.into(), value.clone());
            }
        }
        let (types, name) = (text(&filled, "type")?, text(&filled, "name")?);
        Ok(Self {
            own: format!("{types}/{name}").to_ascii_lowercase(),
            types,
            name,
            depends_on,
            body: Value::Object(body),
        })
    }

    /// The resource's path in a resource group. A name has as many segments as its type, and segments of type and name
    /// alternate in the path.
    fn path(&self, group: &ArmPath) -> Result<ArmPath, Failure> {
        let mismatch = || {
            invalid(format!(
                "template.resources: type '{}' and name '{}' do not have the same number of segments",
                excerpt(&self.types),
                excerpt(&self.name)
            ))
        };
        let (provider, types) = self.types.split_once('/').ok_or_else(mismatch)?;
        let (types, names): (Vec<_>, Vec<_>) = (types.split('/').collect(), self.name.split('/').collect());
        if types.len() != names.len() {
            return Err(mismatch());
        }
        let tail: Vec<_> = types.iter().zip(&names).map(|(t, n)| format!("{t}/{n}")).collect();
        ArmPath::parse(&format!("{}/providers/{provider}/{}", group.id(), tail.join("/"))).map_err(invalid)
    }

    /// Whether an entry of `dependsOn` refers to this resource: by `TYPE/NAME`, by its id, or by its name.
    fn is_meant_by(&self, entry: &str) -> bool {
        let before = entry.strip_suffix(self.own.as_str());
        before.is_some_and(|b| b.is_empty() || b.ends_with('/')) || entry.eq_ignore_ascii_case(&self.name)
    }
}

/// Orders resources so that each comes after those that it depends on. Apart from that, the order of the template
/// stays.
///
/// # Errors
/// 400 if the dependencies form a cycle.
fn ordered(resources: Vec<Resource>) -> Result<Vec<Resource>, Failure> {
    let needs = |r: &Resource| -> Vec<usize> {
        let meant = |w: &Resource| r.depends_on.iter().any(|entry| w.is_meant_by(entry));
        let all = resources.iter().enumerate();
        all.filter(|(_, w)| meant(w)).map(|(i, _)| i).collect()
    };
    let needs: Vec<Vec<usize>> = resources.iter().map(needs).collect();
    let mut waiting: Vec<Option<Resource>> = resources.into_iter().map(Some).collect();
    let mut done: Vec<Resource> = Vec::with_capacity(waiting.len());
    while done.len() < waiting.len() {
        let ready = |i: usize| waiting[i].is_some() && needs[i].iter().all(|n| waiting[*n].is_none());
        let next = (0..waiting.len()).find(|i| ready(*i));
        let Some(resource) = next.and_then(|i| waiting[i].take()) else {
            let names: Vec<_> = waiting.iter().flatten().map(|r| r.name.as_str()).collect();
            return Err(invalid(format!(
                "dependsOn: these resources depend on each other in a cycle: {}",
                excerpt(&names.join(", "))
            )));
        };
        done.push(resource);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(resources: Value) -> Value {
        json!({"properties": {
            "mode": "Incremental",
            "parameters": {"key": {"value": "secret"}},
            "template": {
                "parameters": {"key": {"type": "securestring"}, "place": {"type": "string", "defaultValue": "region1"}},
                "variables": {"where": "[parameters('place')]"},
                "resources": resources,
                "outputs": {"resource": {"type": "object", "value": "[reference('c')]"}},
            },
        }})
    }

    #[test]
    fn expressions_are_filled_in_and_resources_ordered() {
        let template = Template::read(&deployment(json!([
            {"type": "Microsoft.Network/connections", "name": "c", "location": "[variables('where')]", "apiVersion": "1",
             "dependsOn": ["Microsoft.Network/publicIpAddresses/p"], "properties": {"sharedKey": "[parameters('key')]", "x": "[[y]"}},
            {"type": "Microsoft.Network/publicIPAddresses", "name": "p", "properties": {}},
        ])))
        .ok()
        .unwrap();
        let names: Vec<_> = template.resources.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["p", "c"]);
        assert_eq!(
            template.resources[1].body,
            json!({"location": "region1", "properties": {"sharedKey": "secret", "x": "[y]"}})
        );
        assert_eq!(template.outputs, [("resource".to_owned(), "c".to_owned())]);
        assert!(
            !template.shown_parameters.to_string().contains("secret\""),
            "{}",
            template.shown_parameters
        );
        let group = ArmPath::parse("/subscriptions/s/resourceGroups/g").unwrap();
        let paths = template.paths(&group).ok().unwrap();
        assert_eq!(
            paths[1].id().as_str(),
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/connections/c"
        );
    }

    #[test]
    fn a_small_template_does_not_become_a_large_one() {
        let resource = |n: usize| {
            let many = vec![json!("[parameters('key')]"); 2000];
            json!({"type": "Microsoft.Network/virtualNetworks", "name": format!("n{n}"), "properties": {"x": many}})
        };
        let of = |value: usize, n: usize| {
            let mut body = deployment((0..n).map(resource).collect());
            body["properties"]["parameters"]["key"]["value"] = json!("x".repeat(value));
            Template::read(&body)
        };
        assert!(of(100, 10).is_ok());
        assert!(of(1000, 10).is_err());
        assert!(of(100, 100).is_err());
        let entries = vec!["x"; 101];
        let resource = json!({"type": "t/a", "name": "a", "dependsOn": entries});
        assert!(Template::read(&deployment(json!([resource]))).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for resources in [
            json!([{"type": "Microsoft.Network/connections", "name": "[concat('a', 'b')]"}]),
            json!([{"type": "Microsoft.Network/connections", "name": "[parameters('none')]"}]),
            json!([{"type": "Microsoft.Network/connections", "name": "[variables('none')]"}]),
            json!([{"type": "Microsoft.Network/connections"}]),
            json!([{"type": "t/a", "name": "a", "dependsOn": ["t/b/b"]}, {"type": "t/b", "name": "b", "dependsOn": ["t/a/a"]}]),
            json!("x"),
        ] {
            assert!(Template::read(&deployment(resources.clone())).is_err(), "{resources}");
        }
        for body in [
            json!({}),
            json!({"properties": 1}),
            json!({"properties": {"mode": "Complete", "template": {}}}),
        ] {
            assert!(Template::read(&body).is_err(), "{body}");
        }
    }
}
