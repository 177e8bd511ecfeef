//! The security groups of all NICs of one agent, and the NIC whose rules apply to a packet (D25).

use super::address_sets::AddressSets;
use super::nic_rules::{Attachment, GroupRules, NicRules, RuleRef};
use crate::decide::Ingress;
use crate::packet::PacketInfo;
use crate::tables::lpm::Lpm;
use crate::verdict::Verdict;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_proto::config::{AccessOff, AgentConfig, Direction, Role, Security, SpaceKind};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{EffectiveRoute, RouteSource};

/// The virtual address of the host: the source of health probes, and a part of the tag `VirtualNetwork` (N8, N9).
const HOST_VIP: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The NICs of an agent with the rules that apply to each.
#[derive(Debug, Clone)]
pub struct SecuredNics {
    /// In the order of [`Security::nics`]; a position is the number of a NIC.
    nics: Vec<Arc<Nic>>,
    /// The number of the NIC that has an address.
    by_address: Lpm<u8>,
    /// The number of the NIC through which packets of others pass: the first NIC with IP forwarding.
    forwarding: Option<u8>,
    access_off: AccessOff,
    /// A flow without packets for this time, in seconds, is forgotten (N6).
    idle_timeout: u32,
}

/// A NIC with the numbers of its rules.
#[derive(Debug)]
struct Nic {
    id: ResourceId,
    rules: NicRules,
    /// The number of the first rule of this NIC among all rules of the agent.
    first_rule: usize,
}

/// A NIC and the direction in which a packet passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The number of the NIC.
    pub nic: u8,
    /// Whether the packet comes to the NIC or leaves it.
    pub direction: Direction,
}

/// A rule of a NIC by its names, as counters and drops show it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// The NIC, or the subnet of machines without an agent.
    pub nic: ResourceId,
    /// The security group.
    pub group: ResourceId,
    /// Whether the rule judges packets that come to the NIC or that leave it.
    pub direction: Direction,
    /// `securityRules/NAME` or `defaultSecurityRules/NAME`.
    pub rule: String,
}

