//! The engine of one lane. The engine takes IP packets and UDP datagrams, writes packets and datagrams into sinks, and
//! counts the outcome of each.

mod limits;
mod local;
mod reset;

use crate::aqm::{Advice, Codel};
use crate::buffer::{DeliverSink, NoRedirect, Outcome, Path, RedirectSink, TransmitSink};
use crate::decide::{Ingress, decide_after};
use crate::flow::{FlowCache, Lookup};
use crate::link::{Event, LinkSet, Opened, Sealed};
use crate::packet::icmp::{self, IcmpError, Limiter};
use crate::packet::quoted::{flow_of_error, translate};
use crate::packet::rewrite::End;
use crate::packet::{self, PacketInfo};
use crate::security::{DEFAULT_FLOWS, FROM_HOST, Flows, Guard, RuleName};
use crate::stats::Stats;
use crate::tables::{BalancingRule, LinkIndex, NicIndex, Tables};
use crate::verdict::{DropReason, Verdict};
use limits::Credits;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;

/// Longest accepted datagram, in bytes. No UDP datagram is longer, because the length field of UDP has 16 bits (RFC
/// 768).
const MAX_DATAGRAM: usize = 65_536;

/// Time between two partial sweeps of the flows that security groups keep. A sweep of the whole table takes 600 of them, a
/// minute: flows that are over use their place in the table that much longer at most.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The packet decisions and links of one lane. The engine has no socket, no clock and no thread of its own, and none of
/// its methods waits. The [crate's documentation](crate#the-owners-loop) lists the calls that its owner makes. Times
/// that are passed to it must not go back.
#[derive(Debug)]
pub struct Engine<L, R = NoRedirect> {
    tables: Option<Arc<Tables>>,
    links: L,
    redirect: R,
    stats: Stats,
    limiter: Limiter,
    /// Limits the rate of TCP resets.
    resets: Limiter,
    /// Limits how often peers that have chosen a back end that is down are told its health.
    health_returns: Limiter,
    flows: FlowCache,
    /// Applies security groups to packets at NICs.
    guard: Guard,
    /// When the guard has to sweep its flows next. `None`: there are no flows.
    sweep_due: Option<Instant>,
    /// In lane 0: replies of back ends to health probes, which the owner has not taken yet. `None` in other lanes.
    probe_replies: Option<Vec<Vec<u8>>>,
    /// Marks or drops packets so that the queue of unread datagrams in the owner's sockets stays short.
    queue: Codel,
    /// Tokens for the bandwidth of NICs or tunnels.
    credits: Credits,
    /// Buffer for decrypted packets. [`handle_datagram`](Self::handle_datagram) takes it out of the engine while it
    /// needs the engine's other fields.
    scratch: Vec<u8>,
}

impl<L: LinkSet> Engine<L> {
    /// An engine of an agent with one lane. A new engine has no tables, and drops all packets until
    /// [`install`](Self::install). `seed` must be a secret random number: it is the key of the flow cache's hash, so
    /// that no sender can choose addresses whose packets evict each other's cached decisions.
    #[must_use]
    pub fn new(links: L, seed: u64) -> Self {
        Self::with_redirect(links, seed, NoRedirect)
    }
}

impl<L: LinkSet, R: RedirectSink> Engine<L, R> {
    /// An engine as from [`new`](Engine::new), for a lane of an agent with several lanes. If the lane has no usable
    /// session with a packet's next hop, the packet goes into `redirect`, and lane 0 sends it (D15). Lane 0 itself
    /// establishes all sessions that it needs, so its `redirect` is [`NoRedirect`] or the `None` of an `Option`. `seed`
    /// is as for [`new`](Engine::new).
    #[must_use]
    pub fn with_redirect(links: L, seed: u64, redirect: R) -> Self {
        Self {
            tables: None,
            links,
            redirect,
            stats: Stats::new(),
            limiter: Limiter::new(),
            resets: Limiter::new(),
            health_returns: Limiter::new(),
            flows: FlowCache::new(seed),
            guard: Guard::new(Arc::new(Flows::new(DEFAULT_FLOWS, seed)), seed),
            sweep_due: None,
            probe_replies: None,
            queue: Codel::default(),
            credits: Credits::default(),
            scratch: vec![0; MAX_DATAGRAM + 64],
        }
    }

