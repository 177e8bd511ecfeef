//! Golden files: the recorded formats of all data that leaves a process, on the wire, on disk or on a terminal.
//!
//! Most JSON names derive from Rust names (`rename_all`), so renaming a field could change a format unnoticed in review. A test
//! builds a value, and [`Golden`] compares its JSON with a file below `CRATE/tests/golden`.
//!
//! # How to write such a test
//! * Construct structs without `..Default::default()`: a new field then fails to compile until a value is recorded.
//! * List enums with [`every_variant!`] or [`all_of!`]: a new variant then fails to compile until it is recorded.
//! * Record a value with every optional field, and one with none.
//! * `tests/tests/golden.rs` finds types that derive `Serialize` or `Deserialize` and occur in no golden test.
//!
//! # When a test fails
//! The message shows the difference. For an unintended change, keep the name with `#[serde(rename = "…")]`. For an
//! intended change, run the test with `TOMBOLO_GOLDEN=write`, which rewrites the file; the file's diff shows reviewers
//! the new format. Some tests read files that a test of another crate writes (the client reads answers of the
//! controller). After an intended change run the rewriting command twice, because the reader may run before the writer.
//!
//! # Why not insta
//! These tests read golden files back, to prove that stored documents stay readable. insta only compares, and its
//! review tool is another program to install. This crate needs only a comparison and a diff, which `similar` makes.

mod names;

pub use names::{metrics_of, options_of};

use serde::de::DeserializeOwned;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable that, set to `write`, rewrites golden files instead of comparing.
pub const VARIABLE: &str = "TOMBOLO_GOLDEN";

/// The golden files of one crate. If the variable [`VARIABLE`] is `write` when the [`Golden`] is created, the methods
/// that compare write the file instead, and create the folder if it is missing.
#[derive(Debug, Clone)]
pub struct Golden {
    folder: PathBuf,
    rewrite: bool,
}

/// The [`Golden`] files of the crate that calls the macro.
#[macro_export]
macro_rules! golden {
    () => {
        $crate::Golden::of(env!("CARGO_MANIFEST_DIR"))
    };
}

/// Panics unless `values`, an iterator of references, holds a value of every variant of an enum. A variant of the enum that
/// the call does not list makes the call fail to compile.
#[macro_export]
macro_rules! every_variant {
    ($type:ident { $($variant:ident),+ $(,)? }, $values:expr) => {{
        fn name(value: &$type) -> &'static str {
            match value {
                $($type::$variant { .. } => stringify!($variant),)+
            }
        }
        let seen: ::std::collections::BTreeSet<&str> = $values.into_iter().map(name).collect();
        for variant in [$(stringify!($variant)),+] {
            assert!(
                seen.contains(variant),
                "no golden value is {}::{variant}: add one",
                stringify!($type)
            );
        }
    }};
}

/// A vector with every value of an enum whose variants have no fields, in the listed order. A variant that the call does
/// not list makes the call fail to compile.
#[macro_export]
macro_rules! all_of {
    ($type:ident { $($variant:ident),+ $(,)? }) => {{
        let all = vec![$($type::$variant),+];
        $crate::every_variant!($type { $($variant),+ }, &all);
        all
    }};
}

/// Values of one type, each with the name of its case. They are written as one JSON object with these names as keys, in
/// this order.
struct Cases<'a, T>(&'a [(&'a str, T)]);

impl<T: Serialize> Serialize for Cases<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Writes a value as indented JSON. Fields keep their order, because the order is part of the format: an agent compares
/// digests of its configuration's bytes.
fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|e| panic!("a golden value cannot be written: {e}"));
    text + "\n"
}

impl Golden {
    /// The golden files in `tests/golden` of the crate with this folder. [`golden!`] calls it.
    #[must_use]
    pub fn of(manifest_dir: &str) -> Self {
        Self {
            folder: Path::new(manifest_dir).join("tests/golden"),
            rewrite: std::env::var_os(VARIABLE).is_some_and(|v| v == "write"),
        }
    }

