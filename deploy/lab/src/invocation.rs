//! Command lines for a person to copy.

use std::path::Path;

/// `tombolo lab` as this person has to write it: with `sudo` if that is how they came here, and with the folder if it
/// is not the usual one.
pub(crate) fn command(dir: Option<&Path>) -> String {
    let dir = dir.map(|d| format!(" --lab-dir {}", d.display()));
    format!("{} lab{}", program(), dir.unwrap_or_default())
}

/// This program, with `sudo` if it was called so.
pub(crate) fn program() -> String {
    let own = std::env::current_exe();
    format!(
        "{}{}",
        sudo(),
        own.map_or("tombolo".to_owned(), |p| p.display().to_string())
    )
}

/// `sudo `, or nothing.
pub(crate) fn sudo() -> &'static str {
    if std::env::var_os("SUDO_USER").is_some() {
        "sudo "
    } else {
        ""
    }
}
