//! The environment in which stock clients of Azure run.

use crate::binary::binary;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program that prepares an environment.
///
/// # Panics
/// With the program's output, if it fails.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

/// The Python program of a virtual environment with the client of `sdk/requirements.txt`. Creates the environment beside
/// the built programs at the first call, and again if `requirements.txt` has changed; both need the network.
///
/// # Panics
/// If the environment cannot be created.
#[must_use]
pub fn python() -> PathBuf {
    let built = binary("tombolo-controller");
    let folder = built.parent().expect("build folder").join("sdk-venv");
    let python = folder.join("bin/python");
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/requirements.txt");
    let stamp = folder.join("requirements.txt");
    let wanted = std::fs::read(&requirements).expect("requirements");
    // The environment's Python is a symbolic link to the system's Python, which an upgrade may have removed. `exists`
    // follows the link, and then is false.
    if python.exists() && std::fs::read(&stamp).is_ok_and(|done| done == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(quiet).arg(&requirements));
    std::fs::write(stamp, wanted).expect("stamp");
    python
}
