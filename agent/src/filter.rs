//! The nftables filter that keeps packets with overlay addresses off other networks (D22), in addition to the agent's
//! routes and rules. The filter runs after source translation (SNAT). A reply of a published container port gets its
//! overlay source address during that translation, and the kernel has routed the packet before. So the agent's routes
//! and rules cannot confine such a packet.
//!
//! Each agent loads a table of its own with the program `nft`. The table stays when the agent ends, and `tombolo-agent
//! clean` removes it.

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

/// Device group of the TUN devices of all agents: the ASCII codes of "tm". The filter accepts packets into any device
/// of the group, because packets may pass from one agent of a host to another agent of the same host.
pub const DEVICE_GROUP: u32 = 0x746d;

/// Priority of the filter's chain. Chains with larger numbers run later, and chains for source translation (`srcnat`)
/// have the number 100 (`nft(8)`). So this chain sees the sources after their translation.
const PRIORITY: u32 = 150;

/// The command-line program of nftables, which loads a script as one transaction.
const PROGRAM: &str = "nft";

/// Timeout of `nft`. On an idle machine `nft` takes 5 ms; the large margin is for a machine under load.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// Folders in which `nft` is searched after those of `PATH`. `PATH` often lacks the folders that end in `sbin`.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// The addresses, networks and interfaces from which [`script`](Self::script) makes a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Firewall mark of the links' encrypted datagrams, which are always accepted.
    pub fwmark: u32,
    /// The agent's overlay addresses. Packets with such a source may leave only by TUN devices and loopback.
    pub own: BTreeSet<IpAddr>,
    /// Served subnets, whose machines run no agents. Forwarded packets with a source in these subnets may leave only by
    /// TUN devices and loopback.
    pub served: BTreeSet<IpNet>,
    /// Overlay prefixes. Packets that arrived from a TUN device and have a source in these prefixes may leave only by
    /// TUN devices and loopback.
    pub forwarded: Vec<IpNet>,
    /// Exceptions for networks inside the host and for served subnets: packets to the prefix may leave by these
    /// interfaces.
    pub local: BTreeMap<IpNet, BTreeSet<String>>,
    /// Whether the host is a circuit edge. If so, packets may also leave by the interface to the customer edge.
    pub line: bool,
}

/// The name of the nftables table of the agent with this routing table. No two agents of a host use the same routing
/// table, so the name is unique on the host.
#[must_use]
pub fn table_name(routing_table: u32) -> String {
    format!("tombolo-{routing_table}")
}

impl Filter {
    /// The `nft` script that replaces the contents of `table` by this filter, in one transaction. `customer_interface`
    /// is the interface to the customer edge; without it a circuit edge has no exception for that interface.
    /// `customer_interface` and `table` go into the script without a check: the first must satisfy [`check_interface`],
    /// and the second is the result of [`table_name`]. An interface in `local` whose name `nft` could interpret gets no
    /// exception. The function runs nothing.
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
            // The kernel permits nearly every character in an interface's name, and `nft` gives some of them a meaning.
            // So the script has no interface whose name could be misread.
            let plain = interfaces.iter().filter(|i| check_interface(i).is_ok());
            let names: Vec<_> = plain.map(|i| format!("\"{i}\"")).collect();
            if !names.is_empty() {
                let (family, names) = (family(prefix.addr()), names.join(", "));
                rules.push(format!("{family} daddr {prefix} oifname {{ {names} }} accept"));
            }
        }
        let own: Vec<_> = self.own.iter().map(|a| IpNet::from(*a)).collect();
        let served: Vec<_> = self.served.iter().copied().collect();
        // `meta iif != 0` matches forwarded packets, because packets of the host itself have no input interface in
        // postrouting.
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

/// The keyword of `nft` for the family of this address.
const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// The script that removes a table. The script first creates the table, because `delete` fails for a table that does
/// not exist.
fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Why a filter is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The program with this name is not installed.
    #[error("the program {0} is missing: install the package nftables, then restart the agent")]
    Missing(&'static str),
    /// The program could not be started, or one of its pipes failed.
    #[error("running nft: {0}")]
    Run(#[from] std::io::Error),
    /// The program did not end within 10 s, and was killed.
    #[error("nft did not end within {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// `nft` or the kernel refused the script. The text is the first line of the error.
    #[error("nft refused: {0}")]
    Refused(String),
}

/// Runs a script with `nft`, in the network namespace of the calling thread. Returns when `nft` has ended, within 10 s.
/// The kernel applies either the whole script or nothing of it. Dropping the future kills `nft`; the script may have
/// taken effect by then. CAP_NET_ADMIN is needed.
///
/// # Errors
/// `nft` is not installed, cannot be started, refuses the script, or does not end in time. After a timeout the script
/// may have taken effect.
///
/// # Panics
/// Outside of a Tokio runtime.
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
    let errors = String::from_utf8_lossy(&output.stderr);
    let first = errors.lines().next().unwrap_or("no reason given");
    Err(FilterError::Refused(first.to_owned()))
}

/// Removes the nftables table with this name, the result of [`table_name`], and its filter; a table that does not exist
/// is no error. A host without `nft` has no table, so a missing program is no error either. Works in the network
/// namespace of the calling thread, and needs CAP_NET_ADMIN.
///
/// # Errors
/// `nft` cannot be started, fails, or does not end within 10 s.
///
/// # Panics
/// Outside of a Tokio runtime.
pub async fn remove(table: &str) -> Result<(), FilterError> {
    match load(&removal(table)).await {
        Err(FilterError::Missing(_)) => Ok(()),
        other => other,
    }
}

/// The folders of `PATH`, followed by those of [`SYSTEM_PATH`].
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
