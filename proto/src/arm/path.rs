//! ARM resource paths, e.g. `/subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.Network/virtualNetworks/{v}/subnets/{n}`.

use super::{Kind, PROVIDERS};
use crate::id::ResourceId;

/// A parsed resource id. The fixed segments are stored in Azure's casing, and names in the casing in which they were
/// written. Comparison ignores case.
#[derive(Debug, Clone)]
pub struct ArmPath {
    /// The subscription's id.
    pub subscription: String,
    /// The resource group's name.
    pub resource_group: String,
    /// The resource provider, e.g. `Microsoft.Network`. It need not be a known provider. `None` for a resource group.
    pub provider: Option<String>,
    /// Pairs of type and name from the top down, e.g. `[("virtualNetworks", "v"), ("subnets", "n")]`.
    pub segments: Vec<(String, String)>,
}

impl ArmPath {
    /// Parses the resource id of an item, of at most 2048 bytes without the `/` at its start and end. A trailing `/` is
    /// accepted. Names and type are not checked: [`kind`](Self::kind) tells whether the type is known, and
    /// [`check_name`](super::check_name) whether a name is valid.
    ///
    /// # Errors
    /// The text is not the path of a resource group or of an item in one, is too long, or has a blank segment or a
    /// control character. The error is a sentence that quotes the text and says what is wrong with it.
    pub fn parse(path: &str) -> Result<Self, String> {
        let fail = |why: &str| Err(format!("'{}' is not a resource id: {why}", shown(path)));
        let inner = path.strip_suffix('/').unwrap_or(path);
        let Some(inner) = inner.strip_prefix('/') else {
            return fail("it must start with '/subscriptions/'");
        };
        if inner.len() > 2048 {
            return fail("it is longer than 2048 characters");
        }
        if inner.chars().any(char::is_control) {
            return fail("it has control characters");
        }
        let parts: Vec<&str> = inner.split('/').collect();
        if parts.iter().any(|part| part.trim().is_empty()) {
            return fail("a segment is empty");
        }
        let [subscriptions, subscription, groups, group, rest @ ..] = parts.as_slice() else {
            return fail("it must start with '/subscriptions/{subscription}/resourceGroups/{group}'");
        };
        if !subscriptions.eq_ignore_ascii_case("subscriptions") || !groups.eq_ignore_ascii_case("resourceGroups") {
            return fail("it must start with '/subscriptions/{subscription}/resourceGroups/{group}'");
        }
        let mut parsed = Self {
            subscription: (*subscription).to_owned(),
            resource_group: (*group).to_owned(),
            provider: None,
            segments: Vec::new(),
        };
        let [providers, provider, rest @ ..] = rest else {
            return if rest.is_empty() {
                Ok(parsed)
            } else {
                fail("the group must be followed by '/providers/{provider}/{type}/{name}'")
            };
        };
        if !providers.eq_ignore_ascii_case("providers") || rest.is_empty() || rest.len() % 2 != 0 {
            return fail("the group must be followed by '/providers/{provider}' and pairs of type and name");
        }
        let types: Vec<&str> = rest.iter().step_by(2).copied().collect();
        let names = rest.iter().skip(1).step_by(2);
        let (provider, types) = canonical(provider, &types);
        parsed.provider = Some(provider);
        parsed.segments = types.into_iter().zip(names.map(|n| (*n).to_owned())).collect();
        Ok(parsed)
    }

    /// The resource id, with Azure's casing of fixed segments and without a trailing `/`.
    #[must_use]
    pub fn id(&self) -> ResourceId {
        let mut id = format!(
            "/subscriptions/{}/resourceGroups/{}",
            self.subscription, self.resource_group
        );
        if let Some(provider) = &self.provider {
            id.push_str("/providers/");
            id.push_str(provider);
        }
        for (kind, name) in &self.segments {
            id.push('/');
            id.push_str(kind);
            id.push('/');
            id.push_str(name);
        }
        ResourceId::new(id)
    }

    /// The kind of the item; `None` if the provider or the type is unknown.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match &self.provider {
            None => Some(Kind::ResourceGroup),
            Some(provider) => Kind::of(provider, &self.types()),
        }
    }

    /// The name of the item, i.e. of the resource or of the resource group.
    #[must_use]
    pub fn name(&self) -> &str {
        self.segments.last().map_or(&self.resource_group, |(_, name)| name)
    }

    /// The type path without the provider, e.g. `virtualNetworks/subnets`. Empty for a resource group.
    #[must_use]
    pub fn types(&self) -> String {
        let types: Vec<&str> = self.segments.iter().map(|(kind, _)| kind.as_str()).collect();
        types.join("/")
    }

    /// The resource id of the resource group that contains the item.
    #[must_use]
    pub fn group_id(&self) -> ResourceId {
        ResourceId::new(format!(
            "/subscriptions/{}/resourceGroups/{}",
            self.subscription, self.resource_group
        ))
    }

    /// The item that this one is a child of; `None` for a top-level resource and for a resource group.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        (self.segments.len() > 1).then(|| Self {
            segments: self.segments[..self.segments.len() - 1].to_vec(),
            ..self.clone()
        })
    }
}

