//! The security groups of one NIC, and the search for the rule that decides about a packet (N3 to N5, D25).

use super::address_sets::AddressSets;
use super::classifier::{Classifier, FieldMatches, RuleKey, RuleSet};
use super::traffic::Traffic;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::config::{Access, Direction, SecurityRule};
use tombolo_proto::id::ResourceId;

/// The security groups that apply to a NIC.
#[derive(Debug, Default)]
pub struct NicRules {
    /// The addresses for which tags and application security groups stand at this NIC.
    sets: AddressSets,
    /// The group of the NIC's subnet, if there is one.
    subnet: Option<Arc<GroupRules>>,
    /// The group of the NIC itself, if there is one.
    nic: Option<Arc<GroupRules>>,
}

/// A security group whose rules are prepared for lookups.
#[derive(Debug)]
pub struct GroupRules {
    id: ResourceId,
    inbound: RuleList,
    outbound: RuleList,
}

#[derive(Debug)]
struct RuleList {
    rules: Vec<SecurityRule>,
    classifier: Classifier,
}

/// Where a group is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// To the subnet.
    Subnet,
    /// To the NIC.
    Nic,
}

/// The rule that decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// The group: that of the subnet or that of the NIC.
    pub attachment: Attachment,
    /// The direction of the packet, which selects one of the group's two lists of rules.
    pub direction: Direction,
    /// The position of the rule in that list, from 0, in ascending order of priority. `u16::MAX`: no rule of the list
    /// matches, so the group denies the packet.
    pub position: u16,
}

/// The decision of the rules of a NIC about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// No group applies to the NIC (N5).
    NoGroup,
    /// Every group allows the packet. This is the rule that allows it in the last group.
    Allowed(RuleRef),
    /// This rule denies the packet.
    Denied(RuleRef),
}

/// The decision of one group about a packet, with the rules that led to it, for diagnosis.
#[derive(Debug)]
pub struct GroupExplanation<'r> {
    /// The group.
    pub group: &'r ResourceId,
    /// Where the group is attached.
    pub attachment: Attachment,
    /// The rules in ascending order of priority, up to and including the rule that decided, each with the fields that
    /// matched. If no rule matches, all rules of the direction.
    pub evaluated: Vec<(&'r SecurityRule, FieldMatches)>,
    /// The access of the deciding rule. If no rule matches, [`Access::Deny`].
    pub access: Access,
}

impl GroupRules {
    /// Prepares a group for lookups. `rules` has the rules of both directions, in any order. `sets` must have every
    /// name that the rules use: a name that is missing matches no address.
    #[must_use]
    pub fn new(id: ResourceId, rules: Vec<SecurityRule>, sets: &AddressSets) -> Self {
        let (inbound, outbound) = rules.into_iter().partition(|r| r.direction == Direction::Inbound);
        Self {
            id,
            inbound: RuleList::new(inbound, sets),
            outbound: RuleList::new(outbound, sets),
        }
    }

    /// Whether the group has exactly these rules, in the order of directions and priorities.
    #[must_use]
    pub fn has(&self, rules: &[SecurityRule]) -> bool {
        self.inbound.rules.iter().chain(&self.outbound.rules).eq(rules)
    }

    /// The number of rules of both directions.
    fn count(&self) -> usize {
        self.inbound.rules.len() + self.outbound.rules.len()
    }

    /// The packets of a direction that the group allows if exactly the rules in `matching` match their addresses.
    #[must_use]
    pub fn traffic(&self, direction: Direction, matching: &RuleSet) -> Traffic {
        let list = self.list(direction);
        list.classifier.traffic(&list.rules, matching)
    }

