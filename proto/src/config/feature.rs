//! Features of configurations that older agents do not understand.
//!
//! An agent refuses a configuration with an unknown field, because it would otherwise enforce only a part of the
//! policy. So the controller may send such a field only to agents that have named its feature in their Hello.

use super::{AgentConfig, Role, Security};
use std::collections::BTreeSet;

/// A part of a configuration, or a way to send it, that agents of version 0.1 do not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// [`AgentConfig::security`].
    SecurityGroups,
    /// [`Security::reevaluate`](super::Security::reevaluate).
    Reevaluate,
    /// [`Link::arrivals`](super::Link::arrivals) and [`Nic::host_routes`](super::Nic::host_routes): a device for each
    /// NIC.
    DevicePerNic,
    /// [`Link::many_routes`](super::Link::many_routes). The agent also reads tables of more than 4,000 routes that other
    /// agents advertise.
    ManyRoutes,
    /// [`AgentConfig::front_ends`].
    LoadBalancers,
    /// The transmission of a configuration as a change of the one in force ([`crate::delta`]). No configuration needs
    /// this.
    ConfigDelta,
    /// Probes of the kind [`ProbeKind::Connect`](crate::probe::ProbeKind::Connect). No configuration needs this.
    ConnectProbe,
    /// [`Security::flow_logs`](super::Security::flow_logs). Without it, [`AgentConfig::without_flow_logs`] is sent.
    FlowLogs,
    /// Packet captures ([`crate::capture`]). No configuration needs this.
    PacketCapture,
    /// [`AgentConfig::limits`]. Without it, [`AgentConfig::without_limits`] is sent.
    Limits,
    /// Tails of flow logs ([`crate::flow_tail`]), which the messages of packet captures carry. No configuration needs this.
    FlowLogTail,
}

impl Feature {
    /// All features that this version understands.
    pub const ALL: &'static [Self] = &[
        Self::SecurityGroups,
        Self::Reevaluate,
        Self::DevicePerNic,
        Self::ManyRoutes,
        Self::LoadBalancers,
        Self::ConfigDelta,
        Self::ConnectProbe,
        Self::FlowLogs,
        Self::PacketCapture,
        Self::Limits,
        Self::FlowLogTail,
    ];

    /// The name of the feature in an agent's Hello. The name must not change, because programs of other versions use it
    /// too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SecurityGroups => "securityGroups",
            Self::Reevaluate => "reevaluate",
            Self::DevicePerNic => "devicePerNic",
            Self::ManyRoutes => "manyRoutes",
            Self::LoadBalancers => "loadBalancers",
            Self::ConfigDelta => "configDelta",
            Self::ConnectProbe => "connectProbe",
            Self::FlowLogs => "flowLogs",
            Self::PacketCapture => "packetCapture",
            Self::Limits => "limits",
            Self::FlowLogTail => "flowLogTail",
        }
    }

    /// The features with these names. Names that this version does not know are left out.
    #[must_use]
    pub fn of_names(names: &[String]) -> BTreeSet<Self> {
        let known = Self::ALL.iter().copied();
        known.filter(|f| names.iter().any(|n| n == f.name())).collect()
    }
}

impl AgentConfig {
    /// The features that an agent must have to understand the configuration.
    #[must_use]
    pub fn needs(&self) -> BTreeSet<Feature> {
        let mut needs = BTreeSet::new();
        if let Some(security) = &self.security {
            needs.insert(Feature::SecurityGroups);
            needs.extend(security.reevaluate.then_some(Feature::Reevaluate));
            needs.extend(security.flow_logs.is_some().then_some(Feature::FlowLogs));
        }
        let of_nics = matches!(&self.role, Role::Vm { nics, .. } if nics.iter().any(|nic| !nic.host_routes.is_empty()));
        if of_nics || self.links.iter().any(|link| !link.arrivals.is_empty()) {
            needs.insert(Feature::DevicePerNic);
        }
        if self.links.iter().any(|link| link.many_routes) {
            needs.insert(Feature::ManyRoutes);
        }
        if !self.front_ends.is_empty() {
            needs.insert(Feature::LoadBalancers);
        }
        needs.extend(self.limits.is_some().then_some(Feature::Limits));
        needs
    }

