//! Hosts that are QEMU virtual machines, each with a kernel of its own.
//!
//! ```text
//! network namespace tb-LAB-HOST: the machine's surroundings
//!   underlay0 ── bridge ── port ──┐            the link to the underlay, as every host has one
//!                       manage ───┤            the link for SSH from this machine to the guest, and for nothing else
//!   qemu-system-x86_64 ───────────┘
//! ```
//! All machines start from one disk image, which `make vm-image` makes. QEMU writes the changes of a machine's disk to
//! a temporary file, which it discards when it ends. The controller, the underlay and sites are plain namespaces.

mod image;
mod qemu;
mod ssh;

use super::{Hosts, Namespaces, inside, sysctl};
use crate::binary;
use crate::command::{self, run};
use crate::host::remote;
use crate::process::{self, Process};
use crate::topology::Topology;
use crate::underlay::DEVICE;
use anyhow::{Context, Result, bail};
use qemu::{QEMU, Qemu};
use ssh::Ssh;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Path, in the image, of the script that starts a program and sends it the signals that it receives over SSH; see
/// [`remote`].
const SIGNALLED: &str = "/usr/lib/tombolo-lab/run";

/// Largest number of programs that run at the same time on all emulated machines together. With more, answers arrive
/// after their timeouts.
const MAX_CONCURRENT_EMULATED: usize = 3;

/// The hosts of one lab. Hosts with an agent are virtual machines, all others are namespaces.
#[derive(Debug)]
pub struct VirtualMachines {
    namespaces: Namespaces,
    /// Folder of the sockets and logs of the machines.
    dir: PathBuf,
    ssh: Ssh,
    qemu: Qemu,
    /// Hosts that are virtual machines; all others are namespaces.
    own: BTreeSet<String>,
    /// Machines that were powered on through this value. An attached lab has none here.
    running: Mutex<BTreeMap<String, Machine>>,
}

/// The processes of a machine that was powered on.
#[derive(Debug)]
struct Machine {
    qemu: Process,
    /// SSH client whose connection all later SSH commands for the host share; `None` until the first attempt to
    /// connect.
    connection: Option<Process>,
}

impl VirtualMachines {
    /// Returns the hosts of a lab with this topology and with the state folder `dir`, as virtual machines. Starts
    /// nothing. The image is in the folder that the environment variable `TOMBOLO_VM_IMAGE` names now, otherwise in
    /// `lab-vm`, one level above the folder of the running program.
    #[must_use]
    pub fn new(topology: &Topology, dir: &Path) -> Self {
        let dir = dir.join("machines");
        Self {
            namespaces: Namespaces::new(&topology.name),
            ssh: Ssh::new(&topology.name, &dir),
            dir,
            qemu: Qemu::new(topology.underlay.mtu),
            own: topology.agents().map(|(name, _)| name.to_owned()).collect(),
            running: Mutex::default(),
        }
    }

    /// Checks that QEMU, an SSH client and the image of the machines are installed. Whether KVM works is not checked.
    ///
    /// # Errors
    /// A program or a file of the image is missing; the message says how to get it.
    pub(super) fn check() -> Result<()> {
        run(&[QEMU, "--version"]).context("--runtime vm needs QEMU: 'apt-get install qemu-system-x86' brings it")?;
        run(&["ssh", "-V"]).context("--runtime vm needs an SSH client: 'apt-get install openssh-client' brings it")?;
        image::check()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        // A poisoned lock is ignored, because a panic of another thread cannot leave the map invalid.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_own(&self, host: &str) -> bool {
        self.own.contains(host)
    }

    fn file(&self, host: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{host}.{what}"))
    }
}

