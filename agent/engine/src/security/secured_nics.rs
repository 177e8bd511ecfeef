//! The security groups of all NICs of one agent, and the NIC whose rules apply to a packet (D25).

use super::address_sets::AddressSets;
use super::flow_log::LogNumbers;
use super::nic_rules::{GroupRules, NicRules, RuleRef};
use super::prepared_groups::PreparedGroups;
use crate::decide::Ingress;
use crate::packet::PacketInfo;
use crate::tables::NicIndex;
use crate::tables::lpm::Lpm;
use crate::verdict::Verdict;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use tombolo_proto::config::{
    AccessOff, AgentConfig, ApplicationGroup, Direction, Role, Security, SecurityGroup, SpaceKind,
};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{EffectiveRoute, RouteSource};

/// The virtual address of the host: the source of health probes, and a part of the tag `VirtualNetwork` (N8, N9).
const HOST_VIP: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The NICs of an agent, each with the rules that apply to it. The number of a NIC is its position in
/// [`Security::nics`]. Each subnet of machines without an agent is an entry like a NIC.
#[derive(Debug, Clone)]
pub struct SecuredNics {
    /// The prepared groups.
    groups: BTreeMap<ResourceId, Arc<GroupRules>>,
    /// The application security groups, and the tags without prefixes.
    sets: AddressSets,
    /// The NICs by number.
    nics: Vec<Arc<Nic>>,
    /// Prefix → the number of the NIC that has the addresses of the prefix. The longest prefix of an address counts.
    by_address: Lpm<u8>,
    /// The number of NICs of the machine itself. Their numbers are those of [`NicIndex`], and come before those of
    /// served subnets and of the NICs in them.
    own: u8,
    /// The effect that a peering with `allowVirtualNetworkAccess` off has at NICs with a group (D28).
    access_off: AccessOff,
    /// Idle timeout of flows, in seconds (N6).
    idle_timeout: u32,
    /// Whether changed rules apply to established flows too (D34).
    reevaluate: bool,
    /// The numbers under which flow logs name the rules.
    log_numbers: OnceLock<Arc<LogNumbers>>,
}

/// The prepared groups that new tables take over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reuse<'a> {
    Nothing,
    /// The groups whose rules are the same in these earlier tables: a change of routes changes no rule.
    Unchanged(&'a SecuredNics),
    /// All groups of these, whatever rules the configuration has.
    Shared(&'a PreparedGroups),
}

/// A NIC with its rules, which have consecutive numbers.
#[derive(Debug)]
struct Nic {
    id: ResourceId,
    /// Whether a flow log covers the NIC.
    is_logged: bool,
    rules: Arc<NicRules>,
    /// The number of the first rule of this NIC. The rules of all NICs of the agent are numbered from 0.
    first_rule: usize,
}

/// A NIC and the direction in which a packet passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The number of the NIC.
    pub nic: u8,
    /// Whether the packet comes to the NIC or leaves the NIC.
    pub direction: Direction,
}

/// The names that identify a rule at a NIC, as counters show them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// The NIC, or the subnet of machines without an agent.
    pub nic: ResourceId,
    /// The security group.
    pub group: ResourceId,
    /// Whether the rule applies to packets that come to the NIC or to packets that leave the NIC.
    pub direction: Direction,
    /// `securityRules/NAME` or `defaultSecurityRules/NAME`.
    pub rule: String,
}

impl Passage {
    /// The passage of a packet at the machine's own NICs, and the packet's address at the NIC. See
    /// [`SecuredNics::passage`].
    pub(crate) const fn of(ingress: Ingress, packet: &PacketInfo, verdict: Verdict) -> Option<(IpAddr, Self)> {
        let (address, nic, direction) = match (ingress, verdict) {
            (Ingress::Tun(nic), Verdict::Forward { .. }) => (packet.source, nic, Direction::Outbound),
            (Ingress::Link(_), Verdict::Deliver(nic)) => (packet.destination, nic, Direction::Inbound),
            _ => return None,
        };
        Some((address, Self { nic: nic.0, direction }))
    }
}

