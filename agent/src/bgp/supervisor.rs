//! The task that keeps BIRD running with the present configuration. It also collects the routes that neighbours
//! announce, and the states of BIRD's sessions.

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

/// Wait between a change of the specification and BIRD's new configuration. Further changes in this time reach BIRD
/// together with the first, because each reload interrupts BIRD's work.
const CONFIGURE_DEBOUNCE: Duration = Duration::from_millis(50);
/// The pause before the next reload, as a multiple of the time that the last reload took. BIRD processes no messages
/// while it reads its configuration, which takes 0.2 s for 40,000 routes. With this pause BIRD spends at most a fifth
/// of its time on reloads.
const RELOAD_PAUSE_FACTOR: u32 = 4;
/// Interval between two reads of the sessions' states. [`Bgp::status`](super::Bgp::status) promises states that are not
/// older than this.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Wait between a state change in BIRD's log and the read of the sessions' states. Changes of several sessions are then
/// read together.
const CHANGE_DEBOUNCE: Duration = Duration::from_millis(20);
/// Number of polls without a reply after which BIRD is killed. Each poll may wait for the timeout of a command (5 s),
/// so a BIRD that is only slow has 30 s to reply.
const MAX_MISSED_POLLS: u32 = 6;
/// First and longest wait before a restart of BIRD. The wait doubles each time that BIRD ends or fails to start. When
/// BIRD has run for longer than the longest wait, the next wait is the first one again. Neighbours keep the agent's
/// routes for [`GRACE`], which is twice the longest wait.
const MIN_RESTART_BACKOFF: Duration = Duration::from_millis(100);
const MAX_RESTART_BACKOFF: Duration = Duration::from_secs(30);
/// Timeout of an orderly end of BIRD, in which it closes its sessions with a Cease.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of the end of BIRD after SIGKILL. The agent then gives up, because a process in uninterruptible sleep cannot
/// be killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of attempts to end a BIRD that outlived an earlier agent, and the wait after each. All waits together are 2
/// s.
const LEFTOVER_POLLS: u32 = 20;
const LEFTOVER_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a service manager may take to start BIRD, before the agent reports a fault. systemd takes 50 ms on an idle
/// machine.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(15);

/// The task that [`Bgp::start`](super::Bgp::start) spawns.
pub(super) struct Supervisor {
    home: Home,
    loopback: Loopback,
    /// The requested configuration. None asks the task to stop.
    spec: watch::Receiver<Option<BgpSpec>>,
    learned: watch::Sender<Learned>,
    status: watch::Sender<Vec<BgpPeerStatus>>,
    /// The rendered configuration. BIRD has this configuration unless `config_pending` is set.
    rendered: Rendered,
    /// The last octet of the agent's loopback address for each neighbour.
    slots: BTreeMap<ResourceId, u8>,
    /// The feed task of each configured neighbour, with the ASN of the speaker that the task uses.
    feeds: BTreeMap<ResourceId, (u32, JoinHandle<()>)>,
    /// Makes the feeds connect again without waiting for their backoff.
    reconnect: Arc<Notify>,
    /// Accepts a BIRD that a service manager starts. None: BIRD is a child.
    start_listener: Option<StartListener>,
    /// When the agent began, or will begin, to wait for the service manager to start BIRD. None: the agent expects no
    /// start.
    start_expected_since: Option<Instant>,
    bird: Option<Process>,
    /// Whether BIRD still has to get `rendered`.
    config_pending: bool,
    /// Why BIRD does not run, or why it lacks the present configuration. The status reports this text for neighbours
    /// that have no error of their own.
    fault: Option<String>,
    log: Log,
    started_at: Instant,
    /// When BIRD last ended unexpectedly. None: that has not happened since BIRD was first started, or since there was
    /// no neighbour.
    ended_at: Option<Instant>,
    /// When the task applies a changed `spec`. None: no change waits.
    apply_at: Option<Instant>,
    reload_not_before: Instant,
    start_at: Option<Instant>,
    restart_backoff: Duration,
    poll_at: Instant,
    /// Number of polls without a reply since the last reply.
    missed_polls: u32,
    export_hold: ExportHold,
}

impl Supervisor {
    /// Creates BIRD's directories, and ends a BIRD that a killed agent left, for up to 2 s.
    ///
    /// # Errors
    /// A directory or the socket for starts cannot be created, or the user of a service's BIRD does not exist.
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
        // A configuration that an earlier run left would make the service manager start BIRD before the agent has a
        // configuration.
        home.remove_config();
        let start_listener = match bird {
            Bird::Child(_) => None,
            Bird::Service(_) => Some(StartListener::bind(&home)?),
        };
        // If an earlier agent was killed, its BIRD is ending already (see `child`). The command `down` makes sure that
        // this BIRD ends. When it has ended, nothing answers at its socket, so the command fails.
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

