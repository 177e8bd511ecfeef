//! Hosts that are QEMU virtual machines, each with a kernel of its own.
//!
//! ```text
//! network namespace tb-LAB-HOST: the machine's surroundings
//!   underlay0 ── bridge ── port ──┐            the cable to the underlay, as every host has one
//!                       manage ───┤            how this machine reaches the guest: SSH, on a link that leads nowhere else
//!   qemu-system-x86_64 ───────────┘
//! ```
//! All machines start from one disk image that `make vm-image` makes, and write to copies that are gone with them. The controller,
//! the underlay and sites are plain namespaces.

use super::{Hosts, Namespaces, inside, sysctl};
use crate::binary;
use crate::command::{self, run};
use crate::host::remote;
use crate::process::{self, Process};
use crate::topology::Topology;
use crate::underlay::DEVICE;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The variable that names the folder of another image.
const IMAGE: &str = "TOMBOLO_VM_IMAGE";
/// The variable that says how guests' instructions are executed: `kvm` or `tcg`. Otherwise it is tried out.
const ACCELERATOR: &str = "TOMBOLO_VM_ACCELERATOR";
/// What `make vm-image` makes, beside the programs' folder.
const DEFAULT_IMAGE: &str = "lab-vm";
/// Its files: the kernel and its initial file system, the disk, the key that the guest lets in, and the guest's own key.
const FILES: [&str; 5] = ["kernel", "initrd", "root.img", "key", "known_hosts"];

const QEMU: &str = "qemu-system-x86_64";
/// Longest that KVM may take for a kernel that finds no disk.
const KVM: Duration = Duration::from_secs(10);
/// Memory of a machine, MiB.
const MEMORY: &str = "320";

/// The link between this machine and the guest, the same for each: it is in the machine's own namespace.
const HERE: &str = "169.254.77.1/30";
const GUEST: &str = "root@169.254.77.2";
/// The image knows its network cards by the beginning of their addresses.
const UNDERLAY_MAC: &str = "02:74:6d:01";
const MANAGE_MAC: &str = "02:74:6d:02";
/// In the image: the guest's first process.
const INIT: &str = "/usr/lib/tombolo-lab/init";
/// In the image: starts a program that is told signals on standard input, see [`remote`].
const SIGNALLED: &str = "/usr/lib/tombolo-lab/run";

/// Hosts that are virtual machines of one lab.
#[derive(Debug)]
pub struct Machines {
    namespaces: Namespaces,
    /// Sockets and logs.
    dir: PathBuf,
    image: PathBuf,
    mtu: String,
    /// The hosts that are machines.
    own: BTreeSet<String>,
    accelerator: OnceLock<&'static str>,
    /// Those that were turned on here.
    on: Mutex<BTreeMap<String, Machine>>,
}

/// One that was turned on.
#[derive(Debug)]
struct Machine {
    qemu: Process,
    /// All calls share this one, once it stands.
    connection: Option<Process>,
}

impl Machines {
    /// The hosts of a lab whose state is in `dir`.
    #[must_use]
    pub fn new(topology: &Topology, dir: &Path) -> Self {
        Self {
            namespaces: Namespaces::new(&topology.name),
            dir: dir.join("machines"),
            image: image(),
            mtu: topology.underlay.mtu.to_string(),
            own: topology.agents().map(|(name, _)| name.to_owned()).collect(),
            accelerator: OnceLock::new(),
            on: Mutex::default(),
        }
    }

