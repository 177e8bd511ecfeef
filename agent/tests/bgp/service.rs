//! Tests BIRD as a separate service. A thread acts as the service manager. `tests/vm` tests the systemd units
//! themselves.

use crate::far::Far;
use crate::near::{self, Near, announced, eventually, id, neighbour, within};
use crate::{SITE, SITE_V6, site, wire};
use nix::sys::signal::{Signal, kill};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tombolo_agent::bgp::{Bgp, Bird, BirdService};
use tombolo_proto::status::BgpPeerState;

/// Acts as the service manager: starts BIRD, with the capabilities of its unit, whenever a configuration exists and
/// BIRD does not run.
struct Manager {
    child: Arc<Mutex<Option<Child>>>,
    starts: Arc<AtomicUsize>,
    /// How often the thread has checked whether it must start BIRD.
    checks: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Manager {
    /// Starts the manager's thread in the network namespace of the calling thread.
    fn start(dir: PathBuf) -> Self {
        let (child, starts) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let checks = Arc::new(AtomicUsize::new(0));
        let (shared, count, checked, end) = (child.clone(), starts.clone(), checks.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let is_running = || matches!(shared.lock().unwrap().as_mut().map(Child::try_wait), Some(Ok(None)));
            while !end.load(Ordering::Relaxed) {
                if dir.join("bird.conf").exists() && !is_running() {
                    *shared.lock().unwrap() = Some(Self::bird(&dir));
                    count.fetch_add(1, Ordering::Relaxed);
                }
                checked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self {
            child,
            starts,
            checks,
            over,
            thread: Some(thread),
        }
    }

    fn bird(dir: &std::path::Path) -> Child {
        let given = "=-all,+net_bind_service,+net_raw";
        let bird = Command::new("setpriv")
            .args(["--no-new-privs", &format!("--bounding-set{given}")])
            .args([
                &format!("--inh-caps{given}"),
                env!("CARGO_BIN_EXE_tombolo-agent"),
                "bird",
            ])
            .arg("--config-dir")
            .arg(dir)
            .arg("--run-dir")
            .arg(dir.join("run"))
            .stdin(Stdio::null())
            .spawn();
        bird.unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A speaker whose BIRD is a service, and the directory of the service's files.
async fn start() -> (Near, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let service = BirdService {
        config_dir: dir.path().to_owned(),
        run_dir: dir.path().join("run"),
        user: "root".into(),
    };
    let bgp = Bgp::start(&Bird::Service(service)).await.unwrap();
    (Near::of(bgp, dir.path().to_owned()), dir)
}

#[test]
fn a_service_manager_starts_bird_and_the_agent_ends_it() {
    let wire = wire("service", 2);
    let options = "password \"the same\";";
    let far = Far::with(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6, options);
    within(&wire.ns[0], async || {
        let (near, dir) = start().await;
        let manager = Manager::start(dir.path().to_owned());
        near.configure(|spec| {
            let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
            n.password = Some(tombolo_proto::id::Secret("the same".into()));
            spec.speaker.as_mut().unwrap().neighbours = vec![n];
            spec.announce.insert(id("/c/1"), announced());
        });
        near.learns("/c/1", &site(65_021)).await;
        near.is("/c/1", BgpPeerState::Connected).await;
        eventually("announced", async || far.path_of("fd01::/48").is_some()).await;

        // After a crash the agent makes BIRD restart gracefully.
        let mut changes = near.bgp.learned();
        changes.mark_unchanged();
        let before = near.pid();
        kill(before, Signal::SIGKILL).unwrap();
        let begun = Instant::now();
        // Eight seconds are longer than the restart and the 3 s after it, when BIRD and the neighbour remove stale
        // routes.
        while begun.elapsed() < Duration::from_secs(8) {
            assert!(far.path_of("10.8.0.0/16").is_some(), "the neighbour removed the routes");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!changes.has_changed().unwrap(), "learned routes changed");
        assert_ne!(near.pid(), before);
        eventually("established again", async || far.state("n0") == "Established").await;

        // A new configuration needs no restart of BIRD. Without a speaker the agent ends BIRD.
        near.configure(|spec| spec.announce.clear());
        eventually("withdrawn", async || far.path_of("10.8.0.0/16").is_none()).await;
        let pid = near.pid();
        near.configure(|spec| spec.speaker = None);
        eventually("gone", async || near::is_gone(pid)).await;
        eventually("session closed", async || far.state("n0") != "Established").await;
        let log = far.log();
        assert!(log.contains("Received: Administrative shutdown"), "{log}");
        // After two more checks of the manager, BIRD has still been started only twice: without a configuration the
        // manager does not start it.
        let checks = manager.checks.load(Ordering::Relaxed);
        let checked_twice = async || manager.checks.load(Ordering::Relaxed) >= checks + 2;
        eventually("checks of the manager", checked_twice).await;
        assert_eq!(manager.starts.load(Ordering::Relaxed), 2);
        assert!(!dir.path().join("bird.conf").exists());
        near.stop().await;
    });
}

/// The agent may not send signals to a service. If BIRD does not react to the agent's commands, the agent gives up
/// after its timeouts and ends.
#[test]
fn a_service_that_is_stuck_does_not_hold_up_the_agents_end() {
    let wire = wire("stuck", 2);
    let _far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let (near, dir) = start().await;
        let _manager = Manager::start(dir.path().to_owned());
        near.configure(|spec| {
            spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
        });
        near.learns("/c/1", &site(65_021)).await;
        kill(near.pid(), Signal::SIGSTOP).unwrap();
        let begun = Instant::now();
        near.stop().await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(near.bgp.learned().borrow().is_empty());
    });
}

/// If a process of another user than BIRD's listens on the control socket, the agent sends no command to it.
#[test]
fn who_is_not_bird_gets_no_commands() {
    let wire = wire("other", 1);
    within(&wire.ns[0], async || {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        // The listener is this process, which runs as root and not as the user `bird`.
        let listener = std::os::unix::net::UnixListener::bind(run.join("bird.ctl")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = BirdService {
            config_dir: dir.path().join("config"),
            run_dir: run,
            user: "bird".into(),
        };
        let bgp = Bgp::start(&Bird::Service(service)).await.unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stream, &mut said).unwrap();
        assert_eq!(said, "");
        bgp.stop().await;
    });
}
