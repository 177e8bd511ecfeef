//! A site's VPN device: one stock WireGuard interface with one peer (D16), set up from what the product prints for its
//! operator. The kernel's WireGuard where there is one, `wireguard-go` elsewhere.

use crate::command::{self, LIMIT, run};
use crate::private::write_private;
use crate::site::TUNNEL_MARK;
use crate::site::bird::{Far, Gateway};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use std::fmt::Write as _;
use std::path::Path;

/// Inner MTU if the product names none, bytes (D20).
const MTU: u16 = 1420;

/// What the operator of a device is told: a file for `wg-quick` for each instance of the gateway, and BIRD's session.
/// A device has one tunnel, so the first file counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Addresses inside the tunnel.
    pub addresses: Vec<IpNet>,
    /// Inner MTU, bytes.
    pub mtu: u16,
    /// UDP port to listen on; any if none is said.
    pub listen_port: Option<u16>,
    /// What lies behind the tunnel, and how to speak with it.
    pub far: Far,
    /// The lines of the one `[Peer]`, as they stand.
    peer: Vec<String>,
}

impl Printed {
    /// Reads what was printed.
    ///
    /// # Errors
    /// It is no such text, a file does not have one peer, or brings routes that nobody sees.
    pub fn read(text: &str) -> Result<Self> {
        let mut printed = Self {
            addresses: Vec::new(),
            mtu: MTU,
            listen_port: None,
            far: Far::default(),
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
                printed.far.gateway = gateway(line)?.or(printed.far.gateway);
            } else if files <= 1 && !line.is_empty() {
                printed.setting(&section, line)?;
            }
        }
        if files == 0 || peers != files {
            bail!("{files} files with {peers} peers are no configuration of a device");
        }
        Ok(printed)
    }

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
            ("[interface]", "table") if value != "off" => bail!("'{line}': which routes there are must be said"),
            ("[interface]", "postup") => {
                let words: Vec<_> = value.split_whitespace().collect();
                let ["ip", "route", "add", net, "dev", "%i", ..] = words[..] else {
                    bail!("'{line}' is no route into the tunnel");
                };
                // Inside a site there is IPv4 alone, so nobody there sends to the IPv6 networks of a dual-stack gateway.
                if let IpNet::V4(net) = net.parse().with_context(|| line.to_owned())? {
                    self.far.routes.push(net);
                }
            }
            // The key is the device's own; what is left is for wg-quick.
            ("[interface]", _) => {}
            _ => bail!("'{line}' stands in no section"),
        }
        Ok(())
    }

    /// The file for `wg setconf`.
    fn settings(&self, private_key: &str) -> String {
        let mut text = format!("[Interface]\nPrivateKey = {private_key}\nFwMark = {TUNNEL_MARK}\n");
        if let Some(port) = self.listen_port {
            let _ = writeln!(text, "ListenPort = {port}");
        }
        text += "[Peer]\n";
        text += &self.peer.join("\n");
        text + "\n"
    }
}

/// The neighbour of BIRD's session, if this line says it.
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

/// An address with or without its length.
fn prefix(text: &str) -> Result<IpNet> {
    let alone = text.parse::<std::net::IpAddr>().map(IpNet::from);
    alone
        .or_else(|_| text.parse())
        .with_context(|| format!("Address: '{text}'"))
}

/// Makes a device's private key, for its owner alone to read, and returns the public one.
///
/// # Errors
/// The file cannot be written, or there is no `wg`.
pub fn make_key(file: &Path) -> Result<String> {
    let file = file.to_str().context("a path that is not text")?;
    let script = r#"umask 077; wg genkey > "$0" && wg pubkey < "$0""#;
    Ok(run(&["sh", "-c", script, file])?.trim().to_owned())
}