    /// Looks for the emulator and the image.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub(super) fn check() -> Result<()> {
        run(&[QEMU, "--version"]).context("--runtime vm needs QEMU: 'apt-get install qemu-system-x86' brings it")?;
        run(&["ssh", "-V"]).context("--runtime vm needs an SSH client: 'apt-get install openssh-client' brings it")?;
        let image = image();
        for file in FILES {
            if !image.join(file).is_file() {
                bail!(
                    "{} has no {file}, so it is no image of a virtual machine: 'make vm-image' makes one, or {IMAGE} names the \
                     folder of another",
                    image.display()
                );
            }
        }
        Ok(())
    }

    fn on(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        // A panic elsewhere leaves the map as valid as before.
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_own(&self, host: &str) -> bool {
        self.own.contains(host)
    }

    fn file(&self, host: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{host}.{what}"))
    }

    /// The SSH client for a host, up to the name of the guest. All calls share one connection.
    fn ssh(&self, host: &str, options: &[&str]) -> Vec<String> {
        let control = format!("ControlPath={}", self.file(host, "ssh").display());
        let known = format!("UserKnownHostsFile={}", self.image.join("known_hosts").display());
        let key = self.image.join("key").display().to_string();
        let mut argv = vec![
            "ssh".to_owned(),
            "-F".to_owned(),
            "none".to_owned(),
            "-i".to_owned(),
            key,
        ];
        for option in [
            &control,
            &known,
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=tombolo-lab",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=3",
            "ServerAliveInterval=15",
            "LogLevel=ERROR",
            "StreamLocalBindUnlink=yes",
        ] {
            argv.extend(["-o".to_owned(), option.to_owned()]);
        }
        argv.extend(options.iter().map(|o| (*o).to_owned()));
        argv.push(GUEST.to_owned());
        self.namespaces.wrap(host, &argv)
    }

    /// The command line that runs `argv` in the guest; on a terminal, if standard input is one.
    fn in_guest(&self, host: &str, argv: &[String]) -> Vec<String> {
        let mut all = self.ssh(host, &["-t"]);
        all.push("--".to_owned());
        all.push(quoted(argv));
        all
    }

    fn accelerator(&self) -> &'static str {
        self.accelerator
            .get_or_init(|| match std::env::var(ACCELERATOR).as_deref() {
                Ok("kvm") => "kvm",
                Ok("tcg") => "tcg",
                _ if kvm_works(&self.image) => "kvm",
                _ => "tcg",
            })
    }

    fn qemu(&self, host: &str) -> Vec<String> {
        let file = |name: &str| self.image.join(name).display().to_string();
        let accelerator = match self.accelerator() {
            "kvm" => "kvm".to_owned(),
            other => format!("{other},tb-size=128"),
        };
        let command_line = format!(
            "root=/dev/vda rw console=ttyS0 panic=-1 no_timer_check loglevel=6 net.ifnames=0 init={INIT} hostname={host}"
        );
        let disk = format!("file={},if=virtio,format=raw,snapshot=on", file("root.img"));
        let console = format!("file:{}", self.file(host, "console").display());
        let port = |id: &str| format!("tap,id={id},ifname={id},script=no,downscript=no,vhost=off");
        let number = self.own.iter().position(|name| name == host).unwrap_or_default();
        let card = |id: &str, mac: &str, mtu: &str| {
            let (high, low) = (number >> 8 & 0xff, number & 0xff);
            format!("virtio-net-pci,netdev={id},mac={mac}:{high:02x}:{low:02x},host_mtu={mtu},romfile=")
        };
        let mut argv: Vec<String> = [QEMU, "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", MEMORY]
            .map(str::to_owned)
            .to_vec();
        argv.extend(["-nodefaults", "-display", "none", "-no-reboot"].map(str::to_owned));
        for (option, value) in [
            ("-accel", accelerator),
            ("-kernel", file("kernel")),
            ("-initrd", file("initrd")),
            ("-append", command_line),
            ("-drive", disk),
            ("-device", "virtio-rng-pci".to_owned()),
            ("-netdev", port("port")),
            ("-device", card("port", UNDERLAY_MAC, &self.mtu)),
            ("-netdev", port("manage")),
            ("-device", card("manage", MANAGE_MAC, "1500")),
            ("-serial", console),
        ] {
            argv.extend([option.to_owned(), value]);
        }
        argv
    }

    /// The machine's surroundings: what the guest's two network cards are plugged into.
    fn lay(&self) -> Result<()> {
        for argv in [
            &[
                "ip",
                "link",
                "add",
                "bridge",
                "mtu",
                &self.mtu,
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ][..],
            &["ip", "tuntap", "add", "port", "mode", "tap", "vnet_hdr"],
            &["ip", "link", "set", "port", "mtu", &self.mtu, "master", "bridge", "up"],
            &["ip", "link", "set", "bridge", "up"],
            &["ip", "tuntap", "add", "manage", "mode", "tap", "vnet_hdr"],
            &["ip", "address", "add", HERE, "dev", "manage"],
            &["ip", "link", "set", "manage", "up"],
        ] {
            run(argv)?;
        }
        Ok(())
    }
}

fn image() -> PathBuf {
    if let Some(named) = std::env::var_os(IMAGE) {
        return named.into();
    }
    // target/debug/tombolo → target/lab-vm.
    let own = std::env::current_exe().unwrap_or_default();
    let target = own.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    target.join(DEFAULT_IMAGE)
}

/// Whether KVM executes the image's kernel to the point where it finds no disk, panics and ends. Where KVM is there and hangs, as on
/// some machines that are virtual themselves, the emulator takes its place.
fn kvm_works(image: &Path) -> bool {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let mut argv = [QEMU, "-machine", "q35", "-accel", "kvm", "-cpu", "max", "-m", MEMORY]
        .map(str::to_owned)
        .to_vec();
    argv.extend(
        [
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-append",
            "panic=-1",
            "-kernel",
        ]
        .map(str::to_owned),
    );
    argv.push(image.join("kernel").display().to_string());
    command::finish(&argv, KVM).is_ok_and(|done| done.code == 0)
}

