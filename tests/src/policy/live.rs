//! Asks all questions about a policy of a running lab: the answers of the controller's `explain` and IP flow verify,
//! real connections between the machines, and the counters of rules at the agents must agree. Needs root.

use super::in_process::{Tally, growth};
use super::prediction::{Counters, Prediction, decision, text};
use super::{CLIENT_PORT, PORTS, Policy, Port, Question};
use crate::live::World;
use crate::operation::Protocol;
use anyhow::{Context, Result, bail, ensure};
use futures::stream::{StreamExt, TryStreamExt, iter};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombolo_engine::security::RuleName;
use tombolo_lab::echo::{self, EchoServer};
use tombolo_lab::host::inside;
use tombolo_lab::probe::Ping;
use tombolo_proto::config::Direction;
use tombolo_proto::status::AgentStatus;
use tombolo_topology::explain::Explanation;

/// Time to wait for an answer that is not expected. It is shorter than the time after which the kernel repeats a SYN,
/// one second, so that rules mostly decide once.
const SILENCE: Duration = Duration::from_millis(600);

/// Time to wait for an expected answer. It is long because the machine may be busy.
const ANSWER: Duration = Duration::from_secs(10);

/// Time after which a UDP datagram whose answer is expected is repeated.
const REPEAT: Duration = Duration::from_millis(500);

/// Largest number of times that the kernel can send one TCP packet while nobody answers. A SYN is repeated after 1 s
/// and 3 s (RFC 6298), and an attempt ends long before unless the machine is very busy.
const MOST_SENT: u64 = 3;

/// Longest time until the controller must have the counters of all agents. Agents report every 2 s.
const REPORTED: Duration = Duration::from_secs(15);

/// Number of requests to the controller at the same time.
const REQUESTS: usize = 8;

/// Brings up a lab for a policy, asks all questions, and takes the lab down. `name` is the name of the lab. If the
/// agents have the same state as before, a repeated call gives the same result.
///
/// # Errors
/// The first difference between prediction and observation, or the lab fails.
pub async fn check(policy: &Policy, name: &str) -> Result<Tally> {
    let world = World::of(&policy.topology(name)?).await?;
    let servers = servers(&world, policy)?;
    let mut tally = Tally::default();
    let mut repeated = BTreeSet::new();
    for port in PORTS {
        let asked = ask(&world, policy, port, &mut repeated, &mut tally).await;
        asked.with_context(|| format!("seed {}: {port:?}", policy.seed))?;
    }
    reported(&world, policy).await.context("the controller's counters")?;
    drop(servers);
    world.down()?;
    Ok(tally)
}

/// Servers at all ports and addresses of all machines, which run until they are dropped.
fn servers(world: &World, policy: &Policy) -> Result<Vec<EchoServer>> {
    let mut servers = Vec::new();
    for machine in &policy.machines {
        let netns = world.hosts().netns(&machine.name);
        for address in &machine.addresses {
            for port in PORTS {
                let port = match port {
                    Port(Protocol::Tcp, number) => echo::Port::Tcp(number),
                    Port(Protocol::Udp, number) => echo::Port::Udp(number),
                    // The kernel answers echo requests.
                    Port(Protocol::Icmp, _) => continue,
                };
                servers.push(EchoServer::start(&netns, *address, port)?);
            }
        }
    }
    Ok(servers)
}

