//! Judgements of connectivity checks: hops with their resources, and the issues of probes that do not arrive: M5, D42.

use crate::world::{World, agent, hub_and_spokes, ip};
use tombolo_proto::fabric::{CheckRequest, Protocol};
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::{Hop, ProbeReport};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};
use tombolo_topology::connectivity::{ConnectionStatus, Connectivity, Expected, HopKind, IssueKind, Observed, Origin};
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::topology::AgentStatuses;

/// A check, with the reports that an agent has sent, or would send.
struct Check {
    world: World,
    statuses: AgentStatuses,
    question: CheckRequest,
    probe: ProbeReport,
    trace: Vec<Option<&'static str>>,
}

impl Check {
    /// A check in which all agents are connected, and every probe is answered as `explain` expects.
    fn new(world: World, from: &str, to: &str, port: Option<u16>) -> Self {
        let connected = world.topology.agents.keys().cloned().collect();
        let question = CheckRequest {
            from: from.into(),
            to: to.into(),
            protocol: if port.is_some() { Protocol::Tcp } else { Protocol::Icmp },
            port,
        };
        Self {
            world,
            statuses: AgentStatuses {
                connected,
                ..AgentStatuses::default()
            },
            question,
            probe: ProbeReport {
                sent: 10,
                received: 10,
                rtts_ms: vec![0.4, 2.6],
                ..ProbeReport::default()
            },
            trace: Vec::new(),
        }
    }

    fn traced(mut self, hops: &[Option<&'static str>]) -> Self {
        self.trace = hops.to_vec();
        self
    }

    fn silent(mut self) -> Self {
        self.probe.received = 0;
        self.probe.rtts_ms.clear();
        self
    }

    fn judge(&self) -> Connectivity {
        let topology = &self.world.topology;
        let expected = Expected::of(topology, &LearnedReports::default(), &self.question).unwrap();
        let hop = |address: &Option<&str>| Hop {
            address: address.map(ip),
            rtts_ms: address.iter().map(|_| 0.7).collect(),
        };
        let trace = ProbeReport {
            hops: self.trace.iter().map(hop).collect(),
            ..ProbeReport::default()
        };
        let observed = Observed {
            probe: &self.probe,
            trace: Some(&trace),
        };
        let judged = expected.judge(topology, &self.statuses, observed);
        let text = serde_json::to_string(&judged).unwrap();
        assert_eq!(serde_json::from_str::<Connectivity>(&text).unwrap(), judged);
        judged
    }
}

/// The hops as lines: `Type address resource`, with the name of the network interface for its ip configuration.
fn hops(judged: &Connectivity) -> Vec<String> {
    let line = |hop: &tombolo_topology::connectivity::ConnectivityHop| {
        let address = hop.address.map_or("*".to_owned(), |a| a.to_string());
        let resource = hop.resource_id.as_ref().map_or("-", |id| {
            let whole = id.as_str();
            let whole = whole.split("/ipConfigurations/").next().unwrap();
            whole.rsplit('/').next().unwrap()
        });
        format!("{:?} {address} {resource}", hop.kind)
    };
    judged.information.hops.iter().map(line).collect()
}

/// The issues as lines: `number of the hop: Origin Severity Type key=value,…`.
fn issues(judged: &Connectivity) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, hop) in judged.information.hops.iter().enumerate() {
        for issue in &hop.issues {
            let details: Vec<_> = issue
                .context
                .iter()
                .map(|e| format!("{}={}", e.key, e.value.rsplit('/').next().unwrap()))
                .collect();
            lines.push(format!(
                "{number}: {:?} {:?} {:?} {}",
                issue.origin,
                issue.severity,
                issue.kind,
                details.join(",")
            ));
        }
    }
    lines
}

