//! Kernel switches (sysctls) of the agent's devices. Each one is set where that is allowed, and then read back: in a container
//! `/proc/sys` is read-only, and an appliance whose kernel does not forward would drop its packets silently. There the switches
//! must be right from the start, and the error says which options of the container do that.

use std::fmt;
use std::fs;
use std::path::PathBuf;

/// Where the kernel shows them, for the network namespace of whoever looks.
pub(crate) const ROOT: &str = "/proc/sys/net";

/// The switch that makes every device send ICMP redirects.
pub(crate) const ALL_SEND_REDIRECTS: &str = "ipv4/conf/all/send_redirects";

/// What a new device is given by the host's defaults.
const DEFAULT: &str = "default";

/// A switch that is not as the agent needs it, and that the agent could not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// In the notation of `sysctl`.
    switch: String,
    found: String,
    needed: &'static str,
    /// Why it could not be set; none: the kernel took the value and kept another one.
    refusal: Option<String>,
    /// `name=value`: set before the agent starts, it makes the switch right.
    option: String,
}

/// All switches that keep the agent from doing what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongSwitches(Vec<Wrong>);

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

/// Sets switches and collects those that are wrong after that.
pub(crate) struct Switches {
    root: PathBuf,
    wrong: Vec<Wrong>,
}

impl Switches {
    /// The switches of the calling thread's network namespace.
    pub(crate) fn here() -> Self {
        Self::below(ROOT)
    }

