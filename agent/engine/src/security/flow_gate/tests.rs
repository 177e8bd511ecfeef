use super::*;
use crate::packet::{ICMP, parse};
use crate::security::{AddressSets, FROM_HOST, GroupRules};
use std::sync::Arc;
use tombolo_proto::config::{ALL_PORTS, Access, AddressMatch, PortRange, RuleProtocol, SecurityRule};
use tombolo_proto::id::ResourceId;

const OWN: [u8; 4] = [10, 0, 0, 4];
const PEER: [u8; 4] = [10, 1, 0, 4];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// The rules of a NIC. Inbound they allow TCP to port 443 and UDP to port 53. Outbound they allow everything except UDP
/// to port 53.
fn rules() -> NicRules {
    let rule = |priority, direction, access, protocol, port: Option<u16>| SecurityRule {
        name: format!("securityRules/r{priority}"),
        priority,
        direction,
        access,
        protocol,
        source: AddressMatch::Any,
        source_ports: vec![ALL_PORTS],
        destination: AddressMatch::Any,
        destination_ports: port.map_or_else(|| vec![ALL_PORTS], |p| vec![PortRange { first: p, last: p }]),
    };
    let all = vec![
        rule(100, Direction::Inbound, Access::Allow, RuleProtocol::Tcp, Some(443)),
        rule(110, Direction::Inbound, Access::Allow, RuleProtocol::Udp, Some(53)),
        rule(200, Direction::Inbound, Access::Deny, RuleProtocol::Any, None),
        rule(100, Direction::Outbound, Access::Deny, RuleProtocol::Udp, Some(53)),
        rule(200, Direction::Outbound, Access::Allow, RuleProtocol::Any, None),
    ];
    let sets = AddressSets::default();
    let group = GroupRules::new(ResourceId::new("web"), all, &sets);
    NicRules::new(sets, None, Some(Arc::new(group)))
}

fn packet(protocol: u8, (source, destination): ([u8; 4], [u8; 4]), fragment: u16, transport: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
    let [flags, offset] = fragment.to_be_bytes();
    let mut packet = vec![0x45, 0, len[0], len[1], 0x12, 0x34, flags, offset, 64, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(transport);
    packet
}

fn tcp(ends: ([u8; 4], [u8; 4]), ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut header = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    header.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    packet(TCP, ends, 0, &header)
}

fn udp(ends: ([u8; 4], [u8; 4]), ports: (u16, u16), fragment: u16) -> Vec<u8> {
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), [0, 8], [0, 0]].concat();
    packet(UDP, ends, fragment, &header)
}

struct Host {
    table: FlowTable,
    gate: FlowGate,
    rules: NicRules,
    now: u32,
}

impl Host {
    fn new(adopt_until: u32) -> Self {
        Self {
            table: FlowTable::new(1024, 1, 5),
            gate: FlowGate::new(5, adopt_until),
            rules: rules(),
            now: 0,
        }
    }

    /// The decision about a packet, which is outbound if its source is [`OWN`], and else inbound.
    fn admits(&mut self, packet: &[u8]) -> Admission {
        let info = parse(packet).unwrap();
        let outbound = info.source == std::net::IpAddr::from(OWN);
        let at = AtNic {
            packet,
            info: &info,
            nic: 0,
            direction: if outbound {
                Direction::Outbound
            } else {
                Direction::Inbound
            },
            link: if outbound { FROM_HOST } else { 0 },
            now: self.now,
            idle_timeout: 240,
            balanced: Balanced::No,
            ends_idle: false,
            is_logged: false,
        };
        self.gate.admit(&self.table, &self.rules, &at, |_| ())
    }
}

const IN: ([u8; 4], [u8; 4]) = (PEER, OWN);
const OUT: ([u8; 4], [u8; 4]) = (OWN, PEER);

fn allowed(admission: Admission) -> bool {
    matches!(admission, Admission::Allowed(Some(_)))
}

