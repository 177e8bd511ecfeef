//! Tests of flow logs with two engines and a simulated network: which events each flow has, and that packets and bytes
//! are those that were sent (N14, D38).
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::{World, echo, id, udp};
use std::sync::Arc;
use std::time::Duration;
use tombolo_engine::security::{FlowEvent, FlowEventKind, FlowLog, Flows};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    Access, AgentConfig, Direction, FlowLog as Log, FlowLogFormat, FlowLogs, LoggedNic, SecurityGroup,
};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

/// The flow logs of a machine whose only NIC has one.
fn logs() -> FlowLogs {
    FlowLogs {
        logs: vec![Log {
            id: id("/log"),
            guid: "00000000-0000-4000-8000-000000000001".into(),
            target: id("nic"),
            format: FlowLogFormat::Network4,
            nics: vec![id("nic")],
        }],
        nics: vec![LoggedNic {
            id: id("nic"),
            mac: "020000000001".into(),
        }],
        groups: Vec::new(),
    }
}

/// A pair of machines of which the second one has a group, and a flow log if `logged`.
struct Machines {
    world: World,
    flows: Arc<Flows>,
    /// Whether changed rules apply to established flows too.
    reevaluate: bool,
}

impl Machines {
    fn new(group: Option<SecurityGroup>) -> Self {
        let mut world = World::pair();
        let flows = Arc::new(Flows::new(1024, 7));
        world.nodes[1].engine.share_flows(flows.clone());
        let mut machines = Self {
            world,
            flows,
            reevaluate: false,
        };
        machines.install(group, true);
        machines
    }

    fn install(&mut self, group: Option<SecurityGroup>, logged: bool) {
        let mut security = security(&["10.0.0.2/32", "fd00::2/128"], None, group);
        security.flow_logs = logged.then(logs);
        security.reevaluate = self.reevaluate;
        let config = AgentConfig {
            security: Some(security),
            ..self.world.nodes[1].config.clone()
        };
        let now = self.world.now;
        self.world.nodes[1].install(config, now);
    }

    /// Sends a packet from a node. Returns whether it arrives at the other node.
    fn send(&mut self, from: usize, packet: Vec<u8>) -> bool {
        let before = self.world.nodes[1 - from].delivered.len();
        self.world.send(from, packet);
        self.world.settle();
        self.world.nodes[1 - from].delivered.len() > before
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(Duration::from_secs(seconds));
    }

    fn log(&self) -> &FlowLog {
        self.flows.log()
    }

    fn events(&self) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        self.log().drain(|event| events.push(event));
        events
    }

    /// The events as text: state, direction, source port, rule, packets and bytes there and back.
    fn shown(&self) -> Vec<String> {
        let line = |e: FlowEvent| {
            let rule = self.log().rule(e.rule).unwrap();
            assert_eq!(rule.nic, id("nic"));
            let name = rule
                .rule
                .as_ref()
                .map_or("-", |(_, name)| name.rsplit('/').next().unwrap());
            format!(
                "{:?} {:?} {} {name} {}/{} {}/{}",
                e.kind,
                e.key.direction,
                e.key.ports.0,
                e.forward.packets,
                e.forward.bytes,
                e.backward.packets,
                e.backward.bytes
            )
        };
        self.events().into_iter().map(line).collect()
    }
}

fn web() -> SecurityGroup {
    let rules = vec![
        to_port(443, rule("https", 100, Direction::Inbound, Access::Allow)),
        rule("nothing-else", 200, Direction::Inbound, Access::Deny),
        rule("all", 100, Direction::Outbound, Access::Allow),
    ];
    group("web", rules)
}

/// A TCP connection has an event when it begins and one when it has ended. The last one has all packets and bytes of both
/// directions, by the lengths of their IP packets.
#[test]
fn n14_a_connection_begins_and_ends_with_all_its_packets_and_bytes() {
    let mut machines = Machines::new(Some(web()));
    let (client, server) = ((A, 40_000), (B, 443));
    let (mut there, mut back) = ([0, 0], [0, 0]);
    let mut send = |machines: &mut Machines, from: usize, flags| {
        let packet = if from == 0 {
            tcp(client, server, flags)
        } else {
            tcp(server, client, flags)
        };
        let of = if from == 0 { &mut there } else { &mut back };
        of[0] += 1;
        of[1] += packet.len();
        assert!(machines.send(from, packet));
    };
    send(&mut machines, 0, Flags::Syn);
    assert_eq!(machines.shown(), ["Begin Inbound 40000 https 0/0 0/0"]);
    send(&mut machines, 1, Flags::SynAck);
    for _ in 0..20 {
        send(&mut machines, 0, Flags::Ack);
        send(&mut machines, 0, Flags::Ack);
        send(&mut machines, 1, Flags::Ack);
    }
    // Packets of a known flow pass without a lookup for a second; they are counted all the same.
    machines.pass(2);
    send(&mut machines, 0, Flags::Ack);
    send(&mut machines, 0, Flags::Fin);
    send(&mut machines, 1, Flags::Fin);
    send(&mut machines, 0, Flags::Ack);
    assert!(machines.shown().is_empty());
    machines.pass(31);
    let expected = format!(
        "End Inbound 40000 https {}/{} {}/{}",
        there[0], there[1], back[0], back[1]
    );
    assert_eq!(machines.shown(), [expected]);
}

