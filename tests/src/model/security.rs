//! Applies the rules of security groups to packets at NICs, and keeps the flows that the rules have allowed.

use super::balancing::{Choice, Fresh};
use super::gateway_choices::GatewayChoices;
use super::{Agent, Model, Nic, SecurityGroup, State, within};
use crate::operation::{Addresses, Origin, Packet, Part, Protocol, Rule};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The virtual address of Azure's hosts, from which the probes of load balancers come (N8, N9).
pub const HOST_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));

/// The idle timeout of flows in a VNet without `flowTimeoutInMinutes`, in minutes (N6).
pub const DEFAULT_TIMEOUT: u8 = 4;

/// The idle timeout of a TCP flow that the other end has not answered, in seconds (D31).
const HALF_OPEN: u64 = 60;

/// The idle timeout of a TCP flow that is closed, in seconds (D31).
const CLOSING: u64 = 10;

/// The time for which an agent adopts TCP connections after it has started, or after one of its NICs has got its first
/// group, in seconds (D34).
const ADOPTION: u64 = 60;

/// The flows that the rules at NICs have allowed (N6), and the decisions of rules about the last packet.
#[derive(Debug, Clone, Default)]
pub struct Flows {
    /// The flows, each in the direction of its first packet. Flows that have ended may still be here.
    pub known: Vec<Flow>,
    /// The rules that decided about the last packet on its path, in order: at each NIC at most one of each group, and none
    /// if the packet belonged to a flow.
    pub decided: Vec<Decision>,
    /// The number of packets that passed because of their flow, although a rule denies them.
    pub saved: u32,
    /// The number of packets about which rules decided because their flow had been idle for too long.
    pub late: u32,
    /// The number of packets of known flows that the rules denied, because they had to decide about the flow again (D34).
    pub ended: u32,
    /// The present time, in seconds.
    pub now: u64,
    /// Which of the possible back ends each load balancer on the packet's way chooses; 0 for those after the list's end.
    pub way: Vec<usize>,
    /// The number of possible back ends of each choice on the last packet's way.
    pub options: Vec<usize>,
    /// The choices on the last packet's way that no earlier packet of the flow determined.
    pub fresh: Vec<Fresh>,
    /// The choice of a load balancer for the packet at the present agent.
    pub choice: Option<Choice>,
    /// Whether a load balancer has chosen a back end for the last packet.
    pub is_balanced: bool,
    /// The last packet, as its destination got it.
    pub arrived: Option<Packet>,
    /// The choices of gateways.
    pub(super) of_gateways: GatewayChoices,
    /// For each agent, the NICs that have a group, and the time until which the agent adopts TCP connections (D34).
    agents: BTreeMap<String, (BTreeSet<String>, u64)>,
}

/// A flow at a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The agent that enforces the rules of the NIC.
    pub agent: String,
    /// The NIC. A machine without an agent and without a NIC resource has its address here.
    pub nic: String,
    /// Whether the flow's first packet came to the NIC or left it.
    pub inbound: bool,
    pub protocol: Protocol,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    /// Progress of the flow, which is used for TCP only.
    progress: Progress,
    /// The time of the flow's last packet.
    seen: u64,
    /// The idle timeout in seconds, which the VNet had when the flow began.
    timeout: u64,
    /// Whether the rules must decide about the flow again, because of a change (P13, D34).
    judge_again: Again,
    /// The choice of a load balancer for the packets of the end that began the flow (L4).
    choice: Option<Choice>,
    /// The choice for the packets of the other end, if their route leads through an appliance (R11).
    choice_for_replies: Option<Choice>,
}

/// Whether the rules must decide about a flow again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    Yes,
    /// The specification does not decide.
    Open,
}

/// What has happened to a TCP flow since its first packet. A flow that was adopted in mid-stream begins as one without
/// an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    /// The other end has sent a SYN with ACK.
    syn_answered: bool,
    /// The other end has sent a segment that is no SYN, or the first end has sent one after the answer to its SYN.
    is_open: bool,
    /// The end that began the flow, and the other one, have sent a FIN.
    fins: (bool, bool),
    /// One end has sent a RST.
    is_reset: bool,
}

