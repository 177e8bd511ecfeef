//! The one thing that an agent changes on its host outside its own device, table and rules, and how it is undone.
//!
//! Linux sends ICMP redirects on a device if that device *or* `all` says so. An appliance forwards out of the device
//! that a packet came in on, so it would send one for every packet (D23 forbids it). Setting `all` to 0 leaves every
//! other device to its own switch, which is on unless somebody turned it off.

use crate::state::{StateDir, file};
use anyhow::Result;
use std::fs;

const ALL: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

/// Lets devices decide for themselves about redirects; remembers to undo it.
///
/// # Errors
/// The note cannot be written; nothing was changed then.
pub fn quiet_redirects(state: &StateDir) -> Result<()> {
    let before = fs::read_to_string(ALL).unwrap_or_default();
    if before.trim() != "1" {
        return Ok(());
    }
    state.write(file::HOST, br#"{"allSendRedirects":true}"#)?;
    if let Err(e) = fs::write(ALL, "0") {
        tracing::warn!(path = ALL, error = %e, "this host will send ICMP redirects while it forwards");
    }
    Ok(())
}

/// Undoes [`quiet_redirects`] if it was done.
///
/// # Errors
/// The note cannot be removed.
pub fn restore(state: &StateDir) -> Result<bool> {
    if state.read(file::HOST)?.is_none() {
        return Ok(false);
    }
    if let Err(e) = fs::write(ALL, "1") {
        tracing::warn!(path = ALL, error = %e, "switch not restored");
    }
    state.remove(file::HOST)?;
    Ok(true)
}
