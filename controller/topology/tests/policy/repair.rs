//! Repairs (D40): shared keys, load balancers, circuits and sites; and what the answer says where no change helps.

mod verdicts;

use crate::balancing::{add_balancer, use_ha_ports};
use crate::circuits::{lab, reports};
use crate::outside::plain_site;
use crate::world::{World, hub_and_spokes, id, ip};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_proto::id::ResourceId;
use tombolo_topology::change::Change;
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::path::ArmPath;
use tombolo_topology::reach::in_order;
use tombolo_topology::repair::{RepairAnswer, repair};
use tombolo_topology::resource::{BalancedProtocol, Binding, InboundNatRule, ResourceGroup};
use tombolo_topology::topology::{AgentStatuses, Topology};
use uuid::Uuid;

fn question(from: &str, to: &str, protocol: Protocol, port: Option<u16>) -> ExplainRequest {
    let mut question: ExplainRequest = serde_json::from_value(json!({"from": from, "to": to})).unwrap();
    (question.protocol, question.destination_port) = (protocol, port);
    question
}

/// The world with the resource group of its resources, without which all writes are refused.
fn writable(w: &World) -> World {
    let mut w = w.clone();
    let id = ResourceId::new("/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab");
    let group = ResourceGroup {
        id: id.clone(),
        location: "region1".into(),
        tags: BTreeMap::new(),
    };
    w.topology.resource_groups.insert(id, Arc::new(group));
    w
}

fn answer(w: &World, reports: &LearnedReports, question: &ExplainRequest) -> RepairAnswer {
    let answer = repair(&writable(w).topology, reports, question, &in_order, &|| false).unwrap();
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<RepairAnswer>(&text).unwrap(), answer);
    for key in ["abc", "another"] {
        assert!(!text.contains(&format!("\"{key}\"")), "a shared key is shown: {text}");
    }
    answer
}

fn ping(w: &World, from: &str, to: &str) -> RepairAnswer {
    answer(w, &LearnedReports::default(), &question(from, to, Protocol::Icmp, None))
}

/// The texts of the changes of each repair.
fn texts(answer: &RepairAnswer) -> Vec<Vec<&str>> {
    answer
        .repairs
        .iter()
        .map(|repair| repair.changes.iter().map(|change| change.text.as_str()).collect())
        .collect()
}

/// D40, G11, D14: if the two objects of a connection have different shared keys, explain says so, and the repair copies one key
/// to the other object. The answer has no key.
#[test]
fn d40_g11_different_keys_become_equal() {
    let mut w = hub_and_spokes();
    w.connection("branch", "hub", Some("another"));
    for (from, to) in [("a-vm", "branch-vm"), ("branch-vm", "a-vm")] {
        let asked = question(from, to, Protocol::Icmp, None);
        let explained = explain(&w.topology, &LearnedReports::default(), &asked).unwrap();
        assert!(!explained.reachable, "{explained:#?}");
        assert!(
            explained.summary.contains("different shared keys"),
            "{}",
            explained.summary
        );
        let answer = ping(&w, from, to);
        let mut found = texts(&answer);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                ["set the shared key of the connection branch-to-hub to that of hub-to-branch"],
                ["set the shared key of the connection hub-to-branch to that of branch-to-hub"],
            ]
        );
        let change = &answer.repairs[0].changes[0];
        let path = |name: &str| format!("{}/sharedkey", id("connections", name));
        let mut paths = [Some(change.path.clone()), change.copy_from.clone()];
        paths.sort_unstable();
        assert_eq!(paths, [path("branch-to-hub"), path("hub-to-branch")].map(Some));
        assert!(change.body.is_none() && !change.delete && !answer.repairs[0].connects.is_empty());
        // A client sees by the etag that somebody has changed the connection since.
        let path = ArmPath::parse(change.path.strip_suffix("/sharedkey").unwrap()).unwrap();
        let present = w.topology.view(&path, &AgentStatuses::default()).unwrap();
        assert_eq!(
            (change.etag.as_deref(), change.is_new),
            (present["etag"].as_str(), false)
        );
    }
}

