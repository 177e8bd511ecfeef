use super::*;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Before {
    always_on: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Renamed {
    keep_up: bool,
}

/// A field that is written under one name and read under another, so a program cannot read what it has stored.
#[derive(Debug, Serialize, Deserialize)]
struct OneWay {
    #[serde(rename(serialize = "alwaysOn"), default)]
    lost: bool,
}

fn recorded() -> (tempfile::TempDir, Golden) {
    let folder = tempfile::tempdir().unwrap();
    let mut golden = Golden {
        folder: folder.path().to_owned(),
        rewrite: true,
    };
    golden.cases("link", &[("full", Before { always_on: true })]);
    golden.rewrite = false;
    (folder, golden)
}

fn complaint(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("the difference is not noticed");
    *panic.downcast::<String>().expect("a message")
}

#[test]
fn the_same_value_passes() {
    let (_folder, golden) = recorded();
    golden.cases("link", &[("full", Before { always_on: true })]);
}

#[test]
fn a_renamed_field_is_shown_with_what_to_do() {
    let (_folder, golden) = recorded();
    let text = complaint(|| golden.cases("link", &[("full", Renamed { keep_up: true })]));
    for part in [
        "link.json",
        "-    \"alwaysOn\": true",
        "+    \"keepUp\": true",
        "serde(rename",
        "TOMBOLO_GOLDEN=write",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("a_renamed_field_is_shown_with_what_to_do"), "{text}");
}

#[test]
fn what_cannot_be_read_back_is_no_document() {
    let (_folder, golden) = recorded();
    let text = complaint(|| golden.cases("link", &[("full", OneWay { lost: true })]));
    assert!(text.contains("read back as another value"), "{text}");
    let text = complaint(|| drop(golden.read::<BTreeMap<String, Renamed>>("link")));
    assert!(
        text.contains("missing field `keepUp`") && text.contains("alias"),
        "{text}"
    );
}

#[test]
fn a_file_that_is_missing_is_named() {
    let (_folder, golden) = recorded();
    let text = complaint(|| golden.text("other.txt", "x"));
    assert!(text.contains("other.txt") && text.contains("Record it"), "{text}");
}

#[test]
fn a_variant_without_a_value_is_named() {
    #[expect(dead_code, reason = "no value is the second one: that is the case")]
    enum Two {
        First,
        Second { of: u8 },
    }
    let text = complaint(|| every_variant!(Two { First, Second }, &[Two::First]));
    assert!(text.contains("Two::Second"), "{text}");
}
