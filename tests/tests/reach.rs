//! Reachability of random topologies: for every pair of addresses and several ports, the sets must say the same as
//! `explain` says about one packet.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::fabric::{AssertedTraffic, Assertion, ExplainRequest, Protocol};
use tombolo_proto::id::AgentId;
use tombolo_tests::differential::Script;
use tombolo_tests::policy::Policy;
use tombolo_tests::product::Product;
use tombolo_topology::change::Change;
use tombolo_topology::explain::{Explanation, Walk, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::path::ArmPath;
use tombolo_topology::reach::{Reach, as_designed, check_assertions, difference, in_order};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// The first seed of a run: `TOMBOLO_SEED`, or a random number. It is printed, so that a failure can be repeated.
fn first_seed() -> u64 {
    let given = std::env::var("TOMBOLO_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={seed}");
    seed
}

/// Counters of comparisons.
#[derive(Debug, Default)]
struct Tally {
    asked: u32,
    reachable: u32,
    balanced: u32,
}

/// The ports that random rules name, and others.
const PORTS: [u16; 8] = [22, 80, 443, 1433, 8080, 9, 0, 65_535];

/// Compares the reachability of a topology with the explanation of single packets.
fn compare(seed: u64, topology: &Topology, share: f64, tally: &mut Tally) {
    let reports = LearnedReports::default();
    let complete = as_designed(topology);
    let reach = Reach::of(topology, &reports, &in_order);
    let front_ends = topology
        .load_balancers
        .values()
        .flat_map(|balancer| &balancer.front_ends);
    let front_ends: Vec<IpAddr> = front_ends.map(|front_end| front_end.address).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    for (from, source) in reach
        .ends()
        .iter()
        .enumerate()
        .filter(|(_, end)| end.subnet.is_some() && end.sends())
    {
        for (to, destination) in reach.ends().iter().enumerate() {
            if from == to || source.address.is_ipv4() != destination.address.is_ipv4() || !rng.random_bool(share) {
                continue;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                let port = *PORTS.choose(&mut rng).unwrap_or(&443);
                let question = ExplainRequest {
                    from: source.address.to_string(),
                    to: destination.address.to_string(),
                    protocol,
                    destination_port: Some(port).filter(|_| protocol != Protocol::Icmp),
                    ttl: None,
                    design: false,
                };
                // An address that several VNets have is ambiguous, and one of a subnet without network interface is none.
                let Ok(explained) = explain(&complete, &reports, &question) else {
                    continue;
                };
                // The machine of a network interface may be revoked while another agent serves its subnet.
                if explained
                    .request
                    .stop
                    .as_ref()
                    .is_some_and(|stop| stop.reason == "no_configuration")
                {
                    continue;
                }
                let traffic = reach.between(from, to);
                let passes = traffic.is_some_and(|traffic| match protocol {
                    Protocol::Tcp => traffic.tcp.contains(49_152, port),
                    Protocol::Udp => traffic.udp.contains(49_152, port),
                    Protocol::Icmp => traffic.icmp,
                });
                // Through a load balancer, the sets have what arrives at every back end, and `explain` follows one flow.
                let balanced = passes_front_end(&explained, &front_ends);
                // Known difference: through a front end from one network interface of a machine to another, `explain` asks the
                // groups about the reply, and the sets take it for one of a known flow (TOMBOLO_SEED=15103021324334185768).
                let ends_at = |walk: &Walk| walk.hops.last().map(|hop| hop.agent.clone());
                let is_local = source.agent() == ends_at(&explained.request).as_ref();
                let denied = explained.reply.as_ref().and_then(|reply| reply.stop.as_ref());
                if balanced && is_local && denied.is_some_and(|stop| stop.reason == "security_rule") {
                    continue;
                }
                // Another VNet may have the same address. The packet then reaches another end.
                let last = explained.request.hops.last();
                let is_there = match (destination.agent(), &destination.subnet) {
                    (Some(agent), _) => last.is_some_and(|hop| hop.agent == *agent),
                    // The packet has left to a device of the site.
                    (None, None) => last.and_then(|hop| hop.next.as_ref()).is_some_and(|device| {
                        let mut connections = complete.connections.values();
                        connections.any(|c| c.gateway2 == destination.id && AgentId::of_site(&c.envelope.id) == *device)
                    }),
                    (None, Some(_)) => true,
                };
                // The reply may reach another host too, such as one that serves the subnet of the source's network interface.
                let back = explained.reply.as_ref().and_then(|reply| reply.hops.last());
                let is_back = source
                    .agent()
                    .is_none_or(|agent| back.is_some_and(|hop| hop.agent == *agent));
                let arrives = explained.reachable && is_there && is_back;
                let agrees = passes == arrives || balanced && !passes;
                assert!(
                    agrees,
                    "TOMBOLO_SEED={seed}: {} to {} {protocol:?} {port}: the sets say {passes}, and explain says: {}\n{traffic:?}",
                    source.address, destination.address, explained.summary
                );
                tally.asked += 1;
                tally.reachable += u32::from(explained.reachable);
                tally.balanced += u32::from(balanced && passes);
            }
        }
    }
}

fn passes_front_end(explained: &Explanation, front_ends: &[IpAddr]) -> bool {
    let walks = [Some(&explained.request), explained.reply.as_ref()];
    let routes = walks
        .into_iter()
        .flatten()
        .flat_map(|walk| &walk.hops)
        .filter_map(|hop| hop.route.as_ref());
    let mut hops = routes.flat_map(|route| &route.next_hop_ip_address);
    front_ends.contains(&explained.destination) || hops.any(|hop| front_ends.contains(hop))
}

fn of_policy(seed: u64) -> Topology {
    let mut product = Product::new();
    for operation in &Policy::draw(seed).operations {
        let done = product.perform(operation);
        done.unwrap_or_else(|refused| panic!("TOMBOLO_SEED={seed}: {operation:?} is refused: {refused:?}"));
    }
    product.topology
}

/// Security groups on subnets and interfaces, application security groups, appliances.
#[test]
fn the_sets_of_networks_with_security_groups_say_what_explain_says() {
    let first = first_seed();
    let mut tally = Tally::default();
    for number in 0..300 {
        let seed = first.wrapping_add(number);
        compare(seed, &of_policy(seed), 0.5, &mut tally);
    }
    println!("{tally:?}");
    assert!(
        tally.asked > 5000 && tally.reachable * 10 > tally.asked * 2,
        "{tally:?}"
    );
}

/// Gateways, user-defined routes, appliances, served subnets, sites and load balancers.
#[test]
fn the_sets_of_networks_with_gateways_say_what_explain_says() {
    let first = first_seed();
    let mut tally = Tally::default();
    for number in 0..150 {
        let seed = first.wrapping_add(number);
        let mut product = Product::new();
        for operation in &Script::draw(seed).operations {
            // The product refuses some operations of a script.
            let _ = product.perform(operation);
        }
        compare(seed, &product.topology, 0.3, &mut tally);
    }
    println!("{tally:?}");
    assert!(
        tally.asked > 5000 && tally.reachable * 10 > tally.asked && tally.balanced > 20,
        "{tally:?}"
    );
}

/// The difference of two networks has exactly the pairs and ports that only one of them has.
#[test]
fn the_difference_is_what_only_one_network_has() {
    let first = first_seed();
    let reports = LearnedReports::default();
    let mut changed = 0;
    for number in 0..60 {
        let seed = first.wrapping_add(number);
        // The second network has other rules for the same machines, or other machines.
        let (before, after) = (of_policy(seed), of_policy(seed.wrapping_add(1)));
        let [old, new] = [&before, &after].map(|topology| Reach::of(topology, &reports, &in_order));
        assert!(difference(&old, &old).is_empty());
        let difference = difference(&old, &new);
        let mut texts = BTreeMap::new();
        for (list, sign) in [(&difference.connects, '+'), (&difference.cuts, '-')] {
            for entry in list {
                for (from, to) in entry
                    .from
                    .iter()
                    .flat_map(|from| entry.to.iter().map(move |to| (from, to)))
                    .filter(|(from, to)| (from.id.key(), from.address) != (to.id.key(), to.address))
                {
                    let key = (sign, from.id.key(), from.address, to.id.key(), to.address);
                    assert!(
                        texts.insert(key, entry.traffic.clone()).is_none(),
                        "{from:?} {to:?} twice"
                    );
                }
            }
        }
        let traffic = |reach: &Reach, ids: (&str, IpAddr, &str, IpAddr)| {
            let find = |id: &str, address| {
                let mut ends = reach.ends().iter();
                ends.position(|end| end.id.key() == id && end.address == address)
            };
            let pair = find(ids.0, ids.1).zip(find(ids.2, ids.3));
            pair.and_then(|(from, to)| reach.between(from, to))
                .cloned()
                .unwrap_or_default()
        };
        let ends: std::collections::BTreeSet<_> = old
            .ends()
            .iter()
            .chain(new.ends())
            .map(|end| (end.id.key(), end.address))
            .collect();
        for (from, source) in &ends {
            for (to, destination) in &ends {
                let ids = (from.as_str(), *source, to.as_str(), *destination);
                let (was, is) = (traffic(&old, ids), traffic(&new, ids));
                for (sign, only) in [('+', is.minus(&was)), ('-', was.minus(&is))] {
                    let found = texts.remove(&(sign, from.clone(), *source, to.clone(), *destination));
                    assert_eq!(
                        found.is_some(),
                        !only.is_empty(),
                        "TOMBOLO_SEED={seed}: {sign} {source} {destination}"
                    );
                    changed += u32::from(found.is_some());
                }
            }
        }
        assert!(texts.is_empty(), "TOMBOLO_SEED={seed}: {texts:?}");
    }
    assert!(changed > 100, "{changed}");
}

/// Machines that a change does not tell apart are one entry, however many they are.
#[test]
fn the_difference_of_a_group_for_a_subnet_is_one_entry() {
    const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab";
    const MACHINES: usize = 50;
    let id = |tail: &str| format!("{GROUP}/providers/Microsoft.Network/{tail}");
    let mut guids = 0_u128;
    let mut topology = Topology::default();
    let mut put = |id: &str, mut body: Value| {
        body["location"] = json!("region1");
        let change = Change::Put {
            path: ArmPath::parse(id).unwrap_or_else(|e| panic!("{e}")),
            body,
            if_match: None,
            sync_remote_address_space: false,
        };
        let mut guid = || {
            guids += 1;
            Uuid::from_u128(guids)
        };
        topology = match topology.apply(&change, &mut guid) {
            Ok(done) => done.topology,
            Err(refused) => panic!("{id}: {refused:?}"),
        };
        topology.clone()
    };
    let vnet = |subnet: Value| {
        json!({"properties": {
            "addressSpace": {"addressPrefixes": ["10.1.0.0/16"]},
            "subnets": [{"name": "work", "properties": subnet}],
        }})
    };
    let vnet_id = id("virtualNetworks/hub");
    put(GROUP, json!({}));
    put(&vnet_id, vnet(json!({"addressPrefix": "10.1.0.0/24"})));
    for number in 0..MACHINES {
        let address = json!({
            "privateIPAddress": format!("10.1.0.{}", 4 + number), "privateIPAllocationMethod": "Static",
            "subnet": {"id": format!("{vnet_id}/subnets/work")},
        });
        put(
            &id(&format!("networkInterfaces/vm-{number}")),
            json!({"properties": {"ipConfigurations": [{"name": "a", "properties": address}]}}),
        );
    }
    let rule = json!({"name": "no-ssh", "properties": {
        "priority": 100, "direction": "Inbound", "access": "Deny", "protocol": "Tcp", "sourceAddressPrefix": "*",
        "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "22",
    }});
    let group_id = id("networkSecurityGroups/closed");
    let before = put(&group_id, json!({"properties": {"securityRules": [rule]}}));
    let subnet = json!({"addressPrefix": "10.1.0.0/24", "networkSecurityGroup": {"id": group_id}});
    let after = put(&vnet_id, vnet(subnet));
    let reports = LearnedReports::default();
    let [old, new] = [&before, &after].map(|topology| Reach::of(topology, &reports, &in_order));
    let change = difference(&old, &new);
    let sizes: Vec<_> = change
        .cuts
        .iter()
        .map(|cut| (cut.from.len(), cut.to.len(), cut.traffic.tcp.clone()))
        .collect();
    assert_eq!(sizes, [(MACHINES, MACHINES, vec!["22".to_owned()])]);
    assert!(change.connects.is_empty(), "{:?}", change.connects);
}

/// An assertion holds exactly if the sets of all its pairs have none, or all, of its traffic.
#[test]
fn assertions_hold_for_all_pairs_or_fail_with_one() {
    let first = first_seed();
    let reports = LearnedReports::default();
    let mut tally = BTreeMap::<(bool, bool), u32>::new();
    for number in 0..100 {
        let seed = first.wrapping_add(number);
        let topology = of_policy(seed);
        let reach = Reach::of(&topology, &reports, &in_order);
        let vnets: Vec<String> = topology.vnets.keys().map(|id| id.name().to_owned()).collect();
        let mut rng = StdRng::seed_from_u64(seed);
        for is_always in [false, true] {
            let name = |rng: &mut StdRng| vnets.choose(rng).cloned().unwrap_or_default();
            let port = *PORTS.choose(&mut rng).unwrap_or(&443);
            let asserted = AssertedTraffic {
                from: name(&mut rng),
                to: name(&mut rng),
                protocol: Some(Protocol::Tcp),
                ports: vec![port.to_string()],
            };
            let within = |end: usize, vnet: &str| {
                let subnet = reach.ends()[end].subnet.as_ref();
                subnet.is_some_and(|s| {
                    s.key()
                        .contains(&format!("/virtualnetworks/{}/", vnet.to_ascii_lowercase()))
                })
            };
            let count = reach.ends().len();
            if !(0..count).any(|end| within(end, &asserted.from)) || !(0..count).any(|end| within(end, &asserted.to)) {
                continue;
            }
            let mut broken = 0;
            for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
                let ends = (&reach.ends()[from], &reach.ends()[to]);
                let asked = from != to && within(from, &asserted.from) && within(to, &asserted.to);
                if !asked || ends.0.address.is_ipv4() != ends.1.address.is_ipv4() {
                    continue;
                }
                let traffic = reach.between(from, to);
                let sources = (0..=u16::MAX).step_by(997).chain(PORTS);
                let (all, any) = sources.fold((true, false), |(all, any), source| {
                    let passes = traffic.is_some_and(|t| t.tcp.contains(source, port));
                    (all && passes, any || passes)
                });
                broken += u32::from(if is_always { !all } else { any });
            }
            let assertion = match is_always {
                true => Assertion::Always(asserted),
                false => Assertion::Never(asserted),
            };
            let violations = check_assertions(&reach, &topology, &[assertion]).unwrap();
            let pairs = violations.first().map_or(0, |violation| violation.pairs);
            assert_eq!(pairs, broken as usize, "TOMBOLO_SEED={seed}: {violations:?}");
            *tally.entry((is_always, broken > 0)).or_default() += 1;
        }
    }
    println!("{tally:?}");
    assert!(tally.len() == 4, "{tally:?}");
}

