//! The packet decisions: one pure function over the tables.
//!
//! Each rule stands at one place, marked with its number.

use crate::packet::PacketInfo;
use crate::tables::{
    Group, Hop, LinkIndex, LinkTable, Onward, OwnerTable, RelationTable, RoleTable, SpaceTable, SubnetTable, Tables,
};
use crate::verdict::{DropReason, Verdict};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tombolo_proto::config::{ForeignSources, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;

/// Where a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// From this host: read from the TUN device.
    Tun,
    /// Opened from a link.
    Link(LinkIndex),
}

/// What a decision was made from, recorded on request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The subnet whose routes were used.
    pub subnet: Option<ResourceId>,
    /// The route that won.
    pub route: Option<EffectiveRoute>,
    /// The connection whose prefix covers the destination, at a gateway.
    pub connection: Option<ResourceId>,
    /// The VNet in which the next agent was looked up.
    pub vnet: Option<ResourceId>,
    /// The next agent.
    pub next: Option<AgentId>,
}

/// Decides what happens to a packet. The same code forwards packets and answers "why can't A reach B?".
#[must_use]
pub fn decide(tables: &Tables, ingress: Ingress, packet: &PacketInfo, trace: Option<&mut Trace>) -> Verdict {
    let mut decision = Decision { tables, packet, trace };
    match decision.run(ingress) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

struct Decision<'a> {
    tables: &'a Tables,
    packet: &'a PacketInfo,
    trace: Option<&'a mut Trace>,
}

type Outcome = Result<Verdict, DropReason>;

