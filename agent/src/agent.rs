//! The running agent: what is in force, and the one way in which that changes.

use crate::apply::Kernel;
use crate::apply::learned::{self, Clash, Filtered, Host, Need};
use crate::apply::plan::KernelIds;
use crate::apply::plan::confine::Surroundings;
use crate::bgp::{Bgp, BgpSpec};
use crate::config::Config;
use crate::identity::Certificate;
use crate::keep::{Keeper, LastGood, Places};
use crate::lane::LaneReport;
use crate::lanes::Lanes;
use crate::netlink::watch_host;
use crate::state::{StateDir, file};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::{Notify, watch};
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::routing::{Dynamic, refused, tell_neighbour};
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::installed::Installed;
use tombolo_proto::route::Route;
use tombolo_proto::status::{AgentStatus, Heard, RefusedRoutes, Totals};

/// The controller hears from an agent at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// Changes that come together are reported together.
const STATUS_SETTLE: Duration = Duration::from_millis(20);

/// What is in force.
#[derive(Debug, Clone, Default)]
pub struct Running {
    /// The largest revision that it is right for.
    pub revision: Revision,
    /// Digest of the configuration; empty: none yet.
    pub digest: String,
    config: Option<Arc<AgentConfig>>,
}

/// What `tombolo-agent status` shows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Who this is.
    pub agent: AgentId,
    /// The controller.
    pub controller: String,
    /// Whether the stream to it is up.
    pub connected: bool,
    /// The TUN device.
    pub interface: String,
    /// Whether super-packets are in use on it.
    pub offload: bool,
    /// How long the last configuration took from its arrival until it was in force, seconds.
    pub last_apply_seconds: f64,
    /// Configurations that the controller sent since start: none is sent to an agent that is up to date.
    pub configurations_received: u64,
    /// Why the last configuration is not in force; none: it is.
    #[serde(default)]
    pub rejected: Option<String>,
    /// Why the packet filter is not loaded that keeps translated packets with overlay addresses on this host; none: it is.
    pub filter_problem: Option<String>,
    /// When the certificate expires, seconds of Unix time.
    #[serde(default)]
    pub certificate_expiry: Option<u64>,
    /// Writes to the device that the kernel refused.
    pub tun_errors: u64,
    /// Datagrams that the kernel refused to send.
    pub udp_errors: u64,
    /// Datagrams that found the receive buffer full.
    pub udp_overflow: u64,
    /// Packets by fate, of each lane.
    pub lanes: Vec<Totals>,
    /// What became of the routes that other agents advertised.
    #[serde(default)]
    pub route_advertisements: AdvertisementStats,
    /// Tables that were built because links or routes changed, without a new configuration.
    #[serde(default)]
    pub table_rebuilds: u64,
    /// What the controller is told.
    pub status: AgentStatus,
}

/// A farewell is said so often, in case one gets lost, and is given so long each time.
const FAREWELLS: u32 = 3;
const FAREWELL: Duration = Duration::from_millis(100);

/// The running agent.
pub struct Agent {
    config: Config,
    state: StateDir,
    numbers: KernelIds,
    lanes: Lanes,
    /// Held while a configuration is applied.
    kernel: tokio::sync::Mutex<Kernel>,
    running: Mutex<Running>,
    /// The host, as it was when the kernel was last set up.
    host: Mutex<Surroundings>,
    filter_problem: Mutex<Option<String>>,
    rejected: Mutex<Option<String>>,
    connected: AtomicBool,
    status: watch::Sender<AgentStatus>,
    /// Wakes the reporter.
    news: Arc<Notify>,
    keeper: Keeper,
    /// Speaks with the devices of sites and with customer edges.
    bgp: Bgp,
    last_apply: Mutex<Duration>,
    received: AtomicU64,
    /// Where the controller answered last.
    controller: Mutex<Option<IpAddr>>,
    /// Wakes [`follow`](Self::follow): something that decides which routes the host takes has changed.
    replan: Notify,
    /// Learned prefixes that are not in the kernel.
    left_out: Mutex<BTreeMap<IpNet, Clash>>,
}

impl Agent {
    /// Puts the parts together; `news` is what the lanes wake when a link changes.
    #[must_use]
    pub fn new(
        config: Config,
        state: StateDir,
        numbers: KernelIds,
        lanes: Lanes,
        kernel: Kernel,
        bgp: Bgp,
        news: Arc<Notify>,
    ) -> Self {
        Self {
            keeper: Keeper::new(state.clone()),
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
            news,
            bgp,
            last_apply: Mutex::default(),
            received: AtomicU64::new(0),
            controller: Mutex::default(),
            replan: Notify::new(),
            left_out: Mutex::default(),
        }
    }

