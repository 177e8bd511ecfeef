//! The only writer of the store: applies changes in order, makes each durable, and publishes the new topology.
//!
//! A caller gets the result of its change when the change is on the disk. Changes that wait at the same time are
//! written with one flush.

use crate::store::{KeyValue, Store, StoreError, Transaction};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tombolo_proto::id::Revision;
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// Maximum number of requests in one batch, which is written with one flush. The limit bounds how long the first
/// request of a batch waits until the others are applied.
const MAX_BATCH: usize = 64;

/// Maximum number of requests in the queue of the writer's thread. Further callers wait until the queue has room.
const QUEUE_CAPACITY: usize = 1024;

/// Number of revisions whose states stay in the store, at least. The store is compacted when it has twice as many
/// revisions, of which the compaction then removes half.
const KEPT_REVISIONS: u64 = 10_000;

/// The desired state of one revision.
#[derive(Debug, Clone)]
pub struct Published {
    /// The revision of the state.
    pub revision: Revision,
    /// All resources, agents, tokens and settings.
    pub topology: Arc<Topology>,
    /// The time at which the state was published, from which the convergence time is measured.
    pub since: Instant,
}

/// The result of a change that is durable.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The state right after the change. Later changes may have been published since.
    pub published: Published,
    /// Whether a PUT has created the item, or a DELETE has removed an item.
    pub created_or_removed: bool,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A rule of the topology forbids it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The store failed, or the controller is shutting down. Nothing was changed, with the exception that
    /// [`Writer::change`] describes.
    #[error("the change was not stored: {0}")]
    Store(String),
}

/// Why the state of an earlier revision cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The store has no such state (yet, or any more).
    #[error("revision {wanted} is not in the store, which has the states of revisions {oldest} to {newest}")]
    OutOfRange {
        /// The revision that was asked for.
        wanted: Revision,
        /// The oldest revision that can be read.
        oldest: Revision,
        /// The present revision.
        newest: Revision,
    },
    /// The store failed, or a document of the state cannot be read, or the controller is shutting down.
    #[error("revision {0} cannot be read: {1}")]
    Failed(Revision, String),
}

enum Request {
    Change(Box<Change>, oneshot::Sender<Result<Committed, WriteError>>),
    Document(String, Option<Vec<u8>>, oneshot::Sender<Result<(), WriteError>>),
    Backup(PathBuf, oneshot::Sender<Result<(), StoreError>>),
    History(Revision, oneshot::Sender<Result<Vec<KeyValue>, HistoryError>>),
    Stop(oneshot::Sender<()>),
}

/// A handle to the writer's thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    requests: mpsc::Sender<Request>,
    published: watch::Receiver<Published>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Change(..) => "Change",
            Self::Document(..) => "Document",
            Self::Backup(..) => "Backup",
            Self::History(..) => "History",
            Self::Stop(_) => "Stop",
        })
    }
}

