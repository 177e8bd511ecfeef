//! Tests BIRD's directories against a hostile process of BIRD's user. These tests need root and the user `bird`.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// The user `bird`, which Debian's package of BIRD creates.
fn bird() -> User {
    User::from_name("bird")
        .unwrap()
        .expect("the package bird2 creates the user bird")
}

/// A temporary directory in which BIRD's user may open files.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The canonical path of a program. The tests' PATH is a folder of links, in which BIRD's user may not open files.
fn real(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find_map(|place| place.canonicalize().ok()).unwrap()
}

/// A shell that runs as BIRD's user, with the configuration directory as working directory.
fn shell(home: &Home, script: &str) -> Command {
    let user = bird();
    let folders = ["sh", "ln"].map(|program| real(program).parent().unwrap().to_owned());
    let mut command = Command::new(real("sh"));
    command
        .args(["-c", script])
        .env("PATH", std::env::join_paths(folders).unwrap())
        .current_dir(home.config_dir())
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw());
    command
}

/// A process of BIRD's user. In an endless loop the process places symbolic links to a file under all names that BIRD
/// and the agent use.
struct Hostile(Child);

impl Hostile {
    fn start(home: &Home, victim: &Path) -> Self {
        // With `-n` the command `ln` replaces links that it has placed before. Without `-n` the command would succeed
        // only in the first round.
        let script = "while :; do for name in bird.conf bird.conf.new bird.ctl bird.pid start.sock; do \
                      for dir in . run; do ln -sfn \"$0\" $dir/$name; ln -sfn \"$0\" $dir; done; done; done 2>/dev/null";
        let child = shell(home, script).arg(victim).stdin(Stdio::null()).spawn();
        let hostile = Self(child.unwrap());
        let begun = std::time::Instant::now();
        while fs::symlink_metadata(home.control_socket()).is_err() {
            assert!(
                begun.elapsed().as_secs() < 10,
                "BIRD's user cannot write in its own directory"
            );
            std::thread::yield_now();
        }
        hostile
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn symbolic_links_of_a_hostile_bird_lead_the_agent_nowhere() {
    let dir = open_dir();
    let victim = dir.path().join("victim");
    fs::write(&victim, "the host's").unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(&victim).unwrap();
    let home = Home::of_child(&dir.path().join("bgp"), Some(bird())).unwrap();
    let hostile = Hostile::start(&home, &victim);
    // In two seconds the hostile process makes hundreds of attempts.
    let begun = std::time::Instant::now();
    let rounds = (0..).take_while(|round| *round < 300 || begun.elapsed().as_secs() < 2);
    for round in rounds {
        home.write(&format!("round {round}")).unwrap();
        let config = dir.path().join("bgp/bird.conf");
        let written = fs::symlink_metadata(&config).unwrap();
        assert!(written.is_file(), "round {round}");
        assert_eq!(
            (written.uid(), written.gid()),
            (0, bird().gid.as_raw()),
            "round {round}"
        );
        assert_eq!(written.permissions().mode() & 0o777, 0o640, "round {round}");
        assert_eq!(fs::read_to_string(&config).unwrap(), format!("round {round}"));
        if round % 10 == 0 {
            home.clear();
        }
        // A restarted agent creates its directories again, so the test also creates them again.
        if round % 50 == 0 {
            Home::of_child(&dir.path().join("bgp"), Some(bird())).unwrap();
        }
    }
    drop(hostile);
    let after = fs::metadata(&victim).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "the host's");
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode())
    );
}

#[test]
fn bird_reads_its_configuration_and_writes_nothing_there() {
    let dir = open_dir();
    let home = Home::of_child(&dir.path().join("bgp"), Some(bird())).unwrap();
    home.write("secret").unwrap();
    let as_bird = |script: &str| shell(&home, script).stderr(Stdio::null()).status().unwrap().success();
    assert!(as_bird("read word < bird.conf || [ \"$word\" = secret ]"));
    assert!(as_bird("echo > run/bird.pid"));
    for script in ["echo > bird.conf", "echo > new", "ln -sfn . run"] {
        assert!(!as_bird(script), "{script}");
    }
}

#[test]
fn a_directory_that_is_a_link_or_somebody_elses_is_refused() {
    let dir = open_dir();
    let (elsewhere, bgp) = (dir.path().join("elsewhere"), dir.path().join("bgp"));
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &bgp).unwrap();
    assert!(Home::of_child(&bgp, None).is_err());
    fs::remove_file(&bgp).unwrap();
    // BIRD's user could create such a link if its group could write in the whole directory.
    fs::create_dir(&bgp).unwrap();
    symlink(&elsewhere, bgp.join(RUN_DIR)).unwrap();
    assert!(Home::of_child(&bgp, None).is_err());
    fs::remove_file(bgp.join(RUN_DIR)).unwrap();
    Home::of_child(&bgp, None).unwrap();
    std::os::unix::fs::chown(bgp.join(RUN_DIR), Some(bird().uid.as_raw()), None).unwrap();
    let error = format!("{:#}", Home::of_child(&bgp, None).unwrap_err());
    assert!(error.contains("bgp/run: belongs to the user"), "{error}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_path_too_long_for_a_socket_is_refused() {
    let dir = open_dir();
    let error = format!(
        "{:#}",
        Home::of_child(&dir.path().join("x".repeat(100)), None).unwrap_err()
    );
    assert!(error.contains("107 bytes"), "{error}");
}
