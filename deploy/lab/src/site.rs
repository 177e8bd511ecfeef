//! The machines of sites and their links: plain Linux routers and hosts with stock programs ([`bird`], [`device`]).
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
use crate::interfaces::{add_address, create_veth_pair};
use crate::topology::Topology;
use crate::topology::site::{
    CustomerEdge, LAN_ROUTER, Line, LinkName, Machine, MachineRole, Tunnel, host_name, link_word, other_end,
};
use crate::underlay::TUNNEL_TABLE;
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::Path;

/// Device of a host or customer edge to the LAN router, and of the LAN router to its LAN.
pub const LAN: &str = "lan0";
/// Device of a provider edge's host to the customer edge.
pub const EDGE_LINE: &str = "line0";
/// MTU of LANs and lines, bytes: that of Ethernet.
const MTU: u16 = 1500;
/// Firewall mark of a tunnel's encrypted packets, the only ones with a route into the underlay.
pub const TUNNEL_MARK: &str = "0x7763";
/// Metric of a router's blackhole default route, larger than those of all routes that a routing daemon installs.
const BLACKHOLE_METRIC: &str = "65535";

/// Returns the name of a customer edge's device for a line, by the line's position in the file.
#[must_use]
pub fn line_device(number: usize) -> String {
    format!("line{number}")
}

/// Returns the name of a customer edge's device for a tunnel, by the tunnel's position in the file.
#[must_use]
pub fn tunnel_device(number: usize) -> String {
    format!("wg{number}")
}

/// Returns the name of the LAN router's device for a customer edge, by the edge's position in the file.
#[must_use]
pub fn edge_device(number: usize) -> String {
    format!("ce{number}")
}

/// Checks that the stock programs of a topology's sites are installed.
///
/// # Errors
/// A program is missing; the message names its package.
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
            bail!("the sites need '{program}', which is not installed: Debian and Ubuntu have it in package {package}");
        }
    }
    Ok(())
}

/// Configures the machines of all sites and connects them. They and the hosts of provider edges must exist.
///
/// # Errors
/// A command fails.
pub fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<()> {
    for machine in topology.machines() {
        let built = match machine.role {
            MachineRole::LanRouter => lan_router(hosts, &machine),
            MachineRole::CustomerEdge(edge) => customer_edge(hosts, topology, &machine, edge),
            MachineRole::Host(address) => test_host(hosts, &machine, address),
        };
        built.with_context(|| format!("site {}, {}", machine.site_name, machine.name))?;
    }
    for (host, edge) in topology.hosts.iter().filter_map(|(n, h)| Some((n, h.edge.as_ref()?))) {
        if !topology.has_line(&edge.circuit, edge.link) {
            // The agent of an edge needs its line's device, also if no customer edge is connected.
            create_veth_pair(hosts, (host, EDGE_LINE), (host, "nowhere0"), MTU)?;
        }
    }
    Ok(())
}

/// Configures a plain router. It forwards, and answers every expired packet (D24) from the device that received it
/// (T3). It drops packets without a route silently (T8).
fn configure_router(netns: &Path) -> Result<()> {
    sysctl(
        netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            // The global limit has no off switch, but does not apply to types outside of the mask.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv4/icmp_errors_use_inbound_ifaddr", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Replies may return over another device.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Hashes ports too, so that flows between the same two addresses are spread.
            ("ipv4/fib_multipath_hash_policy", "1"),
            // Routes over a line without carrier are not used.
            ("ipv4/conf/all/ignore_routes_with_linkdown", "1"),
            ("ipv4/conf/default/ignore_routes_with_linkdown", "1"),
        ],
    )?;
    inside(netns, || {
        run(&["ip", "route", "add", "blackhole", "default", "metric", BLACKHOLE_METRIC])
    })??;
    Ok(())
}

fn lan_router(hosts: &dyn Hosts, machine: &Machine<'_>) -> Result<()> {
    let netns = hosts.netns(&machine.host);
    configure_router(&netns)?;
    inside(&netns, || {
        run(&["ip", "link", "add", LAN, "type", "bridge", "mcast_snooping", "0"])?;
        add_address(&machine.site.lan.router.to_string(), LAN)?;
        run(&["ip", "link", "set", LAN, "up"]).map(drop)
    })?
}

