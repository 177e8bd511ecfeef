//! A lab: the hosts, programs and files that a topology describes, on this machine. A lab is brought up, changed while
//! it runs, and removed completely.

mod agents;
mod controller;
mod network;
mod sites;
pub(crate) mod teardown;

pub use agents::Ready;
pub use controller::client_of;
pub use sites::BrokenSession;
pub(crate) use sites::in_own_run;

use crate::binary;
use crate::delay;
use crate::host::{Hosts, Runtime};
use crate::process::Process;
use crate::progress::Progress;
use crate::site;
use crate::state::{self, State, StateDir};
use crate::topology::{CONTROLLER, INTERNET, Topology};
use crate::underlay;
use crate::watch::Watcher;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tombolo_client::Client;
use tombolo_client::manifest::{Manifest, Plan};
use tombolo_client::path::{DEFAULT_SUBSCRIPTION, Group};

/// Longest time that a bring-up with `replace` waits for the lock of an earlier lab's state folder. If the program of
/// the earlier lab was killed, the watcher holds the lock while it removes that lab. The watcher waits for the lock for
/// at most the same time (`LOCK_TIMEOUT` of [`crate::watch`]).
const PREVIOUS_LAB_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that a bring-up waits for one virtual machine to boot. Seven emulated machines that booted together on
/// two busy cores took about a minute.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// Time between two checks whether a machine has booted. A shorter time would cost too much processor time, because
/// each check runs an SSH client.
const BOOT_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time from the start of the last agent until every agent must be connected and up to date.
const READY_TIMEOUT: Duration = Duration::from_secs(40);
/// The resource group of a topology that names none.
const DEFAULT_GROUP: &str = "lab";

/// The options of a bring-up, see [`Lab::up`].
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder of the lab's state. `None` stands for `/run/tombolo-lab/<name>`.
    pub state_dir: Option<PathBuf>,
    /// Whether the lab stays up when this program ends. If false, the lab is removed when its [`Lab`] is dropped, and
    /// also if this program is killed.
    pub detached: bool,
    /// Whether a bring-up first takes down an earlier lab that has the same state folder. Otherwise [`Lab::up`] fails
    /// if there is one.
    pub replace: bool,
    /// Whether hosts are namespaces, containers or virtual machines.
    pub runtime: Runtime,
    /// Output for progress messages, and for errors that occur while the [`Lab`] is dropped.
    pub progress: Progress,
}

/// A lab that exists on this machine. Its state folder is locked until the value is dropped.
///
/// Dropping the value takes the lab down as [`Lab::down`] does, and blocks meanwhile, unless the lab is detached. An
/// error is then printed by [`Progress::warn`].
pub struct Lab {
    hosts: Box<dyn Hosts>,
    topology: Topology,
    /// The locked state folder; `None` after the lab was taken down.
    dir: Option<StateDir>,
    state: Mutex<State>,
    client: Option<Client>,
    group: Group,
    detached: bool,
    /// Whether the kernel kills the lab's processes when this program ends.
    tied: bool,
    progress: Progress,
    /// The process that takes the lab down if this program is killed. `None` for an attached lab, and if the program
    /// `tombolo` does not exist.
    watcher: Option<Watcher>,
}

