//! Follows a packet from agent to agent, and gives the reason of a loss.

use super::routes::Hop;
use super::security::{Flows, HOST_ADDRESS, Judgement};
use super::{Agent, Fate, Model, Nic, State, Why, within};
use crate::operation::{GATEWAY_SUBNET, Origin, Packet, site_device};
use ipnet::IpNet;
use std::net::IpAddr;

/// The initial TTL of packets; small, so that a loop soon ends. Forwarding kernels and gateways decrement it.
pub const TTL: u8 = 16;

/// What an agent decides to do with a packet.
pub(super) enum Step {
    /// The agent delivers the packet to its kernel.
    Deliver,
    /// The agent sends the packet over its link with this agent.
    Send(String),
    /// The agent drops the packet, for any of these reasons.
    Lose(Vec<Why>),
    /// The specification does not decide.
    Unspecified(&'static str),
}

fn lose(why: Why) -> Step {
    Step::Lose(vec![why])
}

/// A packet that agent `to` receives over its link with agent `from`.
struct LinkPacket<'a> {
    from: &'a Agent,
    to: &'a Agent,
    /// The NIC at which it arrives; None at a gateway.
    nic: Option<&'a Nic>,
    packet: &'a Packet,
}

impl Model {
    /// Follows a packet until it is delivered or lost, or until the specification does not decide. `flows` has the flows
    /// that NICs with security groups know; the flow of the packet is added to it.
    pub fn fate(&self, packet: &Packet, flows: &mut Flows) -> Fate {
        flows.decided.clear();
        flows.options.clear();
        flows.fresh.clear();
        (flows.choice, flows.arrived, flows.is_balanced) = (None, None, false);
        let mut packet = packet.clone();
        let mut path: Vec<String> = Vec::new();
        let mut ttl = TTL;
        // The agent that has the packet, and the agent that sent it over a link.
        let (mut at, mut from) = match &packet.origin {
            Origin::Kernel { agent } => (agent.clone(), None),
            Origin::Link { from, to } => (to.clone(), Some(from.clone())),
        };
        loop {
            path.push(at.clone());
            // The choice with which the packet was sent to this agent.
            let sent = flows.choice.take();
            if at.ends_with("-site") {
                flows.arrived = Some(packet);
                return Fate::Delivered { path };
            }
            let Some(agent) = self.agent(&at) else {
                return Fate::Unspecified("the agent has not joined");
            };
            let site = from.as_deref().is_some_and(|f| f.ends_with("-site"));
            let sender = from.as_deref().map(|f| self.agent(f));
            let mut nic = match sender {
                _ if agent.gateway || site => None,
                None => self.sending_nic(agent, &packet),
                Some(sender) => sender.and_then(|sender| self.arrival_nic(agent, sender, &packet)),
            };
            let is_stray = path.len() == 1;
            let mut is_translated = false;
            let step = match sender {
                _ if site => self.relay_from_site(agent, &packet, flows),
                None => self.send_from_kernel(agent, nic, &packet, flows),
                Some(None) => return Fate::Unspecified("the far end has not joined"),
                Some(Some(far)) => {
                    let arrival = LinkPacket {
                        from: far,
                        to: agent,
                        nic,
                        packet: &packet,
                    };
                    let refused = self.admit(&arrival);
                    match self.admit_by_tag(&arrival, refused) {
                        Some(step) => step,
                        None if agent.gateway => self.relay(&arrival, flows),
                        None => match self.translate(agent, sent, is_stray, &mut packet, flows) {
                            Err(step) => step,
                            Ok(None) => self.receive(agent, nic, &packet),
                            Ok(Some(back_end)) => {
                                is_translated = true;
                                let nics = self.nics_of(agent);
                                let own = nics.iter().find(|n| n.addresses.contains(&back_end));
                                nic = own.or(nics.first()).copied();
                                Step::Deliver
                            }
                        },
                    }
                }
            };
            let step = self.guard(agent, nic.filter(|_| !site), from.is_none(), &mut packet, step, flows);
            match step {
                Step::Lose(why) => return Fate::Lost { path, why },
                Step::Unspecified(what) => return Fate::Unspecified(what),
                Step::Deliver => {
                    let own = self.addresses_of(agent).contains(&packet.destination);
                    if own || is_translated || self.serves(agent, packet.destination) {
                        flows.arrived = Some(packet);
                        return Fate::Delivered { path };
                    }
                    // R12, D10: the packet is for another host, so the machine's kernel forwards it, and the agent
                    // reads it again from the TUN device.
                    from = None;
                }
                Step::Send(next) => {
                    let gateway = agent.gateway;
                    from = Some(at);
                    at = next;
                    if !gateway {
                        continue;
                    }
                }
            }
            // A gateway and a forwarding kernel decrement the TTL (T1, T5, D23).
            if ttl <= 1 {
                let why = vec![Why::Loop];
                return Fate::Lost { path, why };
            }
            ttl -= 1;
        }
    }