/// A flow that goes on has an event every five minutes, with the packets since the one before.
#[test]
fn n14_a_flow_that_goes_on_has_an_event_every_five_minutes() {
    let mut machines = Machines::new(None);
    let datagram = udp(B, A, 64, 100);
    for _ in 0..7 {
        assert!(machines.send(1, datagram.clone()));
        assert!(machines.send(0, {
            let mut reply = udp(A, B, 64, 10);
            // The reply goes from the port 2000 to the port 1000.
            reply.swap(20, 22);
            reply.swap(21, 23);
            reply
        }));
        machines.pass(100);
    }
    let shown = machines.shown();
    let length = datagram.len();
    assert_eq!(shown[0], "Begin Outbound 1000 - 0/0 0/0");
    assert_eq!(shown.len(), 3, "{shown:?}");
    let mut packets = 0;
    for line in &shown[1..] {
        let parts: Vec<&str> = line.split(' ').collect();
        assert_eq!(parts[0], "Continue");
        let (count, bytes) = parts[4].split_once('/').unwrap();
        let count: usize = count.parse().unwrap();
        assert_eq!(bytes.parse::<usize>().unwrap(), count * length, "{line}");
        packets += count;
    }
    assert!((6..=7).contains(&packets), "{shown:?}");
    // Without packets the flow ends, and its last event has the rest.
    machines.pass(300);
    let last = machines.shown();
    assert_eq!(last.len(), 1, "{last:?}");
    assert!(
        last[0].starts_with(&format!("End Outbound 1000 - {}/", 7 - packets)),
        "{last:?}"
    );
}

/// The denied packets of a flow have one event in a batch.
#[test]
fn d38_denied_packets_of_one_flow_are_one_event_in_a_batch() {
    let mut machines = Machines::new(Some(web()));
    for _ in 0..5 {
        assert!(!machines.send(0, tcp((A, 40_001), (B, 22), Flags::Syn)));
    }
    assert!(!machines.send(0, tcp((A, 40_002), (B, 22), Flags::Syn)));
    let first = [
        "Denied Inbound 40001 nothing-else 0/0 0/0",
        "Denied Inbound 40002 nothing-else 0/0 0/0",
    ];
    assert_eq!(machines.shown(), first);
    assert!(!machines.send(0, tcp((A, 40_001), (B, 22), Flags::Syn)));
    assert!(machines.shown().is_empty());
    machines.log().begin_batch();
    assert!(!machines.send(0, tcp((A, 40_001), (B, 22), Flags::Syn)));
    assert_eq!(machines.shown(), &first[..1]);
}

/// Without a group, a flow log records flows and stops no packet. Without a log, there are no events.
#[test]
fn n14_a_log_stops_no_packet_and_records_nothing_when_it_is_gone() {
    let mut machines = Machines::new(None);
    assert!(machines.send(0, tcp((A, 40_000), (B, 80), Flags::Syn)));
    assert!(machines.send(0, echo(A, B)));
    // A later fragment whose first one never came.
    let mut fragment = udp(A, B, 64, 100);
    fragment[6..8].copy_from_slice(&[0x20, 0x10]);
    let checksum = etherparse::Ipv4HeaderSlice::from_slice(&fragment)
        .unwrap()
        .to_header()
        .calc_header_checksum();
    fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
    assert!(machines.send(0, fragment));
    let shown = machines.shown();
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!(shown[0], "Begin Inbound 40000 - 0/0 0/0");
    assert_eq!(machines.world.nodes[1].engine.stats().drops(DropReason::Malformed), 0);

    machines.install(None, false);
    assert!(machines.send(0, tcp((A, 40_001), (B, 80), Flags::Syn)));
    machines.pass(300);
    assert!(machines.events().is_empty());
}

