//! A site's VPN device: one stock WireGuard interface with one peer (D16). Its configuration comes from the output of
//! `tombolo connection device-config`. The kernel makes the interface, or `wireguard-go` if the kernel has no
//! WireGuard.

use crate::command::{self, HELPER_TIMEOUT, run};
use crate::private::write_private;
use crate::site::TUNNEL_MARK;
use crate::site::bird::{Gateway, RemoteEnd};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use std::fmt::Write as _;
use std::path::Path;

/// MTU inside the tunnel, in bytes, for an output that contains no MTU (D20).
const MTU: u16 = 1420;

/// The settings of one device, parsed from the output of `tombolo connection device-config`. The output contains a
/// configuration file for wg-quick for each instance of the gateway, and the neighbours for BIRD's BGP sessions. Only
/// the first file is used, because a device of the lab has one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Addresses of the device inside the tunnel, in the order of the file.
    pub addresses: Vec<IpNet>,
    /// MTU inside the tunnel, bytes.
    pub mtu: u16,
    /// UDP port on which the device listens; `None`: a random port.
    pub listen_port: Option<u16>,
    /// Static routes into the tunnel, and the gateway's BGP speaker.
    pub remote: RemoteEnd,
    /// Lines of the section `[Peer]`, unchanged.
    peer: Vec<String>,
}

impl DeviceSettings {
    /// Parses the output of `tombolo connection device-config`. IPv6 routes are left out, because sites have only IPv4.
    ///
    /// # Errors
    /// The text has another format; it has no file, or not as many peers as files; or, in the first file, `Table` is
    /// not `off`, a `PostUp` is no route into the tunnel, or a value is not valid.
    pub fn read(text: &str) -> Result<Self> {
        let mut parsed = Self {
            addresses: Vec::new(),
            mtu: MTU,
            listen_port: None,
            remote: RemoteEnd::default(),
            peer: Vec::new(),
        };
        let (mut section, mut files, mut peers) = (String::new(), 0, 0);
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.starts_with('[') || line.starts_with("protocol ") {
                section = line.to_ascii_lowercase();
                files += usize::from(section == "[interface]");
                peers += usize::from(section == "[peer]");
            } else if section.starts_with("protocol") {
                parsed.remote.gateway = gateway(line)?.or(parsed.remote.gateway);
            } else if files <= 1 && !line.is_empty() {
                parsed.setting(&section, line)?;
            }
        }
        if files == 0 || peers != files {
            bail!("{files} files with {peers} peers are no configuration of a device");
        }
        Ok(parsed)
    }

    /// Reads one line of a file for wg-quick.
    fn setting(&mut self, section: &str, line: &str) -> Result<()> {
        let parts = line.split_once('=');
        let (key, value) = parts.with_context(|| format!("'{line}' is no line of a WireGuard configuration"))?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        match (section, key.as_str()) {
            ("[peer]", _) => self.peer.push(line.to_owned()),
            ("[interface]", "address") => {
                for address in value.split(',').map(str::trim) {
                    self.addresses.push(prefix(address)?);
                }
            }
            ("[interface]", "mtu") => self.mtu = value.parse().context("MTU")?,
            ("[interface]", "listenport") => self.listen_port = Some(value.parse().context("ListenPort")?),
            ("[interface]", "table") if value != "off" => bail!("'{line}': Table must be off, and routes explicit"),
            ("[interface]", "postup") => {
                let words: Vec<_> = value.split_whitespace().collect();
                let ["ip", "route", "add", net, "dev", "%i", ..] = words[..] else {
                    bail!("'{line}' is no route into the tunnel");
                };
                // Sites have only IPv4, so the IPv6 prefixes of a dual-stack gateway are skipped.
                if let IpNet::V4(net) = net.parse().with_context(|| line.to_owned())? {
                    self.remote.routes.push(net);
                }
            }
            // All other properties of this section are ignored: the lab has generated the private key itself, and the
            // rest are instructions to wg-quick, which the lab does not use.
            ("[interface]", _) => {}
            _ => bail!("'{line}' is in no section"),
        }
        Ok(())
    }

    /// Returns the text of the file for `wg setconf`.
    fn wg_conf(&self, private_key: &str) -> String {
        let mut text = format!("[Interface]\nPrivateKey = {private_key}\nFwMark = {TUNNEL_MARK}\n");
        if let Some(port) = self.listen_port {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "ListenPort = {port}");
        }
        text += "[Peer]\n";
        text += &self.peer.join("\n");
        text + "\n"
    }
}

