//! Differential test of one seed: it draws operations and packets, and plays them against the model and the product.

mod choices;

use self::choices::Choices;
use crate::model::security::{Flows, HOST_ADDRESS};
use crate::model::walk::TTL;
use crate::model::{Fate, Model, Ruling, Why};
use crate::operation::{Operation, Origin, Packet, Part, Protocol, Universe, gateway_agent, site_device};
use crate::policy::{Port, prediction};
use crate::product::Product;
use crate::world::{End, Ends, Mutation, Outcome, World};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::fabric;
use tombolo_proto::fabric::ExplainRequest;
use tombolo_topology::explain::{Explanation, Walk, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::nic_security::NicSecurity;
use tombolo_topology::topology::Topology;

/// The source port of a script's first packet in the first round; each further packet has the next one.
const FIRST_PORT: u16 = 40_000;

/// The number of packets of a script.
const PACKETS: u16 = 150;

/// The times that may pass between two packets of a flow, in seconds. A flow can have no packets for one of these times
/// or for a sum of them. No such sum is equal to a timeout, because all timeouts are multiples of 10.
const PAUSES: [u16; 16] = [0, 0, 0, 0, 0, 0, 7, 7, 27, 47, 67, 127, 247, 427, 907, 1807];

/// The operations and packets of a seed.
#[derive(Debug, Clone)]
pub struct Script {
    /// The seed from which [`Script::draw`] drew the rest.
    pub seed: u64,
    /// The operations, in order. Packets are sent after the last set-up operation, and after each operation that follows it.
    pub operations: Vec<Operation>,
    /// The number of set-up operations, at the start of `operations`.
    pub setup_length: usize,
    /// The packets that are sent in each round, all of them. In each round they have other source ports.
    pub packets: Vec<Packet>,
    /// For each round: the seconds before the flows of the previous round get further packets, and the seconds before
    /// they get packets once more. After the last pair, the list begins again.
    pub pauses: Vec<[u16; 2]>,
}

impl Script {
    /// Draws the script of a seed: the set-up, 4 to 16 further operations, and 150 packets. The same seed gives the
    /// same script.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let universe = Universe::draw(&mut rng);
        let mut operations = universe.setup(&mut rng);
        let setup_length = operations.len();
        for _ in 0..rng.random_range(4..=16_u8) {
            operations.push(universe.operation(&mut rng));
        }
        let packets = (0..PACKETS).map(|number| packet(&universe, number, &mut rng)).collect();
        let pauses = (0..16).map(|_| [(); 2].map(|()| PAUSES[rng.random_range(0..PAUSES.len())]));
        let pauses = pauses.collect();
        Self {
            seed,
            operations,
            setup_length,
            packets,
            pauses,
        }
    }
}

/// The packet with the source port of a round. Engines keep the flows of earlier rounds, so a packet is the first one of a
/// flow only with a new port. `round` counts from 0. ICMP has an identifier instead of ports.
fn in_round(packet: &Packet, round: u16) -> Packet {
    let port = packet.ports.0.wrapping_add(round.wrapping_mul(PACKETS));
    let ports = match packet.protocol {
        Protocol::Icmp => (port, port),
        Protocol::Tcp | Protocol::Udp => (port, packet.ports.1),
    };
    Packet {
        ports,
        ..packet.clone()
    }
}

/// Draws a packet. Most come from a VM's kernel with the VM's own address. Some of the packets have a spoofed source.
/// Others enter on a link, as a stale or hostile peer might send them. `number` is the position of the packet in the script.
fn packet<R: Rng>(universe: &Universe, number: u16, rng: &mut R) -> Packet {
    const PORTS: [u16; 4] = [7, 22, 80, 443];
    let protocol = match rng.random_range(0..10_u8) {
        0..5 => Protocol::Udp,
        5..8 => Protocol::Tcp,
        _ => Protocol::Icmp,
    };
    let ports = (FIRST_PORT + number, PORTS[rng.random_range(0..PORTS.len())]);
    let (origin, source, destination) = ends(universe, rng);
    Packet {
        origin,
        source,
        destination,
        protocol,
        ports,
        part: Part::First,
    }
}

