//! The BGP speaker under test, which runs in a network namespace.

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tombolo_agent::bgp::{Bgp, BgpSpec, Bird, Learned};
use tombolo_proto::config::{Neighbour, Speaker};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_proto::status::{BgpPeerState, BgpPeerStatus};

/// Runs a part of a test on a thread of its own in a network namespace, and waits until the part ends. If it panics,
/// this function panics too.
pub(crate) fn within<F: AsyncFnOnce() + Send>(namespace: &str, part: F) {
    std::thread::scope(|scope| {
        let inside = move || {
            let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(part());
        };
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) fn route(prefix: &str, as_path: &[u32]) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        via: None,
        as_path: as_path.to_vec(),
        weight: 0,
        origin: RouteOrigin::Vnet,
    }
}

/// Routes to announce: two prefixes with an empty AS path, and one with two ASNs.
pub(crate) fn announced() -> Vec<Route> {
    vec![
        route("10.1.0.0/16", &[]),
        route("10.8.0.0/16", &[65_023, 4_200_000_001]),
        route("fd01::/48", &[]),
    ]
}

/// A neighbour on the wire. The session with it has a hold time of 9 s.
pub(crate) fn neighbour(id: &str, address: &str, asn: u32) -> Neighbour {
    let own = if address.contains(':') {
        "fd00:5::1"
    } else {
        "192.0.2.1"
    };
    Neighbour {
        id: self::id(id),
        address: address.parse().unwrap(),
        local_address: own.parse().unwrap(),
        asn,
        multihop: false,
        bfd: false,
        password: None,
        max_prefixes: 4000,
        hold_time: 9,
    }
}

pub(crate) fn id(text: &str) -> ResourceId {
    ResourceId::new(text)
}

/// The prefixes and AS paths that the neighbour `id` announces. `learned` has the routes of all neighbours.
pub(crate) fn learned(learned: &Learned, id: &str) -> Vec<(String, Vec<u32>)> {
    let routes = learned
        .get(&ResourceId::new(id))
        .map(|r| r.to_vec())
        .unwrap_or_default();
    let line = |r: Route| {
        assert_eq!((r.via, r.weight, r.origin), (None, 0, RouteOrigin::Site));
        (r.prefix.to_string(), r.as_path)
    };
    routes.into_iter().map(line).collect()
}

/// The process ID of the BIRD whose files are in this directory. None: there is no PID file.
pub(crate) fn pid_in(dir: &Path) -> Option<Pid> {
    let pid = std::fs::read_to_string(dir.join("run/bird.pid")).ok()?;
    pid.trim().parse().ok().map(Pid::from_raw)
}

/// Whether a process has ended. A zombie counts as ended.
pub(crate) fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |s| s.contains(") Z "))
}

/// A speaker, with the configuration that it has.
pub(crate) struct Near {
    pub bgp: Bgp,
    spec: Mutex<BgpSpec>,
    /// The directory of BIRD's configuration, which `Bgp` writes.
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Near {
    pub(crate) async fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("bgp");
        let mut near = Self::of(Bgp::start(&Bird::Child(dir.clone())).await.unwrap(), dir);
        near._temporary = Some(temporary);
        near
    }

    /// A speaker whose BIRD has its files in `dir`. It has no neighbours yet.
    pub(crate) fn of(bgp: Bgp, dir: PathBuf) -> Self {
        Self {
            bgp,
            spec: Mutex::new(BgpSpec {
                speaker: Some(Speaker {
                    asn: 65_515,
                    router_id: [192, 0, 2, 1].into(),
                    neighbours: vec![],
                }),
                announce: [].into(),
                addresses: vec!["192.0.2.1".parse().unwrap(), "fd00:5::1".parse().unwrap()],
            }),
            dir,
            _temporary: None,
        }
    }

    /// Changes the configuration. BIRD gets the changed configuration only after this function has returned, so a test
    /// must wait for the effect.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut BgpSpec)) {
        let mut spec = self.spec.lock().unwrap();
        change(&mut spec);
        self.bgp.configure(spec.clone());
    }

    pub(crate) fn learned(&self, id: &str) -> Vec<(String, Vec<u32>)> {
        learned(&self.bgp.learned().borrow(), id)
    }

    /// Waits until a neighbour announces exactly these routes, for 20 seconds at most.
    pub(crate) async fn learns(&self, id: &str, expected: &[(String, Vec<u32>)]) {
        let begin = Instant::now();
        while self.learned(id) != expected {
            let late = begin.elapsed() > Duration::from_secs(20);
            assert!(!late, "learned {:?}; {:?}", self.learned(id), self.bgp.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last published status of a neighbour, which may be a second old. None: no status of the neighbour was
    /// published yet.
    pub(crate) fn status(&self, id: &str) -> Option<BgpPeerStatus> {
        let all = self.bgp.status();
        all.into_iter().find(|s| s.neighbour == ResourceId::new(id))
    }

    /// Waits until the status of a neighbour satisfies a condition, for `seconds` at most. Returns that status.
    pub(crate) async fn status_with(
        &self,
        id: &str,
        seconds: u64,
        condition: impl Fn(&BgpPeerStatus) -> bool,
    ) -> BgpPeerStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.status(id).filter(|s| condition(s)) {
                return status;
            }
            let late = begin.elapsed() > Duration::from_secs(seconds);
            assert!(!late, "{id} has another status: {:?}", self.bgp.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a session has this state, for 20 seconds at most.
    pub(crate) async fn is(&self, id: &str, state: BgpPeerState) {
        self.is_within(id, state, 20).await;
    }

    pub(crate) async fn is_within(&self, id: &str, state: BgpPeerState, seconds: u64) {
        self.status_with(id, seconds, |s| s.state == state).await;
    }

    /// The process ID of BIRD. None: BIRD does not run.
    pub(crate) fn running(&self) -> Option<Pid> {
        pid_in(&self.dir).filter(|pid| !is_gone(*pid))
    }

    pub(crate) fn pid(&self) -> Pid {
        pid_in(&self.dir).unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.clone()
    }

    pub(crate) async fn stop(&self) {
        self.bgp.stop().await;
    }
}

/// Waits until a condition holds, for 20 seconds at most; then panics with `what`.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    eventually_within(what, 20, condition).await;
}

pub(crate) async fn eventually_within(what: &str, seconds: u64, condition: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < Duration::from_secs(seconds), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
