//! The engine of one lane: packets and datagrams in, packets and datagrams out, counters.

use crate::aqm::{Advice, Codel};
use crate::buffer::{DeliverSink, NoRedirect, Path, RedirectSink, TransmitSink};
use crate::decide::{Ingress, decide};
use crate::flow::FlowCache;
use crate::link::{Event, LinkSet, Opened, Sealed};
use crate::packet::icmp::{self, IcmpError, Limiter};
use crate::packet::{self, PacketInfo};
use crate::stats::Stats;
use crate::tables::Tables;
use crate::verdict::{DropReason, Verdict};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use tombolo_proto::config::Link;

/// Longest accepted datagram, in bytes. UDP allows no longer one.
const MAX_DATAGRAM: usize = 65_536;

/// The packet decisions and links of one lane. It has no socket, no clock and no thread of its own.
#[derive(Debug)]
pub struct Engine<L, R = NoRedirect> {
    tables: Option<Arc<Tables>>,
    links: L,
    redirect: R,
    stats: Stats,
    limiter: Limiter,
    flows: FlowCache,
    /// Queue management for the datagrams that wait in front of the engine.
    queue: Codel,
    /// Buffer for decrypted packets; taken out while in use, to satisfy the borrow checker.
    scratch: Vec<u8>,
}

impl<L: LinkSet> Engine<L> {
    /// An engine without tables, which drops all packets until [`install`](Self::install). `seed` must be a secret
    /// random number: it keys the hash of the flow cache.
    #[must_use]
    pub fn new(links: L, seed: u64) -> Self {
        Self::with_redirect(links, seed, NoRedirect)
    }
}

impl<L: LinkSet, R: RedirectSink> Engine<L, R> {
    /// The same for a lane that redirects packets to lane 0 where it has no session itself (D15).
    #[must_use]
    pub fn with_redirect(links: L, seed: u64, redirect: R) -> Self {
        Self {
            tables: None,
            links,
            redirect,
            stats: Stats::new(),
            limiter: Limiter::new(),
            flows: FlowCache::new(seed),
            queue: Codel::default(),
            scratch: vec![0; MAX_DATAGRAM + 64],
        }
    }

    /// Installs a new configuration: its tables, and its links in the same order. Sessions of unchanged links continue.
    pub fn install(&mut self, tables: Arc<Tables>, links: &[Link], now: Instant) {
        self.links.update(links, now);
        self.links.configure(&tables);
        self.count_lost();
        self.refresh(tables);
    }

    /// Replaces the tables by others that were built from the same configuration and a newer routing state (D11).
    pub fn refresh(&mut self, tables: Arc<Tables>) {
        self.flows.clear();
        self.tables = Some(tables);
    }

    /// The installed tables; `None` before the first [`install`](Self::install).
    #[must_use]
    pub const fn tables(&self) -> Option<&Arc<Tables>> {
        self.tables.as_ref()
    }

    /// Processes one packet that was read from the TUN device.
    pub fn handle_tun(
        &mut self,
        packet: &mut [u8],
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.stats.totals.tun_in += 1;
        self.context(now).run(Ingress::Tun, packet, tx, rx);
    }

    /// Processes one packet that another lane redirected to this one, as it arrived there at `ingress`.
    pub fn handle_redirected(
        &mut self,
        ingress: Ingress,
        packet: &mut [u8],
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.stats.redirected_in += 1;
        self.context(now).run(ingress, packet, tx, rx);
    }

    /// Counts and drops a redirected packet whose link index belongs to another configuration.
    pub fn refuse_redirected(&mut self) {
        self.stats.redirected_in += 1;
        self.stats.dropped(DropReason::NoLink);
    }

    /// Processes one datagram that arrived at the lane's own port without ECN bits in its outer header.
    pub fn handle_udp(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.handle_datagram(datagram, from.into(), 0, now, tx, rx);
    }