/// Draws the origin, the source and the destination of a packet.
fn ends<R: Rng>(universe: &Universe, rng: &mut R) -> (Origin, IpAddr, IpAddr) {
    loop {
        let plan = universe.any(rng);
        let v4 = rng.random_bool(0.8);
        let destination = match universe.front_end(v4, rng) {
            Some(front_end) if rng.random_bool(0.35) => front_end,
            _ => universe.address(v4, rng),
        };
        let Some((vm, nics, _)) = plan.vms.choose(rng) else {
            continue;
        };
        let own = || {
            let nic = plan.nics.iter().find(|(n, _, _)| Some(n) == nics.first())?;
            nic.2.iter().find(|a| a.is_ipv4() == v4).copied()
        };
        let source = match own() {
            Some(own) if rng.random_bool(0.8) => own,
            _ if v4 && rng.random_bool(0.3) => HOST_ADDRESS,
            _ => universe.address(v4, rng),
        };
        if source == destination {
            continue;
        }
        let origin = if rng.random_bool(0.65) {
            Origin::Kernel { agent: vm.clone() }
        } else {
            // The set-up creates gateways in the first and the third VNet.
            let gateway = |rng: &mut R| {
                let hubs = [&universe.vnets[0], &universe.vnets[2]];
                let plan = if rng.random_bool(0.9) {
                    hubs[rng.random_range(0..2)]
                } else {
                    universe.any(rng)
                };
                gateway_agent(&plan.name)
            };
            if rng.random_bool(0.15) {
                let to = gateway(rng);
                let from = site_device(to.trim_end_matches("-gw"));
                let origin = Origin::Link { from, to };
                return (origin, universe.address(v4, rng), destination);
            }
            let from = if rng.random_bool(0.25) {
                gateway(rng)
            } else {
                vm.clone()
            };
            let to = match universe.any(rng).vms.choose(rng) {
                Some(other) if rng.random_bool(0.7) => other.0.clone(),
                _ => gateway(rng),
            };
            if from == to {
                continue;
            }
            Origin::Link { from, to }
        };
        return (origin, source, destination);
    }
}

/// Plays a script against the model alone. Returns the fates of all packets after each operation that follows the
/// set-up, in order. An operation that the specification does not decide counts as accepted. The packets' fates of one
/// operation are in the order of [`Script::packets`].
#[must_use]
pub fn run_model(script: &Script) -> Vec<Fate> {
    let mut model = Model::default();
    let mut fates = Vec::new();
    for (number, operation) in script.operations.iter().enumerate() {
        if !matches!(model.validate(operation), Ruling::Refuse(_)) {
            model.apply(operation);
        }
        if number >= script.setup_length {
            fates.extend(script.packets.iter().map(|p| model.fate(p, &mut Flows::default())));
        }
    }
    fates
}

/// Counters of a run without a difference.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Packets whose ends were compared. A packet counts each time that it is sent.
    pub compared: u32,
    /// Packets that were not compared, because the specification does not decide their end.
    pub open: u32,
    /// Operations that the product accepted.
    pub accepted: u32,
    /// Operations that the product refused.
    pub refused: u32,
    /// Packets among `compared` that a security group dropped. The deciding rules were compared too.
    pub denied: u32,
    /// Replies of allowed flows among `compared` (N6).
    pub replies: u32,
    /// Packets of allowed flows among `compared` that were sent after a further operation (N6).
    pub continued: u32,
    /// Decisions at NICs that let a packet pass because of its flow, although a rule denied it (N6).
    pub saved: u32,
    /// Decisions of rules at NICs about packets whose flow had been idle for too long (N6, D31).
    pub late: u32,
    /// Packets of established flows that the changed rules denied, because the setting `reevaluate` is on (D34).
    pub ended: u32,
    /// Packets among `compared` for which a load balancer has chosen a back end.
    pub balanced: u32,
}

