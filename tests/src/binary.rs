//! Finds the built programs, which lie beside the test's own binary.

use std::path::PathBuf;

/// The path of a program of the workspace.
///
/// # Panics
/// If it has not been built.
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
