//! Security groups: the answers of `explain`, and the meaning of tags at a NIC: N2 to N6, N8 to N10, D25, D40, M4.

use crate::circuits::{lab, reports};
use crate::explain::stopped;
use crate::world::{World, hub_and_spokes, id, ip, subnet_id};
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::fabric::{ExplainRequest, Protocol};
use tombolo_proto::id::ResourceId;
use tombolo_topology::explain::{
    DecidingRule, Explanation, GroupCheck, MatchedAddresses, RuleField, SecurityCheck, explain,
};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::nic_security::{FirstPacket, NicSecurity};

/// The answer for a packet with a destination port. Asserts that the answer is the same after it is written as JSON and
/// read back.
fn ask_by(w: &World, from: &str, to: &str, protocol: Protocol, port: u16) -> Explanation {
    let question = ExplainRequest {
        from: from.into(),
        to: to.into(),
        protocol,
        destination_port: Some(port),
        ttl: None,
        design: false,
    };
    let answer = explain(&w.topology, &LearnedReports::default(), &question).unwrap();
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), answer);
    answer
}

fn ask(w: &World, from: &str, to: &str, port: u16) -> Explanation {
    ask_by(w, from, to, Protocol::Tcp, port)
}

/// The decisions of security groups on the way there or back, in order.
fn checks(hops: &[tombolo_topology::explain::Hop]) -> Vec<&SecurityCheck> {
    hops.iter().filter_map(|hop| hop.security.as_ref()).collect()
}

/// The decisions as lines: `NIC direction: group access rule, …`, or `NIC direction: known`.
fn shown(hops: &[tombolo_topology::explain::Hop]) -> Vec<String> {
    let line = |check: &&SecurityCheck| {
        let groups = check.groups.iter().map(|g| {
            let rule = g
                .rule
                .as_ref()
                .map_or("-", |rule| rule.name.rsplit('/').next().unwrap());
            format!("{} {:?} {rule}", g.group.name(), g.access)
        });
        let groups: Vec<String> = groups.collect();
        let decided = if check.known_flow {
            "known".into()
        } else {
            groups.join(", ")
        };
        format!("{} {:?}: {decided}", check.at.name(), check.direction)
    };
    checks(hops).iter().map(line).collect()
}

fn there(answer: &Explanation) -> Vec<String> {
    shown(&answer.request.hops)
}

fn back(answer: &Explanation) -> Vec<String> {
    answer.reply.as_ref().map_or_else(Vec::new, |reply| shown(&reply.hops))
}

/// Two peered VNets: `web-vm` (10.0.0.4) in `front`, and `db-vm` (10.1.0.4) in `data`, with another machine `app-vm`
/// (10.1.0.5) in the subnet of `db-vm`.
fn two_vnets() -> World {
    let mut w = World::default();
    w.vnet("front", "10.0.0.0/16", "web=10.0.0.0/24")
        .vnet("data", "10.1.0.0/16", "db=10.1.0.0/24")
        .vm("web-vm", "front/web=10.0.0.4")
        .vm("db-vm", "data/db=10.1.0.4")
        .vm("app-vm", "data/db=10.1.0.5")
        .peer("front", "a", "data", "a");
    w
}

/// The one decision of a group that denies, with where it happened.
fn denial(answer: &Explanation) -> (&SecurityCheck, &GroupCheck) {
    let hops = answer.reply.as_ref().map_or(&answer.request.hops, |reply| &reply.hops);
    let check = checks(hops).pop().unwrap();
    (check, check.groups.last().unwrap())
}

/// N5: without a group, no hop names one, and the JSON form has no member for it.
#[test]
fn n5_without_a_group_nothing_is_said_about_groups() {
    let answer = ask(&two_vnets(), "web-vm", "db-vm", 443);
    assert!(answer.reachable);
    assert_eq!(there(&answer), [""; 0]);
    assert!(!serde_json::to_string(&answer).unwrap().contains("security"));
}

