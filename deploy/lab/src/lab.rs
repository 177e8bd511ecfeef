//! A lab: brought up from a topology, used, and taken down without a trace.

mod agents;
mod controller;
mod network;
mod sites;
pub(crate) mod teardown;

pub use agents::Ready;
pub use controller::client_of;
pub use sites::BrokenSession;
pub(crate) use sites::at_home;

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

/// How long an earlier lab that was killed may take to be tidied up after.
const EARLIER_ENDS: Duration = Duration::from_secs(10);
/// How long a host that boots may take: many may share a processor that is emulated.
const BOOT: Duration = Duration::from_secs(240);
/// The resource group if the topology names none.
const GROUP: &str = "lab";

/// How to bring a lab up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder for the lab's state; `/run/tombolo-lab/<name>` if not given.
    pub state_dir: Option<PathBuf>,
    /// The lab stays when this program ends: `tombolo lab up`. Otherwise it ends with it, however it ends.
    pub detached: bool,
    /// Takes down what is left of a lab of the same name first. Otherwise that is an error.
    pub replace: bool,
    /// What its hosts are.
    pub runtime: Runtime,
    /// Where progress goes.
    pub progress: Progress,
}

/// A lab. Dropped, it is taken down, unless it is `detached`.
pub struct Lab {
    hosts: Box<dyn Hosts>,
    topology: Topology,
    /// None once it has been taken down.
    dir: Option<StateDir>,
    state: Mutex<State>,
    client: Option<Client>,
    group: Group,
    detached: bool,
    /// What it starts is killed with this program.
    tied: bool,
    progress: Progress,
    /// Takes the lab down should this program be killed.
    watcher: Option<Watcher>,
}