/// D40: a search that is cut off does not say that nothing helps.
#[test]
fn d40_a_search_that_is_cut_off_says_so() {
    let w = hub_and_spokes();
    let asked = question("a-vm", "b-vm", Protocol::Icmp, None);
    let reports = LearnedReports::default();
    let whole = answer(&w, &reports, &asked);
    let first = &whole.repairs[0].changes[0];
    assert!(first.etag.is_some() != first.is_new, "{first:#?}");
    let cut = repair(&writable(&w).topology, &reports, &asked, &in_order, &|| true).unwrap();
    assert!(
        cut.repairs.is_empty() && cut.cut_off && cut.summary.contains("not all were tried"),
        "{cut:#?}"
    );
    assert!(
        cut.by_hand.iter().all(|entry| !entry.why.contains("no set")),
        "{cut:#?}"
    );
    // The first limit that permits a repair cuts off the rest of the search.
    let limited = |limit: usize| {
        let asked_for = Cell::new(0);
        let is_late = || {
            asked_for.set(asked_for.get() + 1);
            asked_for.get() > limit
        };
        repair(&writable(&w).topology, &reports, &asked, &in_order, &is_late).unwrap()
    };
    let some = (1..1000)
        .map(limited)
        .find(|answer| !answer.repairs.is_empty())
        .unwrap();
    assert!(
        some.cut_off && some.summary.contains("a smaller one may exist"),
        "{some:#?}"
    );
    assert!(!whole.cut_off && !whole.summary.contains("may exist"), "{whole:#?}");
}

fn put(topology: &mut Topology, path: &str, mut body: Value) {
    body["location"] = json!("region1");
    let change = Change::Put {
        path: ArmPath::parse(path).unwrap(),
        body,
        if_match: None,
        sync_remote_address_space: false,
    };
    *topology = topology.apply(&change, &mut Uuid::new_v4).unwrap().topology;
}

/// The id of the network `net` in the resource group with this number.
fn net(number: u8) -> String {
    format!(
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/{number}/providers/Microsoft.Network/\
         virtualNetworks/net"
    )
}

/// Networks of the same name in three resource groups. Each has a machine, 10.NUMBER.0.4.
fn networks_of_the_same_name() -> Topology {
    let mut topology = Topology::default();
    for number in 1..=3 {
        let (vnet, prefix) = (net(number), format!("10.{number}.0.0/16"));
        let (group, _) = vnet.split_once("/providers").unwrap();
        let subnet = json!({"name": "work", "properties": {"addressPrefix": prefix}});
        let address = json!({"name": "a", "properties": {
            "privateIPAddress": format!("10.{number}.0.4"), "privateIPAllocationMethod": "Static",
            "subnet": {"id": format!("{vnet}/subnets/work")},
        }});
        put(&mut topology, group, json!({}));
        let spaces = json!({"addressSpace": {"addressPrefixes": [prefix]}, "subnets": [subnet]});
        put(&mut topology, &vnet, json!({"properties": spaces}));
        put(
            &mut topology,
            &format!("{group}/providers/Microsoft.Network/networkInterfaces/vm"),
            json!({"properties": {"ipConfigurations": [address]}}),
        );
    }
    topology
}

