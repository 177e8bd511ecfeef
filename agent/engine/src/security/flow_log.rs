//! The events of flows at NICs with a flow log, for the owner of the engines, who writes the log (N14, D38).
//!
//! ```text
//! lane: Guard ─▶ LaneLog ──queue of events──▶ FlowLog::drain ─▶ the owner's writer
//! ```
//! Each lane has a queue of its own, so lanes do not wait for each other. If the queue is full, events are lost and
//! counted: packets never wait for the log.

mod names;

pub(super) use names::LogNumbers;

use super::flow_table::{Count, Counted, CountedFlow, FlowKey, FlowReport, FlowTable};
use super::nic_rules::RuleRef;
use super::secured_nics::SecuredNics;
use foldhash::fast::FixedState;
use names::Names;
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tombolo_proto::id::ResourceId;

/// Number of events that wait for the owner in one lane. At 10,000 new flows a second there are about 20,000 events a
/// second, and the agent takes them four times a second.
const QUEUE: usize = 16_384;

/// Bit of a flow's number in the table: the flow stays on this host.
const LOCAL: u32 = 1 << 31;

/// What happened to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEventKind {
    /// The flow began.
    Begin,
    /// The flow goes on.
    Continue,
    /// The flow has ended.
    End,
    /// A rule has denied a packet.
    Denied,
}

/// An event of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEvent {
    /// What happened.
    pub kind: FlowEventKind,
    /// When it happened. For [`FlowEventKind::End`]: the end of the second of the flow's last packet, if that is over.
    pub at: Instant,
    /// The key of the packet that began the flow, or of the denied packet if it belongs to no known flow.
    pub key: FlowKey,
    /// The number of the deciding rule at its NIC, for [`FlowLog::rule`].
    pub rule: u32,
    /// Whether the flow stays on this host. All other flows are encrypted on their way.
    pub is_local: bool,
    /// The packets since the last event of the flow in the direction of the packet that began it. 0 for the first event.
    pub forward: Counted,
    /// The packets since the last event of the flow in the other direction.
    pub backward: Counted,
}

impl FlowEvent {
    /// An event about a flow in this state.
    pub(super) const fn of(kind: FlowEventKind, report: &FlowReport, at: Instant) -> Self {
        Self {
            forward: report.forward,
            backward: report.backward,
            ..event(kind, at, report.key, report.tag)
        }
    }
}

/// The rule that decided about a flow, and the NIC at which it did.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoggedRule {
    /// The NIC, or the subnet of machines without an agent.
    pub nic: ResourceId,
    /// The group and the rule, as `securityRules/NAME` or `defaultSecurityRules/NAME`. `None`: no group applies.
    pub rule: Option<(ResourceId, String)>,
}

/// The part of the flow log that all lanes of an agent and its writer share.
#[derive(Debug, Default)]
pub struct FlowLog {
    names: Mutex<Names>,
    queues: Mutex<Vec<Receiver<FlowEvent>>>,
    lost: AtomicU64,
    /// The number of the present batch.
    batch: AtomicU32,
    /// Number of lanes that have a NIC with a log.
    lanes: AtomicUsize,
}

impl FlowLog {
    /// Passes all events that wait to `each`: those of one lane after those of another, and those of a lane in their order.
    /// Returns their number.
    pub fn drain(&self, mut each: impl FnMut(FlowEvent)) -> usize {
        let mut count = 0;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| {
            // A lane that is faster than `each` must not keep the others waiting.
            for _ in 0..QUEUE {
                match queue.try_recv() {
                    Ok(event) => {
                        count += 1;
                        each(event);
                    }
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
            true
        });
        count
    }

    /// The rule with this number. `None`: no event has this number.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<Arc<LoggedRule>> {
        self.names().rule(number).cloned()
    }

    /// Number of events that were lost because a queue was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Begins a batch. In each batch a lane reports the first denied packet of a flow only; it may report others too.
    pub fn begin_batch(&self) {
        self.batch.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of a rule, for [`rule`](Self::rule). 0: there are too many rules.
    pub fn number(&self, rule: LoggedRule) -> u32 {
        self.names().number(rule)
    }

    /// The numbers of all rules and NICs of a configuration with a log. `of_flows` returns the numbers that flows have.
    pub(super) fn number_all(
        self: &Arc<Self>,
        nics: &SecuredNics,
        of_flows: impl FnOnce() -> BTreeSet<u32>,
        now: Instant,
    ) -> Arc<LogNumbers> {
        self.names().number_all(Arc::downgrade(self), nics, of_flows, now)
    }

    /// Whether a lane has a NIC with a log.
    pub(super) fn is_written(&self) -> bool {
        self.lanes.load(Ordering::Relaxed) > 0
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_lane(&self) -> SyncSender<FlowEvent> {
        let (sender, receiver) = sync_channel(QUEUE);
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(receiver);
        sender
    }
}

/// The part of the flow log that one lane has.
#[derive(Debug)]
pub(super) struct LaneLog {
    shared: Arc<FlowLog>,
    queue: SyncSender<FlowEvent>,
    /// The numbers of the installed configuration.
    numbers: Option<Arc<LogNumbers>>,
    /// Hashes of denied flows and their batch, at a place that the hash selects.
    denied: Box<[u64]>,
    hash: FixedState,
}

/// A packet at a NIC with a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedAt<'n> {
    /// The NICs of the installed configuration.
    pub(super) nics: &'n SecuredNics,
    /// The number of the NIC.
    pub(super) nic: u8,
    /// Whether the packet stays on this host.
    pub(super) is_local: bool,
}

impl LaneLog {
    /// Number of denied flows that are remembered, a power of two. Flows that displace each other are reported again, and
    /// the writer joins their records.
    const DENIED: usize = 4096;