impl Writer {
    /// Blocks while it reads the store, and then starts the writer's thread. The thread ends when [`Writer::stop`] is
    /// called, when the last [`Writer`] is dropped, or when it finds that another process has written to the store.
    ///
    /// Also returns, by key, the documents under [`OWN_PREFIX`], which do not belong to the topology. No other writer
    /// may use the store, in this process or in another one.
    ///
    /// # Errors
    /// The store cannot be read, it holds a document that this version cannot parse, or the thread cannot be started.
    pub fn start(store: Box<dyn Store>) -> anyhow::Result<(Self, BTreeMap<String, Vec<u8>>)> {
        let (revision, documents) = store.range("")?;
        let (own, state): (Vec<_>, Vec<_>) = documents.into_iter().partition(|kv| kv.key.starts_with(OWN_PREFIX));
        let topology = Topology::from_documents(state.iter().map(|kv| (kv.key.as_str(), kv.value.as_slice())))
            .map_err(|why| anyhow::anyhow!("the store holds a document that this version cannot read: {why}"))?;
        let modified = state
            .iter()
            .chain(&own)
            .map(|kv| (kv.key.clone(), kv.mod_revision))
            .collect::<BTreeMap<_, _>>();
        let (publish, published) = watch::channel(Published {
            revision,
            topology: Arc::new(topology),
            since: Instant::now(),
        });
        let (requests, queue) = mpsc::channel(QUEUE_CAPACITY);
        let compacted = store.compacted()?.0;
        let worker = Worker {
            store,
            modified,
            publish,
            compacted,
        };
        std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || worker.run(queue))?;
        let own = own.into_iter().map(|kv| (kv.key, kv.value)).collect();
        Ok((Self { requests, published }, own))
    }

    /// Applies a change to the newest state. Returns when the change is durable and published. A change that alters
    /// nothing gets no new revision.
    ///
    /// Waits while the queue is full. Dropping the future does not cancel a change that is queued already.
    ///
    /// # Errors
    /// [`WriteError`]: a rule forbids the change, the store failed, or the writer has stopped. Nothing was changed,
    /// with one exception: if another process has written to the store, the change may be stored nevertheless. It is
    /// then not published, and the writer stops.
    pub async fn change(&self, change: Change) -> Result<Committed, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.request(Request::Change(Box::new(change), answer), answered)
            .await?
    }

    /// Sets or deletes (`None`) a document under [`OWN_PREFIX`]. Returns when that is durable. Each call makes a new
    /// revision, which is published, even if it changes nothing. Deleting a document that does not exist succeeds.
    /// Release builds do not check the prefix of `key`.
    ///
    /// Waits while the queue is full. Dropping the future does not cancel a request that is queued already.
    ///
    /// # Errors
    /// [`WriteError::Store`]: the store failed or the writer has stopped. Nothing was changed, with the exception that
    /// [`Self::change`] describes.
    ///
    /// # Panics
    /// In debug builds, if `key` does not start with [`OWN_PREFIX`].
    pub async fn set_document(&self, key: String, value: Option<Vec<u8>>) -> Result<(), WriteError> {
        debug_assert!(
            key.starts_with(OWN_PREFIX),
            "documents of the topology are changed by `change` only"
        );
        let (answer, answered) = oneshot::channel();
        self.request(Request::Document(key, value, answer), answered).await?
    }

    /// Writes a consistent copy of the store to a new file with mode 0600. Changes that are requested later are not in
    /// the copy, and neither are changes that have not been confirmed yet. Other requests wait until the copy is
    /// complete. Dropping the future does not cancel a backup that is queued already.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: the file exists, its path is not UTF-8, it cannot be written, or the writer has stopped.
    /// An incomplete file may remain.
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        match self.request(Request::Backup(to, answer), answered).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Failed(error.to_string())),
        }
    }

    /// The state of an earlier revision. Other requests wait until it has been read, for a second in a large network.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub async fn history(&self, revision: Revision) -> Result<Topology, HistoryError> {
        let failed = |why: String| HistoryError::Failed(revision, why);
        let (answer, answered) = oneshot::channel();
        let found = self.request(Request::History(revision, answer), answered).await;
        let documents = found.map_err(|error| failed(error.to_string()))??;
        let read = tokio::task::spawn_blocking(move || {
            let state = documents.iter().filter(|kv| !kv.key.starts_with(OWN_PREFIX));
            Topology::from_documents(state.map(|kv| (kv.key.as_str(), kv.value.as_slice())))
        });
        let read = read.await.map_err(|error| failed(error.to_string()))?;
        read.map_err(failed)
    }

    /// Completes the requests that were sent before, closes the store, and returns true when both are done. Returns
    /// false if the writer had stopped already, or stops before because another process has written to the store. Later
    /// requests fail. Dropping the future does not cancel a stop that is queued already. [`Self::current`] still
    /// returns the last state.
    pub async fn stop(&self) -> bool {
        let (done, stopped) = oneshot::channel();
        self.request(Request::Stop(done), stopped).await.is_ok()
    }

    /// Waits until the writer's thread has ended; every later write fails then.
    pub async fn closed(&self) {
        let mut published = self.published.clone();
        while published.changed().await.is_ok() {}
    }

    async fn request<T>(&self, request: Request, answered: oneshot::Receiver<T>) -> Result<T, WriteError> {
        let stopped = || WriteError::Store("the controller is shutting down".into());
        self.requests.send(request).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())
    }

    /// Returns the newest published state without waiting. Changes that are still queued are not in it.
    #[must_use]
    pub fn current(&self) -> Published {
        self.published.borrow().clone()
    }

    /// A receiver of new states. A state that is superseded before the receiver reads it is skipped. If the state has
    /// changed since the writer started, the receiver reports the present state as a new one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }
}

