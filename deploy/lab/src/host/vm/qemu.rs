//! QEMU's command line, its accelerator, and the network devices that a guest is attached to.

use super::image;
use crate::command::{self, run};
use anyhow::Result;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Environment variable that says how guests' instructions are executed: `kvm` or `tcg`. If the variable has another
/// value or is not set, a trial of KVM decides.
const ACCELERATOR: &str = "TOMBOLO_VM_ACCELERATOR";
/// Name of the emulator's program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Longest time that the trial of KVM may take, in which a kernel boots, finds no disk and panics. If KVM hangs, each
/// command of the lab waits for this time once.
const KVM_PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Memory of each machine, MiB. It has to hold the kernel, SSH, an agent and BIRD.
const MEMORY: &str = "320";

/// Address of this machine on the link to the guest, with the prefix length. Each virtual machine has a network
/// namespace of its own, so the address can be the same for all of them.
const HERE: &str = "169.254.77.1/30";
/// First four bytes of the MAC address of a guest's network card for the underlay. By these bytes the image tells the
/// two cards apart (deploy/vm/guest/init).
const UNDERLAY_MAC: &str = "02:74:6d:01";
/// First four bytes of the MAC address of a guest's network card for SSH.
const MANAGE_MAC: &str = "02:74:6d:02";
/// Path in the image of the guest's first process.
const INIT: &str = "/usr/lib/tombolo-lab/init";

/// The command lines of QEMU for a lab's machines.
#[derive(Debug)]
pub(super) struct Qemu {
    image: PathBuf,
    mtu: String,
    accelerator: OnceLock<&'static str>,
}

impl Qemu {
    /// Returns the command lines for machines whose network cards on the underlay have the MTU `mtu`, in bytes. Starts
    /// nothing.
    pub(super) fn new(mtu: u16) -> Self {
        Self {
            image: image::folder(),
            mtu: mtu.to_string(),
            accelerator: OnceLock::new(),
        }
    }

    /// Returns `kvm` or `tcg`: the value of the environment variable [`ACCELERATOR`] if it is one of these, otherwise
    /// `kvm` if a trial of KVM succeeds, otherwise `tcg`. The first call may block for [`KVM_PROBE_TIMEOUT`]; later
    /// calls return the same result at once.
    pub(super) fn accelerator(&self) -> &'static str {
        self.accelerator
            .get_or_init(|| match std::env::var(ACCELERATOR).as_deref() {
                Ok("kvm") => "kvm",
                Ok("tcg") => "tcg",
                _ if kvm_works(&self.image) => "kvm",
                _ => "tcg",
            })
    }

    /// Returns the command line that starts the machine of `host`. The guest's console is written to the file
    /// `console`. The MAC addresses are derived from the position of `host` in `hosts`, so that no two machines of a
    /// lab have the same MAC address.
    pub(super) fn argv(&self, host: &str, hosts: &BTreeSet<String>, console: &Path) -> Vec<String> {
        let file = |name: &str| self.image.join(name).display().to_string();
        // The emulator's cache of translated code is limited to 128 MiB. By default it may grow to 1 GiB, several times
        // the memory of a machine.
        let accelerator = match self.accelerator() {
            "kvm" => "kvm".to_owned(),
            other => format!("{other},tb-size=128"),
        };
        // With `panic=-1` the kernel restarts at once after a panic, and with `-no-reboot` QEMU then ends, which the
        // lab detects. `no_timer_check` switches off the kernel's check of the timer interrupt, which an emulated timer
        // may fail because it is too late.
        let command_line = format!(
            "root=/dev/vda rw console=ttyS0 panic=-1 no_timer_check loglevel=6 net.ifnames=0 init={INIT} hostname={host}"
        );
        let disk = format!("file={},if=virtio,format=raw,snapshot=on", file("root.img"));
        let console = format!("file:{}", console.display());
        let port = |id: &str| format!("tap,id={id},ifname={id},script=no,downscript=no,vhost=off");
        let number = hosts.iter().position(|name| name == host).unwrap_or_default();
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

    /// Makes the devices that the guest's two network cards are attached to, in the network namespace of the calling
    /// thread.
    pub(super) fn make_devices(&self) -> Result<()> {
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

/// Whether KVM executes the image's kernel up to the point where the kernel finds no disk, panics and ends. On some
/// machines that are virtual themselves, KVM exists but hangs. The trial then fails, and the emulator is used.
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
    command::finish(&argv, KVM_PROBE_TIMEOUT).is_ok_and(|done| done.code == 0)
}