impl Tally {
    /// Adds the counters of another run.
    pub fn add(&mut self, other: &Self) {
        self.compared += other.compared;
        self.open += other.open;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.denied += other.denied;
        self.replies += other.replies;
        self.continued += other.continued;
        self.saved += other.saved;
        self.late += other.late;
        self.ended += other.ended;
        self.balanced += other.balanced;
    }
}

/// Plays a script against model and product. Model and product must agree on which operations are refused and with
/// which codes, on the path and the end of each packet, and on the security rules that deny it. A refused operation must
/// leave the topology unchanged. `mutation` is a defect that a test injects into the product. With a defect, a comparison
/// that works returns an error.
///
/// A round of packets follows each operation. It begins with further packets and replies of the previous round's flows,
/// after pauses in which some of these flows end (N6, D31).
///
/// # Errors
/// The first difference: the number of operations up to and including the one that shows it, and a description.
///
/// # Panics
/// As [`World::new`], [`World::send`] and [`Product::perform`]. A script of [`Script::draw`] gives no cause for this.
pub fn play(script: &Script, mutation: Option<Mutation>) -> Result<Tally, (usize, String)> {
    let mut comparison = Comparison {
        model: Model::default(),
        flows: Flows::default(),
        world: World::new(mutation),
        established: Vec::new(),
        choices: Choices::default(),
        tally: Tally::default(),
    };
    let mut product = Product::new();
    let mut is_current = false;
    let mut shown = Model::default();
    for (number, operation) in script.operations.iter().enumerate() {
        let ruling = comparison.model.validate(operation);
        let before = product.topology.clone();
        let answer = product.perform(operation);
        let difference = match (&ruling, &answer) {
            (Ruling::Accept, Err(refused)) => Some(format!("must be accepted, but is refused: {refused:?}")),
            (Ruling::Refuse(codes), Ok(())) => Some(format!("must be refused ({codes:?}), but is accepted")),
            (Ruling::Refuse(codes), Err(refused)) => codes
                .iter()
                .find(|code| !refused.problems.iter().any(|p| p.code == **code))
                .map(|code| format!("{code} is missing among {refused:?}")),
            (Ruling::Accept | Ruling::Either, Ok(())) | (Ruling::Either, Err(_)) => None,
        };
        if let Some(difference) = difference {
            return Err((number + 1, format!("{operation:?}: {difference}")));
        }
        if answer.is_ok() {
            comparison.apply(operation);
            is_current = false;
        } else {
            comparison.tally.refused += 1;
            if !product.topology.documents_since(&before).is_empty() {
                return Err((
                    number + 1,
                    format!("{operation:?}: refused, but the topology has changed"),
                ));
            }
        }
        if number + 1 < script.setup_length {
            continue;
        }
        if !is_current {
            comparison.world.set_unhealthy(&product.unhealthy);
            comparison.world.update(&product.topology, &product.announced);
            comparison.flows.update(&shown, &comparison.model);
            shown.clone_from(&comparison.model);
            is_current = true;
        }
        let round = u16::try_from(number + 1 - script.setup_length).unwrap_or(u16::MAX);
        comparison
            .round(script, round)
            .map_err(|difference| (number + 1, difference))?;
    }
    Ok(comparison.tally)
}

/// The state of a run of [`play`].
struct Comparison {
    model: Model,
    /// The flows that the model knows: those of the last round.
    flows: Flows,
    world: World,
    /// The packets of the last round, replies included, whose flows a NIC with a security group has kept.
    established: Vec<Packet>,
    /// The choices of load balancers so far.
    choices: Choices,
    tally: Tally,
}

impl Comparison {
    /// Applies an operation that the product accepted.
    fn apply(&mut self, operation: &Operation) {
        self.model.apply(operation);
        self.tally.accepted += 1;
        // Another machine gets the agent's name, and does not know the flows of the one before.
        let replaced = match operation {
            Operation::JoinVm { vm, .. } => Some(vm.clone()),
            Operation::JoinGateway { vnet } => Some(gateway_agent(vnet)),
            Operation::Revoke { agent } | Operation::DeleteAgent { agent } => Some(agent.clone()),
            _ => None,
        };
        if let Some(agent) = replaced {
            self.flows.forget_agent(&agent);
            self.world.remove(&agent);
        }
    }

