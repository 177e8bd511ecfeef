//! Load balancers: which rule of a front end applies to a packet, and which back ends it may choose (L1 to L11, D35).
//!
//! The specification does not say which hash chooses a back end, so the model only knows the possible ones, and
//! [`Model::fates`] follows a packet to each of them.

use super::security::Flows;
use super::walk::Step;
use super::{Agent, Fate, Model, Nic, Why};
use crate::operation::{Balancer, Distribution, NAT_PORTS, Packet, Part, Protocol};
use std::net::IpAddr;

/// The largest number of possible ways of one packet that the model follows.
const MOST_WAYS: usize = 64;

/// A rule of a front end and one of its back ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The load balancer, and the name of the rule.
    pub rule: (String, String),
    /// The address of the back end.
    pub member: IpAddr,
}

/// A choice that depends on the hash only, because no earlier packet of the flow has chosen (L4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    pub choice: Choice,
    /// The fields of the packet that the rule's distribution names. The order of the two ends does not matter, because
    /// both directions of a flow pass the same appliance (R11).
    pub fields: ([(IpAddr, u16); 2], Option<Protocol>),
    /// The back ends among which the rule has chosen.
    pub among: Vec<IpAddr>,
}

/// A rule, as it applies to a packet.
pub(super) struct Applied {
    rule: (String, String),
    /// The front end's address and port; port 0: all ports.
    pub(super) front: (IpAddr, u16),
    /// The port of the back ends; 0: that of the packet.
    pub(super) back_end_port: u16,
    pub(super) floating_ip: bool,
    distribution: Distribution,
    /// The idle timeout of flows, in minutes.
    pub(super) idle_timeout: u8,
    /// All back ends, and those that get new flows (L7).
    members: Vec<IpAddr>,
    up: Vec<IpAddr>,
    /// Whether established TCP flows end (L8).
    ends_flows: bool,
}

impl Model {
    /// The fates that a packet may have: one for each back end that the load balancers on its way may choose. Each has
    /// the flows as they are then. Without load balancers there is one.
    #[must_use]
    pub fn fates(&self, packet: &Packet, flows: &Flows) -> Vec<(Fate, Flows)> {
        let mut done = Vec::new();
        let mut ways: Vec<Vec<usize>> = vec![Vec::new()];
        while let Some(way) = ways.pop() {
            let mut known = flows.clone();
            known.way.clone_from(&way);
            if self.balancers.is_empty() {
                let fate = self.fate(packet, &mut known);
                return vec![(fate, known)];
            }
            let mut fate = self.fate(packet, &mut known);
            for at in way.len()..known.options.len() {
                for other in 1..known.options[at] {
                    let mut next = way.clone();
                    next.resize(at, 0);
                    next.push(other);
                    ways.push(next);
                }
            }
            if done.len() + ways.len() > MOST_WAYS {
                ways.clear();
                fate = Fate::Unspecified("too many choices of load balancers");
            }
            done.push((fate, known));
        }
        done
    }

    /// The load balancer with a front end in a VNet, and the position of the front end.
    pub(super) fn front_end(&self, vnet: &str, address: IpAddr) -> Option<(&str, &Balancer, usize)> {
        for (name, balancer) in self.balancers.iter().filter(|(_, b)| b.vnet == vnet) {
            if let Some(position) = balancer.front_ends.iter().position(|f| *f == address) {
                return Some((name, balancer, position));
            }
        }
        None
    }

    /// L10, P30: whether agents of a VNet reach the front ends of a load balancer: those of the same region, and with the
    /// SKU Standard those of other regions.
    pub(super) fn reaches(&self, vnet: &str, balancer: &Balancer) -> bool {
        let region = |name: &str| self.vnet(name).map(|v| v.region);
        balancer.is_standard || region(vnet) == region(&balancer.vnet)
    }

