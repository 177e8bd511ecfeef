//! The task that keeps BIRD running with the present configuration, and collects its routes and the state of its sessions.

use super::bird_socket::{self, Failure, Session};
use super::conf::{self, Loopback, Rendered};
use super::export_hold::ExportHold;
use super::feed::Feed;
use super::home::Home;
use super::log::Log;
use super::process::{Event, Process};
use super::service::StartListener;
use super::{BgpSpec, Bird, GRACE, Learned, child};
use crate::sys;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpSocket;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::{BgpPeerState, BgpPeerStatus};

/// Changes within this time reach BIRD as one configuration, because each reload interrupts BIRD.
const CONFIGURE_DEBOUNCE: Duration = Duration::from_millis(50);
/// BIRD processes no messages while it reads its configuration (0.2 s for 40,000 routes). The pause before the next reload is this
/// many times as long as the last one took. BIRD thus spends at most a fifth of the time on reloads.
const RELOAD_PAUSE_FACTOR: u32 = 4;
/// How often the state of the sessions is read. [`Bgp::status`](super::Bgp::status) promises this age.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How soon the sessions are read after BIRD logged a state change. Changes of several sessions are read together.
const CHANGE_DEBOUNCE: Duration = Duration::from_millis(20);
/// BIRD is killed after this many polls without a reply. Each may take the timeout of a command (5 s), so a BIRD that is merely
/// slow has 30 s.
const MAX_MISSED_POLLS: u32 = 6;
/// First and longest wait before a restart of BIRD. The wait doubles with each failure, and starts over once BIRD ran for longer
/// than the longest wait. Neighbours keep routes for [`GRACE`], twice the longest wait.
const MIN_RESTART_BACKOFF: Duration = Duration::from_millis(100);
const MAX_RESTART_BACKOFF: Duration = Duration::from_secs(30);
/// Timeout of an orderly end of BIRD, which closes its sessions with a Cease.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of the end of BIRD after SIGKILL. A process in uninterruptible sleep cannot be killed: the agent gives up then.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts to end a BIRD that outlived an earlier agent, and the wait after each: 2 s in all.
const LEFTOVER_POLLS: u32 = 20;
const LEFTOVER_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a service manager may take to start BIRD before a fault is reported. systemd takes 50 ms on an idle machine.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(15);

/// The task behind [`Bgp`](super::Bgp).
pub(super) struct Supervisor {
    home: Home,
    loopback: Loopback,
    /// The requested configuration. None: stop.
    spec: watch::Receiver<Option<BgpSpec>>,
    learned: watch::Sender<Learned>,
    status: watch::Sender<Vec<BgpPeerStatus>>,
    /// The rendered configuration, which BIRD has unless `config_pending`.
    rendered: Rendered,
    /// The last octet of the agent's loopback address, by neighbour.
    slots: BTreeMap<ResourceId, u8>,
    /// The feed task of each configured neighbour, with the speaker's ASN that it uses.
    feeds: BTreeMap<ResourceId, (u32, JoinHandle<()>)>,
    /// Tells the feeds to connect again at once.
    reconnect: Arc<Notify>,
    /// Accepts the BIRDs that a service manager starts. None: BIRD is a child.
    start_listener: Option<StartListener>,
    /// Since when the service manager should have started BIRD.
    start_expected_since: Option<Instant>,
    bird: Option<Process>,
    /// Whether BIRD still has to get `rendered`.
    config_pending: bool,
    /// Why BIRD does not run or does not have the configuration. Neighbours without an error of their own report it.
    fault: Option<String>,
    log: Log,
    started_at: Instant,
    /// When BIRD ended unexpectedly.
    ended_at: Option<Instant>,
    /// When to apply a changed `spec`.
    apply_at: Option<Instant>,
    reload_not_before: Instant,
    start_at: Option<Instant>,
    restart_backoff: Duration,
    poll_at: Instant,
    /// Polls without a reply, in a row.
    missed_polls: u32,
    export_hold: ExportHold,
}