    fn round(&mut self, script: &Script, round: u16) -> Result<(), String> {
        let established = std::mem::take(&mut self.established);
        let pauses = script.pauses.get(usize::from(round) % script.pauses.len().max(1));
        for pause in pauses.into_iter().flatten() {
            self.flows.now += u64::from(*pause);
            self.world.pass((*pause).into());
            // If the specification does not decide about a packet, it does not decide the state of its flow either.
            'flows: for flow in established.chunks(2) {
                for packet in flow {
                    let part = match packet.part {
                        Part::First => Part::Later,
                        part => part,
                    };
                    let sent = Packet { part, ..packet.clone() };
                    if self.send(&sent)?.is_none() {
                        continue 'flows;
                    }
                    self.tally.continued += 1;
                }
            }
        }
        self.tally.saved += self.flows.saved;
        self.tally.late += self.flows.late;
        self.tally.ended += self.flows.ended;
        self.flows.forget();
        for packet in &script.packets {
            let packet = in_round(packet, round);
            let before = self.flows.known.len();
            let fate = self.send(&packet)?;
            let is_kept = self.flows.known.len() > before;
            let Some(Fate::Delivered { path }) = fate.filter(|_| is_kept) else {
                continue;
            };
            // The destination answers the packet that it got, which a load balancer may have translated.
            let arrived = self.flows.arrived.clone().unwrap_or_else(|| packet.clone());
            let reply = arrived.reply(reply_origin(&path));
            // If the specification does not decide whether the reply arrives, it does not decide the flow's state either.
            if self.send(&reply)?.is_none() {
                continue;
            }
            self.tally.replies += 1;
            self.established.extend([packet.clone(), reply.clone()]);
            if packet.protocol == Protocol::Tcp {
                self.go_on(&packet, &reply)?;
            }
        }
        Ok(())
    }

    /// Lets a TCP connection go on: some complete the handshake, and some of these close the connection, or reset it.
    fn go_on(&mut self, packet: &Packet, reply: &Packet) -> Result<(), String> {
        use Part::{Close, Later, Reset};
        let parts: &[(bool, Part)] = match packet.ports.0 % 8 {
            0 | 1 => &[],
            2 | 3 => &[(true, Later), (true, Close), (false, Close)],
            4 => &[(true, Later), (false, Reset)],
            5 => &[(true, Later), (true, Close)],
            _ => &[(true, Later)],
        };
        for (forward, part) in parts {
            let ends = if *forward { packet } else { reply };
            let sent = Packet {
                part: *part,
                ..ends.clone()
            };
            self.send(&sent)?;
        }
        Ok(())
    }

    /// Sends a packet in model and product. Returns its fate. None: the specification does not decide.
    fn send(&mut self, packet: &Packet) -> Result<Option<Fate>, String> {
        let mut fates = self.model.fates(packet, &self.flows);
        let denying = |fate: &Fate| match fate {
            Fate::Lost { path, why } if why[..] == [Why::Security] => path.last().cloned(),
            _ => None,
        };
        let agents = fates.iter().filter_map(|(fate, _)| denying(fate));
        let before: BTreeMap<String, RuleHits> = agents.map(|a| (a.clone(), self.world.rule_hits(&a))).collect();
        let outcome = self.world.send(packet);
        if let Some(at) = fates.iter().position(|(fate, _)| matches!(fate, Fate::Unspecified(_))) {
            self.tally.open += 1;
            self.flows = fates.swap_remove(at).1;
            return Ok(None);
        }
        let all: Vec<Fate> = fates.iter().map(|(fate, _)| fate.clone()).collect();
        fates.retain(|(fate, flows)| compare(fate, flows, outcome.as_ref()));
        if fates.is_empty() {
            return Err(format!("{packet:?}\n  model:   {all:?}\n  product: {outcome:?}"));
        }
        self.tally.compared += 1;
        let mut difference = String::new();
        fates.retain(|(fate, flows)| {
            let Some(agent) = denying(fate) else { return true };
            let decided = new_hits(&before[&agent], &self.world.rule_hits(&agent));
            let mut expected = BTreeMap::new();
            for decision in flows.decided.iter().filter(|d| d.agent == agent) {
                let rule = (decision.group.clone(), decision.rule.clone());
                *expected.entry(rule).or_default() += 1;
            }
            difference = format!("{packet:?}: the deciding rules\n  model:   {expected:?}\n  product: {decided:?}");
            decided == expected
        });
        let is_certain = fates.len() == 1;
        let Some((fate, flows)) = fates.into_iter().next() else {
            return Err(difference);
        };
        self.tally.denied += u32::from(denying(&fate).is_some());
        self.tally.balanced += u32::from(flows.is_balanced);
        if is_certain {
            for fresh in &flows.fresh {
                self.choices.note(fresh).map_err(|why| format!("{packet:?}: {why}"))?;
            }
        }
        self.flows = flows;
        Ok(Some(fate))
    }
}