    /// Processes one received datagram. `from` is its path, `ecn` the two ECN bits of its outer IP header.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        from: Path,
        ecn: u8,
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.stats.datagrams += 1;
        if datagram.len() > MAX_DATAGRAM {
            return self.stats.refused(DropReason::TooBig);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        match self.links.open(datagram, from, now, &mut scratch, tx) {
            Opened::Packet(link, range) => {
                self.stats.totals.link_in += 1;
                let mut context = self.context(now);
                context.outer = ecn;
                context.run(Ingress::Link(link), &mut scratch[range], tx, rx);
            }
            Opened::Control => self.stats.control_datagrams += 1,
            Opened::Refused(reason) => self.stats.refused(reason),
        }
        while let Some((link, range)) = self.links.next_packet(now, &mut scratch, tx) {
            self.stats.totals.link_in += 1;
            self.stats.bundled += 1;
            self.context(now).run(Ingress::Link(link), &mut scratch[range], tx, rx);
        }
        self.scratch = scratch;
    }

    /// Tells queue management that no datagram waits in front of the engine.
    pub fn drained(&mut self, now: Instant) {
        self.queue.drained(now);
    }

    /// Counts a datagram that no peer can have sent: it is empty, or its source address cannot be replied to.
    pub fn refuse(&mut self) {
        self.stats.datagrams += 1;
        self.stats.refused(DropReason::BadDatagram);
    }

    /// Counts committed datagrams that the kernel refused to send.
    pub fn not_sent(&mut self, datagrams: u64) {
        self.stats.not_sent(datagrams);
    }

    /// The kernel sends nothing from this address of ours any more: no link insists on it until it is heard there again.
    pub fn local_refused(&mut self, local: IpAddr) {
        self.links.source_unavailable(local);
    }

    /// Counts delivered packets that the TUN device refused.
    pub fn not_delivered(&mut self, packets: u64) {
        self.stats.not_delivered(packets);
    }

    /// Ends a batch: writes to `tx` what links held back to bundle it.
    pub fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.flush(now, tx);
    }

    /// Says on all links that this agent is about to stop.
    pub fn drain(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.drain(now, tx);
    }

    /// Runs all timers that expired before `now`, and sends what is due.
    pub fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.handle_timeout(now, tx);
        self.count_lost();
    }

    /// The time of the next [`handle_timeout`](Self::handle_timeout). `None`: not before another call changes
    /// something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links.poll_timeout()
    }

    /// Takes the next event of the links.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.links.poll_event()
    }

    /// The counters.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The links.
    #[must_use]
    pub const fn links(&self) -> &L {
        &self.links
    }

    /// The links, for changes.
    pub const fn links_mut(&mut self) -> &mut L {
        &mut self.links
    }

    /// The sink for packets that lane 0 handles.
    pub const fn redirect_mut(&mut self) -> &mut R {
        &mut self.redirect
    }

    fn context(&mut self, now: Instant) -> PacketContext<'_, L, R> {
        PacketContext {
            tables: self.tables.as_deref(),
            links: &mut self.links,
            redirect: &mut self.redirect,
            stats: &mut self.stats,
            limiter: &mut self.limiter,
            flows: &mut self.flows,
            queue: &mut self.queue,
            outer: 0,
            now,
        }
    }

    fn count_lost(&mut self) {
        self.stats.lost(self.links.take_lost());
    }
}

/// The state of the engine while it processes one packet.
struct PacketContext<'a, L, R> {
    tables: Option<&'a Tables>,
    links: &'a mut L,
    redirect: &'a mut R,
    stats: &'a mut Stats,
    limiter: &'a mut Limiter,
    flows: &'a mut FlowCache,
    queue: &'a mut Codel,
    /// ECN bits of the outer header of the datagram that held the packet.
    outer: u8,
    now: Instant,
}