impl Supervisor {
    /// Creates BIRD's directories, and ends a BIRD that a killed agent left behind.
    ///
    /// # Errors
    /// A directory or the socket for starts cannot be created, or BIRD's user does not exist.
    pub(super) async fn new(
        bird: &Bird,
        spec: watch::Receiver<Option<BgpSpec>>,
        learned: watch::Sender<Learned>,
        status: watch::Sender<Vec<BgpPeerStatus>>,
    ) -> Result<Self> {
        let home = match bird {
            Bird::Child(dir) => Home::of_child(dir, child::user()?)?,
            Bird::Service(service) => Home::of_service(service)?,
        };
        // With a leftover configuration of an earlier run, the service manager would start BIRD.
        home.remove_config();
        let start_listener = match bird {
            Bird::Child(_) => None,
            Bird::Service(_) => Some(StartListener::bind(&home)?),
        };
        // A BIRD of a killed agent is ending already (see `child`). `down` makes sure; the socket vanishes with BIRD.
        for _ in 0..LEFTOVER_POLLS {
            if bird_socket::send_command(&home, "down").await.is_err() {
                break;
            }
            sleep(LEFTOVER_POLL_INTERVAL).await;
        }
        let now = Instant::now();
        Ok(Self {
            home,
            loopback: draw_loopback(),
            spec,
            learned,
            status,
            rendered: Rendered::default(),
            slots: BTreeMap::new(),
            feeds: BTreeMap::new(),
            reconnect: Arc::new(Notify::new()),
            start_listener,
            start_expected_since: None,
            bird: None,
            config_pending: false,
            fault: None,
            log: Log::default(),
            started_at: now,
            ended_at: None,
            apply_at: None,
            reload_not_before: now,
            start_at: None,
            restart_backoff: MIN_RESTART_BACKOFF,
            poll_at: now,
            missed_polls: 0,
            export_hold: ExportHold::default(),
        })
    }

    /// Runs until the specification is set to none or its sender is dropped. Then closes the sessions, ends BIRD, and publishes
    /// empty routes and states.
    pub(super) async fn run(mut self) {
        loop {
            let recovers = self.recovers();
            tokio::select! {
                changed = self.spec.changed() => {
                    let is_stopped = self.spec.borrow_and_update().is_none();
                    if changed.is_err() || is_stopped {
                        break;
                    }
                    let apply_at = (Instant::now() + CONFIGURE_DEBOUNCE).max(self.reload_not_before);
                    self.apply_at = Some(self.apply_at.unwrap_or(apply_at));
                }
                () = at(self.apply_at) => {
                    self.apply_at = None;
                    let spec = self.spec.borrow().clone();
                    self.apply(spec.unwrap_or_default()).await;
                }
                event = next_event(&mut self.bird) => match event {
                    Event::Log(line) => {
                        if self.log.write(&line, &self.rendered.names) {
                            self.poll_at = self.poll_at.min(Instant::now() + CHANGE_DEBOUNCE);
                        }
                    }
                    Event::Ended(how) => self.on_ended(&how),
                },
                bird = next_start(&mut self.start_listener, recovers) => self.on_started_by_service(bird, recovers).await,
                () = at(self.start_at) => self.launch().await,
                () = sleep_until(self.poll_at) => self.poll().await,
            }
        }
        for (_, (_, feed)) in std::mem::take(&mut self.feeds) {
            abort(feed).await;
        }
        self.stop_bird().await;
        self.learned.send_replace(Learned::new());
        self.status.send_replace(Vec::new());
    }

    /// Applies a specification to BIRD and the feeds.
    async fn apply(&mut self, spec: BgpSpec) {
        self.assign_slots(&spec);
        let rendered = conf::render(&spec, &self.loopback, &self.slots);
        for (neighbour, why) in &rendered.refused {
            if self.rendered.refused.get(neighbour) != Some(why) {
                tracing::error!(%neighbour, reason = why, "BGP neighbour left out: its configuration is invalid");
            }
        }
        let changed = rendered.text != self.rendered.text;
        self.rendered = rendered;
        self.update_feeds(&spec).await;
        if self.rendered.names.is_empty() {
            self.stop_bird().await;
            (self.config_pending, self.start_at, self.fault, self.ended_at) = (false, None, None, None);
            (self.restart_backoff, self.start_expected_since) = (MIN_RESTART_BACKOFF, None);
        } else if changed {
            self.config_pending = true;
            if self.bird.is_some() {
                self.configure().await;
            } else if self.start_listener.is_some() {
                self.launch().await;
            } else if self.start_at.is_none() {
                self.start_at = Some(Instant::now());
            }
        }
        self.poll_at = Instant::now();
    }

