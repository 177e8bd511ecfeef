//! The running agent: it holds the configuration in force, and no other code replaces this configuration.

mod captures;
mod status;

pub use status::AgentView;

use crate::apply::Kernel;
use crate::apply::learned::{self, Clash, Filtered, Host, Need};
use crate::apply::plan::KernelIds;
use crate::apply::plan::confine::Surroundings;
use crate::bgp::{Bgp, BgpSpec};
use crate::capture::Captures;
use crate::config::Config;
use crate::flow_log::FlowLogWriter;
use crate::lanes::Lanes;
use crate::last_minute::LastMinute;
use crate::meter::MeterFile;
use crate::netlink::watch_host;
use crate::persist::{LastGood, LastGoodStore};
use crate::state::{StateDir, file};
use crate::tun::device_name;
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tombolo_engine::health::ControllerHealth;
use tombolo_engine::host_routes::sending_nic;
use tombolo_engine::routing::{RoutingState, routes_for_neighbour};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::id::{AgentId, Revision};
use tombolo_proto::status::AgentStatus;

/// The configuration in force, with its revision and digest.
#[derive(Debug, Clone, Default)]
pub struct Running {
    /// The newest revision of the controller's store for which this configuration is known to be up to date. This
    /// revision can be newer than the one with which the configuration arrived, see [`Agent::up_to_date`].
    pub revision: Revision,
    /// Digest of the configuration. Empty: this agent has no configuration yet.
    pub digest: String,
    /// The configuration. None: this agent has no configuration yet.
    pub(crate) config: Option<Arc<AgentConfig>>,
}

/// How often the agent announces to its peers that it is about to stop, and the pause after each announcement. The
/// announcement is repeated because the network may lose a packet. Peers move their traffic to other paths when the
/// first announcement arrives. The agent still forwards during the pauses, 300 ms in all.
const DRAIN_NOTICES: u32 = 3;
const DRAIN_NOTICE_INTERVAL: Duration = Duration::from_millis(100);

/// The running agent. All methods take `&self`, so that tasks share one value in an `Arc`.
pub struct Agent {
    config: Config,
    state: StateDir,
    numbers: KernelIds,
    lanes: Lanes,
    /// Locked while a configuration is applied, so that changes are made one after the other.
    kernel: tokio::sync::Mutex<Kernel>,
    running: Mutex<Running>,
    /// The host's networks, as they were when the agent last updated the kernel.
    host: Mutex<Surroundings>,
    filter_problem: Mutex<Option<String>>,
    rejected: Mutex<Option<String>>,
    connected: AtomicBool,
    status: watch::Sender<AgentStatus>,
    /// Wakes [`run_reporter`](Self::run_reporter), which then publishes the status.
    status_changed: Arc<Notify>,
    last_good: LastGoodStore,
    /// BGP with the devices of sites and with customer edges.
    bgp: Bgp,
    last_apply: Mutex<Duration>,
    configurations_received: AtomicU64,
    /// Address of the last connection to the controller.
    controller: Mutex<Option<IpAddr>>,
    /// Wakes [`sync_kernel`](Self::sync_kernel) when an address that the host must reach by its own routes has changed.
    replan: Notify,
    /// What has passed the links.
    meters: Mutex<MeterFile>,
    /// What has passed the tunnels of a VPN gateway lately.
    last_minute: Mutex<LastMinute>,
    /// Learned prefixes (from BGP or other agents) that are not installed in the kernel, each with the reason.
    left_out: Mutex<BTreeMap<IpNet, Clash>>,
    flow_log: FlowLogWriter,
    captures: Captures,
}

