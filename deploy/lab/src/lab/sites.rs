//! The sites of a lab: starts their stock programs, reads the state of their routers, and carries out events.

use crate::host::inside;
use crate::lab::Lab;
use crate::site::bird::{self, Protocol, RemoteEnd};
use crate::site::device::{self, DeviceSettings};
use crate::site::{self, line_device, tunnel_device};
use crate::topology::expected::{Event, Learned, Target};
use crate::topology::site::{Machine, MachineRole};
use crate::topology::{CONTROLLER, Topology, expected::Action};
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombolo_proto::id::PublicKey;

/// Longest time that a stock program may run, or a device may take to appear. The time allows for a busy machine.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time until all sessions of the sites' routers must be up. OSPF and BGP retry every few seconds.
pub(super) const SESSIONS_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two checks whether `wireguard-go` has made its device.
const DEVICE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time between two checks of all sessions. A shorter time would cost too much processor time, because each check runs
/// `birdc` on every router.
const SESSIONS_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Folder in the lab's state folder that contains the files of the sites' machines.
pub(crate) const SITES_FOLDER: &str = "sites";

/// Returns the folder of this machine that the host of a site's machine sees as `/run`; `None` for other hosts.
/// `folder` is the lab's state folder.
fn run_of(topology: &Topology, folder: &Path, host: &str) -> Option<PathBuf> {
    let known = topology.machines().any(|m| m.host == host);
    known.then(|| folder.join(SITES_FOLDER).join(host).join("run"))
}

/// If `host` is a site's machine, returns the command line that runs `argv` with the machine's own `/run`; otherwise
/// returns `argv` unchanged. `folder` is the lab's state folder.
pub(crate) fn in_own_run(topology: &Topology, folder: &Path, host: &str, argv: &[String]) -> Vec<String> {
    match run_of(topology, folder, host) {
        Some(run) => site::with_own_run(&run, argv),
        None => argv.to_vec(),
    }
}

/// A session of a site's router that should be up and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenSession {
    /// Name of the router's host in the lab.
    pub host: String,
    /// The session with its state, as the routing daemon reports it.
    pub protocol: Protocol,
}

impl Lab {
    /// Creates the machines of all sites, with their folders and links. The underlay and the provider edges' hosts must
    /// exist.
    pub(super) fn build_sites(&self) -> Result<()> {
        for machine in self.topology.machines() {
            self.progress.set_activity(format!("making host {}", machine.host));
            // The hosts of customer edges that have a link to the underlay exist already: they were created with the
            // underlay.
            if !self.state().hosts.contains(&machine.host) {
                self.make_host(&machine.host)?;
            }
            let bird = self.run(&machine.host)?.join("bird");
            fs::create_dir_all(&bird).with_context(|| bird.display().to_string())?;
            if let Some(address) = machine.address() {
                self.change(|s| {
                    s.addresses.insert(machine.host.clone(), vec![address.into()]);
                })?;
            }
        }
        site::build(&*self.hosts, &self.topology)
    }

    /// Starts the VPN devices and routing daemons of all sites, and waits until all sessions are up. The devices get
    /// the configuration that `tombolo connection device-config` prints for an operator, so that the lab also tests
    /// what an operator would use.
    pub(super) async fn start_sites(&self) -> Result<()> {
        let mut remotes = BTreeMap::new();
        for (host, number, tunnel) in self.topology.tunnels() {
            self.progress
                .set_activity(format!("configuring the VPN device of {host}"));
            let connection = &tunnel.connection;
            let parsed = self.device_config(connection).await;
            let parsed = parsed.with_context(|| format!("connection '{connection}'"))?;
            self.start_device(&host, number, &parsed).await?;
            remotes.insert(connection.clone(), parsed.remote);
        }
        self.start_routers(&remotes)?;
        self.wait_for_sessions(SESSIONS_TIMEOUT).await
    }

    /// Returns the settings that `tombolo connection device-config` prints at present for a connection.
    async fn device_config(&self, connection: &str) -> Result<DeviceSettings> {
        let (data, program) = (self.controller_dir()?, self.hosts.program(CONTROLLER, "tombolo")?);
        let argv = [
            "env".to_owned(),
            format!("TOMBOLO_CONTROLLER={}", self.url()),
            format!("TOMBOLO_CA={}", data.join("ca.pem").display()),
            format!("TOMBOLO_TOKEN_FILE={}", data.join("admin.token").display()),
            format!("TOMBOLO_RESOURCE_GROUP={}", self.group.name),
            program,
            "connection".to_owned(),
            "device-config".to_owned(),
            connection.to_owned(),
        ];
        let done = self.exec_owned(CONTROLLER, &argv, PROGRAM_TIMEOUT).await?;
        if done.code != 0 {
            bail!("{}{}", done.stdout, done.stderr);
        }
        DeviceSettings::read(&done.stdout)
    }