    /// D25: applies security groups to a packet that would pass `nic` with this step. A forwarded packet passes NICs of
    /// the appliance in both directions. Gateways have no groups (N13).
    fn guard(
        &self,
        agent: &Agent,
        nic: Option<&Nic>,
        from_kernel: bool,
        packet: &mut Packet,
        step: Step,
        flows: &mut Flows,
    ) -> Step {
        let choice = flows.choice.clone();
        let (address, inbound) = match (&step, from_kernel) {
            (Step::Send(_), true) => (packet.source, false),
            (Step::Deliver, false) => (packet.destination, true),
            _ => return step,
        };
        if agent.gateway {
            return step;
        }
        let judgement = self.judge(agent, (address, nic), inbound, packet, flows);
        // The next agent gets the packet with this choice.
        flows.choice = choice.filter(|_| matches!(step, Step::Send(_)));
        match judgement {
            Judgement::Pass => step,
            Judgement::PassFrom((front, port)) => {
                (packet.source, packet.ports.0) = (front, port);
                step
            }
            Judgement::Deny => lose(Why::Security),
            Judgement::Unspecified(what) => Step::Unspecified(what),
        }
    }

    /// Whether a packet that the kernel of a VM sends by this NIC has a next agent. None: the specification does not
    /// decide.
    pub(super) fn has_next_agent(&self, agent: &Agent, nic: Option<&Nic>, packet: &Packet) -> Option<bool> {
        let mut leaves = Vec::new();
        let mut count = 1;
        while leaves.len() < count {
            let mut flows = Flows::default();
            flows.way.push(leaves.len());
            leaves.push(match self.send_from_kernel(agent, nic, packet, &mut flows) {
                Step::Send(_) => Some(true),
                Step::Deliver | Step::Lose(_) => Some(false),
                Step::Unspecified(_) => None,
            });
            count = flows.options.first().copied().unwrap_or(1);
        }
        // A load balancer may choose any of its back ends.
        let first = leaves[0];
        first.filter(|_| leaves.iter().all(|l| *l == first))
    }

    /// The next step of a packet that the kernel of a VM or gateway sends into the TUN device.
    fn send_from_kernel(&self, agent: &Agent, nic: Option<&Nic>, packet: &Packet, flows: &mut Flows) -> Step {
        if agent.gateway {
            return Step::Unspecified("a packet of a gateway's own kernel");
        }
        if packet.destination == HOST_ADDRESS && self.is_back_end(agent, packet.source) {
            return Step::Unspecified("a back end's reply to a probe");
        }
        let subnet = match nic {
            Some(nic) if nic.addresses.contains(&packet.source) => nic.subnet.clone(),
            _ if within(&self.served_by(agent), packet.source) => {
                return Step::Unspecified("the routes of a machine behind a host");
            }
            // L5: a back end may use the address of its front end.
            Some(nic) if self.has_back_end_of(agent, packet.source) => {
                if self.nics_of(agent).len() > 1 {
                    return Step::Unspecified("the NIC for the address of a front end");
                }
                nic.subnet.clone()
            }
            // R12, R20: the packet is forwarded by a NIC that may forward, with the routes of this NIC's subnet.
            Some(nic) if nic.forwarding => nic.subnet.clone(),
            _ => return lose(Why::Spoofed),
        };
        let denied = self.denied_ranges(agent, (packet.source, nic));
        if within(&denied, packet.source) {
            return lose(Why::AccessOff);
        }
        match self.forward(agent, &subnet, nic, packet, flows) {
            Step::Send(_) if within(&denied, packet.destination) => lose(Why::AccessOff),
            Step::Lose(mut why) if within(&denied, packet.destination) => {
                why.push(Why::AccessOff);
                Step::Lose(why)
            }
            step => step,
        }
    }

