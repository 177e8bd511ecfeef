//! Differential test of one seed: it draws operations and packets, and plays them against the model and the product.

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
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::LearnedReports;

/// The operations and packets of a seed.
#[derive(Debug, Clone)]
pub struct Script {
    /// The seed from which [`Script::draw`] drew the rest.
    pub seed: u64,
    /// The operations, in order. Packets are sent after the last set-up operation, and after each operation that follows it.
    pub operations: Vec<Operation>,
    /// The number of set-up operations, at the start of `operations`.
    pub setup_length: usize,
    /// The packets that are sent each time, all of them.
    pub packets: Vec<Packet>,
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
        let packets = (0..150).map(|_| packet(&universe, &mut rng)).collect();
        Self {
            seed,
            operations,
            setup_length,
            packets,
        }
    }
}

/// Draws a packet. Most come from a VM's kernel with the VM's own address. Some of the packets have a spoofed source.
/// Others enter on a link, as a stale or hostile peer might send them.
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
            fates.extend(script.packets.iter().map(|p| model.fate(p)));
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
}

/// Plays a script against model and product. After the last set-up operation, and after each further one, all packets
/// are sent. Model and product must agree on which operations are refused and with which codes, and on the path and the
/// end of each packet. A refused operation must leave the topology unchanged. `mutation` is a defect that a test
/// injects into the product. With a defect, a comparison that works returns an error.
///
/// # Errors
/// The first difference: the number of operations up to and including the one that shows it, and a description.
///
/// # Panics
/// As [`World::new`], [`World::send`] and [`Product::perform`]. A script of [`Script::draw`] gives no cause for this.
pub fn play(script: &Script, mutation: Option<Mutation>) -> Result<Tally, (usize, String)> {
    let mut model = Model::default();
    let mut product = Product::new();
    let mut tally = Tally::default();
    let mut world = None;
    for (number, operation) in script.operations.iter().enumerate() {
        let ruling = model.validate(operation);
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
            model.apply(operation);
            tally.accepted += 1;
            world = None;
        } else {
            tally.refused += 1;
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

/// Whether model and product agree about a packet. None: the specification does not decide. No `outcome` means that the
/// packet came to an agent without a configuration, or to an endpoint that no agent has ([`World::send`]). If the
/// specification decides, this is always a difference.
fn compare(fate: &Fate, outcome: Option<&Outcome>) -> Option<bool> {
    match (fate, outcome) {
        (Fate::Unspecified(_), _) => None,
        (_, None) => Some(false),
        (Fate::Delivered { path }, Some(outcome)) => Some(outcome.end == End::Delivered && outcome.path == *path),
        (Fate::Lost { path, why }, Some(outcome)) => {
            let same = outcome.end.loss_reason().is_some_and(|w| why.contains(&w));
            // The path of a loop depends on the initial TTL, which is not part of the specification, so only the reason is
            // compared.
            Some(same && (why.contains(&Why::Loop) || outcome.path == *path))
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
    let fails = |s: &Script| play(s, mutation).err();
    let Some((length, mut text)) = fails(script) else {
        return (script.clone(), "no difference".into());
    };
    let mut small = script.clone();
    small.operations.truncate(length);
    small.setup_length = small.setup_length.min(length);
    for packet in &script.packets {
        let one = Script {
            packets: vec![packet.clone()],
            setup_length: small.operations.len(),
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
        less.setup_length = less.operations.len();
        match fails(&less) {
            // A difference that shows after fewer operations may come from another defect.
            Some((length, why)) if length == less.operations.len() => (small, text) = (less, why),
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
/// end and, if the packet is lost, the same drop reason. Packets that enter on a link are left out, because `explain`
/// begins at an agent. Also left out are packets whose sender `explain` does not know, and packets that a failed
/// handshake stops. Announcements of sites have no effect here. Returns the number of compared packets, which may be 0.
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
    let mut world = World::new(&product.topology, &BTreeMap::new(), None);
    let mut compared = 0;
    for packet in &script.packets {
        let Origin::Kernel { agent } = &packet.origin else {
            continue;
        };
        let question = ExplainRequest {
            from: agent.clone(),
            to: packet.destination.to_string(),
            protocol: Protocol::Udp,
            destination_port: Some(7),
            ttl: Some(TTL),
        };
        // An error means that the sender does not exist or has no address of that family, so no packet can be compared.
        let Ok(answer) = explain(&product.topology, &LearnedReports::default(), &question) else {
            continue;
        };
        let sent = Packet {
            source: answer.source,
            ..packet.clone()
        };
        let Some(outcome) = world.send(&sent) else { continue };
        let explained: Vec<_> = answer.request.hops.iter().map(|h| h.agent.to_string()).collect();
        let stop = answer.request.stop.as_ref().map(|s| s.reason.as_str());
        let same = match outcome.end {
            // `explain` does not consider handshakes.
            End::KeyMismatch => continue,
            End::Delivered => answer.request.delivered && explained == outcome.path,
            End::Dropped(DropReason::TtlExceeded | DropReason::TtlExceededSilent, _) | End::Kernel => {
                !answer.request.delivered && explained == outcome.path
            }
            End::Dropped(reason, _) => stop == Some(reason.name()) && explained == outcome.path,
            End::UnknownPeer => false,
        };
        if !same {
            return Err(format!(
                "seed {}: {sent:?}\n  happened:  {outcome:?}\n  explained: {explained:?} delivered {} stop {stop:?}: {}",
                script.seed, answer.request.delivered, answer.summary
            ));
        }
        compared += 1;
    }
    Ok(compared)
}