impl Agent {
    /// Assembles the agent; reads the totals of links from disk, and writes nothing. No configuration is in force until [`resume`](Self::resume) or
    /// [`apply`](Self::apply) succeeds. `status_changed` is the notifier that `lanes` was started with: it wakes
    /// [`run_reporter`](Self::run_reporter).
    #[must_use]
    pub fn new(
        config: Config,
        state: StateDir,
        numbers: KernelIds,
        lanes: Lanes,
        kernel: Kernel,
        bgp: Bgp,
        status_changed: Arc<Notify>,
    ) -> Self {
        let directory = config.flow_logs.directory.clone();
        let directory = directory.unwrap_or_else(|| state.path(file::FLOW_LOGS));
        Self {
            captures: Captures::new(state.path(file::CAPTURES), &config.captures),
            flow_log: FlowLogWriter::new(directory, config.flow_logs.clone(), lanes.flows().clone()),
            last_good: LastGoodStore::new(state.clone()),
            meters: Mutex::new(MeterFile::open(state.clone())),
            last_minute: Mutex::default(),
            config,
            state,
            numbers,
            lanes,
            kernel: tokio::sync::Mutex::new(kernel),
            running: Mutex::default(),
            host: Mutex::default(),
            filter_problem: Mutex::default(),
            rejected: Mutex::default(),
            connected: AtomicBool::new(false),
            status: watch::Sender::default(),
            status_changed,
            bgp,
            last_apply: Mutex::default(),
            configurations_received: AtomicU64::new(0),
            controller: Mutex::default(),
            replan: Notify::new(),
            left_out: Mutex::default(),
        }
    }

    /// Applies the last good configuration from disk, so that the agent forwards before it reaches the controller.
    /// First passes the last known endpoints of peers to the lanes; a malformed file of endpoints is logged and
    /// ignored. Returns false if the disk has no configuration: then nothing was applied. Must be called before the
    /// first [`apply`](Self::apply), because lanes take remembered endpoints only for links that they do not have yet.
    ///
    /// # Errors
    /// A file cannot be read, the stored configuration is malformed or cannot be applied (see [`apply`](Self::apply)),
    /// or a lane has ended.
    pub async fn resume(&self) -> Result<bool> {
        if let Some(bytes) = self.state.read(file::ENDPOINTS)? {
            match serde_json::from_slice::<BTreeMap<AgentId, SocketAddr>>(&bytes) {
                Ok(endpoints) => self.lanes.remember_endpoints(&endpoints)?,
                Err(e) => {
                    tracing::warn!(error = %e, "stored endpoints of peers not read; using those of the configuration")
                }
            }
        }
        let Some(bytes) = self.state.read(file::LAST_GOOD)? else {
            return Ok(false);
        };
        let last: LastGood = serde_json::from_slice(&bytes).context(file::LAST_GOOD)?;
        self.apply(last.revision, &last.digest, &last.config.to_bytes()).await?;
        Ok(true)
    }

    /// Applies a configuration in the format of `AgentConfig::to_bytes`. Returns when every lane has switched and the
    /// kernel's routes are set (D2). A second call waits until the first has returned. If `digest` equals the digest of
    /// the configuration in force, `bytes` is not read; the call then only raises the recorded revision, if `revision`
    /// is larger. Whether `digest` is the digest of `bytes` is not checked. `digest` must not be empty, because an
    /// agent without a configuration has the empty digest. A success clears the reason of an earlier rejection in the
    /// status.
    ///
    /// A background task then writes the configuration to disk as the last good one, and BIRD gets its new settings.
    /// This function waits for neither.
    ///
    /// If the future is dropped before it has completed, the lanes and the kernel may have the configuration in part,
    /// while [`running`](Self::running) still returns the previous one. The next call repairs this, if its digest is
    /// not the one that `running` returns.
    ///
    /// # Errors
    /// The configuration is malformed, is for another agent, overlaps a network of this host, or the kernel refuses a
    /// change or does not list its networks. The previous configuration stays in force, and the status shows the
    /// reason. If a lane has ended, the routes of both configurations stay until the agent stops.
    pub async fn apply(&self, revision: Revision, digest: &str, bytes: &[u8]) -> Result<()> {
        let outcome = self.try_apply(revision, digest, bytes).await;
        *lock(&self.rejected) = outcome.as_ref().err().map(|e| format!("{e:#}"));
        outcome
    }

