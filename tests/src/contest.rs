//! One seed's run: operations and packets, drawn once, then played against the model and the product.

use crate::model::walk::TTL;
use crate::model::{Fate, Model, Ruling, Why};
use crate::operation::{Operation, Origin, Packet, Universe, gateway_agent, site_device};
use crate::product::Product;
use crate::world::{End, Mutation, Outcome, World};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use tombolo_engine::verdict::DropReason;
use tombolo_topology::explain::{Protocol, Question, explain};
use tombolo_topology::learned_routes::LearnedReports;

/// What a seed stands for.
#[derive(Debug, Clone)]
pub struct Script {
    /// The seed.
    pub seed: u64,
    /// What happens, in order; packets are sent after each operation from `quiet` on.
    pub operations: Vec<Operation>,
    /// The founding: no packets before this many operations.
    pub quiet: usize,
    /// Packets that are sent after each operation.
    pub packets: Vec<Packet>,
}

impl Script {
    /// Draws a script.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let universe = Universe::draw(&mut rng);
        let mut operations = universe.founding(&mut rng);
        let quiet = operations.len();
        for _ in 0..rng.random_range(4..=16_u8) {
            operations.push(universe.operation(&mut rng));
        }
        let packets = (0..150).map(|_| packet(&universe, &mut rng)).collect();
        Self {
            seed,
            operations,
            quiet,
            packets,
        }
    }
}

/// A packet: mostly from a VM's kernel with its own address; sometimes spoofed, and sometimes on a link as a stale or
/// hostile far end might send it.
fn packet<R: Rng>(universe: &Universe, rng: &mut R) -> Packet {
    loop {
        let plan = universe.any(rng);
        let v4 = rng.random_bool(0.8);
        let destination = universe.address(v4, rng);
        let Some((vm, nics, _)) = plan.vms.choose(rng) else {
            continue;
        };
        let own = || {
            let nic = plan.nics.iter().find(|(n, _, _)| Some(n) == nics.first())?;
            nic.2.iter().find(|a| a.is_ipv4() == v4).copied()
        };
        let source = match own() {
            Some(own) if rng.random_bool(0.8) => own,
            _ => universe.address(v4, rng),
        };
        if source == destination {
            continue;
        }
        let origin = if rng.random_bool(0.65) {
            Origin::Kernel { agent: vm.clone() }
        } else {
            // Gateways mostly stand where the founding puts them.
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
                return Packet {
                    origin,
                    source: universe.address(v4, rng),
                    destination,
                };
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
        return Packet {
            origin,
            source,
            destination,
        };
    }
}

/// Plays a script against the model alone; accepts what the specification leaves open.
#[must_use]
pub fn rehearse(script: &Script) -> Vec<Fate> {
    let mut model = Model::default();
    let mut fates = Vec::new();
    for (number, operation) in script.operations.iter().enumerate() {
        if !matches!(model.judge(operation), Ruling::Refuse(_)) {
            model.accept(operation);
        }
        if number >= script.quiet {
            fates.extend(script.packets.iter().map(|p| model.fate(p)));
        }
    }
    fates
}

/// What happened in a contest without a difference.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Packets that were compared.
    pub compared: u32,
    /// Packets that the specification leaves open.
    pub open: u32,
    /// Operations that were accepted.
    pub accepted: u32,
    /// Operations that were refused.
    pub refused: u32,
}

/// Plays a script against both.
///
/// # Errors
/// The first difference, in words, and the number of operations up to it.
pub fn play(script: &Script, mutation: Option<Mutation>) -> Result<Tally, (usize, String)> {
    let mut model = Model::default();
    let mut product = Product::new();
    let mut tally = Tally::default();
    let mut world = None;
    for (number, operation) in script.operations.iter().enumerate() {
        let ruling = model.judge(operation);
        let before = product.topology.clone();
        let answer = product.perform(operation);
        let difference = match (&ruling, &answer) {
            (Ruling::Accept, Err(refused)) => Some(format!("must be accepted, and is refused: {refused:?}")),
            (Ruling::Refuse(codes), Ok(())) => Some(format!("must be refused ({codes:?}), and is accepted")),
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
            model.accept(operation);
            tally.accepted += 1;
            world = None;
        } else {
            tally.refused += 1;
            if !product.topology.documents_since(&before).is_empty() {
                return Err((number + 1, format!("{operation:?}: refused, and something has changed")));
            }
        }
        if number + 1 < script.quiet {
            continue;
        }
        let world = world.get_or_insert_with(|| World::new(&product.topology, &product.announced, mutation));
        for packet in &script.packets {
            let fate = model.fate(packet);
            let outcome = world.send(packet);
            match compare(&fate, outcome.as_ref()) {
                Some(true) => tally.compared += 1,
                Some(false) => {
                    let text = format!("{packet:?}\n  model:   {fate:?}\n  product: {outcome:?}");
                    return Err((number + 1, text));
                }
                None => tally.open += 1,
            }
        }
    }
    Ok(tally)
}

