//! Links under observation: what comes out of them, what echoes and probes in them say, and which transport that leads to.

use super::SecureLinks;
use crate::buffer::TransmitSink;
use crate::link::choice::{Side, Step};
use crate::link::control::{Echoes, LEN, Message};
use crate::link::exchange::LONGEST_MESSAGE;
use crate::link::quic::News;
use crate::link::{Event, LinkSet, index_of};
use crate::tables::LinkIndex;
use std::time::{Duration, Instant};
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
            match Message::decode(packet) {
                Some(Message::Echo(number)) => {
                    self.send(link, carrier, &Message::Reply(number).encode(), now, tx);
                    self.heard(link, carrier, now);
                }
                Some(Message::Reply(number)) => {
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.of(carrier).reply(number, now);
                    }
                }
                Some(Message::Probe(size)) => {
                    self.send(link, carrier, &Message::Arrived(size).encode(), now, tx);
                }
                Some(Message::Arrived(size)) => {
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.path.answered(size);
                    }
                }
                Some(Message::Part {
                    packet: number,
                    index,
                    count,
                }) => {
                    self.used(link, now);
                    if let Some(observed) = &mut self.ways[link.get()].observed {
                        observed.of(carrier).heard(now);
                        if let Some(whole) = observed.parts.take(number, (index, count), &packet[LEN..]) {
                            self.whole.extend_from_slice(whole);
                        }
                    }
                }
                Some(Message::Routes) => {
                    let way = &mut self.ways[link.get()];
                    if let Some(table) = way.exchange.take(&packet[LEN..]) {
                        self.events.push_back(Event::Told(way.peer.clone(), table));
                    }
                    self.heard(link, carrier, now);
                    // What was taken is confirmed at once.
                    self.exchange(link, now, tx);
                }
                Some(Message::Leaving) => self.leaves(link),
                None => {}
            }
            return false;
        }
        if carrier == Carrier::Quic {
            let way = &mut self.ways[link.get()];
            way.packets[0] += 1;
            way.bytes[0] += packet.len() as u64;
        }
        self.used(link, now);
        self.heard(link, carrier, now);
        if let Some(observed) = &mut self.ways[link.get()].observed {
            observed.last = Some((carrier, now));
        }
        true
    }

    /// The other end is about to stop. It answers for a while yet, and after its return it has to earn trust like any that
    /// was silent.
    fn leaves(&mut self, link: LinkIndex) {
        let way = &mut self.ways[link.get()];
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
            let carrier = self.ways[position].carrier();
            if !self.ways[position].stock && self.side(link, carrier, now).up {
                self.send(link, carrier, &Message::Leaving.encode(), now, tx);
            }
        }
    }

    fn heard(&mut self, link: LinkIndex, carrier: Carrier, now: Instant) {
        if let Some(observed) = &mut self.ways[link.get()].observed {
            observed.of(carrier).heard(now);
        }
    }

    /// Looks after one link in use. Whether it still is.
    pub(super) fn observe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) -> bool {
        let way = &mut self.ways[link.get()];
        let unused = way.used.is_none_or(|t| now.saturating_duration_since(t) > IN_USE);
        if unused && !(self.lane == 0 && (way.always || way.dead)) {
            way.observed = None;
            return false;
        }
        let (carrier, choice, watched) = (way.carrier(), way.has_choice(), way.watched);
        let interval = millis(self.probes.interval);
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
            let Some(observed) = &mut self.ways[link.get()].observed else {
                continue;
            };
            let echoes = observed.of(carrier);
            // D19: where there is an alternative; for a lane beside the first, that is the first.
            let often = (choice || watched) && (main || echoes.answers().is_some()) || self.lane > 0;
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
            self.exchange(link, now, tx);
        }
        if self.lane > 0 {
            self.look_whether_ready(link, now);
        }
        true
    }

    /// D19: three misses are down, ten answers and three seconds are back; a session asked for in vain is down too.
    fn watch(&mut self, link: LinkIndex, now: Instant) {
        let way = &self.ways[link.get()];
        if !way.watched {
            return;
        }
        let (dead, side) = (way.dead, self.side(link, way.carrier(), now));
        let in_vain = |since| now.saturating_duration_since(since) >= IN_VAIN;
        let lost = side.silent.is_some() || !side.up && side.asking.is_some_and(in_vain);
        let (answers, hold) = (self.probes.answers, millis(self.probes.hold));
        let enough = |(n, since)| n >= answers && now.saturating_duration_since(since) >= hold;
        let back = side.up && side.silent.is_none() && side.answers.is_some_and(enough);
        if lost && !dead || back && dead {
            self.ways[link.get()].dead = lost;
            self.report(link, !lost);
        }
    }

    /// Goes on telling routes, where there is a session to tell them over.
    fn exchange(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let carrier = self.ways[link.get()].carrier();
        if !self.side(link, carrier, now).up {
            return;
        }
        let mut exchange = std::mem::take(&mut self.ways[link.get()].exchange);
        exchange.messages(now, |message| {
            let mut packet = [0; LEN + LONGEST_MESSAGE];
            let packet = &mut packet[..LEN + message.len()];
            packet[LEN..].copy_from_slice(message);
            Message::Routes.put(packet);
            self.send(link, carrier, packet, now, tx);
        });
        self.ways[link.get()].exchange = exchange;
    }

    /// A lane beside the first sends where it has a session that works.
    pub(super) fn look_whether_ready(&mut self, link: LinkIndex, now: Instant) {
        let side = self.side(link, self.ways[link.get()].carrier(), now);
        self.ways[link.get()].ready = side.up && side.silent.is_none();
    }

    /// Looks how long packets may be.
    fn probe(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let way = &mut self.ways[link.get()];
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
        let way = &mut self.ways[link.get()];
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
        let observed = self.ways[link.get()].observed.as_deref();
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
        let way = &mut self.ways[link.get()];
        // The session of a stock device lives on without it, and WireGuard alone can tell.
        let up = up && !way.dead && (said || !way.stock);
        if way.up != Some(up) {
            way.up = Some(up);
            let peer = way.peer.clone();
            self.events
                .push_back(if up { Event::Up(peer) } else { Event::Down(peer) });
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
                Event::Moved(ref peer, _) => {
                    let link = self.position(peer).and_then(|l| self.ways.get_mut(l.get()));
                    if let Some(observed) = link.and_then(|way| way.observed.as_mut()) {
                        observed.path.look();
                    }
                    self.events.push_back(event);
                }
                Event::Switched(..) | Event::Told(..) => self.events.push_back(event),
            }
        }
        while let Some(news) = self.quic.as_mut().and_then(|q| q.news.pop_front()) {
            match news {
                News::Up(link) => self.report(link, true),
                News::Down(link, reason) => {
                    tracing::debug!(link = %self.ways[link.get()].peer, reason, "QUIC connection gone");
                    self.report(link, false);
                }
                News::Moved(link, to) => {
                    let peer = self.ways[link.get()].peer.clone();
                    self.events.push_back(Event::Moved(peer, to));
                }
            }
        }
    }
}
