//! The flow logs that a client wants to follow.

use crate::compiled::Compiled;
use std::collections::BTreeSet;
use tombolo_proto::fabric::FlowLogTail;
use tombolo_proto::flow_tail::MAX_LOGS;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_topology::topology::Topology;

/// The flow logs that are followed.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// Their ids. Empty: all.
    logs: BTreeSet<ResourceId>,
    /// Only those of this region.
    region: Option<String>,
}

/// A request that is refused. Its text is a message for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectionError {
    #[error("logs: {0} entries; at most {MAX_LOGS} are possible. Leave it out to follow all flow logs")]
    TooMany(usize),
    #[error("logs: the flow log {0} does not exist; `tombolo flow-log list` shows all")]
    Unknown(String),
    #[error(
        "logs: the flow log {0} is not enabled, so that no agent makes records (N14); set its property enabled to true"
    )]
    Disabled(ResourceId),
    #[error("region: the flow log {0} is in region '{1}', not in '{2}'; leave the region out, or name a log of it")]
    OtherRegion(ResourceId, String, String),
}

impl SelectionError {
    /// The name of the field.
    pub(crate) const fn field(&self) -> &'static str {
        match self {
            Self::OtherRegion(..) => "region",
            Self::TooMany(_) | Self::Unknown(_) | Self::Disabled(_) => "logs",
        }
    }
}

impl Selection {
    /// Checks a request.
    ///
    /// # Errors
    /// [`SelectionError`].
    pub(crate) fn of(topology: &Topology, asked: FlowLogTail) -> Result<Self, SelectionError> {
        if asked.logs.len() > MAX_LOGS {
            return Err(SelectionError::TooMany(asked.logs.len()));
        }
        let region = asked.region.filter(|region| !region.is_empty());
        for id in &asked.logs {
            let log = topology.flow_logs.get(id);
            let log = log.ok_or_else(|| SelectionError::Unknown(crate::excerpt::excerpt(id.as_str())))?;
            let (id, location) = (log.envelope.id.clone(), &log.envelope.location);
            if !log.enabled {
                return Err(SelectionError::Disabled(id));
            }
            if let Some(region) = region.as_ref().filter(|region| !is_same(region, location)) {
                let asked = crate::excerpt::excerpt(region);
                return Err(SelectionError::OtherRegion(id, location.clone(), asked));
            }
        }
        Ok(Self {
            logs: asked.logs.into_iter().collect(),
            region,
        })
    }

    /// The ids of the logs. Empty: all.
    pub(super) fn logs(&self) -> Vec<ResourceId> {
        self.logs.iter().cloned().collect()
    }

    /// Whether a log is followed.
    pub(super) fn has(&self, topology: &Topology, log: &ResourceId) -> bool {
        let is_there = || topology.flow_logs.get(log);
        let in_region = |location: &str| self.region.as_ref().is_none_or(|region| is_same(region, location));
        (self.logs.is_empty() || self.logs.contains(log))
            && is_there().is_some_and(|log| in_region(&log.envelope.location))
    }

    /// The agents that write one of the logs, ordered by id.
    pub(super) fn agents<'c>(&self, compiled: &'c Compiled) -> impl Iterator<Item = &'c AgentId> {
        let agents = compiled.configs.iter();
        agents
            .filter(|(_, config)| config.flow_logs.keys().any(|log| self.has(&compiled.topology, log)))
            .map(|(agent, _)| agent)
    }
}

/// Whether two names of regions are the same. Azure writes `West Europe` and `westeurope`.
fn is_same(one: &str, other: &str) -> bool {
    one.replace(' ', "").eq_ignore_ascii_case(&other.replace(' ', ""))
}