    /// Runs until the specification is set to none, or its sender is dropped. Then ends the feeds and BIRD, and
    /// publishes empty routes and states.
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

    /// Applies a specification to the feeds and to BIRD. Starts BIRD if the specification has a neighbour and BIRD does
    /// not run yet. Stops BIRD if no neighbour is left.
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

    /// Assigns the lowest free slot to each new neighbour. Other neighbours keep their slots, because a change would
    /// reset their sessions. If no slot is free, a new neighbour gets none, and is later refused.
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

    /// Starts a feed for each configured neighbour that has none, and ends the feeds of neighbours that are gone. A
    /// changed ASN of the speaker restarts all feeds.
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

    /// Writes the configuration, and starts BIRD if it is a child. If BIRD is a service, the service manager starts it
    /// because the file exists. A fault is reported if that takes longer than [`SERVICE_START_TIMEOUT`].
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

    /// Whether a BIRD that starts now must restart gracefully, because neighbours may still keep its predecessor's
    /// routes (RFC 4724).
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

    /// Takes over a BIRD that a service manager has started, and that reads the configuration on disk. The file has the
    /// present configuration unless writing it failed, so `config_pending` stays as it was.
    async fn on_started_by_service(&mut self, bird: Process, recovers: bool) {
        let config_pending = self.config_pending;
        (self.start_at, self.start_expected_since) = (None, None);
        self.on_started(bird, recovers);
        self.config_pending = config_pending;
        // If the last neighbour was removed while BIRD was starting, BIRD is not needed any more.
        if self.rendered.names.is_empty() {
            self.stop_bird().await;
        }
    }

    /// Records a fault. Logs the fault with the message `what`, unless the last fault was the same.
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
        // The service manager may start BIRD earlier than the backoff permits. BIRD then waits for the agent's answer
        // until the backoff has passed.
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

    /// Writes the configuration and makes the running BIRD reload it. A failure is reported as a fault. The next poll
    /// tries again, unless BIRD refused the text.
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
                // If BIRD has refused the text, it would refuse the same text again. So there is another attempt only
                // if BIRD did not reply.
                self.config_pending = matches!(failure, Failure::NoReply(_));
                self.report_fault(failure.to_string(), "BGP not configured");
            }
        }
    }

    /// Reads the states of the sessions and publishes them. Also retries a reload and export commands that failed.
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

    /// Enables and disables exports as [`ExportHold`] demands. If a command fails, the next poll sends all of these
    /// commands again.
    async fn update_export_hold(&mut self, sessions: &BTreeMap<String, Session>) {
        let now = Instant::now();
        let before = self.export_hold.clone();
        let commands = self.export_hold.update(sessions, now.into_std());
        if !self.send_commands(commands).await {
            // After the revert the next poll sends the commands again. Without that, exports to a neighbour could stay
            // disabled for ever.
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

    /// Counts a poll that BIRD did not reply to. After [`MAX_MISSED_POLLS`] such polls in a row, a BIRD that is a child
    /// is killed, and its end causes a restart. For a service the agent only logs an error.
    fn on_missed_poll(&mut self, failure: &Failure) {
        // A BIRD that has just started may have no control socket yet.
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

    /// Publishes the state of each neighbour of the specification, refused neighbours included.
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

    /// Makes BIRD close its sessions, and waits until it has ended. Gives up after the timeouts, because BIRD may be
    /// stuck and the agent cannot kill a service.
    async fn stop_bird(&mut self) {
        // Without a configuration file the service manager does not start BIRD again.
        self.home.remove_config();
        let Some(mut bird) = self.bird.take() else { return };
        if !bird.signal(Signal::SIGTERM) {
            // The reply does not matter, because the wait below checks whether BIRD ends.
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

/// Waits until a service manager starts BIRD. Never returns if BIRD is a child.
async fn next_start(listener: &mut Option<StartListener>, recovers: bool) -> Process {
    match listener {
        Some(listener) => listener.accept(recovers).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next event of BIRD. Never returns while BIRD does not run.
async fn next_event(bird: &mut Option<Process>) -> Event {
    match bird {
        Some(bird) => bird.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until a time. Without a time, never returns.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Aborts a task and waits until it has ended, so that the task publishes nothing afterwards.
async fn abort(task: JoinHandle<()>) {
    task.abort();
    // The result only says that the task was aborted.
    let _ = task.await;
}

/// Draws a random loopback network in which no program listens on the BGP port, and a random password. Other agents of
/// the host draw their networks in the same way, and two agents that draw at the same moment may get the same network.
/// If 16 drawn networks were in use, the next one is taken without a check.
fn draw_loopback() -> Loopback {
    const MAX_DRAWS: usize = 16;
    // The network 127.0.0.0/16 is avoided, because it contains the usual address of localhost.
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
