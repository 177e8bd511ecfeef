//! Segments that are far from each other. Packets between them leave the underlay's router by a device of their own and
//! come back to it later: a TUN device with a program behind it, or, where the kernel has netem, a pair of devices.

use crate::command::run;
use crate::delay::Line;
use crate::host::{Hosts, inside};
use crate::topology::{Delay, INTERNET, Topology};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::time::Duration;

/// The tables of the routes into the lines, one a line from here.
const FIRST_TABLE: usize = 1000;
/// Packets that netem keeps, as [`crate::delay`] does.
const BOUND: &str = "20000";

/// The device of a line.
fn device(number: usize) -> String {
    format!("delay{number}")
}

/// The other one of a pair.
fn other_device(number: usize) -> String {
    format!("delay{number}b")
}

fn one_way(delay: &Delay) -> Duration {
    Duration::from_secs_f64(delay.one_way_ms / 1e3)
}

/// The lines that a program has to carry; none if the kernel does.
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

/// Makes the lines between segments. The segments must exist. Returns whether the kernel carries them by itself.
///
/// # Errors
/// The system refuses.
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
            steer(topology, (a, b), &device(number), &table)?;
            steer(topology, (b, a), &back, &table)?;
        }
        Ok(netem)
    })?
}

/// What comes from one segment for another leaves by `device`.
fn steer(topology: &Topology, (from, to): (&str, &str), device: &str, table: &str) -> Result<()> {
    let segment = topology.underlay.segments.get(to);
    let prefix: IpNet = segment.with_context(|| format!("there is no segment '{to}'"))?.prefix;
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    let prefix = prefix.to_string();
    run(&["ip", family, "route", "add", &prefix, "dev", device, "table", table])?;
    run(&["ip", family, "rule", "add", "iif", from, "to", &prefix, "lookup", table]).map(drop)
}

/// A device that a program reads. Until it does, packets are lost.
fn make_tun(number: usize, mtu: &str) -> Result<String> {
    let name = device(number);
    run(&["ip", "tuntap", "add", "dev", &name, "mode", "tun"])?;
    run(&["ip", "link", "set", &name, "mtu", mtu, "txqueuelen", "5000", "up"])?;
    Ok(name)
}

/// Two devices back to back: what goes into one comes out of the other, later.
fn make_pair(number: usize, delay: &Delay, mtu: &str) -> Result<String> {
    let (name, other) = (device(number), other_device(number));
    // One address for both and no ARP: each takes what the other sends for its own.
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
            "tc", "qdisc", "add", "dev", device, "root", "netem", "delay", &ms, "loss", &loss, "limit", BOUND,
        ])?;
    }
    Ok(other)
}

/// Whether this kernel can delay packets by itself.
fn has_netem() -> bool {
    let netem = |verb: &str| run(&["tc", "qdisc", verb, "dev", "lo", "root", "netem", "delay", "1ms"]);
    let has = netem("add").is_ok();
    if has {
        // The loopback device of the underlay's router carries nothing; it is left as it was all the same.
        let _ = run(&["tc", "qdisc", "del", "dev", "lo", "root"]);
    }
    has
}