    /// Assigns the lowest free slot to each new neighbour. The others keep theirs, so that their sessions are not reset.
    fn assign_slots(&mut self, spec: &BgpSpec) {
        let neighbours = spec.speaker.as_ref().map(|s| s.neighbours.as_slice());
        let neighbours = neighbours.unwrap_or_default();
        self.slots.retain(|id, _| neighbours.iter().any(|n| n.id == *id));
        for n in neighbours {
            let free = conf::SLOTS
                .into_iter()
                .find(|slot| !self.slots.values().any(|s| s == slot));
            if let (false, Some(free)) = (self.slots.contains_key(&n.id), free) {
                self.slots.insert(n.id.clone(), free);
            }
        }
    }

    /// Starts a feed for each configured neighbour that has none, and ends the feeds of others. A changed ASN restarts all feeds.
    async fn update_feeds(&mut self, spec: &BgpSpec) {
        let asn = spec.speaker.as_ref().map_or(0, |s| s.asn);
        let stays = |id: &ResourceId| self.rendered.names.values().any(|n| n == id);
        let feeds = std::mem::take(&mut self.feeds);
        let (keep, go) = feeds.into_iter().partition(|(id, (of, _))| *of == asn && stays(id));
        self.feeds = keep;
        let gone: BTreeMap<ResourceId, (u32, JoinHandle<()>)> = go;
        for (id, (_, feed)) in gone {
            abort(feed).await;
            self.learned.send_if_modified(|l| l.remove(&id).is_some());
        }
        for id in self.rendered.names.values() {
            let (Some(slot), false) = (self.slots.get(id), self.feeds.contains_key(id)) else {
                continue;
            };
            let feed = Feed {
                neighbour: id.clone(),
                asn,
                loopback: self.loopback.clone(),
                slot: *slot,
                learned: self.learned.clone(),
                reconnect: self.reconnect.clone(),
            };
            self.learned.send_modify(|l| drop(l.insert(id.clone(), Arc::default())));
            self.feeds.insert(id.clone(), (asn, tokio::spawn(feed.run())));
        }
    }

    /// Writes the configuration, and starts BIRD if it is a child. A service manager starts BIRD once the file exists; a fault is
    /// reported if that takes longer than [`SERVICE_START_TIMEOUT`].
    async fn launch(&mut self) {
        self.start_at = None;
        let recovers = self.recovers();
        let written = self.home.write(&self.rendered.text);
        match (written, self.start_listener.is_some()) {
            (Ok(()), false) => match child::start(&self.home, recovers).await {
                Ok(bird) => self.on_started(bird, recovers),
                Err(e) => self.on_start_failed(&e),
            },
            (Ok(()), true) => {
                self.config_pending = false;
                let since = *self.start_expected_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SERVICE_START_TIMEOUT {
                    let config = self.home.config_dir().display();
                    let fault =
                        format!("the service manager does not start bird for {config}: check the unit tombolo-bird@");
                    self.report_fault(fault, "bird not started");
                }
                self.start_at = Some(Instant::now() + SERVICE_START_TIMEOUT);
            }
            (Err(e), _) => self.on_start_failed(&e),
        }
    }

    fn on_start_failed(&mut self, error: &anyhow::Error) {
        self.report_fault(format!("{error:#}"), "bird not started");
        self.schedule_restart();
    }

    /// Whether a BIRD that starts now must restart gracefully, because neighbours still keep its predecessor's routes (RFC 4724).
    fn recovers(&self) -> bool {
        self.ended_at.is_some_and(|e| e.elapsed() < GRACE)
    }

    fn on_started(&mut self, bird: Process, recovers: bool) {
        tracing::info!(neighbours = self.rendered.names.len(), recovers, "bird started");
        self.bird = Some(bird);
        self.started_at = Instant::now();
        (self.config_pending, self.missed_polls, self.fault) = (false, 0, None);
        self.export_hold = ExportHold::default();
        self.poll_at = Instant::now() + MIN_RESTART_BACKOFF;
        self.reconnect.notify_waiters();
    }

    /// A service manager started BIRD, which reads the configuration that is on disk. That is the present one unless writing it
    /// failed, so `config_pending` stays as it was.
    async fn on_started_by_service(&mut self, bird: Process, recovers: bool) {
        let config_pending = self.config_pending;
        (self.start_at, self.start_expected_since) = (None, None);
        self.on_started(bird, recovers);
        self.config_pending = config_pending;
        // The last neighbour was removed while BIRD was starting.
        if self.rendered.names.is_empty() {
            self.stop_bird().await;
        }
    }

    /// Records a fault, and logs it unless it is the same as before.
    fn report_fault(&mut self, fault: String, what: &str) {
        if self.fault.as_ref() != Some(&fault) {
            tracing::error!(error = fault, "{what}");
        }
        self.fault = Some(fault);
    }

