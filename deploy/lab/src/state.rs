//! What a lab has made so far, on disk before it is made, so that a later `down` finds everything after a crash.

use crate::process::Process;
use crate::topology::Topology;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where labs keep their state unless told otherwise: gone after a reboot, as the namespaces are.
pub const DEFAULT_ROOT: &str = "/run/tombolo-lab";

/// What a lab has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// The lab, as its file described it.
    pub topology: Topology,
    /// Hosts that exist or are about to.
    pub hosts: Vec<String>,
    /// Running processes, by the name of what they are: `controller`, or the host of an agent.
    pub processes: BTreeMap<String, Process>,
    /// Underlay addresses that differ from the topology's, because the host was moved.
    pub moved: BTreeMap<String, IpAddr>,
    /// Overlay addresses of the agents' hosts, the primary one first.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Everything was brought up.
    pub complete: bool,
}

/// The folder of one lab, locked against another program that changes the same lab.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

const STATE: &str = "lab.json";
const LOCK: &str = "lock";

/// The folder of a lab: `root/name`.
#[must_use]
pub fn dir_of(root: Option<&Path>, name: &str) -> PathBuf {
    root.unwrap_or(Path::new(DEFAULT_ROOT)).join(name)
}

impl StateDir {
    /// Makes the folder if it is missing, readable by its owner only (it holds keys and tokens), and locks it.
    ///
    /// # Errors
    /// It cannot be made, or another program works on the same lab.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        let file = File::create(path.join(LOCK)).with_context(|| format!("{}", path.join(LOCK).display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(_) => bail!("another program works on the lab in {} now", path.display()),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lab's state; none if nothing stands there.
    ///
    /// # Errors
    /// It cannot be read or is not a state.
    pub fn load(&self) -> Result<Option<State>> {
        read(&self.path)
    }

    /// Replaces the state, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, state: &State) -> Result<()> {
        let new = self.path.join("lab.json.new");
        fs::write(&new, serde_json::to_vec_pretty(state)?).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, self.path.join(STATE)).context("replacing the lab's state")?;
        Ok(())
    }

    /// Removes the folder, the last act of a lab.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }
}

/// The state of the lab in `path`, without locking; none if nothing stands there.
///
/// # Errors
/// It cannot be read or is not a state.
pub fn read(path: &Path) -> Result<Option<State>> {
    let file = path.join(STATE);
    match fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not the state of a lab", file.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| file.display().to_string()),
    }
}

/// The folders of all labs below a root that have a state.
#[must_use]
pub fn all(root: Option<&Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.unwrap_or(Path::new(DEFAULT_ROOT)));
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.join(STATE).exists())
        .collect();
    found.sort();
    found
}