/// Makes the device with the kernel's WireGuard, in the namespace of the calling thread. False if it has none.
///
/// # Errors
/// The kernel has it, and refuses.
pub fn make_in_kernel(device: &str) -> Result<bool> {
    let argv = ["ip", "link", "add", device, "type", "wireguard"].map(str::to_owned);
    let done = command::finish(&argv, LIMIT)?;
    let unknown = ["Unknown device type", "not supported"];
    match done.code {
        0 => Ok(true),
        _ if unknown.iter().any(|u| done.stderr.contains(u)) => Ok(false),
        _ => bail!("{}", done.stderr.trim()),
    }
}

/// Whether the kernel has WireGuard: tried in a network namespace that goes with the thread.
///
/// # Errors
/// There can be no namespace.
pub fn is_in_kernel() -> Result<bool> {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
        make_in_kernel("probe")
    });
    tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The program that is the device where the kernel has none. It ends when the device is deleted.
#[must_use]
pub fn program(device: &str) -> Vec<String> {
    ["wireguard-go", "-f", device].map(str::to_owned).to_vec()
}

/// The command lines that set a device up. `settings` is where the machine finds what [`write_settings`] wrote.
#[must_use]
pub fn set_up(device: &str, printed: &Printed, settings: &str) -> Vec<Vec<String>> {
    let own = |argv: &[&str]| argv.iter().map(|a| (*a).to_owned()).collect();
    let mut all = vec![own(&["wg", "setconf", device, settings])];
    for address in &printed.addresses {
        all.push(own(&["ip", "address", "add", &address.to_string(), "dev", device]));
    }
    let mtu = printed.mtu.to_string();
    all.push(own(&["ip", "link", "set", device, "mtu", &mtu, "up"]));
    all
}

/// Writes what `wg setconf` takes: key and peer.
///
/// # Errors
/// The key cannot be read, or the file cannot be written.
pub fn write_settings(printed: &Printed, key: &Path, file: &Path) -> Result<()> {
    let private = std::fs::read_to_string(key).with_context(|| key.display().to_string())?;
    write_private(file, &printed.settings(private.trim()))
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
        export none; # which networks the site has: export where net ~ [ … ];
    };
}

# The same for FRR:
# router bgp 65021
";

    #[test]
    fn what_is_printed_becomes_settings() {
        let printed = Printed::read(&format!("{FILE}{SECOND}{BIRD}")).unwrap();
        assert_eq!(printed.addresses, ["10.2.30.125/32".parse().unwrap()]);
        assert_eq!((printed.mtu, printed.listen_port), (1400, Some(51820)));
        assert_eq!(printed.far.routes, ["10.10.30.254/32".parse().unwrap()]);
        let gateway = printed.far.gateway.unwrap();
        assert_eq!(
            (gateway.asn, gateway.address.to_string().as_str()),
            (65515, "10.10.30.254")
        );
        let settings = printed.settings("OWN");
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
        let commands = set_up("wg0", &printed, "/run/wg0.conf");
        let last: Vec<_> = commands.iter().map(|c| c.join(" ")).collect();
        assert_eq!(
            last,
            [
                "wg setconf wg0 /run/wg0.conf",
                "ip address add 10.2.30.125/32 dev wg0",
                "ip link set wg0 mtu 1400 up"
            ]
        );
        assert_eq!(Printed::read(FILE).unwrap().far.gateway, None);
    }

    #[test]
    fn ipv6_routes_of_a_dual_stack_gateway_are_left_out() {
        let routes = "PostUp = ip route add 10.1.0.0/16 dev %i metric 100
PostUp = ip route add fd5a:1f2b:3c4d::/48 dev %i metric 100
";
        let plain = FILE.replace("PostUp = ip route add 10.10.30.254/32 dev %i metric 100\n", routes);
        let printed = Printed::read(&plain).unwrap();
        assert_eq!(printed.far.routes, ["10.1.0.0/16".parse().unwrap()]);
        assert!(Printed::read(&plain.replace("/48", "/148")).is_err());
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
            assert!(Printed::read(&FILE.replace(from, to)).is_err(), "{to}");
        }
        assert!(Printed::read(&format!("{FILE}\n[Peer]\nPublicKey = x\n")).is_err());
        assert!(Printed::read("").is_err());
    }
}