impl Progress {
    /// Notes a packet of the flow; `forward`: the packet came from the end that began the flow.
    fn note(&mut self, part: Part, forward: bool) {
        match (part, forward) {
            (Part::First, _) | (Part::Reply, true) => return,
            (Part::Reply, false) => {
                self.syn_answered = true;
                return;
            }
            (Part::Close, true) => self.fins.0 = true,
            (Part::Close, false) => self.fins.1 = true,
            (Part::Reset, _) => self.is_reset = true,
            (Part::Later, _) => {}
        }
        self.is_open |= !forward || self.syn_answered;
    }
}

impl Flow {
    /// Whether the flow has had no packets for longer than its timeout (N6, D31).
    fn is_over(&self, now: u64) -> bool {
        let Progress {
            is_open,
            fins,
            is_reset,
            ..
        } = self.progress;
        let limit = match self.protocol {
            Protocol::Tcp if is_reset || fins == (true, true) => CLOSING,
            Protocol::Tcp if !is_open => HALF_OPEN,
            Protocol::Tcp | Protocol::Udp | Protocol::Icmp => self.timeout,
        };
        now - self.seen > limit
    }

    /// Whether two flows have the same packets, in this direction.
    fn is_same(&self, other: &Self) -> bool {
        let key = |f: &Self| (f.inbound, f.protocol, f.source, f.destination, f.ports);
        self.agent == other.agent && self.nic == other.nic && key(self) == key(other)
    }
}

impl Flows {
    /// Forgets all flows.
    pub fn forget(&mut self) {
        self.known.clear();
        self.of_gateways.forget();
        self.saved = 0;
        self.late = 0;
        self.ended = 0;
    }

    /// Forgets what an agent knows, because another machine gets its name.
    pub fn forget_agent(&mut self, agent: &str) {
        self.known.retain(|f| f.agent != agent);
        self.agents.remove(agent);
    }

    /// Gives all agents the present state of the model in place of `before`. An agent that has a NIC with its first
    /// group adopts TCP connections from now on (D34). The rules decide again about flows that have lost their route
    /// (P13), and with the setting `reevaluate` about all flows (D34).
    pub fn update(&mut self, before: &Model, model: &Model) {
        for flow in &mut self.known {
            let again = match (before.leaves(flow), model.leaves(flow)) {
                _ if model.reevaluates => Again::Yes,
                (_, Some(true)) | (Some(false), _) => continue,
                (Some(true), Some(false)) => Again::Yes,
                (None, _) | (_, None) => Again::Open,
            };
            flow.judge_again = again;
        }
        let known = std::mem::take(&mut self.agents);
        for agent in model.agents.iter().filter(|a| !a.revoked) {
            let secured = model.secured(agent);
            let (before, until) = known.get(&agent.name).cloned().unwrap_or_default();
            let is_new = secured.iter().any(|nic| !before.contains(nic));
            let until = if is_new { self.now + ADOPTION } else { until };
            self.agents.insert(agent.name.clone(), (secured, until));
        }
    }

    /// The flow that a packet belongs to, and whether the packet is one of the end that began it. `forward` and
    /// `backward`: the flow, if the packet is one of the end that began the flow, or one of the other end. None: there is
    /// no such flow.
    fn find(&mut self, forward: &Flow, backward: &Flow, part: Part) -> Option<(&mut Flow, bool)> {
        let now = self.now;
        // An echo request asks; it is no reply to a message of the other end.
        let asks = forward.protocol == Protocol::Icmp && part != Part::Reply;
        let found = self
            .known
            .iter_mut()
            .find(|f| f.is_same(forward) || (!asks && f.is_same(backward)));
        let flow = found?;
        if flow.is_over(now) {
            self.late += 1;
            return None;
        }
        let is_forward = flow.is_same(forward);
        flow.seen = now;
        Some((flow, is_forward))
    }

    /// Whether a load balancer has made a choice for the flow of a packet. See [`Self::find`].
    fn has_choice(&self, forward: &Flow, backward: &Flow) -> bool {
        let mut same = self.known.iter().filter(|f| f.is_same(forward) || f.is_same(backward));
        same.any(|f| f.choice.is_some() && !f.is_over(self.now))
    }

