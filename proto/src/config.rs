//! The configuration of one agent. The configuration is complete and refers to no other data, and equal configurations
//! serialize to equal bytes.
//!
//! [`AgentConfig`] states what is permitted, and only the controller writes it. What agents learn by themselves, such
//! as which links are down and at which endpoints peers are reached, is not part of the configuration but a separate
//! input of the engine's tables (D11).
//!
//! An agent refuses a configuration with an unknown field. If the agent ignored the field, it would apply only a part
//! of the policy, and could permit packets that the field forbids.

mod balancing;
mod feature;
mod flow_log;
mod limits;
mod link;
mod role;
mod security;

pub use balancing::{
    BalancedProtocol, BalancingRule, Distribution, FrontEnd, GONE_WITHOUT_PROBE, HealthProbe, ProbeProtocol,
    ProbedBackEnd,
};
pub use feature::Feature;
pub use flow_log::{FlowLog, FlowLogFormat, FlowLogs, LoggedGroup, LoggedNic, MAX_FLOW_LOGS};
pub use limits::{BANDWIDTH, BANDWIDTH_TAG, Limits, MAX_FLOWS_OF_NIC, NicBandwidth};
pub use link::{Arrival, ForeignSources, GatewayKind, Link, Relation, Transport};
pub use role::{
    CircuitLink, CircuitNetwork, DEFAULT_ASN, EDGE_ASN, GatewayConnection, LinkedCircuit, MAX_PREFIXES,
    MAX_PREFIXES_PREMIUM, Neighbour, Role, SiteTtl, Speaker, UsedGateway,
};

pub use security::{
    ALL_PORTS, Access, AccessOff, AddressMatch, ApplicationGroup, DEFAULT_FLOW_TIMEOUT, Direction, MAX_NICS, MAX_RULES,
    PortRange, RuleProtocol, SERVICE_TAGS, SecuredNic, Security, SecurityGroup, SecurityRule,
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

/// Largest number of NICs of one virtual machine, as in Azure. An agent has a TUN device for each of them (D37).
pub const MAX_VM_NICS: usize = 8;

/// The whole configuration of one agent. The controller compiles it. [`check`](Self::check) checks the invariants that
/// the types do not express.
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
    /// The times and counts by which the agent detects that a link failed or recovered.
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// The role of the agent in its VNet.
    pub role: Role,
    /// The subnets whose effective routes this agent uses to send packets (R20): the subnets of the agent's NICs or, at
    /// a gateway, `GatewaySubnet`.
    pub subnets: Vec<Subnet>,
    /// The owners of addresses, i.e. the agents that receive the packets for these addresses. There is one space for
    /// the agent's own VNet, and one for each VNet that the agent delivers into directly. Exactly one space is
    /// [`SpaceKind::Local`]; at an edge this space has no prefixes and no owners.
    pub spaces: Vec<Space>,
    /// The links of this agent, one for each peer, ordered by `peer`; at most 65,536. The engine identifies a link by
    /// its position in this list.
    pub links: Vec<Link>,
    /// The security groups that the agent enforces. `None`: no group applies to any of its NICs (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// The front ends of load balancers that the agent can reach, ordered by VNet and address (D35).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front_ends: Vec<FrontEnd>,
    /// The limits of throughput and flows that the agent enforces. `None`: those that [`Limits::default`] has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// The settings by which an agent detects the failure of a link that another path can replace (D19). On all other
/// links, probes are sent at most once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probes {
    /// Interval between two probes in milliseconds, 50 to 10,000. Default 100.
    pub interval: u32,
    /// Number of consecutive unanswered probes after which a link is down, 1 to 100. Default 3.
    pub misses: u32,
    /// Number of consecutive answered probes after which a failed link is up again, 1 to 1000. Default 10.
    pub answers: u32,
    /// Shortest time from the first of these answered probes until the link is up again, in milliseconds, 0 to 600,000.
    /// Default 3000.
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

    /// The first value that is out of range: its name in the controller's settings, the value, and the allowed range.
    /// `None`: all values are within their ranges.
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
    /// The NIC's resource id.
    pub id: ResourceId,
    /// The NIC's private addresses, the primary one first, each with the prefix length of its subnet. The list is never
    /// empty.
    pub addresses: Vec<IpNet>,
    /// The NIC's subnet, one of [`AgentConfig::subnets`].
    pub subnet: ResourceId,
    /// `enableIPForwarding`: whether the NIC may receive packets for other destinations, and send packets with other
    /// sources (R12, D10).
    pub ip_forwarding: bool,
    /// The destinations to which the host's kernel sends packets by this NIC, although the first NIC is the default.
    /// They are like routes that an administrator adds in a virtual machine with several NICs. They come from the NIC's
    /// tag [`HOST_ROUTES_TAG`]. The NIC's own subnet need not be listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_routes: Vec<IpNet>,
}

/// Name of the tag of a NIC that lists [`Nic::host_routes`]: prefixes, separated by commas.
pub const HOST_ROUTES_TAG: &str = "tombolo-host-routes";

/// A subnet with its effective routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// The subnet's resource id.
    pub id: ResourceId,
    /// The subnet's address prefixes, without host bits.
    pub prefixes: Vec<IpNet>,
    /// All configured effective routes in the order of display, `Invalid` ones included. The engine uses the `Active`
    /// routes; a prefix has at most one `Active` route. The engine adds learned routes, and selects among all routes of
    /// a prefix by rule R7.
    pub routes: Vec<EffectiveRoute>,
    /// `disableBgpRoutePropagation` (R15): if true, learned routes do not apply to this subnet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

