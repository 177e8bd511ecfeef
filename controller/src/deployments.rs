//! The history of template deployments, in the store and in memory.

use crate::writer::{DEPLOYMENTS, WriteError, Writer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tombolo_proto::id::ResourceId;

/// Most that are kept; the oldest ones go.
const MOST: usize = 200;

/// What was deployed, by the id in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Deployments(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: RwLock<BTreeMap<String, Value>>,
    /// Held over a write to the store and the one to memory, so that both see writes in the same order.
    writing: tokio::sync::Mutex<()>,
}

/// Deployments of a group have ids that start so.
fn of_group(group: &str) -> String {
    let group = group.to_ascii_lowercase();
    format!("{group}/providers/microsoft.resources/deployments/")
}

impl Deployments {
    /// Reads those of the store.
    pub(crate) fn open(documents: &BTreeMap<String, Vec<u8>>) -> Self {
        let own = documents.iter().filter_map(|(key, value)| {
            let id = key.strip_prefix(DEPLOYMENTS)?;
            // History alone: one that cannot be read any more is as good as forgotten.
            Some((id.to_owned(), serde_json::from_slice(value).ok()?))
        });
        Self(Arc::new(Shared {
            all: RwLock::new(own.collect()),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    fn read<T>(&self, f: impl FnOnce(&BTreeMap<String, Value>) -> T) -> T {
        f(&self.0.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn get(&self, id: &str) -> Option<Value> {
        self.read(|all| all.get(&id.to_ascii_lowercase()).cloned())
    }

    pub(crate) fn below(&self, group: &str) -> Vec<Value> {
        let prefix = of_group(group);
        let found = |all: &BTreeMap<String, Value>| {
            let own = all
                .range(prefix.clone()..)
                .take_while(|(id, _)| id.starts_with(&prefix));
            own.map(|(_, body)| body.clone()).collect()
        };
        self.read(found)
    }

    /// Forgets what was deployed to a group that is gone.
    pub(crate) async fn forget_group(&self, writer: &Writer, group: &ResourceId) -> Result<(), WriteError> {
        let prefix = of_group(group.as_str());
        let own: Vec<String> = self.read(|all| all.keys().filter(|id| id.starts_with(&prefix)).cloned().collect());
        self.write(writer, own.into_iter().map(|id| (id, None)).collect()).await
    }

    /// Keeps a deployment, or forgets it; the oldest ones make room.
    pub(crate) async fn set(&self, writer: &Writer, id: &str, body: Option<Value>) -> Result<(), WriteError> {
        self.write(writer, vec![(id.to_ascii_lowercase(), body)]).await
    }

    /// Stores, then changes what is looked at. A task of its own: a caller that goes away in between must not leave the
    /// two apart.
    async fn write(&self, writer: &Writer, changes: Vec<(String, Option<Value>)>) -> Result<(), WriteError> {
        let (own, writer) = (self.clone(), writer.clone());
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            for (id, body) in changes {
                own.write_one(&writer, id, body).await?;
            }
            while let Some(oldest) = own.read(superfluous) {
                own.write_one(&writer, oldest, None).await?;
            }
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    async fn write_one(&self, writer: &Writer, id: String, body: Option<Value>) -> Result<(), WriteError> {
        let document = body.as_ref().map(|b| b.to_string().into_bytes());
        writer.set_document(format!("{DEPLOYMENTS}{id}"), document).await?;
        let mut all = self.0.all.write().unwrap_or_else(PoisonError::into_inner);
        match body {
            Some(body) => all.insert(id, body),
            None => all.remove(&id),
        };
        Ok(())
    }
}

/// The oldest one, if there are too many.
fn superfluous(all: &BTreeMap<String, Value>) -> Option<String> {
    let age = |body: &Value| body["properties"]["timestamp"].as_str().map(ToOwned::to_owned);
    let oldest = all.iter().min_by_key(|(_, body)| age(body));
    oldest.filter(|_| all.len() > MOST).map(|(id, _)| id.clone())
}