    fn on_ended(&mut self, how: &str) {
        tracing::warn!(how, "bird ended unexpectedly and will be restarted");
        self.bird = None;
        self.ended_at = Some(Instant::now());
        self.fault = Some(format!("bird ended: {how}"));
        if self.started_at.elapsed() > MAX_RESTART_BACKOFF {
            self.restart_backoff = MIN_RESTART_BACKOFF;
        }
        self.schedule_restart();
        // The service manager may start BIRD earlier. BIRD then waits for the agent's answer until the backoff has passed.
        if let (Some(listener), Some(at)) = (&mut self.start_listener, self.start_at) {
            listener.delay_until(at);
            self.start_expected_since = Some(at);
            self.start_at = Some(at + SERVICE_START_TIMEOUT);
        }
    }

    fn schedule_restart(&mut self) {
        self.start_at = Some(Instant::now() + self.restart_backoff);
        self.restart_backoff = (self.restart_backoff * 2).min(MAX_RESTART_BACKOFF);
        self.poll_at = Instant::now();
    }

    /// Writes the configuration and makes a running BIRD reload it.
    async fn configure(&mut self) {
        let begin = Instant::now();
        let outcome = match self.home.write(&self.rendered.text) {
            Ok(()) => bird_socket::send_command(&self.home, "configure").await,
            Err(e) => Err(Failure::NoReply(format!("{e:#}"))),
        };
        self.reload_not_before = Instant::now() + begin.elapsed() * RELOAD_PAUSE_FACTOR;
        match outcome {
            Ok(_) => {
                (self.config_pending, self.fault) = (false, None);
                self.reconnect.notify_waiters();
                self.send_commands(self.export_hold.commands_after_reload()).await;
            }
            Err(failure) => {
                // BIRD would refuse the same text again.
                self.config_pending = matches!(failure, Failure::NoReply(_));
                self.report_fault(failure.to_string(), "BGP not configured");
            }
        }
    }

    /// Reads the state of the sessions and publishes it. Also retries a reload and export commands that failed.
    async fn poll(&mut self) {
        self.poll_at = Instant::now() + POLL_INTERVAL;
        let mut sessions = BTreeMap::new();
        if self.bird.is_some() {
            match bird_socket::send_command(&self.home, "show protocols all \"n_*\"").await {
                Ok(reply) => {
                    sessions = bird_socket::parse_sessions(&reply);
                    self.missed_polls = 0;
                    if self.config_pending {
                        self.configure().await;
                    }
                    self.update_export_hold(&sessions).await;
                }
                Err(failure) => self.on_missed_poll(&failure),
            }
        }
        self.publish_status(&sessions);
    }

    /// Enables and disables exports as [`ExportHold`] demands.
    async fn update_export_hold(&mut self, sessions: &BTreeMap<String, Session>) {
        let now = Instant::now();
        let before = self.export_hold.clone();
        let commands = self.export_hold.update(sessions, now.into_std());
        if !self.send_commands(commands).await {
            // Retried at the next poll: otherwise a neighbour could be held back for ever.
            self.export_hold.revert(before);
            return;
        }
        if let Some(due) = self.export_hold.next_due() {
            self.poll_at = self.poll_at.min(due.into());
        }
    }

    /// Sends commands that enable or disable exports. Returns whether BIRD carried out all of them.
    async fn send_commands(&self, commands: Vec<String>) -> bool {
        let mut done = true;
        for command in commands {
            if let Err(failure) = bird_socket::send_command(&self.home, &command).await {
                tracing::warn!(error = %failure, command, "bird did not change the exports to a neighbour");
                done = false;
            }
        }
        done
    }

    /// BIRD did not reply to a poll. After [`MAX_MISSED_POLLS`] in a row a child is killed; its end causes a restart.
    fn on_missed_poll(&mut self, failure: &Failure) {
        // A BIRD that was just started has no control socket yet.
        if self.started_at.elapsed() < POLL_INTERVAL {
            self.poll_at = Instant::now() + MIN_RESTART_BACKOFF;
            return;
        }
        self.missed_polls += 1;
        if let (MAX_MISSED_POLLS, Some(bird)) = (self.missed_polls, &self.bird) {
            if bird.signal(Signal::SIGKILL) {
                tracing::error!(error = %failure, "bird does not answer and is killed");
            } else {
                tracing::error!(error = %failure, "bird does not answer: restart the unit tombolo-bird@ of this agent");
            }
            self.missed_polls = 0;
        }
    }

