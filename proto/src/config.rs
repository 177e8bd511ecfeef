//! What one agent must know: complete, self-contained, the same bytes for the same input.
//!
//! [`AgentConfig`] is policy and comes from the controller alone. What agents learn by themselves (link health,
//! endpoints) is another input of the engine's tables and never stands here (decision D11).
//! An agent refuses a configuration with a field that it does not know: half-understood policy is not policy.

mod link;
mod role;
mod security;

pub use link::{ForeignSources, GatewayKind, Link, Relation, Transport};
pub use role::{
    CircuitLink, CircuitNetwork, DEFAULT_ASN, EDGE_ASN, GatewayConnection, LinkedCircuit, MAX_PREFIXES, Neighbour,
    Role, SiteTtl, Speaker, UsedGateway,
};

pub use security::{ALL_PORTS, Access, AddressMatch, Direction, MAX_RULES, PortRange, RuleProtocol, SecurityRule};

use crate::id::{AgentId, PresharedKey, ResourceId, Secret};
use crate::route::EffectiveRoute;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Inner MTU of every TUN device unless set otherwise, bytes (D20).
pub const DEFAULT_MTU: u16 = 1420;

/// Most lanes of an agent (D15).
pub const MAX_LANES: u16 = 64;

/// Everything one agent must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// Whom this is for.
    pub agent: AgentId,
    /// The VNet that the agent stands for (a part of); the circuit of an edge.
    pub vnet: ResourceId,
    /// The VNet's address space; no host bits set. Empty at an edge.
    pub address_space: Vec<IpNet>,
    /// MTU of the TUN device, bytes, 1280 to 9000.
    pub mtu: u16,
    /// How the silence of a link is noticed.
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// What the agent is in its VNet.
    pub role: Role,
    /// The subnets that packets leave through at this agent, each with its effective routes (R20): those of the
    /// agent's NICs, or `GatewaySubnet`.
    pub subnets: Vec<Subnet>,
    /// Address → agent, one space for the own VNet and one for each VNet that packets may be delivered to directly.
    /// Exactly one is [`SpaceKind::Local`]; at an edge it is empty.
    pub spaces: Vec<Space>,
    /// The agents that this one may have links with, ordered by `peer`.
    pub links: Vec<Link>,
}

/// How it is noticed that a link with an alternative does not answer, and that it does again (D19).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probes {
    /// From one to the next, milliseconds, 50 to 10,000.
    pub interval: u32,
    /// So many in a row without an answer, and the link is down: 1 to 100.
    pub misses: u32,
    /// So many in a row with an answer, 1 to 1000,
    pub answers: u32,
    /// for so long, milliseconds, up to 600,000, and it is back.
    pub hold: u32,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            interval: 100,
            misses: 3,
            answers: 10,
            hold: 3000,
        }
    }
}

impl Probes {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of range: the name, the value, and the range.
    #[must_use]
    pub fn out_of_range(&self) -> Option<(&'static str, u32, RangeInclusive<u32>)> {
        [
            ("probeInterval", self.interval, 50..=10_000),
            ("probeMisses", self.misses, 1..=100),
            ("probeAnswers", self.answers, 1..=1000),
            ("probeHold", self.hold, 0..=600_000),
        ]
        .into_iter()
        .find(|(_, value, range)| !range.contains(value))
    }
}

/// A NIC of the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nic {
    /// The network interface resource.
    pub id: ResourceId,
    /// Its private addresses, the primary one first, with the prefix length of their subnet.
    pub addresses: Vec<IpNet>,
    /// The subnet, one of [`AgentConfig::subnets`].
    pub subnet: ResourceId,
    /// `enableIPForwarding`: may take packets for others, and emit packets with foreign sources (R12, D10).
    pub ip_forwarding: bool,
}

/// A subnet with its effective routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// The subnet resource.
    pub id: ResourceId,
    /// Its prefixes.
    pub prefixes: Vec<IpNet>,
    /// All effective routes that are configured, `Invalid` ones included, ordered as they are shown. The engine uses
    /// `Active` ones; among these a prefix occurs once. Learned routes come on top, by the same precedence (R7).
    pub routes: Vec<EffectiveRoute>,
    /// `disableBgpRoutePropagation` (R15): no learned routes here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

/// A gateway's forwarding entry: a prefix behind a VPN connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitRoute {
    /// The destination.
    pub prefix: IpNet,
    /// The connection that it lies behind.
    pub connection: ResourceId,
    /// The far gateway's instances, in order of preference.
    pub via: Vec<AgentId>,
}