/// The prefix of the keys of documents that belong to the controller and not to the topology: the certificate
/// authority, the tokens of the REST interface, the assertions, the history of deployments, and connection monitors.
pub const OWN_PREFIX: &str = "own/";
/// The key prefix of deployments, below [`OWN_PREFIX`].
pub(crate) const DEPLOYMENTS_PREFIX: &str = "own/deployments/";
/// The key prefix of connection monitors, below [`OWN_PREFIX`].
pub(crate) const MONITORS_PREFIX: &str = "own/connection-monitors/";
/// The key prefix of packet captures, below [`OWN_PREFIX`].
pub(crate) const CAPTURES_PREFIX: &str = "own/packet-captures/";

struct Worker {
    store: Box<dyn Store>,
    /// The revision of each key's last change. A commit fails if the store has another revision for a key of the
    /// commit.
    modified: BTreeMap<String, Revision>,
    publish: watch::Sender<Published>,
    /// The store has been compacted up to this revision.
    compacted: u64,
}

/// A result that is sent when its batch is on the disk.
enum Answer {
    /// A rejection also waits until the batch is on the disk, because its reason may be an earlier change in the batch,
    /// and that change is not durable before then.
    Rejected(oneshot::Sender<Result<Committed, WriteError>>, Rejection),
    Change(oneshot::Sender<Result<Committed, WriteError>>, Arc<Topology>, bool),
    Document(oneshot::Sender<Result<(), WriteError>>),
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while queue.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            let stop = batch.iter().position(|r| matches!(r, Request::Stop(_)));
            let end = stop.unwrap_or(batch.len());
            if self.batch(batch.drain(..end)).is_break() {
                return;
            }
            if let (Some(_), Some(Request::Stop(done))) = (stop, batch.drain(..).next()) {
                // Closing the store folds its write-ahead log into the database file.
                drop(self);
                // A caller that no longer waits is no error.
                let _ = done.send(());
                return;
            }
        }
    }

    /// Applies, commits and answers a batch. Breaks if another process has written to the store.
    fn batch(&mut self, requests: impl Iterator<Item = Request>) -> ControlFlow<()> {
        let mut batch = Batch::new(&self.publish.borrow(), self.modified.clone());
        for request in requests {
            match request {
                Request::Change(change, answer) => batch.change(&change, answer),
                Request::Document(key, value, answer) => batch.push(vec![(key, value)], Answer::Document(answer)),
                Request::Backup(to, answer) => {
                    // If the caller no longer waits, the result is dropped. The task that asked for the backup removes
                    // the file in any case.
                    let _ = answer.send(self.store.backup(&to));
                }
                Request::History(revision, answer) => {
                    let _ = answer.send(self.history(revision));
                }
                // `run` ends a batch before a `Stop`, so a batch never contains a `Stop`.
                Request::Stop(_) => {}
            }
        }
        if batch.answers.is_empty() {
            return ControlFlow::Continue(());
        }
        match self.commit(&batch.transactions) {
            Ok(()) => {
                self.committed(batch);
                ControlFlow::Continue(())
            }
            Err(error) => {
                for (answer, _) in batch.answers {
                    answer.fail(&error);
                }
                if matches!(error, StoreError::Conflict(_)) {
                    tracing::error!(%error, "another process has written to the store: this controller stops");
                    return ControlFlow::Break(());
                }
                tracing::error!(%error, "the store failed: the changes of this batch were not made");
                ControlFlow::Continue(())
            }
        }
    }

    fn history(&self, wanted: Revision) -> Result<Vec<KeyValue>, HistoryError> {
        let failed = |error: StoreError| HistoryError::Failed(wanted, error.to_string());
        let (oldest, newest) = (
            self.store.compacted().map_err(failed)?,
            self.store.revision().map_err(failed)?,
        );
        if wanted < oldest || wanted > newest {
            return Err(HistoryError::OutOfRange { wanted, oldest, newest });
        }
        self.store.range_at("", wanted).map_err(failed)
    }

    /// Publishes and answers a batch that is on the disk.
    fn committed(&mut self, batch: Batch) {
        self.modified = batch.modified;
        // If the batch has only rejections and changes that write nothing, subscribers need not be woken.
        if !batch.transactions.is_empty() {
            self.publish.send_replace(Published {
                revision: Revision(batch.revision),
                topology: Arc::new(batch.topology),
                since: Instant::now(),
            });
        }
        for (answer, revision) in batch.answers {
            answer.succeed(revision);
        }
        self.compact(batch.revision);
    }

    fn commit(&mut self, transactions: &[Transaction]) -> Result<(), StoreError> {
        if transactions.is_empty() {
            return Ok(());
        }
        // The preconditions (`compare`) always hold as long as only this process writes to the store. A conflict means
        // that another process has written, so the rules were checked against an outdated state.
        self.store
            .commit(transactions)?
            .into_iter()
            .try_for_each(|answer| answer.map(|_| ()))
    }

    /// Removes superseded values when the store has those of twice [`KEPT_REVISIONS`] revisions. A failure is logged
    /// and is no error, because the values take space and do no other harm.
    fn compact(&mut self, revision: u64) {
        if revision < self.compacted + 2 * KEPT_REVISIONS {
            return;
        }
        match self.store.compact(Revision(revision - KEPT_REVISIONS)) {
            Ok(()) => self.compacted = revision - KEPT_REVISIONS,
            Err(error) => {
                tracing::warn!(%error, "the store could not be compacted; trying again after the next change")
            }
        }
    }
}

