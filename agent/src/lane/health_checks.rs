//! The health checks of the back ends that an agent owns (L6, D36).

use crate::health::{ProbeSpec, Prober, Target};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::config::{AgentConfig, HealthProbe};
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::BackEndHealth;

/// The probes of one agent, and the health that the controller reports of other agents' back ends.
pub(super) struct HealthChecks {
    prober: Prober,
    /// The probe and the back end of each of the prober's targets, in the same order.
    targets: Vec<(ResourceId, IpAddr)>,
    /// The back ends that are down according to the controller.
    reported: BTreeSet<(ResourceId, IpAddr)>,
}

impl HealthChecks {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            prober: Prober::new(seed),
            targets: Vec::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Probes the back ends that `config` names and its agent owns, each once for each probe.
    pub(super) fn configure(&mut self, config: &AgentConfig, now: Instant) {
        let own = config.probed_back_ends().into_iter();
        let own: Vec<_> = own.filter(|back_end| *back_end.owner == config.agent).collect();
        let targets: Vec<Target> = own.iter().map(|b| target(b.address, b.probe)).collect();
        self.targets = own.iter().map(|b| (b.probe.id.clone(), b.address)).collect();
        self.prober.set_targets(&targets, now);
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
        self.prober.take_changed()
    }

    /// The back ends that are down. `reported`: those that the controller reports now; `None`: as before. What this agent
    /// has found out about its own back ends counts more.
    pub(super) fn unhealthy(
        &mut self,
        reported: Option<BTreeSet<(ResourceId, IpAddr)>>,
    ) -> BTreeSet<(ResourceId, IpAddr)> {
        self.reported = reported.unwrap_or_else(|| std::mem::take(&mut self.reported));
        let mut unhealthy = self.reported.clone();
        for (target, is_up) in self.targets.iter().zip(self.prober.health().map(|(_, is_up)| is_up)) {
            if is_up {
                unhealthy.remove(target);
            } else {
                unhealthy.insert(target.clone());
            }
        }
        unhealthy
    }

    /// The health of this agent's back ends, ordered by probe and address.
    pub(super) fn report(&self) -> Vec<BackEndHealth> {
        let health = self.prober.health().map(|(_, is_up)| is_up);
        let named = self.targets.iter().zip(health);
        let report = named.map(|((probe, address), up)| BackEndHealth {
            probe: probe.clone(),
            address: *address,
            up,
        });
        report.collect()
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
