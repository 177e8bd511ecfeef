//! The configuration of one agent: complete, self-contained, and the same bytes for the same input.
//!
//! [`AgentConfig`] is policy, and only the controller writes it. State that agents learn, such as link health and
//! endpoints, is a separate input of the engine's tables (D11).
//! An agent refuses a configuration with an unknown field: applying policy in part could open what it closes.

mod link;
mod role;

pub use link::{ForeignSources, GatewayKind, Link, Relation, Transport};
pub use role::{
    CircuitLink, CircuitNetwork, DEFAULT_ASN, EDGE_ASN, GatewayConnection, LinkedCircuit, MAX_PREFIXES, Neighbour,
    Role, SiteTtl, Speaker, UsedGateway,
};

use crate::id::{AgentId, PresharedKey, ResourceId, Secret};
use crate::route::EffectiveRoute;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Default MTU of the overlay in bytes (D20): 1500 less the 80 bytes that WireGuard over IPv6 adds.
pub const DEFAULT_MTU: u16 = 1420;

/// Largest number of lanes of one agent (D15).
pub const MAX_LANES: u16 = 64;

/// Everything that one agent has to know. The controller compiles it; [`check`](Self::check) states what must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// The agent that this configuration is for.
    pub agent: AgentId,
    /// The VNet that the agent belongs to; at an edge, the circuit.
    pub vnet: ResourceId,
    /// The VNet's address space, without host bits. Empty at an edge.
    pub address_space: Vec<IpNet>,
    /// MTU of the TUN device in bytes, 1280 to 9000. The controller's default is [`DEFAULT_MTU`].
    pub mtu: u16,
    /// How fast the agent detects that a link failed or recovered.
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// The role of the agent in its VNet.
    pub role: Role,
    /// The subnets whose effective routes apply to packets that leave at this agent (R20): those of the agent's NICs,
    /// or `GatewaySubnet` at a gateway.
    pub subnets: Vec<Subnet>,
    /// Owners of addresses: one space for the agent's own VNet, and one for each VNet that the agent delivers into
    /// directly. Exactly one is [`SpaceKind::Local`]; at an edge that one is empty.
    pub spaces: Vec<Space>,
    /// The peers of this agent, ordered by `peer` without duplicates; at most 65,536. A link's position in this list is
    /// its number in the engine.
    pub links: Vec<Link>,
}

/// Failure detection of links that have an alternative (D19). On other links probes are sent once a second at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probes {
    /// Interval between two probes in milliseconds, 50 to 10,000. Default 100.
    pub interval: u32,
    /// Consecutive unanswered probes after which a link is down, 1 to 100. Default 3.
    pub misses: u32,
    /// Consecutive answered probes that a failed link needs to be up again, 1 to 1000. Default 10.
    pub answers: u32,
    /// Shortest time that those answers must span, in milliseconds, 0 to 600,000. Default 3000.
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

    /// The first value out of range: its name in the controller's settings, the value, and the allowed range.
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
    /// Its resource id.
    pub id: ResourceId,
    /// Its private addresses, the primary one first, each with the prefix length of its subnet. Never empty.
    pub addresses: Vec<IpNet>,
    /// Its subnet, one of [`AgentConfig::subnets`].
    pub subnet: ResourceId,
    /// `enableIPForwarding`: the NIC may receive packets for other destinations and send packets with other sources
    /// (R12, D10).
    pub ip_forwarding: bool,
}

/// A subnet with its effective routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// Its resource id.
    pub id: ResourceId,
    /// Its address prefixes, without host bits.
    pub prefixes: Vec<IpNet>,
    /// All configured effective routes in the order of display, `Invalid` ones included. The engine uses the `Active`
    /// ones, of which each prefix has at most one. Learned routes are added by the same precedence (R7).
    pub routes: Vec<EffectiveRoute>,
    /// `disableBgpRoutePropagation` (R15): learned routes do not apply to this subnet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

/// One configured prefix behind a VPN connection, at a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitRoute {
    /// The destination prefix.
    pub prefix: IpNet,
    /// The connection that leads to it.
    pub connection: ResourceId,
    /// The instances of the remote gateway, or the device of the site, in order of preference.
    pub via: Vec<AgentId>,
}