/// Returns the gateway's BGP speaker if the line names the neighbour of BIRD's session; `None` for other lines.
fn gateway(line: &str) -> Result<Option<Gateway>> {
    let words: Vec<_> = line.trim_end_matches(';').split_whitespace().collect();
    let ["neighbor", address, "as", asn] = words[..] else {
        return Ok(None);
    };
    let wrong = || format!("'{line}' names no neighbour");
    Ok(Some(Gateway {
        asn: asn.parse().with_context(wrong)?,
        address: address.parse().with_context(wrong)?,
    }))
}

/// Parses an address with or without a prefix length. Without one, it is the prefix of this address alone.
fn prefix(text: &str) -> Result<IpNet> {
    let alone = text.parse::<std::net::IpAddr>().map(IpNet::from);
    alone
        .or_else(|_| text.parse())
        .with_context(|| format!("Address: '{text}'"))
}

/// Generates a private key and writes it to a file, in place of an earlier key. A new file has mode 0600; an existing
/// file keeps its mode. The file's folder must exist. Returns the public key in base64.
///
/// # Errors
/// The path is no UTF-8, the file cannot be written, or `wg` is missing or fails. The earlier key may be lost then.
pub fn make_key(file: &Path) -> Result<String> {
    let file = file.to_str().context("a path that is not text")?;
    let script = r#"umask 077; wg genkey > "$0" && wg pubkey < "$0""#;
    Ok(run(&["sh", "-c", script, file])?.trim().to_owned())
}

/// Creates a WireGuard device of the kernel, in the network namespace of the calling thread. The device is down and has
/// no configuration. Returns false, and creates nothing, if the kernel has no WireGuard. Root is needed.
///
/// # Errors
/// The kernel has WireGuard and the command fails, for example because a device of this name exists, this program does
/// not run as root, or the name has more than 15 bytes.
pub fn make_in_kernel(device: &str) -> Result<bool> {
    let argv = ["ip", "link", "add", device, "type", "wireguard"].map(str::to_owned);
    let done = command::finish(&argv, HELPER_TIMEOUT)?;
    let unknown = ["Unknown device type", "not supported"];
    match done.code {
        0 => Ok(true),
        _ if unknown.iter().any(|u| done.stderr.contains(u)) => Ok(false),
        _ => bail!("{}", done.stderr.trim()),
    }
}

/// Whether the kernel has WireGuard. To find out, a new thread makes a WireGuard device in a network namespace of its
/// own. The namespace and the device disappear when the thread ends.
///
/// # Errors
/// A network namespace cannot be created (root is needed), or [`make_in_kernel`] fails.
pub fn is_in_kernel() -> Result<bool> {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
        make_in_kernel("probe")
    });
    tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns the command line of `wireguard-go` for a device. The program stays in the foreground, and ends when the
/// device is deleted. It must be run in the network namespace in which the device is to be.
#[must_use]
pub fn program(device: &str) -> Vec<String> {
    ["wireguard-go", "-f", device].map(str::to_owned).to_vec()
}

/// Returns the command lines that configure an existing device and set it up, in their order. `settings` is the file
/// that [`write_settings`] has written, by its path on the host with the device. Runs nothing. The command lines must
/// be run once, on the host with the device: a second run fails, because the device has the addresses already.
#[must_use]
pub fn set_up(device: &str, parsed: &DeviceSettings, settings: &str) -> Vec<Vec<String>> {
    let own = |argv: &[&str]| argv.iter().map(|a| (*a).to_owned()).collect();
    let mut all = vec![own(&["wg", "setconf", device, settings])];
    for address in &parsed.addresses {
        all.push(own(&["ip", "address", "add", &address.to_string(), "dev", device]));
    }
    let mtu = parsed.mtu.to_string();
    all.push(own(&["ip", "link", "set", device, "mtu", &mtu, "up"]));
    all
}