/// One configured prefix that a VPN gateway reaches over a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitRoute {
    /// The prefix of the destinations.
    pub prefix: IpNet,
    /// The connection that leads to the prefix.
    pub connection: ResourceId,
    /// The peers that packets for the prefix may be sent to, in order of preference: either the instances of the remote
    /// gateway, or the device of the site.
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
    /// The prefixes of the VNet. For the agent's own VNet, they are its address space. For another VNet, they are
    /// `remoteAddressSpace` of the peering half of the agent's VNet, i.e. the prefixes at the last sync (P27).
    pub prefixes: Vec<IpNet>,
    /// The owners of addresses. The longest prefix decides, so the /32 of a NIC overrides the prefix of a served
    /// subnet, whose other machines have no agents (D8).
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
        /// `allowVirtualNetworkAccess` of this half (P17). If it is off, this agent drops packets across this peering
        /// in both directions.
        allow_access: bool,
        /// `allowForwardedTraffic` of this half (P18). This field is only displayed: the flag takes effect by
        /// [`Link::foreign`].
        allow_forwarded: bool,
    },
    /// A spoke that uses this gateway (`useRemoteGateways`, P21), so that the gateway delivers packets into the spoke.
    /// Only gateways have such spaces.
    GatewayClient {},
}

/// An agent that owns a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// Either the address of a NIC or of a gateway instance as /32 or /128, or the prefix of a served subnet.
    pub prefix: IpNet,
    /// The owning agent. This agent may have no link with it.
    pub agent: AgentId,
    /// Whether the NIC has `enableIPForwarding`. This field is only displayed, because the owner itself enforces the
    /// flag.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ip_forwarding: bool,
}

impl AgentConfig {
    /// Serializes the configuration to its canonical bytes: compact JSON with the fields in the order of the type.
    /// These bytes are sent, stored and hashed by [`digest`]. Secrets are included.
    ///
    /// # Panics
    /// Never. Serialization fails only for a map whose keys are not text or for a serializer that returns an error, and
    /// no type in the configuration has either.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::unwrap_used, reason = "no type in here can fail to serialize")]
        serde_json::to_vec(self).unwrap()
    }

    /// Replaces the secrets, so that the configuration can be displayed: preshared keys become zeros, passwords `…`.
    /// The result must not be sent to agents: its secrets are wrong, and its digest differs from that of the
    /// configuration. A second call changes nothing.
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

    /// Parses the result of [`to_bytes`](Self::to_bytes), which may come from another version or be damaged, and
    /// [checks](Self::check) the configuration.
    ///
    /// # Errors
    /// The bytes are not the JSON of this type (an unknown field is an error, too), or an invariant is violated. The
    /// error's text names the position or the field, for the log and for the controller.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidConfig> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| InvalidConfig(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks the invariants that the types do not express: the ranges of the MTU, of the probes and of lanes; exactly
    /// one local space; at a VM, one to [`MAX_VM_NICS`] NICs, and for each NIC an address and a subnet that is in
    /// `subnets`; links ordered by peer, none of them with the agent itself; and a space for the peering of each link.
    /// Other references are not checked here.
    ///
    /// # Errors
    /// The first invariant that is violated, as text that names the field and its value.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let fail = |what: String| Err(InvalidConfig(what));
        if !(1280..=9000).contains(&self.mtu) {
            return fail(format!("mtu: {} is not within 1280 to 9000", self.mtu));
        }
        if let Some((name, value, range)) = self.probes.out_of_range() {
            let (least, most) = range.into_inner();
            return fail(format!("probes: {name}: {value} is not within {least} to {most}"));
        }
        if let Some(security) = &self.security {
            security.check().map_err(InvalidConfig)?;
            if let Role::Vm { nics, .. } = &self.role {
                let listed = security.nics.iter().map(|nic| &nic.id);
                if !nics.iter().map(|nic| &nic.id).eq(listed.take(nics.len())) {
                    return fail("security.nics: must begin with the NICs of role.nics, in the same order".into());
                }
            }
            let has_no_subnet = |nic: &&SecuredNic| !self.subnets.iter().any(|s| s.id == nic.subnet);
            if let Some(nic) = security.nics.iter().find(has_no_subnet) {
                return fail(format!(
                    "security.nics: {} is in {}, which is not in subnets",
                    nic.id, nic.subnet
                ));
            }
        }
        balancing::check(&self.front_ends).map_err(InvalidConfig)?;
        if let Some(limits) = &self.limits {
            limits.check(&self.role).map_err(InvalidConfig)?;
        }
        let has_no_space = |f: &&FrontEnd| !self.spaces.iter().any(|s| s.vnet == f.vnet);
        if let Some(front_end) = self.front_ends.iter().find(has_no_space) {
            return fail(format!(
                "frontEnds: {} is in {}, which has no entry in spaces",
                front_end.id, front_end.vnet
            ));
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
            if nics.len() > MAX_VM_NICS {
                let count = nics.len();
                return fail(format!("role.nics: {count} NICs; a VM has at most {MAX_VM_NICS}"));
            }
            for nic in nics {
                if let Some(route) = nic.host_routes.iter().find(|p| p.prefix_len() == 0) {
                    return fail(format!(
                        "role.nics: hostRoutes of {} has {route}; the first NIC is the default",
                        nic.id
                    ));
                }
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
            let nics = match &self.role {
                Role::Vm { nics, .. } => nics.len(),
                Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => 0,
            };
            if let Some(arrival) = link.arrivals.iter().find(|a| usize::from(a.nic) >= nics) {
                return fail(format!(
                    "links: packets of {} arrive at NIC {}, which is not one of the {nics} in role.nics",
                    link.peer, arrival.nic
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

/// The reason why a configuration cannot be parsed or violates an invariant, as text that names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// The BLAKE3 hash of a configuration's [canonical bytes](AgentConfig::to_bytes), as 64 lower-case hex digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
