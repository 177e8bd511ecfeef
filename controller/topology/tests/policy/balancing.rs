//! Load balancers in configurations and in the answers of `explain`: which agents know a front end, which sources the
//! owners of back ends may use, and which back end a packet reaches (L3 to L11, P27, P30, R11).

use crate::explain::stopped;
use crate::world::{World, agent, id, ip, nets, subnet_id};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::ProbeFailure;
use tombolo_topology::explain::{Explanation, explain};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::resource::{
    BackendPool, BalancedProtocol, BalancingRule, Distribution, FrontEnd, LoadBalancer, LoadBalancerSku, Probe,
    ProbeProtocol,
};
use uuid::Uuid;

const FRONT: &str = "10.1.0.36";

fn child(kind: &str, name: &str) -> ResourceId {
    child_of("lb", kind, name)
}

fn child_of(balancer: &str, kind: &str, name: &str) -> ResourceId {
    ResourceId::new(format!("{}/{kind}/{name}", id("loadBalancers", balancer)))
}

/// Adds the load balancer `lb` in `near`, with the front end 10.1.0.36, a rule for TCP from port 80 to 8080 with a probe,
/// and the NICs of these machines as back ends.
fn balance(w: &mut World, sku: LoadBalancerSku, back_ends: &[&str]) {
    let nics: Vec<String> = back_ends.iter().map(|name| format!("{name}-nic")).collect();
    let nics: Vec<&str> = nics.iter().map(String::as_str).collect();
    add_balancer(w, "lb", ("near/w", FRONT), &nics);
    w.balancer_mut("lb").sku = sku;
}

/// Adds a Standard load balancer with a front end in a subnet, a rule for TCP from port 80 to 8080 with a probe, and these
/// NICs as back ends.
pub(crate) fn add_balancer(w: &mut World, name: &str, (subnet, front): (&str, &str), nics: &[&str]) {
    let child = |kind: &str, child: &str| child_of(name, kind, child);
    let balancer = LoadBalancer {
        envelope: World::envelope(id("loadBalancers", name), "region1"),
        sku: LoadBalancerSku::Standard,
        front_ends: vec![FrontEnd {
            id: child("frontendIPConfigurations", "front"),
            etag: Uuid::nil(),
            subnet: subnet_id(subnet),
            address: ip(front),
            is_static: true,
            zones: Vec::new(),
        }],
        pools: vec![BackendPool {
            id: child("backendAddressPools", "pool"),
            etag: Uuid::nil(),
            addresses: Vec::new(),
            virtual_network: None,
            names_virtual_network: false,
            drain_period_seconds: None,
            echoed: serde_json::Map::new(),
        }],
        probes: vec![Probe {
            id: child("probes", "probe"),
            etag: Uuid::nil(),
            protocol: ProbeProtocol::Tcp,
            port: 8080,
            request_path: None,
            interval_seconds: 5,
            threshold: 1,
            number: 1,
            all_up_when_all_down: false,
        }],
        rules: vec![BalancingRule {
            id: child("loadBalancingRules", "web"),
            etag: Uuid::nil(),
            protocol: BalancedProtocol::Tcp,
            front_end: child("frontendIPConfigurations", "front"),
            front_end_port: 80,
            back_end_port: 8080,
            pools: vec![child("backendAddressPools", "pool")],
            probe: Some(child("probes", "probe")),
            distribution: Distribution::Default,
            idle_timeout_minutes: 4,
            floating_ip: false,
            tcp_reset: false,
            echoed: serde_json::Map::new(),
        }],
        nat_rules: Vec::new(),
    };
    w.topology
        .load_balancers
        .insert(id("loadBalancers", name), Arc::new(balancer));
    for nic in nics {
        let pools = &mut w.nic_mut(nic).ip_configurations[0].load_balancer_pools;
        *pools = vec![child("backendAddressPools", "pool")];
    }
}

/// Makes the rule of a load balancer one for all ports, without a probe (L9).
pub(crate) fn use_ha_ports(w: &mut World, name: &str) {
    let rule = &mut w.balancer_mut(name).rules[0];
    (rule.protocol, rule.front_end_port, rule.back_end_port) = (BalancedProtocol::All, 0, 0);
    rule.probe = None;
}

/// Two VNets in two regions with a peering, and a hub without a peering to `far`. `six` and `four` are in `near`.
fn world() -> World {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24")
        .vnet_in("far", "region2", "10.2.0.0/16", "w=10.2.0.0/24")
        .vnet("other", "10.3.0.0/16", "w=10.3.0.0/24")
        .vm("six", "near/w=10.1.0.6")
        .vm("four", "near/w=10.1.0.4")
        .vm("beside", "near/w=10.1.0.10")
        .vm("client", "far/w=10.2.0.4")
        .vm("stranger", "other/w=10.3.0.4")
        .peer("near", "a", "far", "a")
        .peer("near", "a", "other", "a");
    w
}

