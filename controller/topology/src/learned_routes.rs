//! The routes that each agent has learned (D11). Gateways and edges report the routes of their BGP neighbours. Agents
//! do not report the routes that they learn from each other. This module computes these routes from the reports, with
//! the agents' own export rules.

use crate::compile::Compiler;
use crate::resource::{Agent, Binding};
use crate::topology::{AgentStatuses, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::routing::{self, RoutingState, routes_for_peer};
use tombolo_engine::tables::Tables;
use tombolo_proto::config::{AgentConfig, Relation};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::installed::InstalledTables;
use tombolo_proto::route::{EffectiveRoute, Route};
use tombolo_proto::status::ProbeFailure;

/// The parts of the agents' reports from which learned routes are computed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LearnedReports {
    /// For each agent, the routes that it has learned by BGP, by neighbour. The key is the id of the connection to a
    /// site, or the id of the circuit.
    pub learned: BTreeMap<AgentId, BTreeMap<ResourceId, Arc<Vec<Route>>>>,
    /// For each agent, the peers that the agent reports as not answering.
    pub down: BTreeMap<AgentId, BTreeSet<AgentId>>,
    /// For each agent, its back ends of load balancers that are down, by the probe and the back end's address (L6).
    pub unhealthy: BTreeMap<AgentId, BTreeSet<(ResourceId, IpAddr)>>,
    /// Why these back ends are down, as far as the agents that own them report it.
    pub failures: BTreeMap<AgentId, BTreeMap<(ResourceId, IpAddr), ProbeFailure>>,
}

impl LearnedReports {
    /// The reports of learned routes, without those of links and back ends that are down.
    #[must_use]
    pub fn of_routes_only(&self) -> Self {
        Self {
            learned: self.learned.clone(),
            ..Self::default()
        }
    }

    /// Extracts the reports from the last status of each agent, whether or not the agent is connected now.
    #[must_use]
    pub fn of(statuses: &AgentStatuses) -> Self {
        let mut reports = Self::default();
        for (agent, status) in &statuses.agents {
            if !status.learned.is_empty() {
                let learned = status.learned.iter();
                let learned = learned.map(|h| (h.neighbour.clone(), Arc::new(h.routes.clone())));
                reports.learned.insert(agent.clone(), learned.collect());
            }
            let down = status.health.iter().filter(|health| !health.up);
            let down = down.map(|health| ((health.probe.clone(), health.address), health.reason));
            let down: Vec<_> = down.collect();
            if !down.is_empty() {
                let reasons = down
                    .iter()
                    .filter_map(|(probed, reason)| Some((probed.clone(), (*reason)?)));
                reports.failures.insert(agent.clone(), reasons.collect());
                let unhealthy = down.into_iter().map(|(probed, _)| probed);
                reports.unhealthy.insert(agent.clone(), unhealthy.collect());
            }
            if !status.down.is_empty() {
                reports
                    .down
                    .insert(agent.clone(), status.down.iter().cloned().collect());
            }
        }
        reports
    }
}

/// The effective routes of a network interface: the configured routes of the subnet of its primary address, and the
/// routes that the agent of its VM has learned (R20, R21). The routes are computed from the topology and the reports;
/// no agent is asked. If the interface has no agent, or only a revoked one, the result is the configured routes alone.
/// `None`: the interface or its subnet does not exist, or the interface has no address. Each call computes the routes
/// of all gateways and edges, which takes long in a large topology.
#[must_use]
pub fn effective_routes(
    topology: &Topology,
    reports: &LearnedReports,
    nic: &ResourceId,
) -> Option<Vec<EffectiveRoute>> {
    let nic = topology.nics.get(nic)?;
    let subnet = &nic.ip_configurations.first()?.subnet;
    let compiler = Compiler::new(topology);
    let stands_for = |agent: &&Arc<Agent>| {
        let has = matches!(&agent.binding, Binding::Vm { nics, .. } if nics.contains(&nic.envelope.id));
        has && !agent.revoked
    };
    let agent = topology.agents.values().find(stands_for);
    let Some(config) = agent.and_then(|agent| compiler.compile(&agent.id)) else {
        return compiler.effective_routes(subnet);
    };
    let state = LearnedRoutes::new(topology, &compiler, reports.clone()).routing_state(&config);
    let subnet = config.subnets.iter().find(|s| s.id == *subnet)?;
    Some(routing::effective(&config, subnet, &state))
}

