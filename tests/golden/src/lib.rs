//! Golden files: the recorded formats of all data that leaves a process, on the wire, on disk or on a terminal.
//!
//! Most JSON names derive from Rust names (`rename_all`), so renaming a field could change a format unnoticed in review. A test builds a value, and [`Golden`] compares its JSON with a file below `CRATE/tests/golden`.
//!
//! # How to write such a test
//! * Construct structs without `..Default::default()`: a new field then fails to compile until a value is recorded.
//! * List enums with [`every_variant!`] or [`all_of!`]: a new variant then fails to compile until it is recorded.
//! * Record a value with every optional field, and one with none.
//! * `tests/tests/golden.rs` finds types that derive `Serialize` or `Deserialize` and occur in no golden test.
//!
//! # When a test fails
//! The message shows the difference. For an unintended change, keep the name with `#[serde(rename = "…")]`. For an intended
//! one, `TOMBOLO_GOLDEN=write` rewrites the file, and its diff shows reviewers the new format.
//! Some tests read files of another crate (a client the answers of the controller): after an intended change, write twice.
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

/// The golden files of one crate.
#[derive(Debug, Clone)]
pub struct Golden {
    folder: PathBuf,
    rewrite: bool,
}

/// The golden files of the crate that calls it.
#[macro_export]
macro_rules! golden {
    () => {
        $crate::Golden::of(env!("CARGO_MANIFEST_DIR"))
    };
}

/// Panics unless `values`, an iterator of references, holds every variant. A variant that is not listed fails to compile.
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

/// Every value of an enum whose variants have no fields. A variant that is not listed fails to compile.
#[macro_export]
macro_rules! all_of {
    ($type:ident { $($variant:ident),+ $(,)? }) => {{
        let all = vec![$($type::$variant),+];
        $crate::every_variant!($type { $($variant),+ }, &all);
        all
    }};
}

/// Values by the name of their case, in order: one JSON object.
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

/// Fields keep the order in which they are written: an agent compares digests of its configuration's bytes.
fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|e| panic!("a golden value cannot be written: {e}"));
    text + "\n"
}

impl Golden {
    /// The golden files of a crate, by its folder; see [`golden!`].
    #[must_use]
    pub fn of(manifest_dir: &str) -> Self {
        Self {
            folder: Path::new(manifest_dir).join("tests/golden"),
            rewrite: std::env::var_os(VARIABLE).is_some_and(|v| v == "write"),
        }
    }

    /// Compares a value that programs write and read with `NAME.json`, and reads the file back.
    ///
    /// # Panics
    /// If the two differ, or if the value that was read back is written differently.
    pub fn document<T: Serialize + DeserializeOwned>(&self, name: &str, value: &T) {
        let text = pretty(value);
        self.compare(&format!("{name}.json"), &text);
        // Compared as text: ids compare case-insensitively, and some types have no comparison.
        let again = pretty(&self.read::<T>(name));
        self.require_equal(name, &text, &again);
    }

    /// Compares values of one type, by the names of their cases, with `NAME.json`, and reads the file back.
    ///
    /// # Panics
    /// If the two differ, or if a value that was read back is written differently.
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

    /// Compares values that programs only write with `NAME.json`: no type of this crate reads them.
    ///
    /// # Panics
    /// If the two differ.
    pub fn written<T: Serialize>(&self, name: &str, cases: &[(&str, T)]) {
        self.compare(&format!("{name}.json"), &pretty(&Cases(cases)));
    }

    /// Compares text with a file.
    ///
    /// # Panics
    /// If the two differ.
    pub fn text(&self, file: &str, text: &str) {
        self.compare(file, text);
    }

    /// Reads `NAME.json`: a document of an earlier version, or one that another program writes.
    ///
    /// # Panics
    /// If it is missing, or the type does not accept it.
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

/// The command that rewrites the running test's files. The test harness names threads after tests.
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