    /// Returns the folder of this machine that the site's machine `host` sees as `/run`. Fails for other hosts.
    fn run(&self, host: &str) -> Result<PathBuf> {
        let run = run_of(&self.topology, self.path()?, host);
        run.with_context(|| format!("{host} is no machine of a site"))
    }

    /// Returns the path, on this machine, of the private key of tunnel device `number` of the customer edge `host`.
    fn key_file(&self, host: &str, number: usize) -> Result<PathBuf> {
        Ok(self.run(host)?.join(format!("{}.key", tunnel_device(number))))
    }

    /// Generates a private key for the device of every tunnel, in a file of mode 0600 that replaces an earlier one.
    /// Returns the public keys by connection. The caller must write the public keys into the controller's local network
    /// gateways. A device that already runs keeps its earlier key. A topology without tunnels gives an empty map.
    ///
    /// # Errors
    /// A folder of a site's machine is missing, or `wg` is missing or fails.
    pub fn make_device_keys(&self) -> Result<BTreeMap<String, PublicKey>> {
        let mut keys = BTreeMap::new();
        for (host, number, tunnel) in self.topology.tunnels() {
            let key = device::make_key(&self.key_file(&host, number)?)?;
            let key = key.parse().with_context(|| format!("the key that wg made: '{key}'"))?;
            keys.insert(tunnel.connection.clone(), key);
        }
        Ok(keys)
    }

    /// Creates the WireGuard device of tunnel `number`, counted from 0 in the order of the topology file, of the
    /// customer edge `host`, and sets it up with the settings `parsed` and the key that [`Self::make_device_keys`]
    /// made. If the kernel has WireGuard, it makes the device `wgN`; otherwise `wireguard-go` does. Waits until the
    /// device is up, but not for a handshake. BGP is not started. After an error, or if the future is dropped, the
    /// device may exist; [`Self::restart_device`] removes it.
    ///
    /// # Errors
    /// `host` is no machine of a site; the tunnel has no key file; the kernel has a device of this name; or a program
    /// is missing, fails, or takes more than ten seconds.
    pub async fn start_device(&self, host: &str, number: usize, parsed: &DeviceSettings) -> Result<()> {
        let (name, netns) = (tunnel_device(number), self.hosts.netns(host));
        if !inside(&netns, || device::make_in_kernel(&name))?? {
            let process = self.launch(&format!("{host}.{name}"), host, &device::program(&name), self.tied)?;
            let deadline = Instant::now() + PROGRAM_TIMEOUT;
            while inside(&netns, || if_nametoindex(name.as_str()))?.is_err() {
                if !process.alive() || Instant::now() > deadline {
                    bail!("{name} of {host} does not come up:\n{}", process.tail(10));
                }
                tokio::time::sleep(DEVICE_POLL_INTERVAL).await;
            }
        }
        let settings = format!("{name}.conf");
        device::write_settings(parsed, &self.key_file(host, number)?, &self.run(host)?.join(&settings))?;
        for argv in device::set_up(&name, parsed, &format!("/run/{settings}")) {
            let done = self.exec_owned(host, &argv, PROGRAM_TIMEOUT).await?;
            if done.code != 0 {
                bail!("'{}' on {host}: {}{}", argv.join(" "), done.stdout, done.stderr);
            }
        }
        Ok(())
    }

