//! What a host is: something with a network namespace in which programs can run. What runs on it is not known here.

mod docker;
mod namespaces;
pub(crate) mod remote;
mod vm;

pub use docker::Docker;
pub use namespaces::Namespaces;
pub use vm::VirtualMachines;

use crate::binary;
use crate::command;
use crate::process::{self, Process};
use crate::topology::Topology;
use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What the hosts of a lab are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Network namespaces of this machine, in which its own programs run
    #[default]
    Netns,
    /// Docker containers from the image that `make image` makes; the underlay and sites stay namespaces
    Docker,
    /// QEMU virtual machines from the image that `make vm-image` makes; the controller, the underlay and sites stay namespaces
    Vm,
}

impl Runtime {
    /// Looks for what it needs, before anything is made.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Netns => {
                for program in ["tombolo-controller", "tombolo-agent"] {
                    binary::find(program)?;
                }
                Ok(())
            }
            Self::Docker => Docker::check(),
            Self::Vm => {
                binary::find("tombolo-controller")?;
                VirtualMachines::check()
            }
        }
    }

    /// The hosts of a lab whose state is in `dir`.
    #[must_use]
    pub fn hosts(self, topology: &Topology, dir: &Path) -> Box<dyn Hosts> {
        match self {
            Self::Netns => Box::new(Namespaces::new(&topology.name)),
            Self::Docker => Box::new(Docker::new(topology, dir)),
            Self::Vm => Box::new(VirtualMachines::new(topology, dir)),
        }
    }
}

/// Makes and removes hosts, and runs programs on them.
pub trait Hosts: Send + Sync {
    /// Makes a host with nothing but a loopback device. One that boots is off until [`Self::power_on`].
    ///
    /// # Errors
    /// It exists already, or the system refuses.
    fn create(&self, host: &str) -> Result<()>;

    /// Turns on a host whose cable to the underlay is there, if it is one that boots. Does not wait for it.
    ///
    /// # Errors
    /// The system refuses.
    fn power_on(&self, _host: &str) -> Result<()> {
        Ok(())
    }

    /// Whether commands run on the host. Returns soon.
    ///
    /// # Errors
    /// It is off, and will not turn on by itself.
    fn is_booted(&self, _host: &str) -> Result<bool> {
        Ok(true)
    }

    /// What a host that boots said last.
    fn last_words(&self, _host: &str) -> String {
        String::new()
    }

    /// Removes a host. One that does not exist is no error.
    ///
    /// # Errors
    /// The system refuses.
    fn remove(&self, host: &str) -> Result<()>;

    /// Whether the host exists.
    fn exists(&self, host: &str) -> bool;

    /// The file that stands for its network namespace on this machine: where its cables end.
    fn netns(&self, host: &str) -> PathBuf;

    /// The command line that runs `argv` on the host, and ends when that does.
    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// As [`Self::wrap`], for a program that is ended by a signal: what starts so takes signals as the program itself does. It may
    /// be a program of this machine that runs in the host's network.
    fn wrap_signalled(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// Runs a helper on the host that must succeed; returns its standard output.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        inside(&self.netns(host), || command::run(argv))?
    }

    /// Writes switches below `/proc/sys/net` of the host: `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// A switch that its kernel does not have.
    fn set(&self, host: &str, switches: &[(&str, &str)]) -> Result<()> {
        sysctl(&self.netns(host), switches)
    }

    /// Makes a file of this machine one of the host's, at the same path, for root alone.
    ///
    /// # Errors
    /// It cannot be read or written.
    fn give(&self, _host: &str, _file: &Path) -> Result<()> {
        Ok(())
    }

    /// Where a Unix socket of the host is reached from this machine.
    ///
    /// # Errors
    /// The host is out of reach.
    fn socket(&self, _host: &str, path: &Path) -> Result<PathBuf> {
        Ok(path.to_owned())
    }

    /// A program of the product as it is called on the host.
    ///
    /// # Errors
    /// It is not there.
    fn program(&self, _host: &str, name: &str) -> Result<String> {
        Ok(binary::find(name)?.display().to_string())
    }

    /// Starts a program on the host that goes on by itself, with its output appended to `log`. A `tied` one ends with the
    /// calling program, however that ends.
    ///
    /// # Errors
    /// It does not start.
    fn start(
        &self,
        host: &str,
        argv: &[String],
        environment: &[(String, String)],
        log: &Path,
        tied: bool,
    ) -> Result<Process> {
        process::start(&self.wrap(host, argv), log, environment, tied)
    }

    /// How many programs may run on the hosts at once before they answer too late.
    fn at_once(&self) -> usize {
        usize::MAX
    }

    /// The processes that run on the host.
    fn processes(&self, host: &str) -> Vec<i32>;

    /// How a person starts a shell on the host.
    fn enter(&self, host: &str) -> String {
        self.wrap(host, &["bash".to_owned()]).join(" ")
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
