//! The interface of the store that keeps the desired state. It has a part of etcd's semantics.
//!
//! A store has one global revision, and each committed transaction gets the next one. A key has the revisions of its
//! creation and of its last change, and the number of its changes. The controller uses only the values and the
//! revisions of last changes; the other figures belong to the database's format. The controller uses the store in
//! [`sqlite`]. Tests compare it with the model in [`memory`].

pub mod memory;
pub mod sqlite;

use std::path::Path;
use tombolo_proto::id::Revision;

/// A key with its value and the revisions of its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision at which the key was created. If the key was deleted and created again, this is the revision of the
    /// last creation.
    pub create_revision: Revision,
    /// The revision of the key's last change.
    pub mod_revision: Revision,
    /// The number of the key's changes since its last creation. The creation itself is the first change.
    pub version: u64,
}

/// Changes that are committed together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Preconditions: each key must have this `mod_revision`. If the revision is 0, the key must not exist.
    pub compare: Vec<(String, Revision)>,
    /// Keys with their new values, or `None` to delete them. A key must not occur twice. Deleting a key that does not
    /// exist changes nothing.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

/// Why an operation of a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition of the transaction does not hold for this key; nothing was changed.
    #[error("the document '{0}' was changed by another process")]
    Conflict(String),
    /// The disk or the database failed, with its message.
    #[error("store: {0}")]
    Failed(String),
}

/// A store of documents. Methods block until they are done. A committed transaction survives `kill -9` and power loss.
pub trait Store: Send {
    /// The revision of the last committed transaction; 0 for a new store.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn revision(&self) -> Result<Revision, StoreError>;

    /// The store's revision, and all existing keys that start with `prefix` at this revision, in the order of their
    /// bytes.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError>;

    /// As [`Store::range`], at an earlier revision. It must not be lower than [`Store::compacted`], because values of such
    /// revisions have been removed.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range_at(&self, prefix: &str, revision: Revision) -> Result<Vec<KeyValue>, StoreError>;

    /// Commits transactions in order, with one flush for all. Returns the result of each in the same order: its
    /// revision, or [`StoreError::Conflict`]. After a conflict in one transaction, the transactions behind it are
    /// committed nevertheless. Each transaction sees the changes of those before it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: none of them was committed.
    fn commit(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError>;

    /// Removes values that were superseded or deleted at or before `revision`. Present values stay. If `revision` does
    /// not exist yet, the newest revision is used.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn compact(&mut self, revision: Revision) -> Result<(), StoreError>;

    /// The revision up to which [`Store::compact`] has removed values; 0 if it was never called.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn compacted(&self) -> Result<Revision, StoreError>;

    /// Writes a consistent copy of the committed state to a new file with mode 0600. After an error, an incomplete file
    /// may remain.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when the file exists.
    fn backup(&self, to: &Path) -> Result<(), StoreError>;
}
