//! The agent's local settings: `agent.toml` in the state directory.

use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use tombolo_proto::config::{MAX_LANES, Role};
use tombolo_proto::id::AgentId;

/// Default UDP port of the links: WireGuard's usual port.
pub const DEFAULT_LISTEN_PORT: u16 = 51820;

/// Firewall mark of underlay packets: "tm" in ASCII. All agents of a host must use the same mark, so that packets which
/// one agent has encrypted are never routed into the TUN device of another agent.
const DEFAULT_FWMARK: u32 = 0x746d;

/// Receive buffer of a UDP socket in bytes, for an agent of VMs. The buffer absorbs bursts while a busy host delays the
/// lane. Under load a ping waits in this buffer, for about 1.5 ms at 5 Gbit/s. A buffer of twice the size would double
/// this wait and hardly raise the throughput.
const RECEIVE_BUFFER: usize = 600_000;

/// Receive buffer of a UDP socket in bytes, for a gateway or a circuit edge. Many agents may send to a gateway or an
/// edge at the same moment, and it does twice as much work for each packet as an agent of VMs.
const RELAY_RECEIVE_BUFFER: usize = 2_000_000;

/// Largest number of lanes if the setting `lanes` is 0. Speed was measured for up to 8 lanes only
/// (docs/performance.md).
const MAX_AUTOMATIC: u16 = 8;

/// Largest number of addresses in `tcp_echo`.
const MAX_ECHOES: usize = 16;

/// The settings in `agent.toml`, which the operator of the host decides. The controller decides everything else, in the
/// configuration that it sends to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the agent, which its join token determined.
    pub agent: AgentId,
    /// `https://host:port` of the controller.
    pub controller: String,
    /// Whether the agent is a site probe (M10), which its join token determined. A site probe uses only `agent`, `controller`
    /// and `tcp_echo`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub site_probe: bool,
    /// At a site probe: TCP addresses of this host at which the agent returns what it receives, at most
    /// [`MAX_ECHOES`]. Empty: it has no listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_echo: Vec<SocketAddr>,
    /// UDP port of the links in lane 0; lane `n` uses `listen_port + n`.
    pub listen_port: u16,
    /// Endpoints at which other agents reach this one, best first. An unspecified address (0.0.0.0) means the address
    /// from which the agent connects to the controller.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// A second UDP port, for QUIC only. Many firewalls let port 443 pass and block all other ports (D6). Peers send to
    /// this port at the address of the first endpoint. None: QUIC uses only `listen_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_port: Option<u16>,
    /// Name of the TUN device, 1 to 15 characters.
    pub interface: String,
    /// At the edge of a circuit: the interface that faces the customer's router. The agent sets the address of this
    /// interface, and enables forwarding on it. If it is a VLAN interface, the operator must create it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_interface: Option<String>,
    /// Whether a user-defined or learned 0.0.0.0/0 or ::/0 may replace the host's default route (D22). Several routes
    /// that together cover as much as a default route are also installed only with this setting.
    #[serde(default)]
    pub allow_default_route: bool,
    /// Whether this host is an Internet exit: an appliance or a host of served subnets that forwards packets to public
    /// destinations by its own routes. The host must translate the source addresses of these packets to one of the
    /// host's own addresses. The agent's packet filter drops such packets if they still have an overlay source.
    #[serde(default)]
    pub internet_exit: bool,
    /// Networks that the host reaches by its own routes, whatever prefixes sites announce. An example is the network
    /// from which the host is managed. Connected networks, the controller, name servers and other agents need no entry,
    /// because they are always protected (D22).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected_networks: Vec<IpNet>,
    /// Number of lanes, at most [`MAX_LANES`]. Each lane has a thread, a queue of the TUN device and a UDP port:
    /// `listen_port` and the ports after it. 0: one lane for every two cores, at most 8. If a peer has fewer lanes, or
    /// its port for a lane cannot be reached, the lane's packets for this peer go through lane 0.
    #[serde(default)]
    pub lanes: u16,
    /// TCP address at which the agent answers requests for `/metrics`, by plain HTTP and without authentication. Choose
    /// an address that only Prometheus reaches. None: metrics are available only on the local socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Whether to use GSO packets (TSO, USO) on the TUN device, if the kernel supports them.
    #[serde(default = "yes")]
    pub offload: bool,
    /// Receive buffer of a UDP socket in bytes. None: 600,000, or 2,000,000 in a gateway or a circuit edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_buffer: Option<usize>,
    /// Firewall mark of underlay packets (SO_MARK), not 0. All agents of a host must use the same mark.
    #[serde(default = "fwmark")]
    pub fwmark: u32,
    /// Number of the agent's routing table, at least 256. None: derived from the interface's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The files of flow logs.
    #[serde(default, skip_serializing_if = "FlowLogSettings::is_default")]
    pub flow_logs: FlowLogSettings,
    /// The files of packet captures.
    #[serde(default, skip_serializing_if = "CaptureSettings::is_default")]
    pub captures: CaptureSettings,
}

