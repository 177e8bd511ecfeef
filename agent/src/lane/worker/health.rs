//! The health of back ends in lane 0 (L6, D36): probes, statements of other agents, and statements for them.

use super::super::health_checks::HealthChecks;
use super::Worker;
use crate::capture::tap::Tapped;
use std::time::Instant;
use tombolo_proto::id::AgentId;

impl Worker {
    /// Probes the back ends of this agent that are due, and takes their replies (L6). If the health of one has changed,
    /// it counts for the own tables at once, and the controller gets a status report.
    pub(super) fn check_health(&mut self, now: Instant) {
        let Some(health) = &mut self.health else { return };
        let replies = self.engine.take_probe_replies();
        let (engine, tun, taps) = (&mut self.engine, &mut self.tun, &mut self.taps);
        let changed = health.run(&replies, now, &mut |packet| {
            if taps.is_empty() {
                engine.deliver_probe(packet, now, tun);
            } else {
                engine.deliver_probe(packet, now, &mut Tapped { tun, taps });
            }
        });
        self.deliver();
        if changed {
            self.status_changed.notify_one();
            self.advertise_health(now);
            self.update_unhealthy();
        }
    }

    /// Tells the other agents the health of this agent's back ends, if it has changed.
    pub(super) fn advertise_health(&mut self, now: Instant) {
        if let Some(statement) = self.health.as_ref().and_then(HealthChecks::statement) {
            self.engine.links_mut().advertise_health(&statement, now);
        }
    }

    /// Takes a statement of another agent about the health of its back ends. A malformed one changes nothing: it is counted
    /// and logged.
    pub(super) fn receive_health(&mut self, peer: &AgentId, statement: &[u8]) {
        let Some(health) = &mut self.health else { return };
        match health.receive(peer, statement) {
            Ok(()) => self.update_unhealthy(),
            Err(error) => {
                self.unreadable_health += 1;
                if let Some(permit) = self.log.permit(peer, "unreadable health", Instant::now()) {
                    tracing::warn!(link = %peer, %error, left_out = permit.suppressed, "malformed statement about back ends");
                }
            }
        }
    }

    /// Updates which back ends are down, and requests new tables if this has changed.
    pub(super) fn update_unhealthy(&mut self) {
        let Some(health) = &self.health else { return };
        let unhealthy = health.unhealthy(&self.dynamic.down);
        let before = std::mem::replace(&mut self.dynamic.unhealthy, unhealthy);
        if let Some(config) = &self.config {
            self.dynamic.keep(config);
        }
        if before != self.dynamic.unhealthy {
            self.on_routes_changed();
        }
    }
}
