//! The demo of an internal load balancer across regions: a client in one region, and two servers behind a front end in
//! another. The hosts and resources are those of the built-in topology `global`.

use super::balancing::Balanced;
use super::stage::Stage;
use crate::echo::{EchoServer, Port};
use crate::topology::Topology;
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const CLIENT: &str = "client";
const SIX: &str = "server-6";
const FOUR: &str = "server-4";
const NEIGHBOUR: &str = "neighbour";
const WEB: &str = "web";
const RULE: &str = "http";

/// Address of the front end of the load balancer `web`.
const FRONT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 36);
/// Address of the front end of the Basic load balancer.
const LOCAL_FRONT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 37);
/// Port of the front ends and of the servers.
const SITE: u16 = 80;
/// Port that the health probe connects to.
const HEALTH: u16 = 8080;

/// Returns the hosts and load balancers that the steps need and that the topology does not have, each as a text for an
/// error.
pub(super) fn missing(topology: &Topology) -> Vec<String> {
    let hosts = [CLIENT, SIX, FOUR, NEIGHBOUR].into_iter().filter(|name| {
        let host = topology.hosts.get(*name);
        host.is_none_or(|host| host.vm.is_none())
    });
    let hosts = hosts.map(|name| format!("host '{name}' with a vm"));
    let fronts = [FRONT, LOCAL_FRONT].into_iter().filter(|address| {
        let balancers = topology.resources.load_balancers.iter();
        let mut fronts = balancers.flat_map(|(_, balancer)| balancer.front_ends.iter());
        !fronts.any(|(_, front)| front.private_ip_address == Some(IpAddr::V4(*address)))
    });
    hosts
        .chain(fronts.map(|address| format!("front end {address} of a load balancer")))
        .collect()
}

/// Runs all steps. Stops after the first step with a failed check, because later steps depend on it.
pub(super) async fn walk(s: &mut Stage<'_>) -> Result<()> {
    let mut web = Balanced {
        client: CLIENT,
        front: SocketAddr::from((FRONT, SITE)),
        back_ends: [
            s.back_end(SIX, Port::Tcp(SITE), HEALTH)?,
            s.back_end(FOUR, Port::Tcp(SITE), HEALTH)?,
        ],
    };
    macro_rules! step {
        ($step:expr) => {
            $step.await?;
            if !s.report.good() {
                return Ok(());
            }
        };
    }
    step!(front_end(s, &mut web));
    step!(line(s, &web));
    step!(one_down(s, &mut web));
    step!(all_down(s, &mut web));
    step!(agent_dies(s, &web));
    step!(basic(s));
    Ok(())
}

/// Checks that both servers answer the client at their own addresses.
async fn own_addresses(s: &mut Stage<'_>) -> Result<()> {
    s.opens(CLIENT, SIX, Port::Tcp(SITE)).await?;
    s.opens(CLIENT, FOUR, Port::Tcp(SITE)).await
}

async fn front_end(s: &mut Stage<'_>, web: &mut Balanced) -> Result<()> {
    let (front, site) = (FRONT.to_string(), Port::Tcp(SITE));
    s.report
        .step("A front end in another region, and its two back ends (L10, P30, L6)");
    s.reaches(CLIENT, SIX).await?;
    own_addresses(s).await?;
    s.closed(CLIENT, &front, site).await?;
    s.explain_stops(CLIENT, &front, site, "L8").await?;
    for back_end in &mut web.back_ends {
        s.set_health(back_end, true)?;
    }
    s.new_connections_go_to(web, [true, true]).await?;
    s.opens(CLIENT, &front, site).await?;
    s.explain_delivers(CLIENT, &front, site, &[SIX, FOUR]).await?;
    s.health_is(WEB, RULE, &[SIX, FOUR]).await
}

async fn line(s: &mut Stage<'_>, web: &Balanced) -> Result<()> {
    s.report
        .step("TCP to the front end and to both back ends, from region to region (L12)");
    let least = round_trip(s.lab.topology(), CLIENT, SIX);
    let addresses = [
        (web.front.ip(), "front end"),
        (s.address(SIX)?, SIX),
        (s.address(FOUR)?, FOUR),
    ];
    s.latencies(CLIENT, &addresses, SITE, least).await
}