impl SecuredNics {
    /// Prepares the groups of a configuration for lookups. `routes_of` returns the effective routes of a subnet,
    /// learned routes included, because the prefixes of these routes belong to the tag `VirtualNetwork` (N8). `reuse`:
    /// the groups that are prepared already.
    pub(crate) fn new<'r>(
        config: &AgentConfig,
        security: &Security,
        routes_of: impl Fn(&ResourceId) -> &'r [EffectiveRoute],
        reuse: Reuse<'_>,
    ) -> Self {
        let sets = match reuse {
            Reuse::Shared(shared) => shared.sets.clone(),
            Reuse::Unchanged(_) | Reuse::Nothing => without_routes(&security.application_groups),
        };
        let known = |group: &SecurityGroup| match reuse {
            Reuse::Nothing => None,
            Reuse::Unchanged(before) => {
                let known = before.groups.get(&group.id).filter(|_| before.sets.has_ids_of(&sets));
                known.filter(|known| known.has(&group.rules))
            }
            Reuse::Shared(shared) => shared.groups.get(&group.id),
        };
        let prepare = |group: &SecurityGroup| {
            let new = || Arc::new(GroupRules::new(group.id.clone(), group.rules.clone(), &sets));
            known(group).cloned().unwrap_or_else(new)
        };
        let groups: BTreeMap<_, _> = security.groups.iter().map(|g| (g.id.clone(), prepare(g))).collect();
        let logged = security.flow_logs.iter().flat_map(|logs| &logs.nics);
        let logged: BTreeSet<&ResourceId> = logged.map(|nic| &nic.id).collect();
        let mut by_address = Lpm::default();
        let mut nics: Vec<Arc<Nic>> = Vec::with_capacity(security.nics.len());
        let mut first_rule = 0;
        for (nic, number) in security.nics.iter().zip(0u8..) {
            for prefix in &nic.prefixes {
                by_address.insert(*prefix, number);
            }
            let group = |id: &Option<ResourceId>| id.as_ref().and_then(|id| groups.get(id)).cloned();
            let sets = with_routes(&sets, &virtual_network(config, routes_of(&nic.subnet)));
            let rules = NicRules::new(sets, group(&nic.subnet_group), group(&nic.nic_group));
            let count = rules.count();
            nics.push(Arc::new(Nic {
                id: nic.id.clone(),
                is_logged: logged.contains(&nic.id),
                rules: Arc::new(rules),
                first_rule,
            }));
            first_rule += count;
        }
        // With floating IP, a packet passes the NIC of a back end with the front end's address, which can be in a served
        // subnet of the host too.
        for front_end in config.front_ends.iter().filter(|f| f.vnet == config.vnet) {
            let mut back_ends = front_end.rules.iter().flat_map(|rule| &rule.back_ends);
            if let Some(number) = back_ends.find_map(|address| by_address.get(*address).copied()) {
                by_address.insert(front_end.address.into(), number);
            }
        }
        let own = match &config.role {
            Role::Vm { nics, .. } => nics.len(),
            Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => 0,
        };
        Self {
            groups,
            sets,
            nics,
            by_address,
            own: u8::try_from(own).unwrap_or(u8::MAX),
            access_off: security.access_off,
            idle_timeout: u32::from(security.flow_timeout_minutes) * 60,
            reevaluate: security.reevaluate,
            log_numbers: OnceLock::new(),
        }
    }

    /// The NIC whose rules apply to a packet, and the direction in which the packet passes the NIC. `verdict` is the
    /// engine's decision about the packet without security groups. `None`: the packet passes no NIC of this agent, or
    /// the engine drops or answers it.
    ///
    /// A packet from the host leaves the NIC from whose device the engine has read it. A packet from a link arrives at
    /// the NIC to whose device the engine delivers it. So a packet that the host forwards passes NICs twice: inbound
    /// when it comes from a link, and outbound when the host sends it on (D25). Packets of machines in served subnets
    /// pass the entry of their own address instead.
    #[must_use]
    pub fn passage(&self, ingress: Ingress, packet: &PacketInfo, verdict: Verdict) -> Option<Passage> {
        let (address, Passage { nic, direction }) = Passage::of(ingress, packet, verdict)?;
        let nic = self.number_of(address, NicIndex(nic));
        Some(Passage { nic, direction })
    }

    /// Whether the security rules alone decide about packets from and to peers with `allowVirtualNetworkAccess` off
    /// (D28), at the NIC `nic` or in the served subnet of `address`. If the result is false, such packets are dropped
    /// (P17).
    #[must_use]
    pub fn rules_decide_without_access(&self, address: IpAddr, nic: NicIndex) -> bool {
        self.access_off == AccessOff::TagOnly && self.is_secured(self.number_of(address, nic))
    }

    /// The number of the entry whose rules apply to a packet at the NIC `nic`: the entry of `address` if it is a served
    /// subnet or a NIC in one, and otherwise that of `nic`.
    pub(crate) fn number_of(&self, address: IpAddr, nic: NicIndex) -> u8 {
        let served = self
            .by_address
            .get(address)
            .copied()
            .filter(|number| *number >= self.own);
        served.unwrap_or(nic.0)
    }

    /// The number that the flow table keeps for the NIC that a flow passes. NICs of the machine itself have their own number,
    /// because a flow that an appliance forwards may pass two of them. All others have 0: their addresses tell them
    /// apart. Their own numbers change when the host serves further machines, and flows must survive such a change.
    #[must_use]
    pub const fn flow_nic(&self, number: u8) -> u8 {
        if number < self.own { number } else { 0 }
    }

    /// The rules of a NIC. `None`: there is no NIC of this number.
    #[must_use]
    pub fn rules(&self, nic: u8) -> Option<&NicRules> {
        self.shared_rules(nic).map(|rules| &**rules)
    }

    /// The rules of a NIC, to keep them longer than the tables. `None`: there is no NIC of this number.
    #[must_use]
    pub fn shared_rules(&self, nic: u8) -> Option<&Arc<NicRules>> {
        self.nics.get(usize::from(nic)).map(|nic| &nic.rules)
    }

    /// The id of a NIC. `None`: there is no NIC of this number.
    #[must_use]
    pub fn id(&self, nic: u8) -> Option<&ResourceId> {
        self.nics.get(usize::from(nic)).map(|nic| &nic.id)
    }

    /// The ids of the machine's own NICs, in the order of their numbers.
    pub fn own_ids(&self) -> impl Iterator<Item = &ResourceId> {
        self.nics.iter().take(usize::from(self.own)).map(|nic| &nic.id)
    }

    /// Whether a group applies to the NIC of this number.
    #[must_use]
    pub fn is_secured(&self, nic: u8) -> bool {
        self.rules(nic).is_some_and(|rules| !rules.is_empty())
    }

    /// Whether a flow log covers the NIC of this number (N14).
    #[must_use]
    pub fn is_logged(&self, nic: u8) -> bool {
        self.nics.get(usize::from(nic)).is_some_and(|nic| nic.is_logged)
    }

    /// Whether a flow log covers a NIC.
    #[must_use]
    pub fn has_logs(&self) -> bool {
        self.nics.iter().any(|nic| nic.is_logged)
    }

    /// The numbers under which flow logs name the rules. `new` makes them at the first call.
    pub(super) fn log_numbers(&self, new: impl FnOnce() -> Arc<LogNumbers>) -> &Arc<LogNumbers> {
        self.log_numbers.get_or_init(new)
    }

    /// Idle timeout of flows, in seconds (N6).
    #[must_use]
    pub const fn idle_timeout(&self) -> u32 {
        self.idle_timeout
    }

    /// Whether changed rules apply to established flows too (the setting `reevaluate`, D34).
    #[must_use]
    pub const fn reevaluates(&self) -> bool {
        self.reevaluate
    }

    /// The number of NICs, those without a group included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nics.len()
    }

    /// The number of rules of all NICs. A group that applies to several NICs counts once for each of them.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.nics.last().map_or(0, |nic| nic.first_rule + nic.rules.count())
    }

    /// The number of a rule of the NIC `nic`, from 0 and below [`rule_count`](Self::rule_count). `None`: the NIC has no
    /// such rule.
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
}

