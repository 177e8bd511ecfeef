//! Kernel switches (sysctls) of the agent's devices. The kernel's `Documentation/networking/ip-sysctl.rst` describes
//! them.
//!
//! The agent sets each switch if it can, and then reads the switch back. In a container `/proc/sys` is read-only, so
//! the switches must have the right values before the agent starts. A wrong value is an error. Otherwise, for example,
//! an appliance whose kernel does not forward would drop packets without any message. The error names the container
//! options that set the right values.

use std::fmt;
use std::fs;
use std::path::PathBuf;

/// The folder with the sysctls of the network namespace of the thread that opens its files.
pub(crate) const ROOT: &str = "/proc/sys/net";

/// The switch for ICMP redirects on all devices. The kernel sends redirects on a device if this switch or the device's
/// own switch is 1.
pub(crate) const ALL_SEND_REDIRECTS: &str = "ipv4/conf/all/send_redirects";

/// The name of the pseudo device whose values the kernel copies to new devices.
const DEFAULT: &str = "default";

/// A switch with a wrong value, which the agent does not set or could not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongSwitch {
    /// The switch's name in the notation of `sysctl(8)`.
    switch: String,
    found: String,
    needed: &'static str,
    /// The error at the attempt to set the switch. None: the agent does not set this switch, or the kernel kept another
    /// value without an error.
    refusal: Option<String>,
    /// The assignment `name=value` that prevents the wrong value, if it is made before the agent starts.
    option: String,
}

/// The switches that have a wrong value. As text the error names each of them, and the options that prevent the wrong
/// values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongSwitches(Vec<WrongSwitch>);

impl fmt::Display for WrongSwitches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, wrong) in self.0.iter().enumerate() {
            let between = if i == 0 { "kernel switch " } else { "; " };
            write!(
                f,
                "{between}{} is {}, needed: {}",
                wrong.switch, wrong.found, wrong.needed
            )?;
            if let Some(refusal) = &wrong.refusal {
                write!(f, " ({refusal})")?;
            }
        }
        let mut options: Vec<&str> = self.0.iter().map(|w| w.option.as_str()).collect();
        options.sort_unstable();
        options.dedup();
        f.write_str(". Start the container with")?;
        for option in &options {
            write!(f, " --sysctl {option}")?;
        }
        f.write_str(" (compose: under 'sysctls:'), or run on the host: sysctl -w")?;
        options.iter().try_for_each(|option| write!(f, " {option}"))
    }
}

impl std::error::Error for WrongSwitches {}

/// Sets switches of devices, and collects the switches that have a wrong value afterwards. [`finish`](Self::finish)
/// returns the collected ones.
pub(crate) struct Switches {
    root: PathBuf,
    wrong: Vec<WrongSwitch>,
}

impl Switches {
    /// The switches of the calling thread's network namespace. No switch is read or set yet.
    pub(crate) fn here() -> Self {
        Self::below(ROOT)
    }