/// D40: two networks of the same name in different resource groups are not taken for one, and the name of a new half is
/// one that the network does not have yet.
#[test]
fn d40_networks_of_the_same_name_are_peered_with_the_defaults() {
    let mut topology = networks_of_the_same_name();
    let asked = question("10.1.0.4", "10.2.0.4", Protocol::Icmp, None);
    let found =
        |topology: &Topology| repair(topology, &LearnedReports::default(), &asked, &in_order, &|| false).unwrap();
    let plain = ["create the peering to-net of net with net"; 2];
    let answer = found(&topology);
    assert!(texts(&answer).contains(&plain.to_vec()), "{answer:#?}");
    let other = json!({"properties": {"remoteVirtualNetwork": {"id": net(3)}}});
    put(
        &mut topology,
        &format!("{}/virtualNetworkPeerings/to-net", net(1)),
        other,
    );
    let free = ["create the peering to-net-2 of net with net", plain[0]];
    let answer = found(&topology);
    assert!(texts(&answer).contains(&free.to_vec()), "{answer:#?}");
}

/// D40, G11: a key that only one object has is copied. If neither has one, the controller generates one.
#[test]
fn d40_g11_missing_keys_are_copied_or_generated() {
    let mut w = hub_and_spokes();
    w.connection("branch", "hub", None);
    let copied = ["set the shared key of the connection branch-to-hub to that of hub-to-branch"];
    assert_eq!(texts(&ping(&w, "a-vm", "branch-vm")), [copied]);
    w.connection("hub", "branch", None);
    let found = ping(&w, "a-vm", "branch-vm");
    let generated = [
        "generate a shared key for the connection branch-to-hub",
        "set the shared key of the connection hub-to-branch to that of branch-to-hub",
    ];
    assert!(texts(&found).contains(&generated.to_vec()), "{found:#?}");
}

/// D40, G10: a connection without an object for the way back gets one, with the same key.
#[test]
fn d40_g10_the_object_for_the_way_back_is_created() {
    let mut w = hub_and_spokes();
    w.topology.connections.retain(|id, _| id.name() != "branch-to-hub");
    let found = ping(&w, "a-vm", "branch-vm");
    let created = [
        "create the connection branch-gw-to-hub-gw from the gateway branch-gw to hub-gw",
        "set the shared key of the connection branch-gw-to-hub-gw to that of hub-to-branch",
    ];
    assert!(texts(&found).contains(&created.to_vec()), "{found:#?}");
}

/// A client in `far`, and a load balancer in `near` with the front end 10.1.0.36, TCP 80, for these machines.
fn balanced(servers: &[&str]) -> World {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24")
        .vnet("far", "10.2.0.0/16", "w=10.2.0.0/24")
        .vm("six", "near/w=10.1.0.6")
        .vm("four", "near/w=10.1.0.4")
        .vm("client", "far/w=10.2.0.4")
        .peer("near", "a", "far", "a");
    let nics: Vec<String> = servers.iter().map(|name| format!("{name}-nic")).collect();
    let nics: Vec<&str> = nics.iter().map(String::as_str).collect();
    add_balancer(&mut w, "lb", ("near/w", "10.1.0.36"), &nics);
    w
}

fn to_front_end(port: u16) -> ExplainRequest {
    question("client", "10.1.0.36", Protocol::Tcp, Some(port))
}

/// D40, L8: the members of an empty pool cannot be known, so the answer names the pool and says what to do.
#[test]
fn d40_l8_an_empty_pool_is_named() {
    let found = answer(&balanced(&[]), &LearnedReports::default(), &to_front_end(80));
    assert_eq!(found.repairs, []);
    let [entry] = &found.by_hand[..] else {
        panic!("{found:#?}")
    };
    assert!(
        entry.cause.contains("back-end pool pool of the load balancer lb"),
        "{entry:?}"
    );
    assert!(
        entry
            .text
            .contains("add the network interfaces of the servers to the pool pool"),
        "{entry:?}"
    );
    assert!(entry.why.contains("only you know"), "{entry:?}");
}

