//! The SKU of a load balancer, and its limits.

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::resource::LoadBalancer;
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};

/// The SKU of a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancerSku {
    /// `Basic`: no HA ports (L9), no pools of addresses, and no clients in peered VNets of other regions (L10).
    Basic,
    /// `Standard`.
    Standard,
}

impl LoadBalancerSku {
    const NAMES: [(&'static str, Option<Self>); 3] = [
        ("Basic", Some(Self::Basic)),
        ("Standard", Some(Self::Standard)),
        ("Gateway", None),
    ];
}

/// Azure's limits of a load balancer.
pub(super) struct Limits {
    /// Front ends of a load balancer.
    pub(super) front_ends: usize,
    /// Load-balancing rules and inbound NAT rules together.
    pub(super) rules: usize,
    /// Members of one pool.
    pub(super) members: usize,
}

pub(super) const STANDARD: Limits = Limits {
    front_ends: 600,
    rules: 1_500,
    members: 5_000,
};

const BASIC: Limits = Limits {
    front_ends: 200,
    rules: 250,
    members: 300,
};

impl LoadBalancerSku {
    /// Azure's limits of the SKU.
    pub(super) fn limits(self) -> &'static Limits {
        match self {
            Self::Basic => &BASIC,
            Self::Standard => &STANDARD,
        }
    }
}

impl Draft<'_> {
    /// Reads `sku`. Without a name, a new load balancer is Basic, and an existing one keeps its SKU. `None`: the name is
    /// wrong, and a problem says so.
    pub(super) fn load_balancer_sku(
        &mut self,
        root: &Object<'_>,
        old: Option<&LoadBalancer>,
    ) -> Option<LoadBalancerSku> {
        let sku = root.object_or_empty("sku", &mut self.problems);
        self.check_supported(&sku, unsupported::LOAD_BALANCER_SKU);
        let before = old.map(|b| b.sku);
        if sku.get("name").is_none() {
            return Some(before.unwrap_or(LoadBalancerSku::Basic));
        }
        let Some(given) = self.optional_choice(&sku, "name", &LoadBalancerSku::NAMES)? else {
            self.check_supported(&sku, unsupported::GATEWAY_LOAD_BALANCER);
            return None;
        };
        if let Some(before) = before.filter(|b| *b != given) {
            let at = sku.at("name");
            let message = format!(
                "{at}: the SKU of a load balancer cannot change from {before:?} to {given:?}. Delete the load balancer, and \
                 create it again."
            );
            self.problems.add("XLoadBalancerSkuImmutable", at, message);
        }
        Some(given)
    }
}