    fn below(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            wrong: Vec::new(),
        }
    }

    /// Reports all switches that are wrong.
    ///
    /// # Errors
    /// At least one is.
    pub(crate) fn finish(self) -> Result<(), WrongSwitches> {
        if self.wrong.is_empty() {
            Ok(())
        } else {
            Err(WrongSwitches(self.wrong))
        }
    }

    /// What every TUN device needs.
    pub(crate) fn prepare(&mut self, device: &str) {
        self.loose_source_check(device);
        // Only a device that forwards sends redirects: see `forward`. A host may forward what it translates without an
        // appliance, so the switch is set where that is allowed.
        let _ = self.set(&path("ipv4", device, "send_redirects"), "0");
        if self.has_ipv6(device) {
            // 1: the kernel makes no link-local address, and so sends nothing by itself into the overlay.
            let option = "net.ipv6.conf.default.addr_gen_mode=1";
            self.need("ipv6", device, "addr_gen_mode", "1", option, |_, value| value == "1");
            self.no_advertisements(device, "net.ipv6.conf.default.accept_ra=0");
        }
    }

    /// Lets the kernel forward what arrives from the device. `v6`: also IPv6.
    pub(crate) fn forward(&mut self, device: &str, v6: bool) {
        let is_on = |_: &Self, value: &str| value == "1";
        self.need("ipv4", device, "forwarding", "1", "net.ipv4.ip_forward=1", is_on);
        let option = "net.ipv4.conf.default.send_redirects=0";
        self.need("ipv4", device, "send_redirects", "0", option, |_, value| value == "0");
        // The agents of a host set this one together, before.
        self.require(ALL_SEND_REDIRECTS, "0", "net.ipv4.conf.all.send_redirects=0");
        if !self.has_ipv6(device) {
            return;
        }
        // The kernel has a switch of its own per device only since 6.17; before, that of all devices decides, which is the
        // operator's.
        let _ = self.set(&path("ipv6", device, "force_forwarding"), "1");
        let _ = self.set(&path("ipv6", device, "forwarding"), "1");
        let forced = self.value(&path("ipv6", device, "force_forwarding"));
        if v6 && forced.as_deref() != Some("1") {
            let all = path("ipv6", "all", "forwarding");
            self.require(&all, "1", "net.ipv6.conf.all.forwarding=1");
        }
    }

    /// Has the device do what the host does with new devices. The engine delivers what is addressed to the host, which forwards
    /// it only where it translates the destination, as for a published container port.
    pub(crate) fn forward_as_usual(&mut self, device: &str) {
        for (family, name) in [("ipv4", "forwarding"), ("ipv6", "force_forwarding")] {
            let usual = self.value(&path(family, DEFAULT, "forwarding"));
            let value = if usual.as_deref() == Some("1") { "1" } else { "0" };
            let _ = self.set(&path(family, device, name), value);
        }
    }

    /// What the line to a customer edge needs: the kernel routes there.
    pub(crate) fn prepare_line(&mut self, device: &str) {
        let is_on = |_: &Self, value: &str| value == "1";
        self.need("ipv4", device, "forwarding", "1", "net.ipv4.ip_forward=1", is_on);
        // Strict would drop what comes back another way than it goes (E4).
        self.loose_source_check(device);
        let option = format!("net.ipv4.conf.{device}.send_redirects=0");
        self.need("ipv4", device, "send_redirects", "0", &option, |_, value| value == "0");
        if self.has_ipv6(device) {
            let _ = self.set(&path("ipv6", device, "forwarding"), "1");
            self.no_advertisements(device, &format!("net.ipv6.conf.{device}.accept_ra=0"));
        }
    }

    /// Requires IPv6 to be on, which an address of the device takes.
    pub(crate) fn ipv6(&mut self, device: &str) {
        // Whether a host has IPv6 is its operator's to say: the agent does not switch it on.
        let off = path("ipv6", device, "disable_ipv6");
        self.require(&off, "0", "net.ipv6.conf.default.disable_ipv6=0");
    }

    /// Requires a value that the agent does not set.
    fn require(&mut self, path: &str, needed: &'static str, option: &str) {
        if let Some(found) = self.value(path).filter(|v| v != needed) {
            self.wrong.push(Wrong {
                switch: dotted(path),
                found,
                needed,
                refusal: None,
                option: option.to_owned(),
            });
        }
    }

    /// Loose: sources of the overlay are checked by the engine, link by link.
    fn loose_source_check(&mut self, device: &str) {
        let is_not_strict = |s: &Self, value: &str| {
            let all = s.value(&path("ipv4", "all", "rp_filter"));
            !is_strict(&all.unwrap_or_default(), value)
        };
        let option = "net.ipv4.conf.all.rp_filter=2";
        self.need("ipv4", device, "rp_filter", "2", option, is_not_strict);
    }

    /// Router advertisements set no routes. With 1 they do where the device is not a router's.
    fn no_advertisements(&mut self, device: &str, option: &str) {
        let routes = path("ipv6", device, "forwarding");
        self.need("ipv6", device, "accept_ra", "0", option, |s, value| {
            value == "0" || value == "1" && s.value(&routes).as_deref() == Some("1")
        });
    }

    fn has_ipv6(&self, device: &str) -> bool {
        self.value(&path("ipv6", device, "disable_ipv6")).as_deref() == Some("0")
    }

    /// Sets a switch unless it is right, and reads it back. A kernel without it has nothing to switch.
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
            self.wrong.push(Wrong {
                switch: dotted(&path),
                found,
                needed,
                refusal: refusal.err().map(|e| e.to_string()),
                option: option.to_owned(),
            });
        }
    }

    fn set(&self, path: &str, value: &str) -> std::io::Result<()> {
        if self.value(path).is_none_or(|now| now == value) {
            return Ok(());
        }
        fs::write(self.root.join(path), value)
    }

    fn value(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// Whether the kernel drops what comes back another way than it goes: it takes the larger one of the value for all devices and
/// the device's own; 1 is strict.
fn is_strict(all: &str, own: &str) -> bool {
    let value = |text: &str| text.parse::<u8>().unwrap_or(0);
    value(all).max(value(own)) == 1
}

fn path(family: &str, device: &str, name: &str) -> String {
    format!("{family}/conf/{device}/{name}")
}

/// In the notation of `sysctl`, which exchanges dots in a device's name and the separators of the path.
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

    /// Switches as a kernel shows them: path below `net` and value.
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

    /// A switch that nobody may set, root included.
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
