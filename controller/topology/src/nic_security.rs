//! The security groups of one network interface, as the agent of the interface should enforce them, and the decision of
//! their rules about a packet (N3, N4, N8).

use crate::compile::Compiler;
use crate::learned_routes::{LearnedReports, LearnedRoutes};
use crate::resource::{Agent, Binding, NetworkInterface, Reach};
use crate::topology::Topology;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tombolo_engine::packet::{ICMP, ICMPV6, TCP, UDP};
use tombolo_engine::routing::RoutingState;
pub use tombolo_engine::security::{Attachment, FieldMatches};
use tombolo_engine::security::{Judgement, NicRules, RuleKey, SetContent};
use tombolo_engine::tables::Tables;
use tombolo_proto::config::{Access, AgentConfig, Direction, SecuredNic, Security, SecurityGroup, SecurityRule};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

/// The security groups that apply to a network interface, with the addresses for which tags stand there.
#[derive(Debug)]
pub struct NicSecurity {
    security: Security,
    tables: Tables,
    /// The position of the interface, or of its served subnet, in `security.nics`.
    number: u8,
}

/// A security group that applies to a network interface.
#[derive(Debug, Clone, Copy)]
pub struct AppliedGroup<'s> {
    /// The group with its rules, default rules included.
    pub group: &'s SecurityGroup,
    /// Whether the group is attached to the subnet or to the interface.
    pub attachment: Attachment,
    /// The subnet or the interface to which the group is attached.
    pub attached_to: &'s ResourceId,
}

/// The decision of a security group about a packet, with the rules that led to it.
#[derive(Debug)]
pub struct EvaluatedGroup<'s> {
    /// The group, and where it is attached.
    pub applied: AppliedGroup<'s>,
    /// The decision.
    pub access: Access,
    /// The rules in order of priority, up to the one that decides, each with the fields that match.
    pub rules: Vec<(&'s SecurityRule, FieldMatches)>,
}

/// The fields of the first packet of a flow with which rules are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPacket {
    /// Whether the packet comes to the interface or leaves the interface.
    pub direction: Direction,
    /// The protocol.
    pub protocol: Protocol,
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same address family as the source.
    pub destination: IpAddr,
    /// The source port; not used for ICMP. `None`: the packet may have any source port.
    pub source_port: Option<u16>,
    /// The destination port; not used for ICMP.
    pub destination_port: u16,
}

/// The decision of the rules of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided<'s> {
    /// Whether the rules allow the packet.
    pub access: Access,
    /// The rule that denies the packet, or the one that allows it in the last group. `None`: no group applies.
    pub rule: Option<&'s SecurityRule>,
}

impl FirstPacket {
    fn key(&self, source_port: u16) -> RuleKey {
        let (protocol, has_ports) = match self.protocol {
            Protocol::Icmp if self.source.is_ipv4() => (ICMP, false),
            Protocol::Icmp => (ICMPV6, false),
            Protocol::Tcp => (TCP, true),
            Protocol::Udp => (UDP, true),
        };
        RuleKey {
            source: self.source,
            destination: self.destination,
            protocol,
            ports: has_ports.then_some((source_port, self.destination_port)),
        }
    }
}

impl NicSecurity {
    /// The security groups of a network interface, with the tables that its agent should have according to the topology
    /// and the reports of learned routes. The agent of an interface in a served subnet is the agent that serves the
    /// subnet (D25). If the interface has no agent, the tables are those that an agent would have if it joined for the
    /// interface and had no learned routes. `Ok(None)`: the interface does not exist, or no group applies to it (N5).
    ///
    /// # Errors
    /// The text of the error with which the agent would reject its configuration.
    pub fn of(topology: &Topology, reports: &LearnedReports, nic: &ResourceId) -> Result<Option<Self>, String> {
        let Some(resource) = topology.nics.get(nic) else {
            return Ok(None);
        };
        let compiler = Compiler::new(topology);
        if let Some(config) = enforcing_agent(topology, resource).and_then(|agent| compiler.compile(&agent.id)) {
            let state = LearnedRoutes::new(topology, &compiler, reports.clone()).routing_state(&config);
            return Self::in_config(config, &state, resource);
        }
        let (topology, agent) = with_agent(topology, resource);
        match Compiler::new(&topology).compile(&agent) {
            Some(config) => Self::in_config(config, &RoutingState::default(), resource),
            None => Ok(None),
        }
    }

