//! Network interfaces of hosts: veth pairs and addresses.

use crate::command::run;
use crate::host::{Hosts, inside};
use anyhow::{Context, Result};

/// One end of a veth pair: a host, and the name of the device on it.
pub type VethEnd<'a> = (&'a str, &'a str);

/// Connects two hosts with a veth pair. Both devices are down. A device loses its carrier when its peer goes down.
///
/// # Errors
/// The command fails, for example because a device of this name exists.
pub fn create_veth_pair(hosts: &dyn Hosts, (a, device): VethEnd<'_>, (b, other): VethEnd<'_>, mtu: u16) -> Result<()> {
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

/// Returns the command that adds an address (`ADDRESS/LENGTH`) to a device. IPv6 addresses skip duplicate address
/// detection, so that they are usable at once; the topology's check has found all duplicates.
#[must_use]
pub fn add_address_argv<'a>(address: &'a str, device: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        argv.push("nodad");
    }
    argv
}

/// Adds an address to a device in the network namespace of the calling thread, as [`add_address_argv`] does.
///
/// # Errors
/// The command fails.
pub fn add_address(address: &str, device: &str) -> Result<()> {
    run(&add_address_argv(address, device)).map(drop)
}