    /// P17: the ranges of peers whose access is off. Azure removes them from the VNet's `VirtualNetwork` tag, so the VNet's
    /// machines exchange no packets with them on any path. There are none at a NIC where rules decide instead (D28).
    /// `place`: the NIC that a packet passes, and the address by which the packet belongs to this end.
    fn denied_ranges(&self, agent: &Agent, place: (IpAddr, Option<&Nic>)) -> Vec<IpNet> {
        if self.rules_replace_access(agent, place) {
            return Vec::new();
        }
        let halves = self.vnet(&agent.vnet).into_iter().flat_map(|v| &v.peerings);
        let off = halves.filter(|p| p.state == State::Connected && !p.flags.access);
        off.flat_map(|p| p.remote_space.clone()).collect()
    }

    /// P17 at a receiving machine: packets with a source in [`Self::denied_ranges`] are dropped with
    /// [`Why::AccessOff`]. `refused` is the result of [`Self::admit`]; if `admit` drops such a packet too, the product
    /// may give either reason. None: the packet is accepted.
    fn admit_by_tag(&self, arrival: &LinkPacket<'_>, refused: Option<Step>) -> Option<Step> {
        let LinkPacket { to, nic, packet, .. } = arrival;
        if to.gateway || !within(&self.denied_ranges(to, (packet.destination, *nic)), packet.source) {
            return refused;
        }
        match refused {
            None => Some(lose(Why::AccessOff)),
            Some(Step::Lose(mut why)) => {
                why.push(Why::AccessOff);
                Some(Step::Lose(why))
            }
            Some(step @ (Step::Unspecified(_) | Step::Send(_) | Step::Deliver)) => Some(step),
        }
    }

    /// The next step of a packet that leaves the subnet, by the subnet's effective routes.
    fn forward(&self, agent: &Agent, subnet: &str, nic: Option<&Nic>, packet: &Packet, flows: &mut Flows) -> Step {
        let vnet = agent.vnet.as_str();
        match self.route(vnet, subnet, packet.destination) {
            None | Some(Hop::Nowhere) => lose(Why::Unrouted),
            Some(Hop::Local) => {
                let to = (vnet, packet.destination);
                self.to_owner(agent, nic, to, packet, Why::NoOwner, flows)
            }
            Some(Hop::Peering(remote)) => {
                let to = (remote.as_str(), packet.destination);
                self.across(agent, nic, to, packet, Why::NoOwner, flows)
            }
            Some(Hop::Gateway) => {
                let hub = self.gateway_for(vnet);
                match hub.and_then(|h| self.gateway_agent(&h)) {
                    Some(gateway) if gateway.name == agent.name => lose(Why::Unrouted),
                    Some(gateway) => Step::Send(gateway.name.clone()),
                    None => lose(Why::NoGateway),
                }
            }
            // R11: an appliance may be in this VNet or in a directly peered one, not further away.
            Some(Hop::Appliance(address)) => {
                let Some(home) = self.vnet(vnet) else {
                    return lose(Why::Unrouted);
                };
                if within(&home.space, address) {
                    return self.to_owner(agent, nic, (vnet, address), packet, Why::Appliance, flows);
                }
                let connected = |p: &&super::Peering| p.state == State::Connected;
                let mut halves = home.peerings.iter().filter(connected);
                match halves.find(|p| within(&p.remote_space, address)) {
                    Some(half) => {
                        let to = (half.remote.as_str(), address);
                        self.across(agent, nic, to, packet, Why::Appliance, flows)
                    }
                    None => lose(Why::Appliance),
                }
            }
        }
    }

