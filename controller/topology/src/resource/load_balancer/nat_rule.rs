//! The inbound NAT rules of a load balancer: a port of a front end leads to one back end.

use super::part::{Described, Siblings, find};
use super::rule::BalancedProtocol;
use crate::arm::view::{Views, child, reference};
use crate::draft::Draft;
use crate::path::{Kind, child_id, parent_id};
use crate::resource::frame::{Child, ChildWrites, Request};
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// An inbound NAT rule. Its target is the ip configuration of a network interface that refers to it
/// ([`NicIpConfiguration::inbound_nat_rules`](crate::resource::NicIpConfiguration::inbound_nat_rules)). Without one, the
/// rule forwards no packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundNatRule {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the rule. A network interface that begins or ends to refer to the rule
    /// does not change it.
    pub etag: Uuid,
    /// The protocol: TCP or UDP.
    pub protocol: BalancedProtocol,
    /// The id of the front end.
    pub front_end: ResourceId,
    /// The port of the front end.
    pub front_end_port: u16,
    /// The port of the back end. With floating IP it is the front end's port.
    pub back_end_port: u16,
    /// `enableFloatingIP`: packets keep the front end's address and port.
    pub floating_ip: bool,
    /// `idleTimeoutInMinutes`: after this time without packets a flow is forgotten, 4 to 30.
    pub idle_timeout_minutes: u16,
    /// `enableTcpReset`: both ends of a TCP flow get a reset when the flow times out.
    #[serde(default)]
    pub tcp_reset: bool,
}

/// The inbound NAT rules of a load balancer as child items.
pub(super) const NAT_RULES: Child = Child {
    name: "inboundNatRules",
    kind: Some(Kind::InboundNatRule),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_nat_rule(request),
        delete: |draft, id, if_match| draft.delete_nat_rule(id, if_match),
    }),
    item: |views, path| {
        let balancer = views.topology.load_balancers.get(&path.parent()?.id())?;
        find(&balancer.nat_rules, &path.id()).map(|r| r.view(views))
    },
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        Some(balancer.nat_rules.iter().map(|r| r.view(views)).collect())
    },
};

impl InboundNatRule {
    /// The ARM body of the rule, with its target.
    pub(super) fn view(&self, views: &Views<'_>) -> Value {
        let mut properties = json!({
            "protocol": self.protocol,
            "frontendIPConfiguration": reference(&self.front_end),
            "frontendPort": self.front_end_port,
            "backendPort": self.back_end_port,
            "idleTimeoutInMinutes": self.idle_timeout_minutes,
            "enableFloatingIP": self.floating_ip,
            "enableTcpReset": self.tcp_reset,
        });
        if let Some(target) = views.back_ends().of_nat_rule(&self.id).next() {
            properties["backendIPConfiguration"] = reference(target);
        }
        child(&self.id, Kind::InboundNatRule, self.etag, properties)
    }
}

impl Draft<'_> {
    /// Reads an inbound NAT rule. `old`: the rule before the change. `None`: it cannot be read, and a problem gives the
    /// reason.
    pub(super) fn read_nat_rule(
        &mut self,
        described: &Described<'_>,
        siblings: &Siblings,
        old: Option<&InboundNatRule>,
    ) -> Option<InboundNatRule> {
        let properties = &described.properties;
        let before = self.problems.len();
        self.check_supported(properties, unsupported::INBOUND_NAT_RULE);
        let protocols = &BalancedProtocol::NAMES[..2];
        let protocol = self.required_choice(properties, "protocol", protocols);
        let front_end_port = self.required_port(properties, "frontendPort");
        let back_end_port = self.required_port(properties, "backendPort");
        let forwarding = self.read_forwarding(described, siblings);
        if let (Some(forwarding), Some(ports)) = (&forwarding, front_end_port.zip(back_end_port)) {
            self.check_floating_ports(properties, forwarding, ports);
        }
        if self.problems.len() > before {
            return None;
        }
        let forwarding = forwarding?;
        Some(InboundNatRule {
            id: described.id.clone(),
            etag: old.map_or(Uuid::nil(), |r| r.etag),
            protocol: protocol?,
            front_end: forwarding.front_end,
            front_end_port: front_end_port?,
            back_end_port: back_end_port?,
            floating_ip: forwarding.floating_ip,
            idle_timeout_minutes: forwarding.idle_timeout_minutes,
            tcp_reset: forwarding.tcp_reset,
        })
    }

    /// PUT of an inbound NAT rule. True: it is new.
    fn put_nat_rule(&mut self, request: &Request<'_>) -> bool {
        let path = request.path;
        let parent = path.parent().map(|p| p.id());
        let Some(balancer) = parent.and_then(|id| self.topology.load_balancers.get(&id).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&balancer.nat_rules, &path.id());
        self.check_if_match(request.if_match, old.map(|r| r.etag), &path.id());
        if old.is_none() {
            self.check_name(path.name(), &path.id());
        }
        let own = || child_id(&balancer.envelope.id, NAT_RULES.name, path.name());
        let id = old.map_or_else(own, |r| r.id.clone());
        let described = Described::of_body(id, request.body, &mut self.problems);
        let Some(rule) = self.read_nat_rule(&described, &Siblings::of(&balancer), old) else {
            return false;
        };
        let mut new = (*balancer).clone();
        match new.nat_rules.iter_mut().find(|r| r.id == rule.id) {
            Some(slot) => *slot = rule,
            None => new.nat_rules.push(rule),
        }
        self.check_load_balancer(Some(&balancer), &new);
        self.commit(new);
        old.is_none()
    }

    /// DELETE of an inbound NAT rule. True: it existed.
    fn delete_nat_rule(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(balancer) = self.topology.load_balancers.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = find(&balancer.nat_rules, id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*balancer).clone();
        new.nat_rules.retain(|r| r.id != *id);
        self.check_load_balancer(Some(&balancer), &new);
        self.commit(new);
        true
    }
}
