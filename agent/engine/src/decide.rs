//! The packet decision, which is one pure function of the tables and the packet.
//!
//! Each rule is applied in one place of this file, and a comment there cites it.

mod earlier;

use crate::packet::PacketInfo;
use crate::tables::lpm::Lpm;
use crate::tables::{
    AddressSpace, AgentRole, Among, BalancingRule, Choice, Hop, LinkGroup, LinkIndex, LinkPolicy, Member, NicIndex,
    Owner, PeerRole, SubnetRoutes, Tables, TransitScope, VmNics,
};
use crate::verdict::{DropReason, Verdict};
pub(crate) use earlier::{Earlier, Memory};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::{ForeignSources, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;

/// The interface that a packet arrived on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// The TUN device of a NIC. The packet comes from this host.
    Tun(NicIndex),
    /// A link. The packet comes from the link's peer.
    Link(LinkIndex),
}

/// The entries of the tables that a decision used. A field is `None` if the decision ended before it used such an
/// entry, or needs no such entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The subnet whose routes applied.
    pub subnet: Option<ResourceId>,
    /// The route that applied to the packet: the selected route, or the standby route that replaced it because the
    /// direct link was down.
    pub route: Option<EffectiveRoute>,
    /// The connection that leads to the destination. Only VPN gateways use one.
    pub connection: Option<ResourceId>,
    /// The VNet in which the owner of the destination, or of the appliance's address, was looked up.
    pub vnet: Option<ResourceId>,
    /// The agent, or the device of a site, to which the selected route leads.
    pub next: Option<AgentId>,
    /// The load-balancing rule or inbound NAT rule that applied to the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancing_rule: Option<ResourceId>,
    /// The address of the back end that the rule chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<IpAddr>,
}

/// Decides what happens to a packet that arrived at `ingress`, and returns the verdict; `packet` is the result of
/// [`parse`](crate::packet::parse). The function changes nothing: if the verdict has `decrement_ttl`, the caller must
/// decrement the packet's TTL.
///
/// `trace`, if there is one, records the entries that led to the verdict. The caller should pass an empty trace,
/// because the function does not clear the fields that it does not set.
///
/// Agents forward packets by this function, and the controller's `explain` calls it too. Both therefore reach the same
/// verdicts if their tables were built from the same configuration and routing state.
///
/// # Panics
/// If the link index of `ingress` is not below [`Tables::link_count`].
#[must_use]
pub fn decide(tables: &Tables, ingress: Ingress, packet: &PacketInfo, trace: Option<&mut Trace>) -> Verdict {
    decide_after(tables, ingress, packet, (None, None), trace).0
}

/// What is known of the flow of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct KnownFlow {
    /// Load balancers have chosen the back end with this address. A rule that does not have it chooses as for a new flow.
    pub back_end: Option<IpAddr>,
    /// The packet is a reply of a back end behind this agent, and has this address and port as source when it leaves (L5). A
    /// load balancer on its way chooses by them (R11).
    pub front_end: Option<(IpAddr, u16)>,
}

/// Does the same as [`decide`] for a packet of a flow of which something is known.
///
/// # Panics
/// As for [`decide`].
#[must_use]
pub fn decide_in_flow(
    tables: &Tables,
    ingress: Ingress,
    packet: &PacketInfo,
    known: KnownFlow,
    trace: Option<&mut Trace>,
) -> Verdict {
    let memory = |rule: &BalancingRule| Earlier {
        choice: known.back_end.and_then(|address| rule.choice_of(address)),
        front_end: known.front_end,
    };
    decide_after(tables, ingress, packet, (Some(&memory), None), trace).0
}