/// The place where the answer to a packet that took this path enters the fabric.
pub(crate) fn reply_origin(path: &[String]) -> Origin {
    match path {
        [.., gateway, site] if site.ends_with("-site") => Origin::Link {
            from: site.clone(),
            to: gateway.clone(),
        },
        _ => Origin::Kernel {
            agent: path.last().cloned().unwrap_or_default(),
        },
    }
}

/// How often rules have decided, by the names of their group and their own.
type RuleHits = BTreeMap<(String, String), u64>;

fn new_hits(before: &RuleHits, after: &RuleHits) -> RuleHits {
    let more = after.iter().map(|(rule, count)| {
        let known = before.get(rule).copied().unwrap_or_default();
        (rule.clone(), count - known)
    });
    more.filter(|(_, count)| *count > 0).collect()
}

/// Whether product and model agree about a packet, if the specification decides. No `outcome` means that the packet came
/// to an agent without a configuration, or to an endpoint that no agent has ([`World::send`]); this is always a
/// difference.
fn compare(fate: &Fate, flows: &Flows, outcome: Option<&Outcome>) -> bool {
    let Some(outcome) = outcome else { return false };
    match fate {
        Fate::Unspecified(_) => true,
        Fate::Delivered { path } => {
            let arrived = flows.arrived.as_ref().map(Ends::of);
            outcome.end == End::Delivered && outcome.path == *path && outcome.arrived == arrived
        }
        Fate::Lost { path, why } => {
            let same = outcome.end.loss_reason().is_some_and(|w| why.contains(&w));
            // The path of a loop depends on the initial TTL, which is not part of the specification, so only the reason is
            // compared.
            same && (why.contains(&Why::Loop) || outcome.path == *path)
        }
    }
}

/// Plays a script repeatedly with fewer operations and packets. Returns the smallest script found that still differs,
/// with the description of its difference, which may be another one than the first. A script without a difference is
/// returned unchanged, with the text "no difference". `mutation` is as for [`play`].
///
/// # Panics
/// As [`play`].
#[must_use]
pub fn shrink(script: &Script, mutation: Option<Mutation>) -> (Script, String) {
    // A difference in a flow of the round before needs two rounds, all others only one.
    let fails = |s: &Script| {
        let rounds = |count: usize| Script {
            setup_length: s.operations.len().saturating_sub(count - 1),
            ..s.clone()
        };
        [rounds(1), rounds(2)].into_iter().find_map(|script| {
            let (length, text) = play(&script, mutation).err()?;
            Some((script, length, text))
        })
    };
    let Some((length, mut text)) = play(script, mutation).err() else {
        return (script.clone(), "no difference".into());
    };
    let mut small = script.clone();
    small.operations.truncate(length);
    small.setup_length = small.setup_length.min(length);
    for packet in &script.packets {
        let one = Script {
            packets: vec![packet.clone()],
            ..small.clone()
        };
        if let Some((one, _, why)) = fails(&one) {
            (small, text) = (one, why);
            break;
        }
    }
    let mut at = 0;
    while at < small.operations.len() {
        let mut less = small.clone();
        less.operations.remove(at);
        match fails(&less) {
            // A difference after fewer operations would be another defect.
            Some((less, length, why)) if length == less.operations.len() => (small, text) = (less, why),
            _ => at += 1,
        }
    }
    (small, text)
}

