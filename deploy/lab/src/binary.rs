//! Finds the product's programs: in `TOMBOLO_BIN_DIR`, or beside the running program.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The variable that names the folder of the programs.
pub const FOLDER: &str = "TOMBOLO_BIN_DIR";

/// Returns the path of a program.
///
/// # Errors
/// The program does not exist; the message lists the folders that were searched.
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

fn folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return vec![folder.into()];
    }
    let own = std::env::current_exe().unwrap_or_default();
    // Cargo puts test programs into `deps`, one folder below the others.
    own.ancestors().skip(1).take(2).map(Path::to_owned).collect()
}
