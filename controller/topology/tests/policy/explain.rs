//! The answers of `explain`: the path of a packet, the traceroute, and the text with the cause and the remedy if the
//! packet does not arrive. Rules: P17, P18, P21, P24, P25, R9 to R15, R19, D9, T2, T5.

use crate::world::{World, agent, hub_and_spokes, ip, peering_id};
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_topology::explain::{Explanation, explain};
use tombolo_topology::resource::PeeringState;

/// The answer of `explain` for an ICMP packet. No agent has reported anything. Asserts that the answer is the same
/// after it is written as JSON and read back.
fn ask(w: &World, from: &str, to: &str) -> Explanation {
    let question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap();
    let answer = explain(&w.topology, &Default::default(), &question).unwrap();
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(
        serde_json::from_str::<Explanation>(&text).unwrap(),
        answer,
        "survives JSON"
    );
    answer
}

/// The agents on the packet's path, in order. An agent with two consecutive hops is named once.
fn way(answer: &Explanation) -> Vec<&str> {
    let mut agents: Vec<&str> = answer.request.hops.iter().map(|hop| hop.agent.as_str()).collect();
    agents.dedup();
    agents
}

/// The output of traceroute: the address of each hop, `*` for silent hops.
fn trace(answer: &Explanation) -> Vec<String> {
    let line = |hop: &tombolo_topology::explain::TraceHop| hop.address.map_or("*".into(), |a| a.to_string());
    answer.trace.iter().map(line).collect()
}

/// Asserts that the destination is unreachable because the packet or its reply stops at the agent `at`, with this drop
/// reason and rule. Asserts that the text with the cause and the remedy contains all `words`, and that it has both
/// parts.
#[track_caller]
pub(crate) fn stopped(answer: &Explanation, at: &str, reason: &str, rule: &str, words: &[&str]) {
    assert!(!answer.reachable, "{answer:#?}");
    let stop = answer.request.stop.as_ref();
    let stop = stop.or(answer.reply.as_ref().and_then(|r| r.stop.as_ref())).unwrap();
    assert_eq!(
        (stop.agent.as_str(), stop.reason.as_str(), stop.rule.as_deref()),
        (at, reason, Some(rule)),
        "{}",
        stop.text
    );
    for word in words {
        assert!(stop.text.contains(word), "'{word}' in: {}", stop.text);
    }
    assert_eq!(stop.text, format!("{}: {}", stop.cause, stop.remedy));
    assert!(!stop.cause.is_empty() && !stop.remedy.is_empty(), "{stop:?}");
    assert!(
        !stop.remedy.contains(reason) && !stop.remedy.contains("drops"),
        "a remedy, not the verdict again: {stop:?}"
    );
    assert!(answer.summary.contains(&stop.text));
}

/// T2: inside a VNet and across a peering, a traceroute shows no hop between two VMs, in both directions and for every
/// protocol.
#[test]
fn t2_peering_is_one_hop() {
    let w = hub_and_spokes();
    for (from, to, address) in [
        ("a-vm", "hub-vm", "10.1.0.4"),
        ("hub-vm", "a-vm", "10.2.0.4"),
        ("hub-vm", "hub-nva", "10.1.0.5"),
    ] {
        let answer = ask(&w, from, to);
        assert!(answer.reachable, "{answer:#?}");
        assert_eq!(way(&answer), [from, to]);
        assert_eq!(trace(&answer), [address]);
    }
    let answer = ask(&w, "a-vm", "hub-vm");
    let route = answer.request.hops[0].route.as_ref().unwrap();
    assert_eq!(
        (route.next_hop_type.as_str(), route.address_prefix.to_string()),
        ("VNetPeering", "10.1.0.0/16".into())
    );
    assert_eq!(answer.request.hops[0].relation.as_deref(), Some("peering"));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (from, to) = ("a-vm".into(), "10.1.0.4".into());
        let question = ExplainRequest {
            from,
            to,
            protocol,
            destination_port: Some(443),
            ttl: None,
            design: false,
        };
        assert!(explain(&w.topology, &Default::default(), &question).unwrap().reachable);
    }
}