impl<L: LinkSet, R: RedirectSink> PacketContext<'_, L, R> {
    /// Decides and acts on the packet, which ends up in exactly one counter.
    fn run(mut self, ingress: Ingress, packet: &mut [u8], tx: &mut impl TransmitSink, rx: &mut impl DeliverSink) {
        let Some(info) = packet::parse(packet) else {
            return self.stats.dropped(DropReason::Malformed);
        };
        let Some(tables) = self.tables else {
            return self.stats.dropped(DropReason::NoRoute);
        };
        let packet = &mut packet[..info.len];
        if self.outer != 0 && !packet::decapsulate_ecn(packet, self.outer) {
            return self.stats.dropped(DropReason::Congestion);
        }
        let verdict = self
            .flows
            .decide(ingress, &info, tables.spreads, || decide(tables, ingress, &info, None));
        let goes_on = matches!(verdict, Verdict::Deliver | Verdict::Forward { .. });
        if goes_on && matches!(ingress, Ingress::Link(_)) && self.queue.advise(packet, self.now) == Advice::Drop {
            return self.stats.dropped(DropReason::Congestion);
        }
        match verdict {
            Verdict::Deliver => {
                packet::clamp_mss(packet, &info, tables.mtu);
                rx.deliver(packet);
                self.stats.totals.tun_out += 1;
            }
            Verdict::Forward { link, .. } if !self.links.is_ready(link, self.now) => {
                if self.redirect.redirect_to_lane0(ingress, packet) {
                    self.stats.redirected_out += 1;
                } else {
                    self.stats.dropped(DropReason::QueueFull);
                }
            }
            Verdict::Forward { link, decrement_ttl } => {
                let room = self
                    .links
                    .max_packet(link)
                    .map_or(tables.mtu, |most| most.min(tables.mtu));
                // D20: no IPv6 path may be narrower than 1,280 bytes, so packets of that size are fragmented inside the
                // link.
                let least = if info.source.is_ipv6() { packet::IPV6_MIN_MTU } else { 0 };
                let most = room.max(least);
                // A host respects the MTU of its TUN device by itself. A gateway must send the ICMP error, and so must
                // a path that is narrower than the device.
                let too_big = packet.len() > usize::from(most) && (decrement_ttl || most < tables.mtu);
                if too_big && packet::may_not_fragment(packet) {
                    return self.answer(IcmpError::TooBig(most), tables, ingress, packet, &info, tx, rx);
                }
                if decrement_ttl {
                    packet::decrement_ttl(packet);
                }
                packet::clamp_mss(packet, &info, room);
                if tx.is_full() {
                    return self.stats.dropped(DropReason::QueueFull);
                }
                // RFC 6040: what the network may do to the packet it may do to the datagram around it.
                let ecn = packet::ecn_bits(packet);
                match self.links.seal(link, packet, ecn, self.now, tx) {
                    Sealed::Sent => self.stats.totals.link_out += 1,
                    Sealed::Dropped(reason) => self.stats.dropped(reason),
                }
            }
            Verdict::TimeExceeded => {
                self.answer(IcmpError::TimeExceeded, tables, ingress, packet, &info, tx, rx);
            }
            Verdict::Drop(reason) => self.stats.dropped(reason),
        }
    }

    /// Answers a packet with an ICMP error, or counts it as dropped.
    ///
    /// T5: a gateway answers packets of its local prefixes, from its own address, through the link that they came from.
    /// A packet from the own host that is too big for the path is answered in the name of its destination, because a
    /// host accepts that error from any router on the way.
    #[expect(
        clippy::too_many_arguments,
        reason = "the packet, where it came from, and both ways out"
    )]
    fn answer(
        &mut self,
        error: IcmpError,
        tables: &Tables,
        ingress: Ingress,
        packet: &[u8],
        info: &PacketInfo,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        let reason = match error {
            IcmpError::TimeExceeded => DropReason::TtlExceeded,
            IcmpError::TooBig(_) => DropReason::TooBig,
        };
        let Ingress::Link(back) = ingress else {
            let answer = Some(info.destination)
                .filter(|_| reason == DropReason::TooBig && icmp::may_answer(packet, info))
                .filter(|_| self.limiter.allow(self.now))
                .and_then(|from| icmp::error(from, packet, info, error));
            let Some(answer) = answer else {
                return self.stats.dropped(reason);
            };
            rx.deliver(&answer);
            self.stats.totals.replied += 1;
            return;
        };
        let answer = tables
            .gateway_address(info.source)
            .filter(|_| tables.is_local(info.source) && icmp::may_answer(packet, info))
            .filter(|_| self.limiter.allow(self.now))
            .and_then(|from| icmp::error(from, packet, info, error));
        let sent = answer.is_some_and(|a| self.links.seal(back, &a, 0, self.now, tx) == Sealed::Sent);
        if sent {
            self.stats.totals.replied += 1;
        } else {
            self.stats.dropped(reason);
        }
    }
}
