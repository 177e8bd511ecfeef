//! Asks all questions about a policy without processes: the answers of `explain`, of IP flow verify, of the agents'
//! engines and of the reference model must be the same, and name the same rules.

use super::prediction::{Counters, Decision, Prediction, decision, first_packet, protocol, text};
use super::{CLIENT_PORT, PORTS, Policy, Port, Question};
use crate::arm;
use crate::differential::reply_origin;
use crate::model::security::{self, Flows};
use crate::model::walk::TTL;
use crate::model::{Fate, Model};
use crate::operation::{Operation, Origin, Packet, Part, Protocol};
use crate::product::Product;
use crate::world::{End, Mutation, World};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_engine::security::RuleName;
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::fabric::ExplainRequest;
use tombolo_proto::id::ResourceId;
use tombolo_topology::explain::{Explanation, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::nic_security::{FirstPacket, NicSecurity};

/// Counters of a run without a difference.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Questions that were asked.
    pub asked: u32,
    /// Questions about reachable ports.
    pub reachable: u32,
    /// Questions about packets, or replies, that a rule drops.
    pub denied: u32,
    /// Questions whose packet passes an appliance.
    pub forwarded: u32,
    /// Decisions at a NIC that IP flow verify was asked for.
    pub verified: u32,
    /// Questions that the specification does not decide. The reference model was not asked.
    pub open: u32,
}

impl Tally {
    /// Adds the counters of another run.
    pub fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.reachable += other.reachable;
        self.denied += other.denied;
        self.forwarded += other.forwarded;
        self.verified += other.verified;
        self.open += other.open;
    }

    /// Counts one question.
    pub(super) fn count(&mut self, question: &Question<'_>, answer: &Explanation, prediction: &Prediction) {
        self.asked += 1;
        self.reachable += u32::from(prediction.reachable);
        self.denied += u32::from(prediction.denied.is_some());
        let mut agents = answer.request.hops.iter().map(|hop| hop.agent.as_str());
        self.forwarded += u32::from(agents.any(|a| a != question.from.name && a != question.to.name));
    }
}

/// Asks questions about a policy, each with the probability `share`. `mutation` is a defect that a test injects into
/// the agents.
///
/// # Errors
/// The first difference, as text.
///
/// # Panics
/// As [`World::update`] and [`World::send`].
pub fn check(policy: &Policy, share: f64, mutation: Option<Mutation>) -> Result<Tally, String> {
    let mut parts = Parts::new(policy, mutation)?;
    let mut rng = StdRng::seed_from_u64(policy.seed);
    let mut tally = Tally::default();
    for question in PORTS.iter().flat_map(|port| policy.questions(*port)) {
        if rng.random_bool(share) {
            let asked = parts.ask(&question, &mut tally);
            asked.map_err(|difference| format!("seed {}: {question}: {difference}", policy.seed))?;
        }
    }
    Ok(tally)
}

/// The parts that answer questions.
struct Parts {
    product: Product,
    model: Model,
    world: World,
    /// The identifier of the last echo request. Each question about ICMP has its own, as each `ping` has: a flow of
    /// another question must not let a packet pass.
    identifier: u16,
    /// The rules of each NIC, as IP flow verify applies them. `None`: no group applies.
    nics: BTreeMap<ResourceId, Option<NicSecurity>>,
}

impl Parts {
    fn new(policy: &Policy, mutation: Option<Mutation>) -> Result<Self, String> {
        let mut product = Product::new();
        let mut model = Model::default();
        for operation in &policy.operations {
            let done = product.perform(operation);
            done.map_err(|refused| format!("seed {}: {operation:?} is refused: {refused:?}", policy.seed))?;
            model.apply(operation);
        }
        let mut world = World::new(mutation);
        world.update(&product.topology, &BTreeMap::new());
        let mut nics = BTreeMap::new();
        for operation in &policy.operations {
            if let Operation::PutNic { nic, .. } = operation {
                let id = nic_id(nic);
                let rules = NicSecurity::of(&product.topology, &LearnedReports::default(), &id)?;
                nics.insert(id, rules);
            }
        }
        Ok(Self {
            product,
            model,
            world,
            identifier: 0,
            nics,
        })
    }

