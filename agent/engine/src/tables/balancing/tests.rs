mod spread;

use super::*;
use crate::routing::RoutingState;
use crate::tables::lpm::Lpm;
use crate::tables::sources::Sources;
use crate::tables::{Arrivals, PeerRole, TransitScope};
use tombolo_proto::config::SpaceKind;
use tombolo_proto::id::AgentId;

fn address(n: u16) -> IpAddr {
    [10, 1, (n >> 8) as u8, n as u8].into()
}

/// The front end 10.1.255.1 with one rule for TCP port 80 and these back ends.
fn front_ends(distribution: Distribution, back_ends: &[u16]) -> FrontEnds {
    probed(distribution, back_ends, &[], |_| {})
}

/// The same, with a probe by which the back ends `down` are down. `change` may alter the rule.
fn probed(
    distribution: Distribution,
    back_ends: &[u16],
    down: &[u16],
    change: impl Fn(&mut config::BalancingRule),
) -> FrontEnds {
    let down = down.iter().map(|n| (ResourceId::new("/lb/probe"), address(*n)));
    let state = RoutingState {
        unhealthy: down.collect(),
        ..RoutingState::default()
    };
    in_state(distribution, back_ends, &state, change)
}

/// The name of the agent that owns a back end.
fn owner(n: u16) -> AgentId {
    AgentId::new(format!("owner-{n}")).unwrap()
}

/// The front end of [`front_ends`] in a routing state. Each back end has an owner of its own.
fn in_state(
    distribution: Distribution,
    back_ends: &[u16],
    state: &RoutingState,
    change: impl Fn(&mut config::BalancingRule),
) -> FrontEnds {
    let vnet = ResourceId::new("/vnet");
    let mut owners = Lpm::default();
    let mut links = Vec::new();
    for (n, link) in back_ends.iter().zip(0..) {
        owners.insert(address(*n).into(), Owner::Link(LinkIndex(link)));
        links.push(LinkPolicy {
            peer: owner(*n),
            relation: PeerRole::VnetLocal,
            sources: Sources::configured(&[]),
            foreign: config::ForeignSources::None,
            arrivals: Arrivals::new(&[]),
            down: state.down.contains(&owner(*n)),
            advertises: false,
            transit_scope: TransitScope::None,
        });
    }
    let space = AddressSpace {
        vnet: vnet.clone(),
        kind: SpaceKind::Local {},
        prefixes: Lpm::default(),
        owners,
    };
    let mut front_end = config::FrontEnd {
        id: ResourceId::new("/lb/frontend"),
        vnet,
        address: [10, 1, 255, 1].into(),
        rules: vec![config::BalancingRule {
            id: ResourceId::new("/lb/rule"),
            protocol: BalancedProtocol::Tcp,
            port: 80,
            back_end_port: 8080,
            distribution,
            floating_ip: false,
            idle_timeout_minutes: 4,
            tcp_reset: false,
            back_ends: back_ends.iter().map(|n| address(*n)).collect(),
            probe: Some(config::HealthProbe {
                id: ResourceId::new("/lb/probe"),
                protocol: config::ProbeProtocol::Tcp,
                port: 8080,
                path: String::new(),
                interval: 5,
                threshold: 1,
                all_up_when_all_down: false,
            }),
            decided: BTreeMap::new(),
            ends_flows: false,
        }],
    };
    change(&mut front_end.rules[0]);
    FrontEnds::new(&[front_end], &[space], None, &Conditions::new(state, &links), None)
}

fn packet(client: u16, port: u16) -> PacketInfo {
    PacketInfo {
        source: [10, 2, (client >> 8) as u8, client as u8].into(),
        destination: [10, 1, 255, 1].into(),
        ttl: 64,
        protocol: TCP,
        transport: Some(20),
        ports: u32::from(port) << 16 | 80,
        len: 60,
    }
}

fn chosen(front_ends: &FrontEnds, packet: &PacketInfo) -> IpAddr {
    let rule = front_ends.rule_for(0, [10, 1, 255, 1].into(), packet).unwrap();
    rule.choose(packet, Among::All).unwrap().address
}