    /// Keeps the flows that security groups have allowed in `flows`, which all lanes of an agent share (D33). Without this
    /// call the engine has a table of its own. Must be called before the first [`install`](Self::install).
    pub fn share_flows(&mut self, flows: Arc<Flows>) {
        self.guard.share(flows);
    }

    /// Lets the engine keep the replies of back ends to health probes until [`take_probe_replies`](Self::take_probe_replies)
    /// (L6). To be called in lane 0 only; the other lanes redirect these replies.
    pub fn keep_probe_replies(&mut self) {
        self.probe_replies = Some(Vec::new());
    }

    /// The replies of back ends to health probes that have come since the last call, as IP packets.
    pub fn take_probe_replies(&mut self) -> Vec<Vec<u8>> {
        self.probe_replies.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Delivers a packet of a health probe to a back end of this agent, as if the load balancer's host had sent it. The
    /// rules of the back end's NIC apply (L6). Returns whether it was delivered.
    pub fn deliver_probe(&mut self, packet: &mut [u8], now: Instant, rx: &mut impl DeliverSink) -> bool {
        let (Some(info), Some(tables)) = (packet::parse(packet), self.tables.as_deref()) else {
            return false;
        };
        let Some(nic) = tables.front_ends.nic_of_back_end(info.destination) else {
            return false;
        };
        let ingress = Ingress::Link(LinkIndex(FROM_HOST));
        let checked = self
            .guard
            .check(tables, ingress, (packet, &info), (Verdict::Deliver(nic), None), now);
        if checked.is_ok() {
            rx.deliver(nic, packet);
        }
        checked.is_ok()
    }

    /// Installs a new configuration. `tables` must be built from the configuration, and `links` must be the
    /// configuration's [`links`](tombolo_proto::config::AgentConfig::links), because a link's position in both is its
    /// index. The engine does not check this. Link indices of earlier configurations are invalid from now on.
    ///
    /// A session continues if the keys of its link stay the same. The sessions of removed links end, and the packets
    /// that wait for such a session count as dropped (`link_down`). The decisions in the flow cache are discarded.
    /// Nothing is sent: handshakes that the configuration asks for start with the next
    /// [`handle_timeout`](Self::handle_timeout), which is due at once.
    pub fn install(&mut self, tables: Arc<Tables>, links: &[Link], now: Instant) {
        self.links.update(links, now);
        self.links.configure(&tables);
        self.count_lost();
        self.guard.install(self.tables.as_ref(), &tables, now);
        self.sweep_due = tables.keeps_flows().then(|| now + SWEEP_INTERVAL);
        self.replace(tables);
    }

    /// Replaces the tables by tables that were built from the same configuration and a newer routing state (D11), and
    /// discards the decisions in the flow cache. Links and sessions are not touched. The caller must ensure that the
    /// configuration is the same, because the engine does not check this. Must not be called before the first
    /// [`install`](Self::install), because the engine has no links until then.
    pub fn refresh(&mut self, tables: Arc<Tables>, now: Instant) {
        self.guard.refresh(self.tables.as_ref(), &tables, now);
        self.replace(tables);
    }

    /// Checks a few of the flows that security groups have allowed, after [`install`](Self::install) or
    /// [`refresh`](Self::refresh): whether they have lost their route (P13), and with the setting `reevaluate` whether
    /// the rules still allow them (D34). Returns whether more flows can be checked now. The check begins when all lanes
    /// have the same tables. So the owner calls this method between batches, and again while it returns true. A call
    /// takes less than 10 µs. If there is nothing to check, it does nothing.
    pub fn recheck_flows(&mut self) -> bool {
        let tables = self.tables.as_deref();
        tables.is_some_and(|tables| self.guard.recheck(tables))
    }

    fn replace(&mut self, tables: Arc<Tables>) {
        self.flows.clear();
        // Another bucket may have the number now. The tokens are lost, so that nothing passes twice.
        self.credits = Credits::default();
        self.tables = Some(tables);
    }

    /// The installed tables; `None` before the first [`install`](Self::install).
    #[must_use]
    pub const fn tables(&self) -> Option<&Arc<Tables>> {
        self.tables.as_ref()
    }

    /// Processes one IP packet that was read from the TUN device of `nic`, without a virtio header. `packet` is
    /// modified in place, for instance its TTL, and its contents do not matter afterwards. Bytes after the length that
    /// the IP header states are ignored.
    ///
    /// The packet has exactly one outcome, which is counted. Either it is sent: it becomes a datagram in `tx` (over
    /// QUIC with the next [`flush`](Self::flush)), or several datagrams if it is too long for the path, or waits in the
    /// queue of a link for a handshake. Or it goes into the redirect sink. Or it is answered with an ICMP error for the
    /// host in `rx`. Or it is dropped. All packets are dropped before the first [`install`](Self::install).
    pub fn handle_tun(
        &mut self,
        nic: NicIndex,
        packet: &mut [u8],
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.stats.totals.tun_in += 1;
        self.context(now).run(Ingress::Tun(nic), packet, tx, rx);
    }

    /// Processes one packet that another lane redirected to this one. `ingress` is the interface on which the packet
    /// arrived at the other lane. If it is a link, its index must belong to the configuration that this lane has
    /// installed (else call [`refuse_redirected`](Self::refuse_redirected)). The rest is as for
    /// [`handle_tun`](Self::handle_tun), except that a packet from a link may also be delivered to `rx`, or be answered
    /// with an ICMP error into the link.
    ///
    /// # Panics
    /// If `ingress` is a link whose index is not below [`Tables::link_count`] of the installed tables.
    pub fn handle_redirected(
        &mut self,
        ingress: Ingress,
        packet: &mut [u8],
        now: Instant,
        tx: &mut impl TransmitSink,
        rx: &mut impl DeliverSink,
    ) {
        self.stats.redirected_in += 1;
        let mut context = self.context(now);
        // The other lane has admitted the packet already (D33).
        context.is_admitted = true;
        context.run(ingress, packet, tx, rx);
    }

    /// Sends the peer of a link the health of this agent's back ends, because another lane has asked for it
    /// ([`RedirectSink::return_health`]) (D36). Called in lane 0, with an index of the installed configuration; an index out of
    /// range has no effect. The message goes out with the next [`handle_timeout`](Self::handle_timeout), which becomes due.
    pub fn return_health(&mut self, link: LinkIndex, now: Instant) {
        self.links.return_health(link, now);
    }

    /// Counts a redirected packet as dropped (`no_link`). The owner calls this method instead of
    /// [`handle_redirected`](Self::handle_redirected) if the packet's link index belongs to another configuration, in
    /// which the same index may be another link.
    pub fn refuse_redirected(&mut self) {
        self.stats.redirected_in += 1;
        self.stats.dropped(DropReason::NoLink);
    }

    /// Processes one datagram as [`handle_datagram`](Self::handle_datagram) does. The datagram arrived from `from` at
    /// the lane's own port, at an unknown address of the host, and without ECN bits in its IP header.
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

    /// Processes one received datagram of WireGuard or QUIC. `from` is its path: the sender's endpoint, and the address
    /// and port of this host that received it. `ecn`, 0 to 3, is the ECN field of its outer IP header; all other bits
    /// of `ecn` must be 0. The ECN field of a QUIC datagram is ignored.
    ///
    /// The packets in the datagram are decided at once. They have the outcomes that [`handle_tun`](Self::handle_tun)
    /// describes, except that an ICMP error goes back into the link. Packets for this host go into `rx`. Answers to the
    /// sender, such as handshakes and cookies, go into `tx`. A datagram that does not verify, has no known sender or is
    /// longer than 65,536 bytes is counted as refused. Events may wait for [`poll_event`](Self::poll_event) afterwards.
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

    /// Records that the owner has read all datagrams from its sockets. If the owner does not make this call for 50 ms,
    /// the engine takes the queue of datagrams to be too long, and marks or drops long packets that come out of links.
    /// Several calls in a row have the effect of the last one.
    pub fn drained(&mut self, now: Instant) {
        self.queue.drained(now);
    }

    /// Counts a datagram as refused (`bad_datagram`) without processing it. The owner calls this method for a datagram
    /// that no peer can have sent: an empty one, or one whose source address cannot be replied to.
    pub fn refuse(&mut self) {
        self.stats.datagrams += 1;
        self.stats.refused(DropReason::BadDatagram);
    }

    /// Counts datagrams that the engine has written into the transmit sink and that the kernel then refused to send.
    /// Each datagram counts as one packet. The counter of packets sent into links falls by `datagrams`, but not below
    /// 0, and the counter of dropped packets (`send_refused`) grows by as much as the other falls.
    pub fn not_sent(&mut self, datagrams: u64) {
        self.stats.not_sent(datagrams);
    }

    /// Records that the kernel does not accept `local` as a source address any more, because the host has lost this
    /// address. From now on the kernel chooses the source address of each link that used `local`, until the link's peer
    /// sends a datagram to an address of this host.
    pub fn local_refused(&mut self, local: IpAddr) {
        self.links.source_unavailable(local);
    }

    /// Counts packets that the engine has passed to the deliver sink and that the TUN device then refused. The counter
    /// of delivered packets falls by `packets`, but not below 0, and the counter of dropped packets (`device_refused`)
    /// grows by as much as the other falls.
    pub fn not_delivered(&mut self, packets: u64) {
        self.stats.not_delivered(packets);
    }

    /// Ends a batch: writes the datagrams into `tx` that links have held back until now, in order to put several
    /// packets into one datagram. QUIC links send packets only with this call or with
    /// [`handle_timeout`](Self::handle_timeout). Does nothing if no datagram is held back.
    pub fn flush(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.flush(now, tx);
    }

    /// Writes into `tx`, for each agent with which there is a session, a message that says that this agent is about to
    /// stop. The message goes over the transport that the link uses; over QUIC it is written with the next
    /// [`flush`](Self::flush). Third-party devices get none. Agents that have another path move to it at once. Sessions
    /// stay open, so packets still pass afterwards. The message may be lost, so the owner may repeat the call.
    pub fn drain(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.drain(now, tx);
    }

    /// Runs all timers that are due at `now`: writes handshakes, keepalives, probes and route advertisements into `tx`,
    /// and drops the packets of handshakes that failed. If no timer is due, the call only writes the QUIC datagrams
    /// that [`flush`](Self::flush) would write. Events may wait for [`poll_event`](Self::poll_event) afterwards.
    pub fn handle_timeout(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        self.links.handle_timeout(now, tx);
        self.count_lost();
        if self.sweep_due.is_some_and(|due| due <= now) {
            self.guard.sweep(now);
            self.sweep_due = Some(now + SWEEP_INTERVAL);
        }
    }

    /// The time at which [`handle_timeout`](Self::handle_timeout) is due next. The time may have passed already. Any
    /// other call may change it. `None`: no timer runs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self.links.poll_timeout();
        links.into_iter().chain(self.sweep_due).min()
    }

