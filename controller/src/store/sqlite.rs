//! The store in SQLite: an append-only log table.
//!
//! The newest row of a key is its present value. Superseded rows stay until a compaction deletes them, because that
//! costs less than to delete a row with each change. With the write-ahead log and `synchronous=FULL`, a commit returns
//! when it is on the disk.

use super::{KeyValue, Store, StoreError, Transaction};
use crate::secret;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::path::Path;
use tombolo_proto::id::Revision;

/// `PRAGMA user_version`: the version of the tables.
const SCHEMA_VERSION: i64 = 1;

/// `PRAGMA application_id`, "tmbl" in ASCII: distinguishes a store from other SQLite databases.
const APPLICATION_ID: i64 = 0x746d_626c;

/// The tables of the database: the log, and the counters `revision` and `compacted`. Compaction uses the index to find
/// superseded rows quickly.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS log (
        key             TEXT    NOT NULL,
        revision        INTEGER NOT NULL,
        value           BLOB,
        create_revision INTEGER NOT NULL,
        version         INTEGER NOT NULL,
        PRIMARY KEY (key, revision)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS log_by_revision ON log (revision);
    CREATE TABLE IF NOT EXISTS meta (
        name  TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
";

/// A store in one database file. SQLite keeps its write-ahead log and the log's index in two more files in the same
/// directory.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl SqliteStore {
    /// Opens the store in the file `path`, or creates it; the directory must exist. The mode of the file becomes 0600.
    /// An existing store is checked, for which SQLite reads the whole file. This function does not lock out other
    /// processes; the lock on the data directory does.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: the file is no store, is damaged, was written by a newer version, cannot be read or
    /// written, or stays locked by another process for 5 s. The mode of the file may have changed, and an empty new
    /// file may remain.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // The file is created here with mode 0600 before SQLite writes to it; SQLite gives its two other files the same
        // mode.
        secret::make_private(path).map_err(|e| StoreError::Failed(e.to_string()))?;
        let connection = Connection::open(path)?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        if tables > 0 && application != APPLICATION_ID {
            let file = path.display();
            return Err(StoreError::Failed(format!("{file} is a database of another program")));
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // If the database is locked, SQLite waits up to 5,000 ms. No other controller can hold the lock, because the
        // data directory is locked; an operator's tool that copies the database can.
        connection.pragma_update(None, "busy_timeout", 5000)?;
        let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if schema > SCHEMA_VERSION {
            let file = path.display();
            return Err(StoreError::Failed(format!(
                "{file} was written by a newer version (schema {schema}; this version reads up to {SCHEMA_VERSION})"
            )));
        }
        if schema < SCHEMA_VERSION {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            ))?;
        } else {
            let health: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if health != "ok" {
                let file = path.display();
                return Err(StoreError::Failed(format!(
                    "{file} is damaged ({health}); restore a backup"
                )));
            }
        }
        Ok(Self { connection })
    }

    fn meta(connection: &Connection, name: &str) -> Result<u64, StoreError> {
        let value: Option<u64> = connection
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        Ok(value.unwrap_or_default())
    }

    fn set_meta(connection: &Connection, name: &str, value: u64) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
        connection.prepare_cached(sql)?.execute(params![name, value])?;
        Ok(())
    }
}

/// The newest row of a key as (mod_revision, create_revision, version). `None`: the key does not exist.
fn current(connection: &Connection, key: &str) -> Result<Option<(u64, u64, u64)>, StoreError> {
    let sql = "SELECT revision, create_revision, version, value IS NULL FROM log
               WHERE key = ?1 ORDER BY revision DESC LIMIT 1";
    let row: Option<(u64, u64, u64, bool)> = connection
        .prepare_cached(sql)?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    Ok(row
        .filter(|(.., deleted)| !deleted)
        .map(|(modified, created, version, _)| (modified, created, version)))
}

