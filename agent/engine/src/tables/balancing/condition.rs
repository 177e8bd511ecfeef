//! What an agent knows about the condition of back ends: the results of their probes (L7, L8), and the links with the
//! agents that own them (D36).

use super::{LinkPolicy, Owner};
use crate::routing::RoutingState;
use std::net::IpAddr;
use tombolo_proto::config;

/// The condition of all back ends.
pub(crate) struct Conditions<'a> {
    state: &'a RoutingState,
    /// The links, by their index.
    links: &'a [LinkPolicy],
}

/// The condition of a back end as a rule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Whether the back end answers the rule's probe, or the operator has said that it is up. Also true if nothing is known.
    pub(super) is_healthy: bool,
    /// Whether the operator has said that it is down.
    pub(super) is_out: bool,
    /// Whether the link with its agent is down.
    pub(super) is_link_down: bool,
    /// Whether the link has been down for so long that the back end is gone.
    pub(super) is_gone: bool,
}

impl<'a> Conditions<'a> {
    /// The conditions in a routing state. `links` are the links of the same configuration.
    pub(crate) const fn new(state: &'a RoutingState, links: &'a [LinkPolicy]) -> Self {
        Self { state, links }
    }

    /// The condition of a back end of a rule. `owner` is the agent that owns the back end.
    pub(super) fn of(&self, rule: &config::BalancingRule, back_end: IpAddr, owner: Owner) -> Condition {
        let link = match owner {
            Owner::Link(link) => self.links.get(link.get()),
            Owner::Own | Owner::NoLink => None,
        };
        let down_for = link.and_then(|link| self.state.gone.get(&link.peer));
        let decided = rule.decided.get(&back_end).copied();
        let is_unhealthy = |probe: &config::HealthProbe| self.state.unhealthy.contains(&(probe.id.clone(), back_end));
        Condition {
            is_healthy: match decided {
                Some(up) => up,
                None => !rule.probe.as_ref().is_some_and(is_unhealthy),
            },
            is_out: decided == Some(false),
            is_link_down: link.is_some_and(|link| link.down),
            is_gone: down_for.is_some_and(|seconds| *seconds >= rule.gone_after()),
        }
    }
}
