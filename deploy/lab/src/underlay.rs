//! The underlay: a namespace that stands for the internet, holds one bridge a segment and routes between them, and a
//! veth to each host. Its links can be cut, silently, as a real network loses packets.

mod delay;

pub use delay::lines as delay_lines;

use crate::command::run;
use crate::host::{Hosts, inside, sysctl};
use crate::interfaces::{add_address, adding, connect};
use crate::topology::site::Part;
use crate::topology::{CONTROLLER, INTERNET, Topology, first_address};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::net::IpAddr;

/// The hosts' device on the underlay.
pub const DEVICE: &str = "underlay0";

/// The routing table of customer edges that leads into the underlay; only their tunnels' own packets are told of it.
pub const TUNNEL_TABLE: &str = "100";

/// Every host that has a link to the underlay, with its address there: the controller's, the topology's, and the
/// customer edges that have one.
#[must_use]
pub fn attached(topology: &Topology) -> Vec<(String, IpAddr)> {
    let mut all = vec![(CONTROLLER.to_owned(), topology.underlay.controller.address)];
    all.extend(topology.hosts.iter().map(|(name, h)| (name.clone(), h.address)));
    all.extend(topology.machines().filter_map(|machine| match machine.part {
        Part::CustomerEdge(edge) => Some((machine.host, edge.address?)),
        Part::LanRouter | Part::Host(_) => None,
    }));
    all
}

/// The routing table with a host's way into the underlay: that of its own for tunnels where a site's traffic passes,
/// so that this never leaves by it.
fn table(topology: &Topology, host: &str) -> &'static str {
    if topology.machines().any(|m| m.host == host) {
        TUNNEL_TABLE
    } else {
        "main"
    }
}

/// The bridge's port of a host: device names hold 15 bytes, host names more.
fn port(topology: &Topology, host: &str) -> Result<String> {
    let all = attached(topology);
    let index = all.iter().position(|(name, _)| name == host);
    let index = index.with_context(|| format!("there is no host '{host}' in lab {}", topology.name))?;
    Ok(format!("port{index}"))
}

/// Makes the namespace of the internet with its bridges and the lines between those that are far from each other. The
/// host must exist. Returns whether the kernel carries these lines by itself.
///
/// # Errors
/// The system refuses.
pub fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<bool> {
    let netns = hosts.netns(INTERNET);
    sysctl(
        &netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            // What comes back from a line has a source that lies elsewhere.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ],
    )?;
    inside(&netns, || {
        for (name, segment) in topology.underlay.segments.iter() {
            let mtu = topology.underlay.mtu.to_string();
            let address = bridge_address(topology, name);
            run(&[
                "ip",
                "link",
                "add",
                name,
                "address",
                &address,
                "mtu",
                &mtu,
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ])?;
            let first = first_address(segment.prefix).context("a segment without addresses")?;
            let address = format!("{first}/{}", segment.prefix.prefix_len());
            add_address(&address, name)?;
            run(&["ip", "link", "set", name, "up"])?;
        }
        // What is not for here vanishes, as private addresses do on the internet: nobody says so (T8).
        for family in ["-4", "-6"] {
            run(&["ip", family, "route", "add", "blackhole", "default"])?;
        }
        anyhow::Ok(())
    })??;
    delay::build(hosts, topology)
}

/// The link-layer address of a segment's router. One of its own: otherwise a bridge has its lowest port's and changes it
/// when that port moves, and hosts go on talking to a router that is no longer there.
fn bridge_address(topology: &Topology, segment: &str) -> String {
    let mut names = topology.underlay.segments.keys();
    let number = names.position(|name| name == segment).unwrap_or_default();
    format!("02:74:6d:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff)
}

/// Lays a host's cable to the underlay. The host must exist.
///
/// # Errors
/// The system refuses.
pub fn plug(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, _) = segment_of(topology, address)?;
    let port = port(topology, host)?;
    connect(hosts, (INTERNET, &port), (host, DEVICE), topology.underlay.mtu)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["ip", "link", "set", &port, "master", segment])?;
        run(&["ip", "link", "set", &port, "up"])
    })??;
    inside(&hosts.netns(host), || run(&["ip", "link", "set", DEVICE, "up"]))?.map(drop)
}

fn segment_of(topology: &Topology, address: IpAddr) -> Result<(&str, IpNet)> {
    let found = topology.segment_of(address);
    found.with_context(|| format!("{address} is in no segment of the underlay"))
}

