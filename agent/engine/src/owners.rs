//! The links with the agents that own back ends of load balancers: which of these agents are gone (D36).
//!
//! An agent is gone for a rule if the link with it has been down for the interval of the rule's probe times its threshold.
//! An agent that restarts is back sooner, so it is not gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::AgentId;

/// Measures how long the links with owners of back ends have been down. Times that are passed to it must not go back.
#[derive(Debug, Clone, Default)]
pub struct OwnerWatch {
    /// For each agent that owns a back end: the times after which it is gone for a rule, in seconds.
    owners: BTreeMap<AgentId, BTreeSet<u32>>,
    /// The peers whose link is down, each with the time since which it is.
    down: BTreeMap<AgentId, Instant>,
}

impl OwnerWatch {
    /// Takes the rules and the owners of their back ends from a configuration. Peers with which it has no link are
    /// forgotten.
    pub fn configure(&mut self, config: &AgentConfig) {
        let linked = |agent: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(agent)).is_ok();
        self.down.retain(|agent, _| linked(agent));
        self.owners.clear();
        let owned = config.owned_back_ends().into_iter();
        for (rule, _, owner) in owned.filter(|(_, _, owner)| linked(owner)) {
            self.owners.entry(owner.clone()).or_default().insert(rule.gone_after());
        }
    }

    /// Records that the link with a peer is down since `now`. If it is down already, nothing changes.
    pub fn link_down(&mut self, peer: &AgentId, now: Instant) {
        if !self.down.contains_key(peer) {
            self.down.insert(peer.clone(), now);
        }
    }

    /// Records that the link with a peer is up.
    pub fn link_up(&mut self, peer: &AgentId) {
        self.down.remove(peer);
    }

    /// The owners that are gone for at least one rule at `now`. The value is the longest time of a rule that has passed,
    /// in seconds: the owner is gone for all rules with this time or a shorter one.
    #[must_use]
    pub fn gone(&self, now: Instant) -> BTreeMap<AgentId, u32> {
        let down = self.down.iter().filter_map(|(agent, since)| {
            let passed = now.saturating_duration_since(*since);
            let times = self.owners.get(agent)?.iter().rev();
            let longest = times.copied().find(|time| seconds(*time) <= passed)?;
            Some((agent.clone(), longest))
        });
        down.collect()
    }
}

const fn seconds(number: u32) -> Duration {
    Duration::from_secs(number as u64)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;
    use serde_json::json;

    /// Two front-end rules: one with a probe every 5 s and threshold 2, and one without probe. `one` owns the back end of
    /// both, `two` that of the second one.
    fn config() -> AgentConfig {
        let rule = |port: u16, back_ends: &[&str], probe: bool| {
            let mut rule = json!({"id": format!("/lb/{port}"), "protocol": "tcp", "port": port, "backEndPort": port,
                "idleTimeoutMinutes": 4, "backEnds": back_ends});
            if probe {
                rule["probe"] =
                    json!({"id": "/lb/probe", "protocol": "tcp", "port": 80, "interval": 5, "threshold": 2});
            }
            rule
        };
        let link = |peer: &str| {
            json!({"peer": peer, "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alwaysOn": false,
                "initiator": false, "relation": {"type": "vnetLocal"}, "sources": [], "foreign": "none"})
        };
        let own = |address: &str, agent: &str| json!({"prefix": format!("{address}/32"), "agent": agent});
        serde_json::from_value(json!({
            "agent": "client", "vnet": "/vnet", "addressSpace": ["10.0.0.0/24"], "mtu": 1420, "subnets": [],
            "role": {"type": "vm", "served": [], "nics": []},
            "spaces": [{"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.0.0.0/24"],
                "owners": [own("10.0.0.1", "one"), own("10.0.0.2", "two"), own("10.0.0.3", "three")]}],
            "links": [link("one"), link("three"), link("two")],
            "frontEnds": [{"id": "/lb/front", "vnet": "/vnet", "address": "10.0.0.36",
                "rules": [rule(80, &["10.0.0.1"], true), rule(81, &["10.0.0.1", "10.0.0.2"], false)]}],
        }))
        .unwrap()
    }

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn d36_an_owner_is_gone_after_the_time_of_each_rule() {
        let (config, begin) = (config(), Instant::now());
        let at = |s| begin + seconds(s);
        let mut watch = OwnerWatch::default();
        watch.configure(&config);
        for peer in ["one", "two", "three"] {
            watch.link_down(&agent(peer), begin);
        }
        // A second report does not restart the time.
        watch.link_down(&agent("one"), at(9));
        assert!(watch.gone(at(9)).is_empty());
        assert_eq!(watch.gone(at(10)), [(agent("one"), 10)].into());
        // `three` owns no back end.
        assert_eq!(watch.gone(at(15)), [(agent("one"), 15), (agent("two"), 15)].into());
        watch.link_up(&agent("one"));
        assert_eq!(watch.gone(at(16)), [(agent("two"), 15)].into());
    }

    #[test]
    fn d36_an_owner_that_is_back_in_time_is_not_gone() {
        let (config, begin) = (config(), Instant::now());
        let mut watch = OwnerWatch::default();
        watch.configure(&config);
        watch.link_down(&agent("one"), begin);
        watch.link_up(&agent("one"));
        watch.link_down(&agent("one"), begin + seconds(9));
        assert!(watch.gone(begin + seconds(18)).is_empty());
        assert!(!watch.gone(begin + seconds(19)).is_empty());
        // Without a link, nothing is known.
        let mut config = config;
        config.links.remove(0);
        watch.configure(&config);
        assert!(watch.gone(begin + seconds(19)).is_empty());
    }
}
