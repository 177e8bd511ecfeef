//! The files of captures: their names, and the limit of all of them together.

use anyhow::{Context, Result, ensure};
use nix::libc::O_NOFOLLOW;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;
use uuid::Uuid;

/// The ending of the files.
const ENDING: &str = "pcapng";

/// Longest part of a file's name that comes from the capture's name, in characters.
const MAX_NAME: usize = 60;

/// The directory of all captures of an agent.
#[derive(Debug)]
pub struct CaptureFiles {
    root: PathBuf,
    /// The largest sum of the files' lengths in bytes.
    limit: u64,
    /// The files that are being written, which are not removed.
    open: Mutex<BTreeSet<PathBuf>>,
}

impl CaptureFiles {
    /// The files in the directory `root`, which together have at most `limit` bytes. Nothing is read or created yet.
    #[must_use]
    pub fn new(root: PathBuf, limit: u64) -> Self {
        Self {
            root,
            limit,
            open: Mutex::default(),
        }
    }

    /// The path of the file of a capture.
    #[must_use]
    pub fn path(&self, id: Uuid, name: &str) -> PathBuf {
        let is_safe = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let safe: String = name.chars().filter(is_safe).take(MAX_NAME).collect();
        self.root.join(format!("{safe}_{id}.{ENDING}"))
    }

    /// Creates a file that did not exist. Until [`close`](Self::close) it is not removed.
    ///
    /// # Errors
    /// The file exists (its kind is `AlreadyExists`), or it cannot be created.
    pub fn create(&self, path: &Path) -> std::io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        let mut options = OpenOptions::new();
        let options = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW);
        let file = options.open(path)?;
        self.open().insert(path.to_owned());
        Ok(file)
    }

    /// Notes that a file is complete.
    pub fn close(&self, path: &Path) {
        self.open().remove(path);
    }

    /// Makes room for `bytes` more bytes: removes the files that were written first, as far as they are complete.
    ///
    /// # Errors
    /// There is no room although only files are left that are being written, or the directory cannot be read.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        // The lock is held meanwhile, so that two captures do not count on the same room.
        let open = self.open();
        let mut complete: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        let mut used = 0;
        let reading = || format!("reading {}", self.root.display());
        for entry in fs::read_dir(&self.root).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if !metadata.is_file() || path.extension().is_none_or(|ending| ending != ENDING) {
                continue;
            }
            used += metadata.len();
            if !open.contains(&path) {
                complete.push((
                    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    metadata.len(),
                    path,
                ));
            }
        }
        complete.sort();
        for (_, length, path) in complete {
            if used + bytes <= self.limit {
                break;
            }
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            tracing::info!(file = %path.display(), "capture removed: captures.max_megabytes is reached");
            used -= length;
        }
        ensure!(
            used + bytes <= self.limit,
            "the captures in progress have reached the limit of {} bytes (captures.max_megabytes)",
            self.limit
        );
        Ok(())
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::time::Duration;

    #[test]
    fn d42_names_of_clients_are_no_paths() {
        let files = CaptureFiles::new("/captures".into(), 100);
        let id = Uuid::nil();
        let name = |name: &str| files.path(id, name);
        assert_eq!(name("web-1"), Path::new(&format!("/captures/web-1_{id}.pcapng")));
        for hostile in [
            "../../etc/passwd",
            "/etc/passwd",
            "a\0b",
            "..",
            "",
            "ä b.c",
            &"x".repeat(5000),
        ] {
            let path = name(hostile);
            assert_eq!(path.parent(), Some(Path::new("/captures")), "{hostile:?}");
            assert!(path.file_name().unwrap().len() < 120, "{hostile:?}");
        }
    }

    #[test]
    fn d42_the_oldest_files_go_first_and_open_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let files = CaptureFiles::new(folder.path().join("captures"), 100);
        let paths: Vec<PathBuf> = ["old", "new", "open"]
            .iter()
            .map(|name| files.path(Uuid::new_v4(), name))
            .collect();
        for (age, path) in [20, 10, 30].into_iter().zip(&paths) {
            let mut file = files.create(path).unwrap();
            file.write_all(&[0; 30]).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        fs::write(folder.path().join("captures/notes.txt"), [0; 5000]).unwrap();
        assert_eq!(files.create(&paths[0]).unwrap_err().kind(), ErrorKind::AlreadyExists);
        files.close(&paths[0]);
        files.close(&paths[1]);
        let left = || paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
        files.make_room(10).unwrap();
        assert_eq!(left(), [true, true, true]);
        files.make_room(11).unwrap();
        assert_eq!(left(), [false, true, true]);
        assert!(files.make_room(71).is_err());
        assert_eq!(left(), [false, false, true]);
    }
}