/// P24: two spokes that are peered with one hub do not reach each other, and explain's answer names the change that
/// would connect them.
#[test]
fn p24_spokes_do_not_reach_each_other() {
    let answer = ask(&hub_and_spokes(), "a-vm", "b-vm");
    stopped(
        &answer,
        "a-vm",
        "route_none",
        "P24",
        &["not transitive", "hub", "allowForwardedTraffic"],
    );
    assert_eq!(answer.trace, []);
}

/// R19, P18, T1: a spoke reaches the other spoke through an appliance in the hub. This needs three things: a NIC of the
/// appliance with enableIPForwarding, a user-defined route in each spoke, and allowForwardedTraffic on the receiving
/// spoke's half of the peering with the hub. In a traceroute the appliance is a hop that answers.
#[test]
fn r19_service_chaining() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    let answer = ask(&w, "a-vm", "b-vm");
    stopped(
        &answer,
        "b-vm",
        "spoofed_source",
        "P18",
        &["allowForwardedTraffic", "to-hub", "spoke-b"],
    );
    assert_eq!(
        answer.request.stop.unwrap().resource,
        Some(peering_id("spoke-b", "hub"))
    );

    w.half_mut("spoke-b", "hub").allow_forwarded_traffic = true;
    let answer = ask(&w, "a-vm", "b-vm");
    assert!(answer.request.delivered, "{answer:#?}");
    stopped(&answer, "b-vm", "route_none", "P24", &[]);
    assert!(answer.summary.contains("the answer does not"));

    w.routes("spoke-b/workload", "10.2.0.0/16>10.1.0.5");
    stopped(
        &ask(&w, "a-vm", "b-vm"),
        "a-vm",
        "spoofed_source",
        "P18",
        &["allowForwardedTraffic"],
    );

    w.half_mut("spoke-a", "hub").allow_forwarded_traffic = true;
    let answer = ask(&w, "a-vm", "b-vm");
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(way(&answer), ["a-vm", "hub-nva", "b-vm"]);
    assert_eq!(trace(&answer), ["10.1.0.5", "10.3.0.4"]);

    // R12: without enableIPForwarding on its NIC, the appliance forwards nothing.
    w.appliance("hub-nva", "hub/workload=10.1.0.5")
        .nic("hub-nva-nic", "hub/workload=10.1.0.5", false);
    stopped(
        &ask(&w, "a-vm", "b-vm"),
        "hub-nva",
        "not_forwarding",
        "R12",
        &["enableIPForwarding"],
    );
}

/// R11: the appliance of a user-defined route must be in the sender's VNet or in a VNet that is peered with it. Packets
/// to an appliance two peerings away are dropped.
#[test]
fn r11_appliances_are_one_peering_away_at_most() {
    let mut w = hub_and_spokes();
    w.vnet("far", "10.8.0.0/16", "s=10.8.0.0/24")
        .appliance("far-nva", "far/s=10.8.0.4");
    w.peer("spoke-b", "a", "far", "a");
    w.routes("spoke-a/workload", "10.3.0.0/16>10.8.0.4");
    stopped(
        &ask(&w, "a-vm", "b-vm"),
        "a-vm",
        "appliance_unreachable",
        "R11",
        &["black hole", "'r0'", "10.3.0.0/16"],
    );
    // D8: if the route's next hop is an address that no agent owns, explain's answer says so.
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.99");
    stopped(
        &ask(&w, "a-vm", "b-vm"),
        "a-vm",
        "no_owner",
        "D8",
        &["10.1.0.99", "next hop"],
    );
}

