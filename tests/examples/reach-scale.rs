//! Measures reachability and `explain` in a large network: 1,000 virtual networks in hubs and spokes (20 spokes for each
//! hub), 10,000 network interfaces, and 100 security groups of 1,000 rules, 30 % of whose prefixes are the same in all
//! groups. Prints times, sizes and the peak of memory. `reach-scale [VNETS]`; `reach-scale peering MACHINES` measures what a
//! peering between two networks of so many machines changes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_topology::change::Change;
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::path::ArmPath;
use tombolo_topology::reach::{Reach, as_designed, difference};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/scale";
const SPOKES: usize = 20;
const NICS: usize = 10;
const SECURITY_GROUPS: usize = 100;
const RULES: usize = 1000;

struct Network {
    topology: Topology,
    guids: u128,
}

impl Network {
    fn put(&mut self, id: &str, body: Value) {
        let change = Change::Put {
            path: ArmPath::parse(id).unwrap_or_else(|e| panic!("{e}")),
            body,
            if_match: None,
            sync_remote_address_space: false,
        };
        let guids = &mut self.guids;
        let mut guid = || {
            *guids += 1;
            Uuid::from_u128(*guids)
        };
        let done = self.topology.apply(&change, &mut guid);
        self.topology = done.unwrap_or_else(|e| panic!("{id}: {e:?}")).topology;
    }
}

fn id(tail: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{tail}")
}

/// The address space of a virtual network: a /22 of 10.0.0.0/8.
fn space(vnet: usize) -> String {
    format!("10.{}.{}.0/22", vnet / 64, vnet % 64 * 4)
}

fn rules(group: usize, vnets: usize) -> Vec<Value> {
    let mut shared = StdRng::seed_from_u64(7);
    let mut own = StdRng::seed_from_u64(1000 + group as u64);
    (0..RULES)
        .map(|number| {
            let rng = if number % 10 < 3 { &mut shared } else { &mut own };
            let vnet = rng.random_range(0..vnets);
            let prefix = match rng.random_range(0..3_u8) {
                0 => space(vnet),
                1 => format!("10.{}.{}.0/24", vnet / 64, vnet % 64 * 4 + 1),
                _ => format!(
                    "10.{}.{}.{}/32",
                    vnet / 64,
                    vnet % 64 * 4 + 1,
                    rng.random_range(4..4 + NICS)
                ),
            };
            let port = rng.random_range(1..65_000_u16);
            let access = if rng.random_bool(0.5) { "Allow" } else { "Deny" };
            let direction = if rng.random_bool(0.7) { "Inbound" } else { "Outbound" };
            let (source, destination) = match direction {
                "Inbound" => (prefix, "*".to_owned()),
                _ => ("*".to_owned(), prefix),
            };
            json!({"name": format!("r{number}"), "properties": {
                "priority": 100 + number, "access": access, "direction": direction,
                "protocol": if rng.random_bool(0.8) { "Tcp" } else { "*" },
                "sourceAddressPrefix": source, "sourcePortRange": "*",
                "destinationAddressPrefix": destination,
                "destinationPortRange": format!("{port}-{}", port + rng.random_range(0..500)),
            }})
        })
        .collect()
}

fn build(vnets: usize) -> Network {
    let mut network = Network {
        topology: Topology::default(),
        guids: 0,
    };
    network.put(GROUP, json!({"location": "region1"}));
    for group in 0..SECURITY_GROUPS {
        let body = json!({"location": "region1", "properties": {"securityRules": rules(group, vnets)}});
        network.put(&id(&format!("networkSecurityGroups/g{group}")), body);
    }
    for vnet in 0..vnets {
        let group = id(&format!("networkSecurityGroups/g{}", vnet % SECURITY_GROUPS));
        let subnet = json!({"name": "work", "properties": {
            "addressPrefix": format!("10.{}.{}.0/24", vnet / 64, vnet % 64 * 4 + 1),
            "networkSecurityGroup": {"id": group},
        }});
        let properties = json!({"addressSpace": {"addressPrefixes": [space(vnet)]}, "subnets": [subnet]});
        network.put(
            &id(&format!("virtualNetworks/v{vnet}")),
            json!({"location": "region1", "properties": properties}),
        );
        for nic in 0..NICS {
            let address = format!("10.{}.{}.{}", vnet / 64, vnet % 64 * 4 + 1, 4 + nic);
            let mut properties = json!({"ipConfigurations": [{"name": "a", "properties": {
                "privateIPAddress": address, "privateIPAllocationMethod": "Static",
                "subnet": {"id": id(&format!("virtualNetworks/v{vnet}/subnets/work"))},
            }}]});
            // Every second machine has a group of its own.
            if nic % 2 == 0 {
                let group = id(&format!(
                    "networkSecurityGroups/g{}",
                    (vnet * 7 + nic) % SECURITY_GROUPS
                ));
                properties["networkSecurityGroup"] = json!({"id": group});
            }
            network.put(
                &id(&format!("networkInterfaces/v{vnet}-{nic}")),
                json!({"location": "region1", "properties": properties}),
            );
        }
    }
    for vnet in 0..vnets {
        let hub = vnet / (SPOKES + 1) * (SPOKES + 1);
        if hub == vnet {
            continue;
        }
        for (from, to) in [(vnet, hub), (hub, vnet)] {
            let properties = json!({"remoteVirtualNetwork": {"id": id(&format!("virtualNetworks/v{to}"))},
                "allowForwardedTraffic": true, "allowVirtualNetworkAccess": true});
            network.put(
                &id(&format!("virtualNetworks/v{from}/virtualNetworkPeerings/to-v{to}")),
                json!({"properties": properties}),
            );
        }
    }
    network
}