/// A text for people about a script's difference: the seed, the shrunk operations, and the difference. For a script
/// without a difference, the text ends in "no difference". Shrinking plays the script up to once for each operation and
/// each packet.
///
/// # Panics
/// As [`play`].
#[must_use]
pub fn report(script: &Script, mutation: Option<Mutation>) -> String {
    let (small, text) = shrink(script, mutation);
    let operations: Vec<_> = small.operations.iter().map(|o| format!("  {o:?}")).collect();
    let seed = script.seed;
    format!(
        "seed {seed} (TOMBOLO_SEED={seed} repeats it): model and product differ after\n{}\n{text}",
        operations.join("\n")
    )
}

/// Compares `explain` with sent packets after the script's last operation: both must give the same agents and the same
/// end and, if the packet is lost, the same drop reason and the same denying security rules. If the packet arrives, the
/// same holds for its reply. IP flow verify must name the same rules (M4). Packets that enter on a link are left out,
/// because `explain` begins at an agent. Also left out are packets whose sender `explain` does not know, and packets
/// that a failed handshake stops. Returns the number of compared packets, without the replies.
///
/// # Errors
/// The first difference, as text.
///
/// # Panics
/// As [`play`].
pub fn check_explain(script: &Script) -> Result<u32, String> {
    let mut product = Product::new();
    for operation in &script.operations {
        // A refusal is no error here: `play` compares refusals.
        let _ = product.perform(operation);
    }
    let mut world = World::new(None);
    world.update(&product.topology, &BTreeMap::new());
    let mut compared = 0;
    for packet in &script.packets {
        let Origin::Kernel { agent } = &packet.origin else {
            continue;
        };
        // The agent of a back end takes such packets for replies to its probes (L6).
        if packet.destination == HOST_ADDRESS && !product.topology.load_balancers.is_empty() {
            continue;
        }
        let is_icmp = packet.protocol == Protocol::Icmp;
        let question = ExplainRequest {
            from: agent.clone(),
            to: packet.destination.to_string(),
            protocol: match packet.protocol {
                Protocol::Tcp => fabric::Protocol::Tcp,
                Protocol::Udp => fabric::Protocol::Udp,
                Protocol::Icmp => fabric::Protocol::Icmp,
            },
            destination_port: (!is_icmp).then_some(packet.ports.1),
            ttl: Some(TTL),
            design: false,
        };
        // An error means that the sender does not exist or has no address of that family, so no packet can be compared.
        let Ok(answer) = explain(&product.topology, &LearnedReports::default(), &question) else {
            continue;
        };
        // `explain` has this source port or identifier.
        let ports = if is_icmp { (1, 1) } else { (49_152, packet.ports.1) };
        let sent = Packet {
            source: answer.source,
            ports,
            ..packet.clone()
        };
        world.forget_flows();
        let Some(outcome) = send_explained(&mut world, &sent, &answer.request, &answer, script)? else {
            continue;
        };
        compared += 1;
        let is_front_end = |address: IpAddr| {
            let mut front_ends = product.topology.load_balancers.values().flat_map(|b| &b.front_ends);
            front_ends.any(|f| f.address == address)
        };
        // IP flow verify asks about the addresses of the back end.
        if !is_front_end(sent.destination) {
            verify(&product.topology, &sent, &answer.request)
                .map_err(|difference| format!("seed {}: {sent:?}: {difference}", script.seed))?;
        }
        if let (End::Delivered, Some(reply)) = (outcome.end, &answer.reply) {
            let mut got = sent.clone();
            if let Some(arrived) = outcome.arrived {
                // A back end behind the client's agent sees the front end as source.
                (got.source, got.destination) = (arrived.source, arrived.destination);
                if sent.protocol != Protocol::Icmp {
                    got.ports = arrived.ports;
                }
            }
            // With floating IP, no agent gets the replies from one end to another one behind the same agent.
            if outcome.path.len() == 1 && is_front_end(got.destination) {
                continue;
            }
            let sent = got.reply(reply_origin(&outcome.path));
            send_explained(&mut world, &sent, reply, &answer, script)?;
        }
    }
    Ok(compared)
}

