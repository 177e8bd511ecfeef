//! `tombolo lab`: a whole topology on this machine. Everything is the lab's own.

pub(crate) use tombolo_lab::cli::{LabArgs as Lab, run};
