//! The files of the state directory. Each write replaces a whole file atomically, and only the directory's owner has
//! access.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_NOFOLLOW;
use nix::unistd::geteuid;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names of the files and directories in the state directory.
pub mod file {
    /// The local settings, which the operator may edit. Its presence marks the directory as joined.
    pub const CONFIG: &str = "agent.toml";
    /// X25519 private key of the links, base64.
    pub const LINK_KEY: &str = "link.key";
    /// ECDSA P-256 private key for TLS with the controller and for QUIC, PEM.
    pub const TLS_KEY: &str = "tls.key";
    /// The agent's certificate for TLS with the controller, PEM. Replaced at each renewal.
    pub const CERTIFICATE: &str = "agent.pem";
    /// The certificate of the controller's authority, PEM.
    pub const CA: &str = "ca.pem";
    /// The last configuration that was applied, with revision and digest.
    pub const LAST_GOOD: &str = "last-good.json";
    /// The last known endpoints of peers, for the next start.
    pub const ENDPOINTS: &str = "endpoints.json";
    /// The routing tables, rule priorities and mark of the last run, by which the next run can find and remove what the
    /// last run left in the kernel.
    pub const NUMBERS: &str = "numbers.json";
    /// Directory of the flow logs (D38), unless `agent.toml` names another one.
    pub const FLOW_LOGS: &str = "flow-logs";
    /// Directory of the files of packet captures (D42), unless `agent.toml` names another one.
    pub const CAPTURES: &str = "captures";
    /// The flows of security groups, from an orderly stop until the next start (D34). It may be in another directory
    /// (`--runtime-dir`).
    pub const FLOWS: &str = "flows";
    /// What has passed each link since the agent began to count (Meter-6).
    pub const METERS: &str = "meters.json";
    /// What had passed the links with peers that the agent does not have any more (Meter-6).
    pub const EARLIER_METERS: &str = "earlier-meters.json";
    /// Directory with the files of BIRD as a child process.
    pub const BGP: &str = "bgp";
    /// The local HTTP socket of the running agent.
    pub const ADMIN_SOCKET: &str = "admin.sock";
    /// The lock file. It is locked while an agent runs, joins or cleans, and is never removed.
    pub const LOCK: &str = "lock";
}

/// Suffix of temporary files. A temporary file is renamed to its proper name when it is complete.
const UNFINISHED: &str = ".new";

