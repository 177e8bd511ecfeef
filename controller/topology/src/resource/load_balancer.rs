//! Internal load balancers and their children (L1 to L3, L6, L9).
//!
//! Rules refer to front ends, pools and probes of the same load balancer. The network interfaces of a pool, and the
//! target of an inbound NAT rule, are found in the topology: an ip configuration refers to them.

mod check;
mod conflicts;
mod front_end;
mod membership;
mod migration;
mod nat_rule;
mod part;
mod pool;
mod probe;
mod rule;
mod sku;

pub use front_end::FrontEnd;
pub use membership::{PoolMember, pool_members};
pub use nat_rule::InboundNatRule;
pub use pool::{AdminState, BackendPool, PoolAddress};
pub use probe::{Probe, ProbeProtocol};
pub use rule::{BalancedProtocol, BalancingRule, Distribution};
pub use sku::LoadBalancerSku;

use crate::arm::body::Shape;
use crate::arm::view::Views;
use crate::back_ends::BackEnds;
use crate::draft::Draft;
use crate::path::{Kind, parent_id};
use crate::resource::Envelope;
use crate::resource::frame::{Child, Echoed, Put, Resource};
use crate::rules::unsupported;
use part::{Siblings, by_id, first_ten, renew};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// An internal load balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The SKU. It cannot change after the creation.
    pub sku: LoadBalancerSku,
    /// The front ends, in the order of the body. All are in one VNet (L1).
    #[serde(rename = "frontendIPConfigurations")]
    pub front_ends: Vec<FrontEnd>,
    /// The back-end pools, in the order of the body.
    #[serde(rename = "backendAddressPools")]
    pub pools: Vec<BackendPool>,
    /// The health probes, in the order of the body.
    pub probes: Vec<Probe>,
    /// The load-balancing rules, in the order of the body.
    #[serde(rename = "loadBalancingRules")]
    pub rules: Vec<BalancingRule>,
    /// The inbound NAT rules, in the order of the body.
    #[serde(rename = "inboundNatRules")]
    pub nat_rules: Vec<InboundNatRule>,
}

impl LoadBalancer {
    /// The VNet of the front ends. `None`: the load balancer has no front end.
    #[must_use]
    pub fn vnet(&self) -> Option<ResourceId> {
        self.front_ends.first().map(|f| parent_id(&f.subnet))
    }

    /// The ids of the load-balancing rules for which `uses` is true.
    fn rules_with(&self, uses: impl Fn(&BalancingRule) -> bool) -> impl Iterator<Item = &ResourceId> {
        self.rules.iter().filter(move |r| uses(r)).map(|r| &r.id)
    }
}

