//! Hosts: machines of a lab, each with a network namespace of its own in which programs run. Which programs these are
//! is not this module's concern.

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
    /// Checks that those parts that hosts of this kind need are installed: the product's programs, the image, and
    /// Docker or QEMU. Not checked are helper programs that every lab runs, such as `ip`, `nft` and `ping`, and the
    /// programs of the sites. Blocks while it asks Docker or QEMU, for at most half a minute.
    ///
    /// # Errors
    /// A program or image is missing, or the Docker engine does not answer; the message says how to install it.
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

    /// Returns the [`Hosts`] by which the hosts of a lab are made and used. `topology` is the lab's topology, `dir` its
    /// state folder. Creates nothing. Two values for the same lab work on the same hosts, but only the value that
    /// powered a virtual machine on can tell whether it has booted.
    #[must_use]
    pub fn hosts(self, topology: &Topology, dir: &Path) -> Box<dyn Hosts> {
        match self {
            Self::Netns => Box::new(Namespaces::new(&topology.name)),
            Self::Docker => Box::new(Docker::new(topology, dir)),
            Self::Vm => Box::new(VirtualMachines::new(topology, dir)),
        }
    }
}

/// Makes and removes hosts, and runs programs on them. In all methods `host` is the host's name in the topology,
/// without the `tb-LAB-` of its namespace. The methods block their thread while their commands run.
pub trait Hosts: Send + Sync {
    /// Creates a host. Its only usable network device is the loopback device, which is set up. For a virtual machine
    /// this makes the network namespace around the machine, which also has the devices of the machine's two network
    /// cards; the machine is off until [`Self::power_on`].
    ///
    /// # Errors
    /// The host exists already, or a command fails. [`Self::remove`] removes what was made until then.
    fn create(&self, host: &str) -> Result<()>;

    /// Starts a virtual machine. The device that links its namespace to the underlay must exist. Does not wait until
    /// the machine has booted. For other kinds of hosts this does nothing.
    ///
    /// # Errors
    /// A command fails, or QEMU does not start.
    fn power_on(&self, _host: &str) -> Result<()> {
        Ok(())
    }

    /// Whether the host can run commands at present; always true for hosts that are no virtual machines. Does not wait
    /// for the boot.
    ///
    /// # Errors
    /// The virtual machine was not powered on through this [`Hosts`] value, or QEMU has ended.
    fn is_booted(&self, _host: &str) -> Result<bool> {
        Ok(true)
    }

    /// Returns the last lines of a virtual machine's logs: QEMU's, the console's and the SSH client's. Empty for other
    /// hosts.
    fn boot_log(&self, _host: &str) -> String {
        String::new()
    }

    /// Removes a host. A host that does not exist is no error. All processes in the host's network namespace must have
    /// ended: the kernel keeps the namespace as long as one of them runs.
    ///
    /// # Errors
    /// A command fails.
    fn remove(&self, host: &str) -> Result<()>;

    /// Whether the host's network namespace exists. A virtual machine need not have booted.
    fn exists(&self, host: &str) -> bool;

    /// Returns the file of the host's network namespace on this machine. The device that links the host to the underlay
    /// is in this namespace.
    fn netns(&self, host: &str) -> PathBuf;

    /// Returns a command line for this machine that runs the program `argv` on the host. The process of this command
    /// line ends when the program ends, with the program's exit status. A signal to this process may not reach the
    /// program; see [`Self::wrap_with_signals`].
    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// As [`Self::wrap`], but a signal to the process reaches the program. For a container, `argv` then names a program
    /// of this machine, which runs in the container's network namespace and not in its file system.
    fn wrap_with_signals(&self, host: &str, argv: &[String]) -> Vec<String>;

    /// Runs a helper that must succeed on the host, or in its network namespace, for at most
    /// [`HELPER_TIMEOUT`](crate::command::HELPER_TIMEOUT). Returns its standard output.
    ///
    /// # Errors
    /// The host does not exist, or the helper is missing, fails or takes too long; the message contains its output.
    fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        inside(&self.netns(host), || command::run(argv))?
    }

    /// Writes sysctls of the host in order. A name is the path below `/proc/sys/net`: `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// The host does not exist, or its kernel lacks a sysctl or refuses its value. The sysctls before this one stay
    /// set.
    fn set_sysctls(&self, host: &str, switches: &[(&str, &str)]) -> Result<()> {
        sysctl(&self.netns(host), switches)
    }

    /// Copies a file of this machine to a virtual machine, at the same path and readable by root only. For other kinds
    /// of hosts this does nothing, because they see this machine's file.
    ///
    /// # Errors
    /// The file cannot be read or written, or the virtual machine does not answer.
    fn copy_file(&self, _host: &str, _file: &Path) -> Result<()> {
        Ok(())
    }

    /// Returns the path on this machine at which a Unix socket of the host can be reached. For a virtual machine, the
    /// first call makes SSH forward the socket.
    ///
    /// # Errors
    /// The virtual machine does not answer.
    fn socket(&self, _host: &str, path: &Path) -> Result<PathBuf> {
        Ok(path.to_owned())
    }

    /// Returns the name or path by which a program of the product, such as `tombolo-agent`, is started on the host.
    ///
    /// # Errors
    /// The program is not installed on this machine. Programs in an image are not checked.
    fn program(&self, _host: &str, name: &str) -> Result<String> {
        Ok(binary::find(name)?.display().to_string())
    }

    /// Starts a program on the host in the background with additional `environment` variables, and appends its output
    /// to `log` on this machine. Returns when the process exists. If `tied`, the program is killed when the calling
    /// program ends in any way.
    ///
    /// # Errors
    /// The log cannot be written, or the program does not start or ends at once.
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

    /// Returns the largest number of programs that may run at the same time on all hosts together. With more, programs
    /// would answer after their timeouts. There is a limit only for emulated virtual machines.
    fn max_concurrent(&self) -> usize {
        usize::MAX
    }

    /// Returns the process ids on this machine of all processes in the host's namespace; empty if they cannot be
    /// listed. For a virtual machine these are the processes of QEMU and the SSH clients, and not those inside the
    /// machine.
    fn processes(&self, host: &str) -> Vec<i32>;

    /// Returns the command line by which a person who is root starts a shell on the host.
    fn shell_command(&self, host: &str) -> String {
        self.wrap(host, &["bash".to_owned()]).join(" ")
    }
}

/// Runs `action` in the network namespace with the file `netns`, for example `/run/netns/NAME`, and blocks until
/// `action` has ended. The action runs on a new thread, so the namespace of the caller's thread does not change.
///
/// # Errors
/// The namespace does not exist or cannot be entered, for which root is needed. `action` has then not run.
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

/// Writes sysctls in their order, in the network namespace with the file `netns`, for example `/run/netns/NAME`. A name
/// is the path below `/proc/sys/net`: `("ipv4/ip_forward", "1")`.
///
/// # Errors
/// The namespace cannot be entered (root is needed), or the kernel lacks a sysctl or refuses its value. The sysctls
/// before this one stay set.
pub fn sysctl(netns: &Path, switches: &[(&str, &str)]) -> Result<()> {
    inside(netns, || {
        for (name, value) in switches {
            let path = Path::new("/proc/sys/net").join(name);
            std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))?;
        }
        Ok(())
    })?
}
