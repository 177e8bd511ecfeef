//! Hosts, which are network namespaces on one bridge, and agents on them. The agents start from a stored configuration,
//! so they forward packets without a controller.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(dead_code, reason = "each test binary uses a part of this module")]

use ipnet::IpNet;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tombolo_agent::config::Config;
use tombolo_agent::identity::LinkKey;
use tombolo_agent::persist::LastGood;
use tombolo_agent::state::{StateDir, file};
use tombolo_proto::config::{
    AgentConfig, DEFAULT_MTU, ForeignSources, Link, Nic, Owner, Probes, Relation, Role, Space, SpaceKind, Subnet,
    digest,
};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId, Revision};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteSource, RouteState};

/// Runs a shell command that must succeed. Returns its output; if the command fails, panics with the output.
pub(crate) fn sh(command: &str) -> String {
    let (ok, text) = try_sh(command);
    assert!(ok, "{command}: {text}");
    text
}

/// Runs a shell command that may fail. Returns whether the command succeeded, and its output (standard output, then
/// standard error). Panics if a program is not installed: that is a fault of the environment, and not a result for the
/// test.
#[must_use = "the command may have failed: use `sh` or `Wire::run` where it must not"]
pub(crate) fn try_sh(command: &str) -> (bool, String) {
    let out = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    // Shells and `timeout` exit with 127 if a program is missing. `ip netns exec` prints this text instead.
    let absent = out.status.code() == Some(127) || text.contains("exec of \"");
    assert!(
        !absent,
        "{command}: a program is missing from the tests' PATH; add it to .ci/programs: {text}"
    );
    (out.status.success(), text)
}

/// Network namespaces on one bridge, with the addresses `192.0.2.1`, `192.0.2.2`, … in their order. Dropping the value
/// removes the namespaces.
pub(crate) struct Wire {
    /// The names of the namespaces.
    pub ns: Vec<String>,
    bridge: String,
}

impl Wire {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_hosts(name, 2)
    }

    pub(crate) fn with_hosts(name: &str, count: usize) -> Self {
        // A missing privilege is an error, because a skipped test would look like one that has passed.
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        let ns = (0..count).map(|i| format!("tlagent-{name}-{i}")).collect();
        let wire = Self {
            ns,
            bridge: format!("tlagent-{name}-net"),
        };
        wire.remove();
        let bridge = &wire.bridge;
        sh(&format!(
            "ip netns add {bridge} && ip -n {bridge} link add name br0 type bridge && ip -n {bridge} link set br0 up"
        ));
        for (i, n) in wire.ns.iter().enumerate() {
            sh(&format!(
                "ip netns add {n} && ip -n {n} link set lo up \
                 && ip -n {n} link add wire0 type veth peer name p{i} netns {bridge} \
                 && ip -n {bridge} link set p{i} master br0 up \
                 && ip -n {n} addr add 192.0.2.{}/24 dev wire0 && ip -n {n} link set wire0 up \
                 && ip netns exec {n} sysctl -qw net.ipv4.icmp_ratelimit=0",
                i + 1
            ));
        }
        wire
    }

    /// Makes the bridge drop IP fragments and all packets that are longer than `bytes`, without an ICMP error.
    pub(crate) fn set_path_mtu(&self, bytes: u64) {
        let bridge = &self.bridge;
        for i in 0..self.ns.len() {
            sh(&format!("ip -n {bridge} link set p{i} mtu {bytes}"));
        }
        sh(&format!(
            "ip netns exec {bridge} nft 'add table bridge t; add chain bridge t c {{ type filter hook forward priority 0; }}; \
             flush chain bridge t c; add rule bridge t c ip frag-off & 0x3fff != 0 counter drop'"
        ));
    }

    fn remove(&self) {
        for n in self.ns.iter().chain([&self.bridge]) {
            // The command fails if the namespace does not exist. That is no error.
            let _ = Command::new("ip").args(["netns", "del", n]).output();
        }
    }

    /// Runs a command, which may fail, in the bridge's namespace. A test can make this namespace the router of the
    /// hosts.
    pub(crate) fn at_bridge(&self, command: &str) -> (bool, String) {
        try_sh(&format!("ip netns exec {} {command}", self.bridge))
    }

    /// Runs a command, which may fail, in the namespace of host `side`. Returns whether it succeeded, and its output.
    #[must_use = "the command may have failed: use `run` where it must not"]
    pub(crate) fn exec(&self, side: usize, command: &str) -> (bool, String) {
        try_sh(&format!("ip netns exec {} {command}", self.ns[side]))
    }

    /// Runs a command, which must succeed, in the namespace of host `side`. Returns its output. If the command fails,
    /// panics with the output.
    pub(crate) fn run(&self, side: usize, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.ns[side]))
    }
}

