//! ARM JSON: reading request bodies with precise errors, and writing the bodies that clients get.

pub(crate) mod bgp;
pub(crate) mod body;
pub(crate) mod list;
pub(crate) mod status;
pub(crate) mod view;
