//! The only writer: takes changes one after the other, makes each durable, publishes the new topology.
//!
//! A change is answered when it is on the disk. Changes that wait at the same time share one flush.

use crate::store::{Store, StoreError, Transaction};
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

/// Changes that share one flush, at most.
const BATCH: usize = 64;

/// Changes that may wait before callers have to.
const QUEUE: usize = 1024;

/// Revisions whose history is kept for watchers; older ones are compacted away now and then.
const HISTORY: u64 = 10_000;

/// The desired state of one revision.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its number.
    pub revision: Revision,
    /// Everything in it.
    pub topology: Arc<Topology>,
    /// When it was published: where the time until it is in force begins.
    pub since: Instant,
}

/// A change that is durable.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The state that holds it.
    pub published: Published,
    /// New (PUT), or was there (DELETE).
    pub created_or_removed: bool,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A rule forbids it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The store failed, or the controller is shutting down. Nothing was changed.
    #[error("the change could not be stored: {0}")]
    Store(String),
}

enum Request {
    Change(Box<Change>, oneshot::Sender<Result<Committed, WriteError>>),
    Document(String, Option<Vec<u8>>, oneshot::Sender<Result<(), WriteError>>),
    Backup(PathBuf, oneshot::Sender<Result<(), StoreError>>),
    Stop(oneshot::Sender<()>),
}

/// The way to the writer. Cheap to clone.
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
            Self::Stop(_) => "Stop",
        })
    }
}

impl Writer {
    /// Reads the store and starts the writer's thread. It ends with [`Writer::stop`], when the last [`Writer`] is
    /// dropped, or when somebody else writes to the store.
    ///
    /// Also hands out the documents that are not the topology's: those under [`OWN`].
    ///
    /// # Errors
    /// The store cannot be read, or holds a document that this program does not understand.
    pub fn start(store: Box<dyn Store>) -> anyhow::Result<(Self, BTreeMap<String, Vec<u8>>)> {
        let (revision, documents) = store.range("")?;
        let (own, state): (Vec<_>, Vec<_>) = documents.into_iter().partition(|kv| kv.key.starts_with(OWN));
        let topology = Topology::from_documents(state.iter().map(|kv| (kv.key.as_str(), kv.value.as_slice())))
            .map_err(|why| anyhow::anyhow!("the store holds what this program cannot read: {why}"))?;
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
        let (requests, queue) = mpsc::channel(QUEUE);
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

    /// Makes a change; returns when it is durable.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was changed.
    pub async fn change(&self, change: Change) -> Result<Committed, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Change(Box::new(change), answer), answered).await?
    }

    /// Sets or deletes a document under [`OWN`]; returns when it is durable.
    ///
    /// # Errors
    /// [`WriteError::Store`].
    pub async fn set_document(&self, key: String, value: Option<Vec<u8>>) -> Result<(), WriteError> {
        debug_assert!(
            key.starts_with(OWN),
            "the topology's documents change by `change` alone"
        );
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Document(key, value, answer), answered).await?
    }

    /// Writes a copy of the store to a new file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        match self.ask(Request::Backup(to, answer), answered).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Failed(error.to_string())),
        }
    }

    /// Finishes what was asked for before, closes the store, and returns when that is done. Says whether the writer was
    /// still there to do so.
    pub async fn stop(&self) -> bool {
        let (done, stopped) = oneshot::channel();
        self.ask(Request::Stop(done), stopped).await.is_ok()
    }

    /// Returns when the writer is no more: nothing can be written then.
    pub async fn ended(&self) {
        let mut published = self.published.clone();
        while published.changed().await.is_ok() {}
    }

    async fn ask<T>(&self, request: Request, answered: oneshot::Receiver<T>) -> Result<T, WriteError> {
        let gone = || WriteError::Store("the controller is shutting down".into());
        self.requests.send(request).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// The state that holds now.
    #[must_use]
    pub fn current(&self) -> Published {
        self.published.borrow().clone()
    }

    /// Tells of each new state; intermediate ones may be skipped.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }
}

/// Keys of the controller's own documents (tokens of the REST interface), which are no part of the topology.
pub const OWN: &str = "own/";
/// What the keys of deployments begin with, below [`OWN`].
pub(crate) const DEPLOYMENTS: &str = "own/deployments/";

struct Worker {
    store: Box<dyn Store>,
    /// The revision that each key was last changed at, to compare with.
    modified: BTreeMap<String, Revision>,
    publish: watch::Sender<Published>,
    compacted: u64,
}

