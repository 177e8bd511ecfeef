//! Network security groups and their rules (N1 to N5, N11, N13, X5).

mod rule;

use rule::MAX_ADDRESSES;
pub use rule::{RuleAddresses, RulePorts, RuleSide, SecurityRule};

use crate::arm::body::Object;
use crate::arm::view::{Views, child, references};
use crate::draft::{Draft, changed};
use crate::path::{Kind, is_child_of, parent_id};
use crate::resource::frame::{Child, ChildWrites, Put, Request, Resource};
use crate::resource::{Envelope, flow_logs_of};
use crate::rules::place::Place;
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A network security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSecurityGroup {
    /// Id, location, tags, etag.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The user's rules, in order of creation.
    pub security_rules: Vec<SecurityRule>,
}

/// Largest number of the user's rules in one group (X5).
const MAX_RULES: usize = 1000;

impl Resource for NetworkSecurityGroup {
    const KIND: Kind = Kind::NetworkSecurityGroup;
    const CHILDREN: &'static [Child] = &[SECURITY_RULES, DEFAULT_SECURITY_RULES];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        draft.check_supported(&put.properties, unsupported::NETWORK_SECURITY_GROUP);
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        let location = envelope.location.clone();
        // A PUT without rules removes all rules of the group, as in Azure.
        let items = put.properties.list("securityRules", MAX_RULES, &mut draft.problems);
        let mut security_rules = Vec::new();
        for item in items.into_iter().flatten() {
            let Some(object) = item.object(&mut draft.problems) else {
                continue;
            };
            let Some(name) = draft.child_name(&object) else {
                continue;
            };
            let properties = object.object_or_empty("properties", &mut draft.problems);
            let before = put.old().and_then(|group| find(group, &name));
            security_rules.extend(draft.read_security_rule((&put.id, &location), &name, &properties, before));
        }
        draft.check_unique_names(&put.id, "security rule", security_rules.iter().map(|r| r.id.name()));
        let new = Self {
            envelope,
            security_rules,
        };
        draft.check_security_rules(&new);
        Some(new)
    }

    fn renew_children(&mut self, old: Option<&Self>, new_guid: &mut dyn FnMut() -> Uuid) {
        for rule in &mut self.security_rules {
            let before = old.and_then(|group| find(group, rule.id.name()));
            rule.etag = changed(before, rule, new_guid).unwrap_or(rule.etag);
        }
    }

    fn after_change(draft: &mut Draft<'_>, id: &ResourceId) {
        draft.check_members_in_one_vnet(|rule| is_child_of(&rule.id, id));
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        let users = users(&draft.topology, &old.envelope.id);
        let users: Vec<String> = users
            .subnets
            .iter()
            .chain(&users.nics)
            .take(10)
            .map(ToString::to_string)
            .collect();
        if !users.is_empty() {
            draft.problems.add(
                "InUseNetworkSecurityGroupCannotBeDeleted",
                id,
                format!(
                    "Network security group {id} cannot be deleted because it is in use by the following resources: {}.",
                    users.join(", ")
                ),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let rules: Vec<Value> = self.security_rules.iter().map(SecurityRule::view).collect();
        let users = users(views.topology, &self.envelope.id);
        let flow_logs = flow_logs_of(views.topology, &self.envelope.id).map(|log| &log.envelope.id);
        // Azure's command line reads these lists without checking that they exist, so empty lists are sent too.
        json!({
            "securityRules": rules,
            "defaultSecurityRules": self.default_rule_views(),
            "subnets": references(&users.subnets),
            "networkInterfaces": references(&users.nics),
            "flowLogs": references(flow_logs),
            "flushConnection": false,
        })
    }
}

const SECURITY_RULES: Child = Child {
    name: "securityRules",
    kind: Some(Kind::SecurityRule),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_security_rule(request),
        delete: |draft, id, if_match| draft.delete_security_rule(id, if_match),
    }),
    item: |views, path| {
        let group = views.topology.network_security_groups.get(&path.parent()?.id())?;
        find(group, path.name()).map(SecurityRule::view)
    },
    list: |views, parent| {
        let group = views.topology.network_security_groups.get(parent)?;
        Some(group.security_rules.iter().map(SecurityRule::view).collect())
    },
};

