//! Where the desired state is kept: one small interface with etcd's semantics.
//!
//! A store has one global revision. Each transaction that is committed has the next one; each key knows the revision
//! that created it and the one that last changed it, and how often it was changed. Two implementations: [`sqlite`] (the
//! default, one file) and [`memory`] (tests). An existing distributed store can stand here later.

pub mod memory;
pub mod sqlite;

use std::path::Path;
use tombolo_proto::id::Revision;

/// A key with its value and history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision at which it came to be (anew after a delete).
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// Changes since it came to be, from 1.
    pub version: u64,
}

/// All or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Each key must have this `mod_revision`; 0: must not exist.
    pub compare: Vec<(String, Revision)>,
    /// Keys with new values; none: delete. Each key at most once.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A comparison of the transaction does not hold; nothing was changed.
    #[error("'{0}' was changed by somebody else")]
    Conflict(String),
    /// The disk, or the database on it.
    #[error("store: {0}")]
    Failed(String),
}

/// The interface. Calls block until they are done; what was committed survives `kill -9` and power loss.
pub trait Store: Send {
    /// The revision of the last committed transaction; 0: empty.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn revision(&self) -> Result<Revision, StoreError>;

    /// All keys that start with `prefix`, in order, as of one revision.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError>;

    /// Commits transactions in order, durably, with one flush for all. Each answer is the transaction's own: a conflict
    /// in one does not stop the others.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: none of them was committed.
    fn commit(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError>;

    /// Forgets what was superseded at or before `revision`.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn compact(&mut self, revision: Revision) -> Result<(), StoreError>;

    /// Up to where [`Store::compact`] has forgotten.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn compacted(&self) -> Result<Revision, StoreError>;

    /// Writes a consistent copy to a new file while the store is in use.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when the file exists.
    fn backup(&self, to: &Path) -> Result<(), StoreError>;
}
