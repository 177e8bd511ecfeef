//! `tombolo lab`: runs a whole topology on this machine. The crate `tombolo-lab` implements it.

pub(crate) use tombolo_lab::cli::{LabArgs as Lab, run};
