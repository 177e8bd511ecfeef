//! The interface of the store of the desired state: a part of etcd's semantics.
//!
//! A store has one global revision, and each committed transaction gets the next one. A key has the revisions of its
//! creation and of its last change, and the number of its changes. The controller reads values and the revisions of
//! last changes; the other figures are a part of the database's format. [`sqlite`] is the store of the product, and
//! [`memory`] is the model that tests compare it with.

pub mod memory;
pub mod sqlite;

use std::path::Path;
use tombolo_proto::id::Revision;

/// A key with its value and the revisions of its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision of the key's creation; if the key was deleted and created again, that of the last creation.
    pub create_revision: Revision,
    /// The revision of the key's last change.
    pub mod_revision: Revision,
    /// The number of the key's changes since that creation, which is the first.
    pub version: u64,
}

/// Changes that are committed together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Preconditions: each key has this `mod_revision`, or does not exist if the revision is 0.
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

    /// All existing keys that start with `prefix`, in the order of their bytes, with the revision of the store at which
    /// they were read.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError>;

    /// Commits transactions in order, with one flush for all. Returns the result of each in the same order: its
    /// revision, or [`StoreError::Conflict`]. A conflict in one transaction does not stop the others, which see the
    /// changes of those before.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: none of them was committed.
    fn commit(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError>;

    /// Removes values that were superseded or deleted at or before `revision`. Present values stay. A revision that
    /// does not exist yet stands for the newest one.
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