    /// When the device of a NIC with a bandwidth may be read again (P32). `None`: now. The clock is read only if the NIC has
    /// a bandwidth.
    #[must_use]
    pub fn reads_again_at(&self, nic: NicIndex, now: impl FnOnce() -> Instant) -> Option<Instant> {
        let bucket = self.tables.as_ref()?.buckets.as_ref()?.of_nic(nic)?;
        bucket.available_at(now())
    }

    /// Removes and returns the oldest event of the links; `None` if there is none.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.links.poll_event()
    }

    /// The counters since the engine was created.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How often each security rule of the present configuration decided about the first packet of a flow, or about a
    /// packet that belongs to no flow; without rules that never did. Packets of known flows are not counted (N6).
    pub fn rule_hits(&self) -> impl Iterator<Item = (RuleName, u64)> + '_ {
        let nics = self.tables.as_ref().and_then(|t| t.security.as_ref());
        self.guard.hits(nics)
    }

    /// Number of TCP connections in progress that security groups have adopted since the engine was created (D34).
    #[must_use]
    pub const fn adopted_connections(&self) -> u64 {
        self.guard.adopted()
    }

    /// The links, for status and counters.
    #[must_use]
    pub const fn links(&self) -> &L {
        &self.links
    }

    /// The links, for the calls that the engine does not make itself, such as route advertisements and endpoints. The
    /// caller must not call those methods of [`LinkSet`] that the engine itself calls, such as
    /// [`update`](LinkSet::update): packets and counters would no longer agree with the tables.
    pub const fn links_mut(&mut self) -> &mut L {
        &mut self.links
    }

    /// The sink into which packets for lane 0 go, as passed to [`with_redirect`](Self::with_redirect).
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
            resets: &mut self.resets,
            health_returns: &mut self.health_returns,
            flows: &mut self.flows,
            guard: &mut self.guard,
            is_admitted: false,
            probe_replies: &mut self.probe_replies,
            queue: &mut self.queue,
            credits: &mut self.credits,
            outer: 0,
            now,
        }
    }

    fn count_lost(&mut self) {
        self.stats.lost(self.links.take_lost());
    }
}