/// N3: the group of the destination's NIC denies. The text names the rule, the group and the NIC, and the remedy is a rule
/// that makes the pair reachable.
#[test]
fn n3_the_deciding_rule_of_a_nics_group_is_named() {
    let mut w = two_vnets();
    let rules = [
        "ssh 100 in allow tcp 10.0.0.0/16 * 22",
        "deny-web 200 in deny tcp * * 443",
    ];
    w.group("web", &rules).secure_nic("db-vm-nic", "web");
    let answer = ask(&w, "web-vm", "db-vm", 443);
    stopped(&answer, "db-vm", "security_rule", "N3", &[]);
    let stop = answer.request.stop.as_ref().unwrap();
    assert_eq!(
        stop.text,
        "rule deny-web (priority 200, Inbound) of group web on network interface db-vm-nic denies tcp 10.0.0.4:49152 -> \
         10.1.0.4:443: add an Inbound Allow rule with a priority below 200 for source 10.0.0.4, destination 10.1.0.4, protocol \
         Tcp and destination port 443 to group web, or change rule deny-web"
    );
    let rule = ResourceId::new(format!("{}/securityRules/deny-web", id("networkSecurityGroups", "web")));
    assert_eq!(stop.resource.as_ref(), Some(&rule));
    let (check, group) = denial(&answer);
    assert_eq!(
        (&check.at, &group.attached_to, group.access),
        (
            &id("networkInterfaces", "db-vm-nic"),
            &id("networkInterfaces", "db-vm-nic"),
            Access::Deny
        )
    );
    let [ssh] = &group.not_matched[..] else {
        panic!("one rule is before it: {group:?}");
    };
    assert_eq!(
        (ssh.name.as_str(), &ssh.differs[..]),
        ("securityRules/ssh", &[RuleField::DestinationPort][..])
    );
    assert!(ask(&w, "web-vm", "db-vm", 22).reachable);

    let [ssh, deny] = rules;
    w.group("web", &[ssh, deny, "fixed 199 in allow tcp 10.0.0.4 10.1.0.4 443"]);
    assert!(ask(&w, "web-vm", "db-vm", 443).reachable);
    // No rule can come before one of priority 100 (N1).
    w.group("web", &["first 100 in deny * * * *"]);
    let answer = ask(&w, "web-vm", "db-vm", 443);
    stopped(
        &answer,
        "db-vm",
        "security_rule",
        "N3",
        &["change or delete rule first of group web"],
    );
}

/// N4: the group of the subnet denies packets to a machine and from it, also between machines of the subnet. The text names
/// the subnet.
#[test]
fn n4_the_group_of_a_subnet_decides_in_both_directions_and_inside_of_it() {
    let mut w = two_vnets();
    w.group(
        "db",
        &["no-in 200 in deny tcp * * 443", "no-out 200 out deny tcp * * 8443"],
    )
    .secure_subnet("data/db", "db");
    let answer = ask(&w, "web-vm", "db-vm", 443);
    stopped(
        &answer,
        "db-vm",
        "security_rule",
        "N3",
        &["rule no-in (priority 200, Inbound) of group db on subnet db denies"],
    );
    assert_eq!(denial(&answer).1.attached_to, subnet_id("data/db"));
    let answer = ask(&w, "db-vm", "web-vm", 8443);
    stopped(
        &answer,
        "db-vm",
        "security_rule",
        "N3",
        &[
            "rule no-out (priority 200, Outbound) of group db on subnet db denies",
            "add an Outbound Allow rule",
        ],
    );
    let answer = ask(&w, "app-vm", "db-vm", 443);
    stopped(&answer, "db-vm", "security_rule", "N3", &["no-in"]);
    assert_eq!(
        there(&answer),
        [
            "app-vm-nic Outbound: db Allow AllowVnetOutBound",
            "db-vm-nic Inbound: db Deny no-in"
        ]
    );
    assert!(ask(&w, "web-vm", "db-vm", 80).reachable);
}

