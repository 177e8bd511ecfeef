//! Where BIRD's program is, and the command line with which it is started.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Standard folders for programs, in the format of the variable PATH. The PATH of a service may lack the folders that
/// end in `sbin`.
pub(super) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Finds a program in the folders of PATH, then in those of [`SYSTEM_PATH`]. Returns its absolute path. Relative
/// entries of PATH are ignored. Whether the file is executable is not checked.
///
/// # Errors
/// The program is in none of these folders.
pub(super) fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = OsString::from(SYSTEM_PATH);
    let mut candidates = std::env::split_paths(&path).chain(std::env::split_paths(&system));
    let found = candidates.find_map(|dir| Some(dir.join(program)).filter(|p| dir.is_absolute() && p.is_file()));
    found.with_context(|| format!("program '{program}' not found: install it (Debian's package of BIRD is bird2)"))
}

/// The arguments with which BIRD runs in the foreground and uses these files. With `recovers`, BIRD starts as after a
/// graceful restart (`-R`, RFC 4724): neighbours may still keep the routes of the BIRD that ran before.
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