/// The sources of health probes, which are addresses of Azure's hosts (L6).
pub const PROBE_SOURCES: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc),
);

fn is_probe_source(address: IpAddr) -> bool {
    let (v4, v6) = PROBE_SOURCES;
    address == v4 || address == v6
}

/// The state of the engine while it processes one packet.
struct PacketContext<'a, L, R> {
    tables: Option<&'a Tables>,
    links: &'a mut L,
    redirect: &'a mut R,
    stats: &'a mut Stats,
    limiter: &'a mut Limiter,
    resets: &'a mut Limiter,
    health_returns: &'a mut Limiter,
    flows: &'a mut FlowCache,
    guard: &'a mut Guard,
    /// Whether another lane has applied the security groups to the packet.
    is_admitted: bool,
    probe_replies: &'a mut Option<Vec<Vec<u8>>>,
    queue: &'a mut Codel,
    credits: &'a mut Credits,
    /// ECN bits of the outer header of the datagram that held the packet.
    outer: u8,
    now: Instant,
}

impl<L: LinkSet, R: RedirectSink> PacketContext<'_, L, R> {
    /// Decides about the packet and acts on the decision. The packet ends up in exactly one counter, from which `rx` is told
    /// what has become of it. If `rx` does not want to know, the compiler removes the comparisons.
    fn run(mut self, ingress: Ingress, packet: &mut [u8], tx: &mut impl TransmitSink, rx: &mut impl DeliverSink) {
        rx.arrived(ingress, packet);
        let (dropped, redirected) = (self.stats.totals.dropped, self.stats.redirected_out);
        self.handle(ingress, packet, tx, rx);
        rx.finished(match self.stats.last_reason() {
            Some(reason) if self.stats.totals.dropped != dropped => Outcome::Dropped(reason),
            _ if self.stats.redirected_out != redirected => Outcome::Redirected,
            _ => Outcome::Done,
        });
    }

    fn handle(&mut self, ingress: Ingress, packet: &mut [u8], tx: &mut impl TransmitSink, rx: &mut impl DeliverSink) {
        let Some(mut info) = packet::parse(packet) else {
            return self.stats.dropped(DropReason::Malformed);
        };
        let Some(tables) = self.tables else {
            // No configuration is installed yet.
            return self.stats.dropped(DropReason::NoRoute);
        };
        let packet = &mut packet[..info.len];
        if self.outer != 0 && !packet::decapsulate_ecn(packet, self.outer) {
            return self.stats.dropped(DropReason::Congestion);
        }
        if is_probe_source(info.destination)
            && matches!(ingress, Ingress::Tun(_))
            && tables.front_ends.has_own_back_end(info.source)
        {
            return self.take_probe_reply(tables, ingress, packet, &info);
        }
        if let Ingress::Tun(nic) = ingress
            && self.guard.has_local_flows()
            && tables.front_ends.has_address(info.destination)
        {
            match self.turn_to_client(tables, nic, (packet, &mut info), rx) {
                Ok(true) => return,
                Ok(false) => {}
                Err(reason) => return self.stats.dropped(reason),
            }
        }
        let balances = !tables.front_ends.is_empty();
        let lookup = Lookup {
            // Flows are told apart by their ports, which the slot's key has to have for that.
            by_ports: tables.spreads || tables.keeps_flows(),
            opens: balances && packet::opens_connection(packet, &info),
            period: if balances { self.guard.period(self.now) } else { 0 },
        };
        let about = if balances { flow_of_error(packet, &info) } else { None };
        let earlier = |rule: &BalancingRule| self.guard.earlier(tables, ingress, (packet, &info), rule, self.now);
        let (verdict, choice, slot) = match &about {
            // Errors about several flows have the same addresses, so their decisions are not cached.
            Some(about) => {
                let (verdict, choice) = decide_after(tables, ingress, &info, (Some(&earlier), Some(about)), None);
                (verdict, choice, None)
            }
            None => self.flows.decide_and_admit(ingress, &info, lookup, || {
                decide_after(tables, ingress, &info, (Some(&earlier), None), None)
            }),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is the destination port")]
        let sent_to = (info.destination, info.ports as u16);
        // N12: the rules see the back end's address and port.
        let verdict = match verdict {
            Verdict::Translate(index) if matches!(ingress, Ingress::Tun(_)) => {
                let turned = self.turn_to_back_end(tables, ingress, (packet, &mut info), (index, choice), rx);
                return turned.unwrap_or_else(|reason| self.stats.dropped(reason));
            }
            Verdict::Translate(index) => match tables.translate(index, packet) {
                Some((nic, translated)) => {
                    info = translated;
                    Verdict::Deliver(nic)
                }
                None => return self.stats.dropped(DropReason::NoBackEnd),
            },
            other => other,
        };
        let mut reply_from = None;
        if tables.keeps_flows() && !self.is_admitted {
            let admitted = self
                .guard
                .admit(tables, ingress, (packet, &info), (verdict, choice), slot, self.now);
            let resets = choice.is_some_and(|choice| tables.front_ends.resets_idle_flows(choice));
            match admitted.map(|choice| choice.map(|choice| tables.front_ends.back_end_of(choice))) {
                Err(reason @ DropReason::FlowEnded) if resets => {
                    return self.reset(reason, ingress, (packet, &info), sent_to, (tx, rx));
                }
                Err(reason) => return self.stats.dropped(reason),
                Ok(None) => {}
                // The rule is gone. The client must not get a packet from an address that it does not know.
                Ok(Some(None)) => return self.stats.dropped(DropReason::NoBalancingRule),
                Ok(Some(Some(back_end))) => reply_from = Some(back_end).filter(|back_end| !back_end.floating_ip),
            }
        }
        // CoDel (`aqm`) watches the queue of received datagrams, so only packets that came out of such datagrams are
        // marked or dropped.
        let goes_on = matches!(verdict, Verdict::Deliver(_) | Verdict::Forward { .. });
        if goes_on && matches!(ingress, Ingress::Link(_)) && self.queue.advise(packet, self.now) == Advice::Drop {
            return self.stats.dropped(DropReason::Congestion);
        }
        // A packet that another lane has redirected was counted there.
        if let Some(buckets) = &tables.buckets
            && !self.is_admitted
            && !self.has_bandwidth(buckets, tables, (ingress, verdict), packet.len())
        {
            return self.stats.dropped(DropReason::BandwidthExceeded);
        }
        match verdict {
            Verdict::Deliver(nic) => {
                packet::clamp_mss(packet, &info, tables.mtu);
                rx.deliver(nic, packet);
                self.stats.totals.tun_out += 1;
            }
            Verdict::Forward { link, .. } if !self.links.is_ready(link, self.now) => {
                if let Some(back_end) = reply_from {
                    translate(packet, &mut info, End::Source, back_end.back.0, back_end.front);
                }
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
                // D20: IPv6 senders rely on a path MTU of at least 1,280 bytes, so packets of that size are fragmented
                // inside the link if the path is narrower.
                let least = if info.source.is_ipv6() { packet::IPV6_MIN_MTU } else { 0 };
                let most = room.max(least);
                // The host's kernel itself sends no packet that exceeds the MTU of the TUN device. So a packet can be
                // too big only at a gateway, which also receives packets from other machines, and at a host whose path
                // has a smaller MTU than the device.
                let too_big = packet.len() > usize::from(most) && (decrement_ttl || most < tables.mtu);
                if too_big && packet::may_not_fragment(packet) {
                    return self.answer(IcmpError::TooBig(most), tables, ingress, packet, &info, tx, rx);
                }
                if decrement_ttl {
                    packet::decrement_ttl(packet);
                }
                // L5: the client gets the reply from the front end.
                if let Some(back_end) = reply_from {
                    translate(packet, &mut info, End::Source, back_end.back.0, back_end.front);
                }
                packet::clamp_mss(packet, &info, room);
                if tx.is_full() {
                    return self.stats.dropped(DropReason::QueueFull);
                }
                // RFC 6040: the ECN field of the packet is copied to the outer header, so that routers mark the
                // datagram only if the packet's sender supports ECN.
                let ecn = packet::ecn_bits(packet);
                match self.links.seal(link, packet, ecn, self.now, tx) {
                    Sealed::Sent => self.stats.totals.link_out += 1,
                    Sealed::Dropped(reason) => self.stats.dropped(reason),
                }
            }
            Verdict::TimeExceeded => {
                self.answer(IcmpError::TimeExceeded, tables, ingress, packet, &info, tx, rx);
            }
            Verdict::Translate(_) => self.stats.dropped(DropReason::NoBackEnd),
            // D36: the client learns at once that the connection is over.
            Verdict::Drop(reason @ DropReason::BackEndGone) => {
                self.reset(reason, ingress, (packet, &info), sent_to, (tx, rx));
            }
            Verdict::Drop(DropReason::NoBackEnd) => self.refuse_new_flow(ingress, &info, tables),
            Verdict::Drop(reason) => self.stats.dropped(reason),
        }
    }

    /// Drops a packet for which no back end is up. If a peer has sent the packet to a back end of this agent, the peer does
    /// not know yet that it is down, and is told its health, so that it chooses again (D36).
    fn refuse_new_flow(&mut self, ingress: Ingress, info: &PacketInfo, tables: &Tables) {
        self.stats.dropped(DropReason::NoBackEnd);
        let Ingress::Link(link) = ingress else { return };
        let is_for_own = tables.front_ends.nic_behind(info.destination).is_some();
        if is_for_own && self.health_returns.allow(self.now) && !self.redirect.return_health(link) {
            self.links.return_health(link, self.now);
        }
    }

    /// Keeps the reply of a back end to a health probe for the owner, or passes it to lane 0.
    fn take_probe_reply(&mut self, tables: &Tables, ingress: Ingress, packet: &[u8], info: &PacketInfo) {
        /// Largest number of replies that wait for the owner. A back end sends a few segments for each probe.
        const MAX_REPLIES: usize = 256;
        if !self.is_admitted {
            // The verdict stands for a packet that leaves the NIC.
            let leaves = Verdict::Forward {
                link: LinkIndex(FROM_HOST),
                decrement_ttl: false,
            };
            if let Err(reason) = self
                .guard
                .check(tables, ingress, (packet, info), (leaves, None), self.now)
            {
                return self.stats.dropped(reason);
            }
        }
        match self.probe_replies {
            Some(replies) if replies.len() < MAX_REPLIES => {
                replies.push(packet.to_vec());
                self.stats.totals.replied += 1;
            }
            None if self.redirect.redirect_to_lane0(ingress, packet) => self.stats.redirected_out += 1,
            Some(_) | None => self.stats.dropped(DropReason::QueueFull),
        }
    }

    /// Answers a packet with an ICMP error, or counts it as dropped.
    ///
    /// T5: of the packets that come from links, a VPN gateway answers those from its local prefixes; all others are
    /// counted as dropped. The error's source is the gateway's own address, and the error goes back through the link
    /// from which the packet came. If a packet that this host has sent is too big for the path, the error goes to the
    /// host through the TUN device. Its source is the packet's destination; any source will do, because a host accepts
    /// this error from every router on the path.
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
        let back = match ingress {
            Ingress::Link(back) => back,
            Ingress::Tun(nic) => {
                let answer = Some(info.destination)
                    .filter(|_| reason == DropReason::TooBig && icmp::may_answer(packet, info))
                    .filter(|_| self.limiter.allow(self.now))
                    .and_then(|from| icmp::error(from, packet, info, error));
                let Some(answer) = answer else {
                    return self.stats.dropped(reason);
                };
                rx.deliver(nic, &answer);
                self.stats.totals.replied += 1;
                return;
            }
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
