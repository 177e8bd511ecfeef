//! Builds lookup tables when routes or links change, in a thread of its own, while lanes forward packets.
//!
//! ```text
//! first lane ──request──▶ builder ──tables──▶ all lanes
//!      ▲                     │
//!      └────────ready────────┘   a pause later, if many were built lately
//! ```
//! Lane 0 has at most one request outstanding. Changes that come before the builder is ready go into the next request.
//! So a flood of changes causes few requests. The flood does not delay the lanes, and the builder works only for a
//! bounded share of the time.

use super::{Command, Lane};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::WeakUnboundedSender;
use tombolo_engine::routing;
use tombolo_engine::security::Flows;
use tombolo_engine::tables::{BuildError, LinkIndex, RoutingState, Tables};
use tombolo_proto::config::AgentConfig;

/// Number of builds without a pause. A failover causes several changes within moments, and each of them must take
/// effect at once.
const MAX_BURST: u32 = 4;

/// Shortest average time between the builds that follow a burst of [`MAX_BURST`] builds. With this value a flapping
/// neighbour causes at most ten builds a second, and the limit delays a change by at most a tenth of a second.
const BUILD_INTERVAL: Duration = Duration::from_millis(100);

/// Input of a table build.
pub struct BuildRequest {
    /// Number of the configuration. The tables name links by index, and the same index may mean another link in another
    /// configuration.
    pub generation: u64,
    /// The configuration of that number.
    pub config: Arc<AgentConfig>,
    /// Learned routes, and the peers that are down.
    pub dynamic: RoutingState,
    /// The tables in use. What has not changed since is taken from them.
    pub before: Option<Arc<Tables>>,
}

/// Result of a table build.
#[derive(Clone)]
pub struct Built {
    /// Number of the configuration, from the [`BuildRequest`].
    pub generation: u64,
    /// The lookup tables, for all lanes.
    pub tables: Arc<Tables>,
    /// The encoded routes to advertise on each link, by the link's index.
    pub advertisements: Vec<(LinkIndex, Arc<[u8]>)>,
    /// The routing state that the tables were built from.
    pub dynamic: RoutingState,
}

impl Built {
    /// Builds lookup tables and route advertisements on the calling thread. A build takes long if the configuration is
    /// large. The result depends on `request` alone.
    ///
    /// # Errors
    /// The configuration is invalid. The error names the field and its value.
    pub fn of(request: BuildRequest) -> Result<Self, BuildError> {
        let BuildRequest {
            generation,
            config,
            dynamic,
            before,
        } = request;
        Ok(Self {
            generation,
            tables: Arc::new(Tables::build_after(&config, &dynamic, before.as_deref())?),
            advertisements: routing::route_advertisements(&config, &dynamic),
            dynamic,
        })
    }
}

/// Lane 0's end of the channel to the builder. Dropping it ends the builder.
pub struct BuildQueue<R = BuildRequest> {
    sender: Sender<R>,
    /// Whether the builder is idle, so that a request may be sent.
    ready: bool,
    /// Whether something has changed since the last request.
    pending: bool,
}

/// The builder's end of the channel, for [`start`].
pub struct BuildReceiver<R = BuildRequest>(Receiver<R>);

/// Both ends of a new channel to a builder. Requests wait until [`start`] has started the builder.
#[must_use]
pub fn queue<R>() -> (BuildQueue<R>, BuildReceiver<R>) {
    let (sender, receiver) = channel();
    let queue = BuildQueue {
        sender,
        ready: true,
        pending: false,
    };
    (queue, BuildReceiver(receiver))
}

impl<R> BuildQueue<R> {
    /// Requests a build. The input is sent at once if the builder is idle, otherwise by
    /// [`builder_ready`](Self::builder_ready). `request` makes the input, and is called only if the input is sent now.
    /// If it returns none, there is no configuration to build from, nothing is sent, and this request is forgotten.
    pub fn request(&mut self, request: impl FnOnce() -> Option<R>) {
        self.pending = true;
        self.send(request);
    }

    /// Records that the builder is idle. If a build was requested meanwhile, sends its input, which `request` makes.
    /// `request` is called only then. To be called only when the builder says that it is idle.
    pub fn builder_ready(&mut self, request: impl FnOnce() -> Option<R>) {
        self.ready = true;
        self.send(request);
    }

    fn send(&mut self, request: impl FnOnce() -> Option<R>) {
        if self.pending && self.ready {
            self.pending = false;
            // Sending fails only if the builder has ended. The builder ends only when the lanes end.
            self.ready = request().is_none_or(|request| self.sender.send(request).is_err());
        }
    }
}

/// Starts the builder's thread, which sends the built tables to all `lanes`. Lane 0 must be the first. `flows` are those that
/// the lanes share. The thread keeps
/// no lane alive, and ends when lane 0 drops its [`BuildQueue`]. If a build fails, the error is logged, and the lanes
/// keep their tables.
///
/// # Errors
/// The thread cannot be started.
pub fn start(inbox: BuildReceiver, lanes: &[Lane], flows: Arc<Flows>) -> Result<()> {
    let lanes: Vec<_> = lanes.iter().map(|lane| lane.commands.downgrade()).collect();
    let body = move || run(&inbox, &lanes, &flows);
    let thread = std::thread::Builder::new().name("tables".into()).spawn(body);
    thread.context("starting the builder of tables").map(drop)
}

fn run(inbox: &BuildReceiver, lanes: &[WeakUnboundedSender<Command>], flows: &Flows) {
    let send_command = |lane: &WeakUnboundedSender<Command>, command| {
        if let Some(lane) = lane.upgrade() {
            // A lane that has ended needs no tables.
            let _ = lane.send(command);
        }
    };
    let mut budget = Budget::default();
    while let Ok(request) = inbox.0.recv() {
        let begun = Instant::now();
        match Built::of(request) {
            Ok(built) => {
                flows.name_rules(&built.tables, Instant::now());
                for lane in lanes {
                    send_command(lane, Command::Refresh(Box::new(built.clone())));
                }
            }
            // No build is expected to fail, because the same configuration was valid when it was installed.
            Err(error) => tracing::error!(%error, "tables not rebuilt"),
        }
        let now = Instant::now();
        // After a build of large tables the builder pauses as long as the build took. This leaves half of a core to
        // other work.
        std::thread::sleep(budget.pause(now).max(now - begun));
        lanes
            .first()
            .into_iter()
            .for_each(|lane0| send_command(lane0, Command::BuilderReady));
    }
}

/// Token bucket of builds: [`MAX_BURST`] builds without a pause, then one per [`BUILD_INTERVAL`].
#[derive(Debug, Default)]
struct Budget {
    /// When the bucket is full again. None: it is full.
    full_at: Option<Instant>,
}

impl Budget {
    /// Takes one token for a build. Returns how long the builder must wait before the next build.
    fn pause(&mut self, now: Instant) -> Duration {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + BUILD_INTERVAL;
        self.full_at = Some(full_at);
        full_at.saturating_duration_since(now + BUILD_INTERVAL * (MAX_BURST - 1))
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
    fn changes_during_a_build_go_into_one_next_request() {
        let (mut requests, inbox) = queue();
        let mut made = 0;
        let mut request = || {
            made += 1;
            Some(made)
        };
        for _ in 0..100 {
            requests.request(&mut request);
        }
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [1]);
        requests.builder_ready(&mut request);
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [2]);
        requests.builder_ready(&mut request);
        assert!(inbox.0.try_iter().next().is_none());
        requests.request(&mut request);
        assert_eq!(inbox.0.try_iter().collect::<Vec<_>>(), [3]);
    }
}
