//! Functions for all children of load balancers. A child is changed as by Azure's command line: the whole load balancer
//! is read and written back with the change.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::Child;
use crate::output::{Column, items};
use anyhow::Result;
use serde_json::{Value, json};
use tombolo_client::path::last;
use tombolo_proto::arm::Kind;

/// A kind of children of load balancers.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// The kind.
    pub(super) kind: Kind,
    /// The columns of lists.
    pub(super) columns: &'static [Column],
}

/// Returns the name of a child of a body.
fn own_name(child: &Value) -> &str {
    child.get("name").and_then(Value::as_str).unwrap_or_default()
}

impl Part {
    /// Returns the JSON pointer to the children in the body of a load balancer.
    fn pointer(self) -> String {
        format!("/properties/{}", self.kind.collection())
    }

    /// Returns the children in the body of a load balancer.
    pub(super) fn of(self, balancer: &Value) -> Vec<Value> {
        items(balancer, &self.pointer()).cloned().collect()
    }

    /// Returns the child with this name; names are compared case-insensitively.
    pub(super) fn find<'b>(self, balancer: &'b Value, name: &str) -> Option<&'b Value> {
        let pointer = self.pointer();
        items(balancer, &pointer).find(|child| own_name(child).eq_ignore_ascii_case(name))
    }

    /// Adds a child to the body of a load balancer, or replaces the properties of the child with this name.
    pub(super) fn set(self, balancer: &mut Value, name: &str, properties: Value) {
        let list = &mut balancer["properties"][self.kind.collection()];
        if !list.is_array() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else { return };
        match list.iter_mut().find(|child| own_name(child).eq_ignore_ascii_case(name)) {
            Some(child) => child["properties"] = properties,
            None => list.push(json!({"name": name, "properties": properties})),
        }
    }

    /// Returns a reference from one child to another one of this kind. `given` is a name or a full id. If it is `None`
    /// and the load balancer has only one child of the kind, refers to that one.
    ///
    /// # Errors
    /// [`UsageError`], which asks for `option`: `given` is `None`, and there is not exactly one child.
    pub(super) fn reference(self, balancer: &Value, given: Option<&str>, option: &str) -> Result<Value> {
        let title = self.kind.title();
        let all = self.of(balancer);
        let name = match (given, all.as_slice()) {
            (Some(id), _) if id.starts_with('/') => return Ok(json!({"id": id})),
            (Some(name), _) => name,
            (None, [only]) => own_name(only),
            (None, []) => {
                let what = format!("the load balancer has no {title}");
                return Err(UsageError::new(what, format!("create one, and name it with {option}")).into());
            }
            (None, several) => {
                let names: Vec<_> = several.iter().map(own_name).collect();
                let what = format!("the load balancer has several {title}s: {}", names.join(", "));
                return Err(UsageError::new(what, format!("name one of them with {option}")).into());
            }
        };
        let balancer = balancer.get("id").and_then(Value::as_str).unwrap_or_default();
        Ok(json!({"id": format!("{balancer}/{}/{name}", self.kind.collection())}))
    }

    /// Returns the path of a child.
    pub(super) fn path(self, c: &Context, child: &Child) -> Result<String> {
        let balancer = c.item(Kind::LoadBalancer, &child.parent)?;
        Ok(format!("{balancer}/{}/{}", self.kind.collection(), child.name))
    }

    /// Creates or replaces a child. `properties` makes its properties from the present load balancer.
    pub(super) async fn create(
        self,
        c: &Context,
        child: &Child,
        properties: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<()> {
        let mut balancer = c.get(Kind::LoadBalancer, &child.parent).await?;
        let properties = properties(&balancer)?;
        self.set(&mut balancer, &child.name, properties);
        self.write(c, child, &balancer, "Created").await
    }

    /// Changes the properties of a child. `changes` makes the properties that change from the present load balancer.
    ///
    /// # Errors
    /// [`UsageError`]: no property changes. `options` names options that change one.
    pub(super) async fn update(
        self,
        c: &Context,
        child: &Child,
        options: &str,
        changes: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<()> {
        let mut balancer = c.get(Kind::LoadBalancer, &child.parent).await?;
        let changes = changes(&balancer)?;
        let changes = changes.as_object().filter(|changes| !changes.is_empty());
        let changes = changes.ok_or_else(|| UsageError::new("nothing to change", format!("add {options}")))?;
        let present = match self.find(&balancer, &child.name) {
            Some(present) => present.clone(),
            // The controller's answer is the error that says that the child is missing.
            None => c.client.arm_get(&self.path(c, child)?).await?,
        };
        let mut properties = present["properties"].clone();
        for (name, value) in changes {
            properties[name] = value.clone();
        }
        self.set(&mut balancer, &child.name, properties);
        self.write(c, child, &balancer, "Updated").await
    }

    /// Writes the load balancer of a child, and prints a message, or the child as JSON.
    async fn write(self, c: &Context, child: &Child, balancer: &Value, verb: &str) -> Result<()> {
        let answer = c
            .client
            .arm_put(&c.item(Kind::LoadBalancer, &child.parent)?, balancer)
            .await?;
        let written = self.find(&answer, &child.name).cloned().unwrap_or_default();
        let what = format!("{verb} {} {} of {}.", self.kind.title(), child.name, child.parent);
        c.report_write(&written, &what).await
    }

    /// Prints the children of a load balancer.
    pub(super) async fn list(self, c: &Context, balancer: &str) -> Result<()> {
        let balancer = c.get(Kind::LoadBalancer, balancer).await?;
        c.out.list(
            &self.of(&balancer),
            self.columns,
            &format!("No {}s.", self.kind.title()),
        )
    }

    /// Prints a child.
    pub(super) async fn show(self, c: &Context, child: &Child) -> Result<()> {
        c.out
            .item(&c.client.arm_get(&self.path(c, child)?).await?, self.columns)
    }

    /// Deletes a child. As in [`Context::delete`], a child that does not exist is no error.
    pub(super) async fn delete(self, c: &Context, child: &Child) -> Result<()> {
        let mut balancer = c.get(Kind::LoadBalancer, &child.parent).await?;
        let existed = self.find(&balancer, &child.name).is_some();
        let (title, name) = (self.kind.title(), last(&child.name));
        if !existed {
            let message = format!("There was no {title} {name}.");
            return c.report(&json!({"deleted": false}), &message).await;
        }
        if let Some(list) = balancer.pointer_mut(&self.pointer()).and_then(Value::as_array_mut) {
            list.retain(|item| !own_name(item).eq_ignore_ascii_case(name));
        }
        c.client
            .arm_put(&c.item(Kind::LoadBalancer, &child.parent)?, &balancer)
            .await?;
        c.report(&json!({"deleted": true}), &format!("Deleted {title} {name}."))
            .await
    }
}
