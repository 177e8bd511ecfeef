//! Makes the machines of sites and their links. The machines are plain Linux routers and hosts with stock programs
//! ([`bird`], [`device`]).
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

/// Name of the device by which a test host or customer edge is connected to the LAN router. The LAN router's bridge for
/// the test hosts has this name too.
pub const LAN: &str = "lan0";
/// Name of the device by which a provider edge's host is connected to the customer edge.
pub const EDGE_LINE: &str = "line0";
/// MTU of LANs and lines, bytes, as on Ethernet.
const MTU: u16 = 1500;
/// Firewall mark of the encrypted packets of tunnels. On a customer edge, only packets with this mark have a route into
/// the underlay.
pub const TUNNEL_MARK: &str = "0x7763";
/// Metric of a router's blackhole default route. It is larger than the metrics of all routes that BIRD installs, so the
/// kernel prefers BIRD's routes.
const BLACKHOLE_METRIC: &str = "65535";

/// Returns the name of a customer edge's device for its line `number`, counted from 0 in the order of the file.
#[must_use]
pub fn line_device(number: usize) -> String {
    format!("line{number}")
}

/// Returns the name of a customer edge's device for its tunnel `number`, counted from 0 in the order of the file.
#[must_use]
pub fn tunnel_device(number: usize) -> String {
    format!("wg{number}")
}

/// Returns the name of the LAN router's device for customer edge `number`, counted from 0 in the order of the file.
#[must_use]
pub fn edge_device(number: usize) -> String {
    format!("ce{number}")
}

/// Checks that the stock programs of a topology's sites are installed. A topology without sites needs none. For a
/// topology with tunnels root is needed, to test whether the kernel has WireGuard.
///
/// # Errors
/// A program is missing (the message names its package), or it cannot be tested whether the kernel has WireGuard.
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

/// Configures the machines of all sites, connects the machines of each site to one another, and connects customer edges
/// to the provider edges of their lines. All these hosts must exist, and customer edges with tunnels must have their
/// link to the underlay. Starts no program. Call it only once for a lab: a second call fails, because the devices
/// exist. Root is needed.
///
/// # Errors
/// A host does not exist, a line has no provider edge or no private peering, or a command fails. What was made until
/// then stays.
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
            // The agent of a provider edge needs the device of its line, even if no customer edge is connected to the
            // line.
            create_veth_pair(hosts, (host, EDGE_LINE), (host, "nowhere0"), MTU)?;
        }
    }
    Ok(())
}

/// Configures a plain router. The router forwards, and answers every packet whose TTL has expired (D24) with the
/// address of the device that received the packet (T3). It drops packets without a route silently (T8).
fn configure_router(netns: &Path) -> Result<()> {
    sysctl(
        netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            // The kernel's global limit cannot be switched off. It does not apply to ICMP types outside of this mask.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv4/icmp_errors_use_inbound_ifaddr", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Reverse-path filtering must be off, because the replies to a flow may arrive on another device than the
            // one by which the flow's packets leave.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // The hash that selects one of several equal paths includes ports, so that flows between the same two
            // addresses may take different paths.
            ("ipv4/fib_multipath_hash_policy", "1"),
            // After a line has lost its carrier, BIRD removes the routes over the line only some time later. Until then
            // the kernel must not use these routes.
            ("ipv4/conf/all/ignore_routes_with_linkdown", "1"),
            ("ipv4/conf/default/ignore_routes_with_linkdown", "1"),
        ],
    )?;
    inside(netns, || {
        run(&["ip", "route", "add", "blackhole", "default", "metric", BLACKHOLE_METRIC])
    })??;
    Ok(())
}

/// Makes the LAN router's bridge, to which the test hosts are attached.
fn lan_router(hosts: &dyn Hosts, machine: &Machine<'_>) -> Result<()> {
    let netns = hosts.netns(&machine.host);
    configure_router(&netns)?;
    inside(&netns, || {
        run(&["ip", "link", "add", LAN, "type", "bridge", "mcast_snooping", "0"])?;
        add_address(&machine.site.lan.router.to_string(), LAN)?;
        run(&["ip", "link", "set", LAN, "up"]).map(drop)
    })?
}

/// Configures a customer edge, and connects it to the LAN router and to the provider edges of its lines.
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

/// Returns the host of the provider edge that a line leads to.
fn edge_host<'a>(topology: &'a Topology, line: &Line) -> Result<&'a str> {
    let found = topology.edge_host(&line.circuit, line.link);
    found.with_context(|| format!("no host is the edge of {} {}", line.circuit, link_word(line.link)))
}

/// Returns the position, from 0, of a customer edge in its site.
fn number_of(machine: &Machine<'_>) -> Result<usize> {
    let mut edges = machine.site.customer_edges.iter();
    let found = edges.position(|(name, _)| name == machine.name);
    found.with_context(|| format!("{} is no customer edge", machine.name))
}

/// Makes a rule by which only the encrypted packets of the edge's own tunnels are routed into the underlay. The router
/// forwards no packets that come from the underlay.
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

/// Connects a test host to the LAN router's bridge. The router is its default gateway.
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

/// Adds an address to a device and sets the device up.
fn set_up(netns: &Path, device: &str, address: Ipv4Net) -> Result<()> {
    inside(netns, || add_address(&address.to_string(), device))??;
    set_link_state(netns, device, true)
}

/// Sets a device of the namespace `netns` up or down.
fn set_link_state(netns: &Path, device: &str, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    inside(netns, || run(&["ip", "link", "set", device, state]))??;
    Ok(())
}

/// Sets a customer edge's device for a line up or down. When the device is down, the provider edge's device at the
/// other end of the line has no carrier. `at`: the names of the site and the customer edge, written as in the topology.
/// In the name of the circuit, upper and lower case letters are not distinguished. A line that has this state already
/// stays as it is. Root is needed.
///
/// # Errors
/// The customer edge or the line does not exist, or a command fails.
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

/// Sets the WireGuard device that a customer edge has for a connection up or down. The VPN gateway sees only that
/// packets stop. `at`: the names of the site and the customer edge, written as in the topology. In the name of the
/// connection, upper and lower case letters are not distinguished. A device that has this state already stays as it is.
/// Root is needed.
///
/// # Errors
/// The customer edge or the tunnel does not exist, its device has not been started, or a command fails.
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

/// Returns the command line that mounts the folder `run` of this machine at `/run`, and then runs `argv`. The command
/// line must be run by `ip netns exec`, which makes a mount namespace for it. Without that, it would replace `/run` of
/// this machine. The folder must exist, and root is needed.
///
/// Stock programs create sockets with fixed names in `/run`. Each machine has a `/run` of its own, so several machines
/// can run BIRD and WireGuard at the same time, and `birdc` and `wg` find those of their machine.
#[must_use]
pub fn with_own_run(run: &Path, argv: &[String]) -> Vec<String> {
    let mut all = ["sh", "-c", r#"mount --bind "$0" /run && exec "$@""#]
        .map(str::to_owned)
        .to_vec();
    all.push(run.display().to_string());
    all.extend_from_slice(argv);
    all
}
