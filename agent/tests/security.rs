//! Security groups at running agents with one and with several lanes: flows and counters, a planned restart, and a
//! crash (N6, D33, D34).
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, config, eventually};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tombolo_agent::state::file;
use tombolo_proto::config::Security;

/// The second host, which has the group, and ports of its servers.
const SERVER: [u8; 4] = [10, 1, 0, 5];
const ALLOWED: u16 = 7000;
const DENIED: u16 = 7001;

/// Longest time for which a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest time for which a client waits for the answer to one datagram.
const DATAGRAM_PAUSE: Duration = Duration::from_millis(400);

/// Numbers of lanes of the client's agent and of the server's agent.
const LANES: [[u16; 2]; 4] = [[1, 1], [4, 4], [1, 4], [4, 1]];

/// Runs `action` in the network namespace of a host, on a thread of its own.
fn inside<T: Send>(wire: &Wire, side: usize, action: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{}", wire.ns[side])).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

/// Servers on both ports, of TCP and UDP, that send back what they receive. They run until the value is dropped.
struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    fn start(wire: &Wire) -> Self {
        let bind = |port| {
            let at = SocketAddr::from((SERVER, port));
            let (tcp, udp) = inside(wire, 1, || {
                (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
            });
            tcp.set_nonblocking(true).unwrap();
            udp.set_nonblocking(true).unwrap();
            (tcp, udp)
        };
        let sockets = [ALLOWED, DENIED].map(bind);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                for (tcp, udp) in &sockets {
                    if let Ok((stream, _)) = tcp.accept() {
                        stream.set_nonblocking(true).unwrap();
                        open.push(stream);
                    }
                    if let Ok((n, from)) = udp.recv_from(&mut buffer) {
                        // The route to the client is missing while the agent restarts.
                        let _ = udp.send_to(&buffer[..n], from);
                    }
                }
                open.retain_mut(|stream| match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
                    Err(e) => e.kind() == ErrorKind::WouldBlock,
                });
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a connection of the first host. `None`: nobody answers within 1.2 s.
fn connect(wire: &Wire, port: u16) -> Option<TcpStream> {
    let to = SocketAddr::from((SERVER, port));
    let stream = inside(wire, 0, || TcpStream::connect_timeout(&to, Duration::from_millis(1200))).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Whether the server sends back a few bytes over an open connection.
fn answers(mut stream: &TcpStream) -> bool {
    let mut back = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"hello"
}

/// A socket of the first host whose datagrams are one flow.
struct Datagrams {
    socket: UdpSocket,
    sent: u8,
}

impl Datagrams {
    fn open(wire: &Wire, port: u16) -> Self {
        let socket = inside(wire, 0, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.connect(SocketAddr::from((SERVER, port))).unwrap();
        socket.set_read_timeout(Some(DATAGRAM_PAUSE)).unwrap();
        Self { socket, sent: 0 }
    }

    /// Whether the server sends back a datagram. A lane of the sender whose peer has restarted with fewer lanes loses
    /// datagrams until it notices that nobody answers, so this waits as long as for TCP.
    fn answers(&mut self) -> bool {
        self.is_one_answered(PATIENCE.as_millis() / DATAGRAM_PAUSE.as_millis())
    }

    /// Whether the server sends back none of three datagrams.
    fn is_silent(&mut self) -> bool {
        !self.is_one_answered(3)
    }

    /// Whether the server sends back one of `number` datagrams. Late answers to earlier calls do not count.
    fn is_one_answered(&mut self, number: u128) -> bool {
        let first = self.sent;
        for _ in 0..number {
            let _ = self.socket.send(&[self.sent]);
            self.sent += 1;
            let mut back = [0; 8];
            while let Ok(n) = self.socket.recv(&mut back) {
                if n == 1 && (first..self.sent).contains(&back[0]) {
                    return true;
                }
            }
        }
        false
    }
}

/// The group of the second host. Inbound it allows everything, or with `denies` no new flow to the port [`DENIED`] and
/// beyond. Outbound it allows everything, or nothing if `quiet`.
fn group(denies: bool, quiet: bool, reevaluate: bool) -> Security {
    let ports = |first: u16| json!([{"first": first, "last": 65_535}]);
    let rule = |name: &str, priority: u16, direction: &str, access: &str, first: u16| {
        json!({
            "name": format!("securityRules/{name}"), "priority": priority, "direction": direction, "access": access,
            "protocol": "*", "source": "any", "sourcePorts": ports(0), "destination": "any",
            "destinationPorts": ports(first),
        })
    };
    let mut rules = Vec::new();
    if denies {
        rules.push(rule("deny", 100, "Inbound", "Deny", DENIED));
    }
    rules.push(rule("allow", 200, "Inbound", "Allow", 0));
    rules.push(rule("out", 200, "Outbound", if quiet { "Deny" } else { "Allow" }, 0));
    let security = json!({
        "groups": [{"id": "/web", "rules": rules}],
        "nics": [{"id": "/nics/1", "prefixes": ["10.1.0.5/32", "fd00:1::5/128"], "subnet": "/vnets/v/subnets/s",
            "nicGroup": "/web"}],
        "reevaluate": reevaluate,
    });
    serde_json::from_value(security).unwrap()
}

/// Stores the configuration of both hosts. The second one has the group.
fn remember(hosts: &[Host; 2], security: Security) {
    for side in 0..2 {
        let mut config = config(side, [&hosts[0], &hosts[1]]);
        config.security = (side == 1).then(|| security.clone());
        hosts[side].remember(config);
    }
}

/// Two hosts with these numbers of lanes, whose agents run and have a link.
fn pair(wire: &Wire, lanes: [u16; 2], security: Security) -> [Host; 2] {
    let mut hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for (host, lanes) in hosts.iter_mut().zip(lanes) {
        host.config.lanes = lanes;
        host.config.save(&host.state).unwrap();
    }
    remember(&hosts, security);
    hosts.iter_mut().for_each(Host::start);
    eventually("the link is up", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    hosts
}

/// How often a rule decided at a host.
fn hits(host: &Host, rule: &str) -> u64 {
    let status = host.status().unwrap();
    let all = status["status"]["ruleHits"].as_array().cloned().unwrap_or_default();
    let of_rule = all.iter().filter(|hit| hit["rule"] == format!("securityRules/{rule}"));
    of_rule.map(|hit| hit["packets"].as_u64().unwrap()).sum()
}

/// N6, D33: replies need no rule, and each flow is counted once, whatever lanes its packets pass.
#[test]
fn n6_d33_flows_and_counters_are_right_with_any_number_of_lanes() {
    for lanes in LANES {
        let wire = Wire::new("nsglanes");
        let hosts = pair(&wire, lanes, group(true, true, false));
        let servers = Servers::start(&wire);
        // Connections from before the start are adopted for a minute. These are new ones.
        let before = hits(&hosts[1], "allow");
        let connections: Vec<_> = (0..24).map(|_| connect(&wire, ALLOWED).expect("allowed")).collect();
        for round in 0..3 {
            assert!(connections.iter().all(answers), "{lanes:?}, round {round}");
        }
        let mut datagrams: Vec<_> = (0..24).map(|_| Datagrams::open(&wire, ALLOWED)).collect();
        assert!(datagrams.iter_mut().all(Datagrams::answers), "{lanes:?}");
        eventually("each flow is counted", || hits(&hosts[1], "allow") - before >= 48);
        assert!(Datagrams::open(&wire, DENIED).is_silent(), "{lanes:?}");
        eventually("denied datagrams are counted", || hits(&hosts[1], "deny") >= 3);
        assert_eq!(hits(&hosts[1], "allow") - before, 48, "{lanes:?}: once for each flow");
        assert_eq!(hits(&hosts[1], "deny"), 3, "{lanes:?}: once for each datagram");
        assert!(connect(&wire, DENIED).is_none(), "{lanes:?}");
        drop(servers);
    }
}

/// D34: flows that the present rules would not allow survive a planned restart, also with another number of lanes.
/// After a crash, only TCP connections go on. With `reevaluate`, the present rules decide about the flows of the
/// previous process.
#[test]
fn d34_flows_survive_a_planned_restart_and_not_a_crash() {
    for lanes in [[1, 1], [4, 4]] {
        let wire = Wire::new("nsgrestart");
        let mut hosts = pair(&wire, lanes, group(false, false, false));
        let servers = Servers::start(&wire);
        let connection = connect(&wire, DENIED).expect("allowed at first");
        let mut datagrams = Datagrams::open(&wire, DENIED);
        assert!(answers(&connection), "{lanes:?}: TCP at first");
        assert!(datagrams.answers(), "{lanes:?}: UDP at first");

        // The number of lanes changes too.
        remember(&hosts, group(true, false, false));
        assert!(hosts[1].stop(Signal::SIGTERM));
        assert!(hosts[1].state.path(file::FLOWS).exists());
        hosts[1].config.lanes = 5 - lanes[1];
        hosts[1].config.save(&hosts[1].state).unwrap();
        hosts[1].start();
        assert!(!hosts[1].state.path(file::FLOWS).exists());
        assert!(answers(&connection), "{lanes:?}: TCP");
        assert!(datagrams.answers(), "{lanes:?}: UDP");
        assert!(connect(&wire, DENIED).is_none(), "{lanes:?}: a SYN");
        assert!(Datagrams::open(&wire, DENIED).is_silent(), "{lanes:?}: another flow");

        hosts[1].stop(Signal::SIGKILL);
        assert!(!hosts[1].state.path(file::FLOWS).exists());
        hosts[1].start();
        assert!(answers(&connection), "{lanes:?}: TCP is adopted");
        assert!(datagrams.is_silent(), "{lanes:?}: UDP after a crash");
        assert!(connect(&wire, DENIED).is_none(), "{lanes:?}: a SYN after a crash");

        // The connection was adopted as one that the server began. This test needs one that the client began.
        remember(&hosts, group(false, false, false));
        assert!(hosts[1].stop(Signal::SIGTERM));
        hosts[1].start();
        let connection = (0..8).find_map(|_| connect(&wire, DENIED)).expect("allowed again");
        assert!(answers(&connection), "{lanes:?}: TCP allowed again");
        assert!(datagrams.answers(), "{lanes:?}: UDP allowed again");
        remember(&hosts, group(true, false, true));
        assert!(hosts[1].stop(Signal::SIGTERM));
        hosts[1].start();
        let is_up = (0..8).any(|_| connect(&wire, ALLOWED).is_some());
        assert!(is_up, "{lanes:?}: the link is up");
        assert!(datagrams.is_silent(), "{lanes:?}: UDP with reevaluate");
        connection.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(!answers(&connection), "{lanes:?}: TCP with reevaluate");
        drop(servers);
    }
}
