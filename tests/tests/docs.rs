//! All files, paths and functions that the documents link or cite exist, and so do the tests that `docs/security.md` names
//! for each finding. `tests/tests/rules.rs` checks `docs/rules`.

use std::path::Path;
use tombolo_tests::citations::{fault_of, quoted, root, texts};

/// Folders of the repository. Text in backticks that begins with one of these folders is a path.
const FOLDERS: [&str; 6] = ["agent/", "controller/", "proto/", "deploy/", "tests/", ".ci/"];
/// Keywords that introduce a named item in Rust or Python.
const KEYWORDS: [&str; 9] = ["fn", "struct", "enum", "trait", "const", "type", "mod", "def", "class"];

/// Reads the rows of a document's tables of three columns whose first column satisfies `is_key`. The third column names
/// tests, each as FILE::TEST. Returns the number of rows, and the faults in them.
fn cited_tests(document: &str, is_key: impl Fn(&str) -> bool) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
    let mut rows = 0;
    let mut wrong = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, _, tests, _] = cells[..] else { continue };
        if !is_key(key) {
            continue;
        }
        rows += 1;
        if quoted(tests).next().is_none() {
            wrong.push(format!("{key}: no test"));
        }
        wrong.extend(
            quoted(tests)
                .filter_map(fault_of)
                .map(|fault| format!("{key}: {fault}")),
        );
    }
    (rows, wrong)
}

#[test]
fn every_finding_of_security_names_a_test_that_exists() {
    let is_number = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
    let (findings, wrong) = cited_tests("docs/security.md", is_number);
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
    assert!(findings >= 10, "only {findings} findings");
}

/// All documents, with their paths from the root.
fn documents() -> impl Iterator<Item = (String, String)> {
    let is_document = |path: &str| Path::new(path).extension().is_some_and(|e| e == "md");
    texts().into_iter().filter(move |(path, _)| is_document(path))
}

/// Checks text in backticks, and returns what is wrong with it as a citation. A citation is `PATH` or `FILE::NAME`,
/// with a path that begins with one of [`FOLDERS`]. Returns None for a right citation, and for text that is no
/// citation, such as a path with a pattern or with a placeholder in capitals (`KIND`).
fn fault_of_code(text: &str) -> Option<String> {
    let cites = FOLDERS.iter().any(|folder| text.starts_with(folder));
    if !cites || text.contains([' ', '*', '…', '{']) {
        return None;
    }
    let (file, name) = text.split_once("::").map_or((text, None), |(f, n)| (f, Some(n)));
    let is_placeholder = |part: &str| part.len() > 1 && part.bytes().all(|b| b.is_ascii_uppercase());
    if file.split(['/', '.']).any(is_placeholder) {
        return None;
    }
    let path = root().join(file);
    if !path.exists() {
        return Some(format!("there is no {file}"));
    }
    let name = name?;
    let source = std::fs::read_to_string(&path).unwrap_or_default();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let defines = |keyword: &&str| {
        let definition = format!("{keyword} {name}");
        let mut found = source.match_indices(&definition);
        found.any(|(at, _)| !source[at + definition.len()..].starts_with(is_part))
    };
    let missing = !KEYWORDS.iter().any(defines);
    missing.then(|| format!("{file} defines no {name}"))
}

#[test]
fn code_that_documents_cite_exists() {
    let (mut cited, mut wrong) = (0, Vec::new());
    // The changelog is left out, because it cites code that later versions may no longer have.
    for (document, text) in documents().filter(|(document, _)| document != "CHANGELOG.md") {
        let mut fenced = false;
        for (number, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            for text in quoted(line) {
                cited += usize::from(text.contains(".rs::"));
                wrong.extend(fault_of_code(text).map(|fault| format!("{document}:{}: {fault}", number + 1)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cited > 500, "only {cited} functions are cited");
}

#[test]
fn a_wrong_citation_of_code_is_found() {
    for good in [
        "tests/tests/docs.rs",
        "tests/tests/docs.rs::fault_of_code",
        "tests/tests/docs.rs::KEYWORDS",
        "agent/engine/src/tables.rs::Tables",
        "tests/src/KIND.rs::read",
        "cargo test",
    ] {
        assert_eq!(fault_of_code(good), None);
    }
    for bad in [
        "tests/tests/no_such_file.rs",
        "tests/tests/docs.rs::fault",
        "tests/tests/docs.rs::no_such_function",
    ] {
        assert!(fault_of_code(bad).is_some(), "{bad}");
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (document, text) in documents() {
        count += 1;
        let folder = root().join(&document);
        let folder = folder.parent().expect("a folder");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or(target);
            if target.contains("://") || file.is_empty() {
                continue;
            }
            if !folder.join(file).exists() {
                wrong.push(format!("{document}: {target} does not exist"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "only {count} documents");
}