    /// Publishes the state of each configured neighbour, with those that were refused.
    fn publish_status(&self, sessions: &BTreeMap<String, Session>) {
        let spec = self.spec.borrow();
        let speaker = spec.iter().filter_map(|s| s.speaker.as_ref());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0.0, |d| d.as_secs_f64());
        let names: BTreeMap<&ResourceId, &String> = self.rendered.names.iter().map(|(name, id)| (id, name)).collect();
        let status = |n: &tombolo_proto::config::Neighbour| {
            let session = names.get(&n.id).and_then(|name| sessions.get(*name)).cloned();
            let session = session.unwrap_or_default();
            let refused = self.rendered.refused.get(&n.id);
            BgpPeerStatus {
                neighbour: n.id.clone(),
                address: n.address,
                local_address: n.local_address,
                asn: n.asn,
                state: match refused {
                    Some(_) => BgpPeerState::Stopped,
                    None => session.state,
                },
                since: if session.since == 0 {
                    0.0
                } else {
                    (now - session.since as f64).max(0.0)
                },
                received: session.received,
                sent: session.sent,
                last_error: refused.cloned().or(session.last_error).or_else(|| self.fault.clone()),
            }
        };
        let neighbours = speaker.flat_map(|s| &s.neighbours);
        self.status.send_replace(neighbours.map(status).collect());
    }

    /// Makes BIRD close its sessions, and waits until it has ended. Gives up after the timeouts: BIRD may be stuck, and a service
    /// cannot be killed by the agent.
    async fn stop_bird(&mut self) {
        // Without a configuration the service manager does not start BIRD again.
        self.home.remove_config();
        let Some(mut bird) = self.bird.take() else { return };
        if !bird.signal(Signal::SIGTERM) {
            // The reply does not matter: the wait below checks whether BIRD ends.
            let _ = timeout(SHUTDOWN_TIMEOUT, bird_socket::send_command(&self.home, "down")).await;
        }
        if timeout(SHUTDOWN_TIMEOUT, ended(&mut bird)).await.is_err() {
            tracing::warn!("bird did not end within {} s", SHUTDOWN_TIMEOUT.as_secs());
            bird.signal(Signal::SIGKILL);
            if timeout(KILL_TIMEOUT, ended(&mut bird)).await.is_err() {
                tracing::error!(
                    "bird does not end and may keep its sessions: kill the process, or stop the unit tombolo-bird@"
                );
            }
        }
        self.home.clear();
    }
}

async fn ended(bird: &mut Process) {
    while !matches!(bird.next().await, Event::Ended(_)) {}
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.home.clear();
    }
}

/// The next BIRD that a service manager starts; never returns where BIRD is a child.
async fn next_start(listener: &mut Option<StartListener>, recovers: bool) -> Process {
    match listener {
        Some(listener) => listener.accept(recovers).await,
        None => std::future::pending().await,
    }
}

/// The next event of BIRD; never returns while BIRD does not run.
async fn next_event(bird: &mut Option<Process>) -> Event {
    match bird {
        Some(bird) => bird.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until a time; without one, for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Aborts a task and waits until it has ended, so that it publishes nothing afterwards.
async fn abort(task: JoinHandle<()>) {
    task.abort();
    // An error says that the task was aborted.
    let _ = task.await;
}

/// Draws a random loopback network in which no program listens on the BGP port, and a random password. Other agents of the host
/// draw theirs independently.
fn draw_loopback() -> Loopback {
    const MAX_DRAWS: usize = 16;
    let draw = || Ipv4Addr::new(127, rand::random_range(1..255), rand::random(), 1);
    let taken = |a: &Ipv4Addr| TcpListener::bind((*a, 179)).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
    let bird = std::iter::repeat_with(draw)
        .take(MAX_DRAWS)
        .find(|a| !taken(a))
        .unwrap_or_else(draw);
    let password = format!("{:032x}", rand::random::<u128>());
    let signed = TcpSocket::new_v4().and_then(|s| sys::sign(&s, bird, password.as_bytes()));
    if let Err(e) = &signed {
        tracing::warn!(
            error = %e,
            "the kernel has no TCP MD5 signatures: any local user can pose as BIRD or as the agent towards BIRD"
        );
    }
    Loopback {
        bird,
        password: signed.is_ok().then_some(password),
    }
}
