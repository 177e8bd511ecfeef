//! Applies the security groups of an agent's network interfaces to the packets of a walk, with the code that agents
//! run, and describes the rules that decide (D25, D26).

use super::answer::{DecidingRule, GroupCheck, MatchedAddresses, OtherRule, RuleField, SecurityCheck};
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_engine::decide::Ingress;
use tombolo_engine::packet::{PacketInfo, TCP, UDP};
use tombolo_engine::security::{
    AddressSets, Admission, AtNic, Attachment, Balanced, Belongs, CAPACITY, FROM_HOST, FieldMatches, FlowGate,
    FlowTable, GroupExplanation, RuleKey, SecuredNics, SetContent, belongs_to,
};
use tombolo_engine::verdict::{DropReason, Verdict};
use tombolo_proto::config::{AddressMatch, AgentConfig, SecuredNic};

/// Largest number of rules before the deciding one that an answer lists: the last ones. A group can have 1,000 rules
/// (X5), and in a list of all of them the important ones would be hard to find.
const MAX_NOT_MATCHED: usize = 20;

/// The flows that the network interfaces of one agent have admitted during the walks.
pub(super) struct Flows {
    table: FlowTable,
    gate: FlowGate,
}

/// The decision about a packet at a network interface with a security group.
pub(super) struct Judged {
    /// The rules that decided.
    pub(super) check: SecurityCheck,
    /// The reason for which the agent drops the packet. `None`: the agent does not drop the packet.
    pub(super) refused: Option<DropReason>,
}

impl Flows {
    /// Creates a table without flows. The smallest table is enough, because a walk has one flow for each network
    /// interface and direction.
    pub(super) fn new() -> Self {
        Self {
            table: FlowTable::new(*CAPACITY.start(), 0, 0),
            gate: FlowGate::new(0, 0),
        }
    }

    /// Applies the security groups to a packet about which the agent has decided `verdict`, and keeps the packet's flow
    /// if the rules allow it. `None`: the packet does not come to a network interface with a security group, and does
    /// not leave one.
    pub(super) fn check(
        &mut self,
        config: &AgentConfig,
        nics: &SecuredNics,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        verdict: Verdict,
    ) -> Option<Judged> {
        let passage = nics.passage(ingress, info, verdict)?;
        let rules = nics.rules(passage.nic).filter(|rules| !rules.is_empty())?;
        let nic = config.security.as_ref()?.nics.get(usize::from(passage.nic))?;
        let at = AtNic {
            packet,
            info,
            nic: nics.flow_nic(passage.nic),
            direction: passage.direction,
            link: match ingress {
                Ingress::Tun(_) => FROM_HOST,
                Ingress::Link(link) => link.0,
            },
            // The time does not change during a walk, so no flow ends during the walk, whatever its timeout is.
            now: 0,
            idle_timeout: 1,
            balanced: Balanced::No,
            ends_idle: false,
            is_logged: false,
        };
        let admission = self.gate.admit(&self.table, rules, &at, |_| ());
        let groups = match admission {
            Admission::Allowed(_) | Admission::Denied(_) => {
                let key = rule_key(&at);
                let explained = rules.explain(passage.direction, &key);
                let group = |g: &GroupExplanation<'_>| group_check(nic, g, &key, rules.sets());
                explained.iter().map(group).collect()
            }
            Admission::Known
            | Admission::Adopted
            | Admission::Malformed
            | Admission::UnknownFragment
            | Admission::NoRoom
            | Admission::NicFull
            | Admission::Ended => Vec::new(),
        };
        Some(Judged {
            check: SecurityCheck {
                at: nic.id.clone(),
                direction: passage.direction,
                known_flow: admission == Admission::Known,
                groups,
            },
            refused: match admission {
                Admission::Known | Admission::Adopted | Admission::Allowed(_) => None,
                Admission::Denied(_) => Some(DropReason::SecurityRule),
                Admission::Malformed => Some(DropReason::Malformed),
                Admission::UnknownFragment => Some(DropReason::UnknownFragment),
                Admission::NoRoom => Some(DropReason::FlowTableFull),
                Admission::NicFull => Some(DropReason::NicFlowLimit),
                Admission::Ended => Some(DropReason::FlowEnded),
            },
        })
    }
}

