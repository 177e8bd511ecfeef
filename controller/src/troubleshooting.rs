//! The last results of Network Watcher's action `troubleshoot`, in memory.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tombolo_proto::id::ResourceId;

/// The last result for each gateway and connection. A restart of the controller forgets them.
#[derive(Debug, Default)]
pub(crate) struct Troubleshooting(Mutex<BTreeMap<ResourceId, Value>>);

impl Troubleshooting {
    /// The last result for a resource. `None`: there is none.
    pub(crate) fn get(&self, target: &ResourceId) -> Option<Value> {
        let results = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        results.get(target).cloned()
    }

    /// Replaces the result for a resource. Forgets the results of resources for which `exists` is false, so that there are
    /// never more results than gateways and connections.
    pub(crate) fn set(&self, target: ResourceId, result: Value, exists: impl Fn(&ResourceId) -> bool) {
        let mut results = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        results.retain(|id, _| exists(id));
        results.insert(target, result);
    }
}