/// An iperf3 server, which ends after one client. Dropping the value ends the server if no client has connected.
pub(crate) struct Server(Child);

impl Server {
    /// Starts the server in the namespace of host `side`, and waits until it listens.
    pub(crate) fn start(wire: &Wire, side: usize) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", &wire.ns[side], "iperf3", "-s", "-1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("iperf3 listens", || {
            wire.run(side, "ss -Hltn sport = :5201").contains("5201")
        });
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both calls fail only if the server has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The words to put before a command in a namespace. They make `/proc/sys` read-only for the command, as it is in a
/// container. Other commands are not affected, because `ip netns exec` gives each command a mount namespace of its own.
pub(crate) const READ_ONLY_SWITCHES: [&str; 4] = [
    "sh",
    "-c",
    "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"",
    "sh",
];

/// An agent's state directory, and its process while the agent runs. Dropping the value kills the agent.
pub(crate) struct Host {
    pub dir: tempfile::TempDir,
    pub state: StateDir,
    pub config: Config,
    pub key: PublicKey,
    authority: Issuer<'static, KeyPair>,
    own: KeyPair,
    ns: String,
    process: Option<Child>,
    /// Whether the agent is started with a read-only `/proc/sys`.
    pub read_only_switches: bool,
}

impl Host {
    /// Creates the files that `tombolo-agent join` creates: keys, certificates and settings. No controller runs at the
    /// configured address.
    pub(crate) fn new(ns: &str, agent: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let config = Config::new(AgentId::new(agent).unwrap(), "https://192.0.2.250:1".into());
        config.save(&state).unwrap();
        let key = LinkKey::load_or_create(&state).unwrap().public();
        let authority = Issuer::new(authority_params(), KeyPair::generate().unwrap());
        let pem = authority_params().self_signed(authority.key()).unwrap().pem();
        state.write(file::CA, pem.as_bytes()).unwrap();
        let own = KeyPair::generate().unwrap();
        state.write(file::TLS_KEY, own.serialize_pem().as_bytes()).unwrap();
        let host = Self {
            dir,
            state,
            config,
            key,
            authority,
            own,
            ns: ns.to_owned(),
            process: None,
            read_only_switches: false,
        };
        host.state
            .write(file::CERTIFICATE, host.issue_own(false).as_bytes())
            .unwrap();
        host
    }

    /// Issues a certificate for the agent's key, in PEM. With `expired` it has expired in 2020.
    pub(crate) fn issue_own(&self, expired: bool) -> String {
        let mut params = CertificateParams::default();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        params.signed_by(&self.own, &self.authority).unwrap().pem()
    }

    /// Stores a configuration as the last good one. The agent applies it when it starts.
    pub(crate) fn remember(&self, config: AgentConfig) {
        config.check().unwrap();
        let last = LastGood {
            revision: Revision(7),
            digest: digest(&config.to_bytes()),
            config,
        };
        self.state
            .write(file::LAST_GOOD, &serde_json::to_vec(&last).unwrap())
            .unwrap();
    }

    /// Stores an endpoint as the last known one of a peer.
    pub(crate) fn remember_endpoint(&self, peer: &str, endpoint: SocketAddr) {
        let json = format!("{{\"{peer}\":\"{endpoint}\"}}");
        self.state.write(file::ENDPOINTS, json.as_bytes()).unwrap();
    }