/// An agent's state directory. The value consists of the path alone: it opens nothing, and holds no lock.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state directory at `path`. The directory must exist before a file is written; this function does not check
    /// it.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Creates the directory with mode 0700, and missing parents with the mode that the umask leaves. An existing
    /// directory keeps its mode.
    ///
    /// # Errors
    /// The directory cannot be created, or a file has its name.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let step = || -> std::io::Result<()> {
            // The parents need the usual mode, because the user of a service must be able to traverse them.
            if let Some(above) = path.parent() {
                fs::create_dir_all(above)?;
            }
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)
        };
        step().with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// The path of the file `name` in the directory. The file need not exist. `name` is normally one of [`mod@file`], and
    /// must be a relative path; it is not checked.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The contents of a file. None: the file or the directory does not exist. A symbolic link is followed.
    ///
    /// # Errors
    /// The file exists, and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Replaces a file atomically: after a crash the file has either the old or the new contents. When the function
    /// returns, the new contents are on disk (`fsync`). The file has mode 0600. If root calls this function, the file
    /// belongs to the directory's owner. A symbolic link with this name is replaced; its target stays. Several threads
    /// may write the same file. `name` is a plain file name. The directory must exist. Blocks until the disk has the
    /// data.
    ///
    /// # Errors
    /// A step failed. The file has the old contents, or the new ones if only the last `fsync` of the directory failed.
    /// A temporary file may stay until the next [`lock`](Self::lock).
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replace(name, bytes, true)
    }

    /// Replaces a file as [`write`](Self::write) does, but does not wait for the disk: after a crash of the host the
    /// file may have any contents, or may be missing.
    ///
    /// # Errors
    /// A step failed. The file has the old contents. A temporary file may stay until the next [`lock`](Self::lock).
    pub fn write_without_sync(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replace(name, bytes, false)
    }

    fn replace(&self, name: &str, bytes: &[u8], sync: bool) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Two threads that write the same file need different temporary files.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (path, temporary) = (self.path(name), self.path(&format!(".{name}.{count}{UNFINISHED}")));
        let step = || -> std::io::Result<()> {
            // A crash may have left a temporary file with the same name.
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = self.create_new(&temporary)?;
            file.write_all(bytes)?;
            if sync {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)?;
            if sync {
                File::open(&self.0)?.sync_all()?;
            }
            Ok(())
        };
        step().with_context(|| format!("writing {}", path.display()))
    }

    /// Removes a file. Does nothing if the file or the directory does not exist. The removal is not forced to disk:
    /// after a crash the file may be there again.
    ///
    /// # Errors
    /// The file exists, and cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("removing {}", path.display())),
            _ => Ok(()),
        }
    }

    /// Locks the directory, and removes temporary files that a crash left. Does not wait for the lock. The lock ends
    /// when the value is dropped or the process ends. Until then every further call fails, also in the same process.
    /// The directory must exist. The lock file is created if it is missing, and stays.
    ///
    /// # Errors
    /// The lock is held already, or the lock file cannot be opened or locked.
    pub fn lock(&self) -> Result<StateLock> {
        let path = self.path(file::LOCK);
        let file = match self.create_new(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(&path)
            }
            created => created,
        };
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.sweep();
                Ok(StateLock { _lock: lock })
            }
            Err(_) => bail!("{} is in use by another agent: stop that agent first", self.0.display()),
        }
    }

    /// Creates a file that must not exist. Root may run `join` for a service in another user's directory. Therefore the
    /// function follows no symbolic link, and gives the file to the directory's owner.
    fn create_new(&self, path: &Path) -> std::io::Result<File> {
        let mut options = OpenOptions::new();
        let options = options
            .write(true)
            .create_new(true)
            .custom_flags(O_NOFOLLOW)
            .mode(0o600);
        let file = options.open(path)?;
        let directory = fs::metadata(&self.0)?;
        if geteuid().is_root() && directory.uid() != 0 {
            fchown(&file, Some(directory.uid()), Some(directory.gid()))?;
        }
        Ok(file)
    }

    /// Removes the temporary files that a crash left. The caller must hold the lock of the agent's state directory, so
    /// that no other process writes.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let unfinished = |name: &str| name.starts_with('.') && name.ends_with(UNFINISHED);
            if name.to_str().is_some_and(unfinished) {
                // A file that cannot be removed does no harm, and the next start tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Exclusive lock on the state directory, until this value is dropped.
#[derive(Debug)]
pub struct StateLock {
    _lock: Flock<File>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(dir.path().join("a/b")).unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        state.write("x", b"one").unwrap();
        state.write("x", b"2").unwrap();
        assert_eq!(state.read("x").unwrap().unwrap(), b"2");
        let mode = fs::metadata(state.path("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::metadata(dir.path().join("a/b")).unwrap().permissions().mode() & 0o777,
            0o700
        );
        state.remove("x").unwrap();
        state.remove("x").unwrap();
    }

    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let writers: Vec<_> = [b'a', b'b', b'c', b'd']
            .map(|byte| {
                let state = state.clone();
                std::thread::spawn(move || (0..20).try_for_each(|_| state.write("x", &[byte; 10_000])))
            })
            .into();
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        let content = state.read("x").unwrap().unwrap();
        assert!(content.len() == 10_000 && content.iter().all(|b| *b == content[0]));
        // Locking removes a temporary file that a crash left.
        fs::write(state.path(".x.7.new"), "half").unwrap();
        let _lock = state.lock().unwrap();
        assert!(!state.path(".x.7.new").exists());
    }

    /// The test gives a directory to another user, so it must run as root.
    #[test]
    fn root_gives_files_to_the_owner_of_the_directory_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, owner) = (dir.path().join("victim"), 12_345);
        fs::write(&victim, "the host's").unwrap();
        let state = StateDir::create(dir.path().join("state")).unwrap();
        std::os::unix::fs::chown(dir.path().join("state"), Some(owner), Some(owner)).unwrap();
        std::os::unix::fs::symlink(&victim, state.path(file::LOCK)).unwrap();
        assert!(state.lock().is_err());
        state.remove(file::LOCK).unwrap();
        let _lock = state.lock().unwrap();
        state.write("x", b"1").unwrap();
        for name in ["x", file::LOCK] {
            let file = fs::metadata(state.path(name)).unwrap();
            assert_eq!((file.uid(), file.gid()), (owner, owner), "{name}");
        }
        std::os::unix::fs::symlink(&victim, state.path("y")).unwrap();
        state.write("y", b"2").unwrap();
        assert!(fs::symlink_metadata(state.path("y")).unwrap().is_file());
        assert_eq!(fs::read(&victim).unwrap(), b"the host's");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let held = state.lock().unwrap();
        assert!(state.lock().is_err());
        drop(held);
        assert!(state.lock().is_ok());
    }
}
