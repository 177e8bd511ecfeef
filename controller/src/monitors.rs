//! Connection monitors (D42): their documents in the store, the task that repeats their checks, and the last results in
//! memory.
//!
//! * `run`: one check.

mod run;

use crate::app::App;
use crate::writer::{MONITORS_PREFIX, WriteError, Writer};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tombolo_proto::exposition::{Kind, Text};
use tombolo_proto::fabric::{MonitorResult, MonitorTestView, MonitorView};
use tombolo_proto::id::ResourceId;
use tombolo_topology::monitor::{MonitorTest, tests};

/// Maximum number of monitors. With [`MAX_TESTS`](tombolo_topology::monitor::MAX_TESTS) tests each, the results need at most
/// some 60 MB.
pub(crate) const MAX_MONITORS: usize = 100;

/// Longest body of a monitor, in bytes.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// Number of results that are kept for each test: an hour at the default frequency.
const MAX_RESULTS: usize = 60;

/// Largest number of checks at the same time. Further checks wait, and are then late.
const MAX_CHECKS: usize = 64;

/// Largest number of checks from one source at the same time. So a source whose agent does not answer does not hold up the
/// others.
const MAX_CHECKS_OF_SOURCE: usize = 2;

/// Time between two looks for checks that are due. It is short in comparison with the smallest frequency, 30 s.
const TICK: Duration = Duration::from_millis(250);

/// The connection monitors of all watchers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Monitors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Mutex<BTreeMap<ResourceId, Monitor>>,
    /// Locked while a write changes first the store and then the memory, so that both get all writes in the same order.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Monitor {
    /// The stored ARM body.
    body: Value,
    tests: Vec<Repeated>,
}

/// A test that is repeated.
#[derive(Debug)]
struct Repeated {
    test: MonitorTest,
    due: Instant,
    /// Whether a check of it is in progress.
    is_busy: bool,
    results: VecDeque<MonitorResult>,
}

/// A check that is due.
struct Due {
    monitor: ResourceId,
    number: usize,
    test: MonitorTest,
}

impl Monitor {
    /// A monitor with its tests due now; without tests if it is stopped, or if this version cannot read its body.
    fn new(body: Value) -> Self {
        let is_running = body["properties"]["monitoringStatus"] != "Stopped";
        let found = tests(&body["properties"]).unwrap_or_default();
        let due = Instant::now();
        let repeated = found.into_iter().filter(|_| is_running).map(|test| Repeated {
            test,
            due,
            is_busy: false,
            results: VecDeque::new(),
        });
        let tests = repeated.collect();
        Self { body, tests }
    }

    /// Keeps the results of tests that the earlier version of the monitor had too.
    fn keep_results(&mut self, mut earlier: Self) {
        for new in &mut self.tests {
            if let Some(old) = earlier.tests.iter_mut().find(|old| old.test == new.test) {
                new.results = std::mem::take(&mut old.results);
            }
        }
    }
}

impl Monitors {
    /// Reads the monitors from the controller's own documents (see [`crate::writer::OWN_PREFIX`]), and starts the task that
    /// repeats their checks. The task ends with the runtime.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub(crate) fn start(app: &Arc<App>) -> Self {
        let own = app.own_documents.iter().filter_map(|(key, document)| {
            key.strip_prefix(MONITORS_PREFIX)?;
            let body: Value = serde_json::from_slice(document).ok()?;
            let id = ResourceId::new(body["id"].as_str()?);
            Some((id, Monitor::new(body)))
        });
        let monitors = Self(Arc::new(Shared {
            all: Mutex::new(own.collect()),
            writing: tokio::sync::Mutex::default(),
        }));
        tokio::spawn(monitors.clone().repeat(app.clone()));
        monitors
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ResourceId, Monitor>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stored body of a monitor. `None`: it does not exist.
    pub(crate) fn get(&self, id: &ResourceId) -> Option<Value> {
        self.all().get(id).map(|monitor| monitor.body.clone())
    }

