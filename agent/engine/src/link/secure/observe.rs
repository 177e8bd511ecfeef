//! Links under observation: what comes out of them, what echoes and probes in them say, and which transport that leads to.

use super::SecureLinks;
use super::way::Way;
use crate::buffer::TransmitSink;
use crate::link::choice::{Side, Step};
use crate::link::control::{Echoes, LEN, Message};
use crate::link::exchange::{Exchange, LONGEST_MESSAGE};
use crate::link::quic::News;
use crate::link::{Event, LinkSet, index_of};
use crate::tables::LinkIndex;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::Carrier;

/// Echoes on a link that has no alternative; on others see [`Probes`](tombolo_proto::config::Probes).
const RARELY: Duration = Duration::from_secs(1);

/// A handshake unanswered for so long is silence.
const IN_VAIN: Duration = Duration::from_millis(500);

/// A link is in use for so long after its last packet.
const IN_USE: Duration = Duration::from_secs(5);

const fn millis(number: u32) -> Duration {
    Duration::from_millis(number as u64)
}

impl SecureLinks {
    /// A packet came out of a link. Whether it goes on.
    pub(super) fn arrived(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> bool {
        if Message::is_one(packet) {
            let contents = packet.get(LEN..).unwrap_or_default();
            match Message::decode(packet) {
                Some(Message::Echo(number)) => {
                    self.send(link, carrier, &Message::Reply(number).encode(), now, tx);
                    self.heard(link, carrier, now);
                }
                Some(Message::Reply(number)) => {
                    if let Some(observed) = self.observed(link) {
                        observed.of(carrier).reply(number, now);
                    }
                }
                Some(Message::Probe(size)) => {
                    self.send(link, carrier, &Message::Arrived(size).encode(), now, tx);
                }
                Some(Message::Arrived(size)) => {
                    if let Some(observed) = self.observed(link) {
                        observed.path.answered(size);
                    }
                }
                Some(Message::Part {
                    packet: number,
                    index,
                    count,
                }) => {
                    self.used(link, now);
                    let way = self.ways.get_mut(link.get());
                    if let Some(observed) = way.and_then(|way| way.observed.as_mut()) {
                        observed.of(carrier).heard(now);
                        if let Some(whole) = observed.parts.take(number, (index, count), contents) {
                            self.whole.extend_from_slice(whole);
                        }
                    }
                }
                Some(Message::Routes) => {
                    self.heard(link, carrier, now);
                    self.advertised(link, contents, now, tx);
                }
                Some(Message::Leaving) => self.leaves(link),
                None => {}
            }
            return false;
        }
        let Some(way) = self.ways.get_mut(link.get()) else {
            return false;
        };
        if carrier == Carrier::Quic {
            way.packets[0] += 1;
            way.bytes[0] += packet.len() as u64;
        }
        self.used(link, now);
        self.heard(link, carrier, now);
        if let Some(observed) = self.observed(link) {
            observed.last = Some((carrier, now));
        }
        true
    }

    /// The other end says something of routes.
    fn advertised(&mut self, link: LinkIndex, message: &[u8], now: Instant, tx: &mut impl TransmitSink) {
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        way.exchange.take(message, now, &mut self.advertisements);
        self.hand_over(link, now);
        if self.ways.get(link.get()).is_some_and(|way| way.exchange.is_waiting()) {
            // Its time comes while the link is looked after.
            self.used(link, now);
        }
        self.say(link, now, tx, Exchange::confirmation);
    }

    /// Hands over the routes that the other end advertised last, when it is time for it.
    fn hand_over(&mut self, link: LinkIndex, now: Instant) {
        if let Some(way) = self.ways.get_mut(link.get())
            && let Some(table) = way.exchange.due(now, &mut self.advertisements)
        {
            self.events.push_back(Event::Told(way.peer.clone(), table));
        }
    }

    /// The other end is about to stop. It answers for a while yet, and after its return it has to earn trust like any that
    /// was silent.
    fn leaves(&mut self, link: LinkIndex) {
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        if let Some(observed) = &mut way.observed {
            observed.wireguard.forget_answers();
            observed.quic.forget_answers();
        }
        if way.watched && self.lane == 0 && !way.dead {
            way.dead = true;
            self.report(link, false);
        }
    }

    /// Tells all other ends that this one is about to stop.
    pub(super) fn say_leaving(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        for position in 0..self.ways.len() {
            let link = index_of(position);
            let Some((carrier, stock)) = self.ways.get(position).map(|way| (way.carrier(), way.stock)) else {
                continue;
            };
            if !stock && self.side(link, carrier, now).up {
                self.send(link, carrier, &Message::Leaving.encode(), now, tx);
            }
        }
    }

    fn heard(&mut self, link: LinkIndex, carrier: Carrier, now: Instant) {
        if let Some(observed) = self.observed(link) {
            observed.of(carrier).heard(now);
        }
    }

    /// Looks after one link in use. Whether it still is.
    pub(super) fn observe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) -> bool {
        let Some(way) = self.ways.get_mut(link.get()) else {
            return false;
        };
        let unused = way.used.is_none_or(|t| now.saturating_duration_since(t) > IN_USE);
        if unused && !(self.lane == 0 && (way.always || way.dead || way.exchange.is_waiting())) {
            way.observed = None;
            return false;
        }
        let (carrier, choice, watched) = (way.carrier(), way.has_choice(), way.watched);
        let (interval, first) = (millis(self.probes.interval), self.lane == 0);
        if way.stock {
            return true;
        }
        // A connection that happens to stand is looked after too: whether it is a way out must be known when it is needed.
        let spare = || self.side(link, Carrier::Quic, now).up;
        let other = match carrier {
            Carrier::WireGuard => (choice && spare()).then_some(Carrier::Quic),
            Carrier::Quic => choice.then_some(Carrier::WireGuard),
        };
        for (carrier, main) in [(Some(carrier), true), (other, false)] {
            let Some(carrier) = carrier else { continue };
            // A session that is not there is looked for by packets; a standby has none.
            if main && !self.side(link, carrier, now).up {
                continue;
            }
            let Some(observed) = self.observed(link) else {
                continue;
            };
            let echoes = observed.of(carrier);
            // D19: where there is an alternative; for a lane beside the first, that is the first.
            let often = (choice || watched) && (main || echoes.answers().is_some()) || !first;
            let every = if often { interval } else { interval.max(RARELY) };
            if echoes
                .last_sent()
                .is_none_or(|t| now.saturating_duration_since(t) >= every)
            {
                let echo = echoes.send(now);
                self.send(link, carrier, &echo.encode(), now, tx);
            }
        }
        if carrier == Carrier::WireGuard {
            self.probe(link, now, tx);
        }
        if choice {
            self.choose(link, now, tx);
        }
        if self.lane == 0 {
            self.watch(link, now);
            self.hand_over(link, now);
            self.say(link, now, tx, Exchange::messages);
        }
        if self.lane > 0 {
            self.look_whether_ready(link, now);
        }
        true
    }