/// The machines whose configuration has a front end.
fn knowing(w: &World) -> Vec<&'static str> {
    let all = ["six", "four", "beside", "client", "stranger"];
    all.into_iter()
        .filter(|vm| !w.config(vm).front_ends.is_empty())
        .collect()
}

/// L10, P30: the own VNet and peered ones know a front end; those of another region only if the SKU is Standard.
#[test]
fn l10_p30_who_reaches_a_front_end() {
    let mut w = world();
    balance(&mut w, LoadBalancerSku::Standard, &["six", "four"]);
    assert_eq!(knowing(&w), ["six", "four", "beside", "client", "stranger"]);
    balance(&mut w, LoadBalancerSku::Basic, &["six", "four"]);
    assert_eq!(knowing(&w), ["six", "four", "beside", "stranger"]);
    balance(&mut w, LoadBalancerSku::Standard, &["six", "four"]);
    Arc::make_mut(&mut w.topology.settings).global_load_balancing = false;
    assert_eq!(knowing(&w), ["six", "four", "beside", "stranger"]);
    Arc::make_mut(&mut w.topology.settings).global_load_balancing = true;
    // P27: an address that is not synced yet is unknown.
    w.half_mut("far", "near").remote_address_space = nets("10.1.128.0/17");
    assert_eq!(knowing(&w), ["six", "four", "beside", "stranger"]);
    let rule = &w.config("beside").front_ends[0].rules[0];
    assert_eq!((rule.port, rule.back_end_port), (80, 8080));
    assert_eq!(rule.back_ends, [ip("10.1.0.4"), ip("10.1.0.6")]);
}

/// L5, D10: the agent of a back end may send from the front end's address, and no other agent may.
#[test]
fn l5_back_ends_may_use_the_front_ends_address() {
    let mut w = world();
    let may = |w: &World, from: &str| {
        let sources = w.link("client", from).map(|link| link.sources).unwrap_or_default();
        sources.iter().any(|prefix| prefix.contains(&ip(FRONT)))
    };
    assert!(!may(&w, "six"));
    balance(&mut w, LoadBalancerSku::Standard, &["six"]);
    assert!(may(&w, "six") && !may(&w, "four") && !may(&w, "beside"));
}

/// L1, D8, D10: no agent owns the address of a front end in a served subnet, and only the agents of its back ends may use it
/// as a source. An agent that does not know the front end has nobody to send to.
#[test]
fn l1_d8_the_host_of_a_served_subnet_does_not_own_its_front_ends() {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24 behind=10.1.1.0/24")
        .vnet_in("far", "region2", "10.2.0.0/16", "w=10.2.0.0/24")
        .vm("six", "near/w=10.1.0.6")
        .vm("client", "far/w=10.2.0.4")
        .peer("near", "a", "far", "a")
        .nic("host-nic", "near/w=10.1.0.5", false)
        .bind("host", World::vm_binding("host", &["host-nic"], &["near/behind"]));
    let owner = |w: &World, agent: &str, address: &str| {
        let spaces = w.config(agent).spaces;
        let owners = spaces.into_iter().flat_map(|space| space.owners);
        let mut owning = owners.filter(|owner| owner.prefix.contains(&ip(address)));
        owning.next().map(|owner| owner.agent)
    };
    let may = |w: &World, from: &str| {
        let sources = w.link("client", from).map(|link| link.sources).unwrap_or_default();
        sources.iter().any(|prefix| prefix.contains(&ip("10.1.1.36")))
    };
    assert_eq!(owner(&w, "client", "10.1.1.36"), Some(agent("host")));
    assert!(may(&w, "host"));
    add_balancer(&mut w, "lb", ("near/behind", "10.1.1.36"), &["six-nic"]);
    for name in ["client", "host", "six"] {
        assert_eq!(owner(&w, name, "10.1.1.36"), None, "{name}");
        for address in ["10.1.1.35", "10.1.1.37"] {
            assert_eq!(owner(&w, name, address), Some(agent("host")), "{name}: {address}");
        }
    }
    assert!(may(&w, "six") && !may(&w, "host"));
    let answer = |w: &World| {
        ask(
            w,
            &LearnedReports::default(),
            "client",
            "10.1.1.36",
            Protocol::Tcp,
            Some(80),
        )
    };
    assert!(answer(&w).reachable, "{:#?}", answer(&w));
    w.balancer_mut("lb").sku = LoadBalancerSku::Basic;
    stopped(&answer(&w), "client", "no_owner", "P30", &["Basic", "lb"]);
    // A machine in the served subnet is a back end. The host's agent translates for it.
    w.balancer_mut("lb").sku = LoadBalancerSku::Standard;
    w.nic_mut("six-nic").ip_configurations[0].load_balancer_pools.clear();
    w.nic("behind-nic", "near/behind=10.1.1.7", false);
    add_balancer(&mut w, "lb", ("near/behind", "10.1.1.36"), &["behind-nic"]);
    assert!(may(&w, "host") && !may(&w, "six"));
    let to_served = answer(&w);
    assert!(to_served.reachable, "{to_served:#?}");
    assert_eq!(to_served.request.hops.last().unwrap().verdict, "delivers to 10.1.1.7");
}