/// Gives a host its underlay address, and the way into the underlay. Its cable must be there.
///
/// # Errors
/// The system refuses.
pub fn settle(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, prefix) = segment_of(topology, address)?;
    let (router, table) = (bridge_address(topology, segment), table(topology, host));
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    let own = format!("{address}/{}", prefix.prefix_len());
    hosts.run(host, &["ip", "link", "set", DEVICE, "up"])?;
    if table == "main" {
        hosts.run(host, &adding(&own, DEVICE))?;
    } else {
        hosts.run(host, &["ip", "address", "add", &own, "dev", DEVICE, "noprefixroute"])?;
        let prefix = prefix.trunc().to_string();
        hosts.run(
            host,
            &["ip", family, "route", "replace", &prefix, "dev", DEVICE, "table", table],
        )?;
    }
    let first = first_address(prefix).context("a segment without addresses")?;
    let first = first.to_string();
    // Known for ever: a host that is cut off from its router would otherwise tell its own programs so, three seconds
    // later, while a host on the internet sees silence.
    hosts.run(
        host,
        &[
            "ip",
            "neighbour",
            "replace",
            &first,
            "lladdr",
            &router,
            "dev",
            DEVICE,
            "nud",
            "permanent",
        ],
    )?;
    let default = [
        "ip", family, "route", "replace", "default", "via", &first, "dev", DEVICE, "table", table,
    ];
    hosts.run(host, &default).map(drop)
}

/// Gives a host another underlay address, out of any segment of its own bridge's family; the old one is gone at once.
///
/// # Errors
/// The address is in no segment, or the system refuses.
pub fn readdress(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, _) = segment_of(topology, address)?;
    let port = port(topology, host)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["ip", "link", "set", &port, "master", segment])
    })??;
    hosts.run(host, &["ip", "address", "flush", "dev", DEVICE, "scope", "global"])?;
    settle(hosts, topology, host, address)
}

/// Lets nothing through between a host and the underlay, in either direction; nobody is told.
///
/// # Errors
/// No such host.
pub fn cut(hosts: &dyn Hosts, topology: &Topology, host: &str) -> Result<()> {
    // A disabled bridge port keeps its carrier: the host cannot see that the network is gone, as on the internet.
    port_state(hosts, topology, host, "0")
}

/// Undoes [`cut`].
///
/// # Errors
/// No such host.
pub fn restore(hosts: &dyn Hosts, topology: &Topology, host: &str) -> Result<()> {
    port_state(hosts, topology, host, "3")
}

fn port_state(hosts: &dyn Hosts, topology: &Topology, host: &str, state: &str) -> Result<()> {
    let port = port(topology, host)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["bridge", "link", "set", "dev", &port, "state", state])
    })??;
    Ok(())
}

/// Lets nothing through between two hosts, in either direction; nobody is told, and both still reach everybody else.
///
/// # Errors
/// The system refuses.
pub fn cut_pair(hosts: &dyn Hosts, a: (&str, IpAddr), b: (&str, IpAddr)) -> Result<()> {
    drop_from(hosts, a.0, b)?;
    drop_from(hosts, b.0, a)
}

/// The nftables table on a host that holds its half of the cut from another: one for each, so that it can be undone
/// alone, and whatever address the other had then.
fn cut_table(other: &str) -> String {
    format!("tombolo_lab_cut_{other}")
}

fn drop_from(hosts: &dyn Hosts, host: &str, other: (&str, IpAddr)) -> Result<()> {
    let (table, source) = (cut_table(other.0), other.1.to_string());
    let family = if other.1.is_ipv4() { "ip" } else { "ip6" };
    hosts.run(host, &["nft", "add", "table", "inet", &table])?;
    let chain = "{ type filter hook input priority 0; }";
    hosts.run(host, &["nft", "add", "chain", "inet", &table, "input", chain])?;
    let rule = [
        "nft", "add", "rule", "inet", &table, "input", family, "saddr", &source, "drop",
    ];
    hosts.run(host, &rule).map(drop)
}

/// Undoes [`cut_pair`] of these two, and no other cut. None between them is no error.
///
/// # Errors
/// The system refuses.
pub fn restore_pair(hosts: &dyn Hosts, a: &str, b: &str) -> Result<()> {
    for (host, other) in [(a, b), (b, a)] {
        let table = cut_table(other);
        let line = format!("table inet {table}");
        if hosts.run(host, &["nft", "list", "tables"])?.lines().any(|l| l == line) {
            hosts.run(host, &["nft", "delete", "table", "inet", &table])?;
        }
    }
    Ok(())
}
