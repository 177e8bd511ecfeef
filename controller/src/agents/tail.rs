//! Tails of flow logs at agents (D38).

use super::Agents;
use super::listed::{Listed, Unlisted};
use super::live::LiveBytes;
use std::sync::Arc;
use tokio::sync::watch;
use tombolo_proto::flow_tail::{MAX_RUNNING, TailRequest};
use tombolo_proto::id::AgentId;

/// Why an agent's flow logs cannot be followed. Its text is a message for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailRefusal {
    /// The agent is not connected.
    #[error("agent {0} is not connected; its records follow when it is")]
    NotConnected(AgentId),
    /// The agent's version has no tails.
    #[error("agent {0} is too old to send the records of its flow logs while it makes them; update the agent")]
    NotSupported(AgentId),
    /// Too many tails run at the agent.
    #[error("agent {0} sends records to {MAX_RUNNING} tails of flow logs already, and no more are possible; end one")]
    TooMany(AgentId),
}

impl Agents {
    /// Begins a tail at a connected agent.
    ///
    /// # Errors
    /// [`TailRefusal`].
    pub fn tail(self: &Arc<Self>, agent: &AgentId, request: &TailRequest) -> Result<LiveBytes, TailRefusal> {
        let live = self.begin_live(agent, |id, live| Listed::tail(id, request, live));
        live.map_err(|why| match why {
            Unlisted::NotConnected => TailRefusal::NotConnected(agent.clone()),
            Unlisted::NotSupported => TailRefusal::NotSupported(agent.clone()),
            Unlisted::TooMany => TailRefusal::TooMany(agent.clone()),
        })
    }

    /// A receiver that is notified when an agent has connected, disconnected or reported.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