/// M5: the hops of a path over two gateways have their resources, refer to each other, and have no issue. The second gateway
/// sends no ICMP errors to the other VNet (T5), which is the silence that `explain` expects.
#[test]
fn m5_a_working_path_has_resources_and_no_issue() {
    let judged = Check::new(hub_and_spokes(), "a-vm", "branch-vm", None)
        .traced(&[Some("10.1.255.4"), None, Some("10.4.0.4")])
        .judge();
    assert_eq!(
        hops(&judged),
        [
            "Source 10.2.0.4 a-vm-nic",
            "VirtualNetworkGateway 10.1.255.4 hub-gw",
            "VirtualNetworkGateway 10.4.255.4 branch-gw",
            "VnetLocal 10.4.0.4 branch-vm-nic",
        ]
    );
    assert_eq!(issues(&judged), [""; 0]);
    let information = &judged.information;
    assert_eq!(information.connection_status, ConnectionStatus::Reachable);
    assert_eq!(
        [
            information.min_latency_in_ms,
            information.avg_latency_in_ms,
            information.max_latency_in_ms
        ],
        [Some(1), Some(2), Some(3)]
    );
    assert_eq!((information.probes_sent, information.probes_failed), (10, 0));
    assert!(judged.explained && judged.difference.is_none());
    let first = &information.hops[0];
    assert_eq!(first.next_hop_ids, [information.hops[1].id.clone()]);
    assert_eq!(first.links[0].link_type.as_deref(), Some("VirtualNetworkGateway"));
    assert_eq!(first.links[0].properties.round_trip_time_avg, Some(1));
    let last = information.hops.last().unwrap();
    assert!(last.next_hop_ids.is_empty() && last.links.is_empty());
    assert_eq!(last.previous_hop_ids, [information.hops[2].id.clone()]);
}

/// M5, N3: the rule that denies the packets by `explain` is an issue of the hop at which it decides.
#[test]
fn m5_a_security_rule_is_named_at_its_hop() {
    let mut w = hub_and_spokes();
    w.group("web", &["deny-web 200 in deny tcp * * 443"])
        .secure_nic("hub-vm-nic", "web");
    let check = Check::new(w.clone(), "a-vm", "hub-vm", Some(443)).silent();
    // Echo requests pass the rule, so the trace arrives.
    let judged = check.traced(&[Some("10.1.0.4")]).judge();
    assert_eq!(
        hops(&judged),
        ["Source 10.2.0.4 a-vm-nic", "VnetLocal 10.1.0.4 hub-vm-nic"]
    );
    assert_eq!(
        issues(&judged),
        ["1: Inbound Error NetworkSecurityRule RuleName=UserRule_deny-web,NetworkSecurityGroup=web"]
    );
    assert_eq!(judged.information.connection_status, ConnectionStatus::Unreachable);
    assert_eq!(judged.information.avg_latency_in_ms, None);

    let mut w = hub_and_spokes();
    w.group("none", &["deny-all 200 out deny * * * *"])
        .secure_nic("a-vm-nic", "none");
    let judged = Check::new(w, "a-vm", "hub-vm", None)
        .silent()
        .traced(&[None, None, None])
        .judge();
    assert_eq!(
        issues(&judged),
        ["0: Outbound Error NetworkSecurityRule RuleName=UserRule_deny-all,NetworkSecurityGroup=none"]
    );
    assert_eq!(hops(&judged), ["Source 10.2.0.4 a-vm-nic"]);
}

/// M5, R13: a route that drops the packets is an issue of the hop that uses the route.
#[test]
fn m5_a_route_is_named_with_its_type() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.1.0.0/24>none");
    let judged = Check::new(w, "a-vm", "hub-vm", Some(443)).silent().judge();
    assert_eq!(
        issues(&judged),
        ["0: Outbound Error UserDefinedRoute RouteType=User,Reason=route_none"]
    );
    let judged = Check::new(hub_and_spokes(), "a-vm", "203.0.113.1", None)
        .silent()
        .judge();
    assert_eq!(
        issues(&judged),
        ["0: Outbound Error UserDefinedRoute RouteType=System,Reason=route_internet"]
    );
}