    /// Sends to the owner of the address in the VNet. If the address has no owner, the packet is lost, and the product
    /// may give `nobody` or [`Why::NoOwner`] as the reason.
    /// If the address is a front end, a back end is chosen instead (D35).
    fn to_owner(
        &self,
        agent: &Agent,
        nic: Option<&Nic>,
        (vnet, address): (&str, IpAddr),
        packet: &Packet,
        nobody: Why,
        flows: &mut Flows,
    ) -> Step {
        if let Some(place) = self.front_end(vnet, address)
            && self.reaches(&agent.vnet, place.1)
        {
            return self.choose(agent, nic, place, packet, flows);
        }
        match self.owner(vnet, address) {
            None => Step::Lose(vec![nobody, Why::NoOwner]),
            Some(owner) if owner.name == agent.name => lose(Why::Loop),
            Some(owner) if owner.gateway && vnet != agent.vnet => {
                Step::Unspecified("a gateway's address seen from a peered VNet")
            }
            Some(owner) => Step::Send(owner.name.clone()),
        }
    }

    /// Sends to the owner of the address in the peered VNet `remote`, if the sender's half permits access (P17), or if the
    /// rules at the NIC of the packet's source decide instead (D28).
    fn across(
        &self,
        agent: &Agent,
        sending: Option<&Nic>,
        (remote, address): (&str, IpAddr),
        packet: &Packet,
        nobody: Why,
        flows: &mut Flows,
    ) -> Step {
        let access = self.half(&agent.vnet, remote).is_some_and(|h| h.flags.access);
        let nic = self.sending_nic(agent, packet).filter(|_| !agent.gateway);
        let open = access || self.rules_replace_access(agent, (packet.source, nic));
        match self.to_owner(agent, sending, (remote, address), packet, nobody, flows) {
            Step::Lose(mut why) if !open => {
                why.push(Why::AccessOff);
                Step::Lose(why)
            }
            _ if !open => lose(Why::AccessOff),
            step => step,
        }
    }

    /// The receiver's check of a packet from a link (D10, P17, P18). None: the receiver accepts the packet.
    fn admit(&self, arrival: &LinkPacket<'_>) -> Option<Step> {
        let LinkPacket { from, to, nic, packet } = arrival;
        let source = packet.source;
        if from.gateway {
            return self.admit_from_gateway(arrival);
        }
        // D8: a host with served subnets sends for all addresses in these subnets that no other agent has.
        let behind = || self.owner(&from.vnet, source).is_some_and(|o| o.name == from.name);
        let mut is_own_source = within(&self.served_by(from), source) && behind();
        is_own_source |= self.addresses_of(from).contains(&source);
        // L5: the replies of a back end have the address of its front end.
        is_own_source |= self.has_back_end_of(from, source);
        if from.vnet == to.vnet {
            if is_own_source {
                return None;
            }
            // An appliance of the receiver's own VNet may send from every address that is not the receiver's.
            let taken = self.addresses_of(to).contains(&source);
            if self.forwards(from) && !taken {
                if within(&self.served_by(to), source) {
                    return Some(Step::Unspecified("a source that the receiver serves"));
                }
                return None;
            }
            return Some(lose(Why::Source));
        }
        // The receiver's half of the peering decides.
        let half = self.half(&to.vnet, &from.vnet);
        let Some(half) = half.filter(|h| h.state == State::Connected) else {
            return Some(Step::Unspecified("no peering: there is no link"));
        };
        if to.gateway && !self.is_client(&from.vnet, &to.vnet) {
            return Some(Step::Unspecified("no link: the VNet does not use this gateway"));
        }
        let mut broken = Vec::new();
        if !half.flags.access && !to.gateway && !self.rules_replace_access(to, (packet.destination, *nic)) {
            broken.push(Why::AccessOff);
        }
        let inside = within(&half.remote_space, source);
        if is_own_source {
            if !inside {
                return Some(Step::Unspecified("a source in a range that is not synced yet"));
            }
        } else {
            // P18: a source outside the peer's ranges needs `allowForwardedTraffic`. A source inside the ranges of the
            // receiver's own VNet never passes (D10).
            let own = self.vnet(&to.vnet).is_some_and(|v| within(&v.space, source));
            let allowed = half.flags.forwarded || inside;
            if !self.forwards(from) || own || !allowed {
                broken.push(Why::Source);
            }
        }
        if broken.is_empty() {
            None
        } else {
            Some(Step::Lose(broken))
        }
    }

