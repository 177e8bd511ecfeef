//! The reference model: the specification as loops over lists.
//!
//! The model shares no code with the product, and has no trie, no cache and no index. For a case that the specification
//! does not decide, the model returns [`Fate::Unspecified`] or [`Ruling::Either`]. The comparison then accepts what the
//! product does.
//! * [`balancing`] gives the back ends that load balancers may choose (L1 to L11).
//! * [`change`] decides which operations are refused, and applies accepted ones.
//! * [`learned`] decides which announced routes of sites are accepted, and which sources they permit.
//! * [`routes`] finds the route that a packet takes (R1 to R15).
//! * [`security`] applies the rules of security groups, and keeps the flows that these have allowed (N2 to N9).
//! * [`walk`] follows a packet from agent to agent, and gives the reason of a loss.

pub mod balancing;
pub mod change;
pub mod gateway_choices;
pub mod learned;
pub mod nics;
pub mod routes;
pub mod security;
pub mod walk;

use crate::operation::{Balancer, Flags, Rule, UserHop, gateway_agent};
use ipnet::IpNet;
use std::net::IpAddr;

/// The whole state: the resources and agents that the controller knows, and the announcements of sites. Each list is in
/// the order of creation. An entry refers to an entry of another list by its name. All methods compare names exactly.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub vnets: Vec<Vnet>,
    pub nics: Vec<Nic>,
    pub tables: Vec<Table>,
    pub gateways: Vec<Gateway>,
    pub connections: Vec<Connection>,
    pub agents: Vec<Agent>,
    pub announced: Vec<Announced>,
    pub security_groups: Vec<SecurityGroup>,
    /// The names of the application security groups. Their members are in [`Nic::application_groups`].
    pub application_groups: Vec<String>,
    /// Whether the operator's setting `vnetAccessOff` is `block` (D28). It begins as `tagOnly`, today's default.
    pub access_off_blocks: bool,
    /// Whether the operator's setting `reevaluate` is on (D34). It begins as off.
    pub reevaluates: bool,
    /// The load balancers by name.
    pub balancers: Vec<(String, Balancer)>,
    /// The back ends that their agents have found to be down: the load balancer, and the address (L6).
    pub down: Vec<(String, IpAddr)>,
}

/// A network security group, without its default rules (N2).
#[derive(Debug, Clone)]
pub struct SecurityGroup {
    pub name: String,
    pub rules: Vec<Rule>,
}

/// The BGP announcements of the site that is joined to a VNet's gateway.
#[derive(Debug, Clone)]
pub struct Announced {
    pub vnet: String,
    pub prefixes: Vec<IpNet>,
    /// Whether the AS paths begin with an ASN that is not the site's.
    pub foreign_as: bool,
    /// Whether the site also announces 4,001 unused IPv4 prefixes, more than G23 permits.
    pub flood: bool,
}

/// A VNet with its children (P1).
#[derive(Debug, Clone)]
pub struct Vnet {
    pub name: String,
    pub region: &'static str,
    pub space: Vec<IpNet>,
    pub subnets: Vec<Subnet>,
    pub peerings: Vec<Peering>,
    /// `flowTimeoutInMinutes` (N6).
    pub flow_timeout: u8,
}

/// A subnet of a VNet; `table` is the name of its route table, and `security` that of its security group.
#[derive(Debug, Clone)]
pub struct Subnet {
    pub name: String,
    pub prefixes: Vec<IpNet>,
    pub table: Option<String>,
    pub security: Option<String>,
}

/// One half of a peering.
#[derive(Debug, Clone)]
pub struct Peering {
    pub remote: String,
    pub flags: Flags,
    pub state: State,
    /// The remote VNet's ranges when this half was last created, updated or connected (P27).
    pub remote_space: Vec<IpNet>,
}

/// The state of a half of a peering (P13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Initiated,
    Connected,
    Disconnected,
}