const DEFAULT_SECURITY_RULES: Child = Child {
    name: "defaultSecurityRules",
    kind: Some(Kind::DefaultSecurityRule),
    writes: None,
    item: |views, path| {
        let group = views.topology.network_security_groups.get(&path.parent()?.id())?;
        let all = group.default_rule_views().into_iter();
        let mut named = all.filter(|rule| {
            rule["name"]
                .as_str()
                .is_some_and(|name| name.eq_ignore_ascii_case(path.name()))
        });
        named.next()
    },
    list: |views, parent| Some(views.topology.network_security_groups.get(parent)?.default_rule_views()),
};

/// A default rule (N2), for all protocols and ports.
struct DefaultRule {
    name: &'static str,
    description: &'static str,
    direction: Direction,
    priority: u16,
    access: Access,
    source: &'static str,
    destination: &'static str,
}

/// The rules with which every group ends, and which nobody can remove (N2).
const DEFAULT_RULES: [DefaultRule; 6] = [
    DefaultRule {
        name: "AllowVnetInBound",
        description: "Allow inbound traffic from all VMs in VNET",
        direction: Direction::Inbound,
        priority: 65_000,
        access: Access::Allow,
        source: "VirtualNetwork",
        destination: "VirtualNetwork",
    },
    DefaultRule {
        name: "AllowAzureLoadBalancerInBound",
        description: "Allow inbound traffic from azure load balancer",
        direction: Direction::Inbound,
        priority: 65_001,
        access: Access::Allow,
        source: "AzureLoadBalancer",
        destination: "*",
    },
    DefaultRule {
        name: "DenyAllInBound",
        description: "Deny all inbound traffic",
        direction: Direction::Inbound,
        priority: 65_500,
        access: Access::Deny,
        source: "*",
        destination: "*",
    },
    DefaultRule {
        name: "AllowVnetOutBound",
        description: "Allow outbound traffic from all VMs to all VMs in VNET",
        direction: Direction::Outbound,
        priority: 65_000,
        access: Access::Allow,
        source: "VirtualNetwork",
        destination: "VirtualNetwork",
    },
    DefaultRule {
        name: "AllowInternetOutBound",
        description: "Allow outbound traffic from all VMs to Internet",
        direction: Direction::Outbound,
        priority: 65_001,
        access: Access::Allow,
        source: "*",
        destination: "Internet",
    },
    DefaultRule {
        name: "DenyAllOutBound",
        description: "Deny all outbound traffic",
        direction: Direction::Outbound,
        priority: 65_500,
        access: Access::Deny,
        source: "*",
        destination: "*",
    },
];

impl NetworkSecurityGroup {
    fn default_rule_views(&self) -> Vec<Value> {
        let view = |rule: &DefaultRule| {
            let id = ResourceId::new(format!("{}/defaultSecurityRules/{}", self.envelope.id, rule.name));
            let properties = json!({
                "description": rule.description,
                "protocol": "*",
                "sourcePortRange": "*",
                "destinationPortRange": "*",
                "sourceAddressPrefix": rule.source,
                "destinationAddressPrefix": rule.destination,
                "access": rule.access,
                "priority": rule.priority,
                "direction": rule.direction,
                "sourcePortRanges": [],
                "destinationPortRanges": [],
                "sourceAddressPrefixes": [],
                "destinationAddressPrefixes": [],
            });
            child(&id, Kind::DefaultSecurityRule, self.envelope.etag, properties)
        };
        DEFAULT_RULES.iter().map(view).collect()
    }

    /// All rules of a direction, default rules included, in the form of agents' configurations and in ascending order
    /// of priority (N2, N3).
    #[must_use]
    pub fn compiled(&self, direction: Direction) -> Vec<tombolo_proto::config::SecurityRule> {
        let own = self.security_rules.iter().filter(|r| r.direction == direction);
        let mut rules: Vec<_> = own.map(SecurityRule::compiled).collect();
        rules.extend(
            DEFAULT_RULES
                .iter()
                .filter(|r| r.direction == direction)
                .map(DefaultRule::compiled),
        );
        rules.sort_by_key(|rule| rule.priority);
        rules
    }
}

impl DefaultRule {
    fn compiled(&self) -> tombolo_proto::config::SecurityRule {
        use tombolo_proto::config::{ALL_PORTS, AddressMatch, RuleProtocol};
        let side = |text: &str| match text {
            "*" => AddressMatch::Any,
            tag => AddressMatch::Sets(vec![tag.to_owned()]),
        };
        tombolo_proto::config::SecurityRule {
            name: format!("defaultSecurityRules/{}", self.name),
            priority: self.priority,
            direction: self.direction,
            access: self.access,
            protocol: RuleProtocol::Any,
            source: side(self.source),
            source_ports: vec![ALL_PORTS],
            destination: side(self.destination),
            destination_ports: vec![ALL_PORTS],
        }
    }
}

