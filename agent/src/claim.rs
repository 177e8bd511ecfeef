//! Exclusive claims of a running agent on its host: its device and its routing tables. The claims ensure that no agent
//! removes rules or routes of another agent.
//!
//! A TUN device vanishes when the process that opened it ends, so a device that exists is in use. Agents claim routing
//! tables by abstract sockets. Abstract sockets belong to a network namespace, as routing tables do, and vanish when
//! their process ends.

use crate::apply::plan::{KernelIds, TABLES};
use crate::apply::{Inherited, sweep};
use crate::config::Config;
use crate::netlink::Netlink;
use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Exclusive use of an agent's routing tables, until the value is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    tables: [u32; TABLES],
    _sockets: Vec<UnixListener>,
}

impl Claim {
    /// Claims the device name and all tables of `numbers`, in the network namespace of the calling thread. Does
    /// not wait. The device name is only checked: another program can take it until this agent has created the device.
    /// Until the result is dropped, a second call for the same tables fails, also in this process.
    ///
    /// # Errors
    /// A device with this name exists, another agent has claimed one of the tables, or a socket cannot be bound.
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

/// Claims device and tables for an agent that starts, and opens the netlink connection. If the last run used other
/// table numbers (`numbers.json` has them), also claims the last run's tables, unless another agent uses them by now.
/// Rules and routes of earlier runs stay until the first configuration is in force, because they confine overlay
/// packets until then. The claim must be kept as long as the agent runs. A malformed `numbers.json` is logged, and
/// counts as missing.
///
/// # Errors
/// Another agent has the device or a table, `numbers.json` cannot be read, or the kernel refuses a socket. Nothing on
/// the host was changed then.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn take_host(state: &StateDir, config: &Config) -> Result<(Claim, Netlink, Inherited)> {
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let mut claim = Claim::take(&config.interface, numbers)?;
    let before = last_used(state)?;
    let mut inherited = Inherited::default();
    // If this run uses a table of the last run too, `inherited.before` stays empty. The first configuration then
    // removes only those rules and routes of the last run that it does not need.
    let other_tables = |b: &KernelIds| !b.tables().iter().any(|t| numbers.tables().contains(t));
    if let Some(before) = before.filter(other_tables) {
        match Claim::of_tables(before, &claim.tables) {
            Ok(held) => {
                claim._sockets.extend(held._sockets);
                inherited.before = Some(before);
            }
            Err(e) => {
                tracing::info!(reason = %format!("{e:#}"), "rules of the last run not removed: its tables are in use")
            }
        }
    }
    let netlink = Netlink::open(numbers, config.customer_interface.clone())?;
    Ok((claim, netlink, inherited))
}

/// Records this run's numbers (tables, rule priorities, mark) in `numbers.json` for the next run. The caller must first
/// remove the rules and routes with the numbers that the file has had until then, because nothing finds these rules and
/// routes once the file has other numbers. If the file has the same numbers, it is not written.
///
/// # Errors
/// The file cannot be read or written. A malformed file is replaced.
pub fn record_kernel_ids(state: &StateDir, numbers: KernelIds) -> Result<()> {
    if last_used(state)? != Some(numbers) {
        state.write(file::NUMBERS, &serde_json::to_vec(&numbers)?)?;
    }
    Ok(())
}

/// Claims device and tables for the time of this call, and removes the rules, routes and packet filter of earlier runs.
/// Returns the number of removed rules and routes. Then records this run's numbers in `numbers.json`. The caller must
/// hold the lock of the state directory, and needs CAP_NET_ADMIN. A second call finds nothing, and returns 0.
///
/// # Errors
/// [`take_host`] fails, a netlink request or `nft` fails, or `numbers.json` cannot be written. What was removed before
/// stays removed.
pub async fn clear_host(state: &StateDir, config: &Config) -> Result<usize> {
    let (_claim, _netlink, inherited) = take_host(state, config)?;
    let numbers = KernelIds::of(&config.interface, config.table, config.fwmark);
    let mut count = sweep(numbers).await?;
    if let Some(before) = inherited.before {
        count += sweep(before).await?;
    }
    record_kernel_ids(state, numbers)?;
    Ok(count)
}

fn last_used(state: &StateDir) -> Result<Option<KernelIds>> {
    let Some(bytes) = state.read(file::NUMBERS)? else {
        return Ok(None);
    };
    let numbers = serde_json::from_slice(&bytes);
    Ok(numbers
        .inspect_err(|e| tracing::warn!(error = %e, "{} not read: rules of an earlier run may stay", file::NUMBERS))
        .ok())
}
