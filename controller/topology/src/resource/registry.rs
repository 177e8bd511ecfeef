//! The registry of all kinds of top-level resources, for code that treats all kinds alike.

use super::each_kind;
use super::frame::{Child, Entry};
use super::virtual_machine::VIRTUAL_MACHINES;
use crate::path::Kind;

/// Defines [`ENTRIES`] from the list of kinds.
macro_rules! define_entries {
    ($($(#[$doc:meta])* $map:ident: $resource:ident,)*) => {
        /// Every kind of top-level resource, in the order of the registry.
        pub(crate) const ENTRIES: &[Entry] = &[$(Entry::of::<crate::resource::$resource>(),)* VIRTUAL_MACHINES];
    };
}
each_kind!(define_entries);

/// The registry entry of a kind of top-level resource. `None`: `kind` is a kind of child or the resource group.
pub(crate) fn entry(kind: Kind) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.kind == kind)
}

/// The registry entry of a kind of child. `None`: `kind` is a top-level kind or the resource group.
pub(crate) fn child(kind: Kind) -> Option<&'static Child> {
    ENTRIES
        .iter()
        .flat_map(|entry| entry.children)
        .find(|child| child.kind == Some(kind))
}
