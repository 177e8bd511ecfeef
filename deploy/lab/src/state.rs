//! What a lab has made so far, on disk before it is made, so that a later `down` finds everything after a crash.

use crate::host::Runtime;
use crate::process::Process;
use crate::topology::Topology;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where labs keep their state unless told otherwise: gone after a reboot, as the namespaces are.
pub const DEFAULT_ROOT: &str = "/run/tombolo-lab";

/// What a lab has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Tells this bring-up from a later one in the same folder.
    #[serde(default)]
    pub id: String,
    /// The lab, as its file described it.
    pub topology: Topology,
    /// What its hosts are.
    #[serde(default)]
    pub runtime: Runtime,
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
const NEW: &str = "lab.json.new";
const LOCK: &str = "lock";
/// What a lab puts into its folder.
const OWN: &[&str] = &[STATE, NEW, LOCK, "controller", "agents", "sites", "machines", "logs"];

/// The folder of a lab: `root/name`.
#[must_use]
pub fn dir_of(root: Option<&Path>, name: &str) -> PathBuf {
    root.unwrap_or(Path::new(DEFAULT_ROOT)).join(name)
}

impl StateDir {
    /// Makes the folder if it is missing, readable by its owner only (it holds keys and tokens), and locks it.
    ///
    /// # Errors
    /// It cannot be made or holds other things, or another program works on the same lab.
    pub fn open(path: &Path) -> Result<Self> {
        let Some(dir) = Self::try_open(path)? else {
            bail!("another program works on the lab in {} now", path.display());
        };
        Ok(dir)
    }

    /// As [`Self::open`], but waits for another program to let go of the lab: one that was killed is being tidied up
    /// after.
    ///
    /// # Errors
    /// As [`Self::open`], after `limit`.
    pub async fn open_within(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(dir) = Self::try_open(path)? {
                return Ok(dir);
            }
            if Instant::now() > deadline {
                return Self::open(path);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// None if another program has the lock.
    fn try_open(path: &Path) -> Result<Option<Self>> {
        refuse_strange(path)?;
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        let name = path.join(LOCK);
        let file = File::create(&name).with_context(|| name.display().to_string())?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        // Between opening and locking, the one before may have removed the folder with the file.
        let same = fs::metadata(&name).is_ok_and(|m| lock.metadata().is_ok_and(|own| own.ino() == m.ino()));
        Ok(same.then(|| Self {
            path: path.to_owned(),
            _lock: lock,
        }))
    }

    /// Removes everything in the folder but the lock: keys, tokens and logs of an earlier lab.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let mut names = names(&self.path)?;
        // The state goes last, so that the folder of an interrupted removal is still known to be a lab's.
        names.sort_by_key(|name| name == STATE);
        for path in names.iter().filter(|n| *n != LOCK).map(|n| self.path.join(n)) {
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
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
        let new = self.path.join(NEW);
        fs::write(&new, serde_json::to_vec_pretty(state)?).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, self.path.join(STATE)).context("replacing the lab's state")?;
        Ok(())
    }

    /// Removes the folder, the last act of a lab.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        self.clear()?;
        fs::remove_dir_all(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }
}

/// What stands in a folder; nothing if there is none.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let names = entries.map(|e| e.map(|e| e.file_name()));
    names
        .collect::<Result<_, _>>()
        .with_context(|| path.display().to_string())
}

/// A lab removes its folder at its end: it must not be one that holds other things.
fn refuse_strange(path: &Path) -> Result<()> {
    let names = names(path)?;
    if names.iter().any(|n| n == STATE) {
        return Ok(());
    }
    match names.iter().find(|n| !OWN.iter().any(|own| *n == own)) {
        Some(strange) => bail!(
            "{} is not a lab's: a lab has its folder for itself, so name another one",
            path.join(strange).display()
        ),
        None => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_cleared_only_of_what_a_lab_puts_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lab");
        let dir = StateDir::open(&path).unwrap();
        assert!(
            StateDir::open(&path)
                .unwrap_err()
                .to_string()
                .contains("another program")
        );
        fs::create_dir_all(path.join("controller")).unwrap();
        fs::write(path.join("controller/state.db"), "old").unwrap();
        fs::write(path.join(STATE), "{}").unwrap();
        dir.clear().unwrap();
        assert!(!path.join("controller").exists() && !path.join(STATE).exists());
        assert!(StateDir::open(&path).is_err(), "the lock is still held");

        drop(dir);

        fs::write(path.join("thesis.txt"), "mine").unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
    }
}
