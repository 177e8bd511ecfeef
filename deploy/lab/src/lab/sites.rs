//! The sites of a lab: their stock programs are started, asked how they are, and disturbed.

use crate::host::inside;
use crate::lab::Lab;
use crate::site::bird::{self, Far, Protocol};
use crate::site::device::{self, Printed};
use crate::site::{self, line_device, tunnel_device};
use crate::topology::expected::{Event, Learned, Target};
use crate::topology::site::{Machine, Part};
use crate::topology::{CONTROLLER, Topology, expected::Action};
use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombolo_proto::id::PublicKey;

/// Longest that a stock program may take to say something.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest that sessions of a site's routers may take to come up.
pub(super) const SESSIONS: Duration = Duration::from_secs(60);

/// The folder with the files of a site's machines.
pub(crate) const FOLDER: &str = "sites";

/// The `/run` of a site's machine; none for other hosts.
fn run_of(topology: &Topology, folder: &Path, host: &str) -> Option<PathBuf> {
    let known = topology.machines().any(|m| m.host == host);
    known.then(|| folder.join(FOLDER).join(host).join("run"))
}

/// What is to be run on a host so that `argv` is at home there. `folder` is the lab's.
pub(crate) fn at_home(topology: &Topology, folder: &Path, host: &str, argv: &[String]) -> Vec<String> {
    match run_of(topology, folder, host) {
        Some(run) => site::with_own_run(&run, argv),
        None => argv.to_vec(),
    }
}

/// A session that does not do what it is there for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenSession {
    /// The router's host.
    pub host: String,
    /// What its routing daemon says.
    pub protocol: Protocol,
}

