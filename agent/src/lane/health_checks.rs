//! The health of back ends at one agent: its own probes, and what others say (L6, D36).

use crate::health::{ProbeSpec, Prober, Target};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tombolo_engine::health::{ControllerHealth, HealthSources, MalformedStatement, Probed};
use tombolo_proto::config::{AgentConfig, HealthProbe};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{BackEndHealth, HealthVersion};

/// The probes of one agent, and what the controller and other agents say about the health of back ends.
pub(super) struct HealthChecks {
    prober: Prober,
    /// The probe and the back end of each of the prober's targets, in the same order.
    targets: Vec<Probed>,
    sources: HealthSources,
}

impl HealthChecks {
    /// The checks of an agent that starts now.
    pub(super) fn new(seed: u64) -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            prober: Prober::new(seed),
            targets: Vec::new(),
            sources: HealthSources::new(start.as_millis().try_into().unwrap_or_default()),
        }
    }

    /// Probes the back ends that `config` names and its agent owns, each once for each probe.
    pub(super) fn configure(&mut self, config: &AgentConfig, now: Instant) {
        let own = config.probed_back_ends().into_iter();
        let own: Vec<_> = own.filter(|back_end| *back_end.owner == config.agent).collect();
        let targets: Vec<Target> = own.iter().map(|b| target(b.address, b.probe)).collect();
        self.targets = own.iter().map(|b| (b.probe.id.clone(), b.address)).collect();
        self.prober.set_targets(&targets, now);
        self.sources.configure(config);
        self.set_own();
    }

    /// Takes replies of back ends, and passes the packets that are due to `send`. Returns whether the health of a back
    /// end has changed.
    pub(super) fn run(&mut self, replies: &[Vec<u8>], now: Instant, send: &mut dyn FnMut(&mut [u8])) -> bool {
        for reply in replies {
            self.prober.receive(reply, now);
        }
        let is_due = self.prober.next_due().is_some_and(|due| due <= now);
        if is_due || !replies.is_empty() {
            self.prober.poll(now, &mut |packet| send(&mut packet.to_vec()));
        }
        let changed = self.prober.take_changed();
        if changed {
            self.set_own();
        }
        changed
    }

    fn set_own(&mut self) {
        let health = self.prober.health().map(|(_, is_up)| is_up);
        self.sources.set_own(self.targets.iter().cloned().zip(health).collect());
    }

    /// Takes what the controller says about the back ends in the configuration.
    pub(super) fn set_reported(&mut self, reported: ControllerHealth) {
        self.sources.set_reported(reported);
    }

    /// Takes the statement of another agent about its back ends, which is untrusted input.
    ///
    /// # Errors
    /// The bytes are no statement. The earlier one stays.
    pub(super) fn receive(&mut self, owner: &AgentId, statement: &[u8]) -> Result<(), MalformedStatement> {
        self.sources.receive(owner, statement)
    }

    /// The back ends that are down. `links_down`: the peers with which the link is down.
    pub(super) fn unhealthy(&self, links_down: &BTreeSet<AgentId>) -> BTreeSet<Probed> {
        self.sources.unhealthy(links_down)
    }

    /// What the other agents are told about this agent's back ends; `None`: nothing.
    pub(super) fn statement(&self) -> Option<Arc<[u8]>> {
        self.sources.statement()
    }

    /// Number of entries in statements of other agents that do not count.
    pub(super) const fn ignored(&self) -> u64 {
        self.sources.ignored()
    }

    /// The health of this agent's back ends, ordered by probe and address.
    pub(super) fn report(&self) -> Vec<BackEndHealth> {
        let named = self.targets.iter().zip(self.prober.failures());
        let report = named.map(|((probe, address), reason)| BackEndHealth {
            probe: probe.clone(),
            address: *address,
            up: reason.is_none(),
            reason,
        });
        report.collect()
    }

    /// The version of [`report`](Self::report).
    pub(super) fn version(&self) -> Option<HealthVersion> {
        self.sources.version()
    }
}

fn target(address: IpAddr, probe: &HealthProbe) -> Target {
    use tombolo_proto::config::ProbeProtocol as Configured;
    Target {
        address,
        probe: ProbeSpec {
            protocol: match probe.protocol {
                Configured::Tcp => crate::health::ProbeProtocol::Tcp,
                Configured::Http => crate::health::ProbeProtocol::Http,
                Configured::Https => crate::health::ProbeProtocol::Https,
            },
            port: probe.port,
            path: probe.path.clone(),
            interval: Duration::from_secs(probe.interval.into()),
            threshold: probe.threshold,
        },
    }
}