    /// D19: three misses are down, ten answers and three seconds are back; a session asked for in vain is down too.
    fn watch(&mut self, link: LinkIndex, now: Instant) {
        let Some(way) = self.ways.get(link.get()).filter(|way| way.watched) else {
            return;
        };
        let (dead, side) = (way.dead, self.side(link, way.carrier(), now));
        let in_vain = |since| now.saturating_duration_since(since) >= IN_VAIN;
        let lost = side.silent.is_some() || !side.up && side.asking.is_some_and(in_vain);
        let (answers, hold) = (self.probes.answers, millis(self.probes.hold));
        let enough = |(n, since)| n >= answers && now.saturating_duration_since(since) >= hold;
        let back = side.up && side.silent.is_none() && side.answers.is_some_and(enough);
        if lost && !dead || back && dead {
            if let Some(way) = self.ways.get_mut(link.get()) {
                way.dead = lost;
            }
            self.report(link, !lost);
        }
    }

    /// Sends what the exchange of routes has to say, where there is a session to say it over.
    fn say(
        &mut self,
        link: LinkIndex,
        now: Instant,
        tx: &mut impl TransmitSink,
        what: impl FnOnce(&mut Exchange, Instant, &mut dyn FnMut(&[u8])),
    ) {
        let Some(carrier) = self.ways.get(link.get()).map(Way::carrier) else {
            return;
        };
        if !self.side(link, carrier, now).up {
            return;
        }
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        let mut exchange = std::mem::take(&mut way.exchange);
        what(&mut exchange, now, &mut |message| {
            let mut packet = [0; LEN + LONGEST_MESSAGE];
            let Some(packet) = packet.get_mut(..LEN + message.len()) else {
                return;
            };
            if let Some(room) = packet.get_mut(LEN..) {
                room.copy_from_slice(message);
            }
            Message::Routes.put(packet);
            self.send(link, carrier, packet, now, tx);
        });
        if let Some(way) = self.ways.get_mut(link.get()) {
            way.exchange = exchange;
        }
    }

    /// A lane beside the first sends where it has a session that works.
    pub(super) fn look_whether_ready(&mut self, link: LinkIndex, now: Instant) {
        let Some(carrier) = self.ways.get(link.get()).map(Way::carrier) else {
            return;
        };
        let side = self.side(link, carrier, now);
        if let Some(way) = self.ways.get_mut(link.get()) {
            way.ready = side.up && side.silent.is_none();
        }
    }

