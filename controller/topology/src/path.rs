//! ARM resource paths, re-exported from [`tombolo_proto::arm`].

pub(crate) use tombolo_proto::arm::shown;
pub use tombolo_proto::arm::{ArmPath, Kind, child_id, is_child_of, parent_id};
