//! Which connections a link has, and which of them its packets go to.

use super::connection::Connection;
use super::{Quic, settings};
use crate::buffer::Path;
use crate::link::transport::{PathHint, SecureTransport, TransportEvent};
use crate::link::{Sealed, index_of};
use crate::tables::LinkIndex;
use bytes::Bytes;
use quinn_proto::{ClientConfig, ConnectionHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;
use tombolo_proto::id::{AgentId, KeyPin};

/// A connection that is not up after so long is tried at the other end's second port as well. Long enough for a round trip
/// around the world, short enough for nobody to give up.
const SECOND: Duration = Duration::from_millis(300);

/// Most established connections with one peer. One is needed; two exist for a moment when both ends open one.
const MAX_STANDING: usize = 4;

/// The own end of a link.
pub(super) struct Peer {
    /// Who the other end is.
    pub(super) name: AgentId,
    pin: Option<KeyPin>,
    /// The other end's second port.
    elsewhere: Option<SocketAddr>,
    /// What is tried there, and when, if no connection is up by then.
    second: Option<Attempt>,
    /// Connections with it that are not over, in the order in which they were established; those under way first.
    pub(super) connections: Vec<ConnectionHandle>,
    /// The one that packets go to.
    pub(super) active: Option<ConnectionHandle>,
    /// Packets for the first connection.
    pub(super) waiting: Vec<Bytes>,
}

impl Peer {
    fn new(link: &Link) -> Self {
        Self {
            name: link.peer.clone(),
            pin: link.quic,
            elsewhere: None,
            second: None,
            connections: Vec::new(),
            active: None,
            waiting: Vec::new(),
        }
    }

    /// A connection is there, under way or planned.
    pub(super) fn is_asking(&self) -> bool {
        !self.connections.is_empty() || self.second.is_some()
    }
}

/// A connection to be opened.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    at: Instant,
    to: Path,
    longest: Option<u16>,
}