/// After a change of rules, the reachability that is computed from the one before is the same as a new one.
#[test]
fn the_reachability_after_a_change_is_that_of_a_new_computation() {
    let first = first_seed();
    let reports = LearnedReports::default();
    let mut changed = 0;
    for number in 0..150 {
        let seed = first.wrapping_add(number);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut topology = of_policy(seed);
        let mut reach = Reach::of(&topology, &reports, &in_order);
        for step in 0..4 {
            let groups: Vec<_> = topology.network_security_groups.keys().cloned().collect();
            let Some(group) = groups.choose(&mut rng) else { break };
            let port = *PORTS.choose(&mut rng).unwrap_or(&443);
            let rule = serde_json::json!({"properties": {
                "priority": rng.random_range(100..4096), "access": if rng.random_bool(0.5) { "Allow" } else { "Deny" },
                "direction": if rng.random_bool(0.5) { "Inbound" } else { "Outbound" }, "protocol": "*",
                "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "10.0.0.0/9",
                "destinationPortRange": format!("{port}"),
            }});
            let change = Change::Put {
                path: ArmPath::parse(&format!("{group}/securityRules/step{step}")).unwrap(),
                body: rule,
                if_match: None,
                sync_remote_address_space: false,
            };
            // Another rule may have the priority.
            let Ok(done) = topology.apply(&change, &mut Uuid::new_v4) else {
                continue;
            };
            let new = Reach::of(&done.topology, &reports, &in_order);
            let updated = reach.after(&topology, &done.topology, &reports, &in_order);
            let what = difference(&new, &updated);
            assert!(what.is_empty(), "TOMBOLO_SEED={seed}: {what:?}");
            // The difference by shared paths is the one of separate computations.
            let (quick, slow) = (difference(&reach, &updated), difference(&reach, &new));
            assert_eq!(quick, slow, "TOMBOLO_SEED={seed}");
            changed += u32::from(!slow.is_empty());
            (topology, reach) = (done.topology, updated);
        }
    }
    println!("{changed} changes with an effect");
    assert!(changed > 50, "{changed}");
}
