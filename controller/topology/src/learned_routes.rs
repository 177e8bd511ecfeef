//! The routes that each agent has learned (D11). Gateways and edges report the routes of their BGP neighbours; this
//! module repeats the exchange between agents with the agents' own export rules.

use crate::compile::Compiler;
use crate::resource::{Agent, Binding};
use crate::topology::{AgentStatuses, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_engine::routing::{self, Dynamic, tell_peer};
use tombolo_engine::tables::Tables;
use tombolo_proto::config::{AgentConfig, Relation};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::installed::InstalledTables;
use tombolo_proto::route::{EffectiveRoute, Route};

/// The parts of agents' reports that no configuration holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LearnedReports {
    /// For each agent, the routes of each BGP neighbour.
    pub learned: BTreeMap<AgentId, BTreeMap<ResourceId, Arc<Vec<Route>>>>,
    /// For each agent, the peers that do not answer it.
    pub down: BTreeMap<AgentId, BTreeSet<AgentId>>,
}

impl LearnedReports {
    /// Extracts the reports from the last status of each agent.
    #[must_use]
    pub fn of(statuses: &AgentStatuses) -> Self {
        let mut reports = Self::default();
        for (agent, status) in &statuses.agents {
            if !status.learned.is_empty() {
                let learned = status.learned.iter();
                let learned = learned.map(|h| (h.neighbour.clone(), Arc::new(h.routes.clone())));
                reports.learned.insert(agent.clone(), learned.collect());
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

/// The effective routes of a network interface as its agent has them: the configured routes of the subnet of its
/// primary address, and the learned ones (R20, R21). `None`: the interface is unknown, or has no subnet.
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

/// The tables that an agent should have installed. `None`: the agent is unknown, revoked, or bound to a deleted
/// resource. An inner error is the agent's: it would reject the configuration.
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

/// Rounds of the exchange between agents. Each round carries a route over one link, so 64 exceeds the length of any
/// real chain of gateways. AS paths end routing loops; this is the backstop.
const MAX_ROUNDS: usize = 64;

/// The routes that every gateway and edge has learned, from which those of each VM follow.
#[derive(Debug)]
pub struct LearnedRoutes {
    configs: BTreeMap<AgentId, AgentConfig>,
    states: BTreeMap<AgentId, Dynamic>,
    reports: LearnedReports,
}

impl LearnedRoutes {
    /// Repeats the exchange of all gateways and edges, round by round, until no routes change. It compiles the
    /// configuration of each of them once.
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
            let next: BTreeMap<AgentId, Dynamic> = learned
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

    /// The routing state of an agent with this configuration: the routes that it reports, and those that its peers
    /// advertise to it.
    #[must_use]
    pub fn routing_state(&self, config: &AgentConfig) -> Dynamic {
        let mut state = self.reported(config);
        for link in config.links.iter().filter(|l| l.always_on && !l.stock) {
            let advertises = matches!(
                link.relation,
                Relation::Gateway {} | Relation::Connection { .. } | Relation::Edge { .. } | Relation::OtherGateway {}
            );
            let sender = self.configs.get(&link.peer).filter(|_| advertises);
            let known = sender.and_then(|t| Some((t, self.states.get(&t.agent)?)));
            let Some((sender, known)) = known else { continue };
            // The compiler orders the links of a configuration by peer.
            let back = sender.links.binary_search_by(|l| l.peer.cmp(&config.agent));
            if let Ok(back) = back {
                let routes = tell_peer(sender, known, &sender.links[back]);
                if !routes.is_empty() {
                    state.told.insert(link.peer.clone(), Arc::new(routes));
                }
            }
        }
        state
    }

    /// The configuration of a gateway or an edge. `None`: another agent.
    #[must_use]
    pub fn config(&self, agent: &AgentId) -> Option<&AgentConfig> {
        self.configs.get(agent)
    }

    /// The routing state from the agent's own report alone, limited to its present configuration.
    fn reported(&self, config: &AgentConfig) -> Dynamic {
        let mut state = Dynamic {
            down: self.reports.down.get(&config.agent).cloned().unwrap_or_default(),
            learned: self.reports.learned.get(&config.agent).cloned().unwrap_or_default(),
            ..Dynamic::default()
        };
        state.keep(config);
        state
    }
}
