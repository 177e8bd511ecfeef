//! The packet filter that an agent loads into its host's kernel, by the program `nft`: the last line of what keeps packets
//! with overlay addresses off other networks (D22). It stands after source translation, because a packet of a published
//! container port gets its overlay source only there, when its way is already chosen.
//!
//! Each agent has a table of its own. It stays when the agent ends, and `tombolo-agent clean` removes it.

use crate::config::check_interface;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Device group of every agent's TUN device ("tm"): a packet may pass from one agent of a host to another.
pub const DEVICE_GROUP: u32 = 0x746d;

/// Priority of the chain: 50 after `srcnat`.
const PRIORITY: u32 = 150;

/// The program that loads filters.
const PROGRAM: &str = "nft";

/// Longest that `nft` may take. It takes 5 ms on an idle machine.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where `nft` is looked for beside `PATH`, which often lacks the folders of system programs.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// What the filter drops, and what it lets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Mark of the links' encrypted datagrams, which always pass.
    pub fwmark: u32,
    /// The agent's addresses: nothing that has one as its source leaves by another device than a TUN device.
    pub own: BTreeSet<IpAddr>,
    /// Served subnets: the same for packets from there that the host forwards.
    pub served: BTreeSet<IpNet>,
    /// Overlay prefixes: the same for packets that the host forwards out of a TUN device.
    pub forwarded: Vec<IpNet>,
    /// Destinations that are no other network: a prefix, and the interfaces that lead there.
    pub local: BTreeMap<IpNet, BTreeSet<String>>,
    /// Whether the host forwards to a customer edge. What leaves by that interface passes.
    pub line: bool,
}

/// Name of an agent's table, by the number of its routing table.
#[must_use]
pub fn table_name(routing_table: u32) -> String {
    format!("tombolo-{routing_table}")
}

impl Filter {
    /// What `nft -f` takes to put this filter in the place of whatever the table holds now, in one transaction.
    #[must_use]
    pub fn script(&self, table: &str, customer_interface: Option<&str>) -> String {
        let mut rules = vec![
            format!("meta mark {:#x} accept", self.fwmark),
            format!("meta oifgroup {DEVICE_GROUP} accept"),
            "oifname \"lo\" accept".to_owned(),
        ];
        if let (true, Some(name)) = (self.line, customer_interface) {
            rules.push(format!("oifname \"{name}\" accept"));
        }
        for (prefix, interfaces) in &self.local {
            let plain = interfaces.iter().filter(|i| check_interface(i).is_ok());
            let names: Vec<_> = plain.map(|i| format!("\"{i}\"")).collect();
            if !names.is_empty() {
                let (family, names) = (family(prefix.addr()), names.join(", "));
                rules.push(format!("{family} daddr {prefix} oifname {{ {names} }} accept"));
            }
        }
        let own: Vec<_> = self.own.iter().map(|a| IpNet::from(*a)).collect();
        let served: Vec<_> = self.served.iter().copied().collect();
        // A packet that the host forwards has come in somewhere.
        let forwarded_from_device = format!("meta iifgroup {DEVICE_GROUP} ");
        for (condition, sources) in [
            ("", &own),
            ("meta iif != 0 ", &served),
            (&*forwarded_from_device, &self.forwarded),
        ] {
            for v6 in [false, true] {
                let all: Vec<_> = sources.iter().filter(|s| s.addr().is_ipv6() == v6).collect();
                if let Some(first) = all.first() {
                    let list: Vec<_> = all.iter().map(ToString::to_string).collect();
                    let family = family(first.addr());
                    rules.push(format!(
                        "{condition}{family} saddr {{ {} }} counter drop",
                        list.join(", ")
                    ));
                }
            }
        }
        let mut text = removal(table);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "table inet {table} {{\n\tchain leaving {{");
        let _ = writeln!(
            text,
            "\t\ttype filter hook postrouting priority {PRIORITY}; policy accept;"
        );
        for rule in rules {
            let _ = writeln!(text, "\t\t{rule}");
        }
        text += "\t}\n}\n";
        text
    }
}

const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// Removes a table that may not exist: deleting one that does not would be an error.
fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Why a filter is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// This host has no such program.
    #[error("the program {0} is missing: install the package nftables, then restart the agent")]
    Missing(&'static str),
    /// It cannot be run.
    #[error("running nft: {0}")]
    Run(#[from] std::io::Error),
    /// It does not end.
    #[error("nft did not end within {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// It, or the kernel, does not take the filter.
    #[error("nft refused: {0}")]
    Refused(String),
}

/// Loads a script, all of it or nothing, in the network namespace of the calling thread.
///
/// # Errors
/// There is no `nft` on this host, or it fails.
pub async fn load(script: &str) -> Result<(), FilterError> {
    run(PROGRAM, script).await
}

async fn run(program: &'static str, script: &str) -> Result<(), FilterError> {
    let mut child = match Command::new(program)
        .args(["-f", "-"])
        .env("PATH", search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
    {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(FilterError::Missing(program)),
        Err(e) => return Err(e.into()),
    };
    let run = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT_TIMEOUT, run)
        .await
        .map_err(|_| FilterError::Timeout)??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it did not say why");
    Err(FilterError::Refused(first.to_owned()))
}

/// Removes an agent's table, if it is there. Where there is no `nft`, none was loaded.
///
/// # Errors
/// `nft` fails.
pub async fn remove(table: &str) -> Result<(), FilterError> {
    match load(&removal(table)).await {
        Err(FilterError::Missing(_)) => Ok(()),
        other => other,
    }
}

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATH);
    path
}

#[cfg(test)]
mod tests;