    /// Adds a flow, in place of an earlier one with the same packets.
    fn add(&mut self, flow: Flow, backward: &Flow) {
        self.known.retain(|f| !f.is_same(&flow) && !f.is_same(backward));
        self.known.push(flow);
    }
}

/// A rule that has decided about a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The agent that enforces the rule.
    pub agent: String,
    /// The NIC at which the rule decides, as in [`Flow::nic`].
    pub nic: String,
    /// Whether the packet comes to the NIC or leaves it.
    pub inbound: bool,
    /// The group of the rule.
    pub group: String,
    /// `securityRules/NAME` or `defaultSecurityRules/NAME`.
    pub rule: String,
    /// Whether the rule allows the packet.
    pub allow: bool,
}

/// The NIC at which an agent applies rules to a packet.
struct Place<'m> {
    nic: String,
    vnet: &'m str,
    subnet: &'m str,
    subnet_group: Option<&'m SecurityGroup>,
    nic_group: Option<&'m SecurityGroup>,
}

impl Place<'_> {
    fn has_group(&self) -> bool {
        self.subnet_group.is_some() || self.nic_group.is_some()
    }
}

/// What the rules of a NIC do with a packet.
pub enum Judgement {
    Pass,
    /// The packet is a back end's reply, and passes with this front end's address and port as source (L5).
    PassFrom((IpAddr, u16)),
    Deny,
    /// The specification does not decide.
    Unspecified(&'static str),
}

/// The addresses and ports of a packet, or the exchanged ones of its flow.
struct Ends {
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
}

impl Model {
    /// Applies the rules of the NIC at which a packet passes the agent. The address of `at` is the packet's destination
    /// if the packet comes to the NIC (`inbound`), and its source if the packet leaves it. Keeps the packet's flow if
    /// the rules allow it (N6).
    pub fn judge(
        &self,
        agent: &Agent,
        at: (IpAddr, Option<&Nic>),
        inbound: bool,
        packet: &Packet,
        flows: &mut Flows,
    ) -> Judgement {
        let choice = flows.choice.take();
        let place = match self.place(agent, at) {
            Ok(Some(place)) => place,
            Ok(None) => return Judgement::Pass, // N5
            Err(what) => return Judgement::Unspecified(what),
        };
        let ends = Ends {
            source: packet.source,
            destination: packet.destination,
            ports: packet.ports,
        };
        let reversed = Ends {
            source: packet.destination,
            destination: packet.source,
            ports: (packet.ports.1, packet.ports.0),
        };
        // D31: the idle timeout of a load balancer's rule comes first.
        let of_rule = choice.as_ref().and_then(|choice| self.rule_of(choice));
        let of_vnet = || self.vnet(&agent.vnet).map_or(DEFAULT_TIMEOUT, |v| v.flow_timeout);
        let timeout = of_rule.map_or_else(of_vnet, |rule| rule.idle_timeout);
        let flow = |inbound: bool, ends: &Ends| Flow {
            agent: agent.name.clone(),
            nic: place.nic.clone(),
            inbound,
            protocol: packet.protocol,
            source: ends.source,
            destination: ends.destination,
            ports: ends.ports,
            progress: Progress::default(),
            seen: flows.now,
            timeout: u64::from(timeout) * 60,
            judge_again: Again::No,
            choice: choice.clone(),
            choice_for_replies: None,
        };
        let (forward, backward) = (flow(inbound, &ends), flow(!inbound, &reversed));
        if !place.has_group() && choice.is_none() && !flows.has_choice(&forward, &backward) {
            return Judgement::Pass; // N5
        }
        let decisions = self.ask_groups(agent, &place, inbound, packet.protocol, &ends);
        let allowed = decisions.iter().all(|d| d.allow);
        // N6: a packet of a known flow needs no rule. A reply goes in the opposite direction, with exchanged ends.
        if let Some((flow, is_forward)) = flows.find(&forward, &backward, packet.part) {
            // D34: after a change, the rules decide about the packet that began the flow, whichever end sends this one.
            if flow.judge_again != Again::No {
                let (inbound, first) = if is_forward {
                    (inbound, &ends)
                } else {
                    (!inbound, &reversed)
                };
                let asked = self.ask_groups(agent, &place, inbound, packet.protocol, first);
                if asked.iter().any(|d| !d.allow) {
                    if flow.judge_again == Again::Open {
                        return Judgement::Unspecified("whether a flow has lost its route");
                    }
                    flows.ended += 1;
                    flows.decided.extend(asked);
                    return Judgement::Deny;
                }
                flow.judge_again = Again::No;
            }
            flow.progress.note(packet.part, is_forward);
            match choice {
                // The choice for replies was made for replies with the source that the earlier choice gave them.
                Some(choice) if is_forward && flow.choice.as_ref() != Some(&choice) => {
                    (flow.choice, flow.choice_for_replies) = (Some(choice), None);
                }
                Some(choice) if !is_forward => flow.choice_for_replies = Some(choice),
                Some(_) | None => {}
            }
            let replies_to = flow.choice.clone().filter(|_| !is_forward && !inbound);
            if let Some(choice) = replies_to {
                return match self.rule_of(&choice) {
                    None => Judgement::Unspecified("a reply to a flow whose rule or back end is gone"),
                    Some(rule) if rule.floating_ip => Judgement::Pass,
                    Some(rule) if rule.front.1 == 0 => Judgement::PassFrom((rule.front.0, packet.ports.0)),
                    Some(rule) => Judgement::PassFrom(rule.front),
                };
            }
            flows.saved += u32::from(!allowed);
            return Judgement::Pass;
        }
        if allowed {
            flows.add(forward, &backward);
            flows.decided.extend(decisions);
            return Judgement::Pass;
        }
        // D34: for 60 s after the agent has started or a NIC has got a group, a TCP connection in mid-stream is adopted
        // if the rules allow its other direction.
        let adopts = flows
            .agents
            .get(&agent.name)
            .is_some_and(|(_, until)| flows.now < *until);
        if adopts && packet.protocol == Protocol::Tcp && matches!(packet.part, Part::Later | Part::Close) {
            let asked = self.ask_groups(agent, &place, !inbound, packet.protocol, &reversed);
            if asked.iter().all(|d| d.allow) {
                if choice.is_some() {
                    return Judgement::Unspecified("a connection to a load balancer that is adopted");
                }
                flows.add(backward, &forward);
                return Judgement::Pass;
            }
        }
        flows.decided.extend(decisions);
        Judgement::Deny
    }

