//! Actions and checks for steps about two appliances behind a load balancer with HA ports: which of the two the packets of a
//! flow pass, counted at the appliances' devices.

use super::report::seconds;
use super::stage::Stage;
use crate::echo::{Connection, Datagrams, EchoServer, Port};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Number of flows for each port. If two appliances share the flows of two ports, the probability that one of them gets
/// none is 1 in 8 million.
const FLOWS: usize = 12;

/// Number of requests in each flow. Each has a reply, so the appliance of a flow gets at least twice as many packets.
const EXCHANGES: u64 = 10;

/// Longest time that a change of the appliances' health may take until new flows follow it. Appliances are probed every
/// five seconds. The rest of the time is for a busy machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(40);

/// Time between two attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Start of the name of an agent's device.
const DEVICE: &str = "tl-";

/// Two appliances, each with a server at the port that is probed.
pub(super) struct Pair {
    hosts: [&'static str; 2],
    probed: Port,
    servers: [Option<EchoServer>; 2],
}

/// An open flow of either protocol.
enum Flow {
    Tcp(Connection),
    Udp(Datagrams),
}

impl Flow {
    /// Sends [`EXCHANGES`] requests, and waits for the reply to each.
    fn exchange(&mut self) -> Result<()> {
        for _ in 0..EXCHANGES {
            match self {
                Self::Tcp(connection) => connection.exchange()?,
                Self::Udp(datagrams) => ensure!(datagrams.exchange()?, "no answer"),
            }
        }
        Ok(())
    }
}

impl Pair {
    /// Starts the servers that are probed.
    pub(super) fn start(s: &mut Stage<'_>, hosts: [&'static str; 2], probed: Port) -> Result<Self> {
        let mut pair = Self {
            hosts,
            probed,
            servers: [None, None],
        };
        for (host, server) in hosts.into_iter().zip(&mut pair.servers) {
            *server = Some(s.start_probed(host, probed)?);
        }
        Ok(pair)
    }
}

