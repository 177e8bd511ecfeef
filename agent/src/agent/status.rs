//! Status of the running agent, for the controller, the local socket and metrics.

use super::{Agent, lock};
use crate::flow_log::FlowLogStats;
use crate::identity::Certificate;
use crate::lane::LaneReport;
use crate::persist::EndpointStore;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::routing::{RoutingState, refused};
use tombolo_engine::security::RuleName;
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::installed::Installed;
use tombolo_proto::route::Route;
use tombolo_proto::status::{
    AgentStatus, MAX_RULE_HITS, Meters, NeighbourRoutes, RefusedRoutes, RuleHits, Totals, TunnelUse,
};

/// Longest interval between two status reports, while nothing changes. With a longer interval the counters at the
/// controller would be older, with a shorter one the load on the controller would be higher.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Wait between a change and its status report. A failover changes several links within moments. Because of the wait,
/// one report contains all of these changes. The wait is a fifth of the convergence target, 100 ms.
const STATUS_DEBOUNCE: Duration = Duration::from_millis(20);

/// The agent's status as the local socket serves it and `tombolo-agent status` shows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Name of the agent.
    pub agent: AgentId,
    /// URL of the controller.
    pub controller: String,
    /// Whether the control stream is up.
    pub connected: bool,
    /// Name of the TUN device.
    pub interface: String,
    /// Whether the TUN device uses GSO packets.
    pub offload: bool,
    /// Time from the arrival of the last configuration until it was in force, seconds.
    pub last_apply_seconds: f64,
    /// Configurations received since the process started. An agent whose configuration is up to date gets none.
    pub configurations_received: u64,
    /// Why the last configuration was rejected. None: it was applied, or no configuration has arrived.
    #[serde(default)]
    pub rejected: Option<String>,
    /// Why the packet filter that confines translated packets with overlay addresses is not loaded. None: it is loaded,
    /// or no configuration needs it yet.
    pub filter_problem: Option<String>,
    /// Expiry of the certificate in seconds of Unix time. None: the certificate cannot be read.
    #[serde(default)]
    pub certificate_expiry: Option<u64>,
    /// Packets that the kernel refused when the agent wrote them to the TUN device.
    pub tun_errors: u64,
    /// Datagrams that the kernel refused when the agent sent them.
    pub udp_errors: u64,
    /// Datagrams that the kernel dropped because the receive buffer of a socket was full.
    pub udp_overflow: u64,
    /// TCP connections in progress that security groups have adopted (D34).
    #[serde(default)]
    pub adopted_connections: u64,
    /// Choices of load balancers that a gateway has forgotten while their flows were in use, because its table was full
    /// (D35).
    #[serde(default)]
    pub replaced_choices: u64,
    /// The records of flow logs (D38).
    #[serde(default)]
    pub flow_log: FlowLogStats,
    /// Number of packets by outcome, for each lane. The index is the lane's number.
    pub lanes: Vec<Totals>,
    /// Route advertisements of other agents, by outcome.
    #[serde(default)]
    pub route_advertisements: AdvertisementStats,
    /// Statements of other agents about the health of their back ends, by outcome (D36).
    #[serde(default)]
    pub health_statements: AdvertisementStats,
    /// Entries in these statements that do not count, because they are about no back end of the sender in the configuration.
    #[serde(default)]
    pub health_entries_ignored: u64,
    /// How often the agent built its lookup tables without a new configuration, because links or routes had changed.
    #[serde(default)]
    pub table_rebuilds: u64,
    /// The status that the controller gets, as of this moment.
    pub status: AgentStatus,
}