    /// The decisions of the rules about a packet that belongs to no known flow, at the NIC that [`Model::judge`] would
    /// use (M4). Empty: no group applies there.
    ///
    /// # Errors
    /// The specification does not decide. The string names the case.
    pub fn decide(
        &self,
        agent: &Agent,
        address: IpAddr,
        inbound: bool,
        packet: &Packet,
    ) -> Result<Vec<Decision>, &'static str> {
        let Some(place) = self.place(agent, (address, None))? else {
            return Ok(Vec::new());
        };
        let ends = Ends {
            source: packet.source,
            destination: packet.destination,
            ports: packet.ports,
        };
        Ok(self.ask_groups(agent, &place, inbound, packet.protocol, &ends))
    }

    /// Whether the packets of a flow have a route from its machine to the other end. None: the specification does not
    /// decide.
    fn leaves(&self, flow: &Flow) -> Option<bool> {
        let Some(agent) = self.agent(&flow.agent) else {
            return Some(false);
        };
        let ((source, destination), ports) = match flow.inbound {
            false => ((flow.source, flow.destination), flow.ports),
            true => ((flow.destination, flow.source), (flow.ports.1, flow.ports.0)),
        };
        let packet = Packet {
            origin: Origin::Kernel {
                agent: agent.name.clone(),
            },
            source,
            destination,
            protocol: flow.protocol,
            ports,
            part: Part::Later,
        };
        let nics = self.nics_of(agent);
        let nic = nics.iter().find(|n| n.name == flow.nic).or(nics.first()).copied();
        self.has_next_agent(agent, nic, &packet)
    }