/// D40, L8: a server of another pool of the same load balancer becomes a member of the empty pool.
#[test]
fn d40_l8_a_server_of_the_load_balancer_joins_its_empty_pool() {
    let mut w = balanced(&["six"]);
    let balancer = w.balancer_mut("lb");
    let mut empty = balancer.pools[0].clone();
    empty.id = ResourceId::new(format!("{}/backendAddressPools/empty", id("loadBalancers", "lb")));
    balancer.rules[0].pools = vec![empty.id.clone()];
    balancer.pools.push(empty);
    let found = answer(&w, &LearnedReports::default(), &to_front_end(80));
    assert_eq!(
        texts(&found),
        [["add the network interface six-nic (10.1.0.6) to the empty pool empty of the load balancer lb"]]
    );
}

/// D40, L9, R11: a route leads to a front end for appliances whose pool is empty, or which has no rule. Interfaces that forward
/// become members, and the rule is for all ports.
#[test]
fn d40_l9_appliances_behind_a_front_end() {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24 a=10.1.1.0/24 b=10.1.2.0/24")
        .appliance("six", "near/w=10.1.0.6")
        .vm("four", "near/w=10.1.0.4")
        .vm("left", "near/a=10.1.1.4")
        .vm("right", "near/b=10.1.2.4")
        .routes("near/a", "10.1.2.0/24>10.1.0.36")
        .routes("near/b", "10.1.1.0/24>10.1.0.36");
    add_balancer(&mut w, "lb", ("near/w", "10.1.0.36"), &[]);
    use_ha_ports(&mut w, "lb");
    let asked = question("left", "10.1.2.4", Protocol::Tcp, Some(443));
    let joins = "add the network interface six-nic (10.1.0.6) to the empty pool pool of the load balancer lb";
    let found = answer(&w, &LearnedReports::default(), &asked);
    assert!(texts(&found).contains(&vec![joins]), "{found:#?}");
    w.nic_mut("six-nic").ip_configurations[0].load_balancer_pools = w.balancer_mut("lb").rules[0].pools.clone();
    w.balancer_mut("lb").rules.clear();
    let rule = "add the rule all-ports to the load balancer lb, to the servers of the pool pool, for all ports";
    let found = answer(&w, &LearnedReports::default(), &asked);
    assert!(texts(&found).contains(&vec![rule]), "{found:#?}");
}

/// D40, L3: a new rule has the front end's port. Where the security group of the servers admits another port only, it has that.
#[test]
fn d40_l3_a_new_rule_has_a_port_that_the_servers_admit() {
    let mut w = balanced(&["six"]);
    w.balancer_mut("lb").rules.clear();
    let found = answer(&w, &LearnedReports::default(), &to_front_end(443));
    assert_eq!(
        texts(&found),
        [["add the rule tcp-443 to the load balancer lb, to the servers of the pool pool"]]
    );
    w.group(
        "servers",
        &["web 100 in allow tcp * * 8443", "rest 200 in deny * * * *"],
    );
    w.secure_nic("six-nic", "servers");
    let found = answer(&w, &LearnedReports::default(), &to_front_end(443));
    assert_eq!(
        texts(&found),
        [[
            "add the rule tcp-443 to the load balancer lb, to the servers of the pool pool, port 8443 (check that they listen there)"
        ]]
    );
}

