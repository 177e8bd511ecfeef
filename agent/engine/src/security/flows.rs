//! The flow table of an agent, its clock, and the parts of it that each lane checks after a change.

use super::flow_log::{FlowEvent, FlowEventKind, FlowLog, LogNumbers, name_in};
use super::flow_memory::FlowMemory;
use super::flow_table::{BootTime, FlowTable, Unusable};
use super::local_flows;
use super::secured_nics::SecuredNics;
use crate::tables::Tables;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tombolo_proto::config::MAX_FLOWS_OF_NIC;

/// Capacity of the flow table of an agent that sets no other one, in flows. Such a table takes 90 MB, which the kernel
/// allocates page by page as flows come.
pub const DEFAULT_FLOWS: usize = 1_000_000;

/// The time that a table's clock shows when the table is made, in seconds: one year. So flows that the previous process
/// saved can be older than the table.
const FIRST_SECOND: u32 = 365 * 24 * 60 * 60;

/// Number of flows for each lane of a gateway of which it remembers the choices. Their memory takes 1.5 MiB, which the
/// kernel allocates page by page as flows come.
const CHOICES_OF_LANE: usize = 65_536;

/// A change of a load balancer's pool or health within this time after the first tables does not count as one (D35). The
/// agent takes all back ends for up when it starts, and learns their health meanwhile.
const LEARNS_HEALTH: Duration = Duration::from_secs(30);

/// The flow table that all lanes of an agent share. It is made when a group is attached to a NIC of the agent for the
/// first time, or when saved flows are loaded.
#[derive(Debug)]
pub struct Flows {
    /// The table, and the time when it was made.
    table: OnceLock<(FlowTable, Instant)>,
    /// The choices for flows that pass none of the agent's NICs, made with the first front ends of a gateway.
    choices: OnceLock<FlowMemory<1>>,
    /// The flows whose client and back end are behind this agent, made with the first one.
    local: OnceLock<FlowMemory<{ local_flows::WORDS }>>,
    /// When the first lookup tables with front ends were installed.
    balances_since: OnceLock<Instant>,
    capacity: usize,
    /// Largest number of flows of each NIC (X16), also of a table that is made later.
    flows_of_nic: AtomicU32,
    seed: u64,
    /// Number of lanes that share the table.
    lanes: AtomicUsize,
    /// The address of the lookup tables that each lane has installed; 0: none.
    tables_of: Mutex<Vec<usize>>,
    /// Whether saved flows were loaded.
    loaded: AtomicBool,
    log: Arc<FlowLog>,
}

impl Flows {
    /// Room for `capacity` flows. A number outside of [`CAPACITY`](super::CAPACITY) becomes the nearest number inside.
    /// `seed` must be secret and random, so that no sender can choose flows that displace each other.
    #[must_use]
    pub fn new(capacity: usize, seed: u64) -> Self {
        Self {
            table: OnceLock::new(),
            choices: OnceLock::new(),
            local: OnceLock::new(),
            balances_since: OnceLock::new(),
            capacity,
            flows_of_nic: AtomicU32::new(MAX_FLOWS_OF_NIC),
            seed,
            lanes: AtomicUsize::new(0),
            tables_of: Mutex::new(Vec::new()),
            loaded: AtomicBool::new(false),
            log: Arc::default(),
        }
    }

    /// The table. `None`: no group has been attached to a NIC since the agent started, and no flows were loaded.
    #[must_use]
    pub fn table(&self) -> Option<&FlowTable> {
        self.table.get().map(|(table, _)| table)
    }

    /// The flows as bytes, for [`load`](Self::load) of the agent's next process (D34). `at` is the present time of the
    /// host, and `now` the same time by the clock of the engine. `None`: there is no table, or it has no flow.
    #[must_use]
    pub fn save(&self, at: &BootTime, now: Instant) -> Option<Vec<u8>> {
        let (table, seconds) = self.present(now)?;
        (!table.is_empty()).then(|| table.save(at, seconds))
    }

