//! BIRD's program and the arguments that it gets.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where programs are that a service's PATH may not name.
pub(super) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Finds a program on PATH or in the system's folders. Returns its absolute path.
pub(super) fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = OsString::from(SYSTEM_PATH);
    let mut candidates = std::env::split_paths(&path).chain(std::env::split_paths(&system));
    let found = candidates.find_map(|dir| Some(dir.join(program)).filter(|p| dir.is_absolute() && p.is_file()));
    found.with_context(|| {
        format!("{program}: no such program on this host: install it (Debian's package for BIRD is bird2)")
    })
}

/// BIRD's arguments. `recovers`: BIRD was there a moment ago, and its neighbours keep its routes (RFC 4724).
pub(super) fn bird_arguments(config: &Path, socket: &Path, pid: &Path, recovers: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-f".into()];
    for (option, path) in [("-c", config), ("-s", socket), ("-P", pid)] {
        arguments.extend([option.into(), path.into()]);
    }
    if recovers {
        arguments.push("-R".into());
    }
    arguments
}