    /// Puts the last good configuration in force, with the places where peers were last heard from. Returns whether
    /// there was one.
    ///
    /// # Errors
    /// It cannot be read or applied.
    pub async fn resume(&self) -> Result<bool> {
        if let Some(bytes) = self.state.read(file::ENDPOINTS)? {
            match serde_json::from_slice::<BTreeMap<AgentId, SocketAddr>>(&bytes) {
                Ok(endpoints) => self.lanes.remember_endpoints(&endpoints)?,
                Err(e) => tracing::warn!(error = %e, "known endpoints not read: peers are looked for anew"),
            }
        }
        let Some(bytes) = self.state.read(file::LAST_GOOD)? else {
            return Ok(false);
        };
        let last: LastGood = serde_json::from_slice(&bytes).context(file::LAST_GOOD)?;
        self.apply(last.revision, &last.digest, &last.config.to_bytes()).await?;
        Ok(true)
    }

    /// Puts a configuration in force: returns when every lane has switched and the kernel's routes are set (D2).
    /// The same digest again changes nothing but the revision.
    ///
    /// # Errors
    /// Why it cannot be in force; the one before stays.
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
        let mut dynamic = self.lanes.moving().borrow().clone();
        dynamic.keep(&config);
        let around = kernel.surroundings().await?;
        let host = self.host(&around, &config).await;
        let filtered = self.plan(&config, &dynamic, &host, &around);
        for prefix in &filtered.configured.refused_defaults {
            tracing::warn!(%prefix, "a user-defined default route is left out: allow_default_route is off here (D22)");
        }
        filtered.configured.check_overlap(&around.connected)?;
        let plan = &filtered.plan;
        let prepared = self.lanes.prepare(config.clone()).await?;
        // Where the switch stays on, the plan's step that needs it off says so.
        if plan.forwarding
            && let Err(e) = crate::host::quiet_redirects(&self.config.interface)
        {
            tracing::warn!(error = %format!("{e:#}"), "ICMP redirects not switched off");
        }
        let leftovers = kernel.apply_additions(plan).await?;
        self.lanes.install(prepared).await?;
        kernel.apply_removals(leftovers).await;
        self.note_host(&kernel, around);
        if kernel.inherits_nothing()
            && let Err(e) = crate::claim::note_numbers(&self.state, self.numbers)
        {
            tracing::warn!(error = %format!("{e:#}"), "a later run under other numbers will not find this run's rules");
        }
        self.show_left_out(filtered.left_out);
        self.announce(&config, &dynamic);
        drop(kernel);

