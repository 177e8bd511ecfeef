//! The history of template deployments, in the store and in memory.

use crate::writer::{DEPLOYMENTS_PREFIX, WriteError, Writer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tombolo_proto::id::ResourceId;

/// Maximum number of deployments that are kept, of all resource groups together. The oldest ones are removed. Azure
/// keeps 800 for each resource group.
const MAX_DEPLOYMENTS: usize = 200;

/// The deployments of all resource groups: their ARM bodies, by the deployment's id in lower case. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Deployments(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: RwLock<BTreeMap<String, Value>>,
    /// Locked while a write changes first the store and then the memory, so that both get all writes in the same order.
    writing: tokio::sync::Mutex<()>,
}

/// The prefix of the ids of a group's deployments.
fn group_prefix(group: &str) -> String {
    let group = group.to_ascii_lowercase();
    format!("{group}/providers/microsoft.resources/deployments/")
}

impl Deployments {
    /// Reads the deployments from those of the controller's own documents (see [`crate::writer::OWN_PREFIX`]) whose
    /// keys start with [`DEPLOYMENTS_PREFIX`]. Documents that this version cannot read are left out.
    pub(crate) fn open(documents: &BTreeMap<String, Vec<u8>>) -> Self {
        let own = documents.iter().filter_map(|(key, value)| {
            let id = key.strip_prefix(DEPLOYMENTS_PREFIX)?;
            // Nothing depends on a past deployment, so one that this version cannot read is left out.
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

    /// The deployment with this id, which is compared case-insensitively. `None`: no deployment has this id, or it was
    /// removed as one of the oldest.
    pub(crate) fn get(&self, id: &str) -> Option<Value> {
        self.read(|all| all.get(&id.to_ascii_lowercase()).cloned())
    }

    /// The bodies of a resource group's deployments, ordered by id. `group`: the id of the group, which is compared
    /// case-insensitively.
    pub(crate) fn of_group(&self, group: &str) -> Vec<Value> {
        let prefix = group_prefix(group);
        let found = |all: &BTreeMap<String, Value>| {
            let own = all
                .range(prefix.clone()..)
                .take_while(|(id, _)| id.starts_with(&prefix));
            own.map(|(_, body)| body.clone()).collect()
        };
        self.read(found)
    }

    /// Deletes the deployments of a resource group that was deleted. Returns when that is durable. After an error, some
    /// of them may be deleted.
    pub(crate) async fn forget_group(&self, writer: &Writer, group: &ResourceId) -> Result<(), WriteError> {
        let prefix = group_prefix(group.as_str());
        let own: Vec<String> = self.read(|all| all.keys().filter(|id| id.starts_with(&prefix)).cloned().collect());
        self.write(writer, own.into_iter().map(|id| (id, None)).collect()).await
    }

    /// Stores a deployment, or deletes it if `body` is `None`. If there are then more than [`MAX_DEPLOYMENTS`], removes
    /// the oldest. Returns when all of that is durable. Deleting a deployment that does not exist is no error.
    pub(crate) async fn set(&self, writer: &Writer, id: &str, body: Option<Value>) -> Result<(), WriteError> {
        self.write(writer, vec![(id.to_ascii_lowercase(), body)]).await
    }

    /// Writes to the store and then to memory. Runs in a separate task, so that both are written even if the caller is
    /// cancelled between the two.
    async fn write(&self, writer: &Writer, changes: Vec<(String, Option<Value>)>) -> Result<(), WriteError> {
        let (own, writer) = (self.clone(), writer.clone());
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            for (id, body) in changes {
                own.write_one(&writer, id, body).await?;
            }
            while let Some(oldest) = own.read(excess) {
                own.write_one(&writer, oldest, None).await?;
            }
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    async fn write_one(&self, writer: &Writer, id: String, body: Option<Value>) -> Result<(), WriteError> {
        let document = body.as_ref().map(|b| b.to_string().into_bytes());
        writer
            .set_document(format!("{DEPLOYMENTS_PREFIX}{id}"), document)
            .await?;
        let mut all = self.0.all.write().unwrap_or_else(PoisonError::into_inner);
        match body {
            Some(body) => all.insert(id, body),
            None => all.remove(&id),
        };
        Ok(())
    }
}

/// The id of the oldest deployment, if there are more than [`MAX_DEPLOYMENTS`].
fn excess(all: &BTreeMap<String, Value>) -> Option<String> {
    let age = |body: &Value| body["properties"]["timestamp"].as_str().map(ToOwned::to_owned);
    let oldest = all.iter().min_by_key(|(_, body)| age(body));
    oldest.filter(|_| all.len() > MAX_DEPLOYMENTS).map(|(id, _)| id.clone())
}