/// L4: with `SourceIP`, all flows of a client have one back end, and with `SourceIPProtocol` all of one protocol.
#[test]
fn l4_a_distribution_by_source_ignores_ports() {
    let members: Vec<u16> = (1..=50).collect();
    let by_source = front_ends(Distribution::SourceIP, &members);
    let by_protocol = front_ends(Distribution::SourceIPProtocol, &members);
    let mut differ = 0;
    for client in 0..100 {
        let first = packet(client, 1000);
        let rule = |all: &FrontEnds| all.rule_for(0, first.destination, &first).unwrap().clone();
        let (source, protocol) = (rule(&by_source), rule(&by_protocol));
        let of = |rule: &Rule, packet: &PacketInfo| rule.choose(packet, Among::All).unwrap().address;
        for port in 1001..1050 {
            let other = packet(client, port);
            assert_eq!(of(&source, &first), of(&source, &other));
            assert_eq!(of(&protocol, &first), of(&protocol, &other));
        }
        let udp = PacketInfo { protocol: UDP, ..first };
        assert_eq!(of(&source, &first), of(&source, &udp));
        differ += usize::from(of(&protocol, &first) != of(&protocol, &udp));
    }
    assert!(differ > 80, "{differ} of 100 clients have other back ends for UDP");
}

/// R11: both directions of a flow pass the same one of several appliances.
#[test]
fn r11_both_directions_have_the_same_back_end() {
    let members: Vec<u16> = (1..=50).collect();
    for distribution in [
        Distribution::Default,
        Distribution::SourceIP,
        Distribution::SourceIPProtocol,
    ] {
        let all = front_ends(distribution, &members);
        for port in 1000..1100 {
            let there = packet(9, port);
            let back = PacketInfo {
                source: there.destination,
                destination: there.source,
                ports: there.ports.rotate_left(16),
                ..there
            };
            let rule = all.rule_for(0, there.destination, &there).unwrap();
            let of = |packet: &PacketInfo| rule.choose(packet, Among::All).unwrap().address;
            assert_eq!(of(&there), of(&back), "{distribution:?}, port {port}");
        }
    }
}

/// The choices must not change between versions: agents of neighbouring versions send packets of one flow.
#[test]
fn choices_stay_the_same_in_later_versions() {
    let all = front_ends(Distribution::Default, &[1, 2, 3, 4, 5]);
    let chosen: Vec<u8> = (0..12)
        .map(|n| match chosen(&all, &packet(n, 40_000 + n)) {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        })
        .collect();
    assert_eq!(chosen, EXPECTED);
}

/// The last octets of the back ends of twelve flows.
const EXPECTED: [u8; 12] = [1, 4, 1, 1, 5, 4, 2, 2, 1, 3, 4, 2];

/// L7: a back end that is down gets no new flow. Its TCP flows stay, and its UDP flows move.
#[test]
fn l7_a_back_end_that_is_down_keeps_its_tcp_flows() {
    let all = front_ends(Distribution::Default, &[1, 2, 3]);
    let without = probed(Distribution::Default, &[1, 2, 3], &[2], |_| {});
    let mut of_two = 0;
    for port in 1000..1300 {
        let packet = packet(5, port);
        let rule = |all: &FrontEnds| all.rule_for(0, packet.destination, &packet).unwrap().clone();
        let before = rule(&all).choose(&packet, Among::All).unwrap().clone();
        let after = rule(&without).choose(&packet, Among::All).unwrap().clone();
        assert_ne!(after.address, address(2));
        if before.address != address(2) {
            assert_eq!(before.address, after.address, "flows of other back ends do not move");
            continue;
        }
        of_two += 1;
        let stays = |packet: &PacketInfo| rule(&without).member(before.choice, packet).is_some();
        assert!(stays(&packet));
        assert!(!stays(&PacketInfo {
            protocol: UDP,
            ..packet
        }));
    }
    assert!(of_two > 50, "{of_two}");
}