/// P21a, c, T5: a VM of a spoke sends packets for the branch directly to the hub's gateway. In a traceroute the hub's
/// gateway answers, and the branch's gateway is a silent hop (`*`). The reply passes first the branch's gateway and
/// then the hub's.
#[test]
fn p21_t5_spoke_to_branch() {
    let w = hub_and_spokes();
    let answer = ask(&w, "a-vm", "branch-vm");
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(way(&answer), ["a-vm", "hub-gw", "branch-gw", "branch-vm"]);
    assert_eq!(trace(&answer), ["10.1.255.4", "*", "10.4.0.4"]);
    let relations: Vec<_> = answer
        .request
        .hops
        .iter()
        .filter_map(|hop| hop.relation.as_deref())
        .collect();
    assert_eq!(relations, ["gateway", "connection", "gatewayClient"]);
    let ttls: Vec<_> = answer.request.hops.iter().map(|hop| hop.ttl).collect();
    assert_eq!(ttls, [64, 64, 63, 62]);
    let back: Vec<_> = answer
        .reply
        .unwrap()
        .hops
        .iter()
        .map(|hop| hop.agent.to_string())
        .collect();
    assert_eq!(back, ["branch-vm", "branch-gw", "hub-gw", "a-vm"]);
    assert_eq!(trace(&ask(&w, "branch-vm", "a-vm")), ["10.4.255.4", "*", "10.2.0.4"]);
    assert_eq!(trace(&ask(&w, "hub-vm", "branch-vm")), ["10.1.255.4", "*", "10.4.0.4"]);
}

/// P21: if allowGatewayTransit or useRemoteGateways is off, the routes are withdrawn, and explain's answer names the
/// flag that is off.
#[test]
fn p20_the_missing_flag_is_named() {
    let mut w = hub_and_spokes();
    w.half_mut("spoke-a", "hub").use_remote_gateways = false;
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "a-vm",
        "route_none",
        "P20",
        &["useRemoteGateways on to-hub of spoke-a"],
    );
    w.half_mut("hub", "spoke-a").allow_gateway_transit = false;
    let answer = ask(&w, "a-vm", "branch-vm");
    stopped(
        &answer,
        "a-vm",
        "route_none",
        "P20",
        &["allowGatewayTransit on to-spoke-a of hub", "then useRemoteGateways"],
    );
}

/// P21d: if both spokes have user-defined routes to the hub's VPN gateway, they reach each other through it. In a
/// traceroute the gateway is a hop.
#[test]
fn p21d_spoke_to_spoke_by_the_vpn_gateway() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.3.0.0/16>gateway");
    let answer = ask(&w, "a-vm", "b-vm");
    assert!(
        answer.request.delivered && !answer.reachable,
        "one way only: {answer:#?}"
    );
    w.routes("spoke-b/workload", "10.2.0.0/16>gateway");
    let answer = ask(&w, "a-vm", "b-vm");
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(trace(&answer), ["10.1.255.4", "10.3.0.4"]);
}

/// P25, D9: hub and branch are joined by VPN and also peered. Packets between hub and branch use the peering; packets
/// between a spoke of the hub and the branch use the VPN. After one half of the peering is deleted, hub and branch use
/// the VPN again.
#[test]
fn p25_d9_peering_beats_the_vpn_for_its_own_vnets_only() {
    let mut w = hub_and_spokes();
    w.peer("hub", "a", "branch", "a");
    for (from, to) in [("hub-vm", "branch-vm"), ("branch-vm", "hub-vm")] {
        let answer = ask(&w, from, to);
        assert!(answer.reachable);
        assert_eq!(way(&answer), [from, to]);
    }
    let answer = ask(&w, "a-vm", "branch-vm");
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(trace(&answer), ["10.1.255.4", "*", "10.4.0.4"]);
    assert!(ask(&w, "branch-vm", "a-vm").reachable);

    w.vnet_mut("branch").peerings.clear();
    w.half_mut("hub", "branch").state = PeeringState::Disconnected;
    let answer = ask(&w, "hub-vm", "branch-vm");
    assert!(answer.reachable);
    assert_eq!(way(&answer), ["hub-vm", "hub-gw", "branch-gw", "branch-vm"]);
}

