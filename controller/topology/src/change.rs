//! What may be asked of the topology, and what comes of it.

pub use crate::problems::{Problem, Rejection};

use crate::path::ArmPath;
use crate::resource::{Agent, JoinToken, Reach, Settings};
use crate::topology::Topology;
use serde_json::Value;
use tombolo_proto::id::{AgentId, ResourceId};

/// A change of the desired state.
#[derive(Debug, Clone)]
pub enum Change {
    /// ARM PUT: create or replace.
    Put {
        /// What.
        path: ArmPath,
        /// The ARM body as parsed JSON; read-only and unknown properties are ignored (D3).
        body: Value,
        /// `If-Match` of the request, if sent.
        if_match: Option<String>,
        /// `syncRemoteAddressSpace=true` on a peering (P27).
        sync_remote_address_space: bool,
    },
    /// ARM PATCH: tags only.
    PatchTags {
        /// What.
        path: ArmPath,
        /// `{"tags": {…}}`; without `tags` they stay.
        body: Value,
        /// `If-Match` of the request, if sent.
        if_match: Option<String>,
    },
    /// ARM DELETE.
    Delete {
        /// What.
        path: ArmPath,
        /// `If-Match` of the request, if sent.
        if_match: Option<String>,
    },
    /// PUT `…/connections/{name}/sharedkey`.
    SetSharedKey {
        /// The connection.
        connection: ResourceId,
        /// The key (G11).
        value: String,
        /// `If-Match` of the request, if sent; the etag is the connection's.
        if_match: Option<String>,
    },
    /// A new join token.
    PutToken(JoinToken),
    /// Deletes a join token.
    DeleteToken(String),
    /// An agent joined with a token: the token is used up in the same transaction.
    Join {
        /// The token's id.
        token: String,
        /// The agent; its binding is the token's.
        agent: Agent,
    },
    /// How an agent is reached now.
    SetReach {
        /// Which.
        agent: AgentId,
        /// As it says.
        reach: Reach,
    },
    /// A renewed certificate with a new key.
    SetCertificateKey {
        /// Which.
        agent: AgentId,
        /// The key that asked for it: if the agent has another one by now, nothing changes.
        expected: String,
        /// SHA-256 of the SubjectPublicKeyInfo, hex.
        certificate_key: String,
    },
    /// Cuts an agent off.
    RevokeAgent(AgentId),
    /// Forgets an agent: what it stood for is free again.
    DeleteAgent(AgentId),
    /// The operator's switches.
    SetSettings(Settings),
}

/// A change that was accepted.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The state after it. Unchanged resources are the same `Arc`s as before.
    pub topology: Topology,
    /// The resource is new (201 instead of 200), or for a delete: it was there (200 instead of 204).
    pub created_or_removed: bool,
}
