//! The configurations of all agents at the newest revision. A separate thread compiles them.

use crate::metrics::histogram::Histogram;
use crate::writer::Published;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tombolo_proto::config::{AgentConfig, Feature, digest};
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_topology::compile::Compiler;
use tombolo_topology::topology::Topology;

/// A configuration as it is sent to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The digest of `bytes`.
    pub digest: String,
    /// The configuration in canonical JSON.
    pub bytes: Vec<u8>,
    /// The features that an agent must have to understand it.
    pub needs: BTreeSet<Feature>,
    /// The configurations for agents that lack one of these features, the best one first. Every agent understands the last
    /// one. Empty if every agent understands the configuration itself.
    pub lesser: Vec<Lesser>,
    /// The back ends that the configuration names and that are probed: the probe, the back end's address and the agent
    /// that owns the back end (L6). Ordered, without duplicates.
    pub probed: Vec<(ResourceId, IpAddr, AgentId)>,
    /// The flow logs that the agent writes, with the network interfaces whose flows each one has.
    pub flow_logs: BTreeMap<ResourceId, BTreeSet<ResourceId>>,
}

/// A configuration for an agent that does not understand the one that was compiled for it
/// (`AgentConfig::without_limits`, `AgentConfig::without_flow_logs`, `AgentConfig::reduced`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesser {
    /// The features that this configuration needs.
    pub needs: BTreeSet<Feature>,
    /// The digest of `bytes`.
    pub digest: String,
    /// The configuration in canonical JSON.
    pub bytes: Vec<u8>,
}

impl Lesser {
    fn of(config: &AgentConfig) -> Self {
        let bytes = config.to_bytes();
        Self {
            needs: config.needs(),
            digest: digest(&bytes),
            bytes,
        }
    }
}

impl Config {
    /// The configuration with these canonical bytes, and what is sent in its place.
    fn of(config: &AgentConfig, bytes: Vec<u8>) -> Self {
        let needs = config.needs();
        let mut lesser = Vec::new();
        if needs.contains(&Feature::Limits) {
            lesser.push(Lesser::of(&config.without_limits()));
        }
        if needs.contains(&Feature::FlowLogs) {
            lesser.push(Lesser::of(&config.without_limits().without_flow_logs()));
        }
        if !needs.is_empty() {
            lesser.push(Lesser::of(&config.reduced()));
        }
        Self {
            digest: digest(&bytes),
            bytes,
            needs,
            lesser,
            probed: probed(config),
            flow_logs: flow_logs(config),
        }
    }

    /// What to send to an agent with these features: the digest and the bytes.
    #[must_use]
    pub fn for_agent(&self, features: &BTreeSet<Feature>) -> (&str, &[u8]) {
        if self.needs.is_subset(features) {
            return (&self.digest, &self.bytes);
        }
        let understood = self.lesser.iter().find(|lesser| lesser.needs.is_subset(features));
        let chosen = understood.or(self.lesser.last());
        chosen.map_or((&self.digest, &self.bytes), |lesser| (&lesser.digest, &lesser.bytes))
    }

    /// What an agent with these features does not do because it is too old, as text for the operator. `None`: it has
    /// all features that this configuration needs.
    #[must_use]
    pub fn shortcoming(&self, features: &BTreeSet<Feature>) -> Option<String> {
        let missing = self.missing(features);
        let needs = |feature| self.needs.contains(&feature);
        let effect = if missing == [Feature::Limits.name()] {
            "it enforces no limit of bandwidth or of flows until it is upgraded"
        } else if missing == [Feature::FlowLogs.name()] || missing == [Feature::FlowLogs.name(), Feature::Limits.name()]
        {
            "it writes no flow logs until it is upgraded"
        } else if needs(Feature::SecurityGroups) {
            "it has no links until it is upgraded"
        } else if needs(Feature::DevicePerNic) {
            "it has one device for all network interfaces until it is upgraded"
        } else if needs(Feature::LoadBalancers) {
            "it reaches no front end of a load balancer until it is upgraded"
        } else {
            "it advertises at most 4,000 routes until it is upgraded"
        };
        let names = missing.join(", ");
        (!missing.is_empty()).then(|| format!("this version of the agent does not support {names}: {effect}"))
    }

    /// The features that an agent needs for this configuration and does not have, by name.
    fn missing(&self, features: &BTreeSet<Feature>) -> Vec<&'static str> {
        let missing = self.needs.iter().filter(|f| !features.contains(f));
        missing.map(|f| f.name()).collect()
    }
}

/// The configurations of all agents at one revision.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The revision of the state that was compiled.
    pub revision: Revision,
    /// The state that the configurations were compiled from.
    pub topology: Arc<Topology>,
    /// The time at which that state was published.
    pub since: Instant,
    /// The configuration of each agent. Revoked agents, and agents whose binding no longer exists, have no
    /// configuration.
    pub configs: Arc<BTreeMap<AgentId, Arc<Config>>>,
}