/// Does the same as [`decide`]. If a load balancer applies to the packet, asks `memory` what is known of the flow: it stays
/// with the back end of the earlier choice while the rule has it (L4, L7). `about`: if the packet is an ICMP error, the flow
/// about which it reports, in the direction of the error. Returns the choice too, if a load balancer has made one.
pub(crate) fn decide_after(
    tables: &Tables,
    ingress: Ingress,
    packet: &PacketInfo,
    (memory, about): (Option<Memory<'_>>, Option<&PacketInfo>),
    trace: Option<&mut Trace>,
) -> (Verdict, Option<Choice>) {
    let mut decision = Decision {
        tables,
        packet,
        flow: about.unwrap_or(packet),
        is_error: about.is_some(),
        trace,
        nic: NicIndex::FIRST,
        memory,
        choice: None,
    };
    match decision.run(ingress) {
        Ok(verdict) => (verdict, decision.choice),
        Err(reason) => (Verdict::Drop(reason), None),
    }
}

struct Decision<'a> {
    tables: &'a Tables,
    packet: &'a PacketInfo,
    /// The packet by which a load balancer chooses: an ICMP error goes the way of the flow about which it reports.
    flow: &'a PacketInfo,
    /// Whether the packet is an ICMP error, and `flow` is another packet.
    is_error: bool,
    trace: Option<&'a mut Trace>,
    /// At a VM: the NIC that the packet leaves or arrives at.
    nic: NicIndex,
    /// What is known of the packet's flow.
    memory: Option<Memory<'a>>,
    /// The choice for this packet.
    choice: Option<Choice>,
}

type Outcome = Result<Verdict, DropReason>;