    /// The rule of a front end that applies to a packet, or the reason why there is none.
    fn applied(&self, place: (&str, &Balancer, usize), packet: &Packet) -> Result<Applied, Why> {
        let (_, balancer, front_end) = place;
        if packet.protocol == Protocol::Icmp {
            return Err(Why::BalancerProtocol); // L11's page: front ends take TCP and UDP only
        }
        let here = || balancer.rules.iter().filter(|r| r.front_end == front_end);
        let exact = here().find(|r| r.protocol == Some(packet.protocol) && r.port == packet.ports.1);
        if let Some(rule) = exact {
            return Ok(self.balanced(place, &rule.name()));
        }
        if balancer.has_nat_rule && front_end == 0 && packet.protocol == Protocol::Tcp && packet.ports.1 == NAT_PORTS.0
        {
            return Ok(self.balanced(place, "nat"));
        }
        let all = here().find(|r| r.protocol.is_none()); // L9
        all.map(|rule| self.balanced(place, &rule.name()))
            .ok_or(Why::NoBalancingRule)
    }

    /// The rule of that name, which the load balancer has.
    fn balanced(&self, (name, balancer, front_end): (&str, &Balancer, usize), rule: &str) -> Applied {
        let id = (name.to_owned(), rule.to_owned());
        let Some(rule) = balancer.rules.iter().find(|r| r.name() == rule) else {
            // The target of an inbound NAT rule is not probed.
            let targets = self.nics.iter().filter(|n| n.nat_rule.as_deref() == Some(name));
            let targets: Vec<IpAddr> = targets.filter_map(|n| n.addresses.first().copied()).collect();
            return Applied {
                rule: id,
                front: (balancer.front_ends[front_end], NAT_PORTS.0),
                back_end_port: NAT_PORTS.1,
                floating_ip: false,
                distribution: Distribution::Default,
                idle_timeout: 4,
                members: targets.clone(),
                up: targets,
                ends_flows: false,
            };
        };
        let mut members = balancer.addresses.clone();
        if members.is_empty() {
            let named = self.nics.iter().filter(|n| n.pool.as_deref() == Some(name));
            members = named.flat_map(|n| n.addresses.clone()).collect();
        }
        members.retain(|member| member.is_ipv6() == balancer.front_ends[front_end].is_ipv6());
        // Agents report the health of back ends. A back end without an agent has no report.
        let is_down = |member: &IpAddr| {
            let reported = self.down.iter().any(|(of, address)| of == name && address == member);
            rule.is_probed && reported && self.owner(&balancer.vnet, *member).is_some()
        };
        let mut up = members.clone();
        up.retain(|member| !is_down(member));
        let all_down = up.is_empty();
        let counts_as_up = all_down && rule.is_probed && balancer.all_up_when_all_down;
        if counts_as_up {
            up.clone_from(&members);
        }
        Applied {
            rule: id,
            front: (balancer.front_ends[front_end], rule.port),
            back_end_port: rule.back_end_port,
            floating_ip: rule.floating_ip,
            distribution: rule.distribution,
            idle_timeout: rule.idle_timeout,
            members,
            up,
            ends_flows: all_down && !counts_as_up && !balancer.is_standard,
        }
    }

    /// The rule of an earlier choice. None: the rule or the back end is gone.
    pub(super) fn rule_of(&self, choice: &Choice) -> Option<Applied> {
        let (name, rule) = &choice.rule;
        let (name, balancer) = self.balancers.iter().find(|(n, _)| n == name)?;
        let found = balancer.rules.iter().find(|r| r.name() == *rule);
        let front_end = match found {
            Some(found) => found.front_end,
            None if rule == "nat" && balancer.has_nat_rule => 0,
            None => return None,
        };
        let applied = self.balanced((name, balancer, front_end), rule);
        applied.members.contains(&choice.member).then_some(applied)
    }