/// The back ends of a configuration that are probed; see [`Config::probed`].
fn probed(config: &AgentConfig) -> Vec<(ResourceId, IpAddr, AgentId)> {
    let all = config.probed_back_ends().into_iter();
    all.map(|b| (b.probe.id.clone(), b.address, b.owner.clone())).collect()
}

/// The flow logs that a configuration has; see [`Config::flow_logs`].
fn flow_logs(config: &AgentConfig) -> BTreeMap<ResourceId, BTreeSet<ResourceId>> {
    let logs = config
        .security
        .as_ref()
        .and_then(|security| security.flow_logs.as_ref());
    let logs = logs.iter().flat_map(|logs| &logs.logs);
    logs.map(|log| (log.id.clone(), log.nics.iter().cloned().collect()))
        .collect()
}

/// Compiles one state. If the configuration of an agent is equal to its configuration in `before`, the result has the
/// same `Arc`.
fn compile(published: &Published, before: &BTreeMap<AgentId, Arc<Config>>) -> Compiled {
    let compiler = Compiler::new(&published.topology);
    let mut configs = BTreeMap::new();
    for agent in published.topology.agents.keys() {
        let Some(config) = compiler.compile(agent) else {
            continue;
        };
        let bytes = config.to_bytes();
        let same = before.get(agent).filter(|c| c.bytes == bytes).cloned();
        let config = same.unwrap_or_else(|| Arc::new(Config::of(&config, bytes)));
        configs.insert(agent.clone(), config);
    }
    Compiled {
        revision: published.revision,
        topology: published.topology.clone(),
        since: published.since,
        configs: Arc::new(configs),
    }
}

/// Compiles the present state on the calling thread, and starts a thread that compiles each state that is published
/// later. The thread adds the time of each of its compilations to `durations`, and ends when the sender of `published`
/// is dropped, i.e. when the writer ends. The returned receiver then reports that its sender was dropped. The thread
/// skips a state that is superseded before the thread reads it. The returned receiver has the first result already.
///
/// # Errors
/// The thread could not be started.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn start(
    mut published: watch::Receiver<Published>,
    durations: Arc<Histogram>,
) -> std::io::Result<watch::Receiver<Compiled>> {
    let first = compile(&published.borrow_and_update(), &BTreeMap::new());
    let (publish, compiled) = watch::channel(first);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("compile".into()).spawn(move || {
        while runtime.block_on(published.changed()).is_ok() {
            let state = published.borrow_and_update().clone();
            let begin = Instant::now();
            let next = compile(&state, &publish.borrow().configs);
            durations.observe(begin.elapsed());
            tracing::debug!(revision = %state.revision, micros = begin.elapsed().as_micros(), "compiled");
            publish.send_replace(next);
        }
    })?;
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P32, X16: an agent of an earlier version gets the same configuration without limits, and the operator is told.
    #[test]
    fn p32_an_older_agent_gets_no_limits() {
        let compiled = |limits: serde_json::Value, logs: serde_json::Value| {
            let config: AgentConfig = serde_json::from_value(serde_json::json!({
                "agent": "vm", "vnet": "/v", "addressSpace": [], "mtu": 1420, "subnets": [], "spaces": [], "links": [],
                "role": {"type": "vm", "served": [], "nics": [
                    {"id": "/n", "subnet": "/s", "addresses": [], "ipForwarding": false},
                ]},
                "limits": limits,
                "security": {
                    "groups": [{"id": "/g", "rules": []}], "nics": [{"id": "/n", "prefixes": [], "subnet": "/s"}],
                    "flowLogs": logs,
                },
            }))
            .unwrap();
            Config::of(&config, config.to_bytes())
        };
        let limits = serde_json::json!({"nics": [{"nic": "/n", "outbound": 50}]});
        let logs = serde_json::json!({"logs": [], "nics": []});
        let none = serde_json::Value::Null;
        let config = compiled(limits, logs.clone());
        let all: BTreeSet<Feature> = Feature::ALL.iter().copied().collect();
        let without = |features: &[Feature]| -> BTreeSet<Feature> {
            all.iter().copied().filter(|f| !features.contains(f)).collect()
        };
        assert_eq!(config.for_agent(&all).1, config.bytes);
        assert_eq!(config.shortcoming(&all), None);
        let unlimited = compiled(none.clone(), logs).bytes;
        let plain = compiled(none.clone(), none).bytes;
        for (missing, expected, words) in [
            (&[Feature::Limits][..], &unlimited, "limit of bandwidth"),
            (&[Feature::Limits, Feature::FlowLogs][..], &plain, "flow logs"),
        ] {
            let features = without(missing);
            let (digest_of, bytes) = config.for_agent(&features);
            assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(expected));
            assert_eq!(digest_of, digest(expected));
            let told = config.shortcoming(&features).unwrap();
            assert!(told.contains("limits") && told.contains(words), "{told}");
        }
        // Without security groups an agent has no links, whatever else it lacks.
        let old = config.for_agent(&BTreeSet::new()).1;
        assert!(!String::from_utf8_lossy(old).contains("limits"));
    }
}