fn customer_edge(hosts: &dyn Hosts, topology: &Topology, machine: &Machine<'_>, edge: &CustomerEdge) -> Result<()> {
    let netns = hosts.netns(&machine.host);
    configure_router(&netns)?;
    if edge.address.is_some() {
        route_tunnel_packets(&netns, edge)?;
    }
    if let Some(own) = edge.lan {
        let number = number_of(machine)?;
        let (router, port) = (host_name(machine.site_name, LAN_ROUTER), edge_device(number));
        let other = other_end(own).with_context(|| format!("{own} is no link"))?;
        create_veth_pair(hosts, (&machine.host, LAN), (&router, &port), MTU)?;
        set_up(&netns, LAN, own)?;
        set_up(&hosts.netns(&router), &port, Ipv4Net::new(other, own.prefix_len())?)?;
    }
    for (number, line) in edge.lines.iter().enumerate() {
        let addresses = topology.line_addresses(&line.circuit, line.link);
        let addresses = addresses.with_context(|| format!("circuit '{}' has no lines", line.circuit))?;
        let edge = edge_host(topology, line)?;
        let device = line_device(number);
        create_veth_pair(hosts, (&machine.host, &device), (edge, EDGE_LINE), MTU)?;
        // The agent sets the address of its end (D17).
        inside(&hosts.netns(edge), || run(&["ip", "link", "set", EDGE_LINE, "up"]))??;
        inside(&netns, || add_address(&addresses.customer.to_string(), &device))??;
        set_link_state(&netns, &device, line.enabled)?;
    }
    Ok(())
}

fn edge_host<'a>(topology: &'a Topology, line: &Line) -> Result<&'a str> {
    let found = topology.edge_host(&line.circuit, line.link);
    found.with_context(|| format!("no host is the edge of {} {}", line.circuit, link_word(line.link)))
}

/// Returns the position of a customer edge in its site's list.
fn number_of(machine: &Machine<'_>) -> Result<usize> {
    let mut edges = machine.site.customer_edges.iter();
    let found = edges.position(|(name, _)| name == machine.name);
    found.with_context(|| format!("{} is no customer edge", machine.name))
}

/// Routes only encrypted packets of tunnels into the underlay, and forwards no packets from there.
fn route_tunnel_packets(netns: &Path, edge: &CustomerEdge) -> Result<()> {
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
    create_veth_pair(hosts, (&machine.host, LAN), (&router, &port), MTU)?;
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
    set_link_state(netns, device, true)
}

/// Sets a device up or down.
fn set_link_state(netns: &Path, device: &str, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    inside(netns, || run(&["ip", "link", "set", device, state]))??;
    Ok(())
}

/// Sets a customer edge's line up or down.
///
/// # Errors
/// The line does not exist, or a command fails.
pub fn set_line_state(
    hosts: &dyn Hosts,
    topology: &Topology,
    at: (&str, &str),
    line: &LinkName,
    up: bool,
) -> Result<()> {
    let edge = topology.customer_edge(at.0, at.1);
    let number = edge.and_then(|e| e.lines.iter().position(|l| l.is(line)));
    let number = number.with_context(|| format!("{} {} has no line {line}", at.0, at.1))?;
    set_link_state(&hosts.netns(&host_name(at.0, at.1)), &line_device(number), up)
}

/// Sets a customer edge's tunnel up or down.
///
/// # Errors
/// The tunnel does not exist, or a command fails.
pub fn set_tunnel_state(
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
    set_link_state(&hosts.netns(&host_name(at.0, at.1)), &tunnel_device(number), up)
}

/// Returns the command line that runs a program of a site's machine with the folder `run` as `/run`.
///
/// Stock programs create sockets with fixed names there. With a `/run` of its own, each machine has its own BIRD and
/// WireGuard, and `birdc` and `wg` find them.
#[must_use]
pub fn with_own_run(run: &Path, argv: &[String]) -> Vec<String> {
    let mut all = ["sh", "-c", r#"mount --bind "$0" /run && exec "$@""#]
        .map(str::to_owned)
        .to_vec();
    all.push(run.display().to_string());
    all.extend_from_slice(argv);
    all
}