    /// L4, L7, L8: the next step of an agent that sends a packet to a front end, or by a route to a front end (R11).
    pub(super) fn choose(
        &self,
        agent: &Agent,
        nic: Option<&Nic>,
        place: (&str, &Balancer, usize),
        packet: &Packet,
        flows: &mut Flows,
    ) -> Step {
        let applied = match self.applied(place, packet) {
            Ok(applied) => applied,
            Err(why) => return Step::Lose(vec![why]),
        };
        let earlier = if agent.gateway {
            let is_first = packet.protocol == Protocol::Tcp && packet.part == Part::First;
            match flows.of_gateways.find(&agent.name, packet, flows.now) {
                Some(_) if is_first => return Step::Unspecified("whether a gateway takes a SYN for a repeated one"),
                // D35: the gateway takes the packet for one of a flow that began before, with the back ends of that time,
                // which the model does not know.
                None if !is_first => return Step::Unspecified("the choice of a gateway for a flow that began before"),
                remembered => remembered,
            }
        } else {
            self.earlier_choice(agent, (packet.source, nic), packet, flows)
        };
        // L5, R11: the next agent gets the reply of a back end from the front end, and the choice is the one for this source.
        let mut seen = packet.clone();
        if let Some((front, port)) = self.replies_from(agent, (packet.source, nic), packet, flows) {
            (seen.source, seen.ports.0) = (front, port);
        }
        let Some(choice) = pick(&applied, applied.up.clone(), earlier, &seen, flows) else {
            return Step::Lose(vec![Why::NoBackEnd]);
        };
        let member = choice.member;
        if member == packet.source {
            return Step::Lose(vec![Why::BackEndItself]); // L11
        }
        if agent.gateway {
            let (noted, now) = ((&choice, applied.idle_timeout), flows.now);
            flows.of_gateways.remember(&agent.name, packet, noted, now);
        }
        let vnet = &place.1.vnet;
        match self.owner(vnet, member) {
            None => Step::Lose(vec![Why::NoLink, Why::NoOwner]),
            Some(owner) if owner.name == agent.name => Step::Unspecified("a client and a back end behind one agent"),
            Some(owner) => {
                (flows.choice, flows.is_balanced) = (Some(choice), true);
                Step::Send(owner.name.clone())
            }
        }
    }

    /// L5: translates a packet to a front end that comes to an agent with a back end. Returns the address of the back
    /// end. `Ok(None)`: the agent has no back end of this front end.
    ///
    /// # Errors
    /// The packet is lost, or the specification does not decide.
    pub(super) fn translate(
        &self,
        agent: &Agent,
        sent: Option<Choice>,
        is_stray: bool,
        packet: &mut Packet,
        flows: &mut Flows,
    ) -> Result<Option<IpAddr>, Step> {
        let Some(place) = self.front_end(&agent.vnet, packet.destination) else {
            return Ok(None);
        };
        if !self.has_back_end_of(agent, packet.destination) {
            return Ok(None);
        }
        let is_own = |member: &IpAddr| {
            let owner = self.owner(&agent.vnet, *member);
            owner.is_some_and(|owner| owner.name == agent.name)
        };
        if sent.is_none() && !is_stray {
            return Err(Step::Unspecified("an appliance that has a back end of the destination"));
        }
        let nics = self.nics_of(agent);
        let nic_of = |member: &IpAddr| {
            let own = nics.iter().find(|n| n.addresses.contains(member));
            own.or(nics.first()).copied()
        };
        let applied = self.applied(place, packet).map_err(|why| Step::Lose(vec![why]))?;
        let choice = match sent {
            Some(choice) if choice.rule == applied.rule && is_own(&choice.member) => {
                // A packet does not say which of several back ends of one agent its sender has chosen. The agent knows it
                // by the same hash, or by its own flow.
                let is_fresh = flows.fresh.iter().any(|fresh| fresh.choice == choice);
                let arrived = translated(&applied, choice.member, packet);
                let known = self.earlier_choice(agent, (arrived.destination, nic_of(&choice.member)), &arrived, flows);
                let has_several = applied.members.iter().filter(|member| is_own(member)).count() > 1;
                let is_known = is_fresh || known.as_ref() == Some(&choice);
                if has_several && !is_known {
                    return Err(Step::Unspecified("an earlier choice among the back ends of one agent"));
                }
                // L7: a back end that is down keeps the flows that its agent knows. A gateway may know a closed one for longer.
                if !is_known && !applied.up.contains(&choice.member) {
                    return Err(Step::Lose(vec![Why::NoBackEnd]));
                }
                choice
            }
            Some(_) => return Err(Step::Unspecified("an appliance that has a back end of the destination")),
            None => {
                let mut up = applied.up.clone();
                up.retain(is_own);
                let known = applied.members.iter().filter(|m| is_own(m)).find_map(|member| {
                    let arrived = translated(&applied, *member, packet);
                    let at = (arrived.destination, nic_of(member));
                    let choice = self.earlier_choice(agent, at, &arrived, flows)?;
                    (choice.member == *member && choice.rule == applied.rule).then_some(choice)
                });
                pick(&applied, up, known, packet, flows).ok_or(Step::Lose(vec![Why::NoBackEnd]))?
            }
        };
        let member = choice.member;
        *packet = translated(&applied, member, packet);
        flows.choice = Some(choice);
        Ok(Some(member))
    }