/// The subnets and network interfaces to which a group is attached.
struct Users {
    subnets: Vec<ResourceId>,
    nics: Vec<ResourceId>,
}

fn users(topology: &crate::topology::Topology, group: &ResourceId) -> Users {
    let subnets = topology.vnets.values().flat_map(|v| &v.subnets);
    let subnets = subnets.filter(|s| s.network_security_group.as_ref() == Some(group));
    let nics = topology.nics.values();
    let nics = nics.filter(|n| n.network_security_group.as_ref() == Some(group));
    Users {
        subnets: subnets.map(|s| s.id.clone()).collect(),
        nics: nics.map(|n| n.envelope.id.clone()).collect(),
    }
}

fn find<'g>(group: &'g NetworkSecurityGroup, name: &str) -> Option<&'g SecurityRule> {
    group
        .security_rules
        .iter()
        .find(|r| r.id.name().eq_ignore_ascii_case(name))
}

impl Draft<'_> {
    /// The group to which a subnet or a NIC at `place` refers. The group must be in the same region and subscription.
    pub(crate) fn resolve_security_group(&mut self, properties: &Object<'_>, place: &Place<'_>) -> Option<ResourceId> {
        self.resolve_beside(properties, "networkSecurityGroup", place, |topology, group| {
            Some(&topology.network_security_groups.get(group)?.envelope)
        })
    }

    fn put_security_rule(&mut self, request: &Request<'_>) -> bool {
        let (path, body) = (request.path, request.body);
        let parent = path.parent().map(|p| p.id());
        let group = parent.and_then(|id| self.topology.network_security_groups.get(&id).cloned());
        let Some(group) = group else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&group, path.name());
        self.check_if_match(request.if_match, old.map(|r| r.etag), &path.id());
        if old.is_none() {
            self.check_name(path.name(), &path.id());
        }
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let Some(rule) = self.read_security_rule(
            (&group.envelope.id, &group.envelope.location),
            path.name(),
            &properties,
            old,
        ) else {
            return false;
        };
        let mut new = (*group).clone();
        match new.security_rules.iter_mut().find(|r| r.id == rule.id) {
            Some(slot) => *slot = rule,
            None => new.security_rules.push(rule),
        }
        self.check_security_rules(&new);
        self.commit(new);
        old.is_none()
    }

    fn delete_security_rule(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(group) = self.topology.network_security_groups.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = group.security_rules.iter().find(|r| r.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*group).clone();
        new.security_rules.retain(|r| r.id != *id);
        self.commit(new);
        true
    }

    /// Checks the rules of a group as a whole: priorities (N1) and limits (X5).
    fn check_security_rules(&mut self, group: &NetworkSecurityGroup) {
        let id = &group.envelope.id;
        let mut seen = BTreeMap::new();
        for rule in &group.security_rules {
            if let Some(first) = seen.insert((rule.direction, rule.priority), rule.id.name()) {
                self.problems.add(
                    "SecurityRuleConflict",
                    &rule.id,
                    format!(
                        "Security rule {first} conflicts with rule {}. Rules cannot have the same Priority and Direction. \
                         To learn more, see aka.ms/nsgrules.",
                        rule.id.name()
                    ),
                );
            }
        }
        if group.security_rules.len() > MAX_RULES {
            self.problems.add(
                "XTooManyItems",
                id,
                format!(
                    "Network security group {id} has {} security rules, at most {MAX_RULES} are allowed (X5).",
                    group.security_rules.len()
                ),
            );
        }
        let rules = || group.security_rules.iter();
        let sources: usize = rules().map(|r| r.source.addresses.count()).sum();
        let destinations: usize = rules().map(|r| r.destination.addresses.count()).sum();
        for (name, count) in [("source", sources), ("destination", destinations)] {
            if count > MAX_ADDRESSES {
                self.problems.add(
                    "XTooManyItems",
                    id,
                    format!(
                        "The rules of network security group {id} name {count} {name} addresses, at most {MAX_ADDRESSES} are \
                         allowed (X5)."
                    ),
                );
            }
        }
    }
}