    const fn list(&self, direction: Direction) -> &RuleList {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl RuleList {
    fn new(mut rules: Vec<SecurityRule>, sets: &AddressSets) -> Self {
        rules.sort_by_key(|rule| rule.priority);
        let classifier = Classifier::new(rules.iter(), sets);
        Self { rules, classifier }
    }
}

impl NicRules {
    /// The groups of a NIC: `subnet` is the group of its subnet, `nic` that of the NIC itself. Both must have been
    /// prepared with sets that have the same names in the same order as `sets`, because prepared rules refer to a set
    /// by its number.
    #[must_use]
    pub const fn new(sets: AddressSets, subnet: Option<Arc<GroupRules>>, nic: Option<Arc<GroupRules>>) -> Self {
        Self { sets, subnet, nic }
    }

    /// The same NIC with other rules in its groups: a group that is in `changed` replaces the one with its id. The new groups
    /// must have been prepared with sets like those of the old ones. `None`: no group of the NIC is in `changed`.
    #[must_use]
    pub fn with(&self, changed: &BTreeMap<ResourceId, Arc<GroupRules>>) -> Option<Self> {
        let new = |group: &Option<Arc<GroupRules>>| group.as_ref().and_then(|group| changed.get(&group.id)).cloned();
        let (subnet, nic) = (new(&self.subnet), new(&self.nic));
        (subnet.is_some() || nic.is_some()).then(|| Self {
            sets: self.sets.clone(),
            subnet: subnet.or_else(|| self.subnet.clone()),
            nic: nic.or_else(|| self.nic.clone()),
        })
    }

    /// The addresses for which tags and application security groups stand at this NIC.
    #[must_use]
    pub const fn sets(&self) -> &AddressSets {
        &self.sets
    }

    /// Whether no group applies to the NIC (N5).
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subnet.is_none() && self.nic.is_none()
    }

    /// Returns the decision of the rules about the first packet of a flow. The subnet's group decides first about an
    /// inbound packet, and the NIC's group decides first about an outbound packet (N4). If the first group denies the
    /// packet, the second one is not asked.
    ///
    /// If no rule of a group matches, the group denies the packet. This does not happen in a group with default rules,
    /// because the last default rule of each direction matches every packet (N2).
    #[must_use]
    pub fn judge(&self, direction: Direction, key: &RuleKey) -> Judgement {
        self.judge_and(direction, key, |_| ())
    }

    /// Does the same as [`judge`](Self::judge), and calls `decided` with the deciding rule of each group that is asked,
    /// in the order of the groups. If no rule of a group matches, the position of this [`RuleRef`] is `u16::MAX`.
    pub fn judge_and(&self, direction: Direction, key: &RuleKey, mut decided: impl FnMut(RuleRef)) -> Judgement {
        let mut judgement = Judgement::NoGroup;
        for (attachment, group) in self.in_order(direction) {
            let list = group.list(direction);
            let position = list.classifier.decide(key, &self.sets);
            let access = position.and_then(|p| list.rules.get(p)).map(|rule| rule.access);
            let rule = RuleRef {
                attachment,
                direction,
                position: position.and_then(|p| u16::try_from(p).ok()).unwrap_or(u16::MAX),
            };
            decided(rule);
            match access {
                Some(Access::Allow) => judgement = Judgement::Allowed(rule),
                Some(Access::Deny) | None => return Judgement::Denied(rule),
            }
        }
        judgement
    }

    /// The groups that apply, in the order in which they decide about packets of a direction (N4).
    pub fn groups(&self, direction: Direction) -> impl Iterator<Item = &Arc<GroupRules>> {
        self.in_order(direction).map(|(_, group)| group)
    }

    /// The number of groups that apply: 0, 1 or 2.
    #[must_use]
    pub fn group_count(&self) -> usize {
        usize::from(self.subnet.is_some()) + usize::from(self.nic.is_some())
    }

    /// For each group, in the order of [`judge`](Self::judge): the rules of the direction whose source (`is_source`) or
    /// destination matches an address.
    pub fn matching(
        &self,
        direction: Direction,
        is_source: bool,
        address: IpAddr,
    ) -> impl Iterator<Item = (&Arc<GroupRules>, RuleSet)> {
        self.in_order(direction).map(move |(_, group)| {
            let classifier = &group.list(direction).classifier;
            (group, classifier.matching(is_source, address, &self.sets))
        })
    }

    /// Returns the decision of each group that [`judge`](Self::judge) asks, in the same order. The last group is the
    /// first one that denies the packet, if there is one. The result is empty if no group applies.
    #[must_use]
    pub fn explain(&self, direction: Direction, key: &RuleKey) -> Vec<GroupExplanation<'_>> {
        let mut all = Vec::new();
        for (attachment, group) in self.in_order(direction) {
            let list = group.list(direction);
            let mut evaluated = Vec::new();
            let mut access = Access::Deny;
            for (rule, matches) in list.rules.iter().zip(list.classifier.explain(key, &self.sets)) {
                evaluated.push((rule, matches));
                if matches.all() {
                    access = rule.access;
                    break;
                }
            }
            all.push(GroupExplanation {
                group: &group.id,
                attachment,
                evaluated,
                access,
            });
            if access == Access::Deny {
                break;
            }
        }
        all
    }

    /// The id of the group and the rule to which a reference refers. `None`: the groups of this NIC have no such rule.
    #[must_use]
    pub fn rule(&self, reference: RuleRef) -> Option<(&ResourceId, &SecurityRule)> {
        let group = match reference.attachment {
            Attachment::Subnet => self.subnet.as_deref(),
            Attachment::Nic => self.nic.as_deref(),
        }?;
        let rule = group
            .list(reference.direction)
            .rules
            .get(usize::from(reference.position))?;
        Some((&group.id, rule))
    }

    /// All rules, each with the id of its group: first those of the subnet's group, then those of the NIC's group. In
    /// each group the inbound rules come first, and the rules of a direction are in ascending order of priority.
    pub fn all(&self) -> impl Iterator<Item = (&ResourceId, &SecurityRule)> {
        let groups = self.subnet.iter().chain(&self.nic);
        groups.flat_map(|group| {
            let rules = group.inbound.rules.iter().chain(&group.outbound.rules);
            rules.map(|rule| (&group.id, rule))
        })
    }

    /// The number of rules of both groups.
    #[must_use]
    pub fn count(&self) -> usize {
        self.subnet.iter().chain(&self.nic).map(|group| group.count()).sum()
    }

    /// The position of a rule in the order of [`all`](Self::all), from 0. `None`: the groups of this NIC have no such
    /// rule.
    #[must_use]
    pub fn position(&self, reference: RuleRef) -> Option<usize> {
        self.rule(reference)?;
        let (before, group) = match reference.attachment {
            Attachment::Subnet => (0, self.subnet.as_deref()?),
            Attachment::Nic => (
                self.subnet.as_deref().map_or(0, GroupRules::count),
                self.nic.as_deref()?,
            ),
        };
        let before_list = match reference.direction {
            Direction::Inbound => 0,
            Direction::Outbound => group.inbound.rules.len(),
        };
        Some(before + before_list + usize::from(reference.position))
    }

    /// The groups that apply, in the order in which they decide about packets of a direction (N4).
    fn in_order(&self, direction: Direction) -> impl Iterator<Item = (Attachment, &Arc<GroupRules>)> {
        let subnet = (Attachment::Subnet, self.subnet.as_ref());
        let nic = (Attachment::Nic, self.nic.as_ref());
        let order = match direction {
            Direction::Inbound => [subnet, nic],
            Direction::Outbound => [nic, subnet],
        };
        order
            .into_iter()
            .filter_map(|(attachment, group)| Some((attachment, group?)))
    }
}

#[cfg(test)]
mod tests;