/// Compares IP flow verify with the rules that `explain` names at the NICs on the way of a packet (M4). Machines
/// without a NIC resource are left out, because IP flow verify asks about NICs.
fn verify(topology: &Topology, sent: &Packet, walk: &Walk) -> Result<(), String> {
    let checks = walk.hops.iter().filter_map(|hop| hop.security.as_ref());
    for check in checks.filter(|check| topology.nics.contains_key(&check.at)) {
        let Some(expected) = prediction::decision(check) else {
            continue;
        };
        let rules = NicSecurity::of(topology, &LearnedReports::default(), &check.at)?;
        let port = Port(sent.protocol, sent.ports.1);
        let packet = prediction::first_packet(check.direction, (sent.source, sent.ports.0), (sent.destination, port));
        let decided = rules.as_ref().map(|rules| rules.decide(&packet));
        let name = decided.and_then(|d| Some(d.rule?.name.as_str()));
        let expected_name = expected.rules.last().map(|rule| rule.rule.as_str());
        if decided.map(|d| d.access) != Some(expected.access) || name != expected_name {
            return Err(format!(
                "{}: IP flow verify: {decided:?}, explain: {expected:?}",
                check.at.name()
            ));
        }
    }
    Ok(())
}

/// Sends a packet, and compares its way and its end with a walk of `explain`. None: they are not comparable.
fn send_explained(
    world: &mut World,
    sent: &Packet,
    walk: &Walk,
    answer: &Explanation,
    script: &Script,
) -> Result<Option<Outcome>, String> {
    let last = walk.hops.last();
    let before = last.map(|hop| world.rule_hits(hop.agent.as_str()));
    let Some(outcome) = world.send(sent) else {
        return Ok(None);
    };
    let explained: Vec<_> = walk.hops.iter().map(|h| h.agent.to_string()).collect();
    let stop = walk.stop.as_ref().map(|s| s.reason.as_str());
    let same = match outcome.end {
        // `explain` does not consider handshakes.
        End::KeyMismatch => return Ok(None),
        End::Delivered => walk.delivered && explained == outcome.path,
        // The walk of a reply has another TTL, so only the end of a loop is comparable.
        End::Dropped(DropReason::TtlExceeded | DropReason::TtlExceededSilent, _) | End::Kernel => {
            !walk.delivered && (sent.part == Part::Reply || explained == outcome.path)
        }
        End::Dropped(reason, _) => stop == Some(reason.name()) && explained == outcome.path,
        End::UnknownPeer => false,
    };
    let mut rules = BTreeMap::new();
    let mut hits = BTreeMap::new();
    if let (End::Dropped(DropReason::SecurityRule, _), Some(hop), Some(before)) = (outcome.end, last, before) {
        hits = new_hits(&before, &world.rule_hits(hop.agent.as_str()));
        let hops = walk.hops.iter().filter(|h| h.agent == hop.agent);
        let checks = hops.filter_map(|h| h.security.as_ref());
        for group in checks.flat_map(|check| &check.groups) {
            let rule = group.rule.as_ref().map_or_else(String::new, |r| r.name.clone());
            *rules.entry((group.group.name().to_owned(), rule)).or_default() += 1;
        }
    }
    if !same || hits != rules {
        return Err(format!(
            "seed {}: {sent:?}\n  happened:  {outcome:?} {hits:?}\n  explained: {explained:?} delivered {} stop {stop:?} \
             {rules:?}: {}",
            script.seed, walk.delivered, answer.summary
        ));
    }
    Ok(Some(outcome))
}