    /// Removes a tunnel's device without notifying the peer, and starts the device again with the present configuration
    /// of the tunnel's connection. `host` and `number` are as for [`Self::start_device`]. A device that does not exist
    /// is no error. With `rekey` the device gets a new key. The new public key is then returned, and the caller must
    /// write it into the local network gateway. Until then the peer refuses the device's handshakes. Without `rekey`,
    /// `None` is returned.
    ///
    /// # Errors
    /// The tunnel does not exist, the device's process cannot be killed, the key cannot be made, the controller does
    /// not answer, or as for [`Self::start_device`]. The device may then be gone, and with `rekey` its key file
    /// replaced.
    pub async fn restart_device(&self, host: &str, number: usize, rekey: bool) -> Result<Option<PublicKey>> {
        let tunnels = self.topology.tunnels();
        let found = tunnels.into_iter().find(|(h, n, _)| h == host && *n == number);
        let (_, _, tunnel) = found.with_context(|| format!("{host} has no tunnel {number}"))?;
        let name = tunnel_device(number);
        // Only a device of `wireguard-go` has a process.
        if let Ok(process) = self.process(&format!("{host}.{name}")) {
            process.kill()?;
        }
        // The command's exit status is ignored, because a device of `wireguard-go` is removed already: it ends with its
        // process.
        let _ = self.exec(host, &["ip", "link", "del", &name], PROGRAM_TIMEOUT).await?;
        let key = match rekey {
            true => Some(device::make_key(&self.key_file(host, number)?)?.parse()?),
            false => None,
        };
        let parsed = self.device_config(&tunnel.connection).await?;
        self.start_device(host, number, &parsed).await?;
        Ok(key)
    }

    /// Writes the configuration of BIRD for every router of the sites and starts the daemons. Does not wait for their
    /// sessions. `remotes` has the remote end of every tunnel. The key is the name of the tunnel's connection, written
    /// as in the topology. Call it only once: it does not stop daemons that run.
    ///
    /// # Errors
    /// A tunnel has no remote end, a circuit has no private peering, a file cannot be written, or a daemon is missing
    /// or does not start. The daemons of the machines before the failed one run then.
    pub fn start_routers(&self, remotes: &BTreeMap<String, RemoteEnd>) -> Result<()> {
        for machine in self.topology.machines() {
            let Some(config) = bird::config(&self.topology, &machine, remotes)? else {
                continue;
            };
            let file = self.run(&machine.host)?.join(bird::CONFIG);
            fs::write(&file, config).with_context(|| file.display().to_string())?;
            let argv = [
                "bird",
                "-f",
                "-c",
                &format!("/run/{}", bird::CONFIG),
                "-s",
                CONTROL_SOCKET,
            ]
            .map(str::to_owned);
            self.launch(&machine.host, &machine.host, &argv, self.tied)?;
        }
        Ok(())
    }

    /// Returns the BGP and OSPF sessions of a site's router, in the order in which its routing daemon reports them.
    ///
    /// # Errors
    /// The host does not exist, or `birdc` is missing, fails or takes more than ten seconds, for example because the
    /// routing daemon does not run.
    pub async fn sessions(&self, host: &str) -> Result<Vec<Protocol>> {
        let done = self
            .exec(
                host,
                &["birdc", "-s", CONTROL_SOCKET, "show", "protocols"],
                PROGRAM_TIMEOUT,
            )
            .await?;
        if done.code != 0 {
            bail!("birdc on {host}: {}{}", done.stdout, done.stderr);
        }
        Ok(bird::protocols(&done.stdout))
    }

    /// Returns the IPv4 prefixes that a customer edge has learned by BGP from a neighbour and that are not withdrawn.
    /// `from` names the customer edge and the neighbour; the field `prefixes` of `from` is not used.
    ///
    /// # Errors
    /// The customer edge or the neighbour does not exist, or `birdc` is missing, fails or takes more than ten seconds.
    pub async fn learned(&self, from: &Learned) -> Result<BTreeSet<Ipv4Net>> {
        let (host, session) = self.topology.session_of(from).context("no such neighbour")?;
        let command = ["birdc", "-s", CONTROL_SOCKET, "show", "route", "protocol", &session];
        let done = self.exec(&host, &command, PROGRAM_TIMEOUT).await?;
        if done.code != 0 {
            bail!("birdc on {host}: {}{}", done.stdout, done.stderr);
        }
        Ok(bird::prefixes(&done.stdout))
    }

    /// Returns the sessions of all sites that should be up and are not, in the order of the machines. Sessions over
    /// lines that the topology disables are left out, but sessions over lines that an event has set down are included.
    /// If the routing daemon of a machine does not answer, the result has one session with the name `bird` for this
    /// machine. Machines whose routing daemon was never started are left out.
    ///
    /// # Errors
    /// A routing daemon has ended.
    pub async fn broken_sessions(&self) -> Result<Vec<BrokenSession>> {
        let mut broken = Vec::new();
        for machine in self.topology.machines() {
            // The process of a test host is the agent of its site probe.
            let is_router = !matches!(machine.role, MachineRole::Host(_));
            let Some(process) = self.process(&machine.host).ok().filter(|_| is_router) else {
                continue;
            };
            if !process.alive() {
                bail!(
                    "the routing daemon of {} has ended:\n{}",
                    machine.host,
                    process.tail(10)
                );
            }
            let shut = shut_lines(&machine);
            // A daemon that has just started does not answer yet. The caller must then wait and not fail, so this is no
            // error.
            let all = self.sessions(&machine.host).await.unwrap_or_else(|e| {
                let (name, kind, state) = ("bird".to_owned(), String::new(), format!("{e:#}"));
                vec![Protocol { name, kind, state }]
            });
            for protocol in all {
                if !protocol.is_up() && !shut.contains(&protocol.name) {
                    let host = machine.host.clone();
                    broken.push(BrokenSession { host, protocol });
                }
            }
        }
        Ok(broken)
    }