    /// The choice of a load balancer for an earlier packet of the same direction of the flow of a packet that passes an
    /// agent's NIC: `at`, as for [`Model::judge`]. The packet leaves the NIC if its source is the address there, and comes to it
    /// otherwise.
    pub(super) fn earlier_choice(
        &self,
        agent: &Agent,
        at: (IpAddr, Option<&Nic>),
        packet: &Packet,
        flows: &Flows,
    ) -> Option<Choice> {
        let (flow, is_forward) = self.known_flow(agent, at, packet, flows)?;
        match is_forward {
            true => flow.choice.clone(),
            false => flow.choice_for_replies.clone(),
        }
    }

    /// L5: the front end's address and port with which a reply leaves the NIC of a back end. None: the packet is no such reply,
    /// or keeps its source.
    pub(super) fn replies_from(
        &self,
        agent: &Agent,
        at: (IpAddr, Option<&Nic>),
        packet: &Packet,
        flows: &Flows,
    ) -> Option<(IpAddr, u16)> {
        let (flow, is_forward) = self.known_flow(agent, at, packet, flows)?;
        let rule = self.rule_of(flow.choice.as_ref()?)?;
        let port = if rule.front.1 == 0 {
            packet.ports.0
        } else {
            rule.front.1
        };
        (!is_forward && !rule.floating_ip).then_some((rule.front.0, port))
    }