/// The tables that an agent should have now, computed from the topology and the reports; the agent itself is not asked.
/// `None`: the agent is unknown, revoked, or bound to a deleted resource. An inner error is the text with which the
/// agent would reject the configuration. The time is as for [`effective_routes`].
#[must_use]
pub fn tables(
    topology: &Topology,
    reports: &LearnedReports,
    agent: &AgentId,
) -> Option<Result<InstalledTables, String>> {
    let compiler = Compiler::new(topology);
    let config = compiler.compile(agent)?;
    let state = LearnedRoutes::new(topology, &compiler, reports.clone()).routing_state(&config);
    let tables = Tables::build(&config, &state).map_err(|e| e.to_string());
    Some(tables.map(|t| t.installed()))
}

/// The maximum number of rounds of the route exchange between agents. In each round a route spreads over one more link,
/// and no chain of gateways in practice is 64 long. A VPN gateway refuses a route that comes back to it, which it sees
/// by the AS path (G22), so the exchange normally settles long before this limit. The limit is only a safeguard, which
/// ends the computation if the routes do not settle.
const MAX_ROUNDS: usize = 64;

/// The routes that every gateway and edge has learned. [`Self::routing_state`] derives the learned routes of a VM's
/// agent from these routes.
#[derive(Debug)]
pub struct LearnedRoutes {
    configs: BTreeMap<AgentId, AgentConfig>,
    states: BTreeMap<AgentId, RoutingState>,
    reports: LearnedReports,
}

impl LearnedRoutes {
    /// Computes the route exchange between all gateways and edges, in rounds, until no route changes, at most for 64
    /// rounds. The configuration of each gateway and edge is compiled once. `compiler` must be of the same topology.
    #[must_use]
    pub fn new(topology: &Topology, compiler: &Compiler<'_>, reports: LearnedReports) -> Self {
        let mut learned = Self {
            configs: BTreeMap::new(),
            states: BTreeMap::new(),
            reports,
        };
        for agent in topology.agents.keys() {
            if compiler.relays(agent)
                && let Some(config) = compiler.compile(agent)
            {
                learned.states.insert(agent.clone(), learned.reported(&config));
                learned.configs.insert(agent.clone(), config);
            }
        }
        for _ in 0..MAX_ROUNDS {
            let next: BTreeMap<AgentId, RoutingState> = learned
                .configs
                .values()
                .map(|config| (config.agent.clone(), learned.routing_state(config)))
                .collect();
            if next == learned.states {
                break;
            }
            learned.states = next;
        }
        learned
    }

    /// The routing state of the agent with this configuration: the routes and silent peers that the agent itself
    /// reports, and the routes that its peers advertise to it. `config` may be that of any agent, a VM's included. It
    /// must be compiled from the same topology.
    #[must_use]
    pub fn routing_state(&self, config: &AgentConfig) -> RoutingState {
        let mut state = self.reported(config);
        for link in config.links.iter().filter(|l| l.always_on && !l.third_party) {
            let advertises = matches!(
                link.relation,
                Relation::Gateway {} | Relation::Connection { .. } | Relation::Edge { .. } | Relation::OtherGateway {}
            );
            let sender = self.configs.get(&link.peer).filter(|_| advertises);
            let known = sender.and_then(|t| Some((t, self.states.get(&t.agent)?)));
            let Some((sender, known)) = known else { continue };
            // The compiler orders the links of a configuration by peer. So a binary search in the sender's
            // configuration finds its link with this agent.
            let back = sender.links.binary_search_by(|l| l.peer.cmp(&config.agent));
            if let Ok(back) = back {
                let routes = routes_for_peer(sender, known, &sender.links[back]);
                if !routes.is_empty() {
                    state.received.insert(link.peer.clone(), Arc::new(routes));
                }
            }
        }
        state
    }

    /// The configuration of a gateway or an edge. `None`: the agent is unknown or revoked, has no configuration, or is
    /// the agent of a VM.
    #[must_use]
    pub fn config(&self, agent: &AgentId) -> Option<&AgentConfig> {
        self.configs.get(agent)
    }

    /// The back ends in a configuration that are down by the reports of the agents that own them.
    fn unhealthy(&self, config: &AgentConfig) -> BTreeSet<(ResourceId, IpAddr)> {
        let named = config.probed_back_ends().into_iter();
        let named = named.map(|b| (b.owner, (b.probe.id.clone(), b.address)));
        let down = named.filter(|(owner, back_end)| {
            let reported = self.reports.unhealthy.get(*owner);
            reported.is_some_and(|reported| reported.contains(back_end))
        });
        down.map(|(_, back_end)| back_end).collect()
    }

    /// The routing state from the agent's own report alone, without the parts that its present configuration does not
    /// have any more.
    fn reported(&self, config: &AgentConfig) -> RoutingState {
        let mut state = RoutingState {
            down: self.reports.down.get(&config.agent).cloned().unwrap_or_default(),
            learned: self.reports.learned.get(&config.agent).cloned().unwrap_or_default(),
            unhealthy: self.unhealthy(config),
            ..RoutingState::default()
        };
        state.keep(config);
        state
    }
}