impl Resource for LoadBalancer {
    const KIND: Kind = Kind::LoadBalancer;
    const ECHOED: Echoed = Echoed {
        top: &[("extendedLocation", Shape::Object)],
        ..Echoed::NOTHING
    };
    const CHILDREN: &'static [Child] = &[
        front_end::FRONT_ENDS,
        pool::POOLS,
        rule::RULES,
        probe::PROBES,
        nat_rule::NAT_RULES,
        OUTBOUND_RULES,
        membership::NETWORK_INTERFACES,
    ];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties, old) = (&put.id, &put.properties, put.old());
        draft.check_supported(properties, unsupported::LOAD_BALANCER);
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        let sku = draft.load_balancer_sku(&put.root, old);
        let kinds = [
            Kind::FrontEnd,
            Kind::BackendPool,
            Kind::Probe,
            Kind::LoadBalancingRule,
            Kind::InboundNatRule,
        ];
        let before = old.map_or_else(BTreeSet::new, |b| b.child_ids().cloned().collect());
        // A PUT without one of the lists removes all its members, as in Azure.
        let [front_ends, pools, probes, rules, nat_rules] =
            kinds.map(|kind| draft.described_children(id, properties, kind, &before));
        // A sibling that cannot be read has a problem of its own. References to it are none.
        let siblings = Siblings {
            ids: [&front_ends, &pools, &probes]
                .into_iter()
                .flatten()
                .map(|d| d.id.clone())
                .collect(),
            before,
        };
        let front_ends = draft.read_front_ends(&envelope, &front_ends, old);
        let known = by_id(old.map_or(&[], |b| &b.pools));
        let pools = pools
            .iter()
            .filter_map(|d| draft.read_pool(d, &envelope, known.get(&d.id).copied()));
        let pools = pools.collect();
        let known = by_id(old.map_or(&[], |b| &b.probes));
        let probes = probes
            .iter()
            .filter_map(|d| draft.read_probe(d, known.get(&d.id).copied()));
        let probes = probes.collect();
        let known = by_id(old.map_or(&[], |b| &b.rules));
        let rules = rules.iter();
        let rules = rules.filter_map(|d| draft.read_balancing_rule(d, &siblings, known.get(&d.id).copied()));
        let rules = rules.collect();
        let known = by_id(old.map_or(&[], |b| &b.nat_rules));
        let nat_rules = nat_rules.iter();
        let nat_rules = nat_rules.filter_map(|d| draft.read_nat_rule(d, &siblings, known.get(&d.id).copied()));
        let nat_rules = nat_rules.collect();
        let new = Self {
            front_ends,
            pools,
            probes,
            rules,
            nat_rules,
            envelope,
            sku: sku?,
        };
        // The checks of the whole compare children, so they would only report consequences of a child that was not read.
        if draft.problems.is_empty() {
            draft.check_load_balancer(old, &new);
        }
        draft.problems.is_empty().then_some(new)
    }

    fn renew_children(&mut self, old: Option<&Self>, new_guid: &mut dyn FnMut() -> Uuid) {
        renew(&mut self.front_ends, old.map_or(&[], |b| &b.front_ends), new_guid);
        renew(&mut self.pools, old.map_or(&[], |b| &b.pools), new_guid);
        renew(&mut self.probes, old.map_or(&[], |b| &b.probes), new_guid);
        renew(&mut self.rules, old.map_or(&[], |b| &b.rules), new_guid);
        renew(&mut self.nat_rules, old.map_or(&[], |b| &b.nat_rules), new_guid);
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        let back_ends = BackEnds::of(&draft.topology);
        let pools = old.pools.iter().flat_map(|p| back_ends.of_pool(&p.id));
        let rules = old.nat_rules.iter().flat_map(|r| back_ends.of_nat_rule(&r.id));
        let users = first_ten(pools.chain(rules));
        if !users.is_empty() {
            draft.problems.add(
                "XLoadBalancerInUse",
                id,
                format!(
                    "Load balancer {id} cannot be deleted, because its back-end pools and inbound NAT rules are in use by the \
                     following ip configurations: {users}. Remove the references from these network interfaces first."
                ),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let front_ends: Vec<Value> = self.front_ends.iter().map(|f| f.view(self)).collect();
        let pools: Vec<Value> = self.pools.iter().map(|p| p.view(self, views)).collect();
        let rules: Vec<Value> = self.rules.iter().map(BalancingRule::view).collect();
        let probes: Vec<Value> = self.probes.iter().map(|p| p.view(self)).collect();
        let nat_rules: Vec<Value> = self.nat_rules.iter().map(|r| r.view(views)).collect();
        // Azure's command line reads these lists without checking that they exist, so empty lists are sent too.
        json!({
            "frontendIPConfigurations": front_ends,
            "backendAddressPools": pools,
            "loadBalancingRules": rules,
            "probes": probes,
            "inboundNatRules": nat_rules,
            "inboundNatPools": [],
            "outboundRules": [],
        })
    }

    fn top_members(&self) -> Value {
        // Clients branch on the SKU's name, so it is in each answer.
        json!({"sku": {"name": self.sku, "tier": "Regional"}})
    }
}

/// The outbound rules of a load balancer: there are none, because they need a public front end (L1).
const OUTBOUND_RULES: Child = Child {
    name: "outboundRules",
    kind: Some(Kind::OutboundRule),
    writes: None,
    item: |_, _| None,
    list: |views, parent| views.topology.load_balancers.get(parent).map(|_| Vec::new()),
};

impl LoadBalancer {
    /// The ids of all children.
    fn child_ids(&self) -> impl Iterator<Item = &ResourceId> {
        let front_ends = self.front_ends.iter().map(|c| &c.id);
        let pools = self.pools.iter().map(|c| &c.id);
        let probes = self.probes.iter().map(|c| &c.id);
        let rules = self.rules.iter().map(|c| &c.id);
        let nat_rules = self.nat_rules.iter().map(|c| &c.id);
        front_ends.chain(pools).chain(probes).chain(rules).chain(nat_rules)
    }
}
