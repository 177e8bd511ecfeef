//! The paths and ids of resources.

pub use tombolo_proto::arm::{check_group_name, check_name};
use tombolo_proto::id::ResourceId;

/// The `api-version` of every ARM request that the client sends. The controller accepts any date.
pub const API_VERSION: &str = "2024-05-01";

/// The subscription that clients use if the user names none.
pub const DEFAULT_SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";

/// A resource group in a subscription. Its methods make paths and ids of resources in the group. The methods neither
/// check names nor send requests to the controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// GUID of the subscription.
    pub subscription: String,
    /// Name of the resource group.
    pub name: String,
}

impl Group {
    /// A group with these names, which are not checked (see [`check_group_name`]).
    pub fn new(subscription: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            subscription: subscription.into(),
            name: name.into(),
        }
    }

    /// Returns the path of the group itself.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/subscriptions/{}/resourceGroups/{}", self.subscription, self.name)
    }

    /// Returns the path of a collection of `Microsoft.Network`, such as `virtualNetworks`.
    #[must_use]
    pub fn collection(&self, kind: &str) -> String {
        format!("{}/providers/Microsoft.Network/{kind}", self.path())
    }

    /// Returns the path of the resource `name` in the collection `kind` of `Microsoft.Network`.
    #[must_use]
    pub fn item(&self, kind: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(kind))
    }

    /// Returns the path of a subnet of a virtual network.
    #[must_use]
    pub fn subnet(&self, vnet: &str, name: &str) -> String {
        format!("{}/subnets/{name}", self.item("virtualNetworks", vnet))
    }

    /// Returns the id of the read-only `virtualMachines` resource that represents a VM's agent.
    #[must_use]
    pub fn vm(&self, name: &str) -> ResourceId {
        ResourceId::new(format!(
            "{}/providers/Microsoft.Compute/virtualMachines/{name}",
            self.path()
        ))
    }

    /// Returns the id of the resource `name` in the collection `kind`. A `name` that starts with `/` is a full id and
    /// is returned unchanged.
    #[must_use]
    pub fn resolve(&self, kind: &str, name: &str) -> String {
        if name.starts_with('/') {
            name.to_owned()
        } else {
            self.item(kind, name)
        }
    }

    /// Returns the id of the subnet that `name` stands for: `vnet/subnet`, or a full id (it starts with `/`), which is
    /// returned unchanged. The names in `vnet/subnet` must not be empty; they are not checked further.
    ///
    /// # Errors
    /// A message for the user: `name` is neither `vnet/subnet` nor a full id. A full id is not checked further.
    pub fn resolve_subnet(&self, name: &str) -> Result<String, String> {
        self.resolve_child("virtualNetworks", "subnets", name)
            .map_err(|_| format!("'{name}' must be written as virtual-network/subnet, or as a full id"))
    }

    /// Returns the id of the child that `name` stands for: `parent/child`, or a full id (it starts with `/`), which is
    /// returned unchanged. `parents` and `children` are collections, such as `loadBalancers` and `probes`. The names in
    /// `parent/child` must not be empty; they are not checked further.
    ///
    /// # Errors
    /// A message for the user: `name` is neither `parent/child` nor a full id. A full id is not checked further.
    pub fn resolve_child(&self, parents: &str, children: &str, name: &str) -> Result<String, String> {
        if name.starts_with('/') {
            return Ok(name.to_owned());
        }
        match name.split_once('/') {
            Some((parent, child)) if !parent.is_empty() && !child.is_empty() && !child.contains('/') => {
                Ok(format!("{}/{children}/{child}", self.item(parents, parent)))
            }
            _ => Err(format!(
                "'{name}' must be written as a name of {parents}, a slash and a name of {children}, or as a full id"
            )),
        }
    }
}

/// Returns the segment that follows the segment `name` in an id. `name` is compared case-insensitively: `segment(id,
/// "subnets")` is the name of the subnet. `None`: the id has no such segment, or none after it. If several segments
/// equal `name`, the first one counts, even if it is the name of a resource.
#[must_use]
pub fn segment<'a>(id: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = id.split('/');
    parts.find(|p| p.eq_ignore_ascii_case(name))?;
    parts.next()
}

/// Returns the last segment of an id, which is the resource's own name. Slashes at the end are ignored. A text without
/// `/` is returned unchanged.
#[must_use]
pub fn last(id: &str) -> &str {
    id.trim_end_matches('/').rsplit('/').next().unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ids_and_ids_stay() {
        let g = Group::new("s", "g");
        let id = g.resolve("virtualNetworks", "hub");
        assert_eq!(
            id,
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/hub"
        );
        assert_eq!(g.resolve("virtualNetworks", &id), id);
        assert_eq!(g.resolve_subnet("hub/a").unwrap(), format!("{id}/subnets/a"));
        assert!(g.resolve_subnet("hub").is_err());
        assert!(g.resolve_subnet("hub/a/b").is_err());
        let pool = g.resolve_child("loadBalancers", "backendAddressPools", "lb/p").unwrap();
        assert_eq!(pool, g.item("loadBalancers", "lb/backendAddressPools/p"));
        assert!(g.resolve_child("loadBalancers", "backendAddressPools", "lb").is_err());
        assert_eq!(segment(&id, "VIRTUALNETWORKS"), Some("hub"));
        assert_eq!(segment(&id, "subnets"), None);
        assert_eq!(last(&id), "hub");
    }

    #[test]
    fn names_cannot_break_out_of_a_path() {
        for good in ["hub", "GatewaySubnet", "a.b-c_d", "1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a?b", "a%2f", "-a", "a."] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
