//! Keeps BIRD running, and of one mind with what is wanted.

use super::conf::{self, Loopback, Rendered};
use super::bird_socket::{self, Failure, Seen};
use super::feed::Feed;
use super::export_hold::ExportHold;
use super::home::Home;
use super::log::Log;
use super::process::{Event, Process};
use super::service::Starts;
use super::{Bird, GRACE, Learned, Wanted, child};
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

/// What changes together is told to BIRD together.
const TOGETHER: Duration = Duration::from_millis(50);
/// BIRD speaks with nobody while it reads its configuration (0.2 s for 40,000 routes): for so many times as long as that took
/// it is left alone.
const REST: u32 = 4;
/// How often the sessions are looked at, and how soon after BIRD said that one of them changed.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(20);
/// A BIRD that did not answer so many looks is ended.
const SILENT_LOOKS: u32 = 6;
/// Waits before BIRD is started again: the first and the longest. One that ran for longer than the latter begins anew.
const FIRST_RESTART: Duration = Duration::from_millis(100);
const LAST_RESTART: Duration = Duration::from_secs(30);
/// How long BIRD may take to close its sessions.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long the kernel may take to end a killed BIRD. A process that waits for a disk cannot be killed; the agent goes on.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a service manager may take to start BIRD. It takes 50 ms on an idle machine.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(15);

/// The task behind [`Bgp`](super::Bgp).
pub(super) struct Supervisor {
    home: Home,
    loopback: Loopback,
    wanted: watch::Receiver<Option<Wanted>>,
    learned: watch::Sender<Learned>,
    status: watch::Sender<Vec<BgpPeerStatus>>,
    /// What is wanted, as BIRD is to have it.
    rendered: Rendered,
    /// Last octets of the agent's loopback addresses.
    slots: BTreeMap<ResourceId, u8>,
    /// With the ASN that they speak for.
    feeds: BTreeMap<ResourceId, (u32, JoinHandle<()>)>,
    poke: Arc<Notify>,
    /// Where a service manager starts BIRD.
    starts: Option<Starts>,
    /// Since when it should.
    expected_since: Option<Instant>,
    bird: Option<Process>,
    /// BIRD does not have the newest configuration yet.
    behind: bool,
    /// What keeps BIRD from doing what is wanted.
    fault: Option<String>,
    log: Log,
    started: Instant,
    ended: Option<Instant>,
    adopt_at: Option<Instant>,
    rest_until: Instant,
    start_at: Option<Instant>,
    next_wait: Duration,
    look_at: Instant,
    silent: u32,
    held: ExportHold,
}

impl Supervisor {
    pub(super) async fn new(
        bird: &Bird,
        wanted: watch::Receiver<Option<Wanted>>,
        learned: watch::Sender<Learned>,
        status: watch::Sender<Vec<BgpPeerStatus>>,
    ) -> Result<Self> {
        let home = match bird {
            Bird::Child(dir) => Home::of_child(dir, child::user()?)?,
            Bird::Service(service) => Home::of_service(service)?,
        };
        // A configuration of an earlier run would have a service manager start BIRD.
        home.remove_config();
        let starts = match bird {
            Bird::Child(_) => None,
            Bird::Service(_) => Some(Starts::listen(&home)?),
        };
        // One that outlived an agent: it should be on its way out.
        for _ in 0..20 {
            if bird_socket::ask(&home, "down").await.is_err() {
                break;
            }
            sleep(LOOK / 10).await;
        }
        let now = Instant::now();
        Ok(Self {
            home,
            loopback: draw_loopback(),
            wanted,
            learned,
            status,
            rendered: Rendered::default(),
            slots: BTreeMap::new(),
            feeds: BTreeMap::new(),
            poke: Arc::new(Notify::new()),
            starts,
            expected_since: None,
            bird: None,
            behind: false,
            fault: None,
            log: Log::default(),
            started: now,
            ended: None,
            adopt_at: None,
            rest_until: now,
            start_at: None,
            next_wait: FIRST_RESTART,
            look_at: now,
            silent: 0,
            held: ExportHold::default(),
        })
    }