/// The sets that rules may name: the application security groups with their addresses, and the tags, of which
/// `VirtualNetwork` has no prefixes yet. The ids of the sets do not depend on those prefixes, so all NICs can share the
/// prepared rules of a group.
pub(super) fn without_routes(application_groups: &[ApplicationGroup]) -> AddressSets {
    let mut sets = with_routes(&AddressSets::default(), &[]);
    for group in application_groups {
        sets.add_group(&group.name, group.addresses.iter().copied());
    }
    sets
}

/// The same sets at a NIC where the tag `VirtualNetwork` has these prefixes.
fn with_routes(sets: &AddressSets, virtual_network: &[IpNet]) -> AddressSets {
    let mut sets = sets.clone();
    sets.set_tag("VirtualNetwork", virtual_network.iter().copied(), false);
    sets.set_tag("Internet", virtual_network.iter().copied(), true);
    sets.set_tag("AzureLoadBalancer", [IpNet::from(IpAddr::from(HOST_VIP))], false);
    sets
}

/// The prefixes of the tag `VirtualNetwork` at a NIC (N8): the address spaces of the VNet and of the peers with
/// `allowVirtualNetworkAccess`, the prefixes of gateway routes and of user-defined routes of the NIC's subnet, and the
/// host's virtual address. `routes` are the effective routes of the subnet, including routes that are not active.
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
