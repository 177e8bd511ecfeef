//! Actions and checks for steps about load balancers: which of two back ends take new connections, how long connections
//! take to open, what the controller says of the back ends' health, and what `explain` says of a packet to a front end.

use super::report::seconds;
use super::stage::Stage;
use crate::echo::{self, Connection, EchoServer, Port};
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Number of connections of an attempt. If two back ends share new connections, the probability that one of them gets
/// none of these is 1 in 8 million.
const CONNECTIONS: usize = 24;

/// Longest time that a change of the health of back ends may take until new connections follow it. Back ends are probed
/// every five seconds. The rest of the time is for a busy machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(40);

/// Time between two attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Number of connections whose times are measured for each address.
const SAMPLES: usize = 20;

/// A host with a server at the port of a service, and with another one at the port of the service's health probe.
pub(super) struct BackEnd {
    pub(super) host: &'static str,
    service: EchoServer,
    probed: u16,
    health: Option<EchoServer>,
}

/// A client, and the front end of a load balancer with two back ends.
pub(super) struct Balanced {
    pub(super) client: &'static str,
    pub(super) front: SocketAddr,
    pub(super) back_ends: [BackEnd; 2],
}

impl Balanced {
    /// Number of connections that each back end has accepted so far.
    fn served(&self) -> [usize; 2] {
        self.back_ends.each_ref().map(|back_end| back_end.service.served())
    }

    fn hosts(&self) -> [&'static str; 2] {
        self.back_ends.each_ref().map(|back_end| back_end.host)
    }
}

/// What became of [`CONNECTIONS`] new connections to a front end.
struct Attempt {
    answered: usize,
    /// Number of the connections that each back end has accepted.
    by: [usize; 2],
}