    pub(super) async fn run(mut self) {
        loop {
            let recovers = self.recovers();
            tokio::select! {
                changed = self.wanted.changed() => {
                    let is_over = self.wanted.borrow_and_update().is_none();
                    if changed.is_err() || is_over {
                        break;
                    }
                    let together = (Instant::now() + TOGETHER).max(self.rest_until);
                    self.adopt_at = Some(self.adopt_at.unwrap_or(together));
                }
                () = at(self.adopt_at) => {
                    self.adopt_at = None;
                    let wanted = self.wanted.borrow().clone();
                    self.adopt(wanted.unwrap_or_default()).await;
                }
                event = next(&mut self.bird) => match event {
                    Event::Log(line) => {
                        if self.log.write(&line, &self.rendered.names) {
                            self.look_at = self.look_at.min(Instant::now() + LOOK_SOON);
                        }
                    }
                    Event::Ended(how) => self.ended(&how),
                },
                bird = next_start(&mut self.starts, recovers) => self.started_by_service(bird, recovers).await,
                () = at(self.start_at) => self.launch().await,
                () = sleep_until(self.look_at) => self.look().await,
            }
        }
        for (_, (_, feed)) in std::mem::take(&mut self.feeds) {
            end(feed).await;
        }
        self.end().await;
        self.learned.send_replace(Learned::new());
        self.status.send_replace(Vec::new());
    }

    /// Makes what is wanted now what BIRD and the feeds do.
    async fn adopt(&mut self, wanted: Wanted) {
        self.assign(&wanted);
        let rendered = conf::render(&wanted, &self.loopback, &self.slots);
        for (neighbour, why) in &rendered.refused {
            if self.rendered.refused.get(neighbour) != Some(why) {
                tracing::error!(%neighbour, reason = why, "no BGP with this neighbour");
            }
        }
        let changed = rendered.text != self.rendered.text;
        self.rendered = rendered;
        self.follow(&wanted).await;
        if self.rendered.names.is_empty() {
            self.end().await;
            (self.behind, self.start_at, self.fault, self.ended) = (false, None, None, None);
            (self.next_wait, self.expected_since) = (FIRST_RESTART, None);
        } else if changed {
            self.behind = true;
            if self.bird.is_some() {
                self.configure().await;
            } else if self.starts.is_some() {
                self.launch().await;
            } else if self.start_at.is_none() {
                self.start_at = Some(Instant::now());
            }
        }
        self.look_at = Instant::now();
    }

    /// Gives each neighbour the lowest octet that is free, and lets it keep that.
    fn assign(&mut self, wanted: &Wanted) {
        let neighbours = wanted.speaker.as_ref().map(|s| s.neighbours.as_slice());
        let neighbours = neighbours.unwrap_or_default();
        self.slots.retain(|id, _| neighbours.iter().any(|n| n.id == *id));
        for n in neighbours {
            let free = (2..=254).find(|slot| !self.slots.values().any(|s| s == slot));
            if let (false, Some(free)) = (self.slots.contains_key(&n.id), free) {
                self.slots.insert(n.id.clone(), free);
            }
        }
    }