    /// The configuration for an agent that lacks one of the features that the configuration [`needs`](Self::needs). An
    /// agent without [`Feature::DevicePerNic`] has one device for all NICs, so the result has no
    /// [`Link::arrivals`](super::Link::arrivals) and no [`Nic::host_routes`](super::Nic::host_routes). Without
    /// [`Feature::ManyRoutes`] an agent advertises at most 4,000 routes. If security groups apply, the result is
    /// [`isolated`](Self::isolated) as well. Without [`Feature::LoadBalancers`] it reaches no front end. The result has no
    /// limits.
    #[must_use]
    pub fn reduced(&self) -> Self {
        let unlogged = self.without_limits().without_flow_logs();
        let mut reduced = match unlogged.security {
            Some(_) => unlogged.isolated(),
            None => unlogged,
        };
        for link in &mut reduced.links {
            link.arrivals.clear();
            link.many_routes = false;
        }
        reduced.front_ends.clear();
        if let Role::Vm { nics, .. } = &mut reduced.role {
            nics.iter_mut().for_each(|nic| nic.host_routes.clear());
        }
        reduced
    }

    /// The configuration without flow logs. An agent that lacks [`Feature::FlowLogs`] alone enforces everything else. If no
    /// group applies to the NICs, they are listed only because of a log, so the result has no
    /// [`security`](Self::security).
    #[must_use]
    pub fn without_flow_logs(&self) -> Self {
        let security = self.security.clone().map(|security| Security {
            flow_logs: None,
            ..security
        });
        Self {
            security: security.filter(|security| !security.groups.is_empty()),
            ..self.clone()
        }
    }

    /// The configuration without security groups and without links, so that no packet passes that the groups might
    /// forbid.
    #[must_use]
    pub fn isolated(&self) -> Self {
        Self {
            security: None,
            links: Vec::new(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agent_with_several_nics_keeps_its_links() {
        let config: AgentConfig = serde_json::from_value(serde_json::json!({
            "agent": "vm", "vnet": "/v", "addressSpace": [], "mtu": 1420, "subnets": [], "spaces": [],
            "role": {"type": "vm", "served": [], "nics": [
                {"id": "/n", "subnet": "/s", "addresses": [], "ipForwarding": true, "hostRoutes": ["10.9.0.0/16"]},
            ]},
            "links": [{
                "peer": "two", "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alwaysOn": false,
                "initiator": false, "relation": {"type": "vnetLocal"}, "sources": [], "foreign": "none",
                "arrivals": [{"source": "0.0.0.0/0", "destination": "10.9.0.0/16", "nic": 0}],
                "manyRoutes": true,
            }],
        }))
        .unwrap();
        assert_eq!(config.needs(), [Feature::DevicePerNic, Feature::ManyRoutes].into());
        let reduced = config.reduced();
        assert!(reduced.needs().is_empty());
        assert_eq!(reduced.links.len(), 1);
    }

    /// An agent without flow logs keeps its links and its groups; without groups it needs nothing.
    #[test]
    fn n14_an_older_agent_gets_no_flow_log() {
        let security = |group: bool| {
            let groups: &[&str] = if group { &["/g"] } else { &[] };
            let groups: Vec<_> = groups
                .iter()
                .map(|id| serde_json::json!({"id": id, "rules": []}))
                .collect();
            serde_json::json!({
                "groups": groups, "nics": [{"id": "/n", "prefixes": [], "subnet": "/s"}],
                "flowLogs": {"logs": [], "nics": []},
            })
        };
        let config = |group| -> AgentConfig {
            serde_json::from_value(serde_json::json!({
                "agent": "vm", "vnet": "/v", "addressSpace": [], "mtu": 1420, "subnets": [], "spaces": [],
                "role": {"type": "vm", "served": [], "nics": [
                    {"id": "/n", "subnet": "/s", "addresses": [], "ipForwarding": true},
                ]},
                "links": [{
                    "peer": "two", "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alwaysOn": false,
                    "initiator": false, "relation": {"type": "vnetLocal"}, "sources": [], "foreign": "none",
                }],
                "security": security(group),
            }))
            .unwrap()
        };
        let with_group = config(true);
        assert_eq!(with_group.needs(), [Feature::SecurityGroups, Feature::FlowLogs].into());
        let unlogged = with_group.without_flow_logs();
        assert_eq!(unlogged.needs(), [Feature::SecurityGroups].into());
        assert_eq!(unlogged.links.len(), 1);
        assert_eq!(
            with_group.reduced().links.len(),
            0,
            "no packet passes that a group may deny"
        );
        let alone = config(false);
        assert!(alone.without_flow_logs().needs().is_empty());
        assert_eq!(alone.reduced().links.len(), 1);
    }

    #[test]
    fn names_of_later_versions_are_left_out() {
        let names = ["securityGroups".to_owned(), "later".to_owned()];
        assert_eq!(Feature::of_names(&names), [Feature::SecurityGroups].into());
        assert!(Feature::of_names(&[]).is_empty());
    }
}