    /// Adds the flows that [`save`](Self::save) has written, and returns their number (D34). To be called before the
    /// first configuration is installed. Lanes then adopt no TCP connections at that configuration, because those from
    /// before the start are known. Flows that have ended meanwhile are left out.
    ///
    /// # Errors
    /// The bytes cannot be used, for instance because they are malformed or too old. Then no flow is added.
    pub fn load(&self, bytes: &[u8], at: &BootTime, now: Instant) -> Result<usize, Unusable> {
        let (table, seconds) = self.made(now);
        let count = table.load(bytes, at, seconds)?;
        self.loaded.store(true, Ordering::Relaxed);
        Ok(count)
    }

    /// The largest number of bytes that [`load`](Self::load) may accept.
    #[must_use]
    pub fn longest_saved(&self) -> usize {
        FlowTable::longest_saved(self.capacity)
    }

    /// Whether [`load`](Self::load) has added flows.
    pub(super) fn are_loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// The events of flows at NICs with a flow log (N14).
    #[must_use]
    pub const fn log(&self) -> &Arc<FlowLog> {
        &self.log
    }

    /// Gives the rules of lookup tables the numbers under which flow logs name them, and frees names that nobody uses. To be
    /// called by the thread that has built the tables: otherwise the first lane that installs them does it between packets.
    pub fn name_rules(&self, tables: &Tables, now: Instant) {
        if let Some(nics) = tables.security.as_ref().filter(|nics| nics.has_logs()) {
            self.log_numbers(nics, now);
        }
    }

    /// The numbers of the rules of a configuration with a flow log.
    pub(super) fn log_numbers(&self, nics: &SecuredNics, now: Instant) -> Arc<LogNumbers> {
        let new = || {
            // The log begins. Counters and numbers of an earlier log say nothing about this one.
            if let (false, Some((table, _))) = (self.log.is_written(), self.table.get()) {
                table.forget_counters();
            }
            let of_flows = || self.table().map(FlowTable::tags).unwrap_or_default();
            let of_flows = || of_flows().into_iter().map(name_in).collect();
            self.log.number_all(nics, of_flows, now)
        };
        let known = nics.log_numbers(new);
        // Tables may be installed in agents that share nothing else, as in simulations.
        if known.is_of(&self.log) { known.clone() } else { new() }
    }

    /// Passes the present state of all counted flows to `each`, as events of flows that go on. To be called when the lanes
    /// have ended, so that their last packets are logged.
    pub fn log_all(&self, now: Instant, mut each: impl FnMut(FlowEvent)) {
        let Some((table, seconds)) = self.present(now) else {
            return;
        };
        table.record_all(seconds, &mut |report| {
            each(FlowEvent::of(FlowEventKind::Continue, report, now))
        });
    }

    /// The end of the second that the table's clock showed as `seconds`, but not after `now`: the last packet of a flow comes no
    /// later. A time before the table was made becomes the first second after it was made. Without a table the result is `now`.
    pub(super) fn instant(&self, seconds: u32, now: Instant) -> Instant {
        let after = Duration::from_secs(u64::from(seconds.saturating_sub(FIRST_SECOND)) + 1);
        self.table.get().map_or(now, |(_, began)| (*began + after).min(now))
    }

    /// The table and the time `now` by its clock, in seconds. `None`: there is no table.
    pub(super) fn present(&self, now: Instant) -> Option<(&FlowTable, u32)> {
        let (table, began) = self.table.get()?;
        Some((table, second(*began, now)))
    }

    /// As [`present`](Self::present), but makes the table if there is none.
    pub(super) fn made(&self, now: Instant) -> (&FlowTable, u32) {
        // Number of links for which flows without a reply are counted and limited (D32). Links with this number or a
        // higher one have no limit of their own.
        const COUNTED_LINKS: usize = 4096;
        let make = || {
            let table = FlowTable::new(self.capacity, COUNTED_LINKS, self.seed);
            table.limit_flows_of_nics(self.flows_of_nic.load(Ordering::Relaxed));
            (table, now)
        };
        let (table, began) = self.table.get_or_init(make);
        (table, second(*began, now))
    }

    /// Limits the number of flows of each NIC (X16).
    pub(super) fn limit_flows_of_nics(&self, most: u32) {
        self.flows_of_nic.store(most, Ordering::Relaxed);
        if let Some(table) = self.table() {
            table.limit_flows_of_nics(most);
        }
    }