    /// Starts feeds for the neighbours that BIRD is to have, and ends those of others.
    async fn follow(&mut self, wanted: &Wanted) {
        let asn = wanted.speaker.as_ref().map_or(0, |s| s.asn);
        let stays = |id: &ResourceId| self.rendered.names.values().any(|n| n == id);
        let feeds = std::mem::take(&mut self.feeds);
        let (keep, go) = feeds.into_iter().partition(|(id, (of, _))| *of == asn && stays(id));
        self.feeds = keep;
        let gone: BTreeMap<ResourceId, (u32, JoinHandle<()>)> = go;
        for (id, (_, feed)) in gone {
            end(feed).await;
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
                poke: self.poke.clone(),
            };
            self.learned.send_modify(|l| drop(l.insert(id.clone(), Arc::default())));
            self.feeds.insert(id.clone(), (asn, tokio::spawn(feed.run())));
        }
    }

    /// Starts BIRD, or has the service manager start it: that happens when there is a configuration.
    async fn launch(&mut self) {
        self.start_at = None;
        let recovers = self.recovers();
        let written = self.home.write(&self.rendered.text);
        match (written, self.starts.is_some()) {
            (Ok(()), false) => match child::start(&self.home, recovers).await {
                Ok(bird) => self.started(bird, recovers),
                Err(e) => self.not_started(&e),
            },
            (Ok(()), true) => {
                self.behind = false;
                let expected_since = *self.expected_since.get_or_insert_with(Instant::now);
                if expected_since.elapsed() >= SERVICE_START_TIMEOUT {
                    let config = self.home.config_dir().display();
                    let fault =
                        format!("no service manager starts bird for {config}: see the state of the unit tombolo-bird@");
                    self.note(fault, "bird not started");
                }
                self.start_at = Some(Instant::now() + SERVICE_START_TIMEOUT);
            }
            (Err(e), _) => self.not_started(&e),
        }
    }

    fn not_started(&mut self, error: &anyhow::Error) {
        self.note(format!("{error:#}"), "bird not started");
        self.start_later();
    }

    /// Whether a BIRD that starts now takes the place of one whose routes the neighbours keep (RFC 4724).
    fn recovers(&self) -> bool {
        self.ended.is_some_and(|e| e.elapsed() < GRACE)
    }

    fn started(&mut self, bird: Process, recovers: bool) {
        tracing::info!(neighbours = self.rendered.names.len(), recovers, "bird started");
        self.bird = Some(bird);
        self.started = Instant::now();
        (self.behind, self.silent, self.fault) = (false, 0, None);
        self.held = ExportHold::default();
        self.look_at = Instant::now() + FIRST_RESTART;
        self.poke.notify_waiters();
    }

    /// BIRD reads what the agent has written by now, unless writing failed.
    async fn started_by_service(&mut self, bird: Process, recovers: bool) {
        let behind = self.behind;
        (self.start_at, self.expected_since) = (None, None);
        self.started(bird, recovers);
        self.behind = behind;
        if self.rendered.names.is_empty() {
            self.end().await;
        }
    }

    /// Says once what goes wrong again and again.
    fn note(&mut self, fault: String, what: &str) {
        if self.fault.as_ref() != Some(&fault) {
            tracing::error!(error = fault, "{what}");
        }
        self.fault = Some(fault);
    }

    fn ended(&mut self, how: &str) {
        tracing::warn!(how, "bird ended; it is started again");
        self.bird = None;
        self.ended = Some(Instant::now());
        self.fault = Some(format!("bird ended: {how}"));
        if self.started.elapsed() > LAST_RESTART {
            self.next_wait = FIRST_RESTART;
        }
        self.start_later();
        // A service manager starts it sooner: then it waits for the agent's answer.
        if let (Some(starts), Some(at)) = (&mut self.starts, self.start_at) {
            starts.none_before(at);
            self.expected_since = Some(at);
            self.start_at = Some(at + SERVICE_START_TIMEOUT);
        }
    }

    fn start_later(&mut self) {
        self.start_at = Some(Instant::now() + self.next_wait);
        self.next_wait = (self.next_wait * 2).min(LAST_RESTART);
        self.look_at = Instant::now();
    }

    /// Tells a running BIRD of a new configuration.
    async fn configure(&mut self) {
        let begun = Instant::now();
        let told = match self.home.write(&self.rendered.text) {
            Ok(()) => bird_socket::ask(&self.home, "configure").await,
            Err(e) => Err(Failure::Silent(format!("{e:#}"))),
        };
        self.rest_until = Instant::now() + begun.elapsed() * REST;
        match told {
            Ok(_) => {
                (self.behind, self.fault) = (false, None);
                self.poke.notify_waiters();
                self.command(self.held.again()).await;
            }
            Err(failure) => {
                // What it refused once it would refuse again.
                self.behind = matches!(failure, Failure::Silent(_));
                self.note(failure.to_string(), "BGP not configured");
            }
        }
    }

    /// Brings the status up to date, and catches up on what failed.
    async fn look(&mut self) {
        self.look_at = Instant::now() + LOOK;
        let mut seen = BTreeMap::new();
        if self.bird.is_some() {
            match bird_socket::ask(&self.home, "show protocols all \"n_*\"").await {
                Ok(answer) => {
                    seen = bird_socket::sessions(&answer);
                    self.silent = 0;
                    if self.behind {
                        self.configure().await;
                    }
                    self.hold_back(&seen).await;
                }
                Err(failure) => self.missed(&failure),
            }
        }
        self.report(&seen);
    }

    /// Sees to it that a neighbour which comes back hears nothing before its own routes are where they belong.
    async fn hold_back(&mut self, seen: &BTreeMap<String, Seen>) {
        let now = Instant::now();
        let before = self.held.clone();
        let commands = self.held.step(seen, now.into_std());
        if !self.command(commands).await {
            // A neighbour that is held back for good would hear of nothing: at the next look again.
            self.held.failed(before);
            return;
        }
        if let Some(due) = self.held.due() {
            self.look_at = self.look_at.min(due.into());
        }
    }

    /// Whether BIRD has done all of it.
    async fn command(&self, commands: Vec<String>) -> bool {
        let mut done = true;
        for command in commands {
            if let Err(failure) = bird_socket::ask(&self.home, &command).await {
                tracing::warn!(error = %failure, command, "what a neighbour hears is not as it should be");
                done = false;
            }
        }
        done
    }

    fn missed(&mut self, failure: &Failure) {
        // A BIRD that was started just now has no socket yet.
        if self.started.elapsed() < LOOK {
            self.look_at = Instant::now() + FIRST_RESTART;
            return;
        }
        self.silent += 1;
        if let (SILENT_LOOKS, Some(bird)) = (self.silent, &self.bird) {
            if bird.signal(Signal::SIGKILL) {
                tracing::error!(error = %failure, "bird is stuck: it is ended");
            } else {
                tracing::error!(error = %failure, "bird is stuck: restart the unit tombolo-bird@ of this agent");
            }
            self.silent = 0;
        }
    }

    fn report(&self, seen: &BTreeMap<String, Seen>) {
        let wanted = self.wanted.borrow();
        let speaker = wanted.iter().filter_map(|w| w.speaker.as_ref());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0.0, |d| d.as_secs_f64());
        let names: BTreeMap<&ResourceId, &String> = self.rendered.names.iter().map(|(name, id)| (id, name)).collect();
        let of = |n: &tombolo_proto::config::Neighbour| {
            let session = names.get(&n.id).and_then(|name| seen.get(*name)).cloned();
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
        self.status.send_replace(neighbours.map(of).collect());
    }

    /// Has BIRD close its sessions, and waits for its end; not for ever, as it may be stuck and out of reach.
    async fn end(&mut self) {
        // Without it no service manager starts another one.
        self.home.remove_config();
        let Some(mut bird) = self.bird.take() else { return };
        if !bird.signal(Signal::SIGTERM) {
            // Within the time that it has for its farewell: what matters is whether it ends.
            let _ = timeout(FAREWELL, bird_socket::ask(&self.home, "down")).await;
        }
        if timeout(FAREWELL, gone(&mut bird)).await.is_err() {
            tracing::warn!("bird takes too long to end");
            bird.signal(Signal::SIGKILL);
            if timeout(KILL_TIMEOUT, gone(&mut bird)).await.is_err() {
                tracing::error!(
                    "bird does not end: its sessions may be up still; end the process, or stop the unit tombolo-bird@"
                );
            }
        }
        self.home.clear();
    }
}