/// D40, L3: a rule to the port of the front end is refused if an inbound NAT rule leads to this port of a server already. The
/// rule then has another port.
#[test]
fn d40_l3_a_new_rule_avoids_the_port_of_a_nat_rule() {
    let mut w = balanced(&["six"]);
    let child = |kind: &str, name: &str| ResourceId::new(format!("{}/{kind}/{name}", id("loadBalancers", "lb")));
    let balancer = w.balancer_mut("lb");
    balancer.rules.clear();
    balancer.nat_rules = vec![InboundNatRule {
        id: child("inboundNatRules", "ssh"),
        etag: Uuid::nil(),
        protocol: BalancedProtocol::Tcp,
        front_end: child("frontendIPConfigurations", "front"),
        front_end_port: 7,
        back_end_port: 22,
        floating_ip: false,
        idle_timeout_minutes: 4,
        tcp_reset: false,
    }];
    w.nic_mut("six-nic").ip_configurations[0].inbound_nat_rules = vec![child("inboundNatRules", "ssh")];
    let path = ArmPath::parse(id("loadBalancers", "lb").as_str()).unwrap();
    let topology = writable(&w).topology;
    let mut body = topology.view(&path, &AgentStatuses::default()).unwrap();
    body["properties"]["loadBalancingRules"] = json!([{"name": "tcp-22", "properties": {
        "frontendIPConfiguration": {"id": child("frontendIPConfigurations", "front")},
        "backendAddressPool": {"id": child("backendAddressPools", "pool")},
        "protocol": "Tcp", "frontendPort": 22, "backendPort": 22,
    }}]);
    let change = Change::Put {
        path,
        body,
        if_match: None,
        sync_remote_address_space: false,
    };
    let refused = topology.apply(&change, &mut Uuid::new_v4).unwrap_err();
    assert!(refused.problems[0].message.contains("backend port 22"), "{refused:?}");
    let found = answer(&w, &LearnedReports::default(), &to_front_end(22));
    let added = "add the rule tcp-22 to the load balancer lb, to the servers of the pool pool, port 8080 (check that they listen there)";
    assert_eq!(texts(&found), [[added]]);
}

/// D40, E7: a gateway is connected with the circuit that leads to the destination.
#[test]
fn d40_e7_a_circuit_is_connected() {
    let asked = question("remote-vm", "10.1.31.10", Protocol::Icmp, None);
    let found = answer(&lab(), &reports(false), &asked);
    let created = "create the connection remote-er-to-er2 of the gateway remote-er with the circuit er2, which opens all networks \
                   that the circuit announces";
    assert!(texts(&found).contains(&vec![created]), "{found:#?}");
}

/// D40, D16: an address of a site that is in none of its prefixes is added to them.
#[test]
fn d40_d16_the_prefix_of_a_site_is_added() {
    let mut w = hub_and_spokes();
    plain_site(&mut w, "office", "hub-gw", "192.168.7.0/24");
    let attachments = vec![id("localNetworkGateways", "office")];
    let address = ip("192.168.8.10");
    w.bind("stray", Binding::Site { attachments, address });
    let found = ping(&w, "stray", "hub-vm");
    let added = "add 192.168.8.10/32 to the address space of the local network gateway office";
    assert!(texts(&found).contains(&vec![added]), "{found:#?}");
}

/// D40: if the design lets the packet arrive, but the network does not, the answer says what a person must do.
#[test]
fn d40_the_state_of_the_network_is_named() {
    let mut w = hub_and_spokes();
    w.agent_mut("hub-vm").revoked = true;
    for (from, to) in [("a-vm", "hub-vm"), ("hub-vm", "a-vm")] {
        let found = ping(&w, from, to);
        assert!(found.reachable && found.repairs.is_empty(), "{found:#?}");
        let [entry] = &found.by_hand[..] else {
            panic!("{found:#?}")
        };
        assert!(entry.text.contains("join again"), "{entry:?}");
        assert!(
            entry.why.contains("the configuration lets the packet arrive"),
            "{entry:?}"
        );
    }
    let short = ExplainRequest {
        ttl: Some(1),
        ..question("a-vm", "branch-vm", Protocol::Icmp, None)
    };
    let found = answer(&hub_and_spokes(), &LearnedReports::default(), &short);
    assert!(found.by_hand[0].text.contains("higher TTL"), "{found:#?}");
    assert!(
        found.by_hand[0].why.contains("the TTL is in the question"),
        "{found:#?}"
    );
    w.nic("lonely", "hub/workload=10.1.0.9", false);
    let found = ping(&w, "lonely", "a-vm");
    assert!(
        found.reachable && found.by_hand[0].cause.contains("has no agent"),
        "{found:#?}"
    );
}
