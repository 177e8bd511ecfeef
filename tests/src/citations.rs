//! Finds citations in documents and code, and checks those of tests. A test is cited as `FILE::TEST`, a rule by its tag
//! (such as `P21`, see `docs/rules.md`).

use std::path::{Path, PathBuf};

/// Folders without citations: build outputs, and random inputs of tests.
const SKIPPED: [&str; 6] = [
    "target",
    ".git",
    ".venv",
    "__pycache__",
    "corpus",
    "proptest-regressions",
];

/// First letters of tags. A tag is one of these letters with a number of one or two digits, or `Meter-` with a number.
const LETTERS: &str = "PRGETNLMAXD";
const METER: &str = "Meter-";

/// The root folder of the repository: the parent of this crate's folder.
///
/// # Panics
/// Never in a checkout.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").to_path_buf()
}

/// The texts between backticks in a line, in order. After an opening backtick without a closing one, the text extends
/// to the end of the line. A line without backticks has none.
pub fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The reason why a citation, `FILE::TEST` with a path from the root, names no test that runs. None: it names one. Only
/// the attributes in the six lines above the function are read. A test with `#[ignore]` does not run. If the file has
/// several functions of this name, only the first one counts.
#[must_use]
pub fn fault_of(citation: &str) -> Option<String> {
    let Some((file, function)) = citation.split_once("::") else {
        return Some(format!("'{citation}' is not FILE::TEST"));
    };
    let Ok(source) = std::fs::read_to_string(root().join(file)) else {
        return Some(format!("there is no file {file}"));
    };
    let Some(at) = source.find(&format!("fn {function}(")) else {
        return Some(format!("there is no {function} in {file}"));
    };
    // A line with `}` ends the previous function, whose attributes do not count.
    let above = source[..at].lines().rev().take(6);
    let before: Vec<&str> = above.take_while(|line| line.trim() != "}").collect();
    if !before.iter().any(|l| l.contains("#[test]") || l.contains("::test")) {
        return Some(format!("{function} in {file} is not a test"));
    }
    if before.iter().any(|l| l.contains("#[ignore")) {
        return Some(format!("{function} in {file} is ignored, so it proves nothing"));
    }
    None
}

/// Reads a word as a tag, without the letter of a part: `P21d` is `P21`.
fn tag_of(word: &str) -> Option<&str> {
    let word = word.strip_suffix(['a', 'b', 'c', 'd']).unwrap_or(word);
    let number = word.strip_prefix(|c: char| LETTERS.contains(c))?;
    let is_number = matches!(number.len(), 1 | 2) && number.bytes().all(|b| b.is_ascii_digit());
    (is_number && !number.starts_with('0')).then_some(word)
}

/// The tags that a line of text or code cites. First come the tags with one letter, in the order of the line, then the
/// tags with `Meter-`. A tag that is cited twice is returned twice. All characters but ASCII letters, digits and `_`
/// separate words.
#[must_use]
pub fn tags_in(line: &str) -> Vec<String> {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let mut tags: Vec<String> = words.filter_map(tag_of).map(ToOwned::to_owned).collect();
    for after in line.split(METER).skip(1) {
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        if digits > 0 {
            tags.push(format!("{METER}{}", &after[..digits]));
        }
    }
    tags
}

/// The tags in the name of the function that a line of code defines: `P13` and `P14` in `p13_p14_states`. A line
/// without `fn ` has none.
#[must_use]
pub fn tags_of_function(line: &str) -> Vec<String> {
    let Some((_, after)) = line.split_once("fn ") else {
        return Vec::new();
    };
    let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let name = &after[..end.unwrap_or(after.len())];
    let upper = |word: &str| {
        let first = word.get(..1)?;
        let word = first.to_ascii_uppercase() + &word[1..];
        (first.bytes().all(|b| b.is_ascii_lowercase())).then(|| tag_of(&word).map(ToOwned::to_owned))?
    };
    name.split('_').filter_map(upper).collect()
}

/// The path from the root and the text of each UTF-8 file below the root that may cite something, ordered by path.
/// Build outputs, folders with random inputs of tests, `.git`, symbolic links and `Cargo.lock` are left out.
///
/// # Panics
/// If a folder cannot be read.
#[must_use]
pub fn texts() -> Vec<(String, String)> {
    let root = root();
    let mut all = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries.map(|e| e.expect("an entry")) {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("its type");
            if kind.is_dir() {
                if !SKIPPED.iter().any(|s| name == *s) {
                    folders.push(path);
                }
            } else if kind.is_file()
                && name != "Cargo.lock"
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let path = path.strip_prefix(&root).expect("below the root");
                all.push((path.display().to_string(), text));
            }
        }
    }
    all.sort();
    all
}
