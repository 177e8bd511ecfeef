//! The connections of each link, and the choice of the connection that carries the link's packets.

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

/// If no connection to the peer's endpoint is established after this time, another one is opened to the peer's second
/// port. The time is longer than a round trip around the world, and short enough for a user who waits.
const SECOND_PORT_DELAY: Duration = Duration::from_millis(300);

/// Largest number of established connections with one peer. One connection is enough, and two exist for a moment if
/// each end opens one. Without a limit a hostile peer could keep any number of connections open.
const MAX_ESTABLISHED: usize = 4;

/// The QUIC state of one link.
pub(super) struct Peer {
    /// The name of the peer.
    pub(super) name: AgentId,
    pin: Option<KeyPin>,
    /// The peer's second address and port, for QUIC alone; only in lane 0.
    second_port: Option<SocketAddr>,
    /// The connection to the second port that will be opened later, unless another connection is established by then.
    planned: Option<Attempt>,
    /// The connections that are not over: first those whose handshake is in progress, then the established ones, oldest
    /// first.
    pub(super) connections: Vec<ConnectionHandle>,
    /// The connection on which packets are sent; `None`: none is established.
    pub(super) active: Option<ConnectionHandle>,
    /// Packets that wait for the first established connection, oldest first.
    pub(super) waiting: Vec<Bytes>,
}

impl Peer {
    fn new(link: &Link) -> Self {
        Self {
            name: link.peer.clone(),
            pin: link.quic,
            second_port: None,
            planned: None,
            connections: Vec::new(),
            active: None,
            waiting: Vec::new(),
        }
    }

    /// Whether a connection is established, has its handshake in progress, or is planned.
    pub(super) fn is_connecting(&self) -> bool {
        !self.connections.is_empty() || self.planned.is_some()
    }
}

/// A connection that is opened at the time `at`.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    at: Instant,
    to: Path,
    /// Longest packet that the path carries, in bytes, as in [`PathHint::max_packet`].
    max_packet: Option<u16>,
}