async fn gone(bird: &mut Process) {
    while !matches!(bird.next().await, Event::Ended(_)) {}
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.home.clear();
    }
}

async fn next_start(starts: &mut Option<Starts>, recovers: bool) -> Process {
    match starts {
        Some(starts) => starts.next(recovers).await,
        None => std::future::pending().await,
    }
}

async fn next(bird: &mut Option<Process>) -> Event {
    match bird {
        Some(bird) => bird.next().await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Ends a task and waits until it does nothing any more.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

/// Addresses that nobody else on the host has for BGP, and a password that nobody knows.
fn draw_loopback() -> Loopback {
    let draw = || Ipv4Addr::new(127, rand::random_range(1..255), rand::random(), 1);
    let taken = |a: &Ipv4Addr| TcpListener::bind((*a, 179)).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
    let bird = std::iter::repeat_with(draw)
        .take(16)
        .find(|a| !taken(a))
        .unwrap_or_else(draw);
    let password = format!("{:032x}", rand::random::<u128>());
    let signed = TcpSocket::new_v4().and_then(|s| sys::sign(&s, bird, password.as_bytes()));
    if let Err(e) = &signed {
        tracing::warn!(error = %e, "the kernel signs no TCP sessions: anyone on this host can pretend to be BIRD");
    }
    Loopback {
        bird,
        password: signed.is_ok().then_some(password),
    }
}