/// Writes the file for `wg setconf`, with the private key from the file `key`. Both are paths on this machine. A new
/// file has mode 0600; an existing one keeps its mode. The folder must exist.
///
/// # Errors
/// The key cannot be read, or the file cannot be written.
pub fn write_settings(parsed: &DeviceSettings, key: &Path, file: &Path) -> Result<()> {
    let private = std::fs::read_to_string(key).with_context(|| key.display().to_string())?;
    write_private(file, &parsed.wg_conf(private.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# /etc/wireguard/tombolo0.conf: loc1 to hub-vpn, agent hub-vpn-0
[Interface]
# PrivateKey = the one whose public key is BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
ListenPort = 51820
Address = 10.2.30.125/32
MTU = 1400
Table = off
PostUp = ip route add 10.10.30.254/32 dev %i metric 100

[Peer]
PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
PresharedKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
";
    const SECOND: &str = "
# /etc/wireguard/tombolo1.conf: loc1 to hub-vpn, agent hub-vpn-1
[Interface]
Address = 10.2.30.125/32
PostUp = ip route add 10.10.30.254/32 dev %i metric 101

[Peer]
PublicKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=
";
    const BIRD: &str = "
# BIRD 2
protocol static hub_to_loc1_gateway {
    ipv4;
    route 10.10.30.254/32 via \"tombolo0\";
}
protocol bgp hub_to_loc1 {
    local 10.2.30.125 as 65021;
    neighbor 10.10.30.254 as 65515;
    multihop;
    ipv4 {
        import all;
        export none; # to advertise the site's networks: export where net ~ [ … ];
    };
}

# The same for FRR:
# router bgp 65021
";

    #[test]
    fn what_is_printed_becomes_settings() {
        let parsed = DeviceSettings::read(&format!("{FILE}{SECOND}{BIRD}")).unwrap();
        assert_eq!(parsed.addresses, ["10.2.30.125/32".parse().unwrap()]);
        assert_eq!((parsed.mtu, parsed.listen_port), (1400, Some(51820)));
        assert_eq!(parsed.remote.routes, ["10.10.30.254/32".parse().unwrap()]);
        let gateway = parsed.remote.gateway.unwrap();
        assert_eq!(
            (gateway.asn, gateway.address.to_string().as_str()),
            (65515, "10.10.30.254")
        );
        let settings = parsed.wg_conf("OWN");
        assert_eq!(
            settings,
            "[Interface]
PrivateKey = OWN
FwMark = 0x7763
ListenPort = 51820
[Peer]
PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
PresharedKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
"
        );
        let commands = set_up("wg0", &parsed, "/run/wg0.conf");
        let last: Vec<_> = commands.iter().map(|c| c.join(" ")).collect();
        assert_eq!(
            last,
            [
                "wg setconf wg0 /run/wg0.conf",
                "ip address add 10.2.30.125/32 dev wg0",
                "ip link set wg0 mtu 1400 up"
            ]
        );
        assert_eq!(DeviceSettings::read(FILE).unwrap().remote.gateway, None);
    }

    #[test]
    fn ipv6_routes_of_a_dual_stack_gateway_are_left_out() {
        let routes = "PostUp = ip route add 10.1.0.0/16 dev %i metric 100
PostUp = ip route add fd5a:1f2b:3c4d::/48 dev %i metric 100
";
        let plain = FILE.replace("PostUp = ip route add 10.10.30.254/32 dev %i metric 100\n", routes);
        let parsed = DeviceSettings::read(&plain).unwrap();
        assert_eq!(parsed.remote.routes, ["10.1.0.0/16".parse().unwrap()]);
        assert!(DeviceSettings::read(&plain.replace("/48", "/148")).is_err());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (from, to) in [
            ("Table = off", "Table = auto"),
            ("[Peer]", "[Interface]"),
            ("[Interface]", "Nothing"),
            ("Address = 10.2.30.125/32", "Address = somewhere"),
            (
                "PostUp = ip route add 10.10.30.254/32 dev %i metric 100",
                "PostUp = reboot",
            ),
        ] {
            assert!(DeviceSettings::read(&FILE.replace(from, to)).is_err(), "{to}");
        }
        assert!(DeviceSettings::read(&format!("{FILE}\n[Peer]\nPublicKey = x\n")).is_err());
        assert!(DeviceSettings::read("").is_err());
    }
}
