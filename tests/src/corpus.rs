//! Inputs that are kept: each file of `tests/corpus/NAME` is replayed by the fuzz target of that name.

use std::path::PathBuf;

/// The kept inputs of a target, in order of their names.
///
/// # Panics
/// If the folder cannot be read or is empty: a target without a corpus replays nothing.
#[must_use]
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut out: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    out.sort();
    assert!(!out.is_empty(), "{} is empty", folder.display());
    out
}

/// Replays the corpus, then lets bolero make inputs.
pub fn fuzz(target: &str, mut check: impl FnMut(&[u8]) + std::panic::RefUnwindSafe + std::panic::UnwindSafe) {
    for (name, bytes) in corpus(target) {
        println!("{target}/{name}");
        check(&bytes);
    }
    bolero::check!()
        .with_iterations(20_000)
        .with_max_len(4096)
        .for_each(check);
}
