//! The underlay: a network namespace that represents the internet, with a bridge for each segment and a veth pair to
//! each host. It routes between the segments. The links of hosts can be cut. No ICMP errors report the lost packets
//! then, as in a real network that fails.

mod delay;

pub use delay::lines as delay_lines;

use crate::command::run;
use crate::host::{Hosts, inside, sysctl};
use crate::interfaces::{add_address, add_address_argv, create_veth_pair};
use crate::topology::site::MachineRole;
use crate::topology::{CONTROLLER, INTERNET, Topology, first_address};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::net::IpAddr;

/// State of a bridge port that forwards nothing (`BR_STATE_DISABLED` of linux/if_bridge.h).
const PORT_DISABLED: &str = "0";
/// State of a bridge port that forwards (`BR_STATE_FORWARDING`).
const PORT_FORWARDING: &str = "3";

/// Name that each host's device on the underlay has.
pub const DEVICE: &str = "underlay0";

/// Number of the routing table in which customer edges have their routes into the underlay. A rule selects this table
/// only for the encrypted packets of tunnels.
pub const TUNNEL_TABLE: &str = "100";

/// Returns every host with a link to the underlay, each with the underlay address that the topology gives it. First
/// comes the controller, then the topology's hosts by name, then the customer edges and site probes with an address.
#[must_use]
pub fn addresses(topology: &Topology) -> Vec<(String, IpAddr)> {
    let mut all = vec![(CONTROLLER.to_owned(), topology.underlay.controller.address)];
    all.extend(topology.hosts.iter().map(|(name, h)| (name.clone(), h.address)));
    all.extend(topology.machines().filter_map(|machine| match machine.role {
        MachineRole::CustomerEdge(edge) => Some((machine.host, edge.address?)),
        MachineRole::Host(_) => {
            let address = *machine.site.lan.probes.find(machine.name)?;
            Some((machine.host, address))
        }
        MachineRole::LanRouter => None,
    }));
    all
}

/// Returns the routing table that contains a host's routes into the underlay. For customer edges this is not the table
/// `main`, so that a site's traffic never enters the underlay unencrypted. For site probes the table has no rule, and a
/// route to the controller alone is in the table `main`.
fn table(topology: &Topology, host: &str) -> &'static str {
    if topology.machines().any(|m| m.host == host) {
        TUNNEL_TABLE
    } else {
        "main"
    }
}

/// Returns the name of a host's bridge port. The port's name contains a number instead of the host's name, because the
/// name of a device has at most 15 bytes.
fn port(topology: &Topology, host: &str) -> Result<String> {
    let all = addresses(topology);
    let index = all.iter().position(|(name, _)| name == host);
    let index = index.with_context(|| format!("there is no host '{host}' in lab {}", topology.name))?;
    Ok(format!("port{index}"))
}

/// Creates the bridges of all segments and the delays between them, in the existing namespace of the host `internet`.
/// Hosts are connected later, by [`connect_host`]. Call it only once for a lab. Root is needed. Returns false if a
/// program must carry [`delay_lines`], true if the kernel has netem or there are no delays.
///
/// # Errors
/// The namespace does not exist, or a command fails. What was made until then stays.
pub fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<bool> {
    let netns = hosts.netns(INTERNET);
    sysctl(
        &netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            // A packet returns from a delay line by another device than the one to which the route to its source leads.
            // Reverse-path filtering would drop such a packet, so it is off.
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
        // The underlay's router drops packets to other destinations without ICMP errors, as the internet drops packets
        // to private addresses (T8).
        for family in ["-4", "-6"] {
            run(&["ip", family, "route", "add", "blackhole", "default"])?;
        }
        anyhow::Ok(())
    })??;
    delay::build(hosts, topology)
}