impl Quic {
    /// Takes a new set of links. Connections of keys that stay go on, others are closed.
    pub(super) fn update_peers(&mut self, links: &[Link], now: Instant) {
        // Opened under the links of before, whose indices end here.
        self.packets.clear();
        self.by_pin.clear();
        for (position, link) in links.iter().enumerate() {
            if let Some(pin) = link.quic {
                self.by_pin.insert(pin, index_of(position));
            }
        }
        self.pins.replace(self.by_pin.keys().copied());
        let waiting = self.peers.iter().map(|p| p.waiting.len() as u64);
        self.lost += waiting.sum::<u64>();
        let planned = self.peers.drain(..).filter_map(|p| Some((p.pin?, p.second?)));
        let mut planned: BTreeMap<KeyPin, Attempt> = planned.collect();
        self.peers.extend(links.iter().map(|link| Peer {
            // The first lane alone has a second port.
            elsewhere: link.quic_endpoint.filter(|_| self.lane == 0),
            second: link.quic.and_then(|pin| planned.remove(&pin)),
            ..Peer::new(link)
        }));
        let seconds = self.peers.iter().enumerate();
        self.seconds = seconds.filter_map(|(n, p)| Some((p.second?.at, n))).collect();
        for number in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) else {
                continue;
            };
            connection.link = None;
            if connection.over {
                continue;
            }
            let pin = connection.pin();
            let link = pin.and_then(|pin| self.by_pin.get(&pin).copied());
            connection.link = link;
            let handle = ConnectionHandle(number);
            match (pin, link.and_then(|link| self.peers.get_mut(link.get()))) {
                (_, Some(peer)) => peer.connections.push(handle),
                // One whose other end is not known yet: the verifier will ask for the new pins.
                (None, None) => {}
                (Some(_), None) => self.end(handle, now, "not in the configuration"),
            }
        }
        let connections = &self.connections;
        for peer in &mut self.peers {
            let since = |h: &ConnectionHandle| connections.get(h.0)?.as_ref()?.established;
            peer.connections.sort_by_key(since);
            peer.active = peer.connections.iter().rfind(|h| since(h).is_some()).copied();
        }
    }

    /// The connection that a link's packets go to.
    pub(super) fn active(&self, link: LinkIndex) -> Option<&Connection> {
        let active = self.peers.get(link.get())?.active?;
        self.connections.get(active.0)?.as_ref()
    }

    /// Opens a connection to the peer's endpoint now, and to its second port a little later. Where no endpoint is known, it
    /// tries the second port at once. Returns `false` if neither is known.
    pub(super) fn dial_peer(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool {
        let Some(peer) = self.peers.get(link.get()).filter(|p| p.pin.is_some()) else {
            return false;
        };
        let (to, longest) = (hint.endpoint, hint.max_packet);
        let elsewhere = peer.elsewhere.filter(|e| to.is_none_or(|t| t.remote != *e));
        let elsewhere = elsewhere.map(|remote| Path {
            remote,
            local: to.filter(|t| t.remote.ip() == remote.ip()).and_then(|t| t.local),
            port: self.own_second,
        });
        match (to, elsewhere) {
            (Some(to), _) => self.dial(link, to, longest, now),
            (None, Some(elsewhere)) => self.dial(link, elsewhere, longest, now),
            (None, None) => return false,
        }
        if let (Some(_), Some(elsewhere)) = (to, elsewhere) {
            self.plan(link, elsewhere, longest, now + SECOND);
        }
        true
    }

    fn plan(&mut self, link: LinkIndex, to: Path, longest: Option<u16>, at: Instant) {
        let Some(peer) = self.peers.get_mut(link.get()) else {
            return;
        };
        if let Some(before) = peer.second.replace(Attempt { at, to, longest }) {
            self.seconds.remove(&(before.at, link.get()));
        }
        self.seconds.insert((at, link.get()));
    }

    /// Opens connections that have been put off until now.
    pub(super) fn dial_due(&mut self, now: Instant) {
        while let Some((at, number)) = self.seconds.first().copied().filter(|(at, _)| *at <= now) {
            self.seconds.remove(&(at, number));
            let Some(peer) = self.peers.get_mut(number) else {
                continue;
            };
            if let Some(Attempt { to, longest, .. }) = peer.second.take_if(|second| second.at <= now)
                && peer.active.is_none()
            {
                self.dial(index_of(number), to, longest, now);
            }
        }
    }

    fn dial(&mut self, link: LinkIndex, to: Path, longest: Option<u16>, now: Instant) {
        let Some(pin) = self.peers.get(link.get()).and_then(|peer| peer.pin) else {
            return;
        };
        let opened = self.identity.client(pin).map_err(|e| e.to_string()).and_then(|crypto| {
            let mut config = ClientConfig::new(crypto);
            config.transport_config(match longest {
                Some(longest) => Arc::new(settings::narrow(longest)),
                None => self.transport.clone(),
            });
            self.endpoint
                .connect(now, config, to.remote, "tombolo")
                .map_err(|e| e.to_string())
        });
        match opened {
            Ok((handle, inner)) => {
                self.keep(handle, Connection::new(inner, to, Some(pin), Some(link), now));
                if let Some(peer) = self.peers.get_mut(link.get()) {
                    peer.connections.insert(0, handle);
                }
            }
            Err(reason) => self.say_down(link, reason),
        }
    }

    /// Says that a link has no connection.
    pub(super) fn say_down(&mut self, link: LinkIndex, reason: String) {
        if let Some(peer) = self.peers.get(link.get()) {
            self.events
                .push_back(TransportEvent::Down(peer.name.clone(), Some(reason)));
        }
    }

    /// Ends one connection. It is forgotten here and now: quinn says nothing of what its owner has closed, and gives the
    /// handle to another connection later.
    pub(super) fn end(&mut self, handle: ConnectionHandle, now: Instant, why: &'static str) {
        let connection = self.connections.get_mut(handle.0).and_then(Option::as_mut);
        let Some(connection) = connection.filter(|c| !c.over) else {
            return;
        };
        connection.close(now, why);
        let link = connection.link.take();
        self.handshake_over(handle);
        self.touch(handle);
        if let Some(link) = link {
            self.leave(link, handle);
        }
    }

    /// A link has a connection less.
    fn leave(&mut self, link: LinkIndex, handle: ConnectionHandle) {
        let connections = &self.connections;
        let Some(peer) = self.peers.get_mut(link.get()) else {
            return;
        };
        peer.connections.retain(|h| *h != handle);
        if peer.active == Some(handle) {
            let established = |h: &&ConnectionHandle| {
                let connection = connections.get(h.0).and_then(Option::as_ref);
                connection.is_some_and(|c| c.established.is_some())
            };
            peer.active = peer.connections.iter().rfind(established).copied();
        }
        if !peer.is_asking() {
            self.lost += peer.waiting.drain(..).count() as u64;
        }
    }

    pub(super) fn keep(&mut self, handle: ConnectionHandle, connection: Connection) {
        if self.connections.len() <= handle.0 {
            self.connections.resize_with(handle.0 + 1, || None);
        }
        self.handshaking += 1;
        if let Some(source) = connection.half_open {
            *self.half_open.entry(source).or_default() += 1;
        }
        if let Some(place) = self.connections.get_mut(handle.0) {
            *place = Some(connection);
        }
        self.touch(handle);
    }

    /// A connection is established, or over before it was: it counts no longer as a handshake. Called again it does
    /// nothing.
    pub(super) fn handshake_over(&mut self, handle: ConnectionHandle) {
        let connection = self.connections.get_mut(handle.0).and_then(Option::as_mut);
        let Some(connection) = connection.filter(|c| c.deadline.is_some()) else {
            return;
        };
        connection.deadline = None;
        self.handshaking = self.handshaking.saturating_sub(1);
        let Some(source) = connection.half_open.take() else {
            return;
        };
        if let Some(count) = self.half_open.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.half_open.remove(&source);
            }
        }
    }

    /// The other end has proven its key.
    pub(super) fn established(&mut self, handle: ConnectionHandle, pin: Option<KeyPin>, now: Instant) {
        let link = pin.and_then(|pin| self.by_pin.get(&pin).copied());
        let Some(connection) = self.connections.get_mut(handle.0).and_then(Option::as_mut) else {
            return;
        };
        connection.link = link;
        let Some((link, peer)) = link.and_then(|link| Some((link, self.peers.get_mut(link.get())?))) else {
            return self.end(handle, now, "not in the configuration");
        };
        peer.connections.retain(|h| *h != handle);
        let others = peer.connections.clone();
        peer.connections.push(handle);
        peer.active = Some(handle);
        for packet in peer.waiting.drain(..) {
            self.lost += u64::from(connection.send(packet) != Sealed::Sent);
        }
        if let Some(planned) = peer.second.take() {
            self.seconds.remove(&(planned.at, link.get()));
        }
        self.events.push_back(TransportEvent::Up(peer.name.clone()));
        let decides = pin.is_some_and(|pin| self.identity.pin() < pin);
        let established = |h: &ConnectionHandle| {
            let connection = self.connections.get(h.0).and_then(Option::as_ref);
            connection.is_some_and(|c| c.established.is_some())
        };
        let (standing, under_way): (Vec<_>, Vec<_>) = others.into_iter().partition(established);
        // The end that does not decide bounds what the other one leaves open.
        let kept = if decides { 0 } else { MAX_STANDING - 1 };
        for other in standing.iter().rev().skip(kept) {
            self.end(*other, now, "a newer connection took over");
        }
        for other in under_way {
            self.end(other, now, "another connection was up sooner");
        }
    }

    /// A connection is over, not by us.
    pub(super) fn lost(&mut self, handle: ConnectionHandle, reason: String) {
        let connection = self.connections.get_mut(handle.0).and_then(Option::as_mut);
        let Some(link) = connection.and_then(|c| c.link.take()) else {
            return;
        };
        self.leave(link, handle);
        if self.peers.get(link.get()).is_some() && self.needs_connect(link) {
            self.say_down(link, reason);
        }
    }

    /// Nothing can be sent from this address of ours any more.
    pub(super) fn clear_source(&mut self, local: IpAddr) {
        let paths = self.connections.iter_mut().flatten().map(|c| &mut c.path);
        let planned = self.peers.iter_mut().flat_map(|p| &mut p.second).map(|a| &mut a.to);
        for path in paths.chain(planned) {
            path.local = path.local.filter(|l| *l != local);
        }
    }
}
