//! A lab: brought up from a topology, changed, and taken down completely.

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

/// Longest that the watcher of an earlier program may take to remove its lab, as in [`crate::watch`].
const PREVIOUS_LAB_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a virtual machine may take to boot. Seven emulated ones on two busy cores took about a minute.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// Time between two checks of a booting machine; each one runs an SSH client.
const BOOT_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Longest that all agents may take to be connected and up to date after a bring-up.
const READY_TIMEOUT: Duration = Duration::from_secs(40);
/// The resource group if the topology names none.
const DEFAULT_GROUP: &str = "lab";

/// The options of a bring-up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder of the lab's state; default `/run/tombolo-lab/<name>`.
    pub state_dir: Option<PathBuf>,
    /// The lab stays up when this program ends. Otherwise it is removed with the program, in whichever way that ends.
    pub detached: bool,
    /// Remove an earlier lab of the same name first. Otherwise an earlier lab is an error.
    pub replace: bool,
    /// Kind of the hosts.
    pub runtime: Runtime,
    /// Output of progress messages.
    pub progress: Progress,
}

/// A lab. Dropping it takes it down, unless it is detached.
pub struct Lab {
    hosts: Box<dyn Hosts>,
    topology: Topology,
    /// None after the lab was taken down.
    dir: Option<StateDir>,
    state: Mutex<State>,
    client: Option<Client>,
    group: Group,
    detached: bool,
    /// Whether the lab's processes are killed with this program.
    tied: bool,
    progress: Progress,
    /// Takes the lab down if this program is killed.
    watcher: Option<Watcher>,
}

impl Lab {
    /// Brings a lab up: hosts, underlay, controller, resources, agents, sites. Returns when every agent has its
    /// configuration in force and every site's session is up. A failure takes everything down again.
    ///
    /// # Errors
    /// A step fails; the message contains the last lines of the log that explains it.
    pub async fn up(topology: &Topology, options: Options) -> Result<Self> {
        topology.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces: run as root");
        }
        options.runtime.check()?;
        site::find_programs(topology)?;
        let mut lab = Self::prepare(topology, options).await?;
        // Until the bring-up has succeeded, dropping the lab takes it down, also a detached one.
        let detached = std::mem::replace(&mut lab.detached, false);
        lab.bring_up(detached)
            .await
            .with_context(|| format!("bringing up lab {}", topology.name))?;
        lab.detached = detached;
        lab.progress.idle();
        Ok(lab)
    }

    /// Brings up only hosts, underlay and the links of sites, for tests of the network itself.
    ///
    /// # Errors
    /// A step fails.
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
        // An earlier controller's store would contain agents that do not exist any more.
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

    /// Returns a lab that is up already. It is detached: dropping it does not take it down.
    ///
    /// # Errors
    /// No lab has its state in this folder, or another program has locked it.
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
        // A lab whose bring-up failed before the controller's start has no client, but can be taken down.
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

    /// Sets the controller's settings that the topology names. All others keep their defaults.
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
    /// Each step records its host before it blocks. It yields only between steps, so a lab that is dropped meanwhile
    /// removes all.
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
                // The agent itself enables forwarding (D23).
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

    /// Starts the program that delays packets between segments, unless the kernel has netem.
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
        // Checked before the host is recorded, because all recorded hosts are removed at the end.
        if self.hosts.exists(host) {
            bail!(
                "{} exists already, and this lab did not make it: if it is not needed, remove it with 'ip netns del'",
                self.hosts.netns(host).display()
            );
        }
        self.change(|s| s.hosts.push(host.to_owned()))?;
        self.hosts.create(host).with_context(|| format!("host {host}"))
    }

    /// Returns the topology of the lab.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the hosts of the lab.
    #[must_use]
    pub fn hosts(&self) -> &dyn Hosts {
        &*self.hosts
    }

    /// Returns the resource group of the topology's resources.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Returns the folder of the lab's state and logs.
    ///
    /// # Errors
    /// The lab was taken down.
    pub fn path(&self) -> Result<&Path> {
        Ok(self.dir.as_ref().context("the lab was taken down")?.path())
    }

    /// Returns the operator's client of the controller.
    ///
    /// # Errors
    /// The controller was never started.
    pub fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the lab's controller was not started")
    }

    /// Returns the controller's URL, which the hosts can reach.
    #[must_use]
    pub fn url(&self) -> String {
        controller::url(&self.topology)
    }

    /// Returns the controller's data folder, with `ca.pem` and `admin.token`.
    ///
    /// # Errors
    /// The lab was taken down.
    pub fn controller_dir(&self) -> Result<PathBuf> {
        Ok(self.path()?.join(CONTROLLER))
    }

    /// Returns the state folder of a host's agent.
    ///
    /// # Errors
    /// The lab was taken down.
    pub fn agent_dir(&self, host: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("agents").join(host))
    }

    /// Returns the log file of a host's agent, of the `controller`, or of another program by the name of its process.
    ///
    /// # Errors
    /// The lab was taken down.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("logs").join(format!("{name}.log")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a copy of the lab's state.
    #[must_use]
    pub fn snapshot(&self) -> State {
        self.state().clone()
    }

    /// Changes the state and writes it to disk.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        self.dir.as_ref().context("the lab was taken down")?.save(&state)
    }

    /// Returns the command line that runs `argv` on a host.
    fn wrap(&self, host: &str, argv: &[String]) -> Result<Vec<String>> {
        let argv = in_own_run(&self.topology, self.path()?, host, argv);
        Ok(self.hosts.wrap(host, &argv))
    }

    /// Starts a program on a host and records it as `name`, which is the name of its log too.
    fn launch(&self, name: &str, host: &str, argv: &[String], tied: bool) -> Result<Process> {
        let log = self.log(name)?;
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let argv = in_own_run(&self.topology, self.path()?, host, argv);
        // People read the logs, and their last lines are part of error messages.
        let environment = [("TOMBOLO_LOG_FORMAT".to_owned(), "text".to_owned())];
        let started = self.hosts.start(host, &argv, &environment, &log, tied);
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

    /// Returns an overlay address of a host. `host` is its primary address, `host/4` its first IPv4 address, `host/6`
    /// its first IPv6 address. A text that is an address is returned as such.
    ///
    /// # Errors
    /// The host does not exist, or has no such address.
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

    /// Returns the present underlay address of a host.
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

    /// Takes the lab down. A failure does not prevent the removal of the other parts.
    ///
    /// # Errors
    /// A part could not be removed; the message lists all of them.
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
        // The watcher is needed until the lab is down, because this program may be killed before.
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// Returns an id that no other bring-up on this machine has.
fn identity() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

fn group_of(topology: &Topology) -> Group {
    let name = topology.resources.resource_group.as_deref().unwrap_or(DEFAULT_GROUP);
    Group::new(DEFAULT_SUBSCRIPTION, name)
}