pub(crate) fn ask(
    w: &World,
    reports: &LearnedReports,
    from: &str,
    to: &str,
    protocol: Protocol,
    port: Option<u16>,
) -> Explanation {
    let mut question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap();
    (question.protocol, question.destination_port) = (protocol, port);
    explain(&w.topology, reports, &question).unwrap()
}

/// L3, L5, L7, L8: explain follows the packet to the back end that the agents choose, and the reply from the front end.
#[test]
fn explain_follows_a_packet_to_its_back_end() {
    let mut w = world();
    balance(&mut w, LoadBalancerSku::Standard, &["six", "four"]);
    let mut reports = LearnedReports::default();
    let asked = |reports: &LearnedReports| ask(&w, reports, "client", FRONT, Protocol::Tcp, Some(80));
    let answer = asked(&reports);
    assert!(answer.reachable, "{answer:#?}");
    let last = answer.request.hops.last().unwrap();
    let (chosen, other) = match last.agent.as_str() {
        "six" => ("six", "four"),
        "four" => ("four", "six"),
        agent => panic!("{agent} has no back end"),
    };
    let address = |name: &str| if name == "six" { "10.1.0.6" } else { "10.1.0.4" };
    assert_eq!(last.verdict, format!("delivers to {}", address(chosen)));
    let reply = answer.reply.as_ref().unwrap();
    assert!(reply.delivered && reply.hops[0].agent == agent(chosen));

    // L7: a back end that is down by its agent's report gets no new flow. What others report does not count.
    let down = |name: &str| BTreeSet::from([(child("probes", "probe"), ip(address(name)))]);
    reports.unhealthy.insert(agent(other), down(chosen));
    assert_eq!(asked(&reports).request.hops.last().unwrap().agent, agent(chosen));
    reports.unhealthy.clear();
    reports.unhealthy.insert(agent(chosen), down(chosen));
    assert_eq!(asked(&reports).request.hops.last().unwrap().agent, agent(other));
    // L8: with both down, the rule, the back ends and the probe are named.
    reports.unhealthy.insert(agent(other), down(other));
    let named = ["web", address(chosen), address(other), "probe of port 8080"];
    stopped(&asked(&reports), "client", "no_back_end", "L8", &named);
    // The agent of one back end reports the reason. Reasons that another agent reports do not count.
    let failed = |name: &str, failure| BTreeMap::from([((child("probes", "probe"), ip(address(name))), failure)]);
    let reasons = [
        (chosen, failed(chosen, ProbeFailure::Status(503))),
        ("client", failed(other, ProbeFailure::Refused)),
    ];
    reports.failures = reasons.map(|(by, failures)| (agent(by), failures)).into();
    let status = format!("{} (the HTTP status of the response is 503, not 200)", address(chosen));
    let answer = asked(&reports);
    stopped(&answer, "client", "no_back_end", "L8", &[&status, address(other)]);
    assert!(!format!("{answer:?}").contains(&ProbeFailure::Refused.to_string()));
}

/// L5, D35: a machine with two NICs reaches the back end at its other NIC. The rules of both NICs apply (D25).
#[test]
fn l5_d35_explain_follows_a_packet_to_a_back_end_of_the_same_agent() {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24")
        .nic("front-nic", "near/w=10.1.0.7", false)
        .nic("back-nic", "near/w=10.1.0.6", false)
        .bind("both", World::vm_binding("both", &["front-nic", "back-nic"], &[]));
    balance(&mut w, LoadBalancerSku::Standard, &["back"]);
    let answer = ask(&w, &LearnedReports::default(), "both", FRONT, Protocol::Tcp, Some(80));
    assert!(answer.reachable, "{answer:#?}");
    let [hop] = &answer.request.hops[..] else {
        panic!("{answer:#?}")
    };
    assert_eq!(hop.verdict, "delivers to 10.1.0.6");
    let reply = answer.reply.as_ref().unwrap();
    assert_eq!(reply.hops.last().unwrap().verdict, "delivers to 10.1.0.7");
}

