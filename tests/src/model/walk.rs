//! Where a packet goes, agent by agent, and why it is lost.

use super::routes::Hop;
use super::{Agent, Fate, Model, State, Why, within};
use crate::operation::{GATEWAY_SUBNET, Origin, Packet, site_device};
use ipnet::IpNet;
use std::net::IpAddr;

/// The TTL that packets start with. Kernels that forward and gateways take one each.
pub const TTL: u8 = 16;

/// What an agent does with a packet.
enum Step {
    /// Its kernel has it.
    Deliver,
    /// On a link to this agent.
    Send(String),
    /// Lost, for one of these reasons.
    Lose(Vec<Why>),
    /// Open.
    Unspecified(&'static str),
}

fn lose(why: Why) -> Step {
    Step::Lose(vec![why])
}

/// The source of a packet on a link, and what the other end is.
struct Crossing<'a> {
    from: &'a Agent,
    to: &'a Agent,
    packet: &'a Packet,
}

impl Model {
    /// Follows a packet until a kernel keeps it or it is lost.
    #[must_use]
    pub fn fate(&self, packet: &Packet) -> Fate {
        let mut path: Vec<String> = Vec::new();
        let mut ttl = TTL;
        // The agent that has the packet, and the one it came from over a link.
        let (mut at, mut from) = match &packet.origin {
            Origin::Kernel { agent } => (agent.clone(), None),
            Origin::Link { from, to } => (to.clone(), Some(from.clone())),
        };
        loop {
            path.push(at.clone());
            if at.ends_with("-site") {
                return Fate::Delivered { path };
            }
            let Some(agent) = self.agent(&at) else {
                return Fate::Unspecified("the agent has not joined");
            };
            let site = from.as_deref().is_some_and(|f| f.ends_with("-site"));
            let step = match from.as_deref().map(|f| self.agent(f)) {
                _ if site => self.enter_from_site(agent, packet),
                None => self.leave(agent, packet),
                Some(None) => return Fate::Unspecified("the far end has not joined"),
                Some(Some(far)) => {
                    let crossing = Crossing {
                        from: far,
                        to: agent,
                        packet,
                    };
                    let refused = self.admit(&crossing);
                    match self.admit_by_tag(&crossing, refused) {
                        Some(step) => step,
                        None if agent.gateway => self.relay(&crossing),
                        None => self.arrive(agent, packet),
                    }
                }
            };
            match step {
                Step::Lose(why) => return Fate::Lost { path, why },
                Step::Unspecified(what) => return Fate::Unspecified(what),
                Step::Deliver => {
                    let own = self.addresses_of(agent).contains(&packet.destination);
                    if own || within(&self.served_by(agent), packet.destination) {
                        return Fate::Delivered { path };
                    }
                    // R12, D10: the kernel forwards, and the packet comes back through the TUN device.
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
            // A gateway and a forwarding kernel take one (T1, T5, D23).
            if ttl <= 1 {
                let why = vec![Why::Loop];
                return Fate::Lost { path, why };
            }
            ttl -= 1;
        }
    }

    /// A packet that a VM's or gateway's kernel sends.
    fn leave(&self, agent: &Agent, packet: &Packet) -> Step {
        if agent.gateway {
            return Step::Unspecified("what a gateway's own kernel sends");
        }
        let nics = self.nics_of(agent);
        let own = nics.iter().find(|n| n.addresses.contains(&packet.source));
        let subnet = match own {
            Some(nic) => nic.subnet.clone(),
            None if within(&self.served_by(agent), packet.source) => {
                return Step::Unspecified("the routes of a machine behind a host");
            }
            None => match nics.iter().find(|n| n.forwarding) {
                Some(nic) => nic.subnet.clone(),
                None => return lose(Why::Spoofed),
            },
        };
        let closed = self.closed(&agent.vnet);
        if within(&closed, packet.source) {
            return lose(Why::AccessOff);
        }
        match self.forward(agent, &subnet, packet) {
            Step::Send(_) if within(&closed, packet.destination) => lose(Why::AccessOff),
            Step::Lose(mut why) if within(&closed, packet.destination) => {
                why.push(Why::AccessOff);
                Step::Lose(why)
            }
            step => step,
        }
    }

    /// P17: the ranges that left the `VirtualNetwork` tag of a VNet. Its machines exchange nothing with them, whatever
    /// way the packet takes.
    fn closed(&self, vnet: &str) -> Vec<IpNet> {
        let halves = self.vnet(vnet).into_iter().flat_map(|v| &v.peerings);
        let off = halves.filter(|p| p.state == State::Connected && !p.flags.access);
        off.flat_map(|p| p.remote_space.clone()).collect()
    }

    /// P17 at a machine that takes a packet, besides what its link allows. None: it takes it.
    fn admit_by_tag(&self, crossing: &Crossing<'_>, refused: Option<Step>) -> Option<Step> {
        let Crossing { to, packet, .. } = crossing;
        if to.gateway || !within(&self.closed(&to.vnet), packet.source) {
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

    /// Takes the subnet's route.
    fn forward(&self, agent: &Agent, subnet: &str, packet: &Packet) -> Step {
        let vnet = agent.vnet.as_str();
        match self.route(vnet, subnet, packet.destination) {
            None | Some(Hop::Nowhere) => lose(Why::Unrouted),
            Some(Hop::Local) => self.to_owner(agent, vnet, packet.destination, Why::NoOwner),
            Some(Hop::Peering(remote)) => self.across(agent, &remote, packet.destination, Why::NoOwner),
            Some(Hop::Gateway) => {
                let hub = self.gateway_for(vnet);
                match hub.and_then(|h| self.gateway_agent(&h)) {
                    Some(gateway) if gateway.name == agent.name => lose(Why::Unrouted),
                    Some(gateway) => Step::Send(gateway.name.clone()),
                    None => lose(Why::NoGateway),
                }
            }
            // R11: in this VNet, or in a directly peered one.
            Some(Hop::Appliance(address)) => {
                let Some(home) = self.vnet(vnet) else {
                    return lose(Why::Unrouted);
                };
                if within(&home.space, address) {
                    return self.to_owner(agent, vnet, address, Why::Appliance);
                }
                let connected = |p: &&super::Peering| p.state == State::Connected;
                let mut halves = home.peerings.iter().filter(connected);
                match halves.find(|p| within(&p.remote_space, address)) {
                    Some(half) => self.across(agent, &half.remote, address, Why::Appliance),
                    None => lose(Why::Appliance),
                }
            }
        }
    }

    /// To whoever has the address in the VNet.
    fn to_owner(&self, agent: &Agent, vnet: &str, address: IpAddr, nobody: Why) -> Step {
        match self.owner(vnet, address) {
            None => Step::Lose(vec![nobody, Why::NoOwner]),
            Some(owner) if owner.name == agent.name => lose(Why::Loop),
            Some(owner) if owner.gateway && vnet != agent.vnet => {
                Step::Unspecified("a gateway's address seen from a peered VNet")
            }
            Some(owner) => Step::Send(owner.name.clone()),
        }
    }

    /// Across a peering (P17).
    fn across(&self, agent: &Agent, remote: &str, address: IpAddr, nobody: Why) -> Step {
        let open = self.half(&agent.vnet, remote).is_some_and(|h| h.flags.access);
        match self.to_owner(agent, remote, address, nobody) {
            Step::Lose(mut why) if !open => {
                why.push(Why::AccessOff);
                Step::Lose(why)
            }
            _ if !open => lose(Why::AccessOff),
            step => step,
        }
    }

    /// Whether the receiver takes the packet from this link (D10, P17, P18). None: yes.
    fn admit(&self, crossing: &Crossing<'_>) -> Option<Step> {
        let Crossing { from, to, packet } = crossing;
        let source = packet.source;
        if from.gateway {
            return self.admit_from_gateway(crossing);
        }
        // D8: behind a host sits what nobody else has.
        let behind = || self.owner(&from.vnet, source).is_some_and(|o| o.name == from.name);
        let mut speaks_for = within(&self.served_by(from), source) && behind();
        speaks_for |= self.addresses_of(from).contains(&source);
        if from.vnet == to.vnet {
            if speaks_for {
                return None;
            }
            // An appliance of the own VNet: anything but the receiver's own addresses.
            let taken = self.addresses_of(to).contains(&source);
            if self.forwards(from) && !taken {
                if within(&self.served_by(to), source) {
                    return Some(Step::Unspecified("a source that sits behind the receiver"));
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
        if !half.flags.access && !to.gateway {
            broken.push(Why::AccessOff);
        }
        let inside = within(&half.remote_space, source);
        if speaks_for {
            if !inside {
                return Some(Step::Unspecified("a source in a range that is not synced yet"));
            }
        } else {
            // P18: a source outside the peer's ranges needs the flag; one inside the own ranges never passes (D10).
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

    /// From a gateway: what lies behind its connections, and the VNets on its own side (P21).
    fn admit_from_gateway(&self, crossing: &Crossing<'_>) -> Option<Step> {
        let Crossing { from, to, packet } = crossing;
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
            let genuine = within(&self.behind(&to.vnet, hub), packet.source);
            return (!genuine).then(|| lose(Why::Source));
        }
        if from.vnet != to.vnet && !self.is_client(&to.vnet, hub) {
            return Some(Step::Unspecified("no link: the VNet does not use this gateway"));
        }
        if self.addresses_of(from).contains(&packet.source) {
            return None;
        }
        // D10: nothing in the name of the receiver's own VNet, by whatever route.
        if self.vnet(&to.vnet).is_some_and(|v| within(&v.space, packet.source)) {
            return Some(lose(Why::Source));
        }
        let far = self.connected_to(hub);
        if far.iter().any(|f| within(&self.behind(hub, f), packet.source)) {
            return None;
        }
        // P21d: a spoke may send to another one, or to the hub, through the gateway by a route of its own.
        let own_side = |name: &str| {
            let ranges = self.vnet(name).map(|v| v.space.clone()).unwrap_or_default();
            within(&ranges, packet.source)
        };
        if self.heard_speaks_for(hub, &to.vnet, packet.source) {
            return None;
        }
        if own_side(hub) {
            return None;
        }
        let mut clients = self.clients(hub);
        clients.retain(|c| own_side(&c.name));
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

    /// A packet that a VM takes from a link.
    fn arrive(&self, agent: &Agent, packet: &Packet) -> Step {
        let own = self.addresses_of(agent).contains(&packet.destination);
        if own || within(&self.served_by(agent), packet.destination) || self.forwards(agent) {
            Step::Deliver
        } else {
            lose(Why::NotForwarding)
        }
    }

    /// A packet that a gateway takes from a link.
    fn relay(&self, crossing: &Crossing<'_>) -> Step {
        let Crossing { from, to, packet } = crossing;
        let (hub, destination) = (to.vnet.as_str(), packet.destination);
        if self.addresses_of(to).contains(&destination) {
            return Step::Deliver;
        }
        if self.ambiguous(hub, destination) {
            return Step::Unspecified("two networks behind one gateway have the address (G16)");
        }
        if from.gateway {
            return self.relay_inward(to, packet);
        }
        // The longest prefix decides; of equal ones what is configured.
        let configured: Vec<IpNet> = self
            .connected_to(hub)
            .iter()
            .flat_map(|far| self.behind(hub, far))
            .collect();
        let known = Self::longest(&configured, destination).max(Self::longest(&self.own_side(hub), destination));
        if Self::longest(&self.heard(hub), destination) > known {
            return Step::Send(site_device(hub));
        }
        for far in self.connected_to(hub) {
            if within(&self.behind(hub, far), destination) {
                return match self.gateway_agent(far) {
                    None => Step::Lose(vec![Why::NoGateway, Why::NoTunnel]),
                    // Without a key there is nothing to try; with two different ones the handshake fails.
                    Some(_) if !self.tunnel(hub, far) => Step::Lose(vec![Why::NoTunnel, Why::NoGateway]),
                    Some(gateway) => Step::Send(gateway.name.clone()),
                };
            }
        }
        if self.vnet(hub).is_some_and(|v| within(&v.space, destination)) {
            return self.inside(from, hub, destination);
        }
        for client in self.clients(hub) {
            let synced = self.half(hub, &client.name).map(|h| h.remote_space.clone());
            if within(&synced.unwrap_or_default(), destination) {
                return self.inside(from, &client.name, destination);
            }
        }
        lose(Why::Unrouted)
    }

    /// A packet that a gateway takes from its site: into its own side, and never back.
    fn enter_from_site(&self, gateway: &Agent, packet: &Packet) -> Step {
        let hub = gateway.vnet.as_str();
        if self.site(hub).is_none() || !gateway.gateway {
            return Step::Unspecified("no site: there is no link");
        }
        match self.site_speaks_for(hub, packet.source) {
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
        let inside = within(&self.own_side(hub), packet.destination);
        if !inside && within(&self.heard(hub), packet.destination) {
            return lose(Why::Loop);
        }
        self.relay_inward(gateway, packet)
    }

    /// From the far gateway: by the routes of `GatewaySubnet` (G21, R20), into the own VNet and those that use this
    /// gateway, never into another peering (D9) nor into another connection.
    fn relay_inward(&self, gateway: &Agent, packet: &Packet) -> Step {
        let hub = gateway.vnet.as_str();
        match self.route(hub, GATEWAY_SUBNET, packet.destination) {
            Some(Hop::Local) => self.inside(gateway, hub, packet.destination),
            Some(Hop::Peering(remote)) if self.is_client(&remote, hub) => {
                self.inside(gateway, &remote, packet.destination)
            }
            Some(Hop::Appliance(_)) => Step::Unspecified("a route table on GatewaySubnet"),
            Some(Hop::Peering(_) | Hop::Gateway | Hop::Nowhere) | None => lose(Why::Unrouted),
        }
    }

    fn inside(&self, from: &Agent, vnet: &str, destination: IpAddr) -> Step {
        match self.owner(vnet, destination) {
            None => lose(Why::NoOwner),
            Some(owner) if owner.gateway => Step::Unspecified("another gateway's address"),
            Some(owner) if owner.name == from.name => {
                Step::Unspecified("back to where it came from, by way of the gateway")
            }
            Some(owner) => Step::Send(owner.name.clone()),
        }
    }
}
