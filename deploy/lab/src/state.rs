//! The record of what a lab has made, by which `down` can remove everything after a crash. A host is recorded on disk
//! before it is created, but a process only after it has started. If a crash leaves a process without a record, `down`
//! finds the process by the network namespace of its host.

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

/// Folder that contains the state folders of all labs by default. A reboot empties this folder, and also removes the
/// namespaces of the labs.
pub const DEFAULT_ROOT: &str = "/run/tombolo-lab";

/// The record of what a lab has made, as it is stored in `lab.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Identifies this bring-up. A later bring-up in the same folder has another id.
    #[serde(default)]
    pub id: String,
    /// Topology that the lab was brought up with.
    pub topology: Topology,
    /// Whether the hosts are namespaces, containers or virtual machines.
    #[serde(default)]
    pub runtime: Runtime,
    /// Hosts that exist or are being created, in the order of their creation.
    pub hosts: Vec<String>,
    /// Processes that were started, by name: `controller`, the host of an agent or routing daemon, or the name of
    /// another program. A process that has ended stays recorded.
    pub processes: BTreeMap<String, Process>,
    /// Present underlay addresses, by host, of those hosts whose address was changed after the bring-up.
    pub moved: BTreeMap<String, IpAddr>,
    /// Overlay addresses of agents' hosts and of the sites' machines, by host; the primary address of a host comes
    /// first.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Whether the bring-up has succeeded.
    pub complete: bool,
}

/// The state folder of one lab. While this value exists, it locks the folder against other programs that change the
/// lab.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

const STATE: &str = "lab.json";
const NEW_STATE: &str = "lab.json.new";
const LOCK: &str = "lock";
/// Time between two attempts to lock the folder.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Names of all entries that a lab makes in its folder. A folder that has other entries and no record is refused as a
/// state folder.
const OWN_ENTRIES: &[&str] = &[
    STATE,
    NEW_STATE,
    LOCK,
    "controller",
    "agents",
    "sites",
    "machines",
    "logs",
];

/// Returns the path of a lab's state folder: `root/name`, where `root` is [`DEFAULT_ROOT`] if none. Creates and checks
/// nothing.
#[must_use]
pub fn dir_of(root: Option<&Path>, name: &str) -> PathBuf {
    root.unwrap_or(Path::new(DEFAULT_ROOT)).join(name)
}

impl StateDir {
    /// Opens a lab's state folder, and locks it until the value is dropped. Does not wait for the lock. Creates the
    /// folder and its parents if they are missing. Its mode becomes 0700, because it contains keys and tokens.
    ///
    /// # Errors
    /// The folder cannot be created or opened, has entries that no lab makes and no record, or is locked by another
    /// [`StateDir`], of another program or of this one. The mode of a locked folder is set nevertheless.
    pub fn open(path: &Path) -> Result<Self> {
        let Some(dir) = Self::try_open(path)? else {
            bail!("another program works on the lab in {} now", path.display());
        };
        Ok(dir)
    }

    /// As [`Self::open`], but waits up to `limit` for the lock. The watcher of a killed program holds the lock while it
    /// takes that program's lab down. If the future is dropped, nothing is locked.
    ///
    /// # Errors
    /// As [`Self::open`], but a lock that another [`StateDir`] holds is an error only after `limit`.
    ///
    /// # Panics
    /// If it has to wait outside of a Tokio runtime with time enabled, or if the end of `limit` is later than an
    /// [`Instant`] can be.
    pub async fn open_within(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(dir) = Self::try_open(path)? {
                return Ok(dir);
            }
            if Instant::now() > deadline {
                return Self::open(path);
            }
            tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
        }
    }

    /// As [`Self::open`], but returns `None` if another program has the lock, or has removed the folder during the
    /// call.
    fn try_open(path: &Path) -> Result<Option<Self>> {
        refuse_foreign_files(path)?;
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        let name = path.join(LOCK);
        let file = File::create(&name).with_context(|| name.display().to_string())?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        // After this program has opened the file and before it has locked it, the program that held the lock may have
        // removed the file with its folder. A lock on the removed file would exclude nobody, so it is given up.
        let same = fs::metadata(&name).is_ok_and(|m| lock.metadata().is_ok_and(|own| own.ino() == m.ino()));
        Ok(same.then(|| Self {
            path: path.to_owned(),
            _lock: lock,
        }))
    }

    /// Removes everything in the folder except the lock: the record, keys, tokens and logs of an earlier lab.
    ///
    /// # Errors
    /// The folder cannot be read, or an entry cannot be removed. A second call may remove the entries that are left.
    pub fn clear(&self) -> Result<()> {
        let mut names = names(&self.path)?;
        // The record is removed last. A folder without the record does not count as a lab's folder. So, if the record
        // were removed first, an interrupted removal could not be repeated.
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

    /// Returns the path of the folder, as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the lab's record; `None` if the folder has no record.
    ///
    /// # Errors
    /// The file cannot be read, or is not a record of this version.
    pub fn load(&self) -> Result<Option<State>> {
        read(&self.path)
    }

    /// Replaces the lab's record. A reader sees the complete old or the complete new record, because the new record is
    /// written to another file, which is then renamed. The data is not synced to the disk, so it may be lost if the
    /// machine loses power.
    ///
    /// # Errors
    /// The file cannot be written or renamed; the old record then stays.
    pub fn save(&self, state: &State) -> Result<()> {
        let new = self.path.join(NEW_STATE);
        fs::write(&new, serde_json::to_vec_pretty(state)?).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, self.path.join(STATE)).context("replacing the lab's state")?;
        Ok(())
    }

    /// Removes the folder with all files of the lab, and releases the lock.
    ///
    /// # Errors
    /// A file cannot be removed. The record is removed last. So, if the removal fails, a second attempt is possible.
    /// The lock is released nevertheless.
    pub fn remove(self) -> Result<()> {
        self.clear()?;
        fs::remove_dir_all(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }
}

/// Returns the names of a folder's entries, unsorted; empty if the folder does not exist.
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

/// Refuses a folder with entries that no lab makes, because [`StateDir::remove`] would delete them. A folder with a
/// record counts as a lab's folder, whatever else it contains.
fn refuse_foreign_files(path: &Path) -> Result<()> {
    let names = names(path)?;
    if names.iter().any(|n| n == STATE) {
        return Ok(());
    }
    match names.iter().find(|n| !OWN_ENTRIES.iter().any(|own| *n == own)) {
        Some(strange) => bail!(
            "{} does not belong to a lab: a lab removes its folder at the end, so choose an empty one with --lab-dir",
            path.join(strange).display()
        ),
        None => Ok(()),
    }
}

/// Returns the record of the lab with the state folder `path` without a lock, also while another program changes the
/// lab; `None` if there is no record.
///
/// # Errors
/// The file cannot be read, or is not a record of this version.
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

/// Returns the folders directly below `root` ([`DEFAULT_ROOT`] if `root` is `None`) that contain a lab's record, sorted
/// by path. Empty if `root` does not exist or this user may not read it.
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