impl Decision<'_> {
    fn run(&mut self, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        match (&tables.role, ingress) {
            (RoleTable::Vm { own, forwarding, .. }, Ingress::Tun) => {
                // R12: a foreign source needs a NIC that forwards.
                let subnet = own.get(self.packet.source).copied().or(*forwarding);
                let subnet = subnet.ok_or(DropReason::SpoofedSource)?;
                // P17: an appliance does not forward for them either.
                self.check_access(self.packet.source)?;
                self.route(subnet, ingress)
            }
            (
                RoleTable::Vm {
                    own,
                    forwarding,
                    addresses,
                },
                Ingress::Link(link),
            ) => {
                let table = &tables.links[link.get()];
                let own_source = |a: IpAddr| addresses.contains(&a);
                self.check_source(table, own_source)?;
                // P17, the receiving side.
                if let RelationTable::Peering(space) = table.relation
                    && !tables.spaces[space].access()
                {
                    return Err(DropReason::AccessDenied);
                }
                // P17, for packets that come by way of a gateway or an appliance.
                self.check_access(self.packet.source)?;
                if own.get(self.packet.destination).is_some() || forwarding.is_some() {
                    return Ok(Verdict::Deliver);
                }
                Err(DropReason::NotForwarding)
            }
            (RoleTable::Gateway { addresses, .. }, Ingress::Tun) => {
                if !addresses.contains(&self.packet.source) {
                    return Err(DropReason::SpoofedSource);
                }
                self.relay_outward(ingress)
            }
            (RoleTable::Gateway { addresses, .. }, Ingress::Link(link)) => {
                let table = &tables.links[link.get()];
                self.check_source(table, |a| addresses.contains(&a))?;
                if addresses.contains(&self.packet.destination) {
                    return Ok(Verdict::Deliver);
                }
                let outcome = match table.relation {
                    RelationTable::GatewayClient => self.relay_outward(ingress),
                    RelationTable::Connection => self.relay_inward(table.onward, ingress),
                    _ => Err(DropReason::TransitNotAllowed),
                }?;
                self.with_ttl(outcome)
            }
            (RoleTable::CircuitGateway { addresses }, Ingress::Tun) => {
                if !addresses.contains(&self.packet.source) {
                    return Err(DropReason::SpoofedSource);
                }
                self.enter_own_side(ingress)
            }
            (RoleTable::CircuitGateway { addresses }, Ingress::Link(link)) => {
                let table = &tables.links[link.get()];
                self.check_source(table, |a| addresses.contains(&a))?;
                if addresses.contains(&self.packet.destination) {
                    return Ok(Verdict::Deliver);
                }
                // T4: VMs send to the edges themselves.
                if table.relation != RelationTable::Edge {
                    return Err(DropReason::TransitNotAllowed);
                }
                match self.enter_own_side(ingress)? {
                    Verdict::Forward { link, .. } if self.packet.ttl > 1 => {
                        Ok(Verdict::Forward { link, take_ttl: true })
                    }
                    // T4: it takes one and is silent.
                    Verdict::Forward { .. } => Err(DropReason::TtlExceededSilent),
                    other => Ok(other),
                }
            }
            (RoleTable::Edge { .. }, Ingress::Tun) => self.leave_edge(),
            (
                RoleTable::Edge {
                    addresses,
                    networks,
                    vnet_to_vnet,
                    ..
                },
                Ingress::Link(link),
            ) => {
                let table = &tables.links[link.get()];
                self.check_source(table, |_| false)?;
                if table.relation != RelationTable::CircuitClient {
                    return Err(DropReason::TransitNotAllowed);
                }
                let destination = self.packet.destination;
                let network = networks.get(destination).filter(|_| !addresses.contains(&destination));
                match network {
                    // E6: on to another VNet at once. By way of the kernel it would look like a packet from the line.
                    Some(gateway) if *vnet_to_vnet && self.packet.ttl > 1 => {
                        let link = gateway.ok_or(DropReason::NoGateway)?;
                        self.use_link(link, ingress)?;
                        Ok(Verdict::Forward { link, take_ttl: true })
                    }
                    // D23: for the customer the kernel is the router, and takes the TTL; it also says that one is used up.
                    _ => Ok(Verdict::Deliver),
                }
            }
        }
    }

    /// D10: a packet from a link must come from what that link may speak for.
    fn check_source(&self, link: &LinkTable, own_address: impl Fn(IpAddr) -> bool) -> Result<(), DropReason> {
        let source = self.packet.source;
        let allowed = link.sources.contains(source)
            || match link.foreign {
                ForeignSources::None => false,
                // P18, the receiver's flag; never a source inside the receiver's own space.
                ForeignSources::OutsideOwnSpace => self.tables.own_space.get(source).is_none(),
                ForeignSources::Any => !own_address(source),
            };
        if allowed {
            Ok(())
        } else {
            Err(DropReason::SpoofedSource)
        }
    }

    /// P17: an address that left the `VirtualNetwork` tag is not spoken with, whatever path the packet takes.
    fn check_access(&self, address: IpAddr) -> Result<(), DropReason> {
        match self.tables.denied.get(address) {
            Some(()) => Err(DropReason::AccessDenied),
            None => Ok(()),
        }
    }

    /// Through the effective routes of a subnet of a VM (R7, R20).
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
                    self.stand_in(table, link, ingress)
                }
                other => other,
            },
            Hop::NoSpace => Err(DropReason::TransitNotAllowed),
            Hop::Gateway(group) => {
                self.check_access(self.packet.destination)?;
                self.use_group(group, ingress)
            }
            Hop::Appliance(space, address) => {
                self.check_access(self.packet.destination)?;
                // R11: own VNet or directly peered, otherwise a black hole.
                self.reach_owner(space.ok_or(DropReason::ApplianceUnreachable)?, address, ingress)
            }
            Hop::Internet => Err(DropReason::RouteInternet),
            // R13
            Hop::None => Err(DropReason::RouteNone),
        }
    }

    /// D8, second stage: address → agent.
    fn reach_owner(&mut self, space: usize, address: IpAddr, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let space: &SpaceTable = &tables.spaces[space];
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.vnet = Some(space.vnet.clone());
        }
        // P17, the sending side.
        if !space.access() {
            return Err(DropReason::AccessDenied);
        }
        match space.owners.get(address).ok_or(DropReason::NoOwner)? {
            OwnerTable::Own => match ingress {
                Ingress::Tun => Err(DropReason::Hairpin),
                Ingress::Link(_) => Ok(Verdict::Deliver),
            },
            OwnerTable::Link(link) => self.use_link(*link, ingress),
            OwnerTable::NoLink => Err(DropReason::NoLink),
        }
    }

    /// The owner's link does not answer: by the gateways, where these lead to the same prefix (P25 the other way round).
    fn stand_in(&mut self, table: &SubnetTable, direct: LinkIndex, ingress: Ingress) -> Outcome {
        let found = table.standby.get(self.packet.destination);
        let group = match found.map(|r| r.hop) {
            Some(Hop::Gateway(Some(group))) => Some(group),
            _ => None,
        };
        let answers = |group: &Group| group.links().iter().any(|l| !self.tables.links[l.get()].down);
        let Some(group) = group.filter(answers) else {
            return self.use_link(direct, ingress);
        };
        if let (Some(trace), Some(found)) = (self.trace.as_deref_mut(), found) {
            trace.route = Some(table.all[found.position].clone());
            trace.vnet = None;
        }
        self.use_group(Some(group), ingress)
    }

    fn use_group(&mut self, group: Option<Group>, ingress: Ingress) -> Outcome {
        let group = group.ok_or(DropReason::NoGateway)?;
        self.use_link(group.pick(self.packet), ingress)
    }

    /// At an edge, from its kernel, which is from the line to the customer, or the edge's own: into a linked VNet, through
    /// the VNet's gateway.
    fn leave_edge(&mut self) -> Outcome {
        let RoleTable::Edge {
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
            // E6: while VNets do not reach each other, their packets get here as well. Otherwise they do not,
            // and the customer speaks for none of them.
            return Err(match vnet_to_vnet {
                true => DropReason::SpoofedSource,
                false => DropReason::TransitNotAllowed,
            });
        } else if !addresses.contains(&source) && customer.get(source).is_none() {
            // T3, T7: what the customer did not announce is not spoken for, its routers' links among it.
            return Err(DropReason::SpoofedSource);
        }
        let link = networks.get(self.packet.destination).ok_or(DropReason::NoRoute)?;
        self.use_link(link.ok_or(DropReason::NoGateway)?, Ingress::Tun)
    }

    fn use_link(&mut self, link: LinkIndex, ingress: Ingress) -> Outcome {
        if let Some(trace) = self.trace.as_deref_mut() {
            trace.next = Some(self.tables.peer(link).clone());
        }
        if ingress == Ingress::Link(link) {
            return Err(DropReason::Hairpin);
        }
        Ok(Verdict::Forward { link, take_ttl: false })
    }

    /// At a gateway, from its VNet or a client: what lies behind its connections, also where the own VNet prefers a
    /// peering for it (D9); then its own VNet and its clients (P21d), by `GatewaySubnet`'s routes (R16, R20).
    fn relay_outward(&mut self, ingress: Ingress) -> Outcome {
        let RoleTable::Gateway { transit, .. } = &self.tables.role else {
            return Err(DropReason::TransitNotAllowed);
        };
        if let Some(Some(found)) = transit.get(self.packet.destination) {
            if let Some(trace) = self.trace.as_deref_mut() {
                trace.connection = Some(found.connection.clone());
            }
            return self.use_link(found.link.ok_or(DropReason::NoGateway)?, ingress);
        }
        self.enter_own_side(ingress)
    }

    /// At a gateway, from a connection: into its own VNet and its clients (D9); or on to another connection, where routes
    /// are exchanged over both (G19), or over one of them and the other leads to a site without BGP (G18), by VPN routes
    /// alone (G21).
    fn relay_inward(&mut self, may: Onward, ingress: Ingress) -> Outcome {
        let tables = self.tables;
        let RoleTable::Gateway {
            own_side,
            transit,
            onward,
            ..
        } = &tables.role
        else {
            return Err(DropReason::TransitNotAllowed);
        };
        let destination = self.packet.destination;
        if own_side.get(destination).is_none()
            && let Some(Some(found)) = onward.get(destination).or_else(|| transit.get(destination))
        {
            if let Some(trace) = self.trace.as_deref_mut() {
                trace.connection = Some(found.connection.clone());
            }
            let allowed = match may {
                Onward::All => true,
                Onward::Exchanging => found.exchange,
                Onward::None => false,
            };
            if !allowed || onward.get(destination).is_none() {
                return Err(DropReason::TransitNotAllowed);
            }
            return self.use_link(found.link.ok_or(DropReason::NoGateway)?, ingress);
        }
        self.enter_own_side(ingress)
    }

    /// By `GatewaySubnet`'s routes, into the own VNet or a client.
    fn enter_own_side(&mut self, ingress: Ingress) -> Outcome {
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
            // D9: a peering of the own VNet, entered only where its other side uses this gateway.
            Hop::NoSpace => {
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

    /// T5, D23: a gateway takes one TTL; it answers its own side and keeps silent beyond.
    fn with_ttl(&self, verdict: Verdict) -> Outcome {
        let RoleTable::Gateway { own_side, sites, .. } = &self.tables.role else {
            return Ok(verdict);
        };
        match verdict {
            // T6
            Verdict::Forward { .. } if sites.get(self.packet.source).is_some() => Ok(verdict),
            Verdict::Forward { link, .. } if self.packet.ttl > 1 => Ok(Verdict::Forward { link, take_ttl: true }),
            Verdict::Forward { .. } if own_side.get(self.packet.source).is_some() => Ok(Verdict::TimeExceeded),
            Verdict::Forward { .. } => Err(DropReason::TtlExceededSilent),
            Verdict::Deliver | Verdict::TimeExceeded | Verdict::Drop(_) => Ok(verdict),
        }
    }
}