/// The fields of a packet with which rules are compared. Only packets of TCP and UDP have ports.
fn rule_key(at: &AtNic<'_>) -> RuleKey {
    let ports = match belongs_to(at.packet, at.info, at.nic, at.direction) {
        Belongs::Flow { key, .. } => matches!(key.protocol, TCP | UDP).then_some(key.ports),
        Belongs::Error { .. } | Belongs::Fragment { .. } | Belongs::Malformed => None,
    };
    RuleKey {
        source: at.info.source,
        destination: at.info.destination,
        protocol: at.info.protocol,
        ports,
    }
}

/// Describes the decision of one group at `nic`.
fn group_check(nic: &SecuredNic, explained: &GroupExplanation<'_>, key: &RuleKey, sets: &AddressSets) -> GroupCheck {
    let (rule, others) = match explained.evaluated.split_last() {
        Some(((rule, matches), others)) if matches.all() => (Some(*rule), others),
        _ => (None, &explained.evaluated[..]),
    };
    let earlier = others.len().saturating_sub(MAX_NOT_MATCHED);
    let not_matched = others[earlier..].iter().map(|(other, matches)| OtherRule {
        name: other.name.clone(),
        priority: other.priority,
        access: other.access,
        differs: differing(*matches),
    });
    GroupCheck {
        group: explained.group.clone(),
        attached_to: match explained.attachment {
            Attachment::Subnet => nic.subnet.clone(),
            Attachment::Nic => nic.id.clone(),
        },
        access: explained.access,
        rule: rule.map(|rule| DecidingRule {
            name: rule.name.clone(),
            priority: rule.priority,
            source: matched(&rule.source, key.source, sets),
            destination: matched(&rule.destination, key.destination, sets),
        }),
        not_matched: not_matched.collect(),
        not_matched_earlier: earlier,
    }
}

/// The fields in which a packet differs from a rule.
fn differing(matches: FieldMatches) -> Vec<RuleField> {
    let fields = [
        (matches.protocol, RuleField::Protocol),
        (matches.source, RuleField::Source),
        (matches.source_port, RuleField::SourcePort),
        (matches.destination, RuleField::Destination),
        (matches.destination_port, RuleField::DestinationPort),
    ];
    let differ = fields.into_iter().filter(|(matches, _)| !matches);
    differ.map(|(_, field)| field).collect()
}

/// The part of a rule's addresses that contains `address`: `*`, the longest prefix, or the first set. `side` must match
/// the address.
fn matched(side: &AddressMatch, address: IpAddr, sets: &AddressSets) -> MatchedAddresses {
    let longest = |prefixes: &[IpNet]| {
        let around = prefixes.iter().filter(|p| p.contains(&address)).copied();
        around.max_by_key(IpNet::prefix_len)
    };
    let any = MatchedAddresses {
        name: "*".into(),
        member: None,
    };
    match side {
        AddressMatch::Any => any,
        AddressMatch::Prefixes(prefixes) => longest(prefixes).map_or(any, |prefix| MatchedAddresses {
            name: prefix.to_string(),
            member: None,
        }),
        AddressMatch::Sets(names) => {
            let has = |name: &&String| sets.id(name).is_some_and(|id| sets.contains(id, address));
            names.iter().find(has).map_or(any, |name| MatchedAddresses {
                name: name.clone(),
                member: match sets.content(name) {
                    Some(SetContent::Within(prefixes)) => longest(&prefixes),
                    Some(SetContent::Outside(_)) | None => None,
                },
            })
        }
    }
}