    /// Adds a lane, and returns its number, from 0. All lanes must be added before the first of them asks for its
    /// [`part`](Self::part).
    pub(super) fn add_lane(&self) -> usize {
        let mut tables_of = self.tables_of.lock().unwrap_or_else(PoisonError::into_inner);
        tables_of.push(0);
        self.lanes.store(tables_of.len(), Ordering::Relaxed);
        tables_of.len() - 1
    }

    /// Number of choices of load balancers that a gateway has forgotten while their flows were in use, because its table
    /// was full (D35). It counts from the start of the agent. A change of the back-end pool may move such a flow.
    #[must_use]
    pub fn replaced_choices(&self) -> u64 {
        self.choices.get().map_or(0, FlowMemory::replaced)
    }

    /// The choices for flows that pass none of the agent's NICs. `None`: the agent is no gateway, or there was no front end
    /// since it started.
    pub(super) fn choices(&self) -> Option<&FlowMemory<1>> {
        self.choices.get()
    }

    /// The flows whose client and back end are behind this agent. `None`: there was none since the agent started.
    pub(super) fn known_local_flows(&self) -> Option<&FlowMemory<{ local_flows::WORDS }>> {
        self.local.get()
    }

    /// As [`known_local_flows`](Self::known_local_flows), but makes the memory if there is none.
    pub(super) fn local_flows(&self, now: Instant) -> &FlowMemory<{ local_flows::WORDS }> {
        let make = || FlowMemory::new(local_flows::FLOWS_OF_LANE * self.lane_count(), self.seed, now);
        self.local.get_or_init(make)
    }

    fn lane_count(&self) -> usize {
        self.lanes.load(Ordering::Relaxed).max(1)
    }

    /// Prepares for the front ends of lookup tables that a lane installs at `now`.
    pub(super) fn balance(&self, tables: &Tables, now: Instant) {
        if tables.front_ends.is_empty() {
            return;
        }
        let since = *self.balances_since.get_or_init(|| now);
        let counts = now.saturating_duration_since(since) >= LEARNS_HEALTH;
        tables.front_ends.begin(now, counts);
        if tables.chooses_for_others() {
            let make = || FlowMemory::new(CHOICES_OF_LANE * self.lane_count(), self.seed, now);
            self.choices.get_or_init(make);
        }
    }

    /// Whether lookup tables with front ends were first installed more than `time` before `now`.
    pub(super) fn have_balanced_for(&self, time: Duration, now: Instant) -> bool {
        let since = self.balances_since.get();
        since.is_some_and(|since| now.saturating_duration_since(*since) > time)
    }

    /// Records the lookup tables that a lane has installed.
    pub(super) fn set_tables(&self, lane: usize, tables: &Tables) {
        let mut tables_of = self.tables_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_lane) = tables_of.get_mut(lane) {
            *of_lane = std::ptr::from_ref(tables).addr();
        }
    }

    /// Whether all lanes have installed the same lookup tables.
    pub(super) fn lanes_agree(&self) -> bool {
        let tables_of = self.tables_of.lock().unwrap_or_else(PoisonError::into_inner);
        tables_of.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// The entries of the table that the lane with this number checks after a change. Each entry is in the part of
    /// exactly one lane.
    pub(super) fn part(&self, lane: usize) -> Range<usize> {
        let entries = self.table().map_or(0, FlowTable::entries);
        let each = entries.div_ceil(self.lane_count());
        (lane * each).min(entries)..((lane + 1) * each).min(entries)
    }
}

/// The time `now` by the clock of a table that was made at `began`, in seconds.
#[expect(clippy::cast_possible_truncation, reason = "135 years")]
fn second(began: Instant, now: Instant) -> u32 {
    FIRST_SECOND.saturating_add(now.saturating_duration_since(began).as_secs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the clock is the test's")]
    fn each_entry_is_in_the_part_of_one_lane() {
        for lanes in 1..=7 {
            let flows = Flows::new(1024, 1);
            let numbers: Vec<usize> = (0..lanes).map(|_| flows.add_lane()).collect();
            assert!(numbers.iter().all(|lane| flows.part(*lane).is_empty()), "no table yet");
            flows.made(Instant::now());
            let all: Vec<usize> = numbers.iter().flat_map(|lane| flows.part(*lane)).collect();
            let entries = flows.table().map_or(0, FlowTable::entries);
            assert_eq!(all, (0..entries).collect::<Vec<_>>(), "{lanes} lanes");
        }
    }
}