    async fn try_apply(&self, revision: Revision, digest: &str, bytes: &[u8]) -> Result<()> {
        let begun = Instant::now();
        let mut kernel = self.kernel.lock().await;
        if self.running().digest == digest {
            self.up_to_date(revision);
            return Ok(());
        }
        let config = Arc::new(AgentConfig::from_bytes(bytes)?);
        if config.agent != self.config.agent {
            bail!(
                "agent: the configuration is for {}, this is {}",
                config.agent,
                self.config.agent
            );
        }
        let mut dynamic = self.lanes.routing_state().borrow().clone();
        dynamic.keep(&config);
        let surroundings = kernel.surroundings().await?;
        let host = self.host(&surroundings, &config).await;
        let filtered = self.plan(&config, &dynamic, &host, &surroundings);
        for prefix in &filtered.configured.refused_defaults {
            tracing::warn!(%prefix, "a user-defined default route is left out: allow_default_route is off here (D22)");
        }
        filtered.configured.check_overlap(&surroundings.connected)?;
        let plan = &filtered.plan;
        let prepared = self.lanes.prepare(config.clone()).await?;
        // A failure to switch ICMP redirects off is not returned here. The plan's step for forwarding checks the same
        // sysctl again, and the error of that step names the sysctl.
        if plan.forwarding
            && let Err(e) = crate::host::quiet_redirects(&self.config.interface)
        {
            tracing::warn!(error = %format!("{e:#}"), "ICMP redirects not switched off");
        }
        // The kernel gets new routes before the lanes switch, and loses old routes after the lanes have switched. So
        // every packet finds a route at any time.
        // The devices of added NICs are created before everything else, and those of removed NICs are removed at the end.
        let devices = usize::from(plan.devices);
        kernel.add_devices(self.lanes.add_devices(devices).await?).await?;
        let leftovers = kernel.apply_additions(plan).await?;
        self.lanes.install(prepared).await?;
        if let Err(e) = self.flow_log.set_config(&config) {
            tracing::warn!(error = %format!("{e:#}"), "flow logs are not written; will retry with the next configuration");
        }
        kernel.apply_removals(leftovers).await;
        kernel.forget_devices(devices);
        self.lanes.remove_devices(devices).await?;
        self.record_host(&kernel, surroundings);
        if kernel.inherits_nothing()
            && let Err(e) = crate::claim::record_kernel_ids(&self.state, self.numbers)
        {
            tracing::warn!(
                error = %format!("{e:#}"),
                "numbers.json not written: rules of this run will stay if `table` or `fwmark` changes"
            );
        }
        self.record_left_out(filtered.left_out);
        self.configure_bgp(&config, &dynamic);
        drop(kernel);

        *lock(&self.last_apply) = begun.elapsed();
        *lock(&self.running) = Running {
            revision,
            digest: digest.to_owned(),
            config: Some(config.clone()),
        };
        self.last_good.set(LastGood {
            revision,
            digest: digest.to_owned(),
            config: (*config).clone(),
        });
        self.status_changed.notify_one();
        tracing::info!(%revision, links = config.links.len(), took = ?begun.elapsed(), "configuration in force");
        Ok(())
    }

    fn record_host(&self, kernel: &Kernel, host: Surroundings) {
        *lock(&self.host) = host;
        *lock(&self.filter_problem) = kernel.filter_problem().map(str::to_owned);
    }