/// The addresses of one VNet and their owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Space {
    /// The VNet's resource id.
    pub vnet: ResourceId,
    /// The relation of that VNet to the agent's VNet.
    pub kind: SpaceKind,
    /// The prefixes in use: the VNet's own address space, or `remoteAddressSpace` of the peering as last synced (P27).
    pub prefixes: Vec<IpNet>,
    /// Owners of addresses. The longest prefix wins, so the /32 of a NIC overrides a served subnet (D8).
    pub owners: Vec<Owner>,
}

/// The relation of a space to the agent's VNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum SpaceKind {
    /// The agent's own VNet.
    Local {},
    /// A VNet with a `Connected` peering.
    Peered {
        /// This VNet's half of the peering.
        peering: ResourceId,
        /// `allowVirtualNetworkAccess` of this half (P17). If it is off, packets across this peering are dropped in
        /// both directions.
        allow_access: bool,
        /// `allowForwardedTraffic` of this half (P18). For display only: [`Link::foreign`] has the effect of the flag.
        allow_forwarded: bool,
    },
    /// Only at a gateway: a spoke that uses this gateway (`useRemoteGateways`, P21). The gateway delivers into it.
    GatewayClient {},
}

/// An agent that owns a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// The address of a NIC or of a gateway instance as /32 or /128, or a served prefix.
    pub prefix: IpNet,
    /// The owning agent. It may be one that this agent has no link with.
    pub agent: AgentId,
    /// The NIC has `enableIPForwarding`. For display only: the owner itself enforces the flag.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ip_forwarding: bool,
}

impl AgentConfig {
    /// Serializes to the canonical bytes, which are sent, cached and hashed by [`digest`].
    ///
    /// # Panics
    /// Never: no type in here has a map with non-text keys or a serializer that can fail.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::unwrap_used, reason = "no type in here can fail to serialize")]
        serde_json::to_vec(self).unwrap()
    }

    /// Replaces the secrets before the configuration is displayed: preshared keys by zeros, passwords by `…`.
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

    /// Parses bytes of [`to_bytes`](Self::to_bytes) and [checks](Self::check) them.
    ///
    /// # Errors
    /// The position and reason of the first error, as text for the controller's log.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidConfig> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| InvalidConfig(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks the invariants that the types do not express: ranges, order, and references between lists.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let fail = |what: String| Err(InvalidConfig(what));
        if !(1280..=9000).contains(&self.mtu) {
            return fail(format!("mtu: {} is not within 1280 to 9000", self.mtu));
        }
        if let Some((name, value, range)) = self.probes.out_of_range() {
            let (least, most) = range.into_inner();
            return fail(format!("probes: {name}: {value} is not within {least} to {most}"));
        }
        let is_local = |s: &&Space| matches!(s.kind, SpaceKind::Local {});
        let local = self.spaces.iter().filter(is_local).count();
        if local != 1 {
            return fail(format!("spaces: {local} are local; exactly one must be"));
        }
        if let Role::Vm { nics, .. } = &self.role {
            if nics.is_empty() {
                return fail("role.nics: the list is empty; a VM needs at least one NIC".into());
            }
            for nic in nics {
                if nic.addresses.is_empty() {
                    return fail(format!("role.nics: {} has no address", nic.id));
                }
                if !self.subnets.iter().any(|s| s.id == nic.subnet) {
                    return fail(format!(
                        "role.nics: {} is in {}, which is not in subnets",
                        nic.id, nic.subnet
                    ));
                }
            }
        }
        for pair in self.links.windows(2) {
            if pair[0].peer >= pair[1].peer {
                return fail(format!(
                    "links: {} is listed twice or out of order; links are ordered by peer",
                    pair[1].peer
                ));
            }
        }
        if let Some(own) = self.links.iter().find(|l| l.peer == self.agent) {
            return fail(format!(
                "links: {} is the agent itself; a link needs another peer",
                own.peer
            ));
        }
        for link in &self.links {
            if !(1..=MAX_LANES).contains(&link.peer_lanes) {
                return fail(format!(
                    "links: {} has {} lanes, not within 1 to {MAX_LANES}",
                    link.peer, link.peer_lanes
                ));
            }
            if let Relation::Peering { peering } = &link.relation {
                let known = |s: &Space| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering);
                if !self.spaces.iter().any(known) {
                    return fail(format!(
                        "links: {} belongs to peering {peering}, which has no entry in spaces",
                        link.peer
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A configuration that cannot be parsed or violates an invariant, as text that names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// The BLAKE3 hash of a configuration's [canonical bytes](AgentConfig::to_bytes), in lower-case hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
