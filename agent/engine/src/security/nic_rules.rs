//! The security groups of one NIC, and which of their rules decides about a packet (N3 to N5, D25).

use super::address_sets::AddressSets;
use super::classifier::{Classifier, FieldMatches, RuleKey};
use std::sync::Arc;
use tombolo_proto::config::{Access, Direction, SecurityRule};
use tombolo_proto::id::ResourceId;

/// The security groups that apply to a NIC.
#[derive(Debug, Default)]
pub struct NicRules {
    /// What tags and application security groups mean here.
    sets: AddressSets,
    /// The group of the NIC's subnet, if there is one.
    subnet: Option<Arc<GroupRules>>,
    /// The group of the NIC itself, if there is one.
    nic: Option<Arc<GroupRules>>,
}

/// A security group with its rules prepared.
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
    /// Which group.
    pub attachment: Attachment,
    /// Which of its lists.
    pub direction: Direction,
    /// The position in that list; the list is ordered by priority.
    pub position: u16,
}

/// What the rules of a NIC say about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// No group applies (N5).
    NoGroup,
    /// Every group allows it; this rule decided in the last one.
    Allowed(RuleRef),
    /// This rule denies it.
    Denied(RuleRef),
}

/// What one group says about a packet, for diagnosis.
#[derive(Debug)]
pub struct GroupExplanation<'r> {
    /// The group.
    pub group: &'r ResourceId,
    /// Where it is attached.
    pub attachment: Attachment,
    /// The rules in order, up to and including the one that decided, each with the fields that matched.
    pub evaluated: Vec<(&'r SecurityRule, FieldMatches)>,
    /// What the deciding rule says.
    pub access: Access,
}

impl GroupRules {
    /// Prepares a group. `rules` has both directions in any order; `sets` must have every name that they use.
    #[must_use]
    pub fn new(id: ResourceId, rules: Vec<SecurityRule>, sets: &AddressSets) -> Self {
        let (inbound, outbound) = rules.into_iter().partition(|r| r.direction == Direction::Inbound);
        Self {
            id,
            inbound: RuleList::new(inbound, sets),
            outbound: RuleList::new(outbound, sets),
        }
    }

    /// The number of rules of both directions.
    fn count(&self) -> usize {
        self.inbound.rules.len() + self.outbound.rules.len()
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
    /// The groups of a NIC. Both must have been prepared with sets that have the same names in the same order as `sets`.
    #[must_use]
    pub const fn new(sets: AddressSets, subnet: Option<Arc<GroupRules>>, nic: Option<Arc<GroupRules>>) -> Self {
        Self { sets, subnet, nic }
    }

    /// What tags and application security groups mean at the NIC.
    #[must_use]
    pub const fn sets(&self) -> &AddressSets {
        &self.sets
    }

    /// Whether a group applies.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subnet.is_none() && self.nic.is_none()
    }

    /// Says what the rules do with the first packet of a flow. Inbound, the subnet's group comes first; outbound, the NIC's
    /// (N4). The first one that denies ends it.
    ///
    /// A list in which no rule matches denies: default rules match everything, so there is always one that does.
    #[must_use]
    pub fn judge(&self, direction: Direction, key: &RuleKey) -> Judgement {
        self.judge_and(direction, key, |_| ())
    }

    /// As [`judge`](Self::judge); calls `decided` with the rule that decides in each group that was asked.
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

    /// Says which rules were looked at, group by group, as [`judge`](Self::judge) does: the same order, the same end.
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

    /// The group and the rule that a reference names. `None`: the reference is of other rules.
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

    /// All rules with their groups: first the subnet's group, then the NIC's; of each, first the inbound rules.
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

    /// The position of a rule in the order of [`all`](Self::all). `None`: the reference is of other rules.
    #[must_use]
    pub fn position(&self, reference: RuleRef) -> Option<usize> {
        self.rule(reference)?;
        let (before, group) = match reference.attachment {
            Attachment::Subnet => (0, self.subnet.as_deref()?),
            Attachment::Nic => (self.subnet.as_deref().map_or(0, GroupRules::count), self.nic.as_deref()?),
        };
        let before_list = match reference.direction {
            Direction::Inbound => 0,
            Direction::Outbound => group.inbound.rules.len(),
        };
        Some(before + before_list + usize::from(reference.position))
    }

    fn in_order(&self, direction: Direction) -> impl Iterator<Item = (Attachment, &GroupRules)> {
        let subnet = (Attachment::Subnet, self.subnet.as_deref());
        let nic = (Attachment::Nic, self.nic.as_deref());
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