/// Requests that have been applied to a copy of the state and are not committed yet.
struct Batch {
    topology: Topology,
    modified: BTreeMap<String, Revision>,
    revision: u64,
    transactions: Vec<Transaction>,
    /// The answer to each request, with the revision of the state after the request.
    answers: Vec<(Answer, Revision)>,
}

impl Batch {
    fn new(published: &Published, modified: BTreeMap<String, Revision>) -> Self {
        Self {
            topology: (*published.topology).clone(),
            modified,
            revision: published.revision.0,
            transactions: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Applies a change to the batch's topology, and adds its writes and its answer. A rejected change adds only its
    /// answer.
    fn change(&mut self, change: &Change, answer: oneshot::Sender<Result<Committed, WriteError>>) {
        match self.topology.apply(change, &mut Uuid::new_v4) {
            Err(rejection) => self.push(Vec::new(), Answer::Rejected(answer, rejection)),
            Ok(outcome) => {
                let documents = outcome.topology.documents_since(&self.topology).into_iter();
                let writes = documents.map(|document| (document.key, document.value)).collect();
                self.topology = outcome.topology.clone();
                let answer = Answer::Change(answer, Arc::new(outcome.topology), outcome.created_or_removed);
                self.push(writes, answer);
            }
        }
    }

    /// Adds the writes of one request as a transaction, with its answer. A PUT of the present value writes nothing. Its
    /// answer is sent with the batch nevertheless, because an earlier change of the batch may have set this value.
    fn push(&mut self, writes: Vec<(String, Option<Vec<u8>>)>, answer: Answer) {
        if !writes.is_empty() {
            self.revision += 1;
            let at = |key: &String| self.modified.get(key).copied().unwrap_or_default();
            let compare = writes.iter().map(|(key, _)| (key.clone(), at(key))).collect();
            for (key, value) in &writes {
                match value {
                    Some(_) => self.modified.insert(key.clone(), Revision(self.revision)),
                    None => self.modified.remove(key),
                };
            }
            self.transactions.push(Transaction {
                compare,
                changes: writes,
            });
        }
        self.answers.push((answer, Revision(self.revision)));
    }
}

// A send fails only if the caller no longer waits. The result of the change does not depend on the caller.
impl Answer {
    fn succeed(self, revision: Revision) {
        match self {
            Self::Rejected(to, rejection) => {
                let _ = to.send(Err(rejection.into()));
            }
            Self::Change(to, topology, created_or_removed) => {
                let published = Published {
                    revision,
                    topology,
                    since: Instant::now(),
                };
                let _ = to.send(Ok(Committed {
                    published,
                    created_or_removed,
                }));
            }
            Self::Document(to) => {
                let _ = to.send(Ok(()));
            }
        }
    }

    fn fail(self, error: &StoreError) {
        let error = WriteError::Store(error.to_string());
        match self {
            Self::Change(to, ..) | Self::Rejected(to, _) => {
                let _ = to.send(Err(error));
            }
            Self::Document(to) => {
                let _ = to.send(Err(error));
            }
        }
    }
}
