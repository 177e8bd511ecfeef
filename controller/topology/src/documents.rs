//! The stored form of a topology: one JSON document for each top-level resource, agent and token, and one for the
//! settings.

use crate::path::{ArmPath, Kind};
use crate::resource::document::{ARM, arm_key, bytes, differences, read};
use crate::resource::{Agent, JoinToken, ResourceGroup, registry};
use crate::topology::{DocumentChange, Topology};
use std::sync::Arc;
use tombolo_proto::id::AgentId;

/// The prefix of an agent's key in the store; the agent's name follows.
const AGENTS: &str = "fabric/agents/";
/// The prefix of a join token's key in the store; the token's id follows.
const TOKENS: &str = "fabric/tokens/";
/// The key of the settings.
const SETTINGS: &str = "fabric/settings";

/// The documents in which `after` differs from `before`, ordered by key; see [`Topology::documents_since`].
pub(crate) fn since(after: &Topology, before: &Topology) -> Vec<DocumentChange> {
    let mut changes = Vec::new();
    let arm = arm_key;
    differences(&before.resource_groups, &after.resource_groups, arm, &mut changes);
    for stored in registry::ENTRIES.iter().filter_map(|entry| entry.stored.as_ref()) {
        (stored.differences)(before, after, &mut changes);
    }
    differences(
        &before.agents,
        &after.agents,
        |id: &AgentId| format!("{AGENTS}{id}"),
        &mut changes,
    );
    differences(
        &before.tokens,
        &after.tokens,
        |id: &String| format!("{TOKENS}{id}"),
        &mut changes,
    );
    if before.settings != after.settings {
        changes.push(DocumentChange {
            key: SETTINGS.to_owned(),
            value: Some(bytes(&*after.settings)),
        });
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes
}

/// Builds a topology from its documents, without checking the rules; see [`Topology::from_documents`].
pub(crate) fn load<'a>(documents: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Topology, String> {
    let mut topology = Topology::default();
    for (key, value) in documents {
        if key == SETTINGS {
            topology.settings = read(key, value)?;
        } else if key.starts_with(AGENTS) {
            let agent: Arc<Agent> = read(key, value)?;
            topology.agents.insert(agent.id.clone(), agent);
        } else if key.starts_with(TOKENS) {
            let token: Arc<JoinToken> = read(key, value)?;
            topology.tokens.insert(token.id.clone(), token);
        } else if let Some(path) = key.strip_prefix(ARM).filter(|p| p.starts_with('/')) {
            load_resource(&mut topology, key, path, value)?;
        }
    }
    Ok(topology)
}

/// Adds the resource group or resource of the document `key` to the topology. `path`: the ARM path in the key. An
/// unknown kind is an error: if the controller ignored a stored resource, it would configure the agents as if that
/// resource were deleted.
fn load_resource(topology: &mut Topology, key: &str, path: &str, value: &[u8]) -> Result<(), String> {
    let path = ArmPath::parse(path).map_err(|e| format!("document '{key}': {e}"))?;
    if let Some(stored) = path
        .kind()
        .and_then(registry::entry)
        .and_then(|entry| entry.stored.as_ref())
    {
        return (stored.load)(topology, key, value);
    }
    if path.kind() == Some(Kind::ResourceGroup) {
        let group: Arc<ResourceGroup> = read(key, value)?;
        topology.resource_groups.insert(group.id.clone(), group);
        return Ok(());
    }
    Err(format!("document '{key}': not a top-level resource that exists here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Reach;

    /// The documents of agents that earlier versions wrote lack `lanes` and `quicEndpoint`. They are read as one lane
    /// and no QUIC.
    #[test]
    fn agents_of_earlier_versions_are_read() {
        let document = br#"{"id":"vm","binding":{"type":"gateway","gateway":"/g","ipConfiguration":"one"},
            "publicKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","certificateKey":"cert",
            "endpoints":["192.0.2.1:4500"],"revoked":false}"#;
        let topology = load(std::iter::once(("fabric/agents/vm", document.as_slice()))).unwrap();
        let agent = topology.agents.values().next().unwrap();
        assert_eq!(agent.reach, Reach::at(vec!["192.0.2.1:4500".parse().unwrap()]));
        let again: Arc<Agent> = read("fabric/agents/vm", &bytes(&**agent)).unwrap();
        assert_eq!(again, *agent);
    }
}
