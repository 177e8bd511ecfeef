//! Hosts: a network namespace each, in which programs run. This module does not know which programs.

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

/// The kind of hosts that a lab has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Network namespaces of this machine, which run its own programs
    #[default]
    Netns,
    /// Docker containers from the image that `make image` makes; the underlay and sites are namespaces
    Docker,
    /// QEMU virtual machines from the image that `make vm-image` makes; the controller, the underlay and sites are
    /// namespaces
    Vm,
}

impl Runtime {
    /// Checks that all programs and images that it needs are installed.
    ///
    /// # Errors
    /// One is missing; the message says how to install it.
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

    /// Returns the hosts of a lab whose state is in `dir`.
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
    /// Creates a host with only a loopback device. A virtual machine is off until [`Self::power_on`].
    ///
    /// # Errors
    /// The host exists already, or a command fails.
    fn create(&self, host: &str) -> Result<()>;

    /// Starts a virtual machine, whose underlay device must exist. Does not wait until it has booted. Other hosts
    /// ignore it.
    ///
    /// # Errors
    /// A command fails.
    fn power_on(&self, _host: &str) -> Result<()> {
        Ok(())
    }

    /// Whether the host can run commands. Does not wait for it.
    ///
    /// # Errors
    /// The virtual machine is not running.
    fn is_booted(&self, _host: &str) -> Result<bool> {
        Ok(true)
    }

    /// Returns the last lines of a virtual machine's logs; empty for other hosts.
    fn boot_log(&self, _host: &str) -> String {
        String::new()
    }

    /// Removes a host. It is no error that the host does not exist.
    ///
    /// # Errors
    /// A command fails.
    fn remove(&self, host: &str) -> Result<()>;

    /// Whether the host exists.
    fn exists(&self, host: &str) -> bool;

    /// Returns the file of its network namespace on this machine, to which its devices belong.
    fn netns(&self, host: &str) -> PathBuf;

    /// Returns the command line that runs `argv` on the host, and ends when `argv` ends.
    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// As [`Self::wrap`], but signals to the process reach the program. The program may be one of this machine that
    /// runs in the host's network namespace.
    fn wrap_with_signals(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// Runs a helper on the host that must succeed. Returns its standard output.
    ///
    /// # Errors
    /// The helper fails; the message contains its output.
    fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        inside(&self.netns(host), || command::run(argv))?
    }

    /// Writes sysctls below `/proc/sys/net` of the host: `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// The host's kernel does not have a sysctl.
    fn set_sysctls(&self, host: &str, switches: &[(&str, &str)]) -> Result<()> {
        sysctl(&self.netns(host), switches)
    }

    /// Copies a file of this machine to the host, at the same path and readable by root only.
    ///
    /// # Errors
    /// The file cannot be read or written.
    fn copy_file(&self, _host: &str, _file: &Path) -> Result<()> {
        Ok(())
    }

    /// Returns the path on this machine of a Unix socket of the host.
    ///
    /// # Errors
    /// The host cannot be reached.
    fn socket(&self, _host: &str, path: &Path) -> Result<PathBuf> {
        Ok(path.to_owned())
    }

    /// Returns the command that starts a program of the product on the host.
    ///
    /// # Errors
    /// The program is not installed.
    fn program(&self, _host: &str, name: &str) -> Result<String> {
        Ok(binary::find(name)?.display().to_string())
    }

    /// Starts a program on the host in the background, and appends its output to `log`. A `tied` program ends with the
    /// calling program, in whichever way that ends.
    ///
    /// # Errors
    /// The program does not start.
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

    /// Returns the number of programs that may run on all hosts at once without timeouts of their answers.
    fn max_concurrent(&self) -> usize {
        usize::MAX
    }

    /// Returns the pids on this machine of the host's processes.
    fn processes(&self, host: &str) -> Vec<i32>;

    /// Returns the command with which a person starts a shell on the host.
    fn shell_command(&self, host: &str) -> String {
        self.wrap(host, &["bash".to_owned()]).join(" ")
    }
}

/// Runs `action` on a new thread in a network namespace. The namespace of the caller's thread does not change.
///
/// # Errors
/// The namespace cannot be entered.
///
/// # Panics
/// If `action` panics.
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

/// Writes sysctls below `/proc/sys/net` of a network namespace: `("ipv4/ip_forward", "1")`.
///
/// # Errors
/// This kernel does not have a sysctl.
pub fn sysctl(netns: &Path, switches: &[(&str, &str)]) -> Result<()> {
    inside(netns, || {
        for (name, value) in switches {
            let path = Path::new("/proc/sys/net").join(name);
            std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))?;
        }
        Ok(())
    })?
}