impl Lab {
    /// Brings a lab up: hosts, underlay, controller, resources, agents. Returns when every agent runs the policy that
    /// the controller has for it. Whatever fails, nothing stays behind.
    ///
    /// # Errors
    /// What did not work, with the last lines of the log that says why.
    pub async fn up(topology: &Topology, options: Options) -> Result<Self> {
        topology.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces: run as root");
        }
        // Looked for before anything is made.
        options.runtime.check()?;
        site::find_programs(topology)?;
        let mut lab = Self::prepare(topology, options).await?;
        // On failure the lab is taken down even if it was to stay: half a lab is of no use.
        let wanted = std::mem::replace(&mut lab.detached, false);
        lab.bring_up(wanted)
            .await
            .with_context(|| format!("bringing up lab {}", topology.name))?;
        lab.detached = wanted;
        lab.progress.idle();
        Ok(lab)
    }

    /// Brings up hosts and underlay only, for tests of the network itself.
    ///
    /// # Errors
    /// What did not work.
    pub async fn underlay_only(topology: &Topology, options: Options) -> Result<Self> {
        let lab = Self::prepare(topology, options).await?;
        lab.build_network().await?;
        Ok(lab)
    }

    async fn prepare(topology: &Topology, options: Options) -> Result<Self> {
        let path = options.state_dir.unwrap_or_else(|| state::dir_of(None, &topology.name));
        let limit = if options.replace { EARLIER_ENDS } else { Duration::ZERO };
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
            options.progress.doing("removing what an earlier lab left");
            teardown::all(&*old.runtime.hosts(&old.topology, &path), &old)?;
        }
        // A controller that found an earlier one's store would know agents that are no more.
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

    /// Takes hold of a lab that is up. Dropping it then leaves it up.
    ///
    /// # Errors
    /// There is none in this folder.
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
        // A lab that is only half there has no client, and can still be taken down.
        lab.client = lab.make_client().ok();
        Ok(lab)
    }

    async fn bring_up(&mut self, detached: bool) -> Result<()> {
        self.build_network().await?;
        self.progress.doing("starting the controller");
        self.launch_controller(!detached)?;
        self.wait_for_controller().await?;
        self.progress.doing("applying the resources");
        self.apply_settings().await.context("settings")?;
        let keys = self.make_device_keys()?;
        let mut manifest = Manifest::default();
        manifest.add("resources", self.topology.resources_with_keys(&keys));
        let client = self.client()?;
        let plan = Plan::read(client, &manifest, &self.group, false)
            .await
            .context("resources")?;
        plan.apply(client, |_| {}).await.context("resources")?;
        self.learn_addresses().await?;
        self.join_agents(!detached).await?;
        self.wait_until_ready(Duration::from_secs(40)).await?;
        self.start_sites().await?;
        self.change(|s| s.complete = true)
    }

    /// Sets the switches that the topology names; all others stay as they are.
    async fn apply_settings(&self) -> Result<()> {
        if self.topology.settings.is_empty() {
            return Ok(());
        }
        let client = self.client()?;
        let mut settings = client.settings().await?;
        let all = settings.as_object_mut().context("the controller's are no object")?;
        for (name, value) in &self.topology.settings {
            all.insert(name.clone(), value.clone());
        }
        client.put_settings(&settings).await?;
        Ok(())
    }

    /// Every step is short and without a pause inside, so that a lab that is dropped meanwhile knows all it has made.
    async fn build_network(&self) -> Result<()> {
        self.make_host(INTERNET)?;
        let netem = underlay::build(&*self.hosts, &self.topology)?;
        self.launch_delay_lines(netem)?;
        let attached = underlay::attached(&self.topology);
        for (host, address) in &attached {
            self.progress.doing(format!("making host {host}"));
            self.make_host(host)?;
            underlay::plug(&*self.hosts, &self.topology, host, *address).with_context(|| format!("host {host}"))?;
            self.hosts.power_on(host).with_context(|| format!("host {host}"))?;
            tokio::task::yield_now().await;
        }
        for (host, address) in &attached {
            self.wait_until_booted(host)
                .await
                .with_context(|| format!("host {host}"))?;
            underlay::settle(&*self.hosts, &self.topology, host, *address).with_context(|| format!("host {host}"))?;
            let known = self.topology.hosts.get(host);
            if known.and_then(|h| h.vm.as_ref()).is_some_and(|vm| vm.kernel_forwarding) {
                network::forwarding(&*self.hosts, host)?;
            } else if known.is_some_and(|h| h.edge.is_some()) {
                // Whether it routes is the agent's business (D23).
                network::answering(&*self.hosts, host)?;
            }
            tokio::task::yield_now().await;
        }
        self.build_sites()?;
        Ok(())
    }

    async fn wait_until_booted(&self, host: &str) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        while !self.hosts.is_booted(host)? {
            self.progress.doing(format!("host {host} boots"));
            if Instant::now() > deadline {
                bail!(
                    "it did not boot within {} s:\n{}",
                    BOOT.as_secs(),
                    self.hosts.last_words(host)
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// The program that carries packets between segments that are far from each other, if the kernel does not.
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
        // Before it is written down: what stands there is removed at the end.
        if self.hosts.exists(host) {
            bail!(
                "{} exists already, and this lab did not make it: if nobody needs it, 'ip netns del' removes it",
                self.hosts.netns(host).display()
            );
        }
        self.change(|s| s.hosts.push(host.to_owned()))?;
        self.hosts.create(host).with_context(|| format!("host {host}"))
    }

    /// The topology that it was made from.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What its hosts are.
    #[must_use]
    pub fn hosts(&self) -> &dyn Hosts {
        &*self.hosts
    }

    /// The resource group of the topology's resources.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Where its state and logs are.
    ///
    /// # Errors
    /// It was taken down.
    pub fn path(&self) -> Result<&Path> {
        Ok(self.dir.as_ref().context("the lab was taken down")?.path())
    }

    /// The controller's REST interface, as the operator uses it.
    ///
    /// # Errors
    /// The controller was never up.
    pub fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the lab's controller was not started")
    }

    /// `https://…` of the controller, reachable from the hosts.
    #[must_use]
    pub fn url(&self) -> String {
        controller::url(&self.topology)
    }

    /// The controller's data folder, with `ca.pem` and `admin.token`.
    ///
    /// # Errors
    /// It was taken down.
    pub fn controller_dir(&self) -> Result<PathBuf> {
        Ok(self.path()?.join(CONTROLLER))
    }

    /// The state folder of a host's agent.
    ///
    /// # Errors
    /// It was taken down.
    pub fn agent_dir(&self, host: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("agents").join(host))
    }

    /// The log of a host's agent, of the `controller`, or of a program that was started under that name.
    ///
    /// # Errors
    /// It was taken down.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        Ok(self.path()?.join("logs").join(format!("{name}.log")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has made.
    #[must_use]
    pub fn snapshot(&self) -> State {
        self.state().clone()
    }

    /// Changes the state and puts it on disk.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        self.dir.as_ref().context("the lab was taken down")?.save(&state)
    }

    /// The command line that runs `argv` on a host.
    fn wrap(&self, host: &str, argv: &[String]) -> Result<Vec<String>> {
        let argv = at_home(&self.topology, self.path()?, host, argv);
        Ok(self.hosts.wrap(host, &argv))
    }

    /// Starts a program on a host; its output goes to a log of that name.
    fn launch(&self, name: &str, host: &str, argv: &[String], tied: bool) -> Result<Process> {
        let log = self.log(name)?;
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let argv = at_home(&self.topology, self.path()?, host, argv);
        // The ends of logs are shown to people.
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

    /// An overlay address of a host: the primary one; `host/6` is its first IPv6 address, `host/4` its first IPv4
    /// address. An address stands for itself.
    ///
    /// # Errors
    /// No such host, or it has no such address.
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

    /// The underlay address of a host now.
    ///
    /// # Errors
    /// No such host.
    pub fn underlay_address(&self, host: &str) -> Result<IpAddr> {
        if let Some(address) = self.state().moved.get(host) {
            return Ok(*address);
        }
        let all = underlay::attached(&self.topology);
        let found = all.iter().find(|(name, _)| name == host);
        found
            .map(|(_, address)| *address)
            .with_context(|| format!("there is no host '{host}' in lab {}", self.topology.name))
    }

    /// Takes everything down. All of it is tried; what did not work comes together.
    ///
    /// # Errors
    /// What could not be removed.
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
        // Not before: until here, this program may be killed.
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// Of one bring-up.
fn identity() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

fn group_of(topology: &Topology) -> Group {
    let name = topology.resources.resource_group.as_deref().unwrap_or(GROUP);
    Group::new(DEFAULT_SUBSCRIPTION, name)
}
