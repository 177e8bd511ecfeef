//! Repairs of generated faults: in a random network, one thing is broken that lets a packet arrive. The repair must heal it,
//! must not be larger than the reversal of the fault, and must list every pair that it opens (D40).

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_proto::id::ResourceId;
use tombolo_tests::differential::Script;
use tombolo_tests::policy::Policy;
use tombolo_tests::product::Product;
use tombolo_topology::change::Change;
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::path::ArmPath;
use tombolo_topology::reach::{Reach, as_designed, difference, in_order};
use tombolo_topology::repair::{RepairChange, repair};
use tombolo_topology::topology::{AgentStatuses, Topology};
use uuid::Uuid;

/// The number of faults of a run, if `TOMBOLO_FAULTS` does not set another one.
const FAULTS: u32 = 150;

/// The first seed of a run: `TOMBOLO_SEED`, or a random number. It is printed, so that a failure can be repeated.
fn first_seed() -> u64 {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={seed}");
    seed
}

fn apply(topology: &Topology, path: &str, body: Option<Value>, sync: bool) -> Option<Topology> {
    let path = ArmPath::parse(path).ok()?;
    let change = match body {
        Some(body) => Change::Put {
            path,
            body,
            if_match: None,
            sync_remote_address_space: sync,
        },
        None => Change::Delete { path, if_match: None },
    };
    topology
        .apply(&change, &mut Uuid::new_v4)
        .ok()
        .map(|done| done.topology)
}

/// A fault: what is broken, the network with it, and the number of changes that reverse it.
struct Fault {
    what: String,
    broken: Topology,
    reversal: usize,
}

/// The network with one property of a resource replaced.
fn with(topology: &Topology, id: &ResourceId, pointer: &str, value: Value) -> Option<Topology> {
    let mut body = topology.view(&ArmPath::parse(id.as_str()).ok()?, &AgentStatuses::default())?;
    *body.pointer_mut(pointer)? = value;
    apply(topology, id.as_str(), Some(body), false)
}

/// All faults of a network, in random order.
fn faults(topology: &Topology, rng: &mut StdRng) -> Vec<Fault> {
    let mut all = Vec::new();
    let mut add = |what: String, broken: Option<Topology>, reversal: usize| {
        all.extend(broken.map(|broken| Fault { what, broken, reversal }));
    };
    for half in topology.vnets.values().flat_map(|vnet| &vnet.peerings) {
        for (flag, is_set) in [
            ("allowVirtualNetworkAccess", half.allow_virtual_network_access),
            ("allowForwardedTraffic", half.allow_forwarded_traffic),
            ("useRemoteGateways", half.use_remote_gateways),
        ] {
            if is_set {
                let broken = with(topology, &half.id, &format!("/properties/{flag}"), json!(false));
                add(format!("{flag} off at {}", half.id), broken, 1);
            }
        }
        // The remaining half must be deleted, and both be created.
        if half.allow_virtual_network_access {
            let broken = apply(topology, half.id.as_str(), None, false);
            add(format!("no {}", half.id), broken, 3);
        }
    }
    for nic in topology.nics.values().filter(|nic| nic.enable_ip_forwarding) {
        let id = &nic.envelope.id;
        add(
            format!("{id} does not forward"),
            with(topology, id, "/properties/enableIPForwarding", json!(false)),
            1,
        );
    }
    for table in topology.route_tables.keys() {
        let route = json!({"properties": {"addressPrefix": "10.0.0.0/9", "nextHopType": "None"}});
        add(
            format!("a black hole in {table}"),
            apply(topology, &format!("{table}/routes/hole"), Some(route), false),
            1,
        );
    }
    for group in topology.network_security_groups.keys() {
        for direction in ["Inbound", "Outbound"] {
            let rule = json!({"properties": {
                "priority": rng.random_range(101..4000), "direction": direction, "access": "Deny", "protocol": "*",
                "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "*",
            }});
            let id = format!("{group}/securityRules/fault");
            add(
                format!("{direction} deny in {group}"),
                apply(topology, &id, Some(rule), false),
                1,
            );
        }
    }
    all.shuffle(rng);
    all
}

