//! What the documents cite exists: files, and the tests that `docs/security.md` names for each finding. `tests/tests/rules.rs` looks
//! after `docs/rules`.

use std::path::Path;
use tombolo_tests::citations::{fault_of, quoted, root, texts};

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

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut documents = 0;
    let mut wrong = Vec::new();
    for (document, text) in texts() {
        if Path::new(&document).extension().is_none_or(|e| e != "md") {
            continue;
        }
        documents += 1;
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
    assert!(documents > 20, "only {documents} documents");
}
