//! `docs/rules` defines every tag that code, documents, test names and messages cite, and each rule that is done names
//! tests that exist. `docs/rules.md` links each of them.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_tests::citations::{fault_of, quoted, root, tags_in, tags_of_function, texts};
use tombolo_topology::resource::{Era, Settings};

/// The state of an implemented rule without a test. Such a rule names no tests.
const UNPROVED: &str = "partly: no test proves it";

/// One rule of a page.
#[derive(Debug, Default)]
struct Rule {
    tag: String,
    title: String,
    page: String,
    text: String,
    /// `Source`, `State` and `Tests`, each as one line.
    fields: BTreeMap<String, String>,
}

impl Rule {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// The rule's line in the index of `docs/rules.md`, with the anchor that Markdown makes of the rule's heading.
    fn index_line(&self) -> String {
        let heading = format!("{} {}", self.tag, self.title).to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-'));
        let anchor = kept.collect::<String>().replace(' ', "-");
        format!("- [{} {}](rules/{}#{anchor})", self.tag, self.title, self.page)
    }
}

/// Reads a page: each `## TAG TITLE` begins a rule, with a text and a list of fields.
fn rules_of(page: &str, text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut field = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            field = None;
            let (first, title) = heading.split_once(' ').unwrap_or((heading, ""));
            // A heading without a tag begins another section, which is no rule.
            if tags_in(first) != [first] {
                rules.push(Rule::default());
                continue;
            }
            rules.push(Rule {
                tag: first.into(),
                title: title.into(),
                page: page.into(),
                ..Rule::default()
            });
            continue;
        }
        let Some(rule) = rules.last_mut() else { continue };
        if let Some((name, value)) = line.strip_prefix("- ").and_then(|l| l.split_once(':')) {
            field = Some(name.to_owned());
            rule.fields.insert(name.into(), value.trim().into());
        } else if let Some(more) = line.strip_prefix("  ") {
            let value = field.as_ref().and_then(|name| rule.fields.get_mut(name));
            if let Some(value) = value {
                value.push(' ');
                value.push_str(more.trim());
            }
        } else {
            rule.text.push_str(line);
        }
    }
    rules.retain(|rule| !rule.tag.is_empty());
    rules
}

/// All rules of the pages in `docs/rules`, page by page in the order of their names.
fn rules() -> Vec<Rule> {
    let folder = root().join("docs/rules");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut pages: Vec<_> = entries.map(|e| e.expect("a page").path()).collect();
    pages.sort();
    let read = |page: &std::path::PathBuf| {
        let text = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let name = page.file_name().expect("a name").to_string_lossy();
        rules_of(&name, &text)
    };
    pages.iter().flat_map(read).collect()
}