/// D9: the branch and a VNet that is only peered with the hub do not reach each other, even if the branch has a
/// user-defined route to that VNet.
#[test]
fn d9_a_plain_peer_is_not_relayed_to() {
    let mut w = hub_and_spokes();
    w.vnet("plain", "10.5.0.0/16", "s=10.5.0.0/24")
        .vm("plain-vm", "plain/s=10.5.0.4");
    w.peer("hub", "at", "plain", "a");
    w.routes("branch/workload", "10.5.0.0/16>gateway");
    // The packet stops at the branch's gateway, which has no connection that leads to 10.5.0.0/16.
    stopped(
        &ask(&w, "branch-vm", "plain-vm"),
        "branch-gw",
        "route_none",
        "P20",
        &["useRemoteGateways on to-hub of plain"],
    );
    stopped(
        &ask(&w, "plain-vm", "branch-vm"),
        "plain-vm",
        "route_none",
        "P20",
        &["useRemoteGateways on to-hub of plain"],
    );
}

/// R16, R20: a user-defined route of GatewaySubnet sends packets from the tunnel to the spoke through an appliance.
/// With a route in the spoke too, packets in both directions pass the appliance. The gateway's ICMP errors also return
/// through the appliance, and the spoke accepts them.
#[test]
fn r16_inspection_between_gateway_and_spoke() {
    let mut w = hub_and_spokes();
    w.half_mut("spoke-a", "hub").allow_forwarded_traffic = true;
    w.routes("hub/GatewaySubnet", "10.2.0.0/16>10.1.0.5")
        .routes("spoke-a/workload", "10.4.0.0/16>10.1.0.5");
    let answer = ask(&w, "branch-vm", "a-vm");
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(way(&answer), ["branch-vm", "branch-gw", "hub-gw", "hub-nva", "a-vm"]);
    let answer = ask(&w, "a-vm", "branch-vm");
    assert_eq!(way(&answer), ["a-vm", "hub-nva", "hub-gw", "branch-gw", "branch-vm"]);
    assert_eq!(trace(&answer), ["10.1.0.5", "10.1.255.4", "*", "10.4.0.4"]);
}

/// P18: a spoke's appliance may send packets with foreign sources to the hub's gateway only if the hub's half of the
/// peering has allowForwardedTraffic. D9: even with allowForwardedTraffic, the far gateway accepts only packets with
/// sources that the hub's gateway may relay.
#[test]
fn p18_d9_foreign_sources_at_gateways() {
    let mut w = hub_and_spokes();
    w.vnet("c", "10.6.0.0/16", "s=10.6.0.0/24").vm("c-vm", "c/s=10.6.0.4");
    w.appliance("a-nva", "spoke-a/workload=10.2.0.5")
        .peer("spoke-a", "a", "c", "a");
    w.routes("c/s", "10.4.0.0/16>10.2.0.5");
    let answer = ask(&w, "c-vm", "branch-vm");
    stopped(
        &answer,
        "hub-gw",
        "spoofed_source",
        "P18",
        &["a-nva", "allowForwardedTraffic", "hub"],
    );
    assert_eq!(
        answer.request.stop.unwrap().resource,
        Some(peering_id("hub", "spoke-a"))
    );
    w.half_mut("hub", "spoke-a").allow_forwarded_traffic = true;
    stopped(
        &ask(&w, "c-vm", "branch-vm"),
        "branch-gw",
        "spoofed_source",
        "D9",
        &["hub-gw", "10.6.0.4"],
    );
}

/// P17: if allowVirtualNetworkAccess is off on one half of a peering, no packet crosses the peering, and explain's
/// answer names that half.
#[test]
fn p17_access_off_on_either_half() {
    for (vnet, remote, at) in [("hub", "spoke-a", "hub-vm"), ("spoke-a", "hub", "a-vm")] {
        let mut w = hub_and_spokes();
        w.half_mut(vnet, remote).allow_virtual_network_access = false;
        for (from, to) in [("hub-vm", "a-vm"), ("a-vm", "hub-vm")] {
            let answer = ask(&w, from, to);
            stopped(
                &answer,
                at,
                "access_denied",
                "P17",
                &["allowVirtualNetworkAccess", vnet],
            );
            assert_eq!(answer.request.stop.unwrap().resource, Some(peering_id(vnet, remote)));
        }
    }
}

