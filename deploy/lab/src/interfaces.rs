//! A cable between two hosts.

use crate::command::run;
use crate::host::{Hosts, inside};
use anyhow::{Context, Result};

/// One end: a host, and the name of its device.
pub type End<'a> = (&'a str, &'a str);

/// Joins two hosts. Both devices are down, and lose their carrier when the other one is taken down.
///
/// # Errors
/// The system refuses.
pub fn connect(hosts: &dyn Hosts, (a, device): End<'_>, (b, other): End<'_>, mtu: u16) -> Result<()> {
    let (mtu, netns) = (mtu.to_string(), hosts.netns(b));
    let netns = netns.to_str().context("a path that is not text")?;
    inside(&hosts.netns(a), || {
        run(&[
            "ip", "link", "add", device, "mtu", &mtu, "type", "veth", "peer", "name", other, "mtu", &mtu, "netns",
            netns,
        ])
    })??;
    Ok(())
}

/// The command that gives a device an address with the length of its network. An IPv6 address is usable at once: nothing on this
/// network can have it already.
#[must_use]
pub fn adding<'a>(address: &'a str, device: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        argv.push("nodad");
    }
    argv
}

/// Runs [`adding`] in the namespace of the calling thread.
///
/// # Errors
/// The system refuses.
pub fn add_address(address: &str, device: &str) -> Result<()> {
    run(&adding(address, device)).map(drop)
}