async fn one_down(s: &mut Stage<'_>, web: &mut Balanced) -> Result<()> {
    let (front, site) = (FRONT.to_string(), Port::Tcp(SITE));
    s.report
        .step("One back end is down: no new connections, but the old ones go on (L4, L7)");
    let mut of_six = s.connection_at(web, SIX).await?;
    let mut of_four = s.connection_at(web, FOUR).await?;
    let [six, _] = &mut web.back_ends;
    s.set_health(six, false)?;
    s.new_connections_go_to(web, [false, true]).await?;
    s.explain_delivers(CLIENT, &front, site, &[FOUR]).await?;
    s.still_works(&mut of_six, "the connection at server-6").await?;
    s.still_works(&mut of_four, "the connection at server-4").await?;
    own_addresses(s).await?;
    s.health_is(WEB, RULE, &[FOUR]).await
}

async fn all_down(s: &mut Stage<'_>, web: &mut Balanced) -> Result<()> {
    let (front, site) = (FRONT.to_string(), Port::Tcp(SITE));
    s.report
        .step("Both are down: the front end takes no connections, nothing else changes (L8, L12)");
    let mut open = s.connection_at(web, FOUR).await?;
    let [_, four] = &mut web.back_ends;
    s.set_health(four, false)?;
    s.new_connections_go_to(web, [false, false]).await?;
    s.closed(CLIENT, &front, site).await?;
    s.explain_stops(CLIENT, &front, site, "L8").await?;
    own_addresses(s).await?;
    s.reaches(CLIENT, SIX).await?;
    s.reaches(CLIENT, FOUR).await?;
    s.still_works(&mut open, "the connection at server-4").await?;
    s.health_is(WEB, RULE, &[]).await?;
    for back_end in &mut web.back_ends {
        s.set_health(back_end, true)?;
    }
    s.new_connections_go_to(web, [true, true]).await?;
    s.opens(CLIENT, &front, site).await
}

async fn agent_dies(s: &mut Stage<'_>, web: &Balanced) -> Result<()> {
    s.report
        .step("The agent of a back end is killed with kill -9, and comes back (D36)");
    let mut open = s.connection_at(web, FOUR).await?;
    s.lab.kill_agent(SIX)?;
    s.report.act(&format!("kill -9 of the agent of {SIX}"), "");
    s.silent(CLIENT, SIX).await?;
    s.other_back_end_answers(web, SIX).await?;
    s.still_works(&mut open, "the connection at server-4").await?;
    s.opens(CLIENT, FOUR, Port::Tcp(SITE)).await?;
    let start = Instant::now();
    s.lab.start_agent(SIX)?;
    s.report.act(&format!("the agent of {SIX} starts again"), "");
    // Other agents go on encrypting packets with the keys of the killed agent's sessions, until they have received a packet
    // of a new session. So the host of the restarted agent pings first, which makes its agent start a new session.
    s.reaches_again(SIX, CLIENT, start).await?;
    s.new_connections_go_to(web, [true, true]).await?;
    s.still_works(&mut open, "the connection at server-4").await?;
    s.health_is(WEB, RULE, &[SIX, FOUR]).await
}

async fn basic(s: &mut Stage<'_>) -> Result<()> {
    let (front, site) = (LOCAL_FRONT.to_string(), Port::Tcp(SITE));
    s.report
        .step("A Basic load balancer is reachable inside of its region only (P30)");
    let netns = s.lab.hosts().netns(NEIGHBOUR);
    let _server = EchoServer::start(&netns, s.address(NEIGHBOUR)?, site).context("the server of the neighbour")?;
    s.opens(SIX, &front, site).await?;
    s.opens(CLIENT, NEIGHBOUR, site).await?;
    // `closed` also checks that `explain` says so.
    s.closed(CLIENT, &front, site).await
}

/// Returns the delay that the topology gives packets between two hosts, there and back. Zero if it gives none.
fn round_trip(topology: &Topology, a: &str, b: &str) -> Duration {
    let segment = |host: &str| {
        let host = topology.hosts.get(host)?;
        topology.segment_of(host.address).map(|(name, _)| name)
    };
    let (Some(a), Some(b)) = (segment(a), segment(b)) else {
        return Duration::ZERO;
    };
    let mut delays = topology.underlay.delays.iter();
    let found = delays.find(|delay| delay.between == [a, b] || delay.between == [b, a]);
    found.map_or(Duration::ZERO, |delay| {
        Duration::from_secs_f64(delay.one_way_ms * 2.0 / 1e3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_topology_has_what_the_steps_need() {
        let topology = Topology::load("global").unwrap();
        assert_eq!(missing(&topology), Vec::<String>::new());
        assert_eq!(round_trip(&topology, CLIENT, SIX), Duration::from_millis(25));
        assert_eq!(round_trip(&topology, FOUR, SIX), Duration::ZERO);
        let other = missing(&Topology::load("policy").unwrap()).join(", ");
        assert!(
            other.contains("host 'server-6'") && other.contains("192.168.1.37"),
            "{other}"
        );
    }
}
