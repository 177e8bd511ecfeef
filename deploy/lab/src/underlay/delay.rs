//! Delays between segments. For two segments with a delay, the underlay's router sends the packets between them out by
//! a separate device. The packets return to the router after the delay. The device is one end of a veth pair with
//! netem, or a TUN device that a program reads.

use crate::command::run;
use crate::delay::Line;
use crate::host::{Hosts, inside};
use crate::topology::{Delay, INTERNET, Topology};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::time::Duration;

/// Number of the first line's routing table; each further line has the next number. Any number would do, because the
/// namespace of the underlay's router has no other such tables.
const FIRST_TABLE: usize = 1000;
/// Largest number of packets in flight on one line with netem: the same number as for a line of [`crate::delay`].
const NETEM_LIMIT: &str = "20000";

/// Returns the name of the device through which the router sends packets of line `number`.
fn device(number: usize) -> String {
    format!("delay{number}")
}

/// Returns the name of the second device of line `number`, which exists only with netem.
fn other_device(number: usize) -> String {
    format!("delay{number}b")
}

fn one_way(delay: &Delay) -> Duration {
    Duration::from_secs_f64(delay.one_way_ms / 1e3)
}

/// Returns the lines whose packets a program has to delay, in the order of the topology's delays. `netem` is what
/// [`build`](super::build) has returned. Empty if it is true, because then the kernel delays the packets.
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

/// Creates the lines between segments, whose bridges must exist. Returns true if the kernel delays the packets with
/// netem, or if the topology has no delays. Returns false if a program must carry [`lines`]; until it does, the lines
/// lose all packets.
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

/// Routes packets that arrive from the segment `from` for the segment `to` through `device`. A packet that returns
/// after its delay arrives from a delay device and not from the segment `from`. So the rule does not match it, and the
/// main routing table leads it to the segment `to`.
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
    // By default a TUN device queues only 500 packets. It drops further packets until the program has read from the
    // queue, so the queue is made longer here.
    run(&["ip", "link", "set", &name, "mtu", mtu, "txqueuelen", "5000", "up"])?;
    Ok(name)
}

/// Creates a veth pair with netem on both devices, and returns the name of the second one.
fn make_pair(number: usize, delay: &Delay, mtu: &str) -> Result<String> {
    let (name, other) = (device(number), other_device(number));
    // The devices have no ARP, so each frame has the sender's own MAC address as its destination. For the receiver to
    // accept the frame, both devices have the same address.
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

/// Whether this kernel has netem. The test adds netem to the loopback device of the calling thread's namespace, and
/// removes it again.
fn has_netem() -> bool {
    let netem = |verb: &str| run(&["tc", "qdisc", verb, "dev", "lo", "root", "netem", "delay", "1ms"]);
    let has = netem("add").is_ok();
    if has {
        // An error is ignored: the underlay's router has no traffic on its loopback device, so a netem that stays there
        // has no effect.
        let _ = run(&["tc", "qdisc", "del", "dev", "lo", "root"]);
    }
    has
}
