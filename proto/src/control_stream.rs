//! The messages of the control stream, generated from `tombolo/v1/control.proto`.

pub use generated::*;

#[allow(warnings, clippy::all, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tombolo.v1.rs"));
}