/// P13, P14: if a half of a peering is not `Connected`, explain's answer names the half's state and the remedy for this
/// state.
#[test]
fn p13_p14_states_of_a_peering() {
    let mut w = World::default();
    w.vnet("x", "10.1.0.0/16", "s=10.1.0.0/24").vm("x-vm", "x/s=10.1.0.4");
    w.vnet("y", "10.2.0.0/16", "s=10.2.0.0/24").vm("y-vm", "y/s=10.2.0.4");
    stopped(
        &ask(&w, "x-vm", "y-vm"),
        "x-vm",
        "route_none",
        "P24",
        &["create a peering"],
    );
    w.initiated("x", "y");
    stopped(
        &ask(&w, "x-vm", "y-vm"),
        "x-vm",
        "route_none",
        "P13",
        &["Initiated", "other half in y"],
    );
    stopped(
        &ask(&w, "y-vm", "x-vm"),
        "y-vm",
        "route_none",
        "P13",
        &["create that half"],
    );
    w.half_mut("x", "y").state = PeeringState::Disconnected;
    stopped(&ask(&w, "x-vm", "y-vm"), "x-vm", "route_none", "P14", &["Disconnected"]);
    w.vnet_mut("x").peerings.clear();
    w.peer("x", "a", "y", "a");
    assert!(ask(&w, "x-vm", "y-vm").reachable);
    // P27: y has a new address range that x has not synced, so x has no route to it.
    w.vnet_mut("y").address_space.push("10.9.0.0/16".parse().unwrap());
    stopped(
        &ask(&w, "x-vm", "10.9.0.4"),
        "x-vm",
        "route_none",
        "P27",
        &["syncRemoteAddressSpace"],
    );
}

/// R9, R10, R13: explain's answer names the user-defined route that stops the packet.
#[test]
fn r13_user_routes_are_named() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.1.0.0/16>none");
    stopped(
        &ask(&w, "a-vm", "hub-vm"),
        "a-vm",
        "route_none",
        "R13",
        &["user route 'r0' 10.1.0.0/16 (None)", "workload"],
    );
    w.routes("spoke-a/workload", "10.1.0.0/16>internet");
    stopped(
        &ask(&w, "a-vm", "hub-vm"),
        "a-vm",
        "route_internet",
        "R10",
        &["(Internet)"],
    );
    w.routes("spoke-a/workload", "0.0.0.0/0>10.1.0.5");
    let answer = ask(&w, "a-vm", "192.168.7.7");
    assert_eq!(
        way(&answer),
        ["a-vm", "hub-nva"],
        "R9: private destinations follow the user's default"
    );
}

/// R15: if the subnet's route table has disableBgpRoutePropagation, explain's answer says that the subnet does not
/// accept gateway routes.
#[test]
fn r15_propagation_off_is_named() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.77.0.0/16>none");
    w.table_mut("spoke-a/workload").disable_bgp_route_propagation = true;
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "a-vm",
        "route_none",
        "R15",
        &["disableBgpRoutePropagation"],
    );
}

/// `explain` ends and says so if a packet is in a routing loop, here between two appliances whose subnets route it to
/// each other. An appliance whose own subnet routes the packet back to it drops the packet (the warning of R12).
#[test]
fn loops_are_found() {
    let mut w = hub_and_spokes();
    w.appliance("nva-2", "hub/workload=10.1.0.6");
    w.vnet_mut("hub").subnets.push(tombolo_topology::resource::Subnet {
        id: crate::world::subnet_id("hub/dmz"),
        etag: uuid::Uuid::nil(),
        prefixes: crate::world::nets("10.1.1.0/24"),
        lists_prefixes: false,
        route_table: None,
        network_security_group: None,
        echoed: serde_json::Map::new(),
    });
    w.appliance("nva-3", "hub/dmz=10.1.1.5");
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    w.routes("hub/workload", "10.3.0.0/16>10.1.1.5")
        .routes("hub/dmz", "10.3.0.0/16>10.1.0.5");
    let answer = ask(&w, "a-vm", "b-vm");
    stopped(&answer, "hub-nva", "loop", "R12", &["routing loop"]);
    assert!(answer.trace.is_empty() || answer.trace.len() <= 64);
    w.routes("hub/workload", "10.3.0.0/16>10.1.0.5");
    stopped(&ask(&w, "a-vm", "b-vm"), "hub-nva", "hairpin", "R12", &["comes from"]);
}