/// The addresses of one VNet and who owns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Space {
    /// The VNet.
    pub vnet: ResourceId,
    /// What it is to this agent's VNet.
    pub kind: SpaceKind,
    /// The prefixes in use: the own address space, or the peering's `remoteAddressSpace` (as last synced, P27).
    pub prefixes: Vec<IpNet>,
    /// Address → agent; longest prefix wins, so that a NIC's /32 comes before "subnet served by" (D8).
    pub owners: Vec<Owner>,
}

/// What a space is to this agent's VNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum SpaceKind {
    /// The own VNet.
    Local {},
    /// A VNet with a `Connected` peering.
    Peered {
        /// The own half of the peering.
        peering: ResourceId,
        /// `allowVirtualNetworkAccess` of the own half (P17): off, packets that cross this peering are dropped, both ways.
        allow_access: bool,
        /// `allowForwardedTraffic` of the own half (P18).
        allow_forwarded: bool,
    },
    /// On a gateway only: a spoke that uses it as remote gateway (P21). The gateway delivers into it.
    GatewayClient {},
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// A NIC's address as /32 or /128, a gateway instance's address, or a served prefix.
    pub prefix: IpNet,
    /// The agent.
    pub agent: AgentId,
    /// The NIC has `enableIPForwarding`. Diagnosis only: the owner itself enforces it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ip_forwarding: bool,
}

impl AgentConfig {
    /// The canonical bytes: what travels, what is cached, what the digest is taken of.
    ///
    /// # Panics
    /// Never: the types have no map with non-text keys and no failing serializer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::unwrap_used, reason = "no type in here can fail to serialize")]
        serde_json::to_vec(self).unwrap()
    }

    /// Makes the secrets in it unreadable, for showing it: zeros for preshared keys, `…` for passwords.
    pub fn blank_secrets(&mut self) {
        for link in &mut self.links {
            link.preshared_key = link.preshared_key.map(|_| PresharedKey([0; 32]));
        }
        let speaker = match &mut self.role {
            Role::VpnGateway { bgp, .. } => bgp.as_mut(),
            Role::CircuitEdge { bgp, .. } => Some(bgp),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => None,
        };
        for neighbour in speaker.into_iter().flat_map(|s| &mut s.neighbours) {
            neighbour.password = neighbour.password.take().map(|_| Secret("…".into()));
        }
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// What is wrong and where, in words for the controller's log.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidConfig> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| InvalidConfig(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let fail = |what: String| Err(InvalidConfig(what));
        if !(1280..=9000).contains(&self.mtu) {
            return fail(format!("mtu: {} is not within 1280 to 9000", self.mtu));
        }
        if let Some((name, value, range)) = self.probes.out_of_range() {
            let (least, most) = range.into_inner();
            return fail(format!("probes: {name}: {value} is not within {least} to {most}"));
        }
        if self
            .spaces
            .iter()
            .filter(|s| matches!(s.kind, SpaceKind::Local {}))
            .count()
            != 1
        {
            return fail("spaces: exactly one must be local".into());
        }
        if let Role::Vm { nics, .. } = &self.role {
            if nics.is_empty() {
                return fail("role.nics: a VM has at least one NIC".into());
            }
            for nic in nics {
                if nic.addresses.is_empty() {
                    return fail(format!("role.nics: {} has no address", nic.id));
                }
                if !self.subnets.iter().any(|s| s.id == nic.subnet) {
                    return fail(format!("role.nics: {} is in unknown subnet {}", nic.id, nic.subnet));
                }
            }
        }
        for pair in self.links.windows(2) {
            if pair[0].peer >= pair[1].peer {
                return fail(format!("links: not ordered, or twice, at {}", pair[1].peer));
            }
        }
        if let Some(own) = self.links.iter().find(|l| l.peer == self.agent) {
            return fail(format!("links: {} is the agent itself", own.peer));
        }
        for link in &self.links {
            if !(1..=MAX_LANES).contains(&link.lanes) {
                return fail(format!(
                    "links: {} has {} lanes, not within 1 to {MAX_LANES}",
                    link.peer, link.lanes
                ));
            }
            if let Relation::Peering { peering } = &link.relation {
                let known = |s: &Space| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering);
                if !self.spaces.iter().any(known) {
                    return fail(format!("links: {} belongs to unknown peering {peering}", link.peer));
                }
            }
        }
        Ok(())
    }
}

/// A configuration that breaks a promise of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// BLAKE3 of a configuration's canonical bytes, as lower-case hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