    /// Starts the agent, and waits until its local socket answers.
    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let before: &[&str] = if self.read_only_switches {
            &READ_ONLY_SWITCHES
        } else {
            &[]
        };
        let child = Command::new("ip")
            .args(["netns", "exec", &self.ns])
            .args(before)
            .args([env!("CARGO_BIN_EXE_tombolo-agent"), "run", "--state-dir"])
            .arg(self.dir.path())
            .env("TOMBOLO_LOG_FORMAT", "text")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let begun = Instant::now();
        while self.status().is_none() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "agent did not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the agent, and waits until it has ended. Returns whether the agent exited with success; true
    /// if it did not run.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) -> bool {
        let Some(mut child) = self.process.take() else {
            return true;
        };
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        child.wait().unwrap().success()
    }

    /// The agent's status as JSON. None: its local socket does not answer.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&tombolo_agent::admin::ask(&self.state, "/status").ok()?).ok()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.config.agent, self.log());
        }
    }
}

/// Waits until a condition holds, for ten seconds at most; then panics with `what`.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(what, 10, condition);
}

pub(crate) fn eventually_within(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const SPACES: [&str; 2] = ["10.1.0.0/16", "fd00:1::/64"];

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The configuration for one of two VMs in one VNet. With `me` = 0 the VM has the addresses `10.1.0.4` and `fd00:1::4`,
/// with 1 it has `10.1.0.5` and `fd00:1::5`.
pub(crate) fn config(me: usize, hosts: [&Host; 2]) -> AgentConfig {
    let (vnet, subnet) = (ResourceId::new("/vnets/v"), ResourceId::new("/vnets/v/subnets/s"));
    let id = |i: usize| hosts[i].config.agent.clone();
    let addresses = |i: usize| {
        [
            net(&format!("10.1.0.{}/24", 4 + i)),
            net(&format!("fd00:1::{}/64", 4 + i)),
        ]
    };
    let owner = |i: usize| {
        addresses(i).map(|a| Owner {
            prefix: a.addr().into(),
            agent: id(i),
            ip_forwarding: false,
        })
    };
    let other = 1 - me;
    AgentConfig {
        agent: id(me),
        vnet: vnet.clone(),
        address_space: SPACES.map(net).to_vec(),
        mtu: DEFAULT_MTU,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: ResourceId::new(format!("/nics/{me}")),
                addresses: addresses(me).to_vec(),
                subnet: subnet.clone(),
                ip_forwarding: false,
                host_routes: Vec::new(),
            }],
            served: vec![],
            gateways: Vec::new(),
        },
        subnets: vec![Subnet {
            id: subnet,
            prefixes: vec![net("10.1.0.0/24"), net("fd00:1::/64")],
            routes: SPACES
                .map(|p| EffectiveRoute {
                    name: None,
                    source: RouteSource::Default,
                    state: RouteState::Active,
                    prefix: net(p),
                    next_hop: NextHop::VnetLocal {},
                })
                .to_vec(),
            isolated: false,
        }],
        spaces: vec![Space {
            vnet,
            kind: SpaceKind::Local {},
            prefixes: SPACES.map(net).to_vec(),
            owners: [owner(0), owner(1)].concat(),
        }],
        links: vec![Link {
            peer: id(other),
            public_key: hosts[other].key,
            preshared_key: None,
            endpoint: Some(format!("192.0.2.{}:51820", other + 1).parse().unwrap()),
            quic_endpoint: None,
            peer_lanes: hosts[other].config.lanes.max(1),
            many_routes: false,
            quic: None,
            transport: tombolo_proto::config::Transport::WireGuard,
            always_on: false,
            initiator: me == 0,
            relation: Relation::VnetLocal {},
            sources: addresses(other).map(|a| a.addr().into()).to_vec(),
            foreign: ForeignSources::None,
            arrivals: Vec::new(),
            monitored: false,
            third_party: false,
            dpd_timeout: None,
        }],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// A key and a certificate for a server called `name`, both in PEM. The authority of `host` has signed the certificate.
pub(crate) fn signed_by_authority(host: &Host, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (
        key.serialize_pem(),
        params.signed_by(&key, &host.authority).unwrap().pem(),
    )
}