    fn in_config(config: AgentConfig, state: &RoutingState, nic: &NetworkInterface) -> Result<Option<Self>, String> {
        let tables = Tables::build(&config, state).map_err(|e| e.to_string())?;
        let Some(security) = config.security else {
            return Ok(None);
        };
        let is_nic = |secured: &SecuredNic| secured.id == nic.envelope.id;
        let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
        let is_subnet = |secured: &SecuredNic| Some(&secured.id) == subnet;
        let position = security.nics.iter().position(is_nic);
        let position = position.or_else(|| security.nics.iter().position(is_subnet));
        let Some(number) = position.and_then(|p| u8::try_from(p).ok()) else {
            return Ok(None);
        };
        let found = Self {
            security,
            tables,
            number,
        };
        let applies = found.rules().is_some_and(|rules| !rules.is_empty());
        Ok(applies.then_some(found))
    }

    /// The groups in the order in which they decide about inbound packets: first the subnet's, then the interface's
    /// (N4).
    pub fn groups(&self) -> impl Iterator<Item = AppliedGroup<'_>> {
        let nic = self.security.nics.get(usize::from(self.number));
        let attached = nic.into_iter().flat_map(|nic| {
            [
                (&nic.subnet_group, Attachment::Subnet, &nic.subnet),
                (&nic.nic_group, Attachment::Nic, &nic.id),
            ]
        });
        attached.filter_map(move |(id, attachment, attached_to)| {
            let id = id.as_ref()?;
            let group = self.security.groups.iter().find(|group| group.id == *id)?;
            Some(AppliedGroup {
                group,
                attachment,
                attached_to,
            })
        })
    }

    /// The prefixes of a set of addresses at the interface, ordered. `set` is the name of a service tag, or the
    /// lower-case id of an application security group. The tag `Internet` has IPv6 prefixes only if `VirtualNetwork`
    /// has some. The result is empty if no set has this name.
    #[must_use]
    pub fn prefixes(&self, set: &str) -> Vec<IpNet> {
        match self.rules().and_then(|rules| rules.sets().content(set)) {
            Some(SetContent::Within(prefixes)) => prefixes,
            Some(SetContent::Outside(prefixes)) => outside(&prefixes),
            None => Vec::new(),
        }
    }

    /// The decision of the rules about the first packet of a flow. Routes and known flows do not matter (M4). If the
    /// packet may have any source port, and the rules deny it with some source ports, the result is the denial with the
    /// lowest of these ports.
    #[must_use]
    pub fn decide(&self, packet: &FirstPacket) -> Decided<'_> {
        let Some(rules) = self.rules() else {
            return Decided {
                access: Access::Allow,
                rule: None,
            };
        };
        let ports = match (packet.protocol, packet.source_port) {
            (Protocol::Icmp, _) => vec![0],
            (_, Some(port)) => vec![port],
            (_, None) => self.source_ports(packet.direction),
        };
        let decided = |port| {
            let (access, by) = match rules.judge(packet.direction, &packet.key(port)) {
                Judgement::NoGroup => (Access::Allow, None),
                Judgement::Allowed(by) => (Access::Allow, Some(by)),
                Judgement::Denied(by) => (Access::Deny, Some(by)),
            };
            let rule = by.and_then(|by| rules.rule(by)).map(|(_, rule)| rule);
            Decided { access, rule }
        };
        let denied = ports
            .iter()
            .map(|port| decided(*port))
            .find(|d| d.access == Access::Deny);
        denied.unwrap_or_else(|| decided(ports[0]))
    }

    /// The decisions of the groups about the first packet of a flow, in the order in which they decide, up to the first one
    /// that denies it (N4): for each group the rules in order of priority up to the one that decides, with the fields that
    /// match. The packet has the source port 0 if it may have any.
    #[must_use]
    pub fn evaluate(&self, packet: &FirstPacket) -> Vec<EvaluatedGroup<'_>> {
        let Some(rules) = self.rules() else {
            return Vec::new();
        };
        let explained = rules.explain(packet.direction, &packet.key(packet.source_port.unwrap_or(0)));
        let evaluated = explained.into_iter().filter_map(|explained| {
            let mut applied = self.groups();
            Some(EvaluatedGroup {
                applied: applied.find(|applied| applied.attachment == explained.attachment)?,
                access: explained.access,
                rules: explained.evaluated,
            })
        });
        evaluated.collect()
    }

    /// The first source port of each interval within which the rules of `direction` do not distinguish source ports, in
    /// ascending order from 0. Never empty.
    fn source_ports(&self, direction: Direction) -> Vec<u16> {
        let mut starts = vec![0];
        let rules = self.groups().flat_map(|applied| &applied.group.rules);
        for range in rules
            .filter(|rule| rule.direction == direction)
            .flat_map(|rule| &rule.source_ports)
        {
            starts.push(range.first);
            starts.extend(range.last.checked_add(1));
        }
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    fn rules(&self) -> Option<&NicRules> {
        self.tables.security()?.rules(self.number)
    }
}

