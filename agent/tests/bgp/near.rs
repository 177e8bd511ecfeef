//! The speaker under test, in a namespace.

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tombolo_agent::bgp::{Bgp, Bird, Learned, Wanted};
use tombolo_proto::config::{Neighbour, Speaker};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_proto::status::{BgpPeerState, BgpPeerStatus};

/// Runs a part of a test in a namespace.
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

/// Something to announce: own ranges, and a route from elsewhere.
pub(crate) fn announced() -> Vec<Route> {
    vec![
        route("10.1.0.0/16", &[]),
        route("10.8.0.0/16", &[65_023, 4_200_000_001]),
        route("fd01::/48", &[]),
    ]
}

/// A neighbour on the wire.
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

/// Of what is learned, one neighbour's prefixes and paths.
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

pub(crate) fn pid_in(dir: &Path) -> Option<Pid> {
    let pid = std::fs::read_to_string(dir.join("run/bird.pid")).ok()?;
    pid.trim().parse().ok().map(Pid::from_raw)
}

/// Whether a process has ended, waited for or not.
pub(crate) fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |s| s.contains(") Z "))
}

pub(crate) struct Near {
    pub bgp: Bgp,
    wanted: Mutex<Wanted>,
    dir: PathBuf,
    _kept: Option<tempfile::TempDir>,
}

impl Near {
    pub(crate) async fn start() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let mut near = Self::start_in(kept.path().join("bgp")).await;
        near._kept = Some(kept);
        near
    }

    pub(crate) async fn start_in(dir: PathBuf) -> Self {
        let bgp = Bgp::start(&Bird::Child(dir.clone())).await.unwrap();
        Self::of(bgp, dir)
    }

    /// A speaker with its BIRD's files in a directory.
    pub(crate) fn of(bgp: Bgp, dir: PathBuf) -> Self {
        Self {
            bgp,
            wanted: Mutex::new(Wanted {
                speaker: Some(Speaker {
                    asn: 65_515,
                    router_id: [192, 0, 2, 1].into(),
                    neighbours: vec![],
                }),
                announce: [].into(),
                addresses: vec!["192.0.2.1".parse().unwrap(), "fd00:5::1".parse().unwrap()],
            }),
            dir,
            _kept: None,
        }
    }

    pub(crate) fn want(&self, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.wanted.lock().unwrap();
        change(&mut wanted);
        self.bgp.want(wanted.clone());
    }

    pub(crate) fn learned(&self, id: &str) -> Vec<(String, Vec<u32>)> {
        learned(&self.bgp.learned().borrow(), id)
    }

    pub(crate) async fn learns(&self, id: &str, expected: &[(String, Vec<u32>)]) {
        let begun = Instant::now();
        while self.learned(id) != expected {
            let late = begun.elapsed() > Duration::from_secs(20);
            assert!(!late, "learned {:?}; {:?}", self.learned(id), self.bgp.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn status(&self, id: &str) -> BgpPeerStatus {
        // At most a second old.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let all = self.bgp.status();
        all.into_iter().find(|s| s.neighbour == ResourceId::new(id)).unwrap()
    }

    pub(crate) async fn is(&self, id: &str, state: BgpPeerState) {
        self.is_within(id, state, 20).await;
    }

    pub(crate) async fn is_within(&self, id: &str, state: BgpPeerState, seconds: u64) {
        let begun = Instant::now();
        let is = |s: &BgpPeerStatus| s.neighbour == ResourceId::new(id) && s.state == state;
        while !self.bgp.status().iter().any(is) {
            let late = begun.elapsed() > Duration::from_secs(seconds);
            assert!(!late, "{state:?}: {:?}", self.bgp.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

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

/// Tries until it works or 20 seconds are over.
pub(crate) async fn eventually(what: &str, f: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !f().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
