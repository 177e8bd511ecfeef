//! Builds tables beside the data path, when agents or neighbours have something new to say.
//!
//! ```text
//! first lane ──request──▶ builder ──tables──▶ all lanes
//!      ▲                     │
//!      └────────ready────────┘   a pause later, if many were built lately
//! ```
//! The first lane has at most one request under way. What changes meanwhile goes into the next one, so that a flood of changes costs
//! the lanes nothing and the builder a bounded share of its time.

use super::{Lane, Order};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::WeakUnboundedSender;
use tombolo_engine::routing;
use tombolo_engine::tables::{BuildError, LinkIndex, RoutingState, Tables};
use tombolo_proto::config::AgentConfig;

/// Tables that are built without a pause: the changes of one failover come within moments.
const BURST: u32 = 4;

/// Further ones are built so often.
const INTERVAL: Duration = Duration::from_millis(100);

/// What tables are to be built from.
pub struct Request {
    /// The configuration's number: tables mean something together with its links only.
    pub generation: u64,
    /// The configuration in force.
    pub config: Arc<AgentConfig>,
    /// What was learned since.
    pub dynamic: RoutingState,
}

/// Tables, and what follows from the same knowledge.
#[derive(Clone)]
pub struct Built {
    /// See [`Request`].
    pub generation: u64,
    /// What packets are looked up in.
    pub tables: Arc<Tables>,
    /// The routes that each link's other end is to hear.
    pub advertisements: Vec<(LinkIndex, Arc<[u8]>)>,
    /// What they were built from.
    pub dynamic: RoutingState,
}

impl Built {
    /// Builds them.
    ///
    /// # Errors
    /// No tables can be built from the configuration.
    pub fn of(request: Request) -> Result<Self, BuildError> {
        let Request {
            generation,
            config,
            dynamic,
        } = request;
        Ok(Self {
            generation,
            tables: Arc::new(Tables::build(&config, &dynamic)?),
            advertisements: routing::route_advertisements(&config, &dynamic),
            dynamic,
        })
    }
}

/// The first lane's side.
pub struct Requests<R = Request> {
    sender: Sender<R>,
    /// The builder waits for a request.
    ready: bool,
    /// There is something new.
    wanted: bool,
}

/// The builder's side.
pub struct Inbox<R = Request>(Receiver<R>);

/// Both sides of a builder that has not been started.
#[must_use]
pub fn requests<R>() -> (Requests<R>, Inbox<R>) {
    let (sender, receiver) = channel();
    let requests = Requests {
        sender,
        ready: true,
        wanted: false,
    };
    (requests, Inbox(receiver))
}

impl<R> Requests<R> {
    /// Tables are to be built: now, or when the builder is ready.
    pub fn want(&mut self, request: impl FnOnce() -> Option<R>) {
        self.wanted = true;
        self.send(request);
    }

    /// The builder is ready.
    pub fn ready(&mut self, request: impl FnOnce() -> Option<R>) {
        self.ready = true;
        self.send(request);
    }

    fn send(&mut self, request: impl FnOnce() -> Option<R>) {
        if self.wanted && self.ready {
            self.wanted = false;
            // Without a builder the lanes are about to end.
            self.ready = request().is_none_or(|request| self.sender.send(request).is_err());
        }
    }
}

/// Starts the builder. It ends with the first lane.
///
/// # Errors
/// The host has no room for a thread.
pub fn start(inbox: Inbox, lanes: &[Lane]) -> Result<()> {
    let lanes: Vec<_> = lanes.iter().map(|lane| lane.orders.downgrade()).collect();
    let body = move || run(&inbox, &lanes);
    let thread = std::thread::Builder::new().name("tables".into()).spawn(body);
    thread.context("starting the builder of tables").map(drop)
}

fn run(inbox: &Inbox, lanes: &[WeakUnboundedSender<Order>]) {
    let order = |lane: &WeakUnboundedSender<Order>, order| {
        if let Some(lane) = lane.upgrade() {
            let _ = lane.send(order);
        }
    };
    let mut budget = Budget::default();
    while let Ok(request) = inbox.0.recv() {
        let begun = Instant::now();
        match Built::of(request) {
            Ok(built) => lanes
                .iter()
                .for_each(|lane| order(lane, Order::Refresh(Box::new(built.clone())))),
            // The same configuration was accepted when it was installed.
            Err(error) => tracing::error!(%error, "tables not rebuilt"),
        }
        let now = Instant::now();
        // Large tables leave the processor to others for as long as they took.
        std::thread::sleep(budget.pause(now).max(now - begun));
        lanes.first().into_iter().for_each(|first| order(first, Order::Ready));
    }
}

/// How often tables may be built: [`BURST`] at once, then one in each [`INTERVAL`].
#[derive(Debug, Default)]
struct Budget {
    /// When it is whole again.
    whole: Option<Instant>,
}

impl Budget {
    /// Takes one; how long to wait before the next.
    fn pause(&mut self, now: Instant) -> Duration {
        let whole = self.whole.map_or(now, |whole| whole.max(now)) + INTERVAL;
        self.whole = Some(whole);
        whole.saturating_duration_since(now + INTERVAL * (BURST - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_then_ten_a_second() {
        let (mut budget, begin) = (Budget::default(), Instant::now());
        let mut now = begin;
        let mut at = Vec::new();
        for _ in 0..8 {
            at.push((now - begin).as_millis());
            now += budget.pause(now);
        }
        assert_eq!(at, [0, 0, 0, 0, 100, 200, 300, 400]);
        now += Duration::from_secs(10);
        assert_eq!(budget.pause(now), Duration::ZERO);
    }

    #[test]
    fn one_request_is_under_way_and_what_changes_meanwhile_is_the_next() {
        let (mut requests, inbox) = requests();
        let mut made = 0;
        let mut request = || {
            made += 1;
            Some(made)
        };
        for _ in 0..100 {
            requests.want(&mut request);
        }
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [1]);
        requests.ready(&mut request);
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [2]);
        requests.ready(&mut request);
        assert!(inbox.0.try_iter().next().is_none());
        requests.want(&mut request);
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [3]);
    }
}