impl Stage<'_> {
    /// Starts the server of a back end's service. The port `probed` stays closed, so the back end is down.
    pub(super) fn back_end(&self, host: &'static str, service: Port, probed: u16) -> Result<BackEnd> {
        let started = EchoServer::start(&self.lab.hosts().netns(host), self.address(host)?, service);
        Ok(BackEnd {
            host,
            service: started.with_context(|| format!("{host} {service}"))?,
            probed,
            health: None,
        })
    }

    /// Opens or closes the port that the health probe of a back end connects to. The service goes on.
    pub(super) fn set_health(&mut self, back_end: &mut BackEnd, open: bool) -> Result<()> {
        let (host, port) = (back_end.host, Port::Tcp(back_end.probed));
        back_end.health = None;
        if open {
            let started = EchoServer::start(&self.lab.hosts().netns(host), self.address(host)?, port);
            back_end.health = Some(started.with_context(|| format!("{host} {port}"))?);
        }
        let verb = if open { "opens" } else { "closes" };
        self.report
            .act(&format!("{host} {verb} {port}, which is probed every 5 s"), "");
        Ok(())
    }

    /// Waits until new connections to the front end go to exactly the back ends for which `expected` is true, and all are
    /// answered; if it is true for none, until none is answered.
    pub(super) async fn new_connections_go_to(&mut self, balanced: &Balanced, expected: [bool; 2]) -> Result<()> {
        let hosts = balanced.hosts().into_iter().zip(expected);
        let hosts: Vec<_> = hosts.filter_map(|(host, wanted)| wanted.then_some(host)).collect();
        let what = if hosts.is_empty() {
            "new connections to the front end get no answer".to_owned()
        } else {
            format!("new connections go to {}", hosts.join(" and "))
        };
        self.report.progress().set_activity(format!("waiting: {what}"));
        let wanted = if hosts.is_empty() { 0 } else { CONNECTIONS };
        let start = Instant::now();
        loop {
            let attempt = self.attempt(balanced).await?;
            let good = attempt.answered == wanted && attempt.by.map(|n| n > 0) == expected;
            if good || start.elapsed() > SETTLE_TIMEOUT {
                let seen = format!("{}, after {}", attempt.shown(balanced), seconds(start.elapsed()));
                self.report.check(&what, good, &seen);
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks that the other back end answers new connections while the machine or the agent of the back end `gone` does
    /// not work. Some connections may get no answer: then the client's agent does not know yet that the back end is gone.
    pub(super) async fn other_back_end_answers(&mut self, balanced: &Balanced, gone: &str) -> Result<()> {
        let lost = balanced.hosts().map(|host| host == gone);
        let rest = balanced.hosts().into_iter().find(|host| *host != gone);
        let what = format!("{} alone answers new connections", rest.unwrap_or("?"));
        self.report.progress().set_activity(&what);
        let attempt = self.attempt(balanced).await?;
        let of_lost: usize = attempt
            .by
            .into_iter()
            .zip(lost)
            .map(|(n, gone)| if gone { n } else { 0 })
            .sum();
        let good = attempt.answered > 0 && of_lost == 0;
        self.report.check(&what, good, &attempt.shown(balanced));
        Ok(())
    }

    /// Opens [`CONNECTIONS`] connections to the front end at the same time.
    async fn attempt(&self, balanced: &Balanced) -> Result<Attempt> {
        let before = balanced.served();
        let (netns, front) = (self.lab.hosts().netns(balanced.client), balanced.front);
        let opened = tokio::task::spawn_blocking(move || {
            std::thread::scope(|scope| {
                let open = || Connection::open(&netns, front);
                let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(open)).collect();
                let all = threads.into_iter().map(|thread| thread.join());
                all.collect::<Vec<_>>()
            })
        })
        .await?;
        // An error means that the connection was refused or has ended, which is no answer either.
        let answered = opened.iter().filter(|opened| matches!(opened, Ok(Ok(Some(_))))).count();
        let [a, b] = balanced.served();
        let [before_a, before_b] = before;
        Ok(Attempt {
            answered,
            by: [a - before_a, b - before_b],
        })
    }

    /// Opens connections to the front end until one is at the back end `host`. Returns this one. Fails if the back end
    /// accepts none of many.
    pub(super) async fn connection_at(&mut self, balanced: &Balanced, host: &str) -> Result<Connection> {
        let served = || {
            let of_hosts = balanced.back_ends.iter().filter(|back_end| back_end.host == host);
            of_hosts.map(|back_end| back_end.service.served()).sum::<usize>()
        };
        let to = (balanced.front.ip().to_string(), Port::Tcp(balanced.front.port()));
        for _ in 0..CONNECTIONS {
            let before = served();
            let connection = self.connection(balanced.client, &to.0, to.1).await?;
            if served() > before {
                self.report.act(
                    &format!("{} opens a connection, {host} has accepted it", balanced.client),
                    "",
                );
                return Ok(connection);
            }
        }
        anyhow::bail!("{host} accepts no connection to {}", balanced.front)
    }

    /// Measures how long TCP connections from `from` to each address take to open, prints the times, and checks that all
    /// opened, and none of them faster than `least`.
    pub(super) async fn latencies(
        &mut self,
        from: &str,
        to: &[(IpAddr, &str)],
        port: u16,
        least: Duration,
    ) -> Result<()> {
        self.report.progress().set_activity("measuring TCP connections");
        let netns = self.lab.hosts().netns(from);
        let line = |cells: [&str; 5]| {
            let [address, name, minimum, average, maximum] = cells;
            format!("      {address:<14}{name:<12}{minimum:>11}{average:>11}{maximum:>11}")
        };
        let mut fastest = Duration::MAX;
        let mut table = vec![line(["", "", "minimum", "average", "maximum"])];
        for (address, name) in to {
            let (netns, to) = (netns.clone(), SocketAddr::new(*address, port));
            let times = tokio::task::spawn_blocking(move || echo::connect_times(&netns, to, SAMPLES)).await??;
            let minimum = times.iter().min().copied().unwrap_or_default();
            let maximum = times.iter().max().copied().unwrap_or_default();
            let average = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX).max(1);
            fastest = fastest.min(minimum);
            let [minimum, average, maximum] = [minimum, average, maximum].map(seconds);
            table.push(line([&address.to_string(), name, &minimum, &average, &maximum]));
        }
        self.report.progress().idle();
        for line in table {
            self.report.line(&line);
        }
        let what = format!("{SAMPLES} TCP connections from {from} to each of them");
        let seen = format!("none faster than the line, {}", seconds(least));
        let good = fastest >= least;
        let seen = if good {
            seen
        } else {
            format!("one opened within {}", seconds(fastest))
        };
        self.report.check(&what, good, &seen);
        Ok(())
    }

    /// Checks that `explain` delivers a packet to a front end at one of `hosts`.
    pub(super) async fn explain_delivers(&mut self, from: &str, to: &str, port: Port, hosts: &[&str]) -> Result<()> {
        let said = self.explain_port(from, to, port).await?;
        let hops = said["request"]["hops"].as_array();
        let last = hops.and_then(|hops| hops.last()).unwrap_or(&Value::Null);
        let agent = last["agent"].as_str().unwrap_or_default();
        let summary = said["summary"].as_str().unwrap_or_default();
        let good = said["reachable"] == true && hosts.contains(&agent);
        let what = format!("explain {from} {to} {port} ends at {}", hosts.join(" or "));
        let seen = if good {
            last["verdict"].as_str().unwrap_or_default()
        } else {
            summary
        };
        self.report.check(&what, good, seen);
        Ok(())
    }

    /// Checks that `explain` names the rule `rule` as the reason why a packet to a front end is dropped.
    pub(super) async fn explain_stops(&mut self, from: &str, to: &str, port: Port, rule: &str) -> Result<()> {
        let said = self.explain_port(from, to, port).await?;
        let stop = &said["request"]["stop"];
        let summary = said["summary"].as_str().unwrap_or_default();
        let named = stop["rule"].as_str().unwrap_or_default();
        let good = named.split([',', ' ']).any(|part| part == rule);
        let what = format!("explain {from} {to} {port} names rule {rule}");
        self.report.check(&what, good, if good { "" } else { summary });
        if good {
            self.report.dim(&format!("        {summary}"));
        }
        Ok(())
    }

    /// Checks that the controller shows exactly the back ends `up` of a load-balancing rule as up, and prints the health of
    /// all. Waits for the agents' reports.
    pub(super) async fn health_is(&mut self, balancer: &str, rule: &str, up: &[&str]) -> Result<()> {
        let mut addresses = Vec::new();
        for host in up {
            addresses.push(self.address(host)?.to_string());
        }
        addresses.sort();
        let balancer_path = self.lab.group().item("loadBalancers", balancer);
        let path = format!("{balancer_path}/loadBalancingRules/{rule}/health");
        let what = format!("the controller shows {} of {balancer}'s back ends as up", up.len());
        self.report.progress().set_activity(&what);
        let start = Instant::now();
        loop {
            let health = self.lab.client()?.arm_post(&path, &Value::Null).await?;
            let members = health["loadBalancerBackendAddresses"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let text = |member: &Value, name: &str| member[name].as_str().unwrap_or_default().to_owned();
            let shown = members.iter().filter(|member| member["state"] == "Up");
            let mut shown: Vec<_> = shown.map(|member| text(member, "ipAddress")).collect();
            shown.sort();
            let good = shown == addresses;
            if good || start.elapsed() > SETTLE_TIMEOUT {
                self.report.check(&what, good, if good { "" } else { "others are up" });
                for member in &members {
                    let [address, state, reason] = ["ipAddress", "state", "reason"].map(|name| text(member, name));
                    self.report.dim(&format!("        {address:<14}{state:<6}{reason}"));
                }
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Attempt {
    /// How many connections were answered, and by which back ends.
    fn shown(&self, balanced: &Balanced) -> String {
        let parts = balanced.hosts().into_iter().zip(self.by);
        let parts: Vec<_> = parts.map(|(host, n)| format!("{host} {n}")).collect();
        format!("{} of {CONNECTIONS}: {}", self.answered, parts.join(", "))
    }
}
