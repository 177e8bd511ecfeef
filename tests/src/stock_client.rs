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

/// The Python program of a virtual environment with the client of `sdk/requirements.txt`.
///
/// # Panics
/// If the environment cannot be created.
#[must_use]
pub fn python() -> PathBuf {
    environment("sdk-venv", "sdk/requirements.txt").join("python")
}

/// The program `az` of a virtual environment with the client of `sdk/azure-cli/requirements.txt`.
///
/// # Panics
/// If the environment cannot be created.
#[must_use]
pub fn azure_cli() -> PathBuf {
    environment("az-venv", "sdk/azure-cli/requirements.txt").join("az")
}

/// The folder of the programs of a virtual environment. Creates the environment `name` beside the built programs at the
/// first call, and again if the file `requirements` of this package has changed; both need the network.
fn environment(name: &str, requirements: &str) -> PathBuf {
    let built = binary("tombolo-controller");
    let folder = built.parent().expect("build folder").join(name);
    let programs = folder.join("bin");
    let python = programs.join("python");
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join(requirements);
    let stamp = folder.join("requirements.txt");
    let wanted = std::fs::read(&requirements).expect("requirements");
    // The environment's Python is a symbolic link to the system's Python, which an upgrade may have removed. `exists`
    // follows the link, and then is false.
    if python.exists() && std::fs::read(&stamp).is_ok_and(|done| done == wanted) {
        return programs;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    // Most of the modules are never used, and need no byte code.
    let quiet = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        "-r",
    ];
    run(Command::new(&python).args(quiet).arg(&requirements));
    std::fs::write(stamp, wanted).expect("stamp");
    programs
}
