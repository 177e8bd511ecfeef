//! Load balancers, and the network interfaces that refer to their children.

use crate::world::{World, change_and_revert, expanded};
use tombolo_client::path::{DEFAULT_SUBSCRIPTION, Group};

const BALANCERS: &str = include_str!("../balancers.yaml");

/// The names of the network interfaces that refer to a child of the load balancer `web`, in alphabetical order.
fn users_of(world: &World, child: &str) -> Vec<String> {
    let id = Group::new(DEFAULT_SUBSCRIPTION, "lab").item("loadBalancers", &format!("web/{child}"));
    let id = tombolo_proto::id::ResourceId::new(id);
    let uses = |c: &tombolo_topology::resource::NicIpConfiguration| {
        c.load_balancer_pools.contains(&id) || c.inbound_nat_rules.contains(&id)
    };
    let nics = world.now.nics.values();
    let users = nics.filter(|n| n.ip_configurations.iter().any(uses));
    users.map(|n| n.envelope.id.name().to_owned()).collect()
}

#[test]
fn load_balancers_are_created_kept_and_pruned() {
    let mut world = World::default();
    let changed = world.apply(BALANCERS, false);
    assert_eq!(changed.len(), expanded(BALANCERS).len());
    assert!(world.apply(BALANCERS, true).is_empty());
    assert_eq!(users_of(&world, "backendAddressPools/servers"), ["one-nic", "two-nic"]);
    assert_eq!(users_of(&world, "inboundNatRules/ssh"), ["one-nic"]);
    assert_eq!(users_of(&world, "inboundNatRules/ssh-two"), ["two-nic"]);

    // Without pruning, children that the file omits stay, and those of the file are added.
    let fewer =
        "resourceGroup: lab\nlocation: region2\nloadBalancers: {web: {probes: {more: {protocol: Tcp, port: 1}}}}\n";
    assert_eq!(world.apply(fewer, false), ["web"]);
    let counts = |world: &World| -> Vec<[usize; 5]> {
        let all = world.now.load_balancers.values();
        all.map(|b| {
            let rules = b.rules.len();
            [
                b.front_ends.len(),
                b.pools.len(),
                b.probes.len(),
                rules,
                b.nat_rules.len(),
            ]
        })
        .collect()
    };
    assert_eq!(counts(&world), [[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [2, 2, 3, 2, 2]]);
    world.apply(BALANCERS, true);
    assert_eq!(counts(&world), [[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [2, 2, 2, 2, 2]]);

    // With pruning, network interfaces leave the pools and rules before the load balancers are deleted.
    let without = BALANCERS
        .replace(", loadBalancerPools: [web/servers], inboundNatRules: [web/ssh]", "")
        .replace(", loadBalancerPools: [web/servers], inboundNatRules: [web/ssh-two]", "")
        .replace(", loadBalancerPools: [old/legacy]", "")
        .replace(", loadBalancerPools: [appliances/all]", "");
    let (head, rest) = without.split_once("loadBalancers:").unwrap();
    let (_, nics) = rest.split_once("networkInterfaces:").unwrap();
    let changed = world.apply(&format!("{head}networkInterfaces:{nics}"), true);
    assert_eq!(changed, ["one-nic", "two-nic", "nva-nic", "appliances", "old", "web"]);
    assert_eq!(world.now.nics.len(), 3);
    world.apply(BALANCERS, true);
    world.apply("resourceGroup: lab\n", true);
    assert!(world.now.load_balancers.is_empty() && world.now.vnets.is_empty());
}

#[test]
fn load_balancers_can_change_and_change_back() {
    let changes = [
        (
            "front: {subnet: hub/workload, privateIPAddress: 10.1.0.36}",
            "front: {subnet: hub/workload}",
        ),
        ("privateIPAddress: 10.1.0.36", "privateIPAddress: 10.1.0.40"),
        ("other: {subnet: hub/outside}", "other: {subnet: hub/workload}"),
        ("{one: 10.1.1.9, two: 10.1.1.10}", "{one: 10.1.1.11}"),
        (", drainPeriodInSeconds: 0", ""),
        (
            "protocol: Http, port: 80, requestPath: /health",
            "protocol: Tcp, port: 80",
        ),
        (
            "requestPath: /health, intervalInSeconds: 5, probeThreshold: 2",
            "requestPath: /",
        ),
        (", noHealthyBackendsBehavior: AllProbedUp", ""),
        ("frontEndPort: 80\n        backEndPort: 8080", "frontEndPort: 81"),
        ("pool: servers", "pool: outside"),
        ("        probe: http\n", ""),
        ("probe: http", "probe: tcp"),
        ("loadDistribution: SourceIP", "loadDistribution: SourceIPProtocol"),
        ("        idleTimeoutInMinutes: 10\n        enableTcpReset: true\n", ""),
        (", enableFloatingIP: true", ", backEndPort: 5353"),
        ("protocol: Udp, frontEnd: other", "protocol: Tcp, frontEnd: other"),
        ("backEndPort: 22}\n      ssh-two", "backEndPort: 23}\n      ssh-two"),
        ("role: firewall", "role: router"),
        ("{all: {protocol: All}}", "{all: {protocol: Tcp, frontEndPort: 22}}"),
        (
            "loadBalancerPools: [web/servers], inboundNatRules: [web/ssh]",
            "inboundNatRules: [web/ssh]",
        ),
        (", inboundNatRules: [web/ssh]", ""),
        (
            "loadBalancerPools: [old/legacy]",
            "loadBalancerPools: [old/legacy, web/servers]",
        ),
    ];
    change_and_revert(BALANCERS, &changes);
}

/// A network interface leaves a pool or rule before this is removed, and before another one gets it.
#[test]
fn l2_network_interfaces_leave_what_the_file_removes() {
    let changes: [&[(&str, &str)]; 6] = [
        // A renamed pool, with its rule.
        &[
            ("      servers: {}", "      machines: {}"),
            ("pool: servers", "pool: machines"),
            ("web/servers", "web/machines"),
        ],
        // A renamed inbound NAT rule keeps its port.
        &[("      ssh: ", "      shell: "), ("[web/ssh]", "[web/shell]")],
        // A removed rule.
        &[
            (
                "      ssh: {protocol: Tcp, frontEnd: front, frontEndPort: 2222, backEndPort: 22}\n",
                "",
            ),
            (", inboundNatRules: [web/ssh]", ""),
        ],
        // Two network interfaces exchange their inbound NAT rules.
        &[
            ("[web/ssh-two]", "[web/three]"),
            ("[web/ssh]", "[web/ssh-two]"),
            ("[web/three]", "[web/ssh]"),
        ],
        // A pool gets addresses instead of network interfaces.
        &[
            ("all: {}", "all: {addresses: {one: 10.1.1.5}}"),
            (", loadBalancerPools: [appliances/all]", ""),
        ],
        // A load balancer gets another name, and keeps its address.
        &[("  old:\n", "  new:\n"), ("[old/legacy]", "[new/legacy]")],
    ];
    let mut world = World::default();
    world.apply(BALANCERS, false);
    for change in changes {
        let mut file = BALANCERS.to_owned();
        for (from, to) in change {
            assert!(file.contains(from), "{from} is not in the file");
            file = file.replace(from, to);
        }
        assert!(!world.apply(&file, true).is_empty(), "{change:?}");
        assert!(!world.apply(BALANCERS, true).is_empty(), "back: {change:?}");
    }
}

#[test]
fn l1_a_subnet_is_deleted_after_its_front_end_has_moved() {
    let mut world = World::default();
    let file = |subnet: &str, range: &str| {
        format!(
            "resourceGroup: lab\nvirtualNetworks: {{hub: {{addressSpace: [10.1.0.0/16], subnets: {{{subnet}: \
             {{addressPrefix: {range}}}}}}}}}\nloadBalancers: {{lb: {{frontEnds: {{f: {{subnet: hub/{subnet}}}}}}}}}\n"
        )
    };
    world.apply(&file("a", "10.1.0.0/24"), false);
    let changed = world.apply(&file("b", "10.1.1.0/24"), true);
    assert_eq!(changed, ["hub", "lb", "hub/a"]);
}

/// The address of the front end `f` of a load balancer.
fn front_end_of(world: &World, balancer: &str) -> String {
    let balancers = world.now.load_balancers.values();
    let found = balancers
        .filter(|b| b.envelope.id.name() == balancer)
        .flat_map(|b| &b.front_ends);
    found.map(|f| f.address.to_string()).collect()
}

/// A front end without an address gets none that a network interface of the same file names, whether the network
/// interface is new, moves, or refers to the load balancer.
#[test]
fn l1_an_allocated_front_end_takes_no_address_of_the_file() {
    const FILE: &str = "
resourceGroup: lab
virtualNetworks: {hub: {addressSpace: [10.1.0.0/16], subnets: {s: {addressPrefix: 10.1.0.0/24}, t: {addressPrefix: 10.1.1.0/24}}}}
loadBalancers:
  lb:
    frontEnds: {f: {subnet: hub/s}}
    pools: {servers: {}}
    rules: {web: {protocol: Tcp, frontEndPort: 80}}
    inboundNatRules: {ssh: {protocol: Tcp, frontEndPort: 2222, backEndPort: 22}}
networkInterfaces:
  back-end: {subnet: hub/s, privateIPAddress: 10.1.0.4, loadBalancerPools: [lb/servers], inboundNatRules: [lb/ssh]}
  other: {subnet: hub/s, privateIPAddress: 10.1.0.5}
  free: {subnet: hub/s}
";
    let mut world = World::default();
    let changed = world.apply(FILE, false);
    assert_eq!(changed, ["lab", "hub", "back-end", "other", "lb", "back-end", "free"]);
    assert_eq!(front_end_of(&world, "lb"), "10.1.0.6");
    assert!(world.apply(FILE, true).is_empty());
    // The front end moves to a subnet into which a network interface moves with it.
    let moved = FILE.replace("f: {subnet: hub/s}", "f: {subnet: hub/t}");
    let moved = moved.replace(
        "back-end: {subnet: hub/s, privateIPAddress: 10.1.0.4",
        "back-end: {subnet: hub/t, privateIPAddress: 10.1.1.4",
    );
    assert_eq!(world.apply(&moved, true), ["back-end", "lb"]);
    assert_eq!(front_end_of(&world, "lb"), "10.1.1.5");
    // A second load balancer comes, and a network interface gets a static address and joins it.
    let second = "  second: {frontEnds: {f: {subnet: hub/s}}, pools: {p: {}}}\nnetworkInterfaces:";
    let joined = FILE.replace("networkInterfaces:", second);
    let joined = joined.replace(
        "free: {subnet: hub/s}",
        "free: {subnet: hub/s, privateIPAddress: 10.1.0.8, loadBalancerPools: [second/p]}",
    );
    world.apply(FILE, true);
    let changed = world.apply(&joined, true);
    assert_eq!(changed, ["free", "second", "free"]);
    assert_ne!(front_end_of(&world, "second"), "10.1.0.8");
    assert!(!front_end_of(&world, "second").is_empty());

    // Two steps are needed only if an address is allocated in the subnet, and the network interface does not have its own
    // address yet.
    world.apply(FILE, true);
    let more = FILE.replace("pools: {servers: {}}", "pools: {servers: {}, more: {}}");
    let more = more.replace("frontEndPort: 80}", "frontEndPort: 80, frontEnd: f, pool: servers}");
    let back_end = "10.1.0.4, loadBalancerPools: [lb/servers]";
    let stays = more.replace(back_end, "10.1.0.9, loadBalancerPools: [lb/more]");
    assert_eq!(world.apply(&stays, true), ["lb", "back-end"]);
    world.apply(FILE, true);
    let held = more.replace(back_end, "10.1.0.4, loadBalancerPools: [lb/more]");
    let held = held.replace("f: {subnet: hub/s}", "f: {subnet: hub/s}, g: {subnet: hub/s}");
    let held = held.replace("backEndPort: 22}", "backEndPort: 22, frontEnd: f}");
    assert_eq!(world.apply(&held, true), ["lb", "back-end"]);
}

/// A network interface leaves a pool early only if the plan removes or changes this pool, and the step shows what it
/// leaves.
#[test]
fn l2_only_what_the_plan_closes_is_left_early() {
    let mut world = World::default();
    world.apply(BALANCERS, false);
    let steps = |file: &str, prune: bool| -> Vec<String> {
        let plan = world.plan(file, prune);
        plan.changes().map(|step| step.name.clone()).collect()
    };
    // The load balancer is missing in the file, and stays without pruning.
    let (head, rest) = BALANCERS.split_once("  old:\n").unwrap();
    let (_, nics) = rest.split_once("networkInterfaces:").unwrap();
    let without = format!("{head}networkInterfaces:{nics}").replace(", loadBalancerPools: [old/legacy]", "");
    assert_eq!(steps(&without, false), ["two-nic"]);
    assert_eq!(steps(&without, true), ["two-nic", "old"]);
    // A network interface with further changes is updated twice only if it has to leave first.
    let moved = without.replace("10.1.0.6", "10.1.0.9");
    assert_eq!(steps(&moved, false), ["two-nic"]);
    assert_eq!(steps(&moved, true), ["two-nic", "old", "two-nic"]);
    // The pool stays, also with pruning.
    let left = BALANCERS.replace(", loadBalancerPools: [old/legacy]", "");
    assert_eq!(steps(&left, true), ["two-nic"]);
    let released = world.plan(&without, true);
    let first = released.changes().next().unwrap();
    assert!(first.note.as_ref().unwrap().contains("(L2)"), "{first:?}");
    let pools = |shown: &serde_json::Value| {
        let configurations = shown["properties"]["ipConfigurations"].as_array().unwrap();
        let count = |c: &serde_json::Value| {
            c["properties"]["loadBalancerBackendAddressPools"]
                .as_array()
                .map_or(0, Vec::len)
        };
        configurations.iter().map(count).collect::<Vec<_>>()
    };
    assert_eq!((pools(&first.before), pools(&first.after)), (vec![1, 1], vec![1, 0]));
    assert!(
        first
            .before
            .pointer("/properties/ipConfigurations/0/properties/subnet")
            .is_none(),
        "references only"
    );
}