/// The section `captures` of `agent.toml`: where the agent keeps the files of packet captures (D42).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureSettings {
    /// The directory of the files, as an absolute path. None: `captures` in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Largest sum of the files' lengths in MiB, 16 to 1,048,576. The oldest files are removed first.
    pub max_megabytes: u32,
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            directory: None,
            max_megabytes: 2048,
        }
    }
}

impl CaptureSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// A value is out of range.
    fn check(&self) -> Result<()> {
        if let Some(path) = self.directory.as_ref().filter(|path| !path.is_absolute()) {
            bail!("captures: directory: '{}' must be an absolute path", path.display());
        }
        if !(16..=1_048_576).contains(&self.max_megabytes) {
            bail!(
                "captures: max_megabytes: {} is not within 16 to 1048576",
                self.max_megabytes
            );
        }
        Ok(())
    }
}

/// The section `flow_logs` of `agent.toml`: where and how the agent writes flow logs (D38).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowLogSettings {
    /// The directory of the files, as an absolute path. None: `flow-logs` in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Largest sum of the files' lengths in MiB, 16 to 1,048,576. The files of the earliest hours are removed first.
    pub max_megabytes: u32,
    /// Time between two records in seconds, 1 to 60. Azure writes one a minute.
    pub interval_seconds: u8,
}

impl Default for FlowLogSettings {
    fn default() -> Self {
        Self {
            directory: None,
            max_megabytes: 1024,
            interval_seconds: 60,
        }
    }
}

impl FlowLogSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// A value is out of range.
    fn check(&self) -> Result<()> {
        if let Some(path) = self.directory.as_ref().filter(|path| !path.is_absolute()) {
            bail!("flow_logs: directory: '{}' must be an absolute path", path.display());
        }
        if !(16..=1_048_576).contains(&self.max_megabytes) {
            bail!(
                "flow_logs: max_megabytes: {} is not within 16 to 1048576",
                self.max_megabytes
            );
        }
        if !(1..=60).contains(&self.interval_seconds) {
            bail!(
                "flow_logs: interval_seconds: {} is not within 1 to 60",
                self.interval_seconds
            );
        }
        Ok(())
    }
}

const fn yes() -> bool {
    true
}
const fn fwmark() -> u32 {
    DEFAULT_FWMARK
}

impl Config {
    /// The settings of an agent for which the operator has set nothing. `controller` is a URL, `https://HOST:PORT`. The TUN
    /// device is named after the agent. Nothing is checked or written.
    #[must_use]
    pub fn new(agent: AgentId, controller: String) -> Self {
        let interface = default_interface(&agent);
        Self {
            agent,
            controller,
            site_probe: false,
            tcp_echo: Vec::new(),
            listen_port: DEFAULT_LISTEN_PORT,
            endpoints: Vec::new(),
            quic_port: None,
            interface,
            customer_interface: None,
            allow_default_route: false,
            internet_exit: false,
            protected_networks: Vec::new(),
            lanes: 0,
            metrics_listen: None,
            offload: yes(),
            receive_buffer: None,
            fwmark: fwmark(),
            table: None,
            flow_logs: FlowLogSettings::default(),
            captures: CaptureSettings::default(),
        }
    }

