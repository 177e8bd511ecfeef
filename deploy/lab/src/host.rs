//! What a host is: something with a network namespace in which programs can run. What runs on it is not known here.
//!
//! Network namespaces are the first kind; a container is a second that fits the same verbs, because it has a network
//! namespace too and the underlay asks for nothing else.

use crate::command::{self, run};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Makes and removes hosts, and runs programs on them.
pub trait Hosts: Send + Sync {
    /// Makes a host with nothing but a loopback device.
    ///
    /// # Errors
    /// It exists already, or the system refuses.
    fn create(&self, host: &str) -> Result<()>;

    /// Removes a host. One that does not exist is no error.
    ///
    /// # Errors
    /// The system refuses.
    fn remove(&self, host: &str) -> Result<()>;

    /// Whether the host exists.
    fn exists(&self, host: &str) -> bool;

    /// The file that stands for its network namespace.
    fn netns(&self, host: &str) -> PathBuf;

    /// The command line that runs `argv` on the host.
    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// The processes that run on the host.
    fn processes(&self, host: &str) -> Vec<i32>;

    /// How a person starts a shell on the host.
    fn enter(&self, host: &str) -> String {
        self.wrap(host, &["bash".to_owned()]).join(" ")
    }
}

/// Hosts that are named network namespaces `tb-<lab>-<host>` of this machine.
#[derive(Debug, Clone)]
pub struct Namespaces {
    lab: String,
}

impl Namespaces {
    /// The hosts of one lab.
    #[must_use]
    pub fn new(lab: &str) -> Self {
        Self { lab: lab.to_owned() }
    }

    /// The namespace's name.
    #[must_use]
    pub fn name(&self, host: &str) -> String {
        format!("tb-{}-{host}", self.lab)
    }
}

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

impl Hosts for Namespaces {
    fn create(&self, host: &str) -> Result<()> {
        run(&["ip", "netns", "add", &self.name(host)])?;
        inside(&self.netns(host), || run(&["ip", "link", "set", "lo", "up"]))??;
        Ok(())
    }

    fn remove(&self, host: &str) -> Result<()> {
        if self.exists(host) {
            run(&["ip", "netns", "del", &self.name(host)])?;
        }
        Ok(())
    }

    fn exists(&self, host: &str) -> bool {
        self.netns(host).exists()
    }

    fn netns(&self, host: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.name(host))
    }

    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String> {
        let mut all = ["ip", "netns", "exec"].map(str::to_owned).to_vec();
        all.push(self.name(host));
        all.extend_from_slice(argv);
        all
    }

    fn processes(&self, host: &str) -> Vec<i32> {
        let argv = ["ip", "netns", "pids", &self.name(host)].map(str::to_owned);
        let found = command::finish(&argv, command::LIMIT);
        let pids = found.map(|f| f.stdout).unwrap_or_default();
        pids.split_whitespace().filter_map(|p| p.parse().ok()).collect()
    }
}

/// Runs `action` on a thread of its own in a network namespace; the caller's thread stays where it is.
///
/// # Errors
/// The namespace cannot be entered.
///
/// # Panics
/// With `action`.
pub fn inside<T: Send>(netns: &Path, action: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("network namespace {}", netns.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering a network namespace (root is needed)")?;
            Ok(action())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Writes switches below `/proc/sys/net` of a network namespace: `("ipv4/ip_forward", "1")`.
///
/// # Errors
/// A switch that this kernel does not have.
pub fn sysctl(netns: &Path, switches: &[(&str, &str)]) -> Result<()> {
    inside(netns, || {
        for (name, value) in switches {
            let path = Path::new("/proc/sys/net").join(name);
            std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))?;
        }
        Ok(())
    })?
}