/// Asks all questions about one port. The packets of all of them are sent at the same time. `repeated` has the rules
/// that decide about packets that a kernel may still repeat. The function adds the rules of this port's packets.
async fn ask(
    world: &World,
    policy: &Policy,
    port: Port,
    repeated: &mut BTreeSet<RuleName>,
    tally: &mut Tally,
) -> Result<()> {
    let questions: Vec<Question<'_>> = policy.questions(port).collect();
    let explained = iter(&questions).map(|q| explain(world, q)).buffered(REQUESTS);
    let explained: Vec<Explanation> = explained.try_collect().await?;
    let predictions: Vec<Prediction> = explained.iter().map(Prediction::of).collect();
    if port.0 != Protocol::Icmp {
        let verified = iter(questions.iter().zip(&explained)).map(|(q, answer)| verify_flow(world, q, answer));
        let verified: Vec<u32> = verified.buffered(REQUESTS).try_collect().await?;
        tally.verified += verified.iter().sum::<u32>();
    }
    let before = counters(world, policy).await?;
    let observed = iter(questions.iter().zip(&predictions)).map(|(q, p)| attempt(world, q, p.reachable));
    let observed: Vec<bool> = observed.buffered(questions.len().max(1)).try_collect().await?;
    let counted = growth(&before, &counters(world, policy).await?);

    let mut problems = Vec::new();
    let mut bounds = Bounds::default();
    for (index, question) in questions.iter().enumerate() {
        let (answer, prediction) = (&explained[index], &predictions[index]);
        tally.count(question, answer, prediction);
        if observed[index] != prediction.reachable {
            let happened = if observed[index] { "it answers" } else { "no answer" };
            problems.push(format!("{question}: {happened}, but explain says: {}", answer.summary));
        }
        bounds.add(port, prediction);
        if let Some(denied) = &prediction.denied
            && port.0 == Protocol::Tcp
            && answer.request.delivered
        {
            // The server repeats its SYN with ACK for a minute.
            repeated.extend(denied.rules.iter().cloned());
        }
    }
    problems.extend(bounds.compare(&counted, repeated));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// How often rules must decide.
#[derive(Debug, Default)]
struct Bounds {
    /// The smallest and the largest number for each rule.
    rules: BTreeMap<RuleName, (u64, u64)>,
}

impl Bounds {
    /// Adds the decisions about the packets of one attempt.
    fn add(&mut self, port: Port, prediction: &Prediction) {
        let most = if port.0 == Protocol::Tcp { MOST_SENT } else { 1 };
        let once = prediction.allowed.iter().map(|decision| (decision, 1));
        let repeated = prediction.denied.iter().map(|decision| (decision, most));
        for (decision, most) in once.chain(repeated) {
            for rule in &decision.rules {
                let bounds = self.rules.entry(rule.clone()).or_default();
                *bounds = (bounds.0 + 1, bounds.1 + most);
            }
        }
    }

    /// The rules that have counted another number of packets. Those of `repeated` may have counted more.
    fn compare(&self, counted: &Counters, repeated: &BTreeSet<RuleName>) -> Vec<String> {
        let rules: BTreeSet<&RuleName> = self.rules.keys().chain(counted.keys()).collect();
        let wrong = rules.into_iter().filter_map(|rule| {
            let (least, most) = self.rules.get(rule).copied().unwrap_or_default();
            let most = if repeated.contains(rule) { u64::MAX } else { most };
            let seen = counted.get(rule).copied().unwrap_or_default();
            let text = format!(
                "{} {:?} {} {}: counted {seen} packets, expected {least} to {most}",
                rule.nic.name(),
                rule.direction,
                rule.group.name(),
                rule.rule
            );
            (!(least..=most).contains(&seen)).then_some(text)
        });
        wrong.collect()
    }
}

async fn explain(world: &World, question: &Question<'_>) -> Result<Explanation> {
    let answer = world.client()?.explain(&question.explain_request()).await;
    let answer = answer.with_context(|| format!("explain {question}"))?;
    let answer: Explanation = serde_json::from_value(answer).with_context(|| format!("explain {question}"))?;
    ensure!(answer.source == question.source, "explain sends from {}", answer.source);
    Ok(answer)
}

/// Asks Network Watcher about the NICs at the two ends, and compares its answers with the rules that `explain` names
/// there (M4). Returns the number of compared answers.
async fn verify_flow(world: &World, question: &Question<'_>, answer: &Explanation) -> Result<u32> {
    let (first, last) = (answer.request.hops.first(), answer.request.hops.last());
    let client = (question.source, CLIENT_PORT.to_string());
    let server = (question.destination, question.port.1.to_string());
    // `explain` names no rules at an end that the packet does not pass.
    let passes_first = answer.request.hops.len() > 1;
    let ends = [
        (
            Direction::Outbound,
            question.from,
            &client,
            &server,
            first,
            passes_first,
        ),
        (
            Direction::Inbound,
            question.to,
            &server,
            &client,
            last,
            answer.request.delivered,
        ),
    ];
    let mut compared = 0;
    for (direction, machine, local, remote, hop, passes) in ends {
        let nic = world.group().item("networkInterfaces", &machine.nic());
        let body = json!({
            "targetResourceId": world.group().vm(&machine.name),
            "targetNicResourceId": nic,
            "direction": direction,
            "protocol": if question.port.0 == Protocol::Tcp { "TCP" } else { "UDP" },
            "localIPAddress": local.0,
            "localPort": local.1,
            "remoteIPAddress": remote.0,
            "remotePort": remote.1,
        });
        let said = world.client()?.arm_post(&watcher(), &body).await;
        let said = said.with_context(|| format!("ipFlowVerify {body}"))?;
        let check = hop.and_then(|hop| hop.security.as_ref());
        let check = check.filter(|check| check.direction == direction && check.at.as_str().eq_ignore_ascii_case(&nic));
        let expected = match check.and_then(decision) {
            Some(decided) => json!({"access": decided.access, "ruleName": decided.rules.last().map(|rule| &rule.rule)}),
            // N5: no group applies.
            None if passes => json!({"access": "Allow", "ruleName": Value::Null}),
            None => continue,
        };
        ensure!(
            said == expected,
            "{question}: ipFlowVerify {body} says {said}, explain {expected}"
        );
        compared += 1;
    }
    Ok(compared)
}

/// The path of the action `ipFlowVerify` of the region's watcher.
fn watcher() -> String {
    let subscription = tombolo_client::path::DEFAULT_SUBSCRIPTION;
    format!(
        "/subscriptions/{subscription}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1/ipFlowVerify"
    )
}

/// The counters of all agents at this moment, as the agents themselves report them.
async fn counters(world: &World, policy: &Policy) -> Result<Counters> {
    let mut counters = Counters::new();
    for machine in &policy.machines {
        add(&mut counters, &world.agent_status(&machine.name).await?);
    }
    Ok(counters)
}

fn add(counters: &mut Counters, status: &AgentStatus) {
    for hits in &status.rule_hits {
        let name = RuleName {
            nic: hits.nic.clone(),
            group: hits.group.clone(),
            direction: hits.direction,
            rule: hits.rule.clone(),
        };
        *counters.entry(name).or_default() += hits.packets;
    }
}

/// Waits until the controller has the counters of all agents.
async fn reported(world: &World, policy: &Policy) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut known = Counters::new();
        for agent in world.client()?.agents().await? {
            add(&mut known, &agent.status.context("an agent without a status")?);
        }
        let own = counters(world, policy).await?;
        if known == own {
            return Ok(());
        }
        ensure!(
            start.elapsed() < REPORTED,
            "controller: {}\nagents: {}",
            text(&known),
            text(&own)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Sends the packets of a question. Returns whether an answer has come. If `expected` is false, each packet is sent
/// once, except that the kernel may repeat a SYN.
async fn attempt(world: &World, question: &Question<'_>, expected: bool) -> Result<bool> {
    let limit = if expected { ANSWER } else { SILENCE };
    let netns = world.hosts().netns(&question.from.name);
    let from = SocketAddr::new(question.source, CLIENT_PORT);
    let to = SocketAddr::new(question.destination, question.port.1);
    let text = question.to_string();
    match question.port.0 {
        Protocol::Icmp => ping(world, question, limit).await,
        Protocol::Tcp => blocking(netns, text, move |netns| connect(netns, from, to, limit)).await,
        Protocol::Udp => {
            // A datagram without an expected answer is not repeated.
            let repeat = if expected { REPEAT } else { limit * 2 };
            blocking(netns, text, move |netns| exchange(netns, from, to, (limit, repeat))).await
        }
    }
}

async fn blocking(
    netns: PathBuf,
    text: String,
    attempt: impl FnOnce(&Path) -> Result<bool> + Send + 'static,
) -> Result<bool> {
    let done = tokio::task::spawn_blocking(move || attempt(&netns)).await?;
    done.with_context(|| text)
}

async fn ping(world: &World, question: &Question<'_>, limit: Duration) -> Result<bool> {
    let how = Ping {
        count: 1,
        timeout: limit,
        ..Ping::REACHABLE
    };
    let to: IpAddr = question.destination;
    match world.ping(&question.from.name, &to.to_string(), how).await {
        Ok(pinged) => Ok(pinged.received > 0),
        Err(error) if is_refused(&format!("{error:#}")) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `ping` could not send, because the kernel of the source has no route, or drops the packet by a rule.
fn is_refused(text: &str) -> bool {
    ["unreachable", "not permitted", "Permission denied"]
        .iter()
        .any(|why| text.contains(why))
}

/// Whether the kernel of the source refuses to send, or a router answers that it has no route.
fn is_unreachable(error: &std::io::Error) -> bool {
    use ErrorKind::{HostUnreachable, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), HostUnreachable | NetworkUnreachable | PermissionDenied)
}

/// Opens a TCP connection from a port, exchanges a few bytes with the server, and closes the connection. False: nobody
/// has answered.
fn connect(netns: &Path, from: SocketAddr, to: SocketAddr, limit: Duration) -> Result<bool> {
    let connected = inside(netns, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // Connections to other servers have the same port.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), limit).map(|()| socket)
    })?;
    let mut stream = match connected {
        Ok(socket) => TcpStream::from(socket),
        Err(e) if e.kind() == ErrorKind::TimedOut || is_unreachable(&e) => return Ok(false),
        Err(e) => return Err(e).context("connecting"),
    };
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(WORDS)?;
    let mut back = [0; WORDS.len()];
    stream
        .read_exact(&mut back)
        .context("no echo over an open connection")?;
    ensure!(back == *WORDS, "the answer is {back:?}");
    Ok(true)
}

/// Sends a datagram from a port, and repeats it until an answer comes or `limit` is over. False: nobody has answered.
fn exchange(netns: &Path, from: SocketAddr, to: SocketAddr, (limit, repeat): (Duration, Duration)) -> Result<bool> {
    let socket = inside(netns, || {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        // The kernel tells the sockets with the same port apart by the servers to which they are connected.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect(&to.into()).map(|()| socket)
    })?;
    let socket = match socket {
        Ok(socket) => UdpSocket::from(socket),
        Err(e) if is_unreachable(&e) => return Ok(false),
        Err(e) => return Err(e).context("a UDP socket"),
    };
    socket.set_read_timeout(Some(repeat))?;
    let start = Instant::now();
    while start.elapsed() < limit {
        match socket.send(WORDS) {
            Ok(_) => {}
            Err(e) if is_unreachable(&e) => return Ok(false),
            Err(e) => return Err(e).context("sending"),
        }
        let mut back = [0; 64];
        match socket.recv(&mut back) {
            Ok(n) if back[..n] == *WORDS => return Ok(true),
            Ok(n) => bail!("the answer is {:?}", &back[..n]),
            // The kernel does not restart a receive call that has a timeout (signal(7)).
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) if is_unreachable(&e) => return Ok(false),
            Err(e) => return Err(e).context("receiving"),
        }
    }
    Ok(false)
}

/// The bytes that attempts send.
const WORDS: &[u8; 5] = b"hello";
