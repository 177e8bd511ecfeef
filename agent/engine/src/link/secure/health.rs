//! Tells peers the health of this agent's back ends (D36).
//!
//! A peer that has back ends of this agent in its configuration asks for their health, by a confirmation once a second
//! while the link is in use. From then on it is told each change while it has a session.

use super::SecureLinks;
use super::link_entry::Topic;
use crate::link::{AdvertisementStats, index_of};
use crate::tables::LinkIndex;
use std::sync::Arc;
use std::time::Instant;

impl SecureLinks {
    /// Sets the health of this agent's back ends, as [`HealthSources::statement`](crate::health::HealthSources::statement)
    /// returns it, in place of the earlier one. The next [`handle_timeout`](crate::link::LinkSet::handle_timeout), which
    /// is due immediately, sends it to those peers that have asked for it and with which there is a session, even if the
    /// link was not used for a while. It is repeated for as long as the link is in use, until the peer confirms it. Other
    /// peers get it when they ask. Only lane 0 sends it. The call is ignored in other lanes, if the statement is too long,
    /// and if it equals the earlier one.
    pub fn advertise_health(&mut self, statement: &Arc<[u8]>, now: Instant) {
        if self.lane > 0 || self.health.as_ref() == Some(statement) {
            return;
        }
        self.health = Some(statement.clone());
        for position in 0..self.links.len() {
            let link = index_of(position);
            let Some(entry) = self.links.get_mut(position).filter(|entry| !entry.third_party) else {
                continue;
            };
            entry.health().advertise(statement.clone());
            if entry.is_health_unconfirmed() && self.established(link).is_some() {
                self.mark_used(link, now);
            }
        }
        self.advertise_now(now);
    }

    /// Sends a peer the health of this agent's back ends, although it may not have asked for it: the peer has chosen a back
    /// end that is down. Establishes a session if there is none. Does nothing if the peer has confirmed the present health,
    /// or a handshake is in progress.
    pub(super) fn send_health_to(&mut self, link: LinkIndex, now: Instant) {
        // Only lane 0 exchanges health, and only agents do.
        let is_useful = self.lane == 0 && self.health.is_some();
        let entry = self.links.get_mut(link.get());
        let Some(entry) = entry.filter(|entry| is_useful && !entry.third_party) else {
            return;
        };
        let carrier = entry.carrier();
        entry.health().request();
        if !entry.is_health_unconfirmed() {
            return;
        }
        self.mark_used(link, now);
        if self.established(link).is_some() {
            self.advertise_now(now);
        } else if self
            .transport(carrier)
            .is_some_and(|transport| transport.needs_connect(link))
        {
            self.connect(link, carrier, now);
        }
    }

    /// Sets whether the peer of a link may state the health of its back ends; at first it may not. The setting survives an
    /// [`update`](crate::link::LinkSet::update) that keeps the link. [`configure`](crate::link::LinkSet::configure) calls
    /// this method for all links, with `true` for the owners of back ends. `true` has no effect in other lanes than lane 0
    /// and for third-party devices. `false` discards a received statement that was not reported yet, and later ones count
    /// as refused. The call is ignored if the link is unknown.
    pub fn accept_health(&mut self, link: LinkIndex, accepts: bool) {
        if let Some(entry) = self.links.get_mut(link.get()) {
            let accepts = accepts && self.lane == 0 && !entry.third_party;
            entry.accept(Topic::Health, accepts);
        }
    }

    /// Counters of the statements about the health of back ends that were received since the set was created.
    #[must_use]
    pub const fn health_statements(&self) -> AdvertisementStats {
        self.health_statements
    }
}