/// A NIC; `forwarding` is `enableIPForwarding` (R12).
#[derive(Debug, Clone)]
pub struct Nic {
    pub name: String,
    pub vnet: String,
    pub subnet: String,
    pub addresses: Vec<IpAddr>,
    pub forwarding: bool,
    /// The name of the NIC's own security group (N4).
    pub security: Option<String>,
    pub application_groups: Vec<String>,
    /// The prefixes that the machine's kernel sends by this NIC instead of the first one (D37).
    pub host_routes: Vec<IpNet>,
    /// The load balancers in whose pool the NIC's addresses are, and of whose inbound NAT rule the first one is the target.
    pub pool: Option<String>,
    pub nat_rule: Option<String>,
}

/// A route table; `no_gateway_routes` is `disableBgpRoutePropagation` (R15).
#[derive(Debug, Clone)]
pub struct Table {
    pub name: String,
    pub no_gateway_routes: bool,
    pub routes: Vec<(IpNet, UserHop)>,
}

/// The VPN gateway of a VNet, with the address of its instance.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub vnet: String,
    pub address: IpAddr,
}

/// The connection object of the gateway of VNet `from`. A tunnel also needs the connection object of the gateway of
/// VNet `to` (G10).
#[derive(Debug, Clone)]
pub struct Connection {
    pub from: String,
    pub to: String,
    pub key: Option<String>,
}

/// An agent that has joined, of a machine or of a VNet's gateway (D7).
#[derive(Debug, Clone)]
pub struct Agent {
    pub name: String,
    pub vnet: String,
    /// The names of the agent's NICs; empty for a gateway's agent.
    pub nics: Vec<String>,
    /// Subnets whose other machines the agent serves (D8).
    pub served: Vec<String>,
    pub gateway: bool,
    pub revoked: bool,
}

/// The specification's verdict on an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The product must accept the operation.
    Accept,
    /// The product must refuse the operation, and the problems that it reports must include these codes. An empty list
    /// means any code.
    Refuse(Vec<&'static str>),
    /// The specification does not decide.
    Either,
}

/// What happens to a packet in the end, with the agents that the packet passes, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The packet reaches the kernel of the last agent of the path, or a site's device.
    Delivered { path: Vec<String> },
    /// The packet is lost at the last agent of the path, and the product may give any of these reasons.
    Lost { path: Vec<String>, why: Vec<Why> },
    /// The specification does not decide. The string names the case.
    Unspecified(&'static str),
}

/// A coarse reason for the loss of a packet: several drop reasons of the product map to one such reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The host may not send from this source (R12, D10).
    Spoofed,
    /// There is no route, or the route has the next-hop type `Internet` or `None`. At a gateway: none of the gateway's
    /// connections leads to the destination, and the destination is in no VNet that uses the gateway.
    Unrouted,
    /// No agent owns the address (D8).
    NoOwner,
    /// `allowVirtualNetworkAccess` is off (P17).
    AccessOff,
    /// The peer may not send from this source (D10, P18).
    Source,
    /// The destination is no address of the receiving machine, and none of its NICs forwards (R12).
    NotForwarding,
    /// The gateway that the route or the connection leads to has no agent.
    NoGateway,
    /// The route's appliance address has no owner, or is outside of the VNet and its directly peered VNets (R11).
    Appliance,
    /// The connection's tunnel is down: the two shared keys differ, or one of them is missing (G11).
    NoTunnel,
    /// A rule of a security group denies the packet (N3, N4).
    Security,
    /// The load balancer has no rule for the packet's protocol and port (L3).
    NoBalancingRule,
    /// The packet to a front end is neither TCP nor UDP (D35).
    BalancerProtocol,
    /// No back end gets new flows (L8), or the pool is empty.
    NoBackEnd,
    /// The back end is the packet's source (L11).
    BackEndItself,
    /// The back end has no agent.
    NoLink,
    /// A routing loop used up the packet's TTL, or the packet would return to the agent that has sent it.
    Loop,
}

/// Whether one of the prefixes contains the address. False for an empty list.
#[must_use]
pub fn within(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&address))
}