impl Lab {
    /// Makes the machines of all sites and their folders, and wires them.
    pub(super) fn build_sites(&self) -> Result<()> {
        for machine in self.topology.machines() {
            self.progress.doing(format!("making host {}", machine.host));
            // Those with a link to the underlay are there already.
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

    /// Starts the devices and routing daemons of all sites, with what the product tells their operators, and waits until
    /// they speak with the product.
    pub(super) async fn start_sites(&self) -> Result<()> {
        let mut far = BTreeMap::new();
        for (host, number, tunnel) in self.topology.tunnels() {
            self.progress.doing(format!("setting up the device of {host}"));
            let connection = &tunnel.connection;
            let printed = self.device_config(connection).await;
            let printed = printed.with_context(|| format!("connection '{connection}'"))?;
            self.start_device(&host, number, &printed).await?;
            far.insert(connection.clone(), printed.far);
        }
        self.start_routers(&far)?;
        self.wait_for_sessions(SESSIONS).await
    }

    /// What the product prints for the operator of a site's device.
    async fn device_config(&self, connection: &str) -> Result<Printed> {
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
        let done = self.exec_owned(CONTROLLER, &argv, LIMIT).await?;
        if done.code != 0 {
            bail!("{}{}", done.stdout, done.stderr);
        }
        Printed::read(&done.stdout)
    }

    fn run(&self, host: &str) -> Result<PathBuf> {
        let run = run_of(&self.topology, self.path()?, host);
        run.with_context(|| format!("{host} is no machine of a site"))
    }

    /// The private key of a tunnel's device.
    fn key_file(&self, host: &str, number: usize) -> Result<PathBuf> {
        Ok(self.run(host)?.join(format!("{}.key", tunnel_device(number))))
    }

    /// Makes a key for the device of every tunnel. Returns the public ones, by connection.
    ///
    /// # Errors
    /// A key cannot be made.
    pub fn make_device_keys(&self) -> Result<BTreeMap<String, PublicKey>> {
        let mut keys = BTreeMap::new();
        for (host, number, tunnel) in self.topology.tunnels() {
            let key = device::make_key(&self.key_file(&host, number)?)?;
            let key = key.parse().with_context(|| format!("the key that wg made: '{key}'"))?;
            keys.insert(tunnel.connection.clone(), key);
        }
        Ok(keys)
    }

    /// Makes the device of a tunnel, and sets it up with what the product prints for it.
    ///
    /// # Errors
    /// No such tunnel or no key yet, or a stock program refuses.
    pub async fn start_device(&self, host: &str, number: usize, printed: &Printed) -> Result<()> {
        let (name, netns) = (tunnel_device(number), self.hosts.netns(host));
        if !inside(&netns, || device::make_in_kernel(&name))?? {
            let process = self.launch(&format!("{host}.{name}"), host, &device::program(&name), self.tied)?;
            let deadline = Instant::now() + LIMIT;
            while inside(&netns, || if_nametoindex(name.as_str()))?.is_err() {
                if !process.alive() || Instant::now() > deadline {
                    bail!("{name} of {host} does not come up:\n{}", process.tail(10));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let settings = format!("{name}.conf");
        device::write_settings(printed, &self.key_file(host, number)?, &self.run(host)?.join(&settings))?;
        for argv in device::set_up(&name, printed, &format!("/run/{settings}")) {
            let done = self.exec_owned(host, &argv, LIMIT).await?;
            if done.code != 0 {
                bail!("'{}' on {host}: {}{}", argv.join(" "), done.stdout, done.stderr);
            }
        }
        Ok(())
    }

    /// Ends a tunnel's device as a power cut would, and starts it again with what the product prints now. With `rekey` it has
    /// another key, which is returned.
    ///
    /// # Errors
    /// No such tunnel, or as for [`Self::start_device`].
    pub async fn restart_device(&self, host: &str, number: usize, rekey: bool) -> Result<Option<PublicKey>> {
        let tunnels = self.topology.tunnels();
        let found = tunnels.into_iter().find(|(h, n, _)| h == host && *n == number);
        let (_, _, tunnel) = found.with_context(|| format!("{host} has no tunnel {number}"))?;
        let name = tunnel_device(number);
        // The kernel's device, where it has one, is no process.
        if let Ok(process) = self.process(&format!("{host}.{name}")) {
            process.kill()?;
        }
        // It fails where the device went with its process.
        let _ = self.exec(host, &["ip", "link", "del", &name], LIMIT).await?;
        let key = match rekey {
            true => Some(device::make_key(&self.key_file(host, number)?)?.parse()?),
            false => None,
        };
        let printed = self.device_config(&tunnel.connection).await?;
        self.start_device(host, number, &printed).await?;
        Ok(key)
    }

    /// Starts the routing daemons of all sites. `far` are the far ends of the tunnels, by connection.
    ///
    /// # Errors
    /// A daemon does not start.
    pub fn start_routers(&self, far: &BTreeMap<String, Far>) -> Result<()> {
        for machine in self.topology.machines() {
            let Some(config) = bird::config(&self.topology, &machine, far)? else {
                continue;
            };
            let file = self.run(&machine.host)?.join(bird::CONFIG);
            fs::write(&file, config).with_context(|| file.display().to_string())?;
            let argv = ["bird", "-f", "-c", &format!("/run/{}", bird::CONFIG), "-s", CONTROL].map(str::to_owned);
            self.launch(&machine.host, &machine.host, &argv, self.tied)?;
        }
        Ok(())
    }

    /// What the routing daemon of a site's router says of its sessions.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn sessions(&self, host: &str) -> Result<Vec<Protocol>> {
        let done = self
            .exec(host, &["birdc", "-s", CONTROL, "show", "protocols"], LIMIT)
            .await?;
        if done.code != 0 {
            bail!("birdc on {host}: {}{}", done.stdout, done.stderr);
        }
        Ok(bird::protocols(&done.stdout))
    }

    /// The prefixes that a customer edge has learned from a neighbour.
    ///
    /// # Errors
    /// There is no such neighbour, or the routing daemon does not answer.
    pub async fn learned(&self, from: &Learned) -> Result<BTreeSet<Ipv4Net>> {
        let (host, session) = self.topology.session_of(from).context("no such neighbour")?;
        let command = ["birdc", "-s", CONTROL, "show", "route", "protocol", &session];
        let done = self.exec(&host, &command, LIMIT).await?;
        if done.code != 0 {
            bail!("birdc on {host}: {}{}", done.stdout, done.stderr);
        }
        Ok(bird::prefixes(&done.stdout))
    }

    /// The sessions of all sites that are not up and should be: those of shut lines need not.
    ///
    /// # Errors
    /// A routing daemon has ended.
    pub async fn broken_sessions(&self) -> Result<Vec<BrokenSession>> {
        let mut broken = Vec::new();
        for machine in self.topology.machines() {
            let Ok(process) = self.process(&machine.host) else {
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
            // Right after its start it does not answer yet.
            let all = self.sessions(&machine.host).await.unwrap_or_else(|e| {
                let (name, kind, state) = ("bird".to_owned(), String::new(), format!("{e:#}"));
                vec![Protocol { name, kind, state }]
            });
            for protocol in all {
                if !protocol.good() && !shut.contains(&protocol.name) {
                    let host = machine.host.clone();
                    broken.push(BrokenSession { host, protocol });
                }
            }
        }
        Ok(broken)
    }

    /// Waits until every session of the sites that should be up is.
    ///
    /// # Errors
    /// The limit passed; the message names what is not.
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
                .doing(format!("{} sessions of the sites come up", broken.len()));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Makes an event of the topology happen.
    ///
    /// # Errors
    /// What it is about does not exist, or the system refuses.
    pub fn happen(&self, event: &Event) -> Result<()> {
        event.actions.iter().try_for_each(|action| self.act(action))
    }

    fn act(&self, action: &Action) -> Result<()> {
        let (hosts, topology) = (&*self.hosts, &self.topology);
        match action.target().map_err(anyhow::Error::msg)? {
            Target::Line { site, router, line, up } => site::switch_line(hosts, topology, (site, router), line, up),
            Target::Tunnel {
                site,
                router,
                connection,
                up,
            } => site::switch_tunnel(hosts, topology, (site, router), connection, up),
            Target::Host(host) => self.cut(host),
        }
    }

    /// Undoes all events: whatever they are about is as the topology has it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn undo_events(&self) -> Result<()> {
        let (hosts, topology) = (&*self.hosts, &self.topology);
        for action in topology.events.iter().flat_map(|(_, e)| &e.actions) {
            match action.target().map_err(anyhow::Error::msg)? {
                Target::Line { site, router, line, .. } => {
                    let up = topology.line_enabled(site, router, line);
                    site::switch_line(hosts, topology, (site, router), line, up)?;
                }
                Target::Tunnel {
                    site,
                    router,
                    connection,
                    ..
                } => site::switch_tunnel(hosts, topology, (site, router), connection, true)?,
                Target::Host(host) => self.restore(host)?,
            }
        }
        Ok(())
    }
}

/// The control socket of a routing daemon, where its stock client looks for it.
const CONTROL: &str = "/run/bird/bird.ctl";

/// The sessions that cannot be up, because their line is shut.
fn shut_lines(machine: &Machine<'_>) -> Vec<String> {
    let Part::CustomerEdge(edge) = machine.part else {
        return Vec::new();
    };
    let lines = edge.lines.iter().enumerate().filter(|(_, l)| !l.enabled);
    lines.map(|(number, _)| line_device(number)).collect()
}