/// N4: inbound, the subnet's group comes before the NIC's; outbound, the other way round. Both must allow, and the first one
/// that denies is the last one that is asked.
#[test]
fn n4_groups_decide_in_azures_order() {
    let mut w = two_vnets();
    let of = |name: &str, access: &str| {
        [
            format!("{name}-in 100 in {access} tcp * * 443"),
            format!("{name}-out 100 out {access} tcp * * 443"),
        ]
    };
    for (subnet, nic, inbound, outbound) in [
        (
            "allow",
            "allow",
            "subnet Allow subnet-in, nic Allow nic-in",
            "nic Allow nic-out, subnet Allow subnet-out",
        ),
        (
            "deny",
            "allow",
            "subnet Deny subnet-in",
            "nic Allow nic-out, subnet Deny subnet-out",
        ),
        (
            "allow",
            "deny",
            "subnet Allow subnet-in, nic Deny nic-in",
            "nic Deny nic-out",
        ),
        ("deny", "deny", "subnet Deny subnet-in", "nic Deny nic-out"),
    ] {
        for (name, access) in [("subnet", subnet), ("nic", nic)] {
            let [inward, outward] = of(name, access);
            w.group(name, &[&inward, &outward]);
        }
        w.secure_subnet("data/db", "subnet").secure_nic("db-vm-nic", "nic");
        let answers = [ask(&w, "web-vm", "db-vm", 443), ask(&w, "db-vm", "web-vm", 443)];
        assert_eq!(there(&answers[0]), [format!("db-vm-nic Inbound: {inbound}")]);
        assert_eq!(there(&answers[1]), [format!("db-vm-nic Outbound: {outbound}")]);
        for (answer, decided) in answers.iter().zip([inbound, outbound]) {
            assert_eq!(answer.reachable, !decided.contains("Deny"), "{decided}");
            if decided.contains("Allow") && decided.contains("Deny") {
                stopped(
                    answer,
                    "db-vm",
                    "security_rule",
                    "N4",
                    &["allows it, but both groups must"],
                );
            }
        }
    }
}

/// N2, N10: groups without rules of their own let peered VNets reach each other in both directions. A custom rule for the
/// peer's prefix restricts this.
#[test]
fn n2_n10_default_rules_let_peered_vnets_reach_each_other() {
    let mut w = two_vnets();
    w.group("empty", &[]);
    w.secure_nic("web-vm-nic", "empty").secure_nic("db-vm-nic", "empty");
    for (from, to) in [("web-vm", "db-vm"), ("db-vm", "web-vm")] {
        for protocol in [Protocol::Icmp, Protocol::Tcp, Protocol::Udp] {
            let answer = ask_by(&w, from, to, protocol, 443);
            assert!(answer.reachable, "{answer:#?}");
            assert_eq!(
                there(&answer),
                [
                    format!("{from}-nic Outbound: empty Allow AllowVnetOutBound"),
                    format!("{to}-nic Inbound: empty Allow AllowVnetInBound"),
                ]
            );
            assert_eq!(
                back(&answer),
                [
                    format!("{to}-nic Outbound: known"),
                    format!("{from}-nic Inbound: known")
                ]
            );
        }
    }
    w.group("no-peer", &["no-peer 300 in deny * 10.0.0.0/16 * *"]);
    w.secure_nic("db-vm-nic", "no-peer");
    assert!(!ask(&w, "web-vm", "db-vm", 443).reachable);
    assert!(ask(&w, "app-vm", "db-vm", 443).reachable);
    assert!(
        ask(&w, "db-vm", "web-vm", 443).reachable,
        "N6: the reply belongs to a flow"
    );
}