/// Whether they agree; none: open.
fn compare(fate: &Fate, outcome: Option<&Outcome>) -> Option<bool> {
    match (fate, outcome) {
        (Fate::Unspecified(_), _) => None,
        (_, None) => Some(false),
        (Fate::Delivered { path }, Some(outcome)) => Some(outcome.end == End::Delivered && outcome.path == *path),
        (Fate::Lost { path, why }, Some(outcome)) => {
            let same = outcome.end.why().is_some_and(|w| why.contains(&w));
            // A loop is the same wherever it ends.
            Some(same && (why.contains(&Why::Loop) || outcome.path == *path))
        }
    }
}

/// The script with everything left out that the difference does not need.
#[must_use]
pub fn shrink(script: &Script, mutation: Option<Mutation>) -> (Script, String) {
    let fails = |s: &Script| play(s, mutation).err();
    let Some((length, mut text)) = fails(script) else {
        return (script.clone(), "no difference".into());
    };
    let mut small = script.clone();
    small.operations.truncate(length);
    small.quiet = small.quiet.min(length);
    for packet in &script.packets {
        let one = Script {
            packets: vec![packet.clone()],
            quiet: small.operations.len(),
            ..small.clone()
        };
        if let Some((_, why)) = fails(&one) {
            (small, text) = (one, why);
            break;
        }
    }
    let mut at = 0;
    while at < small.operations.len() {
        let mut less = small.clone();
        less.operations.remove(at);
        less.quiet = less.operations.len();
        match fails(&less) {
            // Another difference earlier on would be another finding.
            Some((length, why)) if length == less.operations.len() => (small, text) = (less, why),
            _ => at += 1,
        }
    }
    (small, text)
}

/// A difference as a person wants to see it.
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

/// Asks `explain` about packets of the script's last state, and sends them: both must tell of the same agents and the
/// same end. Returns how many were asked about.
///
/// # Errors
/// The first difference.
pub fn honest(script: &Script) -> Result<u32, String> {
    let mut product = Product::new();
    for operation in &script.operations {
        // Whether it may be refused is another test's question.
        let _ = product.perform(operation);
    }
    let mut world = World::new(&product.topology, &BTreeMap::new(), None);
    let mut asked = 0;
    for packet in &script.packets {
        let Origin::Kernel { agent } = &packet.origin else {
            continue;
        };
        let question = Question {
            from: agent.clone(),
            to: packet.destination.to_string(),
            protocol: Protocol::Udp,
            destination_port: Some(7),
            ttl: Some(TTL),
        };
        // Nobody by that name, or nobody of that family there.
        let Ok(said) = explain(&product.topology, &LearnedReports::default(), &question) else {
            continue;
        };
        let sent = Packet {
            source: said.source,
            ..packet.clone()
        };
        let Some(outcome) = world.send(&sent) else { continue };
        let told: Vec<_> = said.request.hops.iter().map(|h| h.agent.to_string()).collect();
        let stop = said.request.stop.as_ref().map(|s| s.reason.as_str());
        let same = match outcome.end {
            // Policy knows nothing of handshakes.
            End::Keys => continue,
            End::Delivered => said.request.delivered && told == outcome.path,
            End::Dropped(DropReason::TtlExceeded | DropReason::TtlExceededSilent, _) | End::Kernel => {
                !said.request.delivered && told == outcome.path
            }
            End::Dropped(reason, _) => stop == Some(reason.name()) && told == outcome.path,
            End::Stranger => false,
        };
        if !same {
            return Err(format!(
                "seed {}: {sent:?}\n  happened:  {outcome:?}\n  explained: {told:?} delivered {} stop {stop:?}: {}",
                script.seed, said.request.delivered, said.summary
            ));
        }
        asked += 1;
    }
    Ok(asked)
}