/// The agent that enforces the rules of a network interface: the agent that has joined for the interface, or else the
/// agent that serves its subnet (D25). `None`: there is no such agent, or the agent is revoked.
fn enforcing_agent<'t>(topology: &'t Topology, nic: &NetworkInterface) -> Option<&'t Agent> {
    let id = &nic.envelope.id;
    let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
    let trusted = || {
        topology
            .agents
            .values()
            .filter(|agent| !agent.revoked)
            .map(|agent| &**agent)
    };
    let owns = |agent: &&Agent| matches!(&agent.binding, Binding::Vm { nics, .. } if nics.contains(id));
    let serves = |agent: &&Agent| match &agent.binding {
        Binding::Vm { served, .. } => served.iter().any(|s| Some(s) == subnet),
        Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
    };
    trusted().find(owns).or_else(|| trusted().find(serves))
}

/// A copy of the topology in which an agent has joined for the network interface, and the name of this agent. The agent
/// has no keys and no endpoint, so the copy must not leave this module.
fn with_agent(topology: &Topology, nic: &NetworkInterface) -> (Topology, AgentId) {
    let nic = &nic.envelope.id;
    // The names of sites' devices have a form of their own, so no agent has this name.
    let id = AgentId::of_site(nic);
    let agent = Agent {
        id: id.clone(),
        binding: Binding::Vm {
            vm: nic.clone(),
            nics: vec![nic.clone()],
            served: Vec::new(),
        },
        public_key: PublicKey([0; 32]),
        certificate_key: String::new(),
        reach: Reach::at(Vec::new()),
        revoked: false,
    };
    let mut topology = topology.clone();
    topology.agents.insert(id.clone(), Arc::new(agent));
    (topology, id)
}

/// The addresses that are in none of `prefixes`, as the smallest possible list of prefixes, ordered. The result has
/// IPv6 prefixes only if `prefixes` has some.
fn outside(prefixes: &[IpNet]) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in IpNet::aggregate(&prefixes.to_vec()) {
        match prefix {
            IpNet::V4(p) => v4.push((p.network().to_bits().into(), p.broadcast().to_bits().into())),
            IpNet::V6(p) => v6.push((p.network().to_bits(), p.broadcast().to_bits())),
        }
    }
    let of_v4 = gaps(&v4, u32::MAX.into()).into_iter().flat_map(|(first, last)| {
        let address = |bits: u128| Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX));
        Ipv4Subnets::new(address(first), address(last), 0).map(IpNet::V4)
    });
    let v6 = if v6.is_empty() {
        Vec::new()
    } else {
        gaps(&v6, u128::MAX)
    };
    let of_v6 = v6.into_iter().flat_map(|(first, last)| {
        Ipv6Subnets::new(Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last), 0).map(IpNet::V6)
    });
    of_v4.chain(of_v6).collect()
}

/// The ranges of numbers from 0 to `max` that are in no range of `taken`, in ascending order. The ranges of `taken`
/// must be in ascending order and must not overlap. A range includes its first and its last number.
fn gaps(taken: &[(u128, u128)], max: u128) -> Vec<(u128, u128)> {
    let mut found = Vec::new();
    let mut next = Some(0);
    for (first, last) in taken {
        if let Some(begin) = next
            && begin < *first
        {
            found.push((begin, first - 1));
        }
        next = last.checked_add(1);
    }
    if let Some(begin) = next
        && begin <= max
    {
        found.push((begin, max));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside_of(text: &str) -> String {
        let prefixes: Vec<IpNet> = text.split_whitespace().map(|p| p.parse().unwrap()).collect();
        let texts: Vec<String> = outside(&prefixes).iter().map(ToString::to_string).collect();
        texts.join(" ")
    }

    #[test]
    fn n9_internet_is_what_virtual_network_leaves() {
        assert_eq!(outside_of("0.0.0.0/1"), "128.0.0.0/1");
        assert_eq!(outside_of("128.0.0.0/2 192.0.0.0/2 64.0.0.0/2"), "0.0.0.0/2");
        assert_eq!(outside_of("0.0.0.0/0"), "");
        assert_eq!(outside_of("0.0.0.0/1 ::/1"), "128.0.0.0/1 8000::/1");
        assert_eq!(outside_of(""), "0.0.0.0/0");
        let around = outside_of("10.0.0.0/16 10.0.3.0/24 168.63.129.16/32");
        assert!(
            around.starts_with("0.0.0.0/5 8.0.0.0/7 10.1.0.0/16 10.2.0.0/15 "),
            "{around}"
        );
        assert_eq!(around.split(' ').count(), 15 + 31, "{around}");
    }
}
