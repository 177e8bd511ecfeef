//! The units of `deploy/systemd` confine their services. `systemd-analyze security` rates each unit from 0 (confined) to 10
//! (exposed).
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Each unit with its worst permitted rating.
const LIMITS: [(&str, f64); 3] = [
    ("tombolo-controller.service", 1.5),
    ("tombolo-agent@.service", 2.0),
    ("tombolo-bird@.service", 1.6),
];

fn units() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().join("deploy/systemd")
}

/// The rating in a report of `systemd-analyze security`, from its line `→ Overall exposure level for NAME: 1.3 OK`. None:
/// there is no such line.
fn rating(report: &str) -> Option<f64> {
    let (_, after) = report.split_once("Overall exposure level for ")?;
    let (_, number) = after.split_once(": ")?;
    number.split_whitespace().next()?.parse().ok()
}

#[test]
fn units_are_rated_well() {
    for (unit, limit) in LIMITS {
        let path = units().join(unit);
        // The exit status is ignored: `systemd-analyze` rates a unit that it cannot read as a unit without any
        // confinement, and such a rating fails below.
        let analysis = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=yes"])
            .arg(&path)
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&analysis.stdout).into_owned();
        let said = String::from_utf8_lossy(&analysis.stderr).into_owned();
        let rating = rating(&report).unwrap_or_else(|| panic!("{unit}: no rating: {report}{said}"));
        assert!(rating <= limit, "{unit}: {rating} is worse than {limit}:\n{report}");
        // `IPAddressAllow=any` is forbidden: it would improve the rating without confining anything.
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("IPAddressAllow=any"), "{unit}");
    }
}

#[test]
fn the_rating_of_a_service_without_confinement_is_worse() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare.service");
    std::fs::write(&path, "[Service]\nExecStart=/bin/true\n").unwrap();
    let analysis = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=yes"])
        .arg(&path)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&analysis.stdout).into_owned();
    assert!(rating(&report).unwrap() > 9.0, "{report}");
}
