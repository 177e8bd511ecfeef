//! What the traffic of each resource adds up to, by hour and by day (Meter-6, D39).
//!
//! Agents report totals that only grow, so what a report adds is counted once, whatever is lost between two reports.
//!
//! * `ledger`: the database.
//! * `history`: the last minutes, with the state of gateways and load balancers.
//! * `gauges`: that state as figures.

mod gauges;
pub(crate) mod history;
mod ledger;

use crate::agents::Agents;
use crate::compiled::Compiled;
use crate::times;
use history::History;
pub(crate) use ledger::HOURS_KEPT;
pub use ledger::{Ledger, Row, Sums};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tombolo_topology::metering::Payers;

/// The name of the database in the data directory.
pub(crate) const FILE: &str = "usage.db";

/// Time between two writes. What the controller has not written when it is killed is in the next reports of the agents.
const INTERVAL: Duration = Duration::from_secs(10);

/// The ledger and the history. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Usage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    history: Mutex<History>,
}

impl Usage {
    /// Opens the database of a data directory, or creates it. Blocks.
    ///
    /// # Errors
    /// The file is no such database, or cannot be read or written.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Shared {
            ledger: Mutex::new(Ledger::open(&data_dir.join(FILE))?),
            history: Mutex::new(History::new(times::now())),
        })))
    }

    /// Records what the agents have reported since the last call. Blocks. A failure is logged; what was not recorded is
    /// recorded by a later call.
    pub fn record(&self, agents: &Agents, compiled: &Compiled) {
        let now = times::now();
        let payers = Payers::of(&compiled.topology);
        let recorded = self.read(|ledger| ledger.record(&agents.meters(), &payers, now));
        let added = recorded.unwrap_or_else(|error| {
            tracing::warn!(%error, "usage not recorded; will retry");
            BTreeMap::new()
        });
        let gauges = gauges::all(&compiled.topology, &agents.statuses());
        let mut history = self.history();
        for (payer, amounts) in &added {
            history.add(&payer.resource, *amounts, now);
        }
        for (resource, gauge, value) in gauges {
            history.set(resource, gauge, value, now);
        }
        history.trim(now);
    }

    /// Uses the ledger.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        work(&mut self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The history, locked.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records every 10 s, until its task is cancelled.
pub(crate) async fn run(usage: Usage, agents: Arc<Agents>, compiled: watch::Receiver<Compiled>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (usage, agents, compiled) = (usage.clone(), agents.clone(), compiled.borrow().clone());
        let recorded = tokio::task::spawn_blocking(move || usage.record(&agents, &compiled)).await;
        if let Err(error) = recorded {
            tracing::error!(%error, "usage not recorded");
        }
    }
}
