//! The limit of the NICs and served subnets for which one agent enforces security groups (D25).

use super::address::find_subnet;
use crate::draft::Draft;
use crate::resource::{Agent, Binding};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::config::MAX_NICS;
use tombolo_proto::id::ResourceId;

/// The NICs that have a security group of their own and no agent, by their subnet. The agent that serves the subnet
/// enforces their groups.
fn without_agent(topology: &Topology) -> BTreeMap<&ResourceId, Vec<&ResourceId>> {
    let agents = topology.agents.values().filter(|a| !a.revoked);
    let bound: BTreeSet<&ResourceId> = agents
        .filter_map(|agent| match &agent.binding {
            Binding::Vm { nics, .. } => Some(nics),
            Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
        })
        .flatten()
        .collect();
    let mut all: BTreeMap<&ResourceId, Vec<&ResourceId>> = BTreeMap::new();
    let grouped = topology.nics.values().filter(|n| n.network_security_group.is_some());
    for nic in grouped.filter(|n| !bound.contains(&n.envelope.id)) {
        if let Some(first) = nic.ip_configurations.first() {
            all.entry(&first.subnet).or_default().push(&nic.envelope.id);
        }
    }
    all
}

impl Draft<'_> {
    /// Adds a problem for each agent that serves a subnet for which `concerned` is true, if the agent would have to
    /// enforce groups for more NICs and subnets than it can.
    pub(crate) fn check_secured_entries(&mut self, concerned: impl Fn(&ResourceId) -> bool) {
        let agents = self.topology.agents.values().filter(|a| !a.revoked);
        let agents = agents.filter(|agent| match &agent.binding {
            Binding::Vm { served, .. } => served.iter().any(&concerned),
            Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
        });
        let agents: Vec<Arc<Agent>> = agents.cloned().collect();
        let bindings = agents.iter().map(|a| (format!("agent '{}'", a.id), &a.binding));
        self.check_entries_of(bindings, "properties.networkSecurityGroup");
    }

    /// Adds a problem if an agent with this binding would have to enforce groups for more NICs and subnets than it can.
    pub(super) fn check_secured_entries_of(&mut self, binding: &Binding) {
        self.check_entries_of([("the agent".to_owned(), binding)], "binding.served");
    }

    /// Adds a problem for each binding with more entries in the security configuration than an agent can have. Counted
    /// are only entries that the configuration cannot leave out: the agent's own NICs, the served subnets with a group,
    /// and the NICs in served subnets that have a group of their own and no agent. `at`: the field that the problem
    /// names.
    fn check_entries_of<'b>(&mut self, bindings: impl IntoIterator<Item = (String, &'b Binding)>, at: &str) {
        let served = |binding: &'b Binding| match binding {
            Binding::Vm { nics, served, .. } if !served.is_empty() => Some((nics, served)),
            // Without served subnets a binding has fewer entries than the limit.
            Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
        };
        let mut bindings = bindings
            .into_iter()
            .filter_map(|(who, binding)| Some((who, served(binding)?)))
            .peekable();
        if bindings.peek().is_none() {
            return;
        }
        let others = without_agent(&self.topology);
        let mut wrong = Vec::new();
        for (who, (nics, served)) in bindings {
            let grouped = served.iter().filter(|subnet| {
                find_subnet(&self.topology, subnet).is_some_and(|subnet| subnet.network_security_group.is_some())
            });
            let behind = served.iter().filter_map(|subnet| others.get(subnet)).flatten();
            let count = nics.len() + grouped.count() + behind.filter(|nic| !nics.contains(nic)).count();
            if count > MAX_NICS {
                wrong.push((who, count));
            }
        }
        for (who, count) in wrong {
            self.problems.add(
                "XTooManySecuredInterfaces",
                at,
                format!(
                    "{at}: {who} would enforce network security groups for {count} network \
                     interfaces and served subnets; at most {MAX_NICS} are possible (D25). Attach the group to the subnet in \
                     place of its network interfaces, or let several hosts serve the subnets."
                ),
            );
        }
    }
}
