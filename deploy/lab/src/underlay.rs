//! The underlay: a namespace that stands for the internet, holds one bridge a segment and routes between them, and a
//! veth to each host. Its links can be cut, silently, as a real network loses packets.

use crate::command::run;
use crate::host::{Hosts, inside, sysctl};
use crate::topology::{CONTROLLER, INTERNET, Topology, first_address};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::Path;

/// The hosts' device on the underlay.
pub const DEVICE: &str = "underlay0";

/// Every host that has a link to the underlay, with its address there: the controller's and the topology's.
#[must_use]
pub fn attached(topology: &Topology) -> Vec<(String, IpAddr)> {
    let mut all = vec![(CONTROLLER.to_owned(), topology.underlay.controller.address)];
    all.extend(topology.hosts.iter().map(|(name, h)| (name.clone(), h.address)));
    all
}

/// The bridge's port of a host: device names hold 15 bytes, host names more.
fn port(topology: &Topology, host: &str) -> Result<String> {
    let all = attached(topology);
    let index = all.iter().position(|(name, _)| name == host);
    let index = index.with_context(|| format!("there is no host '{host}' in lab {}", topology.name))?;
    Ok(format!("port{index}"))
}

/// Makes the namespace of the internet with its bridges. The host must exist.
///
/// # Errors
/// The system refuses.
pub fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<()> {
    let netns = hosts.netns(INTERNET);
    sysctl(
        &netns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
        ],
    )?;
    inside(&netns, || {
        for (number, (name, segment)) in topology.underlay.segments.iter().enumerate() {
            let mtu = topology.underlay.mtu.to_string();
            // One of its own: otherwise a bridge has its lowest port's and changes it when that port moves, and hosts go
            // on talking to a router that is no longer there.
            let address = format!("02:74:6d:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff);
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
        Ok(())
    })?
}

/// An IPv6 address is usable at once: nothing on this network can have it already.
fn add_address(address: &str, device: &str) -> Result<()> {
    let mut argv = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        argv.push("nodad");
    }
    run(&argv).map(drop)
}

/// Joins a host to the underlay. The host must exist.
///
/// # Errors
/// The system refuses.
pub fn attach(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, prefix) = topology
        .segment_of(address)
        .with_context(|| format!("{address} is in no segment"))?;
    let port = port(topology, host)?;
    let mtu = topology.underlay.mtu.to_string();
    let host_netns = hosts.netns(host);
    inside(&hosts.netns(INTERNET), || {
        run(&[
            "ip",
            "link",
            "add",
            &port,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "mtu",
            &mtu,
            "netns",
            path(&host_netns)?,
        ])?;
        run(&["ip", "link", "set", &port, "master", segment])?;
        run(&["ip", "link", "set", &port, "up"])
    })??;
    inside(&host_netns, || {
        run(&["ip", "link", "set", DEVICE, "up"])?;
        add_address(&format!("{address}/{}", prefix.prefix_len()), DEVICE)?;
        default_route(prefix)
    })?
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

fn default_route(prefix: IpNet) -> Result<()> {
    let first = first_address(prefix)
        .context("a segment without addresses")?
        .to_string();
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    run(&[
        "ip", family, "route", "replace", "default", "via", &first, "dev", DEVICE,
    ])
    .map(drop)
}

/// Gives a host another underlay address, out of any segment of its own bridge's family; the old one is gone at once.
///
/// # Errors
/// The address is in no segment, or the system refuses.
pub fn readdress(hosts: &dyn Hosts, topology: &Topology, host: &str, address: IpAddr) -> Result<()> {
    let (segment, prefix) = topology
        .segment_of(address)
        .with_context(|| format!("{address} is in no segment of the underlay"))?;
    let port = port(topology, host)?;
    inside(&hosts.netns(INTERNET), || {
        run(&["ip", "link", "set", &port, "master", segment])
    })??;
    inside(&hosts.netns(host), || {
        run(&["ip", "address", "flush", "dev", DEVICE, "scope", "global"])?;
        add_address(&format!("{address}/{}", prefix.prefix_len()), DEVICE)?;
        default_route(prefix)
    })?
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
    inside(&hosts.netns(host), || {
        run(&["nft", "add", "table", "inet", &table])?;
        let chain = "{ type filter hook input priority 0; }";
        run(&["nft", "add", "chain", "inet", &table, "input", chain])?;
        run(&[
            "nft", "add", "rule", "inet", &table, "input", family, "saddr", &source, "drop",
        ])
    })??;
    Ok(())
}

/// Undoes [`cut_pair`] of these two, and no other cut. None between them is no error.
///
/// # Errors
/// The system refuses.
pub fn restore_pair(hosts: &dyn Hosts, a: &str, b: &str) -> Result<()> {
    for (host, other) in [(a, b), (b, a)] {
        let table = cut_table(other);
        inside(&hosts.netns(host), || {
            let line = format!("table inet {table}");
            if run(&["nft", "list", "tables"])?.lines().any(|l| l == line) {
                run(&["nft", "delete", "table", "inet", &table])?;
            }
            anyhow::Ok(())
        })??;
    }
    Ok(())
}
