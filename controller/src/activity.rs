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

/// The log. One thread at a time writes, and one reads meanwhile. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ActivityLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    writes: Mutex<Database>,
    reads: Mutex<Database>,
}

impl ActivityLog {
    /// Opens the database of a data directory, or creates it. Blocks.
    ///
    /// # Errors
    /// The file is no such database, or cannot be read or written.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let file = data_dir.join(FILE);
        Ok(Self(Arc::new(Shared {
            writes: Mutex::new(Database::open(&file)?),
            reads: Mutex::new(Database::open(&file)?),
        })))
    }

    /// Adds the two events of a write, and returns when they survive a crash of the controller. A failure is logged: the
    /// write is done already.
    pub(crate) async fn add(&self, write: Write) {
        let log = self.clone();
        let added = tokio::task::spawn_blocking(move || with(&log.0.writes, |database| database.add(&write))).await;
        let added = added.map_err(anyhow::Error::from).flatten();
        if let Err(error) = added {
            tracing::error!(error = %format!("{error:#}"), "a write is missing in the activity log");
        }
    }

    /// The newest events that the filter wants, the newest first. Waits while others read.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn page(&self, filter: Filter) -> anyhow::Result<Page> {
        let log = self.clone();
        tokio::task::spawn_blocking(move || with(&log.0.reads, |database| database.page(&filter))).await?
    }
}

fn with<T>(database: &Mutex<Database>, work: impl FnOnce(&mut Database) -> T) -> T {
    work(&mut database.lock().unwrap_or_else(PoisonError::into_inner))
}