fn denied(admission: Admission) -> bool {
    matches!(admission, Admission::Denied(_))
}

#[test]
fn n6_replies_need_no_rule() {
    let mut host = Host::new(0);
    assert!(denied(host.admits(&tcp(IN, (22, 40_000), SYN | ACK))));
    assert!(allowed(host.admits(&tcp(OUT, (40_000, 22), SYN))));
    assert_eq!(host.admits(&tcp(IN, (22, 40_000), SYN | ACK)), Admission::Known);
    assert_eq!(host.admits(&tcp(OUT, (40_000, 22), ACK)), Admission::Known);
}

#[test]
fn n6_a_flow_goes_on_when_its_rule_goes_away() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&tcp(IN, (40_000, 443), SYN))));
    assert_eq!(host.admits(&tcp(OUT, (443, 40_000), SYN | ACK)), Admission::Known);
    let deny_all = SecurityRule {
        name: "securityRules/none".into(),
        priority: 100,
        direction: Direction::Inbound,
        access: Access::Deny,
        protocol: RuleProtocol::Any,
        source: AddressMatch::Any,
        source_ports: vec![ALL_PORTS],
        destination: AddressMatch::Any,
        destination_ports: vec![ALL_PORTS],
    };
    let group = GroupRules::new(ResourceId::new("web"), vec![deny_all], &AddressSets::default());
    host.rules = NicRules::new(AddressSets::default(), None, Some(Arc::new(group)));
    assert_eq!(host.admits(&tcp(IN, (40_000, 443), ACK)), Admission::Known);
    assert!(denied(host.admits(&tcp(IN, (40_001, 443), SYN))));
    // A SYN with the same ports asks for a new connection, which the present rules deny.
    assert!(denied(host.admits(&tcp(IN, (40_000, 443), SYN))));
}

#[test]
fn n6_an_idle_flow_is_forgotten() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&udp(OUT, (5000, 4000), 0))));
    host.now = 240;
    assert_eq!(host.admits(&udp(IN, (4000, 5000), 0)), Admission::Known);
    host.now = 481;
    assert!(denied(host.admits(&udp(IN, (4000, 5000), 0))));
}

#[test]
fn d31_a_syn_that_is_repeated_is_of_the_same_flow_and_one_against_it_is_judged() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&tcp(OUT, (40_000, 22), SYN))));
    assert_eq!(host.admits(&tcp(OUT, (40_000, 22), SYN)), Admission::Known);
    // The other end may answer, but the known flow does not allow it to open a connection with a SYN of its own.
    assert!(denied(host.admits(&tcp(IN, (22, 40_000), SYN))));
}

#[test]
fn d31_after_a_reset_the_same_ports_open_a_new_connection_by_the_rules() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&tcp(IN, (40_000, 443), SYN))));
    assert_eq!(host.admits(&tcp(OUT, (443, 40_000), RST)), Admission::Known);
    assert!(allowed(host.admits(&tcp(IN, (40_000, 443), SYN))));
    host.now = 20;
    assert_eq!(host.admits(&tcp(OUT, (443, 40_000), SYN | ACK)), Admission::Known);
}

#[test]
fn d31_icmp_errors_are_admitted_for_known_flows_alone() {
    let mut host = Host::new(0);
    let error_about = |quoted: Vec<u8>| {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
        message.extend(quoted);
        packet(ICMP, ([10, 9, 9, 9], OWN), 0, &message)
    };
    let flow = tcp(OUT, (40_000, 22), SYN);
    assert!(denied(host.admits(&error_about(flow.clone()))));
    assert!(allowed(host.admits(&flow)));
    assert_eq!(host.admits(&error_about(flow)), Admission::Known);
    // This error quotes a packet that the host did not send.
    assert!(denied(host.admits(&error_about(tcp(IN, (22, 40_000), ACK)))));
    assert!(denied(host.admits(&error_about(tcp(OUT, (40_001, 22), SYN)))));
}