/// L3, L11: packets that no rule is for, and a back end that would reach itself.
#[test]
fn explain_names_the_rule_that_a_packet_to_a_front_end_lacks() {
    let mut w = world();
    balance(&mut w, LoadBalancerSku::Standard, &["six"]);
    let none = LearnedReports::default();
    let to_front = |from: &str, protocol, port| ask(&w, &none, from, FRONT, protocol, port);
    let other = to_front("client", Protocol::Tcp, Some(81));
    stopped(&other, "client", "no_balancing_rule", "L3", &[FRONT, "81"]);
    let ping = to_front("client", Protocol::Icmp, None);
    stopped(&ping, "client", "balancer_protocol", "L3", &["TCP and UDP"]);
    let itself = to_front("six", Protocol::Tcp, Some(80));
    stopped(&itself, "six", "back_end_itself", "L11", &["10.1.0.6"]);
}

/// P30, P27: explain names what closes a front end to a VNet of another region: the SKU, the setting, or the peering.
#[test]
fn p30_explain_names_what_closes_a_front_end_to_another_region() {
    let mut w = world();
    let to_front = |w: &World| ask(w, &LearnedReports::default(), "client", FRONT, Protocol::Tcp, Some(80));
    balance(&mut w, LoadBalancerSku::Basic, &["six"]);
    stopped(&to_front(&w), "client", "no_owner", "P30", &["Basic", "lb"]);
    balance(&mut w, LoadBalancerSku::Standard, &["six"]);
    assert!(to_front(&w).reachable);
    Arc::make_mut(&mut w.topology.settings).global_load_balancing = false;
    stopped(
        &to_front(&w),
        "client",
        "no_owner",
        "P30",
        &["globalLoadBalancing", "another region"],
    );
    let near = ask(
        &w,
        &LearnedReports::default(),
        "stranger",
        FRONT,
        Protocol::Tcp,
        Some(80),
    );
    assert!(near.reachable, "the setting is about other regions only: {near:#?}");
}

/// R11, L9: a route may name a front end as virtual appliance. Both directions pass the same one of two appliances.
#[test]
fn r11_a_front_end_is_a_virtual_appliance() {
    let mut w = World::default();
    w.vnet("near", "10.1.0.0/16", "w=10.1.0.0/24 a=10.1.1.0/24 b=10.1.2.0/24")
        .appliance("six", "near/w=10.1.0.6")
        .appliance("four", "near/w=10.1.0.4")
        .vm("left", "near/a=10.1.1.4")
        .vm("right", "near/b=10.1.2.4")
        .routes("near/a", &format!("10.1.2.0/24>{FRONT}"))
        .routes("near/b", &format!("10.1.1.0/24>{FRONT}"));
    balance(&mut w, LoadBalancerSku::Standard, &["six", "four"]);
    use_ha_ports(&mut w, "lb");
    let mut used = BTreeSet::new();
    for port in 1..40 {
        let answer = ask(
            &w,
            &LearnedReports::default(),
            "left",
            "10.1.2.4",
            Protocol::Tcp,
            Some(port),
        );
        assert!(answer.reachable, "{answer:#?}");
        let appliance = |hops: &[tombolo_topology::explain::Hop]| {
            let between = hops
                .iter()
                .find(|hop| hop.agent == agent("six") || hop.agent == agent("four"));
            between.unwrap().agent.clone()
        };
        let there = appliance(&answer.request.hops);
        assert_eq!(there, appliance(&answer.reply.unwrap().hops), "port {port}");
        used.insert(there);
    }
    assert_eq!(used.len(), 2);
}

/// L3: with floating IP, the back end gets the packet with the front end's address, also if it is an appliance.
#[test]
fn l3_explain_delivers_a_packet_with_floating_ip() {
    let mut w = world();
    balance(&mut w, LoadBalancerSku::Standard, &["six"]);
    w.nic_mut("six-nic").enable_ip_forwarding = true;
    let rule = &mut w.balancer_mut("lb").rules[0];
    (rule.floating_ip, rule.back_end_port) = (true, 80);
    let none = LearnedReports::default();
    let answer = ask(&w, &none, "client", FRONT, Protocol::Tcp, Some(80));
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(answer.request.hops.last().unwrap().agent, agent("six"));
}
