//! The stored assertions: a change after which one of them would no longer hold is refused (D41).

use crate::reach_cache::Known;
use crate::writer::{WriteError, Writer};
use anyhow::Context;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{RwLock, RwLockReadGuard};
use tombolo_proto::fabric::{Assertion, StoredAssertions};
use tombolo_topology::change::{Change, Problem, Rejection};
use tombolo_topology::reach::{Reach, check_assertions};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// The key of the document with the assertions, one of the controller's own documents.
pub(crate) const DOCUMENT: &str = "own/assertions";

/// The stored assertions.
#[derive(Debug)]
pub(crate) struct Asserted(RwLock<Arc<[Assertion]>>);

impl Asserted {
    /// Reads the assertions from the controller's own documents.
    ///
    /// # Errors
    /// The document is malformed.
    pub(crate) fn open(documents: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Self> {
        let stored: Option<StoredAssertions> = match documents.get(DOCUMENT) {
            Some(document) => {
                Some(serde_json::from_slice(document).with_context(|| format!("the store's document '{DOCUMENT}'"))?)
            }
            None => None,
        };
        let all = stored.map(|stored| stored.assertions).unwrap_or_default();
        Ok(Self(RwLock::new(all.into())))
    }

    /// All assertions. They stay the same while the guard is held.
    pub(crate) async fn keep(&self) -> RwLockReadGuard<'_, Arc<[Assertion]>> {
        self.0.read().await
    }

    /// All assertions.
    pub(crate) async fn all(&self) -> Arc<[Assertion]> {
        self.0.read().await.clone()
    }

    /// Replaces all assertions if `check` succeeds. No change is made between the check and the moment from which the new
    /// assertions apply. Returns when they are durable.
    ///
    /// # Errors
    /// The error of `check`, or the store failed. The assertions stay as they were.
    pub(crate) async fn replace<E: From<WriteError>>(
        &self,
        writer: &Writer,
        assertions: Vec<Assertion>,
        check: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // Changes hold the lock for reading until they are made.
        let mut all = self.0.write().await;
        check().await?;
        let stored = StoredAssertions { assertions };
        let document = match stored.assertions.is_empty() {
            true => None,
            false => Some(serde_json::to_vec(&stored).map_err(|e| WriteError::Store(e.to_string()))?),
        };
        writer.set_document(DOCUMENT.to_owned(), document).await?;
        *all = stored.assertions.into();
        Ok(())
    }
}

/// The stored assertions that do not hold, by position, each with the reason.
#[derive(Debug)]
pub(crate) struct Broken(BTreeMap<usize, String>);

impl Broken {
    /// Checks each assertion by itself. One that names nothing that sends or receives does not hold.
    pub(crate) fn of(reach: &Reach, topology: &Topology, assertions: &[Assertion]) -> Self {
        let each = assertions.iter().enumerate().filter_map(|(position, assertion)| {
            match check_assertions(reach, topology, std::slice::from_ref(assertion)) {
                Ok(violations) => Some((position, violations.into_iter().next()?.text)),
                // The text begins with the position in the list of one assertion.
                Err(text) => Some((position, text.replacen("assert[0].", "", 1))),
            }
        });
        Self(each.collect())
    }

    /// The reasons for those that hold in `before`.
    pub(crate) fn since(&self, before: &Self) -> Vec<&str> {
        let new = self.0.iter().filter(|(position, _)| !before.0.contains_key(position));
        new.map(|(_, text)| text.as_str()).collect()
    }

    /// The reasons for all of them.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.0.values().map(String::as_str).collect()
    }
}

/// Whether a change may alter which addresses reach which, and is checked for that. Agents that join, leave or are revoked are
/// not checked: reachability takes every agent for joined, except that a served subnet's other machines need their agent.
pub(crate) const fn may_alter_reach(change: &Change) -> bool {
    match change {
        Change::Put { .. }
        | Change::Delete { .. }
        | Change::MigratePools { .. }
        | Change::SetSharedKey { .. }
        | Change::SetSettings(_) => true,
        Change::PatchTags { .. }
        | Change::PutToken(_)
        | Change::DeleteToken(_)
        | Change::Join { .. }
        | Change::SetReach { .. }
        | Change::SetCertificateKey { .. }
        | Change::RevokeAgent(_)
        | Change::DeleteAgent(_) => false,
    }
}

/// Checks that a change breaks no assertion. Returns the reachability after it; `None`: a rule of the topology forbids the
/// change, so that the writer refuses it.
///
/// # Errors
/// An assertion would no longer hold.
pub(crate) fn check(known: &Known, change: &Change, assertions: &[Assertion]) -> Result<Option<Reach>, Rejection> {
    let Ok(applied) = known.topology.apply(change, &mut Uuid::new_v4) else {
        return Ok(None);
    };
    let after = applied.topology;
    let reach = known.after(&after);
    let broken = Broken::of(&reach, &after, assertions);
    if broken.0.is_empty() {
        return Ok(Some(reach));
    }
    let before = Broken::of(&known.reach, &known.topology, assertions);
    let problems: Vec<Problem> = broken.since(&before).into_iter().map(problem).collect();
    match problems.is_empty() {
        true => Ok(Some(reach)),
        false => Err(Rejection { status: 403, problems }),
    }
}

fn problem(text: &str) -> Problem {
    Problem {
        code: "RequestDisallowedByPolicy",
        message: format!(
            "The change was disallowed by an assertion that would no longer hold: {text}. See the assertions with 'tombolo \
             assertion show'"
        ),
        target: None,
    }
}
