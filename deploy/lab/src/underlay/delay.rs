//! Delays between segments. Packets between two such segments leave the underlay's router by a device of their own, and
//! return to the router after the delay. The device is one of a veth pair with netem, or a TUN device that a program
//! reads.

use crate::command::run;
use crate::delay::Line;
use crate::host::{Hosts, inside};
use crate::topology::{Delay, INTERNET, Topology};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::time::Duration;

/// Routing table of the first line; each further line has the next table. Any number would do, because the namespace of
/// the underlay's router has no other tables.
const FIRST_TABLE: usize = 1000;
/// Largest number of packets in flight on one line with netem, as many as in [`crate::delay`].
const NETEM_LIMIT: &str = "20000";

/// Returns the name of the device through which the router sends packets of line `number`.
fn device(number: usize) -> String {
    format!("delay{number}")
}

/// Returns the name of the second device of line `number` with netem.
fn other_device(number: usize) -> String {
    format!("delay{number}b")
}

fn one_way(delay: &Delay) -> Duration {
    Duration::from_secs_f64(delay.one_way_ms / 1e3)
}

/// Returns the lines that a program has to carry, in the order of the topology's delays. Empty if `netem`, because the
/// kernel carries them then.
#[must_use]
pub fn lines(topology: &Topology, netem: bool) -> Vec<Line> {
    let all = topology.underlay.delays.iter().enumerate();
    let lines = all.map(|(number, delay)| Line {
        device: device(number),
        one_way: one_way(delay),
        loss: delay.loss,
    });
    if netem { Vec::new() } else { lines.collect() }
}

/// Creates the lines between segments, whose bridges must exist. Returns true if the kernel carries them with netem, or
/// if there are none; otherwise they lose all packets until a program carries [`lines`].
///
/// # Errors
/// The namespace of the host `internet` does not exist, or a command fails.
pub(super) fn build(hosts: &dyn Hosts, topology: &Topology) -> Result<bool> {
    let delays = &topology.underlay.delays;
    if delays.is_empty() {
        return Ok(true);
    }
    inside(&hosts.netns(INTERNET), || {
        let netem = has_netem();
        for (number, delay) in delays.iter().enumerate() {
            let mtu = topology.underlay.mtu.to_string();
            let back = if netem {
                make_pair(number, delay, &mtu)?
            } else {
                make_tun(number, &mtu)?
            };
            let [a, b] = &delay.between;
            let table = (FIRST_TABLE + number).to_string();
            route_through(topology, (a, b), &device(number), &table)?;
            route_through(topology, (b, a), &back, &table)?;
        }
        Ok(netem)
    })?
}

/// Routes packets that arrive from the segment `from` for the segment `to` through `device`. Packets that return from
/// the device arrive from neither segment, so the main table routes them.
fn route_through(topology: &Topology, (from, to): (&str, &str), device: &str, table: &str) -> Result<()> {
    let segment = topology.underlay.segments.get(to);
    let prefix: IpNet = segment.with_context(|| format!("there is no segment '{to}'"))?.prefix;
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    let prefix = prefix.to_string();
    run(&["ip", family, "route", "add", &prefix, "dev", device, "table", table])?;
    run(&["ip", family, "rule", "add", "iif", from, "to", &prefix, "lookup", table]).map(drop)
}

/// Creates a TUN device, and returns its name. Packets are lost until a program reads the device.
fn make_tun(number: usize, mtu: &str) -> Result<String> {
    let name = device(number);
    run(&["ip", "tuntap", "add", "dev", &name, "mode", "tun"])?;
    // By default a TUN device queues only 500 packets, and drops further ones until the program's thread has run.
    run(&["ip", "link", "set", &name, "mtu", mtu, "txqueuelen", "5000", "up"])?;
    Ok(name)
}

/// Creates a veth pair with netem on both devices, and returns the name of the second one.
fn make_pair(number: usize, delay: &Delay, mtu: &str) -> Result<String> {
    let (name, other) = (device(number), other_device(number));
    // The devices have no ARP. A frame has the sender's own MAC address as its destination, which must be the
    // receiver's too.
    let address = format!("02:74:6d:01:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff);
    run(&[
        "ip", "link", "add", &name, "address", &address, "mtu", mtu, "type", "veth", "peer", "name", &other, "address",
        &address, "mtu", mtu,
    ])?;
    let ms = format!("{}us", one_way(delay).as_micros());
    let loss = format!("{}%", delay.loss * 100.0);
    for device in [&name, &other] {
        run(&["ip", "link", "set", device, "arp", "off", "up"])?;
        run(&[
            "tc",
            "qdisc",
            "add",
            "dev",
            device,
            "root",
            "netem",
            "delay",
            &ms,
            "loss",
            &loss,
            "limit",
            NETEM_LIMIT,
        ])?;
    }
    Ok(other)
}

/// Whether this kernel has netem. Tests it on the loopback device of the calling thread's namespace.
fn has_netem() -> bool {
    let netem = |verb: &str| run(&["tc", "qdisc", verb, "dev", "lo", "root", "netem", "delay", "1ms"]);
    let has = netem("add").is_ok();
    if has {
        // The underlay's router has no traffic on its loopback device, so a failure here has no effect.
        let _ = run(&["tc", "qdisc", "del", "dev", "lo", "root"]);
    }
    has
}
