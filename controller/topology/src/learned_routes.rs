//! Routes that move, as the agents have them (D11): from what gateways and edges report to have learned of their BGP
//! neighbours, by the agents' own rules of telling, to what every agent knows.

use crate::compile::Compiler;
use crate::resource::{Agent, Binding};
use crate::topology::{Live, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_engine::routing::{self, Dynamic, tell_peer};
use tombolo_engine::tables::Tables;
use tombolo_proto::config::{AgentConfig, Relation};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::installed::InstalledTables;
use tombolo_proto::route::{EffectiveRoute, Route};

/// What agents report of what no configuration holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports {
    /// What BGP neighbours announced to each agent.
    pub learned: BTreeMap<AgentId, BTreeMap<ResourceId, Arc<Vec<Route>>>>,
    /// Which others do not answer each agent.
    pub down: BTreeMap<AgentId, BTreeSet<AgentId>>,
}

impl Reports {
    /// What the newest statuses say.
    #[must_use]
    pub fn of(live: &Live) -> Self {
        let mut reports = Self::default();
        for (agent, status) in &live.agents {
            if !status.learned.is_empty() {
                let heard = status.learned.iter();
                let heard = heard.map(|h| (h.neighbour.clone(), Arc::new(h.routes.clone())));
                reports.learned.insert(agent.clone(), heard.collect());
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

/// The effective routes of a network interface, as its agent has them: what is configured for the subnet of its primary
/// address, and what is learned (R20, R21). None: unknown, or without a subnet.
#[must_use]
pub fn effective_routes(topology: &Topology, reports: &Reports, nic: &ResourceId) -> Option<Vec<EffectiveRoute>> {
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
    let dynamic = Moving::new(topology, &compiler, reports.clone()).dynamic(&config);
    let subnet = config.subnets.iter().find(|s| s.id == *subnet)?;
    Some(routing::effective(&config, subnet, &dynamic))
}

/// The tables that an agent should have installed. None: unknown, revoked, or bound to something that is gone.
#[must_use]
pub fn tables(topology: &Topology, reports: &Reports, agent: &AgentId) -> Option<Result<InstalledTables, String>> {
    let compiler = Compiler::new(topology);
    let config = compiler.compile(agent)?;
    let dynamic = Moving::new(topology, &compiler, reports.clone()).dynamic(&config);
    let tables = Tables::build(&config, &dynamic).map_err(|e| e.to_string());
    Some(tables.map(|t| t.installed()))
}

/// More rounds of telling than any chain of gateways is long; a longer one would be a loop, which AS paths end.
const ROUNDS: usize = 64;

/// What every gateway and edge knows, and from that every VM.
#[derive(Debug)]
pub struct Moving {
    configs: BTreeMap<AgentId, AgentConfig>,
    dynamics: BTreeMap<AgentId, Dynamic>,
    reports: Reports,
}

impl Moving {
    /// Lets all gateways and edges tell each other, round by round, until nothing is news.
    #[must_use]
    pub fn new(topology: &Topology, compiler: &Compiler<'_>, reports: Reports) -> Self {
        let mut moving = Self {
            configs: BTreeMap::new(),
            dynamics: BTreeMap::new(),
            reports,
        };
        for agent in topology.agents.keys() {
            if compiler.relays(agent)
                && let Some(config) = compiler.compile(agent)
            {
                moving.dynamics.insert(agent.clone(), moving.reported(&config));
                moving.configs.insert(agent.clone(), config);
            }
        }
        for _ in 0..ROUNDS {
            let next: BTreeMap<AgentId, Dynamic> = moving
                .configs
                .values()
                .map(|config| (config.agent.clone(), moving.dynamic(config)))
                .collect();
            if next == moving.dynamics {
                break;
            }
            moving.dynamics = next;
        }
        moving
    }

    /// What an agent with this configuration knows: what it reports itself, and what its neighbours tell it.
    #[must_use]
    pub fn dynamic(&self, config: &AgentConfig) -> Dynamic {
        let mut dynamic = self.reported(config);
        for link in config.links.iter().filter(|l| l.always_on && !l.stock) {
            let heard = matches!(
                link.relation,
                Relation::Gateway {} | Relation::Connection { .. } | Relation::Edge { .. } | Relation::OtherGateway {}
            );
            let teller = self.configs.get(&link.peer).filter(|_| heard);
            let known = teller.and_then(|t| Some((t, self.dynamics.get(&t.agent)?)));
            let Some((teller, known)) = known else { continue };
            let back = teller.links.binary_search_by(|l| l.peer.cmp(&config.agent));
            if let Ok(back) = back {
                let told = tell_peer(teller, known, &teller.links[back]);
                if !told.is_empty() {
                    dynamic.told.insert(link.peer.clone(), Arc::new(told));
                }
            }
        }
        dynamic
    }

    /// The configuration of a gateway or an edge.
    #[must_use]
    pub fn config(&self, agent: &AgentId) -> Option<&AgentConfig> {
        self.configs.get(agent)
    }

    fn reported(&self, config: &AgentConfig) -> Dynamic {
        let mut dynamic = Dynamic {
            down: self.reports.down.get(&config.agent).cloned().unwrap_or_default(),
            learned: self.reports.learned.get(&config.agent).cloned().unwrap_or_default(),
            ..Dynamic::default()
        };
        dynamic.keep(config);
        dynamic
    }
}
