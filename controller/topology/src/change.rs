//! The changes that a client can request, and the outcome of an accepted one.

pub use crate::problems::{Problem, Rejection};

use crate::path::ArmPath;
use crate::resource::{Agent, JoinToken, Reach, Settings};
use crate::topology::Topology;
use serde_json::Value;
use tombolo_proto::id::{AgentId, ResourceId};

/// A change of the desired state. [`Topology::apply`] checks the change and computes the state after it.
#[derive(Debug, Clone)]
pub enum Change {
    /// ARM PUT of a resource, a child or a resource group: creates it or replaces it.
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
    /// ARM PATCH of a top-level resource or a resource group. Only the tags change.
    PatchTags {
        /// The path of the item.
        path: ArmPath,
        /// `{"tags": {…}}`: the new tags, which replace all present ones. Without `tags`, the present ones stay.
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
    /// POST `migrateToIpBased` of a load balancer: the network interfaces of back-end pools become addresses of the pools
    /// (L2).
    MigratePools {
        /// The path of the load balancer.
        path: ArmPath,
        /// `{"pools": ["…"]}`: the names of the pools. Without `pools`: all pools.
        body: Value,
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
    /// Adds a join token. An existing token is never replaced.
    PutToken(JoinToken),
    /// Deletes the join token with this id. A missing one is no error.
    DeleteToken(String),
    /// An agent joins with a token. The change also removes the token, so a token can be used only once.
    Join {
        /// The id of the token, which is not secret.
        token: String,
        /// The new agent. Its name and binding must equal those of the token. Before this change, the controller checks
        /// that the token has not expired and that the agent knows the token's secret.
        agent: Agent,
    },
    /// An agent reports its endpoints and its number of lanes. The new report replaces the old one.
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
        /// The [`Agent::certificate_key`] that signed the request. The change is refused if the agent's present key is
        /// another one.
        expected: String,
        /// The new certificate's key: SHA-256 of its SubjectPublicKeyInfo, in hex.
        certificate_key: String,
    },
    /// Revokes an agent. The agent's links are removed from its peers' configurations, and the agent gets no
    /// configuration any more. Its record stays until [`Self::DeleteAgent`].
    RevokeAgent(AgentId),
    /// Deletes an agent, which may be revoked. If the agent does not exist, this is no error. Another agent can then
    /// get the deleted agent's binding.
    DeleteAgent(AgentId),
    /// Replaces all of the operator's settings.
    SetSettings(Settings),
}

/// The outcome of an accepted change.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The state after the change. Unchanged resources share their `Arc` with the state before.
    pub topology: Topology,
    /// PUT: the resource is new (status 201, otherwise 200). DELETE: the resource existed (status 200, otherwise 204).
    /// `Join`: always true. Always false for changes that neither create nor remove anything: PATCH, the migration of
    /// pools, the shared key, endpoints, keys, revocation, settings.
    pub created_or_removed: bool,
}
