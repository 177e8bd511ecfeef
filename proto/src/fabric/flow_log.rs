//! Tails of flow logs.

use crate::flow_tail::FlowRecord;
use crate::id::{AgentId, ResourceId};
use serde::{Deserialize, Serialize};

/// A request for the tail of flow logs. The response is a stream of lines, each a [`TailLine`] as JSON. It ends when the
/// client ends it. An empty line shows that the controller is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowLogTail {
    /// The resource ids of the flow logs, at most 64. Empty or absent: all flow logs, also those that are created later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<ResourceId>,
    /// Only the flow logs of this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// A line of a tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum TailLine {
    /// The number of agents that write the flow logs. The first line, and again when the number has changed.
    Agents {
        /// The number.
        count: usize,
    },
    /// Whether the records of an agent are followed: once for each agent, and when it has changed.
    Agent {
        /// The agent.
        agent: AgentId,
        /// Whether its records are followed.
        state: TailState,
        /// Why they are not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A record.
    Record {
        /// The agent that has made it.
        agent: AgentId,
        /// The record.
        #[serde(flatten)]
        record: FlowRecord,
    },
    /// Records that are missing, because the reader was too slow.
    Dropped {
        /// The agent that has dropped them.
        agent: AgentId,
        /// Their number.
        records: u64,
    },
}

/// Whether the records of an agent are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TailState {
    /// They are.
    Following,
    /// The agent is not connected. Its records are followed when it is.
    Waiting,
    /// The agent cannot be followed. The controller tries again from time to time.
    Failed,
}
