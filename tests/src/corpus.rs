//! Recorded inputs of fuzz targets. The target NAME replays each file of `tests/corpus/NAME`.

use std::path::PathBuf;

/// The file names and contents of a target's recorded inputs, ordered by name: all files of the folder
/// `tests/corpus/TARGET` of the repository, which must have no subfolders.
///
/// # Panics
/// If the folder or a file cannot be read, or the folder is empty. Otherwise a target without recorded inputs would
/// replay nothing, and nobody would notice.
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

/// Calls `check` with each recorded input of a target, ordered by name. If `check` panics, the input's name is printed.
/// Nothing else is printed, because a fuzzer that asks this program for its target expects no other output.
///
/// # Panics
/// As [`corpus`] does, and if `check` panics.
pub fn replay(target: &str, check: &mut impl FnMut(&[u8])) {
    struct Name<'a>(&'a str, String);
    impl Drop for Name<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed: corpus/{}/{}", self.0, self.1);
            }
        }
    }
    for (name, bytes) in corpus(target) {
        let _name = Name(target, name);
        check(&bytes);
    }
}

/// Applies the edits that the input encodes. Each edit has three bytes: two for the place and one for the new value. A
/// single last byte is the number of bytes to cut off. `good` must not be empty.
#[must_use]
pub fn edit(good: &[u8], input: &[u8]) -> Vec<u8> {
    let mut out = good.to_vec();
    for change in input.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % out.len();
        out[at] = change[2];
    }
    if let [cut] = input.chunks_exact(3).remainder() {
        out.truncate(out.len().saturating_sub(usize::from(*cut)));
    }
    out
}

/// Replays the corpus of a target, then checks bolero's inputs: 20,000 random ones of up to 4,096 bytes, or those of a fuzzer.
///
/// This is a macro because `bolero::check!` derives the identity of a fuzz target from the place of the call in the
/// source. In a shared function, all targets would have one identity.
#[macro_export]
macro_rules! fuzz {
    ($target:expr, $check:expr $(,)?) => {{
        let mut check = $check;
        $crate::corpus::replay($target, &mut check);
        ::bolero::check!()
            .with_iterations(20_000)
            .with_max_len(4096)
            .for_each(check);
    }};
}
