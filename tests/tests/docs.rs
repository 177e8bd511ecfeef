//! What the documents cite exists: files, and the tests that `docs/semantics.md` names for each rule and `docs/security.md` for
//! each finding.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace")
        .to_path_buf()
}

/// The texts between backticks of a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Reads a document's tables of three columns whose first one `is_key` recognises. The third names tests, each as FILE::TEST.
/// Returns the number of such rows, and what is wrong with them.
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
        let mut cited = 0;
        for citation in quoted(tests) {
            let Some((file, function)) = citation.split_once("::") else {
                wrong.push(format!("{key}: '{citation}' is not FILE::TEST"));
                continue;
            };
            let Ok(source) = std::fs::read_to_string(root().join(file)) else {
                wrong.push(format!("{key}: no file {file}"));
                continue;
            };
            let Some(at) = source.find(&format!("fn {function}(")) else {
                wrong.push(format!("{key}: no {function} in {file}"));
                continue;
            };
            let before = source[..at].lines().rev().take(4).collect::<String>();
            if !before.contains("test]") && !before.contains("#[test") && !before.contains("::test") {
                wrong.push(format!("{key}: {function} in {file} is not a test"));
            }
            cited += 1;
        }
        if cited == 0 {
            wrong.push(format!("{key}: no test"));
        }
    }
    (rows, wrong)
}

#[test]
fn every_rule_of_semantics_names_a_test_that_exists() {
    let is_rule = |key: &str| {
        key.starts_with(|c: char| "PRGETDMX".contains(c)) && key[1..].starts_with(|c: char| c.is_ascii_digit())
    };
    let (rules, wrong) = cited_tests("docs/semantics.md", is_rule);
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
    assert!(rules >= 30, "only {rules} rules");
}

#[test]
fn every_finding_of_security_names_a_test_that_exists() {
    let is_number = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
    let (findings, wrong) = cited_tests("docs/security.md", is_number);
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
    assert!(findings >= 10, "only {findings} findings");
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let root = root();
    for document in [
        "README.md",
        "docs/architecture.md",
        "docs/semantics.md",
        "docs/security.md",
        "docs/operations.md",
        "docs/install.md",
        "CHANGELOG.md",
    ] {
        let path = root.join(document);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{document}: {e}"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap_or(target);
            let found = path.parent().expect("folder").join(file);
            assert!(found.exists(), "{document}: {target} does not exist");
        }
    }
}