impl Decision<'_> {
    fn run(&mut self, ingress: Ingress) -> Outcome {
        match (&self.tables.role, ingress) {
            (AgentRole::Vm(nics), Ingress::Tun(nic)) => {
                self.nic = nic;
                self.leave_vm(nics)
            }
            (AgentRole::Vm(nics), Ingress::Link(link)) => {
                let of_back_end = self.tables.front_ends.nic_behind(self.packet.destination);
                let arrival = || nics.arrival(&self.tables.links[link.get()], self.packet);
                self.nic = of_back_end.unwrap_or_else(arrival);
                self.enter_vm(nics, link)
            }
            (AgentRole::Gateway { addresses, .. }, Ingress::Tun(_)) => {
                self.check_own_source(addresses)?;
                self.relay_outward(ingress)
            }
            (AgentRole::Gateway { addresses, .. }, Ingress::Link(link)) => self.cross_vpn_gateway(addresses, link),
            (AgentRole::CircuitGateway { addresses }, Ingress::Tun(_)) => {
                self.check_own_source(addresses)?;
                self.relay_to_local(ingress)
            }
            (AgentRole::CircuitGateway { addresses }, Ingress::Link(link)) => {
                self.cross_circuit_gateway(addresses, link)
            }
            (AgentRole::Edge { .. }, Ingress::Tun(_)) => self.relay_from_customer(),
            (
                AgentRole::Edge {
                    addresses,
                    networks,
                    vnet_to_vnet,
                    ..
                },
                Ingress::Link(link),
            ) => self.relay_to_customer(addresses, networks, *vnet_to_vnet, link),
        }
    }

    /// Decides, at a VM, about a packet from the TUN device of a NIC. The packet comes from the host itself, from a
    /// machine without an agent in a subnet that the host serves, or from a peer if the host is an appliance and
    /// forwards it.
    fn leave_vm(&mut self, nics: &VmNics) -> Outcome {
        // L5: the replies of a back end with floating IP have the front end's address as source.
        let of_back_end = || self.tables.front_ends.place_behind(self.packet.source, self.nic);
        let subnet = match nics.owner(self.packet.source).or_else(of_back_end) {
            Some(place) if place.nic.is_none_or(|nic| nic == self.nic) => place.subnet,
            // R12: a packet whose source is no address of the NIC and of the served subnets may leave only if the NIC
            // has IP forwarding. R20: the routes of the NIC's subnet apply.
            _ => nics.forwarding_subnet(self.nic).ok_or(DropReason::SpoofedSource)?,
        };
        // P17 holds for the source too, because an appliance may not forward packets of a VNet whose peering has access
        // off.
        self.check_access(self.packet.source, self.packet.source)?;
        self.route(subnet, self.ingress())
    }

    /// The TUN device of the packet's NIC.
    const fn ingress(&self) -> Ingress {
        Ingress::Tun(self.nic)
    }

    /// Decides, at a VM, about a packet from a link.
    fn enter_vm(&mut self, nics: &VmNics, link: LinkIndex) -> Outcome {
        let peer = &self.tables.links[link.get()];
        self.check_source(peer, |a| nics.has(a))?;
        // P17 at the receiver: the packet came directly from a VM across a peering with `allowVirtualNetworkAccess`
        // off.
        if let PeerRole::Peering(space) = peer.relation
            && !self.tables.spaces[space].access()
            && self.obeys_access(self.packet.destination)
        {
            return Err(DropReason::AccessDenied);
        }
        // P17 at the receiver: the packet came through a gateway or an appliance, so only the packet's source shows the
        // VNet that it comes from.
        self.check_access(self.packet.source, self.packet.destination)?;
        // R12: a NIC without IP forwarding takes only packets for its own addresses.
        let is_own = |nic: Option<NicIndex>| nic.is_none_or(|nic| nic == self.nic);
        let own = nics
            .owner(self.packet.destination)
            .is_some_and(|place| is_own(place.nic));
        if !own && self.tables.front_ends.nic_behind(self.packet.destination).is_some() {
            return self.choose_own_back_end();
        }
        if own || nics.forwarding_subnet(self.nic).is_some() {
            return Ok(Verdict::Deliver(self.nic));
        }
        Err(DropReason::NotForwarding)
    }

    /// Decides, at a VPN gateway, about a packet from a link.
    fn cross_vpn_gateway(&mut self, addresses: &[IpAddr], link: LinkIndex) -> Outcome {
        let peer = &self.tables.links[link.get()];
        self.check_source(peer, |a| addresses.contains(&a))?;
        if addresses.contains(&self.packet.destination) {
            return Ok(Verdict::Deliver(NicIndex::FIRST));
        }
        let ingress = Ingress::Link(link);
        let outcome = match peer.relation {
            PeerRole::GatewayClient => self.relay_outward(ingress),
            PeerRole::Connection => self.relay_inward(peer.transit_scope, ingress),
            _ => Err(DropReason::TransitNotAllowed),
        }?;
        self.apply_ttl(outcome)
    }

    /// Decides, at an ExpressRoute gateway, about a packet from a link.
    fn cross_circuit_gateway(&mut self, addresses: &[IpAddr], link: LinkIndex) -> Outcome {
        let peer = &self.tables.links[link.get()];
        self.check_source(peer, |a| addresses.contains(&a))?;
        if addresses.contains(&self.packet.destination) {
            return Ok(Verdict::Deliver(NicIndex::FIRST));
        }
        // T4: VMs send packets for a circuit directly to the circuit's edges, so this gateway accepts packets from
        // edges only.
        if peer.relation != PeerRole::Edge {
            return Err(DropReason::TransitNotAllowed);
        }
        match self.relay_to_local(Ingress::Link(link))? {
            Verdict::Forward { link, .. } if self.packet.ttl > 1 => Ok(Verdict::Forward {
                link,
                decrement_ttl: true,
            }),
            // T4: an ExpressRoute gateway decrements the TTL and sends no ICMP error.
            Verdict::Forward { .. } => Err(DropReason::TtlExceededSilent),
            other => Ok(other),
        }
    }

    /// Decides, at an edge, about a packet from a VM of a linked VNet, i.e. a VNet that is connected to the circuit.
    /// The packet is for the customer or for another linked VNet.
    fn relay_to_customer(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        networks: &Lpm<Option<LinkIndex>>,
        vnet_to_vnet: bool,
        link: LinkIndex,
    ) -> Outcome {
        let peer = &self.tables.links[link.get()];
        self.check_source(peer, |_| false)?;
        if peer.relation != PeerRole::CircuitClient {
            return Err(DropReason::TransitNotAllowed);
        }
        let destination = self.packet.destination;
        let network = networks.get(destination).filter(|_| !addresses.contains(&destination));
        match network {
            // E6: the edge itself forwards the packet to the other VNet. If it delivered the packet to its kernel, the
            // kernel would send the packet back, and the edge would take it for a packet from the customer's line.
            Some(gateway) if vnet_to_vnet && self.packet.ttl > 1 => {
                let gateway = gateway.ok_or(DropReason::NoGateway)?;
                self.use_link(gateway, Ingress::Link(link))?;
                Ok(Verdict::Forward {
                    link: gateway,
                    decrement_ttl: true,
                })
            }
            // D23: the kernel routes packets to the customer, so the kernel decrements the TTL and sends the ICMP
            // errors. It also answers a packet whose TTL expires here.
            _ => Ok(Verdict::Deliver(NicIndex::FIRST)),
        }
    }

    /// A gateway's host may send packets only from the gateway's own addresses.
    fn check_own_source(&self, addresses: &[IpAddr]) -> Result<(), DropReason> {
        match addresses.contains(&self.packet.source) {
            true => Ok(()),
            false => Err(DropReason::SpoofedSource),
        }
    }

    /// D10: the source must be one that the link may use. `own_address` tells whether an address belongs to the
    /// receiver.
    fn check_source(&self, link: &LinkPolicy, own_address: impl Fn(IpAddr) -> bool) -> Result<(), DropReason> {
        let source = self.packet.source;
        let allowed = link.sources.contains(source)
            || match link.foreign {
                ForeignSources::None => false,
                // P18: the receiver's half of the peering has `allowForwardedTraffic`. It permits every source outside
                // of the receiver's own address space.
                ForeignSources::OutsideOwnSpace => self.tables.own_space.get(source).is_none(),
                ForeignSources::Any => !own_address(source),
            };
        if allowed {
            Ok(())
        } else {
            Err(DropReason::SpoofedSource)
        }
    }

    /// P17: an address of a VNet whose peering has access off is unreachable on every path. `own` is the address of the
    /// packet that belongs to this host.
    fn check_access(&self, address: IpAddr, own: IpAddr) -> Result<(), DropReason> {
        match self.tables.denied.get(address) {
            Some(()) if self.obeys_access(own) => Err(DropReason::AccessDenied),
            Some(()) | None => Ok(()),
        }
    }

    /// Whether `allowVirtualNetworkAccess` off drops the packet at its NIC, or in the served subnet of `own`. With a
    /// security group there, the rules may decide instead (D28).
    fn obeys_access(&self, own: IpAddr) -> bool {
        let security = self.tables.security.as_ref();
        !security.is_some_and(|nics| nics.rules_decide_without_access(own, self.nic))
    }

    /// Forwards by the effective routes of a VM's subnet (R7, R20).
    fn route(&mut self, subnet: usize, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let table = &tables.subnets[subnet];
        let found = table.routes.get(self.packet.destination);
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.subnet = Some(table.id.clone());
            trace.route = found.map(|r| table.all[r.position].clone());
        }
        match found.ok_or(DropReason::NoRoute)?.hop {
            Hop::Space(space) => match self.reach_owner(space, self.packet.destination, ingress) {
                Ok(Verdict::Forward { link, .. }) if tables.links[link.get()].down => {
                    self.use_standby(table, link, ingress)
                }
                other => other,
            },
            Hop::PeeringNotDelivered => Err(DropReason::TransitNotAllowed),
            Hop::Gateway(group) => {
                self.check_access(self.packet.destination, self.packet.source)?;
                self.use_group(group, ingress)
            }
            Hop::Appliance(space, address) => {
                self.check_access(self.packet.destination, self.packet.source)?;
                // R11: packets to an appliance that is neither in the own VNet nor in a directly peered one are
                // dropped.
                self.reach_owner(space.ok_or(DropReason::ApplianceUnreachable)?, address, ingress)
            }
            Hop::Internet => Err(DropReason::RouteInternet),
            // R13: the next hop `None` drops packets, without an ICMP error.
            Hop::None => Err(DropReason::RouteNone),
        }
    }

    /// D8, second stage: forwards to the agent that owns `address` within a space.
    fn reach_owner(&mut self, position: usize, address: IpAddr, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let space: &AddressSpace = &tables.spaces[position];
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.vnet = Some(space.vnet.clone());
        }
        // P17 at the sender: a peering with access off is closed in both directions.
        if !space.access() && self.obeys_access(self.packet.source) {
            return Err(DropReason::AccessDenied);
        }
        if tables.front_ends.contains(position, address) {
            return self.choose_back_end(position, address, ingress);
        }
        match space.owners.get(address).ok_or(DropReason::NoOwner)? {
            Owner::Own => match ingress {
                Ingress::Tun(_) => Err(DropReason::Hairpin),
                Ingress::Link(_) => Ok(Verdict::Deliver(NicIndex::FIRST)),
            },
            Owner::Link(link) => self.use_link(*link, ingress),
            Owner::NoLink => Err(DropReason::NoLink),
        }
    }

    /// D35: chooses a back end of the front end `address`, and forwards to the agent that owns the back end. `address`
    /// is the packet's destination, or the virtual appliance of its route (R11).
    fn choose_back_end(&mut self, space: usize, address: IpAddr, ingress: Ingress) -> Outcome {
        let rule = self.tables.front_ends.rule_for(space, address, self.flow)?;
        let member = self.member_of(rule, address == self.packet.destination, Among::All)?;
        // L11: a back end does not reach itself through its own front end.
        if member.address == self.packet.source {
            return Err(DropReason::BackEndItself);
        }
        match member.owner {
            // Without translation, the packet would only come back from the kernel (R11).
            Owner::Own if address != self.packet.destination => Err(DropReason::Hairpin),
            Owner::Own => member.own.map(Verdict::Translate).ok_or(DropReason::Hairpin),
            Owner::Link(link) => self.use_link(link, ingress),
            Owner::NoLink => Err(DropReason::NoLink),
        }
    }

    /// Chooses a back end of this agent for a packet from a link. The packet's destination is a front end, and its
    /// sender has chosen this agent.
    fn choose_own_back_end(&mut self) -> Outcome {
        let rule = self.tables.front_ends.own_rule_for(self.flow)?;
        let member = self.member_of(rule, true, Among::Own)?;
        member.own.map(Verdict::Translate).ok_or(DropReason::NoBackEnd)
    }

    /// The back end of a rule for the packet: the one of the earlier choice, or else the one that the packet's hash
    /// selects (L4). `is_to_front_end`: whether the packet's destination is the front end. Otherwise its route names the
    /// front end (R11).
    fn member_of<'r>(
        &mut self,
        rule: &'r BalancingRule,
        is_to_front_end: bool,
        among: Among,
    ) -> Result<&'r Member, DropReason> {
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.balancing_rule = Some(rule.id.clone());
        }
        let known = self.memory.map(|memory| memory(rule)).unwrap_or_default();
        // D36: the sender of the packet gets a reset.
        if known.choice.is_some_and(|choice| rule.has_lost(choice, self.flow)) {
            return Err(DropReason::BackEndGone);
        }
        let earlier = known.choice.and_then(|choice| rule.member(choice, self.flow));
        // L5: the agents of NICs know their flows. An error about an unknown flow to a front end is no answer to anything.
        if self.is_error && is_to_front_end && earlier.is_none() && !self.tables.chooses_for_others() {
            return Err(DropReason::BalancerProtocol);
        }
        let member = earlier
            .filter(|member| among == Among::All || member.own.is_some())
            .or_else(|| rule.choose(&known.translated(self.flow), among))
            .ok_or(DropReason::NoBackEnd)?;
        self.choice = Some(member.choice);
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.back_end = Some(member.address);
        }
        Ok(member)
    }

    /// Called if the direct link to the destination's owner is down. Uses a gateway route that contains the destination
    /// instead, if there is one and one of its links is up. Such a gateway route is otherwise not used, because the
    /// VNet's own route or a peering route is preferred (R7; P25 for peerings).
    fn use_standby(&mut self, table: &SubnetRoutes, direct: LinkIndex, ingress: Ingress) -> Outcome {
        let found = table.standby.get(self.packet.destination);
        let group = match found.map(|r| r.hop) {
            Some(Hop::Gateway(Some(group))) => Some(group),
            _ => None,
        };
        // If the links with all of these gateways are down too, the packet stays on the direct link, because no other
        // path is better.
        let answers = |group: &LinkGroup| group.links().iter().any(|l| !self.tables.links[l.get()].down);
        let Some(group) = group.filter(answers) else {
            return self.use_link(direct, ingress);
        };
        if let (Some(trace), Some(found)) = (self.trace.as_deref_mut(), found) {
            trace.route = Some(table.all[found.position].clone());
            trace.vnet = None;
        }
        self.use_group(Some(group), ingress)
    }

    fn use_group(&mut self, group: Option<LinkGroup>, ingress: Ingress) -> Outcome {
        let group = group.ok_or(DropReason::NoGateway)?;
        self.use_link(group.pick(self.packet), ingress)
    }

    /// Decides, at an edge, about a packet from the kernel of its host. The packet came from the customer's line, or
    /// the host itself sent it. The edge forwards it to a linked VNet through the gateway of this VNet.
    fn relay_from_customer(&mut self) -> Outcome {
        let AgentRole::Edge {
            addresses,
            networks,
            customer,
            vnet_to_vnet,
        } = &self.tables.role
        else {
            return Err(DropReason::TransitNotAllowed);
        };
        let source = self.packet.source;
        if networks.get(source).is_some() && !addresses.contains(&source) {
            // E6: the source lies in a linked VNet. If linked VNets may not reach each other, the packet is from one of
            // them to another: the edge delivered it to the kernel, and the kernel sent it back. If they may, the edge
            // forwards such packets itself, so this one comes from the customer, who may not use this source.
            return Err(match vnet_to_vnet {
                true => DropReason::SpoofedSource,
                false => DropReason::TransitNotAllowed,
            });
        } else if !addresses.contains(&source) && customer.get(source).is_none() {
            // T3, T7: the customer may use only sources within prefixes that it announced. It does not announce the
            // addresses of its routers on the lines of the circuit, so ICMP errors from these addresses are dropped,
            // and the routers do not appear in a traceroute over the circuit.
            return Err(DropReason::SpoofedSource);
        }
        let link = networks.get(self.packet.destination).ok_or(DropReason::NoRoute)?;
        self.use_link(link.ok_or(DropReason::NoGateway)?, self.ingress())
    }

    fn use_link(&mut self, link: LinkIndex, ingress: Ingress) -> Outcome {
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.next = Some(self.tables.peer(link).clone());
        }
        if ingress == Ingress::Link(link) {
            return Err(DropReason::Hairpin);
        }
        Ok(Verdict::Forward {
            link,
            decrement_ttl: false,
        })
    }

    /// Decides, at a VPN gateway, about a packet from its VNet or from a spoke that uses the gateway. The gateway first
    /// looks for a route over a connection. It uses this route even if the VNet itself would use a peering (D9).
    /// Without such a route, it forwards the packet by the routes of `GatewaySubnet` (R16, R20) into its VNet or a
    /// spoke that uses the gateway (P21d).
    fn relay_outward(&mut self, ingress: Ingress) -> Outcome {
        let AgentRole::Gateway { transit, .. } = &self.tables.role else {
            return Err(DropReason::TransitNotAllowed);
        };
        if let Some(Some(found)) = transit.get(self.packet.destination) {
            if let Some(trace) = self.trace.as_deref_mut() {
                trace.connection = Some(found.connection.clone());
            }
            return self.use_link(found.link.ok_or(DropReason::NoGateway)?, ingress);
        }
        self.relay_to_local(ingress)
    }

    /// Decides, at a VPN gateway, about a packet from a connection. The packet may go to the gateway's VNet and the
    /// spokes that use the gateway (D9), or to another connection. Forwarding to another connection requires that both
    /// connections exchange routes (G19), or that one exchanges routes and the other leads to a site without BGP (G18).
    /// Only routes of VPN connections are used for this (G21).
    fn relay_inward(&mut self, may: TransitScope, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let AgentRole::Gateway {
            local_prefixes,
            transit,
            bgp_transit,
            ..
        } = &tables.role
        else {
            return Err(DropReason::TransitNotAllowed);
        };
        let destination = self.packet.destination;
        if local_prefixes.get(destination).is_none()
            && let Some(Some(found)) = bgp_transit.get(destination).or_else(|| transit.get(destination))
        {
            if let Some(trace) = self.trace.as_deref_mut() {
                trace.connection = Some(found.connection.clone());
            }
            let allowed = match may {
                TransitScope::AllConnections => true,
                TransitScope::BgpConnections => found.exchange,
                TransitScope::None => false,
            };
            if !allowed || bgp_transit.get(destination).is_none() {
                return Err(DropReason::TransitNotAllowed);
            }
            return self.use_link(found.link.ok_or(DropReason::NoGateway)?, ingress);
        }
        self.relay_to_local(ingress)
    }

    /// Forwards by the routes of `GatewaySubnet`, into the gateway's VNet or a spoke that uses the gateway.
    fn relay_to_local(&mut self, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let Some(table) = tables.subnets.first() else {
            return Err(DropReason::NoRoute);
        };
        let found = table.routes.get(self.packet.destination);
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.subnet = Some(table.id.clone());
            trace.route = found.map(|r| table.all[r.position].clone());
        }
        match found.ok_or(DropReason::NoRoute)?.hop {
            Hop::Space(space) => self.reach_owner(space, self.packet.destination, ingress),
            // D9: the gateway delivers into a peered VNet only if that VNet uses this gateway.
            Hop::PeeringNotDelivered => {
                let client = tables.spaces.iter().position(|s| {
                    matches!(s.kind, SpaceKind::GatewayClient {}) && s.prefixes.get(self.packet.destination).is_some()
                });
                self.reach_owner(
                    client.ok_or(DropReason::TransitNotAllowed)?,
                    self.packet.destination,
                    ingress,
                )
            }
            Hop::Appliance(space, address) => {
                self.reach_owner(space.ok_or(DropReason::ApplianceUnreachable)?, address, ingress)
            }
            Hop::Gateway(_) => Err(DropReason::TransitNotAllowed),
            Hop::Internet => Err(DropReason::RouteInternet),
            Hop::None => Err(DropReason::RouteNone),
        }
    }

    /// T5, D23: a VPN gateway decrements the TTL. If the TTL expires, a packet from the gateway's local prefixes is
    /// answered with an ICMP error, and any other packet is dropped silently.
    fn apply_ttl(&self, verdict: Verdict) -> Outcome {
        let AgentRole::Gateway {
            local_prefixes, sites, ..
        } = &self.tables.role
        else {
            return Ok(verdict);
        };
        match verdict {
            // T6: with the operator's setting `SiteTtl::Transparent`, packets from a site keep their TTL. Without it,
            // `sites` is empty.
            Verdict::Forward { .. } if sites.get(self.packet.source).is_some() => Ok(verdict),
            Verdict::Forward { link, .. } if self.packet.ttl > 1 => Ok(Verdict::Forward {
                link,
                decrement_ttl: true,
            }),
            Verdict::Forward { .. } if local_prefixes.get(self.packet.source).is_some() => Ok(Verdict::TimeExceeded),
            Verdict::Forward { .. } => Err(DropReason::TtlExceededSilent),
            Verdict::Deliver(_) | Verdict::Translate(_) | Verdict::TimeExceeded | Verdict::Drop(_) => Ok(verdict),
        }
    }
}
