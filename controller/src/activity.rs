//! The activity log: every write, with who asked for it, from where, and what came of it.
//!
//! * `database`: the events on disk.
//! * `filter`: which events a client asks for.
//! * `event`: an event in ARM's form.

mod database;
mod event;
mod filter;

pub(crate) use database::Page;
pub(crate) use event::Write;
pub(crate) use filter::Filter;

use database::Database;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The name of the database in the data directory.
const FILE: &str = "activity.db";

/// The log, which one thread at a time uses. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ActivityLog(Arc<Mutex<Database>>);

impl ActivityLog {
    /// Opens the database of a data directory, or creates it. Blocks.
    ///
    /// # Errors
    /// The file is no such database, or cannot be read or written.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Database::open(&data_dir.join(FILE))?))))
    }

    /// Adds the two events of a write, and returns when they survive a crash of the controller. A failure is logged: the
    /// write is done already.
    pub(crate) async fn add(&self, write: Write) {
        let log = self.clone();
        let added = tokio::task::spawn_blocking(move || log.database(|database| database.add(&write))).await;
        let added = added.map_err(anyhow::Error::from).flatten();
        if let Err(error) = added {
            tracing::error!(error = %format!("{error:#}"), "a write is missing in the activity log");
        }
    }

    /// The newest events that the filter wants, the newest first. Waits while other requests use the log.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn page(&self, filter: Filter) -> anyhow::Result<Page> {
        let log = self.clone();
        tokio::task::spawn_blocking(move || log.database(|database| database.page(&filter))).await?
    }

    fn database<T>(&self, work: impl FnOnce(&mut Database) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