/// What is answered once the batch is on the disk.
enum Answer {
    /// Told with the rest: what it was judged on may not be durable yet.
    Rejected(oneshot::Sender<Result<Committed, WriteError>>, Rejection),
    Change(oneshot::Sender<Result<Committed, WriteError>>, Arc<Topology>, bool),
    Document(oneshot::Sender<Result<(), WriteError>>),
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            let stop = batch.iter().position(|r| matches!(r, Request::Stop(_)));
            let end = stop.unwrap_or(batch.len());
            if self.batch(batch.drain(..end)).is_break() {
                return;
            }
            if let (Some(_), Some(Request::Stop(done))) = (stop, batch.drain(..).next()) {
                // Closing the store folds its write-ahead log into it.
                drop(self);
                let _ = done.send(());
                return;
            }
        }
    }

    /// Breaks if the store is not what this writer takes it for.
    fn batch(&mut self, requests: impl Iterator<Item = Request>) -> ControlFlow<()> {
        let mut topology = (*self.publish.borrow().topology).clone();
        let (mut transactions, mut answers) = (Vec::new(), Vec::new());
        let mut modified = self.modified.clone();
        let mut revision = self.publish.borrow().revision.0;
        for request in requests {
            let (changes, answer) = match request {
                Request::Change(change, answer) => match topology.apply(&change, &mut Uuid::new_v4) {
                    Err(rejection) => (Vec::new(), Answer::Rejected(answer, rejection)),
                    Ok(outcome) => {
                        let changes: Vec<_> = outcome
                            .topology
                            .documents_since(&topology)
                            .into_iter()
                            .map(|document| (document.key, document.value))
                            .collect();
                        topology = outcome.topology.clone();
                        (
                            changes,
                            Answer::Change(answer, Arc::new(outcome.topology), outcome.created_or_removed),
                        )
                    }
                },
                Request::Document(key, value, answer) => (vec![(key, value)], Answer::Document(answer)),
                Request::Backup(to, answer) => {
                    let _ = answer.send(self.store.backup(&to));
                    continue;
                }
                // Taken out by the caller.
                Request::Stop(_) => continue,
            };
            // Nothing to write (a PUT of what stands there already): the answer waits for the batch all the same,
            // because it may stand on a change of the same batch.
            if !changes.is_empty() {
                revision += 1;
                let at = |key: &String| modified.get(key).copied().unwrap_or_default();
                let compare = changes.iter().map(|(key, _)| (key.clone(), at(key))).collect();
                for (key, value) in &changes {
                    match value {
                        Some(_) => modified.insert(key.clone(), Revision(revision)),
                        None => modified.remove(key),
                    };
                }
                transactions.push(Transaction { compare, changes });
            }
            answers.push((answer, Revision(revision)));
        }
        if answers.is_empty() {
            return ControlFlow::Continue(());
        }
        match self.commit(&transactions) {
            Ok(()) => {
                self.modified = modified;
                // Nobody needs to be woken by refusals, or by changes that change nothing.
                if !transactions.is_empty() {
                    self.publish.send_replace(Published {
                        revision: Revision(revision),
                        topology: Arc::new(topology),
                        since: Instant::now(),
                    });
                }
                for (answer, revision) in answers {
                    answer.succeed(revision);
                }
                self.compact(revision);
                ControlFlow::Continue(())
            }
            Err(error) => {
                let foreign = matches!(error, StoreError::Conflict(_));
                if foreign {
                    tracing::error!(%error, "another program writes to this store: this one stops");
                } else {
                    tracing::error!(%error, "the store failed");
                }
                for (answer, _) in answers {
                    answer.fail(&error);
                }
                if foreign {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            }
        }
    }

    fn commit(&mut self, transactions: &[Transaction]) -> Result<(), StoreError> {
        if transactions.is_empty() {
            return Ok(());
        }
        // With one writer no comparison can fail; if one does, somebody else writes to this store, and what of the
        // batch went through is not what was judged.
        self.store
            .commit(transactions)?
            .into_iter()
            .try_for_each(|answer| answer.map(|_| ()))
    }

    fn compact(&mut self, revision: u64) {
        if revision < self.compacted + 2 * HISTORY {
            return;
        }
        match self.store.compact(Revision(revision - HISTORY)) {
            Ok(()) => self.compacted = revision - HISTORY,
            Err(error) => tracing::warn!(%error, "the store could not be compacted"),
        }
    }
}

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
