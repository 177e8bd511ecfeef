//! Finds the built programs. These programs lie one folder above the test's own binary, which cargo builds in
//! `target/PROFILE/deps`.

use std::path::PathBuf;

/// The path of a program of the workspace, from the profile that the test was built with. It may be older than the
/// source: nothing is built here. `name` is the name of the program's file, such as `tombolo-agent`.
///
/// # Panics
/// If the program has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("own path: {e}"));
    // target/debug/deps/test-0123 → target/debug/NAME
    let folder = test.parent().and_then(|deps| deps.parent()).map(PathBuf::from);
    let path = folder.unwrap_or_default().join(name);
    assert!(
        path.is_file(),
        "{} is not built: `make build`, or `cargo build --workspace --bins`",
        path.display()
    );
    path
}
