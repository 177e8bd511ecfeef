//! ARM JSON in and out: reading request bodies with exact complaints, and the bodies that clients get.

pub(crate) mod bgp;
pub(crate) mod body;
pub(crate) mod list;
pub(crate) mod status;
pub(crate) mod view;
