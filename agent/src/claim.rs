//! What a running agent has for itself on its host: its device and its routing tables. Nothing of another agent's is
//! ever swept.
//!
//! A TUN device vanishes with its process, so one that exists is in use. Tables are claimed by abstract sockets, which
//! belong to the network namespace as tables do, and vanish with their process as well.

use crate::apply::plan::Numbers;
use crate::config::Config;
use crate::netlink::Netlink;
use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Proof that no other agent uses the device or the tables; given up with the value.
#[derive(Debug)]
pub struct Claim {
    tables: [u32; 2],
    _sockets: Vec<UnixListener>,
}

impl Claim {
    /// Claims the device's name and both tables.
    ///
    /// # Errors
    /// The device exists, or another agent has one of the tables.
    pub fn take(interface: &str, numbers: Numbers) -> Result<Self> {
        if if_nametoindex(interface).is_ok() {
            bail!("interface: a device {interface} exists: another agent or program has it");
        }
        Self::of_tables(numbers, &[])
    }

    fn of_tables(numbers: Numbers, held: &[u32]) -> Result<Self> {
        let tables = [numbers.table, numbers.default_table];
        let free = tables.iter().filter(|t| !held.contains(t));
        Ok(Self {
            tables,
            _sockets: free.map(|t| claim_table(*t)).collect::<Result<_>>()?,
        })
    }
}

fn claim_table(table: u32) -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("tombolo-table-{table}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(socket) => Ok(socket),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            bail!("table: another agent of this host has the routing table {table}: set another one in agent.toml")
        }
        Err(e) => Err(e).with_context(|| format!("claiming the routing table {table}")),
    }
}

/// Claims the host for an agent, then removes the rules and routes that a crash left: under its present numbers, and
/// under those of its last run where these were others. Returns how many there were.
///
/// # Errors
/// Another agent has the device or a table: nothing was touched then. Or the kernel refuses.
pub async fn take_host(state: &StateDir, config: &Config) -> Result<(Claim, Netlink, usize)> {
    let numbers = Numbers::of(&config.interface, config.table, config.fwmark);
    let claim = Claim::take(&config.interface, numbers)?;
    let mut count = 0;
    let before = last_used(state)?;
    if let Some(before) = before.filter(|b| *b != numbers) {
        match Claim::of_tables(before, &claim.tables) {
            Ok(_held) => count += Netlink::open(before, None)?.sweep().await?,
            Err(e) => tracing::info!(reason = %format!("{e:#}"), "tables of the last run not swept"),
        }
    }
    if before != Some(numbers) {
        state.write(file::NUMBERS, &serde_json::to_vec(&numbers)?)?;
    }
    let netlink = Netlink::open(numbers, config.customer_interface.clone())?;
    count += netlink.sweep().await?;
    Ok((claim, netlink, count))
}

fn last_used(state: &StateDir) -> Result<Option<Numbers>> {
    let Some(bytes) = state.read(file::NUMBERS)? else {
        return Ok(None);
    };
    let numbers = serde_json::from_slice(&bytes);
    Ok(numbers
        .inspect_err(|e| tracing::warn!(error = %e, "{} not read", file::NUMBERS))
        .ok())
}