/// A question can have a TTL; the packet then expires at the hop where that TTL runs out. A TTL of 0 is an error.
#[test]
fn ttl_is_honoured() {
    let w = hub_and_spokes();
    let question = |ttl| ExplainRequest {
        from: "a-vm".into(),
        to: "branch-vm".into(),
        protocol: Protocol::Icmp,
        destination_port: None,
        ttl: Some(ttl),
        design: false,
    };
    let answer = explain(&w.topology, &Default::default(), &question(1)).unwrap();
    assert!(!answer.reachable && answer.request.stop.as_ref().unwrap().agent == agent("hub-gw"));
    assert_eq!(trace(&answer), ["10.1.255.4"]);
    assert!(
        explain(&w.topology, &Default::default(), &question(3))
            .unwrap()
            .reachable
    );
    assert!(
        explain(&w.topology, &Default::default(), &question(0))
            .unwrap_err()
            .starts_with("ttl")
    );
}

/// The answer of explain names what is missing: a NIC without an agent, a revoked agent, or an address that no NIC has.
#[test]
fn whoever_is_missing_is_named() {
    let mut w = hub_and_spokes();
    w.nic("lonely", "hub/workload=10.1.0.9", false);
    stopped(
        &ask(&w, "a-vm", "lonely"),
        "a-vm",
        "no_owner",
        "D7",
        &["lonely", "no agent has joined", "join token"],
    );
    stopped(
        &ask(&w, "a-vm", "10.1.0.77"),
        "a-vm",
        "no_owner",
        "D8",
        &["no agent in hub has 10.1.0.77"],
    );
    stopped(
        &ask(&w, "a-vm", "203.0.113.9"),
        "a-vm",
        "route_internet",
        "R1",
        &["no virtual network"],
    );
    w.agent_mut("hub-vm").revoked = true;
    stopped(
        &ask(&w, "a-vm", "hub-vm"),
        "a-vm",
        "no_owner",
        "D7",
        &["hub-vm", "revoked"],
    );
    stopped(
        &ask(&w, "hub-vm", "a-vm"),
        "hub-vm",
        "no_configuration",
        "D7",
        &["revoked"],
    );
    w.agent_mut("branch-gw").revoked = true;
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "hub-gw",
        "no_gateway",
        "D7",
        &["branch-gw", "revoked"],
    );
    w.agent_mut("hub-gw").revoked = true;
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "a-vm",
        "no_gateway",
        "D7",
        &["hub-gw", "revoked"],
    );
}

/// If an agent is revoked and a new agent has joined for the same VM, the names of the VM, its NIC and its address
/// refer to the new agent. If the new agent is revoked too, the name is ambiguous.
#[test]
fn a_successor_is_meant_by_the_names_of_its_machine() {
    let mut w = hub_and_spokes();
    for (old, new) in [("hub-vm", "z-vm"), ("a-vm", "1-vm")] {
        w.agent_mut(old).revoked = true;
        let binding = w.agent_mut(old).binding.clone();
        w.bind(new, binding);
    }
    for (from, to) in [("a-vm", "hub-vm"), ("a-vm-nic", "hub-vm-nic"), ("10.2.0.4", "10.1.0.4")] {
        let answer = ask(&w, from, to);
        assert!(answer.reachable, "{from} {to}: {answer:#?}");
        assert_eq!(way(&answer), ["1-vm", "z-vm"]);
    }
    w.agent_mut("z-vm").revoked = true;
    let question: ExplainRequest =
        serde_json::from_value(serde_json::json!({"from": "hub-vm", "to": "10.2.0.4"})).unwrap();
    let two = explain(&w.topology, &Default::default(), &question).unwrap_err();
    assert!(two.contains("ambiguous"), "{two}");
}