/// N2, N8: a packet from outside of the tag `VirtualNetwork` is denied by the last default rule, and the text says which
/// address is outside. A user-defined route for the sender's prefix makes it a part of the tag.
#[test]
fn n8_the_text_names_the_address_outside_of_the_tag() {
    let mut w = hub_and_spokes();
    w.half_mut("spoke-b", "hub").allow_forwarded_traffic = true;
    w.half_mut("spoke-a", "hub").allow_forwarded_traffic = true;
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    w.group("empty", &[]).secure_nic("b-vm-nic", "empty");
    let answer = ask(&w, "a-vm", "b-vm", 443);
    stopped(
        &answer,
        "b-vm",
        "security_rule",
        "N8",
        &[
            "default rule DenyAllInBound (priority 65500, Inbound) of group empty on network interface b-vm-nic denies",
            "as 10.2.0.4 is not in the tag VirtualNetwork there",
            "add an Inbound Allow rule with a priority from 100 to 4096 for source 10.2.0.4",
        ],
    );
    assert_eq!(
        answer.request.stop.as_ref().unwrap().resource,
        Some(id("networkSecurityGroups", "empty"))
    );
    w.routes("spoke-b/workload", "10.2.0.0/16>10.1.0.5");
    let answer = ask(&w, "a-vm", "b-vm", 443);
    assert!(answer.reachable, "{answer:#?}");
    let rule = checks(&answer.request.hops)[0].groups[0].rule.clone().unwrap();
    let matched = |prefix: &str| MatchedAddresses {
        name: "VirtualNetwork".into(),
        member: Some(prefix.parse().unwrap()),
    };
    assert_eq!(
        rule,
        DecidingRule {
            name: "defaultSecurityRules/AllowVnetInBound".into(),
            priority: 65_000,
            source: matched("10.2.0.0/16"),
            destination: matched("10.3.0.0/16"),
        }
    );
}

fn security(w: &World, reports: &LearnedReports, nic: &str) -> NicSecurity {
    let found = NicSecurity::of(&w.topology, reports, &id("networkInterfaces", nic)).unwrap();
    found.unwrap_or_else(|| panic!("no group applies to {nic}"))
}