/// A log that begins again counts nothing of the time of the earlier one.
#[test]
fn n14_a_log_that_begins_again_has_no_packets_of_the_earlier_one() {
    let mut machines = Machines::new(Some(web()));
    let data = tcp((A, 40_000), (B, 443), Flags::Ack);
    assert!(machines.send(0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(machines.send(1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    machines.install(Some(web()), false);
    assert!(machines.send(0, data.clone()));
    machines.events();
    machines.install(Some(web()), true);
    assert!(machines.send(0, data.clone()));
    machines.pass(300);
    assert_eq!(
        machines.shown(),
        [format!("End Inbound 40000 https 1/{} 0/0", data.len())]
    );
}

/// A flow from before the log is counted from the first packet after the log's beginning, and its events name the rule
/// that allows it.
#[test]
fn n14_a_flow_from_before_the_log_is_recorded_from_then_on() {
    let mut machines = Machines::new(None);
    machines.install(Some(web()), false);
    assert!(machines.send(0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(machines.send(1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    machines.install(Some(web()), true);
    let data = tcp((A, 40_000), (B, 443), Flags::Ack);
    assert!(machines.send(0, data.clone()));
    assert!(machines.events().is_empty());
    machines.pass(300);
    assert_eq!(
        machines.shown(),
        [format!("End Inbound 40000 https 1/{} 0/0", data.len())]
    );
}

/// Without a group, no table has a connection from before the log. Its packets count, and it has no beginning.
#[test]
fn n14_without_a_group_a_connection_from_before_the_log_has_no_beginning() {
    let mut machines = Machines::new(None);
    let data = tcp((B, 80), (A, 40_000), Flags::Ack);
    assert!(machines.send(1, data.clone()));
    assert!(machines.send(1, data.clone()));
    assert!(machines.events().is_empty());
    assert!(
        machines.send(0, udp(A, B, 64, 10)),
        "a datagram may be the first of its flow"
    );
    assert_eq!(machines.shown(), ["Begin Inbound 1000 - 0/0 0/0"]);
    machines.pass(300);
    let shown = machines.shown();
    // The direction is that of the first packet that the log has seen.
    let expected = format!("End Outbound 80 - 2/{} 0/0", 2 * data.len());
    assert!(shown.contains(&expected), "{shown:?}");
}

/// If changed rules deny an established flow, its packets are logged with the direction and the addresses of the packet that
/// began it, whichever end sends them (D34).
#[test]
fn n14_a_denied_reply_is_logged_as_the_flow_that_it_belongs_to() {
    let mut machines = Machines::new(Some(web()));
    let (client, server) = ((A, 40_000), (B, 443));
    assert!(machines.send(0, tcp(client, server, Flags::Syn)));
    assert!(machines.send(1, tcp(server, client, Flags::SynAck)));
    assert!(machines.send(0, tcp(client, server, Flags::Ack)));
    assert_eq!(machines.shown(), ["Begin Inbound 40000 https 0/0 0/0"]);
    // Connections are adopted for a minute after the start.
    machines.pass(61);
    let mut closed = web();
    closed.rules.remove(0);
    machines.reevaluate = true;
    machines.install(Some(closed), true);
    assert!(!machines.send(1, tcp(server, client, Flags::Ack)));
    assert_eq!(machines.shown(), ["Denied Inbound 40000 nothing-else 0/0 0/0"]);
    assert!(!machines.send(0, tcp(client, server, Flags::Ack)));
    assert!(machines.shown().is_empty(), "the same flow");
}

/// The events of a flow have the time of the flow: the end has that of its last packet.
#[test]
fn n14_events_have_the_time_of_the_flow() {
    let mut machines = Machines::new(None);
    machines.pass(10);
    let begun = machines.world.now;
    assert!(machines.send(0, udp(A, B, 64, 10)));
    machines.pass(5);
    let last = machines.world.now;
    assert!(machines.send(0, udp(A, B, 64, 10)));
    machines.pass(300);
    let events = machines.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!((events[0].kind, events[0].at), (FlowEventKind::Begin, begun));
    assert_eq!(events[1].kind, FlowEventKind::End);
    assert!(
        events[1].at >= last,
        "not before the last packet, and so not before the beginning"
    );
    let late = events[1].at.duration_since(last);
    assert!(late <= Duration::from_secs(1), "{late:?}");
    assert!(!events[0].is_local);
}

/// At the end of the process, all flows have an event with the packets that no event had yet.
#[test]
fn n14_the_last_packets_of_all_flows_can_be_recorded() {
    let mut machines = Machines::new(None);
    let datagram = udp(A, B, 64, 10);
    assert!(machines.send(0, datagram.clone()));
    assert_eq!(machines.events().len(), 1);
    let mut events = Vec::new();
    machines.flows.log_all(machines.world.now, |event| events.push(event));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, FlowEventKind::Continue);
    assert_eq!(
        (events[0].forward.packets, events[0].forward.bytes as usize),
        (1, datagram.len())
    );
}
