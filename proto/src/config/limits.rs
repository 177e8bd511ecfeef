//! Limits of throughput and of flows, as Azure's machine sizes and gateway SKUs have them (P32, G5, X9, X16).

use super::{AgentConfig, Role};
use crate::id::ResourceId;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The bandwidths that can be set, in Mbit/s.
pub const BANDWIDTH: RangeInclusive<u32> = 1..=100_000;

/// Name of the tag of a NIC with the bandwidth of its outbound traffic, in Mbit/s. Azure has no such property of a NIC:
/// there, the size of the machine decides.
pub const BANDWIDTH_TAG: &str = "tombolo-bandwidth";

/// Largest number of flows of one NIC (X16): Azure's limit.
pub const MAX_FLOWS_OF_NIC: u32 = 500_000;

/// The limits that an agent enforces. A limit that is not listed does not exist, except that a NIC has at most
/// [`MAX_FLOWS_OF_NIC`] flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// The NICs with a bandwidth, in the order of [`Role::Vm`]'s `nics`. Empty at an agent that is no VM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicBandwidth>,
    /// The bandwidth of all tunnels of a VPN gateway together, in Mbit/s, within [`BANDWIDTH`]: the share of this
    /// instance. `None`: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<u32>,
    /// Largest number of flows of each NIC, 1 to [`MAX_FLOWS_OF_NIC`], which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows_of_nic: Option<u32>,
}

/// The bandwidth of one NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicBandwidth {
    /// The NIC, one of [`Role::Vm`]'s `nics`.
    pub nic: ResourceId,
    /// What the NIC may send to all destinations together, in Mbit/s, within [`BANDWIDTH`].
    pub outbound: u32,
}

impl Limits {
    /// The limits, unless there are none.
    #[must_use]
    pub fn if_any(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }

    /// Checks the ranges, and that the limits fit the role of the agent.
    pub(super) fn check(&self, role: &Role) -> Result<(), String> {
        let nics = match role {
            Role::Vm { nics, .. } => nics.as_slice(),
            Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
        };
        let mut rest = nics.iter();
        for limit in &self.nics {
            if !rest.any(|nic| nic.id == limit.nic) {
                return Err(format!(
                    "limits.nics: {} is listed twice, out of order, or is not in role.nics",
                    limit.nic
                ));
            }
        }
        if self.tunnels.is_some() && !matches!(role, Role::VpnGateway { .. }) {
            return Err("limits.tunnels: the agent is no VPN gateway".into());
        }
        let bandwidths = self.nics.iter().map(|nic| ("nics.outbound", nic.outbound));
        let bandwidths = bandwidths.chain(self.tunnels.map(|rate| ("tunnels", rate)));
        for (name, rate) in bandwidths {
            if !BANDWIDTH.contains(&rate) {
                let (least, most) = BANDWIDTH.into_inner();
                return Err(format!("limits.{name}: {rate} is not within {least} to {most}"));
            }
        }
        match self.flows_of_nic {
            Some(flows) if !(1..=MAX_FLOWS_OF_NIC).contains(&flows) => Err(format!(
                "limits.flowsOfNic: {flows} is not within 1 to {MAX_FLOWS_OF_NIC}"
            )),
            _ => Ok(()),
        }
    }
}

impl AgentConfig {
    /// The configuration without limits, for an agent that lacks [`Feature::Limits`](super::Feature::Limits). Such an
    /// agent forwards the same packets, without the limits.
    #[must_use]
    pub fn without_limits(&self) -> Self {
        Self {
            limits: None,
            ..self.clone()
        }
    }
}