impl Lab {
    /// Brings a lab up: hosts, underlay, controller, resources, agents, and the routers and VPN devices of sites.
    /// Returns when every agent has its configuration in force and every session of the sites is up. Must run in a
    /// Tokio runtime, and blocks the thread while a helper program runs.
    ///
    /// If an error occurs or the future is dropped, all that was made is taken down, even if `detached` is set. An
    /// earlier lab that was replaced stays removed.
    ///
    /// # Errors
    /// The topology fails [`Topology::check`]; this program does not run as root; a program or image is missing;
    /// another program or value holds the lock of the state folder; the folder has files that no lab makes; a lab is up
    /// there and `replace` is not set; or a step fails or exceeds its time limit. For a step that waits for a program,
    /// the message contains the last lines of the program's log.
    pub async fn up(topology: &Topology, options: Options) -> Result<Self> {
        topology.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces: run as root");
        }
        options.runtime.check()?;
        site::find_programs(topology)?;
        let mut lab = Self::prepare(topology, options).await?;
        // Until the bring-up has succeeded, dropping the lab must take it down, even if the options say `detached`.
        let detached = std::mem::replace(&mut lab.detached, false);
        lab.bring_up(detached)
            .await
            .with_context(|| format!("bringing up lab {}", topology.name))?;
        lab.detached = detached;
        lab.progress.idle();
        Ok(lab)
    }

    /// Creates only the hosts, the underlay and the links of sites, for tests of the network itself. Starts no
    /// controller, agent or routing daemon. Root rights and a topology that passes [`Topology::check`] are needed, but
    /// not checked for.
    ///
    /// # Errors
    /// The state folder cannot be used, as for [`Self::up`], or a command fails. If `detached` is not set, the parts
    /// that were made are then removed, as they are if the future is dropped. If it is set, they stay until the lab is
    /// attached with [`Self::attach`] and taken down with [`Self::down`].
    pub async fn underlay_only(topology: &Topology, options: Options) -> Result<Self> {
        let lab = Self::prepare(topology, options).await?;
        lab.build_network().await?;
        Ok(lab)
    }

    async fn prepare(topology: &Topology, options: Options) -> Result<Self> {
        let path = options.state_dir.unwrap_or_else(|| state::dir_of(None, &topology.name));
        let limit = if options.replace {
            PREVIOUS_LAB_TIMEOUT
        } else {
            Duration::ZERO
        };
        let dir = StateDir::open_within(&path, limit).await?;
        let hosts = options.runtime.hosts(topology, &path);
        if let Some(old) = dir.load()? {
            if !options.replace {
                bail!(
                    "lab {} is up already: take it down with 'tombolo lab down {}'",
                    topology.name,
                    topology.name
                );
            }
            options.progress.set_activity("removing what an earlier lab left");
            teardown::all(&*old.runtime.hosts(&old.topology, &path), &old)?;
        }
        // The files of an earlier lab are removed. Otherwise the new controller would read the earlier controller's
        // store, with agents that do not exist any more.
        dir.clear()?;
        let id = identity();
        let watcher = Watcher::start(&path, &id)?;
        let state = State {
            id,
            topology: topology.clone(),
            runtime: options.runtime,
            hosts: Vec::new(),
            processes: BTreeMap::new(),
            moved: BTreeMap::new(),
            addresses: BTreeMap::new(),
            complete: false,
        };
        dir.save(&state)?;
        Ok(Self {
            hosts,
            topology: topology.clone(),
            dir: Some(dir),
            state: Mutex::new(state),
            client: None,
            group: group_of(topology),
            detached: options.detached,
            tied: !options.detached,
            progress: options.progress,
            watcher,
        })
    }

    /// Returns the lab that has the state folder `path`, also if its bring-up has failed. The returned [`Lab`] is
    /// detached, so dropping it does not take the lab down. Does not wait for the folder's lock, and reads the record
    /// only: whether the hosts and processes still exist is not checked. If the controller has never started,
    /// [`Self::client`] fails.
    ///
    /// # Errors
    /// No lab has its state in this folder, the state cannot be read (root is needed), or another [`Lab`] holds the
    /// lock, of another program or of this one.
    pub fn attach(path: &Path) -> Result<Self> {
        if state::read(path)?.is_none() {
            bail!("no lab is up in {}", path.display());
        }
        let dir = StateDir::open(path)?;
        let state = dir
            .load()?
            .with_context(|| format!("no lab is up in {}", path.display()))?;
        let mut lab = Self {
            hosts: state.runtime.hosts(&state.topology, path),
            topology: state.topology.clone(),
            group: group_of(&state.topology),
            dir: Some(dir),
            state: Mutex::new(state),
            client: None,
            detached: true,
            tied: false,
            progress: Progress::silent(),
            watcher: None,
        };
        // If the bring-up failed before the controller's start, the lab has no client. It must be possible to take it
        // down.
        lab.client = lab.make_client().ok();
        Ok(lab)
    }

    async fn bring_up(&mut self, detached: bool) -> Result<()> {
        self.build_network().await?;
        self.progress.set_activity("starting the controller");
        self.launch_controller(!detached)?;
        self.wait_for_controller().await?;
        self.progress.set_activity("applying the resources");
        self.apply_settings().await.context("settings")?;
        let keys = self.make_device_keys()?;
        let mut manifest = Manifest::default();
        manifest.add("resources", self.topology.resources_with_keys(&keys));
        let client = self.client()?;
        let plan = Plan::read(client, &manifest, &self.group, false)
            .await
            .context("resources")?;
        plan.apply(client, |_| {}).await.context("resources")?;
        self.read_addresses().await?;
        self.join_agents(!detached).await?;
        self.wait_until_ready(READY_TIMEOUT).await?;
        self.start_sites().await?;
        self.change(|s| s.complete = true)
    }

    /// Sets those settings of the controller that the topology names. All others keep their present values.
    async fn apply_settings(&self) -> Result<()> {
        if self.topology.settings.is_empty() {
            return Ok(());
        }
        let client = self.client()?;
        let mut settings = client.settings().await?;
        let all = settings
            .as_object_mut()
            .context("the controller's settings are no JSON object")?;
        for (name, value) in &self.topology.settings {
            all.insert(name.clone(), value.clone());
        }
        client.put_settings(&settings).await?;
        Ok(())
    }

    /// Creates the hosts, the underlay, and the links of sites.
    ///
    /// Each step records its host before it creates the host. The future yields only between two steps. So, if it is
    /// dropped meanwhile, the record has all that was made, and the lab removes all of it.
    async fn build_network(&self) -> Result<()> {
        self.make_host(INTERNET)?;
        let netem = underlay::build(&*self.hosts, &self.topology)?;
        self.launch_delay_lines(netem)?;
        let attached = underlay::addresses(&self.topology);
        for (host, address) in &attached {
            self.progress.set_activity(format!("making host {host}"));
            self.make_host(host)?;
            underlay::connect_host(&*self.hosts, &self.topology, host, *address)
                .with_context(|| format!("host {host}"))?;
            self.hosts.power_on(host).with_context(|| format!("host {host}"))?;
            tokio::task::yield_now().await;
        }
        for (host, address) in &attached {
            self.wait_until_booted(host)
                .await
                .with_context(|| format!("host {host}"))?;
            underlay::configure_host(&*self.hosts, &self.topology, host, *address)
                .with_context(|| format!("host {host}"))?;
            let known = self.topology.hosts.get(host);
            if known.and_then(|h| h.vm.as_ref()).is_some_and(|vm| vm.kernel_forwarding) {
                network::enable_forwarding(&*self.hosts, host)?;
            } else if known.is_some_and(|h| h.edge.is_some()) {
                // The agent of a provider edge enables forwarding itself (D23). The lab removes the rate limits, so
                // that the edge's kernel answers every packet whose TTL has expired.
                network::disable_icmp_rate_limits(&*self.hosts, host)?;
            }
            tokio::task::yield_now().await;
        }
        self.build_sites()?;
        Ok(())
    }

    async fn wait_until_booted(&self, host: &str) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while !self.hosts.is_booted(host)? {
            self.progress.set_activity(format!("host {host} is booting"));
            if Instant::now() > deadline {
                bail!(
                    "it did not boot within {} s:\n{}",
                    BOOT_TIMEOUT.as_secs(),
                    self.hosts.boot_log(host)
                );
            }
            tokio::time::sleep(BOOT_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Starts the program that delays packets between segments. Does nothing if the topology has no delays, or if
    /// `netem` is set, because then the kernel delays the packets.
    fn launch_delay_lines(&self, netem: bool) -> Result<()> {
        let lines = underlay::delay_lines(&self.topology, netem);
        if lines.is_empty() {
            return Ok(());
        }
        let program = binary::find("tombolo")?.display().to_string();
        let mut argv = vec![program, "lab".to_owned(), delay::COMMAND.to_owned()];
        argv.extend(lines.iter().map(ToString::to_string));
        self.launch(delay::COMMAND, INTERNET, &argv, self.tied).map(drop)
    }

    fn make_host(&self, host: &str) -> Result<()> {
        // The host must not be recorded before this check. Otherwise the lab would remove a host that it has not made,
        // because it removes all recorded hosts when it is taken down.
        if self.hosts.exists(host) {
            bail!(
                "{} exists already, and this lab did not make it: if it is not needed, remove it with 'ip netns del'",
                self.hosts.netns(host).display()
            );
        }
        self.change(|s| s.hosts.push(host.to_owned()))?;
        self.hosts.create(host).with_context(|| format!("host {host}"))
    }

    /// Returns the topology that the lab was brought up with.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the [`Hosts`] by which the lab's hosts are used, of the kind that [`Options::runtime`] chose.
    #[must_use]
    pub fn hosts(&self) -> &dyn Hosts {
        &*self.hosts
    }

    /// Returns the resource group of the topology's resources, in the default subscription.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Returns the folder of the lab's state, keys and logs.
    ///
    /// # Errors
    /// The lab was taken down. A caller never gets this error, because [`Self::down`] consumes the lab.
    pub fn path(&self) -> Result<&Path> {
        Ok(self.dir.as_ref().context("the lab was taken down")?.path())
    }

    /// Returns the operator's client of the controller. A client is returned even if the controller has ended since.
    ///
    /// # Errors
    /// The controller was never started, or has not answered yet since its first start, so the lab has no client.
    pub fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the lab's controller was not started")
    }

    /// Returns the controller's URL, `https://ADDRESS:PORT`. ADDRESS is the underlay address of the controller's host.
    #[must_use]
    pub fn url(&self) -> String {
        controller::url(&self.topology)
    }

    /// Returns the controller's data folder on this machine. After the controller's first start it contains `ca.pem`
    /// and `admin.token`.
    ///
    /// # Errors
    /// As [`Self::path`].
    pub fn controller_dir(&self) -> Result<PathBuf> {
        Ok(self.path()?.join(CONTROLLER))
    }

    /// Returns the path of the agent's state folder on `host`. If the host is a namespace or a container, the folder
    /// has the same path on this machine. Whether the host exists is not checked.
    ///
    /// # Errors
    /// As [`Self::path`].
    pub fn agent_dir(&self, host: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("agents").join(host))
    }

    /// Returns the path of a process's log on this machine. `name` is the key of the process in [`State::processes`]:
    /// the host's name for an agent or routing daemon, `controller`, or `HOST.wgN` for the `wireguard-go` of device
    /// `wgN`. Whether the file exists is not checked.
    ///
    /// # Errors
    /// As [`Self::path`].
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("logs").join(format!("{name}.log")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a copy of the lab's record as it is now; later changes do not appear in the copy.
    #[must_use]
    pub fn snapshot(&self) -> State {
        self.state().clone()
    }

    /// Changes the record and writes it to disk. After an error the changed record is in memory only.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        self.dir.as_ref().context("the lab was taken down")?.save(&state)
    }

    /// Returns the command line on this machine that runs `argv` on `host`, with the host's own `/run` if the host has
    /// one.
    fn wrap(&self, host: &str, argv: &[String]) -> Result<Vec<String>> {
        let argv = in_own_run(&self.topology, self.path()?, host, argv);
        Ok(self.hosts.wrap(host, &argv))
    }

    /// Starts a program on `host`, and records the process under `name`. [`Self::log`] finds the process's log by this
    /// name.
    fn launch(&self, name: &str, host: &str, argv: &[String], tied: bool) -> Result<Process> {
        let argv = in_own_run(&self.topology, self.path()?, host, argv);
        self.launch_with_common_run(name, host, &argv, tied)
    }

    /// As [`Self::launch`], but the program has the `/run` of this machine, in which the lab's state folder is.
    fn launch_with_common_run(&self, name: &str, host: &str, argv: &[String], tied: bool) -> Result<Process> {
        let log = self.log(name)?;
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // The lab's logs must be text, because people read them and error messages quote their last lines. Without
        // `TOMBOLO_LOG_FORMAT` the programs would write JSON, because the log is a file and no terminal.
        let environment = [("TOMBOLO_LOG_FORMAT".to_owned(), "text".to_owned())];
        let started = self.hosts.start(host, argv, &environment, &log, tied);
        let process = started.with_context(|| format!("{name} on {host}"))?;
        self.change(|s| {
            s.processes.insert(name.to_owned(), process.clone());
        })?;
        Ok(process)
    }

    fn process(&self, name: &str) -> Result<Process> {
        let state = self.state();
        let found = state.processes.get(name).cloned();
        found.with_context(|| format!("nothing named '{name}' runs in lab {}", self.topology.name))
    }

    /// Returns an overlay address by a name: `host` is the host's primary address, `host/4` its first IPv4 address,
    /// `host/6` its first IPv6 address. Any other text after the slash is ignored. Names of hosts are case-sensitive. A
    /// text that is an address is returned unchanged, without any check. The address of a site's machine is
    /// [`Machine::address`](crate::topology::site::Machine::address). An address that the controller has allocated is
    /// returned as it was at the bring-up.
    ///
    /// # Errors
    /// The host does not exist, has no overlay address, or has no overlay address of this family.
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        if let Ok(address) = name.parse() {
            return Ok(address);
        }
        let (host, family) = name.split_once('/').unwrap_or((name, ""));
        let state = self.state();
        let all = state
            .addresses
            .get(host)
            .with_context(|| format!("host '{host}' has no overlay address"))?;
        let found = all.iter().find(|a| match family {
            "4" => a.is_ipv4(),
            "6" => a.is_ipv6(),
            _ => true,
        });
        found
            .copied()
            .with_context(|| format!("host '{host}' has no such address: {name}"))
    }

    /// Returns the present underlay address of a host: the address that [`Self::readdress`] set last, otherwise the
    /// address in the topology. Names of hosts are case-sensitive.
    ///
    /// # Errors
    /// The host does not exist, or has no link to the underlay.
    pub fn underlay_address(&self, host: &str) -> Result<IpAddr> {
        if let Some(address) = self.state().moved.get(host) {
            return Ok(*address);
        }
        let all = underlay::addresses(&self.topology);
        let found = all.iter().find(|(name, _)| name == host);
        found
            .map(|(_, address)| *address)
            .with_context(|| format!("there is no host '{host}' in lab {}", self.topology.name))
    }

    /// Takes the lab down: ends its processes, removes its hosts, and deletes its state folder. Blocks until all of
    /// this is done, which takes several seconds if processes ignore SIGTERM. If a part cannot be removed, the other
    /// parts are removed nevertheless. Root is needed.
    ///
    /// # Errors
    /// A part could not be removed; the message lists all such parts. The state folder then stays, so that
    /// [`Self::attach`] and `down` can be tried again.
    pub fn down(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let Some(dir) = self.dir.take() else { return Ok(()) };
        let state = self.state().clone();
        teardown::all(&*self.hosts, &state)?;
        dir.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.detached
            && let Err(e) = self.take_down()
        {
            self.progress
                .warn(&format!("taking down lab {}: {e:#}", self.topology.name));
        }
        // The watcher is needed until the lab is down, because this program may be killed while it takes the lab down.
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// Returns an id that no other bring-up on this machine has: the process id and the time in nanoseconds.
fn identity() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

fn group_of(topology: &Topology) -> Group {
    let name = topology.resources.resource_group.as_deref().unwrap_or(DEFAULT_GROUP);
    Group::new(DEFAULT_SUBSCRIPTION, name)
}
