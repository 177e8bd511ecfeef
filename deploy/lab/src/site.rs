//! The machines of sites, made and wired: plain Linux routers and hosts, whose programs ([`bird`], [`device`]) are the
//! stock ones. Rule numbers are those of the hops that such routers show (T).
//!
//! ```text
//!  host ── lan0 ┐                    ┌ ce0 ── lan0 customer edge line0 ── line0 edge
//!  host ── lan0 ┴ lan0 LAN router ───┤                         wg0 ══ underlay0
//!                                    └ ce1 ── lan0 customer edge …
//! ```

pub mod bird;
pub mod device;

use crate::command::run;
use crate::host::{Hosts, inside, sysctl};
use crate::interfaces::{add_address, connect};
use crate::topology::Topology;
use crate::topology::site::{
    CustomerEdge, LAN_ROUTER, Line, LinkName, Machine, Part, Tunnel, host_name, link_word, other_end,
};
use crate::underlay::TUNNEL_TABLE;
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::Path;

/// The device towards the LAN, or towards the LAN router.
pub const LAN: &str = "lan0";
/// The device of an edge's host towards its customer edge.
pub const EDGE_LINE: &str = "line0";
/// The MTU of LANs and lines, bytes.
const MTU: u16 = 1500;
/// Mark of a tunnel's own packets, which alone find the underlay.
pub const TUNNEL_MARK: &str = "0x7763";
/// Worse than any route that a routing daemon installs.
const LAST_RESORT: &str = "65535";

/// A customer edge's device of a line, by its number in the file.
#[must_use]
pub fn line_device(number: usize) -> String {
    format!("line{number}")
}

/// A customer edge's device of a tunnel, by its number in the file.
#[must_use]
pub fn tunnel_device(number: usize) -> String {
    format!("wg{number}")
}

/// The LAN router's device towards a customer edge, by its number in the file.
#[must_use]
pub fn edge_device(number: usize) -> String {
    format!("ce{number}")
}

/// Looks for the stock programs that a topology's sites need.
///
/// # Errors
/// One is not installed.
pub fn find_programs(topology: &Topology) -> Result<()> {
    let mut needed = Vec::new();
    if !topology.sites.is_empty() {
        needed.extend([("bird", "bird2"), ("birdc", "bird2")]);
    }
    if topology.tunnels().next().is_some() {
        needed.push(("wg", "wireguard-tools"));
        if !device::is_in_kernel()? {
            needed.push(("wireguard-go", "wireguard-go"));
        }
    }
    for (program, package) in needed {
        let found = run(&["sh", "-c", "command -v \"$0\"", program]);
        if found.is_err() {
            bail!("the sites need '{program}', which is not here: Debian and Ubuntu have it in package {package}");
        }
    }
    Ok(())
}

/// Wires the machines of all sites. They and the hosts of the edges must exist.
///
/// # Errors
/// The system refuses.
pub fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<()> {
    for machine in topology.machines() {
        let built = match machine.part {
            Part::LanRouter => lan_router(hosts, &machine),
            Part::CustomerEdge(edge) => customer_edge(hosts, topology, &machine, edge),
            Part::Host(address) => test_host(hosts, &machine, address),
        };
        built.with_context(|| format!("site {}, {}", machine.site_name, machine.name))?;
    }
    for (host, edge) in topology.hosts.iter().filter_map(|(n, h)| Some((n, h.edge.as_ref()?))) {
        if !topology.has_line(&edge.circuit, edge.link) {
            // A line that ends nowhere: nobody has laid it yet.
            connect(hosts, (host, EDGE_LINE), (host, "nowhere0"), MTU)?;
        }
    }
    Ok(())
}

/// What a plain router is: it forwards, answers every expired packet (D24) with the address of the device that it came
/// in by (T3), and is silent where it has no route (T8).
fn router(netns: &Path) -> Result<()> {
    sysctl(
        netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            // The limit for all answers together knows no other way to be off.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv4/icmp_errors_use_inbound_ifaddr", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // The way back may be another one.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Flows of one pair of addresses spread too.
            ("ipv4/fib_multipath_hash_policy", "1"),
            // A next hop whose line has lost its carrier is none.
            ("ipv4/conf/all/ignore_routes_with_linkdown", "1"),
            ("ipv4/conf/default/ignore_routes_with_linkdown", "1"),
        ],
    )?;
    inside(netns, || {
        run(&["ip", "route", "add", "blackhole", "default", "metric", LAST_RESORT])
    })??;
    Ok(())
}

fn lan_router(hosts: &dyn Hosts, machine: &Machine<'_>) -> Result<()> {
    let netns = hosts.netns(&machine.host);
    router(&netns)?;
    inside(&netns, || {
        run(&["ip", "link", "add", LAN, "type", "bridge", "mcast_snooping", "0"])?;
        add_address(&machine.site.lan.router.to_string(), LAN)?;
        run(&["ip", "link", "set", LAN, "up"]).map(drop)
    })?
}