    /// Looks how long packets may be.
    fn probe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        let Some(observed) = way.observed.as_deref_mut() else {
            return;
        };
        // A stock device answers nothing, and a closed way says nothing about lengths.
        if observed.wireguard.answers().is_none() || observed.wireguard.silent(now).is_some() {
            return;
        }
        let sizes = observed.path.probes(now, self.mtu, observed.wireguard.rtt());
        if observed.path.limit().is_some() && observed.path.limit() != way.limit {
            way.limit = observed.path.limit();
            tracing::debug!(link = %way.peer, bytes = way.limit, "longest packet that the path carries whole");
        }
        tx.allow_fragments(false);
        for size in sizes {
            self.wireguard
                .seal(link, Message::probe(size, &mut self.probe), now, tx);
        }
        tx.allow_fragments(true);
    }

    fn choose(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let (wireguard, quic) = (
            self.side(link, Carrier::WireGuard, now),
            self.side(link, Carrier::Quic, now),
        );
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        match way.choice.step(now, wireguard, quic) {
            None => {}
            Some(Step::Connect) => {
                self.connect(link, now);
                self.flush(now, tx);
            }
            Some(Step::Disconnect) => {
                if let Some(quic) = &mut self.quic {
                    quic.close(link, now, "WireGuard is in use");
                    quic.flush(now, tx);
                }
            }
            Some(Step::Switch(to, reason)) => {
                if let Some(observed) = &mut way.observed {
                    let rtt = observed.wireguard.rtt();
                    observed.quic.assume_rtt(rtt);
                }
                self.events.push_back(Event::Switched(way.peer.clone(), to, reason));
            }
        }
    }

    /// What is known of a transport.
    fn side(&self, link: LinkIndex, carrier: Carrier, now: Instant) -> Side {
        let (up, asking) = match (carrier, &self.quic) {
            (Carrier::WireGuard, _) => self.wireguard.session(link),
            (Carrier::Quic, Some(quic)) => (quic.is_up(link), quic.is_connecting(link).then_some(now)),
            (Carrier::Quic, None) => (false, None),
        };
        let observed = self.ways.get(link.get()).and_then(|way| way.observed.as_deref());
        let used = |(by, at): (Carrier, Instant)| by == carrier && now.saturating_duration_since(at) < RARELY;
        let echoes = observed.map(|o| match carrier {
            Carrier::WireGuard => &o.wireguard,
            Carrier::Quic => &o.quic,
        });
        Side {
            up,
            asking,
            silent: echoes.and_then(|e| e.silent(now)),
            heard: echoes.and_then(Echoes::last_heard),
            answers: echoes.and_then(Echoes::answers),
            loss: echoes.and_then(|e| e.loss(now)),
            used: observed.and_then(|o| o.last).is_some_and(used),
        }
    }

    /// Says once that a link is up or down, whatever carries it.
    fn report(&mut self, link: LinkIndex, said: bool) {
        let up = said || self.wireguard.session(link).0 || self.quic.as_ref().is_some_and(|q| q.is_up(link));
        let Some(way) = self.ways.get_mut(link.get()) else {
            return;
        };
        // The session of a stock device lives on without it, and WireGuard alone can tell.
        let up = up && !way.dead && (said || !way.stock);
        if way.up != Some(up) {
            way.up = Some(up);
            let peer = way.peer.clone();
            self.events
                .push_back(if up { Event::Up(peer) } else { Event::Down(peer) });
        }
    }

    /// Says where a peer is now. A peer that moves with every datagram makes one event of many.
    fn push_moved(&mut self, peer: AgentId, to: SocketAddr) {
        match self.events.back_mut() {
            Some(Event::Moved(before, at)) if *before == peer => *at = to,
            _ => self.events.push_back(Event::Moved(peer, to)),
        }
    }

    /// Takes what the transports have to say.
    pub(super) fn listen(&mut self) {
        while let Some(event) = self.wireguard.poll_event() {
            match event {
                Event::Up(peer) => {
                    if let Some(link) = self.position(&peer) {
                        self.report(link, true);
                    }
                }
                Event::Down(peer) => {
                    if let Some(link) = self.position(&peer) {
                        self.report(link, false);
                    }
                }
                Event::Moved(peer, to) => {
                    let link = self.position(&peer).and_then(|l| self.ways.get_mut(l.get()));
                    if let Some(observed) = link.and_then(|way| way.observed.as_mut()) {
                        observed.path.look();
                    }
                    self.push_moved(peer, to);
                }
                Event::Switched(..) | Event::Told(..) => self.events.push_back(event),
            }
        }
        while let Some(news) = self.quic.as_mut().and_then(|q| q.news.pop_front()) {
            match news {
                News::Up(peer) => {
                    if let Some(link) = self.position(&peer) {
                        self.report(link, true);
                    }
                }
                News::Down(peer, reason) => {
                    tracing::debug!(link = %peer, reason, "QUIC connection gone");
                    if let Some(link) = self.position(&peer) {
                        self.report(link, false);
                    }
                }
                News::Moved(peer, to) => self.push_moved(peer, to),
            }
        }
    }
}