    /// The switches in another folder than [`ROOT`], for tests.
    fn below(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            wrong: Vec::new(),
        }
    }

    /// Ends the collection. Succeeds if all switches that were set or checked have the right values.
    ///
    /// # Errors
    /// At least one switch that was set or checked has a wrong value. The error names all such switches. The other
    /// switches have been set.
    pub(crate) fn finish(self) -> Result<(), WrongSwitches> {
        if self.wrong.is_empty() {
            Ok(())
        } else {
            Err(WrongSwitches(self.wrong))
        }
    }

    /// Sets what every TUN device needs: a loose source check, no ICMP redirects, no IPv6 link-local address, and no
    /// reaction to router advertisements.
    pub(crate) fn prepare(&mut self, device: &str) {
        self.loose_source_check(device);
        // The kernel sends redirects only for packets that it forwards. Where the kernel must forward, the function
        // `forward` requires `send_redirects` = 0. Elsewhere the host forwards at most packets that it translates, so a
        // failure is tolerated.
        let _ = self.set(&path("ipv4", device, "send_redirects"), "0");
        if self.has_ipv6(device) {
            // `addr_gen_mode` = 1 (none) keeps the kernel from generating a link-local address. With such an address
            // the kernel would send neighbour and multicast listener messages into the overlay.
            let option = "net.ipv6.conf.default.addr_gen_mode=1";
            self.need("ipv6", device, "addr_gen_mode", "1", option, |_, value| value == "1");
            self.no_advertisements(device, "net.ipv6.conf.default.accept_ra=0");
        }
    }

    /// Lets the kernel forward IPv4 packets that arrive from the device, and IPv6 packets too if `v6` is set. Also
    /// turns ICMP redirects off for the device.
    pub(crate) fn forward(&mut self, device: &str, v6: bool) {
        let is_on = |_: &Self, value: &str| value == "1";
        self.need("ipv4", device, "forwarding", "1", "net.ipv4.ip_forward=1", is_on);
        let option = "net.ipv4.conf.default.send_redirects=0";
        self.need("ipv4", device, "send_redirects", "0", option, |_, value| value == "0");
        // `host::quiet_redirects` sets this switch, together with the other agents of the host, so it is only checked
        // here.
        self.require(ALL_SEND_REDIRECTS, "0", "net.ipv4.conf.all.send_redirects=0");
        if !self.has_ipv6(device) {
            return;
        }
        // Since Linux 6.17 `force_forwarding` makes the kernel forward IPv6 from this device alone. Older kernels have
        // only `all/forwarding`. The agent does not set `all/forwarding`, because it turns the whole host into a
        // router. The operator must set it.
        let _ = self.set(&path("ipv6", device, "force_forwarding"), "1");
        // A device's own `forwarding` does not make the kernel forward IPv6. That switch only selects router behaviour,
        // such as ignoring router advertisements, so a failure to set it does no harm.
        let _ = self.set(&path("ipv6", device, "forwarding"), "1");
        let forced = self.value(&path("ipv6", device, "force_forwarding"));
        if v6 && forced.as_deref() != Some("1") {
            let all = path("ipv6", "all", "forwarding");
            self.require(&all, "1", "net.ipv6.conf.all.forwarding=1");
        }
    }

    /// Gives the device the host's default for forwarding, the value of `default/forwarding`. For a machine that is no
    /// appliance, the engine delivers only packets to this host. The host forwards such a packet only if it translates
    /// the destination, as for a published container port.
    pub(crate) fn forward_as_host(&mut self, device: &str) {
        for (family, name) in [("ipv4", "forwarding"), ("ipv6", "force_forwarding")] {
            let default = self.value(&path(family, DEFAULT, "forwarding"));
            let value = if default.as_deref() == Some("1") { "1" } else { "0" };
            // A new device has this value already, so a failure is ignored. It has an effect only if the machine was an
            // appliance before.
            let _ = self.set(&path(family, device, name), value);
        }
    }

    /// Sets what the line to a customer edge needs, because the kernel of the circuit edge forwards packets to and from
    /// this line.
    pub(crate) fn prepare_line(&mut self, device: &str) {
        let is_on = |_: &Self, value: &str| value == "1";
        self.need("ipv4", device, "forwarding", "1", "net.ipv4.ip_forward=1", is_on);
        // A strict check would drop packets that the customer returns by the other line of the circuit (E4).
        self.loose_source_check(device);
        let option = format!("net.ipv4.conf.{device}.send_redirects=0");
        self.need("ipv4", device, "send_redirects", "0", &option, |_, value| value == "0");
        if self.has_ipv6(device) {
            // On a device this switch only selects router behaviour (see `forward`), so a failure to set it does no
            // harm.
            let _ = self.set(&path("ipv6", device, "forwarding"), "1");
            self.no_advertisements(device, &format!("net.ipv6.conf.{device}.accept_ra=0"));
        }
    }

    /// Requires that IPv6 is enabled on the device, because the kernel refuses IPv6 addresses otherwise.
    pub(crate) fn ipv6(&mut self, device: &str) {
        // Whether a host has IPv6 is the operator's decision, so the agent only checks `disable_ipv6`.
        let off = path("ipv6", device, "disable_ipv6");
        self.require(&off, "0", "net.ipv6.conf.default.disable_ipv6=0");
    }

    /// Checks a switch that the agent does not set. A kernel that lacks the switch passes the check.
    fn require(&mut self, path: &str, needed: &'static str, option: &str) {
        if let Some(found) = self.value(path).filter(|v| v != needed) {
            self.wrong.push(WrongSwitch {
                switch: dotted(path),
                found,
                needed,
                refusal: None,
                option: option.to_owned(),
            });
        }
    }

    /// Sets the kernel's source check to loose (`rp_filter` = 2, RFC 3704). The engine checks the sources of overlay
    /// packets for each link. A strict check by the kernel would also drop packets if the route back to their source
    /// leads to another device. The kernel applies the larger of the values of the device and of `all`.
    fn loose_source_check(&mut self, device: &str) {
        let is_not_strict = |s: &Self, value: &str| {
            let all = s.value(&path("ipv4", "all", "rp_filter"));
            !is_strict(&all.unwrap_or_default(), value)
        };
        let option = "net.ipv4.conf.all.rp_filter=2";
        self.need("ipv4", device, "rp_filter", "2", option, is_not_strict);
    }

    /// Makes the kernel ignore router advertisements, which could set routes. On a device with router behaviour
    /// (`forwarding` = 1), `accept_ra` = 1 has the same effect as 0, while `accept_ra` = 2 accepts router
    /// advertisements.
    fn no_advertisements(&mut self, device: &str, option: &str) {
        let routes = path("ipv6", device, "forwarding");
        self.need("ipv6", device, "accept_ra", "0", option, |s, value| {
            value == "0" || value == "1" && s.value(&routes).as_deref() == Some("1")
        });
    }

    /// Whether the kernel has IPv6, and IPv6 is enabled on the device.
    fn has_ipv6(&self, device: &str) -> bool {
        self.value(&path("ipv6", device, "disable_ipv6")).as_deref() == Some("0")
    }

    /// Sets a switch to `needed` and reads it back. If `is_right` refuses the value that was read, the switch is
    /// recorded as wrong. `option` is the assignment that the error recommends. A kernel that lacks the switch passes.
    fn need(
        &mut self,
        family: &str,
        device: &str,
        name: &str,
        needed: &'static str,
        option: &str,
        is_right: impl Fn(&Self, &str) -> bool,
    ) {
        let path = path(family, device, name);
        let refusal = self.set(&path, needed);
        let Some(found) = self.value(&path) else { return };
        if !is_right(self, &found) {
            self.wrong.push(WrongSwitch {
                switch: dotted(&path),
                found,
                needed,
                refusal: refusal.err().map(|e| e.to_string()),
                option: option.to_owned(),
            });
        }
    }

    /// Writes a switch unless it has the value already, so that a read-only file with the right value is no error. A
    /// kernel that lacks the switch is no error either.
    fn set(&self, path: &str, value: &str) -> std::io::Result<()> {
        if self.value(path).is_none_or(|now| now == value) {
            return Ok(());
        }
        fs::write(self.root.join(path), value)
    }

    /// The value of a switch. None: the kernel lacks the switch, or its file cannot be read.
    fn value(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// Whether the kernel's source check (`rp_filter`) is strict. The kernel applies the larger of the value for all
/// devices and the device's own value: 0 is off, 1 is strict, 2 is loose.
fn is_strict(all: &str, own: &str) -> bool {
    let value = |text: &str| text.parse::<u8>().unwrap_or(0);
    value(all).max(value(own)) == 1
}

fn path(family: &str, device: &str, name: &str) -> String {
    format!("{family}/conf/{device}/{name}")
}

/// The name of a switch in the notation of `sysctl(8)`. The name has dots where the path has slashes, and slashes where
/// a device's name has dots.
fn dotted(path: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    format!("net.{}", path.chars().map(swap).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A folder with switches: for each, the path below `net` and the value.
    fn kernel(values: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, value) in values {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{value}\n")).unwrap();
        }
        dir
    }

    fn read(dir: &Path, path: &str) -> String {
        fs::read_to_string(dir.join(path)).unwrap().trim().to_owned()
    }

    #[test]
    fn switches_are_set_where_that_is_allowed() {
        let dir = kernel(&[
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/t/rp_filter", "1"),
            ("ipv4/conf/t/send_redirects", "1"),
            ("ipv4/conf/t/forwarding", "0"),
            ("ipv6/conf/t/disable_ipv6", "0"),
            ("ipv6/conf/t/addr_gen_mode", "0"),
            ("ipv6/conf/t/accept_ra", "1"),
            ("ipv6/conf/t/forwarding", "0"),
            ("ipv6/conf/t/force_forwarding", "0"),
            ("ipv6/conf/all/forwarding", "0"),
        ]);
        let mut switches = Switches::below(dir.path());
        switches.prepare("t");
        switches.forward("t", true);
        switches.finish().unwrap();
        for (path, value) in [
            ("ipv4/conf/t/rp_filter", "2"),
            ("ipv4/conf/t/send_redirects", "0"),
            ("ipv4/conf/t/forwarding", "1"),
            ("ipv6/conf/t/addr_gen_mode", "1"),
            ("ipv6/conf/t/accept_ra", "0"),
            ("ipv6/conf/t/force_forwarding", "1"),
            ("ipv6/conf/all/forwarding", "0"),
        ] {
            assert_eq!(read(dir.path(), path), value, "{path}");
        }
    }

    /// A switch that not even root can set, so that each attempt fails.
    const FIXED: &str = "/proc/sys/kernel/ngroups_max";

    #[test]
    fn a_switch_that_stays_wrong_is_named_with_the_option_that_sets_it() {
        let dir = kernel(&[("ipv4/conf/eth0.5/mc_forwarding", "0")]);
        for name in ["forwarding", "send_redirects"] {
            std::os::unix::fs::symlink(FIXED, dir.path().join("ipv4/conf/eth0.5").join(name)).unwrap();
        }
        let found = fs::read_to_string(FIXED).unwrap();
        let found = found.trim();
        let mut switches = Switches::below(dir.path());
        switches.forward("eth0.5", false);
        assert_eq!(
            switches.finish().unwrap_err().to_string(),
            format!(
                "kernel switch net.ipv4.conf.eth0/5.forwarding is {found}, needed: 1 (Permission denied (os error 13)); \
                 net.ipv4.conf.eth0/5.send_redirects is {found}, needed: 0 (Permission denied (os error 13)). \
                 Start the container with --sysctl net.ipv4.conf.default.send_redirects=0 --sysctl net.ipv4.ip_forward=1 \
                 (compose: under 'sysctls:'), \
                 or run on the host: sysctl -w net.ipv4.conf.default.send_redirects=0 net.ipv4.ip_forward=1"
            )
        );
    }

    #[test]
    fn ipv6_is_forwarded_by_the_device_or_by_all() {
        let outcome = |all: &str, v6: bool| {
            let dir = kernel(&[("ipv6/conf/t/disable_ipv6", "0"), ("ipv6/conf/all/forwarding", all)]);
            let mut switches = Switches::below(dir.path());
            switches.forward("t", v6);
            switches.finish()
        };
        assert_eq!(outcome("1", true), Ok(()));
        assert_eq!(outcome("0", false), Ok(()), "no IPv6 to forward");
        let text = outcome("0", true).unwrap_err().to_string();
        assert!(text.contains("net.ipv6.conf.all.forwarding is 0, needed: 1"), "{text}");
    }

    #[test]
    fn ipv6_addresses_need_ipv6() {
        for (value, is_right) in [("0", true), ("1", false)] {
            let dir = kernel(&[("ipv6/conf/t/disable_ipv6", value)]);
            let mut switches = Switches::below(dir.path());
            switches.ipv6("t");
            assert_eq!(switches.finish().is_ok(), is_right);
        }
    }

    #[test]
    fn the_larger_source_check_counts() {
        for (all, own, strict) in [
            ("0", "0", false),
            ("2", "1", false),
            ("1", "2", false),
            ("1", "0", true),
            ("0", "1", true),
            ("1", "1", true),
        ] {
            assert_eq!(is_strict(all, own), strict, "all {all}, own {own}");
        }
    }
}
