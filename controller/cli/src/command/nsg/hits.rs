//! How often security rules have decided, from the last reports of all agents.

use crate::output::{at, items, name_at};
use comfy_table::Cell;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_client::fabric::AgentView;
use tombolo_proto::config::Direction;
use tombolo_proto::id::ResourceId;

/// The counters of all rules that have decided: for each rule, by its id and direction, the number of packets at each
/// network interface.
#[derive(Debug, Default)]
pub(super) struct Hits(BTreeMap<(ResourceId, Direction), BTreeMap<ResourceId, u64>>);

impl Hits {
    /// Adds up the last reports of agents. An agent without a report contributes nothing.
    pub(super) fn of(agents: &[AgentView]) -> Self {
        let mut all = Self::default();
        let reports = agents.iter().filter_map(|agent| agent.status.as_ref());
        for hits in reports.flat_map(|status| &status.rule_hits) {
            // `rule` has the collection and the name, which are the end of the rule's id.
            let rule = ResourceId::new(format!("{}/{}", hits.group, hits.rule));
            let at_nics = all.0.entry((rule, hits.direction)).or_default();
            let packets = at_nics.entry(hits.nic.clone()).or_default();
            *packets = packets.saturating_add(hits.packets);
        }
        all
    }

    /// Sets the property `hits` of each rule: the number of packets about which the rule has decided, at all network
    /// interfaces together. With `per_nic`, also sets `hitsPerNic`, a list of network interfaces with their numbers.
    pub(super) fn add_to(&self, rules: &mut [Value], per_nic: bool) {
        for rule in rules {
            let at_nics = self.of_rule(rule);
            let nics = at_nics.into_iter().flatten();
            let total = nics
                .clone()
                .fold(0_u64, |sum, (_, packets)| sum.saturating_add(*packets));
            rule["hits"] = json!(total);
            if per_nic {
                let each = nics.map(|(nic, packets)| json!({"nic": {"id": nic}, "packets": packets}));
                rule["hitsPerNic"] = each.collect();
            }
        }
    }

    fn of_rule(&self, rule: &Value) -> Option<&BTreeMap<ResourceId, u64>> {
        let direction = match at(rule, "/properties/direction").as_str() {
            "Inbound" => Direction::Inbound,
            "Outbound" => Direction::Outbound,
            _ => return None,
        };
        self.0.get(&(ResourceId::new(at(rule, "/id")), direction))
    }
}

/// Returns the counters that [`Hits::add_to`] has set, as a cell of a table: the numbers at each network interface, if
/// they are set, otherwise the number at all of them.
pub(super) fn cell(rule: &Value) -> Cell {
    if rule.get("hitsPerNic").is_none() {
        return Cell::new(at(rule, "/hits"));
    }
    let each = items(rule, "/hitsPerNic").map(|nic| format!("{} {}", name_at(nic, "/nic/id"), at(nic, "/packets")));
    Cell::new(each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/web";

    fn agent(name: &str, hits: &Value) -> AgentView {
        let vm = format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/{name}");
        serde_json::from_value(json!({
            "id": name,
            "binding": {"type": "vm", "vm": vm, "nics": [], "served": []},
            "publicKey": "WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo=",
            "endpoints": [],
            "revoked": false,
            "connected": true,
            "status": {"ruleHits": hits},
        }))
        .unwrap()
    }

    fn hits(nic: &str, group: &str, direction: &str, rule: &str, packets: u64) -> Value {
        json!({"nic": format!("/nics/{nic}"), "group": group, "direction": direction, "rule": rule, "packets": packets})
    }

    fn rule(name: &str, direction: &str) -> Value {
        json!({"id": format!("{GROUP}/{name}"), "properties": {"direction": direction}})
    }

    #[test]
    fn the_counters_of_all_network_interfaces_add_up() {
        let agents = [
            agent(
                "a",
                &json!([
                    hits("n1", &GROUP.to_uppercase(), "Inbound", "securityRules/https", 3),
                    hits("n1", GROUP, "Outbound", "securityRules/other", 7),
                    hits("n1", "/other", "Inbound", "securityRules/https", 100),
                ]),
            ),
            agent(
                "b",
                &json!([
                    hits("n2", GROUP, "Inbound", "securityRules/https", 2),
                    hits("n2", GROUP, "Inbound", "defaultSecurityRules/DenyAllInBound", 9),
                ]),
            ),
        ];
        let all = Hits::of(&agents);
        let mut rules = [
            rule("securityRules/https", "Inbound"),
            // A rule of the other direction had this name before.
            rule("securityRules/other", "Inbound"),
            rule("defaultSecurityRules/DenyAllInBound", "Inbound"),
        ];
        all.add_to(&mut rules, false);
        let totals: Vec<_> = rules.iter().map(|rule| cell(rule).content()).collect();
        assert_eq!(totals, ["5", "0", "9"]);
        assert!(rules.iter().all(|rule| rule.get("hitsPerNic").is_none()));
        all.add_to(&mut rules, true);
        let each: Vec<_> = rules.iter().map(|rule| cell(rule).content()).collect();
        assert_eq!(each, ["n1 3, n2 2", "", "n2 9"]);
        assert_eq!(
            rules[0]["hitsPerNic"][1],
            json!({"nic": {"id": "/nics/n2"}, "packets": 2})
        );
        assert_eq!(rules[0]["hits"], 5);
    }
}