    /// Keeps the kernel's routes in sync with learned routes (D11), and the rules that confine overlay packets in sync
    /// with the host's networks. A change that fails is logged, and tried again when the next change comes. Returns
    /// only when all lanes have ended. One task calls it; that task must run in the network namespace of the agent. If
    /// the task is cancelled, a change may be made in part, and the next call of this method or of
    /// [`apply`](Self::apply) completes it.
    pub async fn sync_kernel(&self) {
        let mut routing_state = self.lanes.routing_state();
        let mut host_watch = match watch_host() {
            Ok(watch) => Some(watch),
            Err(e) => {
                tracing::warn!(
                    error = %format!("{e:#}"),
                    "cannot watch the host's networks: changes are noticed with the next route change"
                );
                None
            }
        };
        loop {
            let host_changed = async {
                match &mut host_watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let only_host = tokio::select! {
                changed = routing_state.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                () = self.replan.notified() => false,
                () = host_changed => true,
            };
            let mut kernel = self.kernel.lock().await;
            let Some(config) = self.running().config else { continue };
            let mut surroundings = lock(&self.host).clone();
            if only_host || host_watch.is_none() {
                match kernel.surroundings().await {
                    Ok(now) if only_host && now == surroundings => continue,
                    Ok(now) => surroundings = now,
                    Err(e) => {
                        tracing::warn!(
                            error = %format!("{e:#}"),
                            "cannot list the host's networks; will retry with the next change"
                        );
                        continue;
                    }
                }
            }
            let dynamic = routing_state.borrow_and_update().clone();
            self.configure_bgp(&config, &dynamic);
            if let Err(e) = self.update_kernel(&mut kernel, &config, &dynamic, surroundings).await {
                tracing::warn!(error = %format!("{e:#}"), "routes not set in the kernel; will retry with the next change");
            }
            self.status_changed.notify_one();
        }
    }

    /// Updates the kernel after a change of learned routes or host networks. If a network that was added to the host
    /// overlaps a prefix of the configuration, the configuration stays in force nevertheless.
    async fn update_kernel(
        &self,
        kernel: &mut Kernel,
        config: &AgentConfig,
        dynamic: &RoutingState,
        surroundings: Surroundings,
    ) -> Result<()> {
        let filtered = self.plan(config, dynamic, &self.host(&surroundings, config).await, &surroundings);
        let leftovers = kernel.apply_additions(&filtered.plan).await?;
        kernel.apply_removals(leftovers).await;
        self.record_host(kernel, surroundings);
        self.record_left_out(filtered.left_out);
        Ok(())
    }

    /// The kernel plan for a configuration and learned routes. Learned routes that clash with the host's networks are
    /// left out, and the rules that confine overlay packets are added.
    fn plan(&self, config: &AgentConfig, dynamic: &RoutingState, host: &Host, surroundings: &Surroundings) -> Filtered {
        let mut filtered = learned::filter(config, dynamic, host, self.numbers, self.config.allow_default_route);
        filtered.plan = filtered
            .plan
            .confine(surroundings, self.numbers, self.config.internet_exit);
        filtered
    }

    /// Networks and addresses that the host must reach by its own routes, so that no learned route may cover them
    /// (D22).
    async fn host(&self, surroundings: &Surroundings, config: &AgentConfig) -> Host {
        let mut needed: Vec<(IpNet, Need)> = Vec::new();
        let mut add = |address: IpAddr, need| needed.push((IpNet::from(address), need));
        let url: Option<http::Uri> = self.config.controller.parse().ok();
        let host = url.as_ref().and_then(|u| u.host()).map(|h| h.trim_matches(['[', ']']));
        let named = host.and_then(|h| h.parse::<IpAddr>().ok());
        for address in named.into_iter().chain(*lock(&self.controller)) {
            add(address, Need::Controller);
        }
        // If `/etc/resolv.conf` is missing or cannot be read, no name server is protected from learned routes.
        let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        for address in learned::name_servers(&resolvers) {
            add(address, Need::NameServer);
        }
        let configured = config
            .links
            .iter()
            .flat_map(|l| l.endpoint.into_iter().chain(l.quic_endpoint));
        for endpoint in configured.chain(self.lanes.report().await.endpoints.into_values()) {
            add(endpoint.ip(), Need::Endpoint);
        }
        needed.extend(self.config.protected_networks.iter().map(|n| (*n, Need::Protected)));
        Host {
            connected: surroundings.connected.clone(),
            needed,
        }
    }

    /// Records the address at which the controller answers, so that no learned route captures the packets to the
    /// controller (D22). If the address is new, [`sync_kernel`](Self::sync_kernel) plans the kernel's routes again.
    /// Does not wait for that.
    pub fn controller_is_at(&self, address: IpAddr) {
        if lock(&self.controller).replace(address) != Some(address) {
            self.replan.notify_one();
        }
    }

    /// Records the learned prefixes that are not installed in the kernel, for the status. Logs one line for each
    /// reason, not for each prefix, because other agents can advertise any number of prefixes.
    fn record_left_out(&self, left_out: BTreeMap<IpNet, Clash>) {
        let before = std::mem::replace(&mut *lock(&self.left_out), left_out.clone());
        let mut logged = BTreeSet::new();
        for (prefix, clash) in left_out.iter().filter(|(p, _)| !before.contains_key(*p)) {
            if logged.insert(clash.name()) {
                tracing::warn!(%prefix, reason = %clash, "a learned route is left out of this host's routing");
            }
        }
    }

    /// Passes BGP neighbours, local addresses and the routes to announce to BIRD's supervisor, and returns at once.
    fn configure_bgp(&self, config: &AgentConfig, dynamic: &RoutingState) {
        let (speaker, addresses) = match &config.role {
            Role::VpnGateway { bgp, addresses, .. } => (bgp.clone(), addresses.clone()),
            Role::CircuitEdge { bgp, line, .. } => (Some(bgp.clone()), vec![line.addr()]),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => (None, Vec::new()),
        };
        let neighbours = speaker.iter().flat_map(|s| &s.neighbours);
        let announce = neighbours.map(|n| (n.id.clone(), routes_for_neighbour(config, dynamic, &n.id)));
        self.bgp.configure(BgpSpec {
            announce: announce.collect(),
            speaker,
            addresses,
        });
    }

    /// Passes the routes that BGP neighbours announce to lane 0 whenever these routes change. Returns when lane 0 or
    /// the BGP task has ended. Routes that neighbours announced before the call are passed at once.
    pub async fn forward_bgp_routes(&self) {
        let mut learned = self.bgp.learned();
        while learned.changed().await.is_ok() {
            let routes = learned.borrow_and_update().clone();
            if self.lanes.set_bgp_routes(routes).is_err() {
                return;
            }
        }
    }

    /// Passes what the controller says about the health of back ends to lane 0 (L6).
    ///
    /// # Errors
    /// Lane 0 has ended.
    pub fn set_reported_health(&self, reported: ControllerHealth) -> Result<()> {
        self.lanes.set_reported_health(reported)
    }

    /// Records that the configuration in force is up to date at `revision` of the controller's store. A revision that
    /// is not larger than the recorded one changes nothing. Whether a configuration is in force is not checked.
    pub fn up_to_date(&self, revision: Revision) {
        let mut running = lock(&self.running);
        if revision > running.revision {
            running.revision = revision;
            drop(running);
            self.status_changed.notify_one();
        }
    }

    /// A snapshot of the configuration in force, with its revision and digest. If no configuration is in force, the
    /// digest is empty.
    #[must_use]
    pub fn running(&self) -> Running {
        lock(&self.running).clone()
    }

    /// The name of the TUN device by which the host's kernel sends a packet between these addresses.
    #[must_use]
    pub fn sending_device(&self, source: IpAddr, destination: IpAddr) -> String {
        let config = self.running().config;
        let nic = config.map_or(NicIndex::FIRST, |config| sending_nic(&config, source, destination));
        device_name(&self.config.interface, nic.get())
    }

    /// Records whether the control stream is up, for the status. Returns whether the stream was up before this call.
    pub fn set_connected(&self, up: bool) -> bool {
        self.connected.swap(up, Ordering::Relaxed)
    }

    /// Watches the status that [`publish`](Self::publish) sets. Until the first call of `publish` the value is empty.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// Counts a configuration that has arrived from the controller. Configurations that the agent then rejects count
    /// too.
    pub fn configuration_received(&self) {
        self.configurations_received.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes a last record of all logged flows. To be called when the lanes have ended. Blocks until the files are written.
    pub fn finish_flow_logs(&self) {
        self.flow_log.stop();
    }

    /// The store that writes the last good configuration to disk.
    #[must_use]
    pub fn last_good(&self) -> &LastGoodStore {
        &self.last_good
    }

    /// Drains a gateway or a circuit edge before it stops: announces the stop to peers and BGP neighbours, and forwards
    /// packets until these have switched to other paths. Waits at least 300 ms, and until BIRD has ended or its
    /// shutdown timeouts have passed, after about 8 s at most. Returns at once in other roles and without a
    /// configuration. Afterwards BGP cannot be configured any more. If the future is dropped, the announcements stop,
    /// and BIRD still ends in the background. Lanes and links stay up until [`shut_down`](Self::shut_down).
    pub async fn drain(&self) {
        if !self.running().config.is_some_and(|config| config.role.relays()) {
            return;
        }
        let notices = async {
            for _ in 0..DRAIN_NOTICES {
                self.lanes.announce_drain();
                tokio::time::sleep(DRAIN_NOTICE_INTERVAL).await;
            }
        };
        tokio::join!(notices, self.bgp.stop());
    }

    /// Tells the lanes to end, and returns at once. The kernel removes the TUN device and its routes when the last lane
    /// has closed its queue. Restores the host's sysctl for ICMP redirects, unless another agent still needs it off.
    /// The rules that confine overlay packets stay, because applications may still use overlay addresses. Blocks while
    /// another agent of the host holds the lock of that sysctl's notes. An error is logged. A second call does nothing.
    pub fn shut_down(&self) {
        crate::host::restore_or_warn(&self.config.interface);
        self.lanes.stop();
    }
}

/// Locks a mutex, and ignores poisoning: the release profile aborts on a panic, so no other thread sees a poisoned
/// mutex.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