    /// The stored bodies of the monitors below a watcher, ordered by id.
    pub(crate) fn below(&self, watcher: &str) -> Vec<Value> {
        let prefix = format!("{}/", watcher.to_ascii_lowercase());
        let all = self.all();
        let own = all.iter().filter(|(id, _)| id.key().starts_with(&prefix));
        own.map(|(_, monitor)| monitor.body.clone()).collect()
    }

    /// Changes, makes or deletes a monitor. `change` gets the stored body and the number of monitors, and returns the new body;
    /// `None`: no body. No other change is made meanwhile. Returns the new body when it is durable. Tests that are new are
    /// due at once. Runs in a separate task, so that both store and memory are written even if the caller is cancelled between
    /// the two.
    ///
    /// # Errors
    /// The error of `change`, or the store failed.
    pub(crate) async fn change<E: From<WriteError> + Send + 'static>(
        &self,
        writer: &Writer,
        id: ResourceId,
        change: impl FnOnce(Option<Value>, usize) -> Result<Option<Value>, E> + Send + 'static,
    ) -> Result<Option<Value>, E> {
        let (own, writer) = (self.clone(), writer.clone());
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            let (present, count) = {
                let all = own.all();
                (all.get(&id).map(|monitor| monitor.body.clone()), all.len())
            };
            let is_absent = present.is_none();
            let body = change(present, count)?;
            if is_absent && body.is_none() {
                return Ok(None);
            }
            let document = body.as_ref().map(|body| body.to_string().into_bytes());
            writer
                .set_document(format!("{MONITORS_PREFIX}{}", id.key()), document)
                .await?;
            let mut all = own.all();
            let earlier = all.remove(&id);
            if let Some(body) = &body {
                let mut monitor = Monitor::new(body.clone());
                if let Some(earlier) = earlier {
                    monitor.keep_results(earlier);
                }
                all.insert(id, monitor);
            }
            Ok(body)
        });
        task.await
            .unwrap_or_else(|e| Err(WriteError::Store(e.to_string()).into()))
    }

    /// Deletes the monitors whose ids begin with `prefix`.
    ///
    /// # Errors
    /// The store failed. Some may have been deleted.
    pub(crate) async fn delete_below(&self, writer: &Writer, prefix: &str) -> Result<(), WriteError> {
        let prefix = format!("{}/", prefix.to_ascii_lowercase());
        let ids: Vec<ResourceId> = {
            let all = self.all();
            let found = all.keys().filter(|id| id.key().starts_with(&prefix));
            found.cloned().collect()
        };
        for id in ids {
            self.change(writer, id, |_, _| Ok::<_, WriteError>(None)).await?;
        }
        Ok(())
    }

    /// The monitors with the results of their tests, ordered by id.
    pub(crate) fn views(&self) -> Vec<MonitorView> {
        let all = self.all();
        let view = |(id, monitor): (&ResourceId, &Monitor)| MonitorView {
            id: id.clone(),
            running: monitor.body["properties"]["monitoringStatus"] != "Stopped",
            tests: monitor.tests.iter().map(Repeated::view).collect(),
        };
        all.iter().map(view).collect()
    }

    /// The last result of each test in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let all = self.all();
        let last = || {
            all.iter().flat_map(|(id, monitor)| {
                let tests = monitor.tests.iter();
                tests.filter_map(move |test| Some((labels(id, &test.test), test.results.back()?)))
            })
        };
        let mut out = Text::default();
        let help =
            "Share of failed probes of the last check of a connection monitor, in percent (ChecksFailedPercent).";
        let mut samples = out.metric("tombolo_monitor_checks_failed_percent", Kind::Gauge, help);
        for (labels, result) in last() {
            if let Some(percent) = result.checks_failed_percent {
                samples.add(&labels, percent);
            }
        }
        let help = "Mean round-trip time of the last check of a connection monitor, in ms (RoundTripTimeMs).";
        let mut samples = out.metric("tombolo_monitor_round_trip_time_ms", Kind::Gauge, help);
        for (labels, result) in last() {
            if let Some(time) = result.round_trip_time_ms {
                samples.add(&labels, time);
            }
        }
        out.finish()
    }

    /// Makes the checks that are due, for ever.
    async fn repeat(self, app: Arc<App>) {
        let room = Arc::new(Semaphore::new(MAX_CHECKS));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for due in self.take_due(Instant::now(), room.available_permits()) {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    self.record(&due, None);
                    continue;
                };
                let (own, app) = (self.clone(), app.clone());
                tokio::spawn(async move {
                    let result = run::check(&app, &due.test).await;
                    own.record(&due, Some(result));
                    drop(permit);
                });
            }
        }
    }

    /// The tests that are due, those that have waited longest first, at most `room`, and at most [`MAX_CHECKS_OF_SOURCE`] of
    /// each source. They are busy until their result is recorded.
    fn take_due(&self, now: Instant, room: usize) -> Vec<Due> {
        let mut all = self.all();
        let mut running: BTreeMap<String, usize> = BTreeMap::new();
        for repeated in all.values().flat_map(|monitor| &monitor.tests).filter(|r| r.is_busy) {
            *running.entry(repeated.test.from.to_ascii_lowercase()).or_default() += 1;
        }
        let mut due: Vec<_> = all
            .iter_mut()
            .flat_map(|(id, monitor)| monitor.tests.iter_mut().enumerate().map(move |(n, test)| (id, n, test)))
            .filter(|(_, _, repeated)| !repeated.is_busy && repeated.due <= now)
            .collect();
        due.sort_by_key(|(_, _, repeated)| repeated.due);
        due.retain(|(_, _, repeated)| {
            let of_source = running.entry(repeated.test.from.to_ascii_lowercase()).or_default();
            *of_source += 1;
            *of_source <= MAX_CHECKS_OF_SOURCE
        });
        let take = |(id, number, repeated): (&ResourceId, usize, &mut Repeated)| {
            repeated.is_busy = true;
            repeated.due = now + repeated.test.every;
            Due {
                monitor: id.clone(),
                number,
                test: repeated.test.clone(),
            }
        };
        due.into_iter().take(room).map(take).collect()
    }

    /// Records the result of a check. Ignored if the monitor has changed meanwhile and does not have the test any more.
    fn record(&self, due: &Due, result: Option<MonitorResult>) {
        let mut all = self.all();
        let tests = all.get_mut(&due.monitor).map(|monitor| &mut monitor.tests);
        let repeated = tests.and_then(|tests| tests.get_mut(due.number));
        let Some(repeated) = repeated.filter(|repeated| repeated.test == due.test) else {
            return;
        };
        repeated.is_busy = false;
        if let Some(result) = result {
            if repeated.results.len() == MAX_RESULTS {
                repeated.results.pop_front();
            }
            // Only the last result has a reason, so that the memory stays within its bound.
            if let Some(last) = repeated.results.back_mut() {
                last.reason = None;
            }
            repeated.results.push_back(result);
        }
    }
}

/// The labels of the metrics of a test. The id of the monitor is one of them, because watchers of several regions can have
/// monitors with the same name.
fn labels<'a>(monitor: &'a ResourceId, test: &'a MonitorTest) -> [(&'static str, &'a str); 5] {
    [
        ("monitor", monitor.as_str()),
        ("test_group", test.group.as_str()),
        ("test_configuration", test.configuration.as_str()),
        ("source", test.source.as_str()),
        ("destination", test.destination.as_str()),
    ]
}

impl Repeated {
    fn view(&self) -> MonitorTestView {
        MonitorTestView {
            group: self.test.group.clone(),
            configuration: self.test.configuration.clone(),
            source: self.test.source.clone(),
            destination: self.test.destination.clone(),
            history: self.results.iter().cloned().collect(),
        }
    }
}