    /// The receiver's check of a packet that a gateway sends. A gateway may send packets from its own address, from its
    /// local prefixes, from the networks at the far ends of its connections (P21), and from networks that its site has
    /// announced (D10). None: the receiver accepts the packet.
    fn admit_from_gateway(&self, arrival: &LinkPacket<'_>) -> Option<Step> {
        let LinkPacket { from, to, packet, .. } = arrival;
        let hub = from.vnet.as_str();
        if to.gateway {
            if !self.connected_to(&to.vnet).contains(&hub) {
                return Some(Step::Unspecified("no connection: there is no link"));
            }
            if !self.keyed(&to.vnet, hub) {
                return Some(Step::Unspecified("no key: there is no link"));
            }
            if !self.tunnel(&to.vnet, hub) {
                return Some(lose(Why::NoTunnel));
            }
            let genuine = within(&self.reachable_via(&to.vnet, hub), packet.source);
            return (!genuine).then(|| lose(Why::Source));
        }
        if from.vnet != to.vnet && !self.is_client(&to.vnet, hub) {
            return Some(Step::Unspecified("no link: the VNet does not use this gateway"));
        }
        if self.addresses_of(from).contains(&packet.source) {
            return None;
        }
        // D10: a gateway may never send from a source of the receiver's own VNet, whatever routes the gateway has.
        if self.vnet(&to.vnet).is_some_and(|v| within(&v.space, packet.source)) {
            return Some(lose(Why::Source));
        }
        let far = self.connected_to(hub);
        if far.iter().any(|f| within(&self.reachable_via(hub, f), packet.source)) {
            return None;
        }
        // P21d: a user-defined route may lead from a spoke through the gateway to another spoke, or to the hub. So the
        // gateway may also send from sources in the hub and in the spokes.
        let local_prefixes = |name: &str| {
            let ranges = self.vnet(name).map(|v| v.space.clone()).unwrap_or_default();
            within(&ranges, packet.source)
        };
        if self.gateway_may_send(hub, &to.vnet, packet.source) {
            return None;
        }
        if local_prefixes(hub) {
            return None;
        }
        let mut clients = self.clients(hub);
        clients.retain(|c| local_prefixes(&c.name));
        if clients.is_empty() {
            return Some(lose(Why::Source));
        }
        let is_known = |client: &str| {
            let half = self.half(hub, client);
            half.is_some_and(|h| within(&h.remote_space, packet.source))
        };
        if clients.iter().any(|c| is_known(&c.name)) {
            return None;
        }
        Some(Step::Unspecified("a source in a range that is not synced yet"))
    }

    /// The next step of a packet that a VM receives from a link and accepts.
    /// A NIC without IP forwarding takes packets for its own addresses only (R12).
    fn receive(&self, agent: &Agent, nic: Option<&Nic>, packet: &Packet) -> Step {
        let takes = nic.is_some_and(|nic| nic.addresses.contains(&packet.destination) || nic.forwarding);
        let own = self.addresses_of(agent).contains(&packet.destination);
        if takes || !own && self.serves(agent, packet.destination) {
            Step::Deliver
        } else {
            lose(Why::NotForwarding)
        }
    }