/// L8: with all back ends down there are no new flows. Standard keeps established TCP flows, Basic ends them.
#[test]
fn l8_all_down() {
    let packet = packet(5, 1000);
    let of = |change: &dyn Fn(&mut config::BalancingRule)| {
        let all = probed(Distribution::Default, &[1, 2], &[1, 2], change);
        all.rule_for(0, packet.destination, &packet).unwrap().clone()
    };
    let up = front_ends(Distribution::Default, &[1, 2]);
    let up = up.rule_for(0, packet.destination, &packet).unwrap();
    let choice = up.choose(&packet, Among::All).unwrap().choice;
    let (standard, basic) = (of(&|_| {}), of(&|rule| rule.ends_flows = true));
    assert!(standard.choose(&packet, Among::All).is_none() && basic.choose(&packet, Among::All).is_none());
    assert!(standard.member(choice, &packet).is_some() && basic.member(choice, &packet).is_none());
    let udp = PacketInfo {
        protocol: UDP,
        ..packet
    };
    assert!(standard.member(choice, &udp).is_none());
    // `AllProbedUp`: all back ends count as up.
    let all_up = of(&|rule| {
        rule.ends_flows = true;
        rule.probe.as_mut().unwrap().all_up_when_all_down = true;
    });
    assert!(all_up.choose(&packet, Among::All).is_some() && all_up.member(choice, &packet).is_some());
}

/// L7: what the operator says about a back end (`adminState`) counts, and not the probe. A back end that is taken out gets no
/// new flow and keeps its TCP flows, also if it would count as up because all others are down.
#[test]
fn l7_the_operator_overrides_the_probe() {
    let packet = packet(5, 1000);
    let of = |down: &[u16], decided: &[(u16, bool)], all_up: bool| {
        let all = probed(Distribution::Default, &[1, 2], down, |rule| {
            rule.decided = decided.iter().map(|(n, up)| (address(*n), *up)).collect();
            rule.probe.as_mut().unwrap().all_up_when_all_down = all_up;
        });
        all.rule_for(0, packet.destination, &packet).unwrap().clone()
    };
    let chosen = |rule: &Rule| rule.choose(&packet, Among::All).map(|member| member.address);
    for (n, other) in [(1, 2), (2, 1)] {
        assert_eq!(chosen(&of(&[1, 2], &[(n, true)], false)), Some(address(n)), "up");
        let out = of(&[], &[(n, false)], false);
        assert_eq!(chosen(&out), Some(address(other)), "down");
        let choice = out.choice_of(address(n)).unwrap();
        assert!(out.member(choice, &packet).is_some(), "its TCP flows stay");
        let udp = PacketInfo {
            protocol: UDP,
            ..packet
        };
        assert!(out.member(choice, &udp).is_none(), "its UDP flows move");
        assert_eq!(
            chosen(&of(&[other], &[(n, false)], true)),
            Some(address(other)),
            "all down"
        );
    }
    assert_eq!(chosen(&of(&[], &[(1, false), (2, false)], true)), None);
}

