//! Parts of command lines that the lab prints for a person to copy.

use std::path::Path;

/// Returns the command `tombolo lab` with the path of this program: with `sudo` before the path if this program was
/// called with sudo, and with `--lab-dir` at the end if `dir` is set.
pub(crate) fn command(dir: Option<&Path>) -> String {
    let dir = dir.map(|d| format!(" --lab-dir {}", d.display()));
    format!("{} lab{}", program(), dir.unwrap_or_default())
}

/// Returns the path of this program, with `sudo` before the path if the program was called with sudo. `tombolo` if the
/// path is unknown.
pub(crate) fn program() -> String {
    let own = std::env::current_exe();
    format!(
        "{}{}",
        sudo(),
        own.map_or("tombolo".to_owned(), |p| p.display().to_string())
    )
}

/// Returns `sudo` and a space if this program was called with sudo, otherwise an empty text.
pub(crate) fn sudo() -> &'static str {
    if std::env::var_os("SUDO_USER").is_some() {
        "sudo "
    } else {
        ""
    }
}
