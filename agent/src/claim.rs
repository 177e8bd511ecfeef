//! What a running agent has for itself on its host: its device and its routing tables. Nothing of another agent's is
//! ever swept.
//!
//! A TUN device vanishes with its process, so one that exists is in use. Tables are claimed by abstract sockets, which
//! belong to the network namespace as tables do, and vanish with their process as well.

use crate::apply::plan::KernelIds;
use crate::apply::{Inherited, sweep};
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
    tables: [u32; 4],
    _sockets: Vec<UnixListener>,
}

impl Claim {
    /// Claims the device's name and all tables.
    ///
    /// # Errors
    /// The device exists, or another agent has one of the tables.
    pub fn take(interface: &str, numbers: KernelIds) -> Result<Self> {
        if if_nametoindex(interface).is_ok() {
            bail!("interface: a device {interface} exists: another agent or program has it");
        }
        Self::of_tables(numbers, &[])
    }

    fn of_tables(numbers: KernelIds, held: &[u32]) -> Result<Self> {
        let tables = numbers.tables();
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

/// Claims the host for an agent that starts. What earlier runs left stays, to be removed when the first configuration is in
/// force: until then it keeps packets with overlay addresses on the host.
///
/// # Errors
/// Another agent has the device or a table: nothing was touched then. Or the kernel refuses.
pub fn take_host(state: &StateDir, config: &Config) -> Result<(Claim, Netlink, Inherited)> {
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let mut claim = Claim::take(&config.interface, numbers)?;
    let before = last_used(state)?;
    let mut inherited = Inherited::default();
    // Under the same tables they are told from this run's one by one.
    let other_tables = |b: &KernelIds| !b.tables().iter().any(|t| numbers.tables().contains(t));
    if let Some(before) = before.filter(other_tables) {
        match Claim::of_tables(before, &claim.tables) {
            Ok(held) => {
                claim._sockets.extend(held._sockets);
                inherited.before = Some(before);
            }
            Err(e) => tracing::info!(reason = %format!("{e:#}"), "tables of the last run not swept"),
        }
    }
    let netlink = Netlink::open(numbers, config.customer_interface.clone())?;
    Ok((claim, netlink, inherited))
}

/// Notes the numbers of this run for the next one; to be called when nothing is left of a run with others.
///
/// # Errors
/// The file cannot be written.
pub fn note_numbers(state: &StateDir, numbers: KernelIds) -> Result<()> {
    if last_used(state)? != Some(numbers) {
        state.write(file::NUMBERS, &serde_json::to_vec(&numbers)?)?;
    }
    Ok(())
}

/// Claims the host, then removes all that earlier runs left. Returns how many rules and routes there were.
///
/// # Errors
/// As [`take_host`].
pub async fn clear_host(state: &StateDir, config: &Config) -> Result<usize> {
    let (_claim, _netlink, inherited) = take_host(state, config)?;
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let mut count = sweep(numbers).await?;
    if let Some(before) = inherited.before {
        count += sweep(before).await?;
    }
    note_numbers(state, numbers)?;
    Ok(count)
}

fn last_used(state: &StateDir) -> Result<Option<KernelIds>> {
    let Some(bytes) = state.read(file::NUMBERS)? else {
        return Ok(None);
    };
    let numbers = serde_json::from_slice(&bytes);
    Ok(numbers
        .inspect_err(|e| tracing::warn!(error = %e, "{} not read", file::NUMBERS))
        .ok())
}