fn in_parallel(tasks: usize, run: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(task) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|task| *task < tasks) {
                    run(task);
                }
            });
        }
    });
}

fn megabytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    number.unwrap_or_default() / 1024
}

/// What the peering of two networks connects.
fn peering(machines: usize) {
    let mut network = Network {
        topology: Topology::default(),
        guids: 0,
    };
    network.put(GROUP, json!({"location": "region1"}));
    for vnet in 0..2 {
        let prefix = format!("10.{vnet}.0.0/16");
        let subnet = json!({"name": "work", "properties": {"addressPrefix": prefix}});
        let properties = json!({"addressSpace": {"addressPrefixes": [prefix]}, "subnets": [subnet]});
        let name = format!("virtualNetworks/v{vnet}");
        network.put(&id(&name), json!({"location": "region1", "properties": properties}));
        for nic in 0..machines {
            let number = nic + 4;
            let properties = json!({"ipConfigurations": [{"name": "a", "properties": {
                "privateIPAddress": format!("10.{vnet}.{}.{}", number / 256, number % 256),
                "privateIPAllocationMethod": "Static", "subnet": {"id": id(&format!("{name}/subnets/work"))},
            }}]});
            network.put(
                &id(&format!("networkInterfaces/v{vnet}-{nic}")),
                json!({"location": "region1", "properties": properties}),
            );
        }
    }
    let reports = LearnedReports::default();
    let before = Reach::of(&network.topology, &reports, &in_parallel);
    for (from, to) in [(0, 1), (1, 0)] {
        let properties = json!({"remoteVirtualNetwork": {"id": id(&format!("virtualNetworks/v{to}"))},
            "allowVirtualNetworkAccess": true});
        network.put(
            &id(&format!("virtualNetworks/v{from}/virtualNetworkPeerings/to-v{to}")),
            json!({"properties": properties}),
        );
    }
    let after = Reach::of(&network.topology, &reports, &in_parallel);
    let peak = megabytes("VmHWM");
    let started = Instant::now();
    let difference = difference(&before, &after);
    println!(
        "a peering of two networks of {machines} machines: the difference takes {:.1} ms ({} entries); peak {} MB, {peak} MB before",
        started.elapsed().as_secs_f64() * 1e3,
        difference.connects.len() + difference.cuts.len(),
        megabytes("VmHWM"),
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, machines] = &arguments[..]
        && mode == "peering"
    {
        let machines = machines.parse();
        return peering(machines.expect("a number of machines"));
    }
    let vnets = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1000);
    let started = Instant::now();
    let mut network = build(vnets);
    println!(
        "{vnets} virtual networks, {} network interfaces: built in {:.1} s",
        vnets * NICS,
        started.elapsed().as_secs_f64()
    );
    println!("memory with the topology: {} MB", megabytes("VmRSS"));
    let reports = LearnedReports::default();

    let complete = as_designed(&network.topology);
    let mut times: Vec<Duration> = Vec::new();
    for number in 0..20 {
        let hub = number * 13 % vnets / (SPOKES + 1) * (SPOKES + 1);
        let question = ExplainRequest {
            from: format!("v{}-1", (hub + 1).min(vnets - 1)),
            to: format!("v{hub}-2"),
            protocol: Protocol::Tcp,
            destination_port: Some(443),
            ttl: None,
            design: false,
        };
        let started = Instant::now();
        let answer = explain(&complete, &reports, &question);
        times.push(started.elapsed());
        assert!(answer.is_ok(), "{answer:?}");
    }
    times.sort();
    println!(
        "explain: median {:.1} ms, longest {:.1} ms",
        times[10].as_secs_f64() * 1e3,
        times[19].as_secs_f64() * 1e3
    );

    let started = Instant::now();
    let before = Reach::of(&network.topology, &reports, &in_parallel);
    println!(
        "reach, cold: {:.2} s, {} cells; memory {} MB, peak {} MB",
        started.elapsed().as_secs_f64(),
        before.cell_count(),
        megabytes("VmRSS"),
        megabytes("VmHWM"),
    );

    let rule = json!({"properties": {
        "priority": 100, "access": "Deny", "direction": "Inbound", "protocol": "Tcp", "sourcePortRange": "*",
        "sourceAddressPrefix": "*", "destinationAddressPrefix": "*", "destinationPortRange": "443",
    }});
    let unchanged = network.topology.clone();
    network.put(&id("networkSecurityGroups/g1/securityRules/r0"), rule);
    let started = Instant::now();
    let after = before.after(&unchanged, &network.topology, &reports, &in_parallel);
    let computed = started.elapsed();
    let difference = difference(&before, &after);
    println!(
        "after a change of one rule: {:.0} ms, and {:.0} ms for the difference ({} entries)",
        computed.as_secs_f64() * 1e3,
        (started.elapsed() - computed).as_secs_f64() * 1e3,
        difference.connects.len() + difference.cuts.len(),
    );
}
