//! The store in SQLite against the model in memory.

use super::*;
use crate::store::memory::MemoryStore;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, u8, bool)>),
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec((0..6u8, any::<u8>(), any::<bool>()), 1..4).prop_map(Step::Commit),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_model(steps in proptest::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let mut store = SqliteStore::open(&path).unwrap();
        let mut model = MemoryStore::default();
        for step in steps {
            match step {
                Step::Commit(parts) => {
                    let mut transaction = Transaction::default();
                    for (key, value, stale) in parts {
                        let key = format!("k/{key}");
                        if transaction.changes.iter().any(|(k, _)| *k == key) { continue; }
                        let (_, found) = model.range(&key).unwrap();
                        let expected = found.first().map_or(0, |kv| kv.mod_revision.0);
                        transaction.compare.push((key.clone(), Revision(if stale && value < 30 { expected + 1 } else { expected })));
                        transaction.changes.push((key, (value % 4 != 0).then(|| vec![value])));
                    }
                    let (a, b) = (store.commit(std::slice::from_ref(&transaction)).unwrap(), model.commit(&[transaction]).unwrap());
                    prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
                }
                Step::Compact => {
                    let at = model.revision().unwrap();
                    store.compact(at).unwrap();
                    model.compact(at).unwrap();
                }
                Step::Reopen => { drop(store); store = SqliteStore::open(&path).unwrap(); }
            }
            prop_assert_eq!(store.range("k/").unwrap(), model.range("k/").unwrap());
            let (oldest, newest) = (store.compacted().unwrap().0, store.revision().unwrap().0);
            for revision in (oldest..=newest).map(Revision) {
                prop_assert_eq!(store.range_at("k/", revision).unwrap(), model.range_at("k/", revision).unwrap());
            }
            prop_assert_eq!(store.revision().unwrap(), model.revision().unwrap());
            prop_assert_eq!(store.compacted().unwrap(), model.compacted().unwrap());
        }
    }
}

#[test]
fn a_backup_is_a_store_with_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("a.db")).unwrap();
    let put = Transaction {
        compare: vec![],
        changes: vec![("x".into(), Some(b"1".to_vec()))],
    };
    store.commit(&[put.clone(), put]).unwrap();
    let copy = dir.path().join("b.db");
    store.backup(&copy).unwrap();
    assert!(store.backup(&copy).is_err(), "an existing file is never overwritten");
    assert_eq!(
        SqliteStore::open(&copy).unwrap().range("").unwrap(),
        store.range("").unwrap()
    );
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    std::fs::write(
        &path,
        "this is no database, whatever its name says, and it is long enough",
    )
    .unwrap();
    assert!(SqliteStore::open(&path).is_err());
}