    /// Waits until every session of the sites that should be up is up, as [`Self::broken_sessions`] defines it. Returns
    /// at once if no routing daemon was started.
    ///
    /// # Errors
    /// A routing daemon has ended, or a session is not up after `limit`; the message lists the sessions that are not.
    pub async fn wait_for_sessions(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let broken = self.broken_sessions().await?;
            if broken.is_empty() {
                return Ok(());
            }
            if start.elapsed() > limit {
                let lines = broken.iter().map(|b| {
                    let Protocol { name, kind, state } = &b.protocol;
                    format!("\n  {}, {kind} {name}: {state}", b.host)
                });
                let lines: String = lines.collect();
                bail!(
                    "sessions of the sites that are not up after {} s:{lines}",
                    limit.as_secs()
                );
            }
            self.progress
                .set_activity(format!("waiting for {} sessions of the sites", broken.len()));
            tokio::time::sleep(SESSIONS_POLL_INTERVAL).await;
        }
    }

    /// Carries out the actions of an event in their order. The event's targets must be in the lab's topology, but the
    /// event itself need not be. Does not wait until routes have converged. The lab does not record which events were
    /// triggered; [`Self::undo_events`] undoes all events of the topology.
    ///
    /// # Errors
    /// An action is not valid, as for [`Action::target`]; its target does not exist; the device of a tunnel was not
    /// started; or a command fails. The actions before it stay in effect.
    pub fn trigger(&self, event: &Event) -> Result<()> {
        event.actions.iter().try_for_each(|action| self.carry_out(action))
    }

    fn carry_out(&self, action: &Action) -> Result<()> {
        let (hosts, topology) = (&*self.hosts, &self.topology);
        match action.target().map_err(anyhow::Error::msg)? {
            Target::Line { site, router, line, up } => site::set_line_state(hosts, topology, (site, router), line, up),
            Target::Tunnel {
                site,
                router,
                connection,
                up,
            } => site::set_tunnel_state(hosts, topology, (site, router), connection, up),
            Target::Host(host) => self.cut(host),
        }
    }

    /// Undoes all events: sets every interface and host that an action of the topology names to the state that the
    /// topology describes. This has no effect on interfaces and hosts that no event has changed. If an event
    /// names a host, a [`Self::cut`] of that host is undone even if it was made by a direct call and not by an event.
    ///
    /// # Errors
    /// As for [`Self::trigger`]. The targets after the failed one are then unchanged.
    pub fn undo_events(&self) -> Result<()> {
        let (hosts, topology) = (&*self.hosts, &self.topology);
        for action in topology.events.iter().flat_map(|(_, e)| &e.actions) {
            match action.target().map_err(anyhow::Error::msg)? {
                Target::Line { site, router, line, .. } => {
                    let up = topology.line_enabled(site, router, line);
                    site::set_line_state(hosts, topology, (site, router), line, up)?;
                }
                Target::Tunnel {
                    site,
                    router,
                    connection,
                    ..
                } => site::set_tunnel_state(hosts, topology, (site, router), connection, true)?,
                Target::Host(host) => self.restore(host)?,
            }
        }
        Ok(())
    }
}

/// Control socket of a routing daemon, in the machine's own `/run`. `birdc` expects the socket at this path, so people
/// may call `birdc` without `-s`.
const CONTROL_SOCKET: &str = "/run/bird/bird.ctl";

/// Returns the names of a machine's sessions over lines that the topology disables; these cannot be up.
fn shut_lines(machine: &Machine<'_>) -> Vec<String> {
    let MachineRole::CustomerEdge(edge) = machine.role else {
        return Vec::new();
    };
    let lines = edge.lines.iter().enumerate().filter(|(_, l)| !l.enabled);
    lines.map(|(number, _)| line_device(number)).collect()
}