/// The network after the changes of a repair.
fn repaired(topology: &Topology, changes: &[RepairChange]) -> Topology {
    changes.iter().fold(topology.clone(), |topology, change| {
        let next = apply(
            &topology,
            &change.path,
            change.body.clone(),
            change.sync_remote_address_space,
        );
        next.unwrap_or_else(|| panic!("the change is refused: {change:?}"))
    })
}

fn network(seed: u64) -> Topology {
    let mut product = Product::new();
    let operations = if seed.is_multiple_of(2) {
        Policy::draw(seed).operations
    } else {
        let script = Script::draw(seed);
        script.operations.into_iter().take(script.setup_length).collect()
    };
    for operation in &operations {
        // The product refuses some operations of a script.
        let _ = product.perform(operation);
    }
    product.topology
}

/// D40: every repair heals, is not larger than the reversal of the fault, and connects no pair that it does not list.
#[test]
fn d40_generated_faults_are_repaired() {
    let given = std::env::var("TOMBOLO_FAULTS").ok().and_then(|s| s.parse().ok());
    let wanted = given.unwrap_or(FAULTS);
    let first = first_seed();
    let reports = LearnedReports::default();
    let (mut done, mut sizes) = (0, BTreeMap::<usize, u32>::new());
    for number in 0.. {
        if done >= wanted {
            break;
        }
        let seed = first.wrapping_add(number);
        let topology = network(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let whole = as_designed(&topology);
        let reach = Reach::of(&topology, &reports, &in_order);
        let ends: Vec<_> = reach
            .ends()
            .iter()
            .filter(|end| end.subnet.is_some() && end.prefix.is_none())
            .collect();
        for fault in faults(&topology, &mut rng).into_iter().take(8) {
            // A pair that the fault cuts.
            let broken = Reach::of(&fault.broken, &reports, &in_order);
            let cut = difference(&reach, &broken).cuts;
            let Some(entry) = cut.choose(&mut rng) else { continue };
            let (Some(from), Some(to)) = (entry.from.choose(&mut rng), entry.to.choose(&mut rng)) else {
                continue;
            };
            if from.address == to.address || !ends.iter().any(|end| end.id == from.id) {
                continue;
            }
            let protocol = match (entry.traffic.icmp, entry.traffic.tcp.is_empty()) {
                (true, _) => Protocol::Icmp,
                (false, false) => Protocol::Tcp,
                (false, true) => Protocol::Udp,
            };
            let ports = if protocol == Protocol::Tcp {
                &entry.traffic.tcp
            } else {
                &entry.traffic.udp
            };
            let port = ports
                .first()
                .map_or("443", String::as_str)
                .split(['-', ' '])
                .next()
                .unwrap_or("443");
            let question = ExplainRequest {
                from: from.address.to_string(),
                to: to.address.to_string(),
                protocol,
                destination_port: (protocol != Protocol::Icmp).then(|| port.parse().unwrap_or(443)),
                ttl: None,
                design: true,
            };
            let broken_design = as_designed(&fault.broken);
            let reachable = |topology: &Topology| explain(topology, &reports, &question).map(|e| e.reachable);
            // An address that several networks have names no single end, and a load balancer may choose another back end.
            if reachable(&whole) != Ok(true) || reachable(&broken_design) != Ok(false) {
                continue;
            }
            let at = format!("TOMBOLO_SEED={seed}: {}: {question:?}", fault.what);
            let answer = repair(&fault.broken, &reports, &question, &in_order).unwrap();
            let Some(best) = answer.repairs.first() else {
                panic!("{at}: {}", answer.summary);
            };
            assert!(best.changes.len() <= fault.reversal, "{at}: {:?}", best.changes);
            for repair in &answer.repairs {
                let after = repaired(&fault.broken, &repair.changes);
                assert_eq!(reachable(&as_designed(&after)), Ok(true), "{at}: {:?}", repair.changes);
                let effect = difference(&broken, &Reach::of(&after, &reports, &in_order));
                assert_eq!(
                    (&effect.connects, &effect.cuts),
                    (&repair.connects, &repair.cuts),
                    "{at}"
                );
            }
            *sizes.entry(best.changes.len()).or_default() += 1;
            done += 1;
        }
    }
    println!("{done} faults repaired; changes: {sizes:?}");
}