    fn ask(&mut self, question: &Question<'_>, tally: &mut Tally) -> Result<(), String> {
        let request = ExplainRequest {
            ttl: Some(TTL),
            design: false,
            ..question.explain_request()
        };
        let answer = explain(&self.product.topology, &LearnedReports::default(), &request)?;
        let prediction = Prediction::of(&answer);
        if answer.source != question.source {
            return Err(format!("explain sends from {}", answer.source));
        }
        tally.count(question, &answer, &prediction);
        self.identifier += 1;
        let sent = question.packet(self.identifier);
        let predicted = prediction.counters();
        let (answered, counted) = self.send(&sent)?;
        let compare = |by: &str, answered: bool, counted: &Counters| {
            if answered == prediction.reachable && *counted == predicted {
                return Ok(());
            }
            let (counted, predicted) = (text(counted), text(&predicted));
            let summary = &answer.summary;
            Err(format!(
                "\n  {by}: answered {answered}{counted}\n  explain: {summary}{predicted}"
            ))
        };
        compare("engines", answered, &counted)?;
        match self.follow(&sent) {
            Some((answered, counted)) => compare("model", answered, &counted)?,
            None => tally.open += 1,
        }
        tally.verified += self.verify_walks(question, &answer)?;
        tally.verified += self.verify_ends(question, &sent)?;
        Ok(())
    }

    /// Sends the packet and, if it arrives, its reply through the engines. Returns whether the reply has arrived, and
    /// the rules that have counted.
    fn send(&mut self, sent: &Packet) -> Result<(bool, Counters), String> {
        let before = self.world.all_rule_hits();
        let outcome = self.world.send(sent).ok_or("an agent has no configuration")?;
        let mut answered = false;
        if outcome.end == End::Delivered {
            let reply = sent.reply(reply_origin(&outcome.path));
            let outcome = self.world.send(&reply).ok_or("an agent has no configuration")?;
            answered = outcome.end == End::Delivered;
        }
        Ok((answered, growth(&before, &self.world.all_rule_hits())))
    }

    /// Follows the packet and, if it arrives, its reply in the model. Returns the same as [`Self::send`]. `None`: the
    /// specification does not decide.
    fn follow(&self, sent: &Packet) -> Option<(bool, Counters)> {
        let mut flows = Flows::default();
        let fate = self.model.fate(sent, &mut flows);
        let mut decided = flows.decided.clone();
        let mut answered = false;
        if let Fate::Delivered { path } = &fate {
            let reply = self.model.fate(&sent.reply(reply_origin(path)), &mut flows);
            decided.extend(flows.decided.clone());
            answered = matches!(reply, Fate::Delivered { .. });
            if matches!(reply, Fate::Unspecified(_)) {
                return None;
            }
        }
        let mut counters = Counters::new();
        for rule in decided.iter().map(rule_name) {
            *counters.entry(rule).or_default() += 1;
        }
        (!matches!(fate, Fate::Unspecified(_))).then_some((answered, counters))
    }

    /// Compares IP flow verify with the decisions of `explain` at each NIC on the way (M4). Returns the number of
    /// decisions.
    fn verify_walks(&self, question: &Question<'_>, answer: &Explanation) -> Result<u32, String> {
        let mut verified = 0;
        let (there, back) = ((question.source, CLIENT_PORT), (question.destination, question.port.1));
        let walks = [
            (Some(&answer.request), there, back),
            (answer.reply.as_ref(), back, there),
        ];
        for (walk, source, destination) in walks {
            let hops = walk.into_iter().flat_map(|walk| &walk.hops);
            for check in hops.filter_map(|hop| hop.security.as_ref()) {
                let Some(expected) = decision(check) else { continue };
                let port = Port(question.port.0, destination.1);
                let packet = first_packet(check.direction, source, (destination.0, port));
                self.verify(&check.at, &packet, Some(&expected))?;
                verified += 1;
            }
        }
        Ok(verified)
    }