    pub(super) fn new(shared: Arc<FlowLog>, seed: u64) -> Self {
        shared.lanes.fetch_add(1, Ordering::Relaxed);
        Self {
            queue: shared.add_lane(),
            shared,
            numbers: None,
            denied: vec![0; Self::DENIED].into_boxed_slice(),
            hash: FixedState::with_seed(seed),
        }
    }

    /// Takes the numbers of a new configuration.
    pub(super) fn install(&mut self, numbers: Arc<LogNumbers>) {
        self.numbers = Some(numbers);
    }

    /// Whether the NIC with this number has a log.
    pub(super) fn covers(&self, nic: u8) -> bool {
        let number = self
            .numbers
            .as_ref()
            .and_then(|numbers| numbers.of_nic.get(usize::from(nic)));
        number.is_some_and(|number| *number != 0)
    }

    /// The number under which the table counts the packets of a flow that `rule` allows.
    pub(super) fn number(&self, at: &LoggedAt<'_>, rule: Option<RuleRef>) -> u32 {
        let Some(numbers) = &self.numbers else { return 0 };
        let of_rule = rule.and_then(|rule| at.nics.rule_number(at.nic, rule));
        let of_rule = of_rule
            .and_then(|n| numbers.of_rule.get(n))
            .copied()
            .filter(|n| *n != 0);
        let number = of_rule.or_else(|| numbers.of_nic.get(usize::from(at.nic)).copied());
        let local = if at.is_local { LOCAL } else { 0 };
        number.filter(|n| *n != 0).map_or(0, |number| number | local)
    }

    /// Reports that a flow began.
    pub(super) fn began(&mut self, table: &FlowTable, flow: &CountedFlow, now: Instant) {
        if let (Some(key), Some(number)) = (table.key(flow), table.tag_of(flow)) {
            self.send(event(FlowEventKind::Begin, now, key, number));
        }
    }

    /// Reports a denied packet, unless the lane remembers that it has reported another one of the same flow in this batch.
    pub(super) fn denied(&mut self, at: &LoggedAt<'_>, key: &FlowKey, rule: RuleRef, now: Instant) {
        let number = self.number(at, Some(rule));
        let batch = self.shared.batch.load(Ordering::Relaxed);
        let hash = self.hash.hash_one((key, number, batch));
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        let place = hash as usize & (Self::DENIED - 1);
        if self.denied[place] != hash && self.send(event(FlowEventKind::Denied, now, *key, number)) {
            self.denied[place] = hash;
        }
    }

    /// Counts a packet of a flow. Returns false if the table does not have the flow any more. `seconds` is the present time
    /// in seconds since the table was made.
    #[inline]
    pub(super) fn count(&mut self, table: &FlowTable, flow: &CountedFlow, bytes: usize, at: (u32, Instant)) -> bool {
        match table.count(flow, bytes) {
            Count::Done => true,
            Count::Full => {
                let (seconds, now) = at;
                table.record_now(flow, seconds, &mut |report| self.report(report, now));
                true
            }
            Count::Gone => false,
        }
    }

    /// Reports the state of a flow. `at` is the time of the event.
    pub(super) fn report(&mut self, report: &FlowReport, at: Instant) {
        let kind = match report.is_over {
            true => FlowEventKind::End,
            false => FlowEventKind::Continue,
        };
        self.send(FlowEvent::of(kind, report, at));
    }

    /// Returns whether the queue has taken the event.
    fn send(&mut self, event: FlowEvent) -> bool {
        let sent = self.queue.try_send(event).is_ok();
        if !sent {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }
}

impl Drop for LaneLog {
    fn drop(&mut self) {
        self.shared.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The number of a NIC or rule in the number with which the table counts a flow.
pub(super) const fn name_in(number: u32) -> u32 {
    number & !LOCAL
}

/// An event without counters. `number` is the flow's number in the table.
const fn event(kind: FlowEventKind, at: Instant, key: FlowKey, number: u32) -> FlowEvent {
    let none = Counted { packets: 0, bytes: 0 };
    FlowEvent {
        kind,
        at,
        key,
        rule: name_in(number),
        is_local: number & LOCAL != 0,
        forward: none,
        backward: none,
    }
}

#[cfg(test)]
mod tests;