#[test]
fn later_fragments_follow_their_first_fragment() {
    let mut host = Host::new(0);
    let later = packet(UDP, IN, 1, &[0; 16]);
    assert_eq!(host.admits(&later), Admission::UnknownFragment);
    assert!(allowed(host.admits(&udp(IN, (5000, 53), 0x2000))));
    assert_eq!(host.admits(&later), Admission::Known);
    host.now = 31;
    assert_eq!(host.admits(&later), Admission::UnknownFragment);
    let mut host = Host::new(0);
    assert!(denied(host.admits(&udp(IN, (5000, 54), 0x2000))));
    assert_eq!(host.admits(&later), Admission::UnknownFragment);
}

/// RFC 5722: a later fragment must not overwrite what the rules have decided about.
#[test]
fn a_later_fragment_that_overwrites_the_first_one_is_dropped() {
    let mut host = Host::new(0);
    let first = packet(UDP, IN, 0x2000, &[&udp(IN, (5000, 53), 0)[20..], &[0; 24]].concat());
    assert!(allowed(host.admits(&first)));
    assert_eq!(host.admits(&packet(UDP, IN, 3, &[0; 16])), Admission::Malformed);
    assert_eq!(host.admits(&packet(UDP, IN, 4, &[0; 16])), Admission::Known);
}

/// A flow about which the rules must decide again ends if they deny it, whichever end sends the next packet. The other
/// end cannot begin it anew in the middle of a connection, although the rules allow packets of its direction.
#[test]
fn d34_a_flow_that_the_rules_deny_again_stays_denied_in_both_directions() {
    let mut host = Host::new(0);
    let key = |protocol| FlowKey {
        nic: 0,
        direction: Direction::Inbound,
        protocol,
        source: PEER.into(),
        destination: OWN.into(),
        ports: (40_000, 22),
    };
    for protocol in [TCP, UDP] {
        // Earlier rules have allowed it.
        host.table.insert(&key(protocol), 0, 240, 0).unwrap();
        let reply = host.table.find(&reverse(&key(protocol)), 0).unwrap();
        host.table.touch(&reply, Segment::default().flags, 0);
        let all = 0..host.table.entries();
        host.table.judge_again_where(all, |k| k.protocol == protocol);
    }
    for now in [0, 200, 400] {
        host.now = now;
        assert!(denied(host.admits(&tcp(OUT, (22, 40_000), ACK))), "{now}");
        assert!(denied(host.admits(&tcp(IN, (40_000, 22), ACK))), "{now}");
        assert!(denied(host.admits(&udp(OUT, (22, 40_000), 0))), "{now}");
        assert!(denied(host.admits(&udp(IN, (40_000, 22), 0))), "{now}");
        assert!(
            denied(host.admits(&tcp(IN, (40_000, 22), RST))),
            "{now}: a reset does not shorten it"
        );
    }
    // A new connection in the direction that the rules allow passes.
    assert!(allowed(host.admits(&tcp(OUT, (22, 40_000), SYN))));
    assert_eq!(host.admits(&tcp(IN, (40_000, 22), SYN | ACK)), Admission::Known);
}

#[test]
fn d34_a_flow_that_the_rules_allow_again_goes_on_and_is_judged_once() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&tcp(IN, (40_000, 443), SYN))));
    host.table.judge_again_where(0..host.table.entries(), |_| true);
    assert_eq!(host.admits(&tcp(OUT, (443, 40_000), SYN | ACK)), Admission::Known);
    let deny_all = GroupRules::new(ResourceId::new("none"), Vec::new(), &AddressSets::default());
    host.rules = NicRules::new(AddressSets::default(), None, Some(Arc::new(deny_all)));
    assert_eq!(host.admits(&tcp(IN, (40_000, 443), ACK)), Admission::Known, "N6");
    // While flows are being marked after a change, the rules decide about all of them.
    host.gate.judge_known(true);
    assert!(denied(host.admits(&tcp(IN, (40_000, 443), ACK))));
    host.gate.judge_known(false);
    assert!(
        denied(host.admits(&tcp(OUT, (443, 40_000), ACK))),
        "it is noted in the flow"
    );
}

