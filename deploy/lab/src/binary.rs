//! Finds the product's programs: in the folder that `TOMBOLO_BIN_DIR` names, or near the running program.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Environment variable that contains the path of the folder with the programs. If it is set, no other folder is
/// searched.
pub const FOLDER: &str = "TOMBOLO_BIN_DIR";

/// Returns the path of one of the product's programs. If the environment variable [`FOLDER`] is set, searches only the
/// folder that it names. Otherwise searches the folder of the running program, and then the folder above. Whether the
/// file is executable is not checked. `name` is the name of the file, such as `tombolo-agent`.
///
/// # Errors
/// No searched folder has a file of this name; the message lists the folders.
pub fn find(name: &str) -> Result<PathBuf> {
    let mut tried = Vec::new();
    for folder in folders() {
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
        tried.push(folder.display().to_string());
    }
    bail!(
        "'{name}' is not in {}: build it ('cargo build --workspace --bins') or set {FOLDER}",
        tried.join(", ")
    )
}

/// Returns the folders to search, in order.
fn folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return vec![folder.into()];
    }
    let own = std::env::current_exe().unwrap_or_default();
    // Cargo puts test programs into `target/debug/deps`, one folder below the product's programs.
    own.ancestors().skip(1).take(2).map(Path::to_owned).collect()
}
