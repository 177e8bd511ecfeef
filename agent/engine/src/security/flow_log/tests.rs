use super::*;
use crate::packet::UDP;
use tombolo_proto::config::Direction;

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the clock is the test's")]
    Instant::now()
}

fn key(port: u16) -> FlowKey {
    FlowKey {
        nic: 0,
        direction: Direction::Inbound,
        protocol: UDP,
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        ports: (port, 53),
    }
}

fn rule(name: &str) -> LoggedRule {
    LoggedRule {
        nic: ResourceId::new("/nic"),
        rule: Some((ResourceId::new("/group"), name.to_owned())),
    }
}

#[test]
fn rules_keep_their_numbers() {
    let log = FlowLog::default();
    let (a, b) = (log.number(rule("a")), log.number(rule("b")));
    assert_ne!(a, b);
    assert_eq!(log.number(rule("a")), a);
    assert_eq!(*log.rule(a).unwrap(), rule("a"));
    assert_eq!(log.rule(0), None);
    assert_eq!(log.rule(b + 1), None);
}

/// A lane never waits for the writer: events that find no room are lost, and counted.
#[test]
fn d38_lost_events_are_counted() {
    let shared = Arc::new(FlowLog::default());
    let mut lane = LaneLog::new(shared.clone(), 1);
    for n in 0..QUEUE + 10 {
        let port = u16::try_from(n).unwrap();
        lane.send(event(FlowEventKind::Begin, now(), key(port), 1));
    }
    assert_eq!(shared.lost(), 10);
    let mut ports = Vec::new();
    assert_eq!(shared.drain(|event| ports.push(usize::from(event.key.ports.0))), QUEUE);
    assert!(ports.into_iter().eq(0..QUEUE));
    drop(lane);
    assert_eq!(shared.drain(|_| ()), 0);
    assert!(shared.queues.lock().unwrap().is_empty(), "the lane is gone");
}