impl Quic {
    /// Applies the links of a new configuration. Connections with peers whose keys are still pinned survive; others are
    /// closed. Packets that wait for a connection are dropped.
    pub(super) fn update_peers(&mut self, links: &[Link], now: Instant) {
        // Received packets that were not fetched yet have link indices of the previous configuration, so they are
        // discarded.
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
        let planned = self.peers.drain(..).filter_map(|p| Some((p.pin?, p.planned?)));
        let mut planned: BTreeMap<KeyPin, Attempt> = planned.collect();
        self.peers.extend(links.iter().map(|link| Peer {
            // The peer's second port belongs to its lane 0.
            second_port: link.quic_endpoint.filter(|_| self.lane == 0),
            planned: link.quic.and_then(|pin| planned.remove(&pin)),
            ..Peer::new(link)
        }));
        let peers = self.peers.iter().enumerate();
        self.planned = peers.filter_map(|(n, p)| Some((p.planned?.at, n))).collect();
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
                // The peer has not shown its key yet, so the connection stays: the verifier will check the key against
                // the new pins.
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

    /// The connection on which a link's packets are sent; `None`: none is established.
    pub(super) fn active(&self, link: LinkIndex) -> Option<&Connection> {
        let active = self.peers.get(link.get())?.active?;
        self.connections.get(active.0)?.as_ref()
    }

    /// Opens a connection to the peer's endpoint now, and plans a connection to the peer's second port for 300 ms
    /// later. If no endpoint is known, opens the connection to the second port at once. Returns `false`, and does
    /// nothing, if neither the endpoint nor the second port is known, or if the link has no pin.
    pub(super) fn dial_peer(&mut self, link: LinkIndex, hint: PathHint, now: Instant) -> bool {
        let Some(peer) = self.peers.get(link.get()).filter(|p| p.pin.is_some()) else {
            return false;
        };
        let (to, max_packet) = (hint.endpoint, hint.max_packet);
        let second_port = peer.second_port.filter(|e| to.is_none_or(|t| t.remote != *e));
        let second_port = second_port.map(|remote| Path {
            remote,
            local: to.filter(|t| t.remote.ip() == remote.ip()).and_then(|t| t.local),
            port: self.own_second,
        });
        match (to, second_port) {
            (Some(to), _) => self.dial(link, to, max_packet, now),
            (None, Some(second_port)) => self.dial(link, second_port, max_packet, now),
            (None, None) => return false,
        }
        if let (Some(_), Some(to)) = (to, second_port) {
            let at = now + SECOND_PORT_DELAY;
            self.plan(link, Attempt { at, to, max_packet });
        }
        true
    }

    fn plan(&mut self, link: LinkIndex, attempt: Attempt) {
        let Some(peer) = self.peers.get_mut(link.get()) else {
            return;
        };
        if let Some(before) = peer.planned.replace(attempt) {
            self.planned.remove(&(before.at, link.get()));
        }
        self.planned.insert((attempt.at, link.get()));
    }

    /// Opens each planned connection that is due, unless its link has an established connection by now.
    pub(super) fn dial_due(&mut self, now: Instant) {
        while let Some((at, number)) = self.planned.first().copied().filter(|(at, _)| *at <= now) {
            self.planned.remove(&(at, number));
            let Some(peer) = self.peers.get_mut(number) else {
                continue;
            };
            if let Some(Attempt { to, max_packet, .. }) = peer.planned.take_if(|planned| planned.at <= now)
                && peer.active.is_none()
            {
                self.dial(index_of(number), to, max_packet, now);
            }
        }
    }

    /// Opens a connection on this path. If that fails, reports the link as down.
    fn dial(&mut self, link: LinkIndex, to: Path, max_packet: Option<u16>, now: Instant) {
        let Some(pin) = self.peers.get(link.get()).and_then(|peer| peer.pin) else {
            return;
        };
        let opened = self.identity.client(pin).map_err(|e| e.to_string()).and_then(|crypto| {
            let mut config = ClientConfig::new(crypto);
            config.transport_config(match max_packet {
                Some(max_packet) => Arc::new(settings::narrow(max_packet)),
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
            Err(reason) => self.report_down(link, reason),
        }
    }

    /// Queues the event that a link has no connection any more; `reason` says why.
    pub(super) fn report_down(&mut self, link: LinkIndex, reason: String) {
        if let Some(peer) = self.peers.get(link.get()) {
            self.events
                .push_back(TransportEvent::Down(peer.name.clone(), Some(reason)));
        }
    }

    /// Closes a connection, and removes it from its link; a second call does nothing. quinn sends no event for a
    /// connection that its owner has closed, and reuses the handle later, so everything that refers to the handle must
    /// be removed here.
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
            self.remove_connection(link, handle);
        }
    }

    /// Removes a connection from its link. The newest of the remaining ones becomes active. If none remains, the
    /// waiting packets are dropped.
    fn remove_connection(&mut self, link: LinkIndex, handle: ConnectionHandle) {
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
        if !peer.is_connecting() {
            self.lost += peer.waiting.drain(..).count() as u64;
        }
    }

    /// Stores a new connection under its handle, and counts its handshake, which is in progress. The next flush sends
    /// the connection's first datagrams.
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

    /// Stops counting a connection's handshake as in progress, because it has succeeded or failed. A second call does
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

    /// Makes a connection the active one after its peer has proven its key, and sends the waiting packets on it. Closes
    /// the peer's other connections: those whose handshakes are in progress, and, if that is this end's task, the older
    /// established ones.
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
        if let Some(planned) = peer.planned.take() {
            self.planned.remove(&(planned.at, link.get()));
        }
        self.events.push_back(TransportEvent::Up(peer.name.clone()));
        let decides = pin.is_some_and(|pin| self.identity.pin() < pin);
        let established = |h: &ConnectionHandle| {
            let connection = self.connections.get(h.0).and_then(Option::as_ref);
            connection.is_some_and(|c| c.established.is_some())
        };
        let (older, handshaking): (Vec<_>, Vec<_>) = others.into_iter().partition(established);
        // The end with the smaller key closes all older connections. The other end closes older connections only if
        // there are more than `MAX_ESTABLISHED`.
        let kept = if decides { 0 } else { MAX_ESTABLISHED - 1 };
        for other in older.iter().rev().skip(kept) {
            self.end(*other, now, "a newer connection took over");
        }
        for other in handshaking {
            self.end(other, now, "another connection was up sooner");
        }
    }

    /// Handles the end of a connection that the peer, or a timeout, has ended.
    pub(super) fn lost(&mut self, handle: ConnectionHandle, reason: String) {
        let connection = self.connections.get_mut(handle.0).and_then(Option::as_mut);
        let Some(link) = connection.and_then(|c| c.link.take()) else {
            return;
        };
        self.remove_connection(link, handle);
        if self.peers.get(link.get()).is_some() && self.needs_connect(link) {
            self.report_down(link, reason);
        }
    }

    /// Stops using `local`, an address of this host, as the source address of connections. The kernel then chooses the
    /// source address.
    pub(super) fn clear_source(&mut self, local: IpAddr) {
        let paths = self.connections.iter_mut().flatten().map(|c| &mut c.path);
        let planned = self.peers.iter_mut().flat_map(|p| &mut p.planned).map(|a| &mut a.to);
        for path in paths.chain(planned) {
            path.local = path.local.filter(|l| *l != local);
        }
    }
}
