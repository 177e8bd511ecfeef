//! The parts of a running controller, assembled from its data directory.

use crate::activity::ActivityLog;
use crate::admission::Limits;
use crate::agents::Agents;
use crate::ca::{self, Authority};
use crate::compiled::{self, Compiled};
use crate::connections::Connections;
use crate::metrics::{self, Metrics};
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, Transaction};
use crate::usage::{self, Usage};
use crate::writer::Writer;
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tombolo_proto::id::Revision;

/// The parts of a running controller. Shared as `Arc`.
#[derive(Debug)]
pub struct App {
    /// The writer of the desired state. It also publishes the newest state.
    pub writer: Writer,
    /// The certificate authority of this controller.
    pub authority: Authority,
    /// The connections, progress and reports of agents.
    pub agents: Arc<Agents>,
    /// The newest compiled configurations.
    pub compiled: watch::Receiver<Compiled>,
    /// The counters and histograms that events update.
    pub metrics: Arc<Metrics>,
    /// The connections of the port.
    pub connections: Arc<Connections>,
    /// The activity log.
    pub activity: ActivityLog,
    /// What the traffic of each resource adds up to.
    pub usage: Usage,
    /// The data directory, which this process has locked.
    pub data_dir: PathBuf,
    /// The locked file of the data directory. The lock lasts until the process ends.
    _lock: File,
    /// The controller's own documents (see [`crate::writer::OWN_PREFIX`]) by key, as they were read at the start. Later
    /// writes do not change this map.
    pub own_documents: BTreeMap<String, Vec<u8>>,
}

impl App {
    /// Opens the data directory, or creates it (mode 0700) with a new certificate authority, and starts the writer, the
    /// compiler and the convergence metric. Locks the directory until the process ends, removes unfinished backups, and
    /// writes the authority's certificate to [`AUTHORITY_FILE`]. Blocks while it reads the store and compiles its
    /// state. Does not open the port. `agent_certificate_lifetime`: the lifetime of the certificates that are issued to
    /// agents from now on. `limits`: the limits of the port.
    ///
    /// # Errors
    /// The directory is in use by another controller, its store cannot be read or holds a document that this version
    /// cannot read, the lifetime is out of range, a thread cannot be started, or the file system fails. The lock is
    /// then released; files that were created stay.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn open(data_dir: &Path, agent_certificate_lifetime: Duration, limits: Limits) -> anyhow::Result<Arc<Self>> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(data_dir)
            .with_context(|| format!("cannot create {}", data_dir.display()))?;
        let lock = lock(data_dir)?;
        remove_unfinished_backups(data_dir);
        let file = data_dir.join(STORE_FILE);
        let mut store = SqliteStore::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        let authority = authority(&mut store, agent_certificate_lifetime)?;
        let public = data_dir.join(AUTHORITY_FILE);
        std::fs::write(&public, authority.pem()).with_context(|| format!("cannot write {}", public.display()))?;
        let (writer, own_documents) = Writer::start(Box::new(store))?;
        let metrics = Arc::<Metrics>::default();
        let compiled = compiled::start(writer.subscribe(), metrics.compile.clone())?;
        let agents = Arc::new(Agents::new(writer.subscribe(), compiled.clone()));
        tokio::spawn(metrics::measure_convergence(
            metrics.clone(),
            agents.clone(),
            compiled.clone(),
        ));
        let usage = Usage::open(data_dir).context(
            "the usage database cannot be opened; if it is damaged, move it away: what it has counted is lost then",
        )?;
        tokio::spawn(usage::run(usage.clone(), agents.clone(), compiled.clone()));
        Ok(Arc::new(Self {
            usage,
            activity: ActivityLog::open(data_dir).context(
                "the activity log cannot be opened; if it is damaged, move it away: its events are lost then",
            )?,
            writer,
            authority,
            agents,
            compiled,
            metrics,
            connections: Arc::new(Connections::new(limits)),
            data_dir: data_dir.to_owned(),
            _lock: lock,
            own_documents,
        }))
    }
}

/// Locks a data directory, which must exist, for this process. Creates the lock file if it is missing. Does not wait
/// for the lock. The lock lasts until the returned file is dropped.
///
/// # Errors
/// The directory is locked already, by another process or by this one, or the lock file cannot be created, opened or
/// locked.
pub fn lock(data_dir: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = data_dir.join(LOCK_FILE);
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("{} is in use by another controller", data_dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Removes the unfinished copies of the store that an earlier process left when it ended during a backup.
fn remove_unfinished_backups(data_dir: &Path) {
    for entry in std::fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(BACKUP_PREFIX) {
            // An error is ignored: a leftover copy takes space and does no other harm, and the next start tries again.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Reads the certificate authority from the store, or generates one and stores it.
fn authority(store: &mut impl Store, lifetime: Duration) -> anyhow::Result<Authority> {
    let (_, found) = store.range(ca::DOCUMENT)?;
    let document = match found.into_iter().find(|kv| kv.key == ca::DOCUMENT) {
        Some(found) => found.value,
        None => {
            let generated = Authority::generate()?;
            let transaction = Transaction {
                compare: vec![(ca::DOCUMENT.to_owned(), Revision(0))],
                changes: vec![(ca::DOCUMENT.to_owned(), Some(generated.clone()))],
            };
            for committed in store.commit(&[transaction])? {
                committed?;
            }
            generated
        }
    };
    Authority::open(&document, lifetime).with_context(|| format!("the store's document '{}'", ca::DOCUMENT))
}

/// The name of the file in the data directory with the authority's certificate, which clients need in order to trust
/// the controller.
pub const AUTHORITY_FILE: &str = "ca.pem";

/// The prefix of the names of unfinished backups in the data directory.
pub(crate) const BACKUP_PREFIX: &str = "backup-";

/// The file in the data directory that a running controller locks.
const LOCK_FILE: &str = "lock";

/// The file of the store in the data directory.
pub const STORE_FILE: &str = "state.db";