impl Agent {
    /// The present status, for the local socket. Waits for a report of every lane, and reads the certificate from disk.
    /// A lane that has ended contributes nothing.
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
            configurations_received: self.configurations_received.load(Ordering::Relaxed),
            rejected: lock(&self.rejected).clone(),
            filter_problem,
            certificate_expiry: certificate
                .ok()
                .and_then(|c| c.not_after().duration_since(UNIX_EPOCH).ok())
                .map(|t| t.as_secs()),
            tun_errors: report.tun_errors,
            udp_errors: report.udp_errors,
            udp_overflow: report.udp_overflow,
            adopted_connections: report.adopted,
            replaced_choices: self.lanes.flows().replaced_choices(),
            flow_log: self.flow_log.stats(),
            lanes: report.lanes.clone(),
            route_advertisements: report.advertisements,
            health_statements: report.health_statements,
            health_entries_ignored: report.health_ignored,
            table_rebuilds: report.rebuilds,
            status: self.status_of(report, lock(&self.meters).report()),
        }
    }

    /// Writes the totals of links to disk. To be called at the end, when the lanes have ended. Blocks.
    pub fn save_meters(&self) {
        self.update_meters();
        lock(&self.meters).flush();
    }

    /// Takes over what the lanes have counted, and returns the totals.
    fn update_meters(&self) -> Meters {
        let config = self.running().config;
        let mut meters = lock(&self.meters);
        // Taken under the lock, so that a later call cannot come first.
        let counted = self.lanes.traffic().take();
        meters.update(counted, config.as_deref(), self.connected.load(Ordering::Relaxed))
    }

    /// The configuration in force as JSON, with all secrets blanked; `null` if there is none.
    ///
    /// # Errors
    /// The configuration cannot be serialized as JSON. No value of its type causes this error.
    pub fn config_text(&self) -> Result<String> {
        let Some(config) = self.running().config else {
            return Ok("null".to_owned());
        };
        let mut config = (*config).clone();
        config.blank_secrets();
        Ok(serde_json::to_string(&config)?)
    }

    /// The lookup tables of lane 0, and the kernel routes that the agent has set, as its own record lists them. Waits
    /// while a configuration is being applied. If lane 0 has ended or has no configuration, the result has no tables.
    pub async fn installed(&self) -> Installed {
        // The agent holds this lock while it applies a configuration. So this function never sees a configuration that
        // is applied only in part.
        let kernel = self.kernel.lock().await;
        let running = self.running();
        Installed {
            revision: running.revision,
            digest: running.digest,
            tables: self.lanes.inspect().await.tables.map(|t| t.installed()),
            kernel: kernel.installed(self.numbers),
        }
    }

    /// Publishes the present status to the receivers that [`watch_status`](Self::watch_status) has returned. Waits for
    /// a report of every lane. Returns the endpoint from which each peer's last authentic WireGuard datagram came. If a
    /// peer has sent none yet, its entry is the endpoint that [`resume`](Self::resume) read from disk, or is missing.
    pub async fn publish(&self) -> BTreeMap<AgentId, SocketAddr> {
        let report = self.lanes.report().await;
        let endpoints = report.endpoints.clone();
        let meters = self.update_meters();
        if let Some(config) = &self.running().config {
            lock(&self.last_minute).update(config, &meters, Instant::now());
        }
        self.status.send_replace(self.status_of(report, meters));
        endpoints
    }

    /// Publishes the status every 2 s, and 20 ms after a change. Stores the endpoints of peers and the totals of links on
    /// disk. Runs until its task is cancelled. The endpoints are written when they have changed, at most once a second; a failed write is
    /// logged and repeated. Only one task may run it, because a change wakes one task.
    pub async fn run_reporter(&self) {
        let mut endpoints = EndpointStore::new(self.state.clone());
        loop {
            // The status is published after a timeout and after a notification. So it does not matter which of the two
            // ended the wait.
            let _ = tokio::time::timeout(STATUS_INTERVAL, self.status_changed.notified()).await;
            tokio::time::sleep(STATUS_DEBOUNCE).await;
            endpoints.update(self.publish().await).await;
            let due = lock(&self.meters).due();
            if let Some(write) = due {
                // The write logs its own failure. A panic would be a defect, and the next write is due in any case.
                let _ = tokio::task::spawn_blocking(write).await;
            }
        }
    }

    /// The learned routes that are not in use. The first entries are for routes that the engine refuses, one entry for
    /// each sender and reason. Then come the routes that are not installed in the kernel, one entry for each reason,
    /// without a sender.
    fn refused_routes(&self, config: Option<&AgentConfig>, dynamic: &RoutingState) -> Vec<RefusedRoutes> {
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

    /// What has passed the tunnels. None: the agent is no VPN gateway.
    fn tunnels(&self, config: Option<&AgentConfig>) -> Option<TunnelUse> {
        let is_gateway = config.is_some_and(|config| matches!(config.role, Role::VpnGateway { .. }));
        is_gateway.then(|| TunnelUse {
            last_minute_bytes: lock(&self.last_minute).sum(),
        })
    }

    fn status_of(&self, report: LaneReport, meters: Meters) -> AgentStatus {
        let running = self.running();
        let dynamic = self.lanes.routing_state().borrow().clone();
        let heard = |(neighbour, routes): (&ResourceId, &Arc<Vec<Route>>)| NeighbourRoutes {
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
            rule_hits: rule_hits(report.rule_hits),
            health: report.health,
            health_version: report.health_version,
            meters: Some(meters),
            tunnels: self.tunnels(running.config.as_deref()),
        }
    }
}

fn rule_hits(hits: BTreeMap<RuleName, u64>) -> Vec<RuleHits> {
    let named = hits.into_iter().map(|(name, packets)| RuleHits {
        nic: name.nic,
        group: name.group,
        direction: name.direction,
        rule: name.rule,
        packets,
    });
    named.take(MAX_RULE_HITS).collect()
}