        *lock(&self.last_apply) = begun.elapsed();
        *lock(&self.running) = Running {
            revision,
            digest: digest.to_owned(),
            config: Some(config.clone()),
        };
        self.keeper.keep(LastGood {
            revision,
            digest: digest.to_owned(),
            config: (*config).clone(),
        });
        self.news.notify_one();
        tracing::info!(%revision, links = config.links.len(), took = ?begun.elapsed(), "configuration in force");
        Ok(())
    }

    fn note_host(&self, kernel: &Kernel, host: Surroundings) {
        *lock(&self.host) = host;
        *lock(&self.filter_problem) = kernel.filter_problem().map(str::to_owned);
    }

    /// Keeps the kernel's routes in step with what is learned (D11), and what confines packets with the host's networks; never
    /// returns.
    pub async fn follow(&self) {
        let mut moving = self.lanes.moving();
        let mut watch = match watch_host() {
            Ok(watch) => Some(watch),
            Err(e) => {
                tracing::warn!(error = %format!("{e:#}"), "networks that the host gets from now on are noticed late");
                None
            }
        };
        loop {
            let host_changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let only_host = tokio::select! {
                changed = moving.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                () = self.replan.notified() => false,
                () = host_changed => true,
            };
            let mut kernel = self.kernel.lock().await;
            let Some(config) = self.running().config else { continue };
            let mut around = lock(&self.host).clone();
            if only_host || watch.is_none() {
                match kernel.surroundings().await {
                    Ok(now) if only_host && now == around => continue,
                    Ok(now) => around = now,
                    Err(e) => {
                        tracing::warn!(error = %format!("{e:#}"), "the host's networks are not known");
                        continue;
                    }
                }
            }
            let dynamic = moving.borrow_and_update().clone();
            self.announce(&config, &dynamic);
            if let Err(e) = self.adapt(&mut kernel, &config, &dynamic, around).await {
                tracing::warn!(error = %format!("{e:#}"), "routes not set in the kernel");
            }
            self.news.notify_one();
        }
    }

    /// Sets in the kernel what was learned. A configuration that overlaps a network which the host has come into since
    /// stays in force.
    async fn adapt(
        &self,
        kernel: &mut Kernel,
        config: &AgentConfig,
        dynamic: &Dynamic,
        around: Surroundings,
    ) -> Result<()> {
        let filtered = self.plan(config, dynamic, &self.host(&around, config).await, &around);
        let leftovers = kernel.apply_additions(&filtered.plan).await?;
        kernel.apply_removals(leftovers).await;
        self.note_host(kernel, around);
        self.show_left_out(filtered.left_out);
        Ok(())
    }

    /// The plan for a configuration and what was learned, as far as that leaves the host its own networks, with what confines
    /// packets with overlay addresses.
    fn plan(&self, config: &AgentConfig, dynamic: &Dynamic, host: &Host, around: &Surroundings) -> Filtered {
        let mut filtered = learned::filter(config, dynamic, host, self.numbers, self.config.allow_default_route);
        filtered.plan = filtered.plan.confine(around, self.numbers, self.config.internet_exit);
        filtered
    }

    /// What the host reaches by its own routes.
    async fn host(&self, around: &Surroundings, config: &AgentConfig) -> Host {
        let mut needed: Vec<(IpNet, Need)> = Vec::new();
        let mut add = |address: IpAddr, need| needed.push((IpNet::from(address), need));
        let url: Option<http::Uri> = self.config.controller.parse().ok();
        let host = url.as_ref().and_then(|u| u.host()).map(|h| h.trim_matches(['[', ']']));
        let named = host.and_then(|h| h.parse::<IpAddr>().ok());
        for address in named.into_iter().chain(*lock(&self.controller)) {
            add(address, Need::Controller);
        }
        // A host without that file resolves no names.
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
            connected: around.connected.clone(),
            needed,
        }
    }

    /// The controller answers there: its address is not for learned routes.
    pub fn controller_is_at(&self, address: IpAddr) {
        if lock(&self.controller).replace(address) != Some(address) {
            self.replan.notify_one();
        }
    }

    /// Keeps what is left out for the status, and logs what is new: one line for each reason, as others can cause them.
    fn show_left_out(&self, left_out: BTreeMap<IpNet, Clash>) {
        let before = std::mem::replace(&mut *lock(&self.left_out), left_out.clone());
        let mut logged = BTreeSet::new();
        for (prefix, clash) in left_out.iter().filter(|(p, _)| !before.contains_key(*p)) {
            if logged.insert(clash.name()) {
                tracing::warn!(%prefix, reason = %clash, "a learned route is left out of this host's routing");
            }
        }
    }

    /// Says what BGP neighbours are to hear.
    fn announce(&self, config: &AgentConfig, dynamic: &Dynamic) {
        let (speaker, addresses) = match &config.role {
            Role::VpnGateway { bgp, addresses, .. } => (bgp.clone(), addresses.clone()),
            Role::CircuitEdge { bgp, line, .. } => (Some(bgp.clone()), vec![line.addr()]),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => (None, Vec::new()),
        };
        let neighbours = speaker.iter().flat_map(|s| &s.neighbours);
        let announce = neighbours.map(|n| (n.id.clone(), tell_neighbour(config, dynamic, &n.id)));
        self.bgp.configure(BgpSpec {
            announce: announce.collect(),
            speaker,
            addresses,
        });
    }

    /// Hears what BGP neighbours announce; returns when a lane is gone.
    pub async fn hear(&self) {
        let mut learned = self.bgp.learned();
        while learned.changed().await.is_ok() {
            let routes = learned.borrow_and_update().clone();
            if self.lanes.learned(routes).is_err() {
                return;
            }
        }
    }

    /// Nothing changed for this agent up to `revision`.
    pub fn up_to_date(&self, revision: Revision) {
        let mut running = lock(&self.running);
        if revision > running.revision {
            running.revision = revision;
            drop(running);
            self.news.notify_one();
        }
    }

    /// What is in force.
    #[must_use]
    pub fn running(&self) -> Running {
        lock(&self.running).clone()
    }

    /// Notes whether the stream to the controller is up; returns what it was before.
    pub fn set_connected(&self, up: bool) -> bool {
        self.connected.swap(up, Ordering::Relaxed)
    }

    /// The status, as it changes.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// The controller sent a configuration.
    pub fn configuration_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// What the local socket shows.
    pub async fn view(&self) -> AgentView {
        let report = self.lanes.report().await;
        let filter_problem = lock(&self.filter_problem).clone();
        let certificate = Certificate::load(&self.state);
        AgentView {
            agent: self.config.agent.clone(),
            controller: self.config.controller.clone(),
            connected: self.connected.load(Ordering::Relaxed),
            interface: self.config.interface.clone(),
            offload: report.offload,
            last_apply_seconds: lock(&self.last_apply).as_secs_f64(),
            configurations_received: self.received.load(Ordering::Relaxed),
            rejected: lock(&self.rejected).clone(),
            filter_problem,
            certificate_expiry: certificate
                .ok()
                .and_then(|c| c.not_after().duration_since(UNIX_EPOCH).ok())
                .map(|t| t.as_secs()),
            tun_errors: report.tun_errors,
            udp_errors: report.udp_errors,
            udp_overflow: report.udp_overflow,
            lanes: report.lanes.clone(),
            route_advertisements: report.advertisements,
            table_rebuilds: report.rebuilds,
            status: self.status_of(report),
        }
    }

    /// The configuration in force as JSON, without secrets.
    ///
    /// # Errors
    /// It has no JSON form, which its type excludes.
    pub fn config_text(&self) -> Result<String> {
        let Some(config) = self.running().config else {
            return Ok("null".to_owned());
        };
        let mut config = (*config).clone();
        config.blank_secrets();
        Ok(serde_json::to_string(&config)?)
    }

    /// What packets are looked up in, read back from the lane and from what was set in the kernel.
    pub async fn installed(&self) -> Installed {
        // Not while it changes.
        let kernel = self.kernel.lock().await;
        let running = self.running();
        Installed {
            revision: running.revision,
            digest: running.digest,
            tables: self.lanes.inspect().await.tables.map(|t| t.installed()),
            kernel: kernel.installed(self.numbers),
        }
    }

    /// Makes the status that watchers see the present one. Returns where peers were heard from.
    pub async fn publish(&self) -> BTreeMap<AgentId, SocketAddr> {
        let report = self.lanes.report().await;
        let seen = report.endpoints.clone();
        self.status.send_replace(self.status_of(report));
        seen
    }

    /// Keeps the status fresh and remembers where peers are; never returns.
    pub async fn report(&self) {
        let mut places = Places::new(self.state.clone());
        loop {
            let _ = tokio::time::timeout(STATUS_EVERY, self.news.notified()).await;
            tokio::time::sleep(STATUS_SETTLE).await;
            places.learn(self.publish().await).await;
        }
    }

    /// What keeps the last good configuration on disk.
    #[must_use]
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// A gateway or an edge is about to stop: it tells everybody and carries packets until they have gone another way.
    pub async fn leave(&self) {
        if !self.running().config.is_some_and(|config| config.role.relays()) {
            return;
        }
        let farewell = async {
            for _ in 0..FAREWELLS {
                self.lanes.leave();
                tokio::time::sleep(FAREWELL).await;
            }
        };
        tokio::join!(farewell, self.bgp.stop());
    }

    /// Ends the lanes, and with them the device and all that names it. What keeps packets with overlay addresses on the host
    /// stays: applications may still have them, and routes to them, in use.
    pub fn end(&self) {
        if let Err(e) = crate::host::restore(&self.config.interface) {
            tracing::warn!(error = %format!("{e:#}"), "host not restored");
        }
        self.lanes.stop();
    }

    /// The routes of others that are not used, by sender and reason; then those that the host does not take.
    fn refused_routes(&self, config: Option<&AgentConfig>, dynamic: &Dynamic) -> Vec<RefusedRoutes> {
        let refused = config.map(|config| refused(config, dynamic)).unwrap_or_default();
        let mut all: Vec<RefusedRoutes> = refused
            .into_iter()
            .map(|r| RefusedRoutes {
                sender: Some(r.sender),
                reason: r.reason.name().to_owned(),
                count: r.count as u64,
                example: r.example,
                detail: None,
            })
            .collect();
        let mut by_reason: BTreeMap<&str, RefusedRoutes> = BTreeMap::new();
        for (prefix, clash) in &*lock(&self.left_out) {
            let entry = by_reason.entry(clash.name()).or_insert_with(|| RefusedRoutes {
                sender: None,
                reason: clash.name().to_owned(),
                count: 0,
                example: *prefix,
                detail: Some(clash.to_string()),
            });
            entry.count += 1;
        }
        all.extend(by_reason.into_values());
        all
    }

    fn status_of(&self, report: LaneReport) -> AgentStatus {
        let running = self.running();
        let dynamic = self.lanes.moving().borrow().clone();
        let heard = |(neighbour, routes): (&ResourceId, &Arc<Vec<Route>>)| Heard {
            neighbour: neighbour.clone(),
            routes: routes.to_vec(),
        };
        AgentStatus {
            applied: running.revision,
            digest: running.digest,
            links: report.links,
            drops: report.drops,
            totals: report.totals,
            down: dynamic.down.iter().cloned().collect(),
            learned: dynamic.learned.iter().map(heard).collect(),
            bgp: self.bgp.status(),
            refused_routes: self.refused_routes(running.config.as_deref(), &dynamic),
        }
    }
}

/// A panic while one of these is held ends the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