/// The existing keys that start with `prefix` at a revision.
fn range_at(connection: &Connection, prefix: &str, revision: Revision) -> Result<Vec<KeyValue>, StoreError> {
    // With `max`, SQLite takes the other columns from the row that has the maximum.
    let sql = "SELECT key, max(revision), value, create_revision, version FROM log
               WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 AND revision <= ?2 GROUP BY key ORDER BY key";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![prefix, revision.0], |row| {
        let value: Option<Vec<u8>> = row.get(2)?;
        Ok(value.map(|value| (row.get(0), row.get(1), value, row.get(3), row.get(4))))
    })?;
    let mut found = Vec::new();
    for row in rows {
        if let Some((key, modified, value, created, version)) = row? {
            found.push(KeyValue {
                key: key?,
                value,
                create_revision: Revision(created?),
                mod_revision: Revision(modified?),
                version: version?,
            });
        }
    }
    Ok(found)
}

/// Writes one transaction at the revision `next`. After an error, the caller must roll back the rows that were written.
fn commit_one(connection: &Connection, transaction: &Transaction, next: u64) -> Result<(), StoreError> {
    for (key, expected) in &transaction.compare {
        let found = current(connection, key)?.map_or(0, |(modified, ..)| modified);
        if found != expected.0 {
            return Err(StoreError::Conflict(key.clone()));
        }
    }
    let sql = "INSERT INTO log (key, revision, value, create_revision, version) VALUES (?1, ?2, ?3, ?4, ?5)";
    for (key, value) in &transaction.changes {
        let before = current(connection, key)?;
        let (created, version) = match (before, value) {
            (Some((_, created, version)), _) => (created, version + 1),
            (None, Some(_)) => (next, 1),
            // Deleting a key that does not exist writes no row.
            (None, None) => continue,
        };
        connection
            .prepare_cached(sql)?
            .execute(params![key, next, value, created, version])?;
    }
    Ok(())
}

impl Store for SqliteStore {
    fn revision(&self) -> Result<Revision, StoreError> {
        Self::meta(&self.connection, "revision").map(Revision)
    }

    fn range(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        let read = self.connection.unchecked_transaction()?;
        let revision = Revision(Self::meta(&read, "revision")?);
        let found = range_at(&read, prefix, revision)?;
        Ok((revision, found))
    }

    fn range_at(&self, prefix: &str, revision: Revision) -> Result<Vec<KeyValue>, StoreError> {
        range_at(&self.connection, prefix, revision)
    }

    fn commit(&mut self, transactions: &[Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError> {
        let outer = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut revision = Self::meta(&outer, "revision")?;
        let mut answers = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            outer.execute_batch("SAVEPOINT one")?;
            match commit_one(&outer, transaction, revision + 1) {
                Ok(()) => {
                    outer.execute_batch("RELEASE one")?;
                    revision += 1;
                    answers.push(Ok(Revision(revision)));
                }
                Err(conflict @ StoreError::Conflict(_)) => {
                    outer.execute_batch("ROLLBACK TO one; RELEASE one")?;
                    answers.push(Err(conflict));
                }
                Err(error) => return Err(error),
            }
        }
        Self::set_meta(&outer, "revision", revision)?;
        outer.commit()?;
        Ok(answers)
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let outer = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let revision = revision.0.min(Self::meta(&outer, "revision")?);
        // Deletes superseded rows, and also rows that record the deletion of a key. The older rows of such a key are
        // deleted too, so the key then has no row, which also means that it does not exist.
        outer.execute(
            "DELETE FROM log WHERE revision <= ?1 AND (value IS NULL OR EXISTS
                (SELECT 1 FROM log newer WHERE newer.key = log.key AND newer.revision > log.revision
                 AND newer.revision <= ?1))",
            [revision],
        )?;
        let before = Self::meta(&outer, "compacted")?;
        Self::set_meta(&outer, "compacted", revision.max(before))?;
        outer.commit()?;
        Ok(())
    }

    fn compacted(&self) -> Result<Revision, StoreError> {
        Self::meta(&self.connection, "compacted").map(Revision)
    }

    fn backup(&self, to: &Path) -> Result<(), StoreError> {
        if to.exists() {
            return Err(StoreError::Failed(format!("{} exists already", to.display())));
        }
        let to = to
            .to_str()
            .ok_or_else(|| StoreError::Failed("the path of the backup is not UTF-8".into()))?;
        secret::make_private(Path::new(to)).map_err(|e| StoreError::Failed(e.to_string()))?;
        self.connection.execute("VACUUM INTO ?1", [to])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