impl Stage<'_> {
    fn start_probed(&self, host: &str, port: Port) -> Result<EchoServer> {
        let started = EchoServer::start(&self.lab.hosts().netns(host), self.address(host)?, port);
        started.with_context(|| format!("{host} {port}"))
    }

    /// Opens or closes the probed port of an appliance. Its kernel goes on forwarding.
    pub(super) fn set_appliance(&mut self, pair: &mut Pair, number: usize, open: bool) -> Result<()> {
        let host = *pair.hosts.get(number).context("no such appliance")?;
        let server = pair.servers.get_mut(number).context("no such appliance")?;
        *server = None;
        if open {
            *server = Some(self.start_probed(host, pair.probed)?);
        }
        let verb = if open { "opens" } else { "closes" };
        let what = format!("{host} {verb} {}, which is probed every 5 s", pair.probed);
        self.report.act(&what, "");
        Ok(())
    }

    /// Adds a route whose next hop is the address `appliance`, and waits until it is in force.
    pub(super) async fn route_to(&mut self, table: &str, name: &str, prefix: &str, appliance: &str) -> Result<()> {
        let path = self.lab.group().item("routeTables", table);
        let body = json!({"properties": {
            "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": appliance,
        }});
        let what = format!("PUT {table}/{name} {prefix} → {appliance}");
        self.put(&what, &format!("{path}/routes/{name}"), &body).await
    }

    /// Adds a route whose next hop type is `None`, and waits until it is in force.
    pub(super) async fn black_hole(&mut self, table: &str, name: &str, prefix: &str) -> Result<()> {
        let path = self.lab.group().item("routeTables", table);
        let body = json!({"properties": {"addressPrefix": prefix, "nextHopType": "None"}});
        let what = format!("PUT {table}/{name} {prefix} → None");
        self.put(&what, &format!("{path}/routes/{name}"), &body).await
    }

    /// Checks that a flow passes neither appliance.
    pub(super) async fn passes_none(&mut self, pair: &Pair, (from, to): (&str, &str), port: Port) -> Result<()> {
        let what = format!("{from} → {to} {port} passes neither appliance");
        let mut flow = self.flow(from, to, port)?;
        let counted = self.count(pair, &mut flow)?;
        let good = counted.iter().all(|n| *n < EXCHANGES);
        let seen = if good {
            String::new()
        } else {
            format!("packets: {counted:?}")
        };
        self.report.check(&what, good, &seen);
        Ok(())
    }

    /// Waits until new flows between two hosts pass exactly the appliances for which `expected` is true, and both directions
    /// of each flow pass the same one.
    pub(super) async fn pass(
        &mut self,
        pair: &Pair,
        (from, to): (&str, &str),
        ports: &[Port],
        expected: [bool; 2],
    ) -> Result<()> {
        let hosts = pair.hosts.into_iter().zip(expected);
        let hosts: Vec<_> = hosts.filter_map(|(host, wanted)| wanted.then_some(host)).collect();
        let what = format!("flows {from} → {to} pass {}", hosts.join(" or "));
        self.report.progress().set_activity(format!("waiting: {what}"));
        let start = Instant::now();
        loop {
            let mut flows = [0, 0];
            let mut packets = [0, 0];
            let mut problem = String::new();
            for port in ports {
                for _ in 0..FLOWS {
                    match self.one_appliance(pair, from, to, *port) {
                        Ok((number, counted)) => {
                            for (i, (flows, packets)) in flows.iter_mut().zip(&mut packets).enumerate() {
                                *flows += usize::from(i == number);
                                *packets += if i == number { counted } else { 0 };
                            }
                        }
                        Err(e) => problem = format!("{port}: {e:#}"),
                    }
                }
            }
            let good = problem.is_empty() && flows.map(|n| n > 0) == expected;
            if good || start.elapsed() > SETTLE_TIMEOUT {
                let all = pair.hosts.into_iter().zip(flows).zip(packets);
                let all = all.filter(|((_, flows), _)| *flows > 0);
                let all: Vec<_> = all
                    .map(|((host, flows), packets)| format!("{host} {flows} ({packets} packets)"))
                    .collect();
                let seen = format!("{}{problem}, after {}", all.join(", "), seconds(start.elapsed()));
                self.report.check(&what, good, &seen);
                if good {
                    self.report
                        .dim("        both directions of each flow pass the same one");
                }
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Opens a TCP connection that passes the appliance `number`.
    pub(super) async fn connection_through(
        &mut self,
        pair: &Pair,
        number: usize,
        (from, to): (&str, &str),
        port: Port,
    ) -> Result<Connection> {
        let host = *pair.hosts.get(number).context("no such appliance")?;
        for _ in 0..2 * FLOWS {
            let mut flow = self.flow(from, to, port)?;
            if self.appliance_of(pair, &mut flow)?.0 == number
                && let Flow::Tcp(connection) = flow
            {
                self.report
                    .act(&format!("{from} opens a connection to {to}, through {host}"), "");
                return Ok(connection);
            }
        }
        anyhow::bail!("no connection passes {host}")
    }

    /// Checks that `explain` takes the request and the reply through the same appliance.
    pub(super) async fn explain_passes(&mut self, pair: &Pair, (from, to): (&str, &str), port: Port) -> Result<()> {
        let said = self.explain_port(from, to, port).await?;
        let passed = |walk: &Value| {
            let hops = walk["hops"].as_array().cloned().unwrap_or_default();
            let agents: Vec<_> = hops.iter().filter_map(|hop| hop["agent"].as_str()).collect();
            pair.hosts
                .into_iter()
                .filter(|host| agents.contains(host))
                .collect::<Vec<_>>()
        };
        let (there, back) = (passed(&said["request"]), passed(&said["reply"]));
        let good = said["reachable"] == true && there.len() == 1 && there == back;
        let what = format!("explain {from} {to} {port} passes one appliance, there and back");
        let summary = said["summary"].as_str().unwrap_or_default();
        let seen = if good {
            there.join(", ")
        } else {
            format!("{there:?}, {back:?}: {summary}")
        };
        self.report.check(&what, good, &seen);
        Ok(())
    }

    fn one_appliance(&self, pair: &Pair, from: &str, to: &str, port: Port) -> Result<(usize, u64)> {
        let mut flow = self.flow(from, to, port)?;
        self.appliance_of(pair, &mut flow)
    }

    /// The appliance that all packets of a flow pass, and the number of packets. Fails if there is no such appliance.
    fn appliance_of(&self, pair: &Pair, flow: &mut Flow) -> Result<(usize, u64)> {
        let counted = self.count(pair, flow)?;
        // Probes are packets too: a few every five seconds.
        let [first, second] = counted.map(|n| n >= 2 * EXCHANGES);
        let few = counted.map(|n| n < EXCHANGES);
        match (first, second, few) {
            (true, false, [_, true]) => Ok((0, counted[0])),
            (false, true, [true, _]) => Ok((1, counted[1])),
            _ => anyhow::bail!("{EXCHANGES} requests with replies, and the appliances got {counted:?} packets"),
        }
    }

    /// Exchanges data over a flow, and returns how many packets the agent of each appliance has meanwhile passed to its
    /// kernel.
    fn count(&self, pair: &Pair, flow: &mut Flow) -> Result<[u64; 2]> {
        let [a, b] = pair.hosts;
        let before = [self.received(a)?, self.received(b)?];
        tokio::task::block_in_place(|| flow.exchange())?;
        let after = [self.received(a)?, self.received(b)?];
        let [first, second] = after;
        let [first_before, second_before] = before;
        Ok([first - first_before, second - second_before])
    }

    /// Number of packets that the kernel of a host has received from its agent.
    fn received(&self, host: &str) -> Result<u64> {
        let text = self.lab.hosts().run(host, &["ip", "-s", "-j", "link", "show"])?;
        let devices: Value = serde_json::from_str(&text).with_context(|| format!("devices of {host}"))?;
        let all = devices.as_array().map(Vec::as_slice).unwrap_or_default();
        let of_agent = all
            .iter()
            .filter(|d| d["ifname"].as_str().is_some_and(|name| name.starts_with(DEVICE)));
        let packets = of_agent.map(|d| d.pointer("/stats64/rx/packets").and_then(Value::as_u64));
        let packets: Option<Vec<u64>> = packets.collect();
        let packets = packets.filter(|all| !all.is_empty());
        Ok(packets
            .with_context(|| format!("{host} has no device of an agent"))?
            .iter()
            .sum())
    }

    fn flow(&self, from: &str, to: &str, port: Port) -> Result<Flow> {
        let (netns, address) = (self.lab.hosts().netns(from), self.address(to)?);
        match port {
            Port::Tcp(number) => {
                let to = SocketAddr::new(address, number);
                let opened = tokio::task::block_in_place(|| Connection::open(&netns, to))?;
                Ok(Flow::Tcp(opened.with_context(|| format!("{to} does not answer"))?))
            }
            Port::Udp(number) => Ok(Flow::Udp(Datagrams::open(&netns, SocketAddr::new(address, number))?)),
        }
    }
}