impl PartialEq for ArmPath {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}
impl Eq for ArmPath {}

/// The id of the item that `id` is a child of: `id` without its last type and name. The function does not check whether
/// `id` has a parent. For the id of a resource group, for instance, it returns the path of the subscription. A text
/// with fewer than two `/` gives an empty id.
#[must_use]
pub fn parent_id(id: &ResourceId) -> ResourceId {
    let text = id.as_str();
    let cut = |text: &str| text.rfind('/').unwrap_or(0);
    let without_name = &text[..cut(text)];
    ResourceId::new(&without_name[..cut(without_name)])
}

/// Whether `id` names a direct child of `parent`, i.e. consists of `parent` (compared case-insensitively) and one more
/// type and name.
#[must_use]
pub fn is_child_of(id: &ResourceId, parent: &ResourceId) -> bool {
    let (id, parent) = (id.as_str().as_bytes(), parent.as_str().as_bytes());
    id.len() > parent.len()
        && id[parent.len()] == b'/'
        && id[parent.len()..].iter().filter(|b| **b == b'/').count() == 2
        && id[..parent.len()].eq_ignore_ascii_case(parent)
}

/// The resource id of the child with this type, e.g. `subnets`, and this name. Neither is checked.
#[must_use]
pub fn child_id(parent: &ResourceId, kind: &str, name: &str) -> ResourceId {
    ResourceId::new(format!("{parent}/{kind}/{name}"))
}

/// The provider and the types in Azure's casing. Unknown ones keep their casing.
fn canonical(provider: &str, types: &[&str]) -> (String, Vec<String>) {
    let known = PROVIDERS.into_iter().find(|k| k.eq_ignore_ascii_case(provider));
    let mut result: Vec<String> = types.iter().map(|t| (*t).to_owned()).collect();
    for depth in 1..=types.len() {
        let joined = types[..depth].join("/");
        if let Some(found) = Kind::of(provider, &joined) {
            for (slot, part) in result.iter_mut().zip(found.types().split('/')) {
                part.clone_into(slot);
            }
        }
    }
    (known.unwrap_or(provider).to_owned(), result)
}

/// The first 300 characters of a text from outside, for use in a message. A longer text ends with `…`. Control
/// characters stay.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_segments_become_canonical_and_names_stay() {
        let path = ArmPath::parse(
            "/SUBSCRIPTIONS/S/resourcegroups/Rg/PROVIDERS/microsoft.network/VIRTUALNETWORKS/Hub/SUBNETS/gatewaysubnet/",
        )
        .unwrap();
        assert_eq!(
            path.id().as_str(),
            "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.Network/virtualNetworks/Hub/subnets/gatewaysubnet"
        );
        assert_eq!(path.kind(), Some(Kind::Subnet));
        assert_eq!(path.parent().unwrap().kind(), Some(Kind::VirtualNetwork));
        assert_eq!(parent_id(&path.id()), path.parent().unwrap().id());
        let parent = ResourceId::new(parent_id(&path.id()).key());
        assert!(is_child_of(&path.id(), &parent));
        assert!(!is_child_of(&parent, &parent) && !is_child_of(&parent_id(&parent), &parent));
        assert!(!is_child_of(&child_id(&path.id(), "x", "y"), &parent));
        assert!(!is_child_of(&ResourceId::new(format!("{parent}2/subnets/s")), &parent));
        let publics =
            ArmPath::parse("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/publicIpAddresses/p");
        assert_eq!(publics.unwrap().segments[0].0, "publicIPAddresses");
    }

    #[test]
    fn groups_and_unknown_types_parse() {
        let group = ArmPath::parse("/subscriptions/s/resourcegroups/g").unwrap();
        assert_eq!((group.kind(), group.name()), (Some(Kind::ResourceGroup), "g"));
        let other = ArmPath::parse("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/circuits/c").unwrap();
        assert_eq!(other.kind(), None);
    }

    #[test]
    fn malformed_paths_are_refused() {
        for bad in [
            "",
            "/",
            "x",
            "/subscriptions/s",
            "/subscriptions/s/resourceGroups",
            "/subscriptions//resourceGroups/g",
            "/subscriptions/s/groups/g",
            "/subscriptions/s/resourceGroups/g/providers",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks",
            "/subscriptions/s/resourceGroups/g/x/Microsoft.Network/virtualNetworks/v",
            "/subscriptions/s/resourceGroups/g\u{0}",
        ] {
            assert!(ArmPath::parse(bad).is_err(), "{bad}");
        }
    }
}
