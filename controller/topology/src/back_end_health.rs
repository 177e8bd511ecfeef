//! The health of the back ends of load-balancing rules, by the last reports of the agents that own them (L6).

use crate::path::parent_id;
use crate::resource::{Agent, BalancingRule, Binding, PoolMember, pool_members};
use crate::topology::{AgentStatuses, Topology};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::{BackEndHealth, ProbeFailure};

/// Whether a member of a pool is up for a rule.
#[derive(Debug, Clone)]
pub struct MemberHealth {
    /// The member.
    pub member: PoolMember,
    /// Whether new flows may go to it.
    pub is_up: bool,
    /// Why, in words.
    pub reason: String,
}

/// What the agents report about back ends, by probe and address.
#[derive(Debug)]
pub struct Reports<'s> {
    topology: &'s Topology,
    all: BTreeMap<(&'s ResourceId, IpAddr), Vec<(&'s Agent, &'s BackEndHealth)>>,
}

impl<'s> Reports<'s> {
    /// The last reports of all agents that are not revoked.
    #[must_use]
    pub fn of(topology: &'s Topology, statuses: &'s AgentStatuses) -> Self {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, status) in &statuses.agents {
            let agent = topology.agents.get(name).filter(|agent| !agent.revoked);
            for (agent, health) in agent
                .into_iter()
                .flat_map(|a| status.health.iter().map(move |h| (&**a, h)))
            {
                all.entry((&health.probe, health.address))
                    .or_default()
                    .push((agent, health));
            }
        }
        Self { topology, all }
    }

    /// The health of all members of a rule's pools, in their order.
    #[must_use]
    pub fn members_of(&self, rule: &BalancingRule) -> Vec<MemberHealth> {
        let members = rule.pools.iter().flat_map(|pool| pool_members(self.topology, pool));
        members
            .map(|member| {
                let (is_up, reason) = self.of_member(rule, &member);
                MemberHealth { member, is_up, reason }
            })
            .collect()
    }

    fn of_member(&self, rule: &BalancingRule, member: &PoolMember) -> (bool, String) {
        let reported = rule.probe.as_ref().map(|probe| self.about(probe, member));
        match (member.admin_state.decided(), reported) {
            (Some(up), _) => (up, "The adminState of the back end decides.".to_owned()),
            (None, None) => (true, "The rule has no probe.".to_owned()),
            (None, Some(Some(health))) if health.up => (true, "The back end answers the probe.".to_owned()),
            (None, Some(Some(health))) => (false, reason_of(health.reason)),
            (None, Some(None)) => (false, "No agent has probed the back end yet.".to_owned()),
        }
    }

    /// The report about a member by the agent of its network interface. If no agent has the network interface, by the agent
    /// that serves its subnet. Reports of others do not count.
    fn about(&self, probe: &ResourceId, member: &PoolMember) -> Option<&'s BackEndHealth> {
        let reports = self.all.get(&(probe, member.address))?;
        let has_address = |subnet: &ResourceId| {
            let vnets = self.topology.vnets.get(&parent_id(subnet));
            let mut subnets = vnets.into_iter().flat_map(|vnet| &vnet.subnets);
            subnets.any(|s| s.id == *subnet && s.prefixes.iter().any(|p| p.contains(&member.address)))
        };
        let owns = |agent: &Agent| match &agent.binding {
            Binding::Vm { nics, served, .. } => {
                member.nic.as_ref().is_some_and(|nic| nics.contains(nic)) || served.iter().any(has_address)
            }
            Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
        };
        let mut owners = reports.iter().filter(|(agent, _)| owns(agent));
        owners.next().map(|(_, health)| *health)
    }
}

/// The text for a back end that is down. Agents of earlier versions report no reason.
fn reason_of(failure: Option<ProbeFailure>) -> String {
    match failure {
        Some(failure) => format!("The back end is down: {failure}."),
        None => "The back end does not answer the probe.".to_owned(),
    }
}
