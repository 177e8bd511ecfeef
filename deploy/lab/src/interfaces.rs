//! Network interfaces of hosts: creates veth pairs and adds addresses.

use crate::command::run;
use crate::host::{Hosts, inside};
use anyhow::{Context, Result};

/// One end of a veth pair: the name of a host, and the name of the device there.
pub type VethEnd<'a> = (&'a str, &'a str);

/// Connects two hosts, which may be the same one, with a veth pair. Both devices have this `mtu`, bytes, and are down.
/// When one device of the pair is set down, the other one loses its carrier. Root is needed. The kernel creates both
/// devices or none.
///
/// # Errors
/// A namespace cannot be entered, as for [`inside`], or the command fails, for example because a device of this name
/// exists or a device's name has more than 15 bytes.
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

/// Returns the command line that adds an address (`ADDRESS/LENGTH`) to a device, but does not run it and does not check
/// the arguments. For an IPv6 address, the command switches off duplicate address detection, so that the address is
/// usable at once. Nothing then detects a duplicate, so the caller must know that the address is unique.
#[must_use]
pub fn add_address_argv<'a>(address: &'a str, device: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        argv.push("nodad");
    }
    argv
}

/// Adds an address (`ADDRESS/LENGTH`) to a device in the network namespace of the calling thread, with the command of
/// [`add_address_argv`]. Root is needed.
///
/// # Errors
/// The command fails, for example because the device does not exist or has the address already. Nothing is changed
/// then.
pub fn add_address(address: &str, device: &str) -> Result<()> {
    run(&add_address_argv(address, device)).map(drop)
}