impl Hosts for VirtualMachines {
    fn create(&self, host: &str) -> Result<()> {
        self.namespaces.create(host)?;
        if !self.is_own(host) {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        let netns = self.netns(host);
        // Only the guest may send IPv6 router solicitations and use IPv6 addresses on the underlay. So the namespace
        // around the guest has no IPv6.
        sysctl(
            &netns,
            &[
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv6/conf/default/disable_ipv6", "1"),
            ],
        )?;
        inside(&netns, || self.qemu.make_devices())?
    }

    fn power_on(&self, host: &str) -> Result<()> {
        if !self.is_own(host) {
            return Ok(());
        }
        inside(&self.netns(host), || {
            run(&["ip", "link", "set", DEVICE, "master", "bridge"])
        })??;
        let argv = self
            .namespaces
            .wrap(host, &self.qemu.argv(host, &self.own, &self.file(host, "console")));
        let qemu = process::start(&argv, &self.file(host, "log"), &[], false)?;
        self.running()
            .insert(host.to_owned(), Machine { qemu, connection: None });
        Ok(())
    }

    fn is_booted(&self, host: &str) -> Result<bool> {
        if !self.is_own(host) {
            return Ok(true);
        }
        if command::finish(&self.ssh.argv(host, &["-O", "check"]), command::HELPER_TIMEOUT)?.code == 0 {
            return Ok(true);
        }
        let mut running = self.running();
        let machine = running
            .get_mut(host)
            .context("the virtual machine was not powered on")?;
        if !machine.qemu.alive() {
            bail!("QEMU has ended:\n{}", self.boot_log(host));
        }
        if machine.connection.as_ref().is_none_or(|c| !c.alive()) {
            let argv = self.ssh.argv(host, &["-M", "-N"]);
            machine.connection = Some(process::start(&argv, &self.file(host, "ssh.log"), &[], false)?);
        }
        Ok(false)
    }

    fn boot_log(&self, host: &str) -> String {
        let files = [("log", 5), ("console", 15), ("ssh.log", 2)];
        let tails = files.map(|(what, lines)| process::tail(&self.file(host, what), lines));
        tails
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn remove(&self, host: &str) -> Result<()> {
        // QEMU and the SSH clients run in the host's namespace. The lab ends all processes of the namespace before this
        // call, so QEMU and the SSH clients have ended.
        self.namespaces.remove(host)
    }

    fn exists(&self, host: &str) -> bool {
        self.namespaces.exists(host)
    }

    fn netns(&self, host: &str) -> PathBuf {
        self.namespaces.netns(host)
    }

    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String> {
        if self.is_own(host) {
            self.ssh.run_argv(host, argv)
        } else {
            self.namespaces.wrap(host, argv)
        }
    }

    fn wrap_with_signals(&self, host: &str, argv: &[String]) -> Vec<String> {
        if !self.is_own(host) {
            return self.namespaces.wrap_with_signals(host, argv);
        }
        let tombolo = binary::find("tombolo").unwrap_or_else(|_| "tombolo".into());
        let mut all = vec![tombolo.display().to_string()];
        all.extend(["lab", remote::COMMAND, "--"].map(str::to_owned));
        let mut guest = vec![SIGNALLED.to_owned()];
        guest.extend_from_slice(argv);
        all.extend(self.ssh.argv(host, &[]));
        all.push("--".to_owned());
        all.push(ssh::quoted(&guest));
        all
    }

    fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        if !self.is_own(host) {
            return self.namespaces.run(host, argv);
        }
        let owned: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let done = command::finish(&self.ssh.run_argv(host, &owned), command::HELPER_TIMEOUT)?;
        if done.code != 0 {
            bail!(
                "'{}' failed on {host} ({}): {}",
                argv.join(" "),
                done.code,
                done.stderr.trim()
            );
        }
        Ok(done.stdout)
    }

    fn set_sysctls(&self, host: &str, switches: &[(&str, &str)]) -> Result<()> {
        if !self.is_own(host) {
            return self.namespaces.set_sysctls(host, switches);
        }
        for (name, value) in switches {
            let write = format!("echo {value} > /proc/sys/net/{name}");
            self.run(host, &["sh", "-c", &write])?;
        }
        Ok(())
    }

    fn copy_file(&self, host: &str, file: &Path) -> Result<()> {
        if !self.is_own(host) {
            return Ok(());
        }
        let folder = file.parent().context("a file in no folder")?;
        let (folder, path) = (folder.display().to_string(), file.display().to_string());
        let write = r#"umask 077 && mkdir -p "$1" && cat > "$2""#;
        let guest = ["sh", "-c", write, "sh", &folder, &path].map(str::to_owned);
        let mut argv = ["sh", "-c", r#"file=$1; shift; exec "$@" < "$file""#, "sh", &path]
            .map(str::to_owned)
            .to_vec();
        argv.extend(self.ssh.run_argv(host, &guest));
        let done = command::finish(&argv, command::HELPER_TIMEOUT)?;
        if done.code != 0 {
            bail!("cannot write {path} on {host}: {}", done.stderr.trim());
        }
        Ok(())
    }

    fn socket(&self, host: &str, path: &Path) -> Result<PathBuf> {
        if !self.is_own(host) {
            return Ok(path.to_owned());
        }
        let here = self.file(host, "socket");
        if !here.exists() {
            let forward = format!("{}:{}", here.display(), path.display());
            let done = command::finish(
                &self.ssh.argv(host, &["-O", "forward", "-L", &forward]),
                command::HELPER_TIMEOUT,
            )?;
            if done.code != 0 {
                bail!(
                    "cannot forward the socket {} of {host}: {}",
                    path.display(),
                    done.stderr.trim()
                );
            }
        }
        Ok(here)
    }

    fn program(&self, host: &str, name: &str) -> Result<String> {
        if self.is_own(host) {
            return Ok(name.to_owned());
        }
        self.namespaces.program(host, name)
    }

    fn start(
        &self,
        host: &str,
        argv: &[String],
        environment: &[(String, String)],
        log: &Path,
        tied: bool,
    ) -> Result<Process> {
        if !self.is_own(host) {
            return self.namespaces.start(host, argv, environment, log, tied);
        }
        let mut all = vec!["env".to_owned()];
        all.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
        all.extend_from_slice(argv);
        process::start(&self.wrap_with_signals(host, &all), log, &[], tied)
    }

    fn max_concurrent(&self) -> usize {
        if self.qemu.accelerator() == "kvm" {
            usize::MAX
        } else {
            MAX_CONCURRENT_EMULATED
        }
    }

    fn processes(&self, host: &str) -> Vec<i32> {
        self.namespaces.processes(host)
    }

    fn shell_command(&self, host: &str) -> String {
        if self.is_own(host) {
            return self.ssh.argv(host, &["-t"]).join(" ");
        }
        self.namespaces.shell_command(host)
    }
}
