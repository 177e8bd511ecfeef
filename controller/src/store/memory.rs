//! A store in memory: the simplest model of the interface, which tests compare the SQLite store with.

use super::{KeyValue, Store, StoreError, Transaction};
use std::collections::BTreeMap;
use std::path::Path;
use tombolo_proto::id::Revision;

/// One change of one key.
#[derive(Debug)]
struct Event {
    revision: Revision,
    key: String,
    /// The new value; `None` if the change deleted the key.
    value: Option<Vec<u8>>,
}

/// A store in memory. It keeps every change, and computes the present state by replaying all changes. It cannot be
/// backed up.
#[derive(Debug, Default)]
pub struct MemoryStore {
    revision: u64,
    compacted: u64,
    events: Vec<Event>,
}

impl MemoryStore {
    /// The present state.
    fn state(&self) -> BTreeMap<String, KeyValue> {
        self.state_at(Revision(self.revision))
    }

    /// The state at a revision, by replaying all changes until then.
    fn state_at(&self, revision: Revision) -> BTreeMap<String, KeyValue> {
        let mut state: BTreeMap<String, KeyValue> = BTreeMap::new();
        for event in self.events.iter().filter(|event| event.revision <= revision) {
            let Some(value) = event.value.clone() else {
                state.remove(&event.key);
                continue;
            };
            let before = state.get(&event.key);
            let next = KeyValue {
                key: event.key.clone(),
                value,
                create_revision: before.map_or(event.revision, |b| b.create_revision),
                mod_revision: event.revision,
                version: before.map_or(1, |b| b.version + 1),
            };
            state.insert(event.key.clone(), next);
        }
        state
    }
}

impl Store for MemoryStore {
    fn revision(&self) -> Result<Revision, StoreError> {
        Ok(Revision(self.revision))
    }

    fn range(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        let revision = Revision(self.revision);
        Ok((revision, self.range_at(prefix, revision)?))
    }

    fn range_at(&self, prefix: &str, revision: Revision) -> Result<Vec<KeyValue>, StoreError> {
        let state = self.state_at(revision).into_values();
        Ok(state.filter(|kv| kv.key.starts_with(prefix)).collect())
    }

    fn commit(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError> {
        let mut answers = Vec::new();
        for transaction in transactions {
            let state = self.state();
            let modified = |key: &String| state.get(key).map_or(Revision(0), |kv| kv.mod_revision);
            if let Some((key, _)) = transaction
                .compare
                .iter()
                .find(|(key, expected)| modified(key) != *expected)
            {
                answers.push(Err(StoreError::Conflict(key.clone())));
                continue;
            }
            self.revision += 1;
            let revision = Revision(self.revision);
            let mut changes = transaction.changes.clone();
            changes.retain(|(key, value)| value.is_some() || state.contains_key(key));
            changes.sort();
            self.events
                .extend(changes.into_iter().map(|(key, value)| Event { revision, key, value }));
            answers.push(Ok(revision));
        }
        Ok(answers)
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        // The present state is computed from all changes, so compaction removes none of them here.
        self.compacted = self.compacted.max(revision.0.min(self.revision));
        Ok(())
    }

    fn compacted(&self) -> Result<Revision, StoreError> {
        Ok(Revision(self.compacted))
    }

    fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        Err(StoreError::Failed("a store in memory cannot be backed up".into()))
    }
}