/// The prefixes of a set at a NIC, separated by spaces.
fn prefixes(w: &World, reports: &LearnedReports, nic: &str, set: &str) -> String {
    let prefixes = security(w, reports, nic).prefixes(set);
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// N8: own space, the peer with access and not the one without, the prefix behind the peer's gateway, the prefix of a
/// user-defined route of the subnet, and the host's virtual address.
#[test]
fn n8_the_parts_of_virtual_network() {
    let none = LearnedReports::default();
    let mut w = hub_and_spokes();
    w.group("empty", &[]).secure_nic("a-vm-nic", "empty");
    w.vnet("closed", "10.5.0.0/16", "s=10.5.0.0/24")
        .peer("spoke-a", "", "closed", "a");
    w.vnet("open", "10.6.0.0/16", "s=10.6.0.0/24")
        .peer("spoke-a", "a", "open", "");
    let tag = |w: &World| prefixes(w, &none, "a-vm-nic", "VirtualNetwork");
    let expected = "10.1.0.0/16 10.2.0.0/16 10.4.0.0/16 10.6.0.0/16 168.63.129.16/32";
    assert_eq!(tag(&w), expected);
    w.routes("spoke-a/workload", "10.99.0.0/16>10.1.0.5");
    assert_eq!(tag(&w), expected.replace(" 168", " 10.99.0.0/16 168"));
    // P20: without useRemoteGateways, the branch is not reached through the gateway.
    w.half_mut("spoke-a", "hub").use_remote_gateways = false;
    assert_eq!(
        tag(&w),
        expected
            .replace("10.4.0.0/16 ", "")
            .replace(" 168", " 10.99.0.0/16 168")
    );
    // Another NIC has other contents.
    w.secure_nic("branch-vm-nic", "empty");
    let branch = prefixes(&w, &none, "branch-vm-nic", "VirtualNetwork");
    assert!(
        branch.contains("10.4.0.0/16") && !branch.contains("10.6.0.0/16"),
        "{branch}"
    );
}

/// N8, D27: prefixes that the agent has learned are part of the tag.
#[test]
fn n8_d27_learned_prefixes_are_in_virtual_network() {
    let mut w = lab();
    w.group("empty", &[]).secure_nic("hub-vm-nic", "empty");
    let before = prefixes(&w, &LearnedReports::default(), "hub-vm-nic", "VirtualNetwork");
    let after = prefixes(&w, &reports(false), "hub-vm-nic", "VirtualNetwork");
    assert!(!before.contains("10.2.30.0/25"), "{before}");
    assert!(after.contains("10.2.30.0/25"), "{after}");
    // `explain` has the same routes: the site is inside of the tag, and nothing else is.
    let question = |from: &str, to: &str| -> ExplainRequest {
        serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap()
    };
    let answer = explain(&w.topology, &reports(false), &question("hub-vm", "10.2.30.10")).unwrap();
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(there(&answer), ["hub-vm-nic Outbound: empty Allow AllowVnetOutBound"]);
}

/// N9: `Internet` is everything outside of `VirtualNetwork`; `AzureLoadBalancer` is the host's virtual address.
#[test]
fn n9_internet_is_the_complement_of_virtual_network() {
    let none = LearnedReports::default();
    let mut w = two_vnets();
    w.group("empty", &[]).secure_nic("db-vm-nic", "empty");
    let security = security(&w, &none, "db-vm-nic");
    let (inside, outside) = (security.prefixes("VirtualNetwork"), security.prefixes("Internet"));
    for address in ["10.0.0.4", "10.1.255.255", "168.63.129.16"].map(ip) {
        assert!(inside.iter().any(|p| p.contains(&address)), "{address}");
        assert!(!outside.iter().any(|p| p.contains(&address)), "{address}");
    }
    for address in [
        "0.0.0.0",
        "9.255.255.255",
        "10.2.0.0",
        "168.63.129.17",
        "255.255.255.255",
    ]
    .map(ip)
    {
        assert!(!inside.iter().any(|p| p.contains(&address)), "{address}");
        assert!(outside.iter().any(|p| p.contains(&address)), "{address}");
    }
    assert_eq!(
        prefixes(&w, &none, "db-vm-nic", "AzureLoadBalancer"),
        "168.63.129.16/32"
    );
    let packet = |destination: &str| FirstPacket {
        direction: Direction::Outbound,
        protocol: Protocol::Tcp,
        source: ip("10.1.0.4"),
        destination: ip(destination),
        source_port: None,
        destination_port: 443,
    };
    let name = |destination: &str| security.decide(&packet(destination)).rule.unwrap().name.clone();
    assert_eq!(name("10.0.0.4"), "defaultSecurityRules/AllowVnetOutBound");
    assert_eq!(name("203.0.113.7"), "defaultSecurityRules/AllowInternetOutBound");
}

/// N9: a rule that names an application security group matches the addresses of the NICs in it, and the answer names the group.
#[test]
fn n9_a_rule_names_an_application_security_group() {
    let mut w = two_vnets();
    let rules = ["web 100 in allow tcp asg:web * 443", "rest 200 in deny * * * *"];
    w.group("db", &rules).secure_nic("db-vm-nic", "db");
    assert!(!ask(&w, "web-vm", "db-vm", 443).reachable);
    let asg = id("applicationSecurityGroups", "web");
    w.nic_mut("web-vm-nic").ip_configurations[0]
        .application_security_groups
        .push(asg.clone());
    let answer = ask(&w, "web-vm", "db-vm", 443);
    assert!(answer.reachable, "{answer:#?}");
    let rule = checks(&answer.request.hops)[0].groups[0].rule.clone().unwrap();
    assert_eq!(
        rule.source,
        MatchedAddresses {
            name: asg.as_str().to_lowercase(),
            member: Some("10.0.0.4/32".parse().unwrap()),
        }
    );
    let answer = ask(&w, "app-vm", "db-vm", 443);
    let (_, group) = denial(&answer);
    assert_eq!(group.not_matched[0].differs, [RuleField::Source]);
}

/// N6: a reply needs no rule where the request was admitted, whatever the rules of the other direction say. A request in the
/// other direction needs one.
#[test]
fn n6_a_reply_needs_no_rule() {
    let mut w = two_vnets();
    w.group("quiet", &["nothing-out 100 out deny * * * *"])
        .secure_nic("db-vm-nic", "quiet");
    w.group("closed", &["nothing-in 100 in deny * * * *"])
        .secure_nic("web-vm-nic", "closed");
    for protocol in [Protocol::Icmp, Protocol::Tcp, Protocol::Udp] {
        let answer = ask_by(&w, "web-vm", "db-vm", protocol, 443);
        assert!(answer.reachable, "{answer:#?}");
        assert_eq!(
            back(&answer),
            ["db-vm-nic Outbound: known", "web-vm-nic Inbound: known"]
        );
    }
    let answer = ask(&w, "db-vm", "web-vm", 443);
    stopped(&answer, "db-vm", "security_rule", "N3", &["nothing-out"]);
}

/// N6: an ICMP error belongs to the flow of the packet that it quotes, so traceroute shows the hops although no rule allows
/// their answers.
#[test]
fn n6_icmp_errors_belong_to_the_flow() {
    let mut w = hub_and_spokes();
    w.group("closed", &["nothing-in 100 in deny * * * *"])
        .secure_nic("a-vm-nic", "closed");
    let answer = ask_by(&w, "a-vm", "branch-vm", Protocol::Udp, 33_434);
    assert!(answer.reachable, "{answer:#?}");
    let trace: Vec<_> = answer.trace.iter().map(|hop| hop.address).collect();
    assert_eq!(trace, [Some(ip("10.1.255.4")), None, Some(ip("10.4.0.4"))]);
}

/// Both spokes and the appliance between them, with the flags and routes that let packets pass.
fn through_an_appliance(w: &mut World, there: bool, back: bool) {
    w.peer("spoke-a", "af", "spoke-b", "af");
    w.half_mut("spoke-a", "hub").allow_forwarded_traffic = true;
    w.half_mut("spoke-b", "hub").allow_forwarded_traffic = true;
    if there {
        w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    }
    if back {
        w.routes("spoke-b/workload", "10.2.0.0/16>10.1.0.5");
    }
}

/// D25: an appliance's NIC judges a packet on entry and on exit, with its original addresses.
#[test]
fn d25_an_appliance_judges_on_entry_and_on_exit() {
    let mut w = hub_and_spokes();
    through_an_appliance(&mut w, true, true);
    w.group("nva", &[]).secure_nic("hub-nva-nic", "nva");
    let answer = ask(&w, "a-vm", "b-vm", 443);
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(
        there(&answer),
        [
            "hub-nva-nic Inbound: nva Allow AllowVnetInBound",
            "hub-nva-nic Outbound: nva Allow AllowVnetOutBound",
        ]
    );
    assert_eq!(
        back(&answer),
        ["hub-nva-nic Inbound: known", "hub-nva-nic Outbound: known"]
    );
    w.group("nva", &["no-exit 100 out deny tcp 10.2.0.0/16 10.3.0.0/16 443"]);
    let answer = ask(&w, "a-vm", "b-vm", 443);
    stopped(
        &answer,
        "hub-nva",
        "security_rule",
        "N3",
        &["no-exit", "Outbound", "10.2.0.4:49152 -> 10.3.0.4:443"],
    );
    w.group("nva", &["no-entry 100 in deny tcp 10.2.0.0/16 10.3.0.0/16 443"]);
    stopped(
        &ask(&w, "a-vm", "b-vm", 443),
        "hub-nva",
        "security_rule",
        "N3",
        &["no-entry", "Inbound"],
    );
}

/// N6: on an asymmetric path the appliance sees the reply alone, so its rules decide about the reply.
#[test]
fn n6_an_appliance_that_did_not_see_the_request_judges_the_reply() {
    let mut w = hub_and_spokes();
    through_an_appliance(&mut w, false, true);
    w.group("nva", &["deny-b 200 in deny * 10.3.0.0/16 * *"])
        .secure_nic("hub-nva-nic", "nva");
    let answer = ask(&w, "a-vm", "b-vm", 443);
    assert!(answer.request.delivered, "the request takes the peering: {answer:#?}");
    stopped(
        &answer,
        "hub-nva",
        "security_rule",
        "N6",
        &[
            "rule deny-b (priority 200, Inbound) of group nva on network interface hub-nva-nic denies tcp 10.3.0.4:443 -> \
             10.2.0.4:49152, which is a reply whose request did not pass this network interface",
            "let the request take the same path as its reply, or add an Inbound Allow rule with a priority below 200",
        ],
    );
    // With the request on the same path, the reply belongs to its flow.
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5");
    let answer = ask(&w, "a-vm", "b-vm", 443);
    assert!(answer.reachable, "{answer:#?}");
    assert_eq!(
        back(&answer),
        ["hub-nva-nic Inbound: known", "hub-nva-nic Outbound: known"]
    );
}

/// D25: the agent that serves a subnet enforces the group of the subnet for machines without an agent, and the group of a NIC
/// there.
#[test]
fn d25_the_serving_agent_enforces_the_group_of_a_served_subnet() {
    let mut w = World::default();
    w.vnet("x", "10.1.0.0/16", "s=10.1.0.0/24 behind=10.1.1.0/24")
        .vnet("y", "10.2.0.0/16", "s=10.2.0.0/24")
        .vm("y-vm", "y/s=10.2.0.4")
        .peer("x", "a", "y", "a");
    w.nic("host-nic", "x/s=10.1.0.4", true)
        .nic("plain", "x/behind=10.1.1.9", false);
    w.bind("host", World::vm_binding("host", &["host-nic"], &["x/behind"]));
    w.group("lab", &["no-web 300 in deny tcp * * 443"])
        .secure_subnet("x/behind", "lab");
    for to in ["10.1.1.9", "10.1.1.10"] {
        let answer = ask(&w, "y-vm", to, 443);
        stopped(
            &answer,
            "host",
            "security_rule",
            "N3",
            &["no-web", "of group lab on subnet behind denies"],
        );
        assert!(ask(&w, "y-vm", to, 80).reachable);
    }
    assert!(ask(&w, "y-vm", "host", 443).reachable, "the host is in another subnet");
    let of_nic = security(&w, &LearnedReports::default(), "plain");
    let groups: Vec<&ResourceId> = of_nic.groups().map(|g| g.attached_to).collect();
    assert_eq!(groups, [&subnet_id("x/behind")]);
    w.group("own", &["no-ssh 300 in deny tcp * * 22"])
        .secure_nic("plain", "own");
    let answer = ask(&w, "y-vm", "10.1.1.9", 22);
    stopped(
        &answer,
        "host",
        "security_rule",
        "N4",
        &["no-ssh", "of group own on network interface plain denies"],
    );
    assert!(ask(&w, "y-vm", "10.1.1.10", 22).reachable);
}

/// An answer lists at most the last 20 rules before the deciding one, and the number of the others.
#[test]
fn d40_few_of_the_rules_that_do_not_match_are_listed() {
    let mut w = two_vnets();
    let mut rules: Vec<String> = (0..30)
        .map(|n| format!("r{n} {} in allow udp * * {n}", 100 + n))
        .collect();
    rules.push("deny 200 in deny tcp * * 443".into());
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    w.group("many", &rules).secure_nic("db-vm-nic", "many");
    let answer = ask(&w, "web-vm", "db-vm", 443);
    let (_, group) = denial(&answer);
    assert_eq!((group.not_matched.len(), group.not_matched_earlier), (20, 10));
    assert_eq!(group.not_matched[0].name, "securityRules/r10");
    assert_eq!(
        group.not_matched[0].differs,
        [RuleField::Protocol, RuleField::DestinationPort]
    );
}

/// IPv6 addresses have brackets beside a port, and ICMPv6 is `Icmp` for rules (N1).
#[test]
fn n1_rules_decide_about_ipv6() {
    let mut w = World::default();
    w.vnet("x", "10.1.0.0/16 fd00:1::/48", "s=10.1.0.0/24,fd00:1::/64")
        .vm("a-vm", "x/s=10.1.0.4 x/s=fd00:1::4")
        .vm("b-vm", "x/s=10.1.0.5 x/s=fd00:1::5");
    w.group(
        "six",
        &[
            "web 100 in deny tcp fd00:1::/64 * 443",
            "ping 101 in deny icmp fd00:1::/64 * *",
        ],
    )
    .secure_nic("b-vm-nic", "six");
    assert!(ask(&w, "a-vm", "b-vm", 443).reachable, "IPv4 comes first");
    let answer = ask(&w, "a-vm", "fd00:1::5", 443);
    stopped(
        &answer,
        "b-vm",
        "security_rule",
        "N3",
        &["tcp [fd00:1::4]:49152 -> [fd00:1::5]:443"],
    );
    let answer = ask_by(&w, "a-vm", "fd00:1::5", Protocol::Icmp, 0);
    stopped(
        &answer,
        "b-vm",
        "security_rule",
        "N3",
        &["rule ping", "icmp fd00:1::4 -> fd00:1::5"],
    );
}

/// M4: the decision for every source port is the first denial, and a NIC without an agent has the rules too.
#[test]
fn m4_rules_decide_about_a_flow_without_routes() {
    let none = LearnedReports::default();
    let mut w = two_vnets();
    w.nic("lonely", "data/db=10.1.0.9", false);
    assert!(
        NicSecurity::of(&w.topology, &none, &id("networkInterfaces", "lonely"))
            .unwrap()
            .is_none()
    );
    w.group(
        "odd",
        &["odd 100 in deny tcp * * 443 1000-1999", "rest 200 in allow tcp * * 443"],
    )
    .secure_nic("lonely", "odd");
    let security = security(&w, &none, "lonely");
    let decided = |source_port, port| {
        let decided = security.decide(&FirstPacket {
            direction: Direction::Inbound,
            protocol: Protocol::Tcp,
            source: ip("203.0.113.7"),
            destination: ip("10.1.0.9"),
            source_port,
            destination_port: port,
        });
        (decided.access, decided.rule.unwrap().name.as_str())
    };
    assert_eq!(decided(Some(1500), 443), (Access::Deny, "securityRules/odd"));
    assert_eq!(decided(Some(2000), 443), (Access::Allow, "securityRules/rest"));
    assert_eq!(decided(None, 443), (Access::Deny, "securityRules/odd"));
    assert_eq!(decided(None, 80), (Access::Deny, "defaultSecurityRules/DenyAllInBound"));
    assert_eq!(security.prefixes("VirtualNetwork").len(), 3);
}

/// D28, P17: with `allowVirtualNetworkAccess` off, the setting `vnetAccessOff` decides at a NIC with a group. With `tagOnly`
/// the default rules deny the peer, because it is not in the tag, and a rule of the user may allow it. With `block`, and
/// without a group, the packet is dropped whatever the rules say.
#[test]
fn d28_p17_a_rule_may_allow_a_peer_without_access_if_the_setting_says_so() {
    use tombolo_proto::config::AccessOff;
    for (setting, grouped, rules, expected) in [
        (
            AccessOff::TagOnly,
            true,
            &["in 100 in allow * 10.0.0.0/16 * *"][..],
            None,
        ),
        (AccessOff::TagOnly, true, &[][..], Some("security_rule")),
        (
            AccessOff::Block,
            true,
            &["in 100 in allow * 10.0.0.0/16 * *"][..],
            Some("access_denied"),
        ),
        (AccessOff::TagOnly, false, &[][..], Some("access_denied")),
    ] {
        let mut w = two_vnets();
        std::sync::Arc::make_mut(&mut w.topology.settings).vnet_access_off = setting;
        w.half_mut("data", "front").allow_virtual_network_access = false;
        w.group("web", rules);
        if grouped {
            w.secure_nic("db-vm-nic", "web");
        }
        let answer = ask(&w, "web-vm", "db-vm", 443);
        let stop = answer.request.stop.as_ref().map(|stop| stop.reason.as_str());
        assert_eq!(stop, expected, "{setting:?}, group: {grouped}, {rules:?}");
    }
}

/// N6: the agents of a VNet get its `flowTimeoutInMinutes`, and 4 minutes without it.
#[test]
fn n6_the_flow_timeout_of_the_vnet_reaches_its_agents() {
    let mut w = two_vnets();
    w.group("web", &[]).secure_nic("db-vm-nic", "web");
    let timeout = |w: &World| w.config("db-vm").security.unwrap().flow_timeout_minutes;
    assert_eq!(timeout(&w), 4);
    let properties = serde_json::json!({"flowTimeoutInMinutes": 30});
    w.vnet_mut("data")
        .envelope
        .echoed
        .insert("properties".into(), properties);
    assert_eq!(timeout(&w), 30);
}