/// One line for the guest's shell.
fn quoted(argv: &[String]) -> String {
    let each = argv.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    each.collect::<Vec<_>>().join(" ")
}

impl Hosts for Machines {
    fn create(&self, host: &str) -> Result<()> {
        self.namespaces.create(host)?;
        if !self.is_own(host) {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        let netns = self.netns(host);
        // The namespace itself says nothing on the underlay.
        sysctl(
            &netns,
            &[
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv6/conf/default/disable_ipv6", "1"),
            ],
        )?;
        inside(&netns, || self.lay())?
    }

    fn power_on(&self, host: &str) -> Result<()> {
        if !self.is_own(host) {
            return Ok(());
        }
        inside(&self.netns(host), || {
            run(&["ip", "link", "set", DEVICE, "master", "bridge"])
        })??;
        let argv = self.namespaces.wrap(host, &self.qemu(host));
        let qemu = process::start(&argv, &self.file(host, "log"), &[], false)?;
        self.on().insert(host.to_owned(), Machine { qemu, connection: None });
        Ok(())
    }

    fn is_booted(&self, host: &str) -> Result<bool> {
        if !self.is_own(host) {
            return Ok(true);
        }
        if command::finish(&self.ssh(host, &["-O", "check"]), command::LIMIT)?.code == 0 {
            return Ok(true);
        }
        let mut on = self.on();
        let machine = on.get_mut(host).context("it was not turned on")?;
        if !machine.qemu.alive() {
            bail!("its machine ended:\n{}", self.last_words(host));
        }
        if machine.connection.as_ref().is_none_or(|c| !c.alive()) {
            let argv = self.ssh(host, &["-M", "-N"]);
            machine.connection = Some(process::start(&argv, &self.file(host, "ssh.log"), &[], false)?);
        }
        Ok(false)
    }

    fn last_words(&self, host: &str) -> String {
        let files = [("log", 5), ("console", 15), ("ssh.log", 2)];
        let tails = files.map(|(what, lines)| process::tail(&self.file(host, what), lines));
        tails
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn remove(&self, host: &str) -> Result<()> {
        // Its processes have been ended: they are in its namespace.
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
            self.in_guest(host, argv)
        } else {
            self.namespaces.wrap(host, argv)
        }
    }

    fn wrap_signalled(&self, host: &str, argv: &[String]) -> Vec<String> {
        if !self.is_own(host) {
            return self.namespaces.wrap_signalled(host, argv);
        }
        let tombolo = binary::find("tombolo").unwrap_or_else(|_| "tombolo".into());
        let mut all = vec![tombolo.display().to_string()];
        all.extend(["lab", remote::COMMAND, "--"].map(str::to_owned));
        let mut guest = vec![SIGNALLED.to_owned()];
        guest.extend_from_slice(argv);
        all.extend(self.ssh(host, &[]));
        all.push("--".to_owned());
        all.push(quoted(&guest));
        all
    }

    fn run(&self, host: &str, argv: &[&str]) -> Result<String> {
        if !self.is_own(host) {
            return self.namespaces.run(host, argv);
        }
        let owned: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let done = command::finish(&self.in_guest(host, &owned), command::LIMIT)?;
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

    fn set(&self, host: &str, switches: &[(&str, &str)]) -> Result<()> {
        if !self.is_own(host) {
            return self.namespaces.set(host, switches);
        }
        for (name, value) in switches {
            let write = format!("echo {value} > /proc/sys/net/{name}");
            self.run(host, &["sh", "-c", &write])?;
        }
        Ok(())
    }

    fn give(&self, host: &str, file: &Path) -> Result<()> {
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
        argv.extend(self.in_guest(host, &guest));
        let done = command::finish(&argv, command::LIMIT)?;
        if done.code != 0 {
            bail!("{path} could not be written on {host}: {}", done.stderr.trim());
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
            let done = command::finish(&self.ssh(host, &["-O", "forward", "-L", &forward]), command::LIMIT)?;
            if done.code != 0 {
                bail!("{} of {host} is out of reach: {}", path.display(), done.stderr.trim());
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
        process::start(&self.wrap_signalled(host, &all), log, &[], tied)
    }

    fn at_once(&self) -> usize {
        if self.accelerator() == "kvm" { usize::MAX } else { 3 }
    }

    fn processes(&self, host: &str) -> Vec<i32> {
        self.namespaces.processes(host)
    }

    fn enter(&self, host: &str) -> String {
        if self.is_own(host) {
            return self.ssh(host, &["-t"]).join(" ");
        }
        self.namespaces.enter(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_as_they_are() {
        let words = ["echo", "two words", "it's", "$HOME;`id`", ""].map(str::to_owned);
        let printed = run(&["sh", "-c", &format!("printf '<%s>' {}", quoted(&words))]).unwrap();
        assert_eq!(printed, "<echo><two words><it's><$HOME;`id`><>");
    }
}
