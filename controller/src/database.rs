//! Databases of records that the controller can lose without losing desired state: usage, and the activity log.

use crate::secret;
use rusqlite::Connection;
use std::path::Path;

/// What is in a database.
#[derive(Debug)]
pub(crate) struct Format {
    /// `PRAGMA application_id`: distinguishes the database from those of other programs.
    pub(crate) application: i64,
    /// `PRAGMA user_version`: the version of the tables.
    pub(crate) version: i64,
    /// The statements that create the tables.
    pub(crate) schema: &'static str,
}

/// Opens a database, or creates it with mode 0600. What is written to it survives a crash of the controller; after a power
/// failure the last writes may be missing as a whole. Blocks.
///
/// # Errors
/// The file is another database or was written by a newer version, or cannot be read or written.
pub(crate) fn open(path: &Path, format: &Format) -> anyhow::Result<Connection> {
    secret::make_private(path)?;
    let connection = Connection::open(path)?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let file = path.display();
    anyhow::ensure!(
        tables == 0 || application == format.application,
        "{file} is a database of another program"
    );
    anyhow::ensure!(
        version <= format.version,
        "{file} was written by a newer version (schema {version}; this version reads up to {})",
        format.version
    );
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "busy_timeout", 5000)?;
    if version < format.version {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {} PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT;",
            format.schema, format.application, format.version
        ))?;
    }
    Ok(connection)
}