/// M5: the probes arrive by `explain` and by the trace, and the machine refuses them or does not answer.
#[test]
fn m5_a_closed_port_is_the_guests() {
    let check = || {
        Check::new(hub_and_spokes(), "a-vm", "hub-vm", Some(443))
            .silent()
            .traced(&[Some("10.1.0.4")])
    };
    assert_eq!(
        issues(&check().judge()),
        ["1: Inbound Error GuestFirewall Reason=noAnswer"]
    );
    let mut refused = check();
    refused.probe.refused = 10;
    assert_eq!(
        issues(&refused.judge()),
        ["1: Inbound Error GuestFirewall Reason=refused"]
    );
    // The machine answers no echo request either, but refuses connections.
    let refused = refused.traced(&[None, None]);
    let judged = refused.judge();
    assert_eq!(
        issues(&judged),
        ["1: Inbound Error GuestFirewall Expected=10.1.0.4,Observed=*,Reason=refused"]
    );
    assert_eq!(judged.difference.unwrap().ttl, 1);
}

/// M5: a machine that is reached directly, and answers no echo request, filters them.
#[test]
fn m5_a_machine_that_answers_nothing_is_the_guests() {
    let judged = Check::new(hub_and_spokes(), "a-vm", "hub-vm", None)
        .silent()
        .traced(&[None, None])
        .judge();
    assert_eq!(
        issues(&judged),
        ["1: Inbound Error GuestFirewall Expected=10.1.0.4,Observed=*,Reason=noAnswer"]
    );
}

/// D42: the first hop at which the trace and `explain` differ is an issue, and the path ends there if nothing behind it
/// answers.
#[test]
fn d42_the_first_difference_from_explain_is_an_issue() {
    let mut w = hub_and_spokes();
    w.routes("spoke-a/workload", "10.3.0.0/16>10.1.0.5")
        .routes("spoke-b/workload", "10.2.0.0/16>10.1.0.5");
    w.half_mut("hub", "spoke-a").allow_forwarded_traffic = true;
    for (a, b) in [("hub", "spoke-b"), ("spoke-a", "hub"), ("spoke-b", "hub")] {
        w.half_mut(a, b).allow_forwarded_traffic = true;
    }
    let check = || Check::new(w.clone(), "a-vm", "b-vm", None);
    let judged = check().traced(&[Some("10.1.0.5"), Some("10.3.0.4")]).judge();
    assert_eq!(
        hops(&judged),
        [
            "Source 10.2.0.4 a-vm-nic",
            "VirtualAppliance 10.1.0.5 hub-nva-nic",
            "VnetLocal 10.3.0.4 b-vm-nic",
        ]
    );
    assert_eq!(issues(&judged), [""; 0]);

    let judged = check().silent().traced(&[None, None, None, None]).judge();
    assert_eq!(
        hops(&judged),
        ["Source 10.2.0.4 a-vm-nic", "VirtualAppliance 10.1.0.5 hub-nva-nic"]
    );
    assert_eq!(
        issues(&judged),
        ["1: Inbound Error Platform Expected=10.1.0.5,Observed=*"]
    );

    // Another machine has answered than expected: the packets take another way.
    let judged = check().traced(&[Some("10.1.0.4"), Some("10.3.0.4")]).judge();
    assert_eq!(
        hops(&judged),
        [
            "Source 10.2.0.4 a-vm-nic",
            "VnetLocal 10.1.0.4 hub-vm-nic",
            "VnetLocal 10.3.0.4 b-vm-nic",
        ]
    );
    assert_eq!(
        issues(&judged),
        ["1: Inbound Warning Platform Expected=10.1.0.5,Observed=10.1.0.4"]
    );

    let mut stopped = check().silent().traced(&[Some("10.1.0.5"), None, None]);
    stopped.statuses.connected.remove(&agent("b-vm"));
    assert_eq!(
        issues(&stopped.judge()),
        ["2: Local Error AgentStopped Expected=10.3.0.4,Observed=*"]
    );
    stopped.statuses.connected.insert(agent("b-vm"));
    // Either the appliance's system does not forward, or the machine does not answer.
    assert_eq!(
        issues(&stopped.judge()),
        ["2: Inbound Error Platform Expected=10.3.0.4,Observed=*"]
    );
    let link = |peer: &str, state| LinkStatus {
        state,
        ..LinkStatus::new(AgentId::new(peer).unwrap())
    };
    let status = AgentStatus {
        links: vec![link("b-vm", LinkState::Unreachable)],
        ..AgentStatus::default()
    };
    stopped.statuses.agents.insert(agent("hub-nva"), status);
    assert_eq!(
        issues(&stopped.judge()),
        ["2: Inbound Error Platform Expected=10.3.0.4,Observed=*,Reason=linkUnreachable"]
    );
}