/// D36: a back end whose agent is gone gets no new flow. Its TCP flows are lost, and its UDP flows move.
#[test]
fn d36_flows_of_a_back_end_whose_agent_is_gone_end_or_move() {
    let members = [1, 2, 3];
    let all = front_ends(Distribution::Default, &members);
    let gone_for = |seconds| RoutingState {
        gone: [(owner(2), seconds)].into(),
        ..RoutingState::default()
    };
    let without = in_state(Distribution::Default, &members, &gone_for(5), |_| {});
    // The rule's probe allows 6 s.
    let patient = in_state(Distribution::Default, &members, &gone_for(5), |rule| {
        rule.probe.as_mut().unwrap().interval = 6;
    });
    let mut of_two = 0;
    for port in 1000..1300 {
        let packet = packet(5, port);
        let udp = PacketInfo {
            protocol: UDP,
            ..packet
        };
        let rule = |all: &FrontEnds| all.rule_for(0, packet.destination, &packet).unwrap().clone();
        let before = rule(&all).choose(&packet, Among::All).unwrap().clone();
        let after = rule(&without).choose(&packet, Among::All).unwrap().address;
        assert_eq!(
            rule(&patient).choose(&packet, Among::All).unwrap().address,
            before.address
        );
        assert!(!rule(&patient).has_lost(before.choice, &packet));
        if before.address == address(2) {
            of_two += 1;
            assert_ne!(after, address(2));
            assert!(rule(&without).has_lost(before.choice, &packet));
        } else {
            assert_eq!(after, before.address, "flows of other back ends do not move");
            assert!(!rule(&without).has_lost(before.choice, &packet));
        }
        assert!(!rule(&without).has_lost(before.choice, &udp));
        assert_eq!(
            rule(&without).member(before.choice, &udp).is_some(),
            before.address != address(2)
        );
    }
    assert!(of_two > 50, "{of_two}");
}

/// D36: while the link with a back end's agent is down, new flows go elsewhere, and established ones stay. If all links
/// are down, the choice is as usual.
#[test]
fn d36_new_flows_avoid_a_back_end_whose_link_is_down() {
    let members = [1, 2, 3];
    let all = front_ends(Distribution::Default, &members);
    let with_down = |down: &[u16]| {
        let state = RoutingState {
            down: down.iter().map(|n| owner(*n)).collect(),
            ..RoutingState::default()
        };
        in_state(Distribution::Default, &members, &state, |_| {})
    };
    let (one_down, all_down) = (with_down(&[2]), with_down(&members));
    for port in 1000..1100 {
        let packet = packet(5, port);
        let before = chosen(&all, &packet);
        assert_ne!(chosen(&one_down, &packet), address(2));
        assert_eq!(chosen(&all_down, &packet), before);
        let rule = all.rule_for(0, packet.destination, &packet).unwrap();
        let choice = rule.choose(&packet, Among::All).unwrap().choice;
        let rule = one_down.rule_for(0, packet.destination, &packet).unwrap();
        assert!(rule.member(choice, &packet).is_some() && !rule.has_lost(choice, &packet));
    }
}

/// L8, D36: if one back end is gone and the other one does not answer its probe, all are down.
#[test]
fn l8_back_ends_that_are_gone_count_as_down() {
    let packet = packet(5, 1000);
    let state = RoutingState {
        gone: [(owner(1), 5)].into(),
        unhealthy: [(ResourceId::new("/lb/probe"), address(2))].into(),
        ..RoutingState::default()
    };
    let of = |change: &dyn Fn(&mut config::BalancingRule)| {
        let all = in_state(Distribution::Default, &[1, 2], &state, change);
        all.rule_for(0, packet.destination, &packet).unwrap().clone()
    };
    assert!(of(&|_| {}).choose(&packet, Among::All).is_none());
    let all_up = of(&|rule| rule.probe.as_mut().unwrap().all_up_when_all_down = true);
    assert_eq!(all_up.choose(&packet, Among::All).unwrap().address, address(2));
}

/// L3: without a rule for the protocol and port there is no back end.
#[test]
fn l3_a_rule_is_for_its_protocol_and_port() {
    let all = front_ends(Distribution::Default, &[1]);
    let rule = |packet: &PacketInfo| all.rule_for(0, packet.destination, packet).map(|rule| rule.id.clone());
    let fits = packet(1, 1000);
    assert!(rule(&fits).is_ok());
    for (other, reason) in [
        (
            PacketInfo {
                ports: 1000 << 16 | 81,
                ..fits
            },
            DropReason::NoBalancingRule,
        ),
        (PacketInfo { protocol: UDP, ..fits }, DropReason::NoBalancingRule),
        (PacketInfo { protocol: 1, ..fits }, DropReason::BalancerProtocol),
        (PacketInfo { ports: 0, ..fits }, DropReason::NoBalancingRule),
    ] {
        assert_eq!(rule(&other), Err(reason));
    }
}