/// G10, G11: explain's answer says so if a connection has only one of its two objects, or if one of them has no shared
/// key.
#[test]
fn g10_g11_half_a_connection() {
    let mut w = hub_and_spokes();
    w.connection("hub", "branch", None);
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "hub-gw",
        "no_gateway",
        "G11",
        &["shared key", "hub-to-branch"],
    );
    w.connection("hub", "branch", Some("abc"))
        .connection("branch", "hub", None);
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "hub-gw",
        "no_link",
        "G11",
        &["far gateway branch-gw", "shared key"],
    );
    w.topology.connections.retain(|id, _| id.name() != "branch-to-hub");
    stopped(
        &ask(&w, "a-vm", "branch-vm"),
        "a-vm",
        "route_none",
        "G10",
        &["hub-to-branch", "no counterpart"],
    );
}

/// D8: a machine without an agent is reached through the host that serves its subnet, by IPv4 and by IPv6.
#[test]
fn d8_served_machines_and_both_families() {
    let mut w = World::default();
    w.vnet(
        "x",
        "10.1.0.0/16 fd00:1::/48",
        "s=10.1.0.0/24,fd00:1::/64 behind=10.1.1.0/24,fd00:1:0:1::/64",
    );
    w.vnet("y", "10.2.0.0/16 fd00:2::/48", "s=10.2.0.0/24,fd00:2::/64")
        .vm("y-vm", "y/s=10.2.0.4 y/s=fd00:2::4");
    w.nic("host-nic", "x/s=10.1.0.4 x/s=fd00:1::4", true);
    w.bind("host", World::vm_binding("host", &["host-nic"], &["x/behind"]));
    w.peer("x", "a", "y", "a");
    for to in ["10.1.1.9", "fd00:1:0:1::9"] {
        let answer = ask(&w, "y-vm", to);
        assert!(answer.reachable, "{answer:#?}");
        assert_eq!(trace(&answer), [to]);
    }
    assert_eq!(ask(&w, "y-vm", "fd00:1::4").source, ip("fd00:2::4"));
}

/// The two ends of a question can be a VM or NIC by name or id, an agent, or an address. For an ambiguous name the
/// error lists the candidates. An unknown name is an error.
#[test]
fn names() {
    let mut w = hub_and_spokes();
    let nic = crate::world::id("networkInterfaces", "a-vm-nic").to_string();
    for from in ["a-vm", "A-VM", "a-vm-nic", nic.as_str(), "10.2.0.4"] {
        assert_eq!(ask(&w, from, "hub-vm").source, ip("10.2.0.4"), "{from}");
    }
    assert_eq!(ask(&w, "hub-vm", "hub-gw").destination, ip("10.1.255.4"));
    assert!(ask(&w, "hub-vm", "hub-gw").reachable, "a gateway answers its own VNet");
    let fails = |w: &World, from: &str, to: &str| {
        let question = ExplainRequest {
            from: from.into(),
            to: to.into(),
            protocol: Protocol::Icmp,
            destination_port: None,
            ttl: None,
            design: false,
        };
        explain(&w.topology, &Default::default(), &question).unwrap_err()
    };
    assert!(fails(&w, "nobody", "a-vm").contains("'nobody' is not the name"));
    assert!(fails(&w, "a-vm", "fd00::1").contains("no address family in common"));
    w.nic("lonely", "hub/workload=10.1.0.9", false);
    assert!(fails(&w, "lonely", "a-vm").contains("no agent yet"));
    w.nic("twin", "hub/workload=10.1.0.10", false);
    w.bind("twin-1", World::vm_binding("twin", &["twin"], &[]));
    w.nic("other", "hub/workload=10.1.0.11", false);
    w.bind("twin-2", World::vm_binding("Twin", &["other"], &[]));
    let error = fails(&w, "a-vm", "twin");
    assert!(
        error.contains("ambiguous") && error.contains("twin-1") && error.contains("twin-2"),
        "{error}"
    );
}