fn customer_edge(hosts: &dyn Hosts, topology: &Topology, machine: &Machine<'_>, edge: &CustomerEdge) -> Result<()> {
    let netns = hosts.netns(&machine.host);
    router(&netns)?;
    if edge.address.is_some() {
        way_for_tunnels(&netns, edge)?;
    }
    if let Some(own) = edge.lan {
        let number = number_of(machine)?;
        let (router, port) = (host_name(machine.site_name, LAN_ROUTER), edge_device(number));
        let other = other_end(own).with_context(|| format!("{own} is no link"))?;
        connect(hosts, (&machine.host, LAN), (&router, &port), MTU)?;
        set_up(&netns, LAN, own)?;
        set_up(&hosts.netns(&router), &port, Ipv4Net::new(other, own.prefix_len())?)?;
    }
    for (number, line) in edge.lines.iter().enumerate() {
        let addresses = topology.line_addresses(&line.circuit, line.link);
        let addresses = addresses.with_context(|| format!("circuit '{}' has no lines", line.circuit))?;
        let edge = edge_host(topology, line)?;
        let device = line_device(number);
        connect(hosts, (&machine.host, &device), (edge, EDGE_LINE), MTU)?;
        // Its address is the agent's business (D17).
        inside(&hosts.netns(edge), || run(&["ip", "link", "set", EDGE_LINE, "up"]))??;
        inside(&netns, || add_address(&addresses.customer.to_string(), &device))??;
        switch(&netns, &device, line.enabled)?;
    }
    Ok(())
}

fn edge_host<'a>(topology: &'a Topology, line: &Line) -> Result<&'a str> {
    let found = topology.edge_host(&line.circuit, line.link);
    found.with_context(|| format!("no host is the edge of {} {}", line.circuit, link_word(line.link)))
}

/// The place of a customer edge in its site's list.
fn number_of(machine: &Machine<'_>) -> Result<usize> {
    let mut edges = machine.site.customer_edges.iter();
    let found = edges.position(|(name, _)| name == machine.name);
    found.with_context(|| format!("{} is no customer edge", machine.name))
}

/// Only the tunnels' own packets know the way to the underlay, and nothing that comes from there passes.
fn way_for_tunnels(netns: &Path, edge: &CustomerEdge) -> Result<()> {
    let family = if edge.address.is_some_and(|a| a.is_ipv6()) {
        "-6"
    } else {
        "-4"
    };
    inside(netns, || {
        run(&[
            "ip",
            family,
            "rule",
            "add",
            "fwmark",
            TUNNEL_MARK,
            "lookup",
            TUNNEL_TABLE,
        ])
    })??;
    let device = format!("ipv4/conf/{}/forwarding", crate::underlay::DEVICE);
    sysctl(netns, &[(&device, "0")])
}

fn test_host(hosts: &dyn Hosts, machine: &Machine<'_>, address: Ipv4Addr) -> Result<()> {
    let lan = machine.site.lan.router;
    let number = machine.site.lan.hosts.iter().position(|(name, _)| name == machine.name);
    let port = format!("host{}", number.context("an unknown host")?);
    let router = host_name(machine.site_name, LAN_ROUTER);
    connect(hosts, (&machine.host, LAN), (&router, &port), MTU)?;
    inside(&hosts.netns(&router), || {
        run(&["ip", "link", "set", &port, "master", LAN, "up"])
    })??;
    let netns = hosts.netns(&machine.host);
    set_up(&netns, LAN, Ipv4Net::new(address, lan.prefix_len())?)?;
    let gateway = lan.addr().to_string();
    inside(&netns, || run(&["ip", "route", "add", "default", "via", &gateway]))??;
    Ok(())
}

fn set_up(netns: &Path, device: &str, address: Ipv4Net) -> Result<()> {
    inside(netns, || add_address(&address.to_string(), device))??;
    switch(netns, device, true)
}

/// Turns a device on or off.
fn switch(netns: &Path, device: &str, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    inside(netns, || run(&["ip", "link", "set", device, state]))??;
    Ok(())
}

/// Turns a customer edge's line on or off.
///
/// # Errors
/// No such line, or the system refuses.
pub fn switch_line(hosts: &dyn Hosts, topology: &Topology, at: (&str, &str), line: &LinkName, up: bool) -> Result<()> {
    let edge = topology.customer_edge(at.0, at.1);
    let number = edge.and_then(|e| e.lines.iter().position(|l| l.is(line)));
    let number = number.with_context(|| format!("{} {} has no line {line}", at.0, at.1))?;
    switch(&hosts.netns(&host_name(at.0, at.1)), &line_device(number), up)
}

/// Turns a customer edge's tunnel on or off.
///
/// # Errors
/// No such tunnel, or the system refuses.
pub fn switch_tunnel(
    hosts: &dyn Hosts,
    topology: &Topology,
    at: (&str, &str),
    connection: &str,
    up: bool,
) -> Result<()> {
    let edge = topology.customer_edge(at.0, at.1);
    let same = |t: &Tunnel| t.connection.eq_ignore_ascii_case(connection);
    let number = edge.and_then(|e| e.tunnels.iter().position(same));
    let number = number.with_context(|| format!("{} {} has no tunnel {connection}", at.0, at.1))?;
    switch(&hosts.netns(&host_name(at.0, at.1)), &tunnel_device(number), up)
}

/// The command line that runs a program of a site's machine. Each has a `/run` of its own, where stock programs put
/// their sockets under names that are the same everywhere: several run at once, and `birdc` and `wg` find theirs.
#[must_use]
pub fn with_own_run(run: &Path, argv: &[String]) -> Vec<String> {
    let mut all = ["sh", "-c", r#"mount --bind "$0" /run && exec "$@""#]
        .map(str::to_owned)
        .to_vec();
    all.push(run.display().to_string());
    all.extend_from_slice(argv);
    all
}