/// Returns the MAC address of the router in a segment. Without a fixed MAC address, a bridge would take the lowest
/// address of its ports. When a port moved to another bridge, the address of the bridge would change, and hosts would
/// go on sending to the old address.
fn bridge_address(topology: &Topology, segment: &str) -> String {
    let mut names = topology.underlay.segments.keys();
    let number = names.position(|name| name == segment).unwrap_or_default();
    format!("02:74:6d:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff)
}

/// Connects an existing host to the bridge of the segment that contains `address`. The host's address and routes are
/// not set; [`configure_host`] sets them. [`build`] must have been called. Root is needed.
///
/// # Errors
/// The address is in no segment, the host is not in the topology or is connected already, or a command fails. After a
/// failed command the veth pair may exist.
pub fn connect_host(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, _) = segment_of(topology, address)?;
    let port = port(topology, host)?;
    create_veth_pair(hosts, (INTERNET, &port), (host, DEVICE), topology.underlay.mtu)?;
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

/// Sets the underlay address of a connected host, and its routes into the underlay. A virtual machine must have booted.
/// Call it only once for an address: a second call fails, because the host has the address already. To change the
/// address, use [`readdress`].
///
/// # Errors
/// The address is in no segment, or a command on the host fails. What was set until then stays.
pub fn configure_host(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, prefix) = segment_of(topology, address)?;
    let (router, table) = (bridge_address(topology, segment), table(topology, host));
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    let own = format!("{address}/{}", prefix.prefix_len());
    hosts.run(host, &["ip", "link", "set", DEVICE, "up"])?;
    if table == "main" {
        hosts.run(host, &add_address_argv(&own, DEVICE))?;
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
    // The neighbour entry must be permanent. Otherwise the host's own kernel would report an unreachable destination
    // three seconds after a cut. A host on the internet receives no such report.
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
    hosts.run(host, &default)?;
    if topology.probes().any(|(machine, ..)| machine.host == host) {
        let controller = topology.underlay.controller.address.to_string();
        // Without `src`, the kernel would choose the address on the LAN, to which the controller has no route.
        let own = address.to_string();
        let to_controller = [
            "ip",
            family,
            "route",
            "replace",
            &controller,
            "via",
            &first,
            "dev",
            DEVICE,
            "onlink",
            "src",
            &own,
        ];
        hosts.run(host, &to_controller)?;
    }
    Ok(())
}

/// Replaces a host's underlay address by one of the same family, in any segment. The family is not checked, nor is it
/// checked whether another host has the address. The old address is removed at once. If the new address is in another
/// segment, a [`cut`] of the host is undone. Does not change the lab's record.
///
/// # Errors
/// The address is in no segment, the host is not in the topology, or a command fails. After a failed command the host
/// may have no underlay address.
pub fn readdress(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, _) = segment_of(topology, address)?;
    let port = port(topology, host)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["ip", "link", "set", &port, "master", segment])
    })??;
    hosts.run(host, &["ip", "address", "flush", "dev", DEVICE, "scope", "global"])?;
    configure_host(hosts, topology, host, address)
}

/// Blocks all packets between a host and the underlay, in both directions and without ICMP errors. A second call has no
/// effect. [`readdress`] into another segment undoes the cut.
///
/// # Errors
/// The host has no link to the underlay, or the command fails.
pub fn cut(hosts: &dyn Hosts, topology: &Topology, host: &str) -> Result<()> {
    // When a bridge port is disabled, the host's device keeps its carrier. So the host cannot detect the cut, as on the
    // internet.
    port_state(hosts, topology, host, PORT_DISABLED)
}

/// Undoes [`cut`]. Has no effect on a host that is not cut, and does not undo [`cut_pair`].
///
/// # Errors
/// The host has no link to the underlay, or the command fails.
pub fn restore(hosts: &dyn Hosts, topology: &Topology, host: &str) -> Result<()> {
    port_state(hosts, topology, host, PORT_FORWARDING)
}

fn port_state(hosts: &dyn Hosts, topology: &Topology, host: &str, state: &str) -> Result<()> {
    let port = port(topology, host)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["bridge", "link", "set", "dev", &port, "state", state])
    })??;
    Ok(())
}

/// Blocks all packets between two hosts, in both directions and without ICMP errors. `a` and `b` are the name and the
/// underlay address of each host. nftables on each of the two drops the packets that come from the other one's address.
/// Both hosts still reach all other hosts. Only packets from exactly these addresses are blocked; whether the hosts
/// have them is not checked. A second call with the same addresses has no further effect.
///
/// # Errors
/// A host does not exist, or a command fails. One direction may then be cut.
pub fn cut_pair(hosts: &dyn Hosts, a: (&str, IpAddr), b: (&str, IpAddr)) -> Result<()> {
    drop_from(hosts, a.0, b)?;
    drop_from(hosts, b.0, a)
}

/// Returns the name of the nftables table on a host that blocks packets from `other`. Each cut has a table of its own,
/// named after `other`. So one cut can be undone without the others, even after the address of `other` has changed.
fn cut_table(other: &str) -> String {
    format!("tombolo_lab_cut_{other}")
}

/// Makes `host` drop the packets that come from `other`, a host given by its name and underlay address.
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

/// Undoes [`cut_pair`] of these two hosts, which may be given in any order, and undoes no other cut. If there is no
/// such cut, this has no effect. The addresses do not matter.
///
/// # Errors
/// A host does not exist, or a command fails. One direction may then still be cut.
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
