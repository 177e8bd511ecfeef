//! The changes that a client can request, and the outcome of an accepted one.

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
        /// The path of the item.
        path: ArmPath,
        /// The ARM body as parsed JSON. Read-only and unknown properties are ignored (D3).
        body: Value,
        /// The `If-Match` header of the request.
        if_match: Option<String>,
        /// `syncRemoteAddressSpace=true` on a peering (P27).
        sync_remote_address_space: bool,
    },
    /// ARM PATCH: tags only.
    PatchTags {
        /// The path of the item.
        path: ArmPath,
        /// `{"tags": {…}}`. Without `tags`, the tags stay as they are.
        body: Value,
        /// The `If-Match` header of the request.
        if_match: Option<String>,
    },
    /// ARM DELETE of a resource, a child or a resource group.
    Delete {
        /// The path of the item.
        path: ArmPath,
        /// The `If-Match` header of the request.
        if_match: Option<String>,
    },
    /// PUT of the shared key at `…/connections/{name}/sharedkey`.
    SetSharedKey {
        /// The id of the connection.
        connection: ResourceId,
        /// The shared key: 1 to 128 characters (G11).
        value: String,
        /// The `If-Match` header of the request, compared with the connection's etag.
        if_match: Option<String>,
    },
    /// A new join token.
    PutToken(JoinToken),
    /// Deletes the join token with this id.
    DeleteToken(String),
    /// An agent joins with a token. The same change uses up the token.
    Join {
        /// The id of the token, which is not secret.
        token: String,
        /// The new agent. Its name and binding must equal those of the token.
        agent: Agent,
    },
    /// An agent reports new endpoints.
    SetReach {
        /// The id of the agent.
        agent: AgentId,
        /// The endpoints, QUIC endpoint and number of lanes that the agent reports.
        reach: Reach,
    },
    /// An agent renews its certificate with a new key.
    SetCertificateKey {
        /// The id of the agent.
        agent: AgentId,
        /// The key that signed the request. The change is refused if the agent has another key by now.
        expected: String,
        /// SHA-256 of the SubjectPublicKeyInfo, hex.
        certificate_key: String,
    },
    /// Revokes an agent. Other agents lose their links with it.
    RevokeAgent(AgentId),
    /// Deletes an agent. Another agent can then have its binding.
    DeleteAgent(AgentId),
    /// Replaces the operator's settings.
    SetSettings(Settings),
}

/// The outcome of an accepted change.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The state after the change. Unchanged resources share their `Arc` with the state before.
    pub topology: Topology,
    /// PUT: the resource is new (status 201, otherwise 200). DELETE: the resource existed (status 200, otherwise 204).
    pub created_or_removed: bool,
}