    /// Compares the JSON of a value with `NAME.json`, and reads the file back. For values that programs both write and
    /// read.
    ///
    /// # Panics
    /// If the file is missing or differs, if the type cannot read the file, or if the value that was read from the file
    /// gives another JSON text when it is written.
    pub fn document<T: Serialize + DeserializeOwned>(&self, name: &str, value: &T) {
        let text = pretty(value);
        self.compare(&format!("{name}.json"), &text);
        // The two values are compared as text, because ids compare case-insensitively and some types do not implement
        // `PartialEq`.
        let again = pretty(&self.read::<T>(name));
        self.require_equal(name, &text, &again);
    }

    /// Compares values of one type with `NAME.json`, one JSON object whose keys are the names of the cases, and reads the
    /// file back.
    ///
    /// # Panics
    /// As for [`Self::document`].
    pub fn cases<T: Serialize + DeserializeOwned>(&self, name: &str, cases: &[(&str, T)]) {
        let text = pretty(&Cases(cases));
        self.compare(&format!("{name}.json"), &text);
        let mut read: BTreeMap<String, T> = self.read(name);
        let again: Vec<(&str, T)> = cases
            .iter()
            .map(|(case, _)| {
                (
                    *case,
                    read.remove(*case)
                        .unwrap_or_else(|| panic!("{name}.json: no case '{case}'")),
                )
            })
            .collect();
        self.require_equal(name, &text, &pretty(&Cases(&again)));
    }

    /// Compares values of one type with `NAME.json` as [`Self::cases`] does, but does not read the file back. For
    /// values that programs write but never read: no type of the calling crate can read them.
    ///
    /// # Panics
    /// If the file is missing or differs.
    pub fn written<T: Serialize>(&self, name: &str, cases: &[(&str, T)]) {
        self.compare(&format!("{name}.json"), &pretty(&Cases(cases)));
    }

    /// Compares text with a file of the golden folder, byte by byte.
    ///
    /// # Panics
    /// If the file is missing or differs.
    pub fn text(&self, file: &str, text: &str) {
        self.compare(file, text);
    }

    /// Reads `NAME.json` without comparing: a document of an earlier version, or one that another program writes.
    ///
    /// # Panics
    /// If the file is missing, or its JSON is no value of the type.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> T {
        let path = self.folder.join(format!("{name}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|e| {
            panic!(
                "{} cannot be read any more: {e}.\nFiles and messages of this form exist. Read the old name as well, \
                 with #[serde(alias = \"…\")], or add #[serde(default)] to a new field.",
                path.display()
            )
        })
    }

    fn require_equal(&self, name: &str, written: &str, again: &str) {
        assert!(
            written == again,
            "{}/{name}.json is read back as another value:\n\n{}",
            self.folder.display(),
            difference(written, again, "as recorded", "as read back")
        );
    }

    fn compare(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        if self.rewrite {
            fs::create_dir_all(&self.folder).unwrap_or_else(|e| panic!("{}: {e}", self.folder.display()));
            fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            return;
        }
        let recorded = match fs::read_to_string(&path) {
            Ok(recorded) => recorded,
            Err(e) => panic!("{} cannot be read: {e}.\nRecord it:\n    {}", path.display(), command()),
        };
        assert!(
            recorded == text,
            "{} is not what the program writes now:\n\n{}\n\
             Other programs, other versions, files on disk and people's scripts use the recorded form. If the change is not \
             wanted, keep the\nrecorded name with #[serde(rename = \"…\")]. If it is wanted, make sure that the recorded form \
             can still be read, note the change\nin CHANGELOG.md, and rewrite the file:\n    {}",
            path.display(),
            difference(&recorded, text, "recorded", "written now"),
            command()
        );
    }
}

/// The command that rewrites the running test's files. It contains the name of the current thread, which the test
/// harness sets to the name of the test.
fn command() -> String {
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("golden");
    format!("{VARIABLE}=write cargo test --locked --workspace {test}")
}

fn difference(before: &str, after: &str, before_name: &str, after_name: &str) -> String {
    similar::TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(4)
        .header(before_name, after_name)
        .to_string()
}

#[cfg(test)]
mod tests;