    /// The flow of a packet that passes an agent's NIC, and whether the packet is one of the end that began it. See
    /// [`Self::earlier_choice`].
    fn known_flow<'f>(
        &self,
        agent: &Agent,
        at: (IpAddr, Option<&Nic>),
        packet: &Packet,
        flows: &'f Flows,
    ) -> Option<(&'f Flow, bool)> {
        let place = self.place(agent, at).ok().flatten()?;
        let inbound = at.0 == packet.destination;
        let of = |f: &Flow| {
            let there = (packet.source, packet.destination, packet.ports);
            let back = (packet.destination, packet.source, (packet.ports.1, packet.ports.0));
            let ends = (f.source, f.destination, f.ports);
            match f.inbound == inbound {
                true => (ends == there).then_some(true),
                false => (ends == back).then_some(false),
            }
        };
        let is_here = |f: &&Flow| {
            let is_of_nic = f.agent == agent.name && f.nic == place.nic && f.protocol == packet.protocol;
            is_of_nic && !f.is_over(flows.now)
        };
        let mut here = flows.known.iter().filter(is_here);
        here.find_map(|f| Some((f, of(f)?)))
    }

    /// D28: whether rules alone decide about packets of a peer with `allowVirtualNetworkAccess` off, at the NIC that a
    /// packet passes. If not, such packets are dropped (P17).
    #[must_use]
    pub fn rules_replace_access(&self, agent: &Agent, at: (IpAddr, Option<&Nic>)) -> bool {
        let place = self.place(agent, at).ok().flatten();
        !self.access_off_blocks && place.is_some_and(|place| place.has_group())
    }

    /// The NICs and subnets with a group whose rules the agent enforces (D25).
    fn secured(&self, agent: &Agent) -> BTreeSet<String> {
        let mut secured = BTreeSet::new();
        for nic in self.nics_of(agent) {
            if self.place_of(nic).has_group() {
                secured.insert(nic.name.clone());
            }
        }
        let home = self.vnets.iter().find(|v| v.name == agent.vnet);
        let subnets = home.into_iter().flat_map(|v| &v.subnets);
        for subnet in subnets.filter(|s| agent.served.contains(&s.name)) {
            if self.security_group(subnet.security.as_ref()).is_some() {
                secured.insert(format!("subnet {}", subnet.name));
            }
            let has_agent = |n: &Nic| self.agents.iter().any(|a| !a.revoked && a.nics.contains(&n.name));
            let others = self
                .nics
                .iter()
                .filter(|n| n.vnet == agent.vnet && n.subnet == subnet.name);
            for nic in others.filter(|n| n.security.is_some() && !has_agent(n)) {
                secured.insert(nic.name.clone());
            }
        }
        secured
    }

    /// The NIC of an agent whose rules apply to a packet with this address that passes `nic`: a machine that the agent
    /// serves (D25), or `nic` itself (D37). Without `nic`: the NIC that has the address. `Ok(None)`: there is none.
    /// `Err`: the specification does not decide.
    fn place(&self, agent: &Agent, (address, nic): (IpAddr, Option<&Nic>)) -> Result<Option<Place<'_>>, &'static str> {
        let nics = self.nics_of(agent);
        let passed = |n: &&Nic| nic.map_or_else(|| n.addresses.contains(&address), |nic| n.name == nic.name);
        let passed = nics.into_iter().find(passed).map(|n| self.place_of(n));
        if self.addresses_of(agent).contains(&address) {
            return Ok(passed);
        }
        // L5: with floating IP, packets of a back end have the address of the front end, which can be in a served subnet.
        let is_member = |nic: &Nic| {
            let front_end = self.front_end(&agent.vnet, address);
            front_end.is_some_and(|place| self.members_of(place).iter().any(|m| nic.addresses.contains(m)))
        };
        if nic.is_some_and(is_member) {
            return Ok(passed);
        }
        let home = self.vnets.iter().find(|v| v.name == agent.vnet);
        let subnets = home.into_iter().flat_map(|v| &v.subnets);
        let mut served = subnets.filter(|s| agent.served.contains(&s.name));
        if let Some(subnet) = served.find(|s| within(&s.prefixes, address)) {
            let in_subnet = |n: &&Nic| n.vnet == agent.vnet && n.subnet == subnet.name;
            let nic = self
                .nics
                .iter()
                .filter(in_subnet)
                .find(|n| n.addresses.contains(&address));
            let has_agent = |n: &Nic| self.agents.iter().any(|a| !a.revoked && a.nics.contains(&n.name));
            return match nic {
                Some(nic) if has_agent(nic) && nic.security.is_some() => Err("a group of a NIC that has its own agent"),
                Some(nic) => Ok(Some(self.place_of(nic))),
                None => Ok(Some(Place {
                    nic: address.to_string(),
                    vnet: home.map_or("", |v| v.name.as_str()),
                    subnet: &subnet.name,
                    subnet_group: self.security_group(subnet.security.as_ref()),
                    nic_group: None,
                })),
            };
        }
        Ok(passed)
    }

    fn place_of<'m>(&'m self, nic: &'m Nic) -> Place<'m> {
        let home = self.vnet(&nic.vnet);
        let subnet = home.and_then(|v| v.subnets.iter().find(|s| s.name == nic.subnet));
        Place {
            nic: nic.name.clone(),
            vnet: &nic.vnet,
            subnet: &nic.subnet,
            subnet_group: self.security_group(subnet.and_then(|s| s.security.as_ref())),
            nic_group: self.security_group(nic.security.as_ref()),
        }
    }

    fn security_group(&self, name: Option<&String>) -> Option<&SecurityGroup> {
        self.security_groups.iter().find(|g| Some(&g.name) == name)
    }

    /// N4: inbound packets pass the group of the subnet and then that of the NIC, outbound packets the other way round. The
    /// first group that denies ends it.
    fn ask_groups(
        &self,
        agent: &Agent,
        place: &Place<'_>,
        inbound: bool,
        protocol: Protocol,
        ends: &Ends,
    ) -> Vec<Decision> {
        let mut order = [place.subnet_group, place.nic_group];
        if !inbound {
            order.reverse();
        }
        let mut decisions = Vec::new();
        for group in order.into_iter().flatten() {
            let (rule, allow) = self.first_match(group, place, inbound, protocol, ends);
            decisions.push(Decision {
                agent: agent.name.clone(),
                nic: place.nic.clone(),
                inbound,
                group: group.name.clone(),
                rule,
                allow,
            });
            if !allow {
                break;
            }
        }
        decisions
    }

    /// N3: the rule with the lowest priority that matches: its name, and whether it allows the packet. The default rules
    /// come after all others, and the last of them matches every packet (N2).
    fn first_match(
        &self,
        group: &SecurityGroup,
        place: &Place<'_>,
        inbound: bool,
        protocol: Protocol,
        ends: &Ends,
    ) -> (String, bool) {
        let matches = |rule: &Rule| {
            rule.inbound == inbound
                && rule.protocol.is_none_or(|p| p == protocol)
                && self.has_address(&rule.source, place, ends.source)
                && self.has_address(&rule.destination, place, ends.destination)
                && has_ports(rule, protocol, ends.ports)
        };
        let mut best: Option<(usize, &Rule)> = None;
        for (index, rule) in group.rules.iter().enumerate().filter(|(_, r)| matches(r)) {
            if best.is_none_or(|(_, other)| rule.priority < other.priority) {
                best = Some((index, rule));
            }
        }
        if let Some((index, rule)) = best {
            return (format!("securityRules/r{index}"), rule.allow);
        }
        let inside = |address| self.has_address(&Addresses::VirtualNetwork, place, address);
        let (name, allow) = if inside(ends.source) && inside(ends.destination) {
            (
                if inbound {
                    "AllowVnetInBound"
                } else {
                    "AllowVnetOutBound"
                },
                true,
            )
        } else if inbound && ends.source == HOST_ADDRESS {
            ("AllowAzureLoadBalancerInBound", true)
        } else if !inbound && self.has_address(&Addresses::Internet, place, ends.destination) {
            ("AllowInternetOutBound", true)
        } else {
            (if inbound { "DenyAllInBound" } else { "DenyAllOutBound" }, false)
        };
        (format!("defaultSecurityRules/{name}"), allow)
    }

    /// Whether one side of a rule matches an address at this NIC (N8, N9).
    fn has_address(&self, side: &Addresses, place: &Place<'_>, address: IpAddr) -> bool {
        match side {
            Addresses::Any => true,
            Addresses::VirtualNetwork => within(&self.virtual_network(place.vnet, place.subnet), address),
            Addresses::Internet => !within(&self.virtual_network(place.vnet, place.subnet), address),
            Addresses::LoadBalancer => address == HOST_ADDRESS,
            Addresses::Prefixes(prefixes) => within(prefixes, address),
            Addresses::Groups(groups) => {
                let mut members = self
                    .nics
                    .iter()
                    .filter(|n| n.application_groups.iter().any(|g| groups.contains(g)));
                members.any(|n| n.addresses.contains(&address))
            }
        }
    }

    /// N8: the prefixes of the tag `VirtualNetwork` at the NICs of a subnet.
    #[must_use]
    pub fn virtual_network(&self, vnet: &str, subnet: &str) -> Vec<IpNet> {
        let mut prefixes = vec![IpNet::from(HOST_ADDRESS)];
        let Some(home) = self.vnet(vnet) else {
            return prefixes;
        };
        prefixes.extend(&home.space);
        // P17: a peer belongs to the tag if this VNet's half with it has access.
        for half in home
            .peerings
            .iter()
            .filter(|p| p.state == State::Connected && p.flags.access)
        {
            prefixes.extend(&half.remote_space);
        }
        let subnet = home.subnets.iter().find(|s| s.name == subnet);
        let table = self
            .tables
            .iter()
            .find(|t| subnet.is_some_and(|s| s.table.as_ref() == Some(&t.name)));
        if !table.is_some_and(|t| t.no_gateway_routes)
            && let Some(hub) = self.gateway_for(vnet)
        {
            for far in self.connected_to(&hub) {
                prefixes.extend(self.reachable_via(&hub, far));
            }
            prefixes.extend(self.accepted_from_site(&hub));
        }
        prefixes.extend(table.into_iter().flat_map(|t| &t.routes).map(|(prefix, _)| *prefix));
        prefixes
    }
}

/// Whether the ports of a packet match those of a rule. An ICMP packet has no ports (N1): it matches a rule for all protocols
/// only if the rule is for all ports, and a rule for ICMP whatever ports the rule names.
fn has_ports(rule: &Rule, protocol: Protocol, (source, destination): (u16, u16)) -> bool {
    if rule.protocol == Some(Protocol::Icmp) {
        return true;
    }
    let sources: Vec<_> = rule.source_ports.into_iter().collect();
    let covers = |ranges: &[(u16, u16)], port: u16| {
        let inside = |(first, last): &(u16, u16)| protocol != Protocol::Icmp && (*first..=*last).contains(&port);
        ranges.is_empty() || ranges.iter().any(inside)
    };
    covers(&sources, source) && covers(&rule.destination_ports, destination)
}