/// M5: an agent that cannot send is a problem of the source, and says nothing about the destination.
#[test]
fn m5_an_agent_that_cannot_send_is_told_apart() {
    let mut check = Check::new(hub_and_spokes(), "a-vm", "hub-vm", None).silent();
    check.probe.error = Some("source: 10.2.0.4 is not an address of this host".into());
    let judged = check.judge();
    assert_eq!(judged.information.connection_status, ConnectionStatus::Unknown);
    let [issue] = &judged.information.hops[0].issues[..] else {
        panic!("{judged:#?}")
    };
    assert_eq!((issue.origin, issue.kind), (Origin::Local, IssueKind::SocketBind));
}

/// M5: the routers and the machines of a site are not known, so their answers are hops without a resource, and no
/// difference.
#[test]
fn m5_hops_of_a_site_have_no_resource() {
    let (w, reports) = (crate::circuits::lab(), crate::circuits::reports(false));
    let question = CheckRequest {
        from: "hub-vm".into(),
        to: "10.2.30.10".into(),
        protocol: Protocol::Icmp,
        port: None,
    };
    let expected = Expected::of(&w.topology, &reports, &question).unwrap();
    assert!(expected.explained.request.delivered, "{:#?}", expected.explained);
    let address = |text: &str| Hop {
        address: Some(ip(text)),
        rtts_ms: vec![12.0],
    };
    let mut hops = Vec::new();
    for line in &expected.echo.trace {
        hops.push(Hop {
            address: line.address,
            rtts_ms: vec![3.0],
        });
    }
    hops.extend([address("192.0.2.77"), address("10.2.30.10")]);
    let probe = ProbeReport {
        sent: 10,
        received: 10,
        rtts_ms: vec![12.0],
        ..ProbeReport::default()
    };
    let trace = ProbeReport {
        hops,
        ..ProbeReport::default()
    };
    let observed = Observed {
        probe: &probe,
        trace: Some(&trace),
    };
    let judged = expected.judge(&w.topology, &AgentStatuses::default(), observed);
    let kinds: Vec<_> = judged.information.hops.iter().map(|hop| hop.kind).collect();
    assert_eq!(
        kinds[kinds.len() - 2..],
        [HopKind::Internet, HopKind::Destination],
        "{judged:#?}"
    );
    assert!(judged.difference.is_none(), "{judged:#?}");
    assert_eq!(issues(&judged), [""; 0]);
}

/// M5: where `explain` expects that echo requests are denied, a silent trace is no difference, and the hops of a
/// connection come from `explain`.
#[test]
fn m5_a_silence_that_explain_expects_is_no_difference() {
    let mut w = hub_and_spokes();
    w.group("web", &["no-echo 200 in deny icmp * * *"])
        .secure_nic("hub-vm-nic", "web");
    let judged = Check::new(w, "a-vm", "hub-vm", Some(443)).traced(&[None, None]).judge();
    assert_eq!(
        hops(&judged),
        ["Source 10.2.0.4 a-vm-nic", "VnetLocal 10.1.0.4 hub-vm-nic"]
    );
    assert_eq!(issues(&judged), [""; 0]);
    assert!(judged.difference.is_none(), "explain expects the silence: {judged:#?}");
}

/// Reports come from an agent, which may be hostile: no content of them panics.
#[test]
fn hostile_reports_are_judged_too() {
    let mut check = Check::new(hub_and_spokes(), "a-vm", "branch-vm", Some(1));
    check.probe = ProbeReport {
        sent: 0,
        received: u32::MAX,
        rtts_ms: vec![-1e308, 1e308],
        refused: u32::MAX,
        unreachable: u32::MAX,
        ..ProbeReport::default()
    };
    check.trace = vec![Some("255.255.255.255"); 300];
    let judged = check.judge();
    assert_eq!(
        (judged.information.probes_sent, judged.information.probes_failed),
        (0, 0)
    );
    assert_eq!(judged.difference.unwrap().ttl, 1);
}