impl SecuredNics {
    /// Prepares the groups of a configuration. `routes_of` returns the effective routes of a subnet, learned ones
    /// included: the tag `VirtualNetwork` depends on them (N8).
    pub(crate) fn new<'r>(
        config: &AgentConfig,
        security: &Security,
        routes_of: impl Fn(&ResourceId) -> &'r [EffectiveRoute],
    ) -> Self {
        let names = address_sets(security, &[]);
        let groups: BTreeMap<_, _> = security
            .groups
            .iter()
            .map(|g| (&g.id, Arc::new(GroupRules::new(g.id.clone(), g.rules.clone(), &names))))
            .collect();
        let mut by_address = Lpm::default();
        let mut nics: Vec<Arc<Nic>> = Vec::with_capacity(security.nics.len());
        let mut first_rule = 0;
        for (nic, number) in security.nics.iter().zip(0u8..) {
            for prefix in &nic.prefixes {
                by_address.insert(*prefix, number);
            }
            let group = |id: &Option<ResourceId>| id.as_ref().and_then(|id| groups.get(id)).cloned();
            let sets = address_sets(security, &virtual_network(config, routes_of(&nic.subnet)));
            let rules = NicRules::new(sets, group(&nic.subnet_group), group(&nic.nic_group));
            let count = rules.count();
            nics.push(Arc::new(Nic {
                id: nic.id.clone(),
                rules,
                first_rule,
            }));
            first_rule += count;
        }
        let forwarding = match &config.role {
            Role::Vm { nics, .. } => nics.iter().position(|n| n.ip_forwarding),
            Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => None,
        };
        Self {
            nics,
            by_address,
            forwarding: forwarding.and_then(|n| u8::try_from(n).ok()),
            access_off: security.access_off,
            idle_timeout: u32::from(security.flow_timeout_minutes) * 60,
        }
    }

    /// The NIC whose rules apply to a packet with this verdict, and in which direction. `None`: the packet passes no NIC
    /// of this agent, or is dropped or answered already.
    ///
    /// A packet from the host leaves the NIC that has its source; a packet from a link comes to the NIC that has its
    /// destination. A packet of others passes the NIC with IP forwarding, in both directions (D25).
    #[must_use]
    pub fn passage(&self, ingress: Ingress, packet: &PacketInfo, verdict: Verdict) -> Option<Passage> {
        let (address, direction) = match (ingress, verdict) {
            (Ingress::Tun, Verdict::Forward { .. }) => (packet.source, Direction::Outbound),
            (Ingress::Link(_), Verdict::Deliver) => (packet.destination, Direction::Inbound),
            _ => return None,
        };
        let nic = self.nic_of(address)?;
        Some(Passage { nic, direction })
    }

    /// Whether rules alone decide about packets of peers with `allowVirtualNetworkAccess` off at the NIC of `address`
    /// (D28). If not, such packets are dropped (P17).
    #[must_use]
    pub fn rules_decide_without_access(&self, address: IpAddr) -> bool {
        self.access_off == AccessOff::TagOnly && self.nic_of(address).is_some_and(|nic| self.is_secured(nic))
    }

    /// The number of the NIC that has an address, or through which packets of this address pass.
    fn nic_of(&self, address: IpAddr) -> Option<u8> {
        self.by_address.get(address).copied().or(self.forwarding)
    }

    /// The rules of a NIC. `None`: there is no NIC of this number.
    #[must_use]
    pub fn rules(&self, nic: u8) -> Option<&NicRules> {
        self.nics.get(usize::from(nic)).map(|nic| &nic.rules)
    }

    /// The id of a NIC. `None`: there is no NIC of this number.
    #[must_use]
    pub fn id(&self, nic: u8) -> Option<&ResourceId> {
        self.nics.get(usize::from(nic)).map(|nic| &nic.id)
    }

    /// Whether a group applies to the NIC of this number.
    #[must_use]
    pub fn is_secured(&self, nic: u8) -> bool {
        self.rules(nic).is_some_and(|rules| !rules.is_empty())
    }

    /// A flow without packets for this time, in seconds, is forgotten (N6).
    #[must_use]
    pub const fn idle_timeout(&self) -> u32 {
        self.idle_timeout
    }

    /// How many NICs there are, those without a group included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nics.len()
    }

    /// The number of rules of all NICs. A group that applies to several NICs counts once for each of them.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.nics.last().map_or(0, |nic| nic.first_rule + nic.rules.count())
    }

    /// The number of a rule, below [`rule_count`](Self::rule_count). `None`: the agent has no such rule.
    #[must_use]
    pub fn rule_number(&self, nic: u8, rule: RuleRef) -> Option<usize> {
        let nic = self.nics.get(usize::from(nic))?;
        Some(nic.first_rule + nic.rules.position(rule)?)
    }

    /// The names of all rules, in the order of [`rule_number`](Self::rule_number).
    pub fn rule_names(&self) -> impl Iterator<Item = RuleName> + '_ {
        self.nics.iter().flat_map(|nic| {
            nic.rules.all().map(|(group, rule)| RuleName {
                nic: nic.id.clone(),
                group: group.clone(),
                direction: rule.direction,
                rule: rule.name.clone(),
            })
        })
    }

    /// The names of the rule with this [`number`](Self::rule_number). `None`: the agent has no such rule.
    #[must_use]
    pub fn name_of_number(&self, number: usize) -> Option<RuleName> {
        let at = self
            .nics
            .partition_point(|nic| nic.first_rule <= number)
            .checked_sub(1)?;
        let nic = self.nics.get(at)?;
        let (group, rule) = nic.rules.all().nth(number - nic.first_rule)?;
        Some(RuleName {
            nic: nic.id.clone(),
            group: group.clone(),
            direction: rule.direction,
            rule: rule.name.clone(),
        })
    }

    /// Whether a group applies to the NIC with this id.
    #[must_use]
    pub fn is_secured_by_id(&self, id: &ResourceId) -> bool {
        self.nics.iter().any(|nic| nic.id == *id && !nic.rules.is_empty())
    }

    /// The names of one rule. `None`: the agent has no such rule.
    #[must_use]
    pub fn rule_name(&self, nic: u8, rule: RuleRef) -> Option<RuleName> {
        let id = self.id(nic)?.clone();
        let (group, found) = self.rules(nic)?.rule(rule)?;
        Some(RuleName {
            nic: id,
            group: group.clone(),
            direction: found.direction,
            rule: found.name.clone(),
        })
    }

    /// Where a group is attached, for texts.
    #[must_use]
    pub const fn attachment_name(attachment: Attachment) -> &'static str {
        match attachment {
            Attachment::Subnet => "subnet",
            Attachment::Nic => "network interface",
        }
    }
}

/// What the names in rules mean at a NIC whose tag `VirtualNetwork` has these prefixes. The ids of the sets do not depend
/// on the prefixes, so that NICs share the prepared rules of a group.
fn address_sets(security: &Security, virtual_network: &[IpNet]) -> AddressSets {
    let mut sets = AddressSets::default();
    sets.set_tag("VirtualNetwork", virtual_network.iter().copied(), false);
    sets.set_tag("Internet", virtual_network.iter().copied(), true);
    sets.set_tag("AzureLoadBalancer", [IpNet::from(IpAddr::from(HOST_VIP))], false);
    for group in &security.application_groups {
        sets.add_group(&group.name, group.addresses.iter().copied());
    }
    sets
}

/// The prefixes of the tag `VirtualNetwork` at a NIC (N8): the VNet's own address space, the peers with
/// `allowVirtualNetworkAccess`, the prefixes of gateway routes and of user-defined routes of the NIC's subnet, and the
/// host's virtual address. `routes` are the effective routes of the subnet, those included that are not active.
fn virtual_network(config: &AgentConfig, routes: &[EffectiveRoute]) -> Vec<IpNet> {
    let mut prefixes = config.address_space.clone();
    for space in &config.spaces {
        let counts = match &space.kind {
            SpaceKind::Peered { allow_access, .. } => *allow_access,
            SpaceKind::Local {} | SpaceKind::GatewayClient {} => true,
        };
        if counts {
            prefixes.extend(&space.prefixes);
        }
    }
    let of_routes = routes.iter().filter(|r| r.source != RouteSource::Default);
    prefixes.extend(of_routes.map(|r| r.prefix));
    prefixes.push(IpAddr::from(HOST_VIP).into());
    prefixes
}

#[cfg(test)]
mod tests;