#[test]
fn d34_an_icmp_error_about_a_denied_flow_is_denied_too() {
    let mut host = Host::new(0);
    assert!(allowed(host.admits(&tcp(IN, (40_000, 443), SYN))));
    let error = packet(
        ICMP,
        OUT,
        0,
        &[&[3, 1, 0, 0, 0, 0, 0, 0][..], &tcp(IN, (40_000, 443), SYN)].concat(),
    );
    assert_eq!(host.admits(&error), Admission::Known);
    host.table.judge_again_where(0..host.table.entries(), |_| true);
    let deny_all = GroupRules::new(ResourceId::new("none"), Vec::new(), &AddressSets::default());
    host.rules = NicRules::new(AddressSets::default(), None, Some(Arc::new(deny_all)));
    assert!(denied(host.admits(&error)));
}

#[test]
fn d34_after_a_crash_tcp_in_mid_stream_is_adopted_where_rules_allow_either_direction() {
    let mut host = Host::new(60);
    // The host began this connection, so only outbound rules allow it. The first packet after the crash is inbound.
    assert_eq!(host.admits(&tcp(IN, (22, 40_000), ACK)), Admission::Adopted);
    assert_eq!(host.admits(&tcp(OUT, (40_000, 22), ACK)), Admission::Known);
    // The rules deny an inbound SYN, even if the flow with these ports was adopted.
    assert!(denied(host.admits(&tcp(IN, (22, 40_000), SYN))));
    assert!(denied(host.admits(&tcp(IN, (23, 40_001), SYN))));
    assert!(denied(host.admits(&udp(IN, (4000, 5000), 0))));
    host.now = 60;
    assert!(denied(host.admits(&tcp(IN, (22, 40_002), ACK))));
}

#[test]
fn a_full_table_refuses_and_says_so() {
    let mut host = Host::new(0);
    let mut refused = 0;
    for port in 1..2000 {
        let syn = tcp(([10, 2, (port >> 8) as u8, port as u8], OWN), (port, 443), SYN);
        match host.admits(&syn) {
            Admission::Allowed(_) => {}
            Admission::NoRoom => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0);
    assert!(host.table.unanswered() <= host.table.capacity() / 8);
}

/// L5: without a group, a flow log adds no entry for a packet that may be the reply of a balanced flow, because that flow would
/// have no choice then. A connection that the back end opens itself is logged.
#[test]
fn l5_a_flow_log_adds_no_entry_for_what_may_be_a_reply() {
    let (table, mut gate) = (FlowTable::new(1024, 1, 5), FlowGate::new(5, 0));
    let mut admit = |packet: &[u8], direction, balanced| {
        let info = parse(packet).unwrap();
        let at = AtNic {
            packet,
            info: &info,
            nic: 0,
            direction,
            link: FROM_HOST,
            now: 10,
            idle_timeout: 240,
            balanced,
            ends_idle: false,
            is_logged: true,
        };
        let outcome = gate.admit_flow(&table, &NicRules::default(), &at, |_| (), &mut ());
        assert_eq!(outcome.admission, Admission::Allowed(None));
        (outcome.flow.is_some(), table.len())
    };
    for balanced in [Balanced::MayReply, Balanced::Direct] {
        let segment = tcp(OUT, (80, 40_000), ACK);
        assert_eq!(admit(&segment, Direction::Outbound, balanced), (false, 0));
        let datagram = udp(OUT, (53, 40_000), 0);
        assert_eq!(admit(&datagram, Direction::Outbound, balanced), (false, 0));
    }
    let syn = tcp(OUT, (40_000, 443), SYN);
    assert_eq!(admit(&syn, Direction::Outbound, Balanced::MayReply), (true, 1));
}