/// Whether the two lists have an address in common. An IPv4 prefix and an IPv6 prefix have none. False if a list is
/// empty.
#[must_use]
pub fn overlap(a: &[IpNet], b: &[IpNet]) -> bool {
    a.iter()
        .any(|x| b.iter().any(|y| x.contains(&y.network()) || y.contains(&x.network())))
}

impl Model {
    /// The VNet of that name. None: it does not exist.
    #[must_use]
    pub fn vnet(&self, name: &str) -> Option<&Vnet> {
        self.vnets.iter().find(|v| v.name == name)
    }

    fn vnet_mut(&mut self, name: &str) -> Option<&mut Vnet> {
        self.vnets.iter_mut().find(|v| v.name == name)
    }

    /// The peering half of `vnet` that points to `remote`, in any state. None: there is no such half.
    #[must_use]
    pub fn half(&self, vnet: &str, remote: &str) -> Option<&Peering> {
        self.vnet(vnet)?.peerings.iter().find(|p| p.remote == remote)
    }

    fn half_mut(&mut self, vnet: &str, remote: &str) -> Option<&mut Peering> {
        self.vnet_mut(vnet)?.peerings.iter_mut().find(|p| p.remote == remote)
    }

    /// The agent of that name. None: no agent of that name has joined, or the agent is revoked.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<&Agent> {
        self.agents.iter().find(|a| a.name == name && !a.revoked)
    }

    /// Those NICs of an agent that still exist, in the order in which the agent's binding lists them. A gateway's agent
    /// has none.
    #[must_use]
    pub fn nics_of(&self, agent: &Agent) -> Vec<&Nic> {
        agent
            .nics
            .iter()
            .filter_map(|name| self.nics.iter().find(|n| n.name == *name))
            .collect()
    }

    /// The agent's own addresses: the addresses of its NICs or, for a gateway's agent, the address of the gateway.
    /// Addresses of served subnets are not among them. Empty if the gateway or the NICs do not exist any more.
    #[must_use]
    pub fn addresses_of(&self, agent: &Agent) -> Vec<IpAddr> {
        if agent.gateway {
            return self
                .gateways
                .iter()
                .filter(|g| g.vnet == agent.vnet)
                .map(|g| g.address)
                .collect();
        }
        self.nics_of(agent).iter().flat_map(|n| n.addresses.clone()).collect()
    }

    /// The prefixes of the subnets that an agent serves (D8). Empty if it serves none.
    #[must_use]
    pub fn served_by(&self, agent: &Agent) -> Vec<IpNet> {
        let Some(vnet) = self.vnet(&agent.vnet) else {
            return Vec::new();
        };
        let served = vnet.subnets.iter().filter(|s| agent.served.contains(&s.name));
        served.flat_map(|s| s.prefixes.clone()).collect()
    }

    /// Whether a machine with this address may be in a subnet that the agent serves (D8). No machine has the address of a
    /// front end (L1).
    #[must_use]
    pub fn serves(&self, agent: &Agent, address: IpAddr) -> bool {
        within(&self.served_by(agent), address) && self.front_end(&agent.vnet, address).is_none()
    }

    /// The agent that owns the address in the VNet (D8). An agent's own address takes precedence over a served subnet.
    /// None: no agent of the VNet has or serves the address. Revoked agents do not count. If several agents have the
    /// address, the one that joined first is returned.
    #[must_use]
    pub fn owner(&self, vnet: &str, address: IpAddr) -> Option<&Agent> {
        // L1: no machine has the address of a front end.
        if self.front_end(vnet, address).is_some() {
            return None;
        }
        let here = || self.agents.iter().filter(|a| a.vnet == vnet && !a.revoked);
        here()
            .find(|a| self.addresses_of(a).contains(&address))
            .or_else(|| here().find(|a| within(&self.served_by(a), address)))
    }

    /// Whether the agent has a NIC that forwards (R12). False for a gateway's agent.
    #[must_use]
    pub fn forwards(&self, agent: &Agent) -> bool {
        self.nics_of(agent).iter().any(|n| n.forwarding)
    }

    /// The name of the VNet whose gateway this VNet uses: its own name if it has a gateway, or the name of a peer (P19,
    /// P20, P23). None: it uses no gateway, or does not exist.
    #[must_use]
    pub fn gateway_for(&self, vnet: &str) -> Option<String> {
        if self.gateways.iter().any(|g| g.vnet == vnet) {
            return Some(vnet.to_string());
        }
        for half in &self.vnet(vnet)?.peerings {
            if self.is_client(vnet, &half.remote) {
                return Some(half.remote.clone());
            }
        }
        None
    }

    /// Whether `spoke` uses the gateway of `hub` as its remote gateway (P21): both halves are Connected, the half of
    /// `spoke` has `useRemoteGateways`, the half of `hub` has `allowGatewayTransit`, and only `hub` has a gateway.
    #[must_use]
    pub fn is_client(&self, spoke: &str, hub: &str) -> bool {
        let (Some(own), Some(other)) = (self.half(spoke, hub), self.half(hub, spoke)) else {
            return false;
        };
        own.state == State::Connected
            && other.state == State::Connected
            && own.flags.use_remote
            && other.flags.transit
            && self.gateways.iter().any(|g| g.vnet == hub)
            && !self.gateways.iter().any(|g| g.vnet == spoke)
    }

    /// The VNets that use the gateway of `hub` as their remote gateway; `hub` is not among them.
    #[must_use]
    pub fn clients(&self, hub: &str) -> Vec<&Vnet> {
        self.vnets.iter().filter(|v| self.is_client(&v.name, hub)).collect()
    }

    /// The VNets at the far ends of the connections of `vnet`'s gateway. A connection counts if both objects exist
    /// (G10), whatever their keys are. Empty if there is none.
    #[must_use]
    pub fn connected_to(&self, vnet: &str) -> Vec<&str> {
        let both = |from: &str, to: &str| self.connections.iter().any(|c| c.from == from && c.to == to);
        let own = self.connections.iter().filter(|c| c.from == vnet);
        own.filter(|c| both(&c.to, vnet)).map(|c| c.to.as_str()).collect()
    }

    fn key(&self, from: &str, to: &str) -> Option<&String> {
        let object = self.connections.iter().find(|c| c.from == from && c.to == to);
        object?.key.as_ref()
    }

    /// Whether both connection objects between two gateways exist and have a key, equal or not.
    #[must_use]
    pub fn keyed(&self, a: &str, b: &str) -> bool {
        self.key(a, b).is_some() && self.key(b, a).is_some()
    }

    /// Whether the tunnel between two gateways can come up: both keys are set and equal (G11).
    #[must_use]
    pub fn tunnel(&self, a: &str, b: &str) -> bool {
        self.keyed(a, b) && self.key(a, b) == self.key(b, a)
    }

    /// The prefixes that the connection from `vnet` to `far` leads to, whether or not the connection exists: the ranges
    /// of `far`, and the synced ranges of the VNets that use the gateway of `far` (P21b, G9). Routes that the gateway
    /// of `far` has learned elsewhere (D9) and prefixes that overlap the ranges of `vnet` (G20) are not included.
    #[must_use]
    pub fn reachable_via(&self, vnet: &str, far: &str) -> Vec<IpNet> {
        let own = self.vnet(vnet).map(|v| v.space.clone()).unwrap_or_default();
        let mut out = self.vnet(far).map(|v| v.space.clone()).unwrap_or_default();
        for client in self.clients(far) {
            out.extend(
                self.half(far, &client.name)
                    .map(|h| h.remote_space.clone())
                    .unwrap_or_default(),
            );
        }
        out.retain(|p| !overlap(&[*p], &own));
        out
    }

    /// The agent of a VNet's gateway. None: no agent has joined for this gateway, or the agent is revoked.
    #[must_use]
    pub fn gateway_agent(&self, vnet: &str) -> Option<&Agent> {
        self.agent(&gateway_agent(vnet))
    }
}