    /// Reads `agent.toml`, and checks the values as [`check`](Self::check) does. The file is read at each call.
    ///
    /// # Errors
    /// The file is missing, unreadable or malformed, has an unknown field, or a value is out of range.
    pub fn load(state: &StateDir) -> Result<Self> {
        let path = state.path(file::CONFIG);
        let bytes = state
            .read(file::CONFIG)?
            .with_context(|| format!("{} is missing: run 'tombolo-agent join' first", path.display()))?;
        let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Checks the settings, and then replaces `agent.toml` with them.
    ///
    /// # Errors
    /// A value is out of range, and nothing was written; or the file cannot be written.
    pub fn save(&self, state: &StateDir) -> Result<()> {
        self.check()?;
        state.write(file::CONFIG, toml::to_string(self)?.as_bytes())
    }

    /// The receive buffer of a UDP socket in bytes: as set, or the default for `role`. If `role` is none because the
    /// role is not known yet, the default of a VM applies.
    #[must_use]
    pub fn receive_buffer(&self, role: Option<&Role>) -> usize {
        let relays = role.is_some_and(Role::relays);
        let usual = if relays { RELAY_RECEIVE_BUFFER } else { RECEIVE_BUFFER };
        self.receive_buffer.unwrap_or(usual)
    }

    /// The number of lanes to run: as set, or half the number of cores, from 1 to 8. The derived number is smaller if
    /// the port of a lane would be above 65535. A number that is set is not checked here.
    #[must_use]
    pub fn lane_count(&self) -> u16 {
        let automatic = || {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let room = u16::MAX - self.listen_port;
            u16::try_from(cores / 2)
                .unwrap_or(u16::MAX)
                .clamp(1, MAX_AUTOMATIC)
                .min(room.saturating_add(1))
        };
        if self.lanes == 0 { automatic() } else { self.lanes }
    }

    /// The endpoints to advertise, in the format `address:port`. If `endpoints` is empty, the only endpoint is
    /// `0.0.0.0:<listen_port>`. The controller replaces 0.0.0.0 by the address from which the agent connects.
    #[must_use]
    pub fn advertised(&self) -> Vec<String> {
        if self.endpoints.is_empty() {
            vec![format!("0.0.0.0:{}", self.listen_port)]
        } else {
            self.endpoints.iter().map(ToString::to_string).collect()
        }
    }

    /// The endpoint of the second port, for QUIC only, as it is advertised: `quic_port` at the address of the first
    /// endpoint, or at 0.0.0.0. None: `quic_port` is not set.
    #[must_use]
    pub fn quic_endpoint(&self) -> Option<String> {
        let ip = self
            .endpoints
            .first()
            .map_or(Ipv4Addr::UNSPECIFIED.into(), SocketAddr::ip);
        Some(SocketAddr::new(ip, self.quic_port?).to_string())
    }

    /// Checks the names of interfaces, the ports, the number of lanes, the firewall mark and the routing table, and
    /// that `controller` begins with `https://`. The rest of that URL, `receive_buffer`, `metrics_listen` and
    /// `protected_networks` are not checked. Whether interfaces and addresses exist is not checked either. With `lanes`
    /// 0, `quic_port` must lie outside of the ports of the lanes that this host would run.
    ///
    /// # Errors
    /// A value is out of range. The error names the first such setting and, except for `table`, its value.
    pub fn check(&self) -> Result<()> {
        check_interface(&self.interface)?;
        if let Some(name) = &self.customer_interface {
            check_interface(name).context("customer_interface")?;
        }
        if self.listen_port == 0 {
            bail!("listen_port: 0 is not within 1 to 65535");
        }
        if self.lanes > MAX_LANES {
            bail!("lanes: {} is not within 0 to {MAX_LANES}", self.lanes);
        }
        if self.listen_port.checked_add(self.lanes.saturating_sub(1)).is_none() {
            bail!(
                "lanes: {} lanes need as many ports from listen_port {} on, and ports end at 65535",
                self.lanes,
                self.listen_port
            );
        }
        let of_lanes = self.listen_port..=self.listen_port.saturating_add(self.lane_count().saturating_sub(1));
        if let Some(port) = self.quic_port.filter(|p| *p == 0 || of_lanes.contains(p)) {
            bail!("quic_port: {port} must be within 1 to 65535 and outside the ports of the lanes, {of_lanes:?}");
        }
        if !self.controller.starts_with("https://") {
            bail!("controller: '{}' must start with https://", self.controller);
        }
        if self.fwmark == 0 {
            bail!("fwmark: 0 is not within 1 to 4294967295: 0 means unmarked");
        }
        if self.table.is_some_and(|t| t < 256) {
            bail!("table: must be 256 or more; lower numbers are reserved for the system");
        }
        if let Some(e) = self.endpoints.iter().find(|e| e.port() == 0) {
            bail!("endpoints: {e} needs a port within 1 to 65535");
        }
        if !self.site_probe && !self.tcp_echo.is_empty() {
            bail!("tcp_echo: it is possible at a site probe only; leave it out");
        }
        if self.tcp_echo.len() > MAX_ECHOES {
            bail!(
                "tcp_echo: {} addresses; at most {MAX_ECHOES} are possible",
                self.tcp_echo.len()
            );
        }
        if let Some(address) = self.tcp_echo.iter().find(|a| a.port() == 0 || a.ip().is_unspecified()) {
            bail!("tcp_echo: {address} needs an address of this host and a port within 1 to 65535");
        }
        self.flow_logs.check()?;
        self.captures.check()
    }
}

/// Checks a device name: 1 to 15 ASCII letters, digits, `-`, `_` and `.`, with no `.` at the start. The kernel permits
/// more characters, but some of these are special in paths or shells.
///
/// # Errors
/// The name breaks this rule. The error quotes the name.
pub fn check_interface(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 15 || !name.chars().all(fits) || name.starts_with('.') {
        bail!("interface: '{name}' must be 1 to 15 characters of letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

/// The default device name, of at most 15 characters: `tl-` and the agent's name. A longer agent name is cut to 5
/// characters, and a hash of the whole name is added, so that the device names of two agents differ.
fn default_interface(agent: &AgentId) -> String {
    let name = agent.as_str();
    if name.len() <= 12 {
        return format!("tl-{name}");
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("tl-{}-{}", &name[..5], &hash[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(AgentId::new("hub-vm").unwrap(), "https://192.0.2.1:8443".into())
    }

    #[test]
    fn survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let mut c = config();
        c.endpoints = vec!["192.0.2.7:51820".parse().unwrap()];
        c.save(&state).unwrap();
        assert_eq!(Config::load(&state).unwrap(), c);
    }

    #[test]
    fn relays_have_a_larger_receive_buffer_by_default() {
        let vm = Role::Vm {
            nics: Vec::new(),
            served: Vec::new(),
            gateways: Vec::new(),
        };
        let gateway = Role::ExpressRouteGateway {
            gateway: tombolo_proto::id::ResourceId::new("/g"),
            addresses: Vec::new(),
            local_prefixes: Vec::new(),
            circuits: Vec::new(),
        };
        let mut c = config();
        assert!(c.receive_buffer(Some(&gateway)) > c.receive_buffer(Some(&vm)));
        assert_eq!(c.receive_buffer(None), c.receive_buffer(Some(&vm)));
        c.receive_buffer = Some(1_000_000);
        for role in [&vm, &gateway] {
            assert_eq!(c.receive_buffer(Some(role)), 1_000_000);
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let text = toml::to_string(&config()).unwrap() + "\nlanez = 2\n";
        state.write(file::CONFIG, text.as_bytes()).unwrap();
        assert!(format!("{:#}", Config::load(&state).unwrap_err()).contains("lanez"));
    }

    #[test]
    fn names_of_devices_are_short_and_distinct() {
        let long = |c: &str| default_interface(&AgentId::new(format!("a-very-long-agent-name-{c}")).unwrap());
        assert_ne!(long("1"), long("2"));
        for name in [long("1"), default_interface(&AgentId::new("hub").unwrap())] {
            check_interface(&name).unwrap();
        }
        for bad in ["", "a/b", "sixteen-letters-", "a b", ".."] {
            assert!(check_interface(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn advertises_the_port_by_default() {
        let mut c = config();
        assert_eq!(
            (c.advertised(), c.quic_endpoint()),
            (vec!["0.0.0.0:51820".into()], None)
        );
        c.quic_port = Some(443);
        assert_eq!(c.quic_endpoint().unwrap(), "0.0.0.0:443");
        c.endpoints = vec!["192.0.2.7:4500".parse().unwrap()];
        assert_eq!(c.quic_endpoint().unwrap(), "192.0.2.7:443");
    }

    #[test]
    fn the_quic_port_differs_from_the_ports_of_lanes() {
        let mut c = config();
        c.lanes = 3;
        for (port, fine) in [
            (0, false),
            (443, true),
            (51819, true),
            (51820, false),
            (51822, false),
            (51823, true),
        ] {
            c.quic_port = Some(port);
            assert_eq!(c.check().is_ok(), fine, "{port}");
        }
    }
}