    /// Whether a NIC is a back end of a front end.
    pub(super) fn is_behind(&self, nic: &Nic, front_end: IpAddr) -> bool {
        let place = self.front_end(&nic.vnet, front_end);
        place.is_some_and(|place| {
            self.members_of(place)
                .iter()
                .any(|member| nic.addresses.contains(member))
        })
    }

    /// Whether an agent has or serves the back end with this address.
    pub(super) fn is_back_end(&self, agent: &Agent, address: IpAddr) -> bool {
        let owner = self.owner(&agent.vnet, address);
        let mut balancers = self.balancers.iter().filter(|(_, b)| b.vnet == agent.vnet);
        owner.is_some_and(|o| o.name == agent.name)
            && balancers.any(|(name, balancer)| {
                (0..balancer.front_ends.len()).any(|at| self.members_of((name, balancer, at)).contains(&address))
            })
    }

    /// Whether an agent has or serves a back end of a front end of its VNet.
    pub(super) fn has_back_end_of(&self, agent: &Agent, front_end: IpAddr) -> bool {
        let Some(place) = self.front_end(&agent.vnet, front_end) else {
            return false;
        };
        let owner = |member: &IpAddr| self.owner(&agent.vnet, *member).map(|o| o.name.clone());
        self.members_of(place)
            .iter()
            .any(|member| owner(member).as_ref() == Some(&agent.name))
    }

    /// The back ends of all rules of a front end.
    pub(super) fn members_of(&self, (name, balancer, position): (&str, &Balancer, usize)) -> Vec<IpAddr> {
        let mut rules: Vec<String> = balancer
            .rules
            .iter()
            .filter(|r| r.front_end == position)
            .map(|r| r.name())
            .collect();
        if balancer.has_nat_rule && position == 0 {
            rules.push("nat".into());
        }
        let applied = rules.iter().map(|rule| self.balanced((name, balancer, position), rule));
        applied.flat_map(|a| a.members).collect()
    }
}

/// The back end for a packet: that of the flow's earlier choice, or one of `up`. None: there is none.
fn pick(
    applied: &Applied,
    up: Vec<IpAddr>,
    earlier: Option<Choice>,
    packet: &Packet,
    flows: &mut Flows,
) -> Option<Choice> {
    if let Some(choice) = earlier.filter(|c| c.rule == applied.rule && applied.members.contains(&c.member)) {
        // L7: TCP flows stay with a back end that is down, unless established flows end (L8).
        let stays = packet.protocol == Protocol::Tcp && !applied.ends_flows;
        if stays || applied.up.contains(&choice.member) {
            return Some(choice);
        }
    }
    if up.is_empty() {
        return None;
    }
    let at = flows.options.len();
    flows.options.push(up.len());
    let member = up[flows.way.get(at).copied().unwrap_or(0)];
    let choice = Choice {
        rule: applied.rule.clone(),
        member,
    };
    let mut ends = [(packet.source, packet.ports.0), (packet.destination, packet.ports.1)];
    if applied.distribution != Distribution::Default {
        ends = ends.map(|(address, _)| (address, 0));
    }
    ends.sort_unstable();
    flows.fresh.push(Fresh {
        choice: choice.clone(),
        fields: (
            ends,
            (applied.distribution != Distribution::SourceIp).then_some(packet.protocol),
        ),
        among: up,
    });
    Some(choice)
}

/// The packet as the back end gets it (L5).
fn translated(applied: &Applied, member: IpAddr, packet: &Packet) -> Packet {
    let mut packet = packet.clone();
    if !applied.floating_ip {
        packet.destination = member;
        if applied.back_end_port != 0 {
            packet.ports.1 = applied.back_end_port;
        }
    }
    packet
}