#[test]
fn every_tag_that_is_cited_is_a_rule() {
    let known: BTreeSet<String> = rules().into_iter().map(|rule| rule.tag).collect();
    let (mut cited, mut wrong) = (0, Vec::new());
    for (path, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            let mut tags = tags_in(line);
            if path.ends_with(".rs") {
                tags.extend(tags_of_function(line));
            }
            cited += tags.len();
            for tag in tags.iter().filter(|tag| !known.contains(*tag)) {
                wrong.push(format!(
                    "{path}:{}: {tag} is no rule of docs/rules: {}",
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cited > 2000, "only {cited} citations were found");
}

#[test]
fn every_rule_is_complete_and_names_tests_that_exist() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for rule in rules() {
        let mut fault = |what: String| wrong.push(format!("docs/rules/{}: {}: {what}", rule.page, rule.tag));
        if !seen.insert(rule.tag.clone()) {
            fault("is defined twice".into());
        }
        if rule.title.is_empty() || rule.text.is_empty() || rule.field("Source").is_empty() {
            fault("has no title, no text or no source".into());
        }
        let state = rule.field("State");
        let in_part = state
            .strip_prefix("partly: ")
            .is_some_and(|missing| !missing.is_empty());
        if !(state == "done" || state == "not yet" || in_part) {
            fault(format!(
                "its state is '{state}', and not 'done', 'partly: …' or 'not yet'"
            ));
        }
        let tests: Vec<&str> = quoted(rule.field("Tests")).collect();
        let needs_tests = state == "done" || in_part && state != UNPROVED;
        if needs_tests == tests.is_empty() {
            fault(format!("its state is '{state}', and it names {} tests", tests.len()));
        }
        for problem in tests.iter().filter_map(|test| fault_of(test)) {
            fault(problem);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.len() > 200, "only {} rules", seen.len());
}

#[test]
fn the_index_leads_to_every_rule() {
    let index = std::fs::read_to_string(root().join("docs/rules.md")).expect("docs/rules.md");
    let lines: Vec<&str> = index.lines().filter(|line| line.contains("](rules/")).collect();
    let expected: BTreeSet<String> = rules().iter().map(Rule::index_line).collect();
    let of_rules: Vec<&str> = lines.into_iter().filter(|line| line.starts_with("- [")).collect();
    let mut wrong = Vec::new();
    for line in &expected {
        let count = of_rules.iter().filter(|l| l == &line).count();
        if count != 1 {
            wrong.push(format!("{count} times instead of once: {line}"));
        }
    }
    let stray = of_rules.iter().filter(|line| !expected.contains(**line));
    wrong.extend(stray.map(|line| format!("leads to no rule: {line}")));
    assert!(wrong.is_empty(), "docs/rules.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_of_eras_is_that_of_the_settings() {
    let document = std::fs::read_to_string(root().join("docs/rules.md")).expect("docs/rules.md");
    let of = |era| serde_json::to_value(Settings::of(era)).expect("settings as JSON");
    let (old, today) = (of(Era::Azure2017), of(Era::AzureCurrent));
    let shown = |value: &Value| match value {
        Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
        Value::String(word) => format!("`{word}`"),
        other => other.to_string(),
    };
    let switches = old.as_object().expect("an object").iter();
    let changed = switches.filter(|(name, value)| *name != "era" && today[*name] != **value);
    let expected: BTreeSet<String> = changed
        .map(|(name, value)| format!("| `{name}` | {} | {} |", shown(value), shown(&today[name])))
        .collect();
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    // The last column names the rules that a switch concerns. The settings do not contain these rules, so the column is
    // not compared.
    let found: BTreeSet<String> = rows
        .filter_map(|row| row.trim_end_matches('|').rsplit_once('|'))
        .map(|(switch, _)| format!("{switch}|"))
        .collect();
    assert_eq!(found, expected, "the table of eras in docs/rules.md");
    assert!(expected.len() > 3, "{expected:?}");
}

#[test]
fn tags_are_told_from_other_words() {
    let of_text = [
        (
            "/// P18, R12: an appliance (D22.2, P21d).",
            &["P18", "R12", "D22", "P21"][..],
        ),
        (
            "P19 to P21; E15,E16 and R7/R8, D8-D24: →T8…",
            &["P19", "P21", "E15", "E16", "R7", "R8", "D8", "D24", "T8"],
        ),
        ("`X1` Meter-1, Meter-6", &["X1", "Meter-1", "Meter-6"]),
        (
            "P256 X25519 E402 T0 GSO_UDP_L4 0xD5 aP1 P1x D2D2 p13 R P-256 Meter- IPv6 e2e",
            &[],
        ),
    ];
    for (text, expected) in of_text {
        assert_eq!(tags_in(text), expected, "{text}");
    }
    let of_code = [
        ("async fn p13_p14_states_of_a_peering() {", &["P13", "P14"][..]),
        ("fn m7_g18_g20_e5_advertised(a: u8)", &["M7", "G18", "G20", "E5"]),
        ("fn p21d_spoke_to_spoke()", &["P21"]),
        ("fn a_lost_half_is_mended_p14() {", &["P14"]),
        ("fn e2e_v6_h2_of_p256() {", &[]),
        ("let p13 = 1;", &[]),
    ];
    for (code, expected) in of_code {
        assert_eq!(tags_of_function(code), expected, "{code}");
    }
}