    /// Compares IP flow verify with the model at the two ends, whatever becomes of the packet (M4). Returns the number
    /// of decisions.
    fn verify_ends(&self, question: &Question<'_>, sent: &Packet) -> Result<u32, String> {
        let ends = [
            (question.from, question.source, Direction::Outbound),
            (question.to, question.destination, Direction::Inbound),
        ];
        for (machine, address, direction) in ends {
            let agent = self.model.agent(&machine.name).ok_or("no such agent in the model")?;
            let decided = self
                .model
                .decide(agent, address, direction == Direction::Inbound, sent)?;
            let expected = decided.last().map(|last| Decision {
                access: if last.allow { Access::Allow } else { Access::Deny },
                rules: decided.iter().map(rule_name).collect(),
            });
            let packet = first_packet(
                direction,
                (sent.source, sent.ports.0),
                (sent.destination, question.port),
            );
            self.verify(&nic_id(&machine.nic()), &packet, expected.as_ref())?;
        }
        Ok(2)
    }

    /// Compares the decision of IP flow verify with another one. `expected` is `None` if no group applies.
    fn verify(&self, nic: &ResourceId, packet: &FirstPacket, expected: Option<&Decision>) -> Result<(), String> {
        let rules = self.nics.get(nic).ok_or_else(|| format!("{nic} is no NIC"))?;
        let decided = rules.as_ref().map(|rules| rules.decide(packet));
        let name = decided.and_then(|d| Some(d.rule?.name.as_str()));
        let expected_name = expected.and_then(|d| Some(d.rules.last()?.rule.as_str()));
        if decided.map(|d| d.access) != expected.map(|d| d.access) || name != expected_name {
            return Err(format!(
                "{packet:?} at {}: IP flow verify: {decided:?}, expected: {expected:?}",
                nic.name()
            ));
        }
        Ok(())
    }
}

fn nic_id(name: &str) -> ResourceId {
    ResourceId::new(arm::network(&format!("networkInterfaces/{name}")))
}

/// The name of a rule that has decided in the model.
fn rule_name(decision: &security::Decision) -> RuleName {
    RuleName {
        nic: nic_id(&decision.nic),
        group: ResourceId::new(arm::network(&format!("networkSecurityGroups/{}", decision.group))),
        direction: if decision.inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        },
        rule: decision.rule.clone(),
    }
}

/// The counters that have grown, and by how much.
#[must_use]
pub fn growth(before: &Counters, after: &Counters) -> Counters {
    let more = after.iter().map(|(rule, count)| {
        let known = before.get(rule).copied().unwrap_or_default();
        (rule.clone(), count.saturating_sub(known))
    });
    more.filter(|(_, count)| *count > 0).collect()
}

impl Question<'_> {
    /// The question, as `explain` is asked.
    #[must_use]
    pub fn explain_request(&self) -> ExplainRequest {
        ExplainRequest {
            from: self.from.name.clone(),
            to: self.destination.to_string(),
            protocol: protocol(self.port.0),
            destination_port: (self.port.0 != Protocol::Icmp).then_some(self.port.1),
            ttl: None,
            design: false,
        }
    }

    /// The packet that the question is about, as `explain` sends it, except that an echo request has this identifier.
    fn packet(&self, identifier: u16) -> Packet {
        Packet {
            origin: Origin::Kernel {
                agent: self.from.name.clone(),
            },
            source: self.source,
            destination: self.destination,
            protocol: self.port.0,
            ports: match self.port.0 {
                Protocol::Icmp => (identifier, identifier),
                Protocol::Tcp | Protocol::Udp => (CLIENT_PORT, self.port.1),
            },
            part: Part::First,
        }
    }
}

impl std::fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, port) = (self.port.0, self.port.1);
        let ends: (IpAddr, IpAddr) = (self.source, self.destination);
        write!(
            f,
            "{} ({}) → {} ({}) {kind:?} {port}",
            self.from.name, ends.0, self.to.name, ends.1
        )
    }
}
