//! One resource, agent or token as a JSON document of the store.

use crate::topology::DocumentChange;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// What the keys of ARM resources begin with; their id follows, in lower case.
pub(crate) const ARM: &str = "arm";

/// The key of an ARM resource.
pub(crate) fn arm_key(id: &ResourceId) -> String {
    format!("{ARM}{}", id.key())
}

pub(crate) fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(
        clippy::unwrap_used,
        reason = "no resource type has a map with non-text keys or a failing serializer"
    )]
    serde_json::to_vec(value).unwrap()
}

/// Reads a document.
pub(crate) fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<Arc<T>, String> {
    serde_json::from_slice(value)
        .map(Arc::new)
        .map_err(|e| format!("document '{key}': {e}"))
}

/// The documents in which `after` differs from `before`.
pub(crate) fn differences<K: Ord, V: Serialize + PartialEq>(
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
    key: impl Fn(&K) -> String,
    changes: &mut Vec<DocumentChange>,
) {
    for gone in before.keys().filter(|k| !after.contains_key(*k)) {
        changes.push(DocumentChange {
            key: key(gone),
            value: None,
        });
    }
    for (id, new) in after {
        let same = before.get(id).is_some_and(|old| Arc::ptr_eq(old, new) || old == new);
        if !same {
            changes.push(DocumentChange {
                key: key(id),
                value: Some(bytes(&**new)),
            });
        }
    }
}
