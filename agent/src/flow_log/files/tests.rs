use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn path(hour: u8) -> PathBuf {
    PathBuf::from(format!("log/y=2026/m=01/d=02/h={hour:02}/m=00/macAddress=02/{FILE}"))
}

fn record(n: usize) -> String {
    format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(n % 50))
}

fn numbers(full: &Path) -> Vec<u64> {
    let read: Value = serde_json::from_slice(&fs::read(full).unwrap()).unwrap();
    let records = read["records"].as_array().unwrap().iter();
    records.map(|r| r["n"].as_u64().unwrap()).collect()
}

#[test]
fn n14_a_file_is_valid_after_each_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = LogFiles::open(dir.path(), 1 << 20).unwrap();
    for n in 0..100 {
        files.append(&path(3), &record(n)).unwrap();
        assert_eq!(numbers(&dir.path().join(path(3))).len(), n + 1);
    }
    let length = fs::metadata(dir.path().join(path(3))).unwrap().len();
    assert_eq!(files.used(), length);
    // The next run goes on.
    drop(files);
    let mut files = LogFiles::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(files.used(), length);
    files.append(&path(3), &record(100)).unwrap();
    assert!(numbers(&dir.path().join(path(3))).into_iter().eq(0..=100));
}

proptest! {
    /// If the process ends while it appends a record, the next run has all records before.
    #[test]
    fn d38_a_crash_loses_at_most_the_last_record(before in 0usize..5, written in 0usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let full = dir.path().join(path(3));
        let mut files = LogFiles::open(dir.path(), 1 << 20).unwrap();
        for n in 0..before {
            files.append(&path(3), &record(n)).unwrap();
        }
        let old = fs::read(&full).unwrap_or_default();
        files.append(&path(3), &record(before)).unwrap();
        let new = fs::read(&full).unwrap();
        // The kernel has written the first bytes of the last call.
        let begin = old.len().saturating_sub(TAIL.len());
        let cut = (begin + written).min(new.len());
        let mut torn = new[..cut].to_vec();
        torn.extend(old.get(cut..).unwrap_or_default());
        fs::write(&full, &torn).unwrap();

        drop(files);
        let mut files = LogFiles::open(dir.path(), 1 << 20).unwrap();
        if !torn.is_empty() {
            let after: Result<Value, _> = serde_json::from_slice(&fs::read(&full).unwrap());
            prop_assert!(after.is_ok() || fs::metadata(&full).unwrap().len() == 0);
        }
        files.append(&path(3), &record(77)).unwrap();
        let found = numbers(&full);
        prop_assert!(found.len() == before + 1 || found.len() == before + 2);
        prop_assert!(found.iter().take(before).copied().eq(0..before as u64));
        prop_assert_eq!(found.last(), Some(&77));
        prop_assert_eq!(files.used(), fs::metadata(&full).unwrap().len());
    }
}

#[test]
fn d38_the_files_of_the_earliest_hours_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let big = json!({"n": 1, "text": "x".repeat(1000)}).to_string();
    let mut files = LogFiles::open(dir.path(), 10_000).unwrap();
    for hour in 0..20 {
        files.append(&path(hour), &big).unwrap();
        assert!(files.used() <= 10_000);
    }
    let left: Vec<u8> = (0..20).filter(|hour| dir.path().join(path(*hour)).exists()).collect();
    assert_eq!(left, (11..20).collect::<Vec<u8>>());
    assert!(
        !dir.path().join("log/y=2026/m=01/d=02/h=00").exists(),
        "its directories are gone"
    );

    // One hour alone reaches the limit: nothing of it is removed.
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(files.append(&path(20), &big).is_err());
    }
    assert!(refused > 5);
    assert!(files.used() <= 10_000);
    assert_eq!(numbers(&dir.path().join(path(20))).len() as u32, 20 - refused);
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "of somebody else").unwrap();
    let root = dir.path().join("logs");
    let mut files = LogFiles::open(&root, 10_000).unwrap();
    files.append(&path(1), &record(1)).unwrap();
    fs::remove_file(root.join(path(1))).unwrap();
    std::os::unix::fs::symlink(&victim, root.join(path(1))).unwrap();
    assert!(files.append(&path(1), &record(2)).is_err());
    assert_eq!(fs::read(&victim).unwrap(), b"of somebody else");
}

/// If the files of one hour alone reach the limit, those of other hours are not removed in vain. Those of later hours, which a
/// clock that was set back leaves, make room too.
#[test]
fn d38_other_hours_are_removed_only_if_that_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let big = json!({"n": 1, "text": "x".repeat(1000)}).to_string();
    let mut files = LogFiles::open(dir.path(), 10_000).unwrap();
    files.append(&path(1), &big).unwrap();
    for _ in 0..8 {
        files.append(&path(2), &big).unwrap();
    }
    let huge = json!({"n": 1, "text": "x".repeat(2000)}).to_string();
    assert!(files.append(&path(2), &huge).is_err());
    assert!(dir.path().join(path(1)).exists(), "it would not help");
    for _ in 0..4 {
        files.append(&path(0), &big).unwrap();
    }
    assert!(files.used() <= 10_000);
    assert!(dir.path().join(path(0)).exists() && !dir.path().join(path(2)).exists());
}

/// Files of other programs in the directory stay as they are, and count for nothing.
#[test]
fn d38_files_of_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = r#"{"records":[{"time":"2026-01-02T03:00:00Z"},
        {"time":"2026-01-02T03:01:00Z"}"#;
    let other = PathBuf::from(FILE);
    let own = format!("{}{{}}\n", std::str::from_utf8(HEAD).unwrap());
    for (path, text) in [(path(3), foreign), (other.clone(), own.as_str())] {
        fs::create_dir_all(dir.path().join(&path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(&path), text).unwrap();
    }
    let mut files = LogFiles::open(dir.path(), 2000).unwrap();
    assert_eq!(files.used(), 0);
    assert!(files.append(&path(3), &record(1)).is_err());
    let big = json!({"n": 1, "text": "x".repeat(1000)}).to_string();
    for hour in 4..8 {
        files.append(&path(hour), &big).unwrap();
    }
    assert_eq!(fs::read_to_string(dir.path().join(path(3))).unwrap(), foreign);
    assert_eq!(fs::read_to_string(dir.path().join(other)).unwrap(), own);
}

#[test]
fn d38_two_agents_do_not_write_into_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = LogFiles::open(dir.path(), 10_000).unwrap();
    let error = format!("{:#}", LogFiles::open(dir.path(), 10_000).unwrap_err());
    assert!(error.contains("flow_logs.directory"), "{error}");
    drop(first);
    LogFiles::open(dir.path(), 10_000).unwrap();
}