    /// The next step of a packet that a gateway receives from a link and accepts.
    fn relay(&self, arrival: &LinkPacket<'_>, flows: &mut Flows) -> Step {
        let LinkPacket { from, to, packet, .. } = arrival;
        let (hub, destination) = (to.vnet.as_str(), packet.destination);
        if self.addresses_of(to).contains(&destination) {
            return Step::Deliver;
        }
        if self.ambiguous(hub, destination) {
            return Step::Unspecified("two networks behind one gateway have the address (G16)");
        }
        if from.gateway {
            return self.relay_inward(to, packet, flows);
        }
        // A learned route is used only if it is longer than every configured prefix: if a learned and a configured
        // prefix are equal, the configured one is preferred.
        let configured: Vec<IpNet> = self
            .connected_to(hub)
            .iter()
            .flat_map(|far| self.reachable_via(hub, far))
            .collect();
        let known = Self::longest(&configured, destination).max(Self::longest(&self.local_prefixes(hub), destination));
        if Self::longest(&self.accepted_from_site(hub), destination) > known {
            return Step::Send(site_device(hub));
        }
        for far in self.connected_to(hub) {
            if within(&self.reachable_via(hub, far), destination) {
                return match self.gateway_agent(far) {
                    None => Step::Lose(vec![Why::NoGateway, Why::NoTunnel]),
                    // The product gives one of two reasons: without a key there is no link, and with two different keys
                    // the handshake fails.
                    Some(_) if !self.tunnel(hub, far) => Step::Lose(vec![Why::NoTunnel, Why::NoGateway]),
                    Some(gateway) => Step::Send(gateway.name.clone()),
                };
            }
        }
        if self.vnet(hub).is_some_and(|v| within(&v.space, destination)) {
            return self.deliver_into((from, to), hub, packet, flows);
        }
        for client in self.clients(hub) {
            let synced = self.half(hub, &client.name).map(|h| h.remote_space.clone());
            if within(&synced.unwrap_or_default(), destination) {
                return self.deliver_into((from, to), &client.name, packet, flows);
            }
        }
        lose(Why::Unrouted)
    }

    /// The next step of a packet that a gateway receives from its site. The gateway forwards the packet to local
    /// prefixes, and never back to the site.
    fn relay_from_site(&self, gateway: &Agent, packet: &Packet, flows: &mut Flows) -> Step {
        let hub = gateway.vnet.as_str();
        if self.site(hub).is_none() || !gateway.gateway {
            return Step::Unspecified("no site: there is no link");
        }
        match self.site_may_send(hub, packet.source) {
            None => return Step::Unspecified("a source of a VNet that there is no link to"),
            Some(false) => return lose(Why::Source),
            Some(true) => {}
        }
        if self.addresses_of(gateway).contains(&packet.destination) {
            return Step::Deliver;
        }
        if self.ambiguous(hub, packet.destination) {
            return Step::Unspecified("two networks behind one gateway have the address (G16)");
        }
        let inside = within(&self.local_prefixes(hub), packet.destination);
        if !inside && within(&self.accepted_from_site(hub), packet.destination) {
            return lose(Why::Loop);
        }
        self.relay_inward(gateway, packet, flows)
    }

    /// The next step of a packet from a far gateway or a site, by the routes of `GatewaySubnet` (G21, R20). The gateway
    /// forwards the packet into its own VNet and the VNets that use the gateway, never into another peering (D9) or
    /// another connection.
    fn relay_inward(&self, gateway: &Agent, packet: &Packet, flows: &mut Flows) -> Step {
        let hub = gateway.vnet.as_str();
        match self.route(hub, GATEWAY_SUBNET, packet.destination) {
            Some(Hop::Local) => self.deliver_into((gateway, gateway), hub, packet, flows),
            Some(Hop::Peering(remote)) if self.is_client(&remote, hub) => {
                self.deliver_into((gateway, gateway), &remote, packet, flows)
            }
            Some(Hop::Appliance(_)) => Step::Unspecified("a route table on GatewaySubnet"),
            Some(Hop::Peering(_) | Hop::Gateway | Hop::Nowhere) | None => lose(Why::Unrouted),
        }
    }

    /// The next step of a packet that a gateway sends into a VNet. `from` is the agent that sent it to the gateway, or
    /// the gateway itself.
    fn deliver_into(&self, (from, gateway): (&Agent, &Agent), vnet: &str, packet: &Packet, flows: &mut Flows) -> Step {
        let destination = packet.destination;
        if let Some(place) = self.front_end(vnet, destination) {
            if !self.reaches(&gateway.vnet, place.1) {
                return Step::Unspecified("a front end of the SKU Basic behind a gateway in another region");
            }
            return match self.choose(gateway, None, place, packet, flows) {
                Step::Send(next) if next == from.name => Step::Unspecified("back to its sender through the gateway"),
                step => step,
            };
        }
        match self.owner(vnet, destination) {
            None => lose(Why::NoOwner),
            Some(owner) if owner.gateway => Step::Unspecified("another gateway's address"),
            Some(owner) if owner.name == from.name => Step::Unspecified("back to its sender through the gateway"),
            Some(owner) => Step::Send(owner.name.clone()),
        }
    }
}
