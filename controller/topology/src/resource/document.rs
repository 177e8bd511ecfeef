//! Converts resources, agents and tokens to their JSON documents in the store and back.

use crate::topology::DocumentChange;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// The prefix of an ARM resource's key in the store; the lower-case id follows.
pub(crate) const ARM: &str = "arm";

/// The store's key of an ARM resource or a resource group: `arm` and the lower-case id.
pub(crate) fn arm_key(id: &ResourceId) -> String {
    format!("{ARM}{}", id.key())
}

/// A value as JSON text without spaces.
pub(crate) fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(
        clippy::unwrap_used,
        reason = "no resource type has a map with non-text keys or a failing serializer"
    )]
    serde_json::to_vec(value).unwrap()
}

/// Parses the document `key`. The error names the document, and says where and why its JSON does not have the expected
/// form.
pub(crate) fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<Arc<T>, String> {
    serde_json::from_slice(value)
        .map(Arc::new)
        .map_err(|e| format!("document '{key}': {e}"))
}

/// Appends the changes that turn the documents of `before` into those of `after`: first the deletions, then the new and
/// changed documents. `key` gives a document's key. Two values behind the same `Arc` are equal, so they are not
/// compared. The time therefore grows with the number of documents, but not with the size of those that are unchanged.
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
